//! The one owner of all jobs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use branchline_core::jobs::{
    Action, Attempt, Change, Config, Event, EventSeq, FileIndex, JobId, Jobs, NotificationId, Now,
    Order, PlaceFailure, Setup,
};
use branchline_origin::Origin;
use branchline_store::Store;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::clock::{ClockRecord, JobClock};
use super::journal::{Journal, JournalError};
use super::network::{self, RouteChanges};
use super::placing::{self, Placed};
use super::{notify, transfer};
use crate::api::{Failure, FailureKind};
use crate::engine::Downloads;

/// Words that wait for the desk. When it is full, users and transfers wait until the disk has caught up.
const INBOX: usize = 1024;

/// So many words are dealt with before what they changed is written, in one synced write.
const WORDS_A_WRITE: usize = 256;

/// The clock goes into the journal at least this often while jobs have time to count.
const CLOCK_EVERY: Duration = Duration::from_secs(60);

/// After a write that failed the next try comes so much later.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// What transfers may take to stop when the agent ends.
const STOP_TIME: Duration = Duration::from_secs(3);

/// What a desk is made of.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) state_dir: PathBuf,
    pub(crate) store: Store,
    pub(crate) downloads: Downloads,
    pub(crate) origin: Origin,
}

/// The way to the desk; cheap to clone.
#[derive(Clone)]
pub(crate) struct JobDesk {
    inbox: mpsc::Sender<Word>,
    events: watch::Receiver<EventSeq>,
}

/// The desk's own task.
pub(crate) struct DeskTask {
    stop: CancellationToken,
    broken: oneshot::Receiver<Failure>,
    task: AbortOnDropHandle<()>,
}

/// Something the desk is told. `Asked` looks only; `Changed` may change what lasts.
enum Word {
    Asked(Work),
    Changed(Work),
    Event(JobId, FileIndex, Attempt, Event),
    Placed(JobId, FileIndex, Result<(), PlaceFailure>),
    Discarded(JobId, FileIndex),
    Notified(NotificationId, bool),
}

/// Does something with the jobs and gives back what answers for it, once that is on the disk or is not. Without the
/// jobs it answers that they are not to be had.
type Work = Box<dyn FnOnce(Result<(&mut Jobs, Now), Failure>) -> Reply + Send>;
type Reply = Box<dyn FnOnce(Result<(), Failure>) + Send>;

impl JobDesk {
    /// Takes up the jobs of the journal and goes on with them. Inside a tokio runtime only.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub(crate) async fn open(parts: Parts) -> Result<(Self, DeskTask), Failure> {
        let Parts {
            config,
            state_dir,
            store,
            downloads,
            origin,
        } = parts;
        let failed = |error| Failure::new(FailureKind::LocalDisk, error);
        let opened = tokio::task::spawn_blocking(move || {
            let journal = Journal::open(store, &state_dir)?;
            let loaded = journal.load()?;
            Ok::<_, JournalError>((journal, loaded))
        });
        let opened = opened.await.map_err(|error| failed(error.to_string()))?;
        let (journal, loaded) = opened.map_err(|error| failed(error.to_string()))?;
        let clock = JobClock::from(loaded.clock);
        let routes = RouteChanges::listen()
            .inspect_err(|error| tracing::warn!(%error, "changes of the network are not heard of"))
            .ok();
        let files = &loaded.records.files;
        let local_origins = files
            .iter()
            .any(|(_, _, file)| is_local(file.spec.url.expose()));
        let setup = Setup {
            config,
            seed: rand_seed(),
            network_up: network::is_up() || local_origins,
        };
        let jobs = Jobs::restore(clock.now(), setup, loaded.records)
            .map_err(|error| failed(error.to_string()))?;
        let (inbox, words) = mpsc::channel(INBOX);
        let (sequence, events) = watch::channel(jobs.last_event());
        let stop = CancellationToken::new();
        let (tell_broken, broken) = oneshot::channel();
        let desk = Desk {
            jobs,
            clock,
            journal: Some(journal),
            downloads,
            origin,
            inbox: inbox.clone(),
            words,
            sequence,
            running: BTreeMap::new(),
            work: JoinSet::new(),
            routes,
            local_origins,
            unwritten: Vec::new(),
            held_back: Vec::new(),
            write_failed: None,
            tell_broken: Some(tell_broken),
            clock_written: Instant::now(),
            stop: stop.clone(),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(desk.run()));
        let desk_task = DeskTask { stop, broken, task };
        Ok((Self { inbox, events }, desk_task))
    }

    /// Looks at the jobs.
    ///
    /// # Errors
    /// When the agent is ending.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Jobs, Now) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        self.send(Word::Asked, |jobs, now| look(jobs, now)).await
    }

    /// Changes the jobs; what that changed is on the disk when this returns.
    ///
    /// # Errors
    /// When it could not be written, or the agent is ending.
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Jobs, Now) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        self.send(Word::Changed, change).await
    }

    async fn send<T: Send + 'static>(
        &self,
        word: impl FnOnce(Work) -> Word,
        work: impl FnOnce(&mut Jobs, Now) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (answer, answered) = oneshot::channel();
        let work = move |jobs: Result<(&mut Jobs, Now), Failure>| {
            let value = jobs.map(|(jobs, now)| work(jobs, now));
            let reply = move |written: Result<(), Failure>| {
                // Whoever asked may have gone.
                let _ = answer.send(value.and_then(|value| written.map(|()| value)));
            };
            Box::new(reply) as Reply
        };
        let ending = |_| Failure::new(FailureKind::Interrupted, "jobs: the agent is ending");
        self.inbox
            .send(word(Box::new(work)))
            .await
            .map_err(|_| ending(()))?;
        answered.await.map_err(|_| ending(()))?
    }

    /// Tells when something has happened to any job, and up to which event.
    pub(crate) fn events(&self) -> watch::Receiver<EventSeq> {
        self.events.clone()
    }
}

