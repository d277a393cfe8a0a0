//! What members say to each other, and how many bytes that is.

use std::rc::Rc;

use branchline_core::swarm::{Answer, BlockSet, Enlist, Report};
use branchline_core::{SegmentRange, SegmentSet};
use branchline_hashing::SegmentIndex;

use crate::download::STREAMS;

/// A message on its way.
#[derive(Debug)]
pub(crate) enum Message {
    /// Let me join; what you have, and what you come to have. Opens a connection's streams.
    Join,
    /// What there is.
    Joined(Rc<SegmentSet>),
    /// Nothing of this content here.
    Unknown,
    Request {
        download: u32,
        stream: u8,
        range: SegmentRange,
    },
    /// The streams of this download have ended.
    Stop {
        download: u32,
    },
    /// The requester has closed its session.
    Bye,
    Segment {
        download: u32,
        stream: u8,
        index: SegmentIndex,
        /// Whether the bytes are those of the segment.
        right: bool,
    },
    Absent {
        download: u32,
        stream: u8,
        index: SegmentIndex,
    },
    RangeBusy {
        download: u32,
        stream: u8,
        range: SegmentRange,
    },
    HaveMore(Rc<[SegmentRange]>),
    ManifestRequest,
    /// The manifest's body, or that there is none.
    Manifest {
        there: bool,
    },
    /// `stream` tells a member's streams to one steward apart.
    Enlist {
        stream: u32,
        enlist: Box<Enlist>,
    },
    Report {
        stream: u32,
        report: Box<Report>,
    },
    Answer {
        stream: u32,
        answer: Box<Answer>,
    },
    /// Who sends this holds the whole content.
    Announce,
    /// The stream's end.
    Leave {
        stream: u32,
    },
}

/// A new connection: QUIC's handshake with both sides' certificates, first flights padded to 1,200 bytes
/// (RFC 9000, section 14.1), and its close.
pub(crate) const HANDSHAKE_BYTES: u64 = 2_700;

/// `branchline/1` has these sizes (docs/exchange.md).
const JOIN_BYTES: u64 = 65;
const REQUEST_BYTES: u64 = 9;
const JOINED_BYTES: u64 = 33;

impl Message {
    /// Its bytes without those of the packets around it: by docs/exchange.md for messages of the exchange; by the
    /// fields' sizes for those of the steward's streams.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            // One stream for the session, four for the download; each joins.
            Self::Join => (u64::from(STREAMS) + 1) * JOIN_BYTES,
            Self::Joined(have) => (u64::from(STREAMS) + 1) * (JOINED_BYTES + set_bytes(have)),
            Self::Request { .. } => REQUEST_BYTES,
            Self::Announce => 5 + 32,
            Self::Unknown | Self::ManifestRequest => 1,
            // Frames and packets only.
            Self::Stop { .. } | Self::Bye | Self::Leave { .. } => 8,
            // The segment's own bytes are bulk.
            Self::Segment { .. } => 9,
            Self::Absent { .. } | Self::Manifest { .. } => 5,
            Self::RangeBusy { .. } => 13,
            Self::HaveMore(ranges) => 5 + 8 * count(ranges.len()),
            Self::Enlist { enlist, .. } => {
                1 + 32 + 8 + blocks_bytes(&enlist.held) + 8 * count(enlist.leased.len()) + 8
            }
            Self::Report { report, .. } => {
                1 + blocks_bytes(&report.held) + 8 * count(report.returned.len()) + 8
            }
            Self::Answer { answer, .. } => {
                8 + 12 * count(answer.granted.len()) + 33 * count(answer.peers.len())
            }
        }
    }
}

fn set_bytes(set: &SegmentSet) -> u64 {
    let ranges = count(set.ranges().take(1 + set.size() as usize / 64).count());
    have_bytes(set.size(), ranges)
}

fn blocks_bytes(set: &BlockSet) -> u64 {
    let ranges = count(set.ranges().take(1 + set.size() as usize / 64).count());
    have_bytes(set.size(), ranges)
}

/// The shorter of ranges and bitmap, as the wire's form chooses.
fn have_bytes(size: u32, ranges: u64) -> u64 {
    let ranges_bytes = 9 + 8 * ranges;
    ranges_bytes.min(5 + u64::from(size.div_ceil(8)))
}

fn count(length: usize) -> u64 {
    length as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_core::wire::{Have, ResponderMessage, WireMessage};

    #[test]
    fn the_size_of_a_set_is_that_of_the_wire() {
        let mut sets = vec![SegmentSet::empty(1000), SegmentSet::full(1000)];
        let mut scattered = SegmentSet::empty(1000);
        for index in (0..1000).step_by(3) {
            scattered.insert(SegmentIndex(index));
            sets.push(scattered.clone());
        }
        for set in sets {
            let wire = ResponderMessage::Have(Have::of(&set)).to_bytes();
            assert_eq!(
                1 + set_bytes(&set),
                count(wire.len()),
                "{} segments",
                set.len()
            );
        }
    }
}
