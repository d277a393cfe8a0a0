//! Whom multicast and members named, and when to dial each. Pure: time and randomness come in.
//!
//! Anybody on the link can announce anything, and any member can tell anything, so this table is
//! bounded, and a peer in it is dialled with backoff until its announcement expires, whatever is
//! announced of it meanwhile; one that only members told of, a few times. Those that failed least,
//! from sources that failed least, come first, so that invented peers delay each other.
//!
//! What members tell adds to what multicast says and takes nothing of it away.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use branchline_core::PeerId;
use branchline_core::backoff::Backoff;

use crate::allowance::{Allowance, Rate};

/// Twice as many as there can be members. When full, a new peer takes the place of one from the
/// source with the most.
pub(crate) const MAX_CANDIDATES: usize = 2048;
/// Peers of one source. A machine announces one agent; a laboratory has some on one address. A member
/// is asked for more when those it told of are connected, which do not count, or were dialled.
const MAX_OF_SOURCE: usize = 32;
/// Dials under way to peers of one source: addresses that swallow packets occupy a dial for
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

/// How long a peer that a member told of is dialled, and again after its connection was lost. Who
/// is still there is told of again.
const TOLD_FOR: Duration = Duration::from_secs(60);
/// Dials in a row after which such a peer is forgotten: some ten seconds, a router's restart is
/// longer, and then members are asked anew.
const TOLD_ATTEMPTS: u32 = 5;
/// A member names twenty peers at a time, and the next when no more than this of them are undialled.
const UNDIALLED: usize = 4;

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

/// Who named a peer, and is charged for the dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// Whoever sends from this address on the link.
    Link(IpAddr),
    Member(PeerId),
}

#[derive(Debug)]
struct Candidate {
    source: Source,
    /// Announced, the newest first.
    addresses: Vec<SocketAddr>,
    /// Told by members, the newest first.
    told: Vec<SocketAddr>,
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

/// What a source has cost so far.
#[derive(Debug, Default)]
struct Costs {
    under_way: usize,
    failed: u64,
}

impl Costs {
    fn sum(&self) -> u64 {
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
            let candidate = Candidate::new(Source::Link(announced.source), announced.expires, dial);
            let addresses = merged(announced.addresses, Vec::new());
            return self.add(
                now,
                announced.peer,
                Candidate {
                    addresses,
                    ..candidate
                },
            );
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
        known.source = Source::Link(announced.source);
        known.expires = known.expires.max(announced.expires);
        if (moved || is_back) && !is_connected_there {
            let at = known.hurry(courteous);
            bring_forward(&mut self.next, at);
        }
    }

    /// A member told of peers that are not connected.
    pub(crate) fn handle_told(
        &mut self,
        now: Instant,
        teller: PeerId,
        named: impl IntoIterator<Item = (PeerId, Vec<SocketAddr>)>,
    ) {
        let costs = self.costs();
        for (peer, told) in named.into_iter().take(MAX_OF_SOURCE) {
            let courteous = now + self.courtesy(&peer);
            let Some(known) = self.known.get_mut(&peer) else {
                let dial = Dial::At(courteous);
                let candidate = Candidate::new(Source::Member(teller), now + TOLD_FOR, dial);
                self.add(now, peer, Candidate { told, ..candidate });
                continue;
            };
            if known.is_told_of_anew(now, teller, told, &costs) {
                let at = known.hurry(courteous);
                bring_forward(&mut self.next, at);
            }
        }
    }

    /// `peer`, or somebody in its name, said goodbye: it is not dialled again until it is announced.
    /// Only who announced it last can say so. The waits between dials go on, or goodbyes would be a
    /// way to be dialled without pause.
    pub(crate) fn handle_gone(&mut self, now: Instant, peer: PeerId, source: IpAddr) {
        if let Some(known) = self.known.get_mut(&peer)
            && known.source == Source::Link(source)
        {
            known.expires = now;
            known.addresses.clear();
            known.told.clear();
        }
    }

