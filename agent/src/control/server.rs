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
use axum::{Extension, Json, Router};
use branchline_core::jobs::UserId;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, Stream};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::problem::Problem;
use super::{ControlSocket, EVENT_LINES, MAX_REQUEST_BYTES, jobs};
use crate::api::{
    Backend, CacheEntry, Failure, FailureKind, GetEvent, GetRequest, PeerInfo, Status,
};
use crate::jobs::JobDesk;

/// Serves until `stop` is cancelled: then downloads that commands wait for end as interrupted,
/// other answers are finished, and the socket's file is removed.
///
/// # Errors
/// None today; axum keeps the right to.
pub(crate) async fn serve(
    socket: ControlSocket,
    backend: Arc<dyn Backend>,
    desk: Option<JobDesk>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let (listener, _file) = socket.into_parts();
    let service = router(Shared {
        backend,
        desk,
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
pub(super) struct Shared {
    backend: Arc<dyn Backend>,
    /// None in an agent that keeps no jobs.
    pub(super) desk: Option<JobDesk>,
    pub(super) stop: CancellationToken,
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/peers", get(peers))
        .route("/v1/cache", get(cache))
        .route("/v1/get", post(start_get))
        .merge(jobs::routes())
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(middleware::from_fn(admit))
        .with_state(shared)
}

async fn status(
    State(shared): State<Shared>,
    Extension(user): Extension<User>,
) -> Result<Json<Status>, Problem> {
    let mut status = shared.backend.status().await?;
    if !user.administrates {
        // What others download is theirs to know.
        status.jobs.clear();
    }
    Ok(Json(status))
}

async fn peers(State(shared): State<Shared>) -> Result<Json<Vec<PeerInfo>>, Problem> {
    Ok(Json(shared.backend.peers().await?))
}

async fn cache(
    State(shared): State<Shared>,
    Extension(user): Extension<User>,
) -> Result<Json<Vec<CacheEntry>>, Problem> {
    if !user.administrates {
        return Err(strange(
            "the contents of the store open them; they are for the agent's user and root",
        ));
    }
    Ok(Json(shared.backend.cache().await?))
}

async fn start_get(
    State(shared): State<Shared>,
    Extension(user): Extension<User>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let request = read_request(body)?;
    tracing::debug!(?request, "get");
    let events = event_lines(shared.backend.get(user.uid, request), shared.stop);
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
    events: BoxStream<'static, GetEvent>,
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
async fn next_event(
    events: &mut BoxStream<'static, GetEvent>,
    stop: &CancellationToken,
) -> GetEvent {
    let failed = |kind, message| GetEvent::Failed(Failure::new(kind, message));
    tokio::select! {
        biased;
        event = events.next() => event.unwrap_or_else(|| {
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

/// Who asks, and what he may.
#[derive(Debug, Clone, Copy)]
pub(super) struct User {
    pub(super) uid: u32,
    /// Whether everything is open to him: root, or whoever runs the agent.
    pub(super) administrates: bool,
}

impl User {
    /// As the jobs know him.
    pub(super) fn caller(self) -> branchline_core::jobs::Caller {
        branchline_core::jobs::Caller {
            user: UserId(self.uid),
            administrates: self.administrates,
        }
    }
}

async fn admit(
    ConnectInfo(caller): ConnectInfo<Caller>,
    mut request: Request,
    next: Next,
) -> Response {
    let own = rustix::process::geteuid().as_raw();
    let user = caller.uid.map(|uid| User {
        uid,
        administrates: uid == own || uid == 0,
    });
    match user {
        Some(user) if user.administrates || own == 0 => {
            request.extensions_mut().insert(user);
            next.run(request).await
        }
        Some(_) | None => {
            tracing::warn!(?caller, "control API: another user was refused");
            strange("this agent belongs to another user; run the command as that user or as root")
                .into_response()
        }
    }
}

fn strange(why: &str) -> Problem {
    Problem {
        status: StatusCode::FORBIDDEN,
        failure: Failure::new(FailureKind::AgentUnreachable, format!("control API: {why}")),
    }
}
