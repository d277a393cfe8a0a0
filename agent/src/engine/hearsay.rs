//! What peers say of a file of which only the digest is known: its table, its length, which bytes they
//! have. Nothing of it is believed before the whole file has matched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use branchline_core::planner::MAX_NEIGHBOURS;
use branchline_core::repair::Claim;
use branchline_core::wire::{MAX_REQUEST_SEGMENTS, Standing};
use branchline_core::{PeerId, SegmentRange};
use branchline_exchange::{Exchange, PeerSession};
use branchline_hashing::{
    ContentKey, FixedSegments, Manifest, ManifestHead, SegmentIndex, SegmentingParameters,
};
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::engine::Shared;
use crate::engine::ways::Distrusted;

/// How long peers may take to send a table before it goes on without: a LAN sends 1 MiB in 10 ms,
/// and a peer that cannot is no help anyway.
const PEER_TIME: Duration = Duration::from_millis(500);

/// Peers that send a table at the same time: the second is for when the first is slow. A 10 GiB
/// file has 6 MB of it.
const TABLES_AT_A_TIME: usize = 2;

/// Peers that are asked whether they have one.
const PEERS_ASKED: usize = 64;

/// The longest table that is taken from strangers when nobody says how long the file is: that of
/// 120 GB in fixed segments.
const UNKNOWN_LENGTH_LIMIT_BYTES: u64 = 64 << 20;

/// The longest file that is begun on a peer's word of its length: 18 MB of memory for its segments.
const PEERS_LENGTH_LIMIT_BYTES: u64 = 16 << 30;

/// A table of fixed segments that peers have given.
#[derive(Debug)]
pub(crate) struct PeersTable {
    pub(crate) manifest: Manifest,
    /// All that gave this one.
    pub(crate) givers: BTreeSet<PeerId>,
}

/// What peers say of a content.
#[derive(Debug, Default)]
pub(crate) struct Hearsay {
    /// The table that most of those agree on who have one.
    pub(crate) table: Option<PeersTable>,
    /// The length in bytes that most of those agree on who have no table yet.
    pub(crate) file_bytes: Option<u64>,
}

/// What one peer says.
enum Word {
    Table(Bytes),
    FileBytes(u64),
}

/// Asks members about the content with this key. `length` is the file's, where somebody who is
/// believed has said it.
pub(crate) async fn ask(
    shared: &Shared,
    key: ContentKey,
    length: Option<u64>,
    distrusted: &Distrusted,
) -> Hearsay {
    let Some(exchange) = &shared.exchange else {
        return Hearsay::default();
    };
    let limit_bytes = table_limit(length);
    let takes_tables = distrusted.takes_tables();
    let mut asked = JoinSet::new();
    let at_a_time = Arc::new(Semaphore::new(TABLES_AT_A_TIME));
    for (peer, session) in sessions(shared, exchange, key, &distrusted.peers, PEERS_ASKED) {
        let at_a_time = Arc::clone(&at_a_time);
        asked.spawn(async move {
            let session = session.await?;
            if let Standing::Provisional { file_bytes } = session.standing() {
                return Some((peer, Word::FileBytes(file_bytes)));
            }
            if !takes_tables {
                return None;
            }
            let _turn = at_a_time.acquire().await.ok()?;
            let table = session.manifest(limit_bytes).await.ok()??;
            Some((peer, Word::Table(table)))
        });
    }
    let mut ballot = Ballot::default();
    let collect = async {
        while let Some(end) = asked.join_next().await {
            if let Some((peer, word)) = end.ok().flatten() {
                ballot.count(peer, word);
            }
        }
    };
    // Whoever is late has no vote.
    let _ = tokio::time::timeout(PEER_TIME, collect).await;
    ballot.result(length)
}

