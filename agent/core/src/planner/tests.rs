//! The planner against simulated peers and origins, on virtual time.

mod branch;
mod busy;
mod hostile;
mod spreading;
mod telling;

use super::*;
use crate::swarm::{Answer, Grant, SwarmPeer};
use branchline_hashing::SwarmId;

const SEGMENT_BYTES: u32 = 64 << 10;

fn lengths(count: u32) -> Arc<[u32]> {
    vec![SEGMENT_BYTES; count as usize].into()
}

fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

/// A planner that shares with nobody it would look for itself: peers join as the test says.
fn new_planner(now: Instant, count: u32, origin: OriginAccess) -> Planner {
    Planner::new(now, setup(count, origin, None))
}

fn setup(count: u32, origin: OriginAccess, sharing: Option<Sharing>) -> Setup {
    Setup {
        lengths: lengths(count),
        done: SegmentSet::empty(count),
        origin,
        pace: OriginPace::default(),
        seed: 1,
        sharing,
    }
}

/// A planner in a branch with these members.
fn in_branch(now: Instant, count: u32, origin: OriginAccess, members: &[PeerId]) -> Planner {
    let sharing = Sharing {
        me: me(),
        swarm: swarm(),
        members: members.iter().copied().collect(),
        warmed: false,
        enrolment: None,
    };
    Planner::new(now, setup(count, origin, Some(sharing)))
}

fn me() -> PeerId {
    peer(100)
}

fn swarm() -> SwarmId {
    SwarmId::from_bytes([7; 32])
}

/// What is to be done, but for what is said to stewards and who is asked to join.
fn transfers(planner: &mut Planner) -> Vec<Action> {
    let mut actions = drain(planner);
    actions.retain(|action| match action {
        Action::Join { .. }
        | Action::Enlist { .. }
        | Action::Report { .. }
        | Action::LeaveSteward { .. } => false,
        Action::Request { .. }
        | Action::Cancel { .. }
        | Action::Interrupt { .. }
        | Action::DropPeer { .. }
        | Action::FetchFromOrigin { .. }
        | Action::CancelOrigin { .. } => true,
    });
    actions
}

/// With whom the planner enlists now.
fn steward_asked(planner: &mut Planner) -> PeerId {
    let asked = drain(planner).into_iter().find_map(|action| {
        if let Action::Enlist { steward, .. } = action {
            Some(steward)
        } else {
            None
        }
    });
    asked.expect("it enlists")
}

fn grants(first: u32, count: u32) -> Answer {
    let blocks = BlockRange::new(BlockIndex(first), count).expect("blocks");
    let lasts = Duration::from_secs(20);
    Answer {
        asked: true,
        granted: vec![Grant { blocks, lasts }],
        lessees: 1,
        ..Answer::default()
    }
}

fn range(first: u32, count: u32) -> SegmentRange {
    SegmentRange::new(SegmentIndex(first), count).expect("a range")
}

fn drain(planner: &mut Planner) -> Vec<Action> {
    std::iter::from_fn(|| planner.poll_action()).collect()
}

#[test]
fn without_peers_the_origin_is_asked_at_once_for_both_halves() {
    let now = Instant::now();
    let mut planner = new_planner(now, 9, OriginAccess::Ranges);
    let halves = [range(0, 5), range(5, 4)];
    let halves = halves.map(|run| Action::FetchFromOrigin { run });
    assert_eq!(drain(&mut planner), halves);
}

#[test]
fn the_only_lease_of_a_content_is_fetched_in_two_halves_and_others_in_one_run() {
    let now = Instant::now();
    for (segments, runs) in [(3, &[range(0, 2), range(2, 1)][..]), (8, &[range(0, 4)])] {
        let mut planner = in_branch(now, segments, OriginAccess::Ranges, &[peer(1)]);
        let steward = steward_asked(&mut planner);
        planner.handle_joined(now, peer(1), SegmentSet::empty(segments));
        planner.handle_answer(now, steward, &grants(0, 1));
        let fetches: Vec<_> = runs
            .iter()
            .map(|run| Action::FetchFromOrigin { run: *run })
            .collect();
        assert_eq!(transfers(&mut planner), fetches);
        planner.handle_origin_run_ended(now, runs[0]);
        let again = transfers(&mut planner);
        assert_eq!(again, fetches[..1], "what did not come, and no more");
    }
}

