//! The common start of sixteen machines by everyone who can: plain curl, BitTorrent with the origin as
//! web seed and local discovery, a caching proxy as the branch's server, and Branchline.
//!
//! Nobody looks beyond the lab: no trackers, no DHT, no port mapping. Who has the whole file goes on
//! serving until all have it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use branchline_lab::{Host, Process};

use crate::Extent;
use crate::agents::PATIENCE;
use crate::common_start::{FILE, Scene, Start};
use crate::figures::mebibytes;
use crate::rqbit::{self, LocalDiscovery};
use crate::tools::find;
use crate::work::{ensure_same, remove};

const MACHINES: usize = 16;

/// 256 KiB, as 2 to this power: small enough that sixteen machines have something to exchange.
const PIECE_POWER: &str = "18";

const SQUID_PORT: u16 = 3128;

/// Between two looks at who is done.
const LOOK_EVERY: Duration = Duration::from_millis(10);

struct Contestant {
    name: &'static str,
    /// Programs without which it cannot run.
    needs: &'static [&'static str],
    /// Brings the file to every machine, and gives the time of the last in seconds.
    run: fn(&Start) -> Result<f64>,
}

const CONTESTANTS: [Contestant; 6] = [
    Contestant {
        name: "Branchline",
        needs: &[],
        run: branchline,
    },
    Contestant {
        name: "squid on the gateway, 16 x curl",
        needs: &["squid"],
        run: squid,
    },
    Contestant {
        name: "Transmission, web seed, local discovery",
        needs: &["transmission-cli", "mktorrent"],
        run: transmission,
    },
    Contestant {
        name: "aria2, web seed, local discovery",
        needs: &["aria2c", "mktorrent"],
        run: aria2,
    },
    Contestant {
        name: "rqbit, a seed at the origin, peers told",
        needs: &["rqbit"],
        run: rqbit,
    },
    Contestant {
        name: "16 x curl",
        needs: &[],
        run: plain_curl,
    },
];

pub(crate) fn run(extent: Extent) -> Result<()> {
    let start = Start::prepare(MACHINES, extent.bytes(32))?;
    let alone = start.one_curl()?;
    println!(
        "\n{MACHINES} machines, {:.0} MiB; one curl alone: {alone:.2} s\n  {:<42} {:>10} {:>26}",
        mebibytes(start.bytes),
        "",
        "WAN / file",
        "last machine / curl alone"
    );
    for contestant in &CONTESTANTS {
        match missing(contestant)? {
            Some(program) => println!("  {:<42} {program} is not installed", contestant.name),
            None => {
                measure(&start, alone, contestant).with_context(|| contestant.name.to_owned())?
            }
        }
    }
    Ok(())
}

fn missing(contestant: &Contestant) -> Result<Option<&'static str>> {
    for program in contestant.needs {
        if find(program)?.is_none() {
            return Ok(Some(program));
        }
    }
    Ok(None)
}

fn measure(start: &Start, alone: f64, contestant: &Contestant) -> Result<()> {
    start.work.settle()?;
    let before = start.wan_bytes();
    let last = (contestant.run)(start)?;
    let wan = (start.wan_bytes() - before) as f64 / start.bytes as f64;
    println!(
        "  {:<42} {wan:>10.3} {:>26}",
        contestant.name,
        format!("{:.3} ({last:.2} s)", last / alone)
    );
    Ok(())
}

fn branchline(start: &Start) -> Result<f64> {
    Ok(Scene::set(start, MACHINES)?.play(|_| Ok(()))?.last())
}

fn plain_curl(start: &Start) -> Result<f64> {
    curls(start, &[])
}

/// One curl on each machine.
fn curls(start: &Start, options: &[&str]) -> Result<f64> {
    let begun = Instant::now();
    let begin = |(index, host): (usize, &Host)| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail"]);
        curl.args(options).arg("--output").arg(start.target(index));
        curl.arg(start.url());
        host.spawn(curl)
    };
    let hosts = start.lab.members().iter().enumerate();
    let running = hosts.map(begin).collect::<Result<Vec<_>>>()?;
    for mut curl in running {
        curl.wait(PATIENCE)?.success()?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    for index in 0..MACHINES {
        ensure_same(&start.file, &start.target(index))?;
        remove(&start.target(index))?;
    }
    Ok(seconds)
}

/// A server of its own in the branch, which holds the file in memory.
fn squid(start: &Start) -> Result<f64> {
    let gateway = start.lab.gateway();
    let configuration = gateway.scratch_from_outside().join("squid.conf");
    fs::write(&configuration, squid_configuration(start.bytes))?;
    let mut command = Command::new(find("squid")?.context("no squid")?);
    // In the foreground.
    command
        .arg("-N")
        .arg("-f")
        .arg(gateway.scratch().join("squid.conf"));
    let mut server = gateway.spawn(command)?;
    wait_until_it_listens(gateway, &mut server)?;
    let proxy = format!("http://gateway.test:{SQUID_PORT}");
    let seconds = curls(start, &["--proxy", &proxy])?;
    server.kill()?;
    Ok(seconds)
}