fn table_limit(length: Option<u64>) -> usize {
    let limit = length.map_or(UNKNOWN_LENGTH_LIMIT_BYTES, |length| {
        let segments = length.div_ceil(u64::from(FixedSegments::LENGTH));
        ManifestHead::LENGTH as u64 + segments * 36 + 32
    });
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Joins members.
fn sessions(
    shared: &Shared,
    exchange: &Exchange,
    key: ContentKey,
    but: &BTreeSet<PeerId>,
    most: usize,
) -> Vec<(PeerId, impl Future<Output = Option<PeerSession>> + use<>)> {
    let members = shared.membership();
    let asked = members.members().values();
    let asked = asked.filter(|member| !but.contains(&member.peer_id));
    asked
        .take(most)
        .map(|member| {
            let (peer, addresses) = (member.peer_id, member.exchange_addresses.clone());
            let join = exchange.join(peer, addresses, key);
            (peer, async move { join.await.ok() })
        })
        .collect()
}

/// Votes of peers.
#[derive(Default)]
struct Ballot {
    tables: Vec<(Bytes, BTreeSet<PeerId>)>,
    lengths: BTreeMap<u64, usize>,
}

impl Ballot {
    fn count(&mut self, peer: PeerId, word: Word) {
        match word {
            Word::FileBytes(bytes) if bytes > PEERS_LENGTH_LIMIT_BYTES => {}
            Word::FileBytes(bytes) => *self.lengths.entry(bytes).or_default() += 1,
            Word::Table(bytes) => match self.tables.iter_mut().find(|(known, _)| *known == bytes) {
                Some((_, givers)) => {
                    givers.insert(peer);
                }
                None => self.tables.push((bytes, BTreeSet::from([peer]))),
            },
        }
    }

    fn result(mut self, length: Option<u64>) -> Hearsay {
        let right = |manifest: &Manifest| {
            manifest.parameters() == SegmentingParameters::FIXED
                && length.is_none_or(|length| length == manifest.file_length())
        };
        self.tables
            .sort_by_key(|(_, givers)| std::cmp::Reverse(givers.len()));
        let table = self.tables.into_iter().find_map(|(bytes, givers)| {
            let manifest = Manifest::decode(&bytes).ok().filter(right)?;
            Some(PeersTable { manifest, givers })
        });
        let most_votes = self.lengths.into_iter().max_by_key(|(_, votes)| *votes);
        Hearsay {
            table,
            file_bytes: most_votes.map(|(bytes, _)| bytes),
        }
    }
}

/// Claims of one peer about adjacent segments.
pub(crate) struct PeersClaims {
    pub(crate) peer: PeerId,
    pub(crate) first: SegmentIndex,
    pub(crate) claims: Vec<Option<Claim>>,
}

/// Asks members but those in `but` which bytes they have; `hear` is given what they say.
pub(crate) async fn ask_for_claims(
    shared: &Shared,
    key: ContentKey,
    segments: u32,
    but: &BTreeSet<PeerId>,
    mut hear: impl FnMut(PeersClaims),
) {
    let Some(exchange) = &shared.exchange else {
        return;
    };
    // A few words at a time: what peers say of a large file is megabytes.
    let (told, mut heard) = tokio::sync::mpsc::channel(MAX_NEIGHBOURS);
    let mut asked = JoinSet::new();
    for (peer, session) in sessions(shared, exchange, key, but, MAX_NEIGHBOURS) {
        let told = told.clone();
        asked.spawn(async move {
            let session = session.await?;
            for range in parts(segments) {
                let claims = session.claims(range).await.ok()?;
                let first = range.first();
                let word = PeersClaims {
                    peer,
                    first,
                    claims,
                };
                told.send(word).await.ok()?;
            }
            Some(())
        });
    }
    drop(told);
    let collect = async {
        while let Some(word) = heard.recv().await {
            hear(word);
        }
    };
    // Claims only say where to look first: those that are late are not missed.
    let _ = tokio::time::timeout(PEER_TIME, collect).await;
}

/// All segments, as many at a time as may be asked for.
fn parts(segments: u32) -> impl Iterator<Item = SegmentRange> {
    let most = MAX_REQUEST_SEGMENTS;
    (0..segments.div_ceil(most)).filter_map(move |part| {
        let first = part * most;
        SegmentRange::new(SegmentIndex(first), most.min(segments - first))
    })
}

#[cfg(test)]
mod tests {
    use branchline_hashing::{ManifestBuilder, SegmentHash, Sha256Digest};

    use super::*;

    fn table(text: &[u8]) -> Bytes {
        let mut table = ManifestBuilder::new(SegmentingParameters::FIXED);
        table.push(100, SegmentHash::of(text)).expect("a segment");
        let table = table.finish(Sha256Digest::from_bytes([0; 32]));
        table.expect("a table").encode().into()
    }

    fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    #[test]
    fn the_table_that_most_agree_on_counts_if_it_can_be_of_the_file() {
        let mut ballot = Ballot::default();
        ballot.count(peer(1), Word::Table(table(b"one")));
        ballot.count(peer(2), Word::Table(table(b"two")));
        ballot.count(peer(3), Word::Table(table(b"two")));
        ballot.count(peer(4), Word::Table(Bytes::from_static(b"rubbish")));
        let found = ballot.result(Some(100)).table.expect("a table");
        assert_eq!(found.manifest.encode(), table(b"two"));
        assert_eq!(found.givers, BTreeSet::from([peer(2), peer(3)]));
        let mut ballot = Ballot::default();
        ballot.count(peer(1), Word::Table(table(b"one")));
        assert!(ballot.result(Some(101)).table.is_none());
    }

    #[test]
    fn the_length_that_most_say_counts_unless_it_is_beyond_all_measure() {
        let mut ballot = Ballot::default();
        for (number, bytes) in [
            (1, 7),
            (2, 9),
            (3, 9),
            (4, u64::MAX),
            (5, u64::MAX),
            (6, u64::MAX),
        ] {
            ballot.count(peer(number), Word::FileBytes(bytes));
        }
        assert_eq!(ballot.result(None).file_bytes, Some(9));
    }

    #[test]
    fn all_segments_are_asked_about_in_parts_that_may_be_asked_for() {
        let of = |segments| {
            let parts = parts(segments).map(|part| (part.first().0, part.count()));
            parts.collect::<Vec<_>>()
        };
        assert_eq!(of(1), [(0, 1)]);
        assert_eq!(of(1024), [(0, 1024)]);
        assert_eq!(of(2049), [(0, 1024), (1024, 1024), (2048, 1)]);
    }
}
