//! The lab does what it says. These tests fail, and do not skip, where a lab cannot be made.

mod hosts;
mod leftovers;
mod origin;
mod wan;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use branchline_lab::{Host, Lab, LabOptions, WanProfile};
use std::time::Duration;

/// A lab of so many members, otherwise as by default.
fn lab_of(members: usize) -> Result<Lab> {
    Lab::start(LabOptions {
        members,
        ..LabOptions::default()
    })
}

fn lab_with_wan(members: usize, wan: WanProfile) -> Result<Lab> {
    Lab::start(LabOptions {
        members,
        wan,
        ..LabOptions::default()
    })
}

/// Bytes that no layer could compress or confuse with each other.
fn write_file(path: &Path, bytes: usize) -> Result<Vec<u8>> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(bytes)
    .collect();
    fs::write(path, &content)?;
    Ok(content)
}

/// `curl` on `host` with this format for `--write-out`; gives what it wrote out.
fn curl(host: &Host, args: &[&str], format: &str, target: &Path) -> Result<String> {
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "60",
        "--write-out",
        format,
    ]);
    curl.arg("--output").arg(target).args(args);
    Ok(host.run(curl, Duration::from_secs(90))?.success()?.text())
}
