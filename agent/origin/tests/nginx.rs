//! A real server: ranges, HTTP/2, TLS, gzip, credentials, changes.

mod support;

use branchline_origin::{
    NetrcChoice, NetworkKind, Origin, OriginError, OriginOptions, Ranges, Retry, manifest_url,
};
use support::nginx::Nginx;
use support::{fetch, options, origin, payload, range, target};

fn trusting(nginx: &Nginx) -> Origin {
    let options = OriginOptions {
        ca_file: Some(nginx.path("ca.pem")),
        ..options()
    };
    Origin::new(&options).expect("the options are good")
}

#[tokio::test]
async fn files_and_ranges_come_over_http_1_and_2() {
    let file = payload(3_000_000);
    let nginx = Nginx::start("");
    nginx.put("f.bin", &file);
    let origin = trusting(&nginx);
    for (url, protocol) in [
        (nginx.http("/f.bin"), "HTTP/1.1"),
        (nginx.https("/f.bin"), "HTTP/2.0"),
    ] {
        let target = target(&url);
        let remote = origin.probe(&target).await.expect("an answer");
        assert_eq!(
            (remote.length(), remote.ranges),
            (Some(3_000_000), Ranges::Yes)
        );
        assert!(remote.validator.is_some());
        let whole = fetch(&origin, &target, &remote, None).await.expect("bytes");
        assert!(whole == file, "{protocol}");
        let part = fetch(&origin, &target, &remote, range(1_000_001, 777_777)).await;
        assert!(
            part.expect("bytes") == file[1_000_001..1_777_778],
            "{protocol}"
        );
        nginx.wait_for_log(&format!("{protocol} GET /f.bin 206 bytes=1000001-1777777"));
    }
}

#[tokio::test]
async fn many_ranges_at_once_share_one_http_2_connection() {
    let file = payload(1_000_000);
    let nginx = Nginx::start("add_header X-C $connection;");
    nginx.put("f", &file);
    let origin = trusting(&nginx);
    let target = target(&nginx.https("/f"));
    let remote = origin.probe(&target).await.expect("an answer");
    let mut parts = tokio::task::JoinSet::new();
    for at in 0..10u64 {
        let (origin, target, remote) = (origin.clone(), target.clone(), remote.clone());
        parts.spawn(async move {
            (
                at,
                fetch(&origin, &target, &remote, range(at * 100_000, 100_000)).await,
            )
        });
    }
    while let Some(part) = parts.join_next().await {
        let (at, bytes) = part.expect("no panic");
        let from = usize::try_from(at).expect("small") * 100_000;
        assert!(
            bytes.expect("bytes") == file[from..from + 100_000],
            "part {at}"
        );
    }
}

