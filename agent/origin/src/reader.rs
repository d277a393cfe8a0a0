//! Reads a range of one version to its end, over as many requests as that takes.

use bytes::Bytes;

use crate::body::{Body, BodyKind};
use crate::error::OriginError;
use crate::origin::Origin;
use crate::remote::Remote;
use crate::retries::Retries;
use crate::target::{ByteRange, Target};

/// Whether a range may go on after its connection was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Only if a strong validator shows that the rest is of the same version. For bytes that
    /// nobody verifies.
    WithStrongValidator,
    /// Always. For bytes that the caller verifies segment by segment.
    Always,
    /// Always, but by ranges alone: an origin that answers one with the whole file, or with another
    /// range, is not asked twice, nor one that is busy. For callers with several ranges, who would get the file for each,
    /// and who know better than this one when there is room again.
    AlwaysByRanges,
}

/// The bytes of a range of one version, in order.
///
/// A request that fails is followed by one for the rest, as [`Retries`] allows; a byte that was
/// handed out is never handed out again. To stop, drop it.
#[derive(Debug)]
pub struct RangeReader {
    origin: Origin,
    target: Target,
    remote: Remote,
    resume: Resume,
    retries: Retries,
    start: u64,
    position: u64,
    /// `None` for all of a file whose length nobody knows.
    end: Option<u64>,
    body: Option<Body>,
    ended: bool,
    received: u64,
    requests: u32,
}

impl Origin {
    /// Reads `range` of the version that `remote` describes, or all of it.
    pub fn read(
        &self,
        target: &Target,
        remote: &Remote,
        range: Option<ByteRange>,
        resume: Resume,
        retries: Retries,
    ) -> RangeReader {
        let start = range.map_or(0, |range| range.offset());
        let end = range.map_or(remote.length(), |range| Some(range.end()));
        RangeReader {
            origin: self.clone(),
            target: target.clone(),
            remote: remote.clone(),
            resume,
            retries,
            start,
            position: start,
            end,
            body: None,
            ended: end == Some(start),
            received: 0,
            requests: 0,
        }
    }
}

impl RangeReader {
    /// The next bytes, never none; `None` once all have been handed out.
    ///
    /// Cancel-safe: a dropped call loses no byte and shortens no wait.
    ///
    /// # Errors
    /// The last error when [`Retries`] gives up; [`OriginError::Changed`] and
    /// [`OriginError::CannotResume`] at once: then what was handed out is of no use any more,
    /// unless each segment of it was verified.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, OriginError> {
        while !self.ended {
            self.retries.pause().await;
            match self.advance().await {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => {}
                Err(error) => self.fail(error)?,
            }
        }
        Ok(None)
    }

    /// The offset in the file of the next byte.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes of bodies that have come, those included that a server sent without being asked.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Requests that brought a body.
    pub fn requests(&self) -> u32 {
        self.requests
    }

    /// One step: a request, or bytes of an answer. `None` when there is nothing to hand out yet.
    async fn advance(&mut self) -> Result<Option<Bytes>, OriginError> {
        let Some(body) = &mut self.body else {
            let range = self.rest();
            let body = self.origin.body(&self.target, &self.remote, range).await?;
            self.requests += 1;
            if self.wants_ranges() && self.start > 0 && body.kind() == BodyKind::Whole {
                let (at, what) = (self.target.place(), "the whole file came".to_owned());
                return Err(OriginError::BadRange { at, what });
            }
            self.body = Some(body);
            return Ok(None);
        };
        if Some(self.position) == self.end {
            body.finish().await?;
            self.body = None;
            self.ended = true;
            return Ok(None);
        }
        let from = body.position();
        let Some(bytes) = body.chunk().await? else {
            return self.body_ended().map(|()| None);
        };
        self.received += bytes.len() as u64;
        Ok(self.hand_out(from, bytes))
    }

    /// Whether the caller would rather hear that ranges do not work than get a whole file for each.
    fn wants_ranges(&self) -> bool {
        self.resume == Resume::AlwaysByRanges
    }

    /// The rest of the range; `None` for a whole file, which is all that can be asked where the
    /// length is not known.
    fn rest(&self) -> Option<ByteRange> {
        let end = self.end?;
        let whole = self.position == 0 && Some(end) == self.remote.length();
        if whole {
            None
        } else {
            ByteRange::new(self.position, end - self.position)
        }
    }

    /// Cuts off what was handed out before and what lies past the end: a server that ignores
    /// ranges sends both.
    fn hand_out(&mut self, from: u64, mut bytes: Bytes) -> Option<Bytes> {
        let known = usize::try_from(self.position.saturating_sub(from)).unwrap_or(usize::MAX);
        let mut bytes = bytes.split_off(known.min(bytes.len()));
        if let Some(end) = self.end {
            bytes.truncate(usize::try_from(end - self.position).unwrap_or(usize::MAX));
        }
        if bytes.is_empty() {
            return None;
        }
        self.position += bytes.len() as u64;
        self.retries.progressed();
        Some(bytes)
    }

    /// A body has ended where it should: at the end of the file, of the range, or before, where a
    /// server sent fewer bytes than asked for.
    fn body_ended(&mut self) -> Result<(), OriginError> {
        let body = self.body.take();
        let whole = body.is_some_and(|body| body.kind() == BodyKind::Whole);
        match self.end {
            Some(end) if self.position == end => self.ended = true,
            Some(end) if whole => {
                let (at, offset) = (self.target.place(), self.position);
                return Err(OriginError::Truncated {
                    at,
                    offset,
                    expected: Some(end),
                });
            }
            Some(_) => {}
            None => self.ended = true,
        }
        Ok(())
    }

    fn fail(&mut self, error: OriginError) -> Result<(), OriginError> {
        self.body = None;
        let tell = matches!(error, OriginError::BadRange { .. }) || error.is_busy();
        if self.wants_ranges() && tell {
            return Err(error);
        }
        self.retries.failed(error)?;
        let unsafe_to_mix =
            self.resume == Resume::WithStrongValidator && self.remote.validator.is_none();
        if unsafe_to_mix && self.position > self.start {
            let (at, offset) = (self.target.place(), self.position);
            return Err(OriginError::CannotResume { at, offset });
        }
        Ok(())
    }
}
