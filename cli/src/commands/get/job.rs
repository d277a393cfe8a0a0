//! A download as a job of the running agent.
//!
//! The job is as lasting as any: when this command is interrupted, or killed, the agent goes on with it. The same command
//! returns to it. Only what fails while somebody waits is not tried again behind his back.

use std::time::Instant;

use branchline_agent::api::jobs::{
    FileIndex, FileSpec, FileView, Filter, Header, JobSpec, JobSummary, JobView, Priority, Request,
    Secret, Settings, SettingsChange, StateKind, TargetPath, UserId,
};
use branchline_agent::api::{Failure, FailureKind, GetReport, GetRequest, Progress};
use branchline_agent::control::{Client, ClientError};
use branchline_hashing::Digest;

use crate::commands::job::{failure_kind, remote, until_next_look};
use crate::output::{self, Bar};

/// The only file of such a job.
const FILE: FileIndex = FileIndex(0);

/// States of jobs that may still bring their file.
const UNDER_WAY: [StateKind; 7] = [
    StateKind::Suspended,
    StateKind::Queued,
    StateKind::Connecting,
    StateKind::Transferring,
    StateKind::TransientError,
    StateKind::Error,
    StateKind::Transferred,
];

pub(super) struct JobGet {
    client: Client,
    request: GetRequest,
    view: JobView,
    /// What it was before this command came, if it did not make it.
    taken_up: Option<Priority>,
    started: Instant,
    /// Notices that were shown already.
    notices_shown: usize,
    /// What holds it up, as it was said last.
    held_up: Option<StateKind>,
}

/// What has become of the job.
enum Outcome {
    UnderWay,
    /// Nothing comes, but that may change: it is waited for, and said once.
    HeldUp,
    /// It is here, and waits for a word.
    Complete,
    Done,
    Ended(Failure),
    Failed,
}

impl JobGet {
    /// Makes the job, or returns to the one that is there; `None` where no agent runs.
    pub(super) async fn take_up(
        request: &GetRequest,
        client: Client,
    ) -> Result<Option<Self>, Failure> {
        let started = Instant::now();
        let file = match file(request) {
            Ok(file) => file,
            // What cannot be asked of an agent can be done without one.
            Err(failure) => match client.status().await {
                Err(ClientError::NotRunning { .. }) => return Ok(None),
                Ok(_) | Err(_) => return Err(failure),
            },
        };
        let found = match found(&file, &client).await {
            Err(ClientError::NotRunning { .. }) => return Ok(None),
            found => found?,
        };
        let taken_up = found.as_ref().map(|view| view.summary.priority);
        let view = match found {
            Some(view) => resume(view, request, &client).await?,
            None => client.create_job(&spec(request, file)).await?,
        };
        Ok(Some(Self {
            client,
            request: request.clone(),
            notices_shown: view.file_page.first().map_or(0, |file| file.notices.len()),
            view,
            taken_up,
            started,
            held_up: None,
        }))
    }

    /// Until the file is there, or will not come by itself.
    pub(super) async fn follow(&mut self) -> Result<GetReport, Failure> {
        let bar = Bar::new();
        let id = self.view.summary.id;
        let mut events = self.client.events(Some(id)).await?;
        loop {
            self.view = self.client.job(id, FILE).await?;
            self.show(&bar)?;
            match self.outcome() {
                Outcome::UnderWay => self.held_up = None,
                Outcome::HeldUp => self.say_why(&bar),
                Outcome::Complete => {
                    self.client.request(id, &Request::Complete).await?;
                }
                Outcome::Done => return self.report(),
                Outcome::Ended(failure) => return Err(failure),
                Outcome::Failed => return Err(self.give_up().await),
            }
            until_next_look(id, &mut events, &bar).await?;
        }
    }

    /// The command goes before the job is done. Gives what to do now.
    pub(super) async fn leave(self, cancels: bool) -> String {
        let id = self.view.summary.id;
        let request = match cancels {
            true => Request::Cancel,
            false => self.in_the_background(),
        };
        match (self.client.request(id, &request).await, cancels) {
            (Ok(_), true) => format!("job {id} is cancelled, and what it had fetched is removed"),
            (Ok(_), false) => format!(
                "job {id} goes on in the background; the same command returns to it, `branchline job cancel {id}` ends it"
            ),
            (Err(error), _) => format!("job {id} is left as it is: {error}"),
        }
    }

