//! Opens a version's bytes, all or a range, and checks that what comes is what was asked for.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue, IF_RANGE, RANGE, TRANSFER_ENCODING};
use reqwest::{Method, Response, StatusCode, Version as HttpVersion};
use tokio::time::{Instant, timeout_at};

use crate::cause;
use crate::error::OriginError;
use crate::fields::{self, ContentRange};
use crate::origin::{Answer, Origin};
use crate::probe::{refuse_multipart, said};
use crate::remote::{Remote, Version};
use crate::target::{ByteRange, Place, Target};

/// Whether a body is what was asked for or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// The whole file from offset 0: it was asked for, or the server ignored the range.
    Whole,
    /// Bytes of the range asked for, from its first on; a server may send fewer than asked.
    Range,
}

/// The bytes of an answer as they arrive, of the version asked for.
pub struct Body {
    response: Response,
    kind: BodyKind,
    at: Place,
    was: Version,
    now: Version,
    /// The offset in the file of the next byte.
    position: u64,
    /// The offset in the file at which the body ends.
    end: Option<u64>,
    framing: Framing,
    excess: bool,
    stall_timeout: Duration,
    waiting_since: Option<Instant>,
}

/// How a body's end is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// The head says its length.
    Length,
    /// Marked where it comes: HTTP/2, chunks.
    Marked,
    /// The connection ends: nobody can tell an end from a break.
    Connection,
}

impl Origin {
    /// Opens the bytes of the version that `remote` describes: all, or those of `range`. Ranges
    /// are conditional (`If-Range`) where the version has a strong validator.
    ///
    /// The address that the probe was redirected to is asked, and where that one has gone (signed
    /// addresses expire), the target's own again. Cancel-safe; no retries.
    ///
    /// # Errors
    /// [`OriginError::Changed`] when the file is another version now, and any other.
    pub async fn body(
        &self,
        target: &Target,
        remote: &Remote,
        range: Option<ByteRange>,
    ) -> Result<Body, OriginError> {
        check_inside(target, remote, range)?;
        let fields = range_fields(remote, range);
        let mut answer = self
            .send(&Method::GET, target, &remote.url, &fields)
            .await?;
        if has_gone(&answer) && remote.url != *target.url() {
            answer = self
                .send(&Method::GET, target, target.url(), &fields)
                .await?;
        }
        judge(answer, remote, range, self.stall_timeout())
    }
}

impl Body {
    /// Whether this is what was asked for or more.
    pub fn kind(&self) -> BodyKind {
        self.kind
    }

