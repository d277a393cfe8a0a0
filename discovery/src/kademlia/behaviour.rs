//! libp2p's Kademlia, kept from doing anything by itself.
//!
//! Its protocol, routing table and answers are used. Its own look-ups are not: they dial whatever
//! they are told, and find the twenty peers closest to a key, where this agent wants to know
//! everybody. So questions go to chosen members, and what comes back is handed on, not acted on.
//! Records and providers are refused.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::kad::{self, KadPeer, QueryId, store::MemoryStore};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, StreamProtocol,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use crate::allowance::{Allowance, Rate};

/// Half of the members fall into the first bucket, give or take a few; with room for five eighths
/// the table holds them all.
const BUCKET: NonZeroUsize =
    NonZeroUsize::new(crate::peers::MAX_MEMBERS / 8 * 5).expect("members are many");
/// An answer names twenty peers with two addresses each, some 4 kB.
const MAX_PACKET_BYTES: usize = 8 * 1024;
/// An answer comes at once, or the member is not worth waiting for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Questions of one member that are answered, each at 0.3 ms at most. A member asks for everybody
/// at once, and then rarely.
const QUESTIONS: Rate = Rate {
    interval: Duration::from_secs(1),
    burst: 320,
};

type Inner = kad::Behaviour<MemoryStore>;
// libp2p exports these enums under no other name.
type HandlerIn = THandlerInEvent<Inner>;
type HandlerEvent = THandlerOutEvent<Inner>;
type Output = ToSwarm<Event, HandlerIn>;

/// What other members say and do by Kademlia.
#[derive(Debug)]
pub(crate) enum Event {
    /// `teller` answered.
    Told { teller: PeerId, named: Vec<KadPeer> },
    /// A question got no answer, or nonsense.
    Unanswered { asked: PeerId },
    /// It asks without end.
    Floods { peer: PeerId },
}

pub(crate) struct Kademlia {
    inner: Inner,
    /// Every question goes by this name: who answers tells them apart.
    question: QueryId,
    members: BTreeMap<PeerId, Member>,
    outputs: VecDeque<Output>,
}

struct Member {
    addresses: Vec<Multiaddr>,
    questions: Allowance,
}

impl Kademlia {
    pub(crate) fn new(own: PeerId) -> Self {
        let mut config = kad::Config::new(StreamProtocol::new(super::PROTOCOL));
        config
            .set_kbucket_inserts(kad::BucketInserts::Manual)
            .set_kbucket_size(BUCKET)
            .set_max_packet_size(MAX_PACKET_BYTES)
            .set_substreams_timeout(ANSWER_TIMEOUT)
            .set_periodic_bootstrap_interval(None)
            .set_replication_interval(None)
            .set_publication_interval(None)
            .set_provider_publication_interval(None);
        let mut inner = Inner::with_config(own, MemoryStore::new(own), config);
        inner.set_mode(Some(kad::Mode::Server));
        // Only libp2p can make a query's name; of an empty table this one asks nobody.
        let question = inner.get_closest_peers(own);
        Self {
            inner,
            question,
            members: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// A member others are told of, at these addresses, and whose questions are answered.
    pub(crate) fn set_member(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let known = self.members.get(&peer);
        if known.is_some_and(|known| known.addresses == addresses) {
            return;
        }
        let questions = known.map_or_else(
            || Allowance::new(QUESTIONS, Instant::now()),
            |known| known.questions,
        );
        self.inner.remove_peer(&peer);
        for address in &addresses {
            self.inner.add_address(&peer, address.clone());
        }
        let member = Member {
            addresses,
            questions,
        };
        self.members.insert(peer, member);
    }

    /// It is no member any more: nobody is told of it.
    pub(crate) fn remove_member(&mut self, peer: &PeerId) {
        self.members.remove(peer);
        self.inner.remove_peer(peer);
    }

    /// Asks a member whom it knows closest to `key`. [`Event::Told`] or [`Event::Unanswered`]
    /// follows, unless its connection ends.
    pub(crate) fn ask(&mut self, member: PeerId, key: Vec<u8>) {
        let query_id = self.question;
        self.outputs.push_back(ToSwarm::NotifyHandler {
            peer_id: member,
            handler: NotifyHandler::Any,
            event: HandlerIn::FindNodeReq { key, query_id },
        });
    }

    /// Whether `peer` is a member and has not asked too much.
    fn may_ask(&mut self, peer: PeerId) -> bool {
        let Some(member) = self.members.get_mut(&peer) else {
            return false;
        };
        let may_ask = member.questions.take(Instant::now());
        if !may_ask {
            self.tell(Event::Floods { peer });
        }
        may_ask
    }

    fn tell(&mut self, event: Event) {
        self.outputs.push_back(ToSwarm::GenerateEvent(event));
    }

    fn notify(&mut self, peer_id: PeerId, id: ConnectionId, event: HandlerIn) {
        self.outputs.push_back(ToSwarm::NotifyHandler {
            peer_id,
            handler: NotifyHandler::One(id),
            event,
        });
    }
}

impl NetworkBehaviour for Kademlia {
    type ConnectionHandler = THandler<Inner>;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner
            .handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner
            .handle_established_outbound_connection(id, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        // Other events would make it look around, or change addresses that members are known by.
        if matches!(
            event,
            FromSwarm::ConnectionEstablished(_) | FromSwarm::ConnectionClosed(_)
        ) {
            self.inner.on_swarm_event(event);
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: HandlerEvent) {
        match event {
            HandlerEvent::FindNodeReq { request_id, .. } => {
                if self.may_ask(peer) {
                    self.inner.on_connection_handler_event(peer, id, event);
                } else {
                    self.notify(peer, id, HandlerIn::Reset(request_id));
                }
            }
            HandlerEvent::FindNodeRes { closer_peers, .. } => self.tell(Event::Told {
                teller: peer,
                named: closer_peers,
            }),
            HandlerEvent::QueryError { error, .. } => {
                tracing::debug!(%peer, %error, "a Kademlia question was not answered");
                self.tell(Event::Unanswered { asked: peer });
            }
            // No agent keeps anything for another.
            HandlerEvent::GetProvidersReq { request_id, .. }
            | HandlerEvent::GetRecord { request_id, .. }
            | HandlerEvent::PutRecord { request_id, .. } => {
                self.may_ask(peer);
                self.notify(peer, id, HandlerIn::Reset(request_id));
            }
            HandlerEvent::AddProvider { .. } => drop(self.may_ask(peer)),
            // Whether a peer is in the routing table does not depend on libp2p.
            HandlerEvent::ProtocolConfirmed { .. }
            | HandlerEvent::ProtocolNotSupported { .. }
            | HandlerEvent::GetProvidersRes { .. }
            | HandlerEvent::GetRecordRes { .. }
            | HandlerEvent::PutRecordRes { .. } => {}
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Poll::Ready(output);
        }
        while let Poll::Ready(output) = self.inner.poll(context) {
            let ToSwarm::NotifyHandler {
                peer_id,
                handler,
                event,
            } = output
            else {
                // Dials, and events about its own look-ups.
                continue;
            };
            if !matches!(event, HandlerIn::FindNodeReq { .. }) {
                return Poll::Ready(ToSwarm::NotifyHandler {
                    peer_id,
                    handler,
                    event,
                });
            }
            // With few peers libp2p looks around whenever one is added, and cannot be told not to.
            for mut query in self.inner.iter_queries_mut() {
                query.finish();
            }
        }
        Poll::Pending
    }
}
