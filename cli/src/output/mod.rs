//! What people and scripts see: stdout for results, stderr for everything else.

mod bar;
mod table;
mod units;

use std::io::{ErrorKind, Write, stderr, stdout};

use branchline_agent::api::{Failure, FailureKind};
use serde::Serialize;

pub(crate) use bar::Bar;
pub(crate) use table::{Column, table};
pub(crate) use units::{ago, bytes, duration};

/// Writes to stdout. A reader that has gone, as `head` does, has seen what it wanted.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::new(
            FailureKind::LocalDisk,
            format!("standard output: {error}"),
        )),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes one line of JSON to stdout.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string(value)
        .map_err(|error| Failure::new(FailureKind::LocalDisk, format!("JSON: {error}")))?;
    print(&(json + "\n"))
}

/// Writes one line to stderr.
pub(crate) fn complain(message: &str) {
    // With stderr gone there is nobody left to tell.
    let _ = writeln!(stderr().lock(), "branchline: {}", printable(message));
}

/// Names and versions come from other machines; none of them talks to the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
