//! Telling another agent what this one holds.

use std::sync::Arc;
use std::time::Duration;

use branchline_core::PeerId;
use branchline_core::wire::{MAX_ANNOUNCED_SWARMS, RequesterMessage, ResponderMessage};
use branchline_hashing::SwarmId;
use quinn::SendStream;
use tokio::sync::{mpsc, watch};

use crate::enlist;
use crate::error::PeerFailure;
use crate::hub::{HubHandle, Link};
use crate::reading::MessageReader;
use crate::session;

/// Messages of up to 1,024 swarms that wait to be sent; a full queue makes the caller wait.
const WORD_QUEUE: usize = 4;

/// Nothing but a refusal is said to an announcer.
const REFUSAL_BYTES: usize = 5;

/// What this agent announces at one other. Dropping it ends the stream, after what is on its way:
/// the other then forgets all of it.
pub struct Announcer {
    peer: PeerId,
    words: mpsc::Sender<RequesterMessage>,
    ended: watch::Receiver<Option<PeerFailure>>,
}

impl Announcer {
    /// At whom.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Says that this agent holds these contents completely and gives them to others, however many
    /// they are. Waits until all but the last few messages were sent. Not cancel-safe: some may have been said.
    ///
    /// # Errors
    /// [`PeerFailure`], and nothing more can be said: all is forgotten.
    pub async fn announce(&self, swarms: Vec<SwarmId>) -> Result<(), PeerFailure> {
        let message = |swarms| RequesterMessage::Announce { swarms };
        self.say(&swarms, message).await
    }

    /// Takes back what was announced. Otherwise as [`Announcer::announce`].
    ///
    /// # Errors
    /// [`PeerFailure`].
    pub async fn withdraw(&self, swarms: Vec<SwarmId>) -> Result<(), PeerFailure> {
        let message = |swarms| RequesterMessage::Withdraw { swarms };
        self.say(&swarms, message).await
    }

    /// Ends when the other side has ended the stream, or is gone. Cancel-safe.
    pub async fn ended(&mut self) -> PeerFailure {
        let ended = self.ended.wait_for(Option::is_some).await;
        ended.map_or(PeerFailure::Stopped, |why| failure(&why))
    }

    async fn say(
        &self,
        swarms: &[SwarmId],
        message: impl Fn(Vec<SwarmId>) -> RequesterMessage,
    ) -> Result<(), PeerFailure> {
        for some in swarms.chunks(MAX_ANNOUNCED_SWARMS) {
            if let Some(failure) = self.ended.borrow().clone() {
                return Err(failure);
            }
            let said = self.words.send(message(some.to_vec())).await;
            said.map_err(|_| failure(&self.ended.borrow()))?;
        }
        Ok(())
    }
}

/// Without a reason the task was dropped.
fn failure(ended: &Option<PeerFailure>) -> PeerFailure {
    ended.clone().unwrap_or(PeerFailure::Stopped)
}

pub(crate) fn start(hub: &HubHandle, link: Arc<Link>, speak_up_after: Duration) -> Announcer {
    let (words, mut to_send) = mpsc::channel(WORD_QUEUE);
    let (end, ended) = watch::channel(None);
    let peer = link.peer;
    hub.start(async move {
        if let Err(failure) = run(&link, &mut to_send, speak_up_after).await {
            session::note_misbehaviour(&link, &failure);
            // Before the queue is dropped: who finds it closed looks here.
            end.send_replace(Some(failure));
        }
    });
    Announcer { peer, words, ended }
}

/// Ends well when nobody has anything to say any more.
async fn run(
    link: &Link,
    words: &mut mpsc::Receiver<RequesterMessage>,
    speak_up_after: Duration,
) -> Result<(), PeerFailure> {
    let (mut send, receive) = session::open_stream(link).await?;
    // The first message of a stream is short.
    session::send_message(&mut send, nothing_more()).await?;
    let mut reader = MessageReader::new(receive);
    tokio::select! {
        () = say_all(&mut send, words, speak_up_after) => Ok(()),
        failure = refusal(&mut reader) => Err(failure),
    }
}

async fn say_all(
    send: &mut SendStream,
    words: &mut mpsc::Receiver<RequesterMessage>,
    speak_up_after: Duration,
) {
    loop {
        let word = match tokio::time::timeout(speak_up_after, words.recv()).await {
            Ok(Some(word)) => word,
            Ok(None) => return,
            Err(_) => nothing_more(),
        };
        if session::send_message(send, word).await.is_err() {
            // What the other has said before it stopped reading is what matters.
            return std::future::pending().await;
        }
    }
}

fn nothing_more() -> RequesterMessage {
    RequesterMessage::Announce { swarms: Vec::new() }
}

async fn refusal(reader: &mut MessageReader) -> PeerFailure {
    match reader.next_within(REFUSAL_BYTES).await {
        Err(error) => session::failure(error, "a refusal"),
        Ok(None) => enlist::ended(),
        Ok(Some(ResponderMessage::Unknown)) => PeerFailure::Unknown,
        Ok(Some(ResponderMessage::Busy { retry_after })) => PeerFailure::Busy { retry_after },
        Ok(Some(
            other @ (ResponderMessage::Joined { .. }
            | ResponderMessage::Segment { .. }
            | ResponderMessage::Absent { .. }
            | ResponderMessage::RangeBusy { .. }
            | ResponderMessage::Manifest { .. }
            | ResponderMessage::NoManifest
            | ResponderMessage::Have(_)
            | ResponderMessage::HaveMore(_)
            | ResponderMessage::Answer(_)
            | ResponderMessage::Hashes { .. }),
        )) => session::out_of_place(&other),
    }
}
