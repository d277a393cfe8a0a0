//! Moves 1 GiB over loopback between two processes, as verified exchange and over bare QUIC streams
//! with the same transport, and prints GB/s and CPU-seconds per GB of both sides:
//!
//! `cargo run --release -p branchline-exchange --example exchange_speed [-- MEBIBYTES [ROUNDS]]`
//!
//! Contents lie in memory. The server verifies each segment it reads (as the store does), the client
//! verifies on a thread of its own (as the engine does); nothing is written to disk.
#![allow(missing_docs)]

use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use branchline_core::wire::ALPN;
use branchline_core::{PeerId, SegmentRange, SegmentSet};
use branchline_discovery::Identity;
use branchline_exchange::{
    ContentSource, DownloadSpec, EventSink, Exchange, ExchangeOptions, Listen, PeerEvent,
    PeerEventKind, ServedContent, bare,
};
use branchline_hashing::{ContentKey, SegmentHash, SegmentIndex, SwarmId, VerifiedSegment};
use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::sync::mpsc;

/// The default average of `publish`.
const SEGMENT_BYTES: u32 = 32 << 10;
/// Different segments; the content repeats them, so that it fits into memory.
const DIFFERENT_SEGMENTS: u32 = 2048;
const STREAMS: usize = 4;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve-exchange", segments] => serve_exchange(segments.parse()?),
        ["serve-bare", segments] => serve_bare(segments.parse()?),
        [] => compare(1024, 3),
        [mebibytes] => compare(mebibytes.parse()?, 3),
        [mebibytes, rounds] => compare(mebibytes.parse()?, rounds.parse()?),
        _ => Err("usage: exchange_speed [MEBIBYTES [ROUNDS]]".into()),
    }
}

fn compare(mebibytes: u32, rounds: u32) -> Outcome<()> {
    let segments = mebibytes * ((1 << 20) / SEGMENT_BYTES);
    println!("{mebibytes} MiB in segments of {SEGMENT_BYTES} bytes over loopback");
    println!(
        "{:<10} {:>6} {:>14} {:>14} {:>10}",
        "", "GB/s", "client s/GB", "server s/GB", "peak MiB"
    );
    let content = Repeating::new(segments);
    let hashes: Vec<SegmentHash> = content.different.iter().map(|(hash, _)| *hash).collect();
    drop(content);
    for _ in 0..rounds {
        measure("bare", segments, fetch_bare)?;
        measure("exchange", segments, |peer, address, segments| {
            fetch_exchange(peer, address, segments, hashes.clone())
        })?;
    }
    Ok(())
}

/// One transfer with a server process of its own.
fn measure(
    name: &str,
    segments: u32,
    fetch: impl FnOnce(PeerId, SocketAddr, u32) -> Outcome<()>,
) -> Outcome<()> {
    let mut server = Server::start(name, segments)?;
    let before = (cpu_seconds("self")?, cpu_seconds(&server.pid())?);
    let begun = Instant::now();
    fetch(server.peer, server.address, segments)?;
    let seconds = begun.elapsed().as_secs_f64();
    let gigabytes = f64::from(segments) * f64::from(SEGMENT_BYTES) / 1e9;
    let client = (cpu_seconds("self")? - before.0) / gigabytes;
    let served = (cpu_seconds(&server.pid())? - before.1) / gigabytes;
    let peak = peak_mebibytes(&server.pid())?;
    let speed = gigabytes / seconds;
    println!("{name:<10} {speed:>6.2} {client:>14.2} {served:>14.2} {peak:>10}");
    server.child.kill()?;
    server.child.wait()?;
    Ok(())
}

struct Server {
    child: Child,
    peer: PeerId,
    address: SocketAddr,
}

