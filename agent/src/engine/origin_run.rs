//! One run from the origin: a range of bytes, cut into segments as it arrives.

use branchline_core::SegmentRange;
use branchline_core::planner::{Arrival, Source};
use branchline_hashing::SegmentIndex;
use branchline_origin::{
    ByteRange, Origin, OriginError, Remote, Resume, Retries, RetryPolicy, Target,
};

use crate::engine::linux;
use crate::engine::outline::Outline;
use crate::engine::writer::Arrivals;

/// How a run ended.
#[derive(Debug)]
pub(crate) struct RunEnd {
    pub(crate) run: SegmentRange,
    /// The segments before this one went to the writer, which may not have come to them yet.
    pub(crate) next: SegmentIndex,
    pub(crate) result: Result<(), OriginError>,
}

/// Fetches `run` and puts its segments into the writer's queue. Ends early when the writer is
/// gone. Cancel-safe: dropping it closes the request.
pub(crate) async fn fetch(
    origin: Origin,
    target: Target,
    remote: Remote,
    outline: Outline,
    run: SegmentRange,
    arrivals: Arrivals,
) -> RunEnd {
    let whole_file = run.count() == outline.count();
    let resume = if whole_file {
        Resume::Always
    } else {
        Resume::AlwaysByRanges
    };
    let mut reader = origin.read(&target, &remote, bytes_of(&outline, run), resume, retries());
    let mut cutter = Cutter {
        outline: &outline,
        next: run.first(),
        bytes: Vec::new(),
    };
    let result = loop {
        match reader.chunk().await {
            Ok(Some(chunk)) => {
                if cutter.take(&chunk, &arrivals).await.is_err() {
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let next = cutter.next;
    RunEnd { run, next, result }
}

/// The retry policy of downloads, with this machine's randomness.
pub(crate) fn retries() -> Retries {
    Retries::new(RetryPolicy::default(), linux::random)
}

fn bytes_of(outline: &Outline, run: SegmentRange) -> Option<ByteRange> {
    let first = outline.place(run.first())?;
    let last = outline.place(SegmentIndex(run.end() - 1))?;
    ByteRange::new(first.offset, last.end() - first.offset)
}

/// Gathers bytes until a segment is whole.
struct Cutter<'a> {
    outline: &'a Outline,
    next: SegmentIndex,
    bytes: Vec<u8>,
}

/// The writer has ended.
struct WriterGone;

impl Cutter<'_> {
    async fn take(&mut self, mut chunk: &[u8], arrivals: &Arrivals) -> Result<(), WriterGone> {
        while let Some(place) = self.outline.place(self.next).filter(|_| !chunk.is_empty()) {
            let length = place.length as usize;
            self.bytes.reserve_exact(length - self.bytes.len());
            let wanted = (length - self.bytes.len()).min(chunk.len());
            self.bytes.extend_from_slice(&chunk[..wanted]);
            chunk = &chunk[wanted..];
            if self.bytes.len() == length {
                let bytes = std::mem::take(&mut self.bytes).into();
                let arrival = Arrival {
                    source: Source::Origin,
                    index: self.next,
                    bytes,
                };
                arrivals.send(arrival).await.map_err(|_| WriterGone)?;
                self.next.0 += 1;
            }
        }
        Ok(())
    }
}
