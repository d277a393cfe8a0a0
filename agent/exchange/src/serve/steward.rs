//! Streams of members and announcers: they prove nothing, and learn nothing but what the steward
//! tells them.

use std::time::Duration;

use branchline_core::swarm::{BlockSet, Blocks, Enlist, Report};
use branchline_core::wire::{
    MAX_ANNOUNCE_BYTES, MAX_ENLIST_BYTES, RequesterMessage, ResponderMessage,
};
use branchline_hashing::SwarmId;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Joined, STALL_DEADLINE, ServeError, Stream};
use crate::seat::{NotTaken, Refused, SeatEvent, Seated, StreamName};

/// Answers that wait to be sent to one member: what it has asked and what comes unasked, while this
/// thread does something else. Full, it is the member that takes nothing.
const ANSWER_QUEUE: usize = 8;

impl Stream {
    /// One member of one swarm, until its end or the steward's.
    pub(super) async fn serve_member(&mut self, enlist: Enlist) -> Result<(), ServeError> {
        let (peer, swarm, blocks) = (self.peer, enlist.swarm, enlist.blocks);
        let (answers, mut to_send) = mpsc::channel(ANSWER_QUEUE);
        let first = SeatEvent::Enlisted {
            peer,
            enlist,
            answers,
        };
        let Some(mut seated) = self.take_place(Some(swarm), first).await? else {
            return Ok(());
        };
        let _joined = Joined::count(&self.joined);
        let idle_timeout = self.server.steward_idle_timeout;
        let mut idle_at = Instant::now() + idle_timeout;
        loop {
            tokio::select! {
                answer = to_send.recv() => match answer {
                    Some(answer) => self.write(&ResponderMessage::Answer(answer)).await?,
                    None => return Ok(()),
                },
                message = self.reader.next_within(MAX_ENLIST_BYTES) => {
                    let Some(message) = message? else { return Ok(()) };
                    let report = report_of(message, blocks)?;
                    let event = SeatEvent::Reported { peer, swarm, report };
                    in_time(seated.tell(event)).await?;
                    idle_at = Instant::now() + idle_timeout;
                }
                () = seated.replaced() => return Ok(()),
                () = tokio::time::sleep_until(idle_at) => return Err(idle(idle_timeout)),
            }
        }
    }

    /// All that one peer announces, until its end.
    pub(super) async fn serve_announcer(&mut self, swarms: Vec<SwarmId>) -> Result<(), ServeError> {
        let peer = self.peer;
        let first = SeatEvent::Announced { peer, swarms };
        let Some(mut seated) = self.take_place(None, first).await? else {
            return Ok(());
        };
        let _joined = Joined::count(&self.joined);
        let idle_timeout = self.server.steward_idle_timeout;
        let mut idle_at = Instant::now() + idle_timeout;
        loop {
            tokio::select! {
                message = self.reader.next_within(MAX_ANNOUNCE_BYTES) => {
                    let event = match message? {
                        None => return Ok(()),
                        Some(RequesterMessage::Announce { swarms }) if swarms.is_empty() => None,
                        Some(RequesterMessage::Announce { swarms }) => {
                            Some(SeatEvent::Announced { peer, swarms })
                        }
                        Some(RequesterMessage::Withdraw { swarms }) => {
                            Some(SeatEvent::Withdrawn { peer, swarms })
                        }
                        Some(other) => return Err(out_of_place(&other, "among announcements")),
                    };
                    if let Some(event) = event {
                        in_time(seated.tell(event)).await?;
                    }
                    idle_at = Instant::now() + idle_timeout;
                }
                () = seated.replaced() => return Ok(()),
                () = tokio::time::sleep_until(idle_at) => return Err(idle(idle_timeout)),
            }
        }
    }

    /// A place for this stream, or the word that it gets none.
    async fn take_place(
        &mut self,
        swarm: Option<SwarmId>,
        first: SeatEvent,
    ) -> Result<Option<Seated>, ServeError> {
        let Some(seat) = self.server.seat.clone() else {
            self.write(&ResponderMessage::Unknown).await?;
            return Ok(None);
        };
        let peer = self.peer;
        let placed = seat.seat(StreamName { peer, swarm }, first);
        match tokio::time::timeout(STALL_DEADLINE, placed).await {
            Ok(Ok(seated)) => return Ok(Some(seated)),
            Ok(Err(Refused::NoSteward)) => self.write(&ResponderMessage::Unknown).await?,
            Ok(Err(Refused::TooMany)) | Err(_) => self.write_busy().await?,
        }
        Ok(None)
    }
}

fn report_of(message: RequesterMessage, blocks: Blocks) -> Result<Report, ServeError> {
    match message {
        RequesterMessage::Report(report) => match report.held.size() == blocks.count() {
            true => Ok(report),
            false => Err(wrong_size(&report.held, blocks)),
        },
        other @ (RequesterMessage::Join { .. }
        | RequesterMessage::Request(_)
        | RequesterMessage::ManifestRequest
        | RequesterMessage::HaveRequest
        | RequesterMessage::Enlist(_)
        | RequesterMessage::Announce { .. }
        | RequesterMessage::Withdraw { .. }
        | RequesterMessage::HaveWatch
        | RequesterMessage::HashesRequest(_)) => Err(out_of_place(&other, "from a member")),
    }
}

fn wrong_size(held: &BlockSet, blocks: Blocks) -> ServeError {
    let (found, expected) = (held.size(), blocks.count());
    ServeError::Violation(format!(
        "a report of {found} blocks by a member of {expected}"
    ))
}

fn out_of_place(message: &RequesterMessage, place: &str) -> ServeError {
    ServeError::Violation(format!("{} {place}", message.name()))
}

fn idle(after: Duration) -> ServeError {
    ServeError::Gone(format!("said nothing for {after:?}"))
}

/// A steward that takes nothing for so long has more to do than to serve this stream.
async fn in_time(told: impl Future<Output = Result<(), NotTaken>>) -> Result<(), ServeError> {
    match tokio::time::timeout(STALL_DEADLINE, told).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(NotTaken)) => Err(ServeError::Gone(
            "another has its place, or nobody is the steward".to_owned(),
        )),
        Err(_) => Err(ServeError::Gone(format!(
            "the steward took nothing for {STALL_DEADLINE:?}"
        ))),
    }
}
