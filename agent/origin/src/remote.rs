//! What an origin says of a file: which version, how long, how it may be asked for.

use std::fmt;
use std::time::Duration;

use branchline_hashing::Digest;
use reqwest::header::{DATE, ETAG, HeaderMap, LAST_MODIFIED};
use url::Url;

use crate::cause::clean;
use crate::fields;
use crate::link::manifest_link;

/// A `Last-Modified` this much older than its answer is strong (RFC 9110, section 8.8.2.2): the
/// section asks for one second by one clock, or enough for two clocks that are nearly right.
const STRONG_AFTER: Duration = Duration::from_secs(60);

/// What an origin says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Where the file is, after redirects.
    pub url: Url,
    /// Which version it is.
    pub version: Version,
    /// What makes ranges conditional; without one, parts of two versions cannot be told apart.
    pub validator: Option<Validator>,
    /// Whether parts of the file can be asked for.
    pub ranges: Ranges,
    /// The manifest that the origin links to.
    pub manifest_link: Option<Url>,
    /// The whole file's digests, as the origin says.
    pub digests: Vec<Digest>,
    /// The content codings of the bytes that come, which are never undone.
    pub coding: Option<String>,
}

impl Remote {
    /// How many bytes the file has.
    pub fn length(&self) -> Option<u64> {
        self.version.length
    }

    /// Reads an answer about the file. `length` and `ranges` are known better by the caller.
    pub(crate) fn new(url: Url, headers: &HeaderMap, length: Option<u64>, ranges: Ranges) -> Self {
        Self {
            version: Version::of(headers, length),
            validator: Validator::of(headers),
            ranges,
            manifest_link: manifest_link(headers, &url),
            digests: fields::digests(headers),
            coding: fields::content_coding(headers),
            url,
        }
    }
}

/// Whether an origin serves byte ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranges {
    /// It does, or says so.
    Yes,
    /// It does not: whoever wants a part gets the whole.
    No,
    /// It has not said.
    Unknown,
}

impl Ranges {
    pub(crate) fn announced(headers: &HeaderMap) -> Self {
        match fields::accept_ranges(headers) {
            Some(true) => Self::Yes,
            Some(false) => Self::No,
            None => Self::Unknown,
        }
    }
}

/// What `If-Range` can say: only strong validators, for what comes is put together byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Validator {
    /// A strong entity tag, with its quotes.
    ETag(String),
    /// A time of change so long ago that no second change can hide in the same second.
    LastModified(String),
}

impl Validator {
    /// The text, as a header field has it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::ETag(text) | Self::LastModified(text) => text,
        }
    }

    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let tag = fields::one(headers, &ETAG)
            .map(str::trim)
            .filter(|tag| is_strong_tag(tag));
        tag.map(|tag| Self::ETag(tag.to_owned()))
            .or_else(|| Self::by_time(headers))
    }

    fn by_time(headers: &HeaderMap) -> Option<Self> {
        let modified = fields::date(headers, &LAST_MODIFIED)?;
        let answered = fields::date(headers, &DATE)?;
        let age = answered.duration_since(modified).ok()?;
        let text = fields::one(headers, &LAST_MODIFIED)?;
        (age >= STRONG_AFTER).then(|| Self::LastModified(text.to_owned()))
    }
}

impl fmt::Display for Validator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn is_strong_tag(tag: &str) -> bool {
    let inner = tag
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    inner.is_some_and(|inner| !inner.contains('"'))
}

/// What tells one version of a file from another, as far as the origin says it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Version {
    /// Its length in bytes.
    pub length: Option<u64>,
    /// Its entity tag, weak ones and badly written ones too.
    pub etag: Option<String>,
    /// When it was changed last.
    pub last_modified: Option<String>,
}

impl Version {
    pub(crate) fn of(headers: &HeaderMap, length: Option<u64>) -> Self {
        let text = |name| fields::one(headers, name).map(|text| text.trim().to_owned());
        Self {
            length,
            etag: text(&ETAG),
            last_modified: text(&LAST_MODIFIED),
        }
    }

    /// Whether something both sides say differs. Tags are compared weakly (RFC 9110, section
    /// 8.8.3.2), for caches weaken them; a time counts only where a tag is missing, for it is
    /// coarser and mirrors disagree about it.
    pub fn differs(&self, now: &Self) -> bool {
        let lengths = self.length.zip(now.length).is_some_and(|(a, b)| a != b);
        let tags = self
            .etag
            .as_deref()
            .zip(now.etag.as_deref())
            .map(|(a, b)| opaque(a) != opaque(b));
        let times = self
            .last_modified
            .as_ref()
            .zip(now.last_modified.as_ref())
            .map(|(a, b)| a != b);
        lengths || tags.or(times).unwrap_or(false)
    }
}

fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.length {
            Some(length) => write!(f, "{length} bytes")?,
            None => f.write_str("unknown length")?,
        }
        match (&self.etag, &self.last_modified) {
            (Some(tag), _) => write!(f, ", ETag {}", clean(tag)),
            (None, Some(time)) => write!(f, ", modified {}", clean(time)),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(HeaderName, &'static str)| {
            (name.clone(), HeaderValue::from_static(value))
        };
        fields.iter().map(pair).collect()
    }

    #[test]
    fn only_strong_tags_make_ranges_conditional() {
        let tag = |text| Validator::of(&headers(&[(ETAG, text)]));
        assert_eq!(tag("\"a\""), Some(Validator::ETag("\"a\"".to_owned())));
        assert_eq!(tag("\"\""), Some(Validator::ETag("\"\"".to_owned())));
        for weak in ["W/\"a\"", "a", "\"", "\"a\"b\"", ""] {
            assert_eq!(tag(weak), None, "{weak}");
        }
    }

    #[test]
    fn a_time_is_strong_once_it_lies_a_minute_back() {
        let at = |date| {
            let modified = (LAST_MODIFIED, "Fri, 31 Dec 1999 23:59:00 GMT");
            Validator::of(&headers(&[modified, (ETAG, "W/\"a\""), (DATE, date)]))
        };
        assert!(at("Sat, 01 Jan 2000 00:00:00 GMT").is_some());
        assert!(at("Fri, 31 Dec 1999 23:59:59 GMT").is_none());
        assert!(
            at("Fri, 31 Dec 1999 23:00:00 GMT").is_none(),
            "a time to come"
        );
        assert!(at("yesterday").is_none());
    }

    #[test]
    fn versions_differ_only_by_what_both_say() {
        let version = |length, etag: Option<&str>, time: Option<&str>| Version {
            length,
            etag: etag.map(str::to_owned),
            last_modified: time.map(str::to_owned),
        };
        let was = version(Some(5), Some("\"a\""), Some("t"));
        for same in [
            was.clone(),
            version(None, Some("\"a\""), Some("t")),
            version(Some(5), Some("W/\"a\""), Some("other mirror")),
            version(Some(5), None, Some("t")),
            Version::default(),
        ] {
            assert!(!was.differs(&same), "{same}");
        }
        for other in [
            version(Some(6), Some("\"a\""), Some("t")),
            version(None, Some("\"b\""), Some("t")),
            version(None, None, Some("u")),
        ] {
            assert!(was.differs(&other), "{other}");
        }
    }
}
