//! The planner's and the steward's cost, in microseconds of this machine.
//!
//! `cargo run --release -p branchline-core --example plan_speed`

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use branchline_core::planner::{Action, OriginAccess, OriginPace, Planner, Setup, Sharing, Source};
use branchline_core::swarm::{BlockSet, Blocks, Enlist, Report, Steward, Want};
use branchline_core::{PeerId, SegmentSet};
use branchline_hashing::{SegmentIndex, SwarmId};

fn main() {
    for (segments, peers) in [(2_000, 1), (300_000, 1), (2_000, 24), (300_000, 24)] {
        for full in [true, false] {
            let micros = plan(segments, peers, full);
            let hold = if full { "all" } else { "a part" };
            println!(
                "{segments} segments, {peers} peers that hold {hold}: {micros:.2} us a segment"
            );
        }
    }
    println!("10,000 members: {:.2} us a report", steward());
}

fn peer(number: u16) -> PeerId {
    let mut key = [0; 32];
    key[..2].copy_from_slice(&number.to_le_bytes());
    PeerId::from_public_key(key)
}

/// Peers that hold all, or every other one of them each even or odd run of 100.
fn plan(segments: u32, peers: u16, full: bool) -> f64 {
    let mut now = Instant::now();
    let members: BTreeSet<PeerId> = (1..=peers).map(peer).collect();
    let setup = Setup {
        lengths: vec![32 << 10; segments as usize].into(),
        done: SegmentSet::empty(segments),
        origin: OriginAccess::Closed,
        pace: OriginPace::default(),
        seed: 1,
        sharing: Some(Sharing {
            me: peer(0),
            swarm: SwarmId::from_bytes([7; 32]),
            members: members.clone(),
            warmed: false,
            enrolment: None,
        }),
    };
    let began = Instant::now();
    let mut planner = Planner::new(now, setup);
    for (odd, member) in (0..).zip(members) {
        let mut have = SegmentSet::full(segments);
        if !full && peers > 1 {
            let other = |index: &SegmentIndex| index.0 / 100 % 2 == odd % 2;
            let less: Vec<_> = have.iter().filter(other).collect();
            less.into_iter().for_each(|index| {
                have.remove(index);
            });
        }
        planner.handle_joined(now, member, have);
    }
    let mut owed = VecDeque::new();
    while !planner.is_finished() {
        while let Some(action) = planner.poll_action() {
            if let Action::Request { peer, range } = action {
                owed.extend(range.iter().map(|index| (Source::Peer(peer), index)));
            }
        }
        now += Duration::from_micros(30);
        let (source, index) = owed.pop_front().expect("something is owed");
        planner.handle_stored(now, source, index);
    }
    began.elapsed().as_secs_f64() * 1e6 / f64::from(segments)
}

fn steward() -> f64 {
    let members = 10_000;
    let blocks = Blocks::of(300_000, 300_000 << 15);
    let now = Instant::now();
    let mut steward = Steward::new(1);
    let swarm = SwarmId::from_bytes([7; 32]);
    let want = Want {
        runs: 2,
        blocks_per_run: 8,
        manifest: false,
    };
    let enlist = Enlist {
        swarm,
        blocks,
        held: BlockSet::empty(blocks.count()),
        leased: Vec::new(),
        has_manifest: true,
        want,
    };
    for number in 0..members {
        steward.handle_enlist(now, peer(number), enlist.clone());
    }
    while steward.poll_output().is_some() {}
    let began = Instant::now();
    for number in 0..members {
        let report = Report {
            held: BlockSet::empty(blocks.count()),
            returned: Vec::new(),
            has_manifest: true,
            want,
        };
        steward.handle_report(now, peer(number), swarm, blocks, report);
        steward.handle_timeout(now);
        while steward.poll_output().is_some() {}
    }
    began.elapsed().as_secs_f64() * 1e6 / f64::from(members)
}
