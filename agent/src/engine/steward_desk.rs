//! This agent as a steward: one task owns the sans-IO [`Steward`] and carries out what it says.
//!
//! Members are other agents, over the exchange, and this agent's own downloads, over a queue of
//! this process. Both speak the same words in the same order.

use std::collections::BTreeMap;
use std::time::Duration;

use branchline_core::PeerId;
use branchline_core::swarm::{AnnouncementWord, Answer, Blocks, Enlist, Report, Steward, Told};
use branchline_exchange::{SeatEvent, SeatEvents};
use branchline_hashing::SwarmId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::engine::{far_future, linux, now};

/// Words of this agent's own downloads that wait for the desk; a full queue makes them wait.
const OWN_QUEUE: usize = 64;

/// Answers that one of them has not heard yet. A desk that finds it full ends the membership.
const ANSWER_QUEUE: usize = 8;

/// How long the task may take to notice that the exchange has ended.
const END_TIME: Duration = Duration::from_secs(1);

/// The running task.
pub(crate) struct StewardDesk {
    own: OwnDesk,
    work: JoinHandle<()>,
}

/// Where this agent's own downloads enlist.
#[derive(Clone)]
pub(crate) struct OwnDesk {
    words: mpsc::Sender<OwnWord>,
}

/// A download of this agent as a member at its own desk. Dropping it ends the membership.
pub(crate) struct OwnMembership {
    desk: OwnDesk,
    swarm: SwarmId,
    answers: mpsc::Receiver<Answer>,
    /// Which of this agent's memberships: reports of one that was replaced count for nothing.
    number: u64,
    _alive: oneshot::Sender<()>,
}

/// A word of one of this agent's own downloads.
enum OwnWord {
    Enlist {
        enlist: Enlist,
        answers: mpsc::Sender<Answer>,
        number: oneshot::Sender<u64>,
        /// Ends with the membership.
        alive: oneshot::Receiver<()>,
    },
    Report {
        swarm: SwarmId,
        number: u64,
        report: Report,
    },
    /// What the whole agent holds.
    Holds(AnnouncementWord),
}

/// The desk has ended, or the membership at it.
#[derive(Debug, thiserror::Error)]
#[error("this agent's own steward has ended the membership")]
pub(crate) struct Dismissed;

impl StewardDesk {
    /// Starts the task, which ends when the exchange does.
    pub(crate) fn start(me: PeerId, events: SeatEvents) -> Self {
        let (words, own) = mpsc::channel(OWN_QUEUE);
        let desk = Desk {
            me,
            steward: Steward::new(linux::random()),
            members: BTreeMap::new(),
            closing: JoinSet::new(),
            enlisted_so_far: 0,
        };
        Self {
            own: OwnDesk { words },
            work: tokio::spawn(desk.run(events, own)),
        }
    }

    /// Where this agent's own downloads enlist.
    pub(crate) fn own(&self) -> OwnDesk {
        self.own.clone()
    }

    /// Waits for the task's end, which follows the exchange's; not long, for an exchange that does not
    /// end must not keep the store from being closed.
    pub(crate) async fn finish(mut self) {
        match tokio::time::timeout(END_TIME, &mut self.work).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the steward's task broke"),
            Err(_) => self.work.abort(),
        }
    }
}

impl OwnDesk {
    /// A second download of the same swarm takes the first one's place.
    pub(crate) async fn enlist(self, enlist: Enlist) -> Result<OwnMembership, Dismissed> {
        let (answers, told) = mpsc::channel(ANSWER_QUEUE);
        let (number, numbered) = oneshot::channel();
        let (membership_ends, alive) = oneshot::channel();
        let swarm = enlist.swarm;
        let word = OwnWord::Enlist {
            enlist,
            answers,
            number,
            alive,
        };
        self.words.send(word).await.map_err(|_| Dismissed)?;
        Ok(OwnMembership {
            number: numbered.await.map_err(|_| Dismissed)?,
            desk: self,
            swarm,
            answers: told,
            _alive: membership_ends,
        })
    }

    /// What this agent itself holds. A desk that has ended needs no word.
    pub(crate) async fn announce(&self, word: AnnouncementWord) {
        let _ended = self.words.send(OwnWord::Holds(word)).await;
    }
}

impl OwnMembership {
    /// Waits while the desk is behind. Not cancel-safe: a dropped call loses the report.
    pub(crate) async fn report(&self, report: Report) -> Result<(), Dismissed> {
        let word = OwnWord::Report {
            swarm: self.swarm,
            number: self.number,
            report,
        };
        self.desk.words.send(word).await.map_err(|_| Dismissed)
    }

