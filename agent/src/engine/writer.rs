//! The thread that hashes what arrives and writes what is right, or not known to be wrong.
//!
//! One thread a transfer with a bounded queue: hashing and writing stay off the async threads, and
//! a full queue stops the network from sending more. Measured dearer: `spawn_blocking` a write.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use branchline_core::planner::{Arrival, Source};
use branchline_hashing::{
    HashMismatch, ProvisionalSegment, SegmentHash, SegmentIndex, VerifiedSegment,
};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::engine::linux;
use crate::engine::outline::{Outline, Place};

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

/// Written between two beginnings of write-back. Left to the end, a gigabyte of it takes most of a
/// second in which nothing else happens.
const WRITE_BACK_BYTES: u64 = 64 << 20;

/// Of what comes slowly the disk is given less at a time, for many machines may share one: sixteen on this one had 2 s
/// to wait at the end of 64 MiB each. Each beginning costs the disk some milliseconds.
const WRITE_BACK_SLOWLY: (Duration, u64) = (Duration::from_secs(2), 2 << 20);

/// What became of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// In the file; and right, where the outline says what is.
    Stored {
        source: Source,
        index: SegmentIndex,
        length: u32,
        hash: SegmentHash,
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
    outline: Outline,
) -> io::Result<(Arrivals, mpsc::Receiver<Vec<Outcome>>)> {
    let longest = outline.longest();
    let segments =
        (QUEUE_BYTES / longest.max(1)).clamp(*QUEUE_SEGMENTS.start(), *QUEUE_SEGMENTS.end());
    let (arrivals, queue) = mpsc::channel(segments as usize);
    let (results, outcomes) = mpsc::channel(QUEUE_BATCHES);
    std::thread::Builder::new()
        .name("branchline-write".into())
        .spawn(move || run(&file, &outline, queue, &results))?;
    Ok((arrivals, outcomes))
}

fn run(
    file: &File,
    outline: &Outline,
    mut queue: mpsc::Receiver<Arrival>,
    results: &mpsc::Sender<Vec<Outcome>>,
) {
    let mut write_back = WriteBack::new(file);
    while let Some(first) = queue.blocking_recv() {
        let more = std::iter::from_fn(|| queue.try_recv().ok());
        let batch = std::iter::once(first).chain(more).take(BATCH_SEGMENTS);
        let settled = settle(file, outline, batch.collect());
        write_back.count(&settled);
        if results.blocking_send(settled).is_err() {
            return;
        }
    }
}

/// Has the disk write while the network still sends. What fails here fails again at the end, where
/// it is told.
struct WriteBack {
    /// Of a thread that syncs; none where the system gave none.
    wake: Option<std::sync::mpsc::SyncSender<()>>,
    bytes: u64,
    begun: Instant,
}

impl WriteBack {
    fn new(file: &File) -> Self {
        let (wake, woken) = std::sync::mpsc::sync_channel(1);
        let thread = file.try_clone().and_then(|file| {
            let sync = move || woken.iter().try_for_each(|()| file.sync_data());
            std::thread::Builder::new()
                .name("branchline-sync".into())
                .spawn(sync)
        });
        let wake = thread.is_ok().then_some(wake);
        let begun = Instant::now();
        Self {
            wake,
            bytes: 0,
            begun,
        }
    }

    fn count(&mut self, settled: &[Outcome]) {
        for outcome in settled {
            if let Outcome::Stored { length, .. } = outcome {
                self.bytes += u64::from(*length);
            }
        }
        if is_due(self.bytes, self.begun.elapsed()) {
            self.bytes = 0;
            self.begun = Instant::now();
            // One that is still at it will see what came meanwhile.
            let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
        }
    }
}

/// Whether write-back is to begin of so many bytes, so long after it began last.
fn is_due(bytes: u64, since: Duration) -> bool {
    let (after, least) = WRITE_BACK_SLOWLY;
    bytes >= WRITE_BACK_BYTES || bytes >= least && since >= after
}

/// Verifies a batch, and writes what is right of it.
fn settle(file: &File, outline: &Outline, batch: Vec<Arrival>) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(batch.len());
    let mut right = Vec::with_capacity(batch.len());
    for arrival in batch {
        match check(outline, arrival) {
            Ok(placed) => right.push(placed),
            Err(outcome) => outcomes.push(outcome),
        }
    }
    right.sort_by_key(|placed| placed.place.index);
    // Neighbours go into one call. Measured: 8 at a time take 0.3 CPU-s/GB off single writes.
    for run in right.chunk_by(|a, b| a.place.index.0 + 1 == b.place.index.0) {
        outcomes.extend(write(file, run));
    }
    outcomes
}

/// A segment that is not known to be wrong, and where it goes.
struct Placed {
    source: Source,
    place: Place,
    checked: Checked,
}

/// What is known of its bytes.
enum Checked {
    Verified(VerifiedSegment),
    Provisional(ProvisionalSegment),
}

impl Checked {
    fn of(bytes: Bytes, expected: Option<SegmentHash>) -> Result<Self, HashMismatch> {
        match expected {
            Some(expected) => VerifiedSegment::verify(bytes, expected).map(Self::Verified),
            None => Ok(Self::Provisional(ProvisionalSegment::of(bytes))),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Verified(segment) => segment.bytes(),
            Self::Provisional(segment) => segment.bytes(),
        }
    }

