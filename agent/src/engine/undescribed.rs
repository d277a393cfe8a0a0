//! A download of a file of which only the digest is known, shared with peers from the start.
//!
//! Segments lie at fixed offsets and count as provisional until the whole file has its digest. If it
//! has another one, [`Repair`] finds out who lies, and the members share the file anew, from what each had
//! from the origin itself. If that is another file, too, [`Repair`] says which segments are fetched again, from
//! the origin if it can be reached; or another member has found the right ones meanwhile, and its table is taken.
//!
//! A note on the partial file says which segments an interrupted download has left. What it left is as
//! provisional as the rest, so it need not be durable: after a power failure nothing of it counts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use branchline_core::planner::OriginPace;
use branchline_core::repair::{Provenance, Repair, turn};
use branchline_core::{PeerId, SegmentRange, SegmentSet};
use branchline_hashing::{
    ContentKey, Digest, FixedSegments, Manifest, SegmentHash, SegmentIndex, Sha256Digest,
};
use branchline_origin::{Remote, Target};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::engine::hearsay::{self, PeersTable};
use crate::engine::lookup::are_warm;
use crate::engine::partial::{Partial, PartialError};
use crate::engine::planned::{Filling, Planned, PlannedError};
use crate::engine::progress::Meter;
use crate::engine::provisional::{ProvisionalContent, name_wrong};
use crate::engine::serving::{Local, OnShelf};
use crate::engine::stewards::Stewards;
use crate::engine::ways::Distrusted;
use crate::engine::{Shared, blocking, linux};

/// How often what is there is noted: what came since the last note is fetched again after a kill.
const NOTE_EVERY: Duration = Duration::from_millis(50);

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
        on_shelf: Vec<OnShelf>,
        stewards: Stewards,
    },
    /// Peers have the whole file, as they say, and this table of it.
    TableOfPeers { table: PeersTable, came: Came },
}

/// What came of a file before there was a table.
pub(crate) struct Came {
    pub(crate) content: Arc<ProvisionalContent>,
    repair: Repair,
}

impl Came {
    /// The table has turned out to be right: says who sent wrong bytes.
    pub(crate) fn name_wrong(mut self, table: &Manifest) {
        let hash_of = |index| Some(table.segment(index)?.hash);
        self.repair.handle_right(hash_of);
        for (peer, segments) in self.repair.wrong() {
            name_wrong(*peer, *segments);
        }
    }
}

/// What became of a file that had another digest.
enum Repaired {
    /// It is right.
    Whole(Rightly),
    /// Peers have it, as they say.
    TableOfPeers { table: Box<PeersTable>, came: Came },
}

