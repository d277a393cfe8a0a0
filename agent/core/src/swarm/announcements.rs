//! What this agent tells to whom of the contents it holds, so that late comers find them.
//!
//! Each content is announced at its steward. Inputs are `handle_*` with the time they happened;
//! afterwards the caller drains [`Announcements::poll_word`] and waits for the next input or
//! [`Announcements::next_deadline`].
//!
//! Invariant: once nothing has changed for [`MOVES_AFTER`], and no steward was lost lately, each
//! content is announced at the first in its rank, and nowhere else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use branchline_hashing::SwarmId;

use super::{MOVES_AFTER, first_in_rank};
use crate::backoff::Backoff;
use crate::{Deadline, PeerId};

/// A steward that was lost while it is still a member is told again after so long: it refused for
/// want of room, or is being restarted.
///
/// Each time in a row twice as long: what is said is all that this agent holds.
const LOST_RESTS: Backoff = Backoff {
    min: Duration::from_secs(3),
    max: Duration::from_secs(300),
};

/// Contents that are announced; the store's other ones are found by who asks this agent itself.
pub const MAX_ANNOUNCEMENTS: usize = 16_384;

/// What is to be said, all at one steward, which may be this agent itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnnouncementWord {
    /// This agent holds these.
    Announce {
        /// At whom.
        steward: PeerId,
        /// What; never nothing.
        swarms: Vec<SwarmId>,
    },
    /// It does not, or tells it to another.
    Withdraw {
        /// At whom.
        steward: PeerId,
        /// What; never nothing.
        swarms: Vec<SwarmId>,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct Announcements {
    me: PeerId,
    /// The other members, as the stewards below were chosen among them.
    members: BTreeSet<PeerId>,
    /// What they are by now, and when that counts.
    changed: Option<(BTreeSet<PeerId>, Instant)>,
    held: BTreeMap<SwarmId, PeerId>,
    /// Stewards that know nothing of this agent, and when they are told.
    lost: BTreeMap<PeerId, Instant>,
    /// How often each member was lost in a row, and when it was told again last or is to be.
    losses: BTreeMap<PeerId, (u32, Instant)>,
    words: VecDeque<AnnouncementWord>,
}

impl Announcements {
    /// Of an agent that knows nobody.
    pub fn new(me: PeerId) -> Self {
        Self {
            me,
            members: BTreeSet::new(),
            changed: None,
            held: BTreeMap::new(),
            lost: BTreeMap::new(),
            losses: BTreeMap::new(),
            words: VecDeque::new(),
        }
    }

    /// This agent holds these completely, and gives them to others.
    pub fn handle_held(&mut self, swarms: impl IntoIterator<Item = SwarmId>) {
        let mut news = Said::default();
        for swarm in swarms {
            if self.held.len() >= MAX_ANNOUNCEMENTS {
                break;
            }
            let steward = self.steward_of(&swarm);
            if self.held.insert(swarm, steward).is_none() {
                news.announce.entry(steward).or_default().push(swarm);
            }
        }
        self.say(news);
    }

    /// This agent does not hold it any more.
    pub fn handle_released(&mut self, swarm: SwarmId) {
        if let Some(steward) = self.held.remove(&swarm) {
            let mut news = Said::default();
            news.withdraw.entry(steward).or_default().push(swarm);
            self.say(news);
        }
    }

    /// What this agent holds has been looked through: these completely, and nothing else.
    ///
    /// Gives how many are not here any more.
    pub fn handle_stock(&mut self, whole: &BTreeSet<SwarmId>) -> usize {
        let gone = self.held.extract_if(.., |swarm, _| !whole.contains(swarm));
        let mut news = Said::default();
        let mut count = 0;
        for (swarm, steward) in gone {
            news.withdraw.entry(steward).or_default().push(swarm);
            count += 1;
        }
        self.say(news);
        self.handle_held(whole.iter().copied());
        count
    }

    /// The branch's live members by now; this agent among them or not.
    pub fn handle_members(&mut self, now: Instant, members: &BTreeSet<PeerId>) {
        let others = members.iter().copied().filter(|member| *member != self.me);
        let others: BTreeSet<PeerId> = others.collect();
        let at = self.changed.take().map_or(now + MOVES_AFTER, |(_, at)| at);
        if others != self.members {
            self.changed = Some((others, at));
        }
    }

    /// What was said to a steward is forgotten: its stream has ended, or could not be opened.
    pub fn handle_lost(&mut self, now: Instant, steward: PeerId) {
        let (count, told) = self.losses.get(&steward).copied().unwrap_or((0, now));
        let was_good_for = now.saturating_duration_since(told);
        let count = if was_good_for > LOST_RESTS.ceiling(count) {
            0
        } else {
            count
        };
        let again = now + LOST_RESTS.ceiling(count);
        self.losses
            .insert(steward, (count.saturating_add(1), again));
        self.lost.insert(steward, again);
    }

    /// A deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some((members, _)) = self.changed.take_if(|(_, at)| *at <= now) {
            self.move_to(members);
            let there = &self.members;
            self.losses.retain(|steward, _| there.contains(steward));
        }
        let again = self.lost.extract_if(.., |_, at| *at <= now);
        let again: BTreeSet<PeerId> = again.map(|(steward, _)| steward).collect();
        let mut news = Said::default();
        for (swarm, steward) in &self.held {
            if again.contains(steward) {
                news.announce.entry(*steward).or_default().push(*swarm);
            }
        }
        self.say(news);
    }

    /// When to call [`Announcements::handle_timeout`] if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Deadline> {
        let moved = self.changed.as_ref().map(|(_, at)| Deadline {
            at: *at,
            waiting_for: "the branch to settle",
        });
        let again = self.lost.values().min().map(|at| Deadline {
            at: *at,
            waiting_for: "a steward that was lost",
        });
        moved.into_iter().chain(again).min()
    }

    /// The next thing to say.
    pub fn poll_word(&mut self) -> Option<AnnouncementWord> {
        self.words.pop_front()
    }

    fn steward_of(&self, swarm: &SwarmId) -> PeerId {
        let all = self.members.iter().copied().chain([self.me]);
        first_in_rank(swarm, all, 1)
            .first()
            .copied()
            .unwrap_or(self.me)
    }

    /// Only what those who came or went change is computed anew: ten thousand contents among a
    /// hundred members are a million hashes otherwise.
    fn move_to(&mut self, members: BTreeSet<PeerId>) {
        let came: Vec<PeerId> = members.difference(&self.members).copied().collect();
        self.lost.retain(|steward, _| members.contains(steward));
        self.members = members;
        let mut news = Said::default();
        for (swarm, steward) in std::mem::take(&mut self.held) {
            let stays = steward == self.me || self.members.contains(&steward);
            let first = match stays {
                true => {
                    let candidates = came.iter().copied().chain([steward]);
                    first_in_rank(&swarm, candidates, 1).first().copied()
                }
                false => Some(self.steward_of(&swarm)),
            };
            let first = first.unwrap_or(self.me);
            if first != steward {
                news.announce.entry(first).or_default().push(swarm);
                if stays {
                    news.withdraw.entry(steward).or_default().push(swarm);
                }
            }
            self.held.insert(swarm, first);
        }
        self.say(news);
    }

    /// A steward that was lost is told all together, later.
    fn say(&mut self, Said { announce, withdraw }: Said) {
        let lost = &self.lost;
        let heard = |steward: &PeerId| !lost.contains_key(steward);
        let withdraw = withdraw
            .into_iter()
            .filter(|(steward, _)| heard(steward))
            .map(|(steward, swarms)| AnnouncementWord::Withdraw { steward, swarms });
        let announce = announce
            .into_iter()
            .filter(|(steward, _)| heard(steward))
            .map(|(steward, swarms)| AnnouncementWord::Announce { steward, swarms });
        self.words.extend(withdraw.chain(announce));
    }
}

