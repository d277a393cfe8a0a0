//! One download from request to report.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use branchline_core::{PeerId, SegmentSet};
use branchline_hashing::{ContentKey, Digest, FixedSegments, Manifest};
use branchline_origin::{OriginError, ProxyChoice, Retry, Target};

use crate::api::{GetReport, GetRequest, Trust, without_password};
use crate::engine::at_home::Here;
use crate::engine::content::LocalContent;
use crate::engine::error::{Difference, GetError};
use crate::engine::ingest::Job;
use crate::engine::lookup::{self, Known};
use crate::engine::manifest_search::Handover;
use crate::engine::partial::{Partial, PartialError};
use crate::engine::parts::{Delivered, Part, Parts};
use crate::engine::plain::{self, Plain};
use crate::engine::planned::{Filling, Planned, PlannedError};
use crate::engine::progress::Meter;
use crate::engine::provisional::ProvisionalContent;
use crate::engine::serving::{Local, OnShelf};
use crate::engine::stewards::Stewards;
use crate::engine::turns::Turn;
use crate::engine::undescribed::{Ended, Undescribed, UndescribedError};
use crate::engine::ways::{self, Distrusted, Table, TableMaker, Way};
use crate::engine::{Shared, blocking};
use crate::owner::Owner;

/// A file that changes while it is fetched is started anew so often.
const ATTEMPTS: u32 = 4;

/// A download that waits for another one of the same content goes on by itself when that one has brought
/// nothing for so long: as long as a planner waits for others at most.
const TURN_PATIENCE: Duration = Duration::from_secs(2);

/// Segments copied from the store between two words to the user.
const COPY_SEGMENTS: usize = 512;

/// Downloads one file. Dropping it stops at the next await; what is written stays.
pub(super) async fn run(
    shared: &Shared,
    errand: &Errand,
    meter: &mut Meter,
) -> Result<GetReport, GetError> {
    let started = Instant::now();
    let request = &errand.request;
    let target = errand.target()?;
    let (path, owner) = (errand.appears_at.clone(), errand.owner);
    let partial = Arc::new(blocking(move || Partial::open(&path, owner)).await?);
    let download = Download {
        shared,
        request,
        target,
        partial,
    };
    let delivered = match errand.parts.as_slice() {
        [] => download.until_it_stands_still(meter).await?,
        wanted => {
            let parts = Parts {
                shared,
                partial: &download.partial,
                target: &download.target,
                wanted,
                digests: &lookup::users_digests(request),
            };
            parts.run(meter).await?
        }
    };
    let progress = meter.progress();
    Ok(GetReport {
        url: without_password(&request.url),
        path: request.path.clone(),
        bytes: delivered.bytes,
        from_origin: progress.from_origin,
        from_peers: progress.from_peers,
        from_store: progress.from_store,
        seconds: started.elapsed().as_secs_f64(),
        content: delivered.key,
        trust: delivered.trust,
        notices: meter.notices().to_vec(),
        job: None,
    })
}

/// What is downloaded, for whom, and where it appears.
#[derive(Debug, Clone)]
pub(crate) struct Errand {
    /// What; its path is the name that people know.
    pub(crate) request: GetRequest,
    /// The name that the complete file gets: the same, or a hidden one beside it.
    pub(crate) appears_at: PathBuf,
    /// With whose rights.
    pub(crate) owner: Owner,
    /// User and password at the origin.
    pub(crate) login: Option<Login>,
    /// The proxy to the origin, where it is another than the agent's own.
    pub(crate) proxy: Option<ProxyChoice>,
    /// Which bytes of the file, one range after the other; all when none are named.
    pub(crate) parts: Vec<Part>,
}

/// A user at an origin. Its `Debug` shows no password.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login { .. }")
    }
}

impl Errand {
    /// For whoever runs the agent, to its name at once.
    pub(crate) fn plain(request: GetRequest, owner: Owner) -> Self {
        Self {
            appears_at: request.path.clone(),
            request,
            owner,
            login: None,
            proxy: None,
            parts: Vec::new(),
        }
    }

