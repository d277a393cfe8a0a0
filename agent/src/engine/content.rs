//! A content that is being downloaded, or was a moment ago: what its peers are served from.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use branchline_core::SegmentSet;
use branchline_core::planner::TELL_EVERY;
use branchline_hashing::{ContentKey, Manifest, SegmentIndex, VerifiedSegment};
use bytes::Bytes;
use tokio::sync::watch;

use crate::api::Trust;

/// A content whose verified segments stand in a file of this machine.
#[derive(Debug)]
pub(crate) struct LocalContent {
    pub(crate) key: ContentKey,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) trust: Trust,
    encoded: OnceLock<Bytes>,
    proved: AtomicBool,
    pub(crate) done: Done,
    file: File,
}

impl LocalContent {
    pub(crate) fn new(
        key: ContentKey,
        manifest: Arc<Manifest>,
        trust: Trust,
        done: SegmentSet,
        file: File,
    ) -> Self {
        Self {
            key,
            manifest,
            trust,
            encoded: OnceLock::new(),
            proved: AtomicBool::new(false),
            done: Done::new(done),
            file,
        }
    }

    /// The manifest as it travels.
    pub(crate) fn encoded_manifest(&self) -> Bytes {
        self.encoded
            .get_or_init(|| self.manifest.encode().into())
            .clone()
    }

    /// Whether others may have it: not what only this machine's connection to the origin vouches
    /// for, and not what a stranger's table describes before the whole has matched.
    pub(crate) fn is_shared(&self) -> bool {
        match self.trust {
            Trust::Manifest => true,
            Trust::Digest => self.is_proved(),
            Trust::Branch | Trust::Origin => false,
        }
    }

    /// Whether its table is right beyond doubt.
    pub(crate) fn is_proved(&self) -> bool {
        self.proved.load(Ordering::Acquire)
    }

    /// The whole file matches its digest.
    pub(crate) fn mark_proved(&self) {
        self.proved.store(true, Ordering::Release);
    }

    /// Reads a segment that is done, and verifies it once more: the file may have been changed by
    /// anybody since it got its name.
    pub(crate) fn read_verified(&self, index: SegmentIndex) -> Option<VerifiedSegment> {
        let done = self.done.contains(index);
        let segment = self.manifest.segment(index).filter(|_| done)?;
        let mut bytes = vec![0; segment.length as usize];
        self.file.read_exact_at(&mut bytes, segment.offset).ok()?;
        VerifiedSegment::verify(bytes.into(), segment.hash).ok()
    }
}

/// The segments of a content that are written, and a word to those who watch them come.
#[derive(Debug)]
pub(crate) struct Done {
    /// Written by the one transfer, read by those who serve; never held across anything slow.
    segments: RwLock<SegmentSet>,
    /// Counts segments that come; none when no more will.
    growth: RwLock<Option<watch::Sender<u64>>>,
    /// The least time between two words of it, in milliseconds.
    tell_every: AtomicU32,
}

impl Done {
    pub(crate) fn new(segments: SegmentSet) -> Self {
        Self {
            segments: RwLock::new(segments),
            growth: RwLock::new(Some(watch::Sender::new(0))),
            tell_every: AtomicU32::new(milliseconds(TELL_EVERY)),
        }
    }

    /// All of them.
    pub(crate) fn segments(&self) -> SegmentSet {
        self.read().clone()
    }

    pub(crate) fn contains(&self, index: SegmentIndex) -> bool {
        self.read().contains(index)
    }

    /// One more is written; whether it was not before.
    pub(crate) fn insert(&self, index: SegmentIndex) -> bool {
        let new = self
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(index);
        let growth = self.growth.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(growth) = &*growth {
            growth.send_modify(|count| *count += 1);
        }
        new
    }

    /// One is not there any more; whether it was.
    pub(crate) fn remove(&self, index: SegmentIndex) -> bool {
        self.segments
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(index)
    }

    /// Tells of each segment that comes; `None` when no more will.
    pub(crate) fn growth(&self) -> Option<watch::Receiver<u64>> {
        let growth = self.growth.read().unwrap_or_else(PoisonError::into_inner);
        growth.as_ref().map(watch::Sender::subscribe)
    }

    /// How often those who watch are told of what comes.
    pub(crate) fn tell_every(&self) -> Duration {
        Duration::from_millis(self.tell_every.load(Ordering::Relaxed).into())
    }

    pub(crate) fn set_tell_every(&self, every: Duration) {
        self.tell_every
            .store(milliseconds(every), Ordering::Relaxed);
    }

    /// No more will come: whoever watches is told.
    pub(crate) fn end_growth(&self) {
        let mut growth = self.growth.write().unwrap_or_else(PoisonError::into_inner);
        *growth = None;
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, SegmentSet> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds(every: Duration) -> u32 {
    u32::try_from(every.as_millis()).unwrap_or(u32::MAX)
}
