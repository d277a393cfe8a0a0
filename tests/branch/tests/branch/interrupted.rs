//! Whatever is killed at whatever moment, the same command goes on where it stopped.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use branchline_branch_tests::{
    Branch, Got, Machine, PATIENCE, Random, Setup, random_bytes, sha256_hex,
};
use branchline_lab::{Process, Signal};

use crate::MEBIBYTE;

/// At this rate a file takes two and a half seconds.
const RATE_BYTES_PER_SEC: u64 = 10_000_000;

const FILE_BYTES: usize = 24 * MEBIBYTE;

const KILLS: u64 = 3;

/// What one kill may lose: what is on the line (20 ms of queue and 15 ms of delay until the origin
/// hears of it: 350 KB), and of a segment on each of four connections what has come. Measured 130 to
/// 660 KB; without going on it would be some 3 MB.
const LOST_BYTES_MAX: u64 = 1_000_000;

/// By a digest alone, besides: what came since the last note, of which there is one each 50 ms.
const LOST_BY_NOTES_BYTES_MAX: u64 = RATE_BYTES_PER_SEC / 20;

/// TCP and IP headers.
const HEADERS: f64 = 1.045;

/// A download that is killed now and then.
struct Trial<'a> {
    branch: &'a mut Branch,
    url: String,
    args: Vec<String>,
    lost_bytes_max: u64,
    file: Vec<u8>,
    /// The target has this old content, or none, until the new one is complete.
    old: Option<Vec<u8>>,
}

fn random() -> Result<Random> {
    let seed = match std::env::var("BRANCHLINE_TEST_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => u64::from(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos()),
    };
    println!("BRANCHLINE_TEST_SEED={seed}");
    Ok(Random::new(seed))
}

impl Trial<'_> {
    /// Starts the download again and again; `kill` is called `KILLS` times at random moments.
    fn run(
        &mut self,
        mut kill: impl FnMut(&mut Machine, &mut Process) -> Result<()>,
    ) -> Result<Got> {
        let mut random = random()?;
        let target = self.branch.machine(0).target(&self.url);
        if let Some(old) = &self.old {
            fs::write(&target, old)?;
        }
        let args: Vec<_> = self.args.iter().map(String::as_str).collect();
        let begin = self.branch.wan_down();
        for _ in 0..KILLS {
            let moment = random.in_range(50_000..FILE_BYTES as u64 / (KILLS + 1));
            let mut get = self
                .branch
                .machine(0)
                .start_get(&self.url, &target, &args)?;
            let reached =
                self.branch
                    .wait_for_wan_or_end(self.branch.wan_down(), moment, &mut get)?;
            ensure!(reached, "ended by itself: {}", get.stderr());
            kill(self.branch.machine_mut(0), &mut get)?;
            self.ensure_untouched(&target)?;
        }
        let got = self.branch.machine(0).get(&self.url, &args)?;
        self.branch
            .machine(0)
            .ensure_file(&got.target, &self.file)?;
        let report = got.done()?;
        let wan = (self.branch.wan_down() - begin) as f64;
        let lost = (wan - FILE_BYTES as f64 * HEADERS).max(0.0) / KILLS as f64;
        println!(
            "{KILLS} kills: WAN {:.3} x the file, {lost:.0} bytes lost with each; the last run \
             found {} and fetched {}",
            wan / FILE_BYTES as f64,
            report.from_store,
            report.from_origin
        );
        // A job knows where the bytes came from that an earlier attempt left.
        let kept = report.from_store > 0 || report.job.is_some();
        assert!(kept, "nothing was kept");
        assert!(lost < self.lost_bytes_max as f64, "{lost}");
        ensure_no_partial_file(&got.target)?;
        Ok(got)
    }

    fn ensure_untouched(&self, target: &Path) -> Result<()> {
        match &self.old {
            None => ensure!(!target.exists(), "a file under the target's name"),
            Some(old) => ensure!(fs::read(target)? == *old, "the old file was touched"),
        }
        Ok(())
    }
}

