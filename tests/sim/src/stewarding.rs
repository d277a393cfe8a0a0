//! The streams between members and their steward, and the steward's side of them.

use std::time::{Duration, Instant};

use branchline_core::PeerId;
use branchline_core::swarm::{Answer, Enlist, Report};

use crate::member::{MemberId, Phase};
use crate::message::Message;
use crate::world::{Event, World};

/// How long dialling takes that fails (`ExchangeOptions::dial_timeout`).
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

impl World {
    pub(crate) fn enlist(&mut self, id: MemberId, steward: PeerId, enlist: Enlist) {
        let to = Self::id_of(steward);
        let asking = &mut self.member(id).asking;
        let stream = asking.next_number();
        asking.enlisted_at.insert(to, stream);
        let wait = self.connect(id, to);
        if self.lives(to) {
            let from = id;
            let event = Event::StewardReached { from, to, stream };
            self.clock.after(wait, event);
            let enlist = Box::new(enlist);
            self.send_after(wait, id, to, Message::Enlist { stream, enlist });
        } else {
            let from = id;
            let event = Event::StewardUnreachable { from, to, stream };
            self.clock.after(DIAL_TIMEOUT, event);
        }
    }

    pub(crate) fn report(&mut self, id: MemberId, steward: PeerId, report: Report) {
        let to = Self::id_of(steward);
        if let Some(stream) = self.member(id).asking.enlisted_at.get(&to).copied() {
            let report = Box::new(report);
            self.send(id, to, Message::Report { stream, report });
        }
    }

    pub(crate) fn leave_steward(&mut self, id: MemberId, steward: PeerId) {
        let to = Self::id_of(steward);
        if let Some(stream) = self.member(id).asking.enlisted_at.remove(&to) {
            self.send(id, to, Message::Leave { stream });
        }
    }

    pub(crate) fn steward_reached(&mut self, id: MemberId, steward: MemberId, stream: u32) {
        if self.members[id.0 as usize].asking.enlisted_at.get(&steward) == Some(&stream) {
            let steward = self.peer_of(steward);
            match self.member(id).phase {
                Phase::Idle | Phase::Asking => {}
                Phase::Manifest(_) => self.with_manifest_plan(id, |plan, now| {
                    plan.handle_steward_reached(now, steward);
                }),
                Phase::Segments(_) => self.with_planner(id, |planner, now| {
                    planner.handle_steward_reached(now, steward);
                }),
            }
        }
    }

    pub(crate) fn steward_unreachable(&mut self, id: MemberId, steward: MemberId, stream: u32) {
        let asking = &mut self.member(id).asking;
        asking.dialled.remove(&steward);
        if asking.enlisted_at.get(&steward) == Some(&stream) {
            self.steward_lost(id, steward);
        }
    }

    /// The stream to a steward has ended: whoever plans is told.
    pub(crate) fn steward_lost(&mut self, id: MemberId, steward: MemberId) {
        if self
            .member(id)
            .asking
            .enlisted_at
            .remove(&steward)
            .is_none()
        {
            return;
        }
        let steward = self.peer_of(steward);
        match self.member(id).phase {
            Phase::Idle | Phase::Asking => {}
            Phase::Manifest(_) => {
                self.with_manifest_plan(id, |plan, now| plan.handle_steward_lost(now, steward));
            }
            Phase::Segments(_) => {
                self.with_planner(id, |planner, now| planner.handle_steward_lost(now, steward));
            }
        }
    }

    /// A steward's word. What comes on a stream that was left is not heard.
    pub(crate) fn steward_answers(
        &mut self,
        id: MemberId,
        steward: MemberId,
        stream: u32,
        answer: &Answer,
    ) {
        if self.member(id).asking.enlisted_at.get(&steward) != Some(&stream) {
            return;
        }
        let steward = self.peer_of(steward);
        match self.member(id).phase {
            Phase::Idle | Phase::Asking => {}
            Phase::Manifest(_) => {
                self.with_manifest_plan(id, |plan, now| plan.handle_answer(now, steward, answer));
            }
            Phase::Segments(_) => {
                self.with_planner(id, |planner, now| {
                    planner.handle_answer(now, steward, answer)
                });
            }
        }
    }

