//! Carries out what the planner decides: requests to peers, runs from the origin, one writer.
//!
//! Decides nothing itself. One loop owns the planner; everything that happens reaches it as an
//! event, and after each event it drains the planner's actions.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use branchline_core::planner::{
    Action, OriginAccess, OriginPace, Planner, RunFailure, Setup, Sharing, Source, Waiting,
};
use branchline_core::{PeerId, SegmentRange, SegmentSet};
use branchline_discovery::Membership;
use branchline_hashing::{ContentKey, HashMismatch, SegmentHash, SegmentIndex};
use branchline_origin::{OriginError, Ranges, Remote, Target};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::engine::content::LocalContent;
use crate::engine::links::{LinkEvent, Links};
use crate::engine::manifest_search::{Handover, retain_members};
use crate::engine::origin_run::{self, RunEnd};
use crate::engine::outline::Outline;
use crate::engine::partial::{Partial, PartialError};
use crate::engine::progress::Meter;
use crate::engine::provisional::{ProvisionalContent, provenance_of};
use crate::engine::stewards::{StewardWord, Stewards};
use crate::engine::writer::{self, Arrivals, Outcome};
use crate::engine::{Shared, far_future, linux, now};

/// How often the user hears of progress.
pub(crate) const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Why a planned transfer ended without its file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlannedError {
    /// The origin will not give what only it has.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The origin's bytes are not those of the manifest.
    #[error("segment {index} from the origin is not the one in the manifest ({mismatch})")]
    OriginMismatch {
        /// Which.
        index: SegmentIndex,
        /// The hashes.
        mismatch: HashMismatch,
    },
    /// This machine's file.
    #[error(transparent)]
    Local(#[from] PartialError),
    /// The origin is closed and no peer in sight holds the rest.
    #[error("no peer in sight holds the rest of the file")]
    NobodyHasIt,
}

/// What a transfer fills.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Filling<'a> {
    /// A content whose table is known: segments are verified as they come.
    Described(&'a LocalContent),
    /// One of which only the whole can be verified.
    Provisional(&'a ProvisionalContent),
}

impl Filling<'_> {
    fn key(&self) -> ContentKey {
        match self {
            Self::Described(content) => content.key,
            Self::Provisional(content) => content.key,
        }
    }

    fn outline(&self) -> Outline {
        match self {
            Self::Described(content) => Outline::Table(Arc::clone(&content.manifest)),
            Self::Provisional(content) => Outline::Fixed(content.segments),
        }
    }

    fn done(&self) -> SegmentSet {
        match self {
            Self::Described(content) => content.done.segments(),
            Self::Provisional(content) => content.done.segments(),
        }
    }

    /// How often those who watch are told of what is there.
    fn set_tell_every(&self, every: Duration) {
        match self {
            Self::Described(content) => content.done.set_tell_every(every),
            Self::Provisional(content) => content.done.set_tell_every(every),
        }
    }

    /// A segment is written; whether it was not there before.
    fn mark(&self, source: Source, index: SegmentIndex, hash: SegmentHash) -> bool {
        match self {
            Self::Described(content) => content.done.insert(index),
            Self::Provisional(content) => content.mark(index, hash, provenance_of(source)),
        }
    }
}

/// One planned transfer.
pub(crate) struct Planned<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) filling: Filling<'a>,
    pub(crate) partial: &'a Partial,
    pub(crate) target: &'a Target,
    /// What the origin said; without it the origin is not asked.
    pub(crate) remote: Option<&'a Remote>,
    /// Whether peers may be believed.
    pub(crate) peers: bool,
    /// But for these.
    pub(crate) shut_out: &'a BTreeSet<PeerId>,
    /// How fast the origin is expected to be.
    pub(crate) pace: OriginPace,
    /// Whether who lives of the others has been reached by now.
    pub(crate) warmed: bool,
}

struct Running<'a> {
    plan: Planned<'a>,
    outline: Outline,
    planner: Planner,
    links: Links<'a>,
    stewards: Stewards,
    runs: JoinSet<RunEnd>,
    run_handles: BTreeMap<SegmentRange, AbortHandle>,
    /// Runs that have ended while the writer still has segments of theirs.
    ended: Vec<RunEnd>,
    arrivals: Arrivals,
    origin_error: Option<OriginError>,
    /// Peers that went away; what they sent before may still wait for the writer.
    leaving: Vec<PeerId>,
}

