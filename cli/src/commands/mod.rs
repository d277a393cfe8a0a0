//! One module a command.

mod agent;
mod cache;
mod config;
mod get;
mod job;
mod peers;
mod publish;
mod status;
mod verify;

use branchline_agent::api::{Failure, FailureKind};
use branchline_agent::config::LogLevel;

use crate::args::{CacheCommand, Command, ConfigCommand};
use crate::context::Context;
use crate::logging;
use crate::signals::Stop;

/// Does what was typed.
pub(crate) async fn run(command: Command, context: Context) -> Result<(), Failure> {
    if !matches!(command, Command::Agent) {
        // A command says in its own words what the user must know; the rest is for looking closer.
        logging::start(LogLevel::Error)?;
    }
    match command {
        Command::Agent => agent::run(&context).await,
        Command::Get(args) => get::run(args, &context).await,
        Command::Publish(args) => publish::run(args).await,
        Command::Verify(args) => verify::run(args).await,
        Command::Status(args) => status::run(&args, &context).await,
        Command::Peers(args) => peers::run(&args, &context).await,
        Command::Cache(CacheCommand::List(args)) => cache::list(&args, &context).await,
        Command::Job(command) => job::run(*command, &context).await,
        Command::Config(ConfigCommand::Check) => config::check(&context),
    }
}

/// Runs work that reads and hashes; an interruption leaves it to the end of the process.
async fn blocking<T: Send + 'static>(
    command: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let mut signals = Stop::listen()?;
    tokio::select! {
        done = tokio::task::spawn_blocking(work) => {
            Ok(done.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic())))
        }
        () = signals.requested() => {
            let message = format!("{command}: interrupted; the same command goes on");
            Err(Failure::new(FailureKind::Interrupted, message))
        }
    }
}
