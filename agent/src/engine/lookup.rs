//! What to believe about a file: the origin is asked what it has, and what describes it.
//!
//! In this order: a manifest the origin publishes; a digest known beforehand; the origin's own
//! connection. Peers can supply the body of a manifest whose head the origin sent, and the table
//! of a file whose digest is known: neither is believed before it is checked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use branchline_core::planner::OriginPace;
use branchline_discovery::Membership;
use branchline_exchange::Exchange;
use branchline_hashing::{ContentKey, Digest, Manifest, ManifestHead, SegmentingParameters};
use branchline_origin::{OriginError, Remote, Retries, RetryPolicy, Target, manifest_url};
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use url::Url;

use crate::api::GetRequest;
use crate::engine::Shared;
use crate::engine::error::{Difference, GetError};
use crate::engine::linux;
use crate::engine::manifest_search::{self, Found, Handover};

/// How long peers may take to send a manifest before the origin is asked for it: a LAN sends
/// 1 MiB in 10 ms, and a peer that cannot is no help anyway.
const PEER_MANIFEST_TIME: Duration = Duration::from_millis(500);

/// How long the origin may take to say anything where peers can deliver without it: several times
/// what a working line needs.
const ORIGIN_TIME_WITH_PEERS: Duration = Duration::from_secs(2);

/// Peers that send a manifest at the same time: the second is for when the first is slow. A 10 GiB
/// file has 12 MB of it.
const MANIFESTS_AT_A_TIME: usize = 2;

/// Peers that are asked whether they have one.
const PEERS_ASKED: usize = 64;

/// The longest table that is taken from strangers when nobody says how long the file is: that of
/// 460 GB in fixed segments.
const UNKNOWN_LENGTH_LIMIT_BYTES: u64 = 64 << 20;

/// The first question is given up sooner than a download that has begun: somebody waits to hear
/// that the address is wrong. At once, where peers can deliver without the origin.
fn at_first(others_may: bool) -> Retries {
    let policy = RetryPolicy {
        failures: if others_may { 1 } else { 5 },
        give_up_after: Duration::from_secs(30),
        ..RetryPolicy::default()
    };
    Retries::new(policy, linux::random)
}

/// What is known about a file before its bytes are fetched.
pub(crate) struct Known {
    /// What the origin said; or why it did not, when somebody else may still deliver.
    pub(crate) remote: Result<Remote, OriginError>,
    /// What describes it.
    pub(crate) manifest: Option<Arc<Manifest>>,
    /// Where the manifest is.
    pub(crate) manifest_url: Url,
    /// Digests the whole file must have: the user's, or else the origin's.
    pub(crate) digests: Vec<Digest>,
    /// How fast the origin is expected to be.
    pub(crate) pace: OriginPace,
    /// The relation with a steward that finding the manifest began.
    pub(crate) handover: Option<Handover>,
}

/// Asks the origin about `target`, and for its manifest at the same time. `again`: the file changed
/// after it was asked before, so HEAD may be what is wrong.
pub(crate) async fn ask(
    shared: &Shared,
    target: &Target,
    request: &GetRequest,
    again: bool,
) -> Result<Known, GetError> {
    let beside = manifest_url(target.url());
    let others_may = !users_digests(request).is_empty() && shared.membership().count() > 0;
    let (mut patience, mut patience_for_manifest) = (at_first(others_may), at_first(others_may));
    let probe = patience.run(|| async {
        let asked = Instant::now();
        let remote = match again {
            false => shared.origin.probe(target).await?,
            true => shared.origin.probe_by_get(target).await?,
        };
        Ok((remote, manifest_search::pace_of(asked.elapsed())))
    });
    let early = async {
        if request.without_manifest {
            return Ok(None);
        }
        patience_for_manifest
            .run(|| manifest_search::fetch(shared, target, &beside))
            .await
    };
    let (remote, manifest) = tokio::join!(
        in_time(target, others_may, probe),
        in_time(target, others_may, early)
    );
    let mut digests = users_digests(request);
    let pace = remote
        .as_ref()
        .map_or_else(|_| OriginPace::default(), |(_, pace)| *pace);
    let remote = match remote {
        Ok((remote, _)) => Ok(remote),
        Err(error) if peers_may_do(&error) && !digests.is_empty() => Err(error),
        Err(error) => return Err(error.into()),
    };
    let (found, manifest_url) =
        linked_manifest(shared, target, request, &remote, manifest, beside).await?;
    let (manifest, handover) = found.unzip();
    if let Ok(remote) = &remote {
        if let Some(manifest) = &manifest {
            check_belongs(manifest, remote, target, &manifest_url)?;
        } else if digests.is_empty() {
            digests.clone_from(&remote.digests);
        }
    }
    if let Some(manifest) = &manifest {
        check_digests(manifest, &digests, target, &manifest_url)?;
    }
    Ok(Known {
        remote,
        manifest: manifest.map(Arc::new),
        manifest_url,
        digests,
        pace,
        handover: handover.flatten(),
    })
}

