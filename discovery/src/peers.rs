//! The peers this agent has connections to, and which of them are members.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use branchline_core::PeerId;
use libp2p::request_response::OutboundRequestId;
use libp2p::swarm::ConnectionId;

use crate::hello::Greeting;
use crate::membership::{FoundBy, Member, Membership};

/// Members beyond this are not admitted. Each costs a connection with its keep-alives on both
/// sides; a branch of a thousand machines is the largest that one agent watches in full.
pub(crate) const MAX_MEMBERS: usize = 1024;
/// Addresses kept of one peer.
pub(crate) const MAX_ADDRESSES: usize = 8;
/// Members are greeted this often. That they are alive is seen from the connection itself; this
/// refreshes the round-trip time and notices an agent that no longer answers though its connection
/// does.
pub(crate) const HELLO_INTERVAL: Duration = Duration::from_secs(10);
/// So many greetings in a row may fail before the connections are closed.
const MAX_MISSED: u32 = 2;
/// Two connections closer together than this come from both sides dialling at once; farther apart,
/// the older one belongs to a process that is gone.
const SIMULTANEOUS: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Peers {
    own: PeerId,
    connected: BTreeMap<PeerId, Peer>,
}

#[derive(Debug)]
struct Peer {
    connections: BTreeMap<ConnectionId, Connection>,
    greeting: Option<Greeted>,
    asking: Option<(OutboundRequestId, Instant)>,
    next_hello: Instant,
    missed: u32,
    by_mdns: bool,
}

#[derive(Debug)]
struct Connection {
    remote: SocketAddr,
    since: Instant,
}

#[derive(Debug)]
struct Greeted {
    greeting: Greeting,
    since: SystemTime,
    last_seen: SystemTime,
    rtt: Option<Duration>,
}

/// What follows from a failed greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterFailure {
    Ignore,
    Disconnect,
}

impl Peers {
    pub(crate) fn new(own: PeerId) -> Self {
        Self {
            own,
            connected: BTreeMap::new(),
        }
    }

    pub(crate) fn is_connected(&self, peer: &PeerId) -> bool {
        self.connected.contains_key(peer)
    }

    pub(crate) fn has_room_for(&self, peer: &PeerId) -> bool {
        self.is_connected(peer) || self.connected.len() < MAX_MEMBERS
    }

    pub(crate) fn has_connection(&self, peer: &PeerId, id: ConnectionId) -> bool {
        self.connected
            .get(peer)
            .is_some_and(|known| known.connections.contains_key(&id))
    }

    /// Notes a new connection and returns those it replaces. Which one of two stays must be the
    /// same on both sides: the newest, decided by the smaller key when they are simultaneous. An
    /// agent has one port, so a connection from another port is from a process that is gone.
    pub(crate) fn handle_connected(
        &mut self,
        now: Instant,
        peer: PeerId,
        id: ConnectionId,
        remote: SocketAddr,
        by_mdns: bool,
    ) -> Vec<ConnectionId> {
        let decides = self.own < peer;
        let known = self.connected.entry(peer).or_insert_with(|| Peer::new(now));
        known.by_mdns |= by_mdns;
        known.next_hello = now;
        let replaced = known.connections.iter().filter(|(_, old)| {
            let other_process = old.remote.port() != remote.port();
            decides || other_process || now.duration_since(old.since) > SIMULTANEOUS
        });
        let replaced = replaced.map(|(old, _)| *old).collect();
        known
            .connections
            .insert(id, Connection { remote, since: now });
        replaced
    }

    /// Forgets a connection; true when it was the last one to `peer`.
    pub(crate) fn handle_closed(&mut self, peer: &PeerId, id: ConnectionId) -> bool {
        let Some(known) = self.connected.get_mut(peer) else {
            return false;
        };
        let was_known = known.connections.remove(&id).is_some();
        let is_last = was_known && known.connections.is_empty();
        if is_last {
            self.connected.remove(peer);
        }
        is_last
    }

    /// Multicast named it. True when that is news about a member.
    pub(crate) fn handle_announced(&mut self, peer: &PeerId) -> bool {
        let Some(known) = self.connected.get_mut(peer) else {
            return false;
        };
        let is_news = !known.by_mdns && known.greeting.is_some();
        known.by_mdns = true;
        is_news
    }

