//! What is asked for: a job's settings and files.

use std::collections::BTreeSet;
use std::time::Duration;

use branchline_hashing::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::schema::digest;
use super::time::seconds;
use super::{RemoteUrl, Secret, TargetPath};

/// A job as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// What it does.
    #[serde(default)]
    pub kind: JobKind,
    /// What can be changed later.
    #[serde(default)]
    pub settings: Settings,
    /// Its first files; more may be added.
    #[serde(default)]
    pub files: Vec<FileSpec>,
    /// Whether it is resumed in the same step.
    #[serde(default)]
    pub start: bool,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// From origins to this machine.
    #[default]
    Download,
}

/// One file of a download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Where from.
    pub url: RemoteUrl,
    /// Where to.
    pub path: TargetPath,
    /// Which bytes; all when none are named.
    #[serde(default)]
    pub ranges: Vec<ByteRange>,
    /// The whole file's digest, when somebody knows it.
    #[serde(default)]
    #[schema(schema_with = digest, required = false)]
    pub digest: Option<Digest>,
    /// No manifest is looked for, nor believed.
    #[serde(default)]
    pub without_manifest: bool,
}

/// Some bytes of a remote file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ByteRange {
    /// The first byte's offset.
    pub first: u64,
    /// How many bytes; to the end of the file when nothing is said.
    #[serde(default)]
    pub length: Option<u64>,
}

/// What a job's owner may set, and change until it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What people call it.
    pub name: String,
    /// Anything.
    pub description: String,
    /// Who goes first.
    pub priority: Priority,
    /// Sent with each request to the origin.
    pub headers: Vec<Header>,
    /// For the origin.
    pub credentials: Option<Credentials>,
    /// How the origin is reached.
    pub proxy: ProxyChoice,
    /// When it tries again, and when it gives up.
    pub retry: RetryPolicy,
    /// Who is told what.
    pub notify: NotifySettings,
    /// Whether it completes itself when all its files are there.
    pub auto_complete: bool,
}

/// Who goes first.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Somebody waits for it: runs at once, beside all others of this kind.
    Foreground,
    /// Before normal ones.
    High,
    /// As most.
    #[default]
    Normal,
    /// When nothing else is to be done.
    Low,
}

impl Priority {
    /// The word for it, as in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Foreground => "foreground",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// A header of requests to the origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(serialize_with = "Secret::serialize_exposed")]
    pub value: Secret,
    /// Whether the value is for the origin alone: no view shows it then.
    #[serde(default)]
    pub secret: bool,
}

/// A user at the origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// His name.
    pub user: String,
    /// His password.
    #[serde(serialize_with = "Secret::serialize_exposed")]
    pub password: Secret,
}

/// How the origin is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProxyChoice {
    /// As the agent's configuration and environment say.
    #[default]
    Preconfigured,
    /// Directly.
    None,
    /// Over this one.
    Url(RemoteUrl),
}

/// When a job tries again, and when it gives up. Times go by [`super::JobTime`], whole seconds in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// The shortest wait before a file is tried again.
    #[serde(rename = "min_delay_seconds", with = "seconds")]
    #[schema(value_type = u64, maximum = 315_360_000)]
    pub min_delay: Duration,
    /// The longest one; waits double up to it.
    #[serde(rename = "max_delay_seconds", with = "seconds")]
    #[schema(value_type = u64, maximum = 315_360_000)]
    pub max_delay: Duration,
    /// A job that keeps failing for so long without a new byte gives up; zero: it never tries again.
    #[serde(rename = "no_progress_timeout_seconds", with = "seconds")]
    #[schema(value_type = u64, maximum = 315_360_000)]
    pub no_progress_timeout: Duration,
    /// A job gives up after so long with transfers running.
    #[serde(rename = "max_active_seconds", with = "seconds")]
    #[schema(value_type = u64, maximum = 315_360_000)]
    pub max_active: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            // A second or two of trouble should not cost minutes; a server that is down is asked 30
            // times in its first five hours.
            min_delay: Duration::from_secs(5),
            // What BITS waits each time.
            max_delay: Duration::from_secs(600),
            // As BITS.
            no_progress_timeout: DAY.saturating_mul(14),
            max_active: DAY.saturating_mul(90),
        }
    }
}

/// 24 hours.
pub(super) const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Who is told what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NotifySettings {
    /// Posted to.
    pub webhook: Option<RemoteUrl>,
    /// Run with the owner's rights: program and arguments; empty: none.
    pub command: Vec<String>,
    /// Of what.
    pub of: BTreeSet<NotifyOf>,
}

impl Default for NotifySettings {
    fn default() -> Self {
        Self {
            webhook: None,
            command: Vec::new(),
            of: BTreeSet::from([NotifyOf::Transferred, NotifyOf::Error]),
        }
    }
}

/// What can be told.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum NotifyOf {
    /// All files are there: under their hidden names, or, of a job that completes itself, in place.
    Transferred,
    /// The job has given up and waits for its owner.
    Error,
    /// One file is there.
    FileDone,
    /// A remote file has changed and is fetched anew.
    Modified,
}

/// New values of settings; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SettingsChange {
    /// What people call it.
    pub name: Option<String>,
    /// Anything.
    pub description: Option<String>,
    /// Who goes first.
    pub priority: Option<Priority>,
    /// All headers.
    pub headers: Option<Vec<Header>>,
    /// For the origin.
    pub credentials: Option<CredentialsChange>,
    /// How the origin is reached.
    pub proxy: Option<ProxyChoice>,
    /// When it tries again, and when it gives up.
    pub retry: Option<RetryPolicy>,
    /// Who is told what.
    pub notify: Option<NotifySettings>,
    /// Whether it completes itself.
    pub auto_complete: Option<bool>,
}

/// A change of credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialsChange {
    /// None any more.
    Forget,
    /// These.
    Use(Credentials),
}

impl Settings {
    /// These with `change` made.
    #[must_use]
    pub fn with(&self, change: SettingsChange) -> Self {
        Self {
            name: change.name.unwrap_or_else(|| self.name.clone()),
            description: change
                .description
                .unwrap_or_else(|| self.description.clone()),
            priority: change.priority.unwrap_or(self.priority),
            headers: change.headers.unwrap_or_else(|| self.headers.clone()),
            credentials: match change.credentials {
                None => self.credentials.clone(),
                Some(CredentialsChange::Forget) => None,
                Some(CredentialsChange::Use(credentials)) => Some(credentials),
            },
            proxy: change.proxy.unwrap_or_else(|| self.proxy.clone()),
            retry: change.retry.unwrap_or(self.retry),
            notify: change.notify.unwrap_or_else(|| self.notify.clone()),
            auto_complete: change.auto_complete.unwrap_or(self.auto_complete),
        }
    }
}
