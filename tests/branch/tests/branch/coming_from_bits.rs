//! The commands of docs/coming-from-bits.md work as they stand there.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use branchline_branch_tests::{Branch, Machine, PATIENCE, Setup, random_bytes};
use serde_json::Value;

use crate::MEBIBYTE;

const DOCUMENT: &str = include_str!("../../../../docs/coming-from-bits.md");

/// What the document calls an origin.
const ORIGIN: &str = "https://files.example/";

/// The commands of the right column of a row.
fn commands(row: &str) -> Vec<String> {
    // A pipe in a cell is written with a backslash.
    let row = row.replace("\\|", "\u{0}");
    let cells: Vec<&str> = row.split('|').collect();
    let code = cells
        .get(2)
        .map_or("", |cell| cell)
        .split('`')
        .skip(1)
        .step_by(2);
    let commands = code.filter(|code| code.contains("branchline "));
    commands
        .map(|command| command.replace('\u{0}', "|"))
        .collect()
}

/// Runs a command of the document as a shell would, with what it calls by example standing for what is here.
fn run(branch: &Branch, command: &str, job: &str) -> Result<()> {
    let machine = branch.machine(0);
    let program = machine.command()?;
    let words = std::iter::once(program.get_program()).chain(program.get_args());
    let words: Vec<String> = words
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let origin = branch.url("");
    let folder = machine.home().join("srv").display().to_string();
    let script = command
        .replace(ORIGIN, &origin)
        .replace("/srv", &folder)
        .replace(" ID", &format!(" {job}"))
        .replace("branchline ", &format!("{} ", words.join(" ")));
    let mut shell = Command::new("/bin/sh");
    shell.args(["-e", "-c", &script]);
    let ran = machine.host().run(shell, PATIENCE)?;
    ensure!(ran.status.success(), "{command}: {}", ran.error_text());
    Ok(())
}

/// A suspended job with a file that is at the origin, in a folder of its own.
fn new_job(machine: &Machine, url: &str) -> Result<String> {
    let folder = machine.home().join("srv");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir(&folder)?;
    let target = folder.join("big.img").display().to_string();
    let job: Value = machine.json(&[
        "job",
        "create",
        url,
        "-o",
        &target,
        "--suspended",
        "--no-auto-complete",
    ])?;
    Ok(job["id"].to_string())
}

#[test]
fn each_command_of_the_document_works() -> Result<()> {
    let branch = Branch::with_agents(Setup::fast(1))?;
    let machine = branch.machine(0);
    let url = branch.publish("big.img", &random_bytes(83, MEBIBYTE))?;
    branch.publish("more.img", &random_bytes(84, MEBIBYTE / 2))?;
    let rows = DOCUMENT.lines().filter(|line| line.starts_with("| "));
    let mut ran = 0;
    for row in rows {
        let commands = commands(row);
        if commands.is_empty() {
            continue;
        }
        let job = new_job(machine, &url)?;
        for command in &commands {
            run(&branch, command, &job).with_context(|| row.to_owned())?;
            ran += 1;
        }
        end(machine)?;
    }
    println!("{ran} commands");
    assert!(ran > 50, "only {ran} commands were found");
    Ok(())
}

/// Nothing of one row is in the way of the next.
fn end(machine: &Machine) -> Result<()> {
    let jobs = machine.json(&["job", "list"])?;
    for job in jobs.as_array().context("a list")? {
        if job["state"] != "acknowledged" && job["state"] != "cancelled" {
            machine.run(&["job", "cancel", &job["id"].to_string()])?;
        }
    }
    Ok(())
}
