//! A member's transfer: carries out what its manifest plan and its planner say, and tells them what
//! came of it, as the agent's shell does.

use std::time::{Duration, Instant};

use branchline_core::planner::{
    Action, JoinFailure, OriginAccess, OriginPace, Planner, Setup, Sharing, Source,
};
use branchline_core::swarm::{Enrolment, ManifestAction, ManifestPlan, ManifestSetup};
use branchline_core::{SegmentRange, SegmentSet};
use branchline_hashing::SegmentIndex;

use crate::download::Download;
use crate::member::{Member, MemberId, Phase, Session};
use crate::message::Message;
use crate::wan::WanArrival;
use crate::world::{Event, Fetch, Fetched, World};

/// How long dialling takes that fails (`ExchangeOptions::dial_timeout`).
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

impl World {
    /// The member is told to fetch the file: it asks the origin what is current.
    pub(crate) fn start(&mut self, id: MemberId) {
        if !self.lives(id) {
            return;
        }
        let now = self.clock.now();
        let member = self.member(id);
        member.started = Some(now);
        member.phase = Phase::Asking;
        self.fetch(id, Fetched::Question);
    }

    /// Something came over the WAN.
    pub(crate) fn origin_sent(&mut self, arrival: WanArrival, fetch: Fetch) {
        let id = fetch.member;
        if arrival.ends {
            self.member(id).asking.fetches.remove(&arrival.fetch);
        }
        let late = id.0 >= self.scenario.members;
        match fetch.what {
            Fetched::Question => self.plan_manifest(id),
            Fetched::Manifest => {
                if late {
                    self.late_bytes += self.manifest_bytes();
                }
                self.manifest_came(id);
            }
            Fetched::Run(run) => {
                self.checks.came_from_origin(arrival.index);
                if late {
                    self.late_bytes += u64::from(self.lengths[arrival.index.0 as usize]);
                }
                self.stored(id, Source::Origin, arrival.index);
                if arrival.ends {
                    self.with_planner(id, |planner, now| planner.handle_origin_run_ended(now, run));
                }
            }
        }
    }

    fn pace(&self) -> OriginPace {
        OriginPace {
            round_trip: self.scenario.wan_rtt,
            ..OriginPace::default()
        }
    }

    fn plan_manifest(&mut self, id: MemberId) {
        let setup = ManifestSetup {
            warmed: false,
            me: self.peer_of(id),
            swarm: self.swarm,
            blocks: self.blocks,
            content_bytes: self.file_bytes,
            manifest_bytes: self.manifest_bytes(),
            members: self.views.of(id),
            pace: self.pace(),
            origin_open: true,
        };
        let now = self.clock.instant();
        let begun = Instant::now();
        let plan = ManifestPlan::new(now, setup);
        let member = self.member(id);
        member.tally.planning += begun.elapsed();
        member.phase = Phase::Manifest(Box::new(plan));
        self.act_on_manifest(id);
    }

    /// Gives the manifest plan an input, if there still is one, and does what it says.
    pub(crate) fn with_manifest_plan(
        &mut self,
        id: MemberId,
        input: impl FnOnce(&mut ManifestPlan, Instant),
    ) {
        let now = self.clock.instant();
        let member = self.member(id);
        let Phase::Manifest(plan) = &mut member.phase else {
            return;
        };
        let begun = Instant::now();
        input(plan, now);
        member.tally.planning += begun.elapsed();
        self.act_on_manifest(id);
    }

    fn act_on_manifest(&mut self, id: MemberId) {
        loop {
            let Phase::Manifest(plan) = &mut self.member(id).phase else {
                return;
            };
            let Some(action) = plan.poll_action() else {
                let deadline = plan.next_deadline().map(|deadline| deadline.at);
                return self.set_planner_alarm(id, deadline);
            };
            match action {
                ManifestAction::Enlist { steward, enlist } => self.enlist(id, steward, enlist),
                ManifestAction::Report { steward, report } => self.report(id, steward, report),
                ManifestAction::LeaveSteward { steward } => self.leave_steward(id, steward),
                ManifestAction::AskPeer { peer } => self.ask_for_manifest(id, Self::id_of(peer)),
                ManifestAction::FetchFromOrigin => self.fetch(id, Fetched::Manifest),
            }
        }
    }

