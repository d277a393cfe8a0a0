//! A running agent: the parts put together, served over the control socket, taken apart in order.
//!
//! The store's lock is the state directory's: it is taken first and given back last, so that two
//! processes never share a state directory.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use branchline_core::PeerId;
use branchline_discovery::{Discovery, DiscoveryConfig, Identity, Member, Membership, StaticPeer};
use branchline_exchange::{Exchange, ExchangeOptions, Listen, StewardSeat, UploadStats};
use branchline_origin::{Origin, OriginOptions};
use branchline_store::{ContentSummary, OpenError, Store, StoreOptions};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::{
    Backend, CacheEntry, DiscoveryStatus, Failure, FailureKind, FoundBy, GetEvent, GetRequest,
    PeerInfo, Status, StoreStatus, Trust,
};
use crate::config::Config;
use crate::control::{self, ControlPort, ControlSocket, Doors};
use crate::engine::{self, Engine, Errand, Parts};
use crate::jobs::{self, DeskTask, JobDesk};
use crate::owner::Owner;

/// How long a download without an agent waits for the first neighbour to answer: mDNS was measured
/// at 0.14 s for sixteen hosts.
const FIRST_PEER_TIME: Duration = Duration::from_millis(400);

/// And then for others: they answer at the same moment, give or take their scheduling.
const OTHER_PEERS_TIME: Duration = Duration::from_millis(60);

/// A running agent.
pub struct Running {
    engine: Engine,
    discovery: Option<Discovery>,
    peer_id: PeerId,
    exchange_port: u16,
    state_dir: PathBuf,
    mdns: bool,
    started: Instant,
}

/// Between the end of an agent whose journal takes no more writes and its new beginning.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// What answers may take to be finished before that.
const LAST_ANSWERS_TIME: Duration = Duration::from_secs(3);

/// Runs an agent until `stop` is cancelled; `ready` is called once it serves. When its journal takes no more writes, all is
/// closed and opened anew as after a crash, for what a failed write left is known only then.
///
/// # Errors
/// [`Failure`] when it cannot start, with nothing left running.
pub async fn run(
    config: Config,
    state_dir: &Path,
    stop: CancellationToken,
    ready: impl FnOnce(&Running),
) -> Result<(), Failure> {
    let mut ready = Some(ready);
    while let Ended::Broken(failure) = run_once(&config, state_dir, &stop, &mut ready).await? {
        tracing::warn!(%failure, "all is closed and opened anew");
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(REOPEN_AFTER) => {}
        }
    }
    Ok(())
}

/// Why an agent has ended in order.
enum Ended {
    Stopped,
    Broken(Failure),
}

async fn run_once(
    config: &Config,
    state_dir: &Path,
    stop: &CancellationToken,
    ready: &mut Option<impl FnOnce(&Running)>,
) -> Result<Ended, Failure> {
    let running = Arc::new(Running::start(config, state_dir).await?);
    let served = match running.open_desk(config).await {
        Ok((desk, mut task)) => {
            let served = match doors(config, state_dir) {
                Ok(doors) => {
                    if let Some(ready) = ready.take() {
                        ready(&running);
                    }
                    serve(doors, Arc::clone(&running), desk, &mut task, stop).await
                }
                Err(failure) => Err(failure),
            };
            task.shut_down().await;
            served
        }
        Err(failure) => Err(failure),
    };
    match (Arc::into_inner(running), served) {
        (Some(running), served) => {
            running.shut_down(false).await;
            served
        }
        // The store cannot be opened anew as long as it is open: whoever started this process starts another.
        (None, Ok(Ended::Broken(failure))) => Err(failure),
        (None, served) => {
            tracing::warn!("the control API is still in use; the process ends anyway");
            served
        }
    }
}

/// Makes the socket, and opens the port if there is to be one.
fn doors(config: &Config, state_dir: &Path) -> Result<Doors, Failure> {
    let port = config.control.listen;
    let is_root = rustix::process::geteuid().is_root();
    if let Some(address) = port.filter(|it| is_root && !(1..1024).contains(&it.port())) {
        let message = format!(
            "control port {address}: any user could listen there before root's agent does, and be sent its token; choose a port below 1024 for `control.listen`"
        );
        return Err(Failure::new(FailureKind::Usage, message));
    }
    Ok(Doors {
        port: port
            .map(|address| ControlPort::bind(address, state_dir))
            .transpose()?,
        socket: ControlSocket::bind(state_dir, is_root && config.control.other_users)?,
        other_users: config.control.other_users,
    })
}

