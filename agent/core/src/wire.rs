//! The messages of the exchange protocol `branchline/1`; `docs/exchange.md` has them byte by byte.
//!
//! Decoders are total: every sequence of bytes is a message, the beginning of one, or a
//! [`WireError`]. None allocates more than what has arrived. What follows a [`ResponderMessage::Segment`] or a
//! [`ResponderMessage::Manifest`] on the stream (raw bytes) is not read here.

mod codec;
mod have;
mod steward;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use branchline_hashing::{SEGMENT_COUNT_LIMIT, SEGMENT_LENGTH_LIMIT, SegmentIndex, SwarmId};

use crate::SegmentRange;
use crate::repair::Claim;
use crate::swarm::{Answer, Enlist, MAX_ANSWER_PEERS, MAX_BLOCKS, MAX_LEASES, Report};

pub use codec::WireError;
pub use have::Have;

/// The protocol's name in TLS (RFC 7301). A change that older agents cannot read gets another one.
pub const ALPN: &[u8] = b"branchline/1";

/// Label of the TLS exporter (RFC 8446, section 7.5) that binds join proofs to one session. Its
/// context is the 32 bytes of the swarm id.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-branchline-join-1";

/// The longest segment that can travel: the longest a manifest can have, 16 MiB.
pub const MAX_SEGMENT_BYTES: u32 = SEGMENT_LENGTH_LIMIT;

/// The most segments in one request: longer ones are split by the requester.
pub const MAX_REQUEST_SEGMENTS: u32 = 1024;

/// The most segments a bitmap can speak of: the most a manifest can have, 2 MiB of bits.
pub const MAX_BITMAP_SEGMENTS: u32 = SEGMENT_COUNT_LIMIT;

/// The most ranges a list of ranges can have: 512 KiB. A responder that has more says less.
pub const MAX_HAVE_RANGES: u32 = 1 << 16;

/// The most swarms in one announcement: 32 KiB.
pub const MAX_ANNOUNCED_SWARMS: usize = 1024;

/// The longest set of blocks: size, form, and as many ranges as take no more bytes than the bits.
const MAX_BLOCK_SET_BYTES: usize = 9 + 8 * (MAX_BLOCKS as usize / 64);

/// The longest [`Enlist`], which is longer than any [`Report`]. The first message of a stream is no
/// longer than this, so that strangers' unfinished ones are small.
pub const MAX_ENLIST_BYTES: usize = 49 + 8 * MAX_LEASES + MAX_BLOCK_SET_BYTES;

/// The longest [`RequesterMessage::Announce`] or [`RequesterMessage::Withdraw`].
pub const MAX_ANNOUNCE_BYTES: usize = 5 + 32 * MAX_ANNOUNCED_SWARMS;

/// The longest [`Answer`].
pub const MAX_ANSWER_BYTES: usize = 9 + 12 * MAX_LEASES + 33 * MAX_ANSWER_PEERS;

/// No message is longer: type, proof, standing and the largest bitmap.
pub const MAX_MESSAGE_BYTES: usize = 1 + 32 + 9 + 9 + (MAX_BITMAP_SEGMENTS as usize) / 8;

/// Shows knowledge of a `ContentKey`, for one TLS session and one side of it. Compare in constant time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct JoinProof(pub [u8; 32]);

impl fmt::Debug for JoinProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinProof(..)")
    }
}

/// A message that can be read from a stream's bytes.
pub trait WireMessage: Sized {
    /// Reads the message that `bytes` begins with.
    ///
    /// # Errors
    /// [`WireError`] when no continuation could make it a message of this version.
    fn decode(bytes: &[u8]) -> Result<Decoded<Self>, WireError>;

    /// Appends the message's bytes.
    fn encode(&self, out: &mut Vec<u8>);

    /// The message's bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

/// What some bytes begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded<M> {
    /// A whole message.
    Message {
        /// The message.
        message: M,
        /// How many bytes it took.
        length: usize,
    },
    /// The beginning of one.
    Incomplete {
        /// How long the message is at least: more than there was, at most [`MAX_MESSAGE_BYTES`].
        needs: usize,
    },
}

