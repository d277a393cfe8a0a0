//! Whom multicast named, and when to dial each. Pure: time and randomness come in.
//!
//! Anybody on the link can announce anything, so this table is bounded, and a peer in it is dialled
//! with backoff until its announcement expires, whatever is announced of it meanwhile. Those that
//! failed least, from sources that failed least, come first, so that invented peers delay each other.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use branchline_core::PeerId;
use branchline_core::backoff::Backoff;

use crate::allowance::{Allowance, Rate};

/// Twice as many as there can be members. When full, a new peer takes the place of one from the
/// source with the most.
pub(crate) const MAX_CANDIDATES: usize = 2048;
/// Peers of one source address. A machine has one agent; a laboratory has some on one address.
const MAX_OF_SOURCE: usize = 32;
/// Dials under way to peers of one source address: addresses that swallow packets occupy a dial for
/// seconds, and may not occupy all.
const MAX_DIALS_OF_SOURCE: usize = 8;
/// All dials. The burst is for a branch of a thousand that is switched on at once, of which each
/// agent dials half and some twice; the rate bounds what invented peers cost, a few per cent of a
/// core at two milliseconds a handshake.
const DIALS: Rate = Rate {
    interval: Duration::from_millis(31),
    burst: 1024,
};
/// Places taken from other peers in the full table: finding one costs a look at each.
const REPLACEMENTS: Rate = Rate {
    interval: Duration::from_millis(8),
    burst: 256,
};
/// Waits between dials of a peer that does not answer; an announcement lasts 150 s, after which
/// there is nothing left to dial. The first is short: a connection that was lost may be that of an
/// agent that has just restarted.
const REDIAL: Backoff = Backoff {
    min: Duration::from_millis(100),
    max: Duration::from_secs(15),
};
/// Of two agents that hear each other the one with the smaller key dials at once and the other this
/// much later, if it still has to: one connection instead of two. Long enough for the first packet
/// of the other's dial to arrive from a busy machine, after which there is [`YIELD`].
const COURTESY: Duration = Duration::from_millis(100);
/// While a connection from the peer's address is being made it is not dialled for this long, once
/// for each dial. Handshakes take milliseconds, and more when a branch starts together.
const YIELD: Duration = Duration::from_millis(500);
/// A connection that lasted this long with greetings ends the backoff. Shorter ones do not, or a
/// peer that greets and goes would be dialled without pause.
const STEADY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Candidates {
    own: PeerId,
    known: BTreeMap<PeerId, Candidate>,
    /// Nothing is due before; `None` when nothing will be.
    next: Option<Instant>,
    dials: Allowance,
    replacements: Allowance,
}

/// What one announcement says, as far as it can be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announced {
    pub(crate) peer: PeerId,
    /// Who sent it.
    pub(crate) source: IpAddr,
    /// All with the same port.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) expires: Instant,
}

#[derive(Debug)]
struct Candidate {
    source: IpAddr,
    /// The newest first.
    addresses: Vec<SocketAddr>,
    expires: Instant,
    tried: Option<Instant>,
    /// Dials and short connections in a row that led to nothing.
    attempt: u32,
    /// Dials in a row that were brought forward in vain by an announcement.
    hurried: u32,
    has_yielded: bool,
    dial: Dial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dial {
    At(Instant),
    UnderWay,
    Connected { since: Instant },
}

/// What a source address has cost so far.
#[derive(Debug, Default)]
struct Source {
    under_way: usize,
    failed: u64,
}

impl Source {
    fn cost(&self) -> u64 {
        let under_way = u64::try_from(self.under_way).unwrap_or(u64::MAX);
        self.failed.saturating_add(under_way)
    }
}

impl Candidates {
    pub(crate) fn new(own: PeerId, now: Instant) -> Self {
        Self {
            own,
            known: BTreeMap::new(),
            next: None,
            dials: Allowance::new(DIALS, now),
            replacements: Allowance::new(REPLACEMENTS, now),
        }
    }

