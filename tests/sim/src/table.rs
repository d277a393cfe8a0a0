//! The table over numbers of members: goals beside figures.

use std::time::{Duration, Instant};

use crate::figures::Figures;
use crate::scenario::{Joins, Scenario, Troubles};
use crate::world::simulate;

/// Members from which on a larger file, a faster WAN and larger segments are simulated: a thousand machines
/// do not sit behind 20 Mbit/s, and each segment costs an event for each member and neighbour.
const LARGE: u32 = 500;

/// One line of the table: the worst of several seeds, but for the last three, which are means.
#[derive(Debug, Clone)]
pub struct Row {
    /// Members.
    pub members: u32,
    /// How they start.
    pub joins: Joins,
    /// The file in bytes.
    pub file_bytes: u64,
    /// WAN bytes of the content / file.
    pub wan: f64,
    /// The same with all members' questions.
    pub wan_with_questions: f64,
    /// Makespan / ideal.
    pub makespan: f64,
    /// Largest upload of any member / file.
    pub largest_upload: f64,
    /// Control bytes that a member sends / file.
    pub control: f64,
    /// Control messages that a member sends.
    pub messages: f64,
    /// Real time of planning a segment.
    pub planning: Duration,
    /// Resident memory of the simulation at its end, of this process and by member; an upper bound of
    /// what a planner and its steward hold.
    pub memory_per_member: Option<u64>,
    /// Real time that one run took.
    pub took: Duration,
}

/// The setting in which so many members are simulated; 5 % of them fail.
pub fn scenario(members: u32, joins: Joins, seed: u64) -> Scenario {
    let small = Scenario {
        joins,
        troubles: Troubles {
            failing_percent: 5,
            ..Troubles::default()
        },
        ..Scenario::common_start(members, seed)
    };
    if members < LARGE {
        return small;
    }
    Scenario {
        segments: 256,
        segment_bytes: 1 << 20,
        wan_bits_per_sec: 100e6,
        ..small
    }
}

/// Simulates each size with each seed, starting together and within a minute. `ready` is told of each line.
///
/// # Panics
/// When an invariant does not hold: that is a defect, and the message has the seed.
pub fn table(sizes: &[u32], seeds: &[u64], mut ready: impl FnMut(&Row)) -> Vec<Row> {
    let mut rows = Vec::new();
    for joins in [Joins::Together, Joins::Within(Duration::from_secs(60))] {
        for members in sizes {
            let row = row(*members, joins, seeds);
            ready(&row);
            rows.push(row);
        }
    }
    rows
}

fn row(members: u32, joins: Joins, seeds: &[u64]) -> Row {
    forget_peak();
    let begun = Instant::now();
    let runs: Vec<Figures> = seeds
        .iter()
        .map(|seed| simulate(&scenario(members, joins, *seed)))
        .collect();
    let took = begun.elapsed() / u32::try_from(runs.len().max(1)).unwrap_or(1);
    let worst = |of: fn(&Figures) -> f64| runs.iter().map(of).fold(0.0, f64::max);
    let mean = |of: fn(&Figures) -> f64| runs.iter().map(of).sum::<f64>() / runs.len() as f64;
    let planning = mean(|run| run.planning_per_segment().as_secs_f64());
    Row {
        members,
        joins,
        file_bytes: runs.iter().map(|run| run.file_bytes).max().unwrap_or(0),
        wan: worst(Figures::wan_ratio),
        wan_with_questions: worst(Figures::wan_ratio_with_questions),
        makespan: worst(Figures::makespan_ratio),
        largest_upload: worst(Figures::largest_upload_ratio),
        control: mean(Figures::control_ratio),
        messages: mean(Figures::control_messages_per_member),
        planning: Duration::from_secs_f64(planning),
        memory_per_member: resident_bytes().map(|bytes| bytes / u64::from(members.max(1))),
        took,
    }
}

/// Lets the peak begin anew (proc(5), `clear_refs`); where that is not allowed it stays that of all rows so far.
fn forget_peak() {
    let _stays = std::fs::write("/proc/self/clear_refs", "5");
}

/// Of this process, at its peak (`VmHWM` of proc(5)).
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// The table's head, with goals.
pub fn head() -> String {
    let names = "members  joins     file MiB  WAN/file  with questions  makespan/ideal  control %  messages  upload/file  plan µs/segment  kB/member  run s";
    let goals = "   goal                        <= 1.05                       <= 1.30     <= 1.0                  <= 8.0";
    format!("{names}\n{goals}")
}

/// One line of it.
pub fn line(row: &Row) -> String {
    let joins = match row.joins {
        Joins::Together => "together".to_owned(),
        Joins::Within(time) => format!("{} s", time.as_secs()),
    };
    let memory = row
        .memory_per_member
        .map_or_else(|| "?".to_owned(), |bytes| format!("{}", bytes / 1000));
    format!(
        "{:>7}  {joins:<8}  {:>8}  {:>8.3}  {:>14.3}  {:>14.3}  {:>9.3}  {:>8.0}  {:>11.2}  {:>15.1}  {memory:>9}  {:>5.1}",
        row.members,
        row.file_bytes >> 20,
        row.wan,
        row.wan_with_questions,
        row.makespan,
        row.control * 100.0,
        row.messages,
        row.largest_upload,
        row.planning.as_secs_f64() * 1e6,
        row.took.as_secs_f64(),
    )
}
