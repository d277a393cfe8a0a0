//! An origin that has enough to do (429, 503).

use super::*;
use crate::swarm::Report;

const BUSY: RunFailure = RunFailure::Busy {
    retry_after: Duration::ZERO,
};

fn fetches(planner: &mut Planner) -> Vec<SegmentRange> {
    let run_of = |action| {
        if let Action::FetchFromOrigin { run } = action {
            Some(run)
        } else {
            None
        }
    };
    drain(planner).into_iter().filter_map(run_of).collect()
}

#[test]
fn an_origin_that_gives_one_run_at_a_time_is_asked_for_the_next_when_that_has_ended() {
    let now = Instant::now();
    let mut planner = new_planner(now, 1000, OriginAccess::Ranges);
    let runs = fetches(&mut planner);
    for refused in &runs[1..] {
        planner.handle_origin_run_failed(now, *refused, BUSY);
    }
    assert_eq!(fetches(&mut planner), []);
    planner.handle_origin_run_ended(now, runs[0]);
    assert_eq!(fetches(&mut planner).len(), 1);
}

#[test]
fn an_origin_that_gives_nothing_rests_longer_and_longer_and_is_given_up_after_minutes() {
    let start = Instant::now();
    let mut planner = new_planner(start, 1000, OriginAccess::Ranges);
    let mut now = start;
    let mut runs = fetches(&mut planner);
    loop {
        for run in std::mem::take(&mut runs) {
            planner.handle_origin_run_failed(now, run, BUSY);
        }
        assert_eq!(fetches(&mut planner), []);
        if planner.origin_access() == OriginAccess::Closed {
            break;
        }
        let waiting = planner.waiting().expect("it waits");
        assert_eq!(waiting.waiting_for, "the origin, which is busy");
        now = waiting.until.expect("an end");
        planner.handle_timeout(now);
        runs = fetches(&mut planner);
        assert_eq!(runs.len(), 1, "at {:?}", now - start);
    }
    let after = now - start;
    assert!((150..=180).contains(&after.as_secs()), "{after:?}");
}

#[test]
fn an_origin_that_refuses_a_member_is_not_given_up_while_others_bring_something() {
    let mut now = Instant::now();
    let mut planner = new_planner(now, 1000, OriginAccess::Ranges);
    let mut runs = fetches(&mut planner);
    for index in 0..100 {
        for run in std::mem::take(&mut runs) {
            planner.handle_origin_run_failed(now, run, BUSY);
        }
        planner.handle_stored(now, Source::Peer(peer(1)), SegmentIndex(index));
        assert_eq!(planner.origin_access(), OriginAccess::Ranges);
        now = planner.next_deadline().expect("a rest").at;
        planner.handle_timeout(now);
        runs = fetches(&mut planner);
    }
}

#[test]
fn after_some_runs_that_came_one_more_is_tried_at_a_time() {
    let now = Instant::now();
    let mut planner = new_planner(now, 10_000, OriginAccess::Ranges);
    let mut runs = fetches(&mut planner);
    for refused in runs.split_off(1) {
        planner.handle_origin_run_failed(now, refused, BUSY);
    }
    let mut ended = 0;
    while runs.len() == 1 {
        let stored = runs[0].iter().map(|index| (Source::Origin, index));
        planner.handle_stored_many(now, stored);
        planner.handle_origin_run_ended(now, runs[0]);
        runs = fetches(&mut planner);
        ended += 1;
    }
    assert_eq!((ended, runs.len()), (16, 2));
}

#[test]
fn the_half_of_a_small_content_that_is_refused_comes_after_the_other() {
    let now = Instant::now();
    let mut planner = in_branch(now, 3, OriginAccess::Ranges, &[peer(1)]);
    let steward = steward_asked(&mut planner);
    planner.handle_joined(now, peer(1), SegmentSet::empty(3));
    planner.handle_answer(now, steward, &grants(0, 1));
    assert_eq!(fetches(&mut planner), [range(0, 2), range(2, 1)]);
    planner.handle_origin_run_failed(now, range(2, 1), BUSY);
    assert_eq!(drain(&mut planner), [], "the lease is kept");
    let first = [0, 1].map(|index| (Source::Origin, SegmentIndex(index)));
    planner.handle_stored_many(now, first);
    planner.handle_origin_run_ended(now, range(0, 2));
    assert_eq!(fetches(&mut planner), [range(2, 1)]);
}

