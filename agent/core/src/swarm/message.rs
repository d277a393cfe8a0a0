//! What a member of a swarm and its steward say to each other.
//!
//! A member opens one stream to the steward, says [`Enlist`] once and [`Report`] whenever something
//! changed, at least every [`REPORT_EVERY`](super) while it downloads. The steward answers each with
//! one [`Answer`]; further ones come unasked, when there is something new to grant. The end of the stream is
//! the end of the membership: its leases are free again.

use std::time::Duration;

use branchline_hashing::SwarmId;

use super::{BlockRange, BlockSet, Blocks};
use crate::PeerId;

/// The most leases in one message, either way.
pub const MAX_LEASES: usize = 64;

/// The most peers in one answer.
pub const MAX_ANSWER_PEERS: usize = 64;

/// The first word of a member to its steward, and again to the next when the first is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enlist {
    /// The content, blinded: a steward need not know it.
    pub swarm: SwarmId,
    /// How it is divided.
    pub blocks: Blocks,
    /// The whole blocks this member holds.
    pub held: BlockSet,
    /// What it fetches from the origin by another steward's word, or by its own.
    pub leased: Vec<BlockRange>,
    /// Whether it has the manifest and gives it to others.
    pub has_manifest: bool,
    /// What it would fetch.
    pub want: Want,
}

/// What has changed since the last word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Blocks it has come to hold.
    pub held: BlockSet,
    /// What it will not fetch, of what it was granted.
    pub returned: Vec<BlockRange>,
    /// Whether it has the manifest and gives it to others.
    pub has_manifest: bool,
    /// What it would fetch, in place of what it said before.
    pub want: Want,
}

/// How much of the origin a member would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Want {
    /// Leases it has use for, besides those it holds.
    pub runs: u8,
    /// How long each may be: what it fetches in a few seconds at the rate it has measured.
    pub blocks_per_run: u32,
    /// Whether it would fetch the manifest's body.
    pub manifest: bool,
}

/// The steward's word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Whether it answers a message, rather than coming unasked.
    pub asked: bool,
    /// New leases.
    pub granted: Vec<Grant>,
    /// What to do about the manifest's body.
    pub manifest: ManifestLease,
    /// Some of the swarm's other members, drawn by chance: new neighbours.
    pub peers: Vec<SwarmPeer>,
    /// Members that hold a lease now: what a member without one waits for.
    pub lessees: u32,
}

/// A lease: the right to fetch these blocks from the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Which.
    pub blocks: BlockRange,
    /// It ends after so long without a report of a block of it that has come.
    pub lasts: Duration,
}

/// Who fetches the manifest's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ManifestLease {
    /// This member did not ask, or has it.
    #[default]
    NotAsked,
    /// This member is to fetch it, within this time.
    Fetch,
    /// Another member fetches it, or has it: [`Answer::peers`] says who does.
    Wait,
}

/// A member of the swarm, as its steward knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwarmPeer {
    /// Who.
    pub peer: PeerId,
    /// Whether it says that it has the manifest.
    pub has_manifest: bool,
}
