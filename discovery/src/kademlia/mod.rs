//! Past the reach of multicast: whom members know, by libp2p's Kademlia.
//!
//! Only members are asked and answered, about members only, and what one tells is a hint whom to
//! dial, no more: identity is what the connection then authenticates. Nothing about contents is
//! asked or told, and nothing is stored for others.

mod behaviour;
mod cover;
mod hint;
mod walks;

pub(crate) use behaviour::{Event, Kademlia};
pub(crate) use cover::position_of;
pub(crate) use hint::{MAX_ADDRESSES, hint};
pub(crate) use walks::{Acquaintance, Question, Walks};

/// What the whole protocol is called; in libp2p's own network agents would be strangers.
pub(crate) const PROTOCOL: &str = "/branchline/kad/1";
/// Peers in one answer: Kademlia's k, which libp2p fixes.
pub(crate) const NAMED_AT_ONCE: usize = libp2p::kad::K_VALUE.get();
