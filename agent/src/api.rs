//! What the engine, the control API and the command line say to each other: plain data.
//!
//! The JSON of [`GetReport`], [`Status`], [`PeerInfo`] and [`CacheEntry`] is a contract with
//! scripts (docs/control-api.md): fields may be added, never renamed or removed. Nothing here does
//! anything; [`Backend`] is what does.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use branchline_core::PeerId;
pub use branchline_core::jobs;
pub use branchline_core::jobs::Trust;
use branchline_hashing::{Blake3Digest, ContentKey, Sha256Digest};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

/// What the control API asks for, and the engine does.
pub trait Backend: Send + Sync + 'static {
    /// Starts a download with the rights of the user `uid`, and tells how it goes on. The last event is
    /// [`GetEvent::Done`] or [`GetEvent::Failed`]; dropping the stream cancels the download, its partial file stays.
    fn get(&self, uid: u32, request: GetRequest) -> BoxStream<'static, GetEvent>;

    /// What this agent is and does.
    fn status(&self) -> BoxFuture<'_, Result<Status, Failure>>;

    /// The agents it sees.
    fn peers(&self) -> BoxFuture<'_, Result<Vec<PeerInfo>, Failure>>;

    /// The contents its store holds, wholly or in part.
    fn cache(&self) -> BoxFuture<'_, Result<Vec<CacheEntry>, Failure>>;
}

/// One file to download.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GetRequest {
    /// Where the origin has it.
    #[schema(value_type = String)]
    pub url: Url,
    /// Where it shall stand, absolute.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// The whole file's SHA-256, if known beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^[0-9a-fA-F]{64}$")]
    pub sha256: Option<Sha256Digest>,
    /// The whole file's BLAKE3, if known beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^[0-9a-fA-F]{64}$")]
    pub blake3: Option<Blake3Digest>,
    /// Further request headers for the origin, in order.
    #[serde(default)]
    #[schema(value_type = Vec<Vec<String>>)]
    pub headers: Vec<(String, String)>,
    /// Does not look for a manifest, nor believe one.
    #[serde(default)]
    pub without_manifest: bool,
}

/// Header values and the password in a URL are secrets, and logs are no place for them.
impl fmt::Debug for GetRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("GetRequest")
            .field("url", &format_args!("{}", without_password(&self.url)))
            .field("path", &self.path)
            .field("sha256", &self.sha256)
            .field("blake3", &self.blake3)
            .field("headers", &names)
            .field("without_manifest", &self.without_manifest)
            .finish()
    }
}

/// The URL as it may be shown.
pub fn without_password(url: &Url) -> Url {
    let mut shown = url.clone();
    if shown.password().is_some() {
        // Fails only for URLs that cannot have a password, and this one has.
        let _ = shown.set_password(Some("***"));
    }
    shown
}

/// What a download says of itself, in this order: any number of the first two, one of the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GetEvent {
    /// How far it is.
    Progress(Progress),
    /// One line the user should read; the download goes on.
    Notice(String),
    /// The file stands under its name.
    Done(GetReport),
    /// There will be no file; what was fetched is kept for the next attempt.
    Failed(Failure),
}

/// How far a download is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Length of the file, once known.
    pub bytes: Option<u64>,
    /// Bytes that came from the origin.
    pub from_origin: u64,
    /// Bytes that came from other agents.
    pub from_peers: u64,
    /// Bytes that were here already: in the store, or in an interrupted download's partial file.
    pub from_store: u64,
    /// How many agents it takes segments from.
    pub peers: u32,
    /// What it waits for, when nothing arrives.
    pub waiting_for: Option<String>,
}

impl Progress {
    /// Bytes that are verified and in place, wherever they came from.
    pub fn bytes_done(&self) -> u64 {
        self.from_origin
            .saturating_add(self.from_peers)
            .saturating_add(self.from_store)
    }
}

/// What a finished download was. The three `from_` fields add up to `bytes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GetReport {
    /// Where the origin has the file.
    #[schema(value_type = String)]
    pub url: Url,
    /// Where it stands now.
    #[serde(serialize_with = "readable")]
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Bytes that came from the origin.
    pub from_origin: u64,
    /// Bytes that came from other agents.
    pub from_peers: u64,
    /// Bytes that were here already.
    pub from_store: u64,
    /// From the request to the finished file.
    pub seconds: f64,
    /// Which version of the file it is.
    #[schema(value_type = String)]
    pub content: ContentKey,
    /// What says that the bytes are right.
    pub trust: Trust,
    /// What the user was told meanwhile.
    #[serde(default)]
    pub notices: Vec<String>,
    /// The job that it was, if an agent did it as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<jobs::JobId>,
}

/// Why something did not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, ToSchema)]
#[error("{message}")]
pub struct Failure {
    /// What to do about it, for programs.
    pub kind: FailureKind,
    /// One line: what failed, where, why, what to do.
    pub message: String,
}

impl Failure {
    /// A failure of that kind; line breaks in `message` become spaces.
    pub fn new(kind: FailureKind, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let message = message
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty());
        Self {
            kind,
            message: message.collect::<Vec<_>>().join(" "),
        }
    }
}

/// The kinds of failure a caller can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The request or the configuration makes no sense.
    Usage,
    /// The origin refused, or has no such file.
    OriginRefused,
    /// Neither the origin nor a peer could be reached.
    Network,
    /// The bytes are not those they should be.
    Verification,
    /// This machine's disk or files.
    LocalDisk,
    /// No agent answers, or another one is in the way.
    AgentUnreachable,
    /// The user or the system stopped it.
    Interrupted,
}