    /// A peer was announced. One that is connected, but from other ports than the announced one, has
    /// restarted and is dialled anew; so is one that said goodbye or moved while it was waited for.
    pub(crate) fn handle_here(
        &mut self,
        now: Instant,
        announced: Announced,
        connected_ports: &[u16],
    ) {
        let courteous = now + self.courtesy(&announced.peer);
        let is_connected_there = is_at(&announced.addresses, connected_ports);
        let Some(known) = self.known.get_mut(&announced.peer) else {
            let dial = if is_connected_there {
                Dial::Connected { since: now }
            } else {
                Dial::At(courteous)
            };
            return self.add(now, announced, dial);
        };
        let has_port = |port| known.addresses.iter().any(|old| old.port() == port);
        let moved = !announced.addresses.iter().any(|a| has_port(a.port()));
        let is_back = known.expires <= now;
        // An address family at a time is announced, so a port that stays keeps the other addresses.
        let kept = if moved {
            Vec::new()
        } else {
            known.addresses.clone()
        };
        known.addresses = merged(announced.addresses, kept);
        known.source = announced.source;
        known.expires = known.expires.max(announced.expires);
        if (moved || is_back) && !is_connected_there {
            let at = known.hurry(courteous);
            bring_forward(&mut self.next, at);
        }
    }

    /// `peer`, or somebody in its name, said goodbye: it is not dialled again until it is announced.
    /// Only who announced it last can say so. The waits between dials go on, or goodbyes would be a
    /// way to be dialled without pause.
    pub(crate) fn handle_gone(&mut self, now: Instant, peer: PeerId, source: IpAddr) {
        if let Some(known) = self.known.get_mut(&peer).filter(|k| k.source == source) {
            known.expires = now;
            known.addresses.clear();
        }
    }

    /// A connection from `remote` is being made.
    pub(crate) fn handle_incoming(&mut self, now: Instant, remote: SocketAddr) {
        let from_there = |known: &&mut Candidate| known.addresses.contains(&remote);
        for known in self.known.values_mut().filter(from_there) {
            if let Dial::At(at) = &mut known.dial
                && !known.has_yielded
            {
                *at = (*at).max(now + YIELD);
                known.has_yielded = true;
            }
        }
    }

    pub(crate) fn handle_connected(&mut self, now: Instant, peer: PeerId, remote: SocketAddr) {
        if let Some(known) = self.known.get_mut(&peer) {
            if known.addresses.contains(&remote) {
                known.hurried = 0;
            }
            known.dial = Dial::Connected { since: now };
            // A source may have room for another dial.
            bring_forward(&mut self.next, now);
        }
    }

    /// It answered the greeting: after a while of that, the next trouble starts with short waits.
    pub(crate) fn handle_greeted(&mut self, now: Instant, peer: PeerId) {
        if let Some(known) = self.known.get_mut(&peer)
            && matches!(known.dial, Dial::Connected { since } if now >= since + STEADY)
        {
            known.attempt = 0;
        }
    }

    /// The dial failed, or its connection was not admitted. That is no failure when the peer is
    /// connected where it was to be dialled.
    pub(crate) fn handle_failed(
        &mut self,
        now: Instant,
        peer: PeerId,
        connected_ports: &[u16],
        random: u64,
    ) {
        match self.known.get_mut(&peer) {
            Some(known) if is_at(&known.addresses, connected_ports) => {
                known.dial = Dial::Connected { since: now };
                bring_forward(&mut self.next, now);
            }
            Some(_) => self.handle_lost(now, peer, random),
            None => {}
        }
    }

    /// The last connection to it is gone.
    pub(crate) fn handle_lost(&mut self, now: Instant, peer: PeerId, random: u64) {
        let courtesy = self.courtesy(&peer);
        if let Some(known) = self.known.get_mut(&peer) {
            let at = now + courtesy + REDIAL.delay(known.attempt, random);
            known.attempt = known.attempt.saturating_add(1);
            known.dial_by(at);
            bring_forward(&mut self.next, now);
        }
    }