impl DeskTask {
    /// Waits until the journal is found to take no more writes before the store is opened anew, or the desk is no more.
    /// Cancel-safe.
    pub(crate) async fn broken(&mut self) -> Failure {
        match (&mut self.broken).await {
            Ok(failure) => failure,
            // It told nobody that it ended.
            Err(_) => Failure::new(
                FailureKind::LocalDisk,
                "jobs: their desk broke; see the log",
            ),
        }
    }

    /// Stops transfers, which keep what they have, and writes down the time. All [`JobDesk`]s are of no use after that.
    pub(crate) async fn shut_down(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the jobs did not end well");
        }
    }
}

struct Desk {
    jobs: Jobs,
    clock: JobClock,
    /// Away while it writes.
    journal: Option<Journal>,
    downloads: Downloads,
    origin: Origin,
    inbox: mpsc::Sender<Word>,
    words: mpsc::Receiver<Word>,
    sequence: watch::Sender<EventSeq>,
    running: BTreeMap<(JobId, FileIndex), (Attempt, CancellationToken)>,
    work: JoinSet<()>,
    routes: Option<RouteChanges>,
    /// Some job has an origin on this very machine: that needs no network.
    local_origins: bool,
    /// What the disk did not take, and what must wait for it.
    unwritten: Vec<Change>,
    held_back: Vec<Action>,
    write_failed: Option<(Instant, Failure)>,
    tell_broken: Option<oneshot::Sender<Failure>>,
    clock_written: Instant,
    stop: CancellationToken,
}