impl FailureKind {
    /// The exit code of the command: the one place where it is decided.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::OriginRefused => 3,
            Self::Network => 4,
            Self::Verification => 5,
            Self::LocalDisk => 6,
            Self::AgentUnreachable => 7,
            Self::Interrupted => 130,
        }
    }
}

/// What an agent is and does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Who it is.
    #[schema(value_type = String)]
    pub peer_id: PeerId,
    /// The version of the program.
    pub version: String,
    /// Where its state lies.
    #[serde(serialize_with = "readable")]
    #[schema(value_type = String)]
    pub state_dir: PathBuf,
    /// Since its start.
    pub uptime_seconds: u64,
    /// How many agents it sees.
    pub peers: usize,
    /// The downloads that run now.
    pub jobs: Vec<TransferStatus>,
    /// What moved since its start.
    pub bytes: ByteCounts,
    /// Its store.
    pub store: StoreStatus,
    /// The UDP port it serves segments at; 0 while it serves none.
    pub exchange_port: u16,
    /// How it looks for others.
    pub discovery: DiscoveryStatus,
}

/// A download that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransferStatus {
    /// Where the origin has the file.
    #[schema(value_type = String)]
    pub url: Url,
    /// Where it shall stand.
    #[serde(serialize_with = "readable")]
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// How far it is.
    #[serde(flatten)]
    pub progress: Progress,
}

/// Bytes by where they came from or went to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ByteCounts {
    /// Bytes that came from origins.
    pub from_origin: u64,
    /// Bytes that came from other agents.
    pub from_peers: u64,
    /// Bytes that were here already.
    pub from_store: u64,
    /// Bytes given to other agents.
    pub to_peers: u64,
}

/// The state of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    /// How many segments it holds.
    pub segments: u64,
    /// What they take.
    pub bytes: u64,
    /// What they may take.
    pub limit_bytes: u64,
}

/// How an agent looks for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscoveryStatus {
    /// Whether it does.
    pub enabled: bool,
    /// Whether by multicast too.
    pub mdns: bool,
    /// The UDP port others reach its discovery at; 0 while it is off.
    pub port: u16,
}

/// Another agent, as this one sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PeerInfo {
    /// Who it is.
    #[schema(value_type = String)]
    pub peer_id: PeerId,
    /// Where it serves segments.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<SocketAddr>,
    /// How it was found.
    pub found_by: FoundBy,
    /// The version of its program, once it said so.
    pub version: Option<String>,
    /// Since it was first seen.
    pub seconds_known: u64,
    /// Since it was last heard of.
    pub last_seen_seconds: u64,
    /// Bytes it gave to this agent.
    pub from_peer_bytes: u64,
    /// Bytes this agent gave to it.
    pub to_peer_bytes: u64,
}

/// How an agent was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FoundBy {
    /// By multicast.
    Mdns,
    /// By the configuration's list.
    Static,
    /// Another agent told of it.
    Kademlia,
    /// It called here first.
    Inbound,
}

impl fmt::Display for FoundBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Mdns => "mdns",
            Self::Static => "static",
            Self::Kademlia => "kademlia",
            Self::Inbound => "inbound",
        })
    }
}

/// A content that the store holds, wholly or in part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheEntry {
    /// Which version of which file.
    #[schema(value_type = String)]
    pub content: ContentKey,
    /// Where its origin has it, if this agent fetched it itself.
    #[schema(value_type = Option<String>)]
    pub url: Option<Url>,
    /// The name it was last saved under.
    pub file_name: Option<String>,
    /// Its length.
    pub bytes: u64,
    /// How many segments it has.
    pub segments: u64,
    /// How many of them the store holds.
    pub segments_present: u64,
    /// What the belief rests on that they are right.
    pub trust: Trust,
    /// When it was last fetched or served, in seconds since 1970.
    pub last_used_unix_seconds: u64,
}

/// A report is to be read, even of a file whose name is not UTF-8; only in a request must a path be
/// exact.
fn readable<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_in_a_log_shows_no_secret() {
        let request = GetRequest {
            url: Url::parse("https://u:hunter2@origin.example/f").expect("a URL"),
            path: "/tmp/f".into(),
            sha256: None,
            blake3: None,
            headers: vec![("Authorization".into(), "Bearer hunter2".into())],
            without_manifest: false,
        };
        let shown = format!("{request:?}");
        assert!(
            shown.contains("Authorization") && shown.contains("origin.example"),
            "{shown}"
        );
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_name_that_is_not_utf8_can_be_reported_and_not_requested() {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/tmp/\xff"));
        let url = Url::parse("https://origin.example/f").expect("a URL");
        let progress = Progress::default();
        let status = TransferStatus {
            url: url.clone(),
            path: path.into(),
            progress,
        };
        let json = serde_json::to_string(&status).expect("a replacement character");
        assert!(json.contains("/tmp/\u{fffd}"), "{json}");
        let request = GetRequest {
            url,
            path: path.into(),
            sha256: None,
            blake3: None,
            headers: Vec::new(),
            without_manifest: false,
        };
        assert!(serde_json::to_string(&request).is_err());
    }

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::new(FailureKind::Network, "no route\n  to host\n");
        assert_eq!(failure.message, "no route to host");
    }

    #[test]
    fn events_are_told_apart_by_their_one_field() {
        let event = GetEvent::Failed(Failure::new(FailureKind::OriginRefused, "404"));
        let json = serde_json::to_string(&event).expect("plain data");
        assert_eq!(
            json,
            r#"{"failed":{"kind":"origin_refused","message":"404"}}"#
        );
        assert_eq!(
            serde_json::from_str::<GetEvent>(&json).expect("its own words"),
            event
        );
    }
}
