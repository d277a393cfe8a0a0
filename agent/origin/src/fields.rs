//! Reads the header fields that matter here. Each reader is total: a field that is not as its
//! specification says gives `None`, never a panic.

use std::time::{Duration, SystemTime};

use branchline_hashing::{Digest, Sha256Digest};
use data_encoding::BASE64;
use reqwest::header::{
    ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, HeaderMap, HeaderName,
    RETRY_AFTER, TRANSFER_ENCODING,
};
use sfv::{Dictionary, ListEntry, Parser};

/// RFC 9530, section 3.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
/// RFC 3230, section 4.3.2; obsoleted by RFC 9530, still what older servers send.
const DIGEST: HeaderName = HeaderName::from_static("digest");

/// What a `Content-Range` says (RFC 9110, section 14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentRange {
    /// These bytes, both inside, of so many.
    Bytes {
        first: u64,
        last: u64,
        total: Option<u64>,
    },
    /// None; the file has so many bytes.
    Unsatisfied { total: u64 },
}

pub(crate) fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let text = one(headers, &CONTENT_RANGE)?;
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    if range == "*" {
        return Some(ContentRange::Unsatisfied {
            total: number(total)?,
        });
    }
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = if total == "*" {
        None
    } else {
        Some(number(total)?)
    };
    let sound = first <= last && last < total.unwrap_or(u64::MAX);
    sound.then_some(ContentRange::Bytes { first, last, total })
}

/// The body's length, where no transfer coding overrides it (RFC 9112, section 6.3).
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    number(one(headers, &CONTENT_LENGTH)?.trim())
}

/// The content codings, if any but `identity` was applied.
pub(crate) fn content_coding(headers: &HeaderMap) -> Option<String> {
    let text = all(headers, &CONTENT_ENCODING).to_ascii_lowercase();
    let codings: Vec<_> = text
        .split(',')
        .map(str::trim)
        .filter(|c| !matches!(*c, "" | "identity"))
        .collect();
    (!codings.is_empty()).then(|| codings.join(", "))
}

/// Whether the server says that it serves byte ranges; `None` when it says nothing.
pub(crate) fn accept_ranges(headers: &HeaderMap) -> Option<bool> {
    let text = all(headers, &ACCEPT_RANGES);
    (!text.trim().is_empty()).then(|| {
        text.split(',')
            .any(|unit| unit.trim().eq_ignore_ascii_case("bytes"))
    })
}

/// How long to wait, as `Retry-After` says in seconds or as a date (RFC 9110, section 10.2.3). A
/// date counts from the server's own `Date`, so that a wrong clock here does no harm.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = one(headers, &RETRY_AFTER)?.trim();
    if let Some(seconds) = number(text) {
        return Some(Duration::from_secs(seconds));
    }
    let then = httpdate::parse_http_date(text).ok()?;
    let now = date(headers, &DATE).unwrap_or(now);
    Some(then.duration_since(now).unwrap_or_default())
}

pub(crate) fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(one(headers, name)?).ok()
}

/// The whole file's digests. A content-coded answer has none: they would be of the coded bytes in
/// one field and, at some servers, of the plain ones in the other.
pub(crate) fn digests(headers: &HeaderMap) -> Vec<Digest> {
    if content_coding(headers).is_some() {
        return Vec::new();
    }
    let mut digests = Vec::from_iter(repr_digest(&all(headers, &REPR_DIGEST)));
    for digest in instance_digest(&all(headers, &DIGEST)) {
        if !digests.contains(&digest) {
            digests.push(digest);
        }
    }
    digests
}

fn repr_digest(text: &str) -> Option<Digest> {
    let fields: Dictionary = Parser::new(text).parse().ok()?;
    match fields.get("sha-256")? {
        ListEntry::Item(item) => sha256(item.bare_item.as_byte_sequence()?),
        ListEntry::InnerList(_) => None,
    }
}

fn instance_digest(text: &str) -> impl Iterator<Item = Digest> + '_ {
    let pairs = text
        .split(',')
        .filter_map(|part| part.trim().split_once('='));
    pairs
        .filter(|(algorithm, _)| algorithm.eq_ignore_ascii_case("sha-256"))
        .filter_map(|(_, value)| sha256(&BASE64.decode(value.as_bytes()).ok()?))
}

fn sha256(bytes: &[u8]) -> Option<Digest> {
    Some(Digest::Sha256(Sha256Digest::from_bytes(
        bytes.try_into().ok()?,
    )))
}

/// A field's value, if it stands there exactly once.
pub(crate) fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        None
    } else {
        value.to_str().ok()
    }
}

