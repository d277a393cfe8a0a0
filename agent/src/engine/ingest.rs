//! Puts the segments of finished downloads into the store, in the background.
//!
//! One thread for all downloads: the disk is one. Segments are read back from the finished file
//! and verified, so what the store gets is right even if the file was changed meanwhile. Until a
//! content is in the store its peers are served from the file. A crash here loses cache entries.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use branchline_hashing::VerifiedSegment;
use branchline_store::{ContentRecord, Store, StoreError};
use tokio::sync::{mpsc, oneshot};
use url::Url;

use crate::api::{Trust, without_password};
use crate::engine::announcing::HeldQueue;
use crate::engine::content::LocalContent;
use crate::engine::serving::{OnShelf, present_in_store};

/// Downloads that wait for the thread. When so many do, the next ones are not cached.
const QUEUE_JOBS: usize = 64;

/// Appended to the store at a time: measured best at 32 MiB, and half of that leaves room for the
/// rest of the agent in its 128 MiB.
const BATCH_BYTES: usize = 16 << 20;

/// A finished download.
pub(crate) struct Job {
    content: Arc<LocalContent>,
    url: Url,
    file_name: String,
    _on_shelf: Vec<OnShelf>,
}

impl Job {
    pub(crate) fn new(
        content: Arc<LocalContent>,
        on_shelf: Vec<OnShelf>,
        url: &Url,
        path: &Path,
    ) -> Self {
        let file_name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Self {
            content,
            url: without_password(url),
            file_name,
            _on_shelf: on_shelf,
        }
    }
}

/// The thread's handle.
pub(crate) struct Ingest {
    jobs: mpsc::Sender<Job>,
    held: HeldQueue,
    stop: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
}

impl Ingest {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(store: Store, held: HeldQueue) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE_JOBS);
        let stop = Arc::new(AtomicBool::new(false));
        let (end, ended) = oneshot::channel();
        let (stopped, told) = (Arc::clone(&stop), held.clone());
        std::thread::Builder::new()
            .name("branchline-store".into())
            .spawn(move || {
                run(&store, &told, queue, &stopped);
                // The store's lock goes before its end is told.
                drop(store);
                let _ = end.send(());
            })?;
        Ok(Self {
            jobs,
            held,
            stop,
            ended,
        })
    }

    /// Where finished downloads are handed over.
    pub(crate) fn queue(&self) -> IngestQueue {
        IngestQueue {
            jobs: self.jobs.clone(),
            held: self.held.clone(),
        }
    }

    /// Ends the thread: after all that was handed over, or after the batch it is at.
    pub(crate) async fn shut_down(self, finish: bool) {
        self.stop.store(!finish, Ordering::Release);
        drop(self.jobs);
        // An error means that the thread panicked; it has said so.
        let _ = self.ended.await;
    }
}

/// The thread's queue.
pub(crate) struct IngestQueue {
    jobs: mpsc::Sender<Job>,
    held: HeldQueue,
}

impl IngestQueue {
    /// Hands over a finished download.
    pub(crate) fn add(&self, job: Job) {
        let swarm = job.content.key.swarm_id();
        if let Err(error) = self.jobs.try_send(job) {
            tracing::warn!(%error, "too many downloads wait for the store; this one is not cached");
            self.held.remove(swarm);
        }
    }
}

fn run(store: &Store, held: &HeldQueue, mut queue: mpsc::Receiver<Job>, stop: &AtomicBool) {
    while let Some(job) = queue.blocking_recv() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        match ingest(store, &job, stop) {
            Ok(All::IsHere) => held.is_stored(job.content.key.swarm_id()),
            Ok(All::IsNotHere) => held.remove(job.content.key.swarm_id()),
            Err(error) => {
                tracing::warn!(%error, url = %job.url, "a download was not cached");
                held.remove(job.content.key.swarm_id());
            }
        }
    }
}

/// What the store has of a download.
enum All {
    IsHere,
    /// The file was changed after it had its name, or the thread is to end.
    IsNotHere,
}

fn ingest(store: &Store, job: &Job, stop: &AtomicBool) -> Result<All, StoreError> {
    let manifest = &job.content.manifest;
    // What one batch put there must not make room for the next.
    let _hold = store.hold(manifest.segments().map(|segment| segment.hash));
    let present = present_in_store(store, manifest);
    let mut batch: Vec<VerifiedSegment> = Vec::new();
    let mut bytes = 0;
    let mut all = All::IsHere;
    for index in present.complement().iter() {
        let Some(segment) = job.content.read_verified(index) else {
            all = All::IsNotHere;
            continue;
        };
        bytes += segment.bytes().len();
        batch.push(segment);
        if bytes >= BATCH_BYTES {
            store.append(&batch)?;
            batch.clear();
            bytes = 0;
            if stop.load(Ordering::Acquire) {
                return Ok(All::IsNotHere);
            }
        }
    }
    store.append(&batch)?;
    store.put_content(&record(job))?;
    Ok(all)
}

fn record(job: &Job) -> ContentRecord {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    ContentRecord {
        key: job.content.key,
        manifest: job.content.encoded_manifest(),
        url: job.url.to_string(),
        file_name: job.file_name.clone(),
        trust: in_store(job.content.trust),
        length: job.content.manifest.file_length(),
        stored_at: now,
        last_used: now,
    }
}

fn in_store(trust: Trust) -> branchline_store::Trust {
    match trust {
        Trust::Manifest => branchline_store::Trust::Manifest,
        Trust::Digest => branchline_store::Trust::Digest,
        Trust::Branch => branchline_store::Trust::Branch,
        Trust::Origin => branchline_store::Trust::Origin,
    }
}
