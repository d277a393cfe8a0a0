//! What a neighbour has just fetched: who asks it for that, and how long a peer has to send it.

use super::*;

fn range(first: u32, count: u32) -> SegmentRange {
    SegmentRange::new(SegmentIndex(first), count).expect("a range")
}

/// A planner of one of many watchers, each with its own chance, whose `peers` hold nothing yet.
fn watcher(now: Instant, seed: u64, peers: u8) -> Planner {
    let mut setup = setup(2000, OriginAccess::Closed, None);
    setup.seed = seed;
    let mut planner = Planner::new(now, setup);
    for number in 1..=peers {
        planner.handle_joined(now, peer(number), SegmentSet::empty(2000));
    }
    drain(&mut planner);
    planner
}

/// When, and whom, it asks for the first segment, if nothing else happens.
fn asks(planner: &mut Planner, now: Instant) -> (Instant, PeerId) {
    let mut at = now;
    loop {
        for action in drain(planner) {
            if let Action::Request { peer, .. } = action {
                return (at, peer);
            }
        }
        at = planner.next_deadline().expect("it will ask").at;
        planner.handle_timeout(at);
    }
}

#[test]
fn of_many_who_watch_a_fetcher_few_ask_before_others_can_hold_what_it_fetched() {
    let now = Instant::now();
    let mut early = 0;
    for seed in 0..240 {
        let mut planner = watcher(now, seed, 24);
        planner.handle_have_more(now, peer(1), [range(0, 4)]);
        let (at, asked) = asks(&mut planner, now);
        assert_eq!(asked, peer(1));
        assert!(at <= now + Duration::from_millis(15) * 24, "{:?}", at - now);
        early += usize::from(at < now + Duration::from_millis(60));
    }
    // A sixth of them: four of each 24.
    assert!(
        (20..=60).contains(&early),
        "{early} of 240 ask within 60 ms"
    );
}

#[test]
fn in_a_small_swarm_what_a_neighbour_fetched_is_asked_for_at_once() {
    let now = Instant::now();
    for (others, at_once) in [(15, true), (16, false), (40, false)] {
        let members: Vec<PeerId> = (1..=others).map(peer).collect();
        let mut planner = in_branch(now, 2000, OriginAccess::Closed, &members);
        let steward = steward_asked(&mut planner);
        let peers = members.iter().map(|peer| SwarmPeer {
            peer: *peer,
            has_manifest: true,
        });
        let answer = Answer {
            peers: peers.take(24).collect(),
            ..Answer::default()
        };
        planner.handle_answer(now, steward, &answer);
        for member in members.iter().take(15) {
            planner.handle_joined(now, *member, SegmentSet::empty(2000));
        }
        drain(&mut planner);
        planner.handle_have_more(now, peer(1), [range(0, 1)]);
        let asked = transfers(&mut planner);
        assert_eq!(!asked.is_empty(), at_once, "{others} others: {asked:?}");
    }
}

#[test]
fn a_second_holder_ends_the_wait_and_who_has_given_least_is_asked() {
    let now = Instant::now();
    for seed in 0..8 {
        let mut planner = watcher(now, seed, 24);
        let source = Source::Peer(peer(1));
        planner.handle_have_more(now, peer(1), [range(0, 1)]);
        let (asked_at, _) = asks(&mut planner, now);
        planner.handle_stored(asked_at, source, SegmentIndex(0));
        planner.handle_have_more(asked_at, peer(1), [range(8, 1)]);
        planner.handle_have_more(asked_at, peer(2), [range(8, 1)]);
        assert_eq!(asks(&mut planner, asked_at), (asked_at, peer(2)));
    }
}

#[test]
fn what_a_peer_held_when_it_joined_is_asked_for_at_once() {
    let now = Instant::now();
    let mut planner = watcher(now, 1, 23);
    planner.handle_joined(now, peer(24), SegmentSet::full(2000));
    assert_eq!(asks(&mut planner, now), (now, peer(24)));
}

#[test]
fn a_planner_that_waits_for_a_second_holder_is_not_stuck() {
    let now = Instant::now();
    let mut planner = watcher(now, 3, 24);
    planner.handle_have_more(now, peer(1), [range(0, 1)]);
    assert_eq!(drain(&mut planner), []);
    assert!(!planner.is_stuck(now));
}

#[test]
fn a_slow_peer_is_not_asked_again_at_once_for_what_was_taken_from_it() {
    let now = Instant::now();
    let mut setup = setup(2000, OriginAccess::Ranges, None);
    setup.lengths = vec![40_000; 2000].into();
    let mut planner = Planner::new(now, setup);
    planner.handle_joined(now, peer(1), SegmentSet::full(2000));
    drain(&mut planner);
    // 16 kB/s, of which the origin is expected to give a hundred times as much; two segments take five seconds.
    let mut at = now;
    for index in 0..4 {
        at += Duration::from_millis(2_500);
        planner.handle_stored(at, Source::Peer(peer(1)), SegmentIndex(index));
    }
    drain(&mut planner);
    for _ in 0..3 {
        planner.handle_stored(at, Source::Peer(peer(1)), SegmentIndex(0));
        assert_eq!(drain(&mut planner), [], "nothing has changed");
    }
}

/// How long a peer that holds all of `count` segments of `bytes` each has for its first answer.
fn time_for_first_answer(count: u32, bytes: u32) -> Duration {
    let now = Instant::now();
    let mut setup = setup(count, OriginAccess::Closed, None);
    setup.lengths = vec![bytes; count as usize].into();
    let mut planner = Planner::new(now, setup);
    planner.handle_joined(now, peer(1), SegmentSet::full(count));
    planner.next_deadline().expect("a deadline").at - now
}

#[test]
fn a_peer_has_longer_for_a_long_segment_but_no_more_than_a_share_of_the_whole() {
    let pace = OriginPace::default();
    let long = 4 << 20;
    let segment = pace.time_for(long.into());
    assert_eq!(time_for_first_answer(256, long), FIRST_ANSWER + segment);
    let whole = pace.time_for(4 * u64::from(long));
    assert!(time_for_first_answer(4, long) <= FIRST_ANSWER + whole / 20);
}
