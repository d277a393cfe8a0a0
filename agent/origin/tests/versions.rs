//! Which version a server's bytes are of: changes, validators, content codings.

mod support;

use branchline_origin::{OriginError, Resume, Retry};
use support::scripted::{Scripted, TAG, Then, chunked, once_bad, redirect, say, serve};
use support::{fetch, origin, payload, probed, range, reader, rest_of, retries};

#[tokio::test]
async fn a_chunked_file_of_another_length_than_head_said_has_changed() {
    for length in [999, 1001] {
        let other = chunked(&payload(length));
        let server = once_bad(&payload(1000), move |_, _| {
            say(
                "200 OK",
                &[("Transfer-Encoding", "chunked"), ("ETag", TAG)],
                &other,
            )
        })
        .await;
        let origin = origin();
        let (target, remote) = probed(&origin, &server).await;
        let error = fetch(&origin, &target, &remote, None)
            .await
            .expect_err("another length");
        assert!(
            matches!(error, OriginError::Changed { .. }),
            "{length}: {error}"
        );
    }
}

#[tokio::test]
async fn a_file_that_changes_midway_is_noticed_and_both_versions_named() {
    let (old, new) = (payload(1000), payload(2000));
    let mut gets = 0;
    let (before, after) = (old.clone(), new.clone());
    let server = Scripted::start(move |seen| {
        gets += usize::from(seen.method == "GET");
        match gets {
            0 | 1 => serve(&before, "\"v1\"", seen).cut(600).then(Then::Close),
            _ => serve(&after, "\"v2\"", seen),
        }
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let mut reader = reader(&origin, &target, &remote, None);
    let error = rest_of(&mut reader).await.expect_err("it changed");
    let text = error.to_string();
    assert!(text.contains("1000 bytes, ETag \"v1\"") && text.contains("2000 bytes, ETag \"v2\""));
    assert_eq!(error.retry(), Retry::StartAnew);
    assert_eq!(
        server
            .seen()
            .last()
            .and_then(|s| s.header("if-range").map(str::to_owned))
            .as_deref(),
        Some(TAG)
    );
    let remote = origin.probe_by_get(&target).await.expect("an answer");
    assert_eq!(fetch(&origin, &target, &remote, None).await, Ok(new));
}

#[tokio::test]
async fn a_change_is_noticed_even_where_if_range_is_ignored() {
    let (old, new) = (payload(1000), [9u8; 1000]);
    let server = Scripted::start(move |seen| {
        let mut blind = seen.clone();
        blind.headers.retain(|(name, _)| name != "if-range");
        let file = if seen.method == "HEAD" {
            &old[..]
        } else {
            &new[..]
        };
        serve(
            file,
            if seen.method == "HEAD" {
                "\"v1\""
            } else {
                "\"v2\""
            },
            &blind,
        )
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let error = fetch(&origin, &target, &remote, range(10, 10))
        .await
        .expect_err("another tag");
    assert!(matches!(error, OriginError::Changed { .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_shrank_is_a_change_too() {
    let server = once_bad(&payload(1000), |_, _| {
        say(
            "416 No",
            &[("Content-Range", "bytes */500"), ("Content-Length", "0")],
            b"",
        )
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let error = fetch(&origin, &target, &remote, range(900, 10))
        .await
        .expect_err("it is gone");
    assert!(
        error.to_string().contains("now it is [500 bytes"),
        "{error}"
    );
}

#[tokio::test]
async fn without_a_strong_validator_only_verified_bytes_go_on() {
    for weak in ["W/\"v1\"", "v1"] {
        for (resume, goes_on) in [(Resume::Always, true), (Resume::WithStrongValidator, false)] {
            let (file, mut gets) = (payload(1000), 0);
            let served = file.clone();
            let server = Scripted::start(move |seen| {
                gets += usize::from(seen.method == "GET");
                let good = serve(&served, weak, seen);
                if gets == 1 {
                    good.cut(700).then(Then::Close)
                } else {
                    good
                }
            })
            .await;
            let origin = origin();
            let (target, remote) = probed(&origin, &server).await;
            assert_eq!(remote.validator, None);
            let mut reader = origin.read(&target, &remote, None, resume, retries());
            match rest_of(&mut reader).await {
                Ok(bytes) => assert!(goes_on && bytes == file),
                Err(error) => {
                    assert!(
                        !goes_on && matches!(error, OriginError::CannotResume { .. }),
                        "{error}"
                    );
                    assert_eq!(error.retry(), Retry::StartAnew);
                }
            }
            assert!(
                server
                    .seen()
                    .iter()
                    .all(|seen| seen.header("if-range").is_none())
            );
        }
    }
}

#[tokio::test]
async fn content_encoding_is_never_undone() {
    // A gzip head, then noise: nobody could decode it.
    let file = [&b"\x1f\x8b\x08\x00"[..], &payload(500)].concat();
    let served = file.clone();
    let server = Scripted::start(move |seen| {
        let headers = [
            ("Content-Length", "504"),
            ("ETag", "\"z\""),
            ("Content-Encoding", "gzip"),
            (
                "Repr-Digest",
                "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
            ),
        ];
        say(
            "200 OK",
            &headers,
            if seen.method == "HEAD" { b"" } else { &served },
        )
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    assert_eq!(remote.coding.as_deref(), Some("gzip"));
    assert_eq!(remote.digests, []);
    assert_eq!(fetch(&origin, &target, &remote, None).await, Ok(file));
}

#[tokio::test]
async fn a_coding_that_comes_and_goes_is_refused() {
    let file = payload(1000);
    let server = once_bad(&file, |_, _| {
        say(
            "200 OK",
            &[
                ("Content-Encoding", "br"),
                ("ETag", TAG),
                ("Content-Length", "1000"),
            ],
            b"",
        )
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let error = origin
        .body(&target, &remote, None)
        .await
        .expect_err("another coding");
    assert!(error.to_string().contains("Content-Encoding"), "{error}");
}

#[tokio::test]
async fn an_address_that_expired_is_asked_for_again() {
    let file = payload(1000);
    let (served, mut round) = (file.clone(), 1);
    let server = Scripted::start(move |seen| {
        let signed = format!("/signed-{round}");
        match (seen.method.as_str(), seen.path.as_str()) {
            (_, "/f") => {
                round += usize::from(seen.method == "HEAD");
                redirect(&format!("/signed-{round}"))
            }
            ("GET", path) if path != signed => say("403 Expired", &[("Content-Length", "0")], b""),
            _ => {
                let good = serve(&served, TAG, seen);
                round += usize::from(seen.method == "HEAD");
                good
            }
        }
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    assert_eq!(remote.url.path(), "/signed-2");
    assert_eq!(
        fetch(&origin, &target, &remote, range(10, 20))
            .await
            .as_deref(),
        Ok(&file[10..30])
    );
    let paths: Vec<_> = server.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths, ["/f", "/signed-2", "/signed-2", "/f", "/signed-3"]);
}
