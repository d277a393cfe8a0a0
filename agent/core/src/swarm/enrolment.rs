//! A member's side of the relation with its steward: whom it asks, how long it waits, when it speaks.
//!
//! Used by [`ManifestPlan`](super::ManifestPlan) first and by the planner after it, over one stream. What
//! is said is theirs: this says when, and to whom.
//!
//! Invariant: at most one stream is open, to the steward of the phase; each other one was left.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use branchline_hashing::SwarmId;

use super::first_in_rank;
use crate::planner::AnswerPatience;
use crate::{Deadline, PeerId};

/// A steward that has not answered the first word for so long is passed over: a connection and an
/// answer take a few milliseconds on a LAN, a busy machine some ten times that.
pub const STEWARD_PATIENCE: Duration = Duration::from_millis(300);

/// One that was reached lives and is busy, as it is when a hundred members come at one moment. It is given what the wait for
/// all stewards has left over one more try, but no longer than this: two stewards lease the same.
const BUSY_STEWARD_PATIENCE: Duration = Duration::from_millis(900);

/// One that has answered before has so long: passing it over costs the branch more, for two stewards may
/// lease the same.
pub const STEWARD_SILENCE: Duration = Duration::from_secs(1);

/// So many stewards are tried before a member goes on alone; more dead ones in a row than that
/// are a LAN that is cut.
pub const STEWARDS_TRIED: u32 = 3;

/// A member that is alone looks for a steward again after so long.
pub const ALONE_AGAIN: Duration = Duration::from_secs(2);

/// A steward that failed is passed over for so long.
const FAILED_RESTS: Duration = Duration::from_secs(10);

/// Members move to a new first in rank so long after they heard of it: by then all have.
pub const MOVES_AFTER: Duration = Duration::from_secs(1);

/// A member that comes from another steward asks for new leases only after so long: all bring along
/// those that they have first.
pub const SETTLES: Duration = Duration::from_millis(500);

/// Reports of blocks that came are sent together, by a member with leases.
const REPORT_COALESCED: Duration = Duration::from_millis(200);

/// A member with leases reports at least this often.
pub const REPORT_EVERY: Duration = Duration::from_secs(1);

/// One without: it tells what it holds, and hears whether the steward is still there.
pub const IDLE_REPORT_EVERY: Duration = Duration::from_secs(3);

/// See the module's text.
#[derive(Debug)]
pub struct Enrolment {
    me: PeerId,
    swarm: SwarmId,
    /// The first few in rank over the members and this agent.
    rank: Vec<PeerId>,
    has_company: bool,
    /// When others were asked for the first time.
    began: Instant,
    /// Until when only the steward is asked for anything, unless one has answered.
    steward_alone_until: Instant,
    phase: Phase,
    /// For the first answer of the very first; of each; of one that was reached; and how many are tried.
    first_patience: Duration,
    patience: Duration,
    busy_patience: Duration,
    has_asked: bool,
    tries_allowed: u32,
    tries: u32,
    failed: BTreeMap<PeerId, Instant>,
    moves_at: Option<Instant>,
    /// All that were tried have failed, and nobody has answered since.
    unserved: bool,
    /// Whether any steward has ever answered.
    was_served: bool,
    /// No leases are asked for before.
    settles_until: Option<Instant>,
    /// Whether somebody had leases when a steward spoke last.
    anybody_leases: bool,
    left: Vec<PeerId>,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// No steward: there is nobody else, or none has answered. One that was asked may still.
    Alone {
        asked: Option<PeerId>,
        again_at: Option<Instant>,
    },
    /// The caller is to enlist.
    ToEnlist { steward: PeerId },
    /// Enlisted, and not answered.
    Asked {
        steward: PeerId,
        until: Instant,
        /// The same if it is reached.
        busy_until: Instant,
        reached: bool,
    },
    Enlisted {
        steward: PeerId,
        /// Since when a report has gone unanswered.
        unanswered: Option<Instant>,
        reported: Instant,
    },
}

/// What a member has to tell.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct News {
    /// Something the steward can act on at once: a lease that has ended, or a new want.
    pub(crate) urgent: bool,
    /// Blocks that have come.
    pub(crate) held: bool,
    /// Whether this member has leases.
    pub(crate) lessee: bool,
}

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The answer to [`Enlist`](super::Enlist): it says all that this member may fetch.
    First,
    /// A later one.
    Later,
    /// From somebody who is not the steward: it counts for nothing.
    Stranger,
}

