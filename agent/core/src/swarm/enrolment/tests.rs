//! A member and its stewards, with virtual time.

use super::*;

fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

fn members(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<PeerId> {
    numbers.into_iter().map(peer).collect()
}

/// A member of a branch of ten that has so much patience, and the steward that has answered it.
fn enlisted(now: Instant, patience: Duration) -> (Enrolment, PeerId) {
    let swarm = SwarmId::from_bytes([7; 32]);
    let patience = AnswerPatience::of(patience);
    let mut enrolment = Enrolment::new(now, peer(100), swarm, &members(1..10), patience);
    let steward = enrolment.take_enlist(now).expect("it enlists");
    assert_eq!(enrolment.handle_answer(now, steward, true, 0), Heard::First);
    (enrolment, steward)
}

/// When a member with so much patience asks stewards that never answer; the last is when it goes on alone.
fn asks(patience: AnswerPatience, reached: bool) -> Vec<u64> {
    let start = Instant::now();
    let swarm = SwarmId::from_bytes([7; 32]);
    let mut enrolment = Enrolment::new(start, peer(100), swarm, &members(1..10), patience);
    let (mut now, mut asks) = (start, Vec::new());
    let mut note = |now: Instant| {
        let millis = (now - start).as_millis();
        asks.push(u64::try_from(millis).expect("few"));
    };
    while !enrolment.is_alone() {
        if let Some(steward) = enrolment.take_enlist(now) {
            note(now);
            if reached {
                enrolment.handle_reached(steward);
            }
        }
        let next = enrolment.next_deadline(now, News::default());
        now = next.expect("a deadline").at;
        enrolment.handle_timeout(now);
    }
    note(now);
    asks
}

#[test]
fn a_steward_that_was_reached_has_the_time_of_three_and_the_whole_wait_is_no_longer() {
    let long = AnswerPatience::of(Duration::from_millis(1200));
    assert_eq!(asks(long, false), [0, 300, 600, 900]);
    assert_eq!(asks(long, true), [0, 900, 1200]);
    // A small file has no time for that.
    for millis in [50, 300] {
        let short = AnswerPatience::of(Duration::from_millis(millis));
        assert_eq!(asks(short, false), [0, millis]);
        assert_eq!(asks(short, true), [0, millis]);
    }
    // Unless who lives was reached before.
    let warmed = AnswerPatience {
        unreached: Duration::from_millis(15),
        ..AnswerPatience::of(Duration::from_millis(50))
    };
    assert_eq!(asks(warmed, false), [0, 15]);
    assert_eq!(asks(warmed, true), [0, 50]);
}

#[test]
fn a_steward_that_was_reached_and_goes_late_leaves_time_for_one_more() {
    let start = Instant::now();
    for (lost_after, alone_after) in [(100, 700), (890, 1190)] {
        let swarm = SwarmId::from_bytes([7; 32]);
        let patience = AnswerPatience::of(Duration::from_millis(1200));
        let mut enrolment = Enrolment::new(start, peer(100), swarm, &members(1..10), patience);
        let first = enrolment.take_enlist(start).expect("it enlists");
        enrolment.handle_reached(first);
        let mut now = start + Duration::from_millis(lost_after);
        enrolment.handle_lost(now, first);
        while !enrolment.is_alone() {
            let _others_are_silent = enrolment.take_enlist(now);
            let next = enrolment.next_deadline(now, News::default());
            now = next.expect("a deadline").at;
            enrolment.handle_timeout(now);
        }
        assert_eq!(now, start + Duration::from_millis(alone_after));
    }
}

#[test]
fn a_second_steward_has_the_usual_time_though_the_first_was_to_be_there_at_once() {
    let start = Instant::now();
    let warmed = AnswerPatience {
        unreached: Duration::from_millis(15),
        ..AnswerPatience::of(Duration::from_millis(50))
    };
    let swarm = SwarmId::from_bytes([7; 32]);
    let mut enrolment = Enrolment::new(start, peer(100), swarm, &members(1..10), warmed);
    let first = enrolment.take_enlist(start).expect("it enlists");
    enrolment.handle_answer(start, first, true, 0);
    enrolment.handle_lost(start, first);
    enrolment.take_enlist(start).expect("it asks the next one");
    let deadline = enrolment.next_deadline(start, News::default());
    assert_eq!(
        deadline.expect("a deadline").at,
        start + Duration::from_millis(50)
    );
}

#[test]
fn who_loses_its_steward_goes_to_the_next_however_small_its_file_is() {
    let now = Instant::now();
    let (mut enrolment, first) = enlisted(now, Duration::from_millis(50));
    enrolment.handle_lost(now, first);
    assert!(!enrolment.is_alone());
    assert_ne!(enrolment.take_enlist(now).expect("it enlists"), first);
}

#[test]
fn members_come_back_to_the_first_in_rank_when_its_rest_is_over() {
    let start = Instant::now();
    let (mut enrolment, first) = enlisted(start, Duration::from_millis(900));
    enrolment.handle_lost(start, first);
    let mut now = start;
    loop {
        if let Some(steward) = enrolment.take_enlist(now) {
            if steward == first {
                break;
            }
            enrolment.handle_answer(now, steward, true, 0);
        }
        if let Some(steward) = enrolment.take_report(now, News::default()) {
            enrolment.handle_answer(now, steward, true, 0);
        }
        let next = enrolment.next_deadline(now, News::default());
        now = next.expect("a deadline").at;
        assert!(now < start + FAILED_RESTS * 2, "never");
        enrolment.handle_timeout(now);
    }
    assert!(now <= start + FAILED_RESTS + MOVES_AFTER);
    assert_eq!(enrolment.take_left().len(), 1, "the second's stream ends");
}

#[test]
fn the_old_stream_ends_when_a_member_that_was_left_by_all_finds_others() {
    let now = Instant::now();
    let (mut enrolment, first) = enlisted(now, Duration::from_millis(900));
    enrolment.handle_members(now, &members([]));
    let others = (1..20).map(peer).filter(|member| *member != first);
    enrolment.handle_members(now, &others.collect());
    assert_ne!(enrolment.take_enlist(now), None);
    assert_eq!(enrolment.take_left(), [first]);
}