/// Bounds the wait for an origin that others can stand in for.
async fn in_time<T>(
    target: &Target,
    others_may: bool,
    answer: impl Future<Output = Result<T, OriginError>>,
) -> Result<T, OriginError> {
    if !others_may {
        return answer.await;
    }
    let in_time = tokio::time::timeout(ORIGIN_TIME_WITH_PEERS, answer).await;
    in_time.unwrap_or_else(|_| {
        let (at, after) = (target.place(), ORIGIN_TIME_WITH_PEERS);
        Err(OriginError::Stalled {
            at,
            offset: 0,
            after,
        })
    })
}

/// A `Link` header that names another place counts before the file beside.
async fn linked_manifest(
    shared: &Shared,
    target: &Target,
    request: &GetRequest,
    remote: &Result<Remote, OriginError>,
    early: Result<Option<Found>, OriginError>,
    beside: Url,
) -> Result<(Option<(Manifest, Option<Handover>)>, Url), GetError> {
    let link = remote
        .as_ref()
        .ok()
        .and_then(|remote| remote.manifest_link.clone());
    let (found, url) = match link.filter(|link| !request.without_manifest && *link != beside) {
        Some(link) => {
            let found = at_first(false)
                .run(|| manifest_search::fetch(shared, target, &link))
                .await?;
            (found, link)
        }
        None => match early {
            Ok(found) => (found, beside),
            // The manifest is a help, not a condition: without it the file still comes.
            Err(error) => {
                tracing::warn!(%error, "the manifest could not be asked for");
                (None, beside)
            }
        },
    };
    match found {
        None => Ok((None, url)),
        Some(Found::Manifest { manifest, handover }) => {
            Ok((Some((*manifest, handover.map(|handover| *handover))), url))
        }
        Some(Found::Unusable(error)) => Err(GetError::BadManifest {
            manifest: url,
            why: error.to_string(),
        }),
    }
}

fn users_digests(request: &GetRequest) -> Vec<Digest> {
    let sha256 = request.sha256.map(Digest::Sha256);
    sha256
        .into_iter()
        .chain(request.blake3.map(Digest::Blake3))
        .collect()
}

/// The origin decides who may have a file; a network that is down decides nothing.
fn peers_may_do(error: &OriginError) -> bool {
    match error {
        OriginError::Unavailable { .. }
        | OriginError::Network { .. }
        | OriginError::Stalled { .. }
        | OriginError::Truncated { .. } => true,
        OriginError::UnsupportedScheme { .. }
        | OriginError::Refused { .. }
        | OriginError::NotFound { .. }
        | OriginError::Overlong { .. }
        | OriginError::Changed { .. }
        | OriginError::CannotResume { .. }
        | OriginError::BadRange { .. }
        | OriginError::BadAnswer { .. }
        | OriginError::TooManyRedirects { .. } => false,
    }
}

