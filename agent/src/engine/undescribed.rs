//! A download of a file of which only the digest is known, shared with peers from the start.
//!
//! Segments lie at fixed offsets and count as provisional until the whole file has its digest. If it
//! has another one, [`Repair`] says which segments are fetched again, from the origin if it can be
//! reached; or another member has found the right ones meanwhile, and its table is taken.
//!
//! A note on the partial file says which segments an interrupted download has left. What it left is as
//! provisional as the rest, so it need not be durable: after a power failure nothing of it counts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use branchline_core::planner::OriginPace;
use branchline_core::repair::{Provenance, Repair, turn};
use branchline_core::swarm::{BlockIndex, BlockRange, Blocks};
use branchline_core::{PeerId, SegmentSet};
use branchline_hashing::{
    ContentKey, Digest, FixedSegments, Manifest, SegmentHash, SegmentIndex, Sha256Digest,
};
use branchline_origin::{Remote, Target};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::engine::hearsay::{self, PeersTable};
use crate::engine::partial::{Partial, PartialError};
use crate::engine::planned::{Filling, Planned, PlannedError};
use crate::engine::progress::Meter;
use crate::engine::provisional::{ProvisionalContent, name_wrong};
use crate::engine::serving::{Local, OnShelf};
use crate::engine::stewards::Stewards;
use crate::engine::ways::Distrusted;
use crate::engine::{Shared, blocking, linux};

/// How often what is there is noted: what came since the last note is fetched again after a kill.
const NOTE_EVERY: Duration = Duration::from_millis(200);

/// Why an undescribed download ended without its file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UndescribedError {
    #[error(transparent)]
    Planned(#[from] PlannedError),
    #[error(transparent)]
    Local(#[from] PartialError),
    /// All of it is the origin's, and still another file.
    #[error("the file has another digest than the {expected} that was asked for")]
    WrongDigest { expected: Digest },
}

/// How it ended.
pub(crate) enum Ended {
    /// The whole file has its digest, and this table. What peers are served from meanwhile is on the
    /// shelf, and what stewards count it by lasts.
    Whole {
        table: Manifest,
        on_shelf: OnShelf,
        stewards: Stewards,
    },
    /// Peers have the whole file, as they say, and this table of it.
    TableOfPeers {
        table: PeersTable,
        /// What has come of it.
        came: Arc<ProvisionalContent>,
    },
}

/// An undescribed download.
pub(crate) struct Undescribed<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) partial: &'a Arc<Partial>,
    pub(crate) target: &'a Target,
    /// What the origin said; without it the origin is not asked.
    pub(crate) remote: Option<&'a Remote>,
    pub(crate) key: ContentKey,
    /// All of these the whole file must have.
    pub(crate) digests: &'a [Digest],
    pub(crate) segments: FixedSegments,
    pub(crate) pace: OriginPace,
}