impl Enrolment {
    /// Begins with the first in rank. `patience` bounds the wait for a first answer.
    pub(crate) fn new(
        now: Instant,
        me: PeerId,
        swarm: SwarmId,
        members: &BTreeSet<PeerId>,
        patience: AnswerPatience,
    ) -> Self {
        let AnswerPatience {
            whole,
            unreached,
            steward_alone,
        } = patience;
        let tries = whole.as_millis() / STEWARD_PATIENCE.as_millis();
        let mut enrolment = Self {
            me,
            swarm,
            rank: Vec::new(),
            has_company: false,
            began: now,
            steward_alone_until: now + steward_alone,
            phase: Phase::Alone {
                asked: None,
                again_at: None,
            },
            first_patience: unreached.min(STEWARD_PATIENCE),
            patience: whole.min(STEWARD_PATIENCE),
            busy_patience: whole
                .saturating_sub(STEWARD_PATIENCE)
                .clamp(whole.min(STEWARD_PATIENCE), BUSY_STEWARD_PATIENCE),
            has_asked: false,
            tries_allowed: u32::try_from(tries)
                .unwrap_or(u32::MAX)
                .clamp(1, STEWARDS_TRIED),
            tries: 0,
            failed: BTreeMap::new(),
            moves_at: None,
            unserved: false,
            was_served: false,
            settles_until: None,
            anybody_leases: false,
            left: Vec::new(),
        };
        enrolment.set_members(members);
        enrolment.begin(now);
        enrolment
    }

    /// Whether the member must look after itself: no steward answers, or there is nobody else. It
    /// does so, too, while it tries to find one again.
    pub(crate) fn is_alone(&self) -> bool {
        self.unserved || matches!(self.phase, Phase::Alone { .. })
    }

    pub(crate) fn swarm(&self) -> SwarmId {
        self.swarm
    }

    /// Whether a steward was asked that may still answer in time.
    pub(crate) fn awaits_answer(&self) -> bool {
        matches!(self.phase, Phase::Asked { .. } | Phase::ToEnlist { .. })
    }

    /// Whether the others are left alone for now: the steward is asked, and none has ever answered.
    pub(crate) fn asks_the_steward_alone(&self, now: Instant) -> bool {
        let until = self.steward_is_asked_alone_until();
        until.is_some_and(|until| now < until)
    }

    /// Until when, unless a steward answers; `None` when one has, or none is asked.
    pub(crate) fn steward_is_asked_alone_until(&self) -> Option<Instant> {
        (self.awaits_answer() && !self.was_served).then_some(self.steward_alone_until)
    }

    /// When the search for others began: it may have been for the manifest.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Whether the branch has other members.
    pub(crate) fn has_company(&self) -> bool {
        self.has_company
    }

    /// Whether leases may be asked for yet. See [`SETTLES`].
    pub(crate) fn may_ask_for_runs(&self, now: Instant) -> bool {
        self.settles_until.is_none_or(|until| until <= now)
    }

    /// The branch has changed.
    pub(crate) fn handle_members(&mut self, now: Instant, members: &BTreeSet<PeerId>) {
        let had_company = self.has_company;
        self.set_members(members);
        if self.steward() == self.best(now) && self.steward().is_some() {
            self.moves_at = None;
        } else if !had_company {
            self.begin(now);
        } else {
            self.moves_at.get_or_insert(now + MOVES_AFTER);
        }
    }

    /// There is a connection to a steward, and what is to be said is on its way.
    pub(crate) fn handle_reached(&mut self, steward: PeerId) {
        let first_try = self.tries == 0;
        if let Phase::Asked {
            steward: asked,
            until,
            busy_until,
            reached,
        } = &mut self.phase
            && *asked == steward
            && first_try
        {
            *reached = true;
            *until = *busy_until;
        }
    }

    /// A steward that was reached has had the time of all that may be tried but one.
    fn count_busy(&mut self) {
        if self.busy_patience > self.patience {
            self.tries = self.tries.max(self.tries_allowed().saturating_sub(2));
        }
    }

