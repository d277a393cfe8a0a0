//! `job`

use std::path::PathBuf;
use std::time::Duration;

use branchline_agent::api::jobs::{ByteRange, NotifyOf, Priority, RemoteUrl, StateKind};
use branchline_agent::config::parse_duration;
use branchline_hashing::{Blake3Digest, Sha256Digest};
use clap::{Args, Subcommand};
use url::Url;

use super::{header, url};
use crate::completion::job_id;

/// `job`
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Make a job that downloads a file, and start it
    Create(JobCreateArgs),
    /// Add a file to a job
    Add(JobAddArgs),
    /// Start a job, or go on with it; after an error: try again
    Resume(JobArgs),
    /// Stop a job for now; it keeps what it has
    Suspend(JobArgs),
    /// Give a job's files their names; what is not there yet is dropped
    Complete(JobArgs),
    /// End a job; what has no name yet is removed
    Cancel(JobArgs),
    /// Change a job's settings or URLs
    Set(JobSetArgs),
    /// What a job is, does and waits for
    Show(JobArgs),
    /// List jobs
    List(JobListArgs),
    /// Wait until a job's files are there
    Wait(JobWaitArgs),
}

/// `job ... ID`
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job's number
    #[arg(value_name = "ID", add = job_id())]
    pub(crate) id: u64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// One file of a job.
#[derive(Debug, Args)]
pub(crate) struct JobFileArgs {
    /// Where the origin has the file (http or https)
    #[arg(value_parser = url)]
    pub(crate) url: Url,
    /// Where to save it: a file, or a directory to save it in under the URL's last name [default:
    /// the working directory]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// The file's SHA-256, if known
    #[arg(long, value_name = "HEX", conflicts_with = "blake3")]
    pub(crate) sha256: Option<Sha256Digest>,
    /// The file's BLAKE3, if known
    #[arg(long, value_name = "HEX")]
    pub(crate) blake3: Option<Blake3Digest>,
    /// Fetch these bytes alone, counted from 0, `500-` being all from 500 on; may be repeated, the
    /// parts are joined
    #[arg(long = "range", value_name = "FIRST-LAST", value_parser = range)]
    pub(crate) ranges: Vec<ByteRange>,
    /// Do not look for a manifest beside the file
    #[arg(long)]
    pub(crate) without_manifest: bool,
}

/// What can be said of a job when it is made, and later.
#[derive(Debug, Args)]
pub(crate) struct JobSettingsArgs {
    /// What you call it
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Anything
    #[arg(long)]
    pub(crate) description: Option<String>,
    /// Who goes first: foreground, high, normal or low [default: normal]
    #[arg(long, value_name = "PRIORITY", value_parser = priority)]
    pub(crate) priority: Option<Priority>,
    /// Send this header to the origin; may be repeated
    #[arg(long = "header", value_name = "K: V", value_parser = header)]
    pub(crate) headers: Vec<(String, String)>,
    /// The same, and its value is never shown
    #[arg(long = "secret-header", value_name = "K: V", value_parser = header)]
    pub(crate) secret_headers: Vec<(String, String)>,
    /// The user at the origin
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub(crate) user: Option<String>,
    /// The first line of this file is the user's password; `-` is standard input
    #[arg(long, value_name = "FILE", requires = "user")]
    pub(crate) password_file: Option<PathBuf>,
    /// Reach the origin through this proxy (http, https or socks5), `none` directly, `preconfigured` as the agent
    /// does otherwise
    #[arg(long, value_name = "URL", value_parser = proxy)]
    pub(crate) proxy: Option<Proxy>,
    /// Try again after so long at first; waits double
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) retry_delay: Option<Duration>,
    /// Up to so long
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) max_retry_delay: Option<Duration>,
    /// Give up when it keeps failing for so long without a new byte; `0s`: do not try again
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) no_progress_timeout: Option<Duration>,
    /// Give up after it has been transferring for so long
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) max_active: Option<Duration>,
    /// Post to this URL what happens
    #[arg(long, value_name = "URL", value_parser = url)]
    pub(crate) webhook: Option<Url>,
    /// Run this with /bin/sh when something happens; standard input says what, as JSON. Empty: nothing
    #[arg(long, value_name = "COMMAND")]
    pub(crate) notify_command: Option<String>,
    /// Tell of this: transferred, error, file-done or modified; may be repeated [default:
    /// transferred and error]
    #[arg(long, value_name = "EVENT", value_parser = notify_of)]
    pub(crate) notify_on: Vec<NotifyOf>,
}

/// How the origin is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proxy {
    Preconfigured,
    None,
    Url(RemoteUrl),
}

