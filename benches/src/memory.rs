//! Resident memory: of an idle agent, and of both sides while 4 GiB go from one to the other.
//!
//! The peak of a phase is the kernel's high-water mark, set back at the phase's beginning.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use branchline_lab::Agent;

use crate::Extent;
use crate::agents;
use crate::figures::{mebibytes, print_goal};
use crate::transfer::{Branchline, Contestant, FILE, Stage};

/// After this long an agent has met who there is and has nothing to do.
const IDLE: Duration = Duration::from_secs(10);

/// What of a process is in memory.
struct Resident {
    now_bytes: u64,
    peak_bytes: u64,
    /// Of `now_bytes`, what no other process shares and no file backs.
    anonymous_bytes: u64,
}

pub(crate) fn run(extent: Extent) -> Result<()> {
    let stage = Stage::new(1500, extent.bytes(4096))?;
    let mut branchline = Branchline::new(&stage)?;
    branchline.prepare()?;
    thread::sleep(IDLE);
    println!(
        "\n{:.0} MiB; resident MiB: now, of it anonymous, peak of the phase",
        mebibytes(stage.bytes)
    );
    let newcomer = branchline.newcomer.as_mut().context("prepare makes it")?;
    let idle = print("idle, empty store, one peer", newcomer)?;
    let idle_holder = print("idle, 4 GiB in the store", &mut branchline.holder)?;

    forget_peak(newcomer)?;
    forget_peak(&mut branchline.holder)?;
    let target = stage.work.path("target");
    let got = agents::get(newcomer, &branchline.origin.url(FILE), &target)?;
    println!(
        "  {:.1} s, {:.0} MiB of it from the peer",
        got.seconds,
        mebibytes(got.outcome.from_peers)
    );
    let fetching = print("fetching", newcomer)?;
    let serving = print("serving", &mut branchline.holder)?;
    forget_peak(newcomer)?;
    agents::wait_until_stored(newcomer, stage.bytes)?;
    let storing = print("putting what was fetched into the store", newcomer)?;

    println!();
    let goal = |what, goal, resident: &Resident| {
        print_goal(
            what,
            goal,
            &format!("{:.1} MiB", mebibytes(resident.peak_bytes)),
        );
    };
    goal("idle agent, empty store", "<= 32 MiB", &idle);
    goal("idle agent, 4 GiB in the store", "<= 32 MiB", &idle_holder);
    goal("while 4 GiB are fetched", "<= 128 MiB", &fetching);
    goal("while 4 GiB are served", "<= 128 MiB", &serving);
    goal("while 4 GiB are stored", "<= 128 MiB", &storing);
    branchline.clean_up()
}

fn print(phase: &str, agent: &mut Agent) -> Result<Resident> {
    let resident = resident(agent)?;
    println!(
        "  {phase:<42} {:>7.1} {:>7.1} {:>7.1}",
        mebibytes(resident.now_bytes),
        mebibytes(resident.anonymous_bytes),
        mebibytes(resident.peak_bytes)
    );
    Ok(resident)
}

/// What of an agent is in memory.
pub(crate) fn resident_bytes(agent: &mut Agent) -> Result<u64> {
    Ok(resident(agent)?.now_bytes)
}

fn resident(agent: &mut Agent) -> Result<Resident> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.process().pid()))?;
    Ok(Resident {
        now_bytes: field(&status, "VmRSS:")?,
        peak_bytes: field(&status, "VmHWM:")?,
        anonymous_bytes: field(&status, "RssAnon:")?,
    })
}

fn field(status: &str, name: &str) -> Result<u64> {
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(kibibytes.with_context(|| format!("no {name} in /proc/PID/status"))? * 1024)
}

/// Sets the high-water mark back to what is resident now: 5 into clear_refs (proc(5)).
fn forget_peak(agent: &mut Agent) -> Result<()> {
    let path = format!("/proc/{}/clear_refs", agent.process().pid());
    fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_status_is_in_kibibytes() {
        let status = "VmHWM:\t    5236 kB\nVmRSS:\t  12 kB\n";
        assert_eq!(field(status, "VmRSS:").expect("it is there"), 12 * 1024);
        assert!(field(status, "RssAnon:").is_err());
    }
}
