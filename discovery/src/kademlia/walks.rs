//! Whom to ask for the peers it knows, and when. Pure: time and the seed come in.
//!
//! Members of one link know the same, so few of them are asked; who comes from elsewhere may know
//! many that this agent does not. Each time members have come, some of them are asked for everybody
//! they know, fewer the more such members were known before, so that a newcomer is asked by a few
//! of a branch, however large that is. One member is asked now and then besides, for what was missed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use branchline_core::PeerId;
use branchline_core::backoff::Backoff;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};

use super::cover::{Cover, Position};

/// Newcomers are waited for this long, and half as long again by chance: of agents that start
/// together, or of a branch that is joined to another, most come within it.
const GATHER: Duration = Duration::from_millis(300);
/// Between two times at which newcomers are asked, while there are always some. A branch of a
/// thousand that is switched on comes together in ten seconds, which is four such times.
const GAPS: Backoff = Backoff {
    min: Duration::from_millis(500),
    max: Duration::from_secs(60),
};
/// Without newcomers for so long, the next are asked without a gap.
const CALM: Duration = Duration::from_secs(60);
/// Neighbours asked when all of them are newcomers: one may lie or be about to go. Of a branch on one
/// link, as many ask a single newcomer.
const NEIGHBOURS_ASKED: u64 = 3;
/// The same of members from elsewhere. A newcomer may be the only one that leads to a subnet, and
/// is asked by nobody with a chance of e^-6, one in 400; then the rare questions help.
const DISTANT_ASKED: u64 = 6;
/// Configured peers from elsewhere asked in any case, for they were configured to lead somewhere;
/// a list of all machines of a branch is not asked in full.
const CONFIGURED_ASKED: usize = 8;
/// The rare questions: twice as long at most. In a branch of a hundred they are 60 bytes a second.
const RARELY: Duration = Duration::from_secs(300);
/// Members asked at a time; each names twenty peers to dial at a time.
const MAX_WALKS: usize = 4;
/// A member's answers may be asked for one by one for so long. One that knows a thousand takes four
/// seconds; one that names nobody who answers is done with after it.
const WALK: Duration = Duration::from_secs(60);
/// Longer than libp2p waits for an answer: then the connection is gone.
const ANSWER: Duration = Duration::from_secs(5);

/// How this agent knows a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Acquaintance {
    /// By multicast: it is on the same link.
    Neighbour,
    /// It is from elsewhere.
    Distant,
    /// The same, and this agent's configuration names it.
    Configured,
}

/// One question to one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) member: PeerId,
    pub(crate) key: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Walks {
    random: Xoshiro256PlusPlus,
    newcomers: BTreeSet<PeerId>,
    /// When they are asked; meaningless without any.
    ask_newcomers: Instant,
    asked_newcomers: Option<Instant>,
    /// Times they were asked without a calm between.
    in_a_row: u32,
    ask_anybody: Instant,
    chosen: Vec<PeerId>,
    walks: BTreeMap<PeerId, Walk>,
}

#[derive(Debug)]
struct Walk {
    cover: Cover,
    until: Instant,
    asked: Option<Instant>,
}

impl Walks {
    pub(crate) fn new(seed: u64, now: Instant) -> Self {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let rarely = longer(RARELY, 1, &mut random);
        Self {
            random,
            newcomers: BTreeSet::new(),
            ask_newcomers: now,
            asked_newcomers: None,
            in_a_row: 0,
            ask_anybody: now + rarely,
            chosen: Vec::new(),
            walks: BTreeMap::new(),
        }
    }

    pub(crate) fn handle_joined(&mut self, now: Instant, member: PeerId) {
        if self.newcomers.is_empty() {
            self.ask_newcomers = now + longer(GATHER, 2, &mut self.random);
            if let Some(asked) = self.asked_newcomers {
                let is_calm = now >= asked + CALM;
                self.in_a_row = if is_calm { 0 } else { self.in_a_row };
                let gap = GAPS.delay(self.in_a_row, self.random.random());
                self.ask_newcomers = self.ask_newcomers.max(asked + gap);
            }
        }
        self.newcomers.insert(member);
    }

    pub(crate) fn handle_left(&mut self, member: &PeerId) {
        self.newcomers.remove(member);
        self.walks.remove(member);
        self.chosen.retain(|chosen| chosen != member);
    }

    /// Where those lie whom `teller` named. False when it was not asked.
    pub(crate) fn handle_told(&mut self, teller: &PeerId, named: &[Position]) -> bool {
        let Some(walk) = self.walks.get_mut(teller) else {
            return false;
        };
        let was_asked = walk.asked.take().is_some();
        walk.cover.handle_answer(named);
        if walk.cover.is_complete() {
            self.walks.remove(teller);
        }
        was_asked
    }

    pub(crate) fn handle_unanswered(&mut self, asked: &PeerId) {
        self.walks.remove(asked);
    }

    /// When [`Walks::choose`] has something to choose.
    pub(crate) fn deadline(&self) -> Instant {
        if self.newcomers.is_empty() {
            self.ask_anybody
        } else {
            self.ask_anybody.min(self.ask_newcomers)
        }
    }

