//! Carries out downloads: asks what to believe, fetches, delivers, caches.
//!
//! [`Engine`] is one per process; each download is a task of its own with its own partial file,
//! writer thread and planner. Nothing here decides whom to ask for what: `branchline_core`'s
//! planner does.

mod announcing;
mod at_home;
mod content;
mod download;
mod error;
mod hearsay;
mod ingest;
mod links;
mod linux;
mod lookup;
mod manifest_search;
mod origin_run;
mod outline;
mod partial;
mod parts;
mod plain;
mod planned;
mod progress;
mod provisional;
mod serving;
mod steward_desk;
mod stewards;
mod turns;
mod undescribed;
mod ways;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use branchline_core::PeerId;
use branchline_discovery::Membership;
use branchline_exchange::{ContentSource, Exchange, SeatEvents};
use branchline_hashing::{ContentKey, Manifest};
use branchline_origin::Origin;
use branchline_store::Store;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{
    ByteCounts, GetEvent, GetReport, GetRequest, Progress, TransferStatus, without_password,
};
use crate::engine::announcing::{Announcing, HeldQueue};
use crate::engine::ingest::Ingest;
use crate::engine::progress::{Meter, Totals};
use crate::engine::serving::Shelf;
use crate::engine::steward_desk::StewardDesk;
use crate::engine::turns::Turns;

pub(crate) use crate::engine::download::{Errand, Login};
pub(crate) use crate::engine::error::GetError;
pub(crate) use crate::engine::partial::{PartialError, partial_name};
pub(crate) use crate::engine::parts::Part;

/// Events of one download that wait for its listener.
const EVENT_QUEUE: usize = 64;

/// How long a listener may take to take the last event.
const LAST_WORD_TIME: Duration = Duration::from_secs(5);

/// What every download shares.
pub(crate) struct Shared {
    /// This agent.
    pub(crate) me: PeerId,
    /// Where it is a steward itself; none without an exchange.
    pub(crate) desk: Option<StewardDesk>,
    /// Where completed contents are announced.
    pub(crate) held: HeldQueue,
    pub(crate) origin: Origin,
    pub(crate) store: Store,
    pub(crate) exchange: Option<Exchange>,
    pub(crate) members: watch::Receiver<Arc<Membership>>,
    pub(crate) shelf: Arc<Shelf>,
    /// Downloads of one content go one after the other.
    pub(crate) turns: Turns,
    ingest: Ingest,
    totals: Arc<Totals>,
    running: Arc<Mutex<BTreeMap<u64, TransferStatus>>>,
    next_id: AtomicU64,
}

impl Shared {
    /// The agents that are here now.
    pub(crate) fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.members.borrow())
    }
}

/// The parts an engine is made of.
pub(crate) struct Parts {
    pub(crate) me: PeerId,
    /// What other agents say to this one as a steward.
    pub(crate) seat: Option<SeatEvents>,
    pub(crate) origin: Origin,
    pub(crate) store: Store,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) exchange: Option<Exchange>,
    pub(crate) members: watch::Receiver<Arc<Membership>>,
}

/// Downloads files. See the module's text.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    announcing: Option<Announcing>,
    downloads: TaskTracker,
    stop: CancellationToken,
}

/// Starts downloads. All of these go before the engine is shut down.
#[derive(Clone)]
pub(crate) struct Downloads {
    shared: Arc<Shared>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// What a download says of itself to the parts of this process.
#[derive(Debug)]
pub(crate) enum Word {
    Progress(Progress),
    Notice(String),
    Ended(Result<GetReport, GetError>),
}

/// What an exchange serves from: made before the engine, for the exchange comes first.
pub(crate) fn shelf(store: &Store) -> (Arc<Shelf>, Arc<dyn ContentSource>) {
    let shelf = Shelf::new(store.clone());
    let source: Arc<dyn ContentSource> = Arc::clone(&shelf) as Arc<dyn ContentSource>;
    (shelf, source)
}

impl Engine {
    /// Puts the parts together. Inside a tokio runtime only.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(parts: Parts) -> std::io::Result<Self> {
        let Parts {
            me,
            seat,
            origin,
            store,
            shelf,
            exchange,
            members,
        } = parts;
        let (held, changes) = announcing::queue();
        let shared = Arc::new(Shared {
            me,
            desk: seat.map(|events| StewardDesk::start(me, events)),
            ingest: Ingest::start(store.clone(), held.clone())?,
            held,
            origin,
            store,
            exchange,
            members,
            shelf,
            totals: Arc::default(),
            running: Arc::default(),
            next_id: AtomicU64::new(1),
            turns: Turns::default(),
        });
        let announcing = Announcing::start(&shared, changes);
        let (downloads, stop) = (TaskTracker::new(), CancellationToken::new());
        Ok(Self {
            shared,
            announcing,
            downloads,
            stop,
        })
    }

