//! The commands' side of the control API.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Method, Request, Response, StatusCode, header};
use branchline_core::jobs::{
    FileIndex, Filter, JobId, JobSpec, JobView, Page, Request as JobRequest, StateKind,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use super::MAX_MESSAGE_BYTES;
use super::problem::failure_of;
use super::socket::{BindError, socket_path};
use crate::api::{CacheEntry, Failure, FailureKind, GetEvent, GetRequest, PeerInfo, Status};

/// An agent answers within milliseconds; one on a machine that swaps, within seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent runs here: {}: {source}; start one with `branchline agent`", .socket.display())]
    NotRunning {
        /// Where it would listen.
        socket: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Somebody may listen, but this user or this path does not get there.
    #[error("agent: {}: {source}; run this as root or as the agent's user", .socket.display())]
    Connect {
        /// Where it listens.
        socket: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Somebody listens, and says nothing or something else.
    #[error("agent: {}: {problem}; look at its log, or restart it", .socket.display())]
    NoAnswer {
        /// Where it listens.
        socket: PathBuf,
        /// What was missing.
        problem: String,
    },
    /// There cannot be a socket.
    #[error(transparent)]
    Path(#[from] BindError),
    /// The agent says no.
    #[error(transparent)]
    Refused(#[from] Failure),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Path(error) => error.into(),
            ClientError::Refused(failure) => failure,
            ClientError::NotRunning { .. }
            | ClientError::Connect { .. }
            | ClientError::NoAnswer { .. } => Self::new(FailureKind::AgentUnreachable, error),
        }
    }
}

/// Tells when something has happened to jobs. Ends when the agent does.
pub struct EventStream {
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl EventStream {
    /// Waits for the next word of the agent, which may be that all is well; `false` when it has gone. Cancel-safe.
    pub async fn next(&mut self) -> bool {
        matches!(self.body.frame().await, Some(Ok(_)))
    }
}

/// Talks to the agent of one state directory; each call makes a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    answer_timeout: Duration,
}

impl Client {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`ClientError::Path`] when no socket can have such a path.
    pub fn new(state_dir: &Path) -> Result<Self, ClientError> {
        Ok(Self {
            socket: socket_path(state_dir)?,
            answer_timeout: ANSWER_TIMEOUT,
        })
    }

    #[cfg(test)]
    pub(super) fn with_answer_timeout(self, answer_timeout: Duration) -> Self {
        Self {
            answer_timeout,
            ..self
        }
    }

    /// What the agent is and does.
    ///
    /// # Errors
    /// [`ClientError`] without an answer.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask("/v1/status").await
    }

    /// The agents it sees.
    ///
    /// # Errors
    /// [`ClientError`] without an answer.
    pub async fn peers(&self) -> Result<Vec<PeerInfo>, ClientError> {
        self.ask("/v1/peers").await
    }

    /// The contents its store holds.
    ///
    /// # Errors
    /// [`ClientError`] without an answer.
    pub async fn cache(&self) -> Result<Vec<CacheEntry>, ClientError> {
        self.ask("/v1/cache").await
    }

    /// Starts a download. Dropping the stream cancels it; the partial file stays.
    ///
    /// # Errors
    /// [`ClientError`] when the agent does not take the request.
    pub async fn get(&self, request: &GetRequest) -> Result<GetStream, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| {
            let path = request.path.display();
            Failure::new(
                FailureKind::Usage,
                format!("get: {path}: {error}; choose another name"),
            )
        })?;
        let (body, connection) = self.send(Method::POST, "/v1/get", body).await?;
        let socket = self.socket.clone();
        Ok(GetStream {
            body,
            pending: Vec::new(),
            socket,
            _connection: connection,
        })
    }

    /// Makes a job.
    ///
    /// # Errors
    /// [`ClientError`] without an answer, or when the agent refuses.
    pub async fn create_job(&self, spec: &JobSpec) -> Result<JobView, ClientError> {
        self.tell(Method::POST, "/v1/jobs", Some(spec)).await
    }

    /// A job, with its files from `first` on.
    ///
    /// # Errors
    /// [`ClientError`] without an answer, or when there is no such job.
    pub async fn job(&self, job: JobId, first: FileIndex) -> Result<JobView, ClientError> {
        self.ask(&format!("/v1/jobs/{job}?file={first}")).await
    }

    /// A page of jobs: those with numbers above `after`.
    ///
    /// # Errors
    /// [`ClientError`] without an answer.
    pub async fn jobs(&self, filter: &Filter, after: Option<JobId>) -> Result<Page, ClientError> {
        let Filter {
            owner,
            states,
            name,
            path,
        } = filter;
        let words = |states: &BTreeSet<StateKind>| {
            let words: Vec<&str> = states.iter().map(|state| state.word()).collect();
            words.join(",")
        };
        let parts = [
            ("owner", owner.map(|owner| owner.to_string())),
            ("state", states.as_ref().map(words)),
            ("name", name.clone()),
            ("path", path.as_ref().map(ToString::to_string)),
            ("after", after.map(|after| after.to_string())),
        ];
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (key, value) in parts {
            query.extend_pairs(value.map(|value| (key, value)));
        }
        self.ask(&format!("/v1/jobs?{}", query.finish())).await
    }

    /// Asks something of a job; the answer is the job as it is then.
    ///
    /// # Errors
    /// [`ClientError`] without an answer, or when the agent refuses.
    pub async fn request(&self, job: JobId, request: &JobRequest) -> Result<JobView, ClientError> {
        let route = |what: &str| format!("/v1/jobs/{job}{what}");
        let nothing = None::<&()>;
        match request {
            JobRequest::Resume => self.tell(Method::POST, &route("/resume"), nothing).await,
            JobRequest::Suspend => self.tell(Method::POST, &route("/suspend"), nothing).await,
            JobRequest::Complete => self.tell(Method::POST, &route("/complete"), nothing).await,
            JobRequest::Cancel => self.tell(Method::POST, &route("/cancel"), nothing).await,
            JobRequest::AddFiles(files) => {
                self.tell(Method::POST, &route("/files"), Some(files)).await
            }
            JobRequest::Set(change) => self.tell(Method::PATCH, &route(""), Some(change)).await,
            JobRequest::ReplaceUrl { file, url } => {
                let body = serde_json::json!({ "url": url });
                let route = route(&format!("/files/{file}/url"));
                self.tell(Method::PUT, &route, Some(&body)).await
            }
            JobRequest::ReplacePrefix { from, to } => {
                let body = serde_json::json!({ "from": from, "to": to });
                self.tell(Method::POST, &route("/replace-prefix"), Some(&body))
                    .await
            }
        }
    }

    /// Tells of what happens from now on, to this job or to all.
    ///
    /// # Errors
    /// [`ClientError`] without an answer.
    pub async fn events(&self, job: Option<JobId>) -> Result<EventStream, ClientError> {
        let query = job.map_or_else(String::new, |job| format!("?job={job}"));
        let route = format!("/v1/events{query}");
        let (body, connection) = self.send(Method::GET, &route, Vec::new()).await?;
        Ok(EventStream {
            body,
            _connection: connection,
        })
    }

    async fn tell<T: DeserializeOwned>(
        &self,
        method: Method,
        route: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| self.no_answer(error.to_string()))?;
        let (body, _connection) = self.send(method, route, body.unwrap_or_default()).await?;
        let bytes = self.whole(body).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| self.no_answer(format!("its answer is another version's: {error}")))
    }

    async fn ask<T: DeserializeOwned>(&self, route: &str) -> Result<T, ClientError> {
        self.tell(Method::GET, route, None::<&()>).await
    }

    /// The body of a good answer. The connection lives as long as the handle.
    async fn send(
        &self,
        method: Method,
        route: &str,
        body: Vec<u8>,
    ) -> Result<(Incoming, AbortOnDropHandle<()>), ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(route)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("the routes are valid URIs");
        let (answer, connection) = self.in_time(self.exchange(request)).await??;
        match answer.status() {
            StatusCode::OK | StatusCode::CREATED => Ok((answer.into_body(), connection)),
            status => Err(self.refusal(status, answer.into_body()).await),
        }
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|e| self.connect(e))?;
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.map_err(|e| self.no_answer(e.to_string()))?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // What breaks the connection breaks the request or the body on it, and is told there.
            let _ = connection.await;
        }));
        let answer = sender.send_request(request).await;
        Ok((
            answer.map_err(|e| self.no_answer(e.to_string()))?,
            connection,
        ))
    }

    async fn refusal(&self, status: StatusCode, body: Incoming) -> ClientError {
        match self.whole(body).await.as_deref().map(failure_of) {
            Ok(Some(failure)) => failure.into(),
            Ok(None) => self.no_answer(format!("it answered {status}")),
            Err(_) => self.no_answer(format!("it answered {status} and broke off")),
        }
    }

    async fn whole(&self, body: Incoming) -> Result<Bytes, ClientError> {
        let body = Limited::new(body, MAX_MESSAGE_BYTES).collect();
        let body = self
            .in_time(body)
            .await?
            .map_err(|e| self.no_answer(e.to_string()))?;
        Ok(body.to_bytes())
    }

    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, ClientError> {
        let late = |_| self.no_answer(format!("no answer within {:?}", self.answer_timeout));
        tokio::time::timeout(self.answer_timeout, work)
            .await
            .map_err(late)
    }

    fn connect(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        // No file, or a file whose agent is dead.
        let absent = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
        if absent.contains(&source.kind()) {
            ClientError::NotRunning { socket, source }
        } else {
            ClientError::Connect { socket, source }
        }
    }

    fn no_answer(&self, problem: String) -> ClientError {
        ClientError::NoAnswer {
            socket: self.socket.clone(),
            problem,
        }
    }
}

/// The events of a download that the agent runs.
#[derive(Debug)]
pub struct GetStream {
    body: Incoming,
    pending: Vec<u8>,
    socket: PathBuf,
    _connection: AbortOnDropHandle<()>,
}

impl GetStream {
    /// The next event; after the last one ([`GetEvent::Done`] or [`GetEvent::Failed`]) an error,
    /// for a stream that ends without one has broken off. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::NoAnswer`] when the agent died or speaks otherwise.
    pub async fn next(&mut self) -> Result<GetEvent, ClientError> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|error| self.broken(error));
            }
            let frame = self.body.frame().await;
            let frame = frame.ok_or_else(|| self.broken("it broke off the download"))?;
            let frame = frame.map_err(|_| self.broken("it died over the download"))?;
            self.pending
                .extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if self.pending.len() > MAX_MESSAGE_BYTES {
                return Err(self.broken("a line without end"));
            }
        }
    }

    fn broken(&self, problem: impl std::fmt::Display) -> ClientError {
        ClientError::NoAnswer {
            socket: self.socket.clone(),
            problem: problem.to_string(),
        }
    }
}
