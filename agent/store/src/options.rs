//! What a store is opened with, and the sizes it is built on.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::record::Minute;

/// A pack is closed at this size. Large enough that a 10 GiB file makes 40 files, small enough
/// that a pack whose segments all went is soon deleted whole.
pub const PACK_BYTES: u32 = 256 << 20;

/// The largest segment that is stored, and the most that a record read back may claim.
pub const MAX_SEGMENT_BYTES: u32 = 64 << 20;

/// Left free on the file system unless the options say otherwise: the index needs room to flush
/// and compact when the disk is full, and other programs share the disk.
pub const DEFAULT_KEEP_FREE_BYTES: u64 = 64 << 20;

/// Segments begin at multiples of this, so that each owns whole blocks of the file system and
/// punching it out gives all of them back. 4 KiB is the block of ext4, xfs, btrfs and tmpfs.
pub(crate) const BLOCK_BYTES: u32 = 4096;

/// One index batch covers this much data: measured at 1.2 GB/s and 0.19 CPU-s/GB, and a larger
/// one only holds more memory.
pub(crate) const BATCH_BYTES: u64 = 32 << 20;

/// One index batch covers at most this many segments, which bounds it at 1 MiB when they are tiny.
pub(crate) const BATCH_SEGMENTS: usize = 8192;

/// A use is written down only when the last one noted is this old: a segment served to sixteen
/// peers in a row costs one index write, not sixteen.
pub(crate) const TOUCH_AFTER_MINUTES: u32 = 10;

/// Uses remembered in memory before they are written: 4,096 are about 300 KiB.
pub(crate) const MAX_PENDING_TOUCHES: usize = 4096;

/// Evicted in one index batch.
pub(crate) const MAX_VICTIMS: usize = 4096;

/// Pack files kept open. Opening costs 2 µs, so a few are enough.
pub(crate) const MAX_OPEN_PACKS: usize = 32;

/// All manifests together; the least recently used contents go when it is exceeded. A 10 GiB file
/// has 6 MB of them.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 512 << 20;

/// How a [`Store`](crate::Store) is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// What segments may occupy, in bytes of whole blocks.
    pub limit_bytes: u64,
    /// Appending stops when less than this would stay free on the file system.
    pub keep_free_bytes: u64,
    /// Content records kept; the least recently used goes first.
    pub max_contents: u64,
    /// A pack is closed at this size; at most 1 GiB. Other than [`PACK_BYTES`] only in tests.
    pub pack_bytes: u32,
    /// Where "now" comes from.
    pub clock: Clock,
}

impl StoreOptions {
    /// The defaults with this limit.
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            keep_free_bytes: DEFAULT_KEEP_FREE_BYTES,
            max_contents: 10_000,
            pack_bytes: PACK_BYTES,
            clock: Clock::system(),
        }
    }

    /// The size a pack is closed at. Offsets are 32 bits: 1 GiB and one segment more stay far
    /// below that.
    pub(crate) fn pack_limit(&self) -> u32 {
        self.pack_bytes.clamp(BLOCK_BYTES, 1 << 30)
    }
}

/// Tells the time: the system's, or a test's.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(Arc::new(SystemTime::now))
    }

    /// Whatever `now` says.
    pub fn from_fn(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(crate) fn minute(&self) -> Minute {
        let minutes = self.unix_seconds() / 60;
        Minute(u32::try_from(minutes).unwrap_or(u32::MAX))
    }

    pub(crate) fn unix_seconds(&self) -> u64 {
        // A clock before 1970 is a broken clock: everything is then equally old.
        (self.0)()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