#[tokio::test]
async fn an_unknown_authority_is_not_trusted_and_not_tried_again() {
    let nginx = Nginx::start("");
    nginx.put("f", b"x");
    let error = origin()
        .probe(&target(&nginx.https("/f")))
        .await
        .expect_err("no such CA");
    assert!(
        matches!(
            error,
            OriginError::Network {
                kind: NetworkKind::Certificate,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.retry(), Retry::Never);
    assert!(
        error.to_string().contains("certificate not trusted"),
        "{error}"
    );
    let elsewhere = format!("https://127.0.0.2:{}/f", nginx.https_port());
    let error = trusting(&nginx)
        .probe(&target(&elsewhere))
        .await
        .expect_err("nobody is there");
    assert!(
        matches!(
            error,
            OriginError::Network {
                kind: NetworkKind::Connect,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn plain_http_at_a_tls_port_is_said() {
    let nginx = Nginx::start("");
    let url = nginx.https("/f").replace("https://", "http://");
    let error = origin()
        .probe(&target(&url))
        .await
        .expect_err("TLS is spoken there");
    assert!(
        matches!(error, OriginError::Refused { status: 400, .. }),
        "{error:?}"
    );
    let url = nginx.http("/f").replace("http://", "https://");
    let error = origin()
        .probe(&target(&url))
        .await
        .expect_err("no TLS is spoken there");
    assert!(
        matches!(
            error,
            OriginError::Network {
                kind: NetworkKind::Tls,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_file_replaced_between_probe_and_fetch_has_changed() {
    let nginx = Nginx::start("");
    nginx.put("f", &payload(50_000));
    let (origin, target) = (origin(), target(&nginx.http("/f")));
    let remote = origin.probe(&target).await.expect("an answer");
    nginx.put("f", &payload(60_000));
    for wanted in [None, range(100, 100), range(49_000, 1_000)] {
        let error = fetch(&origin, &target, &remote, wanted)
            .await
            .expect_err("it changed");
        let text = error.to_string();
        assert!(matches!(error, OriginError::Changed { .. }), "{text}");
        assert!(
            text.contains("[50000 bytes") && text.contains("[60000 bytes"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn gzip_is_not_asked_for_and_so_does_not_come() {
    let text = b"the same words again and again ".repeat(2_000);
    let nginx = Nginx::start("gzip on; gzip_types *; gzip_min_length 1;");
    nginx.put("f.txt", &text);
    let (origin, target) = (origin(), target(&nginx.http("/f.txt")));
    let remote = origin.probe(&target).await.expect("an answer");
    assert_eq!(
        (remote.length(), remote.coding.as_deref()),
        (Some(62_000), None)
    );
    assert!(fetch(&origin, &target, &remote, None).await.expect("bytes") == text);
}

#[tokio::test]
async fn ranges_switched_off_still_give_the_file() {
    let file = payload(200_000);
    let nginx = Nginx::start("max_ranges 0;");
    nginx.put("f", &file);
    let (origin, target) = (origin(), target(&nginx.http("/f")));
    let remote = origin.probe_by_get(&target).await.expect("an answer");
    assert_eq!(
        (remote.length(), remote.ranges),
        (Some(200_000), Ranges::No)
    );
    let part = fetch(&origin, &target, &remote, range(150_000, 10))
        .await
        .expect("bytes");
    assert_eq!(part, file[150_000..150_010]);
}

#[tokio::test]
async fn the_manifest_beside_the_file_is_found_or_not() {
    let nginx = Nginx::start("");
    nginx.put("f", b"file");
    nginx.put("f.branchline", &payload(1_000));
    let origin = trusting(&nginx);
    for url in [nginx.http("/f"), nginx.https("/f")] {
        let target = target(&url);
        let beside = manifest_url(target.url());
        let head = origin
            .document(&target, &beside, range(0, 256), 1 << 20)
            .await
            .expect("answer");
        let head = head.expect("there is one");
        assert_eq!((head.bytes.len(), head.total), (256, Some(1_000)));
        let none = origin
            .document(&target, &manifest_url(&beside), None, 1 << 20)
            .await;
        assert_eq!(none, Ok(None));
    }
}

#[tokio::test]
async fn credentials_come_from_netrc_or_the_url() {
    let nginx = Nginx::start("location / { auth_basic x; auth_basic_user_file users; }");
    nginx.put("f", b"secret file");
    std::fs::write(nginx.path("users"), "me:{PLAIN}p w@1\n").expect("the folder is ours");
    let url = nginx.http("/f");
    let error = origin()
        .probe(&target(&url))
        .await
        .expect_err("nobody said who asks");
    assert!(
        error.to_string().contains("status 401; give credentials"),
        "{error}"
    );

    let netrc = nginx.path("netrc");
    std::fs::write(&netrc, "machine 127.0.0.1 login me password \"p w@1\"\n").expect("ours");
    let options = OriginOptions {
        netrc: NetrcChoice::File(netrc),
        ..options()
    };
    let known = Origin::new(&options).expect("the options are good");
    let target_of = target(&url);
    let remote = known.probe(&target_of).await.expect("netrc knows");
    assert_eq!(
        fetch(&known, &target_of, &remote, None).await.as_deref(),
        Ok(&b"secret file"[..])
    );

    let with_login = target(&url.replace("http://", "http://me:p%20w%401@"));
    assert!(origin().probe(&with_login).await.is_ok());
}

#[tokio::test]
async fn an_empty_file_is_one() {
    let nginx = Nginx::start("");
    nginx.put("empty", b"");
    let (origin, target) = (origin(), target(&nginx.http("/empty")));
    let remote = origin.probe(&target).await.expect("an answer");
    assert_eq!(remote.length(), Some(0));
    assert_eq!(fetch(&origin, &target, &remote, None).await, Ok(Vec::new()));
}

#[tokio::test]
async fn missing_files_and_folders_that_are_closed_are_told_apart() {
    let nginx = Nginx::start("");
    let absent = origin()
        .probe(&target(&nginx.http("/absent")))
        .await
        .expect_err("no file");
    assert!(matches!(absent, OriginError::NotFound { .. }), "{absent:?}");
    let closed = origin()
        .probe(&target(&nginx.http("/")))
        .await
        .expect_err("no listing");
    assert!(
        matches!(closed, OriginError::Refused { status: 403, .. }),
        "{closed:?}"
    );
}
