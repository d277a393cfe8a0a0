//! Reading a version's bytes through everything servers and networks do to them.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use branchline_core::backoff::Backoff;
use branchline_origin::{
    BodyKind, Origin, OriginError, OriginOptions, Resume, Retries, Retry, RetryPolicy,
};
use support::scripted::{Scripted, Seen, TAG, Then, chunked, once_bad, say, serve};
use support::{
    STALL, fetch, options, origin, payload, probed, range, reader, rest_of, retries, target,
    target_with,
};
use tokio::time::Instant;

#[tokio::test]
async fn ranges_and_the_whole_come_over_one_connection() {
    let file = payload(100_000);
    let served = file.clone();
    let server = Scripted::start(move |seen| serve(&served, TAG, seen)).await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    for (from, to) in [
        (0, 1),
        (5, 1005),
        (99_999, 100_000),
        (0, 99_999),
        (0, 100_000),
    ] {
        let wanted = range(from as u64, (to - from) as u64);
        let bytes = fetch(&origin, &target, &remote, wanted)
            .await
            .expect("bytes");
        assert!(bytes == file[from..to], "{from} to {to}");
    }
    assert_eq!(fetch(&origin, &target, &remote, None).await, Ok(file));
    let seen = server.seen();
    assert!(
        seen.iter().all(|seen| seen.connection == 0),
        "one connection serves all"
    );
    assert!(
        seen.iter()
            .all(|s| s.range().is_none() || s.header("if-range") == Some(TAG))
    );
}

