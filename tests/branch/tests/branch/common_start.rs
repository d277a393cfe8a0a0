//! Machines that are told at the same moment to fetch what none of them has.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use branchline_branch_tests::{Branch, Got, PATIENCE, Setup, random_bytes};
use branchline_core::PeerId;
use branchline_core::swarm::first_in_rank;
use branchline_hashing::Manifest;
use branchline_lab::{Process, Signal};

use crate::MEBIBYTE;

const MACHINES: usize = 4;

/// 50 Mbit/s: a file of 8 MiB takes 1.4 s.
const RATE_BYTES_PER_SEC: u64 = 6_250_000;

const FILE: &str = "file.bin";

/// A common start under way.
struct Start {
    branch: Branch,
    file: Vec<u8>,
    gets: Vec<(Process, PathBuf)>,
    wan_before: u64,
}

impl Start {
    /// Tells agents that know one another to fetch a file of so many bytes.
    fn begin(seed: u64, bytes: usize) -> Result<Self> {
        let branch = Branch::with_agents(Setup::slow(MACHINES, RATE_BYTES_PER_SEC))?;
        let file = random_bytes(seed, bytes);
        let url = branch.publish(FILE, &file)?;
        let wan_before = branch.wan_down();
        let begin = |index| -> Result<_> {
            let machine = branch.machine(index);
            let target = machine.target(&url);
            Ok((machine.start_get(&url, &target, &[])?, target))
        };
        let gets = (0..MACHINES).map(begin).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            branch,
            file,
            gets,
            wan_before,
        })
    }

    fn wait_for_half_time(&self) -> Result<()> {
        let half = self.file.len() as u64 / 2;
        self.branch.wait_for_wan(self.wan_before, half)
    }

    /// The machine of the file's steward.
    fn steward(&self) -> Result<usize> {
        let id = |index| -> Result<PeerId> {
            let status = self.branch.machine(index).json(&["status"])?;
            Ok(status["peer_id"].as_str().context("no id")?.parse()?)
        };
        let ids = (0..MACHINES).map(id).collect::<Result<Vec<_>>>()?;
        let manifest = self.branch.www(FILE).with_added_extension("branchline");
        let manifest = Manifest::decode(&std::fs::read(manifest)?)?;
        let swarm = manifest.content_key().swarm_id();
        let first = first_in_rank(&swarm, ids.iter().copied(), 1);
        let steward = ids.iter().position(|id| first.first() == Some(id));
        steward.context("no steward")
    }

    /// Waits for the machine's download; its bytes from the origin.
    fn finish(&mut self, index: usize) -> Result<u64> {
        let (get, target) = &mut self.gets[index];
        let got = Got::of(&get.wait(PATIENCE)?, target.clone())?;
        let report = got.done()?;
        let machine = self.branch.machine(index);
        machine.ensure_file(&got.target, &self.file)?;
        Ok(report.from_origin)
    }

    /// The same for all machines but some; the bytes from the origin / the file.
    fn finish_all_but(&mut self, gone: &[usize]) -> Result<f64> {
        let mut from_origin = 0;
        for index in (0..MACHINES).filter(|index| !gone.contains(index)) {
            from_origin += self.finish(index)?;
        }
        let share = from_origin as f64 / self.file.len() as f64;
        println!(
            "from the origin {share:.3} x, WAN {:.3} x the file",
            self.wan()
        );
        Ok(share)
    }

    /// Bytes that the WAN has carried towards the branch / the file.
    fn wan(&self) -> f64 {
        (self.branch.wan_down() - self.wan_before) as f64 / self.file.len() as f64
    }
}

#[test]
fn four_machines_that_start_together_fetch_a_file_once() -> Result<()> {
    let mut start = Start::begin(70, 4 * MEBIBYTE)?;
    let from_origin = start.finish_all_but(&[])?;
    assert!(from_origin <= 1.1, "{from_origin}");
    Ok(())
}

#[test]
fn a_steward_that_is_killed_in_the_middle_costs_what_it_alone_had() -> Result<()> {
    let mut start = Start::begin(71, 8 * MEBIBYTE)?;
    let steward = start.steward()?;
    start.wait_for_half_time()?;
    start.branch.machine_mut(steward).kill_agent()?;
    start.finish_all_but(&[steward])?;
    let wan = start.wan();
    assert!(wan <= 1.3, "{wan}");
    Ok(())
}

#[test]
fn a_line_that_is_cut_in_the_middle_of_a_common_start_carries_little_twice() -> Result<()> {
    let mut start = Start::begin(72, 8 * MEBIBYTE)?;
    start.wait_for_half_time()?;
    start.branch.wan().cut();
    // The length of the outage is what is tested, not something that is waited for.
    std::thread::sleep(Duration::from_secs(3));
    start.branch.wan().mend();
    start.finish_all_but(&[])?;
    let wan = start.wan();
    assert!(wan <= 1.3, "{wan}");
    Ok(())
}

#[test]
fn when_all_others_hang_in_the_middle_the_file_comes() -> Result<()> {
    let mut start = Start::begin(73, 8 * MEBIBYTE)?;
    start.wait_for_half_time()?;
    for index in 1..MACHINES {
        start
            .branch
            .machine_mut(index)
            .agent()?
            .signal(Signal::STOP)?;
    }
    let from_origin = start.finish(0)?;
    println!(
        "{from_origin} bytes from the origin, WAN {:.3} x the file",
        start.wan()
    );
    ensure!(
        (1..MACHINES).all(|index| start.gets[index].0.is_running()),
        "nobody hung"
    );
    Ok(())
}

#[test]
fn two_downloads_of_one_content_on_one_machine_are_one_transfer() -> Result<()> {
    let branch = Branch::with_agents(Setup::slow(2, RATE_BYTES_PER_SEC))?;
    let file = random_bytes(74, 8 * MEBIBYTE);
    let url = branch.publish(FILE, &file)?;
    let before = branch.wan_down();
    let machine = branch.machine(0);
    let targets = ["first", "second"].map(|name| machine.target(&url).with_file_name(name));
    let begin = |target: &PathBuf| machine.start_get(&url, target, &[]);
    let mut gets = targets.iter().map(begin).collect::<Result<Vec<_>>>()?;
    let mut from_store = 0;
    for (get, target) in gets.iter_mut().zip(&targets) {
        let got = Got::of(&get.wait(PATIENCE)?, target.clone())?;
        machine.ensure_file(target, &file)?;
        from_store += got.done()?.from_store;
    }
    let wan = (branch.wan_down() - before) as f64 / file.len() as f64;
    println!("WAN {wan:.3} x the file, {from_store} bytes from this machine");
    assert!(wan <= 1.1, "{wan}");
    assert_eq!(from_store, file.len() as u64);
    Ok(())
}