#[derive(Default)]
struct Said {
    announce: BTreeMap<PeerId, Vec<SwarmId>>,
    withdraw: BTreeMap<PeerId, Vec<SwarmId>>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    fn swarm(number: u8) -> SwarmId {
        SwarmId::from_bytes([number; 32])
    }

    /// What stewards know, as they would hear it.
    #[derive(Default)]
    struct Heard(BTreeMap<PeerId, BTreeSet<SwarmId>>);

    impl Heard {
        fn hear(&mut self, announcements: &mut Announcements) {
            while let Some(word) = announcements.poll_word() {
                match word {
                    AnnouncementWord::Announce { steward, swarms } => {
                        self.0.entry(steward).or_default().extend(swarms);
                    }
                    AnnouncementWord::Withdraw { steward, swarms } => {
                        let known = self.0.entry(steward).or_default();
                        swarms.iter().for_each(|swarm| {
                            known.remove(swarm);
                        });
                    }
                }
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Held(u8),
        Released(u8),
        Stock(BTreeSet<u8>),
        Members(BTreeSet<u8>),
        Lost(u8),
        Later(u16),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0u8..40).prop_map(Event::Held),
            (0u8..40).prop_map(Event::Released),
            prop::collection::btree_set(0u8..40, 0..8).prop_map(Event::Stock),
            prop::collection::btree_set(1u8..9, 0..8).prop_map(Event::Members),
            (1u8..9).prop_map(Event::Lost),
            (0u16..4000).prop_map(Event::Later),
        ]
    }

