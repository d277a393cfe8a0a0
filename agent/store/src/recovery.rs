//! Opening: what a crash, a full disk or a careless hand left behind is mended before anybody can
//! use the store. Each step can be cut off at any point and is done again at the next open.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;

use crate::contents::ContentFigures;
use crate::directory::Directory;
use crate::error::{IndexError, OpenError, StoreError};
use crate::hold::Holds;
use crate::index::{Batch, Index, Table};
use crate::manifests::Manifests;
use crate::options::StoreOptions;
use crate::packs::Packs;
use crate::record::{FreedRange, Located, LruKey, PackId, PackRecord};
use crate::store::{BAD_SEGMENTS_KEY, Inner, StoreStats, Writer};

/// Index writes put together while mending: bounds the memory.
const WRITES_PER_BATCH: usize = 8192;

/// What opening a store had to mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecoveryReport {
    /// Bytes past the last stored segment that were cut off packs.
    pub bytes_cut: u64,
    /// Pack files that the index does not know, removed.
    pub orphan_packs_removed: u64,
    /// Segments whose pack is gone or too short, dropped.
    pub segments_lost: u64,
    /// Ranges whose blocks had not been given back.
    pub ranges_given_back: u64,
    /// Files beside the manifests that no content names, removed.
    pub orphan_manifests_removed: u64,
    /// Contents whose manifest is gone, dropped.
    pub contents_lost: u64,
}

/// A store whose index and packs may disagree. Only [`Unrecovered::recover`] can be done with it.
pub(crate) struct Unrecovered {
    index: Index,
    packs: Packs,
    options: StoreOptions,
    report: RecoveryReport,
    directory: Directory,
}

impl Unrecovered {
    pub(crate) fn open(dir: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        let directory = Directory::open(dir)?;
        let index = Index::open(&directory.index()).map_err(in_index(dir))?;
        let packs = Packs::new(directory.packs());
        Ok(Self {
            index,
            packs,
            options,
            report: RecoveryReport::default(),
            directory,
        })
    }

    pub(crate) fn recover(mut self) -> Result<Inner, OpenError> {
        let dir = self.directory.path().to_owned();
        self.finish_reclaiming().map_err(in_index(&dir))?;
        let known = self.known_packs().map_err(in_index(&dir))?;
        self.remove_orphans(&known)?;
        let packs = if self.cut_tails(&known)? {
            self.drop_lost_segments(&known)?
        } else {
            known
        };
        let packs = self.remove_empty(packs)?;
        let figures = self.figures(&packs).map_err(in_index(&dir))?;
        let mut inner = self.into_inner(packs, figures);
        inner.recover_contents()?;
        if inner.report != RecoveryReport::default() {
            tracing::info!(dir = %dir.display(), report = ?inner.report, "store recovered");
        }
        Ok(inner)
    }

    /// Blocks of segments that were evicted just before the end. Doing it twice does no harm: a
    /// place in a pack is used once.
    fn finish_reclaiming(&mut self) -> Result<(), IndexError> {
        let mut batch = self.index.batch();
        let mut given_back = 0;
        self.index.scan(Table::Reclaim, &[], |key, value| {
            let punched = FreedRange::decode(key, value).map(|range| self.packs.punch(&range));
            if let Some(Err(error)) = punched {
                tracing::warn!("giving back the blocks of a pack failed: {error}");
            }
            batch.delete(Table::Reclaim, key);
            given_back += 1;
            ControlFlow::Continue(())
        })?;
        self.report.ranges_given_back = given_back;
        if given_back == 0 {
            Ok(())
        } else {
            batch.commit_synced()
        }
    }

    fn known_packs(&self) -> Result<BTreeMap<PackId, PackRecord>, IndexError> {
        let mut packs = BTreeMap::new();
        let mut damaged = false;
        self.index.scan(Table::Packs, &[], |key, value| {
            let pack = PackId::from_key(key).zip(PackRecord::decode(value));
            damaged |= pack.is_none();
            packs.extend(pack);
            ControlFlow::Continue(())
        })?;
        if damaged {
            return Err(damaged_record("pack"));
        }
        Ok(packs)
    }

