//! What discovery tells the rest of the agent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use branchline_core::PeerId;
use serde::{Serialize, Serializer};

/// The agents that are here now, this one not among them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Membership {
    members: BTreeMap<PeerId, Member>,
}

/// One agent that proved its identity and answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its key, authenticated by the connection.
    pub peer_id: PeerId,
    /// Where its exchange listens (UDP, quinn), the address of the live connection first. Only
    /// that first one was seen to work; the exchange checks the identity behind any of them.
    pub exchange_addresses: Vec<SocketAddr>,
    /// How it came to be known.
    pub found_by: FoundBy,
    /// When it joined, by this machine's clock. In JSON: milliseconds since 1970.
    #[serde(rename = "since_unix_ms", serialize_with = "unix_ms")]
    pub since: SystemTime,
    /// When it last greeted or answered, up to the last publication (every few seconds).
    #[serde(rename = "last_seen_unix_ms", serialize_with = "unix_ms")]
    pub last_seen: SystemTime,
    /// What it calls its version: at most 64 printable ASCII characters.
    pub version: String,
    /// Time of the last greeting's round trip, both agents' scheduling included. In JSON:
    /// microseconds.
    #[serde(rename = "rtt_us", serialize_with = "microseconds")]
    pub rtt: Option<Duration>,
}

/// How a member came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundBy {
    /// It announced itself by multicast.
    Mdns,
    /// The configuration names it.
    Static,
    /// A member told of it.
    Kademlia,
    /// It connected to this agent.
    Inbound,
}

impl Membership {
    /// The members by identity.
    pub fn members(&self) -> &BTreeMap<PeerId, Member> {
        &self.members
    }

    /// One member, if it is here.
    pub fn member(&self, peer_id: &PeerId) -> Option<&Member> {
        self.members.get(peer_id)
    }

    /// Where a member's exchange listens; nothing for one that is not here.
    pub fn exchange_addresses(&self, peer_id: &PeerId) -> Vec<SocketAddr> {
        self.members
            .get(peer_id)
            .map_or_else(Vec::new, |member| member.exchange_addresses.clone())
    }

    /// How many agents are here besides this one.
    pub fn count(&self) -> usize {
        self.members.len()
    }
}

impl FromIterator<Member> for Membership {
    fn from_iter<I: IntoIterator<Item = Member>>(members: I) -> Self {
        Self {
            members: members
                .into_iter()
                .map(|member| (member.peer_id, member))
                .collect(),
        }
    }
}

fn unix_ms<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u64(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

fn microseconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    let whole = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    time.map(whole).serialize(serializer)
}