    /// A steward has answered.
    pub(crate) fn handle_answer(
        &mut self,
        now: Instant,
        from: PeerId,
        asked: bool,
        lessees: u32,
    ) -> Heard {
        let heard = match self.phase {
            Phase::Alone {
                asked: Some(steward),
                ..
            }
            | Phase::Asked { steward, .. }
                if steward == from =>
            {
                self.tries = 0;
                Heard::First
            }
            Phase::Enlisted { steward, .. } if steward == from => Heard::Later,
            Phase::Alone { .. }
            | Phase::ToEnlist { .. }
            | Phase::Asked { .. }
            | Phase::Enlisted { .. } => return Heard::Stranger,
        };
        self.unserved = false;
        self.was_served = true;
        // Only answers count their lessees; what comes unasked may leave it out.
        self.anybody_leases = lessees > 0 || (!asked && self.anybody_leases);
        let (unanswered, reported) = match self.phase {
            Phase::Enlisted {
                unanswered,
                reported,
                ..
            } => (unanswered.filter(|_| !asked), reported),
            Phase::Alone { .. } | Phase::ToEnlist { .. } | Phase::Asked { .. } => (None, now),
        };
        self.phase = Phase::Enlisted {
            steward: from,
            unanswered,
            reported,
        };
        heard
    }

    /// A steward's stream has ended, or could not be opened.
    pub(crate) fn handle_lost(&mut self, now: Instant, steward: PeerId) {
        match self.phase {
            Phase::Alone { again_at, .. } if self.steward() == Some(steward) => {
                self.phase = Phase::Alone {
                    asked: None,
                    again_at,
                };
            }
            Phase::Asked {
                reached: true,
                busy_until,
                ..
            } if self.steward() == Some(steward)
                && busy_until < now + (self.busy_patience.saturating_sub(self.patience)) =>
            {
                self.count_busy();
                self.pass_over(now, steward);
            }
            Phase::Asked { .. } | Phase::Enlisted { .. } if self.steward() == Some(steward) => {
                self.pass_over(now, steward);
            }
            Phase::Alone { .. }
            | Phase::ToEnlist { .. }
            | Phase::Asked { .. }
            | Phase::Enlisted { .. } => {}
        }
    }

