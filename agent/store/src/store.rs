//! The open store: one value that all threads share.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use branchline_hashing::{SegmentHash, VerifiedSegment};
use bytes::Bytes;

use crate::contents::ContentFigures;
use crate::directory::Directory;
use crate::error::{OpenError, StoreError};
use crate::hold::{Hold, Holds};
use crate::index::{Index, Table};
use crate::manifests::Manifests;
use crate::options::{MAX_SEGMENT_BYTES, StoreOptions};
use crate::packs::Packs;
use crate::record::{FreedRange, Located, LruKey, PackId, PackRecord, SegmentRecord};
use crate::recovery::{RecoveryReport, Unrecovered};
use crate::touches::{Touches, is_worth_noting};

/// Under this key the table `meta` counts the segments that turned out bad: 8 bytes, big-endian.
pub(crate) const BAD_SEGMENTS_KEY: &[u8] = b"bad segments";

/// A usable store. Cloning it is cheap; all clones are the same store, and the last one closes it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

/// What a store holds. Costs nothing to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The blocks they occupy: what counts towards the limit. The index is not in it.
    pub disk_bytes: u64,
    /// The limit.
    pub limit_bytes: u64,
    /// Segments dropped because their bytes were not there or not right, since the store was made.
    pub bad_segments_dropped: u64,
    /// Segments and contents that were here and are not any more, whyever, since the store was opened.
    pub forgotten: u64,
}

/// Locks are taken in the order writer, holds, the rest; `figures` and `touches` only for moments.
pub(crate) struct Inner {
    pub(crate) index: Index,
    pub(crate) packs: Packs,
    pub(crate) manifests: Manifests,
    pub(crate) options: StoreOptions,
    pub(crate) holds: Holds,
    pub(crate) touches: Mutex<Touches>,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) figures: Mutex<StoreStats>,
    pub(crate) contents: Mutex<ContentFigures>,
    pub(crate) report: RecoveryReport,
    /// Last, so that the lock goes after the index is closed.
    pub(crate) directory: Directory,
}

/// A change of the caller's notes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoteChange {
    /// This value stands under this key from now on.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
    },
    /// Nothing stands under this key any more.
    Remove {
        /// The key.
        key: String,
    },
}

/// What the one thread that writes segments or evicts them knows. The same as the table `packs`,
/// save where a comment says otherwise.
pub(crate) struct Writer {
    pub(crate) packs: BTreeMap<PackId, PackRecord>,
    pub(crate) current: Option<PackId>,
    pub(crate) next_pack: PackId,
    /// Nothing in the LRU order comes before this: spares stepping over what was evicted.
    pub(crate) lru_from: LruKey,
    /// Their blocks are given back; the next batch removes their records.
    pub(crate) reclaimed: Vec<FreedRange>,
}

impl Store {
    /// Opens the store in `dir`, makes it if there is none, and mends what a crash left behind.
    ///
    /// # Errors
    /// [`OpenError`]: another process has it, it is another user's or of another format, or the
    /// disk or the index fails.
    pub fn open(dir: impl AsRef<Path>, options: StoreOptions) -> Result<Self, OpenError> {
        let recovered = Unrecovered::open(dir.as_ref(), options)?.recover()?;
        let store = Self(Arc::new(recovered));
        store.0.shrink_at_open();
        Ok(store)
    }