fn check_belongs(
    manifest: &Manifest,
    remote: &Remote,
    target: &Target,
    manifest_url: &Url,
) -> Result<(), GetError> {
    let manifest_bytes = manifest.file_length();
    match remote.length() {
        Some(origin_bytes) if origin_bytes != manifest_bytes => Err(GetError::Stale {
            manifest: manifest_url.to_string(),
            url: target.url().to_string(),
            difference: Box::new(Difference::Length {
                manifest_bytes,
                origin_bytes,
            }),
        }),
        _ => Ok(()),
    }
}

fn check_digests(
    manifest: &Manifest,
    digests: &[Digest],
    target: &Target,
    manifest_url: &Url,
) -> Result<(), GetError> {
    let differs = digests.iter().find(|digest| match digest {
        Digest::Sha256(sha256) => manifest.states_sha256() && sha256 != manifest.sha256(),
        Digest::Blake3(_) => false,
    });
    match differs {
        None => Ok(()),
        Some(expected) => Err(GetError::Stale {
            manifest: manifest_url.to_string(),
            url: target.url().to_string(),
            difference: Box::new(Difference::Digest {
                expected: *expected,
            }),
        }),
    }
}

/// Manifests that peers are about to send.
struct PeerManifests(JoinSet<Option<Bytes>>);

/// Asks every member that holds `key` for its manifest.
fn manifests_of_peers(
    exchange: &Exchange,
    members: &Membership,
    key: ContentKey,
    limit_bytes: usize,
) -> PeerManifests {
    let mut asked = JoinSet::new();
    let at_a_time = Arc::new(Semaphore::new(MANIFESTS_AT_A_TIME));
    for member in members.members().values().take(PEERS_ASKED) {
        let join = exchange.join(member.peer_id, member.exchange_addresses.clone(), key);
        let at_a_time = Arc::clone(&at_a_time);
        asked.spawn(async move {
            let session = join.await.ok()?;
            let _turn = at_a_time.acquire().await.ok()?;
            session.manifest(limit_bytes).await.ok()?
        });
    }
    PeerManifests(asked)
}

impl PeerManifests {
    /// The one that most peers agree on. For tables nobody can check yet.
    async fn most_common(mut self, right: impl Fn(&Manifest) -> bool) -> Option<Manifest> {
        let mut found: Vec<(Bytes, usize)> = Vec::new();
        let collect = async {
            while let Some(end) = self.0.join_next().await {
                let Some(bytes) = end.ok().flatten() else {
                    continue;
                };
                match found.iter_mut().find(|(known, _)| *known == bytes) {
                    Some((_, votes)) => *votes += 1,
                    None => found.push((bytes, 1)),
                }
            }
        };
        // Whoever is late has no vote.
        let _ = tokio::time::timeout(PEER_MANIFEST_TIME, collect).await;
        found.sort_by_key(|(_, votes)| std::cmp::Reverse(*votes));
        let decoded = found
            .iter()
            .filter_map(|(bytes, _)| Manifest::decode(bytes).ok());
        decoded.into_iter().find(|manifest| right(manifest))
    }
}

/// The table of fixed segments that peers have for content with this digest: provisional until
/// the whole file matches.
pub(crate) async fn table_of_peers(
    shared: &Shared,
    digest: &Digest,
    length: Option<u64>,
) -> Option<Manifest> {
    let exchange = shared.exchange.as_ref()?;
    let key = ContentKey::of_digest(digest);
    let fixed = SegmentingParameters::FIXED;
    let limit = length.map_or(UNKNOWN_LENGTH_LIMIT_BYTES, |length| {
        let segments = length.div_ceil(u64::from(fixed.max()));
        ManifestHead::LENGTH as u64 + segments * 36 + 32
    });
    let asked = manifests_of_peers(
        exchange,
        &shared.membership(),
        key,
        usize::try_from(limit).unwrap_or(usize::MAX),
    );
    let right = |manifest: &Manifest| {
        manifest.parameters() == fixed
            && length.is_none_or(|length| length == manifest.file_length())
    };
    asked.most_common(right).await
}
