//! The agent's side of the control API.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::problem::Problem;
use super::{ControlSocket, EVENT_LINES, MAX_REQUEST_BYTES};
use crate::api::{
    Backend, CacheEntry, Failure, FailureKind, GetEvent, GetRequest, PeerInfo, Status,
};

/// Serves until `stop` is cancelled: then downloads that commands wait for end as interrupted,
/// other answers are finished, and the socket's file is removed.
///
/// # Errors
/// None today; axum keeps the right to.
pub async fn serve(
    socket: ControlSocket,
    backend: Arc<dyn Backend>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let (listener, _file) = socket.into_parts();
    let service = router(Shared {
        backend,
        stop: stop.clone(),
    });
    axum::serve(
        listener,
        service.into_make_service_with_connect_info::<Caller>(),
    )
    .with_graceful_shutdown(stop.cancelled_owned())
    .await
}

#[derive(Clone)]
struct Shared {
    backend: Arc<dyn Backend>,
    stop: CancellationToken,
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/peers", get(peers))
        .route("/v1/cache", get(cache))
        .route("/v1/get", post(start_get))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(middleware::from_fn(refuse_strangers))
        .with_state(shared)
}

async fn status(State(shared): State<Shared>) -> Result<Json<Status>, Problem> {
    Ok(Json(shared.backend.status().await?))
}

async fn peers(State(shared): State<Shared>) -> Result<Json<Vec<PeerInfo>>, Problem> {
    Ok(Json(shared.backend.peers().await?))
}

async fn cache(State(shared): State<Shared>) -> Result<Json<Vec<CacheEntry>>, Problem> {
    Ok(Json(shared.backend.cache().await?))
}

async fn start_get(
    State(shared): State<Shared>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let request = read_request(body)?;
    tracing::debug!(?request, "get");
    let events = event_lines(shared.backend.get(request), shared.stop);
    Ok((
        [(header::CONTENT_TYPE, EVENT_LINES)],
        Body::from_stream(events),
    )
        .into_response())
}

fn read_request(body: Result<Bytes, BytesRejection>) -> Result<GetRequest, Problem> {
    let usage = |message: String| Failure::new(FailureKind::Usage, message);
    let body = body.map_err(|rejection| Problem {
        status: rejection.status(),
        failure: usage(format!("control API: {}", rejection.body_text())),
    })?;
    let request: GetRequest = serde_json::from_slice(&body)
        .map_err(|error| usage(format!("control API: not a request for a file: {error}")))?;
    if !request.path.is_absolute() {
        let path = request.path.display();
        return Err(usage(format!("control API: {path}: the path must be absolute")).into());
    }
    Ok(request)
}

/// One line an event. When hyper drops this, for the command has gone, the receiver goes with it
/// and the download is cancelled.
fn event_lines(
    events: mpsc::Receiver<GetEvent>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(Some((events, stop)), async |open| {
        let (mut events, stop) = open?;
        let event = next_event(&mut events, &stop).await;
        let last = matches!(event, GetEvent::Done(_) | GetEvent::Failed(_));
        let line = Ok(line_of(&event));
        Some((line, (!last).then_some((events, stop))))
    })
}

/// What the engine says has precedence over the stop, so that a download that is done counts.
async fn next_event(events: &mut mpsc::Receiver<GetEvent>, stop: &CancellationToken) -> GetEvent {
    let failed = |kind, message| GetEvent::Failed(Failure::new(kind, message));
    tokio::select! {
        biased;
        event = events.recv() => event.unwrap_or_else(|| {
            failed(FailureKind::AgentUnreachable, "get: the agent dropped the download; see its log")
        }),
        () = stop.cancelled() => failed(
            FailureKind::Interrupted,
            "get: the agent was stopped; the partial file stays, the same command goes on",
        ),
    }
}

fn line_of(event: &GetEvent) -> Bytes {
    let mut line = serde_json::to_vec(event).unwrap_or_else(|error| {
        // A report's path came in as JSON, so that it can go out as JSON; this is for others.
        let failure = Failure::new(FailureKind::LocalDisk, format!("control API: {error}"));
        serde_json::to_vec(&GetEvent::Failed(failure)).unwrap_or_default()
    });
    line.push(b'\n');
    line.into()
}

async fn no_such_route(uri: Uri) -> Problem {
    let message = format!(
        "control API: there is no {}; docs/control-api.md lists all",
        uri.path()
    );
    Problem {
        status: StatusCode::NOT_FOUND,
        failure: Failure::new(FailureKind::Usage, message),
    }
}

async fn no_such_method(uri: Uri) -> Problem {
    let message = format!("control API: {} has another method", uri.path());
    Problem {
        status: StatusCode::METHOD_NOT_ALLOWED,
        failure: Failure::new(FailureKind::Usage, message),
    }
}

/// Who called, as the kernel noted it when the connection was made (`SO_PEERCRED`, unix(7)).
#[derive(Debug, Clone, Copy)]
struct Caller {
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self {
            uid: stream
                .io()
                .peer_cred()
                .ok()
                .map(|credentials| credentials.uid()),
        }
    }
}

async fn refuse_strangers(
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let own = rustix::process::geteuid().as_raw();
    match caller.uid {
        Some(uid) if uid == own || uid == 0 => next.run(request).await,
        Some(_) | None => {
            tracing::warn!(?caller, "control API: another user was refused");
            let message = "control API: this agent belongs to another user; run the command as that user or as root";
            let failure = Failure::new(FailureKind::AgentUnreachable, message);
            Problem {
                status: StatusCode::FORBIDDEN,
                failure,
            }
            .into_response()
        }
    }
}
