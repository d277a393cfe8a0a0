//! The driver's part in Kademlia: who is told of, who is asked, and what becomes of the answers.

use std::net::SocketAddr;
use std::time::Instant;

use branchline_core::PeerId;
use libp2p::kad::KadPeer;

use super::Driver;
use crate::interfaces;
use crate::kademlia::{self, Acquaintance, Kademlia, MAX_ADDRESSES, NAMED_AT_ONCE, Question};
use crate::swarm;

impl Driver {
    pub(super) fn handle_kademlia(&mut self, event: kademlia::Event) {
        match event {
            kademlia::Event::Told { teller, named } => {
                if let Some(teller) = swarm::agent(&teller) {
                    self.handle_told(teller, &named);
                }
            }
            kademlia::Event::Unanswered { asked } => {
                if let Some(asked) = swarm::agent(&asked) {
                    self.walks.handle_unanswered(&asked);
                }
            }
            kademlia::Event::Floods { peer } => {
                tracing::info!(%peer, "peer asks without end who is here");
                self.shun(Instant::now(), peer);
            }
        }
    }

    fn handle_told(&mut self, teller: PeerId, named: &[KadPeer]) {
        // More than Kademlia's k come from no agent.
        let named = named.get(..NAMED_AT_ONCE).unwrap_or(named);
        let positions: Vec<_> = named
            .iter()
            .map(|peer| kademlia::position_of(&peer.node_id.to_bytes()))
            .collect();
        if !self.walks.handle_told(&teller, &positions) {
            return;
        }
        let hints = named.iter().filter_map(kademlia::hint);
        let news = hints.filter(|(peer, _)| {
            let is_wanted = *peer != self.own && self.peers.has_room_for(peer);
            is_wanted && !self.peers.is_connected(peer) && !self.is_stranger(*peer)
        });
        let news: Vec<_> = news.collect();
        tracing::debug!(%teller, named = named.len(), news = news.len(), "a member told who is here");
        self.candidates.handle_told(Instant::now(), teller, news);
    }

    fn is_stranger(&self, peer: PeerId) -> bool {
        let peer = swarm::libp2p_peer(peer);
        peer.is_none_or(|peer| self.strangers.contains_key(&peer))
    }

    /// Asks members whom they know, when that is due.
    pub(super) fn walk(&mut self) {
        if self.kademlia().is_none() {
            return;
        }
        let now = Instant::now();
        if self.walks.deadline() <= now {
            let members = self.peers.members();
            let members = members.map(|(peer, by_mdns)| (peer, self.acquaintance(peer, by_mdns)));
            let members = members.collect();
            self.walks.choose(now, &members);
        }
        let candidates = &self.candidates;
        let may_name_more = |member: &PeerId| candidates.may_tell_more(now, member);
        for Question { member, key } in self.walks.take_questions(now, may_name_more) {
            if let Some(member) = swarm::libp2p_peer(member)
                && let Some(kademlia) = self.kademlia()
            {
                kademlia.ask(member, key);
            }
        }
    }

    fn acquaintance(&self, peer: PeerId, by_mdns: bool) -> Acquaintance {
        match (by_mdns, self.statics.has(peer)) {
            (true, _) => Acquaintance::Neighbour,
            (false, true) => Acquaintance::Configured,
            (false, false) => Acquaintance::Distant,
        }
    }

    /// When somebody is to be asked, if ever.
    pub(super) fn walk_deadline(&self) -> Option<Instant> {
        let kademlia = &self.swarm.behaviour().kademlia;
        kademlia.is_enabled().then(|| self.walks.deadline())
    }

    pub(super) fn handle_joined(&mut self, now: Instant, peer: PeerId) {
        self.tell_of(peer);
        self.walks.handle_joined(now, peer);
    }

    pub(super) fn handle_left(&mut self, peer: PeerId) {
        self.walks.handle_left(&peer);
        if let Some(libp2p_peer) = swarm::libp2p_peer(peer)
            && let Some(kademlia) = self.kademlia()
        {
            kademlia.remove_member(&libp2p_peer);
        }
    }

    /// Others are told of a member where it is now. Nobody is told of who is none.
    pub(super) fn tell_of(&mut self, peer: PeerId) {
        if !self.peers.is_member(&peer) {
            return;
        }
        let addresses = self.addresses_to_tell(&peer);
        let addresses = addresses.into_iter().map(swarm::multiaddr).collect();
        if let Some(libp2p_peer) = swarm::libp2p_peer(peer)
            && let Some(kademlia) = self.kademlia()
        {
            kademlia.set_member(libp2p_peer, addresses);
        }
    }

    /// One address of each family: where it is connected from, which is where it listens, for an
    /// agent has one socket of each family; for the other family what multicast says, with the same
    /// port.
    fn addresses_to_tell(&self, peer: &PeerId) -> Vec<SocketAddr> {
        let remotes = self.peers.remotes(peer);
        let port = remotes.first().map(SocketAddr::port);
        let announced = self.candidates.addresses(peer).iter().copied();
        let announced = announced.filter(|address| Some(address.port()) == port);
        let mut told: Vec<SocketAddr> = Vec::new();
        for address in remotes.into_iter().chain(announced) {
            let has_family = told
                .iter()
                .any(|other| other.is_ipv4() == address.is_ipv4());
            if interfaces::is_routable(address) && !has_family && told.len() < MAX_ADDRESSES {
                told.push(address);
            }
        }
        told
    }

    fn kademlia(&mut self) -> Option<&mut Kademlia> {
        self.swarm.behaviour_mut().kademlia.as_mut()
    }
}
