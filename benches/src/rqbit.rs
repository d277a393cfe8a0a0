//! rqbit: BitTorrent in Rust, SHA-1.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use branchline_lab::{Host, Process};

use crate::agents::PATIENCE;

/// Its own default is any free port, which it does not print.
pub(crate) const PORT: u16 = 4240;

/// Whether machines of one LAN find each other by multicast (BEP 14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LocalDiscovery {
    On,
    Off,
}

/// With its own things in `home`, and without what would look for peers elsewhere.
pub(crate) fn command(program: &Path, home: &Path, local: LocalDiscovery) -> Result<Command> {
    std::fs::create_dir_all(home)?;
    let mut command = Command::new(program);
    command.args(["--disable-dht", "--disable-trackers"]);
    command.arg("--disable-upnp-port-forward");
    if local == LocalDiscovery::Off {
        command.arg("--disable-lsd");
    }
    command.env("HOME", home).env_remove("XDG_CACHE_HOME");
    Ok(command)
}

/// Hashes `file` whole and offers it. Gives the server, and the link that tells of the file.
pub(crate) fn share(mut rqbit: Command, host: &Host, file: &Path) -> Result<(Process, String)> {
    rqbit.args(["-v", "error", "--listen-port", &PORT.to_string(), "share"]);
    rqbit.arg(file);
    let server = host.spawn(rqbit)?;
    let is_link = |line: &str| line.contains("magnet:");
    let line = server.wait_for_line(PATIENCE, is_link)?;
    let magnet = line.rsplit(' ').next().context("no link")?.to_owned();
    Ok((server, magnet))
}

/// Has `rqbit` fetch what `magnet` names into `folder`, from these.
pub(crate) fn download<'a>(
    rqbit: &mut Command,
    peers: impl IntoIterator<Item = &'a Host>,
    folder: &Path,
    magnet: impl AsRef<OsStr>,
) {
    let address = |peer: &Host| format!("{}:{PORT}", peer.address());
    let peers: Vec<String> = peers.into_iter().map(address).collect();
    rqbit.args(["download", "--disable-http-api", "--initial-peers"]);
    rqbit.arg(peers.join(","));
    rqbit.arg("--output-folder").arg(folder).arg(magnet);
}
