//! The thread that hashes what arrives and writes what is right.
//!
//! One thread a transfer with a bounded queue: hashing and writing stay off the async threads, and
//! a full queue stops the network from sending more. Measured dearer: `spawn_blocking` a write.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use branchline_core::planner::Source;
use branchline_hashing::{HashMismatch, Manifest, SegmentIndex, VerifiedSegment};
use bytes::Bytes;
use tokio::sync::mpsc;

/// Segments that wait to be hashed and written: 16 MiB of average size, which covers 15 ms of a
/// 10 Gbit/s network. A full queue holds up the network, as it must.
const QUEUE_SEGMENTS: usize = 256;

/// A segment as it came, believed by nobody yet.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) source: Source,
    pub(crate) index: SegmentIndex,
    pub(crate) bytes: Bytes,
}

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
) -> io::Result<(Arrivals, mpsc::Receiver<Outcome>)> {
    let (arrivals, queue) = mpsc::channel(QUEUE_SEGMENTS);
    let (results, outcomes) = mpsc::channel(QUEUE_SEGMENTS);
    std::thread::Builder::new()
        .name("branchline-write".into())
        .spawn(move || run(&file, &manifest, queue, &results))?;
    Ok((arrivals, outcomes))
}

fn run(
    file: &File,
    manifest: &Manifest,
    mut queue: mpsc::Receiver<Arrival>,
    results: &mpsc::Sender<Outcome>,
) {
    while let Some(arrival) = queue.blocking_recv() {
        if results
            .blocking_send(settle(file, manifest, arrival))
            .is_err()
        {
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
