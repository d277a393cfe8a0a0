//! The routes of jobs: each asks the desk one thing.

use std::collections::BTreeSet;
use std::convert::Infallible;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event as SentEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use branchline_core::jobs::{
    Caller, EventSeq, FileIndex, FileSpec, Filter, Header, JobId, JobSpec, JobView, Jobs, MAX_PAGE,
    NotifySettings, Now, Page, ProxyChoice, RemoteUrl, Request, RequestError, Revision,
    SettingsChange, StateKind, TargetPath, UserId,
};
use branchline_origin::Target;
use futures_util::stream::{self, Stream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::{Problem, Problems};
use super::server::{Shared, User};
use crate::api::{Failure, FailureKind};
use crate::jobs::{JobDesk, proxy_of};

/// Files of a job that an answer shows unless more are asked for.
const FILES_SHOWN: usize = 100;

/// Jobs that a page has unless others are asked for.
const JOBS_SHOWN: usize = 100;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(create_many))
        .routes(routes!(show, set))
        .routes(routes!(add_files))
        .routes(routes!(replace_url))
        .routes(routes!(replace_prefix))
        .routes(routes!(resume))
        .routes(routes!(suspend))
        .routes(routes!(complete))
        .routes(routes!(cancel))
        .routes(routes!(events))
}

/// Which jobs, and how many.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// States of jobs, with commas between them.
    state: Option<String>,
    /// The user whose jobs are listed.
    owner: Option<u32>,
    /// What their names hold, in any case.
    name: Option<String>,
    /// Where one of their files comes to lie.
    path: Option<TargetPath>,
    /// The page begins with the job after this one.
    after: Option<u64>,
    /// How many jobs it has at most.
    limit: Option<usize>,
}

