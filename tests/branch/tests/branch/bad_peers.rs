//! Peers that lie, stall or refuse cost time and nothing else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use branchline_branch_tests::{Branch, Got, PATIENCE, Setup, random_bytes, until};
use branchline_lab::Signal;

use crate::{BAD_PEER, MEBIBYTE};

const FILE_BYTES: usize = 8 * MEBIBYTE;

/// 50 Mbit/s: the file takes 1.4 s by itself.
const RATE_BYTES_PER_SEC: u64 = 6_250_000;

/// Only tells "took its time" from "hung": what each costs is printed.
const EXTRA_TIME_MAX: Duration = Duration::from_secs(6);

/// One misbehaving peer that says it holds everything, and the origin.
fn bad_peer_alone(mode: &str, word_in_log: &str) -> Result<()> {
    let mut branch = Branch::start(Setup::slow(2, RATE_BYTES_PER_SEC))?;
    let file = random_bytes(30, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let manifest = branch.www("file.bin.branchline");
    let _bad = branch.bad_peer(0, BAD_PEER, &[mode, &manifest.to_string_lossy()])?;
    branch.machine_mut(1).start_agent()?;
    branch.machine(1).wait_for_peers(1)?;
    let curl = branch.machine(1).curl(&url)?;
    let got = branch.machine(1).get(&url, &[])?;
    branch.machine(1).ensure_file(&got.target, &file)?;
    let report = got.done()?;
    println!(
        "{mode}: {:.2} s, curl {:.2} s, {:.2} x; {} from peers",
        got.elapsed.as_secs_f64(),
        curl.as_secs_f64(),
        got.elapsed.as_secs_f64() / curl.as_secs_f64(),
        report.from_peers
    );
    if mode != "slow" {
        assert_eq!(report.from_peers, 0);
    }
    let stderr = branch.machine_mut(1).agent()?.stderr();
    ensure!(stderr.contains(word_in_log), "not in the log: {stderr}");
    assert!(got.elapsed < curl + EXTRA_TIME_MAX);
    Ok(())
}

#[test]
fn wrong_bytes() -> Result<()> {
    bad_peer_alone("wrong", "a peer sent a wrong segment")
}

#[test]
fn half_segments() -> Result<()> {
    bad_peer_alone("short", "")
}

#[test]
fn says_it_holds_everything_and_gives_nothing() -> Result<()> {
    bad_peer_alone("absent", "")
}

#[test]
fn never_answers_a_request() -> Result<()> {
    bad_peer_alone("hang", "")
}

#[test]
fn never_answers_the_join() -> Result<()> {
    bad_peer_alone("mute", "")
}

#[test]
fn is_busy_forever() -> Result<()> {
    bad_peer_alone("busy", "")
}

#[test]
fn has_rubbish_for_a_manifest() -> Result<()> {
    bad_peer_alone("rubbish", "")
}

#[test]
fn is_slower_than_the_wan() -> Result<()> {
    bad_peer_alone("slow", "")
}

#[test]
fn a_liar_among_honest_peers_is_cut_off_and_the_wan_is_not_needed() -> Result<()> {
    let mut branch = Branch::start(Setup::fast(4))?;
    let file = random_bytes(31, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    for index in 1..4 {
        branch.machine_mut(index).start_agent()?;
    }
    for index in 1..3 {
        branch.machine(index).wait_for_peers(2)?;
        branch.machine(index).get(&url, &[])?.done()?;
    }
    let manifest = branch.www("file.bin.branchline");
    let _bad = branch.bad_peer(0, BAD_PEER, &["wrong", &manifest.to_string_lossy()])?;
    branch.machine(3).wait_for_peers(3)?;
    let got = branch.machine(3).get(&url, &[])?;
    branch.machine(3).ensure_file(&got.target, &file)?;
    let report = got.done()?;
    println!("liar among two honest peers: {report:?}");
    assert_eq!(report.from_peers, report.bytes);
    let peers = branch.machine(3).json(&["peers"])?;
    let gave = |peer: &serde_json::Value| peer["from_peer_bytes"].as_u64() > Some(0);
    let givers = peers
        .as_array()
        .context("no list")?
        .iter()
        .filter(|p| gave(p));
    assert_eq!(givers.count(), 2, "{peers}");
    let stderr = branch.machine_mut(3).agent()?.stderr();
    ensure!(stderr.contains("a peer sent a wrong segment"), "{stderr}");
    Ok(())
}

#[test]
fn honest_peers_that_freeze_or_die_in_the_middle_cost_time_only() -> Result<()> {
    for signal in [Signal::STOP, Signal::KILL] {
        let mut branch = Branch::with_agents(Setup::fast(2))?;
        // Long enough on the LAN to be hit in the middle.
        let file = random_bytes(32, 32 * MEBIBYTE);
        let url = branch.publish("file.bin", &file)?;
        branch.machine(0).get(&url, &[])?.done()?;
        // A slower LAN has a longer middle; kernels without this queue have a short one.
        let slower = "tc qdisc add dev lan0 root tbf rate 400mbit burst 200k latency 50ms || true";
        branch.machine(0).host().sh(slower)?;
        let target = branch.machine(1).target(&url);
        let mut get = branch.machine(1).start_get(&url, &target, &[])?;
        wait_for_bytes_from_peers(&branch, 1, MEBIBYTE as u64)?;
        branch.machine_mut(0).agent()?.signal(signal)?;
        let ended = get.wait(PATIENCE)?;
        let got = Got::of(&ended, target)?;
        branch.machine(1).ensure_file(&got.target, &file)?;
        let report = got.done()?;
        println!("{signal:?} in the middle: {report:?}");
        // Otherwise it was not in the middle, and nothing was tested.
        assert!(report.from_peers > 0 && report.from_origin > 0);
    }
    Ok(())
}

/// Waits until a machine has so many bytes from peers.
fn wait_for_bytes_from_peers(branch: &Branch, index: usize, bytes: u64) -> Result<()> {
    until("bytes from peers", || {
        let status = branch.machine(index).json(&["status"])?;
        let here = status["bytes"]["from_peers"].as_u64();
        Ok((here >= Some(bytes)).then_some(()))
    })
}
