//! What a `branchline get` ended with.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use branchline_lab::Finished;
use serde::Deserialize;

/// The last line of `get --json`: the fields scripts rely on.
#[derive(Debug, Clone, Deserialize)]
pub struct Report {
    /// What was asked for.
    pub url: String,
    /// Where it stands.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Of these, from the origin.
    pub from_origin: u64,
    /// Of these, from peers.
    pub from_peers: u64,
    /// Of these, from this machine.
    pub from_store: u64,
    /// How long it took.
    pub seconds: f64,
    /// The content's key, in hexadecimal.
    pub content: String,
    /// What was believed.
    pub trust: String,
    /// The agent's job that it was.
    pub job: Option<u64>,
}

/// What a `branchline get --json` ended with.
#[derive(Debug)]
pub struct Got {
    /// Where the file was to stand.
    pub target: PathBuf,
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// The report, when there was one.
    pub report: Option<Report>,
    /// What was printed on stderr.
    pub stderr: String,
    /// From start to end of the command.
    pub elapsed: Duration,
}

impl Got {
    /// Reads what a finished command printed.
    ///
    /// # Errors
    /// When it printed something that is no report.
    pub fn of(finished: &Finished, target: PathBuf) -> Result<Self> {
        let text = finished.text();
        let last = text.lines().rfind(|line| !line.trim().is_empty());
        let report = last.map(|line| {
            serde_json::from_str(line).with_context(|| format!("`get --json` ended with: {line}"))
        });
        Ok(Self {
            target,
            code: finished.status.code(),
            report: report.transpose()?,
            stderr: finished.error_text(),
            elapsed: finished.elapsed,
        })
    }

    /// The report of a download that must have worked; its bytes add up.
    ///
    /// # Errors
    /// When it did not work, with what was printed on stderr.
    pub fn done(&self) -> Result<&Report> {
        ensure!(
            self.code == Some(0),
            "exit code {:?}: {}",
            self.code,
            self.stderr.trim_end()
        );
        let report = self.report.as_ref().context("no report")?;
        ensure!(
            report.from_origin + report.from_peers + report.from_store == report.bytes,
            "the sources do not add up: {report:?}"
        );
        ensure!(report.path == self.target, "another path: {report:?}");
        Ok(report)
    }

    /// The one line of a download that must have failed with this exit code and left no file.
    ///
    /// # Errors
    /// When it ended otherwise, said more than a line, or left a file under the target's name.
    pub fn failed(&self, code: i32) -> Result<&str> {
        let (found, stderr) = (self.code, self.stderr.trim_end());
        ensure!(
            found == Some(code),
            "exit code {found:?} for {code}: {stderr}"
        );
        ensure!(self.report.is_none(), "a failure with a report");
        ensure!(!self.target.exists(), "a failure left a file: {stderr}");
        ensure!(stderr.lines().count() == 1, "not one line: {stderr:?}");
        let line = stderr.strip_prefix("branchline: ");
        line.with_context(|| format!("does not say who speaks: {stderr:?}"))
    }
}
