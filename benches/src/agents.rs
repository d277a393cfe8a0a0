//! Agents under measurement: met, asked, waited for.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use branchline_core::PeerId;
use branchline_lab::{Agent, Finished, Host, Process, branchline_binary};
use serde::Deserialize;

use crate::threads::Cpu;
use crate::work::{Work, remove};

/// The longest a download may take: 4 GiB on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);

/// How often an agent is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

/// What `get --json` says.
#[derive(Debug, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) bytes: u64,
    pub(crate) from_origin: u64,
    pub(crate) from_peers: u64,
    pub(crate) from_store: u64,
}

/// A download, from the command's start to its end.
pub(crate) struct Got {
    pub(crate) outcome: Outcome,
    pub(crate) seconds: f64,
    /// Of the command; the agent's is its own.
    pub(crate) command_cpu: Cpu,
}

#[derive(Deserialize)]
struct Status {
    peer_id: PeerId,
    peers: usize,
    store: StoreStatus,
}

#[derive(Deserialize)]
struct StoreStatus {
    bytes: u64,
}

/// One of `cache list --json`.
#[derive(Deserialize)]
struct Entry {
    bytes: u64,
}

/// Starts an agent with an empty store and the default configuration.
pub(crate) fn start(host: &Host, work: &Work, name: &str) -> Result<Agent> {
    let state_dir = work.path(name);
    remove(&state_dir)?;
    Agent::start(host, "", &state_dir)
}

/// Ends an agent and removes its state.
pub(crate) fn end(mut agent: Agent) -> Result<()> {
    agent.kill()?;
    remove(agent.state_dir())
}

/// Waits until the agent sees `peers` others.
pub(crate) fn wait_for_peers(agent: &mut Agent, peers: usize) -> Result<()> {
    wait_for_status(agent, "peers", |status| status.peers >= peers)
}

/// Waits until the agent's store holds `bytes` bytes.
pub(crate) fn wait_until_stored(agent: &mut Agent, bytes: u64) -> Result<()> {
    wait_for_status(agent, "the store", |status| status.store.bytes >= bytes)
}

/// Waits until the agent's store lists a content of `bytes` bytes, which it does once all is there.
pub(crate) fn wait_until_listed(agent: &mut Agent, bytes: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = agent
            .run(["cache", "list", "--json"], PATIENCE)?
            .success()?;
        let entries: Vec<Entry> = serde_json::from_slice(&answer.stdout)?;
        if entries.iter().any(|entry| entry.bytes == bytes) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{}: waited in vain for the store",
            agent.host().name()
        );
        thread::sleep(POLL);
    }
}

/// Who it is.
pub(crate) fn peer_id(agent: &Agent) -> Result<PeerId> {
    Ok(status(agent)?.peer_id)
}

fn status(agent: &Agent) -> Result<Status> {
    let answer = agent.run(["status", "--json"], PATIENCE)?.success()?;
    Ok(serde_json::from_slice(&answer.stdout)?)
}

fn wait_for_status(agent: &Agent, what: &str, wanted: impl Fn(&Status) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if wanted(&status(agent)?) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{}: waited in vain for {what}",
            agent.host().name()
        );
        thread::sleep(POLL);
    }
}

/// Downloads `url` to `target` through the agent.
pub(crate) fn get(agent: &Agent, url: &str, target: &Path) -> Result<Got> {
    let begun = Instant::now();
    let finished = start_get(agent, url, target)?.wait(PATIENCE)?;
    got(finished, begun.elapsed().as_secs_f64())
}

/// Begins a download.
pub(crate) fn start_get(agent: &Agent, url: &str, target: &Path) -> Result<Process> {
    let words = ["get", url, "--json", "-o"].map(OsStr::new);
    agent.spawn(words.into_iter().chain([target.as_os_str()]))
}

/// What came of a download that took so long and must have worked.
pub(crate) fn got(finished: Finished, seconds: f64) -> Result<Got> {
    let finished = finished.success()?;
    let text = finished.text();
    let line = text.lines().last().context("`get --json` was silent")?;
    let outcome: Outcome = serde_json::from_str(line)?;
    ensure!(
        outcome.from_origin + outcome.from_peers + outcome.from_store == outcome.bytes,
        "the bytes by source do not add up: {line}"
    );
    Ok(Got {
        outcome,
        seconds,
        command_cpu: finished.measured.into(),
    })
}

/// Writes the manifest of `file` beside it.
pub(crate) fn publish(file: &Path) -> Result<PathBuf> {
    let done = std::process::Command::new(branchline_binary()?)
        .arg("publish")
        .arg(file)
        .output()?;
    ensure!(
        done.status.success(),
        "`branchline publish`: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    let mut manifest = file.as_os_str().to_owned();
    manifest.push(".branchline");
    Ok(manifest.into())
}
