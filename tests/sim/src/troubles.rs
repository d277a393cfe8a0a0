//! What goes wrong: who is slow or lies, who dies and when it is noticed, who sees whom.

use std::collections::BTreeSet;
use std::time::Duration;

use branchline_core::PeerId;
use branchline_core::swarm::first_in_rank;
use branchline_hashing::SwarmId;

use crate::chance::Chance;
use crate::member::{Member, MemberId, Phase};
use crate::scenario::{Joins, Scenario, StewardFate};
use crate::world::{Event, World};

/// After so long without a packet a connection is dead (`ExchangeOptions::idle_timeout`).
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// After so long a killed agent is no member any more (docs/discovery.md).
const MEMBER_TIMEOUT: Duration = Duration::from_secs(8);

/// Changes of the membership reach everybody at whole multiples of this: each costs each member a ranking of
/// all, which ten thousand planners in one process cannot have for each of five hundred deaths.
const MEMBERSHIP_EVERY: Duration = Duration::from_secs(1);
const MEMBERSHIP_EVERY_LARGE: Duration = Duration::from_secs(30);
const LARGE: u32 = 500;

/// Holders announce to so many of the first in rank: when the first dies, members ask the second within a second, but
/// the membership tells of it only after eight.
const ANNOUNCED_TO: usize = 2;

/// How long views differ at the start.
const VIEWS_DIFFER_FOR: Duration = Duration::from_secs(1);

/// Who sees whom.
#[derive(Debug)]
pub(crate) struct Views {
    live: BTreeSet<PeerId>,
    /// At the start, if views differ: what each sees.
    partial: Vec<BTreeSet<PeerId>>,
    pub(crate) steward: MemberId,
    /// The first in rank, whom holders announce the content to.
    pub(crate) announced_at: Vec<MemberId>,
    changes_at: Option<Duration>,
}

impl Views {
    pub(crate) fn new(
        scenario: &Scenario,
        chance: &mut Chance,
        members: &[Member],
        swarm: SwarmId,
    ) -> Self {
        let live: BTreeSet<PeerId> = members.iter().map(|member| member.peer).collect();
        let announced_at = first_in_rank_of(swarm, &live);
        let steward = announced_at.first().copied().unwrap_or(MemberId(0));
        let half = |me: &Member, chance: &mut Chance| {
            let seen = |peer: &PeerId| *peer == me.peer || chance.below(2) == 0;
            live.iter().copied().filter(seen).collect()
        };
        let partial = if scenario.troubles.partial_views {
            members.iter().map(|member| half(member, chance)).collect()
        } else {
            Vec::new()
        };
        Self {
            live,
            partial,
            steward,
            announced_at,
            changes_at: None,
        }
    }

    /// The members that this one sees.
    pub(crate) fn of(&self, id: MemberId) -> BTreeSet<PeerId> {
        let partial = self.partial.get(id.0 as usize);
        partial.unwrap_or(&self.live).clone()
    }
}

/// The stewards that a holder announces to.
fn first_in_rank_of(swarm: SwarmId, live: &BTreeSet<PeerId>) -> Vec<MemberId> {
    let first = first_in_rank(&swarm, live.iter().copied(), ANNOUNCED_TO);
    first.into_iter().map(World::id_of).collect()
}

/// Draws who is slow and who lies.
pub(crate) fn assign_natures(scenario: &Scenario, chance: &mut Chance, members: &mut [Member]) {
    let share = |percent: u32| (scenario.members * percent).div_ceil(100);
    let troubles = scenario.troubles;
    for slow in chance.some_of(scenario.members, share(troubles.slow_percent)) {
        members[slow as usize].nature.slow = true;
    }
    for lying in chance.some_of(scenario.members, share(troubles.lying_percent)) {
        members[lying as usize].nature.lying = true;
    }
}