    /// Peers to greet now.
    pub(crate) fn due_hellos(&self, now: Instant) -> Vec<PeerId> {
        let is_due = |known: &Peer| known.asking.is_none() && known.next_hello <= now;
        let due = self.connected.iter().filter(|(_, known)| is_due(known));
        due.map(|(peer, _)| *peer).collect()
    }

    pub(crate) fn handle_asked(&mut self, now: Instant, peer: &PeerId, request: OutboundRequestId) {
        if let Some(known) = self.connected.get_mut(peer) {
            known.asking = Some((request, now));
        }
    }

    /// It greeted or answered (`request` is set then). True when the membership changed by it, not
    /// only a time.
    pub(crate) fn handle_greeting(
        &mut self,
        now: Instant,
        clock: SystemTime,
        peer: &PeerId,
        greeting: Greeting,
        request: Option<OutboundRequestId>,
    ) -> bool {
        let Some(known) = self.connected.get_mut(peer) else {
            return false;
        };
        let rtt = request.and_then(|request| known.answered(now, request));
        known.missed = 0;
        match &mut known.greeting {
            Some(greeted) => {
                let changed = greeted.greeting != greeting;
                greeted.greeting = greeting;
                greeted.last_seen = clock;
                greeted.rtt = rtt.or(greeted.rtt);
                changed
            }
            None => {
                known.greeting = Some(Greeted {
                    greeting,
                    since: clock,
                    last_seen: clock,
                    rtt,
                });
                true
            }
        }
    }

    /// A greeting got no answer. With another connection left it is repeated at once.
    pub(crate) fn handle_failed(
        &mut self,
        now: Instant,
        peer: &PeerId,
        request: OutboundRequestId,
        connection_closed: bool,
    ) -> AfterFailure {
        let Some(known) = self.connected.get_mut(peer) else {
            return AfterFailure::Ignore;
        };
        if known.asking.is_none_or(|(asked, _)| asked != request) {
            return AfterFailure::Ignore;
        }
        known.asking = None;
        known.next_hello = now;
        known.missed += u32::from(!connection_closed);
        if known.missed >= MAX_MISSED {
            AfterFailure::Disconnect
        } else {
            AfterFailure::Ignore
        }
    }

