//! Watching what a peer comes to have.

use std::sync::Arc;

use branchline_core::wire::{Have, RequesterMessage, ResponderMessage};
use branchline_core::{PeerId, SegmentSet};
use branchline_hashing::ContentKey;
use tokio::sync::mpsc;

use crate::error::PeerFailure;
use crate::hub::{HubHandle, Link};
use crate::session::{self, JoinedStream};

/// Updates that wait for whoever plans. Full, the stream is not read, and the peer gathers what it
/// would have told.
const UPDATE_QUEUE: usize = 2;

/// What a peer says of the segments it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HaveUpdate {
    /// All it has; the first update.
    All(SegmentSet),
    /// What it has come to have since the last update.
    More(SegmentSet),
}

/// Tells what a peer has, as it comes. Dropping it ends that.
pub struct HaveWatch {
    peer: PeerId,
    updates: mpsc::Receiver<Result<Option<HaveUpdate>, PeerFailure>>,
}

impl HaveWatch {
    /// Whom it watches.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The next update, however long it takes; `None` once when the peer will have no more.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`PeerFailure`], and nothing comes any more.
    pub async fn next(&mut self) -> Result<Option<HaveUpdate>, PeerFailure> {
        let next = self.updates.recv().await;
        next.unwrap_or(Err(PeerFailure::Stopped))
    }
}

pub(crate) fn start(hub: &HubHandle, link: Arc<Link>, key: ContentKey, segments: u32) -> HaveWatch {
    let (told, updates) = mpsc::channel(UPDATE_QUEUE);
    let peer = link.peer;
    hub.start(async move {
        let ended = tokio::select! {
            // Nobody listens: dropping the stream ends it.
            () = told.closed() => return,
            ended = run(&link, key, segments, &told) => ended,
        };
        let last = ended.map(|()| None);
        let last = last.inspect_err(|failure| session::note_misbehaviour(&link, failure));
        let _nobody_listens = told.send(last).await;
    });
    HaveWatch { peer, updates }
}

/// Ends well when the peer will have no more.
async fn run(
    link: &Link,
    key: ContentKey,
    segments: u32,
    told: &mpsc::Sender<Result<Option<HaveUpdate>, PeerFailure>>,
) -> Result<(), PeerFailure> {
    let mut stream = JoinedStream::open(link, &key).await?;
    let asked = stream.ask(link, RequesterMessage::HaveWatch, session::read_have);
    let all = session::sized(&asked.await?, segments)?;
    let _nobody_listens = told.send(Ok(Some(HaveUpdate::All(all)))).await;
    while let Some(more) = next_more(&mut stream).await? {
        let more = session::sized(&more, segments)?;
        let _nobody_listens = told.send(Ok(Some(HaveUpdate::More(more)))).await;
    }
    Ok(())
}

async fn next_more(stream: &mut JoinedStream) -> Result<Option<Have>, PeerFailure> {
    let message = stream.reader.next().await;
    match message.map_err(|error| session::failure(error, "an update"))? {
        None => Ok(None),
        Some(ResponderMessage::HaveMore(have)) => Ok(Some(have)),
        Some(
            other @ (ResponderMessage::Joined { .. }
            | ResponderMessage::Unknown
            | ResponderMessage::Busy { .. }
            | ResponderMessage::Segment { .. }
            | ResponderMessage::Absent { .. }
            | ResponderMessage::RangeBusy { .. }
            | ResponderMessage::Manifest { .. }
            | ResponderMessage::NoManifest
            | ResponderMessage::Have(_)
            | ResponderMessage::Answer(_)
            | ResponderMessage::Hashes { .. }),
        ) => Err(session::out_of_place(&other)),
    }
}