    pub(crate) fn member_enlists(
        &mut self,
        id: MemberId,
        from: MemberId,
        stream: u32,
        enlist: Enlist,
    ) {
        let (now, instant, peer) = (self.clock.now(), self.clock.instant(), self.peer_of(from));
        let member = self.member(id);
        member.stewarding.streams.insert(from, stream);
        if member.nature.mute {
            return;
        }
        self.checks.enlisted(id, from, &enlist, now);
        self.member(id)
            .steward(|steward| steward.handle_enlist(instant, peer, enlist));
        self.steward_speaks(id);
    }

    pub(crate) fn member_reports(
        &mut self,
        id: MemberId,
        from: MemberId,
        stream: u32,
        report: Report,
    ) {
        let member = self.member(id);
        if member.stewarding.streams.get(&from) != Some(&stream) || member.nature.mute {
            return;
        }
        let (now, instant, peer) = (self.clock.now(), self.clock.instant(), self.peer_of(from));
        let (swarm, blocks) = (self.swarm, self.blocks);
        self.checks.reported(id, from, &report, now);
        self.member(id).steward(|steward| {
            steward.handle_report(instant, peer, swarm, blocks, report);
        });
        self.steward_speaks(id);
    }

    /// A stream has ended; not that of a member that has opened another since.
    pub(crate) fn member_leaves(&mut self, id: MemberId, from: MemberId, stream: u32) {
        if self.member(id).stewarding.streams.get(&from) == Some(&stream) {
            self.member_gone(id, from);
        }
    }

    /// The stream of a member has ended.
    pub(crate) fn member_gone(&mut self, id: MemberId, from: MemberId) {
        let gone = self.member(id).stewarding.streams.remove(&from);
        if gone.is_none() || self.member(id).nature.mute {
            return;
        }
        let (instant, peer) = (self.clock.instant(), self.peer_of(from));
        let (swarm, blocks) = (self.swarm, self.blocks);
        self.checks.left(id, from);
        self.member(id)
            .steward(|steward| steward.handle_left(instant, peer, swarm, blocks));
        self.steward_speaks(id);
    }

    /// A member that has the whole content says so to the first in rank, and to those that come
    /// to be it.
    pub(crate) fn announce(&mut self, id: MemberId) {
        for steward in self.views.announced_at.clone() {
            if self.member(id).asking.announced_to.insert(steward) && self.lives(steward) {
                let wait = self.connect(id, steward);
                self.send_after(wait, id, steward, Message::Announce);
            }
        }
    }

    pub(crate) fn member_announces(&mut self, id: MemberId, from: MemberId) {
        if self.member(id).nature.mute {
            return;
        }
        let (instant, peer, swarm) = (self.clock.instant(), self.peer_of(from), self.swarm);
        self.member(id)
            .steward(|steward| steward.handle_announce(instant, peer, &[swarm]));
        self.steward_speaks(id);
    }

    /// The connection of an agent that may have announced has ended.
    pub(crate) fn announcer_gone(&mut self, id: MemberId, from: MemberId) {
        if !self.member(id).nature.mute {
            let (instant, peer) = (self.clock.instant(), self.peer_of(from));
            self.member(id)
                .steward(|steward| steward.handle_announcer_left(instant, peer));
            self.steward_speaks(id);
        }
    }

    pub(crate) fn steward_alarm(&mut self, id: MemberId) {
        let (now, instant) = (self.clock.now(), self.clock.instant());
        let member = self.member(id);
        if !member.stewarding.alarm.rings(now) || !member.lives() || member.nature.mute {
            return;
        }
        let deadline = member.stewarding.steward.next_deadline();
        if deadline.is_some_and(|deadline| deadline.at <= instant) {
            member.steward(|steward| steward.handle_timeout(instant));
        }
        self.steward_speaks(id);
    }

    fn steward_speaks(&mut self, id: MemberId) {
        let now = self.clock.now();
        while let Some(told) = {
            let begun = Instant::now();
            let member = self.member(id);
            let told = member.stewarding.steward.poll_output();
            member.tally.planning += begun.elapsed();
            told
        } {
            let to = Self::id_of(told.to);
            let Some(stream) = self.member(id).stewarding.streams.get(&to).copied() else {
                continue;
            };
            self.checks.granted(id, to, &told.answer, now);
            let answer = Box::new(told.answer);
            self.send(id, to, Message::Answer { stream, answer });
        }
        let deadline = self.member(id).stewarding.steward.next_deadline();
        let deadline = deadline.map(|deadline| self.clock.since_start(deadline.at));
        if let Some(at) = self.member(id).stewarding.alarm.set(deadline) {
            self.clock.at(at, Event::StewardAlarm(id));
        }
    }
}