#[test]
fn an_origin_without_ranges_sends_a_small_content_once() {
    let now = Instant::now();
    let mut planner = new_planner(now, 3, OriginAccess::WholeFileOnly);
    let run = range(0, 3);
    assert_eq!(drain(&mut planner), [Action::FetchFromOrigin { run }]);
}

#[test]
fn what_a_peer_holds_comes_from_the_peer_and_only_the_rest_of_a_lease_from_the_origin() {
    let now = Instant::now();
    let mut planner = in_branch(now, 10, OriginAccess::Ranges, &[peer(1)]);
    let steward = steward_asked(&mut planner);
    let mut have = SegmentSet::empty(10);
    (0..6).for_each(|i| assert!(have.insert(SegmentIndex(i))));
    planner.handle_joined(now, peer(1), have);
    planner.handle_answer(now, steward, &grants(0, 3));
    assert_eq!(
        transfers(&mut planner),
        [
            Action::Request {
                peer: peer(1),
                range: range(0, 6)
            },
            Action::FetchFromOrigin { run: range(6, 4) },
        ]
    );
}

#[test]
fn a_lease_waits_for_members_to_join_but_no_longer_than_the_grace() {
    let now = Instant::now();
    let mut planner = in_branch(now, 10, OriginAccess::Ranges, &[peer(1), peer(2)]);
    let steward = steward_asked(&mut planner);
    planner.handle_not_joined(now, peer(1), JoinFailure::Absent);
    planner.handle_answer(now, steward, &grants(0, 3));
    assert_eq!(transfers(&mut planner), []);
    let waits = planner.waiting().expect("it waits");
    assert_eq!(waits.waiting_for, "peers to answer");
    assert!(waits.until.expect("an end") <= now + JOIN_GRACE);
    planner.handle_timeout(waits.until.expect("an end"));
    assert!(matches!(
        transfers(&mut planner)[..],
        [Action::FetchFromOrigin { .. }]
    ));
}

#[test]
fn a_run_in_flight_at_the_origin_is_taken_back_when_a_peer_turns_up_that_holds_it() {
    let now = Instant::now();
    let mut planner = new_planner(now, 10, OriginAccess::Ranges);
    drain(&mut planner);
    planner.handle_stored(now, Source::Origin, SegmentIndex(0));
    planner.handle_joined(now, peer(1), SegmentSet::full(10));
    assert_eq!(
        drain(&mut planner),
        [
            Action::CancelOrigin { run: range(0, 5) },
            Action::CancelOrigin { run: range(5, 5) },
            Action::Request {
                peer: peer(1),
                range: range(1, 9)
            }
        ]
    );
}

#[test]
fn a_liar_is_dropped_at_once_and_never_asked_again() {
    let now = Instant::now();
    let mut planner = new_planner(now, 10, OriginAccess::Ranges);
    planner.handle_joined(now, peer(1), SegmentSet::full(10));
    drain(&mut planner);
    planner.handle_bad_segment(now, peer(1));
    planner.handle_joined(now, peer(1), SegmentSet::full(10));
    let actions = drain(&mut planner);
    assert_eq!(
        actions[0],
        Action::DropPeer {
            peer: peer(1),
            reason: DropReason::Lied
        }
    );
    assert!(matches!(
        actions[1..],
        [
            Action::FetchFromOrigin { .. },
            Action::FetchFromOrigin { .. },
            Action::DropPeer { .. }
        ]
    ));
}

