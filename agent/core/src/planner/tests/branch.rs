//! A planner among simulated peers of every nature, with a steward or without.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use branchline_hashing::SegmentIndex;
use proptest::prelude::*;

use super::{in_branch, me, peer, swarm};
use crate::planner::{Action, JoinFailure, OriginAccess, Planner, Source};
use crate::swarm::{Blocks, Steward};
use crate::{PeerId, SegmentRange, SegmentSet};

/// How a simulated peer behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Nature {
    Good,
    Slow,
    Silent,
    Lies,
    Forgets,
    Busy,
    Leaves,
    Absent,
}

/// A branch of simulated peers around a planner: each owes a queue of segments and answers one a
/// step, in its own way.
struct Branch {
    now: Instant,
    planner: Planner,
    natures: BTreeMap<PeerId, Nature>,
    owed: BTreeMap<PeerId, VecDeque<SegmentIndex>>,
    runs: Vec<(SegmentRange, u32)>,
    asked_of_origin: u32,
    /// `None`: stewards are silent.
    steward: Option<Steward>,
    asked: Option<(PeerId, Blocks)>,
}

impl Branch {
    fn apply(&mut self, action: Action) {
        match action {
            Action::Request { peer, range } => {
                let queue = self.owed.get_mut(&peer).expect("only members are asked");
                queue.extend(range.iter());
            }
            Action::Cancel { peer, range } => {
                if let Some(queue) = self.owed.get_mut(&peer) {
                    queue.retain(|index| !range.contains(*index));
                }
            }
            Action::Interrupt { peer } => {
                if let Some(queue) = self.owed.get_mut(&peer) {
                    queue.clear();
                }
            }
            Action::DropPeer { peer, .. } => {
                self.owed.remove(&peer);
            }
            Action::FetchFromOrigin { run } => {
                assert!(
                    self.runs.iter().all(|(other, _)| *other != run),
                    "asked twice at once"
                );
                self.asked_of_origin += run.count();
                self.runs.push((run, 0));
            }
            Action::CancelOrigin { run } => self.runs.retain(|(other, _)| *other != run),
            Action::Join { peer } => self.join(peer),
            Action::Enlist { steward, enlist } => {
                self.asked = Some((steward, enlist.blocks));
                if let Some(steward) = &mut self.steward {
                    steward.handle_enlist(self.now, me(), enlist);
                }
            }
            Action::Report { report, .. } => {
                let (_, blocks) = self.asked.expect("enlisted before");
                if let Some(steward) = &mut self.steward {
                    steward.handle_report(self.now, me(), swarm(), blocks, report);
                }
            }
            Action::LeaveSteward { .. } => {
                let (_, blocks) = self.asked.take().expect("enlisted before");
                if let Some(steward) = &mut self.steward {
                    steward.handle_left(self.now, me(), swarm(), blocks);
                }
            }
        }
    }

    fn join(&mut self, peer: PeerId) {
        if self.natures.get(&peer) == Some(&Nature::Absent) {
            return self
                .planner
                .handle_not_joined(self.now, peer, JoinFailure::Absent);
        }
        self.owed.insert(peer, VecDeque::new());
        let have = SegmentSet::full(self.planner.done().size());
        self.planner.handle_joined(self.now, peer, have);
    }

    fn hear_steward(&mut self) {
        let Some(steward) = &mut self.steward else {
            return;
        };
        if steward
            .next_deadline()
            .is_some_and(|next| next.at <= self.now)
        {
            steward.handle_timeout(self.now);
        }
        while let Some(told) = steward.poll_output() {
            if let Some((asked, _)) = self.asked {
                self.planner.handle_answer(self.now, asked, &told.answer);
            }
        }
    }

