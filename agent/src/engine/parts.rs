//! Some bytes of a file, one range after the other, from the origin alone: they are no content that anybody else has.

use std::sync::Arc;

use branchline_hashing::{ContentKey, Digest};
use branchline_origin::{ByteRange, Remote, Target};

use crate::api::Trust;
use crate::engine::error::GetError;
use crate::engine::lookup;
use crate::engine::partial::Partial;
use crate::engine::plain::{self, Plain};
use crate::engine::progress::Meter;
use crate::engine::{Shared, blocking};

/// Some bytes of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) first: u64,
    /// To the end of the file when nothing is said.
    pub(crate) length: Option<u64>,
}

/// A download of parts.
pub(super) struct Parts<'a> {
    pub(super) shared: &'a Shared,
    pub(super) partial: &'a Arc<Partial>,
    pub(super) target: &'a Target,
    pub(super) wanted: &'a [Part],
    /// All of these the joined parts must have.
    pub(super) digests: &'a [Digest],
}

/// What stands under its name.
pub(super) struct Delivered {
    pub(super) bytes: u64,
    /// Which version of the file it is, or is of.
    pub(super) key: ContentKey,
    pub(super) trust: Trust,
}

impl Parts<'_> {
    /// Fetches them, and gives them their name.
    pub(super) async fn run(self, meter: &mut Meter) -> Result<Delivered, GetError> {
        meter.report(0, "the origin to answer");
        let remote = lookup::remote(self.shared, self.target).await?;
        let ranges = self.ranges(&remote)?;
        let lengths = ranges.iter().map(ByteRange::length);
        let bytes = lengths.fold(0, u64::saturating_add);
        meter.start(Some(bytes));
        let plain = Plain {
            shared: self.shared,
            partial: self.partial,
            target: self.target,
            remote: &remote,
            digests: self.digests,
            parts: &ranges,
        };
        let fetched = plain.run(meter).await;
        fetched.map_err(|error| error.of(self.target))?;
        let partial = Arc::clone(self.partial);
        blocking(move || partial.finish(bytes)).await?;
        let trust = match self.digests {
            [] => Trust::Origin,
            _ => Trust::Digest,
        };
        let key = plain::key_of_version(&remote, remote.length().unwrap_or(bytes));
        Ok(Delivered { bytes, key, trust })
    }

    /// The parts as ranges of the file as it is.
    fn ranges(&self, remote: &Remote) -> Result<Vec<ByteRange>, GetError> {
        let file_bytes = remote.length();
        let no_such = |part: &Part| GetError::NoSuchRange {
            url: self.target.url().clone(),
            first: part.first,
            file_bytes,
        };
        let range = |part: &Part| part.of(file_bytes).ok_or_else(|| no_such(part));
        self.wanted.iter().map(range).collect()
    }
}

impl Part {
    /// As a range of a file of this length, if it has such.
    fn of(self, file_bytes: Option<u64>) -> Option<ByteRange> {
        let rest = file_bytes?.checked_sub(self.first)?;
        let length = self.length.unwrap_or(rest);
        ByteRange::new(self.first, length).filter(|_| length <= rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_a_range_that_the_file_has() {
        let of = |first, length, file_bytes| {
            let range = Part { first, length }.of(file_bytes)?;
            Some((range.offset(), range.length()))
        };
        assert_eq!(of(0, Some(10), Some(10)), Some((0, 10)));
        assert_eq!(of(4, None, Some(10)), Some((4, 6)));
        assert_eq!(of(4, Some(2), Some(10)), Some((4, 2)));
        assert_eq!(of(4, Some(7), Some(10)), None);
        assert_eq!(of(10, None, Some(10)), None);
        assert_eq!(of(11, Some(1), Some(10)), None);
        assert_eq!(of(u64::MAX, Some(u64::MAX), Some(10)), None);
        assert_eq!(of(0, Some(1), None), None);
    }
}
