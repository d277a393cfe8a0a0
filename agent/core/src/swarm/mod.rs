//! A common start without a server: the steward of a swarm, its leases, and who is asked whom.
//!
//! `docs/swarm.md` has the protocol, its deadlines and the reason of each constant.

mod blocks;
mod message;

pub use blocks::{BlockIndex, BlockRange, BlockSet, Blocks, MAX_BLOCKS};
pub use message::{
    Answer, Enlist, Grant, MAX_ANSWER_PEERS, MAX_LEASES, ManifestLease, Report, SwarmPeer, Want,
};
