//! Appending: place, write, sync, then the index. Until the index batch is on disk nothing of it
//! exists; `docs/store.md` goes through every point it can stop at.

use std::collections::{BTreeMap, BTreeSet};

use branchline_hashing::{SegmentHash, VerifiedSegment};

use crate::error::StoreError;
use crate::index::Table;
use crate::linux;
use crate::options::{BATCH_BYTES, BATCH_SEGMENTS, MAX_SEGMENT_BYTES};
use crate::record::{FreedRange, Located, Minute, PackId, PackRecord, SegmentRecord, in_blocks};
use crate::store::{Inner, Store, Writer};

/// What became of the segments given to [`Store::append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Appended {
    /// Written now.
    pub stored: u64,
    /// Here before, or twice among those given.
    pub already_there: u64,
}

impl Store {
    /// Stores segments. They are on disk when this returns, each once; what was used longest ago
    /// makes room. Best called with about 32 MiB at a time; more is done in several steps, of
    /// which those before a failure stay.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] and [`StoreError::Full`] when there is no room: nothing that was
    /// stored is lost, and the caller may go on without caching. Others when the disk or the
    /// index fails.
    pub fn append(&self, segments: &[VerifiedSegment]) -> Result<Appended, StoreError> {
        segments.iter().try_for_each(check_size)?;
        let mut done = Appended::default();
        for batch in batches(segments) {
            let stored = self.inner().append_batch(batch)?;
            done.stored += stored;
            done.already_there += batch.len() as u64 - stored;
        }
        Ok(done)
    }
}

/// Where new segments go, and what the packs are like once they are there.
struct Placement {
    segments: Vec<Located>,
    packs: BTreeMap<PackId, PackRecord>,
    created: BTreeSet<PackId>,
    current: Option<PackId>,
    next_pack: PackId,
}

impl Inner {
    fn append_batch(&self, batch: &[VerifiedSegment]) -> Result<u64, StoreError> {
        // What is here already must not be evicted to make room for the rest.
        let _hold = self.holds.hold(batch.iter().map(VerifiedSegment::hash));
        let mut writer = self.lock_writer()?;
        let new = self.not_yet_here(batch)?;
        if new.is_empty() {
            return Ok(0);
        }
        let needed_bytes = new.iter().map(|s| u64::from(in_blocks(length(s)))).sum();
        let stored = self.store_new(&mut writer, &new, needed_bytes);
        stored.map_err(|error| error.or_no_space(self.dir(), needed_bytes))?;
        Ok(new.len() as u64)
    }

    fn store_new(
        &self,
        writer: &mut Writer,
        new: &[&VerifiedSegment],
        needed_bytes: u64,
    ) -> Result<(), StoreError> {
        self.write_touches(writer)?;
        self.make_room(writer, needed_bytes)?;
        self.check_free(needed_bytes)?;
        let placement = place(
            writer,
            new,
            self.options.clock.minute(),
            self.options.pack_limit(),
        );
        if let Err(error) = self.write_packs(&placement, new) {
            self.undo_packs(writer, &placement);
            return Err(error);
        }
        if let Err(error) = self.commit_placement(writer, &placement) {
            self.burn(writer, &placement);
            return Err(error);
        }
        self.apply(writer, placement);
        Ok(())
    }

