//! Asks what a file is now: length, version, ranges, manifest, digests.

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::time::timeout;

use crate::cause::clean;
use crate::error::{NetworkKind, OriginError};
use crate::fields::{self, ContentRange};
use crate::origin::{Answer, Origin};
use crate::remote::{Ranges, Remote};
use crate::target::{Place, Target};

/// The body of a one-byte answer takes a frame or two to its end.
const DRAIN_CHUNKS: usize = 4;

impl Origin {
    /// Asks what the file is now: by HEAD, or by a GET of one byte where HEAD is refused, fails,
    /// or does not say the length. A length of 0 counts as not said: servers that make their
    /// answers as they go say so of everything. Cancel-safe; no retries.
    ///
    /// # Errors
    /// Any [`OriginError`] but those of bodies.
    pub async fn probe(&self, target: &Target) -> Result<Remote, OriginError> {
        match self.probe_by_head(target).await {
            Ok(remote) if remote.length().is_some_and(|length| length > 0) => Ok(remote),
            Ok(_) => self.probe_by_get(target).await,
            Err(error) if get_may_fare_better(&error) => self.probe_by_get(target).await,
            Err(error) => Err(error),
        }
    }

    /// Asks what the file is now by a GET of its first byte. This is how to ask after
    /// [`OriginError::Changed`]: where HEAD says another length than GET, GET is right.
    /// Cancel-safe; no retries.
    ///
    /// # Errors
    /// Any [`OriginError`] but those of bodies.
    pub async fn probe_by_get(&self, target: &Target) -> Result<Remote, OriginError> {
        let mut fields = HeaderMap::new();
        fields.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        let Answer { response, url } = self
            .send(&Method::GET, target, target.url(), &fields)
            .await?;
        match response.status() {
            StatusCode::OK => Ok(of_whole(&response, url)),
            StatusCode::PARTIAL_CONTENT => {
                let total = total_of_first_byte(&response, &Place::of(&url))?;
                let remote = Remote::new(url, response.headers(), total, Ranges::Yes);
                self.drain(response).await;
                Ok(remote)
            }
            StatusCode::RANGE_NOT_SATISFIABLE => match fields::content_range(response.headers()) {
                Some(ContentRange::Unsatisfied { total: 0 }) => Ok(Remote::new(
                    url,
                    response.headers(),
                    Some(0),
                    Ranges::Unknown,
                )),
                _ => self.probe_by_whole(target).await,
            },
            status => Err(OriginError::of_status(
                Place::of(&url),
                status,
                response.headers(),
            )),
        }
    }

    async fn probe_by_head(&self, target: &Target) -> Result<Remote, OriginError> {
        let none = HeaderMap::new();
        let Answer { response, url } = self
            .send(&Method::HEAD, target, target.url(), &none)
            .await?;
        let headers = response.headers();
        if response.status() != StatusCode::OK {
            return Err(OriginError::of_status(
                Place::of(&url),
                response.status(),
                headers,
            ));
        }
        let length = fields::content_length(headers);
        Ok(Remote::new(
            url,
            headers,
            length,
            Ranges::announced(headers),
        ))
    }

    /// The last resort: the head of the answer that brings the whole file, which is then dropped.
    async fn probe_by_whole(&self, target: &Target) -> Result<Remote, OriginError> {
        let none = HeaderMap::new();
        let Answer { response, url } = self.send(&Method::GET, target, target.url(), &none).await?;
        match response.status() {
            StatusCode::OK => Ok(of_whole(&response, url)),
            status => Err(OriginError::of_status(
                Place::of(&url),
                status,
                response.headers(),
            )),
        }
    }

    /// Reads a body of one byte to its end, so that its connection serves the next request. One
    /// that turns out longer is dropped, and its connection with it.
    async fn drain(&self, mut response: Response) {
        for _ in 0..DRAIN_CHUNKS {
            match timeout(self.stall_timeout(), response.chunk()).await {
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None) | Err(_)) | Err(_) => return,
            }
        }
    }
}

fn of_whole(response: &Response, url: url::Url) -> Remote {
    let headers = response.headers();
    Remote::new(url, headers, fields::content_length(headers), Ranges::No)
}

fn total_of_first_byte(response: &Response, at: &Place) -> Result<Option<u64>, OriginError> {
    refuse_multipart(response.headers(), at)?;
    match fields::content_range(response.headers()) {
        Some(ContentRange::Bytes {
            first: 0,
            last: 0,
            total,
        }) => Ok(total),
        other => Err(OriginError::BadRange {
            at: at.clone(),
            what: format!("the first byte was asked for, {}", said(other)),
        }),
    }
}

/// One range is asked for, so an answer in several parts is none to it (RFC 9110, section 14.6).
pub(crate) fn refuse_multipart(headers: &HeaderMap, at: &Place) -> Result<(), OriginError> {
    let kind = fields::one(headers, &CONTENT_TYPE).unwrap_or_default();
    if kind
        .trim_start()
        .to_ascii_lowercase()
        .starts_with("multipart/byteranges")
    {
        return Err(OriginError::BadRange {
            at: at.clone(),
            what: clean(kind),
        });
    }
    Ok(())
}

pub(crate) fn said(range: Option<ContentRange>) -> String {
    match range {
        Some(ContentRange::Bytes { first, last, .. }) => format!("bytes {first}-{last} came"),
        Some(ContentRange::Unsatisfied { total }) => format!("none of {total} bytes came"),
        None => "the answer does not say which bytes came".to_owned(),
    }
}

/// Whether a GET may succeed where HEAD failed: where the method, not the file, is the trouble.
fn get_may_fare_better(error: &OriginError) -> bool {
    match error {
        OriginError::Refused { status, .. } => *status != 407,
        OriginError::NotFound { .. } | OriginError::BadAnswer { .. } => true,
        OriginError::Unavailable { status, .. } => matches!(status, 500 | 502),
        OriginError::Network { kind, .. } => *kind == NetworkKind::Broken,
        OriginError::UnsupportedScheme { .. }
        | OriginError::Stalled { .. }
        | OriginError::Truncated { .. }
        | OriginError::Overlong { .. }
        | OriginError::Changed { .. }
        | OriginError::CannotResume { .. }
        | OriginError::BadRange { .. }
        | OriginError::TooManyRedirects { .. } => false,
    }
}
