//! `branchline-demo`: a branch office on one screen.
//!
//! An origin (nginx) behind a WAN of 20 Mbit/s and 40 ms, four machines with an agent each on one
//! LAN, one real file. The machines fetch it one after the other; the table says where each one's
//! bytes came from and what the WAN carried, counted at the link. It ends with 1 when a file is
//! wrong or the WAN carried more than 1.05 times the file to the branch.
//!
//! `branchline-demo [FILE]`: without FILE a Debian package of 50 MB or more is downloaded by apt
//! into the cache folder (`$BRANCHLINE_DEMO_CACHE`, else `~/.cache/branchline/demo`), and where
//! there is no apt, a file is generated there.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use branchline_lab::{
    Agent, Host, Lab, LabOptions, Origin, OriginOptions, WanCounters, branchline_binary,
};
use serde::Deserialize;

/// Below this a demo over 20 Mbit/s would be over too soon to show anything.
const FILE_BYTES_MIN: u64 = 50_000_000;

/// More than this would take minutes.
const FILE_BYTES_MAX: u64 = 150_000_000;

/// Packages that Debian has had for many releases, tried in order after the kernel.
const PACKAGES: [&str; 4] = ["firefox-esr", "chromium", "thunderbird", "libreoffice-core"];

const MACHINES: usize = 4;

/// The promise: TCP/IP headers alone are 1.036.
const WAN_RATIO_MAX: f64 = 1.05;

/// Several times what the file takes over the WAN.
const GET_PATIENCE: Duration = Duration::from_secs(600);

/// How long an agent may take for its orderly end.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match demonstrate() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("branchline-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The last line of `get --json`, as far as the demo needs it.
#[derive(Deserialize)]
struct Outcome {
    bytes: u64,
    from_origin: u64,
    from_peers: u64,
    from_store: u64,
    seconds: f64,
    trust: String,
}

fn demonstrate() -> Result<bool> {
    let cache = cache_folder()?;
    let file = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => demo_file(&cache)?,
    };
    let work = tempfile::Builder::new().prefix("run-").tempdir_in(&cache)?;
    let published = publish(&file, work.path())?;
    let size = fs::metadata(&published)?.len();
    let digest = sha256(&published)?;
    let lab = Lab::start(LabOptions {
        members: MACHINES,
        ..LabOptions::default()
    })?;
    let origin = Origin::start(
        lab.origin(),
        &OriginOptions::serving(work.path().join("www")),
    )?;
    let name = published
        .file_name()
        .context("no file name")?
        .to_string_lossy()
        .into_owned();
    let url = origin.url(&name);
    print_headline(&name, size, &url);
    let agents = start_agents(&lab, work.path())?;
    let mut right = true;
    for (index, agent) in agents.iter().enumerate() {
        let target = work
            .path()
            .join(format!("machine-{}", index + 1))
            .join(&name);
        right &= fetch(&lab, agent, &url, &target, &digest)?;
    }
    right &= print_total(lab.wan().counters(), size);
    for mut agent in agents {
        agent.process().terminate(STOP_PATIENCE)?;
    }
    Ok(right)
}

fn print_headline(name: &str, size: u64, url: &str) {
    println!("file    {name}, {:.1} MB", megabytes(size));
    println!("origin  {url} (nginx)");
    println!("WAN     20 Mbit/s, 40 ms round trip; {MACHINES} machines on one LAN\n");
    println!(
        "{:<10} {:>11} {:>11} {:>11} {:>9} {:>9} {:>11}  {:<9} sha256",
        "machine",
        "from origin",
        "from peers",
        "from store",
        "seconds",
        "MB/s",
        "on the WAN",
        "trust"
    );
}

fn start_agents(lab: &Lab, work: &Path) -> Result<Vec<Agent>> {
    // The defaults: discovery on the LAN is on.
    let start = |host: &Host| {
        let state = work.join(host.name()).join("state");
        Agent::start(host, "", &state)
    };
    lab.members().iter().map(start).collect()
}

/// One machine fetches the file and a row is printed; true when the file is right.
fn fetch(lab: &Lab, agent: &Agent, url: &str, target: &Path, digest: &str) -> Result<bool> {
    let before = lab.wan().counters().down.bytes;
    let begun = Instant::now();
    let mut get = agent.command()?;
    get.args(["get", url, "--json", "-o"]).arg(target);
    let finished = agent.host().run(get, GET_PATIENCE)?.success()?;
    let elapsed = begun.elapsed().as_secs_f64();
    let on_wan = lab.wan().counters().down.bytes - before;
    let outcome = outcome(&finished.text())?;
    let intact = sha256(target)? == digest;
    println!(
        "{:<10} {:>8.1} MB {:>8.1} MB {:>8.1} MB {:>7.2} s {:>9.1} {:>8.2} MB  {:<9} {}",
        agent.host().name(),
        megabytes(outcome.from_origin),
        megabytes(outcome.from_peers),
        megabytes(outcome.from_store),
        outcome.seconds,
        megabytes(outcome.bytes) / elapsed.max(0.001),
        megabytes(on_wan),
        outcome.trust,
        if intact { "right" } else { "WRONG" },
    );
    ensure!(
        outcome.from_origin + outcome.from_peers + outcome.from_store == outcome.bytes,
        "the bytes by source do not add up on {}",
        agent.host().name()
    );
    Ok(intact)
}