    /// A connection from `remote` is being made.
    pub(crate) fn handle_incoming(&mut self, now: Instant, remote: SocketAddr) {
        let from_there = |known: &&mut Candidate| known.all_addresses().contains(&remote);
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
            if known.all_addresses().contains(&remote) {
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
            Some(known) if is_at(&known.all_addresses(), connected_ports) => {
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
            if let Source::Member(_) = known.source {
                known.expires = known.told_until(now);
            }
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
        let mut costs = self.costs();
        for peer in self.due(now, &costs) {
            if taken.len() == limit {
                break;
            }
            let Some(known) = self.known.get_mut(&peer) else {
                continue;
            };
            let source = costs.entry(known.source).or_default();
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
            taken.push((peer, known.all_addresses()));
        }
        self.next = self.next_due(now, &costs);
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
        // Nobody announces it again, and it is to be dialled when it is lost.
        let is_kept = |known: &Candidate| known.is_of_member() && known.is_connected();
        self.known.retain(|_, known| {
            known.expires > now || known.dial == Dial::UnderWay || waits(known) || is_kept(known)
        });
    }

    /// Whether a member may tell of more peers: most of those it named were dialled.
    pub(crate) fn may_tell_more(&self, now: Instant, teller: &PeerId) -> bool {
        let undialled = self.known.values().filter(|known| {
            let is_first_dial = known.attempt == 0 && !known.is_connected();
            known.source == Source::Member(*teller) && is_first_dial && known.expires > now
        });
        undialled.count() <= UNDIALLED
    }

    /// Whether only members told of `peer`.
    pub(crate) fn is_told_of(&self, peer: &PeerId) -> bool {
        self.known.get(peer).is_some_and(Candidate::is_of_member)
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

    fn add(&mut self, now: Instant, peer: PeerId, candidate: Candidate) {
        let of_source = self.known.iter().filter(|(_, known)| {
            // A member that told of a branch is connected to all of it in the end.
            known.source == candidate.source && !(known.is_of_member() && known.is_connected())
        });
        let (of_source, worst) = of_source.fold((0, None), |(count, worst), (peer, known)| {
            (
                count + 1,
                worst.max(known.is_failing().then_some((known.attempt, *peer))),
            )
        });
        if of_source >= MAX_OF_SOURCE {
            let Some((_, worst)) = worst.filter(|_| candidate.is_of_member()) else {
                return;
            };
            self.known.remove(&worst);
        }
        if self.known.len() >= MAX_CANDIDATES && !self.make_room(now, of_source) {
            return;
        }
        if let Dial::At(at) = candidate.dial {
            bring_forward(&mut self.next, at);
        }
        self.known.insert(peer, candidate);
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
        let mut waiting_of: BTreeMap<Source, usize> = BTreeMap::new();
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

    fn costs(&self) -> BTreeMap<Source, Costs> {
        let mut costs: BTreeMap<Source, Costs> = BTreeMap::new();
        for known in self.known.values() {
            let source = costs.entry(known.source).or_default();
            source.under_way += usize::from(known.dial == Dial::UnderWay);
            source.failed += u64::from(known.attempt);
        }
        costs
    }

    /// Those to dial now, in the order in which they should be: sources that failed least first, one
    /// peer of each in turn.
    fn due(&self, now: Instant, costs: &BTreeMap<Source, Costs>) -> Vec<PeerId> {
        let due = self.known.iter().filter_map(|(peer, known)| {
            let at = known.due_at(now).filter(|at| *at <= now)?;
            Some((known.attempt, at, known.source, *peer))
        });
        let mut due: Vec<_> = due.collect();
        due.sort_unstable();
        let mut turns: BTreeMap<Source, u64> = BTreeMap::new();
        let mut ranked: Vec<_> = due
            .into_iter()
            .map(|(attempt, at, source, peer)| {
                let cost = costs.get(&source).map_or(0, Costs::sum);
                let turn = turns.entry(source).or_insert(cost);
                *turn += 1;
                (*turn, attempt, at, peer)
            })
            .collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, _, _, peer)| peer).collect()
    }

    fn next_due(&self, now: Instant, costs: &BTreeMap<Source, Costs>) -> Option<Instant> {
        let has_room = |known: &&Candidate| {
            let source = costs.get(&known.source);
            source.is_none_or(|source| source.under_way < MAX_DIALS_OF_SOURCE)
        };
        let waiting = self.known.values().filter(has_room);
        waiting.filter_map(|known| known.due_at(now)).min()
    }
}

impl Candidate {
    fn new(source: Source, expires: Instant, dial: Dial) -> Self {
        Self {
            source,
            addresses: Vec::new(),
            told: Vec::new(),
            expires,
            tried: None,
            attempt: 0,
            hurried: 0,
            has_yielded: false,
            dial,
        }
    }

    fn is_of_member(&self) -> bool {
        matches!(self.source, Source::Member(_))
    }

    fn is_connected(&self) -> bool {
        matches!(self.dial, Dial::Connected { .. })
    }

    /// It was dialled in vain and is not being dialled now.
    fn is_failing(&self) -> bool {
        self.attempt > 0 && matches!(self.dial, Dial::At(_))
    }

    /// Where it is dialled: where it was announced, and where it may be besides.
    fn all_addresses(&self) -> Vec<SocketAddr> {
        merged(self.addresses.clone(), self.told.clone())
    }

    /// Takes what a member says of it. True when that is a reason to dial it. It is charged to whom
    /// it costs least to be dialled, or one that names real peers among invented ones would delay them.
    fn is_told_of_anew(
        &mut self,
        now: Instant,
        teller: PeerId,
        told: Vec<SocketAddr>,
        costs: &BTreeMap<Source, Costs>,
    ) -> bool {
        let is_news = told.iter().any(|address| !self.told.contains(address));
        self.told = merged(told, std::mem::take(&mut self.told));
        let is_back = self.expires <= now;
        if is_back {
            self.source = Source::Member(teller);
            self.addresses.clear();
            self.expires = now + TOLD_FOR;
        } else if self.is_of_member() {
            let cost = |source| costs.get(&source).map_or(0, Costs::sum);
            self.source = [self.source, Source::Member(teller)]
                .into_iter()
                .min_by_key(|source| cost(*source))
                .unwrap_or(self.source);
        }
        is_news || is_back
    }

    /// How long it is dialled after it was lost, or dialled in vain for the `attempt`th time.
    fn told_until(&self, now: Instant) -> Instant {
        if self.attempt >= TOLD_ATTEMPTS {
            now
        } else if self.is_connected() {
            now + TOLD_FOR
        } else {
            self.expires
        }
    }

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
