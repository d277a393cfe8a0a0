//! The set-up that the tests share.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use branchline_lab::{
    Lab, LabOptions, Origin, OriginOptions, Process, Request, Wan, WanProfile, branchline_binary,
};

use crate::PATIENCE;
use crate::machine::Machine;
use crate::wait::until;

/// What branch to make.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Machines on the LAN.
    pub members: usize,
    /// The line to the origin.
    pub wan: WanProfile,
    /// nginx directives of the origin's `server` block.
    pub directives: &'static str,
}

impl Setup {
    /// So many machines behind a line on which nothing takes long: 200 Mbit/s, 4 ms there and back.
    pub fn fast(members: usize) -> Self {
        Self {
            members,
            wan: WanProfile {
                queue: Duration::from_millis(50),
                ..WanProfile::symmetric(25_000_000, Duration::from_millis(2))
            },
            directives: "",
        }
    }

    /// So many machines behind a line of this rate, for tests that do something meanwhile. Its
    /// queue is short, so that what a kill loses on the way is little.
    pub fn slow(members: usize, rate_bytes_per_sec: u64) -> Self {
        Self {
            wan: WanProfile {
                queue: Duration::from_millis(20),
                ..WanProfile::symmetric(rate_bytes_per_sec, Duration::from_millis(5))
            },
            ..Self::fast(members)
        }
    }

    /// The same with nginx directives.
    pub fn origin(self, directives: &'static str) -> Self {
        Self { directives, ..self }
    }
}

/// An origin, a WAN, machines. Dropping it ends and removes everything.
pub struct Branch {
    // Machines and the origin go before the lab they run in, the folder last.
    machines: Vec<Machine>,
    origin: Origin,
    lab: Lab,
    directives: &'static str,
    folder: tempfile::TempDir,
}

impl Branch {
    /// Makes the lab and starts the origin; no agents yet.
    ///
    /// # Errors
    /// When namespaces cannot be made or nginx is missing.
    pub fn start(setup: Setup) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("branchline-branch-")
            .tempdir()?;
        fs::create_dir(folder.path().join("www"))?;
        let lab = Lab::start(LabOptions {
            members: setup.members,
            wan: setup.wan,
            ..LabOptions::default()
        })?;
        let origin = start_origin(&lab, folder.path().join("www"), setup.directives)?;
        let machines = lab
            .members()
            .iter()
            .map(|host| Machine::new(host.clone(), folder.path().join(host.name())))
            .collect::<Result<_>>()?;
        Ok(Self {
            machines,
            origin,
            lab,
            directives: setup.directives,
            folder,
        })
    }

    /// The same with an agent on each machine, all of which see each other.
    ///
    /// # Errors
    /// As [`Self::start`], or when agents do not start.
    pub fn with_agents(setup: Setup) -> Result<Self> {
        let mut branch = Self::start(setup)?;
        for index in 0..setup.members {
            branch.machine_mut(index).start_agent()?;
        }
        for machine in &branch.machines {
            machine.wait_for_peers(setup.members - 1)?;
        }
        Ok(branch)
    }

    /// A machine, counted from 0.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn machine(&self, index: usize) -> &Machine {
        &self.machines[index]
    }

    /// The same, to start and stop its agent.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn machine_mut(&mut self, index: usize) -> &mut Machine {
        &mut self.machines[index]
    }

    /// The lab itself.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The line to the origin.
    pub fn wan(&self) -> &Wan {
        self.lab.wan()
    }

    /// Bytes that the WAN carried to the branch.
    pub fn wan_down(&self) -> u64 {
        self.wan().counters().down.bytes
    }

    /// Waits until the WAN has carried this many more bytes than `since` to the branch.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for_wan(&self, since: u64, more: u64) -> Result<()> {
        until(&format!("{more} bytes over the WAN"), || {
            Ok((self.wan_down() >= since + more).then_some(()))
        })
    }

    /// The same; false when `process` ended before.
    ///
    /// # Errors
    /// When neither happens.
    pub fn wait_for_wan_or_end(
        &self,
        since: u64,
        more: u64,
        process: &mut Process,
    ) -> Result<bool> {
        until(&format!("{more} bytes over the WAN"), || {
            if !process.is_running() {
                return Ok(Some(false));
            }
            Ok((self.wan_down() >= since + more).then_some(true))
        })
    }

    /// Where files of the origin lie.
    pub fn www(&self, name: &str) -> PathBuf {
        self.folder.path().join("www").join(name)
    }

    /// Puts a file at the origin, by rename, without a manifest. Gives its URL.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn place(&self, name: &str, bytes: &[u8]) -> Result<String> {
        let new = self.folder.path().join("new");
        fs::write(&new, bytes)?;
        fs::rename(&new, self.www(name))?;
        Ok(self.url(name))
    }

    /// Puts a file at the origin and its manifest beside it. Gives its URL.
    ///
    /// # Errors
    /// When `branchline publish` fails.
    pub fn publish(&self, name: &str, bytes: &[u8]) -> Result<String> {
        let url = self.place(name, bytes)?;
        let mut publish = Command::new(branchline_binary()?);
        publish.arg("publish").arg(self.www(name));
        let output = publish.output()?;
        ensure!(
            output.status.success(),
            "publish: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(url)
    }

    /// The URL of a file of the origin.
    pub fn url(&self, name: &str) -> String {
        self.origin.url(name)
    }

    /// The origin itself.
    pub fn origin_mut(&mut self) -> &mut Origin {
        &mut self.origin
    }

    /// Kills nginx and starts it anew: every connection to it breaks off.
    ///
    /// # Errors
    /// When it does not start again.
    pub fn restart_origin(&mut self) -> Result<()> {
        self.origin.process().kill()?;
        // nginx would find its old pid file, and the lab would take it for the new one.
        let pid_file = self.lab.origin().scratch_from_outside();
        fs::remove_file(pid_file.join("nginx-origin/nginx.pid")).context("nginx's pid file")?;
        self.origin = start_origin(&self.lab, self.folder.path().join("www"), self.directives)?;
        Ok(())
    }

    /// What a machine has asked the origin for.
    ///
    /// # Errors
    /// When nginx's log cannot be read.
    pub fn requests_of(&mut self, index: usize) -> Result<Vec<Request>> {
        let client = self.machines[index].host().address().to_string();
        let all = self.origin.requests()?;
        Ok(all
            .into_iter()
            .filter(|request| request.client == client)
            .collect())
    }

    /// Starts a peer that misbehaves on a machine, and waits until it serves. `args` are the
    /// program's: see `branchline-bad-peer`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn bad_peer(&self, index: usize, program: &str, args: &[&str]) -> Result<Process> {
        let machine = self.machine(index);
        let mut command = Command::new(program);
        command.arg(machine.home().join("bad-identity")).args(args);
        let process = machine.host().spawn(command)?;
        process
            .wait_for_line(PATIENCE, |line| line == "ready")
            .context("the misbehaving peer did not start")?;
        Ok(process)
    }
}

fn start_origin(lab: &Lab, root: PathBuf, directives: &str) -> Result<Origin> {
    Origin::start(
        lab.origin(),
        &OriginOptions {
            root,
            server_directives: directives.to_owned(),
        },
    )
}
