//! What can go wrong with an origin, and what to do then.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use crate::fields;
use crate::remote::Version;
use crate::target::Place;

/// The longest wait a server can ask for. Whoever asks for more means "not today".
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3_600);

/// A request to an origin that did not bring what it was for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// A redirect leads to a scheme that is not spoken.
    #[error("cannot follow {at}: it redirects to a {scheme}: URL; use an http: or https: address")]
    UnsupportedScheme {
        /// Who redirects.
        at: Place,
        /// To which scheme.
        scheme: String,
    },
    /// The origin, or a proxy, will not give the file.
    #[error("{at} was refused with status {status}; {}", advice(*.status))]
    Refused {
        /// What was asked for.
        at: Place,
        /// The HTTP status.
        status: u16,
    },
    /// The origin has no such file.
    #[error("{at} does not exist (status {status}); check the address")]
    NotFound {
        /// What was asked for.
        at: Place,
        /// The HTTP status.
        status: u16,
    },
    /// The origin cannot answer now.
    #[error("{at} is not available now (status {status}{}); try again later", wait(.retry_after))]
    Unavailable {
        /// What was asked for.
        at: Place,
        /// The HTTP status.
        status: u16,
        /// How long the origin asks to wait.
        retry_after: Option<Duration>,
    },
    /// The network between here and the origin failed.
    #[error("cannot reach {at}: {kind}: {cause}; {}", kind.advice())]
    Network {
        /// What was asked for.
        at: Place,
        /// What kind of failure.
        kind: NetworkKind,
        /// What the network said, in one line.
        cause: String,
    },
    /// No byte came for longer than the stall timeout.
    #[error(
        "{at} sent nothing for {} s, at offset {offset}; check the origin and the line to it",
        .after.as_secs_f32()
    )]
    Stalled {
        /// What was asked for.
        at: Place,
        /// How far the answer had come.
        offset: u64,
        /// The stall timeout.
        after: Duration,
    },
    /// The body ended before its end.
    #[error("{at} broke off at offset {offset}{}; try again", of(.expected))]
    Truncated {
        /// What was asked for.
        at: Place,
        /// The offset in the file that was reached.
        offset: u64,
        /// The offset at which the body should have ended.
        expected: Option<u64>,
    },
    /// The body went on after its end.
    #[error("{at} sent more than it announced, past offset {expected}; tell who runs the server")]
    Overlong {
        /// What was asked for.
        at: Place,
        /// The offset at which the body should have ended.
        expected: u64,
    },
    /// The file is not the version any more that was asked for.
    #[error("{at} has changed: it was [{was}], now it is [{now}]; it has to be fetched anew")]
    Changed {
        /// What was asked for.
        at: Place,
        /// The version asked for.
        was: Box<Version>,
        /// The version there now, as far as its answer says.
        now: Box<Version>,
    },
    /// The connection was lost, and without a strong validator the rest may be of another version.
    #[error(
        "{at} broke off at offset {offset} and does not say which version it has, \
         so the rest might not fit; it has to be fetched anew"
    )]
    CannotResume {
        /// What was asked for.
        at: Place,
        /// The offset in the file that was reached.
        offset: u64,
    },
    /// The answer to a range request is not what was asked for.
    #[error("{at} did not serve the byte range asked for: {what}; try again or fetch it whole")]
    BadRange {
        /// What was asked for.
        at: Place,
        /// What came instead.
        what: String,
    },
    /// The answer makes no sense.
    #[error("{at} gave an answer that makes no sense: {what}; check the address and any proxy")]
    BadAnswer {
        /// What was asked for.
        at: Place,
        /// What came.
        what: String,
    },
    /// Redirects did not end.
    #[error("{at} redirects more than {limit} times; check the address")]
    TooManyRedirects {
        /// Where it began.
        at: Place,
        /// How many are followed.
        limit: usize,
    },
}

/// What kind of failure a network had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkKind {
    /// The name has no address.
    Dns,
    /// No connection came about, to the origin or to the proxy.
    Connect,
    /// The server's certificate is not trusted.
    Certificate,
    /// TLS failed otherwise.
    Tls,
    /// A connection that was there broke.
    Broken,
}

impl NetworkKind {
    fn advice(self) -> &'static str {
        match self {
            Self::Dns => "check the host's name and the name server",
            Self::Connect => "check the host, the port, the network and any proxy",
            Self::Certificate => "check the address and the clock, or add its CA to the CA file",
            Self::Tls => "check that the server speaks TLS 1.2 or 1.3 there",
            Self::Broken => "try again",
        }
    }
}

impl std::fmt::Display for NetworkKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dns => "name resolution failed",
            Self::Connect => "no connection",
            Self::Certificate => "certificate not trusted",
            Self::Tls => "TLS failed",
            Self::Broken => "connection broke",
        })
    }
}

