//! Files to fetch: bytes that neither compress nor repeat, the same in each run.

use branchline_hashing::Sha256;

/// Numbers from a seed (xorshift64), good enough for file contents and moments of killing.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Begins a sequence; each seed has its own.
    pub fn new(seed: u64) -> Self {
        // Seeds that lie together must not begin alike, and 0 would stay 0.
        Self(
            seed.wrapping_add(1)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .max(1),
        )
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number of `range`.
    pub fn in_range(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.next_u64() % (range.end - range.start).max(1)
    }
}

/// `length` bytes of a file of its own for each `seed`.
pub fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The next version of a file: `changes` places got 1,000 other bytes and 100 more than before.
pub fn similar_bytes(bytes: &[u8], changes: usize) -> Vec<u8> {
    let stride = bytes.len() / (changes + 1);
    let mut next = bytes.to_vec();
    for change in (1..=changes).rev() {
        let at = change * stride;
        next.splice(at..at + 1000, random_bytes(at as u64, 1100));
    }
    next
}

/// SHA-256 in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    let mut sha256 = Sha256::new();
    sha256.update(bytes);
    sha256.finish().to_string()
}
