//! Contents in memory, exchanges on loopback, and raw QUIC peers that do as a test likes.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::wildcard_enum_match_arm
)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use branchline_core::planner::TELL_EVERY;
use branchline_core::repair::Claim;
use branchline_core::wire::{ALPN, EXPORTER_LABEL, Standing};
use branchline_core::{PeerId, SegmentRange, SegmentSet};
use branchline_discovery::Identity;
use branchline_exchange::{
    ContentSource, Download, DownloadSpec, EventSink, Exchange, ExchangeOptions, Listen, PeerEvent,
    PeerEventKind, PeerFailure, PeerSession, SeatEvents, ServedContent, StewardSeat,
};
use branchline_hashing::{ContentKey, ProvisionalSegment, SegmentIndex, SwarmId, VerifiedSegment};
use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::sync::{mpsc, watch};

/// Far beyond what anything here takes; a test that runs into it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn identity() -> Identity {
    // In memory, where there is such a folder: an identity is synced to its disk.
    let memory = tempfile::tempdir_in("/dev/shm");
    let folder = memory.or_else(|_| tempfile::tempdir());
    let folder = folder.expect("a temporary folder");
    Identity::load_or_create(&folder.path().join("identity")).expect("an identity")
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

pub fn options() -> ExchangeOptions {
    ExchangeOptions {
        listen: Listen::On(loopback(0)),
        ..ExchangeOptions::default()
    }
}

pub fn range(first: u32, count: u32) -> SegmentRange {
    SegmentRange::new(SegmentIndex(first), count).expect("a range")
}

/// Waits for `future`, but not for ever.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it happens in time")
}

/// Waits until `condition` holds.
pub async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Lets reads pass one by one.
#[derive(Default)]
pub struct Gate {
    open: Mutex<bool>,
    wake: Condvar,
}

impl Gate {
    pub fn open(&self) {
        *self.open.lock().expect("no panic") = true;
        self.wake.notify_all();
    }

    fn pass(&self) {
        let mut open = self.open.lock().expect("no panic");
        while !*open {
            open = self.wake.wait(open).expect("no panic");
        }
    }
}

/// A content in memory.
pub struct Memory {
    pub key: ContentKey,
    pub all: Vec<Bytes>,
    pub have: Mutex<SegmentSet>,
    pub manifest: Option<Bytes>,
    pub gate: Option<Gate>,
    pub reads: AtomicUsize,
    /// How often it was asked what it has.
    pub looks: AtomicUsize,
    /// While it can still grow.
    pub changes: Mutex<Option<watch::Sender<u64>>>,
    pub tell_every: Mutex<Duration>,
    pub standing: Standing,
}

impl Memory {
    /// `segments` segments of 1 byte to about 100 KiB, the same for the same `name`.
    pub fn new(name: u8, segments: u32) -> Self {
        let all = (0..segments).map(|index| segment(name, index, index * 7919 % 100_000 + 1));
        Self::of(name, all.collect())
    }

    /// `segments` segments of `length` bytes.
    pub fn even(name: u8, segments: u32, length: u32) -> Self {
        Self::of(
            name,
            (0..segments)
                .map(|index| segment(name, index, length))
                .collect(),
        )
    }

    fn of(name: u8, all: Vec<Bytes>) -> Self {
        let size = u32::try_from(all.len()).expect("few");
        Self {
            key: ContentKey::from_bytes([name; 32]),
            all,
            have: Mutex::new(SegmentSet::full(size)),
            manifest: None,
            gate: None,
            reads: AtomicUsize::new(0),
            looks: AtomicUsize::new(0),
            changes: Mutex::default(),
            tell_every: Mutex::new(TELL_EVERY),
            standing: Standing::Proved,
        }
    }

    pub fn size(&self) -> u32 {
        u32::try_from(self.all.len()).expect("few")
    }

    pub fn length(&self) -> u64 {
        self.all.iter().map(|segment| segment.len() as u64).sum()
    }

    /// A content that has nothing yet, and tells when that changes.
    pub fn growing(self) -> Self {
        Self {
            changes: Mutex::new(Some(watch::Sender::new(0))),
            ..self.only(|_| false)
        }
    }

    /// Has these, too.
    pub fn add(&self, indices: impl IntoIterator<Item = u32>) {
        let mut have = self.have.lock().expect("no panic");
        indices.into_iter().for_each(|index| {
            have.insert(SegmentIndex(index));
        });
        drop(have);
        let changes = self.changes.lock().expect("no panic");
        let changes = changes.as_ref().expect("it grows");
        changes.send_modify(|change| *change += 1);
    }

    /// It has all that it will ever have.
    pub fn stop_growing(&self) {
        self.changes.lock().expect("no panic").take();
    }

    /// How many want to know when it grows.
    pub fn watched_by(&self) -> usize {
        let changes = self.changes.lock().expect("no panic");
        changes.as_ref().map_or(0, watch::Sender::receiver_count)
    }