    fn ask_for_manifest(&mut self, id: MemberId, peer: MemberId) {
        self.member(id).asking.manifest_asked.insert(peer);
        let wait = self.connect(id, peer);
        if self.lives(peer) {
            self.send_after(wait, id, peer, Message::ManifestRequest);
        } else {
            let event = Event::DialFailed { from: id, to: peer };
            self.clock.after(DIAL_TIMEOUT, event);
        }
    }

    /// A peer's answer to the question for the manifest.
    pub(crate) fn manifest_answered(&mut self, id: MemberId, peer: MemberId, there: bool) {
        self.member(id).asking.manifest_asked.remove(&peer);
        if there {
            self.manifest_came(id);
        } else {
            let peer = self.peer_of(peer);
            self.with_manifest_plan(id, |plan, now| plan.handle_peer_failed(now, peer));
        }
    }

    /// The manifest is there: the planner begins.
    fn manifest_came(&mut self, id: MemberId) {
        let member = self.member(id);
        if !matches!(member.phase, Phase::Manifest(_)) {
            return;
        }
        let Phase::Manifest(plan) = std::mem::replace(&mut member.phase, Phase::Asking) else {
            return;
        };
        member.asking.manifest_asked.clear();
        let fetches = std::mem::take(&mut member.asking.fetches);
        for fetch in fetches {
            self.close_fetch(fetch);
        }
        self.plan_segments(id, plan.into_enrolment());
    }

    fn plan_segments(&mut self, id: MemberId, enrolment: Enrolment) {
        let setup = Setup {
            lengths: std::sync::Arc::clone(&self.lengths),
            done: SegmentSet::empty(self.scenario.segments),
            origin: OriginAccess::Ranges,
            pace: self.pace(),
            seed: self.chance.next(),
            sharing: Some(Sharing {
                me: self.peer_of(id),
                swarm: self.swarm,
                members: self.views.of(id),
                warmed: false,
                enrolment: Some(enrolment),
            }),
        };
        let now = self.clock.instant();
        let begun = Instant::now();
        let planner = Planner::new(now, setup);
        let member = self.member(id);
        member.tally.planning += begun.elapsed();
        member.phase = Phase::Segments(Box::new(planner));
        self.act(id);
    }

    /// Gives the planner an input, if there is one, and does what it says.
    pub(crate) fn with_planner(&mut self, id: MemberId, input: impl FnOnce(&mut Planner, Instant)) {
        let now = self.clock.instant();
        let member = self.member(id);
        if member.died.is_some() {
            return;
        }
        let Phase::Segments(planner) = &mut member.phase else {
            return;
        };
        let begun = Instant::now();
        input(planner, now);
        member.tally.planning += begun.elapsed();
        self.act(id);
    }

    fn act(&mut self, id: MemberId) {
        let now = self.clock.now();
        loop {
            let member = &mut self.members[id.0 as usize];
            let Phase::Segments(planner) = &mut member.phase else {
                return;
            };
            let Some(action) = planner.poll_action() else {
                let deadline = planner.next_deadline().map(|deadline| deadline.at);
                self.checks
                    .done_came_verified(id, planner, &member.verified);
                if planner.is_finished() && member.ended.is_none() {
                    self.ended(id);
                }
                return self.set_planner_alarm(id, deadline);
            };
            self.checks.acts(id, now);
            self.carry_out(id, action);
        }
    }

    fn carry_out(&mut self, id: MemberId, action: Action) {
        match action {
            Action::Join { peer } => self.join(id, Self::id_of(peer)),
            Action::Request { peer, range } => self.request(id, Self::id_of(peer), range),
            Action::Cancel { peer, range } => self.cancel(id, Self::id_of(peer), range),
            Action::Interrupt { peer } => self.interrupt(id, Self::id_of(peer)),
            Action::DropPeer { peer, .. } => self.drop_peer(id, Self::id_of(peer)),
            Action::FetchFromOrigin { run } => self.fetch(id, Fetched::Run(run)),
            Action::CancelOrigin { run } => self.cancel_run(id, run),
            Action::Enlist { steward, enlist } => self.enlist(id, steward, enlist),
            Action::Report { steward, report } => self.report(id, steward, report),
            Action::LeaveSteward { steward } => self.leave_steward(id, steward),
        }
    }

