//! Brings small files, such as manifests, into memory: bounded, and only the part that is wanted.

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};
use url::Url;

use crate::body::Body;
use crate::error::OriginError;
use crate::fields::{self, ContentRange};
use crate::origin::{Answer, Origin};
use crate::probe::{refuse_multipart, said};
use crate::remote::{Validator, Version};
use crate::target::{ByteRange, Place, Target};

/// A small file, or the part of it that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Where it is, after redirects.
    pub url: Url,
    /// The bytes; fewer than asked for where the file ends before.
    pub bytes: Bytes,
    /// How many bytes the whole file has.
    pub total: Option<u64>,
    /// Which version it is.
    pub version: Version,
    /// Its strong validator.
    pub validator: Option<Validator>,
}

/// Where in an answer the wanted bytes are.
struct Window {
    /// The offset in the file of the answer's first byte.
    first: u64,
    /// The offset at which the answer ends.
    end: Option<u64>,
    total: Option<u64>,
}

impl Origin {
    /// Brings the document at `url`, which belongs to `target`: all of it, or only `part`. Where
    /// the server ignores ranges, the connection is dropped once the part has come.
    ///
    /// `None` when there is none: status 403 (what object stores answer), 404 or 410.
    /// Cancel-safe; no retries.
    ///
    /// # Errors
    /// [`OriginError::BadAnswer`] when it is longer than `limit` bytes, and any other.
    pub async fn document(
        &self,
        target: &Target,
        url: &Url,
        part: Option<ByteRange>,
        limit: u64,
    ) -> Result<Option<Document>, OriginError> {
        let mut fields = HeaderMap::new();
        let range = part.and_then(|part| HeaderValue::from_str(&format!("bytes={part}")).ok());
        fields.extend(range.map(|range| (RANGE, range)));
        let answer = self.send(&Method::GET, target, url, &fields).await?;
        let Some(window) = window(&answer, part)? else {
            return Ok(None);
        };
        let from = part.map_or(0, |part| part.offset());
        let wanted = part.map_or(limit, |part| part.length().min(limit));
        if part.is_none() && window.total.is_some_and(|total| total > limit) {
            return Err(too_long(&answer.url, limit));
        }
        self.collect(answer, window, from, wanted, part.is_none())
            .await
            .map(Some)
    }

    async fn collect(
        &self,
        answer: Answer,
        window: Window,
        from: u64,
        wanted: u64,
        must_end: bool,
    ) -> Result<Document, OriginError> {
        let headers = answer.response.headers();
        let version = Version::of(headers, window.total);
        let validator = Validator::of(headers);
        let url = answer.url.clone();
        let mut body = Body::unjudged(answer, window.first, window.end, self.stall_timeout());
        let (bytes, ended) = read_window(&mut body, from, wanted).await?;
        if must_end && !ended && body.chunk().await?.is_some() {
            return Err(too_long(&url, wanted));
        }
        Ok(Document {
            url,
            bytes,
            total: window.total,
            version,
            validator,
        })
    }
}

/// Reads up to `wanted` bytes from offset `from` on, and whether the body ended before.
async fn read_window(
    body: &mut Body,
    from: u64,
    wanted: u64,
) -> Result<(Bytes, bool), OriginError> {
    let mut found = Vec::new();
    while (found.len() as u64) < wanted {
        let position = body.position();
        let Some(bytes) = body.chunk().await? else {
            return Ok((found.into(), true));
        };
        let skip = usize::try_from(from.saturating_sub(position)).unwrap_or(usize::MAX);
        let room = usize::try_from(wanted - found.len() as u64).unwrap_or(usize::MAX);
        let bytes = bytes.get(skip..).unwrap_or_default();
        found.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
    Ok((found.into(), false))
}

fn window(answer: &Answer, part: Option<ByteRange>) -> Result<Option<Window>, OriginError> {
    let headers = answer.response.headers();
    let at = Place::of(&answer.url);
    if answer.response.status().is_success()
        && let Some(coding) = fields::content_coding(headers)
    {
        let what = format!("a document with Content-Encoding {coding}, which was not accepted");
        return Err(OriginError::BadAnswer { at, what });
    }
    match (answer.response.status(), part) {
        (StatusCode::OK, _) => {
            let total = fields::content_length(headers);
            Ok(Some(Window {
                first: 0,
                end: total,
                total,
            }))
        }
        (StatusCode::PARTIAL_CONTENT, Some(part)) => partial(headers, part, at).map(Some),
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(part)) => unsatisfied(headers, part, at).map(Some),
        (StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE, _) => Ok(None),
        (status, _) => Err(OriginError::of_status(at, status, headers)),
    }
}

fn partial(headers: &HeaderMap, part: ByteRange, at: Place) -> Result<Window, OriginError> {
    refuse_multipart(headers, &at)?;
    match fields::content_range(headers) {
        Some(ContentRange::Bytes { first, last, total })
            if first == part.offset() && last + 1 == part.end().min(total.unwrap_or(last + 1)) =>
        {
            Ok(Window {
                first,
                end: Some(last + 1),
                total,
            })
        }
        other => Err(OriginError::BadRange {
            at,
            what: format!("bytes {part} were asked for, {}", said(other)),
        }),
    }
}

/// The document ends before the part begins: an empty window, whatever the error page says.
fn unsatisfied(headers: &HeaderMap, part: ByteRange, at: Place) -> Result<Window, OriginError> {
    match fields::content_range(headers) {
        Some(ContentRange::Unsatisfied { total }) if total <= part.offset() => Ok(Window {
            first: 0,
            end: Some(0),
            total: Some(total),
        }),
        _ => Err(OriginError::BadRange {
            at,
            what: format!("status 416 for bytes {part}"),
        }),
    }
}

fn too_long(url: &Url, limit: u64) -> OriginError {
    let what = format!("a document of more than {limit} bytes");
    OriginError::BadAnswer {
        at: Place::of(url),
        what,
    }
}