    /// Everybody who greeted.
    pub(crate) fn membership<'a>(
        &self,
        found_by: impl Fn(&PeerId, bool) -> FoundBy,
        announced: impl Fn(&PeerId) -> &'a [SocketAddr],
    ) -> Membership {
        let members = self.connected.iter().filter_map(|(peer, known)| {
            let greeted = known.greeting.as_ref()?;
            Some(Member {
                peer_id: *peer,
                exchange_addresses: known
                    .addresses(greeted.greeting.exchange_port, announced(peer)),
                found_by: found_by(peer, known.by_mdns),
                since: greeted.since,
                last_seen: greeted.last_seen,
                version: greeted.greeting.version.clone(),
                rtt: greeted.rtt,
            })
        });
        members.collect()
    }
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            connections: BTreeMap::new(),
            greeting: None,
            asking: None,
            next_hello: now,
            missed: 0,
            by_mdns: false,
        }
    }

    fn answered(&mut self, now: Instant, request: OutboundRequestId) -> Option<Duration> {
        let (_, asked_at) = self.asking.filter(|(asked, _)| *asked == request)?;
        self.asking = None;
        self.next_hello = now + HELLO_INTERVAL;
        Some(now.duration_since(asked_at))
    }

    /// The newest connection's address first, then what multicast adds.
    fn addresses(&self, port: u16, announced: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut connections: Vec<_> = self.connections.values().collect();
        connections.sort_by_key(|connection| std::cmp::Reverse(connection.since));
        let seen = connections
            .into_iter()
            .map(|connection| connection.remote.ip());
        let mut ips: Vec<IpAddr> = Vec::new();
        for ip in seen.chain(announced.iter().map(SocketAddr::ip)) {
            if !ips.contains(&ip) && ips.len() < MAX_ADDRESSES {
                ips.push(ip);
            }
        }
        ips.into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    fn id(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    fn remote(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 4001))
    }

    fn greeting(exchange_port: u16) -> Greeting {
        Greeting {
            exchange_port,
            version: "branchline/0".into(),
        }
    }

    fn members(peers: &Peers) -> Membership {
        peers.membership(|_, _| FoundBy::Mdns, |_| &[])
    }

    #[test]
    fn only_who_greeted_is_a_member_and_only_while_connected() {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let mut peers = Peers::new(peer(1));
        peers.handle_connected(now, peer(2), id(1), remote(2), false);
        assert_eq!(members(&peers).count(), 0);
        assert_eq!(peers.due_hellos(now), [peer(2)]);
        assert!(peers.handle_greeting(now, clock, &peer(2), greeting(7000), None));
        let expected = [SocketAddr::from(([10, 0, 0, 2], 7000))];
        let shown = members(&peers);
        assert_eq!(
            shown.member(&peer(2)).expect("a member").exchange_addresses,
            expected
        );
        assert!(peers.handle_closed(&peer(2), id(1)));
        assert_eq!(members(&peers).count(), 0);
    }

    #[test]
    fn a_greeting_from_nobody_connected_is_ignored() {
        let mut peers = Peers::new(peer(1));
        let (now, clock) = (Instant::now(), SystemTime::now());
        assert!(!peers.handle_greeting(now, clock, &peer(2), greeting(1), None));
        assert!(!peers.handle_closed(&peer(2), id(1)));
    }

    #[test]
    fn a_connection_from_another_port_replaces_those_of_the_process_before() {
        let now = Instant::now();
        for other in [1, 9] {
            let mut peers = Peers::new(peer(5));
            peers.handle_connected(now, peer(other), id(1), remote(9), false);
            let mut elsewhere = remote(9);
            elsewhere.set_port(elsewhere.port() + 1);
            let replaced = peers.handle_connected(now, peer(other), id(2), elsewhere, false);
            assert_eq!(replaced, [id(1)]);
        }
    }

    #[test]
    fn of_simultaneous_connections_the_smaller_key_keeps_the_newest() {
        let now = Instant::now();
        for (own, other, replaced) in [(1, 2, vec![id(1)]), (2, 1, vec![])] {
            let mut peers = Peers::new(peer(own));
            peers.handle_connected(now, peer(other), id(1), remote(9), false);
            let later = now + SIMULTANEOUS / 2;
            assert_eq!(
                peers.handle_connected(later, peer(other), id(2), remote(9), false),
                replaced
            );
        }
    }

    #[test]
    fn a_restarted_peer_replaces_its_former_self_on_both_sides() {
        let (now, clock) = (Instant::now(), SystemTime::now());
        for (own, other) in [(1, 2), (2, 1)] {
            let mut peers = Peers::new(peer(own));
            peers.handle_connected(now, peer(other), id(1), remote(9), false);
            peers.handle_greeting(now, clock, &peer(other), greeting(7000), None);
            let later = now + SIMULTANEOUS * 2;
            let replaced = peers.handle_connected(later, peer(other), id(2), remote(9), false);
            assert_eq!(replaced, [id(1)]);
            assert!(peers.handle_greeting(later, clock, &peer(other), greeting(8000), None));
            assert!(
                !peers.handle_closed(&peer(other), id(1)),
                "the new connection is left"
            );
            let shown = members(&peers);
            let port = shown
                .member(&peer(other))
                .expect("a member")
                .exchange_addresses[0]
                .port();
            assert_eq!(port, 8000);
        }
    }

    #[test]
    fn members_are_bounded() {
        let now = Instant::now();
        let mut peers = Peers::new(peer(0));
        for n in 0..u16::try_from(MAX_MEMBERS).expect("small") {
            let mut key = [1; 32];
            key[..2].copy_from_slice(&n.to_be_bytes());
            let other = PeerId::from_public_key(key);
            assert!(peers.has_room_for(&other));
            peers.handle_connected(now, other, id(n.into()), remote(1), false);
        }
        assert!(!peers.has_room_for(&peer(255)));
        let mut known = [1; 32];
        known[..2].copy_from_slice(&[0, 0]);
        assert!(peers.has_room_for(&PeerId::from_public_key(known)));
    }
}