/// Serves until it is to stop, or the desk has a journal that takes no more writes; answers are finished either way.
async fn serve(
    doors: Doors,
    running: Arc<Running>,
    desk: JobDesk,
    task: &mut DeskTask,
    stop: &CancellationToken,
) -> Result<Ended, Failure> {
    let stop = stop.child_token();
    let serving = control::serve(doors, running, Some(desk), stop.clone());
    let mut serving = std::pin::pin!(serving);
    let (served, ended) = tokio::select! {
        served = &mut serving => (served, Ended::Stopped),
        failure = task.broken() => {
            stop.cancel();
            // Some caller may never take his answer.
            let ended = tokio::time::timeout(LAST_ANSWERS_TIME, serving).await;
            (ended.unwrap_or(Ok(())), Ended::Broken(failure))
        }
    };
    let failed = |error| Failure::new(FailureKind::LocalDisk, format!("control socket: {error}"));
    served.map(|()| ended).map_err(failed)
}

/// One download by an engine in this process.
pub struct Here {
    events: mpsc::Receiver<GetEvent>,
    work: JoinHandle<()>,
}

/// Downloads one file without an agent.
///
/// # Panics
/// Outside a tokio runtime.
pub fn get_here(config: Config, state_dir: &Path, request: GetRequest) -> Here {
    let (out, events) = mpsc::channel(1);
    let state_dir = state_dir.to_owned();
    let work = tokio::spawn(async move {
        match Running::start(&config, &state_dir).await {
            Ok(running) => running.get_and_end(request, out).await,
            Err(failure) => {
                // Nobody listening is nobody to tell.
                let _ = out.send(GetEvent::Failed(failure)).await;
            }
        }
    });
    Here { events, work }
}

impl Here {
    /// What happens next; `None` after the last event. Cancel-safe.
    pub async fn next(&mut self) -> Option<GetEvent> {
        self.events.recv().await
    }

    /// Waits until the download's segments are in the store and everything is closed.
    pub async fn finish(self) {
        drop(self.events);
        if let Err(error) = self.work.await {
            tracing::warn!(%error, "the engine did not end well");
        }
    }
}

impl Running {
    async fn start(config: &Config, state_dir: &Path) -> Result<Self, Failure> {
        make_state_dir(state_dir)?;
        let store = open_store(config, state_dir).await?;
        let identity = Identity::load_or_create(&state_dir.join("identity"))
            .map_err(|error| Failure::new(FailureKind::LocalDisk, error))?;
        let (shelf, source) = engine::shelf(&store);
        let origin = Origin::new(&origin_options(config))
            .map_err(|error| Failure::new(FailureKind::Usage, error))?;
        let shared = config.discovery.enabled.then(|| {
            let (seat, events) = StewardSeat::new();
            let options = exchange_options(config);
            Exchange::start_with_seat(options, identity.clone(), source, seat)
                .map(|exchange| (exchange, events))
                .map_err(|error| Failure::new(FailureKind::Network, error))
        });
        let (exchange, seat) = shared.transpose()?.unzip();
        let exchange_port = exchange.as_ref().map_or(0, Exchange::port);
        let discovery = match exchange_port {
            0 => None,
            port => match start_discovery(config, &identity, port) {
                Ok(discovery) => Some(discovery),
                Err(failure) => {
                    // Its threads read from the store, which must be closed before the process ends.
                    if let Some(exchange) = exchange {
                        exchange.shut_down().await;
                    }
                    return Err(failure);
                }
            },
        };
        let members = discovery.as_ref().map_or_else(nobody, Discovery::members);
        let engine = Engine::start(Parts {
            me: identity.peer_id(),
            seat,
            origin,
            store,
            shelf,
            exchange,
            members,
        })
        .map_err(|error| Failure::new(FailureKind::LocalDisk, format!("engine: {error}")))?;
        Ok(Self {
            engine,
            discovery,
            peer_id: identity.peer_id(),
            exchange_port,
            state_dir: state_dir.to_owned(),
            mdns: config.discovery.enabled && config.discovery.mdns,
            started: Instant::now(),
        })
    }

    /// Takes up the jobs.
    async fn open_desk(&self, config: &Config) -> Result<(JobDesk, DeskTask), Failure> {
        let shared = self.engine.shared();
        JobDesk::open(jobs::Parts {
            config: config.jobs.0,
            state_dir: self.state_dir.clone(),
            store: shared.store.clone(),
            downloads: self.engine.downloads(),
            origin: shared.origin.clone(),
        })
        .await
    }

