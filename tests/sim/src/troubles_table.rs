//! The table of what goes wrong, and of files that are short or have long segments.

use std::time::Duration;

use crate::figures::Figures;
use crate::scenario::{Joins, Scenario, StewardFate, Troubles};
use crate::world::simulate;

/// A line: a scenario, and how many seeds of it.
struct Case {
    name: &'static str,
    seeds: u64,
    scenario: Scenario,
}

const NOTHING: Troubles = Troubles {
    failing_percent: 0,
    steward: StewardFate::Lives,
    slow_percent: 0,
    lying_percent: 0,
    partial_views: false,
};

const FAILING: Troubles = Troubles {
    failing_percent: 5,
    ..NOTHING
};

const SLOW: Troubles = Troubles {
    slow_percent: 10,
    ..NOTHING
};

const LYING: Troubles = Troubles {
    lying_percent: 10,
    ..NOTHING
};

const PARTIAL_VIEWS: Troubles = Troubles {
    partial_views: true,
    ..NOTHING
};

const fn steward(fate: StewardFate) -> Troubles {
    Troubles {
        steward: fate,
        ..NOTHING
    }
}

/// A file of so many segments of 62.5 kB behind 20 Mbit/s.
const fn office(members: u32, segments: u32, troubles: Troubles) -> Scenario {
    Scenario {
        seed: 0,
        members,
        segments,
        segment_bytes: 62_500,
        wan_bits_per_sec: 20e6,
        wan_rtt: Duration::from_millis(40),
        joins: Joins::Together,
        late: 0,
        troubles,
    }
}

/// A file of 64 segments of so many MiB.
const fn long_segments(
    members: u32,
    mebibytes: u32,
    megabits: f64,
    troubles: Troubles,
) -> Scenario {
    Scenario {
        segment_bytes: mebibytes << 20,
        wan_bits_per_sec: megabits * 1e6,
        ..office(members, 64, troubles)
    }
}

const fn case(name: &'static str, seeds: u64, scenario: Scenario) -> Case {
    Case {
        name,
        seeds,
        scenario,
    }
}

#[rustfmt::skip]
const CASES: [Case; 20] = [
    case("16, 32 MB: nothing", 10, office(16, 512, NOTHING)),
    case("16, 32 MB: one dies", 10, office(16, 512, FAILING)),
    case("16, 32 MB: the steward dies at half time", 10, office(16, 512, steward(StewardFate::Dies))),
    case("16, 32 MB: the steward hangs at half time", 10, office(16, 512, steward(StewardFate::Hangs))),
    case("16, 32 MB: the steward hangs from the start", 10, office(16, 512, steward(StewardFate::HangsFromTheStart))),
    case("16, 32 MB: each sees half of the others for a second", 10, office(16, 512, PARTIAL_VIEWS)),
    case("16, 32 MB: two send at a hundredth of the rate", 10, office(16, 512, SLOW)),
    case("16, 32 MB: two lie in a quarter of what they send", 10, office(16, 512, LYING)),
    case("100, 32 MB: ten send at a hundredth of the rate", 3, office(100, 512, SLOW)),
    case("100, 32 MB: ten lie", 3, office(100, 512, LYING)),
    case("100, 32 MB: each sees half of the others for a second", 3, office(100, 512, PARTIAL_VIEWS)),
    case("16, 2 MB", 10, office(16, 32, NOTHING)),
    case("16, 4 MB", 10, office(16, 64, NOTHING)),
    case("16, 8 MB", 10, office(16, 128, NOTHING)),
    case("100, 2 MB", 5, office(100, 32, NOTHING)),
    case("100, 8 MB", 10, office(100, 128, NOTHING)),
    case("100, 256 MiB in segments of 4 MiB, 100 Mbit/s, five die", 3, long_segments(100, 4, 100.0, FAILING)),
    case("1,000, the same, fifty die", 1, long_segments(1_000, 4, 100.0, FAILING)),
    case("16, the same over 20 Mbit/s, nobody dies", 3, long_segments(16, 4, 20.0, NOTHING)),
    case("100, 768 MiB in segments of 12 MiB, 100 Mbit/s", 2, long_segments(100, 12, 100.0, NOTHING)),
];

/// Simulates each case; `ready` is told each line, the head first.
///
/// # Panics
/// When an invariant does not hold: that is a defect, and the message has the seed.
pub fn troubles_table(mut ready: impl FnMut(&str)) {
    ready(&format!(
        "{:<58} seeds  WAN/file: median, worst  makespan/ideal: median, worst  upload/file: worst",
        "members, file: what goes wrong"
    ));
    for case in &CASES {
        let runs: Vec<Figures> = (1..=case.seeds)
            .map(|seed| {
                simulate(&Scenario {
                    seed,
                    ..case.scenario.clone()
                })
            })
            .collect();
        let (wan, wan_worst) = median_and_worst(&runs, Figures::wan_ratio);
        let (time, time_worst) = median_and_worst(&runs, Figures::makespan_ratio);
        let (_, upload) = median_and_worst(&runs, Figures::largest_upload_ratio);
        ready(&format!(
            "{:<58} {:>5}  {wan:>16.3}, {wan_worst:.3}  {time:>22.3}, {time_worst:.3}  {upload:>18.1}",
            case.name, case.seeds
        ));
    }
}

/// The lower of the two in the middle.
fn median_and_worst(runs: &[Figures], of: fn(&Figures) -> f64) -> (f64, f64) {
    let mut sorted: Vec<f64> = runs.iter().map(of).collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.get(sorted.len().saturating_sub(1) / 2);
    let at = |one: Option<&f64>| one.copied().unwrap_or(f64::NAN);
    (at(middle), at(sorted.last()))
}
