//! How often watchers are told, and who is asked first.

use super::*;

/// A planner of 1,000 segments (64 MB) in a branch of so many others, whose steward named so many of them.
fn member_of(now: Instant, others: u8, named: u8) -> (Planner, PeerId) {
    let members: Vec<PeerId> = (1..=others).map(peer).collect();
    let mut planner = in_branch(now, 1000, OriginAccess::Ranges, &members);
    let steward = steward_asked(&mut planner);
    let peers = (1..=named).map(|number| SwarmPeer {
        peer: peer(number),
        has_manifest: true,
    });
    let answer = Answer {
        asked: true,
        peers: peers.collect(),
        ..Answer::default()
    };
    planner.handle_answer(now, steward, &answer);
    (planner, steward)
}

#[test]
fn in_a_small_swarm_who_fetches_tells_more_often_than_the_others_and_the_end_sooner_than_the_beginning()
 {
    let now = Instant::now();
    let (mut planner, steward) = member_of(now, 9, 9);
    assert_eq!(planner.tell_every(), Duration::from_millis(500));

    planner.handle_answer(now, steward, &grants(0, 4));
    assert_eq!(planner.tell_every(), Duration::from_millis(300));

    // It tells of what it fetched last before it counts as one of the others.
    let lease = (0..16).map(|index| (Source::Origin, SegmentIndex(index)));
    planner.handle_stored_many(now, lease);
    for action in drain(&mut planner) {
        if let Action::FetchFromOrigin { run } = action {
            planner.handle_origin_run_ended(now, run);
        }
    }
    assert_eq!(planner.tell_every(), Duration::from_millis(300));
    planner.handle_timeout(now + Duration::from_millis(301));
    assert_eq!(planner.tell_every(), Duration::from_millis(500));

    // At 2.5 MB/s the last hundredth of 64 MB is there in 260 ms.
    let most = (0..990).map(|index| (Source::Peer(peer(1)), SegmentIndex(index)));
    planner.handle_stored_many(now, most);
    planner.handle_answer(now, steward, &grants(247, 1));
    assert_eq!(planner.tell_every(), TELL_EVERY);
    let rest = (990..1000).map(|index| (Source::Peer(peer(1)), SegmentIndex(index)));
    planner.handle_stored_many(now + Duration::from_secs(9), rest);
    assert_eq!(planner.tell_every(), TELL_EVERY);
}

#[test]
fn the_last_segment_of_a_small_content_does_not_wait_for_long() {
    let now = Instant::now();
    let mut planner = in_branch(now, 2, OriginAccess::Ranges, &[peer(1)]);
    let steward = steward_asked(&mut planner);
    let needs = OriginPace::default().time_for(2 * u64::from(SEGMENT_BYTES));
    // Who fetches nothing only spreads the load.
    assert_eq!(planner.tell_every(), needs);
    planner.handle_answer(now, steward, &grants(0, 1));
    assert_eq!(planner.tell_every(), needs / 4);
    planner.handle_stored(now, Source::Origin, SegmentIndex(0));
    planner.handle_stored(now, Source::Origin, SegmentIndex(1));
    assert!(planner.is_finished());
    assert_eq!(planner.tell_every(), needs / 4);
}

#[test]
fn in_a_large_swarm_everybody_tells_as_often_as_pays() {
    let now = Instant::now();
    let (mut planner, steward) = member_of(now, 90, 40);
    assert_eq!(planner.tell_every(), TELL_EVERY);
    planner.handle_answer(now, steward, &grants(0, 4));
    assert_eq!(planner.tell_every(), TELL_EVERY);
}

#[test]
fn silent_members_cost_a_small_file_fifteen_milliseconds_where_who_lives_was_reached_before() {
    let start = Instant::now();
    let sharing = Sharing {
        me: me(),
        swarm: swarm(),
        members: [peer(1), peer(2)].into(),
        warmed: true,
        enrolment: None,
    };
    let mut planner = Planner::new(start, setup(2, OriginAccess::Ranges, Some(sharing)));
    let mut now = start;
    while transfers(&mut planner).is_empty() {
        now = planner.next_deadline().expect("a deadline").at;
        planner.handle_timeout(now);
    }
    assert_eq!(now, start + Duration::from_millis(15));
}

/// When a member whose first question to a peer was in vain asks it again.
fn asks_again_after(named_before: bool, named_after: bool) -> Duration {
    let start = Instant::now();
    let mut planner = in_branch(start, 2, OriginAccess::Ranges, &[peer(1)]);
    let steward = steward_asked(&mut planner);
    let names = Answer {
        asked: true,
        peers: vec![SwarmPeer {
            peer: peer(1),
            has_manifest: true,
        }],
        ..Answer::default()
    };
    let first = if named_before {
        names.clone()
    } else {
        Answer::default()
    };
    planner.handle_answer(start, steward, &first);
    drain(&mut planner);
    planner.handle_not_joined(start, peer(1), JoinFailure::Absent);
    if named_after {
        planner.handle_answer(start, steward, &names);
    }
    let mut now = start;
    while !drain(&mut planner).contains(&Action::Join { peer: peer(1) }) {
        now = planner.next_deadline().expect("a deadline").at;
        planner.handle_timeout(now);
    }
    now - start
}

#[test]
fn who_was_asked_too_early_is_asked_again_soon_if_a_steward_says_that_it_takes_part() {
    assert_eq!(asks_again_after(false, true), Duration::from_millis(50));
    assert_eq!(asks_again_after(true, false), Duration::from_millis(50));
    assert_eq!(asks_again_after(false, false), Duration::from_secs(3));
}

#[test]
fn nobody_is_joined_before_the_steward_answers_or_a_moment_has_passed() {
    let start = Instant::now();
    let members: Vec<PeerId> = (1..=9).map(peer).collect();
    let joins = |planner: &mut Planner| {
        let joins = |action: &Action| matches!(action, Action::Join { .. });
        drain(planner).into_iter().filter(joins).count()
    };
    let mut planner = in_branch(start, 1000, OriginAccess::Ranges, &members);
    let steward = steward_asked(&mut planner);
    assert_eq!(joins(&mut planner), 0);
    planner.handle_answer(start, steward, &Answer::default());
    assert_eq!(joins(&mut planner), 9);

    let mut unanswered = in_branch(start, 1000, OriginAccess::Ranges, &members);
    assert_eq!(joins(&mut unanswered), 0);
    let mut now = start;
    while now < start + Duration::from_millis(150) {
        now = unanswered.next_deadline().expect("a deadline").at;
        unanswered.handle_timeout(now);
    }
    assert_eq!(now, start + Duration::from_millis(150));
    assert_eq!(joins(&mut unanswered), 9);
}