    /// Nobody waits for it any more: it is one of many, or what it was before.
    fn in_the_background(&self) -> Request {
        Request::Set(Box::new(SettingsChange {
            priority: Some(self.taken_up.unwrap_or(Priority::Normal)),
            ..SettingsChange::default()
        }))
    }

    fn file(&self) -> Result<&FileView, Failure> {
        let none = || {
            let message = format!("get: job {} has no file", self.view.summary.id);
            Failure::new(FailureKind::AgentUnreachable, message)
        };
        self.view.file_page.first().ok_or_else(none)
    }

    fn show(&mut self, bar: &Bar) -> Result<(), Failure> {
        let file = self.file()?;
        bar.show(&progress(file));
        let notices = file.notices.get(self.notices_shown..).unwrap_or_default();
        for notice in notices {
            bar.aside(|| output::complain(notice));
        }
        self.notices_shown += notices.len();
        Ok(())
    }

    fn say_why(&mut self, bar: &Bar) {
        let summary = &self.view.summary;
        if self.held_up != Some(summary.state) {
            let line = format!("get: job {} is {}", summary.id, summary.why);
            bar.aside(|| output::complain(&line));
            self.held_up = Some(summary.state);
        }
    }

    fn outcome(&self) -> Outcome {
        let id = self.view.summary.id;
        let error = self.view.last_error.as_ref();
        match self.view.summary.state {
            StateKind::Queued | StateKind::Connecting | StateKind::Transferring => {
                Outcome::UnderWay
            }
            StateKind::Transferred if self.file().is_ok_and(|file| file.state == "staged") => {
                match self.view.settings.auto_complete {
                    // It completes itself, in a moment.
                    true => Outcome::UnderWay,
                    false => Outcome::Complete,
                }
            }
            StateKind::Transferred => Outcome::UnderWay,
            StateKind::Suspended => Outcome::HeldUp,
            // Without a time to try again at it waits for a network.
            StateKind::TransientError if error.is_some_and(|it| it.retry_in_seconds.is_none()) => {
                Outcome::HeldUp
            }
            StateKind::TransientError | StateKind::Error => Outcome::Failed,
            StateKind::Acknowledged => Outcome::Done,
            StateKind::Cancelled => {
                let message = format!("get: job {id} was cancelled");
                Outcome::Ended(Failure::new(FailureKind::Interrupted, message))
            }
        }
    }

    /// A job that this command made and that has nothing would only be in the way; all others are kept for the same
    /// command, and try nothing behind its back.
    async fn give_up(&self) -> Failure {
        let summary = &self.view.summary;
        let id = summary.id;
        let (requests, kept) = match (self.taken_up, summary.bytes) {
            (None, 0) => (vec![Request::Cancel], String::new()),
            (None | Some(_), _) => {
                let kept = format!("; job {id} keeps what is here, the same command goes on");
                // In `error` it tries nothing by itself, either.
                let falters = summary.state == StateKind::TransientError;
                let suspend = falters.then_some(Request::Suspend);
                (
                    suspend
                        .into_iter()
                        .chain([self.in_the_background()])
                        .collect(),
                    kept,
                )
            }
        };
        for request in requests {
            if let Err(error) = self.client.request(id, &request).await {
                tracing::warn!(job = %id, %error, "the job is left as it is");
            }
        }
        let error = self.view.last_error.as_ref();
        let cause = error.map_or(summary.why.as_str(), |error| error.cause.as_str());
        Failure::new(failure_kind(&self.view), format!("{cause}{kept}"))
    }

    fn report(&self) -> Result<GetReport, Failure> {
        let file = self.file()?;
        let proof = file.proof.ok_or_else(|| {
            let message = format!(
                "get: job {} does not say what it has fetched",
                self.view.summary.id
            );
            Failure::new(FailureKind::AgentUnreachable, message)
        })?;
        Ok(GetReport {
            url: branchline_agent::api::without_password(&self.request.url),
            path: self.request.path.clone(),
            bytes: file.bytes,
            from_origin: file.sources.from_origin,
            from_peers: file.sources.from_peers,
            from_store: file.sources.from_store,
            seconds: self.started.elapsed().as_secs_f64(),
            content: proof.content,
            trust: proof.trust,
            notices: file.notices.clone(),
            job: Some(self.view.summary.id),
        })
    }
}

fn progress(file: &FileView) -> Progress {
    Progress {
        bytes: file.length,
        from_origin: file.sources.from_origin,
        from_peers: file.sources.from_peers,
        from_store: file.sources.from_store,
        peers: file.peers,
        waiting_for: file.waiting_for.clone(),
    }
}