impl Planned<'_> {
    /// Fetches every missing segment into the partial file. The streams to stewards stay, for them to
    /// count what is held here until it is announced.
    ///
    /// Not cancel-safe in the sense that it can be continued; dropping it ends its sessions and
    /// requests, and what is written stays.
    pub(crate) async fn run(
        self,
        handover: Option<Handover>,
        meter: &mut Meter,
    ) -> Result<Stewards, PlannedError> {
        let (key, outline) = (self.filling.key(), self.filling.outline());
        let (arrivals, mut outcomes) = writer::start(self.partial.handle()?, outline.clone())
            .map_err(|error| self.partial.fail("start a thread for", error))?;
        let lengths = outline.lengths();
        let exchange = self.shared.exchange.as_ref().filter(|_| self.peers);
        let shut_out = self.shut_out.clone();
        let links = Links::new(exchange, key, shut_out, &lengths, arrivals.clone());
        let (stewards, enrolment) = match handover {
            Some(Handover {
                stewards,
                enrolment,
            }) => (stewards, Some(enrolment)),
            None => (Stewards::new(), None),
        };
        let sharing = exchange.map(|_| Sharing {
            me: self.shared.me,
            swarm: key.swarm_id(),
            members: ids(&self.shared.membership()),
            warmed: self.warmed,
            enrolment,
        });
        let setup = Setup {
            lengths,
            done: self.filling.done(),
            origin: access_of(self.remote),
            pace: self.pace,
            seed: linux::random(),
            sharing,
        };
        let planner = Planner::new(now(), setup);
        let runs = JoinSet::new();
        let run_handles = BTreeMap::new();
        let mut running = Running {
            plan: self,
            outline,
            planner,
            links,
            stewards,
            runs,
            run_handles,
            ended: Vec::new(),
            arrivals,
            origin_error: None,
            leaving: Vec::new(),
        };
        let result = running.go(&mut outcomes, meter).await;
        // Whoever opens the partial file next must find no writer at work in it.
        let stewards = running.into_stewards();
        while outcomes.recv().await.is_some() {}
        result.map(|()| stewards)
    }
}

/// What the planner may expect of the origin.
fn access_of(remote: Option<&Remote>) -> OriginAccess {
    match remote {
        None => OriginAccess::Closed,
        Some(remote) => match remote.ranges {
            Ranges::Yes => OriginAccess::Ranges,
            // One that does not say mostly has none, and would answer each run with the whole file.
            Ranges::Unknown | Ranges::No => OriginAccess::WholeFileOnly,
        },
    }
}