#[test]
fn a_silent_peer_loses_its_requests_to_another() {
    let now = Instant::now();
    let mut planner = new_planner(now, 10, OriginAccess::Ranges);
    planner.handle_joined(now, peer(1), SegmentSet::full(10));
    drain(&mut planner);
    planner.handle_joined(now, peer(2), SegmentSet::full(10));
    let deadline = planner.next_deadline().expect("a deadline");
    planner.handle_timeout(deadline.at);
    let actions = drain(&mut planner);
    assert_eq!(actions[0], Action::Interrupt { peer: peer(1) });
    assert!(matches!(actions[1], Action::Request { peer: p, .. } if p == peer(2)));
}

#[test]
fn a_peer_that_never_sent_anything_has_less_time_than_one_that_did() {
    let now = Instant::now();
    let mut planner = new_planner(now, 2000, OriginAccess::Closed);
    planner.handle_joined(now, peer(1), SegmentSet::full(2000));
    let until = |planner: &Planner| planner.next_deadline().expect("a deadline").at;
    let sending = OriginPace::default().time_for(SEGMENT_BYTES.into());
    assert_eq!(until(&planner), now + FIRST_ANSWER + sending);
    planner.handle_stored(now, Source::Peer(peer(1)), SegmentIndex(0));
    assert_eq!(until(&planner), now + PEER_STALL + sending);
}

#[test]
fn after_a_deadline_the_next_one_lies_later() {
    let now = Instant::now();
    let mut planner = new_planner(now, 10, OriginAccess::Ranges);
    planner.handle_joined(now, peer(1), SegmentSet::full(10));
    for _ in 0..20 {
        let Some(deadline) = planner.next_deadline() else {
            return;
        };
        planner.handle_timeout(deadline.at);
        drain(&mut planner);
        assert!(
            planner
                .next_deadline()
                .is_none_or(|next| next.at > deadline.at)
        );
    }
}

#[test]
fn an_origin_without_ranges_is_asked_for_the_whole_file_once() {
    let now = Instant::now();
    let mut planner = new_planner(now, 1000, OriginAccess::Ranges);
    let runs = drain(&mut planner);
    assert_eq!(runs.len(), 4);
    let Action::FetchFromOrigin { run: first } = runs[0] else {
        panic!("a run, not {:?}", runs[0])
    };
    let Action::FetchFromOrigin { run: second } = runs[1] else {
        panic!("a run, not {:?}", runs[1])
    };
    planner.handle_origin_run_failed(now, first, RunFailure::NoRanges);
    let actions = drain(&mut planner);
    let cancelled = actions
        .iter()
        .filter(|a| matches!(a, Action::CancelOrigin { .. }))
        .count();
    assert_eq!(cancelled, 3);
    let whole = SegmentRange::new(SegmentIndex(0), 1000).expect("all");
    assert_eq!(actions[3..], [Action::FetchFromOrigin { run: whole }]);
    planner.handle_origin_run_failed(now, second, RunFailure::NoRanges);
    assert_eq!(
        drain(&mut planner),
        [],
        "what failed for the same reason changes nothing"
    );
}

#[test]
fn an_origin_that_refuses_some_runs_still_gives_the_others() {
    let now = Instant::now();
    let mut planner = new_planner(now, 1000, OriginAccess::Ranges);
    for action in drain(&mut planner).into_iter().skip(1) {
        let Action::FetchFromOrigin { run } = action else {
            panic!("a run, not {action:?}")
        };
        planner.handle_origin_run_failed(now, run, RunFailure::GaveUp);
    }
    assert_eq!(planner.origin_access(), OriginAccess::Ranges);
    assert_eq!(drain(&mut planner), [], "no more at a time than it gave");
    let first = SegmentRange::new(SegmentIndex(0), 32).expect("2 MiB");
    planner.handle_origin_run_ended(now, first);
    assert!(matches!(
        drain(&mut planner)[..],
        [Action::FetchFromOrigin { .. }]
    ));
}