    #[test]
    fn a_steward_that_refuses_each_time_is_told_less_and_less_often() {
        let start = Instant::now();
        let mut announcements = Announcements::new(peer(0));
        announcements.handle_held([swarm(1)]);
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..10 {
            announcements.handle_lost(now, peer(0));
            let at = announcements.next_deadline().expect("a deadline").at;
            waits.push(at - now);
            announcements.handle_timeout(at);
            now = at + Duration::from_millis(1);
        }
        assert_eq!(waits[0], LOST_RESTS.min);
        assert!(waits.is_sorted() && waits[9] == LOST_RESTS.max, "{waits:?}");
    }

    #[test]
    fn however_much_is_gone_each_steward_hears_it_in_one_word() {
        let now = Instant::now();
        let mut announcements = Announcements::new(peer(0));
        announcements.handle_members(now, &[peer(1), peer(2)].into());
        announcements.handle_timeout(now + MOVES_AFTER);
        announcements.handle_held((0..200).map(swarm));
        while announcements.poll_word().is_some() {}
        let left: BTreeSet<SwarmId> = (0..50).map(swarm).collect();
        assert_eq!(announcements.handle_stock(&left), 150);
        let words: Vec<_> = std::iter::from_fn(|| announcements.poll_word()).collect();
        assert_eq!(words.len(), 3, "{words:?}");
    }

    proptest! {
        #[test]
        fn in_the_end_each_content_is_announced_at_its_steward_and_nowhere_else(
            events in prop::collection::vec(event(), 0..60),
        ) {
            let mut now = Instant::now();
            let mut announcements = Announcements::new(peer(0));
            let (mut heard, mut held, mut members) =
                (Heard::default(), BTreeSet::new(), BTreeSet::<PeerId>::new());
            for event in events {
                match event {
                    Event::Held(number) => {
                        held.insert(swarm(number));
                        announcements.handle_held([swarm(number)]);
                    }
                    Event::Released(number) => {
                        held.remove(&swarm(number));
                        announcements.handle_released(swarm(number));
                    }
                    Event::Stock(numbers) => {
                        held = numbers.into_iter().map(swarm).collect();
                        announcements.handle_stock(&held);
                    }
                    Event::Members(numbers) => {
                        let after: BTreeSet<PeerId> = numbers.into_iter().map(peer).collect();
                        // Who goes forgets what it knew, and its stream ends.
                        for gone in members.difference(&after) {
                            heard.0.remove(gone);
                            announcements.handle_lost(now, *gone);
                        }
                        members = after;
                        announcements.handle_members(now, &members);
                    }
                    Event::Lost(number) => {
                        heard.0.remove(&peer(number));
                        announcements.handle_lost(now, peer(number));
                    }
                    Event::Later(millis) => {
                        now += Duration::from_millis(millis.into());
                        announcements.handle_timeout(now);
                    }
                }
                heard.hear(&mut announcements);
                heard.0.retain(|steward, _| *steward == peer(0) || members.contains(steward));
            }
            while let Some(deadline) = announcements.next_deadline() {
                now = now.max(deadline.at);
                announcements.handle_timeout(now);
                heard.hear(&mut announcements);
            }
            let mut expected: BTreeMap<PeerId, BTreeSet<SwarmId>> = BTreeMap::new();
            for swarm in held {
                let all = members.iter().copied().chain([peer(0)]);
                let steward = first_in_rank(&swarm, all, 1)[0];
                expected.entry(steward).or_default().insert(swarm);
            }
            heard.0.retain(|_, known| !known.is_empty());
            prop_assert_eq!(heard.0, expected);
        }
    }
}
