//! The WAN carries a file once, and only what changed of its next version.

use anyhow::{Context, Result};
use branchline_branch_tests::{
    Branch, PATIENCE, Setup, random_bytes, sha256_hex, similar_bytes, until,
};
use serde_json::Value;

use crate::MEBIBYTE;

/// The promise; TCP and IP headers alone are 1.036 of it.
const WAN_RATIO_MAX: f64 = 1.05;

/// The first bytes of a manifest, which each machine asks the origin for: its head, and a short one whole.
const MANIFEST_FIRST_BYTES: u64 = 4096;

#[test]
fn four_machines_one_after_the_other_and_the_wan_carries_the_file_once() -> Result<()> {
    let mut branch = Branch::with_agents(Setup::fast(4))?;
    let file = random_bytes(1, 20 * MEBIBYTE);
    let url = branch.publish("once.bin", &file)?;
    let begin = branch.wan_down();
    for index in 0..4 {
        let machine = branch.machine(index);
        let got = machine.get(&url, &[])?;
        let report = got.done()?;
        machine.ensure_file(&got.target, &file)?;
        println!(
            "machine {}: {:.2} s, origin {}, peers {}, WAN so far {:.4} x",
            index + 1,
            report.seconds,
            report.from_origin,
            report.from_peers,
            (branch.wan_down() - begin) as f64 / file.len() as f64
        );
        assert_eq!(
            (report.url.as_str(), report.trust.as_str()),
            (&*url, "manifest")
        );
        assert_eq!(report.bytes, file.len() as u64);
        assert_eq!(report.content.len(), 64);
        let from_origin = if index == 0 { report.bytes } else { 0 };
        assert_eq!(report.from_origin, from_origin, "machine {}", index + 1);
        assert_eq!(report.from_store, 0);
    }
    let ratio = (branch.wan_down() - begin) as f64 / file.len() as f64;
    println!("WAN: {ratio:.4} x the file for four machines");
    assert!(ratio <= WAN_RATIO_MAX, "{ratio}");
    for index in 1..4 {
        only_the_first_bytes_of_the_manifest(&mut branch, index)?;
    }
    let peers = branch.machine(3).json(&["peers"])?;
    let gave = sources(&peers)?;
    println!("machine 4 took {gave:?} bytes from its peers");
    assert!(gave.len() > 1, "all from one peer: {peers}");
    assert_eq!(gave.iter().sum::<u64>(), file.len() as u64);
    contract(&branch, file.len() as u64)
}

fn only_the_first_bytes_of_the_manifest(branch: &mut Branch, index: usize) -> Result<()> {
    let requests = branch.requests_of(index)?;
    assert!(!requests.is_empty());
    for request in &requests {
        let manifest = request.path.ends_with(".branchline");
        assert!(
            request.method == "HEAD" || (manifest && request.body_bytes <= MANIFEST_FIRST_BYTES),
            "machine {}: {request:?}",
            index + 1
        );
    }
    Ok(())
}

fn sources(peers: &Value) -> Result<Vec<u64>> {
    let peers = peers.as_array().context("no list of peers")?;
    let bytes = peers.iter().map(|peer| peer["from_peer_bytes"].as_u64());
    let bytes = bytes.collect::<Option<Vec<_>>>().context("no bytes")?;
    Ok(bytes.into_iter().filter(|bytes| *bytes > 0).collect())
}

/// The fields that scripts rely on, on the machine that has received and on the one that has given.
fn contract(branch: &Branch, bytes: u64) -> Result<()> {
    let (first, last) = (branch.machine(0), branch.machine(3));
    last.wait_for_cached(1)?;
    let status = last.json(&["status"])?;
    assert!(status["peer_id"].is_string(), "{status}");
    assert_eq!(status["peers"], 3);
    assert_eq!(status["jobs"], Value::Array(Vec::new()));
    assert_eq!(status["bytes"]["from_origin"], 0);
    assert_eq!(status["bytes"]["from_peers"], bytes);
    assert_eq!(status["bytes"]["from_store"], 0);
    assert!(status["store"]["segments"].as_u64() > Some(0), "{status}");
    assert!(status["store"]["bytes"].as_u64() >= Some(bytes), "{status}");
    assert!(status["store"]["limit_bytes"].as_u64() >= Some(bytes));
    let given = first.json(&["status"])?;
    assert_eq!(given["bytes"]["from_origin"], bytes);
    assert!(
        given["bytes"]["to_peers"].as_u64() >= Some(bytes),
        "{given}"
    );
    for peer in last.json(&["peers"])?.as_array().context("no list")? {
        assert!(peer["peer_id"].is_string(), "{peer}");
        assert_eq!(peer["found_by"], "mdns");
        assert!(peer["addresses"][0].is_string(), "{peer}");
    }
    let cache = last.json(&["cache", "list"])?;
    assert_eq!(cache.as_array().map(Vec::len), Some(1));
    assert_eq!(cache[0]["bytes"], bytes);
    assert_eq!(cache[0]["trust"], "manifest");
    assert_eq!(cache[0]["file_name"], "once.bin");
    assert!(cache[0]["content"].is_string() && cache[0]["url"].is_string());
    Ok(())
}

