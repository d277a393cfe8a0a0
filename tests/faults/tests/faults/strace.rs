//! Agents whose calls to the kernel fail: strace(1) makes them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use branchline_branch_tests::{Machine, PATIENCE};
use branchline_lab::Process;

/// Which calls fail.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    /// On any of these files, there or not.
    pub(crate) paths: Vec<PathBuf>,
    /// Their names, with commas between.
    pub(crate) calls: &'static str,
    /// With this error.
    pub(crate) error: &'static str,
    /// `3`: the third of each kind; `3..5`; `3+`: the third and all after it. Each thread counts its own.
    pub(crate) when: String,
}

/// An agent that meets faults.
pub(crate) struct Faulty {
    pub(crate) agent: Process,
    log: PathBuf,
}

impl Fault {
    /// Starts an agent that meets it, and waits until it serves.
    pub(crate) fn start(&self, machine: &Machine) -> Result<Faulty> {
        let faulty = self.spawn(machine)?;
        faulty
            .agent
            .wait_for_line(PATIENCE, |line| line == "ready")?;
        Ok(faulty)
    }

    /// Starts an agent that meets it.
    pub(crate) fn spawn(&self, machine: &Machine) -> Result<Faulty> {
        let log = machine.home().join("strace");
        let agent = machine.command()?;
        let mut strace = Command::new("strace");
        // As a grandchild it leaves the agent to be the process that the lab knows and kills.
        strace.args(["-D", "-f", "--seccomp-bpf", "-qq", "-o"]);
        strace.arg(&log);
        for path in &self.paths {
            strace.arg("-P").arg(path);
        }
        let Self {
            calls, error, when, ..
        } = self;
        strace.args(["-e", &format!("trace={calls}")]);
        strace.args(["-e", &format!("inject={calls}:error={error}:when={when}")]);
        strace.arg(agent.get_program()).args(agent.get_args());
        let agent = machine.host().spawn({
            strace.arg("agent");
            strace
        });
        let agent = agent.context("cannot start strace (Debian: strace)")?;
        Ok(Faulty { agent, log })
    }
}

impl Faulty {
    /// How many calls have failed.
    pub(crate) fn hits(&self) -> Result<usize> {
        let log = fs::read_to_string(&self.log)?;
        Ok(log.matches("(INJECTED)").count())
    }
}