#[test]
fn a_peer_that_comes_and_goes_does_not_keep_the_origin_from_working() {
    let now = Instant::now();
    let mut planner = new_planner(now, 10, OriginAccess::Ranges);
    drain(&mut planner);
    for _ in 0..5 {
        planner.handle_joined(now, peer(1), SegmentSet::full(10));
        planner.handle_left(now, peer(1));
    }
    let cancelled = drain(&mut planner);
    let cancelled = cancelled
        .iter()
        .filter(|a| matches!(a, Action::CancelOrigin { .. }))
        .count();
    assert_eq!(cancelled, 4, "both halves, twice");
}

#[test]
fn a_busy_peer_is_waited_for_and_a_slow_one_is_not() {
    let now = Instant::now();
    let mut planner = in_branch(now, 100, OriginAccess::Ranges, &[peer(1)]);
    let steward = steward_asked(&mut planner);
    planner.handle_joined(now, peer(1), SegmentSet::full(100));
    planner.handle_answer(now, steward, &grants(0, 25));
    let Action::Request { range, .. } = transfers(&mut planner)[0] else {
        panic!("a request")
    };
    planner.handle_busy(now, peer(1), range, Duration::from_millis(500));
    let asked = drain(&mut planner);
    assert!(
        !asked
            .iter()
            .any(|a| matches!(a, Action::FetchFromOrigin { .. })),
        "{asked:?}"
    );
    let later = now + Duration::from_secs(30);
    planner.handle_stored(later, Source::Peer(peer(1)), SegmentIndex(50));
    planner.handle_answer(later, steward, &grants(0, 25));
    let asked = drain(&mut planner);
    assert!(
        asked
            .iter()
            .any(|a| matches!(a, Action::FetchFromOrigin { .. })),
        "{asked:?}"
    );
}

#[test]
fn a_slow_disk_is_not_held_against_peers() {
    let now = Instant::now();
    let mut planner = new_planner(now, 10, OriginAccess::Closed);
    planner.handle_joined(now, peer(1), SegmentSet::full(10));
    drain(&mut planner);
    let late = now + Duration::from_secs(60);
    planner.handle_local_delay(late);
    planner.handle_timeout(late);
    assert_eq!(drain(&mut planner), []);
}

#[test]
fn with_the_origin_closed_and_nobody_left_it_says_that_it_is_stuck() {
    let now = Instant::now();
    let mut planner = in_branch(now, 10, OriginAccess::Closed, &[peer(1)]);
    let steward = steward_asked(&mut planner);
    assert!(!planner.is_stuck(now));
    planner.handle_steward_lost(now, steward);
    assert!(!planner.is_stuck(now), "a member was asked to join");
    planner.handle_joined(now, peer(1), SegmentSet::full(10));
    drain(&mut planner);
    assert!(!planner.is_stuck(now));
    planner.handle_left(now, peer(1));
    drain(&mut planner);
    assert!(planner.is_stuck(now));
}

#[test]
fn who_has_no_lease_fetches_nothing_until_others_have_brought_nothing_for_too_long() {
    let now = Instant::now();
    let mut planner = in_branch(now, 2000, OriginAccess::Ranges, &[peer(1)]);
    let steward = steward_asked(&mut planner);
    let nothing = Answer {
        asked: true,
        lessees: 4,
        ..Answer::default()
    };
    planner.handle_answer(now, steward, &nothing);
    planner.handle_not_joined(now, peer(1), JoinFailure::Absent);
    let patience = OriginPace::default().time_for(2000 * u64::from(SEGMENT_BYTES)) / 10;
    let mut asked = Vec::new();
    let mut at = now;
    while asked.is_empty() {
        at = planner.next_deadline().expect("a deadline").at;
        planner.handle_answer(at, steward, &nothing);
        planner.handle_timeout(at);
        asked = transfers(&mut planner);
    }
    assert!(at > now + Duration::from_secs(1) && at < now + patience);
    assert_eq!(asked.len(), 2, "two short runs: {asked:?}");
}