/// Requests for what is being fetched wait for it instead of being passed on.
fn squid_configuration(bytes: u64) -> String {
    let mebibytes = (bytes >> 20) + 1;
    format!(
        "http_port {SQUID_PORT}
         http_access allow all
         collapsed_forwarding on
         cache_mem {} MB
         maximum_object_size {mebibytes} MB
         maximum_object_size_in_memory {mebibytes} MB
         access_log none
         cache_store_log none
         cache_log /dev/null
         pid_filename none
         pinger_enable off
         visible_hostname gateway.test\n",
        4 * mebibytes
    )
}

fn wait_until_it_listens(gateway: &Host, server: &mut Process) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let listens = format!("ss --listening --tcp --numeric --no-header 'sport = {SQUID_PORT}'");
    while gateway.sh(&listens)?.is_empty() {
        let runs = server.is_running() && Instant::now() < deadline;
        ensure!(runs, "squid does not listen: {}", server.stderr());
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Its file gets its name when it is whole.
fn transmission(start: &Start) -> Result<f64> {
    let torrent = torrent(start)?;
    let settings = r#"{"dht-enabled": false, "lpd-enabled": true, "pex-enabled": true, "port-forwarding-enabled": false}"#;
    torrents(start, FILE, |folder| {
        fs::write(folder.join("settings.json"), settings)?;
        let mut command = Command::new("transmission-cli");
        command.args(["--no-portmap", "--config-dir"]).arg(folder);
        command.arg("--download-dir").arg(folder).arg(&torrent);
        // Its "recently added" links go where HOME is.
        command.env("HOME", folder);
        Ok(command)
    })
}

fn aria2(start: &Start) -> Result<f64> {
    let torrent = torrent(start)?;
    torrents(start, "hook.done", |folder| {
        let hook = folder.join("hook");
        fs::write(&hook, "#!/bin/sh\n: > \"$0.done\"\n")?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o700))?;
        let mut command = Command::new("aria2c");
        command.args([
            "--no-conf",
            "--quiet",
            "--enable-dht=false",
            "--enable-dht6=false",
        ]);
        // A ratio of 0 means to seed until it is killed.
        command.args(["--bt-enable-lpd=true", "--seed-ratio=0.0", "--dir"]);
        command
            .arg(folder)
            .arg("--on-bt-download-complete")
            .arg(hook);
        command.arg(&torrent);
        Ok(command)
    })
}

/// It knows no web seeds: the origin runs it, too, and offers the file. Each is told where all others are: by local discovery
/// alone none of sixteen found another before it had the file.
fn rqbit(start: &Start) -> Result<f64> {
    let program = find("rqbit")?.context("no rqbit")?;
    let home = start.work.folder("rqbit-seed")?;
    let origin = start.lab.origin();
    let seeding = rqbit::command(&program, &home, LocalDiscovery::Off)?;
    let (_seed, magnet) = rqbit::share(seeding, origin, &start.file)?;
    let folders = client_folders(start)?;
    let begun = Instant::now();
    let hosts = start.lab.members().iter().zip(&folders);
    let begin = |(host, folder): (&Host, &PathBuf)| {
        let mut command = rqbit::command(&program, folder, LocalDiscovery::On)?;
        command.args(["-v", "info", "--listen-port", &rqbit::PORT.to_string()]);
        let peers = start.lab.members().iter().chain([origin]);
        rqbit::download(&mut command, peers, folder, &magnet);
        host.spawn(command)
    };
    let clients = hosts.map(begin).collect::<Result<Vec<_>>>()?;
    for client in &clients {
        client.wait_for_line(PATIENCE, |line| {
            line.contains("torrent finished downloading")
        })?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    drop(clients);
    remove(&home)?;
    ensure_brought(start, &folders)?;
    Ok(seconds)
}

/// A torrent of the file with the origin as web seed and without a tracker.
fn torrent(start: &Start) -> Result<PathBuf> {
    let path = start.work.path("file.torrent");
    remove(&path)?;
    let mut command = Command::new("mktorrent");
    command.args(["-l", PIECE_POWER, "-w", &start.url(), "-o"]);
    let made = command.arg(&path).arg(&start.file).output()?;
    ensure!(
        made.status.success(),
        "mktorrent: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    Ok(path)
}

/// Starts a client on each machine in a folder of its own, and waits until `done` is in all of these.
fn torrents(start: &Start, done: &str, client: impl Fn(&Path) -> Result<Command>) -> Result<f64> {
    let folders = client_folders(start)?;
    let begun = Instant::now();
    let hosts = start.lab.members().iter().zip(&folders);
    let begin = |(host, folder): (&Host, &PathBuf)| host.spawn(client(folder)?);
    let clients = hosts.map(begin).collect::<Result<Vec<_>>>()?;
    for folder in &folders {
        while !folder.join(done).exists() {
            ensure!(
                begun.elapsed() < PATIENCE,
                "{} is not done",
                folder.display()
            );
            thread::sleep(LOOK_EVERY);
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    drop(clients);
    ensure_brought(start, &folders)?;
    Ok(seconds)
}

fn client_folders(start: &Start) -> Result<Vec<PathBuf>> {
    let folder = |index| start.work.folder(&format!("client-{index}"));
    (0..MACHINES).map(folder).collect()
}

/// Each of the folders has the file; they are removed.
fn ensure_brought(start: &Start, folders: &[PathBuf]) -> Result<()> {
    for folder in folders {
        ensure_same(&start.file, &folder.join(FILE))?;
        remove(folder)?;
    }
    Ok(())
}
