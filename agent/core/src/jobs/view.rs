//! What clients see of jobs: no secrets, times as spans.

use std::collections::BTreeSet;

use std::borrow::Cow;

use branchline_hashing::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::file::File;
use super::job::Job;
use super::schema::digest;
use super::{
    BySource, ByteRange, ErrorContext, FileIndex, FileState, Header, JobError, JobId, JobKind,
    JobTime, Jobs, NotifySettings, Now, Permanence, Priority, Proof, ProxyChoice, RetryPolicy,
    Revision, Settings, StateKind, TargetPath, Trouble, UnixSeconds, UserId, Why,
};

/// A row of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobSummary {
    /// Its number.
    pub id: JobId,
    /// Whose it is.
    pub owner: UserId,
    /// What people call it.
    pub name: String,
    /// What it does.
    pub kind: JobKind,
    /// Where it stands.
    pub state: StateKind,
    /// Who goes first.
    pub priority: Priority,
    /// How many files it has.
    pub files: usize,
    /// How many of them are there, under their hidden names or their own.
    pub files_done: u32,
    /// How many bytes all have; `None` while that is not known of each.
    pub length: Option<u64>,
    /// How many bytes are here.
    pub bytes: u64,
    /// Where they came from.
    pub sources: BySource,
    /// What failed, in one line.
    pub error: Option<String>,
    /// What it waits for, in one line.
    pub why: String,
    /// When it was made.
    pub created: UnixSeconds,
    /// Raised with each lasting change.
    pub revision: Revision,
}

/// A job, with a page of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// As in a list.
    #[serde(flatten)]
    pub summary: JobSummary,
    /// What can be changed.
    pub settings: SettingsView,
    /// How long it has been in this state.
    pub seconds_in_state: u64,
    /// How long it has had transfers running.
    pub active_seconds: u64,
    /// What failed.
    pub last_error: Option<ErrorView>,
    /// When what it waits for ends at the latest.
    pub wait_ends_in_seconds: Option<u64>,
    /// When it ended.
    pub ended: Option<UnixSeconds>,
    /// Some of its files.
    pub file_page: Vec<FileView>,
    /// The first file of the next page.
    pub next_file: Option<FileIndex>,
}

/// Settings without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettingsView {
    /// What people call it.
    pub name: String,
    /// Anything.
    pub description: String,
    /// Who goes first.
    pub priority: Priority,
    /// Sent to the origin.
    pub headers: Vec<HeaderView>,
    /// The user at the origin; his password is not told.
    pub user: Option<String>,
    /// `preconfigured`, `none`, or a URL without its password.
    pub proxy: String,
    /// When it tries again, and when it gives up.
    pub retry: RetryPolicy,
    /// Where it is told, without a password.
    pub webhook: Option<String>,
    /// What is run.
    pub command: Vec<String>,
    /// What is told.
    pub notify_of: BTreeSet<super::NotifyOf>,
    /// Whether it completes itself.
    pub auto_complete: bool,
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeaderView {
    /// Its name.
    pub name: String,
    /// Its value, unless that is secret.
    pub value: Option<String>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileView {
    /// Which of its job.
    pub index: FileIndex,
    /// Where from, without a password.
    pub url: String,
    /// Where to.
    pub path: TargetPath,
    /// Which bytes; all when none are named.
    pub ranges: Vec<ByteRange>,
    /// What it must be.
    #[schema(schema_with = digest)]
    pub digest: Option<Digest>,
    /// `waiting`, `running`, `stopping`, `retry_later`, `failed`, `staged`, `placing`, `in_place` or `dropped`.
    #[schema(value_type = String)]
    pub state: Cow<'static, str>,
    /// What failed.
    pub error: Option<ErrorView>,
    /// How many bytes it has.
    pub length: Option<u64>,
    /// How many are here.
    pub bytes: u64,
    /// Where they came from.
    pub sources: BySource,
    /// How often it changed at the origin while it was fetched.
    pub changes: u32,
    /// How many agents it takes segments from.
    pub peers: u32,
    /// What its transfer waits for, when nothing arrives.
    pub waiting_for: Option<String>,
    /// What it is, once it is here.
    pub proof: Option<Proof>,
    /// What its owner should read.
    pub notices: Vec<String>,
}

/// What failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorView {
    /// Where.
    pub context: ErrorContext,
    /// Why, in one line.
    pub cause: String,
    /// With which file.
    pub file: Option<FileIndex>,
    /// Whether it is tried again by itself.
    pub transient: bool,
    /// When.
    pub retry_in_seconds: Option<u64>,
}

impl Jobs {
    pub(super) fn summary(&self, now: Now, job: &Job) -> JobSummary {
        self.summary_with(job, &self.why_of(now, job))
    }