    fn remove_orphans(&mut self, known: &BTreeMap<PackId, PackRecord>) -> Result<(), OpenError> {
        let list = self
            .packs
            .list()
            .map_err(OpenError::io("listing", self.packs.dir()))?;
        for pack in list.into_iter().filter(|pack| !known.contains_key(pack)) {
            let path = self.packs.path(pack);
            self.packs
                .remove(pack)
                .map_err(OpenError::io("removing", &path))?;
            self.report.orphan_packs_removed += 1;
        }
        Ok(())
    }

    /// Cuts what was never reported as stored; `true` if a pack is gone or shorter than it was.
    fn cut_tails(&mut self, known: &BTreeMap<PackId, PackRecord>) -> Result<bool, OpenError> {
        let mut damaged = false;
        for (pack, record) in known {
            let path = self.packs.path(*pack);
            let end = u64::from(record.end);
            match self.packs.length(*pack) {
                Ok(length) if length > end => {
                    self.packs
                        .cut(*pack, record.end)
                        .map_err(OpenError::io("cutting", &path))?;
                    self.report.bytes_cut += length - end;
                }
                Ok(length) => damaged |= length < end,
                Err(error) if error.kind() == io::ErrorKind::NotFound => damaged = true,
                Err(error) => return Err(OpenError::io("looking at", &path)(error)),
            }
        }
        Ok(damaged)
    }

    /// Goes through all segments, drops those whose bytes cannot be there, and counts the rest
    /// anew. The pack records change last: cut off before, this is done again.
    fn drop_lost_segments(
        &mut self,
        known: &BTreeMap<PackId, PackRecord>,
    ) -> Result<BTreeMap<PackId, PackRecord>, OpenError> {
        let mut packs = self.pack_lengths(known)?;
        let mut counted: BTreeMap<PackId, PackRecord> = BTreeMap::new();
        let mut sweep = Sweep {
            index: &self.index,
            batch: self.index.batch(),
            error: None,
        };
        let mut lost = 0;
        let scanned = self.index.scan(Table::Segments, &[], |key, value| {
            let located = Located::from_segments(key, value);
            let there = located.filter(|Located { record, .. }| {
                let end = u64::from(record.offset) + u64::from(record.length);
                packs
                    .get(&record.pack)
                    .is_some_and(|length| end <= u64::from(*length))
            });
            match there {
                Some(Located { record, .. }) => {
                    counted.entry(record.pack).or_default().add(&record)
                }
                None => {
                    lost += 1;
                    sweep.drop_segment(key, located.as_ref());
                }
            }
            sweep.flow()
        });
        let dir = self.directory.path();
        scanned
            .and_then(|()| sweep.finish())
            .map_err(in_index(dir))?;

        let mut batch = self.index.batch();
        for pack in known.keys() {
            // Appending goes on behind what the file has, even where no segment is left in it.
            let (record, length) = (counted.entry(*pack).or_default(), packs.remove(pack));
            record.end = length.unwrap_or(0).max(record.end);
            batch.put(Table::Packs, &pack.key(), &record.encode());
        }
        let bad = bad_segments(&self.index).map_err(in_index(dir))? + lost;
        batch.put(Table::Meta, BAD_SEGMENTS_KEY, &bad.to_be_bytes());
        batch.commit_synced().map_err(in_index(dir))?;
        self.report.segments_lost = lost;
        Ok(counted)
    }

    /// The length of each pack that is there.
    fn pack_lengths(
        &self,
        known: &BTreeMap<PackId, PackRecord>,
    ) -> Result<BTreeMap<PackId, u32>, OpenError> {
        let mut lengths = BTreeMap::new();
        for pack in known.keys() {
            match self.packs.length(*pack) {
                Ok(length) => {
                    lengths.insert(*pack, u32::try_from(length).unwrap_or(u32::MAX));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(OpenError::io("looking at", &self.packs.path(*pack))(error));
                }
            }
        }
        Ok(lengths)
    }

    /// Packs without segments go: the record first, so that what a crash leaves is an orphan.
    fn remove_empty(
        &self,
        mut packs: BTreeMap<PackId, PackRecord>,
    ) -> Result<BTreeMap<PackId, PackRecord>, OpenError> {
        let empty: Vec<PackId> = packs
            .iter()
            .filter(|(_, record)| record.segments == 0)
            .map(|(id, _)| *id)
            .collect();
        if empty.is_empty() {
            return Ok(packs);
        }
        let mut batch = self.index.batch();
        for pack in &empty {
            batch.delete(Table::Packs, &pack.key());
        }
        batch
            .commit_synced()
            .map_err(in_index(self.directory.path()))?;
        for pack in empty {
            packs.remove(&pack);
            let path = self.packs.path(pack);
            self.packs
                .remove(pack)
                .map_err(OpenError::io("removing", &path))?;
        }
        Ok(packs)
    }