#[test]
fn silent_members_cost_a_small_file_fifty_milliseconds() {
    let now = Instant::now();
    let members: Vec<PeerId> = (1..20).map(peer).collect();
    let mut planner = in_branch(now, 2, OriginAccess::Ranges, &members);
    let mut at = now;
    while transfers(&mut planner).is_empty() {
        at = planner.next_deadline().expect("a deadline").at;
        planner.handle_timeout(at);
    }
    assert!(at <= now + Duration::from_millis(50), "{:?}", at - now);
}

#[test]
fn members_that_were_silent_while_the_manifest_was_sought_are_not_waited_for_again() {
    let began = Instant::now();
    let members = [peer(1), peer(2)].into();
    let whole = Duration::from_millis(200);
    let patience = AnswerPatience::of(whole);
    let mut enrolment = Enrolment::new(began, me(), swarm(), &members, patience);
    enrolment.take_enlist(began).expect("it enlists");
    let now = began + whole;
    enrolment.handle_timeout(now);
    let sharing = Sharing {
        me: me(),
        swarm: swarm(),
        members,
        warmed: false,
        enrolment: Some(enrolment),
    };
    let mut planner = Planner::new(now, setup(100, OriginAccess::Ranges, Some(sharing)));
    let first = transfers(&mut planner).into_iter().next();
    assert!(matches!(first, Some(Action::FetchFromOrigin { .. })));
}

#[test]
fn what_others_bring_keeps_a_member_from_the_origin() {
    let start = Instant::now();
    let mut planner = in_branch(start, 2000, OriginAccess::Ranges, &[peer(1)]);
    let steward = steward_asked(&mut planner);
    let nothing = Answer {
        asked: true,
        lessees: 4,
        ..Answer::default()
    };
    planner.handle_answer(start, steward, &nothing);
    planner.handle_joined(start, peer(1), SegmentSet::empty(2000));
    for index in 0..100 {
        let now = start + Duration::from_millis(200) * index;
        planner.handle_answer(now, steward, &nothing);
        planner.handle_have_more(now, peer(1), [SegmentRange::one(SegmentIndex(index))]);
        planner.handle_stored(now, Source::Peer(peer(1)), SegmentIndex(index));
        planner.handle_timeout(now);
    }
    let fetched = |action: &Action| matches!(action, Action::FetchFromOrigin { .. });
    assert!(!transfers(&mut planner).iter().any(fetched));
}

#[test]
fn a_new_steward_hears_of_runs_in_flight_and_those_it_refuses_end() {
    let now = Instant::now();
    let mut planner = in_branch(now, 2000, OriginAccess::Ranges, &[peer(1), peer(2)]);
    let steward = steward_asked(&mut planner);
    for member in [1, 2] {
        planner.handle_not_joined(now, peer(member), JoinFailure::Absent);
    }
    let mut answer = grants(0, 8);
    answer.granted.extend(grants(100, 8).granted);
    planner.handle_answer(now, steward, &answer);
    assert_eq!(transfers(&mut planner).len(), 2);
    planner.handle_steward_lost(now, steward);
    let enlist = drain(&mut planner).into_iter().find_map(|action| {
        if let Action::Enlist { steward, enlist } = action {
            Some((steward, enlist))
        } else {
            None
        }
    });
    let (next, enlist) = enlist.expect("the next in rank is asked");
    assert_ne!(next, steward);
    assert_eq!(enlist.want.runs, 0, "others bring their leases first");
    let leased: Vec<_> = enlist
        .leased
        .iter()
        .map(|b| (b.first().0, b.count()))
        .collect();
    assert_eq!(leased, [(0, 8), (100, 8)]);
    planner.handle_answer(now, next, &grants(100, 8));
    assert!(matches!(
        transfers(&mut planner)[..],
        [Action::CancelOrigin { run }] if run.first() == SegmentIndex(0)
    ));
}

