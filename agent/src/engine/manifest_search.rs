//! How a manifest comes: its head from the origin, which names the content; its body from whoever
//! has it, and from the origin once for the branch.
//!
//! Carries out what [`ManifestPlan`] decides. Nothing is believed that the head does not prove.

use std::sync::Arc;
use std::time::Duration;

use branchline_core::PeerId;
use branchline_core::planner::OriginPace;
use branchline_core::swarm::{
    Answer, Blocks, Enrolment, ManifestAction, ManifestPlan, ManifestSetup, SwarmPeer,
    first_bytes_of_manifest,
};
use branchline_discovery::Membership;
use branchline_hashing::{ContentKey, Manifest, ManifestError, ManifestHead, SEGMENT_COUNT_LIMIT};
use branchline_origin::{ByteRange, Document, OriginError, Target};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use url::Url;

use crate::engine::lookup::are_warm;
use crate::engine::planned::{changed, ids};
use crate::engine::stewards::{StewardWord, Stewards};
use crate::engine::{Shared, far_future, now};

/// Peers that send a manifest at the same time: the second is for when the first is slow. A 10 GiB
/// file has 12 MB of it.
const MANIFESTS_AT_A_TIME: usize = 2;

/// How long a peer may take for a manifest, besides what it takes at [`MANIFEST_BYTES_PER_SEC`]: its
/// place among [`MANIFESTS_AT_A_TIME`] then goes to another.
const MANIFEST_TIME: Duration = Duration::from_secs(2);

/// A poor LAN's rate: 10 Mbit/s.
const MANIFEST_BYTES_PER_SEC: u64 = 1_250_000;

/// The longest manifest there can be: head, table, SHA-256.
const MANIFEST_LIMIT_BYTES: u64 =
    ManifestHead::LENGTH as u64 + SEGMENT_COUNT_LIMIT as u64 * 36 + 32;

/// A document at a manifest's place.
pub(crate) enum Found {
    Manifest {
        manifest: Box<Manifest>,
        /// What finding it has begun.
        handover: Option<Box<Handover>>,
    },
    Unusable(ManifestError),
}

/// The relation with a steward, for the planner to go on with.
pub(crate) struct Handover {
    pub(crate) stewards: Stewards,
    pub(crate) enrolment: Enrolment,
}

impl Found {
    fn alone(manifest: Manifest) -> Self {
        Self::Manifest {
            manifest: Box::new(manifest),
            handover: None,
        }
    }
}

/// Brings the manifest at `url`. Without members, all of it from the origin in one request.
pub(crate) async fn fetch(
    shared: &Shared,
    target: &Target,
    url: &Url,
    warmed: Option<std::time::Instant>,
) -> Result<Option<Found>, OriginError> {
    if shared.exchange.is_none() || shared.membership().count() == 0 {
        return whole(shared, target, url).await;
    }
    let asked = Instant::now();
    let first = ByteRange::new(0, first_bytes_of_manifest(shared.membership().count()));
    let document = shared
        .origin
        .document(target, url, first, MANIFEST_LIMIT_BYTES)
        .await?;
    let pace = pace_of(asked.elapsed());
    let Some(Document { bytes, .. }) = document else {
        return Ok(None);
    };
    let Some(head) = bytes.get(..ManifestHead::LENGTH) else {
        return Ok(unusable(ManifestError::Truncated {
            needed: ManifestHead::LENGTH as u64,
            found: bytes.len() as u64,
        }));
    };
    let head = match ManifestHead::decode(head) {
        Ok(head) => head,
        Err(error) => return Ok(unusable(error)),
    };
    // A server without ranges sends all of it, too.
    if bytes.len() as u64 >= ManifestHead::LENGTH as u64 + head.body_length() {
        return Ok(decoded(&bytes));
    }
    let key = head.content_key();
    if let Some(manifest) = at_home(shared, key).await {
        return Ok(Some(Found::alone(manifest)));
    }
    // Another download of this machine is the swarm's member; this one would take its place.
    if shared.turns.is_taken(key) {
        return rest(shared, target, url, head).await;
    }
    let setup = ManifestSetup {
        me: shared.me,
        swarm: key.swarm_id(),
        blocks: Blocks::of(head.segment_count(), head.file_length()),
        content_bytes: head.file_length(),
        manifest_bytes: head.body_length(),
        members: ids(&shared.membership()),
        warmed: are_warm(warmed),
        pace,
        origin_open: true,
    };
    Search::new(shared, target, url, head, setup).run().await
}

