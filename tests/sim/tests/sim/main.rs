//! Small branches, many seeds: invariants are checked inside at each step, figures against generous
//! bounds here. Never real time.

use std::time::Duration;

use branchline_sim::{Figures, Joins, Scenario, StewardFate, Troubles, simulate};

const SEEDS: std::ops::RangeInclusive<u64> = 1..=10;

const MINUTE: Joins = Joins::Within(Duration::from_secs(60));

/// A file that takes the WAN of 20 Mbit/s about 13 s.
fn branch(members: u32, joins: Joins, troubles: Troubles, seed: u64) -> Scenario {
    Scenario {
        segments: 512,
        segment_bytes: 62_500,
        joins,
        troubles,
        ..Scenario::common_start(members, seed)
    }
}

/// Runs all seeds; each must cost the WAN at most so many times the file, and take at most so many times the ideal.
fn all_seeds(scenario: impl Fn(u64) -> Scenario, most_wan: f64, most_time: f64) -> Vec<Figures> {
    let runs: Vec<Figures> = SEEDS.map(|seed| simulate(&scenario(seed))).collect();
    for run in &runs {
        let (seed, wan, time) = (run.seed, run.wan_ratio(), run.makespan_ratio());
        println!("seed {seed}: WAN {wan:.3} x the file, {time:.3} x the ideal time");
    }
    for run in &runs {
        let seed = run.seed;
        assert!(run.wan_ratio() <= most_wan, "seed {seed}: {run:?}");
        assert!(run.makespan_ratio() <= most_time, "seed {seed}: {run:?}");
        assert!(run.control_ratio() <= 0.03, "seed {seed}: {run:?}");
        assert!(run.largest_upload_ratio() <= 6.0, "seed {seed}: {run:?}");
    }
    runs
}

fn failing() -> Troubles {
    Troubles {
        failing_percent: 5,
        ..Troubles::default()
    }
}

#[test]
fn sixteen_that_start_together_fetch_the_file_once() {
    let nothing = Troubles::default();
    all_seeds(
        |seed| branch(16, Joins::Together, nothing, seed),
        1.05,
        1.10,
    );
}

#[test]
fn sixteen_of_which_one_dies_fetch_little_twice() {
    let scenario = |seed| branch(16, Joins::Together, failing(), seed);
    let runs = all_seeds(scenario, 1.15, 1.3);
    assert!(runs.iter().all(|run| run.members_failed == 1));
}

#[test]
fn sixteen_within_a_minute_of_which_one_dies_fetch_little_twice() {
    all_seeds(|seed| branch(16, MINUTE, failing(), seed), 1.15, 1.3);
}

#[test]
fn a_hundred_of_which_five_die_fetch_little_twice() {
    let scenario = |seed| branch(100, Joins::Together, failing(), seed);
    all_seeds(scenario, 1.15, 1.3);
}

#[test]
fn a_hundred_within_a_minute_of_which_five_die_fetch_little_twice() {
    all_seeds(|seed| branch(100, MINUTE, failing(), seed), 1.15, 1.3);
}

#[test]
fn when_the_steward_dies_the_branch_goes_on() {
    let troubles = Troubles {
        steward: StewardFate::Dies,
        ..Troubles::default()
    };
    all_seeds(
        |seed| branch(16, Joins::Together, troubles, seed),
        1.15,
        1.3,
    );
}

#[test]
fn when_the_steward_hangs_the_branch_goes_on() {
    let troubles = Troubles {
        steward: StewardFate::Hangs,
        ..Troubles::default()
    };
    all_seeds(
        |seed| branch(16, Joins::Together, troubles, seed),
        1.15,
        1.3,
    );
}

#[test]
fn when_the_steward_never_says_anything_the_next_is_asked() {
    let troubles = Troubles {
        steward: StewardFate::HangsFromTheStart,
        ..Troubles::default()
    };
    all_seeds(
        |seed| branch(16, Joins::Together, troubles, seed),
        1.15,
        1.3,
    );
}

#[test]
fn slow_peers_hold_nobody_up() {
    let troubles = Troubles {
        slow_percent: 10,
        ..Troubles::default()
    };
    all_seeds(
        |seed| branch(16, Joins::Together, troubles, seed),
        1.13,
        1.11,
    );
}

#[test]
fn liars_cost_little_and_nobody_believes_them() {
    let troubles = Troubles {
        lying_percent: 10,
        ..Troubles::default()
    };
    let scenario = |seed| branch(16, Joins::Together, troubles, seed);
    let runs = all_seeds(scenario, 1.25, 1.22);
    // What a liar costs depends on whether it is one of those that fetch: the mean says more than the worst.
    let mean = runs.iter().map(Figures::wan_ratio).sum::<f64>() / runs.len() as f64;
    assert!(mean <= 1.085, "WAN {mean:.3} x the file in the mean");
}

#[test]
fn members_that_see_half_of_the_branch_at_first_fetch_little_twice() {
    let troubles = Troubles {
        partial_views: true,
        ..Troubles::default()
    };
    all_seeds(
        |seed| branch(16, Joins::Together, troubles, seed),
        1.15,
        1.13,
    );
}

#[test]
fn a_hundred_that_see_half_of_the_branch_at_first_do_not_all_turn_to_the_origin() {
    let troubles = Troubles {
        partial_views: true,
        ..Troubles::default()
    };
    let scenario = |seed| branch(100, Joins::Together, troubles, seed);
    all_seeds(scenario, 1.55, 1.5);
}

/// Segments of 4 MiB, eight of which share the line for 2.7 s before the first of them is there.
fn long_segments(seed: u64) -> Scenario {
    Scenario {
        segments: 64,
        segment_bytes: 4 << 20,
        wan_bits_per_sec: 100e6,
        ..branch(100, Joins::Together, failing(), seed)
    }
}

#[test]
fn long_segments_are_waited_for_and_fetched_once() {
    for seed in 1..=3 {
        let run = simulate(&long_segments(seed));
        assert!(run.wan_ratio() <= 1.10, "seed {seed}: {run:?}");
        assert!(run.makespan_ratio() <= 1.20, "seed {seed}: {run:?}");
        assert!(run.largest_upload_ratio() <= 8.0, "seed {seed}: {run:?}");
    }
}

#[test]
fn who_comes_late_asks_the_origin_for_nothing() {
    let scenario = |seed| Scenario {
        late: 4,
        ..branch(16, Joins::Together, Troubles::default(), seed)
    };
    for run in all_seeds(scenario, 1.05, 1.10) {
        assert_eq!(run.late_bytes, 0, "seed {}", run.seed);
    }
}

#[test]
fn one_seed_gives_one_run() {
    let run = || simulate(&branch(16, MINUTE, failing(), 7));
    let comparable = |run: Figures| Figures {
        planning: Duration::ZERO,
        ..run
    };
    let (first, second) = (comparable(run()), comparable(run()));
    assert_eq!(format!("{first:?}"), format!("{second:?}"));
}