/// What the side that dialled says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequesterMessage {
    /// The first message of each stream, and only there.
    Join {
        /// The content, blinded.
        swarm: SwarmId,
        /// That the requester knows its key.
        proof: JoinProof,
    },
    /// Asks for segments, answered in order. At most [`MAX_REQUEST_SEGMENTS`].
    Request(SegmentRange),
    /// Asks which bytes the responder has for segments, answered by [`ResponderMessage::Hashes`]. At
    /// most [`MAX_REQUEST_SEGMENTS`].
    HashesRequest(SegmentRange),
    /// Asks for the manifest.
    ManifestRequest,
    /// Asks for what the responder has by now.
    HaveRequest,
    /// Makes the requester a member of a swarm that the responder is the steward of: the first message
    /// of its stream, and only there.
    Enlist(Enlist),
    /// What has changed at a member.
    Report(Report),
    /// The requester holds these contents completely and gives them to others: the first message of
    /// its stream, and then as often as there are more. Nothing answers it.
    Announce {
        /// Which, at most [`MAX_ANNOUNCED_SWARMS`]; the first of a stream names few enough to be no
        /// longer than [`MAX_ENLIST_BYTES`].
        swarms: Vec<SwarmId>,
    },
    /// Takes back what was announced on this stream.
    Withdraw {
        /// Which, at most [`MAX_ANNOUNCED_SWARMS`].
        swarms: Vec<SwarmId>,
    },
    /// Asks for what the responder has, and to be told what it comes to have; the last message of its
    /// stream.
    HaveWatch,
}

impl RequesterMessage {
    /// What it is, without what it says: for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Join { .. } => "Join",
            Self::Request(_) => "Request",
            Self::HashesRequest(_) => "HashesRequest",
            Self::ManifestRequest => "ManifestRequest",
            Self::HaveRequest => "HaveRequest",
            Self::Enlist(_) => "Enlist",
            Self::Report(_) => "Report",
            Self::Announce { .. } => "Announce",
            Self::Withdraw { .. } => "Withdraw",
            Self::HaveWatch => "HaveWatch",
        }
    }
}

/// What a responder says of the segments it gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// They are what the content's table says, and it has that.
    Proved,
    /// Only the digest of the whole is known, and the whole is not there: nobody can say yet whether
    /// they are right.
    Provisional {
        /// The file's length in bytes, from which segments follow (`FixedSegments`).
        file_bytes: u64,
    },
}

/// What the side that accepted says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponderMessage {
    /// The requester's proof was right.
    Joined {
        /// That the responder knows the key too.
        proof: JoinProof,
        /// How far what it has may be believed.
        standing: Standing,
        /// What it has.
        have: Have,
    },
    /// No such content, or a wrong proof: nobody can tell which.
    Unknown,
    /// Too much to do for a join or a manifest.
    Busy {
        /// When to try again; whole milliseconds travel.
        retry_after: Duration,
    },
    /// `length` raw bytes follow.
    Segment {
        /// Which.
        index: SegmentIndex,
        /// How long, at most [`MAX_SEGMENT_BYTES`].
        length: u32,
    },
    /// The responder does not have this segment, or not any more.
    Absent {
        /// Which.
        index: SegmentIndex,
    },
    /// Too much to do for this request: none of it will come.
    RangeBusy {
        /// The whole request.
        range: SegmentRange,
        /// When to try again; whole milliseconds travel.
        retry_after: Duration,
    },
    /// `length` raw bytes follow: the manifest as published, head and body.
    Manifest {
        /// How long.
        length: u32,
    },
    /// The responder holds the content without a manifest.
    NoManifest,
    /// What the responder has by now.
    Have(Have),
    /// What the responder has come to have since it last said so on this stream.
    HaveMore(Have),
    /// The steward's word.
    Answer(Answer),
    /// Which bytes the responder has for these segments.
    Hashes {
        /// The first of them.
        first: SegmentIndex,
        /// Of each, if it is there; as many as were asked for.
        claims: Vec<Option<Claim>>,
    },
}

/// Why a side closed the connection: QUIC application error codes (RFC 9000, section 20.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CloseCode {
    /// Nothing more to do.
    Done,
    /// The agent stops.
    ShuttingDown,
    /// The requester's bytes were no message, or one out of place.
    ProtocolViolation,
    /// The responder sent what was not asked for or is not what the manifest says.
    Misbehaved,
    /// More connections than the responder gives one peer.
    TooManyConnections,
}

impl CloseCode {
    /// The number that travels.
    pub const fn code(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::ShuttingDown => 1,
            Self::ProtocolViolation => 2,
            Self::Misbehaved => 3,
            Self::TooManyConnections => 4,
        }
    }
}