/// All runs but one are refused, of which the first half comes within a second; and when the rest is on its way.
fn half_of_a_run_came(
    planner: &mut Planner,
    start: Instant,
    refusal: RunFailure,
) -> (SegmentRange, Instant) {
    let runs = fetches(planner);
    for refused in &runs[1..] {
        planner.handle_origin_run_failed(start, *refused, refusal);
    }
    planner.handle_stored(start, Source::Origin, runs[0].first());
    let half = runs[0].iter().take(runs[0].count() as usize / 2);
    let now = start + Duration::from_secs(1);
    planner.handle_stored_many(now, half.skip(1).map(|index| (Source::Origin, index)));
    (
        runs[0],
        now + Duration::from_secs(1) - OriginPace::default().round_trip,
    )
}

#[test]
fn the_next_run_is_asked_for_while_the_last_bytes_of_one_are_on_their_way() {
    let start = Instant::now();
    let mut planner = new_planner(start, 1000, OriginAccess::Ranges);
    let (_, on_its_way) = half_of_a_run_came(&mut planner, start, BUSY);
    assert_eq!(fetches(&mut planner), []);
    planner.handle_timeout(on_its_way - Duration::from_millis(10));
    assert_eq!(fetches(&mut planner), []);
    let until = planner.next_deadline().expect("it waits").at;
    assert!(until <= on_its_way + Duration::from_millis(1));
    planner.handle_timeout(on_its_way + Duration::from_millis(1));
    assert_eq!(fetches(&mut planner).len(), 1);
    planner.handle_timeout(on_its_way + Duration::from_millis(20));
    assert_eq!(fetches(&mut planner), [], "and no more than one");
}

#[test]
fn what_was_asked_for_too_early_is_asked_for_again_when_the_run_before_has_ended_but_three_times_are_enough()
 {
    let mut now = Instant::now();
    let mut planner = new_planner(now, 10_000, OriginAccess::Ranges);
    let (mut run, on_its_way) = half_of_a_run_came(&mut planner, now, BUSY);
    now = on_its_way + Duration::from_millis(1);
    for _ in 0..3 {
        planner.handle_timeout(now);
        let early = fetches(&mut planner);
        assert_eq!(early.len(), 1);
        planner.handle_origin_run_failed(now, early[0], BUSY);
        assert_eq!(fetches(&mut planner), []);
        let rest = run.iter().map(|index| (Source::Origin, index));
        planner.handle_stored_many(now, rest);
        planner.handle_origin_run_ended(now, run);
        run = fetches(&mut planner)[0];
        now += Duration::from_secs(60);
    }
    planner.handle_timeout(now);
    assert_eq!(fetches(&mut planner), []);
}

/// A member that has got a lease of three blocks, and whose steward.
fn lessee(now: Instant) -> (Planner, PeerId, Vec<SegmentRange>) {
    let mut planner = in_branch(now, 100, OriginAccess::Ranges, &[peer(1)]);
    let steward = steward_asked(&mut planner);
    planner.handle_joined(now, peer(1), SegmentSet::empty(100));
    planner.handle_answer(now, steward, &grants(0, 3));
    let runs = fetches(&mut planner);
    (planner, steward, runs)
}

fn reports(planner: &mut Planner) -> Vec<Report> {
    let report_of = |action| {
        if let Action::Report { report, .. } = action {
            Some(report)
        } else {
            None
        }
    };
    drain(planner).into_iter().filter_map(report_of).collect()
}

#[test]
fn what_is_granted_to_who_rests_goes_back_at_once() {
    let now = Instant::now();
    let (mut planner, steward, runs) = lessee(now);
    planner.handle_origin_run_failed(now, runs[0], BUSY);
    drain(&mut planner);
    planner.handle_answer(now, steward, &grants(3, 3));
    let said = reports(&mut planner);
    assert_eq!(said[0].returned, [grants(3, 3).granted[0].blocks]);
}

