//! Four machines one after the other over a thin WAN.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use branchline_lab::{Agent, Lab, LabOptions, Origin, OriginOptions, WanProfile};

use crate::Extent;
use crate::agents;
use crate::figures::{mebibytes, median, print_goal};
use crate::work::{Work, ensure_same, generate, remove};

const MACHINES: usize = 4;

/// The file's name at the origin.
const FILE: &str = "file";

/// The longest curl may take on the LAN.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(extent: Extent) -> Result<()> {
    let bytes = extent.bytes(128);
    let lab = Lab::start(LabOptions {
        members: MACHINES,
        wan: WanProfile::branch_20mbit_40ms_rtt(),
        ..LabOptions::default()
    })?;
    let work = Work::new(12 * bytes)?;
    let www = work.folder("www")?;
    let file = www.join(FILE);
    generate(&file, bytes, "branch")?;
    agents::publish(&file)?;
    let origin = Origin::start(lab.origin(), &OriginOptions::serving(&www))?;
    let mut agents = start_all(&lab, &work)?;
    work.settle()?;
    println!(
        "\n{:.0} MiB\n  {:<10} {:>8} {:>12} {:>12} {:>12}",
        mebibytes(bytes),
        "machine",
        "seconds",
        "from origin",
        "from peers",
        "on the WAN"
    );
    let mut seconds = Vec::new();
    for agent in &mut agents {
        let before = lab.wan().counters().down.bytes;
        let target = work.path(&format!("target-{}", agent.host().name()));
        let got = agents::get(agent, &origin.url(FILE), &target)?;
        let wan = lab.wan().counters().down.bytes - before;
        println!(
            "  {:<10} {:>8.2} {:>12} {:>12} {:>12}",
            agent.host().name(),
            got.seconds,
            got.outcome.from_origin,
            got.outcome.from_peers,
            wan
        );
        ensure_same(&file, &target)?;
        seconds.push(got.seconds);
        // What goes on in the background is not the next machine's.
        agents::wait_until_stored(agent, bytes)?;
        work.settle()?;
    }
    let wan = lab.wan().counters().down.bytes;
    let lan = curl_on_lan(&lab, &work, &www, extent)?;
    print_figures(bytes, wan, &seconds, lan);
    agents.into_iter().try_for_each(agents::end)
}

fn start_all(lab: &Lab, work: &Work) -> Result<Vec<Agent>> {
    let start = |host| agents::start(host, work, host.name());
    let mut all = lab
        .members()
        .iter()
        .map(start)
        .collect::<Result<Vec<_>>>()?;
    for agent in &mut all {
        agents::wait_for_peers(agent, MACHINES - 1)?;
    }
    Ok(all)
}

/// The same file from an nginx on the LAN over TLS 1.3, synced as a download is: the LAN's time.
fn curl_on_lan(lab: &Lab, work: &Work, www: &std::path::Path, extent: Extent) -> Result<f64> {
    let nginx = Origin::start(lab.member(0), &OriginOptions::serving(www))?;
    let target = work.path("target-curl");
    let mut times = Vec::new();
    for _ in 0..extent.rounds {
        let mut curl = Command::new("/bin/sh");
        curl.args(["-euc", r#"curl "$@"; sync "$TARGET""#, "sh"]);
        curl.args(["--silent", "--show-error", "--fail", "--http1.1"]);
        curl.arg("--cacert").arg(nginx.ca_certificate());
        curl.arg("--output").arg(&target).arg(nginx.https_url(FILE));
        curl.env("TARGET", &target);
        work.settle()?;
        let begun = Instant::now();
        lab.member(1).run(curl, PATIENCE)?.success()?;
        times.push(begun.elapsed().as_secs_f64());
        remove(&target)?;
    }
    ensure!(!times.is_empty(), "no rounds");
    Ok(median(times))
}

fn print_figures(bytes: u64, wan_bytes: u64, seconds: &[f64], lan_seconds: f64) {
    let second = seconds[1];
    println!();
    print_goal(
        "WAN bytes towards the branch / file, for all four",
        "<= 1.05",
        &format!("{:.3}", wan_bytes as f64 / bytes as f64),
    );
    print_goal(
        "the second's time / the first's, which is the WAN's",
        "small",
        &format!("{:.3}", second / seconds[0]),
    );
    print_goal(
        "the second's time / curl + sync from a machine of the LAN",
        "about 1",
        &format!(
            "{:.2} ({second:.2} s / {lan_seconds:.2} s)",
            second / lan_seconds
        ),
    );
}