impl Undescribed<'_> {
    /// Fetches the whole file into the partial file. Peers that turn out to have sent wrong bytes come to be
    /// distrusted.
    pub(crate) async fn run(
        self,
        distrusted: &mut Distrusted,
        meter: &mut Meter,
    ) -> Result<Ended, UndescribedError> {
        let file = self.partial.reader()?;
        let content = Arc::new(ProvisionalContent::new(self.key, self.segments, file));
        self.resume(&content).await?;
        meter.start(Some(self.segments.file_length()));
        meter.count_local(content.sources_of(&content.done.segments()).local_bytes);
        let on_shelf = self
            .shared
            .shelf
            .put(Local::Provisional(Arc::clone(&content)));
        let stewards = self.fetch(&content, true, &distrusted.peers, meter).await?;
        if let Some(expected) = self.first_wrong_digest().await? {
            let repaired = self.repair(expected, &content, distrusted, meter).await?;
            if let Some(table) = repaired {
                let came = content;
                return Ok(Ended::TableOfPeers { table, came });
            }
        }
        let table = self.table_of(&content)?;
        Ok(Ended::Whole {
            table,
            on_shelf,
            stewards,
        })
    }

    /// Fetches what is not there.
    async fn fetch(
        &self,
        content: &Arc<ProvisionalContent>,
        peers: bool,
        shut_out: &BTreeSet<PeerId>,
        meter: &mut Meter,
    ) -> Result<Stewards, PlannedError> {
        let planned = Planned {
            shared: self.shared,
            filling: Filling::Provisional(content),
            partial: self.partial,
            target: self.target,
            remote: self.remote,
            peers,
            shut_out,
            pace: self.pace,
        };
        let mut fetched = std::pin::pin!(planned.run(None, meter));
        let mut noting = Noting::new(self.partial, content);
        let mut ticks = tokio::time::interval(NOTE_EVERY);
        let result = loop {
            tokio::select! {
                result = &mut fetched => break result,
                _ = ticks.tick() => noting.note(),
            }
        };
        noting.finish().await;
        result
    }

    /// The whole file has another digest than `expected`: fetches again what peers brought, the
    /// likeliest to be wrong first, until it has the right one. `Some` is the table of a peer that has
    /// the whole file by now.
    async fn repair(
        &self,
        expected: Digest,
        content: &Arc<ProvisionalContent>,
        distrusted: &mut Distrusted,
        meter: &mut Meter,
    ) -> Result<Option<PeersTable>, UndescribedError> {
        tracing::warn!(
            swarm = %self.key.swarm_id(),
            "the whole file has another digest: somebody sent wrong bytes, which are looked for"
        );
        let mut repair = self.begin_repair(content, &distrusted.peers).await;
        if repair.next_batch().is_some() {
            self.wait_for_turn(&distrusted.peers).await;
        }
        loop {
            let length = Some(self.segments.file_length());
            let heard = hearsay::ask(self.shared, self.key, length, distrusted).await;
            if heard.table.is_some() {
                return Ok(heard.table);
            }
            let Some(batch) = repair.next_batch() else {
                return Err(match self.remote {
                    Some(_) => {
                        self.partial.forget_note()?;
                        self.partial.discard()?;
                        UndescribedError::WrongDigest { expected }
                    }
                    None => PlannedError::NobodyHasIt.into(),
                });
            };
            let segments = batch.segments.len();
            tracing::info!(segments, "segments are fetched again");
            for index in batch.segments.iter() {
                content.doubt(index);
            }
            meter.recount(content.sources_of(&content.done.segments()));
            let mut but = distrusted.peers.clone();
            but.extend(&batch.suspects);
            let from_peers = self.remote.is_none();
            self.fetch(content, from_peers, &but, meter).await?;
            for index in batch.segments.iter() {
                if let Some(now) = content.held(index) {
                    repair.handle_fetched(index, now);
                }
            }
            let wrong = self.first_wrong_digest().await?;
            if wrong.is_none() {
                repair.handle_match();
            }
            for (peer, segments) in repair.wrong() {
                if distrusted.peers.insert(*peer) {
                    name_wrong(*peer, *segments);
                }
            }
            if wrong.is_none() {
                meter.recount(content.sources_of(&content.done.segments()));
                return Ok(None);
            }
        }
    }

    /// Asks the other members what they have.
    async fn begin_repair(
        &self,
        content: &Arc<ProvisionalContent>,
        shut_out: &BTreeSet<PeerId>,
    ) -> Repair {
        let held = self.segments.iter().filter_map(|segment| {
            let held = content.held(segment.index)?;
            Some((held, segment.length))
        });
        let mut repair = Repair::new(held);
        let count = self.segments.count();
        hearsay::ask_for_claims(self.shared, self.key, count, shut_out, |word| {
            repair.handle_claims(word.peer, word.first, &word.claims);
        })
        .await;
        repair
    }

    /// Members that took part have the same wrong bytes at the same moment: who comes first repairs, and
    /// the others take it from there.
    async fn wait_for_turn(&self, shut_out: &BTreeSet<PeerId>) {
        let members = self.shared.membership();
        let others = members
            .members()
            .keys()
            .any(|peer| !shut_out.contains(peer));
        if others && self.remote.is_some() {
            let bytes = self.segments.file_length();
            tokio::time::sleep(turn(linux::random(), self.pace, bytes)).await;
        }
    }

    fn table_of(&self, content: &ProvisionalContent) -> Result<Manifest, PartialError> {
        let stated = self.digests.iter().find_map(|digest| match digest {
            Digest::Sha256(sha256) => Some(*sha256),
            Digest::Blake3(_) => None,
        });
        let sha256 = stated.unwrap_or(Sha256Digest::from_bytes([0; 32]));
        let incomplete = || std::io::Error::other("a segment is missing");
        let table = content
            .table(sha256)
            .ok_or_else(incomplete)
            .and_then(|table| table.map_err(std::io::Error::other));
        table.map_err(|error| self.partial.fail("describe", error))
    }

    async fn first_wrong_digest(&self) -> Result<Option<Digest>, PartialError> {
        let (partial, digests) = (Arc::clone(self.partial), self.digests.to_vec());
        let length = self.segments.file_length();
        blocking(move || partial.first_wrong_digest(&digests, length)).await
    }

    /// Takes over what an interrupted download has left, and reserves room for the rest.
    async fn resume(&self, content: &Arc<ProvisionalContent>) -> Result<(), PartialError> {
        let (partial, content) = (Arc::clone(self.partial), Arc::clone(content));
        blocking(move || {
            let before = Note::on(&partial).filter(|note| note.is_of(&content));
            if before.is_none() {
                partial.forget_note()?;
            }
            partial.reserve(content.segments.file_length())?;
            let left = before.map(|note| note.segments(&content));
            for index in left.iter().flat_map(SegmentSet::iter) {
                if let Some(hash) = hash_of(&partial, &content, index)? {
                    content.mark(index, hash, Provenance::Unknown);
                }
            }
            Ok(())
        })
        .await
    }
}

