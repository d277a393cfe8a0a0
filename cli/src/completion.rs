//! What the shell offers when TAB is pressed.
//!
//! The shell runs `branchline` with `COMPLETE` in its environment; what is typed so far stands on the command line.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use branchline_agent::api::jobs::{Filter, JobSummary, StateKind};
use clap::CommandFactory;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::CompleteEnv;

use crate::args::{Cli, Global};
use crate::context::Context;

/// Nobody waits longer for a proposal.
const TIME: Duration = Duration::from_secs(1);

/// Answers the shell and ends the process, if it was the shell that asked.
pub(crate) fn answer_the_shell() {
    // What is installed is found by its name; where it was when it was asked for its script does not matter.
    CompleteEnv::with_factory(Cli::command)
        .completer("branchline")
        .complete();
}

/// Completes the number of a job.
pub(crate) fn job_id() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let typed = typed.to_string_lossy();
        let jobs = jobs().unwrap_or_default();
        let matching = jobs.iter().map(candidate);
        let matching = matching.filter(|(id, _)| id.starts_with(&*typed));
        matching
            .map(|(id, help)| CompletionCandidate::new(id).help(Some(help.into())))
            .collect()
    })
}

fn candidate(job: &JobSummary) -> (String, String) {
    let help = match job.name.is_empty() {
        true => job.state.to_string(),
        false => format!("{}: {}", job.name, job.state),
    };
    (job.id.to_string(), help)
}

/// Without an agent, or any other trouble, there is nothing to propose.
fn jobs() -> Option<Vec<JobSummary>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    let asked = async {
        let client = Context::new(typed_global()).ok()?.client().ok()?;
        let filter = Filter {
            states: Some(
                StateKind::ALL
                    .into_iter()
                    .filter(|it| !it.has_ended())
                    .collect(),
            ),
            ..Filter::default()
        };
        let mut page = client.jobs(&filter, None).await.ok()?;
        let mut jobs = page.jobs;
        while let Some(after) = page.next_after {
            page = client.jobs(&filter, Some(after)).await.ok()?;
            jobs.append(&mut page.jobs);
        }
        Some(jobs)
    };
    runtime.block_on(async { tokio::time::timeout(TIME, asked).await.ok()? })
}

/// The global options on the half-typed line, which is not yet one that could be read as a whole.
fn typed_global() -> Global {
    let words: Vec<_> = std::env::args_os().collect();
    let after = |name: &str| {
        let assigned = format!("{name}=");
        let value = |word: &OsString| Some(word.to_str()?.strip_prefix(&assigned)?.into());
        let at = words.iter().position(|word| word == name);
        let next = at.and_then(|at| words.get(at + 1)).map(Into::into);
        next.or_else(|| words.iter().find_map(value))
    };
    let variable = |name: &str| std::env::var_os(name).map(Into::into);
    Global {
        state_dir: after("--state-dir").or_else(|| variable("BRANCHLINE_STATE_DIR")),
        config: None,
    }
}
