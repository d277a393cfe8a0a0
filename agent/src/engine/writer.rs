//! The thread that hashes what arrives and writes what is right.
//!
//! One thread a transfer with a bounded queue: hashing and writing stay off the async threads, and
//! a full queue stops the network from sending more. Measured dearer: `spawn_blocking` a write.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use branchline_core::planner::{Arrival, Source};
use branchline_hashing::{HashMismatch, Manifest, SegmentIndex, VerifiedSegment};
use tokio::sync::mpsc;

/// What waits to be hashed and written: 13 ms of a 10 Gbit/s network. A full queue holds up the
/// network, as it must.
const QUEUE_BYTES: u32 = 16 << 20;

/// Segments in the queue whatever their length.
const QUEUE_SEGMENTS: std::ops::RangeInclusive<u32> = 2..=256;

/// What has become of segments is told in batches of what was waiting: one wake-up of the planner's
/// thread for many segments when they come fast, one for each when they come slowly.
const BATCH_SEGMENTS: usize = 32;

/// Batches the planner has not heard of yet.
const QUEUE_BATCHES: usize = 16;

/// What became of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Right, and in the file.
    Stored {
        source: Source,
        index: SegmentIndex,
        length: u32,
    },
    /// Not the segment it was to be.
    Bad {
        source: Source,
        index: SegmentIndex,
        mismatch: HashMismatch,
    },
    /// The disk refused.
    Failed(io::Error),
}

/// The queue's end that arrivals are put into. The thread ends when the last clone is gone.
pub(crate) type Arrivals = mpsc::Sender<Arrival>;

/// Starts the thread.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn start(
    file: File,
    manifest: Arc<Manifest>,
) -> io::Result<(Arrivals, mpsc::Receiver<Vec<Outcome>>)> {
    let longest = manifest.parameters().max();
    let segments =
        (QUEUE_BYTES / longest.max(1)).clamp(*QUEUE_SEGMENTS.start(), *QUEUE_SEGMENTS.end());
    let (arrivals, queue) = mpsc::channel(segments as usize);
    let (results, outcomes) = mpsc::channel(QUEUE_BATCHES);
    std::thread::Builder::new()
        .name("branchline-write".into())
        .spawn(move || run(&file, &manifest, queue, &results))?;
    Ok((arrivals, outcomes))
}

fn run(
    file: &File,
    manifest: &Manifest,
    mut queue: mpsc::Receiver<Arrival>,
    results: &mpsc::Sender<Vec<Outcome>>,
) {
    while let Some(first) = queue.blocking_recv() {
        let more = std::iter::from_fn(|| queue.try_recv().ok());
        let batch = std::iter::once(first).chain(more).take(BATCH_SEGMENTS);
        let settled = batch
            .map(|arrival| settle(file, manifest, arrival))
            .collect();
        if results.blocking_send(settled).is_err() {
            return;
        }
    }
}

fn settle(file: &File, manifest: &Manifest, arrival: Arrival) -> Outcome {
    let Arrival {
        source,
        index,
        bytes,
    } = arrival;
    let Some(segment) = manifest.segment(index) else {
        return Outcome::Failed(io::Error::other(format!("there is no segment {index}")));
    };
    match VerifiedSegment::verify(bytes, segment.hash) {
        Ok(verified) => match file.write_all_at(verified.bytes(), segment.offset) {
            Ok(()) => Outcome::Stored {
                source,
                index,
                length: segment.length,
            },
            Err(error) => Outcome::Failed(error),
        },
        Err(mismatch) => Outcome::Bad {
            source,
            index,
            mismatch,
        },
    }
}

#[cfg(test)]
mod tests {
    use branchline_hashing::{ManifestBuilder, SegmentHash, SegmentingParameters, Sha256Digest};

    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn only_right_segments_reach_the_file() {
        let length = SegmentingParameters::FIXED.max();
        let segment = |fill: u8| Bytes::from(vec![fill; length as usize]);
        let mut table = ManifestBuilder::new(SegmentingParameters::FIXED);
        for fill in [1, 2] {
            table
                .push(length, SegmentHash::of(&segment(fill)))
                .expect("a fixed segment");
        }
        let manifest = table
            .finish(Sha256Digest::from_bytes([0; 32]))
            .expect("a table");
        let file = tempfile::tempfile().expect("a file");
        let handle = file.try_clone().expect("a second handle");
        let (arrivals, mut outcomes) = start(handle, Arc::new(manifest)).expect("a thread");
        for (index, fill) in [(1, 2), (0, 9), (7, 1)] {
            let (source, index) = (Source::Origin, SegmentIndex(index));
            arrivals
                .send(Arrival {
                    source,
                    index,
                    bytes: segment(fill),
                })
                .await
                .expect("taken");
        }
        drop(arrivals);
        let mut all = Vec::new();
        while let Some(batch) = outcomes.recv().await {
            all.extend(batch);
        }
        let [right, wrong, unknown] = &all[..] else {
            panic!("three outcomes, not {all:?}")
        };
        assert!(matches!(right, Outcome::Stored { index, .. } if index.0 == 1));
        assert!(matches!(wrong, Outcome::Bad { index, .. } if index.0 == 0));
        assert!(matches!(unknown, Outcome::Failed(_)));
        let mut first = vec![7; length as usize];
        file.read_exact_at(&mut first, 0).expect("read");
        assert!(
            first.iter().all(|byte| *byte == 0),
            "nothing was written at a wrong segment's place"
        );
        file.read_exact_at(&mut first, u64::from(length))
            .expect("read");
        assert!(first.iter().all(|byte| *byte == 2));
    }
}
