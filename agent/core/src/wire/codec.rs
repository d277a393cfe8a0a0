//! Bytes to messages and back.

use std::time::Duration;

use branchline_hashing::{SegmentHash, SegmentIndex, SwarmId};

use super::{
    Decoded, Have, JoinProof, MAX_REQUEST_SEGMENTS, MAX_SEGMENT_BYTES, RequesterMessage,
    ResponderMessage, Standing, WireMessage, steward,
};
use crate::SegmentRange;
use crate::repair::Claim;
use crate::swarm::MAX_BLOCKS;

/// The first byte of each message.
mod kind {
    pub(super) const JOIN: u8 = 0x01;
    pub(super) const REQUEST: u8 = 0x02;
    pub(super) const MANIFEST_REQUEST: u8 = 0x03;
    pub(super) const HAVE_REQUEST: u8 = 0x04;
    pub(super) const ENLIST: u8 = 0x05;
    pub(super) const REPORT: u8 = 0x06;
    pub(super) const ANNOUNCE: u8 = 0x07;
    pub(super) const WITHDRAW: u8 = 0x08;
    pub(super) const HAVE_WATCH: u8 = 0x09;
    pub(super) const HASHES_REQUEST: u8 = 0x0a;

    pub(super) const JOINED: u8 = 0x81;
    pub(super) const UNKNOWN: u8 = 0x82;
    pub(super) const BUSY: u8 = 0x83;
    pub(super) const SEGMENT: u8 = 0x84;
    pub(super) const ABSENT: u8 = 0x85;
    pub(super) const RANGE_BUSY: u8 = 0x86;
    pub(super) const MANIFEST: u8 = 0x87;
    pub(super) const NO_MANIFEST: u8 = 0x88;
    pub(super) const HAVE: u8 = 0x89;
    pub(super) const ANSWER: u8 = 0x8a;
    pub(super) const HAVE_MORE: u8 = 0x8b;
    pub(super) const HASHES: u8 = 0x8c;
}

/// The byte that says how far a responder's segments may be believed.
mod standing {
    pub(super) const PROVED: u8 = 0;
    pub(super) const PROVISIONAL: u8 = 1;
}

/// The byte before each hash of [`ResponderMessage::Hashes`].
mod claim {
    pub(super) const NONE: u8 = 0;
    pub(super) const FIRST_HAND: u8 = 1;
    pub(super) const PASSED_ON: u8 = 2;
}

/// Bytes that no message of `branchline/1` begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A type byte this version does not know, or one that belongs to the other side.
    #[error("message type {found:#04x} is unknown in branchline/1")]
    UnknownType {
        /// The byte.
        found: u8,
    },
    /// A range of segments that is empty, too long or past the last index.
    #[error("{count} segments from #{first} on are no request (1 to {MAX_REQUEST_SEGMENTS})")]
    BadRange {
        /// Its beginning.
        first: u32,
        /// Its length.
        count: u32,
    },
    /// A segment no agent may send.
    #[error("segment #{index} claims {length} bytes, more than {MAX_SEGMENT_BYTES}")]
    SegmentTooLong {
        /// Which.
        index: u32,
        /// What it claims.
        length: u32,
    },
    /// A set of segments in a form this version does not know.
    #[error("form {found:#04x} of a set of segments is unknown in branchline/1")]
    UnknownForm {
        /// The byte.
        found: u8,
    },
    /// A set of segments with more parts than may travel.
    #[error("a set of {size} segments in {parts} parts is more than may travel")]
    HaveTooLong {
        /// Segments of the content.
        size: u32,
        /// Ranges, or bytes of the bitmap.
        parts: u32,
    },
    /// Ranges that are empty, out of order, adjacent or past the end; bits past the end.
    #[error("a set of {size} segments is not in its one right form")]
    HaveNotCanonical {
        /// Segments of the content.
        size: u32,
    },
    /// A list with more entries than may travel.
    #[error("a list of {count}, at most {most} may travel")]
    ListTooLong {
        /// What it claims.
        count: u32,
        /// What may travel.
        most: usize,
    },
    /// A byte that stands for one of a few things, and for none of them.
    #[error("the byte {found:#04x} stands for nothing here")]
    UnknownValue {
        /// The byte.
        found: u8,
    },
    /// Segments that cannot be gathered so: no blocks, or too many.
    #[error("{segments} segments by {segments_per_block} are no blocks (1 to {MAX_BLOCKS})")]
    BadBlocks {
        /// Segments of the content.
        segments: u32,
        /// Segments in a block.
        segments_per_block: u32,
    },
    /// A set of blocks of another size than the content's, or than any content's.
    #[error("a set of {size} blocks is of no such content")]
    WrongBlockCount {
        /// The set's size.
        size: u32,
    },
    /// Blocks that are none, or past the content's end.
    #[error("{count} blocks from #{first} on are none of the content's")]
    BadBlockRange {
        /// Their beginning.
        first: u32,
        /// Their number.
        count: u32,
    },
}

