//! Tells others of jobs: a webhook, or a command that runs with the owner's rights.

use std::process::Stdio;
use std::time::Duration;

use branchline_core::jobs::{
    Channel, JobError, Notification, NotificationRecord, RemoteUrl, UserId,
};
use branchline_origin::Origin;
use serde::Serialize;
use tokio::process::Command;
use url::Url;

use crate::owner::{Identity, Owner};

/// A command that runs longer than this is ended, and tried again.
const COMMAND_TIME: Duration = Duration::from_secs(300);

/// A path that finds what a notification may want, whatever the agent's own is.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Takes on another user's rights before it runs a command: util-linux, setpriv(1).
const SETPRIV: &str = "/usr/bin/setpriv";

/// What is said, as JSON: to a webhook as the body, to a command on its standard input.
#[derive(Serialize)]
struct Message<'a> {
    /// The same each time it is told.
    id: u64,
    may_be_repeated: bool,
    job: u64,
    name: &'a str,
    event: branchline_core::jobs::NotifyOf,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    happened_unix_seconds: u64,
}

/// Whether it was delivered: the webhook answered 2xx, the command ended with 0.
pub(super) async fn tell(origin: &Origin, notification: &Notification) -> bool {
    let record = &notification.record;
    let body = message(notification);
    let told = match &record.channel {
        Channel::Webhook(url) => post(origin, url, body).await,
        Channel::Command(words) => run(record.owner, words, record, body).await,
    };
    if let Err(error) = &told {
        tracing::warn!(job = %record.job, notification = %record.id, %error, "a notification was not delivered");
    }
    told.is_ok()
}

async fn post(origin: &Origin, url: &RemoteUrl, body: Vec<u8>) -> Result<(), String> {
    let parsed = Url::parse(url.expose()).map_err(|error| format!("{url}: {error}"))?;
    let posted = origin.post_json(&parsed, body).await;
    posted.map_err(|error| error.to_string())
}

fn message(notification: &Notification) -> Vec<u8> {
    let record = &notification.record;
    let message = Message {
        id: record.id.0,
        may_be_repeated: notification.may_be_repeated,
        job: record.job.0,
        name: &record.name,
        event: record.of,
        file: record.file.map(|file| file.0),
        path: record.path.as_ref().map(ToString::to_string),
        error: record.error.as_ref().map(JobError::to_string),
        happened_unix_seconds: record.happened.0,
    };
    serde_json::to_vec(&message).expect("texts and numbers are always JSON")
}

async fn run(
    owner: UserId,
    words: &[String],
    record: &NotificationRecord,
    body: Vec<u8>,
) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("there is no command")?;
    let mut command = match Owner::of(owner.0) {
        Owner::Process => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        Owner::User(uid) => as_user(uid, words).await?,
    };
    command
        .env("PATH", PATH)
        .env("BRANCHLINE_JOB", record.job.to_string())
        .env("BRANCHLINE_NOTIFICATION", record.id.to_string())
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let child = command
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    match tokio::time::timeout(COMMAND_TIME, feed(child, body)).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{program}: {status}")),
        Ok(Err(error)) => Err(format!("{program}: {error}")),
        Err(_) => Err(format!("{program}: it ran for more than {COMMAND_TIME:?}")),
    }
}

async fn feed(
    mut child: tokio::process::Child,
    body: Vec<u8>,
) -> std::io::Result<std::process::ExitStatus> {
    use tokio::io::AsyncWriteExt;
    if let Some(mut input) = child.stdin.take() {
        // A command need not read what it is told.
        let _ = input.write_all(&body).await;
    }
    child.wait().await
}

/// Nothing of the agent's environment goes along, for it may hold what is not the user's.
async fn as_user(uid: u32, words: &[String]) -> Result<Command, String> {
    let looked_up = tokio::task::spawn_blocking(move || Identity::of(uid)).await;
    let identity = looked_up
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let mut command = Command::new(SETPRIV);
    command
        .env_clear()
        .env("HOME", &identity.home)
        .env("USER", &identity.name)
        .env("LOGNAME", &identity.name)
        .arg(format!("--reuid={uid}"))
        .arg(format!("--regid={}", identity.gid))
        .args(["--init-groups", "--inh-caps=-all", "--"])
        .args(words);
    Ok(command)
}