impl Server {
    fn start(name: &str, segments: u32) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([format!("serve-{name}"), segments.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("a pipe was asked for")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let (peer, port) = line
            .trim()
            .split_once(' ')
            .ok_or("the server did not start")?;
        Ok(Self {
            child,
            peer: peer.parse()?,
            address: loopback(port.parse()?),
        })
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

/// User and system time of a process, from /proc, in steps of 10 ms (proc_pid_stat(5)).
fn cpu_seconds(pid: &str) -> Outcome<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("no such field")?;
    let ticks: u32 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|t| t.parse().unwrap_or(0))
        .sum();
    Ok(f64::from(ticks) / 100.0)
}

fn peak_mebibytes(pid: &str) -> Outcome<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = peak
        .and_then(|p| p.split_whitespace().next())
        .ok_or("no VmHWM")?;
    Ok(kibibytes.parse::<u64>()? / 1024)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn new_identity() -> Outcome<Identity> {
    let folder = tempfile::tempdir()?;
    Ok(Identity::load_or_create(&folder.path().join("identity"))?)
}

fn options() -> ExchangeOptions {
    ExchangeOptions {
        listen: Listen::On(loopback(0)),
        ..ExchangeOptions::default()
    }
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// Until the parent closes stdin or kills this process.
fn announce(peer: PeerId, port: u16) {
    println!("{peer} {port}");
}

fn wait_for_the_end() -> Outcome<()> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

struct Repeating {
    segments: u32,
    different: Vec<(SegmentHash, Bytes)>,
}

impl Repeating {
    fn new(segments: u32) -> Self {
        let different = (0..DIFFERENT_SEGMENTS)
            .map(|index| {
                let mut bytes = vec![0; SEGMENT_BYTES as usize];
                let mut hasher = blake3::Hasher::new();
                hasher
                    .update(&index.to_le_bytes())
                    .finalize_xof()
                    .fill(&mut bytes);
                (SegmentHash::of(&bytes), Bytes::from(bytes))
            })
            .collect();
        Self {
            segments,
            different,
        }
    }

    fn segment(&self, index: SegmentIndex) -> &(SegmentHash, Bytes) {
        &self.different[(index.0 % DIFFERENT_SEGMENTS) as usize]
    }
}

fn key() -> ContentKey {
    ContentKey::from_bytes([1; 32])
}

impl ServedContent for Repeating {
    fn have(&self) -> SegmentSet {
        SegmentSet::full(self.segments)
    }

    fn manifest(&self) -> Option<Bytes> {
        None
    }

    fn length(&self, index: SegmentIndex) -> Option<u32> {
        (index.0 < self.segments).then_some(SEGMENT_BYTES)
    }

    fn read(&self, index: SegmentIndex) -> Option<VerifiedSegment> {
        let (hash, bytes) = self.segment(index);
        VerifiedSegment::verify(Bytes::copy_from_slice(bytes), *hash).ok()
    }
}

struct Shelf(Arc<Repeating>);

impl ContentSource for Shelf {
    fn key(&self, swarm: &SwarmId) -> Option<ContentKey> {
        (*swarm == key().swarm_id()).then(key)
    }

    fn content(&self, swarm: &SwarmId) -> Option<Arc<dyn ServedContent>> {
        (*swarm == key().swarm_id()).then(|| Arc::clone(&self.0) as Arc<dyn ServedContent>)
    }
}

fn serve_exchange(segments: u32) -> Outcome<()> {
    let identity = new_identity()?;
    let peer = identity.peer_id();
    let shelf = Arc::new(Shelf(Arc::new(Repeating::new(segments))));
    let exchange = Exchange::start(options(), identity, shelf)?;
    announce(peer, exchange.port());
    wait_for_the_end()
}

fn fetch_exchange(
    peer: PeerId,
    address: SocketAddr,
    segments: u32,
    hashes: Vec<SegmentHash>,
) -> Outcome<()> {
    let nothing = Arc::new(Shelf(Arc::new(Repeating {
        segments: 0,
        different: Vec::new(),
    })));
    let exchange = Exchange::start(options(), new_identity()?, nothing)?;
    // 2 MiB: with much less the verifier's thread is woken for every segment.
    let (events, mut arriving) = mpsc::channel::<PeerEvent>(64);
    let verifier = std::thread::spawn(move || {
        let mut missing = SegmentSet::full(segments);
        while !missing.is_empty() {
            let Some(event) = arriving.blocking_recv() else {
                return Err("the peer is gone");
            };
            match event.kind {
                PeerEventKind::Segment { index, bytes } => {
                    let hash = hashes[(index.0 % DIFFERENT_SEGMENTS) as usize];
                    VerifiedSegment::verify(bytes, hash).map_err(|_| "a wrong segment")?;
                    missing.remove(index);
                }
                PeerEventKind::Have(_) => {}
                PeerEventKind::Absent(_) | PeerEventKind::Busy { .. } => return Err("not served"),
                PeerEventKind::Failed(_) => return Err("the peer failed"),
            }
        }
        Ok(())
    });
    let lengths = Arc::new(move |i: SegmentIndex| (i.0 < segments).then_some(SEGMENT_BYTES));
    let session = runtime()?.block_on(exchange.join(peer, vec![address], key()))?;
    let download = session.download(DownloadSpec {
        segments,
        lengths,
        events: EventSink::Together(events),
        streams: None,
    });
    let all = SegmentRange::new(SegmentIndex(0), segments).ok_or("no segments")?;
    download.request(all)?;
    Ok(verifier.join().map_err(|_| "the verifier panicked")??)
}

fn serve_bare(segments: u32) -> Outcome<()> {
    let identity = new_identity()?;
    let crypto = QuicServerConfig::try_from(identity.server_tls(ALPN)?)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(bare::transport(&options(), 16));
    let content = Repeating::new(segments);
    runtime()?.block_on(async {
        let endpoint = bare_endpoint(Some(config))?;
        announce(identity.peer_id(), endpoint.local_addr()?.port());
        let connection = endpoint.accept().await.ok_or("closed")?.await?;
        let mut streams = tokio::task::JoinSet::new();
        for number in 0..STREAMS {
            let (mut send, mut receive) = connection.accept_bi().await?;
            let mine: Vec<Bytes> = (0..segments)
                .skip(number)
                .step_by(STREAMS)
                .map(|index| content.segment(SegmentIndex(index)).1.clone())
                .collect();
            streams.spawn(async move {
                receive.read_to_end(16).await?;
                for segment in mine {
                    send.write_chunk(segment).await?;
                }
                send.finish()?;
                Ok::<_, Box<dyn Error + Send + Sync>>(())
            });
        }
        while let Some(stream) = streams.join_next().await {
            stream?.map_err(|error| error.to_string())?;
        }
        connection.closed().await;
        wait_for_the_end()
    })
}

fn fetch_bare(peer: PeerId, address: SocketAddr, segments: u32) -> Outcome<()> {
    let tls = new_identity()?.client_tls(ALPN, peer)?;
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(bare::transport(&options(), 0));
    runtime()?.block_on(async {
        let endpoint = bare_endpoint(None)?;
        let connection = endpoint.connect_with(config, address, "bare")?.await?;
        let mut streams = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let (mut send, mut receive) = connection.open_bi().await?;
            send.write_all(b"go").await?;
            send.finish()?;
            streams.spawn(async move {
                let mut bytes = 0;
                let mut chunks = [const { Bytes::new() }; 32];
                while let Some(count) = receive.read_chunks(&mut chunks).await? {
                    bytes += chunks[..count].iter().map(Bytes::len).sum::<usize>();
                }
                Ok::<_, quinn::ReadError>(bytes)
            });
        }
        let mut bytes = 0;
        while let Some(stream) = streams.join_next().await {
            bytes += stream??;
        }
        connection.close(0u32.into(), b"");
        endpoint.wait_idle().await;
        if bytes != segments as usize * SEGMENT_BYTES as usize {
            return Err(format!("{bytes} bytes came").into());
        }
        Ok(())
    })
}

fn bare_endpoint(server: Option<quinn::ServerConfig>) -> Outcome<quinn::Endpoint> {
    let socket = bare::open_socket(Listen::On(loopback(0)))?;
    let runtime = Arc::new(quinn::TokioRuntime);
    Ok(quinn::Endpoint::new(
        bare::endpoint(),
        server,
        socket,
        runtime,
    )?)
}
