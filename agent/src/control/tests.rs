use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use branchline_core::PeerId;
use branchline_hashing::ContentKey;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::*;
use crate::api::{
    Backend, ByteCounts, CacheEntry, DiscoveryStatus, Failure, FailureKind, FoundBy, GetEvent,
    GetReport, GetRequest, PeerInfo, Progress, Status, StoreStatus, TransferStatus, Trust,
};

/// Says fixed things; its downloads are played by the test.
struct Played {
    gets: mpsc::UnboundedSender<(GetRequest, mpsc::Sender<GetEvent>)>,
}

impl Backend for Played {
    fn get(&self, _: u32, request: GetRequest) -> BoxStream<'static, GetEvent> {
        let (sender, receiver) = mpsc::channel(4);
        self.gets.send((request, sender)).expect("the test listens");
        let next =
            async |mut receiver: mpsc::Receiver<GetEvent>| Some((receiver.recv().await?, receiver));
        stream::unfold(receiver, next).boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, Failure>> {
        async { Ok(a_status()) }.boxed()
    }

    fn peers(&self) -> BoxFuture<'_, Result<Vec<PeerInfo>, Failure>> {
        async { Ok(vec![a_peer()]) }.boxed()
    }

    fn cache(&self) -> BoxFuture<'_, Result<Vec<CacheEntry>, Failure>> {
        async {
            Err(Failure::new(
                FailureKind::LocalDisk,
                "cache: the index is damaged",
            ))
        }
        .boxed()
    }
}

fn url() -> Url {
    Url::parse("https://origin.example/f.iso").expect("a URL")
}

fn a_status() -> Status {
    Status {
        peer_id: PeerId::from_public_key([1; 32]),
        version: "0.1.0".into(),
        state_dir: "/var/lib/branchline".into(),
        uptime_seconds: 5,
        peers: 1,
        jobs: vec![TransferStatus {
            url: url(),
            path: "/tmp/f.iso".into(),
            progress: Progress {
                bytes: Some(9),
                from_peers: 4,
                ..Progress::default()
            },
        }],
        bytes: ByteCounts {
            to_peers: 3,
            ..ByteCounts::default()
        },
        store: StoreStatus {
            segments: 1,
            bytes: 2,
            limit_bytes: 3,
        },
        exchange_port: 4002,
        discovery: DiscoveryStatus {
            enabled: true,
            mdns: true,
            port: 4001,
        },
    }
}

fn a_peer() -> PeerInfo {
    PeerInfo {
        peer_id: PeerId::from_public_key([2; 32]),
        addresses: vec!["192.0.2.7:4002".parse().expect("an address")],
        found_by: FoundBy::Mdns,
        version: None,
        seconds_known: 60,
        last_seen_seconds: 1,
        from_peer_bytes: 7,
        to_peer_bytes: 8,
    }
}

fn a_request() -> GetRequest {
    GetRequest {
        url: url(),
        path: "/tmp/f.iso".into(),
        sha256: None,
        blake3: None,
        headers: vec![("X-A".into(), "b".into())],
        without_manifest: true,
    }
}

fn a_report() -> GetReport {
    GetReport {
        url: url(),
        path: "/tmp/f.iso".into(),
        bytes: 9,
        from_origin: 2,
        from_peers: 3,
        from_store: 4,
        seconds: 0.5,
        content: ContentKey::from_bytes([3; 32]),
        trust: Trust::Manifest,
        notices: vec!["slow".into()],
        job: None,
    }
}

/// A served socket in a folder of its own.
struct Served {
    folder: tempfile::TempDir,
    gets: mpsc::UnboundedReceiver<(GetRequest, mpsc::Sender<GetEvent>)>,
    port: std::net::SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
}

fn served() -> Served {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (sender, gets) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let is_root = rustix::process::geteuid().is_root();
    let socket = ControlSocket::bind(folder.path(), is_root).expect("a socket");
    let loopback = "127.0.0.1:0".parse().expect("an address");
    let port = ControlPort::bind(loopback, folder.path()).expect("a port");
    let address = port.address().expect("bound");
    let doors = Doors {
        socket,
        port: Some(port),
        other_users: true,
    };
    let server = tokio::spawn(serve(
        doors,
        Arc::new(Played { gets: sender }),
        None,
        stop.clone(),
    ));
    Served {
        folder,
        gets,
        port: address,
        stop,
        server,
    }
}

impl Served {
    fn client(&self) -> Client {
        Client::new(self.folder.path()).expect("a short path")
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join(SOCKET_NAME)
    }

    /// Sends bytes, returns everything until the server closes.
    async fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }
}

