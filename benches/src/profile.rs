//! Where the CPU goes in a transfer: by thread on both sides, and by function where perf works.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use branchline_lab::Agent;

use crate::Extent;
use crate::agents;
use crate::figures::{gigabytes, mebibytes};
use crate::threads::{self, Cpu, Used};
use crate::transfer::{Branchline, Contestant, FILE, Stage};

/// Functions that took less than this of a side's CPU are left out.
const PERCENT_LIMIT: &str = "0.6";

pub(crate) fn run(extent: Extent) -> Result<()> {
    for lan_mtu in [1500, 9000] {
        let stage = Stage::new(lan_mtu, extent.bytes(1024))?;
        let mut branchline = Branchline::new(&stage)?;
        branchline.prepare()?;
        stage.work.settle()?;
        println!("\nMTU {lan_mtu}, {:.0} MiB", mebibytes(stage.bytes));
        by_thread(&stage, &mut branchline)?;
        branchline.clean_up()?;
        branchline.prepare()?;
        stage.work.settle()?;
        by_function(&stage, &mut branchline)?;
        branchline.clean_up()?;
    }
    Ok(())
}

fn by_thread(stage: &Stage, branchline: &mut Branchline<'_>) -> Result<()> {
    let newcomer = branchline.newcomer.as_mut().context("prepare makes it")?;
    let receiver = Snapshot::of(newcomer)?;
    let sender = Snapshot::of(&mut branchline.holder)?;
    let target = stage.work.path("target-threads");
    let got = agents::get(newcomer, &branchline.origin.url(FILE), &target)?;
    println!(
        "  {:.2} s; per GB: CPU in seconds, user + system, and how often the thread slept",
        got.seconds
    );
    receiver.print("receiver", newcomer, stage.bytes)?;
    sender.print("sender", &mut branchline.holder, stage.bytes)
}

/// What an agent's threads had used.
struct Snapshot {
    threads: std::collections::BTreeMap<String, Used>,
    process: Cpu,
}

impl Snapshot {
    fn of(agent: &mut Agent) -> Result<Self> {
        Ok(Self {
            threads: threads::by_name(agent.process().pid())?,
            process: agent.process().measured()?.into(),
        })
    }

    fn print(&self, side: &str, agent: &mut Agent, bytes: u64) -> Result<()> {
        let now = Self::of(agent)?;
        let used = now.process.since(self.process);
        for (name, used) in threads::between(&self.threads, &now.threads, used) {
            println!(
                "  {side:<10} {name:<18} {:>6.2} + {:.2} {:>9.0}",
                used.cpu.user_seconds / gigabytes(bytes),
                used.cpu.system_seconds / gigabytes(bytes),
                used.sleeps as f64 / gigabytes(bytes)
            );
        }
        Ok(())
    }
}

/// One more transfer under `perf record`, on both sides at the same time.
fn by_function(stage: &Stage, branchline: &mut Branchline<'_>) -> Result<()> {
    let newcomer = branchline.newcomer.as_mut().context("prepare makes it")?;
    let recorders = [
        ("receiver", newcomer.process().pid()),
        ("sender", branchline.holder.process().pid()),
    ]
    .map(|(side, pid)| (side, record(pid, &stage.work.path(&format!("perf-{side}")))));
    let target = stage.work.path("target-perf");
    agents::get(newcomer, &branchline.origin.url(FILE), &target)?;
    for (side, recorder) in recorders {
        match recorder {
            Ok(recorder) => {
                stop(recorder)?;
                print_report(side, &stage.work.path(&format!("perf-{side}")))?;
            }
            Err(error) => println!("  no perf (Debian: linux-perf): {error:#}"),
        }
    }
    Ok(())
}

fn record(pid: i32, out: &Path) -> Result<Child> {
    Command::new("perf")
        .args(["record", "-q", "-F", "997", "-p", &pid.to_string(), "-o"])
        .arg(out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start `perf record`")
}

/// perf writes its file when it is interrupted.
fn stop(mut recorder: Child) -> Result<()> {
    let pid = rustix::process::Pid::from_child(&recorder);
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    recorder.wait()?;
    Ok(())
}

fn print_report(side: &str, recorded: &Path) -> Result<()> {
    let report = Command::new("perf")
        .args(["report", "-q", "--stdio", "-F", "overhead,comm,symbol"])
        .args(["--percent-limit", PERCENT_LIMIT, "-i"])
        .arg(recorded)
        .output()?;
    ensure!(
        report.status.success(),
        "`perf report`: {}",
        String::from_utf8_lossy(&report.stderr)
    );
    println!("\n  {side}, share of its CPU time by thread and function");
    for line in String::from_utf8_lossy(&report.stdout).lines() {
        let line = line.trim_end();
        if !line.is_empty() {
            println!("  {line}");
        }
    }
    Ok(())
}
