//! The manifest of 2 GiB, beside what its dearest step alone costs and beside casync.
//!
//! The file is in the page cache for all: what is compared is computation.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use branchline_lab::{Host, Lab, LabOptions, branchline_binary};

use crate::Extent;
use crate::figures::{gigabytes, mebibytes, median, median_ratio, print_goal, spread};
use crate::threads::Cpu;
use crate::work::{Work, generate, remove};

/// The longest one run may take.
const PATIENCE: Duration = Duration::from_secs(600);

struct Row {
    name: &'static str,
    seconds: Vec<f64>,
    cpu: Vec<Cpu>,
    peak_bytes: Vec<f64>,
}

pub(crate) fn run(extent: Extent) -> Result<()> {
    let bytes = extent.bytes(2048);
    let work = Work::new(2 * bytes)?;
    let file = work.path("file");
    generate(&file, bytes, "publish")?;
    // A lab of one machine, for its exact account of what a process used.
    let lab = Lab::start(LabOptions {
        members: 1,
        ..LabOptions::default()
    })?;
    let mut publish = Command::new(branchline_binary()?);
    publish.arg("publish").arg(&file);
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256"]).arg(&file);
    let mut casync = Command::new("casync");
    casync.arg("digest").arg(&file);
    let mut contestants = [
        (row("branchline publish"), publish),
        (row("openssl dgst -sha256"), openssl),
        (row("casync digest"), casync),
    ];
    for _ in 0..extent.rounds {
        for (row, command) in &mut contestants {
            // Without its manifest the file is read anew.
            remove(&work.path("file.branchline"))?;
            extent.wait_for_quiet()?;
            run_once(lab.member(0), command, row)?;
        }
    }
    print_rows(bytes, &contestants.map(|(row, _)| row));
    Ok(())
}

fn row(name: &'static str) -> Row {
    Row {
        name,
        seconds: Vec::new(),
        cpu: Vec::new(),
        peak_bytes: Vec::new(),
    }
}

fn run_once(host: &Host, command: &Command, row: &mut Row) -> Result<()> {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    let finished = host
        .run(again, PATIENCE)
        .with_context(|| format!("cannot run {} (Debian: casync, openssl)", row.name))?
        .success()?;
    row.seconds.push(finished.elapsed.as_secs_f64());
    row.cpu.push(finished.measured.into());
    row.peak_bytes
        .push(finished.measured.peak_resident_bytes as f64);
    Ok(())
}

fn print_rows(bytes: u64, rows: &[Row; 3]) {
    let gigabytes = gigabytes(bytes);
    println!(
        "\n{:.0} MiB in the page cache; CPU in seconds per GB; medians of {}",
        mebibytes(bytes),
        rows[0].seconds.len()
    );
    println!(
        "  {:<22} {:>7} {:>11} {:>6} {:>19} {:>9}",
        "", "seconds", "from-to", "GB/s", "CPU, user + system", "peak MiB"
    );
    for row in rows {
        let seconds = median(row.seconds.iter().copied());
        let user = median(row.cpu.iter().map(|cpu| cpu.user_seconds)) / gigabytes;
        let system = median(row.cpu.iter().map(|cpu| cpu.system_seconds)) / gigabytes;
        println!(
            "  {:<22} {seconds:>7.2} {:>11} {:>6.2} {:>19} {:>9.0}",
            row.name,
            spread(&row.seconds),
            gigabytes / seconds,
            format!("{user:.2} + {system:.2}"),
            median(row.peak_bytes.iter().copied()) / f64::from(1 << 20),
        );
    }
    println!();
    let [ours, openssl, casync] = rows;
    let speed = |other: &Row| format!("{:.2}", median_ratio(&other.seconds, &ours.seconds));
    print_goal(
        "speed against openssl dgst -sha256",
        ">= 0.9",
        &speed(openssl),
    );
    print_goal("speed against casync digest", ">= 2", &speed(casync));
}