    fn summary_with(&self, job: &Job, why: &Why) -> JobSummary {
        let (record, sums) = (&job.record, job.files.sums());
        JobSummary {
            id: record.id,
            owner: record.owner,
            name: record.settings.name.clone(),
            kind: record.kind,
            state: job.kind(),
            priority: record.settings.priority,
            files: job.files.len(),
            files_done: sums.finished,
            length: (sums.unmeasured == 0).then_some(sums.length),
            bytes: sums.bytes,
            sources: sums.sources,
            error: record.state.error().map(ToString::to_string),
            why: why.to_string(),
            created: record.created,
            revision: record.revision,
        }
    }

    pub(super) fn view_of(&self, now: Now, job: &Job, first: FileIndex, most: usize) -> JobView {
        let why = self.why_of(now, job);
        let error = job.record.state.error();
        let files = job.files.iter().skip(first.at());
        let page: Vec<FileView> = files
            .take(most)
            .map(|(index, file)| file_view(now.time, index, file))
            .collect();
        let end = FileIndex(
            first
                .0
                .saturating_add(u32::try_from(page.len()).unwrap_or(u32::MAX)),
        );
        JobView {
            summary: self.summary_with(job, &why),
            settings: settings_view(&job.record.settings),
            seconds_in_state: now.time.since(job.record.since).as_secs(),
            active_seconds: job.active(now.time).as_secs(),
            last_error: error.map(|error| error_view(now.time, error)),
            wait_ends_in_seconds: why.until.map(|until| until.since(now.time).as_secs()),
            ended: job.record.state.ended(),
            file_page: page,
            next_file: (end.at() < job.files.len()).then_some(end),
        }
    }
}

fn settings_view(settings: &Settings) -> SettingsView {
    let NotifySettings {
        webhook,
        command,
        of,
    } = &settings.notify;
    SettingsView {
        name: settings.name.clone(),
        description: settings.description.clone(),
        priority: settings.priority,
        headers: settings.headers.iter().map(header_view).collect(),
        user: settings.credentials.as_ref().map(|it| it.user.clone()),
        proxy: match &settings.proxy {
            ProxyChoice::Preconfigured => "preconfigured".to_owned(),
            ProxyChoice::None => "none".to_owned(),
            ProxyChoice::Url(url) => url.to_string(),
        },
        retry: settings.retry,
        webhook: webhook.as_ref().map(ToString::to_string),
        command: command.clone(),
        notify_of: of.clone(),
        auto_complete: settings.auto_complete,
    }
}

fn header_view(header: &Header) -> HeaderView {
    HeaderView {
        name: header.name.clone(),
        value: (!header.secret).then(|| header.value.expose().to_owned()),
    }
}

fn file_view(now: JobTime, index: FileIndex, file: &File) -> FileView {
    let record = &file.record;
    let error = match &record.state {
        FileState::RetryLater { trouble, at, .. } => {
            Some(JobError::transient(trouble.clone(), Some(index), Some(*at)))
        }
        FileState::Failed { trouble } => Some(JobError::permanent(trouble.clone(), Some(index))),
        FileState::Waiting
        | FileState::Staged
        | FileState::Placing
        | FileState::InPlace
        | FileState::Dropped { .. } => None,
    };
    FileView {
        index,
        url: record.spec.url.to_string(),
        path: record.spec.path.clone(),
        ranges: record.spec.ranges.clone(),
        digest: record.spec.digest,
        state: file_state_word(file).into(),
        error: error.map(|error| error_view(now, &error)),
        length: record.length,
        bytes: record.bytes,
        sources: file.sources(),
        changes: record.changes,
        peers: file.live.peers,
        waiting_for: file.live.waiting_for.clone(),
        proof: record.proof,
        notices: record.notices.clone(),
    }
}

fn file_state_word(file: &File) -> &'static str {
    match (&file.record.state, &file.transfer) {
        (FileState::Waiting, Some(transfer)) if transfer.stopping => "stopping",
        (FileState::Waiting, Some(_)) => "running",
        (FileState::Waiting, None) => "waiting",
        (FileState::RetryLater { .. }, _) => "retry_later",
        (FileState::Failed { .. }, _) => "failed",
        (FileState::Staged, _) => "staged",
        (FileState::Placing, _) => "placing",
        (FileState::InPlace, _) => "in_place",
        (FileState::Dropped { .. }, _) => "dropped",
    }
}

fn error_view(now: JobTime, error: &JobError) -> ErrorView {
    let Trouble { context, cause } = &error.trouble;
    let (transient, retry_at) = match error.permanence {
        Permanence::Permanent => (false, None),
        Permanence::Transient { retry_at } => (true, retry_at),
    };
    ErrorView {
        context: *context,
        cause: cause.clone(),
        file: error.file,
        transient,
        retry_in_seconds: retry_at.map(|at| at.since(now).as_secs()),
    }
}
