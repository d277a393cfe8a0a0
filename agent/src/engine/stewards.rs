//! A download's streams to its stewards: opened, spoken on and ended as the planner says.
//!
//! Decides nothing. A steward is another agent, or this one: then its desk is in this process.

use std::collections::BTreeMap;

use branchline_core::PeerId;
use branchline_core::swarm::{Answer, Enlist, Report};
use branchline_exchange::{DialError, StewardLink};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::engine::Shared;
use crate::engine::steward_desk::OwnDesk;

/// Words of stewards that wait for the planner; a full queue makes them wait.
const WORD_QUEUE: usize = 32;

/// Reports that wait for a stream to be opened or to take them. A steward that is so far behind is
/// none.
const REPORT_QUEUE: usize = 16;

/// What came of a stream.
#[derive(Debug)]
pub(crate) enum StewardWord {
    /// There is a connection.
    Reached { steward: PeerId },
    /// The steward has answered.
    Answered { steward: PeerId, answer: Answer },
    /// The stream has ended, or could not be opened.
    Lost { steward: PeerId },
}

/// See the module's text.
pub(crate) struct Stewards {
    streams: BTreeMap<PeerId, Stream>,
    opened_so_far: u64,
    work: JoinSet<()>,
    to_me: mpsc::Sender<(u64, StewardWord)>,
    words: mpsc::Receiver<(u64, StewardWord)>,
}

struct Stream {
    number: u64,
    /// Dropping it ends the stream.
    reports: mpsc::Sender<Report>,
}

impl Stewards {
    pub(crate) fn new() -> Self {
        let (to_me, words) = mpsc::channel(WORD_QUEUE);
        Self {
            streams: BTreeMap::new(),
            opened_so_far: 0,
            work: JoinSet::new(),
            to_me,
            words,
        }
    }

    /// Opens a stream, in place of one that is there, and enlists on it.
    pub(crate) fn enlist(&mut self, shared: &Shared, steward: PeerId, enlist: Enlist) {
        self.opened_so_far += 1;
        let number = self.opened_so_far;
        let (reports, to_send) = mpsc::channel(REPORT_QUEUE);
        self.streams.insert(steward, Stream { number, reports });
        let voice = Voice {
            steward,
            number,
            words: self.to_me.clone(),
        };
        if steward == shared.me {
            let desk = shared.desk.as_ref().map(|desk| desk.own());
            self.work.spawn(at_own_desk(voice, desk, enlist, to_send));
            return;
        }
        let addresses = shared.membership().exchange_addresses(&steward);
        let link = shared
            .exchange
            .as_ref()
            .map(|exchange| exchange.enlist(steward, addresses, enlist));
        self.work.spawn(at_another(voice, link, to_send));
    }

    /// Says something on the stream to `steward`.
    pub(crate) fn report(&mut self, steward: PeerId, report: Report) {
        if let Some(stream) = self.streams.get(&steward)
            && stream.reports.try_send(report).is_err()
        {
            // A queue that is full here, too, is noticed by the steward's silence.
            let lost = StewardWord::Lost { steward };
            let _full = self.to_me.try_send((stream.number, lost));
        }
    }

    /// Ends the stream to `steward`; nothing more is heard of it.
    pub(crate) fn leave(&mut self, steward: PeerId) {
        self.streams.remove(&steward);
    }

    /// The next word of a steward that was not left. Cancel-safe. Never ends.
    pub(crate) async fn next(&mut self) -> StewardWord {
        loop {
            // Tasks that have ended are forgotten; those of streams end with a word.
            while self.work.try_join_next().is_some() {}
            let Some(numbered) = self.words.recv().await else {
                return std::future::pending().await;
            };
            if let Some(word) = self.current(numbered) {
                return word;
            }
        }
    }

    /// The next word that has come already.
    pub(crate) fn try_next(&mut self) -> Option<StewardWord> {
        while let Ok(numbered) = self.words.try_recv() {
            if let Some(word) = self.current(numbered) {
                return Some(word);
            }
        }
        None
    }

    /// The word, unless it is of a stream that was left.
    fn current(&mut self, (number, word): (u64, StewardWord)) -> Option<StewardWord> {
        let (StewardWord::Reached { steward }
        | StewardWord::Answered { steward, .. }
        | StewardWord::Lost { steward }) = &word;
        let steward = *steward;
        let current = self.streams.get(&steward);
        if current.is_none_or(|stream| stream.number != number) {
            return None;
        }
        if matches!(word, StewardWord::Lost { .. }) {
            self.streams.remove(&steward);
        }
        Some(word)
    }
}

/// A stream's task as it speaks to its owner.
struct Voice {
    steward: PeerId,
    number: u64,
    words: mpsc::Sender<(u64, StewardWord)>,
}

impl Voice {
    async fn reached(&self) {
        let steward = self.steward;
        let word = StewardWord::Reached { steward };
        let _ = self.words.send((self.number, word)).await;
    }

    async fn answered(&self, answer: Answer) {
        let steward = self.steward;
        let word = StewardWord::Answered { steward, answer };
        // Nobody listening is the end of the download, and of this task.
        let _ = self.words.send((self.number, word)).await;
    }

    async fn lost(self, why: impl std::fmt::Display) {
        let steward = self.steward;
        tracing::debug!(%steward, %why, "no stream to a steward");
        let _ = self
            .words
            .send((self.number, StewardWord::Lost { steward }))
            .await;
    }
}

async fn at_own_desk(
    voice: Voice,
    desk: Option<OwnDesk>,
    enlist: Enlist,
    mut reports: mpsc::Receiver<Report>,
) {
    let Some(desk) = desk else {
        return voice.lost("this agent is no steward").await;
    };
    voice.reached().await;
    let mut membership = match desk.enlist(enlist).await {
        Ok(membership) => membership,
        Err(error) => return voice.lost(error).await,
    };
    loop {
        let ended = tokio::select! {
            report = reports.recv() => match report {
                Some(report) => membership.report(report).await.err(),
                None => return,
            },
            answer = membership.next() => match answer {
                Ok(answer) => {
                    voice.answered(answer).await;
                    None
                }
                Err(error) => Some(error),
            },
        };
        if let Some(error) = ended {
            return voice.lost(error).await;
        }
    }
}

async fn at_another(
    voice: Voice,
    link: Option<impl Future<Output = Result<StewardLink, DialError>>>,
    mut reports: mpsc::Receiver<Report>,
) {
    let Some(link) = link else {
        return voice.lost("there is no exchange").await;
    };
    let mut link = match link.await {
        Ok(link) => link,
        Err(error) => return voice.lost(error).await,
    };
    voice.reached().await;
    loop {
        tokio::select! {
            report = reports.recv() => {
                let Some(report) = report else { return };
                if let Err(error) = link.report(report) {
                    return voice.lost(error).await;
                }
            }
            answer = link.next() => match answer {
                Ok(answer) => voice.answered(answer).await,
                Err(failure) => return voice.lost(failure).await,
            },
        }
    }
}
