//! Peers and stewards that would keep a planner from the origin.

use super::*;

fn fetches(actions: &[Action]) -> bool {
    let fetched = |action: &Action| matches!(action, Action::FetchFromOrigin { .. });
    actions.iter().any(fetched)
}

fn cancels_origin(actions: &[Action]) -> usize {
    let cancelled = |action: &&Action| matches!(action, Action::CancelOrigin { .. });
    actions.iter().filter(cancelled).count()
}

fn asked(actions: &[Action]) -> Vec<(PeerId, SegmentRange)> {
    let asked = |action: &Action| match action {
        Action::Request { peer, range } => Some((*peer, *range)),
        Action::Cancel { .. }
        | Action::Interrupt { .. }
        | Action::DropPeer { .. }
        | Action::FetchFromOrigin { .. }
        | Action::CancelOrigin { .. }
        | Action::Join { .. }
        | Action::Enlist { .. }
        | Action::Report { .. }
        | Action::LeaveSteward { .. } => None,
    };
    actions.iter().filter_map(asked).collect()
}

#[test]
fn a_peer_that_refuses_and_tells_nothing_new_ends_no_run_at_the_origin() {
    let now = Instant::now();
    let mut planner = new_planner(now, 10, OriginAccess::Ranges);
    planner.handle_joined(now, peer(1), SegmentSet::full(10));
    for (peer, range) in asked(&drain(&mut planner)) {
        planner.handle_busy(now, peer, range, PEER_STALL * 10);
    }
    assert!(fetches(&drain(&mut planner)));
    planner.handle_have_more(now, peer(1), []);
    planner.handle_have(now, peer(1), SegmentSet::full(10));
    assert_eq!(cancels_origin(&drain(&mut planner)), 0);
}

#[test]
fn a_peer_that_holds_now_more_and_now_less_ends_few_runs_at_the_origin() {
    let mut now = Instant::now();
    let mut planner = new_planner(now, 10, OriginAccess::Ranges);
    planner.handle_joined(now, peer(1), SegmentSet::empty(10));
    let mut cancelled = 0;
    for _ in 0..50 {
        now += Duration::from_millis(200);
        planner.handle_have(now, peer(1), SegmentSet::full(10));
        let actions = drain(&mut planner);
        cancelled += cancels_origin(&actions);
        for (peer, range) in asked(&actions) {
            for index in range.iter() {
                planner.handle_absent(now, peer, index);
            }
        }
        planner.handle_have(now, peer(1), SegmentSet::empty(10));
        cancelled += cancels_origin(&drain(&mut planner));
    }
    assert!(cancelled < 8, "{cancelled} runs");
}

#[test]
fn two_peers_that_refuse_by_turns_do_not_keep_the_rest_from_the_origin() {
    let start = Instant::now();
    let mut now = start;
    let mut planner = new_planner(now, 10, OriginAccess::Ranges);
    drain(&mut planner);
    for number in [1, 2] {
        planner.handle_joined(now, peer(number), SegmentSet::full(10));
    }
    let mut owed = asked(&drain(&mut planner));
    loop {
        now += Duration::from_millis(110);
        assert!(now < start + Duration::from_secs(5), "no end in sight");
        for (peer, range) in std::mem::take(&mut owed) {
            planner.handle_busy(now, peer, range, Duration::ZERO);
        }
        planner.handle_timeout(now);
        let actions = drain(&mut planner);
        if fetches(&actions) {
            return;
        }
        owed.extend(asked(&actions));
    }
}

#[test]
fn a_peer_that_says_again_and_again_to_hold_what_it_does_not_is_dropped() {
    let now = Instant::now();
    let mut planner = new_planner(now, 100, OriginAccess::Closed);
    planner.handle_joined(now, peer(1), SegmentSet::full(100));
    for index in (0..100).map(SegmentIndex) {
        planner.handle_absent(now, peer(1), index);
    }
    let dropped = |action: &Action| matches!(action, Action::DropPeer { .. });
    assert!(drain(&mut planner).iter().any(dropped));
}

#[test]
fn what_is_granted_again_or_without_end_is_kept_once_and_bounded() {
    let now = Instant::now();
    let mut planner = in_branch(now, 20_000, OriginAccess::Ranges, &[peer(1)]);
    let steward = steward_asked(&mut planner);
    for _ in 0..3 {
        planner.handle_answer(now, steward, &grants(0, 8));
    }
    assert_eq!(planner.leases.len(), 1);
    for first in 0..200 {
        planner.handle_answer(now, steward, &grants(10 + 2 * first, 1));
    }
    assert_eq!(planner.leases.len(), crate::swarm::MAX_LEASES);
}

#[test]
fn what_becomes_of_a_run_that_was_cancelled_closes_no_origin() {
    let now = Instant::now();
    let mut planner = new_planner(now, 10, OriginAccess::Ranges);
    let run = SegmentRange::new(SegmentIndex(0), 10).expect("ten segments");
    planner.handle_joined(now, peer(1), SegmentSet::full(10));
    drain(&mut planner);
    planner.handle_origin_run_failed(now, run, RunFailure::GaveUp);
    assert_eq!(planner.origin_access(), OriginAccess::Ranges);
}

#[test]
fn a_whole_file_that_passes_what_is_there_already_is_not_cancelled() {
    let now = Instant::now();
    let mut planner = in_branch(now, 2000, OriginAccess::WholeFileOnly, &[peer(1)]);
    let steward = steward_asked(&mut planner);
    planner.handle_not_joined(now, peer(1), JoinFailure::Absent);
    let all = planner.blocks.count();
    planner.handle_answer(now, steward, &grants(0, all));
    assert!(fetches(&drain(&mut planner)));
    let late = now + Duration::from_secs(30);
    planner.handle_answer(late, steward, &grants(0, all));
    planner.handle_timeout(late);
    assert_eq!(cancels_origin(&drain(&mut planner)), 0);
}

#[test]
fn a_slow_peer_that_holds_everything_leaves_the_rest_to_the_origin() {
    let start = Instant::now();
    let mut planner = new_planner(start, 2000, OriginAccess::Ranges);
    drain(&mut planner);
    planner.handle_joined(start, peer(1), SegmentSet::full(2000));
    let owed = asked(&drain(&mut planner));
    // 64 KiB in half a second: 1 Mbit/s, where the origin is expected to give twenty.
    let now = start + Duration::from_millis(490);
    let first = owed[0].1.first();
    planner.handle_stored(now, Source::Peer(peer(1)), first);
    let actions = drain(&mut planner);
    let cancelled = |action: &Action| matches!(action, Action::Cancel { .. });
    assert!(
        actions.iter().any(cancelled) && fetches(&actions),
        "{actions:?}"
    );
}