    /// A deadline has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Alone {
                again_at: Some(at), ..
            } if at <= now => {
                self.tries = 0;
                self.begin(now);
            }
            Phase::Asked {
                steward,
                until,
                reached,
                ..
            } if until <= now => {
                if reached {
                    self.count_busy();
                }
                self.be_impatient(now, steward);
            }
            Phase::Enlisted {
                steward,
                unanswered: Some(since),
                ..
            } if since + STEWARD_SILENCE <= now => {
                self.left.push(steward);
                self.pass_over(now, steward);
            }
            Phase::Alone { .. }
            | Phase::ToEnlist { .. }
            | Phase::Asked { .. }
            | Phase::Enlisted { .. } => {}
        }
        if self.moves_at.is_some_and(|at| at <= now) {
            self.moves_at = None;
            self.move_on(now);
        }
        let enlisted = matches!(self.phase, Phase::Enlisted { .. });
        if enlisted && self.steward() != self.best(now) {
            self.moves_at.get_or_insert(now + MOVES_AFTER);
        }
    }

    pub(crate) fn next_deadline(&self, now: Instant, news: News) -> Option<Deadline> {
        let (at, waiting_for) = match self.phase {
            Phase::Alone { again_at, .. } => (again_at, "another try to find a steward"),
            Phase::ToEnlist { .. } => (Some(now), "the steward to be asked"),
            Phase::Asked { until, .. } => (Some(until), "the steward to answer"),
            Phase::Enlisted {
                unanswered: Some(since),
                ..
            } => (Some(since + STEWARD_SILENCE), "the steward to answer"),
            Phase::Enlisted { reported, .. } => {
                (Some(report_at(reported, news)), "the next report")
            }
        };
        let first = at.map(|at| Deadline { at, waiting_for });
        let later = |at: Option<Instant>, waiting_for| at.map(|at| Deadline { at, waiting_for });
        [
            first,
            later(self.moves_at, "the branch to settle"),
            later(
                self.better_rests_until(now),
                "a steward that failed to be tried again",
            ),
            later(
                self.settles_until.filter(|until| *until > now),
                "others to bring their leases",
            ),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Streams to end.
    pub(crate) fn take_left(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.left)
    }

    /// Whom to enlist with now.
    pub(crate) fn take_enlist(&mut self, now: Instant) -> Option<PeerId> {
        let Phase::ToEnlist { steward } = self.phase else {
            return None;
        };
        self.settles_until = self.anybody_leases.then(|| now + SETTLES);
        let each = match std::mem::replace(&mut self.has_asked, true) {
            false => self.first_patience,
            true => self.patience,
        };
        self.phase = Phase::Asked {
            steward,
            until: now + each,
            busy_until: now + self.busy_patience,
            reached: false,
        };
        Some(steward)
    }

    /// Whom to report to, if it is time; the report counts as sent.
    pub(crate) fn take_report(&mut self, now: Instant, news: News) -> Option<PeerId> {
        let Phase::Enlisted {
            steward,
            unanswered,
            reported,
        } = self.phase
        else {
            return None;
        };
        let settled = self.settles_until.is_some_and(|until| until <= now);
        if now < report_at(reported, news) && !settled {
            return None;
        }
        if settled {
            self.settles_until = None;
        }
        self.phase = Phase::Enlisted {
            steward,
            unanswered: unanswered.or(Some(now)),
            reported: now,
        };
        Some(steward)
    }

    fn steward(&self) -> Option<PeerId> {
        match self.phase {
            Phase::Alone { asked, .. } => asked,
            Phase::ToEnlist { steward }
            | Phase::Asked { steward, .. }
            | Phase::Enlisted { steward, .. } => Some(steward),
        }
    }

    fn set_members(&mut self, members: &BTreeSet<PeerId>) {
        let others = members.iter().copied().filter(|member| *member != self.me);
        let all = others.chain([self.me]);
        let count = STEWARDS_TRIED as usize + 1;
        self.rank = first_in_rank(&self.swarm, all, count);
        self.has_company = members.iter().any(|member| *member != self.me);
    }

    /// The first in rank that has not failed lately.
    fn best(&self, now: Instant) -> Option<PeerId> {
        let rests = |id: &PeerId| self.failed.get(id).is_some_and(|until| now < *until);
        let first = self.rank.first().copied();
        self.rank.iter().copied().find(|id| !rests(id)).or(first)
    }

    fn begin(&mut self, now: Instant) {
        match self.phase {
            Phase::Alone { asked, .. } => self.left.extend(asked),
            Phase::Asked { steward, .. } | Phase::Enlisted { steward, .. } => {
                self.left.push(steward);
            }
            Phase::ToEnlist { .. } => {}
        }
        self.moves_at = None;
        self.phase = match self.best(now).filter(|_| self.has_company) {
            Some(steward) => Phase::ToEnlist { steward },
            None => Phase::Alone {
                asked: None,
                again_at: None,
            },
        };
    }

    /// No first answer in time: the next in rank, or nobody for now.
    fn be_impatient(&mut self, now: Instant, steward: PeerId) {
        if self.tries + 1 < self.tries_allowed() {
            self.left.push(steward);
            return self.pass_over(now, steward);
        }
        self.tries = 0;
        self.unserved = true;
        self.phase = Phase::Alone {
            asked: Some(steward),
            again_at: Some(now + ALONE_AGAIN),
        };
    }

    /// The patience bounds the beginning. Later a member that has lost its steward tries the next one, too,
    /// before it does without: others will be with that one.
    fn tries_allowed(&self) -> u32 {
        if self.was_served {
            self.tries_allowed.max(2)
        } else {
            self.tries_allowed
        }
    }

    fn pass_over(&mut self, now: Instant, steward: PeerId) {
        self.failed.retain(|_, until| now < *until);
        self.failed.insert(steward, now + FAILED_RESTS);
        self.tries += 1;
        self.phase = Phase::Alone {
            asked: None,
            again_at: Some(now + ALONE_AGAIN),
        };
        if self.tries < self.tries_allowed() {
            self.begin(now);
        } else {
            self.unserved = true;
        }
    }

    fn move_on(&mut self, now: Instant) {
        let current = self.steward();
        if matches!(self.phase, Phase::Alone { .. }) || current == self.best(now) {
            return;
        }
        self.begin(now);
    }

    /// The end of the rest of a steward that comes before this one in rank: members come back to it.
    fn better_rests_until(&self, now: Instant) -> Option<Instant> {
        let Phase::Enlisted { steward, .. } = self.phase else {
            return None;
        };
        let before = self.rank.iter().take_while(|id| **id != steward);
        let rests = before.filter_map(|id| self.failed.get(id).copied());
        rests.filter(|until| *until > now).min()
    }
}

fn report_at(reported: Instant, news: News) -> Instant {
    if news.urgent {
        return reported;
    }
    reported
        + match (news.lessee, news.held) {
            (true, true) => REPORT_COALESCED,
            (true, false) => REPORT_EVERY,
            (false, _) => IDLE_REPORT_EVERY,
        }
}

#[cfg(test)]
mod tests;