fn hash_of(
    partial: &Partial,
    content: &ProvisionalContent,
    index: SegmentIndex,
) -> Result<Option<SegmentHash>, PartialError> {
    let Some(segment) = content.segments.segment(index) else {
        return Ok(None);
    };
    let bytes = partial.read(segment.offset, segment.length)?;
    Ok(Some(SegmentHash::of(&bytes)))
}

/// What the partial file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    content: ContentKey,
    file_bytes: u64,
    /// What is written outlives processes, but not the machine's boot.
    boot_id: String,
    /// The blocks that are there, as first and number: half of 4,096 of them fit on a file
    /// system's page at the least.
    blocks: Vec<(u32, u32)>,
}

/// More ranges than this are not noted: with their digits they take 10 bytes each, of 4 KiB that a
/// note on ext4 has.
const NOTED_RANGES: usize = 300;

impl Note {
    fn of(content: &ProvisionalContent) -> Self {
        let held = blocks_of(content).held_of(&content.done.segments());
        let ranges = held.ranges().take(NOTED_RANGES);
        Self {
            content: content.key,
            file_bytes: content.segments.file_length(),
            boot_id: linux::boot_id(),
            blocks: ranges
                .map(|range| (range.first().0, range.count()))
                .collect(),
        }
    }

    fn on(partial: &Partial) -> Option<Self> {
        serde_json::from_slice(&partial.note()?).ok()
    }

    fn is_of(&self, content: &ProvisionalContent) -> bool {
        let same = (self.content, self.file_bytes) == (content.key, content.segments.file_length());
        same && !self.boot_id.is_empty() && self.boot_id == linux::boot_id()
    }

    fn segments(&self, content: &ProvisionalContent) -> SegmentSet {
        let blocks = blocks_of(content);
        let mut segments = SegmentSet::empty(content.segments.count());
        let ranges = self.blocks.iter();
        let ranges =
            ranges.filter_map(|(first, count)| BlockRange::new(BlockIndex(*first), *count));
        for range in ranges.filter_map(|range| blocks.segments_of(range)) {
            for index in range.iter() {
                segments.insert(index);
            }
        }
        segments
    }
}

fn blocks_of(content: &ProvisionalContent) -> Blocks {
    Blocks::of(content.segments.count(), content.segments.file_length())
}

/// Notes what is there, off the async thread, one note at a time.
struct Noting<'a> {
    partial: &'a Arc<Partial>,
    content: &'a Arc<ProvisionalContent>,
    at_work: JoinSet<()>,
}

impl<'a> Noting<'a> {
    fn new(partial: &'a Arc<Partial>, content: &'a Arc<ProvisionalContent>) -> Self {
        Self {
            partial,
            content,
            at_work: JoinSet::new(),
        }
    }

    fn note(&mut self) {
        while self.at_work.try_join_next().is_some() {}
        if self.at_work.is_empty() {
            let (partial, content) = (Arc::clone(self.partial), Arc::clone(self.content));
            self.at_work.spawn_blocking(move || {
                let text = serde_json::to_vec(&Note::of(&content)).unwrap_or_default();
                // A note that cannot be written costs a resumption, not the download.
                if let Err(error) = partial.put_note(&text) {
                    tracing::debug!(%error, "a download cannot note how far it is");
                }
            });
        }
    }

    /// Whoever has the partial file next finds nobody at work on it, and what is there noted.
    async fn finish(mut self) {
        while self.at_work.join_next().await.is_some() {}
        self.note();
        while self.at_work.join_next().await.is_some() {}
    }
}