    fn join(&mut self, id: MemberId, peer: MemberId) {
        self.member(id)
            .asking
            .sessions
            .insert(peer, Session::Joining);
        let wait = self.connect(id, peer);
        if self.lives(peer) {
            self.send_after(wait, id, peer, Message::Join);
        } else {
            let event = Event::DialFailed { from: id, to: peer };
            self.clock.after(DIAL_TIMEOUT, event);
        }
    }

    /// A peer has let this member join.
    pub(crate) fn joined(&mut self, id: MemberId, peer: MemberId, have: &SegmentSet) {
        let asking = &mut self.member(id).asking;
        let number = asking.next_number();
        if let Some(session @ Session::Joining) = asking.sessions.get_mut(&peer) {
            *session = Session::Joined(Download::new(number));
            let (peer, have) = (self.peer_of(peer), have.clone());
            self.with_planner(id, |planner, now| planner.handle_joined(now, peer, have));
        }
    }

    /// A peer has not.
    pub(crate) fn not_joined(&mut self, id: MemberId, peer: MemberId) {
        let sessions = &mut self.member(id).asking.sessions;
        if matches!(sessions.get(&peer), Some(Session::Joining)) {
            sessions.remove(&peer);
            let peer = self.peer_of(peer);
            self.with_planner(id, |planner, now| {
                planner.handle_not_joined(now, peer, JoinFailure::Absent);
            });
        }
    }

    /// A member could not be reached.
    pub(crate) fn dial_failed(&mut self, id: MemberId, peer: MemberId) {
        let asking = &mut self.member(id).asking;
        asking.dialled.remove(&peer);
        if asking.manifest_asked.contains(&peer) {
            self.manifest_answered(id, peer, false);
        }
        self.not_joined(id, peer);
    }

    /// The session with a peer has ended.
    pub(crate) fn session_lost(&mut self, id: MemberId, peer: MemberId) {
        let session = self.member(id).asking.sessions.get(&peer);
        match session {
            None => {}
            Some(Session::Joining) => self.not_joined(id, peer),
            Some(Session::Joined(_)) => {
                self.member(id).asking.sessions.remove(&peer);
                let peer = self.peer_of(peer);
                self.with_planner(id, |planner, now| planner.handle_left(now, peer));
            }
        }
    }

    fn download(&mut self, id: MemberId, peer: MemberId) -> Option<&mut Download> {
        match self.member(id).asking.sessions.get_mut(&peer)? {
            Session::Joining => None,
            Session::Joined(download) => Some(download),
        }
    }

    fn request(&mut self, id: MemberId, peer: MemberId, range: SegmentRange) {
        let lengths = std::sync::Arc::clone(&self.lengths);
        if let Some(download) = self.download(id, peer) {
            download.request(range, &lengths);
            self.fill_streams(id, peer);
        }
    }

    fn fill_streams(&mut self, id: MemberId, peer: MemberId) {
        let lengths = std::sync::Arc::clone(&self.lengths);
        while let Some(download) = self.download(id, peer)
            && let Some((stream, range)) = download.next(&lengths)
        {
            let message = Message::Request {
                download: download.id,
                stream,
                range,
            };
            self.send(id, peer, message);
        }
    }

    fn cancel(&mut self, id: MemberId, peer: MemberId, range: SegmentRange) {
        if let Some(download) = self.download(id, peer) {
            download.cancel(range);
        }
    }

    fn interrupt(&mut self, id: MemberId, peer: MemberId) {
        let number = self.member(id).asking.next_number();
        if let Some(current) = self.download(id, peer) {
            let download = std::mem::replace(current, Download::new(number)).id;
            self.send(id, peer, Message::Stop { download });
        }
    }

    fn drop_peer(&mut self, id: MemberId, peer: MemberId) {
        if self.member(id).asking.sessions.remove(&peer).is_some() {
            self.send(id, peer, Message::Bye);
        }
    }

    fn cancel_run(&mut self, id: MemberId, run: SegmentRange) {
        let of_run = |fetch: &Fetch| fetch.what == Fetched::Run(run);
        let running = &self.members[id.0 as usize].asking.fetches;
        let found = running
            .iter()
            .find(|fetch| self.fetches.get(fetch).is_some_and(of_run))
            .copied();
        if let Some(fetch) = found {
            self.member(id).asking.fetches.remove(&fetch);
            self.close_fetch(fetch);
        }
    }

