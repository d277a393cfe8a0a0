//! A download without a manifest: one stream from the origin, in order.
//!
//! On the way a table of fixed segments is made, so that the next version of this machine's needs
//! finds the bytes in the store, and so that peers can be served once a digest has vouched for the
//! whole.
//!
//! To go on after an interruption a note on the partial file itself (an extended attribute) says
//! which version it belongs to and how much of it has been made durable. Within one boot everything
//! written counts (the page cache outlives processes); after a reboot, or once the disk has failed,
//! only what was synced does. File systems without such attributes begin anew.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use branchline_core::planner::Source;
use branchline_hashing::{
    ContentKey, Digest, Digester, Manifest, ManifestBuilder, SegmentHash, SegmentingParameters,
    Sha256Digest,
};
use branchline_origin::{ByteRange, OriginError, Remote, Resume, Target};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::engine::Shared;
use crate::engine::error::GetError;
use crate::engine::linux;
use crate::engine::origin_run::retries;
use crate::engine::partial::{Partial, PartialError};
use crate::engine::progress::Meter;

/// Chunks between the network and the disk: at most 400 KiB each, so 12 MiB.
const QUEUE_CHUNKS: usize = 32;

/// What may be lost to a power failure: a second or more of any WAN.
const SYNC_EVERY_BYTES: u64 = 64 << 20;

/// Why a plain download ended without its file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlainError {
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Local(#[from] PartialError),
    #[error("the file has another digest than the {expected} that was asked for")]
    WrongDigest { expected: Digest },
}

impl PlainError {
    /// As the error of a download.
    pub(crate) fn of(self, target: &Target) -> GetError {
        match self {
            Self::Origin(error) => GetError::Origin(error),
            Self::Local(error) => GetError::Local(error),
            Self::WrongDigest { expected } => GetError::WrongDigest {
                url: target.url().clone(),
                expected,
            },
        }
    }
}

/// What the partial file belongs to.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    url: String,
    validator: String,
    length: u64,
    boot_id: String,
    synced_bytes: u64,
    /// Offset and length of each part; none for all.
    #[serde(default)]
    parts: Vec<(u64, u64)>,
}

/// A plain download.
pub(crate) struct Plain<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) partial: &'a Partial,
    pub(crate) target: &'a Target,
    pub(crate) remote: &'a Remote,
    /// All of these the whole file must have.
    pub(crate) digests: &'a [Digest],
    /// The bytes that are wanted, one range after the other: they are the whole file then. All when none are named.
    pub(crate) parts: &'a [ByteRange],
}