    /// What was mended when this store was opened.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.0.report
    }

    /// Reads a segment and hashes it. One that is not what it should be is dropped, counted, and
    /// `None`, as one that is not here.
    ///
    /// # Errors
    /// [`StoreError`] when the disk or the index fails.
    pub fn read(&self, hash: SegmentHash) -> Result<Option<VerifiedSegment>, StoreError> {
        self.0.read(hash)
    }

    /// Which of these are here, in the order asked. Nothing is read or touched; a segment said to
    /// be here can go before it is read unless it is held.
    ///
    /// # Errors
    /// [`StoreError`] when the index fails.
    pub fn contains(&self, hashes: &[SegmentHash]) -> Result<Vec<bool>, StoreError> {
        self.0.contains(hashes)
    }

    /// Keeps these from being evicted as long as the value lives, here or not. Hold first, then
    /// ask with [`Store::contains`].
    pub fn hold(&self, hashes: impl IntoIterator<Item = SegmentHash>) -> Hold {
        self.0.holds.hold(hashes)
    }

    /// How much is here.
    pub fn stats(&self) -> StoreStats {
        *self.0.figures()
    }

    /// Evicts what was used longest ago until the segments occupy at most `target_bytes` or only
    /// held ones are left.
    ///
    /// # Errors
    /// [`StoreError`] when the disk or the index fails.
    pub fn shrink_to(&self, target_bytes: u64) -> Result<(), StoreError> {
        let mut writer = self.0.lock_writer()?;
        self.0.write_touches(&mut writer)?;
        self.0.shrink_to(&mut writer, target_bytes)
    }

    /// Keeps a small value under a key; on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError`] when the index fails.
    pub fn put_note(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.change_notes(&[NoteChange::Put { key, value }])
    }

    /// The value under a key.
    ///
    /// # Errors
    /// [`StoreError`] when the index fails.
    pub fn note(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.index.value(Table::Notes, key.as_bytes())?)
    }

    /// Changes notes in this order, all together or none; on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError`] when the index fails: nothing has changed as far as [`Store::note`] tells, and whether it has
    /// shows when the store is opened again. Of a full disk the index recovers by itself. After any other failed write
    /// it takes no more until then, lest its log have a hole.
    pub fn change_notes(&self, changes: &[NoteChange]) -> Result<(), StoreError> {
        let mut batch = self.0.index.batch();
        let mut bytes = 0;
        for change in changes {
            match change {
                NoteChange::Put { key, value } => {
                    bytes += value.len() as u64;
                    batch.put(Table::Notes, key.as_bytes(), value);
                }
                NoteChange::Remove { key } => batch.delete(Table::Notes, key.as_bytes()),
            }
        }
        let result = batch.commit_synced().map_err(StoreError::from);
        result.map_err(|error| error.or_no_space(self.0.dir(), bytes))
    }

    /// Shows all notes whose keys begin with `prefix`, in the order of their keys.
    ///
    /// # Errors
    /// [`StoreError`] when the index fails; some may have been shown by then.
    pub fn each_note(
        &self,
        prefix: &str,
        mut show: impl FnMut(&str, &[u8]),
    ) -> Result<(), StoreError> {
        let scanned = self
            .0
            .index
            .scan(Table::Notes, prefix.as_bytes(), |key, value| {
                match std::str::from_utf8(key) {
                    Ok(key) if key.starts_with(prefix) => {
                        show(key, value);
                        ControlFlow::Continue(())
                    }
                    // Every key was a text when it was put.
                    Ok(_) | Err(_) => ControlFlow::Break(()),
                }
            });
        Ok(scanned?)
    }

    /// Writes down what is only in memory, and closes the store if this is its last clone.
    ///
    /// # Errors
    /// [`StoreError`] when the disk or the index fails; nothing that was reported as stored is lost.
    pub fn flush_and_close(self) -> Result<(), StoreError> {
        self.0.write_touches(&mut *self.0.lock_writer()?)?;
        Ok(self.0.index.flush()?)
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.0.dir())
            .field("stats", &self.stats())
            .finish()
    }
}

/// How reading the bytes of a record went.
enum ReadBack {
    Right(VerifiedSegment),
    /// Other bytes, none at all, or the disk cannot read them.
    Bad,
}

impl Inner {
    pub(crate) fn dir(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn lock_writer(&self) -> Result<MutexGuard<'_, Writer>, StoreError> {
        self.writer.lock().map_err(|_| StoreError::Stopped)
    }

    pub(crate) fn figures(&self) -> MutexGuard<'_, StoreStats> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touches(&self) -> MutexGuard<'_, Touches> {
        self.touches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, hash: SegmentHash) -> Result<Option<VerifiedSegment>, StoreError> {
        while let Some(record) = self.record(&hash)? {
            if let ReadBack::Right(segment) = self.read_back(hash, &record)? {
                self.touch(&Located { hash, record });
                return Ok(Some(segment));
            }
            if self.drop_bad(&Located { hash, record })? {
                return Ok(None);
            }
            // It was evicted, and perhaps stored anew, while it was being read: look again.
        }
        Ok(None)
    }