impl Desk {
    async fn run(mut self) {
        self.settle(Vec::new()).await;
        loop {
            let until = self.next_wake();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Some(ended) = self.work.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "the work of a job broke");
                    }
                    continue;
                }
                changed = next_change(&mut self.routes) => {
                    if let Err(error) = changed {
                        tracing::warn!(%error, "changes of the network are not heard of any more");
                        self.routes = None;
                    }
                    let up = network::is_up() || self.local_origins;
                    self.jobs.handle_network(self.clock.now(), up);
                    self.settle(Vec::new()).await;
                }
                Some(word) = self.words.recv() => {
                    let mut replies = Vec::new();
                    self.take(word, &mut replies);
                    for _ in 1..WORDS_A_WRITE {
                        let Ok(word) = self.words.try_recv() else { break };
                        self.take(word, &mut replies);
                    }
                    self.settle(replies).await;
                }
                () = sleep_until(until) => {
                    self.jobs.handle_timeout(self.clock.now());
                    self.settle(Vec::new()).await;
                }
            }
        }
        self.end().await;
    }

    /// Timers go by another clock than the runtime's, which stands still while the machine sleeps.
    fn next_wake(&self) -> Instant {
        let now = self.clock.now().time;
        let due = self.jobs.next_deadline().map(|(at, _)| at.since(now));
        let again = self.write_failed.as_ref().map(|(at, _)| *at);
        let due = Instant::now() + due.unwrap_or(CLOCK_EVERY).min(CLOCK_EVERY);
        again.map_or(due, |again| due.min(again))
    }

    fn take(&mut self, word: Word, replies: &mut Vec<Reply>) {
        let now = self.clock.now();
        match word {
            Word::Asked(look) => look(Ok((&mut self.jobs, now)))(Ok(())),
            Word::Changed(change) => match &self.write_failed {
                // Nothing is taken on that may be lost again.
                Some((_, failure)) => change(Err(failure.clone()))(Ok(())),
                None => replies.push(change(Ok((&mut self.jobs, now)))),
            },
            Word::Event(job, file, attempt, event) => {
                let ended = matches!(
                    event,
                    Event::Staged { .. } | Event::Modified | Event::Failed(_) | Event::Stopped
                );
                let running = self.running.get(&(job, file));
                if ended && running.is_some_and(|(running, _)| *running == attempt) {
                    self.running.remove(&(job, file));
                }
                self.jobs.handle_event(now, job, file, attempt, event);
            }
            Word::Placed(job, file, Ok(())) => self.jobs.handle_placed(now, job, file),
            Word::Placed(job, file, Err(failure)) => {
                self.jobs.handle_place_failed(now, job, file, failure);
            }
            Word::Discarded(job, file) => self.jobs.handle_discarded(now, job, file),
            Word::Notified(id, true) => self.jobs.handle_notified(now, id),
            Word::Notified(id, false) => self.jobs.handle_notify_failed(now, id),
        }
    }

    /// Writes what has changed, answers, and does what is to be done: in this order.
    async fn settle(&mut self, replies: Vec<Reply>) {
        self.drain();
        let now = Instant::now();
        let clock_is_old = self.clock_written + CLOCK_EVERY <= now && !self.jobs.is_empty();
        let may_try = self
            .write_failed
            .as_ref()
            .is_none_or(|(again, _)| *again <= now);
        if (!self.unwritten.is_empty() && may_try) || clock_is_old {
            self.write().await;
        }
        match &self.write_failed {
            Some((_, failure)) if !self.unwritten.is_empty() => {
                let message = format!("{failure}; whether this was done shows then");
                let failure = Failure::new(FailureKind::LocalDisk, message);
                for reply in replies {
                    reply(Err(failure.clone()));
                }
            }
            Some(_) | None => {
                replies.into_iter().for_each(|reply| reply(Ok(())));
                for action in std::mem::take(&mut self.held_back) {
                    self.act(action);
                }
            }
        }
        let last = self.jobs.last_event();
        self.sequence.send_if_modified(|sequence| {
            let new = *sequence != last;
            *sequence = last;
            new
        });
    }

    fn drain(&mut self) {
        while let Some(action) = self.jobs.poll_action() {
            let Action::Persist(changes) = action else {
                self.held_back.push(action);
                continue;
            };
            let url_of = |change: &Change| match change {
                Change::File(_, _, file) => is_local(file.spec.url.expose()),
                Change::Counters(_)
                | Change::Job(_)
                | Change::ForgetJob { .. }
                | Change::Notification(_)
                | Change::ForgetNotification(_) => false,
            };
            if !self.local_origins && changes.iter().any(url_of) {
                self.local_origins = true;
                self.jobs.handle_network(self.clock.now(), true);
            }
            self.unwritten.extend(changes);
        }
    }

    async fn write(&mut self) {
        let Some(journal) = self.journal.take() else {
            return;
        };
        let (changes, clock) = (std::mem::take(&mut self.unwritten), self.clock.record());
        let (journal, changes, written) = write(journal, changes, clock).await;
        self.journal = Some(journal);
        match written {
            Ok(()) => {
                if self.write_failed.take().is_some() {
                    tracing::info!("the journal of jobs is written again");
                }
                self.clock_written = Instant::now();
            }
            Err(error) => {
                self.unwritten = changes;
                self.could_not_write(&error);
            }
        }
    }

    /// The write is tried again, unless nothing but opening the store anew helps.
    fn could_not_write(&mut self, error: &JournalError) {
        let broken = !error.mends_itself();
        let then = if broken {
            "it is opened anew"
        } else {
            "it can be written again"
        };
        let message = format!("{error}; jobs go on when {then}");
        let failure = Failure::new(FailureKind::LocalDisk, message);
        if self.write_failed.is_none() {
            tracing::error!("{failure}");
        }
        if broken && let Some(tell) = self.tell_broken.take() {
            // Nobody listens any more when the agent ends anyway.
            let _ = tell.send(failure.clone());
        }
        self.write_failed = Some((Instant::now() + WRITE_AGAIN, failure));
    }

    fn act(&mut self, action: Action) {
        let inbox = self.inbox.clone();
        match action {
            // Taken out above.
            Action::Persist(_) => {}
            Action::Start {
                job,
                file,
                attempt,
                order,
            } => self.start(job, file, attempt, *order),
            Action::Stop { job, file, attempt } => {
                let running = self.running.get(&(job, file));
                if let Some((_, cancel)) = running.filter(|(running, _)| *running == attempt) {
                    cancel.cancel();
                }
            }
            Action::Place {
                job,
                file,
                owner,
                from,
                to,
                again,
            } => {
                let placed = Placed {
                    owner,
                    from,
                    to,
                    again,
                };
                self.work.spawn(async move {
                    let placed = placing::place(placed).await;
                    let _ = inbox.send(Word::Placed(job, file, placed)).await;
                });
            }
            Action::Discard {
                job,
                file,
                owner,
                staged,
            } => {
                self.work.spawn(async move {
                    placing::discard(owner, staged).await;
                    let _ = inbox.send(Word::Discarded(job, file)).await;
                });
            }
            Action::Notify(notification) => {
                let origin = self.origin.clone();
                self.work.spawn(async move {
                    let id = notification.record.id;
                    let told = notify::tell(&origin, &notification).await;
                    let _ = inbox.send(Word::Notified(id, told)).await;
                });
            }
        }
    }

    fn start(&mut self, job: JobId, file: FileIndex, attempt: Attempt, order: Order) {
        let cancel = CancellationToken::new();
        self.running.insert((job, file), (attempt, cancel.clone()));
        let (inbox, downloads) = (self.inbox.clone(), self.downloads.clone());
        let tell = move |event| {
            let inbox = inbox.clone();
            // The desk ends before its inbox; what it does not hear any more it finds after the restart.
            async move {
                let _ = inbox.send(Word::Event(job, file, attempt, event)).await;
            }
        };
        self.work
            .spawn(transfer::run(downloads, order, cancel, tell));
    }

    /// Transfers keep what they have; what they say while they stop is still written.
    async fn end(mut self) {
        for (_, cancel) in self.running.values() {
            cancel.cancel();
        }
        let until = Instant::now() + STOP_TIME;
        while !self.work.is_empty() {
            tokio::select! {
                _ = self.work.join_next() => {}
                Some(word) = self.words.recv() => self.take_last(word),
                () = sleep_until(until) => {
                    tracing::warn!("some jobs were not waited for");
                    break;
                }
            }
        }
        while let Ok(word) = self.words.try_recv() {
            self.take_last(word);
        }
        // Nothing of that is done any more: the next start does it.
        self.drain();
        self.write().await;
    }
}

