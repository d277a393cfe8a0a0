//! Where the CPU goes in a transfer: by thread on both sides, and by function and by system call
//! where perf works.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use branchline_lab::Agent;

use crate::Extent;
use crate::agents;
use crate::figures::{gigabytes, mebibytes};
use crate::threads::{self, Cpu, Used};
use crate::transfer::{Branchline, Contestant, FILE, Stage};
use crate::work::remove;

/// Functions that took less than this of a side's CPU are left out.
const PERCENT_LIMIT: &str = "0.6";

/// perf needs some milliseconds.
const ATTACH_PATIENCE: Duration = Duration::from_secs(2);

/// System calls made less often are left out.
const CALLS_SHOWN: u64 = 500;

/// What perf does beside a transfer, and how its words are made readable.
struct Tool {
    title: &'static str,
    arguments: &'static [&'static str],
    report: fn(&Path) -> Result<Vec<String>>,
}

const TOOLS: [Tool; 2] = [
    Tool {
        title: "share of its CPU time by thread and function",
        arguments: &["record", "-q", "-F", "997"],
        report: functions,
    },
    Tool {
        title: "calls and milliseconds by thread and system call, waiting included",
        arguments: &["trace", "-s"],
        report: calls,
    },
];

pub(crate) fn run(extent: Extent) -> Result<()> {
    for lan_mtu in [1500, 9000] {
        let stage = Stage::new(lan_mtu, extent.bytes(1024))?;
        let mut branchline = Branchline::new(&stage)?;
        println!("\nMTU {lan_mtu}, {:.0} MiB", mebibytes(stage.bytes));
        branchline.prepare()?;
        stage.work.settle()?;
        extent.wait_for_quiet()?;
        by_thread(&stage, &mut branchline)?;
        branchline.clean_up()?;
        for tool in &TOOLS {
            branchline.prepare()?;
            stage.work.settle()?;
            extent.wait_for_quiet()?;
            with_perf(tool, &stage, &mut branchline)?;
            branchline.clean_up()?;
        }
    }
    Ok(())
}

fn by_thread(stage: &Stage, branchline: &mut Branchline<'_>) -> Result<()> {
    let newcomer = branchline.newcomer.as_mut().context("prepare makes it")?;
    let receiver = Snapshot::of(newcomer)?;
    let sender = Snapshot::of(&mut branchline.holder)?;
    let target = stage.work.path("target-threads");
    let got = agents::get(newcomer, &branchline.origin.url(FILE), &target)?;
    remove(&target)?;
    println!(
        "  {:.2} s; per GB: CPU in seconds, user + system; sleeps; page faults",
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
                "  {side:<10} {name:<18} {:>6.2} + {:.2} {:>9.0} {:>9.0}",
                used.cpu.user_seconds / gigabytes(bytes),
                used.cpu.system_seconds / gigabytes(bytes),
                used.sleeps as f64 / gigabytes(bytes),
                used.faults as f64 / gigabytes(bytes)
            );
        }
        Ok(())
    }
}

/// One more transfer beside perf, on both sides at the same time.
fn with_perf(tool: &Tool, stage: &Stage, branchline: &mut Branchline<'_>) -> Result<()> {
    let newcomer = branchline.newcomer.as_mut().context("prepare makes it")?;
    let recorders = [
        ("receiver", newcomer.process().pid()),
        ("sender", branchline.holder.process().pid()),
    ]
    .map(|(side, pid)| {
        let out = stage.work.path(&format!("perf-{side}"));
        (side, start(tool, pid, &out), out)
    });
    let target = stage.work.path("target-perf");
    agents::get(newcomer, &branchline.origin.url(FILE), &target)?;
    remove(&target)?;
    for (side, recorder, out) in recorders {
        match recorder {
            Ok(recorder) => {
                stop(recorder)?;
                println!("\n  {side}, {}", tool.title);
                (tool.report)(&out)?
                    .iter()
                    .for_each(|line| println!("  {line}"));
                remove(&out)?;
            }
            Err(error) => println!("  no perf (Debian: linux-perf): {error:#}"),
        }
    }
    Ok(())
}

fn start(tool: &Tool, pid: i32, out: &Path) -> Result<Child> {
    let perf = Command::new("perf")
        .args(tool.arguments)
        .args(["-p", &pid.to_string(), "-o"])
        .arg(out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start perf")?;
    wait_until_attached(&perf);
    Ok(perf)
}

/// Only threads that are made after it are followed from their start. Where it may not attach it
/// says so at its end.
fn wait_until_attached(perf: &Child) {
    let deadline = Instant::now() + ATTACH_PATIENCE;
    let descriptors = format!("/proc/{}/fd", perf.id());
    let is_event = |path: PathBuf| path.to_string_lossy().contains("[perf_event]");
    while Instant::now() < deadline {
        let attached = std::fs::read_dir(&descriptors).is_ok_and(|open| {
            open.flatten()
                .any(|entry| std::fs::read_link(entry.path()).is_ok_and(is_event))
        });
        if attached {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// perf writes its file when it is interrupted.
fn stop(mut recorder: Child) -> Result<()> {
    let pid = rustix::process::Pid::from_child(&recorder);
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    recorder.wait()?;
    Ok(())
}

fn functions(recorded: &Path) -> Result<Vec<String>> {
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
    let text = String::from_utf8_lossy(&report.stdout);
    // Behind the function stand columns that say nothing here.
    let lines = text.lines().map(|line| line.trim_end_matches([' ', '-']));
    Ok(lines
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect())
}

/// perf's table has a heading a thread, and a line a call: its name, how often, errors, milliseconds.
fn calls(recorded: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(recorded)?;
    let mut thread = "";
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some((name, _)) = line.split_once(" events, ") {
            thread = name.split('(').next().unwrap_or_default().trim();
            continue;
        }
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [call, count, _errors, milliseconds, ..] = fields[..] else {
            continue;
        };
        if count.parse().is_ok_and(|count: u64| count >= CALLS_SHOWN) {
            lines.push(format!(
                "{thread:<18} {call:<16} {count:>9} {milliseconds:>12}"
            ));
        }
    }
    Ok(lines)
}