    /// The desk's next word. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Answer, Dismissed> {
        self.answers.recv().await.ok_or(Dismissed)
    }
}

/// A stream's name: see [`SeatEvent`].
type Name = (PeerId, SwarmId);

struct Desk {
    me: PeerId,
    steward: Steward,
    members: BTreeMap<Name, Member>,
    /// Waits for own downloads to end; others' ends the exchange tells.
    closing: JoinSet<(Name, u64)>,
    enlisted_so_far: u64,
}

struct Member {
    number: u64,
    blocks: Blocks,
    /// None when it did not take what it was sent.
    answers: Option<mpsc::Sender<Answer>>,
}

impl Desk {
    async fn run(mut self, mut events: SeatEvents, mut own: mpsc::Receiver<OwnWord>) {
        loop {
            let deadline = self.steward.next_deadline();
            let until = deadline.map_or_else(far_future, |deadline| Instant::from_std(deadline.at));
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                Some(word) = own.recv() => self.handle_own(word),
                Some(Ok((name, number))) = self.closing.join_next() => {
                    if self.members.get(&name).is_some_and(|member| member.number == number) {
                        self.leave(name);
                    }
                }
                () = sleep_until(until) => self.steward.handle_timeout(now()),
            }
            self.tell();
        }
    }

    fn handle(&mut self, event: SeatEvent) {
        match event {
            SeatEvent::Enlisted {
                peer,
                enlist,
                answers,
            } => {
                self.enlist(peer, enlist, answers);
            }
            SeatEvent::Reported {
                peer,
                swarm,
                report,
            } => {
                if let Some(member) = self.members.get(&(peer, swarm)) {
                    let blocks = member.blocks;
                    self.steward
                        .handle_report(now(), peer, swarm, blocks, report);
                }
            }
            SeatEvent::Left { peer, swarm } => self.leave((peer, swarm)),
            SeatEvent::Announced { peer, swarms } => {
                self.steward.handle_announce(now(), peer, &swarms);
            }
            SeatEvent::Withdrawn { peer, swarms } => {
                self.steward.handle_withdraw(now(), peer, &swarms);
            }
            SeatEvent::Silent { peer } => self.steward.handle_announcer_left(now(), peer),
        }
    }

    fn handle_own(&mut self, word: OwnWord) {
        let me = self.me;
        match word {
            OwnWord::Enlist {
                enlist,
                answers,
                number: numbered,
                alive,
            } => {
                let name = (me, enlist.swarm);
                let number = self.enlist(me, enlist, answers);
                // Nobody waits for the number when the membership has ended: so does this.
                let _ended = numbered.send(number);
                self.closing.spawn(async move {
                    let _always_dropped = alive.await;
                    (name, number)
                });
            }
            OwnWord::Report {
                swarm,
                number,
                report,
            } => {
                let member = self.members.get(&(me, swarm));
                if let Some(member) = member.filter(|member| member.number == number) {
                    let blocks = member.blocks;
                    self.steward.handle_report(now(), me, swarm, blocks, report);
                }
            }
            OwnWord::Holds(AnnouncementWord::Announce { swarms, .. }) => {
                self.steward.handle_announce(now(), me, &swarms);
            }
            OwnWord::Holds(AnnouncementWord::Withdraw { swarms, .. }) => {
                self.steward.handle_withdraw(now(), me, &swarms);
            }
        }
    }

    /// The membership's number.
    fn enlist(&mut self, peer: PeerId, enlist: Enlist, answers: mpsc::Sender<Answer>) -> u64 {
        let name = (peer, enlist.swarm);
        // Of an own download that another replaces.
        self.leave(name);
        self.enlisted_so_far += 1;
        let number = self.enlisted_so_far;
        let (blocks, answers) = (enlist.blocks, Some(answers));
        let member = Member {
            number,
            blocks,
            answers,
        };
        self.members.insert(name, member);
        self.steward.handle_enlist(now(), peer, enlist);
        number
    }

    fn leave(&mut self, name: Name) {
        if let Some(member) = self.members.remove(&name) {
            self.steward
                .handle_left(now(), name.0, name.1, member.blocks);
        }
    }

    fn tell(&mut self) {
        while let Some(told) = self.steward.poll_output() {
            let Told {
                to,
                swarm,
                blocks,
                answer,
            } = told;
            let Some(member) = self.members.get_mut(&(to, swarm)) else {
                continue;
            };
            let current = member.answers.as_ref().filter(|_| member.blocks == blocks);
            if current.is_some_and(|answers| answers.try_send(answer).is_err()) {
                tracing::debug!(peer = %to, %swarm, "a member does not take its steward's words");
                member.answers = None;
            }
        }
    }
}