    fn hash(&self) -> SegmentHash {
        match self {
            Self::Verified(segment) => segment.hash(),
            Self::Provisional(segment) => segment.hash(),
        }
    }
}

fn check(outline: &Outline, arrival: Arrival) -> Result<Placed, Outcome> {
    let Arrival {
        source,
        index,
        bytes,
    } = arrival;
    // Whoever cuts what comes into segments knows their lengths.
    let place = outline
        .place(index)
        .filter(|place| place.expected.is_some() || place.length as usize == bytes.len());
    let Some(place) = place else {
        return Err(Outcome::Failed(io::Error::other(format!(
            "there is no segment {index} of {} bytes",
            bytes.len()
        ))));
    };
    match Checked::of(bytes, place.expected) {
        Ok(checked) => Ok(Placed {
            source,
            place,
            checked,
        }),
        Err(mismatch) => Err(Outcome::Bad {
            source,
            index,
            mismatch,
        }),
    }
}

/// Writes adjacent segments.
fn write(file: &File, run: &[Placed]) -> Vec<Outcome> {
    let parts: Vec<&[u8]> = run.iter().map(|placed| placed.checked.bytes()).collect();
    let offset = run.first().map_or(0, |placed| placed.place.offset);
    match linux::write_all_at(file, &parts, offset) {
        Ok(()) => run.iter().map(Placed::stored).collect(),
        Err(error) => vec![Outcome::Failed(error)],
    }
}

impl Placed {
    fn stored(&self) -> Outcome {
        let Place { index, length, .. } = self.place;
        Outcome::Stored {
            source: self.source,
            index,
            length,
            hash: self.checked.hash(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use branchline_hashing::{FixedSegments, ManifestBuilder, SegmentingParameters, Sha256Digest};

    use super::*;

    #[test]
    fn the_disk_begins_with_what_comes_slowly_before_there_is_much_of_it() {
        let due = |bytes, seconds| is_due(bytes, Duration::from_secs(seconds));
        assert!(due(64 << 20, 0));
        assert!(!due((64 << 20) - 1, 1));
        assert!(due(2 << 20, 2));
        assert!(!due((2 << 20) - 1, 60), "too little to wake the disk for");
    }

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
        let (arrivals, mut outcomes) =
            start(handle, Outline::Table(Arc::new(manifest))).expect("a thread");
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
        let stored = all.iter().find(|o| matches!(o, Outcome::Stored { .. }));
        assert!(
            matches!(stored, Some(Outcome::Stored { index, .. }) if index.0 == 1),
            "{all:?}"
        );
        let bad = all.iter().find(|o| matches!(o, Outcome::Bad { .. }));
        assert!(
            matches!(bad, Some(Outcome::Bad { index, .. }) if index.0 == 0),
            "{all:?}"
        );
        assert!(
            all.iter().any(|o| matches!(o, Outcome::Failed(_))),
            "{all:?}"
        );
        assert_eq!(all.len(), 3);
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

    #[test]
    fn a_file_is_whole_whatever_order_its_segments_come_in() {
        let full = SegmentingParameters::FIXED.max() as usize;
        let bytes: Vec<u8> = (0..full * 5 + 77)
            .map(|i| (i % 251).to_le_bytes()[0])
            .collect();
        let mut table = ManifestBuilder::new(SegmentingParameters::FIXED);
        for segment in bytes.chunks(full) {
            let length = u32::try_from(segment.len()).expect("a segment's length");
            table
                .push(length, SegmentHash::of(segment))
                .expect("a fixed segment");
        }
        let manifest = table
            .finish(Sha256Digest::from_bytes([0; 32]))
            .expect("a table");
        let outline = Outline::Table(Arc::new(manifest));
        for order in [
            [0_u32, 1, 2, 3, 4, 5],
            [5, 4, 3, 2, 1, 0],
            [2, 3, 0, 5, 4, 1],
        ] {
            let file = tempfile::tempfile().expect("a file");
            let batch = order.map(|index| Arrival {
                source: Source::Origin,
                index: SegmentIndex(index),
                bytes: Bytes::copy_from_slice(
                    bytes.chunks(full).nth(index as usize).expect("there"),
                ),
            });
            let outcomes = settle(&file, &outline, batch.into());
            assert!(
                outcomes.iter().all(|o| matches!(o, Outcome::Stored { .. })),
                "{outcomes:?}"
            );
            let mut found = vec![0; bytes.len()];
            file.read_exact_at(&mut found, 0).expect("all of it");
            assert!(found == bytes, "{order:?}");
        }
    }

    #[test]
    fn without_a_table_the_hash_of_what_came_is_told_and_no_other_length_is_taken() {
        let segments = FixedSegments::of(u64::from(FixedSegments::LENGTH) + 3).expect("a file");
        let file = tempfile::tempfile().expect("a file");
        let arrival = |index, bytes: &'static [u8]| Arrival {
            source: Source::Origin,
            index: SegmentIndex(index),
            bytes: Bytes::from_static(bytes),
        };
        let batch = vec![arrival(1, b"end"), arrival(0, b"short"), arrival(2, b"")];
        let outcomes = settle(&file, &Outline::Fixed(segments), batch);
        let stored = outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Stored { index, hash, .. } => Some((index.0, *hash)),
            Outcome::Bad { .. } | Outcome::Failed(_) => None,
        });
        assert_eq!(stored.collect::<Vec<_>>(), [(1, SegmentHash::of(b"end"))]);
        assert_eq!(outcomes.len(), 3);
    }
}
