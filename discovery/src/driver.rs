//! The one task that owns discovery's state: it waits for an event, applies it, repeats.

mod walking;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use branchline_core::PeerId;
use futures_util::StreamExt;
use libp2p::request_response::{self, Message, OutboundFailure};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, Swarm, SwarmEvent};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::candidates::{Announced, Candidates};
use crate::config::StaticPeer;
use crate::discovery::DiscoveryStatus;
use crate::hello::Hello;
use crate::interfaces::{self, InterfaceChoice};
use crate::kademlia::Walks;
use crate::mdns::{Heard, Mdns};
use crate::membership::{FoundBy, Membership};
use crate::peers::{AfterFailure, Peers};
use crate::statics::{StaticIndex, Statics};
use crate::swarm::{self, Behaviour, BehaviourEvent};

/// Dials of announced peers, and of those that members told of, under way; others wait their turn. A branch of hundreds started together
/// is dialled in a few rounds of some milliseconds.
const MAX_CANDIDATE_DIALS: usize = 32;
/// Dials and name look-ups of static peers under way. Apart from those above, so that machines that
/// are switched off, or invented ones, do not delay the others.
const MAX_STATIC_DIALS: usize = 16;
/// How long a peer that does not speak Branchline's protocol is refused and not dialled. Programs
/// change less often than that; an agent installed meanwhile has a key of its own.
const STRANGER_FOR: Duration = Duration::from_secs(300);
/// Strangers remembered. More are merely disconnected.
const MAX_STRANGERS: usize = 1024;
/// Greetings that are due, strangers to forget and times to publish are looked at this often.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Changed times alone (last seen, round trip) are published this often: publishing copies the
/// membership.
const PUBLISH_TIMES: Duration = Duration::from_secs(5);
/// Memberships are at least this far apart: publishing copies the membership, and a thousand members
/// that come within a second would cost a thousand copies of up to a thousand each.
const PUBLISH_GAP: Duration = Duration::from_millis(10);
/// For the goodbyes to be sent; within `Discovery::shut_down`'s deadline.
const GOODBYE: Duration = Duration::from_millis(1000);

type Event = SwarmEvent<BehaviourEvent>;
type HelloEvent = request_response::Event<Hello, Hello>;
type Looked = (StaticIndex, io::Result<SocketAddr>);

pub(crate) struct Driver {
    swarm: Swarm<Behaviour>,
    mdns: Option<Mdns>,
    choice: InterfaceChoice,
    own: PeerId,
    hello: Hello,
    candidates: Candidates,
    statics: Statics,
    peers: Peers,
    walks: Walks,
    dials: BTreeMap<ConnectionId, Target>,
    lookups: JoinSet<Looked>,
    strangers: HashMap<libp2p::PeerId, Instant>,
    members: watch::Sender<Arc<Membership>>,
    status: watch::Sender<Arc<DiscoveryStatus>>,
    is_news: bool,
    times_changed: bool,
    published: Instant,
}

/// Whom a dial is for.
#[derive(Debug, Clone, Copy)]
enum Target {
    Candidate(PeerId),
    Static(StaticIndex),
}

impl Driver {
    pub(crate) fn new(
        swarm: Swarm<Behaviour>,
        mdns: Option<Mdns>,
        choice: InterfaceChoice,
        static_peers: Vec<StaticPeer>,
        own: PeerId,
        exchange_port: u16,
    ) -> (
        Self,
        watch::Receiver<Arc<Membership>>,
        watch::Receiver<Arc<DiscoveryStatus>>,
    ) {
        let (members, members_seen) = watch::channel(Arc::default());
        let (status, status_seen) = watch::channel(Arc::default());
        let now = Instant::now();
        let driver = Self {
            swarm,
            mdns,
            choice,
            own,
            hello: Hello::new(exchange_port),
            candidates: Candidates::new(own, now),
            statics: Statics::new(static_peers, now),
            peers: Peers::new(own),
            walks: Walks::new(rand::random(), now),
            dials: BTreeMap::new(),
            lookups: JoinSet::new(),
            strangers: HashMap::new(),
            members,
            status,
            is_news: false,
            times_changed: false,
            published: now,
        };
        driver.publish_status();
        (driver, members_seen, status_seen)
    }