    /// The offset in the file of the next byte.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many bytes are still to come, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        self.end.map(|end| end - self.position)
    }

    /// The next bytes, never none; `None` at the end. Never more than the body should have.
    ///
    /// Cancel-safe: a dropped call loses no byte, and the time it waited counts for the next one.
    ///
    /// # Errors
    /// [`OriginError::Stalled`], `Truncated`, `Overlong`, `Network`, or `Changed` where a body
    /// of unannounced length shows that the file has another.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, OriginError> {
        if self.excess {
            return Err(self.too_long());
        }
        loop {
            let since = *self.waiting_since.get_or_insert_with(Instant::now);
            let answer = timeout_at(since + self.stall_timeout, self.response.chunk()).await;
            match answer {
                Ok(Ok(Some(bytes))) if bytes.is_empty() => {}
                Ok(Ok(Some(bytes))) => {
                    self.waiting_since = None;
                    return self.arrived(bytes).map(Some);
                }
                Ok(Ok(None)) => return self.ended().map(|()| None),
                Ok(Err(error)) => return Err(self.broke(error)),
                Err(_) => return Err(self.stalled()),
            }
        }
    }

    /// Called once every byte that is wanted has come: looks whether a file of unannounced length
    /// goes on.
    pub(crate) async fn finish(&mut self) -> Result<(), OriginError> {
        if self.remaining() == Some(0) && self.shows_length_at_its_end() {
            self.chunk().await?;
        }
        Ok(())
    }

    /// Whether only the body's end shows that the file has no more bytes.
    fn shows_length_at_its_end(&self) -> bool {
        self.kind == BodyKind::Whole && self.framing == Framing::Marked
    }

    fn arrived(&mut self, mut bytes: Bytes) -> Result<Bytes, OriginError> {
        let room = self.remaining().unwrap_or(u64::MAX);
        if let Ok(room) = usize::try_from(room)
            && bytes.len() > room
        {
            self.excess = true;
            bytes.truncate(room);
        }
        if bytes.is_empty() {
            return Err(self.too_long());
        }
        self.position += bytes.len() as u64;
        Ok(bytes)
    }

    fn ended(&self) -> Result<(), OriginError> {
        match self.remaining() {
            None | Some(0) => Ok(()),
            Some(_) if self.shows_length_at_its_end() => Err(self.changed(Some(self.position))),
            Some(_) => Err(self.truncated()),
        }
    }

    fn broke(&self, error: reqwest::Error) -> OriginError {
        if cause::is_early_end(&error) {
            self.truncated()
        } else {
            cause::broken_body(error, self.at.clone())
        }
    }

    fn truncated(&self) -> OriginError {
        OriginError::Truncated {
            at: self.at.clone(),
            offset: self.position,
            expected: self.end,
        }
    }

    fn stalled(&self) -> OriginError {
        let after = self.stall_timeout;
        OriginError::Stalled {
            at: self.at.clone(),
            offset: self.position,
            after,
        }
    }

    fn too_long(&self) -> OriginError {
        match self.kind {
            BodyKind::Whole => self.changed(None),
            BodyKind::Range => OriginError::Overlong {
                at: self.at.clone(),
                expected: self.position,
            },
        }
    }

    fn changed(&self, length: Option<u64>) -> OriginError {
        let now = Version {
            length,
            ..self.now.clone()
        };
        OriginError::Changed {
            at: self.at.clone(),
            was: Box::new(self.was.clone()),
            now: Box::new(now),
        }
    }

    /// A body that is taken as it comes: `first` is the offset of its first byte.
    pub(crate) fn unjudged(
        answer: Answer,
        first: u64,
        end: Option<u64>,
        stall_timeout: Duration,
    ) -> Self {
        let now = Version::of(answer.response.headers(), None);
        Self {
            kind: BodyKind::Range,
            at: Place::of(&answer.url),
            was: now.clone(),
            now,
            position: first,
            end,
            framing: framing(&answer.response),
            excess: false,
            stall_timeout,
            waiting_since: None,
            response: answer.response,
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body")
            .field("kind", &self.kind)
            .field("at", &self.at)
            .field("position", &self.position)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

fn check_inside(
    target: &Target,
    remote: &Remote,
    range: Option<ByteRange>,
) -> Result<(), OriginError> {
    match (range, remote.length()) {
        (Some(range), Some(length)) if range.end() > length => Err(OriginError::BadAnswer {
            at: target.place(),
            what: format!("bytes {range} are wanted of a file of {length} bytes"),
        }),
        _ => Ok(()),
    }
}

fn range_fields(remote: &Remote, range: Option<ByteRange>) -> HeaderMap {
    let mut fields = HeaderMap::new();
    let Some(range) = range else { return fields };
    if let Ok(value) = HeaderValue::from_str(&format!("bytes={range}")) {
        fields.insert(RANGE, value);
    }
    let validator = remote.validator.as_ref();
    if let Some(value) = validator.and_then(|v| HeaderValue::from_str(v.as_str()).ok()) {
        fields.insert(IF_RANGE, value);
    }
    fields
}

fn has_gone(answer: &Answer) -> bool {
    matches!(answer.response.status().as_u16(), 401 | 403 | 404 | 410)
}

fn judge(
    answer: Answer,
    remote: &Remote,
    range: Option<ByteRange>,
    stall_timeout: Duration,
) -> Result<Body, OriginError> {
    let at = Place::of(&answer.url);
    let headers = answer.response.headers();
    let judged = match (answer.response.status(), range) {
        (StatusCode::OK, _) => judge_whole(headers, remote, at)?,
        (StatusCode::PARTIAL_CONTENT, Some(range)) => judge_part(headers, remote, range, at)?,
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(range)) => {
            return Err(judge_unsatisfied(headers, remote, range, at));
        }
        (status, _) => return Err(OriginError::of_status(at, status, headers)),
    };
    Ok(Body {
        kind: judged.kind,
        was: remote.version.clone(),
        now: judged.now,
        ..Body::unjudged(answer, judged.first, judged.end, stall_timeout)
    })
}

struct Judged {
    kind: BodyKind,
    first: u64,
    end: Option<u64>,
    now: Version,
}

fn judge_whole(headers: &HeaderMap, remote: &Remote, at: Place) -> Result<Judged, OriginError> {
    let length = fields::content_length(headers);
    let now = same_version(headers, remote, length, at)?;
    Ok(Judged {
        kind: BodyKind::Whole,
        first: 0,
        end: length.or(remote.length()),
        now,
    })
}

fn judge_part(
    headers: &HeaderMap,
    remote: &Remote,
    range: ByteRange,
    at: Place,
) -> Result<Judged, OriginError> {
    refuse_multipart(headers, &at)?;
    let found = fields::content_range(headers);
    let refuse = |what: String| OriginError::BadRange {
        at: at.clone(),
        what,
    };
    let wrong = || refuse(format!("bytes {range} were asked for, {}", said(found)));
    let Some(ContentRange::Bytes { first, last, total }) = found else {
        return Err(wrong());
    };
    let now = same_version(headers, remote, total, at.clone())?;
    if first != range.offset() || last >= range.end() {
        return Err(wrong());
    }
    let length = last - first + 1;
    match fields::content_length(headers) {
        Some(announced) if announced != length => Err(refuse(format!(
            "{} in a body of {announced} bytes",
            said(found)
        ))),
        _ => Ok(Judged {
            kind: BodyKind::Range,
            first,
            end: Some(first + length),
            now,
        }),
    }
}

/// A range inside the file that cannot be had: the file is shorter now, or the server is wrong.
fn judge_unsatisfied(
    headers: &HeaderMap,
    remote: &Remote,
    range: ByteRange,
    at: Place,
) -> OriginError {
    let total = match fields::content_range(headers) {
        Some(ContentRange::Unsatisfied { total }) => Some(total),
        Some(ContentRange::Bytes { .. }) | None => None,
    };
    match same_version(headers, remote, total, at.clone()) {
        Err(changed) => changed,
        Ok(_) => OriginError::BadRange {
            at,
            what: format!("status 416 for bytes {range}"),
        },
    }
}

fn same_version(
    headers: &HeaderMap,
    remote: &Remote,
    length: Option<u64>,
    at: Place,
) -> Result<Version, OriginError> {
    let now = Version::of(headers, length);
    if remote.version.differs(&now) {
        let (was, now) = (Box::new(remote.version.clone()), Box::new(now));
        return Err(OriginError::Changed { at, was, now });
    }
    if fields::content_coding(headers) != remote.coding {
        let what = "another Content-Encoding than before".to_owned();
        return Err(OriginError::BadAnswer { at, what });
    }
    Ok(now)
}

fn framing(response: &Response) -> Framing {
    let headers = response.headers();
    if fields::content_length(headers).is_some() {
        Framing::Length
    } else if response.version() >= HttpVersion::HTTP_2 || headers.contains_key(TRANSFER_ENCODING) {
        Framing::Marked
    } else {
        Framing::Connection
    }
}