impl Plain<'_> {
    /// Fetches the whole file into the partial file, and gives the table made on the way.
    pub(crate) async fn run(self, meter: &mut Meter) -> Result<Manifest, PlainError> {
        let note = self.note();
        let start = self.resumable(note.as_ref())?;
        let recorder = Recorder::new(&self, note);
        let (chunks, queue) = mpsc::channel(QUEUE_CHUNKS);
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("branchline-write".into())
            .spawn(move || {
                // Nobody waiting means that the download was cancelled.
                let _ = end.send(recorder.run(start, queue));
            })
            .map_err(|error| self.partial.fail("start a thread for", error))?;
        meter.count_local(start);
        let fetched = self.fetch(start, chunks, meter).await;
        let recorded = ended
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the writer's thread ended")));
        // A disk that failed is why the origin's stream ended.
        let recorded = recorded.map_err(|error| self.partial.fail("write", error))?;
        fetched?;
        self.check(recorded)
    }

    async fn fetch(
        &self,
        start: u64,
        chunks: mpsc::Sender<Bytes>,
        meter: &mut Meter,
    ) -> Result<(), PlainError> {
        if self.length() == Some(start) {
            return Ok(());
        }
        if self.parts.is_empty() {
            let rest = self
                .length()
                .and_then(|end| ByteRange::new(start, end - start));
            return self.fetch_range(rest, &chunks, meter).await;
        }
        let mut skipped = start;
        for part in self.parts {
            let skip = skipped.min(part.length());
            skipped -= skip;
            if let Some(rest) = ByteRange::new(part.offset() + skip, part.length() - skip) {
                self.fetch_range(Some(rest), &chunks, meter).await?;
            }
        }
        Ok(())
    }

    async fn fetch_range(
        &self,
        rest: Option<ByteRange>,
        chunks: &mpsc::Sender<Bytes>,
        meter: &mut Meter,
    ) -> Result<(), PlainError> {
        let resume = Resume::WithStrongValidator;
        let mut reader = self
            .shared
            .origin
            .read(self.target, self.remote, rest, resume, retries());
        let mut progress = tokio::time::interval(super::planned::PROGRESS_EVERY);
        loop {
            // One wait for the bytes across all ticks: dropped, it would send its request again.
            let mut next = std::pin::pin!(reader.chunk());
            let chunk = loop {
                tokio::select! {
                    chunk = &mut next => break chunk?,
                    _ = progress.tick() => meter.report(0, "the origin to send the file"),
                }
            };
            let Some(chunk) = chunk else {
                return Ok(());
            };
            let bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            if chunks.send(chunk).await.is_err() {
                return Ok(());
            }
            meter.count(Source::Origin, bytes);
        }
    }

    fn check(&self, recorded: Recorded) -> Result<Manifest, PlainError> {
        for (digester, expected) in recorded.digesters.into_iter().zip(self.digests) {
            if !digester.matches() {
                self.partial.forget_note()?;
                self.partial.discard()?;
                return Err(PlainError::WrongDigest {
                    expected: *expected,
                });
            }
        }
        let stated = self.digests.iter().find_map(|digest| match digest {
            Digest::Sha256(sha256) => Some(*sha256),
            Digest::Blake3(_) => None,
        });
        let sha256 = stated.unwrap_or(Sha256Digest::from_bytes([0; 32]));
        recorded.table.finish(sha256).map_err(|error| {
            self.partial
                .fail("describe", io::Error::other(error))
                .into()
        })
    }

    /// How many bytes are wanted, where that is known.
    fn length(&self) -> Option<u64> {
        match self.parts {
            [] => self.remote.length(),
            parts => Some(
                parts
                    .iter()
                    .map(ByteRange::length)
                    .fold(0, u64::saturating_add),
            ),
        }
    }

    /// Only a version that can be told from others can be gone on with later.
    fn note(&self) -> Option<Note> {
        Some(Note {
            url: self.remote.url.to_string(),
            validator: self.remote.validator.as_ref()?.to_string(),
            length: self.length()?,
            boot_id: linux::boot_id(),
            synced_bytes: 0,
            parts: self
                .parts
                .iter()
                .map(|it| (it.offset(), it.length()))
                .collect(),
        })
    }

    /// How much of the partial file is of this version; the rest is cut off.
    fn resumable(&self, now: Option<&Note>) -> Result<u64, PartialError> {
        let before: Option<Note> = self
            .partial
            .note()
            .and_then(|text| serde_json::from_slice(&text).ok());
        let usable = before
            .zip(now)
            .map_or(0, |(before, now)| before.usable(now).min(now.length));
        if usable == 0 {
            self.partial.forget_note()?;
        }
        Ok(self.partial.keep_first(usable))
    }
}

impl Note {
    fn usable(&self, now: &Self) -> u64 {
        let same = (&self.url, &self.validator, self.length, &self.parts)
            == (&now.url, &now.validator, now.length, &now.parts);
        match (same, self.boot_id == now.boot_id && !now.boot_id.is_empty()) {
            (false, _) => 0,
            (true, true) => u64::MAX,
            (true, false) => self.synced_bytes,
        }
    }
}

/// The key of content that only the origin vouches for.
pub(crate) fn key_of_version(remote: &Remote, length: u64) -> ContentKey {
    let validator = remote
        .validator
        .as_ref()
        .map(|validator| validator.as_str());
    ContentKey::of_version(remote.url.as_str(), validator.unwrap_or_default(), length)
}

/// The thread's side: writes, hashes, syncs.
struct Recorder {
    file: io::Result<File>,
    note: Option<Note>,
    digesters: Vec<Digester>,
    table: ManifestBuilder,
    /// What of a segment has come.
    segment: Vec<u8>,
    written: u64,
    synced: u64,
    sync_failed: bool,
}

