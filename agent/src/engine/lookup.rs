//! What to believe about a file: the origin is asked what it has, and what describes it.
//!
//! In this order: a manifest the origin publishes; a digest known beforehand; the origin's own
//! connection. Peers can supply the body of a manifest whose head the origin sent: it is not believed
//! before it is checked.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use branchline_core::planner::OriginPace;
use branchline_core::swarm::{is_warm, warms};
use branchline_hashing::{Digest, Manifest};
use branchline_origin::{
    BusyPolicy, OriginError, Remote, Retries, RetryPolicy, Target, manifest_url,
};
use url::Url;

use crate::api::GetRequest;
use crate::engine::Shared;
use crate::engine::error::{Difference, GetError};
use crate::engine::linux;
use crate::engine::manifest_search::{self, Found, Handover};
use crate::engine::progress::Meter;

/// How long the origin may take to say anything where peers can deliver without it: several times
/// what a working line needs.
const ORIGIN_TIME_WITH_PEERS: Duration = Duration::from_secs(2);

/// Who asks a busy origin again waits so long at first for each member it knows: all together ask a few hundred times a second at
/// most.
const BUSY_TIME_PER_MEMBER: Duration = Duration::from_millis(10);

/// An origin that gives what it says of the file, and refuses the manifest so often, has no room for that at any time.
const MANIFEST_REFUSED_ALONE: u32 = 5;

/// The first question is given up sooner than a download that has begun: somebody waits to hear that the address is wrong; and at
/// once where peers can deliver without the origin. A busy origin has said that the address is right, and may be busy with what
/// others of the branch fetch, so in company it is asked for longer.
fn at_first(shared: &Shared, others_may: bool) -> Retries {
    let give_up_after = Duration::from_secs(30);
    let mut busy = BusyPolicy::default();
    let members = u32::try_from(shared.membership().count()).unwrap_or(u32::MAX);
    let for_members = BUSY_TIME_PER_MEMBER.saturating_mul(members);
    busy.waits.min = busy.waits.min.max(for_members);
    if members == 0 {
        busy.give_up_after = give_up_after;
    }
    let policy = RetryPolicy {
        failures: if others_may { 1 } else { 5 },
        give_up_after,
        when_busy: (!others_may).then_some(busy),
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
    /// When connections to the others were begun, if they were.
    pub(crate) warmed: Option<Instant>,
    /// The relation with a steward that finding the manifest began.
    pub(crate) handover: Option<Handover>,
}

/// Asks the origin alone what the file is.
pub(crate) async fn remote(shared: &Shared, target: &Target) -> Result<Remote, OriginError> {
    at_first(shared, false)
        .run(|| shared.origin.probe(target), |_| {})
        .await
}

/// Asks the origin about `target`, and for its manifest at the same time. `again`: the file changed
/// after it was asked before, so HEAD may be what is wrong.
pub(crate) async fn ask(
    shared: &Shared,
    target: &Target,
    request: &GetRequest,
    again: bool,
    meter: &mut Meter,
) -> Result<Known, GetError> {
    let beside = manifest_url(target.url());
    let others_may = !users_digests(request).is_empty() && shared.membership().count() > 0;
    let may_share = !request.without_manifest || !users_digests(request).is_empty();
    let warmed = may_share.then(|| warm(shared)).flatten();
    let question = Question {
        shared,
        target,
        others_may,
        meter: Mutex::new(meter),
        answered: AtomicBool::new(false),
    };
    question.tell("the origin to answer");
    let early = async {
        if request.without_manifest {
            return Ok(None);
        }
        question.manifest(&beside, warmed).await
    };
    let (remote, manifest) = tokio::join!(
        in_time(target, others_may, question.remote(again)),
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
        linked_manifest(&question, request, &remote, manifest, beside).await?;
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
        warmed,
        handover: handover.flatten(),
    })
}

/// What is asked, and for whom.
struct Question<'a> {
    shared: &'a Shared,
    target: &'a Target,
    /// Whether peers can deliver without the origin.
    others_may: bool,
    meter: Mutex<&'a mut Meter>,
    /// Whether the origin has said something of the file.
    answered: AtomicBool,
}

impl Question<'_> {
    fn tell(&self, waiting_for: &str) {
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.report(0, waiting_for);
    }

    async fn run<T, F>(&self, operation: impl FnMut() -> F) -> Result<T, OriginError>
    where
        F: Future<Output = Result<T, OriginError>>,
    {
        let waits = |wait: Duration| {
            let seconds = wait.as_secs_f64();
            self.tell(&format!(
                "the origin, which could not answer, to be asked again in {seconds:.1} s"
            ));
        };
        at_first(self.shared, self.others_may)
            .run(operation, waits)
            .await
    }

    /// What the origin says of the file, and how fast.
    async fn remote(&self, again: bool) -> Result<(Remote, OriginPace), OriginError> {
        let origin = &self.shared.origin;
        self.run(|| async {
            let asked = Instant::now();
            let remote = match again {
                false => origin.probe(self.target).await?,
                true => origin.probe_by_get(self.target).await?,
            };
            self.answered.store(true, Ordering::Relaxed);
            Ok((remote, manifest_search::pace_of(asked.elapsed())))
        })
        .await
    }

    /// The manifest at `url`.
    async fn manifest(
        &self,
        url: &Url,
        warmed: Option<Instant>,
    ) -> Result<Option<Found>, OriginError> {
        let alone = AtomicU32::new(0);
        self.run(|| async {
            let found = manifest_search::fetch(self.shared, self.target, url, warmed).await;
            let Some(error) = found.as_ref().err().filter(|error| error.is_busy()) else {
                return found;
            };
            // Has it no room, or none for this?
            if self.answered.load(Ordering::Relaxed)
                && self.shared.origin.probe(self.target).await.is_ok()
                && alone.fetch_add(1, Ordering::Relaxed) + 1 >= MANIFEST_REFUSED_ALONE
            {
                tracing::warn!(%error, "the manifest is refused, the file is not: it is fetched without");
                return Ok(None);
            }
            found
        })
        .await
    }
}

/// Begins connections to the others of a small branch, which are there when the origin has answered; and when that was.
fn warm(shared: &Shared) -> Option<Instant> {
    let membership = shared.membership();
    let exchange = shared.exchange.as_ref();
    let exchange = exchange.filter(|_| warms(membership.count()))?;
    for peer in membership.members().keys() {
        exchange.warm(*peer, membership.exchange_addresses(peer));
    }
    Some(Instant::now())
}

/// Whether who lives of the others has been reached by now.
pub(crate) fn are_warm(warmed: Option<Instant>) -> bool {
    warmed.is_some_and(|begun| is_warm(begun.elapsed()))
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
    question: &Question<'_>,
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
        Some(link) => (question.manifest(&link, None).await?, link),
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

/// Digests that the user says the file has.
pub(crate) fn users_digests(request: &GetRequest) -> Vec<Digest> {
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