/// The manifest, where this machine has it: the head that the origin sent proves it.
async fn at_home(shared: &Shared, key: ContentKey) -> Option<Manifest> {
    if let Some(local) = shared.shelf.find(key) {
        return Some(Manifest::clone(&local.manifest));
    }
    let store = shared.store.clone();
    let record = tokio::task::spawn_blocking(move || store.content(&key)).await;
    let manifest = Manifest::decode(&record.ok()?.ok()??.manifest).ok()?;
    (manifest.content_key() == key).then_some(manifest)
}

/// What a first question says of the origin. It took two or three round trips: TCP's, perhaps TLS's,
/// and its own.
pub(crate) fn pace_of(first_answer: Duration) -> OriginPace {
    OriginPace {
        round_trip: (first_answer / 2).clamp(Duration::from_millis(1), Duration::from_secs(1)),
        ..OriginPace::default()
    }
}

async fn whole(shared: &Shared, target: &Target, url: &Url) -> Result<Option<Found>, OriginError> {
    let document = shared
        .origin
        .document(target, url, None, MANIFEST_LIMIT_BYTES)
        .await?;
    Ok(document.and_then(|document| decoded(&document.bytes)))
}

fn decoded(bytes: &[u8]) -> Option<Found> {
    match Manifest::decode(bytes) {
        Ok(manifest) => Some(Found::alone(manifest)),
        Err(error) => unusable(error),
    }
}

/// Servers that answer every address with some page, or an empty one, have no manifest; a damaged
/// one is an error.
fn unusable(error: ManifestError) -> Option<Found> {
    let other_document =
        error == ManifestError::Magic || matches!(error, ManifestError::Truncated { found: 0, .. });
    (!other_document).then_some(Found::Unusable(error))
}

async fn rest(
    shared: &Shared,
    target: &Target,
    url: &Url,
    head: ManifestHead,
) -> Result<Option<Found>, OriginError> {
    let rest = ByteRange::new(ManifestHead::LENGTH as u64, head.body_length());
    let document = shared
        .origin
        .document(target, url, rest, MANIFEST_LIMIT_BYTES)
        .await?;
    match document.map(|body| Manifest::from_parts(head, &body.bytes)) {
        Some(Ok(manifest)) => Ok(Some(Found::alone(manifest))),
        // Head and body of two versions: it was published anew in between.
        Some(Err(_)) => whole(shared, target, url).await,
        None => Ok(None),
    }
}

type FromOrigin<'a> = BoxFuture<'a, Result<Option<Found>, OriginError>>;

/// The search for a manifest whose head is known.
struct Search<'a> {
    shared: &'a Shared,
    target: &'a Target,
    url: &'a Url,
    head: ManifestHead,
    key: ContentKey,
    plan: ManifestPlan,
    stewards: Stewards,
    peers: JoinSet<(PeerId, Option<Manifest>)>,
    at_a_time: Arc<Semaphore>,
    origin: Option<FromOrigin<'a>>,
    /// What the origin said, when it was no manifest.
    refused: Result<Option<Found>, OriginError>,
}

impl<'a> Search<'a> {
    fn new(
        shared: &'a Shared,
        target: &'a Target,
        url: &'a Url,
        head: ManifestHead,
        setup: ManifestSetup,
    ) -> Self {
        let key = head.content_key();
        Self {
            shared,
            target,
            url,
            head,
            key,
            plan: ManifestPlan::new(now(), setup),
            stewards: Stewards::new(),
            peers: JoinSet::new(),
            at_a_time: Arc::new(Semaphore::new(MANIFESTS_AT_A_TIME)),
            origin: None,
            refused: Ok(None),
        }
    }