    pub fn only(self, keep: impl Fn(u32) -> bool) -> Self {
        let mut have = SegmentSet::empty(self.size());
        (0..self.size())
            .filter(|index| keep(*index))
            .for_each(|index| {
                have.insert(SegmentIndex(index));
            });
        Self {
            have: Mutex::new(have),
            ..self
        }
    }
}

fn segment(name: u8, index: u32, length: u32) -> Bytes {
    let mut bytes = vec![0; length as usize];
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&[name])
        .update(&index.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes.into()
}

impl ServedContent for Memory {
    fn standing(&self) -> Standing {
        self.standing
    }

    fn read_provisional(&self, index: SegmentIndex) -> Option<ProvisionalSegment> {
        let there = self.have.lock().expect("no panic").contains(index);
        there.then(|| ProvisionalSegment::of(self.all[index.0 as usize].clone()))
    }

    fn claims(&self, range: SegmentRange) -> Vec<Option<Claim>> {
        let claim = |index| {
            let hash = self.read_provisional(index)?.hash();
            let first_hand = index.0.is_multiple_of(2);
            Some(Claim { hash, first_hand })
        };
        range.iter().map(claim).collect()
    }

    fn have(&self) -> SegmentSet {
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.have.lock().expect("no panic").clone()
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        let changes = self.changes.lock().expect("no panic");
        changes.as_ref().map(watch::Sender::subscribe)
    }

    fn tell_every(&self) -> Duration {
        *self.tell_every.lock().expect("no panic")
    }

    fn manifest(&self) -> Option<Bytes> {
        self.manifest.clone()
    }

    fn length(&self, index: SegmentIndex) -> Option<u32> {
        let segment = self.all.get(index.0 as usize)?;
        u32::try_from(segment.len()).ok()
    }

    fn read(&self, index: SegmentIndex) -> Option<VerifiedSegment> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            gate.pass();
        }
        let there = self.have.lock().expect("no panic").contains(index);
        there.then(|| VerifiedSegment::of(self.all[index.0 as usize].clone()))
    }
}

/// What one exchange serves.
pub struct Shelf {
    contents: BTreeMap<SwarmId, Arc<Memory>>,
    /// How often a content, not only its key, was asked for.
    pub looked_up: AtomicUsize,
}

impl Shelf {
    pub fn of(contents: &[&Arc<Memory>]) -> Arc<Self> {
        let contents = contents.iter().map(|c| (c.key.swarm_id(), Arc::clone(c)));
        Arc::new(Self {
            contents: contents.collect(),
            looked_up: AtomicUsize::new(0),
        })
    }
}

impl ContentSource for Shelf {
    fn key(&self, swarm: &SwarmId) -> Option<ContentKey> {
        self.contents.get(swarm).map(|content| content.key)
    }

    fn content(&self, swarm: &SwarmId) -> Option<Arc<dyn ServedContent>> {
        self.looked_up.fetch_add(1, Ordering::SeqCst);
        self.contents
            .get(swarm)
            .map(|content| Arc::clone(content) as Arc<dyn ServedContent>)
    }
}

/// An exchange and who it is.
pub struct Agent {
    pub peer: PeerId,
    pub exchange: Exchange,
    pub shelf: Arc<Shelf>,
}

impl Agent {
    pub fn start(contents: &[&Arc<Memory>]) -> Self {
        Self::with(options(), contents)
    }

    pub fn with(options: ExchangeOptions, contents: &[&Arc<Memory>]) -> Self {
        let identity = identity();
        let peer = identity.peer_id();
        let shelf = Shelf::of(contents);
        let source = Arc::clone(&shelf) as Arc<dyn ContentSource>;
        let exchange = Exchange::start(options, identity, source).expect("it starts on loopback");
        Self {
            peer,
            exchange,
            shelf,
        }
    }

    /// One that is a steward, too.
    pub fn steward(options: ExchangeOptions, contents: &[&Arc<Memory>]) -> (Self, SeatEvents) {
        let identity = identity();
        let peer = identity.peer_id();
        let shelf = Shelf::of(contents);
        let source = Arc::clone(&shelf) as Arc<dyn ContentSource>;
        let (seat, events) = StewardSeat::new();
        let exchange = Exchange::start_with_seat(options, identity, source, seat);
        let agent = Self {
            peer,
            exchange: exchange.expect("it starts on loopback"),
            shelf,
        };
        (agent, events)
    }

    pub fn address(&self) -> SocketAddr {
        loopback(self.exchange.port())
    }

    pub async fn join(&self, other: &Self, content: &Memory) -> PeerSession {
        let joined = self
            .exchange
            .join(other.peer, vec![other.address()], content.key);
        soon(joined).await.expect("the other shares it")
    }
}

/// The events of a download.
pub struct Events(pub mpsc::Receiver<PeerEvent>);

impl Events {
    pub async fn next(&mut self) -> PeerEventKind {
        soon(self.0.recv()).await.expect("the download lives").kind
    }