    fn figures(&self, packs: &BTreeMap<PackId, PackRecord>) -> Result<StoreStats, IndexError> {
        let mut figures = StoreStats {
            limit_bytes: self.options.limit_bytes,
            bad_segments_dropped: bad_segments(&self.index)?,
            ..StoreStats::default()
        };
        for record in packs.values() {
            figures.segments += u64::from(record.segments);
            figures.bytes += u64::from(record.bytes);
            figures.disk_bytes += u64::from(record.block_bytes);
        }
        Ok(figures)
    }

    fn into_inner(self, packs: BTreeMap<PackId, PackRecord>, figures: StoreStats) -> Inner {
        let last = packs.last_key_value().map(|(pack, _)| *pack);
        let writer = Writer {
            packs,
            current: last,
            next_pack: last.map_or(PackId(1), PackId::next),
            lru_from: LruKey::FIRST,
            reclaimed: Vec::new(),
        };
        Inner {
            index: self.index,
            packs: self.packs,
            manifests: Manifests::new(self.directory.manifests()),
            options: self.options,
            holds: Holds::default(),
            touches: Mutex::default(),
            writer: Mutex::new(writer),
            figures: Mutex::new(figures),
            contents: Mutex::default(),
            report: self.report,
            directory: self.directory,
        }
    }
}

impl Inner {
    /// Drops contents whose manifest is gone, and files that no content names.
    fn recover_contents(&mut self) -> Result<(), OpenError> {
        let dir = self.dir().to_owned();
        let mut figures = ContentFigures::default();
        let mut named = BTreeSet::new();
        let mut lost = Vec::new();
        for entry in self
            .entries()
            .map_err(|error| in_index(&dir)(as_index_error(error)))?
        {
            figures.add(&entry);
            let name = entry.file_name();
            if self.manifests.path(&name).exists() {
                named.insert(name);
            } else {
                lost.push(entry);
            }
        }
        let removed = self.remove_entries(&mut figures, &lost);
        removed.map_err(|error| in_index(&dir)(as_index_error(error)))?;
        self.report.contents_lost = lost.len() as u64;
        let others = self.manifests.remove_others(&named);
        let in_dir = OpenError::io("clearing", self.manifests.dir());
        self.report.orphan_manifests_removed = others.map_err(in_dir)?;
        *self.content_figures() = figures;
        Ok(())
    }
}

/// Deletions written in steps while a scan goes on.
struct Sweep<'a> {
    index: &'a Index,
    batch: Batch<'a>,
    error: Option<IndexError>,
}

impl Sweep<'_> {
    fn drop_segment(&mut self, key: &[u8], located: Option<&Located>) {
        self.batch.delete(Table::Segments, key);
        if let Some(located) = located {
            self.batch
                .delete(Table::Lru, &located.record.lru_key().encode());
        }
        if self.batch.len() >= WRITES_PER_BATCH {
            let full = std::mem::replace(&mut self.batch, self.index.batch());
            self.error = full.commit_lazily().err();
        }
    }

    fn flow(&self) -> ControlFlow<()> {
        if self.error.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn finish(self) -> Result<(), IndexError> {
        self.error.map_or(Ok(()), Err)?;
        self.batch.commit_lazily()
    }
}

fn bad_segments(index: &Index) -> Result<u64, IndexError> {
    let value = index.value(Table::Meta, BAD_SEGMENTS_KEY)?;
    Ok(value
        .and_then(|value| value.try_into().ok())
        .map_or(0, u64::from_be_bytes))
}

fn damaged_record(what: &str) -> IndexError {
    IndexError {
        message: format!("a {what} record cannot be read"),
        no_space: false,
    }
}

fn in_index(dir: &Path) -> impl Fn(IndexError) -> OpenError + '_ {
    move |source| OpenError::Index {
        dir: dir.to_owned(),
        source,
    }
}

/// The index's own words where there are any.
fn as_index_error(error: StoreError) -> IndexError {
    if let StoreError::Index(error) = error {
        return error;
    }
    IndexError {
        message: error.to_string(),
        no_space: false,
    }
}