    fn target(&self) -> Result<Target, GetError> {
        let target = Target::new(self.request.url.as_str(), self.request.headers.clone())?;
        let target = match &self.login {
            Some(Login { user, password }) => target.with_login(user.clone(), password.clone()),
            None => target,
        };
        let target = match &self.proxy {
            Some(proxy) => target.through(proxy.clone())?,
            None => target,
        };
        Ok(match self.owner {
            Owner::Process => target,
            Owner::User(_) => target.without_netrc(),
        })
    }
}

struct Download<'a> {
    shared: &'a Shared,
    request: &'a GetRequest,
    target: Target,
    partial: Arc<Partial>,
}

/// All segments are in the partial file.
struct Complete {
    content: Arc<LocalContent>,
    on_shelf: Vec<OnShelf>,
    /// Until the file has its name: whoever has the next turn copies from there.
    _turn: Option<Turn>,
    /// Until the content is announced: stewards count what is held here as long as these last.
    _stewards: Option<Stewards>,
}

/// Why an attempt did not end with the file.
enum Attempt {
    /// The file changed: ask again what it is.
    Again(OriginError),
    Failed(GetError),
}

impl<E: Into<GetError>> From<E> for Attempt {
    fn from(error: E) -> Self {
        let error = error.into();
        if let GetError::Origin(origin) = &error
            && origin.retry() == Retry::StartAnew
        {
            return Self::Again(origin.clone());
        }
        Self::Failed(error)
    }
}

