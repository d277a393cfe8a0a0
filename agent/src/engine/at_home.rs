//! What this machine has of a file, whatever it belonged to.

use std::sync::Arc;

use branchline_core::SegmentSet;
use branchline_hashing::{Manifest, SegmentIndex};
use branchline_store::Store;

use crate::engine::content::LocalContent;
use crate::engine::partial::{Partial, PartialError};
use crate::engine::serving::present_in_store;

/// Where this machine has segments: its store, and a download of the same content that is not in
/// the store yet. Everything about it blocks.
#[derive(Clone)]
pub(crate) struct Here {
    pub(crate) store: Store,
    pub(crate) local: Option<Arc<LocalContent>>,
}

impl Here {
    /// Which segments it has.
    pub(crate) fn holds(&self, manifest: &Manifest) -> SegmentSet {
        let mut held = present_in_store(&self.store, manifest);
        if let Some(local) = self.local_with(manifest) {
            held.unite(&local.done.segments());
        }
        held
    }

    /// Copies segments; which were still there and right.
    pub(crate) fn copy(
        &self,
        manifest: &Manifest,
        partial: &Partial,
        wanted: &[SegmentIndex],
    ) -> Result<Vec<SegmentIndex>, PartialError> {
        let mut copied = Vec::with_capacity(wanted.len());
        for index in wanted {
            let Some(segment) = manifest.segment(*index) else {
                continue;
            };
            let local = self
                .local_with(manifest)
                .and_then(|local| local.read_verified(*index));
            // A store that cannot be read is a cache that misses.
            let found = local.or_else(|| self.store.read(segment.hash).ok().flatten());
            if let Some(verified) = found.filter(|found| found.hash() == segment.hash) {
                partial.write(&verified, segment.offset)?;
                copied.push(*index);
            }
        }
        Ok(copied)
    }

    /// Tables of one digest can differ, if strangers made them.
    fn local_with(&self, manifest: &Manifest) -> Option<&LocalContent> {
        let local = self.local.as_deref()?;
        (local.manifest.head() == manifest.head()).then_some(local)
    }
}
