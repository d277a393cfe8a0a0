//! What a file is, as servers good and bad say it.

mod support;

use branchline_origin::{OriginError, Ranges, Retry, Target, Validator};
use support::scripted::{Say, Scripted, Seen, Then, redirect, say, serve};
use support::{fetch, origin, payload, target};

fn error_of(status: &'static str) -> impl FnMut(&Seen) -> Say + Send {
    move |_| say(status, &[("Content-Length", "0")], b"")
}

#[tokio::test]
async fn head_tells_length_version_and_ranges() {
    let server = Scripted::start(|seen| {
        let headers = [
            ("Content-Length", "1000"),
            ("ETag", "\"v1\""),
            ("Accept-Ranges", "bytes"),
            (
                "Link",
                "</m>; rel=describedby; type=\"application/vnd.branchline.manifest\"",
            ),
            (
                "Repr-Digest",
                "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
            ),
        ];
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
        say("200 OK", &headers, b"")
    })
    .await;
    let remote = origin()
        .probe(&target(&server.url("/d/f")))
        .await
        .expect("an answer");
    assert_eq!(remote.length(), Some(1000));
    assert_eq!(remote.ranges, Ranges::Yes);
    assert_eq!(remote.validator, Some(Validator::ETag("\"v1\"".to_owned())));
    assert_eq!(
        remote.manifest_link.map(String::from),
        Some(server.url("/m"))
    );
    assert_eq!(remote.digests.len(), 1);
    assert_eq!(server.methods(), ["HEAD"]);
}