    fn record(&self, hash: &SegmentHash) -> Result<Option<SegmentRecord>, StoreError> {
        let Some(value) = self.index.value(Table::Segments, hash.as_bytes())? else {
            return Ok(None);
        };
        let damaged = StoreError::DamagedRecord { what: "segment" };
        SegmentRecord::decode(&value).map(Some).ok_or(damaged)
    }

    fn read_back(&self, hash: SegmentHash, record: &SegmentRecord) -> Result<ReadBack, StoreError> {
        if record.length > MAX_SEGMENT_BYTES {
            return Ok(ReadBack::Bad);
        }
        let bytes = match self.packs.read(record.pack, record.offset, record.length) {
            Ok(bytes) => bytes,
            Err(error) if is_about_the_data(&error) => None,
            Err(error) => {
                return Err(StoreError::io("reading", &self.packs.path(record.pack))(
                    error,
                ));
            }
        };
        Ok(bytes.map_or(ReadBack::Bad, |bytes| verify(bytes, hash)))
    }

    /// Drops a segment whose bytes were bad, and counts it; `false` when it is no longer where it
    /// was read.
    fn drop_bad(&self, located: &Located) -> Result<bool, StoreError> {
        let mut writer = self.lock_writer()?;
        let now = self.record(&located.hash)?;
        let Some(record) = now.filter(|now| now.same_place(&located.record)) else {
            return Ok(false);
        };
        tracing::warn!(segment = %located.hash, pack = record.pack.0, offset = record.offset,
            "a stored segment was damaged; dropped");
        self.drop_segments(
            &mut writer,
            &[Located {
                hash: located.hash,
                record,
            }],
            1,
        )?;
        Ok(true)
    }

    fn touch(&self, located: &Located) {
        let now = self.options.clock.minute();
        if !is_worth_noting(&located.record, now) {
            return;
        }
        let full = {
            let mut touches = self.touches();
            touches.note(located.hash, now);
            touches.is_full()
        };
        // A writer that is busy writes them down itself, before it evicts.
        if full && let Ok(mut writer) = self.writer.try_lock() {
            let written = self.write_touches(&mut writer);
            written.unwrap_or_else(|error| tracing::warn!("uses of segments not noted: {error}"));
        }
    }

    pub(crate) fn note_uses(&self, hashes: impl IntoIterator<Item = SegmentHash>) {
        let now = self.options.clock.minute();
        let mut touches = self.touches();
        hashes.into_iter().for_each(|hash| touches.note(hash, now));
    }

    pub(crate) fn write_touches(&self, writer: &mut Writer) -> Result<(), StoreError> {
        let touches = self.touches().take();
        if let Some(foremost) = touches.write(&self.index)? {
            writer.lru_from = writer.lru_from.min(foremost);
        }
        Ok(())
    }

    pub(crate) fn contains(&self, hashes: &[SegmentHash]) -> Result<Vec<bool>, StoreError> {
        let mut present = vec![false; hashes.len()];
        for i in self.positions_present(hashes)? {
            present[i] = true;
        }
        Ok(present)
    }

    /// Asks in sorted order, so that neighbours in the index are looked up together.
    fn positions_present(&self, hashes: &[SegmentHash]) -> Result<Vec<usize>, StoreError> {
        let mut order: Vec<usize> = (0..hashes.len()).collect();
        order.sort_unstable_by_key(|i| hashes[*i]);
        let keys: Vec<&[u8; 32]> = order.iter().map(|i| hashes[*i].as_bytes()).collect();
        let mut present = Vec::new();
        self.index
            .values(Table::Segments, &keys, |i, _| present.push(order[i]))?;
        Ok(present)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let touches = self.touches().take();
        let written = touches.write(&self.index);
        written
            .map(|_| ())
            .unwrap_or_else(|error| tracing::debug!("uses not noted: {error}"));
    }
}

fn verify(bytes: Bytes, hash: SegmentHash) -> ReadBack {
    VerifiedSegment::verify(bytes, hash).map_or(ReadBack::Bad, ReadBack::Right)
}

/// The pack is gone or its medium is unreadable: fetching the segment again mends that. Anything
/// else (no file descriptors, no memory) says nothing about the data.
fn is_about_the_data(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