#[test]
fn who_is_refused_gives_its_lease_back_and_wants_another_when_it_has_rested() {
    let now = Instant::now();
    let (mut planner, steward, runs) = lessee(now);
    let asked_for = RunFailure::Busy {
        retry_after: Duration::from_secs(2),
    };
    planner.handle_origin_run_failed(now, runs[0], asked_for);
    let said = reports(&mut planner);
    assert_eq!(said[0].returned, [grants(0, 3).granted[0].blocks]);
    assert_eq!(said[0].want.runs, 0);
    let heard = Answer {
        asked: true,
        ..Answer::default()
    };
    planner.handle_answer(now, steward, &heard);
    planner.handle_timeout(now + Duration::from_secs(2));
    let said = reports(&mut planner);
    assert_eq!(said.last().map(|report| report.want.runs), Some(1));
}

#[test]
fn an_origin_that_gives_something_is_not_left_alone_for_as_long_as_it_says() {
    let now = Instant::now();
    let mut planner = new_planner(now, 1000, OriginAccess::Ranges);
    let runs = fetches(&mut planner);
    for refused in &runs[1..] {
        let hour = RunFailure::Busy {
            retry_after: Duration::from_secs(3600),
        };
        planner.handle_origin_run_failed(now, *refused, hour);
    }
    planner.handle_origin_run_ended(now, runs[0]);
    assert_eq!(fetches(&mut planner), []);
    let waiting = planner.waiting().expect("it waits");
    let until = waiting.until.expect("an end");
    assert_eq!(until, now + Duration::from_secs(30));
    planner.handle_timeout(until);
    assert_eq!(fetches(&mut planner).len(), 1);
}

#[test]
fn who_may_fetch_one_run_at_a_time_has_another_lease_in_reserve_and_keeps_it_when_it_asks_too_early()
 {
    let start = Instant::now();
    let (mut planner, steward, runs) = lessee(start);
    planner.handle_answer(start, steward, &grants(3, 3));
    let refused = fetches(&mut planner);
    planner.handle_origin_run_failed(start, refused[0], BUSY);
    assert_eq!(fetches(&mut planner), [], "the second lease is in reserve");
    assert!(planner.returned.is_empty());

    let came = |index| (Source::Origin, SegmentIndex(index));
    planner.handle_stored_many(start, [came(runs[0].first().0)]);
    let now = start + Duration::from_secs(1);
    planner.handle_stored_many(now, [came(runs[0].first().0 + 1)]);
    let on_its_way = planner.origin.early_at().expect("one is in flight");
    planner.handle_timeout(on_its_way);
    let early = fetches(&mut planner);
    assert_eq!(early, refused);
    planner.handle_origin_run_failed(on_its_way, early[0], BUSY);
    assert!(planner.returned.is_empty(), "it is next");
    planner.handle_stored_many(on_its_way, runs[0].iter().map(|i| (Source::Origin, i)));
    planner.handle_origin_run_ended(on_its_way, runs[0]);
    assert_eq!(fetches(&mut planner), refused);
}

#[test]
fn an_origin_that_says_when_to_ask_again_is_not_asked_early() {
    let start = Instant::now();
    for (seconds, asks) in [(0, 1), (1, 0)] {
        let mut planner = new_planner(start, 1000, OriginAccess::Ranges);
        let refusal = RunFailure::Busy {
            retry_after: Duration::from_secs(seconds),
        };
        let (_, on_its_way) = half_of_a_run_came(&mut planner, start, refusal);
        planner.handle_timeout(on_its_way + Duration::from_millis(1));
        assert_eq!(fetches(&mut planner).len(), asks, "Retry-After {seconds}");
    }
}

#[test]
fn runs_that_were_cancelled_are_no_reason_to_try_one_more() {
    let now = Instant::now();
    let mut planner = new_planner(now, 10_000, OriginAccess::Ranges);
    let runs = fetches(&mut planner);
    for refused in &runs[1..] {
        planner.handle_origin_run_failed(now, *refused, BUSY);
    }
    for _ in 0..100 {
        planner.handle_origin_run_ended(now, runs[1]);
    }
    assert_eq!(fetches(&mut planner), []);
}
