//! Nothing is left of a lab whose process was killed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use branchline_lab::{Lab, LabOptions, Origin, OriginOptions, Privilege};

const HELD_LAB: &str = "leftovers::holds_a_lab_until_stdin_ends";

/// All living processes of the machine that are in this PID namespace.
pub(crate) fn processes_in(namespace: &Path) -> Vec<i32> {
    processes()
        .filter(|pid| is_alive(*pid) && link(*pid, "pid").as_deref() == Some(namespace))
        .collect()
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn link(pid: i32, kind: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()
}

/// Every process that descends from `ancestor`, waiters included.
fn descendants(ancestor: i32) -> BTreeSet<i32> {
    let parents: Vec<(i32, i32)> = processes()
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut found = BTreeSet::from([ancestor]);
    loop {
        let more = parents
            .iter()
            .filter(|(_, parent)| found.contains(parent))
            .map(|(pid, _)| *pid);
        let grown: BTreeSet<i32> = found.iter().copied().chain(more).collect();
        if grown == found {
            return found;
        }
        found = grown;
    }
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Zombies count as gone: they wait for whoever inherited them.
fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// What a lab could leave on the machine: devices, mounts, named namespaces, firewall rules aside.
fn machine() -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let devices = fs::read_to_string("/proc/self/net/dev")?;
    let mut devices: Vec<String> = devices
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect();
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let named = named.map(|entry| entry.path().display().to_string());
    let scratch = ["/srv", "/media", "/mnt", "/boot", "/opt"]
        .into_iter()
        .flat_map(|folder| {
            fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path().display().to_string())
        });
    devices.sort();
    Ok(mounts
        .lines()
        .map(str::to_owned)
        .chain(devices)
        .chain(named)
        .chain(scratch)
        .collect())
}

fn start_held_lab(privilege: &str) -> Result<(Child, PathBuf)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", HELD_LAB, "--ignored", "--nocapture"])
        .env("LAB_PRIVILEGE", privilege)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    for line in lines {
        if let Some((_, namespace)) = line?.split_once("lab: ") {
            return Ok((child, PathBuf::from(namespace)));
        }
    }
    bail!("the process with the lab ended early: {:?}", child.wait()?)
}

fn nothing_is_left_after_sigkill(privilege: &str) -> Result<()> {
    let before = machine()?;
    let (mut holder, namespace) = start_held_lab(privilege)?;
    let pid = i32::try_from(holder.id())?;
    let family = descendants(pid);
    let inside = processes_in(&namespace);
    // The lab's first process, nginx, a daemon, a shell's sleep; and each one's waiter.
    ensure!(
        inside.len() >= 4 && family.len() > inside.len(),
        "{inside:?} of {family:?}"
    );
    holder.kill()?;
    holder.wait()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    let all: BTreeSet<i32> = family.into_iter().chain(inside).collect();
    while let Some(left) = all.iter().find(|pid| is_alive(**pid)) {
        let name = fs::read_to_string(format!("/proc/{left}/comm")).unwrap_or_default();
        ensure!(
            Instant::now() < deadline,
            "process {left} ({}) outlived the lab",
            name.trim()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(processes_in(&namespace), Vec::<i32>::new());
    assert_eq!(machine()?, before);
    Ok(())
}

#[test]
fn nothing_is_left_after_sigkill_of_a_lab() -> Result<()> {
    nothing_is_left_after_sigkill("automatic")
}

#[test]
fn nothing_is_left_after_sigkill_of_a_lab_in_a_user_namespace() -> Result<()> {
    nothing_is_left_after_sigkill("user")
}

#[test]
#[ignore = "run by the tests of this file, which kill it"]
fn holds_a_lab_until_stdin_ends() -> Result<()> {
    let user = std::env::var("LAB_PRIVILEGE").is_ok_and(|value| value == "user");
    let privilege = if user {
        Privilege::UserNamespace
    } else {
        Privilege::Automatic
    };
    let lab = Lab::start(LabOptions {
        members: 3,
        privilege,
        ..LabOptions::default()
    })?;
    let _origin = Origin::start(lab.origin(), &OriginOptions::serving("/usr/share/doc"))?;
    lab.member(2)
        .sh("setsid sleep 1000 </dev/null >/dev/null 2>&1 &")?;
    let mut sleep = Command::new("sh");
    sleep.args(["-c", "echo ready; sleep 1000; :"]);
    let process = lab.member(0).spawn(sleep)?;
    process.wait_for_line(Duration::from_secs(10), |line| line == "ready")?;
    let namespace = link(process.pid(), "pid").context("no namespace")?;
    println!("\nlab: {}", namespace.display());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