    /// Chooses whom to ask, at the deadline, among all members.
    pub(crate) fn choose(&mut self, now: Instant, members: &BTreeMap<PeerId, Acquaintance>) {
        if self.ask_anybody <= now {
            self.ask_anybody = now + longer(RARELY, 1, &mut self.random);
            let anybody = members.keys().copied().choose(&mut self.random);
            self.chosen.extend(anybody);
        }
        if self.ask_newcomers <= now && !self.newcomers.is_empty() {
            let neighbours = |known| known == Acquaintance::Neighbour;
            self.choose_newcomers(members, NEIGHBOURS_ASKED, neighbours);
            self.choose_newcomers(members, DISTANT_ASKED, |known| !neighbours(known));
            self.choose_configured(members);
            self.newcomers.clear();
            self.asked_newcomers = Some(now);
            self.in_a_row = self.in_a_row.saturating_add(1);
        }
        self.chosen.sort_unstable();
        self.chosen.dedup();
    }

    /// The next question of each member that is being asked. `may_name_more` says whether those it
    /// has named were dialled, so that it may name others.
    pub(crate) fn take_questions(
        &mut self,
        now: Instant,
        may_name_more: impl Fn(&PeerId) -> bool,
    ) -> Vec<Question> {
        self.walks.retain(|_, walk| !walk.is_over(now));
        while self.walks.len() < MAX_WALKS
            && let Some(member) = self.chosen.pop()
        {
            let walk = Walk {
                cover: Cover::new(self.random.random()),
                until: now + WALK,
                asked: None,
            };
            self.walks.insert(member, walk);
        }
        let mut questions = Vec::new();
        let idle = self
            .walks
            .iter_mut()
            .filter(|(_, walk)| walk.asked.is_none());
        for (member, walk) in idle.filter(|(member, _)| may_name_more(member)) {
            if let Some(key) = walk.cover.next_question() {
                walk.asked = Some(now);
                let member = *member;
                questions.push(Question { member, key });
            }
        }
        questions
    }

    /// So many of the newcomers of one kind that, of all members that see them come, a few ask.
    fn choose_newcomers(
        &mut self,
        members: &BTreeMap<PeerId, Acquaintance>,
        of_all: u64,
        is_of_kind: impl Fn(Acquaintance) -> bool,
    ) {
        let of_kind = members.iter().filter(|(_, known)| is_of_kind(**known));
        let of_kind: Vec<_> = of_kind.map(|(member, _)| *member).collect();
        let newcomers: Vec<_> = of_kind
            .iter()
            .filter(|member| self.newcomers.contains(member))
            .copied()
            .collect();
        let asked = rounded_by_chance(
            of_all * count(newcomers.len()),
            count(of_kind.len()),
            &mut self.random,
        );
        let chosen = newcomers.into_iter().sample(&mut self.random, asked);
        self.chosen.extend(chosen);
    }

    fn choose_configured(&mut self, members: &BTreeMap<PeerId, Acquaintance>) {
        let configured = self
            .newcomers
            .iter()
            .filter(|member| members.get(member) == Some(&Acquaintance::Configured));
        let chosen = configured
            .copied()
            .sample(&mut self.random, CONFIGURED_ASKED);
        self.chosen.extend(chosen);
    }
}

impl Walk {
    fn is_over(&self, now: Instant) -> bool {
        self.until <= now || self.asked.is_some_and(|asked| asked + ANSWER <= now)
    }
}

fn count(members: usize) -> u64 {
    u64::try_from(members).unwrap_or(u64::MAX)
}

/// `dividend / divisor`, one more with the chance of what is left over; nothing of nothing.
fn rounded_by_chance(dividend: u64, divisor: u64, random: &mut impl RngExt) -> usize {
    if divisor == 0 {
        return 0;
    }
    let is_up = random.random_range(0..divisor) < dividend % divisor;
    usize::try_from(dividend / divisor + u64::from(is_up)).unwrap_or(usize::MAX)
}

