//! The routes of jobs: each asks the desk one thing.

use std::collections::BTreeSet;
use std::convert::Infallible;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event as SentEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, patch, post, put};
use axum::{Extension, Json, Router};
use branchline_core::jobs::{
    Caller, EventSeq, FileIndex, FileSpec, Filter, JobId, JobSpec, JobView, Jobs, MAX_PAGE, Now,
    Page, ProxyChoice, RemoteUrl, Request, RequestError, Revision, SettingsChange, StateKind,
    UserId,
};
use futures_util::stream::{self, Stream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::problem::Problem;
use super::server::{Shared, User};
use crate::api::{Failure, FailureKind};
use crate::jobs::JobDesk;

/// Files of a job that an answer shows unless more are asked for.
const FILES_SHOWN: usize = 100;

/// Jobs that a page has unless others are asked for.
const JOBS_SHOWN: usize = 100;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/jobs", get(list).post(create))
        .route("/v1/jobs/batch", post(create_many))
        .route("/v1/jobs/{id}", get(show).merge(patch(set)))
        .route("/v1/jobs/{id}/files", post(add_files))
        .route("/v1/jobs/{id}/files/{file}/url", put(replace_url))
        .route("/v1/jobs/{id}/replace-prefix", post(replace_prefix))
        .route("/v1/jobs/{id}/resume", asks(Request::Resume))
        .route("/v1/jobs/{id}/suspend", asks(Request::Suspend))
        .route("/v1/jobs/{id}/complete", asks(Request::Complete))
        .route("/v1/jobs/{id}/cancel", asks(Request::Cancel))
        .route("/v1/events", get(events))
}

/// Which jobs, and how many.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    state: Option<String>,
    owner: Option<u32>,
    name: Option<String>,
    after: Option<u64>,
    limit: Option<usize>,
}