fn file(request: &GetRequest) -> Result<FileSpec, Failure> {
    let usage = |message: String| Failure::new(FailureKind::Usage, format!("get: {message}"));
    let path = request.path.to_str().ok_or_else(|| {
        let path = request.path.display();
        usage(format!("{path}: the path is no UTF-8; choose another"))
    })?;
    let digest = request.sha256.map(Digest::Sha256);
    Ok(FileSpec {
        url: remote(&request.url)?,
        path: TargetPath::new(path).map_err(|error| usage(error.to_string()))?,
        ranges: Vec::new(),
        digest: digest.or_else(|| request.blake3.map(Digest::Blake3)),
        without_manifest: request.without_manifest,
    })
}

fn spec(request: &GetRequest, file: FileSpec) -> JobSpec {
    let name = request.path.file_name().unwrap_or_default();
    let name = name.to_string_lossy().replace(char::is_control, "_");
    JobSpec {
        kind: Default::default(),
        settings: Settings {
            name,
            priority: Priority::Foreground,
            headers: headers(request),
            auto_complete: true,
            ..Settings::default()
        },
        files: vec![file],
        start: true,
    }
}

/// Nobody has said which of them are secret.
fn headers(request: &GetRequest) -> Vec<Header> {
    let header = |(name, value): &(String, String)| Header {
        name: name.clone(),
        value: Secret::new(value.clone()),
        secret: true,
    };
    request.headers.iter().map(header).collect()
}

/// This user's job that was to bring this very file here, and has not ended.
async fn found(file: &FileSpec, client: &Client) -> Result<Option<JobView>, ClientError> {
    let filter = Filter {
        owner: Some(UserId(rustix::process::geteuid().as_raw())),
        states: Some(UNDER_WAY.into()),
        path: Some(file.path.clone()),
        ..Filter::default()
    };
    let page = client.jobs(&filter, None).await?;
    let Some(job) = page.jobs.first() else {
        return Ok(None);
    };
    let view = client.job(job.id, FILE).await?;
    let only = view.file_page.first().filter(|_| job.files == 1);
    match only.is_some_and(|it| is_same(it, file)) {
        true => Ok(Some(view)),
        false => Err(in_the_way(job, file).into()),
    }
}

fn in_the_way(job: &JobSummary, file: &FileSpec) -> Failure {
    let (id, path) = (job.id, &file.path);
    let message = format!(
        "get: {path}: job {id} is there to write this file, from another URL or with others; choose another name with -o, or end it with `branchline job cancel {id}`"
    );
    Failure::new(FailureKind::LocalDisk, message)
}

/// A password in the URL is not told: another one alone makes no other file.
fn is_same(shown: &FileView, file: &FileSpec) -> bool {
    shown.url == file.url.to_string() && shown.digest == file.digest && shown.ranges == file.ranges
}

/// Goes on with it for somebody who waits, as this command says. One that has just ended is as good.
async fn resume(
    view: JobView,
    request: &GetRequest,
    client: &Client,
) -> Result<JobView, ClientError> {
    let id = view.summary.id;
    match taken_up(&view, request, client).await {
        Err(ClientError::Refused(refused)) => {
            let now = client.job(id, FILE).await?;
            match now.summary.state {
                StateKind::Transferred | StateKind::Acknowledged => Ok(now),
                StateKind::Suspended
                | StateKind::Queued
                | StateKind::Connecting
                | StateKind::Transferring
                | StateKind::TransientError
                | StateKind::Error
                | StateKind::Cancelled => Err(refused.into()),
            }
        }
        taken_up => taken_up,
    }
}

async fn taken_up(
    view: &JobView,
    request: &GetRequest,
    client: &Client,
) -> Result<JobView, ClientError> {
    let id = view.summary.id;
    let headers = headers(request);
    let change = SettingsChange {
        priority: Some(Priority::Foreground),
        headers: (!headers.is_empty()).then_some(headers),
        ..SettingsChange::default()
    };
    let set = client.request(id, &Request::Set(Box::new(change))).await?;
    if set.summary.state == StateKind::Transferred {
        return Ok(set);
    }
    // It may be another one than before; a transfer that runs has shown that it was good.
    if request.url.password().is_some() && set.summary.state != StateKind::Transferring {
        let (file, url) = (FILE, remote(&request.url)?);
        let replace = Request::ReplaceUrl { file, url };
        client.request(id, &replace).await?;
    }
    client.request(id, &Request::Resume).await
}