    /// A request on a stream was answered in part: if it is of the present download, there is room for more.
    fn settle(
        &mut self,
        id: MemberId,
        peer: MemberId,
        (number, stream): (u32, u8),
        range: SegmentRange,
    ) -> bool {
        let lengths = std::sync::Arc::clone(&self.lengths);
        let present = self.download(id, peer).filter(|d| d.id == number);
        let Some(download) = present else {
            return false;
        };
        download.settle(stream, range, &lengths);
        self.fill_streams(id, peer);
        true
    }

    /// A segment came from a peer, and was hashed.
    pub(crate) fn segment_came(
        &mut self,
        id: MemberId,
        peer: MemberId,
        on: (u32, u8),
        index: SegmentIndex,
        right: bool,
    ) {
        if !self.settle(id, peer, on, SegmentRange::one(index)) {
            return;
        }
        let source = self.peer_of(peer);
        if right {
            if self.member(id).verified.contains(index) {
                self.member(id).tally.duplicates += 1;
            }
            self.stored(id, Source::Peer(source), index);
        } else {
            self.with_planner(id, |planner, now| planner.handle_bad_segment(now, source));
        }
    }

    /// A peer does not have a segment it was asked for.
    pub(crate) fn segment_absent(
        &mut self,
        id: MemberId,
        peer: MemberId,
        on: (u32, u8),
        index: SegmentIndex,
    ) {
        if self.settle(id, peer, on, SegmentRange::one(index)) {
            let peer = self.peer_of(peer);
            self.with_planner(id, |planner, now| planner.handle_absent(now, peer, index));
        }
    }

    /// A peer refuses a request.
    pub(crate) fn refused(
        &mut self,
        id: MemberId,
        peer: MemberId,
        on: (u32, u8),
        range: SegmentRange,
        retry_after: Duration,
    ) {
        if self.settle(id, peer, on, range) {
            let peer = self.peer_of(peer);
            self.with_planner(id, |planner, now| {
                planner.handle_busy(now, peer, range, retry_after);
            });
        }
    }

    /// A segment was verified and written: the only place where `verified` grows.
    fn stored(&mut self, id: MemberId, source: Source, index: SegmentIndex) {
        let member = self.member(id);
        if member.verified.insert(index) {
            member.tally.stored += 1;
            self.have_new(id, index);
        }
        self.with_planner(id, |planner, now| planner.handle_stored(now, source, index));
    }

    fn set_planner_alarm(&mut self, id: MemberId, deadline: Option<Instant>) {
        let deadline = deadline.map(|at| self.clock.since_start(at));
        if let Some(at) = self.member(id).planner_alarm.set(deadline) {
            self.clock.at(at, Event::PlannerAlarm(id));
        }
    }

    pub(crate) fn planner_alarm(&mut self, id: MemberId) {
        let now = self.clock.now();
        let member = self.member(id);
        if !member.planner_alarm.rings(now) || !member.lives() {
            return;
        }
        let instant = self.clock.instant();
        let due = |at: Option<branchline_core::Deadline>| at.is_some_and(|at| at.at <= instant);
        match &self.members[id.0 as usize].phase {
            Phase::Idle | Phase::Asking => {}
            Phase::Manifest(plan) if due(plan.next_deadline()) => {
                self.with_manifest_plan(id, ManifestPlan::handle_timeout);
            }
            Phase::Segments(planner) if due(planner.next_deadline()) => {
                self.with_planner(id, Planner::handle_timeout);
            }
            // Put off meanwhile.
            Phase::Manifest(plan) => {
                let deadline = plan.next_deadline().map(|deadline| deadline.at);
                self.set_planner_alarm(id, deadline);
            }
            Phase::Segments(planner) => {
                let deadline = planner.next_deadline().map(|deadline| deadline.at);
                self.set_planner_alarm(id, deadline);
            }
        }
    }

    pub(crate) fn manifest_bytes(&self) -> u64 {
        u64::from(self.scenario.segments) * 36 + 256
    }
}

impl Member {
    /// Whether others may join it: it has the manifest.
    pub(crate) fn serves(&self) -> bool {
        match self.phase {
            Phase::Idle | Phase::Asking | Phase::Manifest(_) => false,
            Phase::Segments(_) => true,
        }
    }
}