#[tokio::test]
async fn where_head_is_refused_one_byte_is_asked_for() {
    for refusal in [
        "405 No",
        "501 No",
        "403 No",
        "404 No",
        "400 No",
        "500 No",
        "204 Empty",
    ] {
        let file = payload(300);
        let server = Scripted::start(move |seen| match seen.method.as_str() {
            "HEAD" => error_of(refusal)(seen),
            _ => serve(&file, "\"v1\"", seen),
        })
        .await;
        let remote = origin()
            .probe(&target(&server.url("/f")))
            .await
            .expect("GET works");
        assert_eq!(
            (remote.length(), remote.ranges),
            (Some(300), Ranges::Yes),
            "{refusal}"
        );
        let seen = server.seen();
        assert_eq!(seen[1].range(), Some((0, 0)), "{refusal}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_on_head_is_asked_by_get() {
    let file = payload(300);
    let server = Scripted::start(move |seen| match seen.method.as_str() {
        "HEAD" => say("200 OK", &[], b"").cut(0).then(Then::Close),
        _ => serve(&file, "\"v1\"", seen),
    })
    .await;
    let remote = origin()
        .probe(&target(&server.url("/f")))
        .await
        .expect("GET works");
    assert_eq!(remote.length(), Some(300));
}

#[tokio::test]
async fn a_length_that_head_leaves_out_or_says_is_zero_comes_from_get() {
    for head in [&[("X", "y")][..], &[("Content-Length", "0")][..]] {
        let file = payload(300);
        let server = Scripted::start(move |seen| match seen.method.as_str() {
            "HEAD" => say("200 OK", head, b""),
            _ => serve(&file, "\"v1\"", seen),
        })
        .await;
        let remote = origin()
            .probe(&target(&server.url("/f")))
            .await
            .expect("an answer");
        assert_eq!(remote.length(), Some(300));
    }
}

#[tokio::test]
async fn a_head_that_lies_is_found_out_and_get_believed() {
    let file = payload(300);
    let served = file.clone();
    let server = Scripted::start(move |seen| match seen.method.as_str() {
        "HEAD" => say(
            "200 OK",
            &[("Content-Length", "777"), ("ETag", "\"v1\"")],
            b"",
        ),
        _ => serve(&served, "\"v1\"", seen),
    })
    .await;
    let (origin, target) = (origin(), target(&server.url("/f")));
    let remote = origin.probe(&target).await.expect("an answer");
    assert_eq!(remote.length(), Some(777));
    let error = fetch(&origin, &target, &remote, None)
        .await
        .expect_err("lengths differ");
    assert!(matches!(error, OriginError::Changed { .. }), "{error}");
    assert_eq!(error.retry(), Retry::StartAnew);
    let remote = origin.probe_by_get(&target).await.expect("an answer");
    assert_eq!(fetch(&origin, &target, &remote, None).await, Ok(file));
}

#[tokio::test]
async fn an_empty_file_has_no_bytes() {
    for answer in ["200 OK", "416 No"] {
        let server = Scripted::start(move |seen| match seen.range() {
            Some(_) if answer.starts_with("416") => say(
                answer,
                &[("Content-Range", "bytes */0"), ("Content-Length", "0")],
                b"",
            ),
            _ => say("200 OK", &[("Content-Length", "0")], b""),
        })
        .await;
        let (origin, target) = (origin(), target(&server.url("/f")));
        let remote = origin.probe(&target).await.expect("an answer");
        assert_eq!(remote.length(), Some(0));
        assert_eq!(fetch(&origin, &target, &remote, None).await, Ok(Vec::new()));
    }
}

#[tokio::test]
async fn a_server_that_has_no_ranges_is_known_by_its_answer() {
    let file = payload(300);
    let server = Scripted::start(move |seen| match seen.method.as_str() {
        "HEAD" => error_of("405 No")(seen),
        _ if seen.range().is_some() => say("416 No", &[("Content-Length", "0")], b""),
        _ => serve(&file, "\"v1\"", seen),
    })
    .await;
    let remote = origin()
        .probe(&target(&server.url("/f")))
        .await
        .expect("an answer");
    assert_eq!((remote.length(), remote.ranges), (Some(300), Ranges::No));
}

#[tokio::test]
async fn refusals_and_outages_are_told_apart() {
    for (status, retry) in [
        ("401 No", Retry::Never),
        ("403 No", Retry::Never),
        ("404 No", Retry::Never),
        ("410 No", Retry::Never),
        ("503 Later", Retry::Backoff),
        ("429 Later", Retry::Backoff),
        ("500 Oops", Retry::Backoff),
    ] {
        let server = Scripted::start(error_of(status)).await;
        let error = origin()
            .probe(&target(&server.url("/f")))
            .await
            .expect_err("an error");
        assert_eq!(error.retry(), retry, "{error}");
        assert!(error.to_string().contains(&status[..3]), "{error}");
    }
}

#[tokio::test]
async fn where_nobody_listens_is_said_in_one_line() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    drop(listener);
    let url = format!("http://u:hunter2@127.0.0.1:{port}/f?token=hunter2");
    let error = origin()
        .probe(&target(&url))
        .await
        .expect_err("nobody listens");
    let text = error.to_string();
    assert!(matches!(error, OriginError::Network { .. }), "{text}");
    assert!(
        text.contains(&format!("http://127.0.0.1:{port}/f?…: ")),
        "{text}"
    );
    assert!(
        text.contains("refused") && !text.contains("hunter2") && !text.contains('\n'),
        "{text}"
    );
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_said() {
    // A label of more than 63 characters is refused by the resolver without asking anybody.
    let url = format!("http://{}.test/", "a".repeat(64));
    let error = origin()
        .probe(&target(&url))
        .await
        .expect_err("no such name");
    assert!(
        error.to_string().contains("name resolution failed"),
        "{error}"
    );
    assert_eq!(error.retry(), Retry::Backoff);
}

#[tokio::test]
async fn giant_and_senseless_heads_are_refused() {
    let giant = "x".repeat(2 << 20);
    let many: Vec<(String, String)> = (0..2000).map(|i| (format!("X-{i}"), "y".into())).collect();
    for kind in 0..3 {
        let (giant, many) = (giant.clone(), many.clone());
        let server = Scripted::start(move |_| match kind {
            0 => say("200 OK", &[("X-Giant", &giant)], b""),
            1 => {
                let fields: Vec<_> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                say("200 OK", &fields, b"")
            }
            _ => Say {
                bytes: b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
                then: Then::Close,
            },
        })
        .await;
        let error = origin()
            .probe(&target(&server.url("/f")))
            .await
            .expect_err("no answer");
        assert!(error.to_string().len() < 500, "{error}");
        assert!(matches!(error, OriginError::BadAnswer { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn redirects_are_followed_and_links_resolved_where_they_end() {
    let server = Scripted::start(|seen| match seen.path.as_str() {
        "/a" => redirect("/b/c"),
        "/b/c" => redirect("d?x=1"),
        "/b/d?x=1" => {
            let link = "<m>; rel=describedby; type=application/vnd.branchline.manifest";
            say("200 OK", &[("Content-Length", "5"), ("Link", link)], b"")
        }
        other => panic!("asked for {other}"),
    })
    .await;
    let remote = origin()
        .probe(&target(&server.url("/a")))
        .await
        .expect("an answer");
    assert_eq!(remote.url.as_str(), server.url("/b/d?x=1"));
    assert_eq!(
        remote.manifest_link.map(String::from),
        Some(server.url("/b/m"))
    );
}

#[tokio::test]
async fn redirects_that_loop_or_lead_nowhere_are_errors() {
    for (location, expected) in [
        ("/f", "redirects more than 10 times"),
        ("ftp://h/f", "ftp: URL"),
        ("file:///etc/passwd", "file: URL"),
        ("http://", "no URL"),
    ] {
        let server = Scripted::start(move |_| redirect(location)).await;
        let error = origin()
            .probe(&target(&server.url("/f")))
            .await
            .expect_err("no end");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let server = Scripted::start(|_| say("302 Found", &[("Content-Length", "0")], b"")).await;
    let error = origin()
        .probe(&target(&server.url("/f")))
        .await
        .expect_err("no Location");
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[tokio::test]
async fn ten_redirects_are_followed() {
    let server = Scripted::start(|seen| match seen.path[1..].parse::<u32>() {
        Ok(10) => say("200 OK", &[("Content-Length", "5")], b""),
        Ok(n) => redirect(&format!("/{}", n + 1)),
        Err(_) => panic!("asked for {}", seen.path),
    })
    .await;
    let remote = origin()
        .probe(&target(&server.url("/0")))
        .await
        .expect("an answer");
    assert_eq!(remote.length(), Some(5));
}

#[tokio::test]
async fn secrets_stay_with_the_host_they_are_for() {
    let far = Scripted::start_at("127.0.0.2", |_| {
        say("200 OK", &[("Content-Length", "5")], b"")
    });
    let far = far.await;
    let there = far.url("/f");
    let near = Scripted::start(move |seen| match seen.path.as_str() {
        "/f" => redirect("/g"),
        _ => redirect(&there),
    })
    .await;
    let url = near.url("/f").replace("http://", "http://me:pw@");
    let headers = [("Cookie", "c"), ("X-Api-Key", "k")];
    let target = Target::new(&url, headers.map(|(n, v)| (n.to_owned(), v.to_owned())));
    origin()
        .probe(&target.expect("a good target"))
        .await
        .expect("an answer");
    for seen in near.seen() {
        assert_eq!(seen.header("x-api-key"), Some("k"), "{}", seen.path);
        assert_eq!(
            seen.header("authorization"),
            Some("Basic bWU6cHc="),
            "{}",
            seen.path
        );
    }
    for seen in far.seen() {
        for name in ["cookie", "x-api-key", "authorization", "referer"] {
            assert_eq!(seen.header(name), None, "{name}");
        }
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
    }
    assert_eq!(far.seen().len(), 1);
}
