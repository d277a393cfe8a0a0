//! Proxies, netrc, and options that are wrong.

mod support;

use std::net::SocketAddr;

use branchline_origin::{NetrcChoice, Origin, OriginError, OriginOptions, ProxyChoice};
use support::nginx::Nginx;
use support::scripted::{Scripted, Then, read_request, redirect, say};
use support::{STALL, fetch, options, payload, reader, rest_of, target};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

fn through(url: &str, except: &str) -> OriginOptions {
    let proxy = ProxyChoice::Through {
        url: url.to_owned(),
        except: except.to_owned(),
    };
    OriginOptions { proxy, ..options() }
}

fn origin_with(options: &OriginOptions) -> Origin {
    Origin::new(options).expect("the options are good")
}

#[tokio::test]
async fn plain_http_goes_through_the_proxy_by_its_whole_address() {
    let proxy = Scripted::start(|seen| {
        assert_eq!(seen.path, "http://no-such-host.test/f");
        say("200 OK", &[("Content-Length", "5")], b"")
    })
    .await;
    let url = proxy.url("").replace("http://", "http://me:pw@");
    let origin = origin_with(&through(&url, ""));
    let remote = origin
        .probe(&target("http://no-such-host.test/f"))
        .await
        .expect("an answer");
    assert_eq!(remote.length(), Some(5));
    assert_eq!(
        proxy.seen()[0].header("proxy-authorization"),
        Some("Basic bWU6cHc=")
    );
    assert!(!format!("{:?}", through(&url, "")).contains("pw"));
}

#[tokio::test]
async fn excepted_hosts_are_reached_directly() {
    let proxy = Scripted::start(|_| panic!("the proxy is asked")).await;
    let server = Scripted::start(|_| say("200 OK", &[("Content-Length", "5")], b"")).await;
    let origin = origin_with(&through(&proxy.url(""), "127.0.0.0/8"));
    origin
        .probe(&target(&server.url("/f")))
        .await
        .expect("an answer");
}

#[tokio::test]
async fn a_proxy_that_wants_credentials_is_told_from_the_origin() {
    let proxy = Scripted::start(|_| say("407 Who", &[("Content-Length", "0")], b"")).await;
    let origin = origin_with(&through(&proxy.url(""), ""));
    let error = origin
        .probe(&target("http://no-such-host.test/f"))
        .await
        .expect_err("407");
    assert!(
        error.to_string().contains("the proxy wants credentials"),
        "{error}"
    );
    assert_eq!(proxy.seen().len(), 1, "GET would be answered the same");
}

#[tokio::test]
async fn https_goes_through_a_tunnel() {
    let file = payload(300_000);
    let nginx = Nginx::start("");
    nginx.put("f", &file);
    let (proxy, _tasks) = tunnel(u64::MAX).await;
    let proxied = through(&format!("http://{proxy}"), "");
    let origin = origin_with(&OriginOptions {
        ca_file: Some(nginx.path("ca.pem")),
        ..proxied
    });
    let target = target(&nginx.https("/f"));
    let remote = origin.probe(&target).await.expect("an answer");
    assert_eq!(fetch(&origin, &target, &remote, None).await, Ok(file));
}

#[tokio::test]
async fn a_line_that_goes_silent_under_http_2_is_replaced() {
    let file = payload(3_000_000);
    let nginx = Nginx::start("");
    nginx.put("f", &file);
    let (proxy, _tasks) = tunnel(1_000_000).await;
    let origin = origin_with(&OriginOptions {
        ca_file: Some(nginx.path("ca.pem")),
        stall_timeout: STALL,
        ..through(&format!("http://{proxy}"), "")
    });
    let target = target(&nginx.https("/f"));
    let remote = origin.probe(&target).await.expect("an answer");
    let mut reader = reader(&origin, &target, &remote, None);
    assert!(rest_of(&mut reader).await.expect("another line") == file);
    assert_eq!(
        reader.requests(),
        2,
        "the second request is not made on the dead line"
    );
    nginx.wait_for_log("HTTP/2.0 GET /f 206");
}