/// Which of its files.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ShowQuery {
    /// The first file that is shown.
    file: Option<u32>,
    /// How many of them are shown at most.
    limit: Option<usize>,
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventsQuery {
    /// Events after this number; those that come from now on when nothing is said.
    after: Option<u64>,
    /// Of this job alone.
    job: Option<u64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewUrl {
    url: RemoteUrl,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewPrefix {
    from: String,
    to: String,
}

/// Lists jobs.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", params(ListQuery), responses((status = 200, body = Page), Problems))]
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
        path: query.path,
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

/// Makes a job.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", request_body = JobSpec, responses((status = 201, body = JobView, headers(("etag" = String))), Problems))]
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
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Created {
    Id(JobId),
    Refused(String),
}

/// Makes jobs, each for itself.
#[utoipa::path(post, path = "/v1/jobs/batch", tag = "jobs", request_body = Vec<JobSpec>, responses((status = 201, body = Vec<Created>), Problems))]
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

/// A job, with some of its files.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = u64, Path, description = "The job's number", example = 1), ShowQuery), responses((status = 200, body = JobView, headers(("etag" = String))), Problems))]
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

/// Changes settings.
#[utoipa::path(patch, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = u64, Path, description = "The job's number", example = 1), ("if-match" = Option<String>, Header, description = "The ETag of the job as it was seen, or *")), request_body = SettingsChange, responses((status = 200, body = JobView, headers(("etag" = String))), Problems))]
async fn set(
    shared: State<Shared>,
    user: Extension<User>,
    id: Result<Path<u64>, PathRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let change: SettingsChange = read(body)?;
    check_asking(
        change.headers.as_deref().unwrap_or_default(),
        change.proxy.as_ref(),
    )?;
    check_webhook(change.notify.as_ref())?;
    request(shared, user, id, &headers, Request::Set(Box::new(change))).await
}

/// Adds files.
#[utoipa::path(post, path = "/v1/jobs/{id}/files", tag = "jobs", params(("id" = u64, Path, description = "The job's number", example = 1), ("if-match" = Option<String>, Header, description = "The ETag of the job as it was seen, or *")), request_body = Vec<FileSpec>, responses((status = 200, body = JobView, headers(("etag" = String))), Problems))]
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

/// Replaces the URL of a file.
#[utoipa::path(put, path = "/v1/jobs/{id}/files/{file}/url", tag = "jobs", params(("id" = u64, Path, description = "The job's number", example = 1), ("file" = u32, Path, description = "Which of its files, from 0", example = 0), ("if-match" = Option<String>, Header, description = "The ETag of the job as it was seen, or *")), request_body = NewUrl, responses((status = 200, body = JobView, headers(("etag" = String))), Problems))]
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

/// Replaces what the URLs of unfinished files begin with.
#[utoipa::path(post, path = "/v1/jobs/{id}/replace-prefix", tag = "jobs", params(("id" = u64, Path, description = "The job's number", example = 1), ("if-match" = Option<String>, Header, description = "The ETag of the job as it was seen, or *")), request_body = NewPrefix, responses((status = 200, body = JobView, headers(("etag" = String))), Problems))]
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

/// Starts a job, or goes on with it.
#[utoipa::path(post, path = "/v1/jobs/{id}/resume", tag = "jobs", params(("id" = u64, Path, description = "The job's number", example = 1), ("if-match" = Option<String>, Header, description = "The ETag of the job as it was seen, or *")), responses((status = 200, body = JobView, headers(("etag" = String))), Problems))]
async fn resume(
    shared: State<Shared>,
    user: Extension<User>,
    asked: Asked,
) -> Result<Response, Problem> {
    request(shared, user, asked.id, &asked.headers, Request::Resume).await
}

/// Stops a job for now.
#[utoipa::path(post, path = "/v1/jobs/{id}/suspend", tag = "jobs", params(("id" = u64, Path, description = "The job's number", example = 1), ("if-match" = Option<String>, Header, description = "The ETag of the job as it was seen, or *")), responses((status = 200, body = JobView, headers(("etag" = String))), Problems))]
async fn suspend(
    shared: State<Shared>,
    user: Extension<User>,
    asked: Asked,
) -> Result<Response, Problem> {
    request(shared, user, asked.id, &asked.headers, Request::Suspend).await
}

/// Gives the files of a job their names.
#[utoipa::path(post, path = "/v1/jobs/{id}/complete", tag = "jobs", params(("id" = u64, Path, description = "The job's number", example = 1), ("if-match" = Option<String>, Header, description = "The ETag of the job as it was seen, or *")), responses((status = 200, body = JobView, headers(("etag" = String))), Problems))]
async fn complete(
    shared: State<Shared>,
    user: Extension<User>,
    asked: Asked,
) -> Result<Response, Problem> {
    request(shared, user, asked.id, &asked.headers, Request::Complete).await
}

/// Ends a job.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", tag = "jobs", params(("id" = u64, Path, description = "The job's number", example = 1), ("if-match" = Option<String>, Header, description = "The ETag of the job as it was seen, or *")), responses((status = 200, body = JobView, headers(("etag" = String))), Problems))]
async fn cancel(
    shared: State<Shared>,
    user: Extension<User>,
    asked: Asked,
) -> Result<Response, Problem> {
    request(shared, user, asked.id, &asked.headers, Request::Cancel).await
}

/// Of which job something is asked that needs no body.
struct Asked {
    id: Result<Path<u64>, PathRejection>,
    headers: HeaderMap,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self {
            id: Path::from_request_parts(parts, state).await,
            headers: parts.headers.clone(),
        })
    }
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
#[utoipa::path(get, path = "/v1/events", tag = "jobs", params(EventsQuery, ("last-event-id" = Option<u64>, Header, description = "As `after`")), responses((status = 200, content_type = "text/event-stream", body = String), Problems))]
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
    check_asking(&spec.settings.headers, Some(&spec.settings.proxy))?;
    check_webhook(Some(&spec.settings.notify))?;
    check(&spec.files)
}

fn check_webhook(notify: Option<&NotifySettings>) -> Result<(), Problem> {
    match notify.and_then(|notify| notify.webhook.as_ref()) {
        Some(url) if !is_http(url) => Err(usage(format!("{url}: webhooks are http or https URLs"))),
        Some(_) | None => Ok(()),
    }
}

fn is_http(url: &RemoteUrl) -> bool {
    let url = url::Url::parse(url.expose());
    url.is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}

/// What the origin's client would refuse is refused before there is a job.
fn check_asking(headers: &[Header], proxy: Option<&ProxyChoice>) -> Result<(), Problem> {
    let headers = headers.iter();
    let headers = headers.map(|it| (it.name.clone(), it.value.expose().to_owned()));
    let target = Target::new("http://origin/", headers);
    let target = target.map_err(|error| usage(error.to_string()))?;
    if let Some(choice) = proxy.and_then(proxy_of) {
        target
            .through(choice)
            .map_err(|error| usage(error.to_string()))?;
    }
    Ok(())
}

/// Whether these can be fetched at all.
fn check(files: &[FileSpec]) -> Result<(), Problem> {
    for file in files {
        if !is_http(&file.url) {
            return Err(usage(format!(
                "{}: only http and https URLs are fetched",
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
