//! A second decoder, written from `docs/manifest.md` alone: slow and obvious, in 128-bit
//! arithmetic, with one answer for everything that is wrong.

use crate::{SegmentingAlgorithm, SegmentingParameters};

/// File length, SHA-256, and length and hash of each segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) file_length: u128,
    pub(super) sha256: Vec<u8>,
    pub(super) segments: Vec<(u128, Vec<u8>)>,
}

pub(super) fn decode(bytes: &[u8]) -> Option<Contents> {
    let number = |at: usize, length: usize| -> Option<u128> {
        let field = bytes.get(at..at + length)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |number, byte| number << 8 | u128::from(*byte)),
        )
    };
    let all_zero = |from: usize, to: usize| (from..to).all(|at| bytes.get(at) == Some(&0));

    let algorithm = match number(12, 1)? {
        0 => SegmentingAlgorithm::Fixed,
        1 => SegmentingAlgorithm::FastCdc2020,
        _ => return None,
    };
    let small = |at, length| u32::try_from(number(at, length)?).ok();
    let parameters = SegmentingParameters::new(
        algorithm,
        u8::try_from(number(13, 1)?).ok()?,
        small(16, 4)?,
        small(20, 4)?,
        small(24, 4)?,
    )
    .ok()?;
    let count = number(28, 4)?;
    let file_length = number(32, 8)?;
    let body = bytes.get(256..)?;

    let is_consistent = bytes.starts_with(b"\x89BRL\r\n\x1a\n")
        && number(8, 2)? == 1
        && number(10, 2)? == 256
        && number(14, 1)? == 1
        && number(15, 1)? == 1
        && all_zero(72, 158)
        && (number(158, 2)? != 0 || all_zero(160, 256))
        && count <= 1 << 24
        && body.len() as u128 == count * 36 + 32
        && *blake3::hash(&[&bytes[..40], body].concat()).as_bytes() == bytes[40..72];
    if !is_consistent {
        return None;
    }

    let mut segments = Vec::new();
    for at in (0..body.len() - 32).step_by(36) {
        let length = number(256 + at, 4)?;
        let is_last = at + 36 == body.len() - 32;
        if !parameters.allow(u32::try_from(length).ok()?, is_last) {
            return None;
        }
        segments.push((length, body[at + 4..at + 36].to_vec()));
    }
    let sum: u128 = segments.iter().map(|(length, _)| length).sum();
    let sha256 = body[body.len() - 32..].to_vec();
    (sum == file_length).then_some(Contents {
        file_length,
        sha256,
        segments,
    })
}
