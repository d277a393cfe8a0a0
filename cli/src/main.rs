//! The `branchline` command: parse, build, run, drain.
//!
//! What each command does is in `commands`; the work itself is in the libraries. Every failure
//! becomes one line on stderr and the exit code of its kind.

mod args;
mod commands;
mod completion;
mod context;
mod logging;
mod output;
mod signals;
mod target;

use std::process::ExitCode;
use std::time::Duration;

use branchline_agent::api::{Failure, FailureKind};

use crate::args::Cli;
use crate::context::Context;

/// What blocking work may still take when all else has ended; what it has not put on disk by then,
/// it never reported as done.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    completion::answer_the_shell();
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(shown) => return shown.exit_code(),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&failure.message);
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let context = Context::new(cli.global)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(FailureKind::LocalDisk, format!("start: {error}")))?;
    let result = runtime.block_on(commands::run(cli.command, context));
    runtime.shutdown_timeout(DRAIN_TIMEOUT);
    result
}