    fn step(&mut self, step: u32) {
        self.now += Duration::from_millis(20);
        for (id, nature) in self.natures.clone() {
            self.step_peer(step, id, nature);
        }
        self.step_origin();
        self.hear_steward();
        if self
            .planner
            .next_deadline()
            .is_some_and(|deadline| deadline.at <= self.now)
        {
            self.planner.handle_timeout(self.now);
        }
        while let Some(action) = self.planner.poll_action() {
            self.apply(action);
        }
    }

    fn step_peer(&mut self, step: u32, id: PeerId, nature: Nature) {
        let Some(queue) = self.owed.get_mut(&id) else {
            return;
        };
        let pause = match nature {
            Nature::Good | Nature::Lies | Nature::Forgets | Nature::Busy | Nature::Leaves => 1,
            Nature::Slow => 30,
            Nature::Silent | Nature::Absent => u32::MAX,
        };
        if !step.is_multiple_of(pause) {
            return;
        }
        let Some(index) = queue.pop_front() else {
            return;
        };
        let odd = index.0 % 7 == 3;
        match nature {
            Nature::Lies if odd => self.planner.handle_bad_segment(self.now, id),
            Nature::Forgets if odd => self.planner.handle_absent(self.now, id, index),
            Nature::Busy if odd => {
                let range = SegmentRange::one(index);
                self.planner
                    .handle_busy(self.now, id, range, Duration::from_secs(1));
            }
            Nature::Leaves if odd => {
                self.owed.remove(&id);
                self.planner.handle_left(self.now, id);
            }
            Nature::Good | Nature::Slow | Nature::Silent | Nature::Absent => {
                self.stored(Source::Peer(id), index)
            }
            Nature::Lies | Nature::Forgets | Nature::Busy | Nature::Leaves => {
                self.stored(Source::Peer(id), index);
            }
        }
    }

    fn step_origin(&mut self) {
        let Some((run, come)) = self.runs.first().copied() else {
            return;
        };
        if come == run.count() {
            self.runs.remove(0);
            return self.planner.handle_origin_run_ended(self.now, run);
        }
        self.runs[0].1 += 1;
        self.stored(Source::Origin, SegmentIndex(run.first().0 + come));
    }

    fn stored(&mut self, source: Source, index: SegmentIndex) {
        self.planner.handle_stored(self.now, source, index);
    }
}

fn natures() -> impl Strategy<Value = Vec<Nature>> {
    let nature = prop_oneof![
        Just(Nature::Good),
        Just(Nature::Slow),
        Just(Nature::Silent),
        Just(Nature::Lies),
        Just(Nature::Forgets),
        Just(Nature::Busy),
        Just(Nature::Leaves),
        Just(Nature::Absent),
    ];
    prop::collection::vec(nature, 0..6)
}

proptest! {
    #[test]
    fn every_transfer_ends_whatever_the_peers_do(
        count in 1u32..400,
        natures in natures(),
        ranges in any::<bool>(),
        steward in any::<bool>(),
    ) {
        let now = Instant::now();
        let origin = if ranges { OriginAccess::Ranges } else { OriginAccess::WholeFileOnly };
        let ids: Vec<PeerId> = (1..).map(peer).take(natures.len()).collect();
        let planner = in_branch(now, count, origin, &ids);
        let only_good = natures.iter().all(|n| *n == Nature::Good) && !natures.is_empty();
        let mut branch = Branch {
            now,
            planner,
            owed: BTreeMap::new(),
            natures: ids.into_iter().zip(natures).collect(),
            runs: Vec::new(),
            asked_of_origin: 0,
            steward: steward.then(|| Steward::new(3)),
            asked: None,
        };
        while let Some(action) = branch.planner.poll_action() {
            branch.apply(action);
        }
        let mut step = 0;
        while !branch.planner.is_finished() {
            step += 1;
            prop_assert!(step < 20_000, "no end in sight: {:?}", branch.planner);
            branch.step(step);
        }
        if only_good {
            prop_assert_eq!(branch.asked_of_origin, 0);
        }
    }
}