#[tokio::test]
async fn what_the_backend_says_arrives() {
    let served = served();
    assert_eq!(
        served.client().status().await.expect("an answer"),
        a_status()
    );
    assert_eq!(
        served.client().peers().await.expect("an answer"),
        [a_peer()]
    );
    let failure = Failure::from(served.client().cache().await.expect_err("it fails"));
    assert_eq!(
        failure,
        Failure::new(FailureKind::LocalDisk, "cache: the index is damaged")
    );
}

#[tokio::test]
async fn a_download_tells_its_events_in_order_to_the_last() {
    let mut served = served();
    let mut stream = served.client().get(&a_request()).await.expect("taken");
    let (request, events) = served.gets.recv().await.expect("a download");
    assert_eq!(request, a_request());
    let told = [
        GetEvent::Progress(Progress {
            waiting_for: Some("peers".into()),
            ..Progress::default()
        }),
        GetEvent::Notice("two\nlines".into()),
        GetEvent::Done(a_report()),
    ];
    for event in &told {
        events.send(event.clone()).await.expect("somebody listens");
        assert_eq!(stream.next().await.expect("an event"), *event);
    }
    assert!(
        matches!(stream.next().await, Err(ClientError::NoAnswer { .. })),
        "that was all"
    );
}

#[tokio::test]
async fn a_command_that_goes_away_cancels_its_download() {
    let mut served = served();
    let mut stream = served.client().get(&a_request()).await.expect("taken");
    let (_, events) = served.gets.recv().await.expect("a download");
    events
        .send(GetEvent::Notice("begun".into()))
        .await
        .expect("somebody listens");
    stream.next().await.expect("an event");
    drop(stream);
    let cancelled = tokio::time::timeout(Duration::from_secs(20), events.closed()).await;
    assert_eq!(cancelled, Ok(()), "noticed without another event");
}

#[tokio::test]
async fn a_download_that_ends_without_a_word_is_a_failure() {
    let mut served = served();
    let mut stream = served.client().get(&a_request()).await.expect("taken");
    drop(served.gets.recv().await.expect("a download"));
    let event = stream.next().await.expect("an event");
    let GetEvent::Failed(failure) = event else {
        panic!("{event:?}")
    };
    assert_eq!(failure.kind, FailureKind::AgentUnreachable);
}

#[tokio::test]
async fn stopping_ends_downloads_as_interrupted_and_removes_the_socket() {
    let mut served = served();
    let mut stream = served.client().get(&a_request()).await.expect("taken");
    let (_, events) = served.gets.recv().await.expect("a download");
    served.stop.cancel();
    let event = stream.next().await.expect("an event");
    let GetEvent::Failed(failure) = event else {
        panic!("{event:?}")
    };
    assert_eq!(failure.kind, FailureKind::Interrupted);
    events.closed().await;
    (&mut served.server)
        .await
        .expect("no panic")
        .expect("a clean end");
    assert!(!served.socket().exists());
    let error = served.client().status().await.expect_err("nobody there");
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
}