#[tokio::test]
async fn an_answer_that_dies_at_any_byte_is_completed() {
    let file = payload(40);
    let length = serve(&file, TAG, &ranged()).bytes.len();
    for then in [Then::Close, Then::Reset] {
        let (at, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (cut, done, served) = (at.clone(), failed.clone(), file.clone());
        let server = Scripted::start(move |seen| {
            let good = serve(&served, TAG, seen);
            let first = seen.method == "GET" && done.fetch_add(1, Ordering::Relaxed) == 0;
            if first {
                good.cut(cut.load(Ordering::Relaxed)).then(then)
            } else {
                good
            }
        })
        .await;
        let origin = origin();
        let (target, remote) = probed(&origin, &server).await;
        for cut in 0..length {
            at.store(cut, Ordering::Relaxed);
            failed.store(0, Ordering::Relaxed);
            let mut reader = reader(&origin, &target, &remote, range(7, 30));
            let bytes = rest_of(&mut reader)
                .await
                .expect("the second request brings the rest");
            assert_eq!(bytes, file[7..37], "cut at byte {cut}");
            assert_eq!(failed.load(Ordering::Relaxed), 2, "cut at byte {cut}");
            assert_eq!(reader.received(), 30, "no byte comes twice");
        }
    }
}

fn ranged() -> Seen {
    let headers = vec![("range".to_owned(), "bytes=7-36".to_owned())];
    Seen {
        method: "GET".to_owned(),
        path: "/f".to_owned(),
        headers,
        connection: 0,
    }
}

#[tokio::test]
async fn a_line_that_breaks_after_every_few_bytes_still_ends() {
    let file = payload(100);
    let served = file.clone();
    let server = Scripted::start(move |seen| {
        let good = serve(&served, TAG, seen);
        let head = good
            .bytes
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .expect("a head")
            + 4;
        if seen.method == "GET" {
            good.cut(head + 3).then(Then::Close)
        } else {
            good
        }
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let mut reader = reader(&origin, &target, &remote, None);
    assert_eq!(
        rest_of(&mut reader).await,
        Ok(file),
        "progress starts the patience anew"
    );
    assert_eq!((reader.requests(), reader.received()), (34, 100));
}

#[tokio::test]
async fn chunks_without_a_length_are_completed_wherever_they_break() {
    let file = payload(24);
    let whole = chunked(&file);
    let (at, gets) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (cut, count, length) = (at.clone(), gets.clone(), whole.len());
    let server = Scripted::start(move |seen| {
        if seen.method == "HEAD" {
            return say("200 OK", &[("Transfer-Encoding", "chunked")], b"");
        }
        let good = say(
            "200 OK",
            &[("Transfer-Encoding", "chunked"), ("ETag", TAG)],
            &whole,
        );
        let head = good.bytes.len() - whole.len();
        match count.fetch_add(1, Ordering::Relaxed) {
            0 => good
                .cut(head + cut.load(Ordering::Relaxed))
                .then(Then::Close),
            _ => good,
        }
    })
    .await;
    let (origin, target) = (origin(), target(&server.url("/f")));
    gets.store(1, Ordering::Relaxed);
    let remote = origin.probe(&target).await.expect("an answer");
    assert_eq!(remote.length(), None);
    for cut in 0..length {
        at.store(cut, Ordering::Relaxed);
        gets.store(0, Ordering::Relaxed);
        let bytes = fetch(&origin, &target, &remote, None)
            .await
            .expect("completed");
        assert_eq!(bytes, file, "cut at byte {cut}");
    }
}

#[tokio::test]
async fn a_body_that_only_the_connection_ends_is_measured_by_the_known_length() {
    let file = payload(50);
    for cut in 0..50 {
        let served = file.clone();
        let server = once_bad(&file, move |_, _| {
            say(
                "200 OK",
                &[("ETag", TAG), ("Connection", "close")],
                &served[..cut],
            )
            .then(Then::Close)
        })
        .await;
        let origin = origin();
        let (target, remote) = probed(&origin, &server).await;
        assert_eq!(
            fetch(&origin, &target, &remote, None).await,
            Ok(file.clone()),
            "{cut}"
        );
    }
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_read_from_its_start() {
    let file = payload(5000);
    let served = file.clone();
    let server = Scripted::start(move |seen| {
        let plain = Seen {
            headers: Vec::new(),
            ..seen.clone()
        };
        serve(&served, TAG, &plain)
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let body = origin
        .body(&target, &remote, range(4000, 500))
        .await
        .expect("a body");
    assert_eq!((body.kind(), body.position()), (BodyKind::Whole, 0));
    assert_eq!(body.remaining(), Some(5000));
    drop(body);
    let bytes = fetch(&origin, &target, &remote, range(4000, 500))
        .await
        .expect("bytes");
    assert_eq!(bytes, file[4000..4500]);
    // Whoever has several ranges to ask for hears of it instead.
    let (resume, patience) = (Resume::AlwaysByRanges, retries());
    let mut by_ranges = origin.read(&target, &remote, range(4000, 500), resume, patience);
    let refused = by_ranges.chunk().await.expect_err("no ranges");
    assert!(matches!(refused, OriginError::BadRange { .. }), "{refused}");
    assert_eq!(by_ranges.requests(), 1, "and is not made to wait");
}

#[tokio::test]
async fn a_busy_origin_is_told_at_once_to_who_has_several_ranges() {
    let file = payload(5000);
    let server = Scripted::start(move |seen| match seen.range() {
        Some((4000, _)) => say(
            "503 Later",
            &[("Content-Length", "0"), ("Retry-After", "7")],
            b"",
        ),
        Some(_) | None => serve(&file, TAG, seen),
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let (resume, patience) = (Resume::AlwaysByRanges, retries());
    let mut by_ranges = origin.read(&target, &remote, range(4000, 500), resume, patience);
    let busy = by_ranges.chunk().await.expect_err("busy");
    assert_eq!(busy.is_busy_for(), Some(Duration::from_secs(7)));
    let asked = server
        .seen()
        .iter()
        .filter(|seen| seen.range().is_some())
        .count();
    assert_eq!(asked, 1, "and is not made to wait");
}

#[tokio::test]
async fn a_server_without_ranges_that_breaks_off_is_read_again() {
    let file = payload(5000);
    let (served, mut gets) = (file.clone(), 0);
    let server = Scripted::start(move |seen| {
        let plain = Seen {
            headers: Vec::new(),
            ..seen.clone()
        };
        let good = serve(&served, TAG, &plain);
        gets += usize::from(seen.method == "GET");
        if gets == 1 {
            good.cut(3000).then(Then::Close)
        } else {
            good
        }
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let mut reader = reader(&origin, &target, &remote, None);
    assert_eq!(rest_of(&mut reader).await, Ok(file));
    assert!(
        reader.received() > 5000,
        "the beginning came twice, and is counted"
    );
}

#[tokio::test]
async fn fewer_bytes_than_asked_for_are_taken_and_the_rest_asked_for() {
    let file = payload(1000);
    let served = file.clone();
    let server = Scripted::start(move |seen| {
        let mut seen = seen.clone();
        if let Some((first, last)) = seen.range() {
            let value = format!("bytes={first}-{}", last.min(first + 99));
            seen.headers.retain(|(name, _)| name != "range");
            seen.headers.push(("range".to_owned(), value));
        }
        serve(&served, TAG, &seen)
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let bytes = fetch(&origin, &target, &remote, range(50, 900))
        .await
        .expect("bytes");
    assert_eq!(bytes, file[50..950]);
}

#[tokio::test]
async fn wrong_answers_to_ranges_are_never_taken_for_the_bytes() {
    let file = payload(1000);
    let junk = [7u8; 100];
    let answers: Vec<(&str, Vec<(&str, &str)>)> = vec![
        (
            "206 P",
            vec![
                ("Content-Range", "bytes 101-200/1000"),
                ("Content-Length", "100"),
            ],
        ),
        (
            "206 P",
            vec![
                ("Content-Range", "bytes 100-200/1000"),
                ("Content-Length", "101"),
            ],
        ),
        (
            "206 P",
            vec![
                ("Content-Range", "bytes 100-199/1000"),
                ("Content-Length", "99"),
            ],
        ),
        (
            "206 P",
            vec![
                ("Content-Range", "bytes 0-99/1000"),
                ("Content-Length", "100"),
            ],
        ),
        (
            "206 P",
            vec![
                ("Content-Range", "items 100-199/1000"),
                ("Content-Length", "100"),
            ],
        ),
        ("206 P", vec![("Content-Length", "100")]),
        (
            "206 P",
            vec![
                ("Content-Type", "multipart/byteranges; boundary=x"),
                ("Content-Length", "9"),
            ],
        ),
        (
            "416 No",
            vec![("Content-Range", "bytes */1000"), ("Content-Length", "0")],
        ),
        ("416 No", vec![("Content-Length", "0")]),
    ];
    for (status, headers) in answers {
        let wrong = headers.clone();
        let server = once_bad(&file, move |_, _| {
            say(status, &wrong, &junk).then(Then::Close)
        });
        let (server, origin) = (server.await, origin());
        let (target, remote) = probed(&origin, &server).await;
        let error = origin
            .body(&target, &remote, range(100, 100))
            .await
            .expect_err("a wrong one");
        assert!(
            matches!(error, OriginError::BadRange { .. }),
            "{headers:?}: {error}"
        );
        assert_eq!(error.retry(), Retry::Backoff);

        let wrong = headers.clone();
        let server = once_bad(&file, move |_, _| {
            say(status, &wrong, &junk).then(Then::Close)
        });
        let server = server.await;
        let (target, remote) = probed(&origin, &server).await;
        let bytes = fetch(&origin, &target, &remote, range(100, 100)).await;
        assert_eq!(bytes.as_deref(), Ok(&file[100..200]), "{headers:?}");
    }
}

#[tokio::test]
async fn bytes_past_the_announced_range_are_never_handed_out() {
    let file = payload(1000);
    let long = chunked(&payload(150));
    let server = once_bad(&file, move |_, _| {
        let headers = [
            ("Content-Range", "bytes 100-199/1000"),
            ("Transfer-Encoding", "chunked"),
        ];
        say("206 Partial", &headers, &long)
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let mut body = origin
        .body(&target, &remote, range(100, 100))
        .await
        .expect("a head");
    let mut count = 0;
    let error = loop {
        match body.chunk().await {
            Ok(Some(bytes)) => count += bytes.len(),
            Ok(None) => panic!("the excess goes unnoticed"),
            Err(error) => break error,
        }
    };
    assert_eq!(count, 100);
    assert!(
        matches!(error, OriginError::Overlong { expected: 200, .. }),
        "{error}"
    );
    assert_eq!(error.retry(), Retry::Backoff);
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let file = payload(100);
    let server = once_bad(&file, |_, _| {
        say(
            "503 Later",
            &[("Retry-After", "1"), ("Content-Length", "0")],
            b"",
        )
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let before = Instant::now();
    assert_eq!(fetch(&origin, &target, &remote, None).await, Ok(file));
    assert!(before.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn an_origin_that_stays_down_is_given_up() {
    let server = Scripted::start(|seen| match seen.method.as_str() {
        "HEAD" => say("200 OK", &[("Content-Length", "9")], b""),
        _ => say("502 Oops", &[("Content-Length", "0")], b""),
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let error = fetch(&origin, &target, &remote, None)
        .await
        .expect_err("it stays down");
    assert!(
        matches!(error, OriginError::Unavailable { status: 502, .. }),
        "{error}"
    );
    assert_eq!(server.seen().len(), 1 + 5, "as often as the policy says");
}

#[tokio::test]
async fn a_probe_is_tried_again_by_the_same_policy() {
    let mut heads = 0;
    let server = Scripted::start(move |_| {
        heads += 1;
        match heads {
            1 => say("503 Later", &[("Content-Length", "0")], b""),
            _ => say("200 OK", &[("Content-Length", "9")], b""),
        }
    })
    .await;
    let (origin, target) = (origin(), target(&server.url("/f")));
    let remote = retries()
        .run(|| origin.probe(&target), |_| {})
        .await
        .expect("the second try");
    assert_eq!(remote.length(), Some(9));
}

fn impatient() -> Origin {
    let options = OriginOptions {
        stall_timeout: STALL,
        ..options()
    };
    Origin::new(&options).expect("the options are good")
}

#[tokio::test]
async fn a_body_that_stalls_is_left_and_completed() {
    let file = payload(1000);
    let server = once_bad(&file, |_, good| good.cut(500).then(Then::Hang)).await;
    let origin = impatient();
    let (target, remote) = probed(&origin, &server).await;
    assert_eq!(fetch(&origin, &target, &remote, None).await, Ok(file));
    assert_eq!(server.methods(), ["HEAD", "GET", "GET"]);
}

#[tokio::test]
async fn a_stalled_body_says_where_and_for_how_long() {
    let server = once_bad(&payload(1000), |_, good| good.cut(500).then(Then::Hang)).await;
    let origin = impatient();
    let (target, remote) = probed(&origin, &server).await;
    let mut body = origin.body(&target, &remote, None).await.expect("a head");
    let error = loop {
        match body.chunk().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("half a body has no end"),
            Err(error) => break error,
        }
    };
    assert!(
        error
            .to_string()
            .contains("sent nothing for 0.4 s, at offset 4"),
        "{error}"
    );
}

#[tokio::test]
async fn cancelled_calls_lose_no_byte_and_do_not_hide_a_stall() {
    let file = payload(1000);
    let server = once_bad(&file, |_, good| good.cut(500).then(Then::Hang)).await;
    let origin = impatient();
    let (target, remote) = probed(&origin, &server).await;
    let mut reader = reader(&origin, &target, &remote, None);
    let (mut all, mut cancelled) = (Vec::new(), 0);
    loop {
        match tokio::time::timeout(STALL / 20, reader.chunk()).await {
            Ok(Ok(Some(bytes))) => all.extend_from_slice(&bytes),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => panic!("{error}"),
            Err(_) => cancelled += 1,
        }
        assert!(cancelled < 500, "the stall is never noticed");
    }
    assert_eq!(all, file);
    assert!(cancelled >= 5, "calls were cancelled while they waited");
    // On a busy machine an answer's head takes longer than a call, and that request is made again.
    assert_eq!(server.methods()[..3], ["HEAD", "GET", "GET"]);
}

#[tokio::test]
async fn a_head_that_never_comes_is_a_stall() {
    let server = Scripted::start(|_| say("", &[], b"").cut(0).then(Then::Hang)).await;
    let options = OriginOptions {
        stall_timeout: STALL,
        connect_timeout: STALL,
        ..support::options()
    };
    let origin = Origin::new(&options).expect("the options are good");
    let error = origin
        .probe(&target(&server.url("/f")))
        .await
        .expect_err("nothing comes");
    assert!(matches!(error, OriginError::Stalled { .. }), "{error}");
}

#[tokio::test]
async fn a_range_past_the_end_is_not_asked_for() {
    let server = once_bad(&payload(10), |_, good| good).await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let error = origin
        .body(&target, &remote, range(5, 6))
        .await
        .expect_err("only ten bytes");
    assert!(
        error
            .to_string()
            .contains("bytes 5-10 are wanted of a file of 10 bytes"),
        "{error}"
    );
    assert_eq!(server.methods(), ["HEAD"]);
}

#[tokio::test]
async fn the_users_headers_go_along_and_count_before_credentials() {
    let server = once_bad(&payload(10), |_, good| good).await;
    let url = server.url("/f").replace("http://", "http://me:pw@");
    let target = target_with(&url, "authorization", "Bearer t");
    origin().probe(&target).await.expect("an answer");
    assert_eq!(server.seen()[0].header("authorization"), Some("Bearer t"));
}

#[tokio::test]
async fn patience_ends_with_time_as_well() {
    let server = once_bad(&payload(10), |_, _| {
        say(
            "503 Later",
            &[("Retry-After", "600"), ("Content-Length", "0")],
            b"",
        )
    })
    .await;
    let origin = origin();
    let (target, remote) = probed(&origin, &server).await;
    let backoff = Backoff {
        min: Duration::from_millis(1),
        max: Duration::from_millis(1),
    };
    let policy = RetryPolicy {
        backoff,
        failures: 5,
        give_up_after: Duration::from_secs(60),
        when_busy: None,
    };
    let retries = Retries::new(policy, || 0);
    let mut reader = origin.read(&target, &remote, None, Resume::Always, retries);
    let error = rest_of(&mut reader)
        .await
        .expect_err("600 s are over the 60");
    assert!(error.to_string().contains("asks to wait 600 s"), "{error}");
}
