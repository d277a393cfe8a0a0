//! `branchline job wait`

use std::time::Duration;

use branchline_agent::api::jobs::{FileIndex, JobId, JobView, StateKind};
use branchline_agent::api::{Failure, FailureKind, Progress};
use branchline_agent::control::{Client, EventStream};

use super::failure_kind;
use super::show::show;
use crate::args::JobWaitArgs;
use crate::output::Bar;

/// How often a terminal shows how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Until the job needs nobody any more, or its owner.
pub(super) async fn run(args: &JobWaitArgs, client: &Client) -> Result<(), Failure> {
    let id = JobId(args.id);
    let limit = args.timeout.map_or(Duration::MAX, Duration::from_secs);
    let waited = tokio::time::timeout(limit, until_settled(client, id)).await;
    let view = waited.map_err(|_| {
        let message = format!("job {id}: not done after {} s; it goes on", limit.as_secs());
        Failure::new(FailureKind::Interrupted, message)
    })??;
    match view.summary.state {
        StateKind::Transferred | StateKind::Acknowledged => show(&view, args.json),
        StateKind::Cancelled => Err(Failure::new(
            FailureKind::Interrupted,
            format!("job {id}: it was cancelled"),
        )),
        StateKind::Suspended
        | StateKind::Queued
        | StateKind::Connecting
        | StateKind::Transferring
        | StateKind::TransientError
        | StateKind::Error => Err(Failure::new(
            failure_kind(&view),
            format!("job {id}: {}", view.summary.why),
        )),
    }
}

async fn until_settled(client: &Client, id: JobId) -> Result<JobView, Failure> {
    let bar = Bar::new();
    let mut events = client.events(Some(id)).await?;
    loop {
        let view = client.job(id, FileIndex(0)).await?;
        if is_settled(&view) {
            return Ok(view);
        }
        bar.show(&progress(&view));
        until_next_look(id, &mut events, &bar).await?;
    }
}

/// Waits until something has happened to the job, or a terminal is to show how far it is.
pub(in crate::commands) async fn until_next_look(
    id: JobId,
    events: &mut EventStream,
    bar: &Bar,
) -> Result<(), Failure> {
    let goes_on = tokio::select! {
        goes_on = events.next() => goes_on,
        () = tokio::time::sleep(LOOK_EVERY), if bar.is_shown() => true,
    };
    let ended = || {
        let message = format!(
            "job {id}: the agent has ended; it goes on with the job when it is started again, and the same command returns to it"
        );
        Failure::new(FailureKind::AgentUnreachable, message)
    };
    goes_on.then_some(()).ok_or_else(ended)
}

fn is_settled(view: &JobView) -> bool {
    match view.summary.state {
        StateKind::Transferred => !view.settings.auto_complete,
        StateKind::Acknowledged | StateKind::Cancelled | StateKind::Error => true,
        StateKind::Suspended
        | StateKind::Queued
        | StateKind::Connecting
        | StateKind::Transferring
        | StateKind::TransientError => false,
    }
}

fn progress(view: &JobView) -> Progress {
    let (summary, sources) = (&view.summary, &view.summary.sources);
    let runs = matches!(summary.state, StateKind::Transferring);
    Progress {
        bytes: summary.length,
        from_origin: sources.from_origin,
        from_peers: sources.from_peers,
        from_store: sources.from_store,
        peers: view
            .file_page
            .iter()
            .map(|file| file.peers)
            .max()
            .unwrap_or(0),
        waiting_for: match runs {
            true => view
                .file_page
                .iter()
                .find_map(|file| file.waiting_for.clone()),
            false => Some(format!("its turn ({})", summary.state)),
        },
    }
}