/// A file with its digest.
struct Rightly {
    content: Arc<ProvisionalContent>,
    on_shelf: OnShelf,
    stewards: Stewards,
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
    /// When connections to the others were begun, if they were.
    pub(crate) warmed: Option<Instant>,
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
        let on_shelf = self.put_on_shelf(&content);
        let stewards = self.fetch(&content, true, &distrusted.peers, meter).await?;
        let Some(expected) = self.first_wrong_digest().await? else {
            return Ok(Ended::Whole {
                table: self.table_of(&content)?,
                on_shelf: vec![on_shelf],
                stewards,
            });
        };
        drop(stewards);
        match self.repair(expected, content, distrusted, meter).await? {
            Repaired::Whole(rightly) => Ok(Ended::Whole {
                table: self.table_of(&rightly.content)?,
                on_shelf: vec![on_shelf, rightly.on_shelf],
                stewards: rightly.stewards,
            }),
            Repaired::TableOfPeers { table, came } => Ok(Ended::TableOfPeers {
                table: *table,
                came,
            }),
        }
    }

    fn put_on_shelf(&self, content: &Arc<ProvisionalContent>) -> OnShelf {
        let local = Local::Provisional(Arc::clone(content));
        self.shared.shelf.put(local)
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
            warmed: are_warm(self.warmed),
        };
        let mut fetched = std::pin::pin!(planned.run(None, meter));
        let mut noting = Noting::new(self.key, self.partial, content);
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

    /// The whole file has another digest than `expected`: finds the right one.
    async fn repair(
        &self,
        expected: Digest,
        content: Arc<ProvisionalContent>,
        distrusted: &mut Distrusted,
        meter: &mut Meter,
    ) -> Result<Repaired, UndescribedError> {
        tracing::warn!(
            swarm = %self.key.swarm_id(),
            "the whole file has another digest: somebody sent wrong bytes, which are looked for"
        );
        // At once: who comes to share anew sooner would take it for missing.
        let first_hand = content.first_hand(self.key.in_repair(), self.partial.reader()?);
        let first_hand = Arc::new(first_hand);
        let on_shelf = self.put_on_shelf(&first_hand);
        let mut repair = self.begin_repair(&content, &distrusted.peers).await;
        let probes = repair.probes();
        if self.remote.is_none() || probes.is_empty() {
            let stewards = Stewards::new();
            let on_shelf = self.put_on_shelf(&content);
            let there = Rightly {
                content,
                on_shelf,
                stewards,
            };
            return self
                .fetch_again(expected, there, repair, distrusted, meter)
                .await;
        }
        if let Some(table) = self.table_of_peers(distrusted).await {
            let came = Came { content, repair };
            let table = Box::new(table);
            return Ok(Repaired::TableOfPeers { table, came });
        }
        self.replace(&probes, &content, &mut repair, &distrusted.peers, meter)
            .await?;
        distrust_wrong(&repair, distrusted);
        for index in probes.iter() {
            if let Some(held) = content.held(index) {
                first_hand.mark(index, held.hash, held.from);
            }
        }
        let anew = self
            .share_anew(first_hand, on_shelf, &distrusted.peers, meter)
            .await?;
        if self.first_wrong_digest().await?.is_none() {
            repair.handle_right(|index| Some(anew.content.held(index)?.hash));
            distrust_wrong(&repair, distrusted);
            return Ok(Repaired::Whole(anew));
        }
        let repair = self.begin_repair(&anew.content, &distrusted.peers).await;
        self.wait_for_turn(&distrusted.peers).await;
        self.fetch_again(expected, anew, repair, distrusted, meter)
            .await
    }

    /// Fetches everything but what this machine had from the origin itself once more, with the members
    /// that are at the same.
    async fn share_anew(
        &self,
        content: Arc<ProvisionalContent>,
        on_shelf: OnShelf,
        shut_out: &BTreeSet<PeerId>,
        meter: &mut Meter,
    ) -> Result<Rightly, UndescribedError> {
        meter.recount(content.sources_of(&content.done.segments()));
        let stewards = self.fetch(&content, true, shut_out, meter).await?;
        Ok(Rightly {
            content,
            on_shelf,
            stewards,
        })
    }

    /// Fetches again what peers brought, the likeliest to be wrong first, until the whole is right.
    async fn fetch_again(
        &self,
        expected: Digest,
        there: Rightly,
        mut repair: Repair,
        distrusted: &mut Distrusted,
        meter: &mut Meter,
    ) -> Result<Repaired, UndescribedError> {
        loop {
            if let Some(table) = self.table_of_peers(distrusted).await {
                let content = there.content;
                let came = Came { content, repair };
                let table = Box::new(table);
                return Ok(Repaired::TableOfPeers { table, came });
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
            let mut but = distrusted.peers.clone();
            but.extend(&batch.suspects);
            let content = &there.content;
            self.replace(&batch.segments, content, &mut repair, &but, meter)
                .await?;
            let right = self.first_wrong_digest().await?.is_none();
            if right {
                repair.handle_right(|index| Some(content.held(index)?.hash));
            }
            distrust_wrong(&repair, distrusted);
            if right {
                return Ok(Repaired::Whole(there));
            }
        }
    }

    /// Fetches segments again: from the origin, or where it cannot be reached from peers but those in `but`.
    async fn replace(
        &self,
        segments: &SegmentSet,
        content: &Arc<ProvisionalContent>,
        repair: &mut Repair,
        but: &BTreeSet<PeerId>,
        meter: &mut Meter,
    ) -> Result<(), UndescribedError> {
        tracing::info!(segments = segments.len(), "segments are fetched again");
        for index in segments.iter() {
            content.doubt(index);
        }
        meter.recount(content.sources_of(&content.done.segments()));
        let from_peers = self.remote.is_none();
        self.fetch(content, from_peers, but, meter).await?;
        for index in segments.iter() {
            if let Some(now) = content.held(index) {
                repair.handle_fetched(index, now);
            }
        }
        Ok(())
    }

    /// The table of a peer that has the whole file by now.
    async fn table_of_peers(&self, distrusted: &Distrusted) -> Option<PeersTable> {
        let length = Some(self.segments.file_length());
        let heard = hearsay::ask(self.shared, self.key, length, distrusted).await;
        heard.table
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
        hearsay::ask_for_claims(self.shared, content.key, count, shut_out, |word| {
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
        let key = self.key;
        blocking(move || {
            let before = Note::on(&partial).filter(|note| note.is_of(key, &content));
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

/// Whoever has turned out to be wrong is named, once, and asked for nothing from now on.
fn distrust_wrong(repair: &Repair, distrusted: &mut Distrusted) {
    for (peer, segments) in repair.wrong() {
        if distrusted.peers.insert(*peer) {
            name_wrong(*peer, *segments);
        }
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
    /// The segments that are there, as first and number.
    segments: Vec<(u32, u32)>,
}

/// More ranges than this are not noted, but the longest: with their digits they take up to 16 bytes each, of 4 KiB
/// that a note on ext4 has.
const NOTED_RANGES: usize = 240;

impl Note {
    fn of(key: ContentKey, content: &ProvisionalContent) -> Self {
        let held = content.done.segments();
        let ranges = held.ranges().map(|range| (range.first().0, range.count()));
        let mut segments: Vec<_> = ranges.collect();
        segments.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
        segments.truncate(NOTED_RANGES);
        Self {
            content: key,
            file_bytes: content.segments.file_length(),
            boot_id: linux::boot_id(),
            segments,
        }
    }

    fn on(partial: &Partial) -> Option<Self> {
        serde_json::from_slice(&partial.note()?).ok()
    }

    fn is_of(&self, key: ContentKey, content: &ProvisionalContent) -> bool {
        let same = (self.content, self.file_bytes) == (key, content.segments.file_length());
        same && !self.boot_id.is_empty() && self.boot_id == linux::boot_id()
    }

    fn segments(&self, content: &ProvisionalContent) -> SegmentSet {
        let count = content.segments.count();
        let mut segments = SegmentSet::empty(count);
        let ranges = self.segments.iter();
        let ranges = ranges.filter_map(|(first, n)| SegmentRange::new(SegmentIndex(*first), *n));
        let inside = ranges.flat_map(|range| range.iter().take_while(|index| index.0 < count));
        for index in inside {
            segments.insert(index);
        }
        segments
    }
}

/// Notes what is there, off the async thread, one note at a time.
struct Noting<'a> {
    key: ContentKey,
    partial: &'a Arc<Partial>,
    content: &'a Arc<ProvisionalContent>,
    at_work: JoinSet<()>,
}

impl<'a> Noting<'a> {
    fn new(
        key: ContentKey,
        partial: &'a Arc<Partial>,
        content: &'a Arc<ProvisionalContent>,
    ) -> Self {
        Self {
            key,
            partial,
            content,
            at_work: JoinSet::new(),
        }
    }

    fn note(&mut self) {
        while self.at_work.try_join_next().is_some() {}
        if self.at_work.is_empty() {
            let (partial, content) = (Arc::clone(self.partial), Arc::clone(self.content));
            let key = self.key;
            self.at_work.spawn_blocking(move || {
                let text = serde_json::to_vec(&Note::of(key, &content)).unwrap_or_default();
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
