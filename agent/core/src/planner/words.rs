//! What the planner says to its steward, and hears from it.

use std::time::Instant;

use branchline_hashing::SegmentIndex;

use super::{Action, OriginAccess, Planner};
use crate::PeerId;
use crate::swarm::{
    Answer, BlockRange, BlockSet, Enlist, Enrolment, Heard, MAX_LEASES, News, Report, Want,
};

impl Planner {
    /// The steward has answered.
    pub fn handle_answer(&mut self, now: Instant, steward: PeerId, answer: &Answer) {
        let Some(enrolment) = &mut self.enrolment else {
            return;
        };
        match enrolment.handle_answer(now, steward, answer.asked, answer.lessees) {
            Heard::Stranger => return,
            Heard::First => self.confirm_runs(&answer.granted),
            Heard::Later => {}
        }
        self.take_grants(&answer.granted);
        if let Some(neighbours) = &mut self.neighbours {
            let me = self.me;
            let others = answer.peers.iter().filter(|named| Some(named.peer) != me);
            others.for_each(|named| neighbours.named(named.peer));
        }
        self.plan(now);
    }

    /// There is a connection to the steward: it lives, as far as is known, and may be busy.
    pub fn handle_steward_reached(&mut self, now: Instant, steward: PeerId) {
        if let Some(enrolment) = &mut self.enrolment {
            enrolment.handle_reached(steward);
        }
        self.plan(now);
    }

    /// The stream to the steward has ended or could not be opened.
    pub fn handle_steward_lost(&mut self, now: Instant, steward: PeerId) {
        if let Some(enrolment) = &mut self.enrolment {
            enrolment.handle_lost(now, steward);
        }
        self.plan(now);
    }

    /// Says what is to be said now.
    pub(super) fn plan_words(&mut self, now: Instant) {
        let Some(mut enrolment) = self.enrolment.take() else {
            return;
        };
        for steward in enrolment.take_left() {
            self.actions.push_back(Action::LeaveSteward { steward });
        }
        let news = self.current_news();
        if let Some(steward) = enrolment.take_enlist(now) {
            let want = self.want(now, &enrolment);
            let enlist = self.enlist(&enrolment, want);
            self.actions.push_back(Action::Enlist { steward, enlist });
        } else if let Some(steward) = enrolment.take_report(now, news) {
            let want = self.want(now, &enrolment);
            let report = self.report(want);
            self.actions.push_back(Action::Report { steward, report });
        }
        self.enrolment = Some(enrolment);
    }

    pub(super) fn current_news(&self) -> News {
        News {
            urgent: self.news.urgent,
            held: !self.unreported.is_empty(),
            lessee: !self.leases.is_empty() || !self.origin.is_idle(),
        }
    }

    fn enlist(&mut self, enrolment: &Enrolment, want: Want) -> Enlist {
        let mut leased = BlockSet::empty(self.blocks.count());
        let runs = self.origin.tell().into_iter().filter_map(|run| {
            let first = self.blocks.of_segment(run.first());
            let last = self.blocks.of_segment(SegmentIndex(run.end() - 1));
            BlockRange::new(first, last.0 - first.0 + 1)
        });
        for blocks in runs.chain(self.leases.iter().copied()) {
            blocks.iter().for_each(|block| {
                leased.insert(block);
            });
        }
        self.said();
        Enlist {
            swarm: enrolment.swarm(),
            blocks: self.blocks,
            held: self.held.clone(),
            leased: leased.ranges().take(MAX_LEASES).collect(),
            has_manifest: true,
            want,
        }
    }

    fn report(&mut self, want: Want) -> Report {
        let held = std::mem::replace(&mut self.unreported, BlockSet::empty(self.blocks.count()));
        let mut returned = std::mem::take(&mut self.returned);
        let rest = returned.split_off(returned.len().min(MAX_LEASES));
        self.said();
        self.news.urgent = !rest.is_empty();
        self.returned = rest;
        Report {
            held,
            returned,
            has_manifest: true,
            want,
        }
    }

    fn said(&mut self) {
        self.news = News::default();
        if !self.unreported.is_empty() {
            self.unreported = BlockSet::empty(self.blocks.count());
        }
        self.returned.clear();
    }

    /// How much of the origin this member would take: nothing, while peers hold all it lacks.
    fn want(&mut self, now: Instant, enrolment: &Enrolment) -> Want {
        let worth_waiting_for = self.origin.bytes_per_sec() / 2;
        let lacks = !self.open.is_empty() && {
            let held = self.peers.held(now, worth_waiting_for);
            self.open.set().first_not_in(held).is_some()
        };
        let runs = if lacks && enrolment.may_ask_for_runs(now) {
            self.origin.leases_at(now).saturating_sub(self.leases.len())
        } else {
            0
        };
        let blocks_per_run = match self.origin.access() {
            OriginAccess::WholeFileOnly => u32::MAX,
            OriginAccess::Ranges | OriginAccess::Closed => {
                let blocks = self.origin.run_bytes() / self.block_bytes().max(1);
                u32::try_from(blocks).unwrap_or(u32::MAX - 1).max(1)
            }
        };
        Want {
            runs: u8::try_from(runs).unwrap_or(u8::MAX),
            blocks_per_run,
            manifest: false,
        }
    }

    /// How long a block is, but for the last.
    pub(super) fn block_bytes(&self) -> u64 {
        (self.bytes / u64::from(self.blocks.count().max(1))).max(1)
    }
}