    pub async fn segment(&mut self) -> (SegmentIndex, Bytes) {
        match self.next().await {
            PeerEventKind::Segment { index, bytes } => (index, bytes),
            other => panic!("a segment was expected, {other:?} came"),
        }
    }

    pub async fn have(&mut self) -> SegmentSet {
        match self.next().await {
            PeerEventKind::Have(have) => have,
            other => panic!("what the peer has was expected, {other:?} came"),
        }
    }

    /// Passes over all other events.
    pub async fn failure(&mut self) -> PeerFailure {
        loop {
            if let PeerEventKind::Failed(failure) = self.next().await {
                return failure;
            }
        }
    }
}

pub fn download(
    session: &PeerSession,
    content: &Arc<Memory>,
    capacity: usize,
) -> (Download, Events) {
    let (events, receiver) = mpsc::channel(capacity);
    let by_manifest = Arc::clone(content);
    let lengths = move |index: SegmentIndex| {
        by_manifest
            .all
            .get(index.0 as usize)
            .and_then(|s| u32::try_from(s.len()).ok())
    };
    let spec = DownloadSpec {
        segments: content.size(),
        lengths: Arc::new(lengths),
        events: EventSink::Together(events),
        streams: None,
    };
    (session.download(spec), Events(receiver))
}

/// A peer made of bare quinn.
pub struct RawPeer {
    pub peer: PeerId,
    pub endpoint: quinn::Endpoint,
    identity: Identity,
}

impl RawPeer {
    pub fn start() -> Self {
        Self::with_streams(100)
    }

    /// On each connection `streams` may be open at one time.
    pub fn with_streams(streams: u8) -> Self {
        let identity = identity();
        let tls = identity.server_tls(ALPN).expect("TLS");
        let crypto = QuicServerConfig::try_from(tls).expect("AES-128-GCM");
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        transport.max_concurrent_bidi_streams(streams.into());
        config.transport_config(Arc::new(transport));
        let endpoint = quinn::Endpoint::server(config, loopback(0)).expect("a socket");
        Self {
            peer: identity.peer_id(),
            endpoint,
            identity,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().expect("bound")
    }

    /// Somebody else at the same address, who only dials.
    pub fn housemate(&self) -> Self {
        let identity = identity();
        Self {
            peer: identity.peer_id(),
            endpoint: self.endpoint.clone(),
            identity,
        }
    }

    pub async fn accept(&self) -> quinn::Connection {
        let incoming = soon(self.endpoint.accept())
            .await
            .expect("the endpoint is open");
        soon(async { incoming.await }).await.expect("a handshake")
    }

    pub async fn dial(&self, agent: &Agent) -> quinn::Connection {
        self.dial_with(agent, quinn::TransportConfig::default())
            .await
    }

    pub async fn dial_with(
        &self,
        agent: &Agent,
        transport: quinn::TransportConfig,
    ) -> quinn::Connection {
        let tls = self.identity.client_tls(ALPN, agent.peer).expect("TLS");
        let crypto = QuicClientConfig::try_from(tls).expect("AES-128-GCM");
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        let connecting = self.endpoint.connect_with(config, agent.address(), "raw");
        soon(connecting.expect("valid")).await.expect("a handshake")
    }
}

/// A proof as docs/exchange.md says, computed here anew. Side: 0 requester, 1 responder.
pub fn proof(connection: &quinn::Connection, key: &ContentKey, side: u8) -> [u8; 32] {
    let mut message = [0; 33];
    let swarm = key.swarm_id();
    connection
        .export_keying_material(&mut message[..32], EXPORTER_LABEL, swarm.as_bytes())
        .expect("an exporter");
    message[32] = side;
    let proof_key = blake3::derive_key("branchline 2026-11 exchange join proof v1", key.as_bytes());
    *blake3::keyed_hash(&proof_key, &message).as_bytes()
}

pub fn join_message(swarm: &SwarmId, proof: &[u8; 32]) -> Vec<u8> {
    [&[0x01][..], swarm.as_bytes(), proof].concat()
}

/// `Joined` by a peer that has all of `segments`.
pub fn joined_message(proof: &[u8; 32], segments: u32) -> Vec<u8> {
    let mut bytes = [&[0x81][..], proof, &[0]].concat();
    bytes.extend(segments.to_le_bytes());
    bytes.push(0);
    [1, 0, segments]
        .iter()
        .for_each(|field: &u32| bytes.extend(field.to_le_bytes()));
    bytes
}

pub fn segment_header(index: u32, length: u32) -> Vec<u8> {
    [&[0x84][..], &index.to_le_bytes(), &length.to_le_bytes()].concat()
}

/// The application's code that the other side closed with.
pub async fn close_code(connection: &quinn::Connection) -> u64 {
    match soon(connection.closed()).await {
        quinn::ConnectionError::ApplicationClosed(frame) => frame.error_code.into_inner(),
        other => panic!("an application close was expected, not {other}"),
    }
}
