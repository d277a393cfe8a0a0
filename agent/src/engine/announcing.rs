//! Tells the stewards what this agent holds. One task owns the sans-IO [`Announcements`].
//!
//! A content counts as held from the moment its file is complete; from the agent's start on, what the store
//! holds wholly. Where segments were evicted, the store is looked through again, for a steward leases nothing of what
//! it believes to be here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use branchline_core::PeerId;
use branchline_core::swarm::{AnnouncementWord, Announcements};
use branchline_exchange::{Announcer, DialError, PeerFailure};
use branchline_hashing::SwarmId;
use branchline_store::{ContentSummary, Store, StoreError};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::engine::planned::{changed, ids};
use crate::engine::serving::may_be_given;
use crate::engine::steward_desk::OwnDesk;
use crate::engine::{Shared, far_future, now, segments_present};

/// Contents that were completed and wait to be announced; a full queue makes their downloads wait.
const HELD_QUEUE: usize = 64;

/// Words that wait for one steward; one that is further behind is lost, and told all anew.
const WORD_QUEUE: usize = 16;

/// How often it is asked whether the store has forgotten segments.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The least time between two looks through the store: a full one loses segments with every download, and a million of
/// them take two seconds.
const STOCKTAKING_EVERY: Duration = Duration::from_secs(60);

/// What happened to a content of this agent.
#[derive(Debug)]
pub(crate) enum Change {
    /// All of it is here, in its file, and others may have it.
    Held(SwarmId),
    /// The store has it now, too, whether others may have it or not.
    Stored(SwarmId),
    /// It is not here any more.
    Gone(SwarmId),
}

/// Where changes are handed over.
#[derive(Clone)]
pub(crate) struct HeldQueue(mpsc::Sender<Change>);

impl HeldQueue {
    /// This agent has the content now, and gives it to others. Blocks while the queue is full.
    pub(crate) fn add(&self, swarm: SwarmId) {
        // Nobody is told when the agent ends.
        let _ended = self.0.blocking_send(Change::Held(swarm));
    }

    /// From now on it is the store that has it. Blocks while the queue is full.
    pub(crate) fn is_stored(&self, swarm: SwarmId) {
        let _ended = self.0.blocking_send(Change::Stored(swarm));
    }

    /// This agent has it no more. Blocks while the queue is full.
    pub(crate) fn remove(&self, swarm: SwarmId) {
        let _ended = self.0.blocking_send(Change::Gone(swarm));
    }
}

/// The queue, and what comes out of it.
pub(crate) fn queue() -> (HeldQueue, mpsc::Receiver<Change>) {
    let (to_task, changes) = mpsc::channel(HELD_QUEUE);
    (HeldQueue(to_task), changes)
}

/// The running task.
pub(crate) struct Announcing {
    stop: CancellationToken,
    work: JoinHandle<()>,
}

impl Announcing {
    /// Starts the task; without a desk there is nobody to tell.
    pub(crate) fn start(shared: &Arc<Shared>, changes: mpsc::Receiver<Change>) -> Option<Self> {
        let own = shared.desk.as_ref()?.own();
        let (shared, stop) = (Arc::clone(shared), CancellationToken::new());
        let stopped = stop.clone();
        let work = tokio::spawn(async move {
            let teller = Teller::new(shared, own);
            stopped.run_until_cancelled(teller.run(changes)).await;
        });
        Some(Self { stop, work })
    }

    /// Ends the task: those it spoke to forget what they were told.
    pub(crate) async fn shut_down(self) {
        self.stop.cancel();
        if let Err(error) = self.work.await {
            tracing::error!(%error, "the task that announces broke");
        }
    }
}

struct Teller {
    shared: Arc<Shared>,
    own: OwnDesk,
    announcements: Announcements,
    streams: BTreeMap<PeerId, Stream>,
    opened_so_far: u64,
    work: JoinSet<(PeerId, u64)>,
    /// Held, and not in the store yet.
    on_the_way: BTreeSet<SwarmId>,
    /// What the store had forgotten when it was looked through last, if it was; and when it is looked through again at the earliest.
    forgotten: Option<u64>,
    next_stocktaking: Instant,
}

struct Stream {
    number: u64,
    words: mpsc::Sender<AnnouncementWord>,
    task: AbortHandle,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A steward that reads nothing would keep it.
        self.task.abort();
    }
}

impl Teller {
    fn new(shared: Arc<Shared>, own: OwnDesk) -> Self {
        Self {
            announcements: Announcements::new(shared.me),
            shared,
            own,
            streams: BTreeMap::new(),
            opened_so_far: 0,
            work: JoinSet::new(),
            on_the_way: BTreeSet::new(),
            forgotten: None,
            next_stocktaking: Instant::now(),
        }
    }