/// A list field's lines as the one line they stand for (RFC 9110, section 5.3).
pub(crate) fn all(headers: &HeaderMap, name: &HeaderName) -> String {
    let lines = headers.get_all(name).iter();
    lines
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Digits only: `u64::from_str` would take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_str(value).expect("a value"),
            )
        };
        let mut map = HeaderMap::new();
        for (name, value) in fields.iter().map(pair) {
            map.append(name, value);
        }
        map
    }

    fn range(text: &str) -> Option<ContentRange> {
        content_range(&headers(&[("content-range", text)]))
    }

    #[test]
    fn content_ranges_that_make_no_sense_are_none() {
        let bytes = |first, last, total| Some(ContentRange::Bytes { first, last, total });
        assert_eq!(range("bytes 0-9/10"), bytes(0, 9, Some(10)));
        assert_eq!(range("Bytes 5-5/*"), bytes(5, 5, None));
        assert_eq!(
            range("bytes */7"),
            Some(ContentRange::Unsatisfied { total: 7 })
        );
        for bad in [
            "",
            "bytes",
            "bytes 0-10/10",
            "bytes 9-0/10",
            "bytes +1-2/9",
            "bytes 0-18446744073709551615/*",
            "bytes 0-18446744073709551616/*",
            "bytes */*",
            "bytes -5/9",
            "lines 0-1/2",
            "bytes=0-1/2",
        ] {
            assert_eq!(range(bad), None, "{bad:?}");
        }
        let twice = headers(&[
            ("content-range", "bytes 0-1/9"),
            ("content-range", "bytes 0-2/9"),
        ]);
        assert_eq!(content_range(&twice), None);
    }

    #[test]
    fn a_length_counts_only_without_transfer_coding() {
        assert_eq!(
            content_length(&headers(&[("content-length", "12")])),
            Some(12)
        );
        assert_eq!(content_length(&headers(&[("content-length", "+12")])), None);
        let both = headers(&[("content-length", "12"), ("transfer-encoding", "chunked")]);
        assert_eq!(content_length(&both), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_by_the_servers_clock() {
        let now = SystemTime::UNIX_EPOCH;
        let after = |fields: &[(&'static str, &str)]| retry_after(&headers(fields), now);
        assert_eq!(
            after(&[("retry-after", "120")]),
            Some(Duration::from_secs(120))
        );
        let dated = [
            ("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT"),
            ("date", "Fri, 31 Dec 1999 23:59:29 GMT"),
        ];
        assert_eq!(after(&dated), Some(Duration::from_secs(30)));
        let past = [
            ("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT"),
            ("date", "Sat, 01 Jan 2000 00:00:00 GMT"),
        ];
        assert_eq!(after(&past), Some(Duration::ZERO));
        assert_eq!(after(&[("retry-after", "soon")]), None);
        assert_eq!(after(&[("retry-after", "-5")]), None);
    }

    /// SHA-256 of the empty file.
    const EMPTY: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    #[test]
    fn digests_of_both_generations_are_found_once() {
        let new = format!("sha-512=:AAAA:, sha-256=:{EMPTY}:");
        let old = format!("MD5=HUXZLQLMuI/KZ5KDcJPcOA==,SHA-256={EMPTY}");
        let found = digests(&headers(&[("repr-digest", &new), ("digest", &old)]));
        assert_eq!(found.len(), 1);
        assert!(
            found[0]
                .to_string()
                .contains("e3b0c44298fc1c149afbf4c8996fb924")
        );
        assert_eq!(digests(&headers(&[("digest", &old)])), found);
        assert_eq!(digests(&headers(&[("content-digest", &new)])), []);
    }

    #[test]
    fn digests_of_coded_or_wrong_bytes_do_not_count() {
        let new = format!("sha-256=:{EMPTY}:");
        let coded = headers(&[("repr-digest", &new), ("content-encoding", "gzip")]);
        assert_eq!(digests(&coded), []);
        let plain = headers(&[("repr-digest", &new), ("content-encoding", "identity")]);
        assert_eq!(digests(&plain).len(), 1);
        for bad in [
            "sha-256=:AAAA:",
            "sha-256=AAAA",
            "sha-256",
            "sha-256=:*:",
            "sha-256=(1 2)",
        ] {
            assert_eq!(digests(&headers(&[("repr-digest", bad)])), [], "{bad}");
        }
        assert_eq!(digests(&headers(&[("digest", "sha-256=AAAA,sha-256")])), []);
    }

    proptest! {
        #[test]
        fn any_field_is_read(text in "[ -~]{0,60}") {
            let fields = [
                ("content-range", text.as_str()),
                ("retry-after", text.as_str()),
                ("repr-digest", text.as_str()),
                ("digest", text.as_str()),
                ("content-encoding", text.as_str()),
            ];
            let map = headers(&fields);
            let _ = (content_range(&map), retry_after(&map, SystemTime::now()), digests(&map));
        }
    }
}