/// A complete file leaves nothing beside it.
fn ensure_no_partial_file(target: &Path) -> Result<()> {
    let folder = target.parent().context("no folder")?;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        ensure!(!name.ends_with(".branchline-part"), "{name} was left");
    }
    Ok(())
}

/// What is known of the file.
#[derive(Clone, Copy)]
enum Known {
    Manifest,
    Digest,
    Nothing,
}

fn trial(branch: &mut Branch, known: Known, old: Option<Vec<u8>>) -> Result<Trial<'_>> {
    let file = random_bytes(10, FILE_BYTES);
    let url = match known {
        Known::Manifest => branch.publish("file.bin", &file)?,
        Known::Digest | Known::Nothing => branch.place("file.bin", &file)?,
    };
    let args = match known {
        Known::Digest => vec!["--sha256".to_owned(), sha256_hex(&file)],
        Known::Manifest | Known::Nothing => Vec::new(),
    };
    let lost_bytes_max = match known {
        Known::Digest => LOST_BYTES_MAX + LOST_BY_NOTES_BYTES_MAX,
        Known::Manifest | Known::Nothing => LOST_BYTES_MAX,
    };
    Ok(Trial {
        branch,
        url,
        args,
        lost_bytes_max,
        file,
        old,
    })
}

fn kill_the_command(_: &mut Machine, get: &mut Process) -> Result<()> {
    get.kill().map(drop)
}

#[test]
fn a_command_without_an_agent_that_is_killed_goes_on() -> Result<()> {
    let mut branch = Branch::start(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    let old = Some(b"the old one".to_vec());
    let got = trial(&mut branch, Known::Manifest, old)?.run(kill_the_command)?;
    assert_eq!(got.done()?.trust, "manifest");
    Ok(())
}

#[test]
fn the_same_without_a_manifest_goes_on_by_the_strong_etag() -> Result<()> {
    let mut branch = Branch::start(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    branch.machine(0).configure("discovery.enabled = false")?;
    let got = trial(&mut branch, Known::Nothing, None)?.run(kill_the_command)?;
    assert_eq!(got.done()?.trust, "origin");
    let ranged = branch.requests_of(0)?;
    let ranged = ranged.iter().filter(|request| !request.if_range.is_empty());
    assert!(ranged.count() > 0, "no range request named the version");
    Ok(())
}

#[test]
fn an_agent_that_is_killed_goes_on_with_the_same_command() -> Result<()> {
    for known in [Known::Manifest, Known::Digest, Known::Nothing] {
        let mut branch = Branch::with_agents(Setup::slow(1, RATE_BYTES_PER_SEC))?;
        trial(&mut branch, known, None)?.run(|machine, get| {
            machine.kill_agent()?;
            let ended = get.wait(PATIENCE)?;
            let code = ended.status.code();
            ensure!(code == Some(7), "{code:?}: {}", ended.error_text());
            ensure!(
                ended.error_text().lines().count() == 1,
                "{}",
                ended.error_text()
            );
            machine.start_agent()
        })?;
    }
    Ok(())
}

#[test]
fn an_agent_that_is_stopped_goes_on_with_the_same_command() -> Result<()> {
    let mut branch = Branch::with_agents(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    trial(&mut branch, Known::Manifest, None)?.run(|machine, get| {
        machine.stop_agent()?;
        let ended = get.wait(PATIENCE)?;
        ensure!(!ended.status.success());
        machine.start_agent()
    })?;
    Ok(())
}

#[test]
fn ctrl_c_ends_with_130_and_says_what_goes_on() -> Result<()> {
    for with_agent in [false, true] {
        let setup = Setup::slow(1, RATE_BYTES_PER_SEC);
        let (mut branch, said) = match with_agent {
            true => (Branch::with_agents(setup)?, "job 1 goes on"),
            false => (Branch::start(setup)?, "partial file stays"),
        };
        trial(&mut branch, Known::Manifest, None)?.run(|machine, get| {
            get.signal(Signal::INT)?;
            let ended = get.wait(PATIENCE)?;
            let got = Got::of(&ended, machine.home().join("file.bin"))?;
            let line = got.failed(130)?;
            ensure!(line.contains(said), "{line}");
            Ok(())
        })?;
    }
    Ok(())
}
