//! Segments in use: counted in memory, never evicted while held.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use branchline_hashing::SegmentHash;

/// Who is held, by the first eight bytes of the hash: half the memory of a whole one a segment.
/// Two that begin alike are held together, which does no harm.
#[derive(Default)]
pub(crate) struct Holds(Arc<Mutex<HeldCounts>>);

#[derive(Default)]
pub(crate) struct HeldCounts(HashMap<u64, u32>);

impl Holds {
    pub(crate) fn hold(&self, hashes: impl IntoIterator<Item = SegmentHash>) -> Hold {
        let shorts: Vec<u64> = hashes.into_iter().map(|hash| short(&hash)).collect();
        let mut counts = lock(&self.0);
        for short in &shorts {
            *counts.0.entry(*short).or_insert(0) += 1;
        }
        Hold {
            counts: Arc::clone(&self.0),
            shorts,
        }
    }

    /// While the guard lives nothing new is held and nothing is let go: eviction chooses and
    /// commits under it, so that whoever holds a segment and then finds it keeps it.
    pub(crate) fn freeze(&self) -> MutexGuard<'_, HeldCounts> {
        lock(&self.0)
    }
}

impl HeldCounts {
    pub(crate) fn is_held(&self, hash: &SegmentHash) -> bool {
        self.0.contains_key(&short(hash))
    }

    fn let_go(&mut self, short: u64) {
        if let Some(count) = self.0.get_mut(&short) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&short);
            }
        }
    }
}

/// As long as this lives, its segments are not evicted. Dropping it may wait some milliseconds
/// for an eviction under way.
#[must_use = "the segments are held only as long as this value lives"]
pub struct Hold {
    counts: Arc<Mutex<HeldCounts>>,
    shorts: Vec<u64>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        for short in &self.shorts {
            counts.let_go(*short);
        }
        if counts.0.is_empty() {
            counts.0.shrink_to_fit();
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("segments", &self.shorts.len())
            .finish()
    }
}

/// Each change to a count is complete in itself, so a panic elsewhere leaves nothing half done.
fn lock(counts: &Mutex<HeldCounts>) -> MutexGuard<'_, HeldCounts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

fn short(hash: &SegmentHash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_held_until_the_last_hold_goes() {
        let holds = Holds::default();
        let hash = SegmentHash::of(b"held");
        let first = holds.hold([hash, hash]);
        let second = holds.hold([hash]);
        drop(first);
        assert!(holds.freeze().is_held(&hash));
        drop(second);
        assert!(!holds.freeze().is_held(&hash));
    }
}