struct Recorded {
    table: ManifestBuilder,
    digesters: Vec<Digester>,
}

/// Bytes of a partial file read back at a time.
const READ_BACK_BYTES: usize = 1 << 20;

impl Recorder {
    fn new(plain: &Plain<'_>, note: Option<Note>) -> Self {
        Self {
            file: plain.partial.handle().map_err(io::Error::other),
            note,
            digesters: plain.digests.iter().map(Digester::for_digest).collect(),
            table: ManifestBuilder::new(SegmentingParameters::FIXED),
            segment: Vec::new(),
            written: 0,
            synced: 0,
            sync_failed: false,
        }
    }

    fn run(mut self, start: u64, queue: mpsc::Receiver<Bytes>) -> io::Result<Recorded> {
        let file = std::mem::replace(&mut self.file, Err(io::ErrorKind::Other.into()))?;
        self.read_back(&file, start)?;
        self.synced = self.noted(&file).min(start);
        self.write_note(&file);
        if let Err(error) = self.record(&file, queue) {
            // After a failed sync the kernel may have dropped what it held, and says so only once: a
            // second sync proves nothing.
            match self.sync_failed || file.sync_data().is_err() {
                false => self.synced = self.written,
                true => self.note.iter_mut().for_each(|note| note.boot_id.clear()),
            }
            self.write_note(&file);
            return Err(error);
        }
        Ok(Recorded {
            table: self.table,
            digesters: self.digesters,
        })
    }

    fn record(&mut self, file: &File, mut queue: mpsc::Receiver<Bytes>) -> io::Result<()> {
        while let Some(chunk) = queue.blocking_recv() {
            file.write_all_at(&chunk, self.written)?;
            self.account(&chunk)?;
            if self.written - self.synced >= SYNC_EVERY_BYTES {
                file.sync_data().inspect_err(|_| self.sync_failed = true)?;
                self.synced = self.written;
                self.write_note(file);
            }
        }
        self.end_segment()
    }

    /// What was synced before the interruption still is.
    fn noted(&self, file: &File) -> u64 {
        let note = linux::note(file).and_then(|text| serde_json::from_slice::<Note>(&text).ok());
        note.map_or(0, |note| note.synced_bytes)
    }

    /// What an interrupted download left is part of the digests and of the table.
    fn read_back(&mut self, file: &File, start: u64) -> io::Result<()> {
        let mut buffer = vec![0; READ_BACK_BYTES];
        while self.written < start {
            let rest = usize::try_from(start - self.written).unwrap_or(usize::MAX);
            let part = &mut buffer[..rest.min(READ_BACK_BYTES)];
            file.read_exact_at(part, self.written)?;
            self.account(part)?;
        }
        Ok(())
    }

    fn account(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.digesters
            .iter_mut()
            .for_each(|digester| digester.update(bytes));
        let full = SegmentingParameters::FIXED.max() as usize;
        while !bytes.is_empty() {
            let wanted = (full - self.segment.len()).min(bytes.len());
            self.segment.extend_from_slice(&bytes[..wanted]);
            bytes = &bytes[wanted..];
            if self.segment.len() == full {
                self.end_segment()?;
            }
        }
        Ok(())
    }

    fn end_segment(&mut self) -> io::Result<()> {
        if let Ok(length @ 1..) = u32::try_from(self.segment.len()) {
            let hash = SegmentHash::of(&self.segment);
            self.table.push(length, hash).map_err(io::Error::other)?;
            self.segment.clear();
        }
        Ok(())
    }

    /// A note that cannot be written costs a resumption, not the download.
    fn write_note(&mut self, file: &File) {
        let Some(note) = &mut self.note else {
            return;
        };
        note.synced_bytes = self.synced;
        let text = serde_json::to_vec(note).unwrap_or_default();
        if let Err(error) = linux::put_note(file, &text) {
            tracing::info!(%error, "a download cannot note how far it is, and would begin anew");
            self.note = None;
        }
    }
}