/// A proxy that knows CONNECT and nothing else. Its first tunnel goes silent after so many bytes.
async fn tunnel(silent_after: u64) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut tunnels = JoinSet::new();
        let mut limit = silent_after;
        while let Ok((stream, _)) = listener.accept().await {
            tunnels.spawn(dig(stream, limit));
            limit = u64::MAX;
        }
    });
    (address, tasks)
}

async fn dig(mut stream: TcpStream, limit: u64) {
    let Some(request) = read_request(&mut stream, 0).await else {
        return;
    };
    assert_eq!(request.method, "CONNECT");
    let mut far = TcpStream::connect(&request.path)
        .await
        .expect("nginx listens");
    stream
        .write_all(b"HTTP/1.1 200 OK\r\n\r\n")
        .await
        .expect("the client is there");
    let (mut from_near, mut to_near) = stream.split();
    let (from_far, mut to_far) = far.split();
    let mut from_far = from_far.take(limit);
    let down = async {
        let _ = copy(&mut from_far, &mut to_near).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = down => {}
        _ = copy(&mut from_near, &mut to_far) => {}
    }
}

#[tokio::test]
async fn netrc_names_hosts_and_its_default_stays_with_what_was_asked_for() {
    let far = Scripted::start_at("127.0.0.2", |_| {
        say("200 OK", &[("Content-Length", "5")], b"")
    });
    let far = far.await;
    let other = Scripted::start_at("127.0.0.3", |_| {
        say("200 OK", &[("Content-Length", "5")], b"")
    });
    let other = other.await;
    let near_answers = [far.url("/f"), other.url("/f")];
    let near = Scripted::start(move |seen| match seen.path.as_str() {
        "/far" => redirect(&near_answers[0]),
        _ => redirect(&near_answers[1]),
    })
    .await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("netrc");
    std::fs::write(
        &path,
        "machine 127.0.0.2 login a password b\ndefault login me password pw",
    )
    .expect("the folder is ours");
    let origin = origin_with(&OriginOptions {
        netrc: NetrcChoice::File(path),
        ..options()
    });
    for path in ["/far", "/other"] {
        origin
            .probe(&target(&near.url(path)))
            .await
            .expect("an answer");
    }
    let said = |server: &Scripted| server.seen()[0].header("authorization").map(str::to_owned);
    assert_eq!(
        said(&near).as_deref(),
        Some("Basic bWU6cHc="),
        "the default"
    );
    assert_eq!(said(&far).as_deref(), Some("Basic YTpi"), "its own entry");
    assert_eq!(said(&other), None, "the default does not follow redirects");
}

#[tokio::test]
async fn wrong_options_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let missing = folder.path().join("missing");
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "nothing").expect("the folder is ours");
    for (options, word) in [
        (
            OriginOptions {
                ca_file: Some(missing.clone()),
                ..options()
            },
            "missing",
        ),
        (
            OriginOptions {
                ca_file: Some(empty),
                ..options()
            },
            "no certificate",
        ),
        (
            OriginOptions {
                netrc: NetrcChoice::File(missing),
                ..options()
            },
            "missing",
        ),
        (through("::", ""), "proxy"),
        (
            OriginOptions {
                user_agent: "a\nb".to_owned(),
                ..options()
            },
            "user agent",
        ),
    ] {
        let error = Origin::new(&options)
            .expect_err("an option is wrong")
            .to_string();
        assert!(error.contains(word) && !error.contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn a_proxy_that_hangs_up_is_a_network_failure() {
    let proxy = Scripted::start(|_| say("", &[], b"").cut(0).then(Then::Close)).await;
    let origin = origin_with(&through(&proxy.url(""), ""));
    let error = origin
        .probe(&target("https://no-such-host.test/f"))
        .await
        .expect_err("no tunnel");
    assert!(matches!(error, OriginError::Network { .. }), "{error:?}");
}
