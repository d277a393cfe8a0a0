//! A member's stream to its steward.

use std::sync::Arc;

use branchline_core::PeerId;
use branchline_core::swarm::{Answer, Blocks, Enlist, Report};
use branchline_core::wire::{MAX_ANSWER_BYTES, RequesterMessage, ResponderMessage};
use tokio::sync::mpsc;

use crate::error::{Misbehaviour, PeerFailure};
use crate::hub::{HubHandle, Link};
use crate::reading::MessageReader;
use crate::session;

/// Reports that wait for the exchange's thread: what changes in a few tens of milliseconds.
const REPORT_QUEUE: usize = 16;

/// Answers that wait for whoever plans. Full, the stream is not read, and the steward finds that out.
const ANSWER_QUEUE: usize = 8;

/// A membership at a steward. Dropping it ends the stream: the steward frees its leases.
pub struct StewardLink {
    peer: PeerId,
    reports: mpsc::Sender<Report>,
    answers: mpsc::Receiver<Result<Answer, PeerFailure>>,
}

/// A report that was not taken. A report only says what has changed, so the membership is
/// worth nothing without it: drop the link and enlist anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReportRefused {
    /// So many wait to be sent that the steward must be taking none.
    #[error("the steward takes no reports")]
    Stalled,
    /// The stream has ended; [`StewardLink::next`] says why.
    #[error("the stream to the steward has ended")]
    Ended,
}

impl StewardLink {
    /// Who the steward is.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Sends `report`, without waiting. It speaks of as many blocks as the enlistment did.
    ///
    /// # Errors
    /// [`ReportRefused`].
    pub fn report(&self, report: Report) -> Result<(), ReportRefused> {
        self.reports.try_send(report).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ReportRefused::Stalled,
            mpsc::error::TrySendError::Closed(_) => ReportRefused::Ended,
        })
    }

    /// The steward's next word, however long it takes. Cancel-safe.
    ///
    /// # Errors
    /// [`PeerFailure`], and nothing comes any more. A steward that has no place for another member
    /// is [`PeerFailure::Busy`], an agent that is none [`PeerFailure::Unknown`].
    pub async fn next(&mut self) -> Result<Answer, PeerFailure> {
        let next = self.answers.recv().await;
        next.unwrap_or(Err(PeerFailure::Stopped))
    }
}

pub(crate) fn start(hub: &HubHandle, link: Arc<Link>, enlist: Enlist) -> StewardLink {
    let (reports, to_send) = mpsc::channel(REPORT_QUEUE);
    let (told, answers) = mpsc::channel(ANSWER_QUEUE);
    let peer = link.peer;
    hub.start(async move {
        let failure = tokio::select! {
            // Nobody listens: dropping the stream ends it.
            () = told.closed() => return,
            Err(failure) = run(&link, enlist, to_send, &told) => failure,
        };
        session::note_misbehaviour(&link, &failure);
        let _nobody_listens = told.send(Err(failure)).await;
    });
    StewardLink {
        peer,
        reports,
        answers,
    }
}

/// Ends with a failure only.
async fn run(
    link: &Link,
    enlist: Enlist,
    mut reports: mpsc::Receiver<Report>,
    told: &mpsc::Sender<Result<Answer, PeerFailure>>,
) -> Result<(), PeerFailure> {
    let blocks = enlist.blocks;
    let (mut send, receive) = session::open_stream(link).await?;
    session::send_message(&mut send, RequesterMessage::Enlist(enlist)).await?;
    let writing = async move {
        while let Some(report) = reports.recv().await {
            let sent = session::send_message(&mut send, RequesterMessage::Report(report)).await;
            if sent.is_err() {
                // What the steward has said before it stopped reading is what matters.
                break;
            }
        }
        drop(reports);
        std::future::pending::<()>().await;
    };
    let mut reader = MessageReader::new(receive);
    let reading = async {
        loop {
            let answer = next_answer(&mut reader, blocks).await?;
            let _nobody_listens = told.send(Ok(answer)).await;
        }
    };
    tokio::select! {
        () = writing => Ok(()),
        failed = reading => failed,
    }
}

async fn next_answer(reader: &mut MessageReader, blocks: Blocks) -> Result<Answer, PeerFailure> {
    let message = reader.next_within(MAX_ANSWER_BYTES).await;
    match message.map_err(|error| session::failure(error, "a steward's answer"))? {
        None => Err(ended()),
        Some(ResponderMessage::Answer(answer)) => of_blocks(answer, blocks),
        Some(ResponderMessage::Unknown) => Err(PeerFailure::Unknown),
        Some(ResponderMessage::Busy { retry_after }) => Err(PeerFailure::Busy { retry_after }),
        Some(
            other @ (ResponderMessage::Joined { .. }
            | ResponderMessage::Segment { .. }
            | ResponderMessage::Absent { .. }
            | ResponderMessage::RangeBusy { .. }
            | ResponderMessage::Manifest { .. }
            | ResponderMessage::NoManifest
            | ResponderMessage::Have(_)
            | ResponderMessage::HaveMore(_)
            | ResponderMessage::Hashes { .. }),
        ) => Err(session::out_of_place(&other)),
    }
}

/// The other side may end a steward stream whenever it likes.
pub(crate) fn ended() -> PeerFailure {
    PeerFailure::Lost {
        reason: "it has ended the stream".to_owned(),
    }
}

fn of_blocks(answer: Answer, blocks: Blocks) -> Result<Answer, PeerFailure> {
    let mut granted = answer.granted.iter();
    match granted.find(|grant| grant.blocks.end() > blocks.count()) {
        None => Ok(answer),
        Some(grant) => {
            let message = format!(
                "a lease of {:?}, of {} blocks",
                grant.blocks,
                blocks.count()
            );
            Err(Misbehaviour::OutOfPlace { message }.into())
        }
    }
}
