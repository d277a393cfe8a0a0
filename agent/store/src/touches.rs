//! Uses of segments that are not written to the index yet: bounded, coarse, and lost in a crash
//! without harm.

use std::collections::BTreeMap;

use branchline_hashing::SegmentHash;

use crate::error::StoreError;
use crate::index::{Index, Table};
use crate::options::{MAX_PENDING_TOUCHES, TOUCH_AFTER_MINUTES};
use crate::record::{Located, LruKey, Minute, SegmentRecord};

/// Segments that were used, and when.
#[derive(Debug, Default)]
pub(crate) struct Touches(BTreeMap<SegmentHash, Minute>);

impl Touches {
    /// Notes a use. When full it notes nothing: what is lost is a little of the order in which
    /// segments are evicted.
    pub(crate) fn note(&mut self, hash: SegmentHash, now: Minute) {
        if !self.is_full() {
            self.0.insert(hash, now);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= MAX_PENDING_TOUCHES
    }

    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Moves the segments to their new places in the LRU order, and tells the foremost of them.
    /// The caller is the index's only writer.
    pub(crate) fn write(self, index: &Index) -> Result<Option<LruKey>, StoreError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut foremost = None;
        let mut batch = index.batch();
        for located in self.present(index)? {
            let Some(now) = self.0.get(&located.hash) else {
                continue;
            };
            let moved = SegmentRecord {
                last_used: *now,
                ..located.record
            };
            batch.delete(Table::Lru, &located.record.lru_key().encode());
            batch.put(Table::Lru, &moved.lru_key().encode(), &located.lru_value());
            batch.put(Table::Segments, located.hash.as_bytes(), &moved.encode());
            foremost = foremost.into_iter().chain([moved.lru_key()]).min();
        }
        batch.commit_lazily()?;
        Ok(foremost)
    }

    /// Those that are still stored.
    fn present(&self, index: &Index) -> Result<Vec<Located>, StoreError> {
        let keys: Vec<&[u8; 32]> = self.0.keys().map(SegmentHash::as_bytes).collect();
        let mut present = Vec::new();
        index.values(Table::Segments, &keys, |i, value| {
            present.extend(Located::from_segments(keys[i], value));
        })?;
        Ok(present)
    }
}

/// Whether a use at `now` is worth an index write. A time in the future was noted by a clock
/// that was wrong: it would keep the segment for ever.
pub(crate) fn is_worth_noting(record: &SegmentRecord, now: Minute) -> bool {
    now < record.last_used || now.0 >= record.last_used.0.saturating_add(TOUCH_AFTER_MINUTES)
}
