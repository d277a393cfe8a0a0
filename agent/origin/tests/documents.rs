//! Small files: bounded, partly, absent.

mod support;

use branchline_origin::{OriginError, Retry, manifest_url};
use support::scripted::{Scripted, Seen, Then, say, serve};
use support::{origin, payload, range, target};

const TAG: &str = "\"m\"";

#[tokio::test]
async fn the_head_and_the_rest_come_by_range() {
    let manifest = payload(5000);
    let served = manifest.clone();
    let server = Scripted::start(move |seen| {
        assert_eq!(seen.path, "/d/f.branchline?v=1");
        serve(&served, TAG, seen)
    })
    .await;
    let (origin, target) = (origin(), target(&server.url("/d/f?v=1")));
    let url = manifest_url(target.url());
    let head = origin
        .document(&target, &url, range(0, 256), 9999)
        .await
        .expect("an answer");
    let head = head.expect("there is one");
    assert_eq!(
        (&head.bytes[..], head.total),
        (&manifest[..256], Some(5000))
    );
    let rest = origin
        .document(&target, &url, range(256, 4744), 9999)
        .await
        .expect("an answer");
    let rest = rest.expect("there is one");
    assert_eq!(rest.bytes, manifest[256..]);
    assert_eq!(
        (rest.version, rest.validator),
        (head.version, head.validator)
    );
    let all = origin
        .document(&target, &url, None, 5000)
        .await
        .expect("an answer");
    assert_eq!(all.expect("there is one").bytes, manifest);
}

#[tokio::test]
async fn where_ranges_are_ignored_no_more_is_read_than_needed() {
    let manifest = payload(1000);
    let served = manifest.clone();
    let server = Scripted::start(move |seen| {
        let plain = Seen {
            headers: Vec::new(),
            ..seen.clone()
        };
        // Says that a great deal follows, and never sends it: whoever waits for it hangs.
        let mut good = serve(&served, TAG, &plain);
        let head = good.bytes.len() - 1000;
        let text = String::from_utf8_lossy(&good.bytes[..head]).replace(": 1000", ": 9999999");
        good.bytes.splice(..head, text.into_bytes());
        good.then(Then::Hang)
    })
    .await;
    let (origin, target) = (origin(), target(&server.url("/f")));
    for (offset, length) in [(0, 256), (700, 300), (999, 1)] {
        let part = origin
            .document(&target, target.url(), range(offset, length), 300)
            .await;
        let part = part.expect("an answer").expect("there is one");
        let from = usize::try_from(offset).expect("small");
        assert_eq!(part.bytes, manifest[from..from + part.bytes.len()]);
        assert_eq!(part.bytes.len() as u64, length);
        assert_eq!(part.total, Some(9_999_999));
    }
}

#[tokio::test]
async fn a_document_past_the_limit_is_refused_whatever_it_announces() {
    for chunked in [false, true] {
        let server = Scripted::start(move |_| match chunked {
            false => say("200 OK", &[("Content-Length", "9999999999999")], b"x"),
            true => {
                let body = "a\r\n0123456789\r\n".repeat(11);
                say(
                    "200 OK",
                    &[("Transfer-Encoding", "chunked")],
                    body.as_bytes(),
                )
            }
        })
        .await;
        let (origin, target) = (origin(), target(&server.url("/f")));
        let error = origin
            .document(&target, target.url(), None, 100)
            .await
            .expect_err("too long");
        assert!(error.to_string().contains("more than 100 bytes"), "{error}");
    }
}

#[tokio::test]
async fn a_chunked_document_of_exactly_the_limit_is_taken() {
    let server = Scripted::start(move |_| {
        let body = "a\r\n0123456789\r\n".repeat(10) + "0\r\n\r\n";
        say(
            "200 OK",
            &[("Transfer-Encoding", "chunked")],
            body.as_bytes(),
        )
    })
    .await;
    let (origin, target) = (origin(), target(&server.url("/f")));
    let document = origin
        .document(&target, target.url(), None, 100)
        .await
        .expect("an answer");
    assert_eq!(document.expect("there is one").bytes.len(), 100);
}

#[tokio::test]
async fn an_absent_document_is_none_and_an_outage_an_error() {
    for (status, absent) in [
        ("404 No", true),
        ("403 No", true),
        ("410 No", true),
        ("503 Wait", false),
    ] {
        let server = Scripted::start(move |_| say(status, &[("Content-Length", "0")], b"")).await;
        let (origin, target) = (origin(), target(&server.url("/f")));
        match origin
            .document(&target, target.url(), range(0, 256), 300)
            .await
        {
            Ok(found) => assert!(absent && found.is_none(), "{status}"),
            Err(error) => assert!(!absent && error.retry() == Retry::Backoff, "{status}"),
        }
    }
}

#[tokio::test]
async fn a_document_that_ends_early_is_short_or_truncated() {
    let served = payload(100);
    let server = Scripted::start(move |seen| match seen.path.as_str() {
        "/short" => serve(&served, TAG, seen),
        "/past" => say(
            "416 No",
            &[("Content-Range", "bytes */100"), ("Content-Length", "0")],
            b"",
        ),
        _ => serve(&served, TAG, seen).cut(140).then(Then::Close),
    })
    .await;
    let origin = origin();
    let ask = |path: &str, offset| {
        let (origin, target) = (origin.clone(), target(&server.url(path)));
        async move {
            origin
                .document(&target, target.url(), range(offset, 256), 300)
                .await
        }
    };
    let short = ask("/short", 0)
        .await
        .expect("an answer")
        .expect("there is one");
    assert_eq!((short.bytes.len(), short.total), (100, Some(100)));
    let past = ask("/past", 256)
        .await
        .expect("an answer")
        .expect("there is one");
    assert_eq!((past.bytes.len(), past.total), (0, Some(100)));
    let error = ask("/cut", 0).await.expect_err("it broke off");
    assert!(matches!(error, OriginError::Truncated { .. }), "{error}");
}

#[tokio::test]
async fn other_bytes_than_asked_for_and_coded_ones_are_refused() {
    for headers in [
        [
            ("Content-Range", "bytes 10-19/100"),
            ("Content-Length", "10"),
        ],
        [("Content-Range", "bytes 0-5/100"), ("Content-Length", "6")],
        [
            ("Content-Encoding", "gzip"),
            ("Content-Range", "bytes 0-9/100"),
        ],
    ] {
        let server =
            Scripted::start(move |_| say("206 P", &headers, &[0; 10]).then(Then::Close)).await;
        let (origin, target) = (origin(), target(&server.url("/f")));
        let answer = origin
            .document(&target, target.url(), range(0, 10), 300)
            .await;
        let error = answer.expect_err("not what was asked for");
        assert!(
            matches!(
                error,
                OriginError::BadRange { .. } | OriginError::BadAnswer { .. }
            ),
            "{error}"
        );
    }
}
