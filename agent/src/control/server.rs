//! The agent's side of the control API.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::IncomingStream;
use axum::{Extension, Json, Router};
use branchline_core::jobs::UserId;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, Stream};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::{Problem, Problems};
use super::tcp::Token;
use super::{ControlPort, ControlSocket, EVENT_LINES, MAX_REQUEST_BYTES, jobs, openapi};
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
    doors: Doors,
    backend: Arc<dyn Backend>,
    desk: Option<JobDesk>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let Doors {
        socket,
        port,
        other_users,
    } = doors;
    let (listener, _file) = socket.into_parts();
    let (tcp, token) = port.map(|port| (port.listener, port.token)).unzip();
    let service = router(Shared {
        backend,
        desk,
        gate: Gate { other_users, token },
        stop: stop.clone(),
    })
    .into_make_service_with_connect_info::<Caller>();
    let ended = stop.clone().cancelled_owned();
    let over_socket =
        axum::serve(listener, service.clone()).with_graceful_shutdown(stop.cancelled_owned());
    let Some(tcp) = tcp else {
        return over_socket.await;
    };
    let over_tcp = axum::serve(tcp, service).with_graceful_shutdown(ended);
    tokio::try_join!(over_socket.into_future(), over_tcp.into_future()).map(drop)
}

/// Where callers come in.
pub(crate) struct Doors {
    pub(crate) socket: ControlSocket,
    pub(crate) port: Option<ControlPort>,
    /// Whether an agent of root serves other users too.
    pub(crate) other_users: bool,
}

/// Who gets in.
#[derive(Clone)]
struct Gate {
    other_users: bool,
    token: Option<Token>,
}

#[derive(Clone)]
pub(super) struct Shared {
    backend: Arc<dyn Backend>,
    /// None in an agent that keeps no jobs.
    pub(super) desk: Option<JobDesk>,
    gate: Gate,
    pub(super) stop: CancellationToken,
}

fn router(shared: Shared) -> Router {
    let (router, document) = described_routes().split_for_parts();
    let document = Bytes::from(openapi::json(document));
    router
        .route(openapi::ROUTE, get(async || openapi::answer(document)))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(middleware::from_fn_with_state(shared.clone(), admit))
        .with_state(shared)
}

/// All but the description itself.
fn described_routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(openapi::head())
        .routes(routes!(status))
        .routes(routes!(peers))
        .routes(routes!(cache))
        .routes(routes!(start_get))
        .merge(jobs::routes())
}

/// What this agent is and does.
#[utoipa::path(get, path = "/v1/status", tag = "agent", responses((status = 200, body = Status), Problems))]
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

/// The agents it sees.
#[utoipa::path(get, path = "/v1/peers", tag = "agent", responses((status = 200, body = Vec<PeerInfo>), Problems))]
async fn peers(State(shared): State<Shared>) -> Result<Json<Vec<PeerInfo>>, Problem> {
    Ok(Json(shared.backend.peers().await?))
}

/// What its store holds.
#[utoipa::path(get, path = "/v1/cache", tag = "agent", responses((status = 200, body = Vec<CacheEntry>), Problems))]
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

/// Downloads a file while the caller listens: one event a line. Who closes the connection cancels it.
#[utoipa::path(post, path = "/v1/get", tag = "agent", request_body = GetRequest, responses((status = 200, body = GetEvent, content_type = "application/x-ndjson"), Problems))]
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

/// Who called.
#[derive(Debug, Clone, Copy)]
enum Caller {
    /// Over the socket, as the kernel noted it when the connection was made (`SO_PEERCRED`, unix(7)).
    Local { uid: Option<u32> },
    /// Over TCP: the token will say.
    Remote,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self::Local {
            uid: credentials.map(|credentials| credentials.uid()),
        }
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Caller {
    fn connect_info(_: IncomingStream<'_, TcpListener>) -> Self {
        Self::Remote
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
    State(Shared { gate, .. }): State<Shared>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    mut request: Request,
    next: Next,
) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION);
    match gate.admit(caller, authorization.map(HeaderValue::as_bytes)) {
        Ok(user) => {
            request.extensions_mut().insert(user);
            next.run(request).await
        }
        Err(problem) => {
            tracing::warn!(?caller, "control API: refused");
            problem.into_response()
        }
    }
}

impl Gate {
    fn admit(&self, caller: Caller, authorization: Option<&[u8]>) -> Result<User, Problem> {
        let own = rustix::process::geteuid().as_raw();
        match caller {
            Caller::Local { uid: Some(uid) } if uid == own || uid == 0 => Ok(User {
                uid,
                administrates: true,
            }),
            Caller::Local { uid: Some(uid) } if own == 0 && self.other_users => Ok(User {
                uid,
                administrates: false,
            }),
            Caller::Local { .. } => Err(strange(
                "this agent belongs to another user; run the command as that user or as root",
            )),
            // Who can read the token's file is the agent's user, or root.
            Caller::Remote
                if self
                    .token
                    .as_ref()
                    .is_some_and(|it| it.opens(authorization)) =>
            {
                Ok(User {
                    uid: own,
                    administrates: true,
                })
            }
            Caller::Remote => Err(Problem {
                status: StatusCode::UNAUTHORIZED,
                failure: Failure::new(
                    FailureKind::AgentUnreachable,
                    "control API: this needs the header `Authorization: Bearer TOKEN`, with the token in control.token of the state directory",
                ),
            }),
        }
    }
}

fn strange(why: &str) -> Problem {
    Problem {
        status: StatusCode::FORBIDDEN,
        failure: Failure::new(FailureKind::AgentUnreachable, format!("control API: {why}")),
    }
}
