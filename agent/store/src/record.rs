//! The index's keys and values, byte by byte as in `docs/store.md`. Integers are big-endian, so
//! that keys sort by value. Decoders are total.

use branchline_hashing::SegmentHash;

use crate::options::BLOCK_BYTES;

/// Minutes since 1970: fine enough to tell what was used longest ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Minute(pub(crate) u32);

/// Number of a pack; its file is `packs/NNNNNNNN.pack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PackId(pub(crate) u32);

impl PackId {
    pub(crate) fn next(self) -> Self {
        // A store that wrote 256 MiB a second would come here after 34 years.
        Self(
            self.0
                .checked_add(1)
                .expect("a store fills fewer than 2^32 packs"),
        )
    }

    pub(crate) fn key(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }

    pub(crate) fn from_key(key: &[u8]) -> Option<Self> {
        Some(Self(u32::from_be_bytes(key.try_into().ok()?)))
    }
}

/// The whole blocks that `length` bytes occupy.
pub(crate) fn in_blocks(length: u32) -> u32 {
    length.next_multiple_of(BLOCK_BYTES)
}

/// Where a segment lies. Table `segments`: hash -> this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentRecord {
    pub(crate) pack: PackId,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    pub(crate) last_used: Minute,
}

impl SegmentRecord {
    pub(crate) fn encode(&self) -> [u8; 16] {
        quad([self.pack.0, self.offset, self.length, self.last_used.0])
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let [pack, offset, length, minute] = un_quad(bytes)?;
        Some(Self {
            pack: PackId(pack),
            offset,
            length,
            last_used: Minute(minute),
        })
    }

    pub(crate) fn lru_key(&self) -> LruKey {
        LruKey {
            last_used: self.last_used,
            pack: self.pack,
            offset: self.offset,
        }
    }

    /// Same bytes on disk, whenever they were used.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        (self.pack, self.offset, self.length) == (other.pack, other.offset, other.length)
    }
}

/// Order of eviction: by time, then by place, so that neighbours go together and their holes
/// become one. Table `lru`: this -> hash and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LruKey {
    pub(crate) last_used: Minute,
    pub(crate) pack: PackId,
    pub(crate) offset: u32,
}

impl LruKey {
    pub(crate) const FIRST: Self = Self {
        last_used: Minute(0),
        pack: PackId(0),
        offset: 0,
    };

    pub(crate) fn encode(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.last_used.0.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.pack.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 12] = bytes.try_into().ok()?;
        let [minute, pack, offset] = [0, 4, 8].map(|at| word(bytes, at));
        Some(Self {
            last_used: Minute(minute),
            pack: PackId(pack),
            offset,
        })
    }
}

/// A segment together with its hash: one entry of the table `lru`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) hash: SegmentHash,
    pub(crate) record: SegmentRecord,
}

impl Located {
    pub(crate) fn lru_value(&self) -> [u8; 36] {
        let mut bytes = [0; 36];
        bytes[..32].copy_from_slice(self.hash.as_bytes());
        bytes[32..].copy_from_slice(&self.record.length.to_be_bytes());
        bytes
    }

    pub(crate) fn from_lru(key: &[u8], value: &[u8]) -> Option<Self> {
        let LruKey {
            last_used,
            pack,
            offset,
        } = LruKey::decode(key)?;
        let value: &[u8; 36] = value.try_into().ok()?;
        let hash = SegmentHash::from_bytes(value[..32].try_into().ok()?);
        let length = word(value, 32);
        Some(Self {
            hash,
            record: SegmentRecord {
                pack,
                offset,
                length,
                last_used,
            },
        })
    }

    pub(crate) fn from_segments(key: &[u8], value: &[u8]) -> Option<Self> {
        let hash = SegmentHash::from_bytes(key.try_into().ok()?);
        Some(Self {
            hash,
            record: SegmentRecord::decode(value)?,
        })
    }
}

/// What a pack holds. Table `packs`: pack -> this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PackRecord {
    /// Whatever lies at or past this offset was never reported as stored.
    pub(crate) end: u32,
    pub(crate) segments: u32,
    pub(crate) bytes: u32,
    pub(crate) block_bytes: u32,
}

impl PackRecord {
    pub(crate) fn encode(&self) -> [u8; 16] {
        quad([self.end, self.segments, self.bytes, self.block_bytes])
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let [end, segments, bytes, block_bytes] = un_quad(bytes)?;
        Some(Self {
            end,
            segments,
            bytes,
            block_bytes,
        })
    }

