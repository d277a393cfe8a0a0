//! `branchline agent`

use std::convert::Infallible;
use std::time::Duration;

use branchline_agent::api::Failure;
use branchline_agent::service;
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::signals::Stop;
use crate::{logging, output};

/// With the second that the runtime may take to drain, a stop takes five seconds at most.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);

/// No watchdog is patted more often: a unit that asks for less asks for nothing sensible.
const SHORTEST_PAT: Duration = Duration::from_millis(10);

/// Runs until SIGINT or SIGTERM.
pub(super) async fn run(context: &Context) -> Result<(), Failure> {
    let config = context.config()?;
    logging::start(config.log.level)?;
    let state_dir = context.state_dir()?;
    let mut signals = Stop::listen()?;
    let stop = CancellationToken::new();
    let mut serving = std::pin::pin!(service::run(config, &state_dir, stop.clone(), |_| ready()));
    tokio::select! {
        ended = &mut serving => return ended,
        () = signals.requested() => {}
        never = pat_the_watchdog() => match never {},
    }
    tell_systemd(&[NotifyState::Stopping]);
    stop.cancel();
    let ended = tokio::time::timeout(STOP_TIMEOUT, serving).await;
    ended.unwrap_or_else(|_| {
        // What was reported as stored is on disk; what was not is fetched again.
        tracing::warn!(
            seconds = STOP_TIMEOUT.as_secs(),
            "not everything ended in time"
        );
        Ok(())
    })
}

/// Tells systemd that this thread, which carries the control API, the jobs and the engine, still runs: twice in the time
/// after which it would be ended (sd_watchdog_enabled(3)).
async fn pat_the_watchdog() -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval((limit / 2).max(SHORTEST_PAT));
    loop {
        ticks.tick().await;
        tell_systemd(&[NotifyState::Watchdog]);
    }
}

fn ready() {
    if let Err(failure) = output::print("ready\n") {
        tracing::warn!(%failure, "could not say that it is ready");
    }
    tell_systemd(&[NotifyState::Ready]);
}

/// Does nothing without systemd.
fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd was not told");
    }
}