    /// Who this agent is.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    async fn get_and_end(self, request: GetRequest, out: mpsc::Sender<GetEvent>) {
        let cancelled = tokio::select! {
            () = self.pass_on(request, &out) => false,
            () = out.closed() => true,
        };
        // Whoever waits for the file has it now; the rest is for the next download.
        drop(out);
        self.shut_down(!cancelled).await;
    }

    async fn pass_on(&self, request: GetRequest, out: &mpsc::Sender<GetEvent>) {
        self.meet_peers().await;
        let mut events = self.engine.get(Errand::plain(request, Owner::Process));
        while let Some(event) = events.next().await {
            if out.send(event).await.is_err() {
                return;
            }
        }
    }

    async fn meet_peers(&self) {
        let Some(discovery) = &self.discovery else {
            return;
        };
        let mut members = discovery.members();
        let first = members.wait_for(|members| members.count() > 0);
        if matches!(
            tokio::time::timeout(FIRST_PEER_TIME, first).await,
            Ok(Ok(_))
        ) {
            tokio::time::sleep(OTHER_PEERS_TIME).await;
        }
    }

    /// Nobody finds this agent any more, then its downloads end, then its uploads, then the store.
    async fn shut_down(self, finish_caching: bool) {
        if let Some(discovery) = self.discovery {
            discovery.shut_down().await;
        }
        self.engine.shut_down(finish_caching).await;
    }

    fn membership(&self) -> Arc<Membership> {
        self.engine.shared().membership()
    }

    fn uploads(&self) -> UploadStats {
        self.engine
            .shared()
            .exchange
            .as_ref()
            .map(Exchange::upload_stats)
            .unwrap_or_default()
    }

    fn status_now(&self) -> Status {
        let stats = self.engine.shared().store.stats();
        Status {
            peer_id: self.peer_id,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state_dir: self.state_dir.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            peers: self.membership().count(),
            jobs: self.engine.running(),
            bytes: self.engine.counts(),
            store: StoreStatus {
                segments: stats.segments,
                bytes: stats.bytes,
                limit_bytes: stats.limit_bytes,
            },
            exchange_port: self.exchange_port,
            discovery: DiscoveryStatus {
                enabled: self.discovery.is_some(),
                mdns: self.mdns,
                port: self.discovery.as_ref().map_or(0, Discovery::port),
            },
        }
    }
}

impl Backend for Running {
    fn get(&self, uid: u32, request: GetRequest) -> BoxStream<'static, GetEvent> {
        self.engine.get(Errand::plain(request, Owner::of(uid)))
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, Failure>> {
        async { Ok(self.status_now()) }.boxed()
    }

    fn peers(&self) -> BoxFuture<'_, Result<Vec<PeerInfo>, Failure>> {
        async {
            let uploads = self.uploads();
            let from = self.engine.bytes_by_peer();
            let info = |member: &Member| {
                let peer = member.peer_id;
                let given = uploads.bytes_by_peer.get(&peer).copied().unwrap_or(0);
                peer_info(member, from.get(&peer).copied().unwrap_or(0), given)
            };
            Ok(self.membership().members().values().map(info).collect())
        }
        .boxed()
    }

    fn cache(&self) -> BoxFuture<'_, Result<Vec<CacheEntry>, Failure>> {
        async {
            let store = self.engine.shared().store.clone();
            let listed = tokio::task::spawn_blocking(move || list_cache(&store)).await;
            listed.unwrap_or_else(|error| {
                Err(Failure::new(
                    FailureKind::LocalDisk,
                    format!("cache list: {error}"),
                ))
            })
        }
        .boxed()
    }
}

fn peer_info(member: &Member, from_peer_bytes: u64, to_peer_bytes: u64) -> PeerInfo {
    let now = SystemTime::now();
    let since = |time: SystemTime| {
        now.duration_since(time)
            .map_or(0, |passed| passed.as_secs())
    };
    PeerInfo {
        peer_id: member.peer_id,
        addresses: member.exchange_addresses.clone(),
        found_by: match member.found_by {
            branchline_discovery::FoundBy::Mdns => FoundBy::Mdns,
            branchline_discovery::FoundBy::Static => FoundBy::Static,
            branchline_discovery::FoundBy::Kademlia => FoundBy::Kademlia,
            branchline_discovery::FoundBy::Inbound => FoundBy::Inbound,
        },
        version: Some(member.version.clone()),
        seconds_known: since(member.since),
        last_seen_seconds: since(member.last_seen),
        from_peer_bytes,
        to_peer_bytes,
    }
}

