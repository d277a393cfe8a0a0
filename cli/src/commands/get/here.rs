//! A download by the engine in this process, where no agent runs.

use std::time::Duration;

use branchline_agent::api::{Failure, FailureKind, GetEvent, GetReport, GetRequest};
use branchline_agent::service::{Here, get_here};

use super::{interrupted, show};
use crate::context::Context;
use crate::output::{self, Bar};
use crate::signals::Stop;

/// What an interrupted engine may take to give back what it holds.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);

/// What to do after an interruption.
pub(super) const GO_ON: &str = "the partial file stays, and the same command goes on from there";

pub(super) async fn run(
    request: GetRequest,
    context: &Context,
    signals: &mut Stop,
    json: bool,
) -> Result<(), Failure> {
    let (config, state_dir) = (context.config()?, context.state_dir()?);
    let mut here = get_here(config, &state_dir, request.clone());
    let outcome = tokio::select! {
        outcome = follow(&mut here) => outcome.and_then(|report| show(&report, json)),
        () = signals.requested() => Err(interrupted(&request, GO_ON)),
    };
    // Now whoever waits for the file has it. What remains is to keep it for others, and that may be
    // interrupted again.
    let keep_on = outcome.is_ok();
    let ended = tokio::select! {
        () = here.finish() => true,
        () = signals.requested() => false,
        () = tokio::time::sleep(STOP_TIMEOUT), if !keep_on => false,
    };
    if !ended {
        tracing::warn!("the engine was not waited for");
    }
    outcome
}

/// To the last event.
async fn follow(here: &mut Here) -> Result<GetReport, Failure> {
    let bar = Bar::new();
    loop {
        match here.next().await {
            Some(GetEvent::Progress(progress)) => bar.show(&progress),
            Some(GetEvent::Notice(notice)) => bar.aside(|| output::complain(&notice)),
            Some(GetEvent::Done(report)) => return Ok(report),
            Some(GetEvent::Failed(failure)) => return Err(failure),
            None => {
                let message = "get: the engine ended without a word; BRANCHLINE_LOG=info says more";
                return Err(Failure::new(FailureKind::AgentUnreachable, message));
            }
        }
    }
}
