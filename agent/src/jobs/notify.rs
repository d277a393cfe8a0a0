//! Tells others of jobs: a webhook, or a command that runs with the owner's rights.

use std::ffi::OsString;
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
    // Nothing of the agent's environment goes along, for it may hold what is not the user's.
    command.env_clear();
    for (name, value) in his_environment(owner.0).await {
        command.env(name, value);
    }
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

/// What the user's shells have, by the user database; nothing where that does not know him.
async fn his_environment(uid: u32) -> Vec<(&'static str, OsString)> {
    let looked_up = tokio::task::spawn_blocking(move || Identity::of(uid)).await;
    let Ok(Ok(identity)) = looked_up else {
        return Vec::new();
    };
    let (home, name) = (identity.home.into(), OsString::from(identity.name));
    vec![("HOME", home), ("USER", name.clone()), ("LOGNAME", name)]
}

/// Takes on his rights before it runs the command.
async fn as_user(uid: u32, words: &[String]) -> Result<Command, String> {
    let looked_up = tokio::task::spawn_blocking(move || Identity::of(uid)).await;
    let identity = looked_up
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let mut command = Command::new(SETPRIV);
    command
        .arg(format!("--reuid={uid}"))
        .arg(format!("--regid={}", identity.gid))
        .args(["--init-groups", "--inh-caps=-all", "--"])
        .args(words);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;

    use branchline_core::jobs::{JobId, NotificationId, NotifyOf, UnixSeconds};
    use branchline_origin::OriginOptions;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Debian's `nobody`.
    const NOBODY: u32 = 65534;

    fn notification(owner: u32, channel: Channel) -> Notification {
        Notification {
            record: NotificationRecord {
                id: NotificationId(5),
                job: JobId(17),
                name: "a job".into(),
                owner: UserId(owner),
                channel,
                of: NotifyOf::Transferred,
                file: None,
                path: None,
                error: None,
                happened: UnixSeconds(9),
                tries: 0,
            },
            may_be_repeated: true,
        }
    }

    async fn run_for(owner: u32, script: &str) -> bool {
        let words = ["/bin/sh", "-c", script].map(String::from).to_vec();
        let origin = Origin::new(&OriginOptions::default()).expect("a client");
        tell(&origin, &notification(owner, Channel::Command(words))).await
    }

    fn said(file: &Path) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(file).expect("written")).expect("JSON")
    }

    #[tokio::test]
    async fn a_command_is_told_on_its_input_and_has_taken_it_when_it_ends_well() {
        let dir = tempfile::tempdir().expect("a folder");
        let own = rustix::process::geteuid().as_raw();
        let file = dir.path().join("told");
        let script = format!("cat > {} && test \"$BRANCHLINE_JOB\" = 17", file.display());
        assert!(run_for(own, &script).await);
        let said = said(&file);
        assert_eq!(
            (&said["id"], &said["event"]),
            (&5.into(), &"transferred".into())
        );
        assert_eq!(said["may_be_repeated"], true);
        assert!(!run_for(own, "exit 3").await);
        assert!(!run_for(own, "kill -9 $$").await);
    }

    #[tokio::test]
    async fn another_users_command_has_his_rights_and_not_the_agents_environment() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(dir.path(), open).expect("set");
        let file = dir.path().join("told");
        let script = format!(
            "cat > {} && test -z \"$CARGO_MANIFEST_DIR\" && ! test -w /etc && test \"$(id -u)\" = {NOBODY}",
            file.display()
        );
        assert!(run_for(NOBODY, &script).await);
        assert_eq!(std::fs::metadata(&file).expect("made").uid(), NOBODY);
    }

    /// Answers one request with this status; gives what was posted.
    async fn posted(status: &'static str) -> (bool, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("bound"));
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                assert!(stream.read_buf(&mut request).await.expect("read") > 0);
            }
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("answered");
            String::from_utf8(request).expect("text")
        });
        let options = OriginOptions {
            proxy: branchline_origin::ProxyChoice::Direct,
            ..OriginOptions::default()
        };
        let origin = Origin::new(&options).expect("a client");
        let hook = Channel::Webhook(RemoteUrl::new(url).expect("a URL"));
        let taken = tell(&origin, &notification(0, hook)).await;
        (taken, server.await.expect("served"))
    }

    #[tokio::test]
    async fn a_webhook_has_taken_it_when_it_answers_so() {
        let (taken, request) = posted("204 No Content").await;
        assert!(taken);
        assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(r#""job":17"#), "{request}");
        assert!(!posted("503 Service Unavailable").await.0);
        assert!(!posted("302 Found").await.0);
    }
}