    /// Starts a download. Its last event is `Done` or `Failed`; dropping the stream cancels it.
    pub(crate) fn get(&self, errand: Errand) -> BoxStream<'static, GetEvent> {
        let (words, _) = self.downloads().start(errand);
        let event = async |mut words: mpsc::Receiver<Word>| {
            let event = match words.recv().await? {
                Word::Progress(progress) => GetEvent::Progress(progress),
                Word::Notice(notice) => GetEvent::Notice(notice),
                Word::Ended(Ok(report)) => GetEvent::Done(report),
                Word::Ended(Err(error)) => GetEvent::Failed(error.into()),
            };
            Some((event, words))
        };
        stream::unfold(words, event).boxed()
    }

    /// What starts downloads, for a part that outlives a borrow.
    pub(crate) fn downloads(&self) -> Downloads {
        Downloads {
            shared: Arc::clone(&self.shared),
            tracker: self.downloads.clone(),
            stop: self.stop.clone(),
        }
    }

    /// The downloads that run now.
    pub(crate) fn running(&self) -> Vec<TransferStatus> {
        lock(&self.shared.running).values().cloned().collect()
    }

    /// What moved since the start.
    pub(crate) fn counts(&self) -> ByteCounts {
        let uploads = self.shared.exchange.as_ref().map(Exchange::upload_stats);
        self.shared
            .totals
            .counts(uploads.map_or(0, |uploads| uploads.total_bytes))
    }

    /// What came from each peer since the start.
    pub(crate) fn bytes_by_peer(&self) -> BTreeMap<PeerId, u64> {
        self.shared.totals.by_peer()
    }

    /// What every download shares, for those who report on it.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Ends downloads (their partial files stay), then the exchange, then caching: at once, or
    /// after all finished downloads are cached if `finish_caching`. Closes the store.
    pub(crate) async fn shut_down(self, finish_caching: bool) {
        if !finish_caching {
            self.stop.cancel();
        }
        self.downloads.close();
        self.downloads.wait().await;
        if let Some(announcing) = self.announcing {
            announcing.shut_down().await;
        }
        let Some(shared) = Arc::into_inner(self.shared) else {
            tracing::warn!("the engine is still in use; it is left to the end of the process");
            return;
        };
        let Shared {
            desk,
            exchange,
            ingest,
            store,
            ..
        } = shared;
        if let Some(exchange) = exchange {
            exchange.shut_down().await;
        }
        if let Some(desk) = desk {
            desk.finish().await;
        }
        ingest.shut_down(finish_caching).await;
        // On a full disk the index may wait long for room before it closes: whoever waits here can stop waiting.
        if let Err(error) = blocking(move || store.flush_and_close()).await {
            tracing::warn!(%error, "closing the store failed");
        }
    }
}

impl Downloads {
    /// Starts a download. Its last word is `Ended`; dropping the receiver cancels it.
    /// When the task has ended as well, nothing writes to its partial file any more.
    pub(crate) fn start(&self, errand: Errand) -> (mpsc::Receiver<Word>, JoinHandle<()>) {
        let (words, receiver) = mpsc::channel(EVENT_QUEUE);
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
        let task = self.tracker.spawn(async move {
            let entry = Entry::new(&shared, &errand.request);
            let (id, running) = (entry.id, Arc::clone(&shared.running));
            let shown = move |progress: &Progress| {
                if let Some(status) = lock(&running).get_mut(&id) {
                    status.progress = progress.clone();
                }
            };
            let mut meter = Meter::new(Arc::clone(&shared.totals), words.clone(), shown);
            let result = tokio::select! {
                result = download::run(&shared, &errand, &mut meter) => result,
                () = words.closed() => Err(GetError::Cancelled),
                () = stop.cancelled() => Err(GetError::Cancelled),
            };
            drop(entry);
            // Nobody listening is what cancels downloads; then nobody needs the last word. Whoever
            // listens and takes nothing must not keep the agent from ending.
            let last = words.send(Word::Ended(result));
            let _ = tokio::time::timeout(LAST_WORD_TIME, last).await;
        });
        (receiver, task)
    }
}

/// How many segments of a content are in the store, and how many it has. Blocks.
pub(crate) fn segments_present(store: &Store, key: &ContentKey) -> Option<(u32, u32)> {
    let record = store.content(key).ok()??;
    let manifest = Manifest::decode(&record.manifest).ok()?;
    Some((
        serving::present_in_store(store, &manifest).len(),
        manifest.segment_count(),
    ))
}

/// The size of the file system that `path` lies on. Blocks for a moment.
pub(crate) fn file_system_bytes(path: &Path) -> std::io::Result<u64> {
    linux::file_system_bytes(path)
}

/// A download's line in `status`, as long as it runs.
struct Entry {
    id: u64,
    running: Arc<Mutex<BTreeMap<u64, TransferStatus>>>,
}

impl Entry {
    fn new(shared: &Shared, request: &GetRequest) -> Self {
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let status = TransferStatus {
            url: without_password(&request.url),
            path: request.path.clone(),
            progress: Progress::default(),
        };
        lock(&shared.running).insert(id, status);
        Self {
            id,
            running: Arc::clone(&shared.running),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.id);
    }
}

/// The time as the sans-IO parts are told it.
pub(crate) fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

/// For a deadline that there is none of.
pub(crate) fn far_future() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(24 * 3600)
}

/// Runs what blocks off the async thread. A panic there is a panic here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down: whoever waits is dropped at the next await.
            Err(_) => std::future::pending().await,
        },
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