#[test]
fn what_a_neighbour_has_rare_is_asked_for_before_what_all_have() {
    let now = Instant::now();
    let mut planner = in_branch(now, 2000, OriginAccess::Closed, &[peer(1), peer(2)]);
    let mut common = SegmentSet::empty(2000);
    (0..1000).for_each(|i| assert!(common.insert(SegmentIndex(i))));
    let mut rare = common.clone();
    (1500..1504).for_each(|i| assert!(rare.insert(SegmentIndex(i))));
    planner.handle_busy(now, peer(1), SegmentRange::one(SegmentIndex(0)), PEER_STALL);
    planner.handle_joined(now, peer(1), common);
    drain(&mut planner);
    planner.handle_joined(now, peer(2), rare);
    let asked = transfers(&mut planner);
    assert!(
        matches!(asked[0], Action::Request { range, .. } if (1500..1504).contains(&range.first().0)),
        "{asked:?}"
    );
}

#[test]
fn a_member_that_is_alone_in_a_branch_begins_at_a_place_of_its_own() {
    let now = Instant::now();
    let first_run = |seed| {
        let sharing = Sharing {
            me: me(),
            swarm: swarm(),
            members: BTreeSet::new(),
            warmed: false,
            enrolment: None,
        };
        let mut setup = setup(2000, OriginAccess::Ranges, Some(sharing));
        setup.seed = seed;
        let mut planner = Planner::new(now, setup);
        let runs = drain(&mut planner);
        assert_eq!(runs.len(), 4, "all its runs, at once");
        runs
    };
    assert_ne!(first_run(1), first_run(2));
    assert_eq!(first_run(1), first_run(1));
}

/// How long a member of a branch of 65 waits that lacks one block, which another member has leased and
/// does not bring, before it asks the origin itself.
fn waits_for_its_turn(seed: u64) -> Duration {
    let start = Instant::now();
    let count = 2000;
    let mut lacking = SegmentSet::full(count);
    (1996..count).for_each(|index| assert!(lacking.remove(SegmentIndex(index))));
    let sharing = Sharing {
        me: me(),
        swarm: swarm(),
        members: (1..=64).map(peer).collect(),
        warmed: false,
        enrolment: None,
    };
    let mut planner = Planner::new(
        start,
        Setup {
            done: lacking,
            seed,
            ..setup(count, OriginAccess::Ranges, Some(sharing))
        },
    );
    let swarm_peer = |number| SwarmPeer {
        peer: peer(number),
        has_manifest: true,
    };
    let word = Answer {
        asked: true,
        peers: (1..=24).map(swarm_peer).collect(),
        lessees: 1,
        ..Answer::default()
    };
    let mut now = start;
    loop {
        for action in drain(&mut planner) {
            match action {
                Action::FetchFromOrigin { .. } => return now - start,
                Action::Enlist { steward, .. } | Action::Report { steward, .. } => {
                    planner.handle_answer(now, steward, &word);
                }
                Action::Join { peer } => {
                    planner.handle_not_joined(now, peer, JoinFailure::Absent);
                }
                Action::Request { .. }
                | Action::Cancel { .. }
                | Action::Interrupt { .. }
                | Action::DropPeer { .. }
                | Action::CancelOrigin { .. }
                | Action::LeaveSteward { .. } => {}
            }
        }
        now = planner.next_deadline().expect("it waits for something").at;
        planner.handle_timeout(now);
    }
}

#[test]
fn of_many_that_lose_patience_for_the_same_block_few_begin_and_none_waits_long() {
    let mut waits: Vec<Duration> = (0..64).map(waits_for_its_turn).collect();
    waits.sort();
    let first = waits[0];
    let at_once = waits.iter().filter(|wait| **wait == first).count();
    assert!(at_once <= 6, "{at_once} of 64 ask at the same moment");
    let bytes = 2000 * u64::from(SEGMENT_BYTES);
    let wait = wait_for_others(OriginPace::default(), bytes, SEGMENT_BYTES);
    let last = waits[63];
    assert!(last <= first + 2 * wait, "{first:?} and {last:?}");
}
