//! CPU time, sleeps and page faults of a process by thread, from /proc.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use branchline_lab::Measured;

/// CPU time, split as the kernel does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    pub(crate) user_seconds: f64,
    pub(crate) system_seconds: f64,
}

impl Cpu {
    pub(crate) fn seconds(self) -> f64 {
        self.user_seconds + self.system_seconds
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            user_seconds: self.user_seconds + other.user_seconds,
            system_seconds: self.system_seconds + other.system_seconds,
        }
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            user_seconds: self.user_seconds - earlier.user_seconds,
            system_seconds: self.system_seconds - earlier.system_seconds,
        }
    }
}

impl From<Measured> for Cpu {
    fn from(measured: Measured) -> Self {
        Self {
            user_seconds: measured.user.as_secs_f64(),
            system_seconds: measured.system.as_secs_f64(),
        }
    }
}

/// What a thread, or all threads of one name, used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Used {
    pub(crate) cpu: Cpu,
    /// How often it went to sleep: each time something has to wake it.
    pub(crate) sleeps: u64,
    /// Pages it touched that were not mapped yet: fresh memory, mostly.
    pub(crate) faults: u64,
}

/// What was used so far, by the threads' names. One that has ended is missing here, but its CPU is
/// part of its process's.
pub(crate) fn by_name(pid: i32) -> Result<BTreeMap<String, Used>> {
    let mut sums: BTreeMap<String, Used> = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let task = task?.path();
        let (Ok(stat), Ok(status)) = (
            fs::read_to_string(task.join("stat")),
            fs::read_to_string(task.join("status")),
        ) else {
            continue;
        };
        let (name, cpu, faults) = parse(&stat).with_context(|| format!("odd stat: {stat}"))?;
        let sum = sums.entry(name.to_owned()).or_default();
        sum.cpu = sum.cpu.plus(cpu);
        sum.sleeps += sleeps(&status).context("odd status of a thread")?;
        sum.faults += faults;
    }
    Ok(sums)
}

/// What each thread used between two calls; `process` is what the whole process used.
pub(crate) fn between(
    before: &BTreeMap<String, Used>,
    after: &BTreeMap<String, Used>,
    process: Cpu,
) -> Vec<(String, Used)> {
    let since = |(name, used): (&String, &Used)| {
        let earlier = before.get(name).copied().unwrap_or_default();
        let cpu = used.cpu.since(earlier.cpu);
        let used = Used {
            cpu,
            sleeps: used.sleeps.saturating_sub(earlier.sleeps),
            faults: used.faults.saturating_sub(earlier.faults),
        };
        (name.clone(), used)
    };
    let mut rows: Vec<(String, Used)> = after.iter().map(since).collect();
    let living = rows
        .iter()
        .fold(Cpu::default(), |sum, (_, used)| sum.plus(used.cpu));
    let ended = Used {
        cpu: process.since(living),
        ..Used::default()
    };
    rows.push(("(ended)".to_owned(), ended));
    rows.retain(|(_, used)| used.cpu.seconds() > 0.005);
    rows.sort_by(|(_, left), (_, right)| right.cpu.seconds().total_cmp(&left.cpu.seconds()));
    rows
}

fn sleeps(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line?.trim().parse().ok()
}

/// Field 2 is the name in parentheses and may hold spaces; minflt is field 10, utime and stime are 14
/// and 15.
fn parse(stat: &str) -> Option<(&str, Cpu, u64)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let per_second = rustix::param::clock_ticks_per_second();
    let seconds = |ticks: u64| Duration::from_millis(ticks * 1000 / per_second).as_secs_f64();
    let cpu = Cpu {
        user_seconds: seconds(field(14)?),
        system_seconds: seconds(field(15)?),
    };
    Some((name, cpu, field(10)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_line_is_understood_whatever_its_name() {
        let stat = "9 (a ) b) S 1 7 7 0 -1 4 1 2 3 4 250 50 9 9 20 0 1 0";
        let (name, cpu, faults) = parse(stat).expect("a whole line");
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!((name, faults), ("a ) b", 1));
        assert!((cpu.user_seconds - 250.0 / per_second).abs() < 0.01);
        assert!((cpu.system_seconds - 50.0 / per_second).abs() < 0.01);
    }

    #[test]
    fn what_ended_threads_used_is_what_the_process_used_besides() {
        let cpu = |user_seconds| Cpu {
            user_seconds,
            system_seconds: 0.0,
        };
        let used = |seconds, sleeps| Used {
            cpu: cpu(seconds),
            sleeps,
            faults: 0,
        };
        let before = BTreeMap::from([("main".to_owned(), used(1.0, 10))]);
        let after = BTreeMap::from([
            ("main".to_owned(), used(1.5, 13)),
            ("new".to_owned(), used(0.25, 4)),
        ]);
        let rows = between(&before, &after, cpu(2.0));
        assert_eq!(rows[0], ("(ended)".to_owned(), used(1.25, 0)));
        assert_eq!(rows[1], ("main".to_owned(), used(0.5, 3)));
        assert_eq!(rows[2], ("new".to_owned(), used(0.25, 4)));
    }
}