    /// This agent's own network came back, so that what failed before may work now.
    pub(crate) fn handle_link_up(&mut self, now: Instant) {
        for known in self.known.values_mut() {
            if let Dial::At(_) = known.dial {
                known.attempt = 0;
                known.dial = Dial::At(now);
            }
        }
        bring_forward(&mut self.next, now);
    }

    /// Up to `limit` peers to dial now; they count as under way until told otherwise.
    pub(crate) fn take_due(
        &mut self,
        now: Instant,
        limit: usize,
    ) -> Vec<(PeerId, Vec<SocketAddr>)> {
        let mut taken = Vec::new();
        if limit == 0 || self.deadline().is_none_or(|deadline| deadline > now) {
            return taken;
        }
        let mut sources = self.sources();
        for peer in self.due(now, &sources) {
            if taken.len() == limit {
                break;
            }
            let Some(known) = self.known.get_mut(&peer) else {
                continue;
            };
            let source = sources.entry(known.source).or_default();
            if source.under_way >= MAX_DIALS_OF_SOURCE {
                continue;
            }
            if !self.dials.take(now) {
                break;
            }
            source.under_way += 1;
            known.dial = Dial::UnderWay;
            known.tried = Some(now);
            known.has_yielded = false;
            taken.push((peer, known.addresses.clone()));
        }
        self.next = self.next_due(now, &sources);
        taken
    }

    /// When the next dial is due. Those that wait for others of their source do not count.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.next.map(|next| next.max(self.dials.ready_at()))
    }

    /// Forgets peers whose announcement expired. To be called every second or so.
    pub(crate) fn forget_expired(&mut self, now: Instant) {
        // One that is remembered for its waits is not dialled.
        let waits = |known: &Candidate| known.tried.is_some_and(|at| at + REDIAL.max > now);
        self.known
            .retain(|_, known| known.expires > now || known.dial == Dial::UnderWay || waits(known));
    }

    /// What multicast says of `peer`'s addresses; empty when it says nothing.
    pub(crate) fn addresses(&self, peer: &PeerId) -> &[SocketAddr] {
        self.known.get(peer).map_or(&[], |known| &known.addresses)
    }

    fn courtesy(&self, peer: &PeerId) -> Duration {
        if self.own < *peer {
            Duration::ZERO
        } else {
            COURTESY
        }
    }

    fn add(&mut self, now: Instant, announced: Announced, dial: Dial) {
        let of_source = self.known.values().filter(|k| k.source == announced.source);
        let of_source = of_source.count();
        if of_source >= MAX_OF_SOURCE {
            return;
        }
        if self.known.len() >= MAX_CANDIDATES && !self.make_room(now, of_source) {
            return;
        }
        if let Dial::At(at) = dial {
            bring_forward(&mut self.next, at);
        }
        let candidate = Candidate {
            source: announced.source,
            addresses: merged(announced.addresses, Vec::new()),
            expires: announced.expires,
            tried: None,
            attempt: 0,
            hurried: 0,
            has_yielded: false,
            dial,
        };
        self.known.insert(announced.peer, candidate);
    }

    /// Removes one peer for another of a source that has `of_source`: the one that failed most, of
    /// the source with the most that are not connected. False when none has more or failed.
    fn make_room(&mut self, now: Instant, of_source: usize) -> bool {
        if !self.replacements.take(now) {
            return false;
        }
        let waiting = || {
            let waiting = self.known.iter();
            waiting.filter(|(_, known)| matches!(known.dial, Dial::At(_)))
        };
        let mut waiting_of: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (_, known) in waiting() {
            *waiting_of.entry(known.source).or_default() += 1;
        }
        let rank = |known: &Candidate| {
            let waiting = waiting_of.get(&known.source).copied();
            (waiting.unwrap_or(0), known.attempt)
        };
        let worst = waiting().max_by_key(|(_, known)| rank(known));
        let worst = worst.filter(|(_, known)| rank(known) > (of_source.max(1), 0));
        let worst = worst.map(|(peer, _)| *peer);
        worst.is_some_and(|peer| self.known.remove(&peer).is_some())
    }