/// Why decoding ended without a message.
pub(super) enum Stop {
    Incomplete { needs: usize },
    Wrong(WireError),
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Self {
        Self::Wrong(error)
    }
}

/// Takes fixed-size fields from the front of bytes.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// The next `count` bytes; `count` is bounded by the caller.
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let end = self.at + count;
        let taken = self
            .bytes
            .get(self.at..end)
            .ok_or(Stop::Incomplete { needs: end })?;
        self.at = end;
        Ok(taken)
    }

    /// Sees to it that the next `count` bytes are there, so that fields of a fixed total size are
    /// waited for together.
    pub(super) fn need(&self, count: usize) -> Result<(), Stop> {
        let end = self.at + count;
        match self.bytes.len() >= end {
            true => Ok(()),
            false => Err(Stop::Incomplete { needs: end }),
        }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("take gives N bytes"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, Stop> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, Stop> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn proof(&mut self) -> Result<JoinProof, Stop> {
        Ok(JoinProof(self.array()?))
    }

    fn index(&mut self) -> Result<SegmentIndex, Stop> {
        Ok(SegmentIndex(self.u32()?))
    }

    fn milliseconds(&mut self) -> Result<Duration, Stop> {
        Ok(Duration::from_millis(self.u32()?.into()))
    }

    fn range(&mut self) -> Result<SegmentRange, Stop> {
        let (first, count) = (self.u32()?, self.u32()?);
        SegmentRange::new(SegmentIndex(first), count)
            .filter(|range| range.count() <= MAX_REQUEST_SEGMENTS)
            .ok_or(Stop::Wrong(WireError::BadRange { first, count }))
    }
}

fn decode_with<M>(
    bytes: &[u8],
    read: impl FnOnce(&mut Fields<'_>) -> Result<M, Stop>,
) -> Result<Decoded<M>, WireError> {
    let mut fields = Fields { bytes, at: 0 };
    match read(&mut fields) {
        Ok(message) => Ok(Decoded::Message {
            message,
            length: fields.at,
        }),
        Err(Stop::Incomplete { needs }) => Ok(Decoded::Incomplete { needs }),
        Err(Stop::Wrong(error)) => Err(error),
    }
}

pub(super) fn put_u32s(out: &mut Vec<u8>, values: &[u32]) {
    values
        .iter()
        .for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

pub(super) fn to_milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

impl WireMessage for RequesterMessage {
    fn decode(bytes: &[u8]) -> Result<Decoded<Self>, WireError> {
        decode_with(bytes, |fields| match fields.u8()? {
            kind::JOIN => Ok(Self::Join {
                swarm: SwarmId::from_bytes(fields.array()?),
                proof: fields.proof()?,
            }),
            kind::REQUEST => Ok(Self::Request(fields.range()?)),
            kind::MANIFEST_REQUEST => Ok(Self::ManifestRequest),
            kind::HAVE_REQUEST => Ok(Self::HaveRequest),
            kind::ENLIST => Ok(Self::Enlist(steward::read_enlist(fields)?)),
            kind::REPORT => Ok(Self::Report(steward::read_report(fields)?)),
            kind::ANNOUNCE => Ok(Self::Announce {
                swarms: steward::read_swarms(fields)?,
            }),
            kind::WITHDRAW => Ok(Self::Withdraw {
                swarms: steward::read_swarms(fields)?,
            }),
            kind::HAVE_WATCH => Ok(Self::HaveWatch),
            kind::HASHES_REQUEST => Ok(Self::HashesRequest(fields.range()?)),
            found => Err(WireError::UnknownType { found }.into()),
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Join { swarm, proof } => {
                out.push(kind::JOIN);
                out.extend_from_slice(swarm.as_bytes());
                out.extend_from_slice(&proof.0);
            }
            Self::Request(range) => {
                out.push(kind::REQUEST);
                put_u32s(out, &[range.first().0, range.count()]);
            }
            Self::ManifestRequest => out.push(kind::MANIFEST_REQUEST),
            Self::HaveRequest => out.push(kind::HAVE_REQUEST),
            Self::Enlist(enlist) => {
                out.push(kind::ENLIST);
                steward::write_enlist(enlist, out);
            }
            Self::Report(report) => {
                out.push(kind::REPORT);
                steward::write_report(report, out);
            }
            Self::Announce { swarms } => {
                out.push(kind::ANNOUNCE);
                steward::write_swarms(swarms, out);
            }
            Self::Withdraw { swarms } => {
                out.push(kind::WITHDRAW);
                steward::write_swarms(swarms, out);
            }
            Self::HaveWatch => out.push(kind::HAVE_WATCH),
            Self::HashesRequest(range) => {
                out.push(kind::HASHES_REQUEST);
                put_u32s(out, &[range.first().0, range.count()]);
            }
        }
    }
}

impl WireMessage for ResponderMessage {
    fn decode(bytes: &[u8]) -> Result<Decoded<Self>, WireError> {
        decode_with(bytes, |fields| match fields.u8()? {
            kind::JOINED => Ok(Self::Joined {
                proof: fields.proof()?,
                standing: read_standing(fields)?,
                have: Have::read(fields)?,
            }),
            kind::UNKNOWN => Ok(Self::Unknown),
            kind::BUSY => Ok(Self::Busy {
                retry_after: fields.milliseconds()?,
            }),
            kind::SEGMENT => read_segment(fields),
            kind::ABSENT => Ok(Self::Absent {
                index: fields.index()?,
            }),
            kind::RANGE_BUSY => Ok(Self::RangeBusy {
                range: fields.range()?,
                retry_after: fields.milliseconds()?,
            }),
            kind::MANIFEST => Ok(Self::Manifest {
                length: fields.u32()?,
            }),
            kind::NO_MANIFEST => Ok(Self::NoManifest),
            kind::HAVE => Ok(Self::Have(Have::read(fields)?)),
            kind::ANSWER => Ok(Self::Answer(steward::read_answer(fields)?)),
            kind::HAVE_MORE => Ok(Self::HaveMore(Have::read(fields)?)),
            kind::HASHES => read_hashes(fields),
            found => Err(WireError::UnknownType { found }.into()),
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Joined {
                proof,
                standing,
                have,
            } => {
                out.push(kind::JOINED);
                out.extend_from_slice(&proof.0);
                write_standing(*standing, out);
                have.write(out);
            }
            Self::Unknown => out.push(kind::UNKNOWN),
            Self::Busy { retry_after } => {
                out.push(kind::BUSY);
                put_u32s(out, &[to_milliseconds(*retry_after)]);
            }
            Self::Segment { index, length } => {
                out.push(kind::SEGMENT);
                put_u32s(out, &[index.0, *length]);
            }
            Self::Absent { index } => {
                out.push(kind::ABSENT);
                put_u32s(out, &[index.0]);
            }
            Self::RangeBusy { range, retry_after } => {
                out.push(kind::RANGE_BUSY);
                let milliseconds = to_milliseconds(*retry_after);
                put_u32s(out, &[range.first().0, range.count(), milliseconds]);
            }
            Self::Manifest { length } => {
                out.push(kind::MANIFEST);
                put_u32s(out, &[*length]);
            }
            Self::NoManifest => out.push(kind::NO_MANIFEST),
            Self::Have(have) => {
                out.push(kind::HAVE);
                have.write(out);
            }
            Self::Answer(answer) => {
                out.push(kind::ANSWER);
                steward::write_answer(answer, out);
            }
            Self::HaveMore(have) => {
                out.push(kind::HAVE_MORE);
                have.write(out);
            }
            Self::Hashes { first, claims } => write_hashes(*first, claims, out),
        }
    }
}

fn read_standing(fields: &mut Fields<'_>) -> Result<Standing, Stop> {
    match fields.u8()? {
        standing::PROVED => Ok(Standing::Proved),
        standing::PROVISIONAL => Ok(Standing::Provisional {
            file_bytes: u64::from_le_bytes(fields.array()?),
        }),
        found => Err(WireError::UnknownValue { found }.into()),
    }
}

fn write_standing(standing: Standing, out: &mut Vec<u8>) {
    match standing {
        Standing::Proved => out.push(standing::PROVED),
        Standing::Provisional { file_bytes } => {
            out.push(standing::PROVISIONAL);
            out.extend_from_slice(&file_bytes.to_le_bytes());
        }
    }
}

/// A hash and the byte before it.
const CLAIM_BYTES: usize = 33;

fn read_hashes(fields: &mut Fields<'_>) -> Result<ResponderMessage, Stop> {
    let range = fields.range()?;
    fields.need(range.count() as usize * CLAIM_BYTES)?;
    let claims = range.iter().map(|_| read_claim(fields));
    Ok(ResponderMessage::Hashes {
        first: range.first(),
        claims: claims.collect::<Result<_, _>>()?,
    })
}

fn read_claim(fields: &mut Fields<'_>) -> Result<Option<Claim>, Stop> {
    let (kind, hash): (u8, [u8; 32]) = (fields.u8()?, fields.array()?);
    let claim = |first_hand| {
        let hash = SegmentHash::from_bytes(hash);
        Ok(Some(Claim { hash, first_hand }))
    };
    match kind {
        claim::NONE if hash == [0; 32] => Ok(None),
        claim::FIRST_HAND => claim(true),
        claim::PASSED_ON => claim(false),
        found => Err(WireError::UnknownValue { found }.into()),
    }
}

fn write_hashes(first: SegmentIndex, claims: &[Option<Claim>], out: &mut Vec<u8>) {
    let count = u32::try_from(claims.len()).unwrap_or(u32::MAX);
    out.push(kind::HASHES);
    put_u32s(out, &[first.0, count]);
    for claim in claims {
        let (kind, hash) = match claim {
            None => (claim::NONE, [0; 32]),
            Some(claim) if claim.first_hand => (claim::FIRST_HAND, *claim.hash.as_bytes()),
            Some(claim) => (claim::PASSED_ON, *claim.hash.as_bytes()),
        };
        out.push(kind);
        out.extend_from_slice(&hash);
    }
}

fn read_segment(fields: &mut Fields<'_>) -> Result<ResponderMessage, Stop> {
    let (index, length) = (fields.index()?, fields.u32()?);
    if length > MAX_SEGMENT_BYTES {
        return Err(WireError::SegmentTooLong {
            index: index.0,
            length,
        }
        .into());
    }
    Ok(ResponderMessage::Segment { index, length })
}