fn outcome(stdout: &str) -> Result<Outcome> {
    let last = stdout.lines().rfind(|line| !line.trim().is_empty());
    let last = last.context("`get --json` printed nothing")?;
    serde_json::from_str(last).with_context(|| format!("`get --json` ended with: {last}"))
}

/// True when the WAN carried the file once, in the direction it travels: acknowledgements go the other
/// way, 0.02 times the file, and are shown beside it.
fn print_total(counters: WanCounters, size: u64) -> bool {
    let ratio = counters.down.bytes as f64 / size as f64;
    let kept = ratio <= WAN_RATIO_MAX;
    println!(
        "\nWAN     {:.2} MB to the branch, {ratio:.3} x the file for {MACHINES} machines \
         ({} {WAN_RATIO_MAX}); {:.2} MB of requests and acknowledgements back",
        megabytes(counters.down.bytes),
        if kept { "within" } else { "MORE THAN" },
        megabytes(counters.up.bytes),
    );
    kept
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Puts the file into a folder of its own and writes its manifest beside it.
fn publish(file: &Path, work: &Path) -> Result<PathBuf> {
    let name = file
        .file_name()
        .with_context(|| format!("{} is no file", file.display()))?;
    let www = work.join("www");
    fs::create_dir(&www)?;
    let published = www.join(name);
    if fs::hard_link(file, &published).is_err() {
        fs::copy(file, &published).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    let done = Command::new(branchline_binary()?)
        .arg("publish")
        .arg(&published)
        .status()?;
    ensure!(done.success(), "`branchline publish` ended with {done}");
    Ok(published)
}

fn sha256(path: &Path) -> Result<String> {
    let output = Command::new("sha256sum")
        .arg(path)
        .output()
        .context("cannot run sha256sum")?;
    ensure!(
        output.status.success(),
        "sha256sum cannot read {}",
        path.display()
    );
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .split_ascii_whitespace()
        .next()
        .context("sha256sum was silent")?
        .to_owned())
}

fn cache_folder() -> Result<PathBuf> {
    let set = std::env::var_os("BRANCHLINE_DEMO_CACHE").map(PathBuf::from);
    let home =
        || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/branchline/demo"));
    let folder = set
        .or_else(home)
        .context("set BRANCHLINE_DEMO_CACHE: there is no HOME")?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.canonicalize()?)
}

/// A real file: one that an earlier run left, else a package, else generated bytes.
fn demo_file(cache: &Path) -> Result<PathBuf> {
    if let Some(found) = cached(cache, "deb")? {
        return Ok(found);
    }
    for package in kernel_package()
        .into_iter()
        .chain(PACKAGES.map(str::to_owned))
    {
        if package_size(&package).is_some_and(is_demo_size) && download(&package, cache) {
            return cached(cache, "deb")?.context("apt-get download left no package");
        }
    }
    eprintln!("no package could be downloaded, generating a file");
    match cached(cache, "bin")? {
        Some(found) => Ok(found),
        None => generate(&cache.join("generated.bin")),
    }
}

fn is_demo_size(bytes: u64) -> bool {
    (FILE_BYTES_MIN..=FILE_BYTES_MAX).contains(&bytes)
}

fn cached(cache: &Path, extension: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let path = entry.path();
        let fits = path.extension().is_some_and(|found| found == extension);
        if fits && is_demo_size(entry.metadata()?.len()) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The kernel's package has its version in its name; `linux-image-amd64` depends on it.
fn kernel_package() -> Option<String> {
    let architecture = run_text("dpkg", &["--print-architecture"])?;
    let meta = format!("linux-image-{}", architecture.trim());
    let depends = run_text("apt-cache", &["depends", "--important", &meta])?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))?;
    Some(package.to_owned())
}

fn package_size(package: &str) -> Option<u64> {
    let shown = run_text("apt-cache", &["show", "--no-all-versions", package])?;
    shown
        .lines()
        .find_map(|line| line.strip_prefix("Size: "))?
        .trim()
        .parse()
        .ok()
}

fn run_text(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn download(package: &str, cache: &Path) -> bool {
    eprintln!(
        "downloading the Debian package {package} into {}",
        cache.display()
    );
    let mut apt = Command::new("apt-get");
    // As root apt would drop to a user that may not write here, and say so at length.
    apt.args([
        "--quiet",
        "-o",
        "APT::Sandbox::User=root",
        "download",
        package,
    ]);
    apt.current_dir(cache)
        .status()
        .is_ok_and(|status| status.success())
}

/// Bytes that do not compress and do not repeat (xorshift64).
fn generate(path: &Path) -> Result<PathBuf> {
    let partial = path.with_extension("partial");
    let mut out = BufWriter::new(File::create(&partial)?);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..64_000_000 / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.write_all(&state.to_le_bytes())?;
    }
    out.into_inner()
        .context("cannot write the generated file")?
        .sync_all()?;
    fs::rename(&partial, path)?;
    Ok(path.to_owned())
}