/// Blocks.
fn list_cache(store: &Store) -> Result<Vec<CacheEntry>, Failure> {
    let failed = |error| Failure::new(FailureKind::LocalDisk, format!("cache list: {error}"));
    let contents = store.contents().map_err(failed)?;
    Ok(contents
        .into_iter()
        .filter_map(|summary| cache_entry(store, summary))
        .collect())
}

fn cache_entry(store: &Store, summary: ContentSummary) -> Option<CacheEntry> {
    let (present, segments) = engine::segments_present(store, &summary.key)?;
    let ContentSummary {
        key,
        url,
        file_name,
        trust,
        length,
        last_used,
        ..
    } = summary;
    Some(CacheEntry {
        content: key,
        url: url.parse().ok(),
        file_name: (!file_name.is_empty()).then_some(file_name),
        bytes: length,
        segments: u64::from(segments),
        segments_present: u64::from(present),
        trust: match trust {
            branchline_store::Trust::Manifest => Trust::Manifest,
            branchline_store::Trust::Digest => Trust::Digest,
            branchline_store::Trust::Branch => Trust::Branch,
            branchline_store::Trust::Origin => Trust::Origin,
        },
        last_used_unix_seconds: last_used,
    })
}

/// A new state directory is its owner's alone, for it holds the identity. Where it is root's others may go through it to the
/// control socket, whose name they know; all else in it is closed to them. One that is there keeps its mode.
fn make_state_dir(dir: &Path) -> Result<(), Failure> {
    let for_all = rustix::process::geteuid().is_root();
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(if for_all { 0o711 } else { 0o700 })
        .create(dir);
    made.map_err(|error| {
        let message = format!(
            "state directory {}: {error}; choose another with --state-dir, or make it writable",
            dir.display()
        );
        Failure::new(FailureKind::LocalDisk, message)
    })
}

async fn open_store(config: &Config, state_dir: &Path) -> Result<Store, Failure> {
    let (dir, limit) = (state_dir.join("store"), config.store.limit);
    let file_system_bytes = engine::file_system_bytes(state_dir).unwrap_or(0);
    let options = StoreOptions::new(limit.bytes_of(file_system_bytes));
    let opened = tokio::task::spawn_blocking(move || Store::open(dir, options)).await;
    match opened {
        Ok(Ok(store)) => Ok(store),
        Ok(Err(error)) => Err(store_failure(&error)),
        Err(error) => Err(Failure::new(
            FailureKind::LocalDisk,
            format!("store: {error}"),
        )),
    }
}

fn store_failure(error: &OpenError) -> Failure {
    let kind = match error {
        OpenError::InUse { .. } => FailureKind::AgentUnreachable,
        OpenError::OtherOwner { .. }
        | OpenError::OtherFormat { .. }
        | OpenError::Io { .. }
        | OpenError::Index { .. } => FailureKind::LocalDisk,
    };
    Failure::new(kind, error)
}

fn origin_options(config: &Config) -> OriginOptions {
    OriginOptions {
        connect_timeout: config.origin.connect_timeout,
        stall_timeout: config.origin.stall_timeout,
        ca_file: config.origin.ca_file.clone(),
        ..OriginOptions::default()
    }
}

fn exchange_options(config: &Config) -> ExchangeOptions {
    let (listen, port) = (config.exchange.listen, config.exchange.port);
    ExchangeOptions {
        listen: match listen.is_unspecified() && listen.is_ipv6() {
            true => Listen::Everywhere { port },
            false => Listen::On((listen, port).into()),
        },
        max_uploads: usize::from(config.exchange.max_uploads.get()),
        ..ExchangeOptions::default()
    }
}

fn start_discovery(
    config: &Config,
    identity: &Identity,
    exchange_port: u16,
) -> Result<Discovery, Failure> {
    Discovery::start(discovery_config(config)?, identity, exchange_port)
        .map_err(|error| Failure::new(FailureKind::Network, error))
}

fn discovery_config(config: &Config) -> Result<DiscoveryConfig, Failure> {
    let discovery = &config.discovery;
    let parse = |peer: &crate::config::HostPort| {
        let parsed: Result<StaticPeer, _> = peer.to_string().parse();
        parsed.map_err(|error| Failure::new(FailureKind::Usage, error))
    };
    Ok(DiscoveryConfig {
        mdns: discovery.mdns,
        kademlia: discovery.kademlia,
        interfaces: discovery.interfaces.clone(),
        static_peers: discovery
            .static_peers
            .iter()
            .map(parse)
            .collect::<Result<_, _>>()?,
        listen_port: discovery.port,
    })
}

/// The membership of an agent that looks for nobody.
fn nobody() -> watch::Receiver<Arc<Membership>> {
    watch::channel(Arc::new(Membership::default())).1
}