    fn sources(&self) -> BTreeMap<IpAddr, Source> {
        let mut sources: BTreeMap<IpAddr, Source> = BTreeMap::new();
        for known in self.known.values() {
            let source = sources.entry(known.source).or_default();
            source.under_way += usize::from(known.dial == Dial::UnderWay);
            source.failed += u64::from(known.attempt);
        }
        sources
    }

    /// Those to dial now, in the order in which they should be: sources that failed least first, one
    /// peer of each in turn.
    fn due(&self, now: Instant, sources: &BTreeMap<IpAddr, Source>) -> Vec<PeerId> {
        let due = self.known.iter().filter_map(|(peer, known)| {
            let at = known.due_at(now).filter(|at| *at <= now)?;
            Some((known.attempt, at, known.source, *peer))
        });
        let mut due: Vec<_> = due.collect();
        due.sort_unstable();
        let mut turns: BTreeMap<IpAddr, u64> = BTreeMap::new();
        let mut ranked: Vec<_> = due
            .into_iter()
            .map(|(attempt, at, source, peer)| {
                let cost = sources.get(&source).map_or(0, Source::cost);
                let turn = turns.entry(source).or_insert(cost);
                *turn += 1;
                (*turn, attempt, at, peer)
            })
            .collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, _, _, peer)| peer).collect()
    }

    fn next_due(&self, now: Instant, sources: &BTreeMap<IpAddr, Source>) -> Option<Instant> {
        let has_room = |known: &&Candidate| {
            let source = sources.get(&known.source);
            source.is_none_or(|source| source.under_way < MAX_DIALS_OF_SOURCE)
        };
        let waiting = self.known.values().filter(has_room);
        waiting.filter_map(|known| known.due_at(now)).min()
    }
}

impl Candidate {
    /// `None` when it is not to be dialled.
    fn due_at(&self, now: Instant) -> Option<Instant> {
        match self.dial {
            Dial::At(at) => (self.expires > now).then_some(at),
            Dial::UnderWay | Dial::Connected { .. } => None,
        }
    }

    /// It is to be dialled at `at`, or when it is anyhow if that is sooner.
    fn dial_by(&mut self, at: Instant) {
        self.dial = match self.dial {
            Dial::At(sooner) => Dial::At(sooner.min(at)),
            Dial::UnderWay | Dial::Connected { .. } => Dial::At(at),
        };
    }

    /// There is reason to dial it before its wait is over. The reason may be invented, so it counts
    /// less and less as long as nobody is found there. No randomness: repeated often, it would find
    /// the shortest wait. Returns when it is dialled.
    fn hurry(&mut self, courteous: Instant) -> Instant {
        let wait = REDIAL.ceiling(self.hurried);
        let at = self
            .tried
            .map_or(courteous, |tried| courteous.max(tried + wait));
        if matches!(self.dial, Dial::At(sooner) if sooner <= at) {
            return at;
        }
        self.hurried = self.hurried.saturating_add(1);
        self.dial = Dial::At(at);
        at
    }
}

fn bring_forward(next: &mut Option<Instant>, at: Instant) {
    *next = Some(next.map_or(at, |next| next.min(at)));
}

fn is_at(addresses: &[SocketAddr], ports: &[u16]) -> bool {
    addresses
        .iter()
        .any(|address| ports.contains(&address.port()))
}

/// The newest addresses first, for the bound to drop the oldest.
fn merged(mut newest: Vec<SocketAddr>, older: Vec<SocketAddr>) -> Vec<SocketAddr> {
    for address in older {
        if !newest.contains(&address) {
            newest.push(address);
        }
    }
    newest.truncate(crate::peers::MAX_ADDRESSES);
    newest
}

#[cfg(test)]
mod tests;