    /// Where the next segment begins.
    pub(crate) fn next_offset(&self) -> u32 {
        in_blocks(self.end)
    }

    pub(crate) fn add(&mut self, record: &SegmentRecord) {
        self.end = self.end.max(record.offset + record.length);
        self.segments += 1;
        self.bytes += record.length;
        self.block_bytes += in_blocks(record.length);
    }

    /// Saturating: these are figures about a disk that may have been tampered with.
    pub(crate) fn take_away(&mut self, length: u32) {
        self.segments = self.segments.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(length);
        self.block_bytes = self.block_bytes.saturating_sub(in_blocks(length));
    }
}

/// Blocks that no segment owns any more and that may not have been given back yet.
/// Table `reclaim`: pack, offset -> length in whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FreedRange {
    pub(crate) pack: PackId,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

impl FreedRange {
    pub(crate) fn key(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.pack.0.to_be_bytes());
        bytes[4..].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }

    pub(crate) fn value(&self) -> [u8; 4] {
        self.length.to_be_bytes()
    }

    pub(crate) fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let key: &[u8; 8] = key.try_into().ok()?;
        let length = u32::from_be_bytes(value.try_into().ok()?);
        Some(Self {
            pack: PackId(word(key, 0)),
            offset: word(key, 4),
            length,
        })
    }

    /// Adjacent ranges become one, so that one system call gives all of them back.
    pub(crate) fn merge(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable();
        ranges.dedup_by(|next, last| {
            let adjacent = next.pack == last.pack && next.offset == last.offset + last.length;
            if adjacent {
                last.length += next.length;
            }
            adjacent
        });
        ranges
    }
}

fn quad(words: [u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

fn un_quad(bytes: &[u8]) -> Option<[u32; 4]> {
    let bytes: &[u8; 16] = bytes.try_into().ok()?;
    Some([0, 4, 8, 12].map(|at| word(bytes, at)))
}

/// The four bytes at `at`; callers have fixed sizes that hold them.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_survive_a_round_trip(
            pack: u32, offset: u32, length: u32, minute: u32, hash: [u8; 32],
        ) {
            let last_used = Minute(minute);
            let record = SegmentRecord { pack: PackId(pack), offset, length, last_used };
            let located = Located { hash: SegmentHash::from_bytes(hash), record };
            prop_assert_eq!(SegmentRecord::decode(&record.encode()), Some(record));
            prop_assert_eq!(
                Located::from_lru(&record.lru_key().encode(), &located.lru_value()),
                Some(located)
            );
            prop_assert_eq!(Located::from_segments(&hash, &record.encode()), Some(located));
            let freed = FreedRange { pack: PackId(pack), offset, length };
            prop_assert_eq!(FreedRange::decode(&freed.key(), &freed.value()), Some(freed));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..48)) {
            prop_assert_eq!(SegmentRecord::decode(&bytes).is_some(), bytes.len() == 16);
            prop_assert_eq!(PackRecord::decode(&bytes).is_some(), bytes.len() == 16);
            prop_assert_eq!(PackId::from_key(&bytes).is_some(), bytes.len() == 4);
            prop_assert_eq!(
                Located::from_lru(&[0; 12], &bytes).is_some(),
                bytes.len() == 36
            );
        }

        #[test]
        fn lru_keys_sort_by_time_then_place(a: (u32, u32, u32), b: (u32, u32, u32)) {
            let key = |(minute, pack, offset)| LruKey {
                last_used: Minute(minute), pack: PackId(pack), offset,
            };
            prop_assert_eq!(key(a).encode().cmp(&key(b).encode()), a.cmp(&b));
        }
    }

    #[test]
    fn only_adjacent_ranges_of_one_pack_are_merged() {
        let range = |pack, offset, length| FreedRange {
            pack: PackId(pack),
            offset,
            length,
        };
        let merged = FreedRange::merge(vec![
            range(1, 8192, 4096),
            range(1, 0, 4096),
            range(2, 12288, 4096),
            range(1, 4096, 4096),
            range(1, 16384, 4096),
        ]);
        assert_eq!(
            merged,
            [
                range(1, 0, 12288),
                range(1, 16384, 4096),
                range(2, 12288, 4096)
            ]
        );
    }
}