/// Longer by up to its `part`th part, by chance, for many to do the same at different times.
fn longer(duration: Duration, part: u32, random: &mut impl RngExt) -> Duration {
    duration + duration.mul_f64(random.random_range(0.0..1.0)) / part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u16) -> PeerId {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        PeerId::from_public_key(key)
    }

    fn members(
        of: impl IntoIterator<Item = (u16, Acquaintance)>,
    ) -> BTreeMap<PeerId, Acquaintance> {
        of.into_iter().map(|(n, known)| (peer(n), known)).collect()
    }

    fn neighbours(count: u16) -> BTreeMap<PeerId, Acquaintance> {
        members((0..count).map(|n| (n, Acquaintance::Neighbour)))
    }

    /// Who is asked when `newcomers` have come to `members`, all that are begun at once.
    fn asked(
        walks: &mut Walks,
        now: Instant,
        members: &BTreeMap<PeerId, Acquaintance>,
        newcomers: impl IntoIterator<Item = u16>,
    ) -> BTreeSet<PeerId> {
        for newcomer in newcomers {
            walks.handle_joined(now, peer(newcomer));
        }
        let due = walks.deadline();
        walks.choose(due, members);
        let mut asked = BTreeSet::new();
        loop {
            let questions = walks.take_questions(due, |_| true);
            if questions.is_empty() {
                return asked;
            }
            for question in questions {
                // Nobody is named, so that the next can be asked.
                walks.handle_told(&question.member, &[]);
                asked.insert(question.member);
            }
        }
    }

    #[test]
    fn who_starts_among_neighbours_asks_a_few_of_them_soon() {
        let now = Instant::now();
        for count in [1, 2, 99] {
            let mut walks = Walks::new(u64::from(count), now);
            let known = neighbours(count);
            assert_eq!(
                asked(&mut walks, now, &known, 0..count).len(),
                usize::from(count.min(3))
            );
            assert!(walks.asked_newcomers.expect("asked") <= now + GATHER * 2);
        }
    }

    #[test]
    fn a_neighbour_that_joins_many_is_asked_by_few_of_them() {
        let now = Instant::now();
        let known = neighbours(99);
        let asking = (0..1000).filter(|seed| {
            let mut walks = Walks::new(*seed, now);
            !asked(&mut walks, now, &known, [7]).is_empty()
        });
        // Three of a hundred.
        let asking = asking.count();
        assert!((10..60).contains(&asking), "{asking} of a thousand");
    }

    #[test]
    fn the_first_from_elsewhere_and_configured_ones_are_asked_in_any_case() {
        let now = Instant::now();
        let with = |others: u16, known| {
            let others = (100..100 + others).map(|n| (n, Acquaintance::Distant));
            let mut all = neighbours(99);
            all.extend(members(others.chain([(100, known)])));
            all
        };
        for seed in 0..100 {
            let mut walks = Walks::new(seed, now);
            let first = with(1, Acquaintance::Distant);
            assert_eq!(asked(&mut walks, now, &first, [100]).len(), 1);
            let mut walks = Walks::new(seed, now);
            let configured = with(99, Acquaintance::Configured);
            assert_eq!(asked(&mut walks, now, &configured, [100]).len(), 1);
        }
    }

    #[test]
    fn a_list_of_all_machines_is_not_asked_in_full() {
        let now = Instant::now();
        let mut walks = Walks::new(1, now);
        let all = members((0..99).map(|n| (n, Acquaintance::Configured)));
        let asked = asked(&mut walks, now, &all, 0..99).len();
        assert!(asked <= 6 + CONFIGURED_ASKED, "{asked}");
    }

    #[test]
    fn members_that_keep_coming_are_asked_less_and_less() {
        let start = Instant::now();
        let mut walks = Walks::new(5, start);
        let known = neighbours(1000);
        let mut times = 0;
        for ms in 0..60_000_u64 {
            let now = start + Duration::from_millis(ms);
            walks.handle_joined(now, peer(u16::try_from(ms % 1000).expect("small")));
            if walks.deadline() <= now {
                walks.choose(now, &known);
                times += 1;
            }
        }
        assert!((4..20).contains(&times), "{times}");
    }

    #[test]
    fn without_newcomers_somebody_is_asked_every_few_minutes() {
        let start = Instant::now();
        let mut walks = Walks::new(5, start);
        let known = neighbours(100);
        asked(&mut walks, start, &known, 0..100);
        let due = walks.deadline();
        assert!((RARELY..=RARELY * 2).contains(&(due - start)));
        walks.choose(due, &known);
        assert_eq!(walks.take_questions(due, |_| true).len(), 1);
        assert!(walks.deadline() >= due + RARELY);
    }

    #[test]
    fn nobody_to_ask_is_no_trouble() {
        let start = Instant::now();
        let mut walks = Walks::new(5, start);
        walks.handle_joined(start, peer(1));
        walks.handle_left(&peer(1));
        let due = walks.deadline();
        walks.choose(due, &BTreeMap::new());
        assert_eq!(walks.take_questions(due, |_| true), []);
    }

    #[test]
    fn a_member_names_more_only_when_those_it_named_were_dialled_and_is_given_up_at_last() {
        let now = Instant::now();
        let mut walks = Walks::new(5, now);
        let known = neighbours(1);
        walks.handle_joined(now, peer(0));
        let due = walks.deadline();
        walks.choose(due, &known);
        assert_eq!(walks.take_questions(due, |_| true).len(), 1);
        let full = [crate::kademlia::position_of(b"x"); super::super::NAMED_AT_ONCE];
        assert!(walks.handle_told(&peer(0), &full));
        assert!(!walks.handle_told(&peer(0), &full), "it was not asked");
        assert_eq!(walks.take_questions(due, |_| false), []);
        assert_eq!(walks.take_questions(due, |_| true).len(), 1);
        assert_eq!(walks.take_questions(due + ANSWER, |_| true), []);
        assert!(walks.walks.is_empty(), "no answer came");
    }
}