impl World {
    pub(crate) fn schedule_troubles(&mut self) {
        let troubles = self.scenario.troubles;
        let own_time = self.scenario.wan_time(self.file_bytes);
        let span = match self.scenario.joins {
            Joins::Together => own_time,
            Joins::Within(time) => own_time.max(time),
        };
        let failing = (self.scenario.members * troubles.failing_percent).div_ceil(100);
        for number in self.chance.some_of(self.scenario.members, failing) {
            let at = self.chance.wait(span);
            self.clock.at(at, Event::Die(MemberId(number)));
        }
        match troubles.steward {
            StewardFate::Lives => {}
            StewardFate::Dies => self.clock.at(own_time / 2, Event::StewardDies),
            StewardFate::Hangs => self.clock.at(own_time / 2, Event::StewardHangs),
            StewardFate::HangsFromTheStart => self.clock.at(Duration::ZERO, Event::StewardHangs),
        }
        if troubles.partial_views {
            self.clock.at(VIEWS_DIFFER_FOR, Event::Membership);
        }
    }

    pub(crate) fn steward_hangs(&mut self) {
        let steward = self.views.steward;
        self.member(steward).nature.mute = true;
    }

    pub(crate) fn steward_dies(&mut self) {
        self.die(self.views.steward);
    }

    /// Without a word: others notice by silence.
    pub(crate) fn die(&mut self, id: MemberId) {
        let now = self.clock.now();
        let member = self.member(id);
        if member.died.replace(now).is_some() {
            return;
        }
        let unfinished = member.ended.is_none();
        let fetches = std::mem::take(&mut member.asking.fetches);
        for fetch in fetches {
            self.close_fetch(fetch);
        }
        self.clock.after(IDLE_TIMEOUT, Event::Missed(id));
        self.announce_death(now);
        if unfinished && id.0 < self.scenario.members {
            self.one_less();
        }
    }

    fn announce_death(&mut self, now: Duration) {
        let every = if self.scenario.members < LARGE {
            MEMBERSHIP_EVERY
        } else {
            MEMBERSHIP_EVERY_LARGE
        };
        let ticks = (now + MEMBER_TIMEOUT).as_nanos().div_ceil(every.as_nanos());
        let at = every * u32::try_from(ticks).unwrap_or(u32::MAX);
        if self.views.changes_at != Some(at) {
            self.views.changes_at = Some(at);
            self.clock.at(at, Event::Membership);
        }
    }

    /// Every member sees the same again: those that have not been silent for long.
    pub(crate) fn membership_changes(&mut self) {
        let now = self.clock.now();
        self.views.partial.clear();
        let gone = |member: &Member| member.died.is_some_and(|at| at + MEMBER_TIMEOUT <= now);
        let seen = self.members.iter().filter(|member| !gone(member));
        let live: BTreeSet<PeerId> = seen.map(|member| member.peer).collect();
        for number in 0..self.members.len() {
            let id = MemberId(u32::try_from(number).unwrap_or(u32::MAX));
            if !self.lives(id) {
                continue;
            }
            match self.member(id).phase {
                Phase::Idle | Phase::Asking => {}
                Phase::Manifest(_) => {
                    self.with_manifest_plan(id, |plan, at| plan.handle_members(at, &live));
                }
                Phase::Segments(_) => {
                    self.with_planner(id, |planner, at| planner.handle_members(at, &live));
                }
            }
        }
        self.views.announced_at = first_in_rank_of(self.swarm, &live);
        self.views.live = live;
        for number in 0..self.members.len() {
            let id = MemberId(u32::try_from(number).unwrap_or(u32::MAX));
            if self.lives(id) && self.member(id).ended.is_some() {
                self.announce(id);
            }
        }
    }

    /// All connections to a dead member time out.
    pub(crate) fn missed(&mut self, dead: MemberId) {
        for number in 0..self.members.len() {
            let id = MemberId(u32::try_from(number).unwrap_or(u32::MAX));
            if !self.lives(id) {
                continue;
            }
            self.forget_requester(id, dead);
            self.member_gone(id, dead);
            self.announcer_gone(id, dead);
            self.member(id).asking.dialled.remove(&dead);
            if self.member(id).asking.manifest_asked.contains(&dead) {
                self.manifest_answered(id, dead, false);
            }
            self.session_lost(id, dead);
            self.steward_lost(id, dead);
        }
    }
}
