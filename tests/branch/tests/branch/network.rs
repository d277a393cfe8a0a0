//! Networks without multicast, without peers, and lines that break.

use std::time::{Duration, Instant};

use anyhow::Result;
use branchline_branch_tests::{Branch, Got, PATIENCE, Setup, random_bytes};

use crate::MEBIBYTE;

const FILE_BYTES: usize = 8 * MEBIBYTE;

#[test]
fn without_multicast_a_list_of_peers_is_enough() -> Result<()> {
    let mut branch = Branch::start(Setup::fast(3))?;
    let file = random_bytes(40, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let first = branch.machine(0).host().address();
    branch
        .machine(0)
        .configure("[discovery]\nmdns = false\nport = 4001\n")?;
    let named = format!("[discovery]\nmdns = false\nstatic_peers = [\"{first}:4001\"]\n");
    branch.machine(1).configure(&named)?;
    // The third knows nobody, and nobody knows it.
    branch.machine(2).configure("discovery.mdns = false")?;
    for index in 0..3 {
        branch.machine_mut(index).start_agent()?;
    }
    branch.machine(1).wait_for_peers(1)?;
    branch.machine(0).wait_for_peers(1)?;
    branch.machine(0).get(&url, &[])?.done()?;
    let second = branch.machine(1).get(&url, &[])?;
    assert_eq!(second.done()?.from_peers, file.len() as u64);
    let peers = branch.machine(1).json(&["peers"])?;
    assert_eq!(peers[0]["found_by"], "static");
    let peers = branch.machine(0).json(&["peers"])?;
    assert_eq!(peers[0]["found_by"], "inbound");
    let third = branch.machine(2).get(&url, &[])?;
    assert_eq!(third.done()?.from_origin, file.len() as u64);
    Ok(())
}

#[test]
fn with_discovery_off_everything_comes_from_the_origin() -> Result<()> {
    let mut branch = Branch::start(Setup::fast(2))?;
    let file = random_bytes(41, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    branch.machine(1).configure("discovery.enabled = false")?;
    for index in 0..2 {
        branch.machine_mut(index).start_agent()?;
        let got = branch.machine(index).get(&url, &[])?;
        branch.machine(index).ensure_file(&got.target, &file)?;
        assert_eq!(got.done()?.from_origin, file.len() as u64);
    }
    let nobody = serde_json::json!([]);
    assert_eq!(branch.machine(1).json(&["peers"])?, nobody);
    assert_eq!(branch.machine(0).json(&["peers"])?, nobody);
    let status = branch.machine(1).json(&["status"])?;
    assert_eq!(
        (&status["discovery"]["enabled"], &status["exchange_port"]),
        (&false.into(), &0.into())
    );
    Ok(())
}

#[test]
fn a_line_that_is_cut_for_three_seconds_holds_a_download_up_and_no_more() -> Result<()> {
    let branch = Branch::start(Setup::slow(2, 12_000_000))?;
    let file = random_bytes(42, 16 * MEBIBYTE);
    let urls = [
        branch.publish("published.bin", &file)?,
        branch.place("plain.bin", &file)?,
    ];
    let begin = branch.wan_down();
    let mut gets = Vec::new();
    for (index, url) in urls.iter().enumerate() {
        let target = branch.machine(index).target(url);
        gets.push((branch.machine(index).start_get(url, &target, &[])?, target));
    }
    branch.wait_for_wan(begin, file.len() as u64)?;
    branch.wan().cut();
    // The length of the outage is what is tested, not something that is waited for.
    std::thread::sleep(Duration::from_secs(3));
    branch.wan().mend();
    let mended = Instant::now();
    for (mut get, target) in gets {
        let got = Got::of(&get.wait(PATIENCE)?, target)?;
        got.done()?;
        branch.machine(0).ensure_file(&got.target, &file)?;
        println!(
            "{}: {:?}, done {:?} after the line was mended",
            got.target.display(),
            got.elapsed,
            mended.elapsed()
        );
    }
    let wan = (branch.wan_down() - begin) as f64 / (2 * file.len()) as f64;
    println!("WAN {wan:.3} x the two files");
    assert!(wan < 1.1, "{wan}");
    Ok(())
}

#[test]
fn an_origin_that_cannot_be_reached_is_a_network_failure() -> Result<()> {
    let mut branch = Branch::start(Setup::fast(3))?;
    for index in 0..3 {
        branch
            .machine(index)
            .configure("discovery.enabled = false\norigin.connect_timeout = \"500ms\"")?;
    }
    let (file, url) = (random_bytes(43, FILE_BYTES), branch.url("file.bin"));
    branch.wan().cut();
    let unreachable = [
        url.clone(),
        url.replace("origin.test", "machine-1.test:81"),
        url.replace("origin.test", "nobody.test"),
    ];
    let mut gets = Vec::new();
    for (index, url) in unreachable.iter().enumerate() {
        let target = branch.machine(index).target(url);
        gets.push((branch.machine(index).start_get(url, &target, &[])?, target));
    }
    for (mut get, target) in gets {
        let got = Got::of(&get.wait(PATIENCE)?, target)?;
        println!("{:?}: {}", got.elapsed, got.failed(4)?);
    }
    branch.wan().mend();
    branch.publish("file.bin", &file)?;
    branch.machine_mut(0).start_agent()?;
    let got = branch.machine(0).get(&url, &[])?;
    branch.machine(0).ensure_file(&got.target, &file)
}