#[tokio::test]
async fn requests_that_make_no_sense_get_a_problem_that_says_so() {
    let served = served();
    let post = |body: &str| {
        let length = body.len();
        format!(
            "POST /v1/get HTTP/1.1\r\nHost: l\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let relative = serde_json::to_string(&GetRequest {
        path: "f".into(),
        ..a_request()
    });
    let long = "x".repeat(MAX_REQUEST_BYTES + 1);
    let get = |path| format!("GET {path} HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n");
    for (request, status, word) in [
        (post("{"), "400", "not a request"),
        (
            post(&relative.expect("plain data")),
            "400",
            "must be absolute",
        ),
        (post(&long), "413", "control API"),
        (get("/v1/nothing"), "404", "there is no /v1/nothing"),
        (get("/v1/get"), "405", "another method"),
    ] {
        let answer = served.raw(&request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert!(answer.contains(word), "{answer}");
        assert!(answer.contains(r#""kind":"usage""#), "{answer}");
    }
}

#[tokio::test]
async fn all_users_may_open_the_socket_of_roots_agent_and_of_another_its_owner_alone() {
    let served = served();
    let mode = std::fs::metadata(served.socket())
        .expect("it is there")
        .permissions()
        .mode();
    let for_all = rustix::process::geteuid().is_root();
    assert_eq!(mode & 0o777, if for_all { 0o666 } else { 0o600 });
}

/// Linux keeps user ids per thread, and notes the connecting thread's: so a thread can be another
/// user. Only root can do that; the continuous integration is root.
#[tokio::test]
async fn another_user_learns_nothing_of_what_is_not_his() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let served = served();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(served.folder.path(), open).expect("ours");
    let ask = async |route: &'static str| {
        let socket = served.socket();
        let answer = tokio::task::spawn_blocking(move || answer_to_nobody(&socket, route));
        answer.await.expect("no panic")
    };
    let cache = ask("/v1/cache").await;
    assert!(cache.starts_with("HTTP/1.1 403 "), "{cache}");
    assert!(cache.contains("the agent's user and root"), "{cache}");
    let status = ask("/v1/status").await;
    assert!(status.starts_with("HTTP/1.1 200 "), "{status}");
    assert!(status.contains(r#""jobs":[]"#), "{status}");
    assert!(!status.contains("f.iso"), "{status}");
}

fn answer_to_nobody(socket: &Path, route: &str) -> String {
    use std::io::{Read, Write};
    let (socket, route) = (socket.to_owned(), route.to_owned());
    let as_nobody = move || {
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may");
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("connected");
        let request = format!("GET {route} HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    std::thread::spawn(as_nobody).join().expect("no panic")
}

#[tokio::test]
async fn the_remains_of_a_dead_agent_are_replaced_and_nothing_else_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(SOCKET_NAME);
    // A standard listener leaves its file behind, as a killed agent does.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("control.new")).expect("one"));
    let client = Client::new(folder.path()).expect("a short path");
    let error = client.status().await.expect_err("nobody there");
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");

    let socket = ControlSocket::bind(folder.path(), false).expect("replaced");
    assert_eq!(socket.path(), path);
    UnixStream::connect(&path).await.expect("it listens");
    drop(socket);
    assert!(!path.exists());

    std::fs::write(&path, "a letter").expect("writable");
    let error = ControlSocket::bind(folder.path(), false).expect_err("not ours");
    assert!(matches!(error, BindError::NameTaken { .. }), "{error}");
    assert_eq!(
        std::fs::read_to_string(&path).expect("still there"),
        "a letter"
    );
}

#[tokio::test]
async fn a_path_too_long_for_the_kernel_is_said_to_be() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let name_for = |total: usize| {
        let taken = folder.path().as_os_str().len() + 1 + 1 + SOCKET_NAME.len();
        folder.path().join("d".repeat(total - taken))
    };
    let (fits, does_not) = (name_for(107), name_for(108));
    std::fs::create_dir(&fits).expect("writable");
    std::fs::create_dir(&does_not).expect("writable");
    ControlSocket::bind(&fits, false).expect("the kernel takes it");
    let error = ControlSocket::bind(&does_not, false).expect_err("too long");
    assert!(error.to_string().contains("108 bytes"), "{error}");
    let failure = Failure::from(Client::new(&does_not).expect_err("too long"));
    assert_eq!(failure.kind, FailureKind::Usage);
}

#[tokio::test]
async fn somebody_else_at_the_socket_is_no_agent() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let listener = tokio::net::UnixListener::bind(folder.path().join(SOCKET_NAME)).expect("one");
    let stranger = async {
        let (mut stream, _) = listener.accept().await.expect("a caller");
        stream
            .write_all(b"220 mail.example ESMTP\r\n")
            .await
            .expect("sent");
        stream
    };
    let client = Client::new(folder.path()).expect("a short path");
    let (answer, _stream) = tokio::join!(client.status(), stranger);
    let failure = Failure::from(answer.expect_err("no agent"));
    assert_eq!(failure.kind, FailureKind::AgentUnreachable);
    assert!(failure.message.contains("control.sock"), "{failure}");
}

#[tokio::test]
async fn an_agent_that_hangs_is_given_up() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let _hung = tokio::net::UnixListener::bind(folder.path().join(SOCKET_NAME)).expect("one");
    let client = Client::new(folder.path()).expect("a short path");
    let client = client.with_answer_timeout(Duration::from_millis(50));
    let error = client.status().await.expect_err("no answer");
    assert!(
        error.to_string().contains("no answer within 50ms"),
        "{error}"
    );
}

/// What the agent answers over TCP to a request with this header.
async fn over_tcp(served: &Served, header: &str) -> String {
    let mut stream = TcpStream::connect(served.port).await.expect("connected");
    let request =
        format!("GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

#[tokio::test]
async fn over_tcp_only_the_token_opens() {
    let served = served();
    let token = std::fs::read_to_string(served.folder.path().join(TOKEN_NAME)).expect("a token");
    let token = token.trim_end();
    let opened = over_tcp(&served, &format!("Authorization: Bearer {token}\r\n")).await;
    assert!(opened.starts_with("HTTP/1.1 200 "), "{opened}");
    assert!(opened.contains("https://origin.example/f.iso"), "{opened}");
    for header in [
        "",
        "Authorization: Bearer \r\n",
        "Authorization: Bearer x\r\n",
    ] {
        let refused = over_tcp(&served, header).await;
        assert!(refused.starts_with("HTTP/1.1 401 "), "{refused}");
        assert!(
            refused.to_lowercase().contains("www-authenticate: bearer"),
            "{refused}"
        );
        assert!(!refused.contains("origin.example"), "{refused}");
    }
}
