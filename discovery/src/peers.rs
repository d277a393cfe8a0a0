//! The peers this agent has connections to, and which of them are members.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use branchline_core::PeerId;
use libp2p::request_response::OutboundRequestId;
use libp2p::swarm::ConnectionId;

use crate::allowance::{Allowance, Rate};
use crate::hello::Greeting;
use crate::membership::{FoundBy, Member, Membership};

/// Members beyond this are not admitted. Each costs a connection with its keep-alives on both
/// sides; a branch of a thousand machines is the largest that one agent watches in full.
pub(crate) const MAX_MEMBERS: usize = 1024;
/// Addresses kept of one peer.
pub(crate) const MAX_ADDRESSES: usize = 8;
/// Members are greeted this long after they greeted. That they are alive is seen from the connection
/// itself; this refreshes the round-trip time and notices an agent that no longer answers though its
/// connection does.
const HELLO_AFTER_THEIRS: Duration = Duration::from_secs(10);
/// And this long after they answered: longer, so that the two sides take turns and there is one
/// greeting in ten seconds, not two.
const HELLO_AFTER_OURS: Duration = Duration::from_secs(15);
/// So many greetings in a row may fail before the connections are closed.
const MAX_MISSED: u32 = 2;
/// Greetings of one peer that are answered. An agent greets on each new connection and then every
/// ten seconds; more is an attack on this one's processor.
const GREETINGS: Rate = Rate {
    interval: Duration::from_secs(1),
    burst: 16,
};
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
    greetings: Allowance,
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
    /// The process at the other end of this connection is gone, but the peer has another.
    Close(ConnectionId),
    /// The peer hangs.
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

    /// The ports that its connections come from; none when it is not connected.
    pub(crate) fn ports(&self, peer: &PeerId) -> Vec<u16> {
        let connections = self.connected.get(peer).into_iter();
        let connections = connections.flat_map(|known| known.connections.values());
        connections
            .map(|connection| connection.remote.port())
            .collect()
    }

    /// Where its connections come from, the newest first.
    pub(crate) fn remotes(&self, peer: &PeerId) -> Vec<SocketAddr> {
        let known = self.connected.get(peer);
        known.map_or_else(Vec::new, Peer::remotes)
    }

    pub(crate) fn is_member(&self, peer: &PeerId) -> bool {
        let known = self.connected.get(peer);
        known.is_some_and(|known| known.greeting.is_some())
    }

    /// Everybody who greeted, and whether multicast named them.
    pub(crate) fn members(&self) -> impl Iterator<Item = (PeerId, bool)> {
        let greeted = self.connected.iter();
        let greeted = greeted.filter(|(_, known)| known.greeting.is_some());
        greeted.map(|(peer, known)| (*peer, known.by_mdns))
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
        // Whom an unanswered greeting went to may be gone; the new connection is not kept waiting.
        known.asking = None;
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
        let due = self.connected.iter().filter(|(_, known)| known.is_due(now));
        due.map(|(peer, _)| *peer).collect()
    }

    /// Whether to greet `peer` now.
    pub(crate) fn is_due(&self, now: Instant, peer: &PeerId) -> bool {
        self.connected
            .get(peer)
            .is_some_and(|known| known.is_due(now))
    }

    pub(crate) fn handle_asked(&mut self, now: Instant, peer: &PeerId, request: OutboundRequestId) {
        if let Some(known) = self.connected.get_mut(peer) {
            known.asking = Some((request, now));
        }
    }

    /// It asks to be greeted. False when it asks too often.
    pub(crate) fn handle_request(&mut self, now: Instant, peer: &PeerId) -> bool {
        let known = self.connected.get_mut(peer);
        known.is_none_or(|known| known.greetings.take(now))
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
        let rtt = match request {
            Some(request) => known.answered(now, request),
            None => {
                known.was_greeted(now);
                None
            }
        };
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

    /// A greeting on `connection` got no answer. It is repeated at once; with another connection
    /// left on that one alone, for libp2p chooses among them blindly.
    pub(crate) fn handle_failed(
        &mut self,
        now: Instant,
        peer: &PeerId,
        connection: ConnectionId,
        request: OutboundRequestId,
        connection_closed: bool,
    ) -> AfterFailure {
        let Some(known) = self.connected.get_mut(peer) else {
            return AfterFailure::Ignore;
        };
        let is_asked = known.asking.is_some_and(|(asked, _)| asked == request);
        if is_asked {
            known.asking = None;
            known.next_hello = now;
        }
        if connection_closed {
            return AfterFailure::Ignore;
        }
        let has_another = known.connections.keys().any(|other| *other != connection);
        if has_another && known.connections.contains_key(&connection) {
            return AfterFailure::Close(connection);
        }
        known.missed += u32::from(is_asked);
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
            greetings: Allowance::new(GREETINGS, now),
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.asking.is_none() && self.next_hello <= now
    }

    /// Its greeting says as much as an answer would, but the first greeting of each side is for the
    /// round-trip time, and is not put off.
    fn was_greeted(&mut self, now: Instant) {
        if self.next_hello > now {
            self.next_hello = now + HELLO_AFTER_THEIRS;
        }
    }

    fn answered(&mut self, now: Instant, request: OutboundRequestId) -> Option<Duration> {
        let (_, asked_at) = self.asking.filter(|(asked, _)| *asked == request)?;
        self.asking = None;
        self.next_hello = now + HELLO_AFTER_OURS;
        Some(now.duration_since(asked_at))
    }

    fn remotes(&self) -> Vec<SocketAddr> {
        let mut connections: Vec<_> = self.connections.values().collect();
        connections.sort_by_key(|connection| std::cmp::Reverse(connection.since));
        let remotes = connections.into_iter();
        remotes.map(|connection| connection.remote).collect()
    }

    /// The newest connection's address first, then what multicast adds.
    fn addresses(&self, port: u16, announced: &[SocketAddr]) -> Vec<SocketAddr> {
        let seen = self.remotes().into_iter().map(|remote| remote.ip());
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

    /// Names of requests are libp2p's to give.
    fn requests() -> impl FnMut() -> OutboundRequestId {
        use libp2p::request_response::{ProtocolSupport, cbor};
        use libp2p::swarm::StreamProtocol;

        let protocol = (StreamProtocol::new("/test"), ProtocolSupport::Full);
        let mut behaviour = cbor::Behaviour::<u8, u8>::new([protocol], Default::default());
        move || behaviour.send_request(&libp2p::PeerId::random(), 0)
    }

    #[test]
    fn a_greeting_lost_on_one_of_two_connections_costs_that_one_alone() {
        let now = Instant::now();
        let mut request = requests();
        // The smaller key would close it at once; the larger one leaves that to a process that may
        // know of the new connection only.
        let mut peers = Peers::new(peer(9));
        peers.handle_connected(now, peer(1), id(1), remote(9), false);
        let lost = request();
        peers.handle_asked(now, &peer(1), lost);
        let again = now + SIMULTANEOUS / 2;
        let replaced = peers.handle_connected(again, peer(1), id(2), remote(9), false);
        assert_eq!(replaced, []);
        assert_eq!(peers.due_hellos(again), [peer(1)], "it is greeted at once");
        for _ in 0..MAX_MISSED * 2 {
            let failed = peers.handle_failed(again, &peer(1), id(1), lost, false);
            assert_eq!(failed, AfterFailure::Close(id(1)));
        }
        assert!(!peers.handle_closed(&peer(1), id(1)));
        for expected in [AfterFailure::Ignore, AfterFailure::Disconnect] {
            let unanswered = request();
            peers.handle_asked(again, &peer(1), unanswered);
            let failed = peers.handle_failed(again, &peer(1), id(2), unanswered, false);
            assert_eq!(failed, expected, "it has no other connection");
        }
    }

    #[test]
    fn two_agents_take_turns_in_greeting() {
        let (start, clock) = (Instant::now(), SystemTime::now());
        let mut request = requests();
        let mut sides = [1, 2].map(|own| Peers::new(peer(own)));
        let mut asked = [0, 0];
        sides[0].handle_connected(start, peer(2), id(1), remote(2), false);
        sides[1].handle_connected(start, peer(1), id(1), remote(1), false);
        for second in 0..200 {
            let now = start + Duration::from_secs(second);
            for own in 0..2 {
                let [other] = sides[own].due_hellos(now)[..] else {
                    continue;
                };
                asked[own] += 1;
                let request = request();
                sides[own].handle_asked(now, &other, request);
                let own_id = peer([1, 2][own]);
                sides[1 - own].handle_greeting(now, clock, &own_id, greeting(1), None);
                sides[own].handle_greeting(now, clock, &other, greeting(1), Some(request));
            }
        }
        assert!(
            asked.iter().all(|asked| (10..=12).contains(asked)),
            "{asked:?}"
        );
    }

    #[test]
    fn one_that_greets_without_end_is_refused() {
        let now = Instant::now();
        let mut peers = Peers::new(peer(1));
        peers.handle_connected(now, peer(2), id(1), remote(2), false);
        let answered = (0..1000).filter(|_| peers.handle_request(now, &peer(2)));
        assert_eq!(answered.count(), 16);
        let hourly = (0..360).filter(|n| {
            let then = now + HELLO_AFTER_THEIRS * (n + 2);
            peers.handle_request(then, &peer(2))
        });
        assert_eq!(hourly.count(), 360);
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
