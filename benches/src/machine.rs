//! What the figures were measured on, and how busy it was.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The machine is quiet when less than this share of one core was busy...
const QUIET_CORES: f64 = 0.15;

/// ...for so long.
const QUIET_TIME: Duration = Duration::from_millis(500);

/// Processor, kernel, program.
pub(crate) fn print_headline() -> Result<()> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let date = Command::new("date")
        .args(["-u", "+%Y-%m-%d %H:%M UTC"])
        .output()?;
    println!("machine  {cores} cores, {model}, Linux {}", kernel.trim());
    println!("date     {}", String::from_utf8_lossy(&date.stdout).trim());
    println!(
        "program  {}",
        branchline_lab::branchline_binary()?.display()
    );
    Ok(())
}

/// The load average: above the number of cores, figures mean little.
pub(crate) fn print_load() -> Result<()> {
    let load = fs::read_to_string("/proc/loadavg")?;
    let averages: Vec<&str> = load.split(' ').take(3).collect();
    println!("load     {}", averages.join(" "));
    Ok(())
}

/// Waits until nothing much runs, at most `longest`.
pub(crate) fn wait_until_quiet(longest: Duration) -> Result<()> {
    let deadline = Instant::now() + longest;
    while Instant::now() < deadline {
        let (before, begun) = (busy_seconds()?, Instant::now());
        std::thread::sleep(QUIET_TIME);
        let cores = (busy_seconds()? - before) / begun.elapsed().as_secs_f64();
        if cores < QUIET_CORES {
            return Ok(());
        }
    }
    Ok(())
}

/// CPU seconds the whole machine has spent, without waiting: what network and disk cost outside of
/// the processes that caused it is in here, and so is whatever else runs.
pub(crate) fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let all = stat.lines().next().context("/proc/stat is empty")?;
    // user nice system idle iowait irq softirq (proc_stat(5))
    let ticks: Vec<u64> = all
        .split_ascii_whitespace()
        .skip(1)
        .map_while(|field| field.parse().ok())
        .collect();
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum();
    Ok(busy as f64 / rustix::param::clock_ticks_per_second() as f64)
}
