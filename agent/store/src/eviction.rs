//! Making room: what was used longest ago goes, what is held stays.
//!
//! The index forgets a segment first, on disk; only then are its blocks given back. A reader that
//! looked it up in between reads zeros, sees that it is gone, and says "not here".

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::error::StoreError;
use crate::index::{Batch, Table};
use crate::options::MAX_VICTIMS;
use crate::record::{FreedRange, Located, LruKey, PackId, PackRecord, in_blocks};
use crate::store::{BAD_SEGMENTS_KEY, Inner, Writer};

/// At most this much more than needed is evicted at once, so that not every append pays for a
/// synced batch of its own.
const MAX_SLACK_BYTES: u64 = 64 << 20;

/// How much is to go.
#[derive(Clone, Copy)]
struct Wanted {
    /// At least, unless too little is left that may go.
    bytes: u64,
    /// More, as long as it is not more than this.
    slack_bytes: u64,
}

/// Who goes next.
struct Plan {
    victims: Vec<Located>,
    freed_bytes: u64,
    /// Where the next search begins: the first one that stays.
    resume: LruKey,
}

impl Plan {
    fn is_complete(&self, wanted: Wanted, next: &Located) -> bool {
        let with_next = self.freed_bytes + u64::from(in_blocks(next.record.length));
        self.victims.len() == MAX_VICTIMS
            || self.freed_bytes >= wanted.bytes && with_next > wanted.bytes + wanted.slack_bytes
    }
}

impl Inner {
    /// Evicts until `needed_bytes` more fit within the limit.
    pub(crate) fn make_room(
        &self,
        writer: &mut Writer,
        needed_bytes: u64,
    ) -> Result<(), StoreError> {
        let limit_bytes = self.options.limit_bytes;
        let full = StoreError::Full {
            needed_bytes,
            limit_bytes,
        };
        let Some(target) = limit_bytes.checked_sub(needed_bytes) else {
            return Err(full);
        };
        loop {
            let over = self.figures().disk_bytes.saturating_sub(target);
            if over == 0 {
                return Ok(());
            }
            let slack_bytes = (limit_bytes / 128).min(MAX_SLACK_BYTES);
            let enough =
                |plan: &Plan| plan.freed_bytes >= over || plan.victims.len() == MAX_VICTIMS;
            if !self.evict(
                writer,
                Wanted {
                    bytes: over,
                    slack_bytes,
                },
                enough,
            )? {
                return Err(full);
            }
        }
    }

    /// Evicts until the segments occupy at most `target_bytes`, as far as holds allow.
    pub(crate) fn shrink_to(
        &self,
        writer: &mut Writer,
        target_bytes: u64,
    ) -> Result<(), StoreError> {
        loop {
            let over = self.figures().disk_bytes.saturating_sub(target_bytes);
            let wanted = Wanted {
                bytes: over,
                slack_bytes: 0,
            };
            if over == 0 || !self.evict(writer, wanted, |plan| !plan.victims.is_empty())? {
                return Ok(());
            }
        }
    }

    /// A limit that was lowered takes effect at once; a failure here is met again, and reported,
    /// by the first append.
    pub(crate) fn shrink_at_open(&self) {
        let shrunk = self
            .lock_writer()
            .and_then(|mut writer| self.shrink_to(&mut writer, self.options.limit_bytes));
        shrunk.unwrap_or_else(|error| tracing::warn!("shrinking the store failed: {error}"));
    }

    /// Evicts what is wanted, or nothing when the plan is not acceptable.
    fn evict(
        &self,
        writer: &mut Writer,
        wanted: Wanted,
        acceptable: impl FnOnce(&Plan) -> bool,
    ) -> Result<bool, StoreError> {
        let held = self.holds.freeze();
        let plan = self.plan(writer.lru_from, wanted, |located| {
            held.is_held(&located.hash)
        })?;
        if !acceptable(&plan) {
            return Ok(false);
        }
        let freed = self.forget(writer, &plan.victims, 0)?;
        writer.lru_from = plan.resume;
        drop(held);
        tracing::debug!(
            segments = plan.victims.len(),
            bytes = plan.freed_bytes,
            "evicted"
        );
        self.give_back(writer, freed);
        Ok(true)
    }

    fn plan(
        &self,
        from: LruKey,
        wanted: Wanted,
        is_held: impl Fn(&Located) -> bool,
    ) -> Result<Plan, StoreError> {
        let mut plan = Plan {
            victims: Vec::new(),
            freed_bytes: 0,
            resume: from,
        };
        let mut first_to_stay = None;
        let mut damaged = false;
        self.index.scan(Table::Lru, &from.encode(), |key, value| {
            let Some(located) = Located::from_lru(key, value) else {
                damaged = true;
                return ControlFlow::Break(());
            };
            plan.resume = located.record.lru_key();
            if is_held(&located) {
                first_to_stay.get_or_insert(plan.resume);
                return ControlFlow::Continue(());
            }
            if plan.is_complete(wanted, &located) {
                return ControlFlow::Break(());
            }
            plan.freed_bytes += u64::from(in_blocks(located.record.length));
            plan.victims.push(located);
            ControlFlow::Continue(())
        })?;
        if damaged {
            return Err(StoreError::DamagedRecord {
                what: "order of use",
            });
        }
        plan.resume = first_to_stay.unwrap_or(plan.resume);
        Ok(plan)
    }