/// Which of its files.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShowQuery {
    file: Option<u32>,
    limit: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    after: Option<u64>,
    job: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUrl {
    url: RemoteUrl,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPrefix {
    from: String,
    to: String,
}

async fn list(
    State(shared): State<Shared>,
    Extension(user): Extension<User>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Page>, Problem> {
    let Query(query) = query.map_err(|rejection| usage(rejection.body_text()))?;
    let filter = Filter {
        owner: query.owner.map(UserId),
        states: query.state.as_deref().map(states).transpose()?,
        name: query.name,
    };
    let (after, most) = (query.after.map(JobId), query.limit.unwrap_or(JOBS_SHOWN));
    let caller = user.caller();
    let look = move |jobs: &Jobs, now| jobs.list(now, caller, &filter, after, most);
    Ok(Json(desk(&shared)?.ask(look).await?))
}

/// States by their names, separated by commas.
fn states(text: &str) -> Result<BTreeSet<StateKind>, Problem> {
    let known = |word: &str| StateKind::ALL.into_iter().find(|kind| kind.word() == word);
    let state =
        |word: &str| known(word).ok_or_else(|| usage(format!("there is no state `{word}`")));
    text.split(',').map(state).collect()
}

async fn create(
    State(shared): State<Shared>,
    Extension(user): Extension<User>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let spec: JobSpec = read(body)?;
    check_spec(&spec)?;
    let caller = user.caller();
    let created = desk(&shared)?
        .change(move |jobs, now| {
            let id = jobs.handle_create(now, caller, spec)?;
            jobs.view(now, caller, id, FileIndex(0), FILES_SHOWN)
        })
        .await?;
    Ok((StatusCode::CREATED, answer(created?)).into_response())
}

/// The answer to many jobs at once: in their order, its number or why there is none.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Created {
    Id(JobId),
    Refused(String),
}

async fn create_many(
    State(shared): State<Shared>,
    Extension(user): Extension<User>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let specs: Vec<JobSpec> = read(body)?;
    specs.iter().try_for_each(check_spec)?;
    let caller = user.caller();
    let create = move |jobs: &mut Jobs, now: Now| {
        let specs = specs.into_iter();
        let created = specs.map(|spec| match jobs.handle_create(now, caller, spec) {
            Ok(id) => Created::Id(id),
            Err(error) => Created::Refused(error.to_string()),
        });
        created.collect::<Vec<_>>()
    };
    let created = desk(&shared)?.change(create).await?;
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

async fn show(
    State(shared): State<Shared>,
    Extension(user): Extension<User>,
    id: Result<Path<u64>, PathRejection>,
    query: Result<Query<ShowQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let id = job_id(id)?;
    let Query(query) = query.map_err(|rejection| usage(rejection.body_text()))?;
    let first = FileIndex(query.file.unwrap_or(0));
    let most = query.limit.unwrap_or(FILES_SHOWN).min(MAX_PAGE);
    let caller = user.caller();
    let look = move |jobs: &Jobs, now| jobs.view(now, caller, id, first, most);
    Ok(answer(desk(&shared)?.ask(look).await??))
}

async fn set(
    shared: State<Shared>,
    user: Extension<User>,
    id: Result<Path<u64>, PathRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let change: SettingsChange = read(body)?;
    check_proxy(change.proxy.as_ref())?;
    request(shared, user, id, &headers, Request::Set(Box::new(change))).await
}

async fn add_files(
    shared: State<Shared>,
    user: Extension<User>,
    id: Result<Path<u64>, PathRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let files: Vec<FileSpec> = read(body)?;
    check(&files)?;
    request(shared, user, id, &headers, Request::AddFiles(files)).await
}

async fn replace_url(
    shared: State<Shared>,
    user: Extension<User>,
    ids: Result<Path<(u64, u32)>, PathRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Path((id, file)) = ids.map_err(|rejection| usage(rejection.body_text()))?;
    let NewUrl { url } = read(body)?;
    let file = FileIndex(file);
    request(
        shared,
        user,
        Ok(Path(id)),
        &headers,
        Request::ReplaceUrl { file, url },
    )
    .await
}

async fn replace_prefix(
    shared: State<Shared>,
    user: Extension<User>,
    id: Result<Path<u64>, PathRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let NewPrefix { from, to } = read(body)?;
    request(
        shared,
        user,
        id,
        &headers,
        Request::ReplacePrefix { from, to },
    )
    .await
}

/// A route that asks this of a job, without a body.
fn asks(what: Request) -> MethodRouter<Shared> {
    post(
        move |shared: State<Shared>,
              user: Extension<User>,
              id: Result<Path<u64>, PathRejection>,
              headers: HeaderMap| {
            let what = what.clone();
            async move { request(shared, user, id, &headers, what).await }
        },
    )
}

/// Asks something of a job; the answer is the job as it is then.
async fn request(
    State(shared): State<Shared>,
    Extension(user): Extension<User>,
    id: Result<Path<u64>, PathRejection>,
    headers: &HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let (id, expected, caller) = (job_id(id)?, expected(headers)?, user.caller());
    let changed = desk(&shared)?
        .change(move |jobs, now| {
            jobs.handle_request(now, caller, id, expected, request)?;
            jobs.view(now, caller, id, FileIndex(0), FILES_SHOWN)
        })
        .await?;
    Ok(answer(changed?))
}

/// What happens to the caller's jobs, as server-sent events (WHATWG HTML, 9.2), from now on or after a number.
async fn events(
    State(shared): State<Shared>,
    Extension(user): Extension<User>,
    headers: HeaderMap,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|rejection| usage(rejection.body_text()))?;
    let last = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    let desk = desk(&shared)?;
    let seen = desk.events();
    let after = EventSeq(query.after.or(last).unwrap_or_else(|| seen.borrow().0));
    let follower = Follower {
        desk,
        seen,
        after,
        caller: user.caller(),
        job: query.job.map(JobId),
        pending: Vec::new(),
    };
    let stop = shared.stop.clone().cancelled_owned();
    let sent = futures_util::StreamExt::take_until(follower.into_stream(), Box::pin(stop));
    Ok(Sse::new(sent)
        .keep_alive(KeepAlive::default())
        .into_response())
}

struct Follower {
    desk: JobDesk,
    seen: watch::Receiver<EventSeq>,
    after: EventSeq,
    caller: Caller,
    job: Option<JobId>,
    /// Last first.
    pending: Vec<SentEvent>,
}

impl Follower {
    fn into_stream(self) -> impl Stream<Item = Result<SentEvent, Infallible>> {
        stream::unfold(self, async |mut follower| {
            loop {
                if let Some(event) = follower.pending.pop() {
                    return Some((Ok(event), follower));
                }
                if *follower.seen.borrow_and_update() <= follower.after {
                    follower.seen.changed().await.ok()?;
                }
                follower.fetch().await?;
            }
        })
    }

    async fn fetch(&mut self) -> Option<()> {
        let (caller, after, job) = (self.caller, self.after, self.job);
        let look = move |jobs: &Jobs, _| {
            let mut sent = Vec::new();
            if !jobs.has_all_events_after(after) {
                sent.push(SentEvent::default().event("lost").data("{}"));
            }
            let of_job = |event: &&branchline_core::jobs::LoggedEvent| {
                job.is_none_or(|job| event.job == job)
            };
            for event in jobs.events_after(caller, after).filter(of_job) {
                let data = serde_json::to_string(event).unwrap_or_default();
                sent.push(SentEvent::default().id(event.seq.to_string()).data(data));
            }
            sent.reverse();
            (sent, jobs.last_event())
        };
        let (pending, last) = self.desk.ask(look).await.ok()?;
        self.pending = pending;
        self.after = last;
        Some(())
    }
}

fn desk(shared: &Shared) -> Result<JobDesk, Problem> {
    let none = || {
        let message = "jobs: this agent keeps none";
        Problem::from(Failure::new(FailureKind::AgentUnreachable, message))
    };
    shared.desk.clone().ok_or_else(none)
}

fn answer(view: JobView) -> Response {
    let tag = format!("\"{}\"", view.summary.revision);
    let tag = HeaderValue::from_str(&tag).expect("digits between quotes");
    ([(header::ETAG, tag)], Json(view)).into_response()
}

/// RFC 9110, section 13.1.1: one tag of ours, or any.
fn expected(headers: &HeaderMap) -> Result<Option<Revision>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let number = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    let revision = number.and_then(|number| number.parse().ok());
    let none = || usage("If-Match is the ETag of the job, or *".into());
    revision
        .map(|number| Some(Revision(number)))
        .ok_or_else(none)
}