impl Download<'_> {
    async fn until_it_stands_still(&self, meter: &mut Meter) -> Result<Delivered, GetError> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match self.attempt(last.is_some(), meter).await {
                Ok(complete) => return self.deliver(complete).await,
                Err(Attempt::Failed(error)) => return Err(error),
                Err(Attempt::Again(error)) => {
                    meter.notice(error.to_string()).await;
                    last = Some(error);
                }
            }
        }
        let url = self.target.url().clone();
        Err(match last {
            Some(OriginError::Changed { now, .. }) => GetError::KeepsChanging { url, version: now },
            Some(error) => error.into(),
            None => GetError::Cancelled,
        })
    }

    async fn attempt(&self, again: bool, meter: &mut Meter) -> Result<Complete, Attempt> {
        let asked = lookup::ask(self.shared, &self.target, self.request, again, meter);
        let mut known = asked.await?;
        let mut handover = known.handover.take();
        let mut distrusted = Distrusted::default();
        let mut way = ways::choose(self.shared, &known, &distrusted).await;
        loop {
            let table = match way {
                Way::Table(table) => table,
                Way::Plain => return self.plain(known, meter).await,
                Way::Undescribed { key, segments } => {
                    let (turn, _) = self.turn(key, meter).await;
                    if turn.is_none() && known.remote.is_ok() {
                        // This machine is a member of the swarm already; the origin is left.
                        return self.plain(known, meter).await;
                    }
                    if distrusted.takes_own_tables()
                        && let Some(manifest) = ways::kept(self.shared, key).await
                    {
                        // Another download here was through with it meanwhile.
                        way = Way::Table(Table::of_this_machine(key, manifest));
                        continue;
                    }
                    let undescribed = self.undescribed(&known, key, segments);
                    match undescribed.run(&mut distrusted, meter).await {
                        Ok(Ended::Whole {
                            table,
                            on_shelf,
                            stewards,
                        }) => {
                            let shared = Some((turn, stewards));
                            return Ok(self.described(key, table, on_shelf, shared)?);
                        }
                        Ok(Ended::TableOfPeers { table, came }) => {
                            Table::of_peers(key, table, Some(came))
                        }
                        Err(error) => return Err(self.explained_undescribed(error, &known).await),
                    }
                }
            };
            let (made_by, key) = (table.made_by.clone(), table.key);
            let (shut_out, handover) = (&distrusted.peers, handover.take());
            match self
                .by_table(&known, table, shut_out, handover, meter)
                .await?
            {
                Some(complete) => return Ok(complete),
                None => self.refute(key, made_by, &mut distrusted).await?,
            }
            way = ways::choose(self.shared, &known, &distrusted).await;
        }
    }

    /// Fetches the file by a table; `None` when that turned out to be of another file, and somebody
    /// made it who may be wrong.
    async fn by_table(
        &self,
        known: &Known,
        mut table: Table,
        shut_out: &BTreeSet<PeerId>,
        handover: Option<Handover>,
        meter: &mut Meter,
    ) -> Result<Option<Complete>, Attempt> {
        let refutable = table.made_by != TableMaker::Publisher;
        let came = table.came.take();
        let before = came.as_ref().map(|came| &*came.content);
        let planned = self.planned(known, table, before, shut_out, handover, meter);
        let complete = match planned.await {
            Ok(complete) => complete,
            // Nobody lied but the table: with the origin's word it is a wrong one.
            Err(PlannedError::OriginMismatch { .. }) if refutable => return Ok(None),
            Err(error) => return Err(self.explained(error, known).await),
        };
        match self.first_wrong_digest(&known.digests, &complete).await? {
            None => {
                complete.content.mark_proved();
                if let Some(came) = came {
                    came.name_wrong(&complete.content.manifest);
                }
                Ok(Some(complete))
            }
            Some(_) if refutable => Ok(None),
            Some(expected) => Err(Attempt::Failed(GetError::Stale {
                manifest: known.manifest_url.to_string(),
                url: self.target.url().to_string(),
                difference: Box::new(Difference::Digest { expected }),
            })),
        }
    }

    /// A table was wrong: what came by it is thrown away, and those who made it are not believed again.
    async fn refute(
        &self,
        key: ContentKey,
        made_by: TableMaker,
        distrusted: &mut Distrusted,
    ) -> Result<(), GetError> {
        tracing::warn!(swarm = %key.swarm_id(), "a table described another file than the digest or the origin says");
        distrusted.refute(made_by);
        let (partial, store) = (Arc::clone(&self.partial), self.shared.store.clone());
        let forgotten = blocking(move || {
            if let Err(error) = store.remove_content(&key) {
                tracing::warn!(%error, "a wrong table could not be removed from the store");
            }
            partial.discard()
        });
        Ok(forgotten.await?)
    }

    fn undescribed<'a>(
        &'a self,
        known: &'a Known,
        key: ContentKey,
        segments: FixedSegments,
    ) -> Undescribed<'a> {
        Undescribed {
            shared: self.shared,
            partial: &self.partial,
            target: &self.target,
            remote: known.remote.as_ref().ok(),
            key,
            digests: &known.digests,
            segments,
            pace: known.pace,
            warmed: known.warmed,
        }
    }

    /// The whole file is there and has its digest: from now on this machine has a table to give. What others
    /// took as provisional they can go on taking.
    fn described(
        &self,
        key: ContentKey,
        table: Manifest,
        provisional: Vec<OnShelf>,
        shared: Option<(Option<Turn>, Stewards)>,
    ) -> Result<Complete, PartialError> {
        let mut complete = self.complete(key, table, Trust::Digest, shared)?;
        complete.on_shelf.extend(provisional);
        Ok(complete)
    }

    /// The whole file is there and right.
    fn complete(
        &self,
        key: ContentKey,
        table: Manifest,
        trust: Trust,
        shared: Option<(Option<Turn>, Stewards)>,
    ) -> Result<Complete, PartialError> {
        let done = SegmentSet::full(table.segment_count());
        let file = self.partial.reader()?;
        let content = LocalContent::new(key, Arc::new(table), trust, done, file);
        content.mark_proved();
        let content = Arc::new(content);
        let on_shelf = self
            .shared
            .shelf
            .put(Local::Described(Arc::clone(&content)));
        let (turn, stewards) = shared.unzip();
        Ok(Complete {
            content,
            on_shelf: vec![on_shelf],
            _turn: turn.flatten(),
            _stewards: stewards,
        })
    }

    /// Fetches what is missing, segment by segment.
    async fn planned(
        &self,
        known: &Known,
        table: Table,
        before: Option<&ProvisionalContent>,
        shut_out: &BTreeSet<PeerId>,
        handover: Option<Handover>,
        meter: &mut Meter,
    ) -> Result<Complete, PlannedError> {
        let Table {
            key,
            manifest,
            trust,
            peers,
            made_by,
            came: _,
        } = table;
        let partial = Arc::clone(&self.partial);
        let described = Arc::clone(&manifest);
        let present = blocking(move || {
            partial.forget_note()?;
            partial.reserve(described.file_length())?;
            partial.present(&described)
        });
        let present = present.await?;
        let (turn, waited) = self.turn(key, meter).await;
        // After a wait the steward that was asked for the manifest has other members to think of.
        let handover = handover.filter(|_| !waited);
        // Without the turn this machine is a member of the swarm already: another word of it would end that
        // one's. The origin is left, where it can be asked.
        let peers = peers && (turn.is_some() || known.remote.is_err());
        meter.start(Some(manifest.file_length()));
        match before {
            Some(before) => meter.recount(before.sources_of(&present)),
            None => meter.count_local(bytes_of(&manifest, &present)),
        }
        let _hold = self
            .shared
            .store
            .hold(manifest.segments().map(|segment| segment.hash));
        let here = Here {
            store: self.shared.store.clone(),
            local: self.shared.shelf.find(key),
        };
        let present = self.copy(here, &manifest, present, meter).await?;
        let file = self.partial.reader()?;
        let content = LocalContent::new(key, manifest, trust, present, file);
        if !matches!(made_by, TableMaker::Peers(_)) {
            content.mark_proved();
        }
        let content = Arc::new(content);
        let on_shelf = self
            .shared
            .shelf
            .put(Local::Described(Arc::clone(&content)));
        let planned = Planned {
            shared: self.shared,
            filling: Filling::Described(&content),
            partial: &self.partial,
            target: &self.target,
            remote: known.remote.as_ref().ok(),
            peers,
            shut_out,
            pace: known.pace,
            warmed: lookup::are_warm(known.warmed),
        };
        let stewards = planned.run(handover, meter).await?;
        Ok(Complete {
            content,
            on_shelf: vec![on_shelf],
            _turn: turn,
            _stewards: Some(stewards),
        })
    }

    /// Waits until no other download here fetches the same content, as long as that one brings something;
    /// and whether there was one.
    async fn turn(&self, key: ContentKey, meter: &mut Meter) -> (Option<Turn>, bool) {
        let waits = self.shared.turns.is_taken(key);
        if waits {
            meter.report(0, "another download of the same file on this machine");
        }
        let mut turn = std::pin::pin!(self.shared.turns.take(key));
        loop {
            let before = self.brought_here(key);
            tokio::select! {
                turn = &mut turn => return (Some(turn), waits),
                () = tokio::time::sleep(TURN_PATIENCE) => {
                    if self.brought_here(key) == before {
                        return (None, waits);
                    }
                }
            }
        }
    }

    /// How much of a content another download here has by now.
    fn brought_here(&self, key: ContentKey) -> Option<u32> {
        self.shared.shelf.segments_of(key)
    }

    /// Copies what this machine holds of the file, whatever it belonged to.
    async fn copy(
        &self,
        here: Here,
        manifest: &Arc<Manifest>,
        mut present: SegmentSet,
        meter: &mut Meter,
    ) -> Result<SegmentSet, PartialError> {
        let (asked, described) = (here.clone(), Arc::clone(manifest));
        let held = blocking(move || asked.holds(&described)).await;
        let wanted: Vec<_> = held
            .iter()
            .filter(|index| !present.contains(*index))
            .collect();
        for part in wanted.chunks(COPY_SEGMENTS) {
            let (here, described) = (here.clone(), Arc::clone(manifest));
            let (partial, part) = (Arc::clone(&self.partial), part.to_vec());
            let copied = blocking(move || here.copy(&described, &partial, &part)).await?;
            for index in copied {
                present.insert(index);
                meter.count_local(manifest.segment(index).map_or(0, |s| u64::from(s.length)));
            }
            meter.report(0, "this machine's store");
        }
        Ok(present)
    }

    /// Fetches the file as one stream from the origin.
    async fn plain(&self, known: Known, meter: &mut Meter) -> Result<Complete, Attempt> {
        let remote = known.remote?;
        let digests = known.digests;
        if digests.is_empty() && self.shared.membership().count() > 0 {
            let notice = format!(
                "{}: no manifest and no digest says what the file must be, so peers were not asked; publish it with `branchline publish`, or give --sha256",
                self.target.url()
            );
            meter.notice(notice).await;
        }
        meter.start(remote.length());
        let plain = Plain {
            shared: self.shared,
            partial: &self.partial,
            target: &self.target,
            remote: &remote,
            digests: &digests,
            parts: &[],
        };
        let manifest = plain.run(meter).await;
        let manifest = manifest.map_err(|error| error.of(&self.target))?;
        let (key, trust) = match digests.first() {
            Some(digest) => (ContentKey::of_digest(digest), Trust::Digest),
            None => (
                plain::key_of_version(&remote, manifest.file_length()),
                Trust::Origin,
            ),
        };
        Ok(self.complete(key, manifest, trust, None)?)
    }

    /// Reads the whole file once more, if trust rests on its digest.
    async fn first_wrong_digest(
        &self,
        digests: &[Digest],
        complete: &Complete,
    ) -> Result<Option<Digest>, GetError> {
        if digests.is_empty() {
            return Ok(None);
        }
        let (partial, digests) = (Arc::clone(&self.partial), digests.to_vec());
        let length = complete.content.manifest.file_length();
        Ok(blocking(move || partial.first_wrong_digest(&digests, length)).await?)
    }

    async fn explained_undescribed(&self, error: UndescribedError, known: &Known) -> Attempt {
        match error {
            UndescribedError::Planned(error) => self.explained(error, known).await,
            UndescribedError::Local(error) => GetError::Local(error).into(),
            UndescribedError::WrongDigest { expected } => GetError::WrongDigest {
                url: self.target.url().clone(),
                expected,
            }
            .into(),
        }
    }

    /// A mismatch at the origin is a changed file, or else a manifest that does not belong to it.
    async fn explained(&self, error: PlannedError, known: &Known) -> Attempt {
        match error {
            PlannedError::Origin(error) => GetError::Origin(error).into(),
            PlannedError::Local(error) => GetError::Local(error).into(),
            PlannedError::NobodyHasIt => {
                let unreachable = known.remote.as_ref().err().cloned();
                let url = self.target.url().clone();
                unreachable
                    .map_or(GetError::NobodyHasIt { url }, GetError::Origin)
                    .into()
            }
            PlannedError::OriginMismatch { index, mismatch } => {
                if let Some(changed) = self.changed_since(known).await {
                    return Attempt::Again(changed);
                }
                let segment = known
                    .manifest
                    .as_ref()
                    .and_then(|manifest| manifest.segment(index));
                let offset = segment.map_or(0, |segment| segment.offset);
                Attempt::Failed(GetError::Stale {
                    manifest: known.manifest_url.to_string(),
                    url: self.target.url().to_string(),
                    difference: Box::new(Difference::Segment {
                        index,
                        offset,
                        mismatch,
                    }),
                })
            }
        }
    }

    /// The change, if the origin has another version now than when it was asked first.
    async fn changed_since(&self, known: &Known) -> Option<OriginError> {
        let was = &known.remote.as_ref().ok()?.version;
        let now = self
            .shared
            .origin
            .probe_by_get(&self.target)
            .await
            .ok()?
            .version;
        was.differs(&now).then(|| {
            let at = self.target.place();
            OriginError::Changed {
                at,
                was: Box::new(was.clone()),
                now: Box::new(now),
            }
        })
    }

    /// Gives the file its name, and its segments to the store.
    async fn deliver(&self, complete: Complete) -> Result<Delivered, GetError> {
        let Complete {
            content,
            on_shelf,
            _turn,
            _stewards,
        } = complete;
        let shared_as = content.is_shared().then(|| content.key.swarm_id());
        let job = Job::new(
            Arc::clone(&content),
            on_shelf,
            &self.request.url,
            &self.request.path,
        );
        let (partial, caching) = (Arc::clone(&self.partial), self.shared.ingest.queue());
        let (length, held) = (content.manifest.file_length(), self.shared.held.clone());
        // Once begun it is done whole, even if nobody waits for it any more.
        blocking(move || {
            partial.finish(length)?;
            // Before the thread that stores it can say that it did not.
            shared_as.into_iter().for_each(|swarm| held.add(swarm));
            caching.add(job);
            Ok::<_, PartialError>(())
        })
        .await?;
        Ok(Delivered {
            bytes: length,
            key: content.key,
            trust: content.trust,
        })
    }
}

fn bytes_of(manifest: &Manifest, set: &SegmentSet) -> u64 {
    let lengths = set.iter().filter_map(|index| manifest.segment(index));
    lengths.map(|segment| u64::from(segment.length)).sum()
}