#[test]
fn of_version_2_only_what_changed_is_fetched() -> Result<()> {
    let mut branch = Branch::with_agents(Setup::fast(2))?;
    let first = random_bytes(2, 16 * MEBIBYTE);
    let url = branch.publish("app.bin", &first)?;
    let machine = branch.machine(0);
    machine.get(&url, &[])?.done()?;
    machine.wait_for_cached(1)?;
    let second = similar_bytes(&first, 3);
    assert_eq!(branch.publish("app.bin", &second)?, url);
    let got = machine.get(&url, &[])?;
    machine.ensure_file(&got.target, &second)?;
    let report = got.done()?;
    println!(
        "version 2, 3 changes: {} of {} bytes from the origin",
        report.from_origin, report.bytes
    );
    assert!(report.from_store > 0 && report.from_origin > 0);
    // Each change touches one segment, two where it lies at a boundary.
    assert!(report.from_origin < report.bytes / 10, "{report:?}");
    // Another machine finds both versions at the first one.
    let other = branch.machine(1).get(&url, &[])?;
    branch.machine(1).ensure_file(&other.target, &second)?;
    assert_eq!(other.done()?.from_peers, second.len() as u64);
    only_the_first_bytes_of_the_manifest(&mut branch, 1)
}

#[test]
fn an_agent_that_is_killed_and_started_again_serves_what_it_had() -> Result<()> {
    let mut branch = Branch::with_agents(Setup::fast(2))?;
    let file = random_bytes(3, 8 * MEBIBYTE);
    let url = branch.publish("kept.bin", &file)?;
    let first = branch.machine_mut(0);
    let got = first.get(&url, &[])?;
    got.done()?;
    first.wait_for_cached(1)?;
    first.kill_agent()?;
    std::fs::remove_file(&got.target)?;
    first.start_agent()?;
    branch.machine(1).wait_for_peer(branch.machine(0))?;
    let second = branch.machine(1);
    let got = second.get(&url, &[])?;
    second.ensure_file(&got.target, &file)?;
    assert_eq!(got.done()?.from_peers, file.len() as u64);
    let again = branch.machine(0).get(&url, &[])?;
    assert_eq!(again.done()?.from_store, file.len() as u64);
    println!("sha256 {}", sha256_hex(&file));
    Ok(())
}

/// A steward leases nothing of what somebody says to hold whole.
#[test]
fn what_was_evicted_is_announced_no_longer() -> Result<()> {
    let mut branch = Branch::start(Setup::fast(2))?;
    let holder = branch.machine(0);
    holder.configure("[store]\nlimit = \"64 MiB\"\n")?;
    let mut command = holder.command()?;
    command.arg("agent");
    command.env("BRANCHLINE_LOG", "branchline_agent=debug");
    let agent = holder.host().spawn(command)?;
    agent.wait_for_line(PATIENCE, |line| line == "ready")?;
    let files = [4, 5].map(|seed| random_bytes(seed, 40 * MEBIBYTE));
    for (number, file) in files.iter().enumerate() {
        let url = branch.publish(&format!("{number}.bin"), file)?;
        let got = holder.get(&url, &[])?;
        got.done()?;
        std::fs::remove_file(&got.target)?;
    }
    until("the first file to be withdrawn", || {
        Ok(agent.stderr().contains("withdrawn=1").then_some(()))
    })?;
    branch.machine_mut(1).start_agent()?;
    let late = branch.machine(1);
    late.wait_for_peer(branch.machine(0))?;
    let got = late.get(&branch.url("0.bin"), &[])?;
    let report = got.done()?;
    println!("{} of it were left in the branch", report.from_peers);
    assert!(report.from_origin > 0, "{report:?}");
    late.ensure_file(&got.target, &files[0])
}