impl Running<'_> {
    /// Ends all but the streams to stewards.
    fn into_stewards(self) -> Stewards {
        self.stewards
    }

    async fn go(
        &mut self,
        outcomes: &mut mpsc::Receiver<Vec<Outcome>>,
        meter: &mut Meter,
    ) -> Result<(), PlannedError> {
        let mut members = self.plan.shared.members.clone();
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        loop {
            self.act();
            if self.planner.is_finished() {
                return Ok(());
            }
            if self.leaving.is_empty() && self.writer_is_idle() && self.planner.is_stuck(now()) {
                return Err(self
                    .origin_error
                    .take()
                    .map_or(PlannedError::NobodyHasIt, Into::into));
            }
            let deadline = self.planner.next_deadline();
            let until = deadline.map_or_else(far_future, |deadline| Instant::from_std(deadline.at));
            tokio::select! {
                batch = outcomes.recv() => {
                    let stopped = || self.plan.partial.fail("write", io::Error::other("writer ended"));
                    self.settle(batch.ok_or_else(stopped)?, meter)?;
                    self.settled_runs_end()?;
                }
                event = self.links.next() => self.hear(event),
                word = self.stewards.next() => self.hear_steward(word),
                Some(end) = self.runs.join_next() => {
                    match end {
                        Ok(end) => self.ended.push(end),
                        // Aborted on the planner's word, which has forgotten the run already.
                        Err(error) if error.is_cancelled() => {}
                        Err(error) => std::panic::resume_unwind(error.into_panic()),
                    }
                    self.settled_runs_end()?;
                }
                Some(members) = changed(&mut members) => {
                    self.planner.handle_members(now(), &ids(&members));
                }
                () = sleep_until(until) => {
                    // What lies here already was in time.
                    while let Some(word) = self.stewards.try_next() {
                        self.hear_steward(word);
                    }
                    if self.writer_is_behind() {
                        self.planner.handle_local_delay(now());
                    }
                    self.planner.handle_timeout(now());
                }
                _ = progress.tick() => {
                    self.let_go();
                    meter.report(self.links.joined(), &told(self.planner.waiting()));
                }
            }
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.planner.poll_action() {
            match action {
                Action::Join { peer } => self.links.join(&self.plan.shared.membership(), peer),
                Action::Enlist { steward, enlist } => {
                    self.stewards.enlist(self.plan.shared, steward, enlist);
                }
                Action::Report { steward, report } => self.stewards.report(steward, report),
                Action::LeaveSteward { steward } => self.stewards.leave(steward),
                Action::Request { peer, range } => self.links.request(peer, range),
                Action::Cancel { peer, range } => self.links.cancel(peer, range),
                Action::Interrupt { peer } => self.links.interrupt(peer),
                Action::DropPeer { peer, reason } => self.links.drop_peer(peer, reason),
                Action::FetchFromOrigin { run } => self.fetch(run),
                Action::CancelOrigin { run } => {
                    if let Some(handle) = self.run_handles.remove(&run) {
                        handle.abort();
                    }
                    self.ended.retain(|end| end.run != run);
                }
            }
        }
        self.plan.filling.set_tell_every(self.planner.tell_every());
    }

    fn fetch(&mut self, run: SegmentRange) {
        let Some(remote) = self.plan.remote else {
            return;
        };
        let work = origin_run::fetch(
            self.plan.shared.origin.clone(),
            self.plan.target.clone(),
            remote.clone(),
            self.outline.clone(),
            run,
            self.arrivals.clone(),
        );
        let handle = self.runs.spawn(work);
        self.run_handles.insert(run, handle);
    }

    fn settle(&mut self, batch: Vec<Outcome>, meter: &mut Meter) -> Result<(), PlannedError> {
        let mut stored = Vec::with_capacity(batch.len());
        let mut others = Vec::new();
        for outcome in batch {
            match outcome {
                Outcome::Stored {
                    source,
                    index,
                    length,
                    hash,
                } => {
                    if self.plan.filling.mark(source, index, hash) {
                        meter.count(source, length);
                    }
                    stored.push((source, index));
                }
                other @ (Outcome::Bad { .. } | Outcome::Failed(_)) => others.push(other),
            }
        }
        self.planner.handle_stored_many(now(), stored);
        others.into_iter().try_for_each(|other| self.refuse(other))
    }

    fn refuse(&mut self, outcome: Outcome) -> Result<(), PlannedError> {
        match outcome {
            Outcome::Stored { .. } => {}
            Outcome::Bad {
                source: Source::Peer(peer),
                index,
                mismatch,
            } => {
                tracing::warn!(%peer, %index, %mismatch, "a peer sent a wrong segment");
                self.planner.handle_bad_segment(now(), peer);
            }
            Outcome::Bad {
                source: Source::Origin,
                index,
                mismatch,
            } => {
                return Err(PlannedError::OriginMismatch { index, mismatch });
            }
            Outcome::Failed(error) => return Err(self.plan.partial.fail("write", error).into()),
        }
        Ok(())
    }

    fn hear_steward(&mut self, word: StewardWord) {
        match word {
            StewardWord::Answered {
                steward,
                mut answer,
            } => {
                retain_members(&mut answer, &self.plan.shared.membership());
                self.planner.handle_answer(now(), steward, &answer);
            }
            StewardWord::Reached { steward } => {
                self.planner.handle_steward_reached(now(), steward);
            }
            StewardWord::Lost { steward } => self.planner.handle_steward_lost(now(), steward),
        }
    }

    fn hear(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Joined { peer, have } => {
                if self.leaving.contains(&peer) {
                    self.leaving.retain(|leaving| *leaving != peer);
                    self.planner.handle_left(now(), peer);
                }
                self.planner.handle_joined(now(), peer, have);
            }
            LinkEvent::NotJoined { peer, failure } => {
                self.planner.handle_not_joined(now(), peer, failure);
            }
            LinkEvent::Have { peer, have } => self.planner.handle_have(now(), peer, have),
            LinkEvent::HaveMore { peer, more } => {
                self.planner.handle_have_more(now(), peer, more.ranges());
            }
            LinkEvent::Absent { peer, index } => self.planner.handle_absent(now(), peer, index),
            LinkEvent::Busy {
                peer,
                range,
                retry_after,
            } => {
                self.planner.handle_busy(now(), peer, range, retry_after);
            }
            LinkEvent::Lied { peer } => self.planner.handle_bad_segment(now(), peer),
            LinkEvent::Left { peer } => self.leaving.push(peer),
        }
    }

    /// More than half of the writer's queue is full: what it holds up is not the peers' fault.
    fn writer_is_behind(&self) -> bool {
        self.arrivals.capacity() < self.arrivals.max_capacity() / 2
    }

    fn writer_is_idle(&self) -> bool {
        self.arrivals.capacity() == self.arrivals.max_capacity()
    }

    /// Peers that went away are gone for the planner once what they had sent is settled: it would
    /// ask others for it.
    fn let_go(&mut self) {
        if self.writer_is_idle() {
            for peer in std::mem::take(&mut self.leaving) {
                self.planner.handle_left(now(), peer);
            }
        }
    }

    /// A run has ended for the planner when what it brought is written: it would fetch the rest again.
    fn settled_runs_end(&mut self) -> Result<(), PlannedError> {
        let done = self.planner.done();
        let settled = |end: &mut RunEnd| {
            let mut brought = (end.run.first().0..end.next.0).map(SegmentIndex);
            brought.all(|index| done.contains(index))
        };
        let ended: Vec<RunEnd> = self.ended.extract_if(.., settled).collect();
        ended.into_iter().try_for_each(|end| self.run_ended(end))
    }

    fn run_ended(&mut self, RunEnd { run, result, .. }: RunEnd) -> Result<(), PlannedError> {
        self.run_handles.remove(&run);
        let failure = match result {
            Ok(()) => {
                self.planner.handle_origin_run_ended(now(), run);
                return Ok(());
            }
            Err(error @ OriginError::Changed { .. }) => return Err(error.into()),
            Err(error) => {
                // A request for the whole file has waited by itself.
                let ranged = run.count() < self.outline.count();
                let failure = failure_of(&error, ranged);
                if let RunFailure::Busy { .. } = failure {
                    tracing::debug!(%run, %error, "the origin gives no more at a time");
                } else {
                    tracing::warn!(%run, %error, "the origin did not give a run");
                }
                self.origin_error = Some(error);
                failure
            }
        };
        let before = self.planner.origin_access();
        self.planner.handle_origin_run_failed(now(), run, failure);
        let after = self.planner.origin_access();
        if before != after && after == OriginAccess::Closed {
            tracing::warn!("the origin is asked no more; what is missing is left to peers");
        }
        Ok(())
    }
}

pub(crate) fn ids(members: &Membership) -> BTreeSet<PeerId> {
    members.members().keys().copied().collect()
}

fn failure_of(error: &OriginError, ranged: bool) -> RunFailure {
    if matches!(error, OriginError::BadRange { .. }) {
        RunFailure::NoRanges
    } else if let Some(retry_after) = error.is_busy_for().filter(|_| ranged) {
        RunFailure::Busy { retry_after }
    } else {
        RunFailure::GaveUp
    }
}

/// What is waited for, as the user reads it.
fn told(waiting: Option<Waiting>) -> String {
    let Some(Waiting { waiting_for, until }) = waiting else {
        return "nothing".to_owned();
    };
    let left = until.map(|until| until.saturating_duration_since(now()));
    match left.filter(|left| !left.is_zero()) {
        Some(left) => format!("{waiting_for}, {:.1} s more at most", left.as_secs_f64()),
        None => waiting_for.to_owned(),
    }
}

/// The membership, when it has changed; never, when nobody looks for members.
pub(crate) async fn changed(
    members: &mut tokio::sync::watch::Receiver<Arc<Membership>>,
) -> Option<Arc<Membership>> {
    members.changed().await.ok()?;
    Some(Arc::clone(&members.borrow_and_update()))
}