/// Whether asking again makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The answer will be the same.
    Never,
    /// After a wait that grows.
    Backoff,
    /// After the wait the origin asked for, or a longer one.
    After(Duration),
    /// Not for this version: ask what the file is now, with [`crate::Origin::probe_by_get`].
    StartAnew,
}

impl OriginError {
    /// Whether the origin gives no more at a time, to this client or at all.
    pub fn is_busy(&self) -> bool {
        self.is_busy_for().is_some()
    }

    /// Whether it says that this client asks too often.
    pub(crate) fn asks_too_often(&self) -> bool {
        matches!(self, Self::Unavailable { status: 429, .. })
    }

    /// How long the origin asks to wait, where it gives no more at a time, to this client or at all (429, 503).
    pub fn is_busy_for(&self) -> Option<Duration> {
        if let Self::Unavailable {
            status: 429 | 503,
            retry_after,
            ..
        } = self
        {
            Some(retry_after.unwrap_or_default())
        } else {
            None
        }
    }

    /// Whether asking again makes sense.
    pub fn retry(&self) -> Retry {
        match self {
            Self::UnsupportedScheme { .. }
            | Self::Refused { .. }
            | Self::NotFound { .. }
            | Self::BadAnswer { .. }
            | Self::TooManyRedirects { .. }
            | Self::Network {
                kind: NetworkKind::Certificate,
                ..
            } => Retry::Never,
            Self::Unavailable {
                retry_after: Some(wait),
                ..
            } => Retry::After(*wait),
            Self::Unavailable {
                retry_after: None, ..
            }
            | Self::Network {
                kind:
                    NetworkKind::Dns | NetworkKind::Connect | NetworkKind::Tls | NetworkKind::Broken,
                ..
            }
            | Self::Stalled { .. }
            | Self::Truncated { .. }
            | Self::Overlong { .. }
            | Self::BadRange { .. } => Retry::Backoff,
            Self::Changed { .. } | Self::CannotResume { .. } => Retry::StartAnew,
        }
    }

    /// What a status means that brings no bytes of the file.
    pub(crate) fn of_status(at: Place, status: StatusCode, headers: &HeaderMap) -> Self {
        let code = status.as_u16();
        match code {
            404 | 410 => Self::NotFound { at, status: code },
            408 | 425 | 429 | 500 | 502..=504 | 506..=599 => Self::Unavailable {
                at,
                status: code,
                retry_after: fields::retry_after(headers, SystemTime::now())
                    .map(|wait| wait.min(MAX_RETRY_AFTER)),
            },
            400..=599 => Self::Refused { at, status: code },
            _ => Self::BadAnswer {
                at,
                what: format!("status {code}"),
            },
        }
    }
}

fn advice(status: u16) -> &'static str {
    match status {
        401 => "give credentials in netrc, in the URL or with a header",
        403 => "check the credentials and the address",
        407 => "the proxy wants credentials: give them in its URL",
        451 => "the origin may not serve it for legal reasons",
        _ => "check the address and the headers sent",
    }
}

fn wait(retry_after: &Option<Duration>) -> String {
    retry_after
        .map(|wait| format!(", asks to wait {} s", wait.as_secs()))
        .unwrap_or_default()
}

fn of(expected: &Option<u64>) -> String {
    expected
        .map(|end| format!(" instead of {end}"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderValue, RETRY_AFTER};
    use url::Url;

    use super::*;

    fn of_status(status: u16, retry_after: Option<&'static str>) -> OriginError {
        let at = Place::of(&Url::parse("http://u:p@h/f?secret").expect("a URL"));
        let mut headers = HeaderMap::new();
        if let Some(text) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
        }
        OriginError::of_status(
            at,
            StatusCode::from_u16(status).expect("a status"),
            &headers,
        )
    }

    #[test]
    fn statuses_are_final_or_passing() {
        for status in [400, 401, 403, 404, 407, 410, 418, 451, 501, 505, 204, 304] {
            assert_eq!(
                of_status(status, Some("1")).retry(),
                Retry::Never,
                "{status}"
            );
        }
        for status in [408, 425, 429, 500, 502, 503, 504, 520, 599] {
            assert_eq!(of_status(status, None).retry(), Retry::Backoff, "{status}");
        }
    }

    #[test]
    fn the_wait_a_server_asks_for_is_kept_and_bounded() {
        let wait = |text| of_status(503, Some(text)).retry();
        assert_eq!(wait("7"), Retry::After(Duration::from_secs(7)));
        assert_eq!(wait("99999999999999"), Retry::After(MAX_RETRY_AFTER));
        assert_eq!(wait("later"), Retry::Backoff);
    }

    #[test]
    fn messages_are_one_line_without_secrets() {
        for error in [
            of_status(401, None),
            of_status(404, None),
            of_status(503, Some("7")),
        ] {
            let text = error.to_string();
            assert!(text.contains("http://h/f?… "), "{text}");
            assert!(!text.contains("secret") && !text.contains('\n'), "{text}");
        }
    }
}
