//! One member of the branch, driven by the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use branchline_lab::{Finished, Host, Process, branchline_binary};
use serde_json::Value;

use crate::PATIENCE;
use crate::got::Got;
use crate::wait::until;

/// One member: its host, its state directory, its agent if one runs. Dropping it kills the agent.
pub struct Machine {
    host: Host,
    home: PathBuf,
    state_dir: PathBuf,
    config: PathBuf,
    agent: Option<Process>,
}

impl Machine {
    /// A machine whose files are in `home`.
    ///
    /// # Errors
    /// When `home` cannot be written to.
    pub(crate) fn new(host: Host, home: PathBuf) -> Result<Self> {
        fs::create_dir_all(&home)?;
        let config = home.join("branchline.toml");
        fs::write(&config, "")?;
        let state_dir = home.join("state");
        Ok(Self {
            host,
            home,
            state_dir,
            config,
            agent: None,
        })
    }

    /// Where it runs.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its own folder: configuration, state directory, downloads.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Its state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Uses another state directory from now on.
    pub fn set_state_dir(&mut self, state_dir: PathBuf) {
        self.state_dir = state_dir;
    }

    /// Writes the configuration that agents and commands from now on read.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, toml: &str) -> Result<()> {
        Ok(fs::write(&self.config, toml)?)
    }

    /// `branchline` with this machine's configuration and state directory.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(branchline_binary()?);
        command.arg("--state-dir").arg(&self.state_dir);
        command.arg("--config").arg(&self.config);
        Ok(command)
    }

    /// Starts the agent and waits until it serves.
    ///
    /// # Errors
    /// When it ends or is silent instead.
    pub fn start_agent(&mut self) -> Result<()> {
        let agent = self.spawn_agent()?;
        agent.wait_for_line(PATIENCE, |line| line == "ready")?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Starts an agent without waiting for anything, and leaves it to the caller.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_agent(&self) -> Result<Process> {
        let mut command = self.command()?;
        command.arg("agent");
        self.host.spawn(command)
    }

    /// Its agent's process.
    ///
    /// # Errors
    /// When none was started.
    pub fn agent(&mut self) -> Result<&mut Process> {
        self.agent.as_mut().context("this machine has no agent")
    }

    /// SIGKILL for the agent.
    ///
    /// # Errors
    /// When none runs.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent()?.kill()?;
        self.agent = None;
        Ok(())
    }

    /// SIGTERM for the agent, which must end in order.
    ///
    /// # Errors
    /// When none runs, or it does not.
    pub fn stop_agent(&mut self) -> Result<()> {
        self.agent()?.terminate(PATIENCE)?.success()?;
        self.agent = None;
        Ok(())
    }

    /// Where `get` puts what `url` names.
    pub fn target(&self, url: &str) -> PathBuf {
        self.home.join(url.rsplit('/').next().unwrap_or("file"))
    }

    /// Starts `branchline get URL -o TARGET --json ARGS...`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_get(&self, url: &str, target: &Path, args: &[&str]) -> Result<Process> {
        let mut command = self.command()?;
        command.args(["get", url, "--json", "-o"]).arg(target);
        command.args(args);
        self.host.spawn(command)
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Errors
    /// When it takes longer than a minute, or prints nonsense.
    pub fn get(&self, url: &str, args: &[&str]) -> Result<Got> {
        self.get_to(url, &self.target(url), args)
    }

    /// The same, to another place.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_to(&self, url: &str, target: &Path, args: &[&str]) -> Result<Got> {
        let finished = self.start_get(url, target, args)?.wait(PATIENCE)?;
        Got::of(&finished, target.to_owned())
    }

    /// Runs a command that prints JSON and must work.
    ///
    /// # Errors
    /// When it does not.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.command()?;
        command.args(args).arg("--json");
        let finished = self.host.run(command, PATIENCE)?.success()?;
        Ok(serde_json::from_slice(&finished.stdout)?)
    }

    /// Runs any command of `branchline`.
    ///
    /// # Errors
    /// When it cannot be started or takes longer than a minute.
    pub fn run(&self, args: &[&str]) -> Result<Finished> {
        let mut command = self.command()?;
        command.args(args);
        self.host.run(command, PATIENCE)
    }

    /// Waits until the agent sees this many others.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for_peers(&self, count: usize) -> Result<()> {
        until(&format!("{count} peers on {}", self.host.name()), || {
            let peers = self.json(&["peers"])?;
            Ok((peers.as_array().map_or(0, Vec::len) >= count).then_some(()))
        })
    }

    /// Waits until the agent sees `other`'s agent where it serves now, also after it was started
    /// anew.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for_peer(&self, other: &Self) -> Result<()> {
        let status = other.json(&["status"])?;
        let port = format!(":{}", status["exchange_port"]);
        let there = |peer: &Value| {
            let address = peer["addresses"][0].as_str();
            peer["peer_id"] == status["peer_id"] && address.is_some_and(|a| a.ends_with(&port))
        };
        until(&format!("{} to be seen", other.host.name()), || {
            let peers = self.json(&["peers"])?;
            let seen = peers.as_array().is_some_and(|all| all.iter().any(there));
            Ok(seen.then_some(()))
        })
    }

    /// Waits until the store holds all segments of so many contents.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for_cached(&self, contents: usize) -> Result<()> {
        let whole = |entry: &Value| entry["segments"] == entry["segments_present"];
        until(&format!("{contents} contents in the store"), || {
            let entries = self.json(&["cache", "list"])?;
            let entries = entries.as_array().context("no list")?;
            let cached = entries.iter().filter(|entry| whole(entry)).count();
            Ok((cached >= contents).then_some(()))
        })
    }

    /// Fetches `url` with curl to a file of its own; how long that took.
    ///
    /// # Errors
    /// When curl fails.
    pub fn curl(&self, url: &str) -> Result<Duration> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", url, "--output"]);
        curl.arg(self.home.join("curl"));
        Ok(self.host.run(curl, PATIENCE)?.success()?.elapsed)
    }

    /// Mounts a tmpfs with these options on the machine alone; agents see it only if they are started after it, and the
    /// test's own view does not have it.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn small_disk(&self, name: &str, options: &str) -> Result<PathBuf> {
        let place = self.home.join(name);
        fs::create_dir(&place)?;
        let mount = format!("mount -t tmpfs -o {options} tmpfs '{}'", place.display());
        self.host.sh(&mount)?;
        Ok(place)
    }

    /// SHA-256, in hexadecimal, of what stands at `path` as the machine sees it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn sha256_there(&self, path: &Path) -> Result<String> {
        let text = self.host.sh(&format!("sha256sum < '{}'", path.display()))?;
        Ok(text.split(' ').next().unwrap_or_default().to_owned())
    }

    /// Fails unless the file at `path` is exactly `bytes`.
    ///
    /// # Errors
    /// When it is not.
    pub fn ensure_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let found = fs::read(path).with_context(|| format!("no {}", path.display()))?;
        ensure!(
            found == bytes,
            "{} has {} bytes, {} were published, and they differ at {:?}",
            path.display(),
            found.len(),
            bytes.len(),
            found.iter().zip(bytes).position(|(a, b)| a != b),
        );
        Ok(())
    }
}