    /// Takes segments out of the index and gives their blocks back.
    pub(crate) fn drop_segments(
        &self,
        writer: &mut Writer,
        segments: &[Located],
        bad: u64,
    ) -> Result<(), StoreError> {
        let freed = self.forget(writer, segments, bad)?;
        self.give_back(writer, freed);
        Ok(())
    }

    /// Takes segments out of the index, on disk. Packs that nothing is left in go with them.
    fn forget(
        &self,
        writer: &mut Writer,
        segments: &[Located],
        bad: u64,
    ) -> Result<Freed, StoreError> {
        let mut packs: BTreeMap<PackId, PackRecord> = BTreeMap::new();
        let mut batch = self.index.batch();
        for Located { hash, record } in segments {
            batch.delete(Table::Segments, hash.as_bytes());
            batch.delete(Table::Lru, &record.lru_key().encode());
            let known = writer.packs.get(&record.pack).copied().unwrap_or_default();
            packs
                .entry(record.pack)
                .or_insert(known)
                .take_away(record.length);
        }
        let (empty, left): (BTreeMap<_, _>, BTreeMap<_, _>) = packs
            .into_iter()
            .partition(|(_, record)| record.segments == 0);
        let ranges = freed_ranges(segments, &left);
        batch_packs(&mut batch, &empty, &left, &ranges);
        let bad_in_all = self.figures().bad_segments_dropped + bad;
        if bad > 0 {
            batch.put(Table::Meta, BAD_SEGMENTS_KEY, &bad_in_all.to_be_bytes());
        }
        writer.batch_reclaimed(&mut batch);
        batch.commit_synced()?;

        writer.reclaimed.clear();
        writer.packs.extend(left);
        writer.packs.retain(|pack, _| !empty.contains_key(pack));
        writer.current = writer.current.filter(|pack| !empty.contains_key(pack));
        self.count_forgotten(segments, bad_in_all);
        Ok(Freed {
            packs: empty.into_keys().collect(),
            ranges,
        })
    }

    fn count_forgotten(&self, segments: &[Located], bad_in_all: u64) {
        let mut figures = self.figures();
        figures.bad_segments_dropped = bad_in_all;
        figures.forgotten += segments.len() as u64;
        for Located { record, .. } in segments {
            figures.segments = figures.segments.saturating_sub(1);
            figures.bytes = figures.bytes.saturating_sub(record.length.into());
            let blocks = in_blocks(record.length).into();
            figures.disk_bytes = figures.disk_bytes.saturating_sub(blocks);
        }
    }

    /// What fails here is tried again at the next open: the table `reclaim` still names it, or
    /// no table names the pack.
    fn give_back(&self, writer: &mut Writer, freed: Freed) {
        for pack in freed.packs {
            let removed = self.packs.remove(pack);
            removed.unwrap_or_else(|error| tracing::warn!("removing a pack failed: {error}"));
        }
        for range in freed.ranges {
            match self.packs.punch(&range) {
                Ok(()) => writer.reclaimed.push(range),
                Err(error) => tracing::warn!(
                    "giving back {} bytes of {} failed: {error}",
                    range.length,
                    self.packs.path(range.pack).display()
                ),
            }
        }
    }
}

impl Writer {
    /// Ranges given back since the last batch need no record any more.
    pub(crate) fn batch_reclaimed(&self, batch: &mut Batch<'_>) {
        for range in &self.reclaimed {
            batch.delete(Table::Reclaim, &range.key());
        }
    }
}

/// What the file system gets back.
struct Freed {
    packs: Vec<PackId>,
    ranges: Vec<FreedRange>,
}

/// The segments' blocks in packs that stay.
fn freed_ranges(segments: &[Located], left: &BTreeMap<PackId, PackRecord>) -> Vec<FreedRange> {
    let ranges = segments.iter().map(|Located { record, .. }| FreedRange {
        pack: record.pack,
        offset: record.offset,
        length: in_blocks(record.length),
    });
    FreedRange::merge(
        ranges
            .filter(|range| left.contains_key(&range.pack))
            .collect(),
    )
}

fn batch_packs(
    batch: &mut Batch<'_>,
    empty: &BTreeMap<PackId, PackRecord>,
    left: &BTreeMap<PackId, PackRecord>,
    ranges: &[FreedRange],
) {
    for pack in empty.keys() {
        batch.delete(Table::Packs, &pack.key());
    }
    for (pack, record) in left {
        batch.put(Table::Packs, &pack.key(), &record.encode());
    }
    for range in ranges {
        batch.put(Table::Reclaim, &range.key(), &range.value());
    }
}
