//! What the tests share: options that keep to this machine, and servers to ask.

#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod nginx;
pub mod scripted;

use std::time::Duration;

use branchline_core::backoff::Backoff;
use branchline_origin::{
    ByteRange, NetrcChoice, Origin, OriginError, OriginOptions, ProxyChoice, RangeReader, Remote,
    Resume, Retries, RetryPolicy, Target,
};

/// Short enough to test, long enough for a busy machine where nothing stalls.
pub const STALL: Duration = Duration::from_millis(400);

pub fn options() -> OriginOptions {
    OriginOptions {
        connect_timeout: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(10),
        proxy: ProxyChoice::Direct,
        netrc: NetrcChoice::Nowhere,
        ..OriginOptions::default()
    }
}

pub fn origin() -> Origin {
    Origin::new(&options()).expect("the options are good")
}

pub fn target(url: &str) -> Target {
    Target::new(url, []).expect("a good URL")
}

pub fn target_with(url: &str, name: &str, value: &str) -> Target {
    Target::new(url, [(name.to_owned(), value.to_owned())]).expect("a good URL and header")
}

pub fn range(offset: u64, length: u64) -> Option<ByteRange> {
    Some(ByteRange::new(offset, length).expect("a range"))
}

/// The file `/f` of a server, as its HEAD describes it.
pub async fn probed(origin: &Origin, server: &scripted::Scripted) -> (Target, Remote) {
    let target = target(&server.url("/f"));
    let remote = origin.probe(&target).await.expect("HEAD is answered well");
    (target, remote)
}

/// Tries again at once, five times.
pub fn retries() -> Retries {
    let backoff = Backoff {
        min: Duration::from_millis(1),
        max: Duration::from_millis(2),
    };
    let give_up_after = Duration::from_secs(20);
    Retries::new(
        RetryPolicy {
            backoff,
            failures: 5,
            give_up_after,
            when_busy: None,
        },
        || 1,
    )
}

pub fn reader(
    origin: &Origin,
    target: &Target,
    remote: &Remote,
    range: Option<ByteRange>,
) -> RangeReader {
    origin.read(target, remote, range, Resume::Always, retries())
}

pub async fn rest_of(reader: &mut RangeReader) -> Result<Vec<u8>, OriginError> {
    let mut all = Vec::new();
    while let Some(bytes) = reader.chunk().await? {
        assert!(!bytes.is_empty(), "a chunk is never empty");
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

pub async fn fetch(
    origin: &Origin,
    target: &Target,
    remote: &Remote,
    range: Option<ByteRange>,
) -> Result<Vec<u8>, OriginError> {
    rest_of(&mut reader(origin, target, remote, range)).await
}

/// Bytes that differ from their neighbours and repeat late.
pub fn payload(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}