    async fn run(mut self) -> Result<Option<Found>, OriginError> {
        let mut members = self.shared.members.clone();
        loop {
            self.act();
            if self.plan.is_stuck() {
                return self.refused;
            }
            let deadline = self.plan.next_deadline();
            let until = deadline.map_or_else(far_future, |deadline| Instant::from_std(deadline.at));
            tokio::select! {
                word = self.stewards.next() => self.hear_steward(word),
                Some(end) = self.peers.join_next() => match end {
                    Ok((_, Some(manifest))) => return Ok(Some(self.found(manifest))),
                    Ok((peer, None)) => self.plan.handle_peer_failed(now(), peer),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                answer = some(&mut self.origin) => {
                    self.origin = None;
                    match answer {
                        Ok(Some(Found::Manifest { manifest, .. })) => {
                            return Ok(Some(self.found(*manifest)));
                        }
                        no_manifest @ (Ok(Some(Found::Unusable(_)) | None) | Err(_)) => {
                            self.refused = no_manifest;
                            self.plan.handle_origin_failed(now());
                        }
                    }
                }
                Some(members) = changed(&mut members) => {
                    self.plan.handle_members(now(), &ids(&members));
                }
                () = sleep_until(until) => {
                    // What lies here already was in time.
                    while let Some(word) = self.stewards.try_next() {
                        self.hear_steward(word);
                    }
                    self.plan.handle_timeout(now());
                }
            }
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.plan.poll_action() {
            match action {
                ManifestAction::Enlist { steward, enlist } => {
                    self.stewards.enlist(self.shared, steward, enlist);
                }
                ManifestAction::Report { steward, report } => self.stewards.report(steward, report),
                ManifestAction::LeaveSteward { steward } => self.stewards.leave(steward),
                ManifestAction::AskPeer { peer } => self.ask(peer),
                ManifestAction::FetchFromOrigin => {
                    let head = self.head.clone();
                    self.origin = Some(rest(self.shared, self.target, self.url, head).boxed());
                }
            }
        }
    }

    fn hear_steward(&mut self, word: StewardWord) {
        match word {
            StewardWord::Answered {
                steward,
                mut answer,
            } => {
                retain_members(&mut answer, &self.shared.membership());
                self.plan.handle_answer(now(), steward, &answer);
            }
            StewardWord::Reached { steward } => {
                self.plan.handle_steward_reached(now(), steward);
            }
            StewardWord::Lost { steward } => self.plan.handle_steward_lost(now(), steward),
        }
    }

    /// Joins a member and asks for the manifest; what does not fit the head is none.
    fn ask(&mut self, peer: PeerId) {
        let addresses = self.shared.membership().exchange_addresses(&peer);
        let Some(exchange) = &self.shared.exchange else {
            return;
        };
        let join = exchange.join(peer, addresses, self.key);
        let (key, limit) = (self.key, limit_of(&self.head));
        let at_a_time = Arc::clone(&self.at_a_time);
        let patience = MANIFEST_TIME
            + Duration::from_millis(self.head.body_length() / (MANIFEST_BYTES_PER_SEC / 1000));
        self.peers.spawn(async move {
            let bytes = async {
                let session = join.await.ok()?;
                let _turn = at_a_time.acquire().await.ok()?;
                let sent = tokio::time::timeout(patience, session.manifest(limit));
                sent.await.ok()?.ok()?
            };
            let manifest = bytes
                .await
                .and_then(|bytes: Bytes| Manifest::decode(&bytes).ok());
            (
                peer,
                manifest.filter(|manifest| manifest.content_key() == key),
            )
        });
    }

    fn found(self, manifest: Manifest) -> Found {
        // Published anew meanwhile: another content, of which the steward knows nothing.
        let same = manifest.content_key() == self.key;
        let handover = same.then(|| {
            Box::new(Handover {
                stewards: self.stewards,
                enrolment: self.plan.into_enrolment(),
            })
        });
        Found::Manifest {
            manifest: Box::new(manifest),
            handover,
        }
    }
}

/// Peers that nobody has seen here cannot be reached, and a steward could invent any number of them.
pub(crate) fn retain_members(answer: &mut Answer, members: &Membership) {
    let is_here = |named: &SwarmPeer| members.member(&named.peer).is_some();
    answer.peers.retain(is_here);
}

/// The future's output; never, where there is none.
async fn some<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn limit_of(head: &ManifestHead) -> usize {
    usize::try_from(head.body_length())
        .unwrap_or(usize::MAX)
        .saturating_add(ManifestHead::LENGTH)
}