impl Desk {
    /// What still counts while the agent ends. That transfers stop says nothing of their files: they go on after the
    /// next start. Nor is a request answered any more.
    fn take_last(&mut self, word: Word) {
        match word {
            Word::Event(_, _, _, Event::Stopped | Event::Failed(_))
            | Word::Asked(_)
            | Word::Changed(_) => {}
            Word::Event(..) | Word::Placed(..) | Word::Discarded(..) | Word::Notified(..) => {
                self.take(word, &mut Vec::new());
            }
        }
    }
}

/// Writes on a thread that may block; gives the journal back, and the changes if they were not taken.
async fn write(
    journal: Journal,
    changes: Vec<Change>,
    clock: ClockRecord,
) -> (Journal, Vec<Change>, Result<(), JournalError>) {
    let writing = tokio::task::spawn_blocking(move || {
        let written = journal.write(&changes, &clock);
        (journal, changes, written)
    });
    match writing.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down.
            Err(_) => std::future::pending().await,
        },
    }
}

async fn next_change(routes: &mut Option<RouteChanges>) -> std::io::Result<()> {
    match routes {
        Some(routes) => routes.next().await,
        None => std::future::pending().await,
    }
}

/// An origin that no network is needed for.
fn is_local(url: &str) -> bool {
    let host = url::Url::parse(url).ok().and_then(|url| match url.host()? {
        url::Host::Domain(name) => Some(name == "localhost"),
        url::Host::Ipv4(address) => Some(address.is_loopback()),
        url::Host::Ipv6(address) => Some(address.is_loopback()),
    });
    host.unwrap_or(false)
}

fn rand_seed() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness all retries of a fleet would fall together; nothing worse.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