    /// The first of each segment that is not stored yet; uses of the others are noted.
    fn not_yet_here<'a>(
        &self,
        batch: &'a [VerifiedSegment],
    ) -> Result<Vec<&'a VerifiedSegment>, StoreError> {
        let hashes: Vec<SegmentHash> = batch.iter().map(VerifiedSegment::hash).collect();
        let present = self.contains(&hashes)?;
        self.note_uses(
            hashes
                .iter()
                .zip(&present)
                .filter(|(_, here)| **here)
                .map(|(h, _)| *h),
        );
        let mut seen = BTreeSet::new();
        let new = batch.iter().zip(present);
        Ok(new
            .filter(|(s, here)| !here && seen.insert(s.hash()))
            .map(|(s, _)| s)
            .collect())
    }

    fn check_free(&self, needed_bytes: u64) -> Result<(), StoreError> {
        let dir = self.packs.dir();
        let free = linux::free_bytes(dir).map_err(StoreError::io("asking for free space", dir))?;
        if free >= needed_bytes.saturating_add(self.options.keep_free_bytes) {
            return Ok(());
        }
        Err(StoreError::NoSpace {
            dir: self.dir().to_owned(),
            needed_bytes,
        })
    }

    fn write_packs(
        &self,
        placement: &Placement,
        new: &[&VerifiedSegment],
    ) -> Result<(), StoreError> {
        for pack in &placement.created {
            let path = self.packs.path(*pack);
            self.packs
                .create(*pack)
                .map_err(StoreError::io("making", &path))?;
        }
        for (located, segment) in placement.segments.iter().zip(new) {
            let SegmentRecord { pack, offset, .. } = located.record;
            let written = self.packs.write_at(pack, offset, segment.bytes());
            written.map_err(StoreError::io("writing", &self.packs.path(pack)))?;
        }
        for pack in placement.packs.keys() {
            let path = self.packs.path(*pack);
            self.packs
                .sync(*pack)
                .map_err(StoreError::io("syncing", &path))?;
        }
        Ok(())
    }

    fn commit_placement(&self, writer: &Writer, placement: &Placement) -> Result<(), StoreError> {
        let mut batch = self.index.batch();
        for located in &placement.segments {
            let Located { hash, record } = located;
            batch.put(Table::Segments, hash.as_bytes(), &record.encode());
            batch.put(Table::Lru, &record.lru_key().encode(), &located.lru_value());
        }
        for (pack, record) in &placement.packs {
            batch.put(Table::Packs, &pack.key(), &record.encode());
        }
        writer.batch_reclaimed(&mut batch);
        Ok(batch.commit_synced()?)
    }

    fn apply(&self, writer: &mut Writer, placement: Placement) {
        let first = placement.segments.iter().map(|s| s.record.lru_key()).min();
        writer.lru_from = first
            .into_iter()
            .chain([writer.lru_from])
            .min()
            .expect("at least one");
        writer.reclaimed.clear();
        writer.packs.extend(placement.packs);
        writer.current = placement.current;
        writer.next_pack = placement.next_pack;
        let mut figures = self.figures();
        for Located { record, .. } in &placement.segments {
            figures.segments += 1;
            figures.bytes += u64::from(record.length);
            figures.disk_bytes += u64::from(in_blocks(record.length));
        }
    }

    /// Nothing in the index speaks of what was written: it can go, and its place be used again.
    fn undo_packs(&self, writer: &Writer, placement: &Placement) {
        for pack in placement.packs.keys() {
            let undone = match writer.packs.get(pack) {
                Some(before) => self.packs.cut(*pack, before.end),
                None => self.packs.remove(*pack),
            };
            // What stays lies past the pack's end: the next append or the next open removes it.
            undone.unwrap_or_else(|error| tracing::warn!("cutting a pack failed: {error}"));
        }
    }

    /// The index may or may not have kept the batch: it says so only after the next open. So the
    /// place is never used again in these packs; the blocks are given back.
    fn burn(&self, writer: &mut Writer, placement: &Placement) {
        for (pack, after) in &placement.packs {
            let Some(before) = writer.packs.get_mut(pack) else {
                self.packs.remove(*pack).unwrap_or_else(warn_not_given_back);
                continue;
            };
            let offset = before.next_offset();
            before.end = after.end;
            let range = FreedRange {
                pack: *pack,
                offset,
                length: in_blocks(after.end) - offset,
            };
            self.packs.punch(&range).unwrap_or_else(warn_not_given_back);
        }
        writer.next_pack = placement.next_pack;
    }
}

fn warn_not_given_back(error: std::io::Error) {
    tracing::warn!("blocks of a failed append not given back: {error}");
}

/// Steps of bounded size.
fn batches(mut segments: &[VerifiedSegment]) -> impl Iterator<Item = &[VerifiedSegment]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |segment: &&VerifiedSegment| {
            bytes += segment.bytes().len() as u64;
            bytes <= BATCH_BYTES
        };
        let count = segments
            .iter()
            .take(BATCH_SEGMENTS)
            .take_while(fits)
            .count()
            .max(1);
        let (batch, rest) = segments.split_at_checked(count)?;
        segments = rest;
        Some(batch)
    })
}

fn place(writer: &Writer, new: &[&VerifiedSegment], now: Minute, pack_limit: u32) -> Placement {
    let mut placement = Placement {
        segments: Vec::with_capacity(new.len()),
        packs: BTreeMap::new(),
        created: BTreeSet::new(),
        current: writer.current,
        next_pack: writer.next_pack,
    };
    for segment in new {
        let (pack, mut record) = placement.pack_for(writer, length(segment), pack_limit);
        let offset = record.next_offset();
        let place = SegmentRecord {
            pack,
            offset,
            length: length(segment),
            last_used: now,
        };
        record.add(&place);
        placement.packs.insert(pack, record);
        placement.segments.push(Located {
            hash: segment.hash(),
            record: place,
        });
    }
    placement
}

impl Placement {
    /// The current pack if it has room, else a new one.
    fn pack_for(&mut self, writer: &Writer, length: u32, limit: u32) -> (PackId, PackRecord) {
        if let Some(pack) = self.current {
            let record = self.packs.get(&pack).or_else(|| writer.packs.get(&pack));
            let record = record.copied().unwrap_or_default();
            if record.end == 0 || record.next_offset() + length <= limit {
                return (pack, record);
            }
        }
        let pack = self.next_pack;
        self.next_pack = pack.next();
        self.current = Some(pack);
        self.created.insert(pack);
        (pack, PackRecord::default())
    }
}

fn check_size(segment: &VerifiedSegment) -> Result<(), StoreError> {
    let bytes = segment.bytes().len();
    if (1..=u64::from(MAX_SEGMENT_BYTES)).contains(&(bytes as u64)) {
        return Ok(());
    }
    Err(StoreError::SegmentSize {
        bytes,
        limit: MAX_SEGMENT_BYTES,
    })
}

fn length(segment: &VerifiedSegment) -> u32 {
    u32::try_from(segment.bytes().len()).expect("check_size has seen it")
}
