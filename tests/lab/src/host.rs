//! One machine of the lab: a network namespace with its own mounts and host name.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::LinkNameSpaceType;

use crate::namespaces::{Membership, Namespaces, namespace_of};
use crate::process::{Finished, Process};
use crate::sys::enter::{Creation, Entrance, TunRequest};
use crate::sys::tun::{InterfaceName, receive_fd};

/// Setting up a host is a handful of short commands; more means that something hangs.
const SET_UP_PATIENCE: Duration = Duration::from_secs(30);

/// How long [`Host::sh`] lets a script run.
const SCRIPT_PATIENCE: Duration = Duration::from_secs(120);

/// A machine of the lab. Clones are the same machine.
#[derive(Clone)]
pub struct Host {
    name: String,
    address: Ipv4Addr,
    namespaces: Arc<Namespaces>,
    network: Membership,
    mounts: Membership,
    identity: Membership,
}

impl Host {
    /// Makes the namespaces and runs `script` (for `sh -eu`) in them. In the script the network
    /// namespace of `peer`, if any, is `$PEER`.
    pub(crate) fn create(
        namespaces: &Arc<Namespaces>,
        name: &str,
        address: Ipv4Addr,
        peer: Option<&Self>,
        script: &str,
    ) -> Result<Self> {
        let creation = Creation {
            network: true,
            host_name: Some(name.to_owned()),
            ..Creation::default()
        };
        let peer = peer.map(|host| Arc::clone(&host.network.0));
        let mut shell = shell();
        shell.arg("-eus");
        if let Some(fd) = &peer {
            shell.env("PEER", format!("/proc/self/fd/{}", fd.as_raw_fd()));
        }
        let entrance = Entrance {
            join: namespaces.outer(),
            create: Some(creation),
            inherit: peer.into_iter().collect(),
            ..Entrance::at("/".as_ref())?
        };
        // The shell waits for its script, so the namespaces live until they have been opened.
        let mut set_up = namespaces.spawn(shell, entrance, Stdio::piped())?;
        let pid = set_up.pid();
        let host = Self {
            name: name.to_owned(),
            address,
            namespaces: Arc::clone(namespaces),
            network: namespace_of(pid, "net", LinkNameSpaceType::Network)?,
            mounts: namespace_of(pid, "mnt", LinkNameSpaceType::Mount)?,
            identity: namespace_of(pid, "uts", LinkNameSpaceType::HostNameAndNISDomainName)?,
        };
        let mut stdin = set_up.take_stdin().context("no stdin")?;
        stdin
            .write_all(script.as_bytes())
            .with_context(|| format!("cannot set {name} up"))?;
        drop(stdin);
        let done = set_up.wait(SET_UP_PATIENCE)?.success();
        done.with_context(|| format!("cannot set {name} up"))?;
        Ok(host)
    }

    /// Its name, which the other hosts resolve too.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the LAN, or of an origin on the WAN.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Starts `command` on this host. Standard input is empty; output is captured. The working
    /// directory is the command's own or the caller's; the caller's file system is visible.
    ///
    /// # Errors
    /// When the program does not exist, or the lab is gone.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        let entrance = self.entrance(&command)?;
        self.namespaces.spawn(command, entrance, Stdio::null())
    }

    /// Runs `command` to its end, whatever its exit code. It is killed after `patience`.
    ///
    /// # Errors
    /// When it cannot be started or takes longer than `patience`.
    pub fn run(&self, command: Command, patience: Duration) -> Result<Finished> {
        self.spawn(command)?.wait(patience)
    }

    /// Runs a shell script (`sh -euc`, at most two minutes) and gives what it printed.
    ///
    /// # Errors
    /// When it fails; the message holds its stderr.
    pub fn sh(&self, script: &str) -> Result<String> {
        let mut command = shell();
        command.args(["-euc", script]);
        Ok(self.run(command, SCRIPT_PATIENCE)?.success()?.text())
    }

    /// The lab's scratch directory as programs on hosts see it: a small tmpfs that all hosts
    /// share and that vanishes with the lab. For configurations and logs, not for bulk.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.namespaces.scratch().to_owned()
    }

    /// The same directory as this process sees it, from outside the lab.
    #[must_use]
    pub fn scratch_from_outside(&self) -> PathBuf {
        self.namespaces.scratch_from_outside()
    }

    /// Makes a TUN device here and gives its descriptor. The device goes with the descriptor.
    pub(crate) fn tun(&self, name: &str) -> Result<OwnedFd> {
        let name = InterfaceName::new(name).context("not an interface name")?;
        let (inside, outside) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let command = Command::new("true");
        let mut entrance = self.entrance(&command)?;
        entrance.tun = Some(TunRequest {
            name,
            socket: inside,
        });
        let mut sender = self.namespaces.spawn(command, entrance, Stdio::null())?;
        sender.wait(SET_UP_PATIENCE)?.success()?;
        let tun = receive_fd(&outside)?;
        ensure!(tun.is_some(), "no TUN device came out of {}", self.name);
        tun.context("unreachable")
    }

    fn entrance(&self, command: &Command) -> Result<Entrance> {
        let directory = match command.get_current_dir() {
            Some(directory) => std::path::absolute(directory)?,
            None => std::env::current_dir().context("no working directory")?,
        };
        let mut join = self.namespaces.common();
        join.extend([
            self.network.clone(),
            self.mounts.clone(),
            self.identity.clone(),
        ]);
        Ok(Entrance {
            join,
            ..Entrance::at(&directory)?
        })
    }
}

/// A shell that finds `ip`, `nginx` and `mount`: an ordinary user's PATH lacks the sbin folders.
pub(crate) fn shell() -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.env("PATH", search_path());
    shell
}

pub(crate) fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}