/// `job create`
#[derive(Debug, Args)]
pub(crate) struct JobCreateArgs {
    #[command(flatten)]
    pub(crate) file: JobFileArgs,
    #[command(flatten)]
    pub(crate) settings: JobSettingsArgs,
    /// Do not start it yet
    #[arg(long)]
    pub(crate) suspended: bool,
    /// Give the files their names when all are there; this is what happens anyway
    #[arg(long, conflicts_with = "no_auto_complete")]
    pub(crate) auto_complete: bool,
    /// Do not give the files their names before `job complete`
    #[arg(long)]
    pub(crate) no_auto_complete: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `job add`
#[derive(Debug, Args)]
pub(crate) struct JobAddArgs {
    /// The job's number
    #[arg(value_name = "ID", add = job_id())]
    pub(crate) id: u64,
    #[command(flatten)]
    pub(crate) file: JobFileArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `job set`
#[derive(Debug, Args)]
pub(crate) struct JobSetArgs {
    /// The job's number
    #[arg(value_name = "ID", add = job_id())]
    pub(crate) id: u64,
    #[command(flatten)]
    pub(crate) settings: JobSettingsArgs,
    /// Forget the user and the password
    #[arg(long, conflicts_with = "user")]
    pub(crate) no_user: bool,
    /// Give the files their names when all are there
    #[arg(long, value_name = "BOOL")]
    pub(crate) auto_complete: Option<bool>,
    /// The URLs of files that are not there yet begin otherwise: the server has moved
    #[arg(long, num_args = 2, value_names = ["FROM", "TO"])]
    pub(crate) replace_prefix: Option<Vec<String>>,
    /// Another URL for one file
    #[arg(long, num_args = 2, value_names = ["FILE", "URL"])]
    pub(crate) replace_url: Option<Vec<String>>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `job list`
#[derive(Debug, Args)]
pub(crate) struct JobListArgs {
    /// Only jobs in this state; may be repeated
    #[arg(long = "state", value_parser = state)]
    pub(crate) states: Vec<StateKind>,
    /// Only jobs whose name holds this
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Only jobs of the user with this number
    #[arg(long, value_name = "UID")]
    pub(crate) owner: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `job wait`
#[derive(Debug, Args)]
pub(crate) struct JobWaitArgs {
    /// The job's number
    #[arg(value_name = "ID", add = job_id())]
    pub(crate) id: u64,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn priority(text: &str) -> Result<Priority, String> {
    let all = [
        Priority::Foreground,
        Priority::High,
        Priority::Normal,
        Priority::Low,
    ];
    let found = all.into_iter().find(|priority| priority.word() == text);
    found.ok_or_else(|| "foreground, high, normal and low are priorities".into())
}

fn state(text: &str) -> Result<StateKind, String> {
    let found = StateKind::ALL
        .into_iter()
        .find(|state| state.word() == text);
    let words = StateKind::ALL.map(StateKind::word).join(", ");
    found.ok_or_else(|| format!("states are {words}"))
}

fn notify_of(text: &str) -> Result<NotifyOf, String> {
    match text {
        "transferred" => Ok(NotifyOf::Transferred),
        "error" => Ok(NotifyOf::Error),
        "file-done" | "file_done" => Ok(NotifyOf::FileDone),
        "modified" => Ok(NotifyOf::Modified),
        _ => Err("events are transferred, error, file-done and modified".into()),
    }
}

fn proxy(text: &str) -> Result<Proxy, String> {
    match text {
        "none" => Ok(Proxy::None),
        "preconfigured" => Ok(Proxy::Preconfigured),
        url => {
            let url = RemoteUrl::new(url).map_err(|error| error.to_string())?;
            Ok(Proxy::Url(url))
        }
    }
}

/// As RFC 9110, section 14.1.2, writes it: both ends belong to it.
fn range(text: &str) -> Result<ByteRange, String> {
    let wanted = || "a range is FIRST-LAST or FIRST-".to_owned();
    let (first, last) = text.split_once('-').ok_or_else(wanted)?;
    let first: u64 = first.parse().map_err(|_| wanted())?;
    if last.is_empty() {
        return Ok(ByteRange {
            first,
            length: None,
        });
    }
    let last: u64 = last.parse().map_err(|_| wanted())?;
    let length = last.checked_sub(first).and_then(|it| it.checked_add(1));
    match length {
        Some(length) => Ok(ByteRange {
            first,
            length: Some(length),
        }),
        None => Err("a range ends where it begins, or after".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_written_as_in_http() {
        let of = |text: &str| range(text).map(|range| (range.first, range.length));
        assert_eq!(of("0-0"), Ok((0, Some(1))));
        assert_eq!(of("500-999"), Ok((500, Some(500))));
        assert_eq!(of("500-"), Ok((500, None)));
        for bad in ["", "-", "-5", "5", "9-5", "a-b", "0-18446744073709551615"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_proxy_is_a_url_or_one_of_two_words() {
        assert_eq!(proxy("none"), Ok(Proxy::None));
        assert_eq!(proxy("preconfigured"), Ok(Proxy::Preconfigured));
        assert!(matches!(proxy("socks5://h:1080"), Ok(Proxy::Url(_))));
        assert!(proxy("h:8080").is_err());
    }
}