    async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let mut members = self.shared.members.clone();
        let present = ids(&members.borrow_and_update());
        self.announcements.handle_members(now(), &present);
        self.take_stock().await;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.speak().await;
            let deadline = self.announcements.next_deadline();
            let until = deadline.map_or_else(far_future, |deadline| Instant::from_std(deadline.at));
            tokio::select! {
                Some(change) = changes.recv() => self.handle_change(change),
                Some(members) = changed(&mut members) => {
                    self.announcements.handle_members(now(), &ids(&members));
                }
                Some(ended) = self.work.join_next() => self.stream_ended(ended.ok()),
                () = sleep_until(until) => self.announcements.handle_timeout(now()),
                _ = look.tick() => self.take_stock().await,
            }
        }
    }

    fn handle_change(&mut self, change: Change) {
        match change {
            Change::Held(swarm) => {
                self.on_the_way.insert(swarm);
                self.announcements.handle_held([swarm]);
            }
            Change::Stored(swarm) => {
                self.on_the_way.remove(&swarm);
            }
            Change::Gone(swarm) => {
                self.on_the_way.remove(&swarm);
                self.announcements.handle_released(swarm);
            }
        }
    }

    /// What the store holds is told at the beginning, and anew where it has lost something since the last time.
    async fn take_stock(&mut self) {
        let forgotten = Some(self.shared.store.stats().forgotten);
        if forgotten == self.forgotten || Instant::now() < self.next_stocktaking {
            return;
        }
        let stored = self.stored().await;
        if self.forgotten.is_some() || stored.is_none() {
            self.next_stocktaking = Instant::now() + STOCKTAKING_EVERY;
        }
        if let Some(mut held) = stored {
            self.forgotten = forgotten;
            held.extend(&self.on_the_way);
            let withdrawn = self.announcements.handle_stock(&held);
            tracing::debug!(withdrawn, "the store was looked through");
        }
    }

    /// What the store holds completely and others may have; `None` when it cannot be listed.
    async fn stored(&self) -> Option<BTreeSet<SwarmId>> {
        let store = self.shared.store.clone();
        let held = tokio::task::spawn_blocking(move || held_in(&store)).await;
        match held {
            Ok(Ok(held)) => Some(held),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the store cannot be listed, so what it holds is not announced; it is tried again in a minute");
                None
            }
            // The runtime is going down.
            Err(_) => None,
        }
    }

    async fn speak(&mut self) {
        while let Some(word) = self.announcements.poll_word() {
            let (AnnouncementWord::Announce { steward, .. }
            | AnnouncementWord::Withdraw { steward, .. }) = &word;
            let steward = *steward;
            if steward == self.shared.me {
                self.own.announce(word).await;
                continue;
            }
            let known = self.streams.contains_key(&steward);
            if !known && matches!(word, AnnouncementWord::Withdraw { .. }) {
                continue;
            }
            if !known {
                self.open(steward);
            }
            let full = self
                .streams
                .get(&steward)
                .is_some_and(|stream| stream.words.try_send(word).is_err());
            if full {
                self.streams.remove(&steward);
                self.announcements.handle_lost(now(), steward);
            }
        }
    }

    fn open(&mut self, steward: PeerId) {
        let Some(exchange) = &self.shared.exchange else {
            return;
        };
        let addresses = self.shared.membership().exchange_addresses(&steward);
        let announcer = exchange.announce(steward, addresses);
        self.opened_so_far += 1;
        let number = self.opened_so_far;
        let (words, to_say) = mpsc::channel(WORD_QUEUE);
        let task = self.work.spawn(async move {
            let why = say_all(announcer, to_say).await;
            tracing::debug!(%steward, why, "announcing at a steward has ended");
            (steward, number)
        });
        let stream = Stream {
            number,
            words,
            task,
        };
        self.streams.insert(steward, stream);
    }

    fn stream_ended(&mut self, ended: Option<(PeerId, u64)>) {
        let Some((steward, number)) = ended else {
            return;
        };
        let current = self.streams.get(&steward);
        if current.is_some_and(|stream| stream.number == number) {
            self.streams.remove(&steward);
            self.announcements.handle_lost(now(), steward);
        }
    }
}

/// Blocks. Measured for lookups: 2 microseconds a segment.
fn held_in(store: &Store) -> Result<BTreeSet<SwarmId>, StoreError> {
    let given = |content: &ContentSummary| may_be_given(content.trust);
    let whole = |content: &ContentSummary| {
        segments_present(store, &content.key).is_some_and(|(present, of)| present == of)
    };
    let contents = store.contents()?.into_iter();
    let held = contents.filter(|content| given(content) && whole(content));
    Ok(held.map(|content| content.key.swarm_id()).collect())
}

/// Ends with the reason.
async fn say_all(
    announcer: impl Future<Output = Result<Announcer, DialError>>,
    mut words: mpsc::Receiver<AnnouncementWord>,
) -> String {
    let mut announcer = match announcer.await {
        Ok(announcer) => announcer,
        Err(error) => return error.to_string(),
    };
    loop {
        let said = tokio::select! {
            word = words.recv() => match word {
                Some(word) => say(&announcer, word).await,
                None => return "nothing more is announced".to_owned(),
            },
            failure = announcer.ended() => Err(failure),
        };
        if let Err(failure) = said {
            return failure.to_string();
        }
    }
}

async fn say(announcer: &Announcer, word: AnnouncementWord) -> Result<(), PeerFailure> {
    match word {
        AnnouncementWord::Announce { swarms, .. } => announcer.announce(swarms).await,
        AnnouncementWord::Withdraw { swarms, .. } => announcer.withdraw(swarms).await,
    }
}