    /// Runs until `stop` is sent or its sender is gone, then says goodbye.
    pub(crate) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        loop {
            self.walk();
            self.dial_what_is_due();
            self.publish_news();
            let next = self.deadline();
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle_event(event),
                heard = hear(&mut self.mdns) => self.handle_heard(heard),
                Some(Ok(looked)) = self.lookups.join_next(), if !self.lookups.is_empty() => {
                    self.handle_looked_up(looked);
                }
                () = sleep_until(next) => {}
                _ = housekeeping.tick() => self.keep_house(),
                _ = &mut stop => break,
            }
        }
        self.say_goodbye().await;
    }

    fn handle_event(&mut self, event: Event) {
        if let SwarmEvent::Behaviour(BehaviourEvent::Hello(event)) = event {
            self.handle_hello(event);
        } else if let SwarmEvent::Behaviour(BehaviourEvent::Kademlia(event)) = event {
            self.handle_kademlia(event);
        } else if let SwarmEvent::IncomingConnection { send_back_addr, .. } = event {
            if let Some(remote) = swarm::socket_address(&send_back_addr) {
                self.candidates.handle_incoming(Instant::now(), remote);
            }
        } else if let SwarmEvent::ConnectionEstablished {
            peer_id,
            connection_id,
            endpoint,
            ..
        } = event
        {
            let remote = swarm::socket_address(endpoint.get_remote_address());
            self.handle_established(peer_id, connection_id, remote);
        } else if let SwarmEvent::ConnectionClosed {
            peer_id,
            connection_id,
            cause,
            ..
        } = event
        {
            tracing::debug!(%peer_id, ?cause, "connection closed");
            self.handle_closed(&peer_id, connection_id);
        } else if let SwarmEvent::OutgoingConnectionError {
            connection_id,
            error,
            ..
        } = event
        {
            self.handle_dial_failed(connection_id, &error);
        } else if let SwarmEvent::ListenerError { error, .. } = event {
            tracing::debug!(%error, "discovery's listener");
        } else if let SwarmEvent::ListenerClosed {
            reason: Err(error), ..
        } = event
        {
            tracing::error!(%error, "discovery no longer listens");
        }
    }

    fn handle_established(
        &mut self,
        libp2p_peer: libp2p::PeerId,
        id: ConnectionId,
        remote: Option<SocketAddr>,
    ) {
        let now = Instant::now();
        let target = self.dials.remove(&id);
        let admitted = remote
            .zip(swarm::agent(&libp2p_peer))
            .filter(|(remote, peer)| {
                interfaces::is_usable(remote.ip())
                    && self.peers.has_room_for(peer)
                    && self.choice.permits(*remote).unwrap_or(false)
            });
        let Some((remote, peer)) = admitted else {
            tracing::debug!(%libp2p_peer, ?remote, "connection not admitted");
            self.swarm.close_connection(id);
            return self.retry(now, target);
        };
        if let Some(Target::Static(index)) = target {
            self.statics.handle_connected(index, peer);
        }
        self.candidates.handle_connected(now, peer, remote);
        let by_mdns = !self.candidates.addresses(&peer).is_empty();
        for replaced in self.peers.handle_connected(now, peer, id, remote, by_mdns) {
            self.swarm.close_connection(replaced);
        }
        self.tell_of(peer);
        self.greet(now, peer);
    }

    fn handle_closed(&mut self, libp2p_peer: &libp2p::PeerId, id: ConnectionId) {
        let Some(peer) = swarm::agent(libp2p_peer) else {
            return;
        };
        let now = Instant::now();
        if self.peers.handle_closed(&peer, id) {
            self.candidates.handle_lost(now, peer, rand::random());
            self.statics.handle_lost(now, peer, rand::random());
            self.handle_left(peer);
            self.is_news = true;
        } else {
            self.tell_of(peer);
        }
    }

    fn handle_dial_failed(&mut self, id: ConnectionId, error: &DialError) {
        let now = Instant::now();
        let target = self.dials.remove(&id);
        tracing::debug!(?target, %error, "dial failed");
        match (target, error) {
            (Some(Target::Static(index)), DialError::LocalPeerId { .. }) => {
                self.statics.handle_is_self(now, index);
            }
            (target, _) => self.retry(now, target),
        }
    }

    fn retry(&mut self, now: Instant, target: Option<Target>) {
        match target {
            Some(Target::Candidate(peer)) => {
                let ports = self.peers.ports(&peer);
                self.candidates
                    .handle_failed(now, peer, &ports, rand::random());
            }
            Some(Target::Static(index)) => self.statics.handle_failed(now, index, rand::random()),
            None => {}
        }
    }

    fn handle_hello(&mut self, event: HelloEvent) {
        let now = Instant::now();
        match event {
            HelloEvent::Message {
                peer,
                connection_id,
                message,
            } => {
                if let Some(agent) = swarm::agent(&peer)
                    && self.peers.has_connection(&agent, connection_id)
                {
                    self.handle_message(now, peer, agent, message);
                }
            }
            HelloEvent::OutboundFailure {
                peer,
                connection_id,
                request_id,
                error,
            } => self.handle_hello_failed(now, peer, connection_id, request_id, &error),
            HelloEvent::InboundFailure { .. } | HelloEvent::ResponseSent { .. } => {}
        }
    }

    fn handle_message(
        &mut self,
        now: Instant,
        peer: libp2p::PeerId,
        agent: PeerId,
        message: Message<Hello, Hello>,
    ) {
        let (hello, request) = match message {
            Message::Request {
                request, channel, ..
            } => {
                if !self.peers.handle_request(now, &agent) {
                    tracing::info!(peer = %agent, "peer greets without end");
                    return self.shun(now, peer);
                }
                let answer = self.hello.clone();
                let hello = &mut self.swarm.behaviour_mut().hello;
                // Fails when the connection is gone, which is told separately.
                let _ = hello.send_response(channel, answer);
                (request, None)
            }
            Message::Response {
                request_id,
                response,
            } => (response, Some(request_id)),
        };
        match hello.check() {
            Ok(greeting) => {
                self.candidates.handle_greeted(now, agent);
                self.statics.handle_greeted(agent);
                let joins = !self.peers.is_member(&agent);
                let clock = SystemTime::now();
                self.is_news |= self
                    .peers
                    .handle_greeting(now, clock, &agent, greeting, request);
                self.times_changed = true;
                if joins {
                    self.handle_joined(now, agent);
                }
            }
            Err(error) => {
                tracing::info!(peer = %agent, %error, "peer is no member");
                self.shun(now, peer);
            }
        }
    }

    fn handle_hello_failed(
        &mut self,
        now: Instant,
        peer: libp2p::PeerId,
        id: ConnectionId,
        request: request_response::OutboundRequestId,
        error: &OutboundFailure,
    ) {
        tracing::debug!(%peer, %error, "greeting failed");
        if matches!(error, OutboundFailure::UnsupportedProtocols) {
            return self.shun(now, peer);
        }
        let Some(agent) = swarm::agent(&peer) else {
            return;
        };
        let closed = matches!(error, OutboundFailure::ConnectionClosed);
        match self.peers.handle_failed(now, &agent, id, request, closed) {
            // Of two connections made at once one is closed, often with the first greetings on it.
            AfterFailure::Ignore if self.peers.is_due(now, &agent) => self.greet(now, agent),
            AfterFailure::Ignore => {}
            AfterFailure::Close(id) => drop(self.swarm.close_connection(id)),
            // An error means that it is disconnected already.
            AfterFailure::Disconnect => drop(self.swarm.disconnect_peer_id(peer)),
        }
    }

    /// Closes the connections of a peer that is no agent, and refuses it for a while.
    fn shun(&mut self, now: Instant, peer: libp2p::PeerId) {
        if self.strangers.len() < MAX_STRANGERS {
            self.strangers.insert(peer, now + STRANGER_FOR);
            self.swarm.behaviour_mut().strangers.block_peer(peer);
        }
        // An error means that it is disconnected already.
        let _ = self.swarm.disconnect_peer_id(peer);
    }

    fn handle_heard(&mut self, heard: Vec<Heard>) {
        let now = Instant::now();
        for heard in heard {
            match heard {
                Heard::Here {
                    peer,
                    source,
                    addresses,
                    valid_for,
                } => {
                    let announced = Announced {
                        peer,
                        source,
                        addresses,
                        expires: now + valid_for,
                    };
                    let ports = self.peers.ports(&peer);
                    self.candidates.handle_here(now, announced, &ports);
                    if self.peers.handle_announced(&peer) {
                        self.is_news = true;
                        self.tell_of(peer);
                    }
                }
                Heard::Gone { peer, source } => self.candidates.handle_gone(now, peer, source),
                Heard::LinkUp => self.candidates.handle_link_up(now),
            }
        }
    }

    /// When there is something to do without an event.
    fn deadline(&self) -> Option<Instant> {
        let publish = self.is_news.then(|| self.published + PUBLISH_GAP);
        let (candidates, statics) = self.room();
        let candidates = self.candidates.deadline().filter(|_| candidates > 0);
        let statics = self.statics.deadline().filter(|_| statics > 0);
        let deadlines = [publish, candidates, statics, self.walk_deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// How many announced and how many static peers may be dialled now.
    fn room(&self) -> (usize, usize) {
        let is_static = |target: &&Target| matches!(target, Target::Static(_));
        let of_statics = self.dials.values().filter(is_static).count();
        let of_candidates = self.dials.len() - of_statics;
        (
            MAX_CANDIDATE_DIALS.saturating_sub(of_candidates),
            MAX_STATIC_DIALS.saturating_sub(of_statics + self.lookups.len()),
        )
    }

    fn dial_what_is_due(&mut self) {
        let now = Instant::now();
        let (candidates, statics) = self.room();
        for (index, peer, attempt) in self.statics.take_due(now, statics) {
            self.lookups.spawn(look_up(index, peer, attempt));
        }
        for (peer, addresses) in self.candidates.take_due(now, candidates) {
            self.dial_candidate(now, peer, &addresses);
        }
    }

    fn dial_candidate(&mut self, now: Instant, peer: PeerId, addresses: &[SocketAddr]) {
        let permitted = addresses
            .iter()
            .filter(|a| self.choice.permits(**a).unwrap_or(false));
        let addresses = permitted
            .map(|address| swarm::multiaddr(*address))
            .collect();
        let Some(libp2p_peer) = swarm::libp2p_peer(peer) else {
            return;
        };
        let dial = DialOpts::peer_id(libp2p_peer).condition(PeerCondition::Always);
        self.dial(
            now,
            Target::Candidate(peer),
            dial.addresses(addresses).build(),
        );
    }

    fn handle_looked_up(&mut self, (index, looked): Looked) {
        let now = Instant::now();
        let peer = self
            .statics
            .peer(index)
            .map(ToString::to_string)
            .unwrap_or_default();
        match looked.and_then(|address| Ok((address, self.choice.permits(address)?))) {
            Ok((address, true)) => {
                let dial = DialOpts::unknown_peer_id()
                    .address(swarm::multiaddr(address))
                    .build();
                self.dial(now, Target::Static(index), dial);
            }
            Ok((address, false)) => {
                tracing::warn!(peer, %address, "static peer lies behind an interface not chosen");
                self.statics.handle_failed(now, index, rand::random());
            }
            Err(error) => {
                tracing::warn!(peer, %error, "static peer not found");
                self.statics.handle_failed(now, index, rand::random());
            }
        }
    }

    fn dial(&mut self, now: Instant, target: Target, dial: DialOpts) {
        let id = dial.connection_id();
        match self.swarm.dial(dial) {
            Ok(()) => drop(self.dials.insert(id, target)),
            Err(error) => {
                tracing::debug!(?target, %error, "not dialled");
                self.retry(now, Some(target));
            }
        }
    }

    fn keep_house(&mut self) {
        let now = Instant::now();
        for peer in self.peers.due_hellos(now) {
            self.greet(now, peer);
        }
        self.candidates.forget_expired(now);
        let forgotten: Vec<_> = self
            .strangers
            .extract_if(|_, until| *until <= now)
            .collect();
        for (peer, _) in forgotten {
            self.swarm.behaviour_mut().strangers.unblock_peer(peer);
        }
        if self.times_changed && now.duration_since(self.published) >= PUBLISH_TIMES {
            self.publish();
        }
        self.publish_status();
    }

    fn greet(&mut self, now: Instant, peer: PeerId) {
        let Some(libp2p_peer) = swarm::libp2p_peer(peer) else {
            return;
        };
        let hello = &mut self.swarm.behaviour_mut().hello;
        let request = hello.send_request(&libp2p_peer, self.hello.clone());
        self.peers.handle_asked(now, &peer, request);
    }

    fn publish_news(&mut self) {
        if self.is_news && self.published.elapsed() >= PUBLISH_GAP {
            self.publish();
        }
    }

    fn publish(&mut self) {
        let found_by = |peer: &PeerId, by_mdns| match (self.statics.has(*peer), by_mdns) {
            (true, _) => FoundBy::Static,
            (false, true) => FoundBy::Mdns,
            (false, false) if self.candidates.is_told_of(peer) => FoundBy::Kademlia,
            (false, false) => FoundBy::Inbound,
        };
        let announced = |peer: &PeerId| self.candidates.addresses(peer);
        let membership = self.peers.membership(found_by, announced);
        self.members.send_replace(Arc::new(membership));
        self.is_news = false;
        self.times_changed = false;
        self.published = Instant::now();
    }

    fn publish_status(&self) {
        let status = self
            .mdns
            .as_ref()
            .map_or_else(DiscoveryStatus::default, |mdns| DiscoveryStatus {
                mdns_interfaces: mdns.active(),
                missing_interfaces: mdns.missing().to_vec(),
                mdns_problems: mdns.problems(),
            });
        self.status.send_if_modified(|current| {
            let changed = **current != status;
            if changed {
                *current = Arc::new(status);
            }
            changed
        });
    }

    /// Closes every connection, which is what peers notice, and waits until that is sent.
    async fn say_goodbye(mut self) {
        if let Some(mdns) = &self.mdns {
            mdns.say_goodbye();
        }
        let connected: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            // An error means that it is disconnected already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let all_closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        if tokio::time::timeout(GOODBYE, all_closed).await.is_err() {
            tracing::debug!(peer = %self.own, "not every goodbye was sent");
        }
    }
}

async fn hear(mdns: &mut Option<Mdns>) -> Vec<Heard> {
    match mdns {
        Some(mdns) => mdns.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// One address an attempt, in turn, so that a name with a dead first address is still reached.
async fn look_up(index: StaticIndex, peer: StaticPeer, attempt: u32) -> Looked {
    (index, address_of(&peer, attempt).await)
}

async fn address_of(peer: &StaticPeer, attempt: u32) -> io::Result<SocketAddr> {
    let found: Vec<_> = tokio::net::lookup_host((peer.host(), peer.port()))
        .await?
        .collect();
    let turn = usize::try_from(attempt).unwrap_or(0);
    let nothing = || io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    found
        .get(turn % found.len().max(1))
        .copied()
        .ok_or_else(nothing)
}
