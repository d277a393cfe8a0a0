//! What an agent that has version 1 fetches for version 2, beside what casync would.
//!
//! The agent and nginx are real: its figure is what nginx's log says was sent for version 2, the
//! manifest included.

use anyhow::{Result, ensure};
use branchline_lab::{Lab, LabOptions, Origin, OriginOptions, WanProfile};

use crate::agents;
use crate::casync;
use crate::figures::print_goal;
use crate::packages::{Pair, pairs};
use crate::work::{Work, ensure_same};

/// Room for two versions, both targets, both stores and casync's.
const ROOM_BYTES: u64 = 6 << 30;

/// What one agent fetched.
struct Fetched {
    new_length: u64,
    body_bytes: u64,
    wan_bytes: u64,
    requests: usize,
    from_store: u64,
}

pub(crate) fn run() -> Result<()> {
    println!("\nbytes for the new version");
    let mut ratios = Vec::new();
    for pair in pairs() {
        let work = Work::new(ROOM_BYTES)?;
        let www = work.folder("www")?;
        if let Err(error) = pair.make_tars(&www) {
            println!("  {}: left out: {error:#}", pair.name);
            continue;
        }
        let ours = fetch_both(&work, &www)?;
        let theirs = casync::fetched(
            &www.join("old.tar"),
            &www.join("new.tar"),
            &work.folder("casync")?,
        )?;
        print_pair(&pair, &ours, &theirs);
        ratios.push((pair.name, ours.body_bytes as f64 / theirs.raw_bytes as f64));
    }
    println!();
    for (name, ratio) in ratios {
        print_goal(&name, "<= 1", &format!("{ratio:.3} of casync's raw chunks"));
    }
    Ok(())
}

/// Fetches both versions with one agent; the figures are the second's.
fn fetch_both(work: &Work, www: &std::path::Path) -> Result<Fetched> {
    // The line is fast: bytes are counted, not seconds.
    let lab = Lab::start(LabOptions {
        members: 1,
        wan: WanProfile::symmetric(60_000_000, std::time::Duration::from_millis(1)),
        ..LabOptions::default()
    })?;
    for version in ["old.tar", "new.tar"] {
        agents::publish(&www.join(version))?;
    }
    let mut origin = Origin::start(lab.origin(), &OriginOptions::serving(www))?;
    let mut agent = agents::start(lab.member(0), work, "agent")?;
    let old = work.path("got-old");
    let got = agents::get(&agent, &origin.url("old.tar"), &old)?;
    // Not by the store's size: segments that occur twice are there once.
    agents::wait_until_listed(&mut agent, got.outcome.bytes)?;
    let wan_before = lab.wan().counters().down.bytes;
    let new = work.path("got-new");
    let got = agents::get(&agent, &origin.url("new.tar"), &new)?;
    ensure_same(&www.join("new.tar"), &new)?;
    let requests = origin.requests()?;
    let for_new: Vec<_> = requests
        .iter()
        .filter(|request| request.path.starts_with("/new.tar"))
        .collect();
    ensure!(!for_new.is_empty(), "nobody asked for the new version");
    let fetched = Fetched {
        new_length: got.outcome.bytes,
        body_bytes: for_new.iter().map(|request| request.body_bytes).sum(),
        wan_bytes: lab.wan().counters().down.bytes - wan_before,
        requests: for_new.len(),
        from_store: got.outcome.from_store,
    };
    agents::end(agent)?;
    Ok(fetched)
}

fn print_pair(pair: &Pair, ours: &Fetched, theirs: &casync::Fetched) {
    println!("\n  {}, {} bytes", pair.name, ours.new_length);
    println!(
        "    branchline {:>12}   in {} requests, manifest included; {} on the WAN with headers; {} from the store",
        ours.body_bytes, ours.requests, ours.wan_bytes, ours.from_store
    );
    println!(
        "    casync     {:>12}   raw chunks and index; {} compressed",
        theirs.raw_bytes, theirs.compressed_bytes
    );
}
