//! A Branchline agent on a host of the lab, driven by the command line alone.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::process::{Finished, Process};

/// An agent opens its store and binds its ports; recovery of a large store is included.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// How long an agent may take for an orderly end.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Set to run another `branchline` than the one built beside the test.
const BINARY_VARIABLE: &str = "BRANCHLINE_BIN";

/// A running `branchline agent`. Dropping it kills it.
pub struct Agent {
    host: Host,
    state_dir: PathBuf,
    config: PathBuf,
    process: Process,
}

impl Agent {
    /// Starts an agent with this configuration and waits until it serves. The state directory is
    /// made if missing; the configuration is written into it.
    ///
    /// # Errors
    /// When the binary is missing, or the agent ends or is silent for a minute; the message holds
    /// its stderr.
    pub fn start(host: &Host, config_toml: &str, state_dir: &Path) -> Result<Self> {
        let state_dir = std::path::absolute(state_dir)?;
        make_private_dir(&state_dir)?;
        let config = state_dir.join("lab.toml");
        fs::write(&config, config_toml)?;
        let process = spawn_agent(host, &config, &state_dir)?;
        Ok(Self {
            host: host.clone(),
            state_dir,
            config,
            process,
        })
    }

    /// Runs a command against this agent (`--state-dir` and `--config` come by themselves),
    /// whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started or takes longer than `patience`.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
        patience: Duration,
    ) -> Result<Finished> {
        self.spawn(args)?.wait(patience)
    }

    /// Starts a command against this agent.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Process> {
        let mut command = self.command()?;
        command.args(args);
        self.host.spawn(command)
    }

    /// A command against this agent, still without words: to add environment or directory.
    ///
    /// # Errors
    /// When the binary is missing.
    pub fn command(&self) -> Result<Command> {
        command(&self.config, &self.state_dir)
    }

    /// The agent's process, to measure, stop, continue or wait for.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Where it runs.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its state directory.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// SIGKILL; returns once it is gone and its state directory free.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<Finished> {
        self.process.kill()
    }

    /// SIGTERM, and waits for its orderly end.
    ///
    /// # Errors
    /// When it takes longer than half a minute or ends with another exit code than 0.
    pub fn stop(&mut self) -> Result<Finished> {
        self.process.terminate(STOP_PATIENCE)?.success()
    }

    /// Kills the agent if it still runs, and starts it anew on the same state.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        if self.process.is_running() {
            self.process.kill()?;
        }
        self.process = spawn_agent(&self.host, &self.config, &self.state_dir)?;
        Ok(())
    }
}

fn spawn_agent(host: &Host, config: &Path, state_dir: &Path) -> Result<Process> {
    let mut command = command(config, state_dir)?;
    command.arg("agent");
    let process = host.spawn(command)?;
    let ready = process.wait_for_line(READY_PATIENCE, |line| line.trim() == "ready");
    ready.with_context(|| format!("no agent on {}", host.name()))?;
    Ok(process)
}

fn command(config: &Path, state_dir: &Path) -> Result<Command> {
    let mut command = Command::new(branchline_binary()?);
    command
        .arg("--state-dir")
        .arg(state_dir)
        .arg("--config")
        .arg(config);
    Ok(command)
}

fn make_private_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.with_context(|| format!("cannot make {}", path.display()))
}

/// The `branchline` to test: `$BRANCHLINE_BIN`, else the one in this executable's target folder.
///
/// # Errors
/// When there is none; the message says how to build it.
pub fn branchline_binary() -> Result<PathBuf> {
    if let Some(set) = std::env::var_os(BINARY_VARIABLE) {
        let path = std::path::absolute(set)?;
        ensure!(
            path.is_file(),
            "{BINARY_VARIABLE}: {} is no file",
            path.display()
        );
        return Ok(path);
    }
    let executable = std::env::current_exe()?;
    // A test is in target/release/deps, a binary in target/release.
    let beside = executable
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("branchline"));
    let found = beside.into_iter().find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no `branchline` beside {}: build it with `cargo build --release -p branchline-cli`, \
             or set {BINARY_VARIABLE}",
            executable.display()
        )
    })
}