fn job_id(id: Result<Path<u64>, PathRejection>) -> Result<JobId, Problem> {
    let Path(id) = id.map_err(|rejection| usage(rejection.body_text()))?;
    Ok(JobId(id))
}

fn read<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Problem> {
    let body = body.map_err(|rejection| Problem {
        status: rejection.status(),
        failure: failure(FailureKind::Usage, rejection.body_text()),
    })?;
    serde_json::from_slice(&body).map_err(|error| usage(error.to_string()))
}

fn check_spec(spec: &JobSpec) -> Result<(), Problem> {
    check_proxy(Some(&spec.settings.proxy))?;
    check(&spec.files)
}

fn check_proxy(proxy: Option<&ProxyChoice>) -> Result<(), Problem> {
    match proxy {
        None | Some(ProxyChoice::Preconfigured) => Ok(()),
        Some(ProxyChoice::None | ProxyChoice::Url(_)) => Err(usage(
            "jobs have no proxies of their own yet; leave it `preconfigured`".into(),
        )),
    }
}

/// What is not done yet is refused, not passed over.
fn check(files: &[FileSpec]) -> Result<(), Problem> {
    for file in files {
        let url = url::Url::parse(file.url.expose());
        let fetched = url.is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if !fetched {
            return Err(usage(format!(
                "{}: only http and https URLs are fetched",
                file.url
            )));
        }
        if !file.ranges.is_empty() {
            return Err(usage(format!(
                "{}: parts of files are not fetched yet",
                file.url
            )));
        }
    }
    Ok(())
}

fn usage(message: String) -> Problem {
    failure(FailureKind::Usage, message).into()
}

fn failure(kind: FailureKind, message: impl std::fmt::Display) -> Failure {
    Failure::new(kind, format!("jobs: {message}"))
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        let status = match &error {
            RequestError::NoSuchJob(_) | RequestError::NoSuchFile { .. } => StatusCode::NOT_FOUND,
            RequestError::WrongState { .. }
            | RequestError::Placing
            | RequestError::EmptyJob
            | RequestError::FileFinished(_)
            | RequestError::PrefixNotFound => StatusCode::CONFLICT,
            RequestError::RevisionMismatch { .. } => StatusCode::PRECONDITION_FAILED,
            RequestError::NotAUrl(_) | RequestError::Spec(_) => StatusCode::BAD_REQUEST,
            RequestError::Quota { .. } => StatusCode::TOO_MANY_REQUESTS,
        };
        Self {
            status,
            failure: failure(FailureKind::Usage, error),
        }
    }
}
