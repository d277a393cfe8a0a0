//! Telling watchers what a content has come to have.
//!
//! A content that is watched has one feed: a task that looks as often as the content says, once for
//! all its watchers, and encodes what is new. A watcher that keeps up passes those bytes on and
//! holds no set of its own; one that was too slow works out what it has missed. So a thousand watchers of
//! 300,000 segments cost one look, one comparison and two sets of 37 KiB, and a small write each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use branchline_core::SegmentSet;
use branchline_core::planner::TELL_EVERY;
use branchline_core::wire::{Have, ResponderMessage, WireMessage};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{ServeError, Stream};
use crate::reader_pool::ReaderPool;
use crate::source::ServedContent;

/// What watchers were told last; `None` before the first look.
type Telling = watch::Sender<Option<Arc<Told>>>;

/// A look at a content.
struct Told {
    /// Counts looks that found something new.
    number: u64,
    have: SegmentSet,
    /// The whole message for whoever was told the one before.
    more: Bytes,
}

impl Told {
    fn first(have: SegmentSet) -> Self {
        Self {
            number: 0,
            have,
            more: Bytes::new(),
        }
    }

    /// `None` where nothing is new.
    fn after(before: &Self, have: SegmentSet) -> Option<Self> {
        let more = message_of_more(&before.have, &have)?;
        Some(Self {
            number: before.number + 1,
            have,
            more,
        })
    }
}

/// `HaveMore` for somebody who knows `before`; `None` where there is no more.
fn message_of_more(before: &SegmentSet, now: &SegmentSet) -> Option<Bytes> {
    let mut not_new = now.complement();
    not_new.unite(before);
    let new = not_new.complement();
    (!new.is_empty()).then(|| ResponderMessage::HaveMore(Have::of(&new)).to_bytes().into())
}

/// The feeds of all contents that are watched. Locked for moments, on the exchange's thread only.
#[derive(Default)]
pub(super) struct Feeds(Mutex<Running>);

#[derive(Default)]
struct Running {
    /// By the content's address, which is no other's while its feed runs.
    by_content: BTreeMap<usize, Weak<Telling>>,
    tasks: JoinSet<()>,
}

impl Feeds {
    /// What `content`'s watchers are told; the first value is new. `changes` are the content's.
    fn subscribe(
        &self,
        content: &Arc<dyn ServedContent>,
        changes: watch::Receiver<u64>,
        readers: &Arc<ReaderPool>,
    ) -> watch::Receiver<Option<Arc<Told>>> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let address = Arc::as_ptr(content).cast::<()>().addr();
        let telling = running.by_content.get(&address).and_then(Weak::upgrade);
        if let Some(telling) = telling {
            let mut told = telling.subscribe();
            told.mark_changed();
            return told;
        }
        running.reap();
        let (telling, told) = watch::channel(None);
        let telling = Arc::new(telling);
        running.by_content.insert(address, Arc::downgrade(&telling));
        let feed = Feed {
            content: Arc::clone(content),
            changes,
            telling,
            readers: Arc::clone(readers),
        };
        running.tasks.spawn(feed.run());
        told
    }
}

impl Running {
    /// Forgets the feeds that have ended.
    fn reap(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a task that watched a content broke");
            }
        }
        self.by_content.retain(|_, feed| feed.strong_count() > 0);
    }
}

/// Watches one content. When it ends, no more will be told.
struct Feed {
    content: Arc<dyn ServedContent>,
    changes: watch::Receiver<u64>,
    telling: Arc<Telling>,
    readers: Arc<ReaderPool>,
}

impl Feed {
    /// Ends when nobody watches, or nothing can change any more.
    async fn run(mut self) {
        let mut last: Option<Arc<Told>> = None;
        let mut told_at: Option<Instant> = None;
        loop {
            self.changes.mark_unchanged();
            let Some(news) = self.look(last.clone()).await else {
                return;
            };
            if let Some(told) = news.map(Arc::new) {
                let everything = told.have.is_full();
                last = Some(Arc::clone(&told));
                self.telling.send_replace(Some(told));
                told_at = Some(Instant::now());
                if everything {
                    return;
                }
            }
            tokio::select! {
                () = self.telling.closed() => return,
                changed = self.changes.changed() => if changed.is_err() { return },
            }
            tokio::select! {
                () = self.telling.closed() => return,
                () = self.quiet_since(told_at) => {}
            }
        }
    }

    /// Waits until watchers may be told again. How often that is may change meanwhile.
    async fn quiet_since(&self, told_at: Option<Instant>) {
        let Some(told_at) = told_at else {
            return;
        };
        loop {
            let now = Instant::now();
            let until = told_at + self.content.tell_every();
            if until <= now {
                return;
            }
            tokio::time::sleep_until(until.min(now + TELL_EVERY)).await;
        }
    }

    /// What is new, if anything; `None` when it cannot be looked at.
    async fn look(&self, last: Option<Arc<Told>>) -> Option<Option<Told>> {
        let content = Arc::clone(&self.content);
        let looked = self.readers.run(move || match last {
            None => Some(Told::first(content.have())),
            Some(last) => Told::after(&last, content.have()),
        });
        looked.await.ok()
    }
}

impl Stream {
    /// Tells what `content` has, and then what it comes to have, until nothing can change any more
    /// or the requester ends the stream.
    pub(super) async fn push_have(
        &mut self,
        content: &Arc<dyn ServedContent>,
    ) -> Result<(), ServeError> {
        let Some(changes) = content.changes() else {
            return self.answer_have(content).await;
        };
        let server = Arc::clone(&self.server);
        let mut telling = server.feeds.subscribe(content, changes, &server.readers);
        let mut last: Option<Arc<Told>> = None;
        loop {
            tokio::select! {
                changed = telling.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let newest = telling.borrow_and_update().clone();
                    if let Some(newest) = newest {
                        self.push(last.take(), &newest).await?;
                        last = Some(newest);
                    }
                }
                message = self.next() => match message? {
                    None => return Ok(()),
                    Some(other) => {
                        let what = format!("{} from a watcher", other.name());
                        return Err(ServeError::Violation(what));
                    }
                },
            }
        }
        match last {
            Some(_) => Ok(()),
            // The look broke; the log says how.
            None => self.write_busy().await,
        }
    }

    async fn push(
        &mut self,
        last: Option<Arc<Told>>,
        newest: &Arc<Told>,
    ) -> Result<(), ServeError> {
        let message = match last {
            Some(last) if last.number + 1 == newest.number => Some(newest.more.clone()),
            last => self.worked_out(last, Arc::clone(newest)).await?,
        };
        match message {
            Some(message) => self.write_chunks(&mut [message]).await,
            None => Ok(()),
        }
    }

    /// The message for a watcher that is new, or has missed something.
    async fn worked_out(
        &self,
        last: Option<Arc<Told>>,
        newest: Arc<Told>,
    ) -> Result<Option<Bytes>, ServeError> {
        let message = self.server.readers.run(move || match last {
            Some(last) => message_of_more(&last.have, &newest.have),
            None => Some(
                ResponderMessage::Have(Have::of(&newest.have))
                    .to_bytes()
                    .into(),
            ),
        });
        message
            .await
            .map_err(|_| ServeError::Gone("what a content has cannot be told".to_owned()))
    }
}
