//! A bare QUIC transfer: the exchange's transport settings and TLS without its protocol, from
//! memory to nowhere, without hashing. What remains between this and Branchline is Branchline's own.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use branchline_core::PeerId;
use branchline_core::wire::ALPN;
use branchline_discovery::Identity;
use branchline_exchange::{ExchangeOptions, Listen, bare};
use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::task::JoinSet;

/// As many as the exchange opens to a peer.
const STREAMS: usize = 4;

/// What is handed to QUIC at a time: about a segment.
const CHUNK_BYTES: usize = 64 << 10;

/// Any free port.
const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// This program as server.
pub(crate) fn serve_command(bytes: u64) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bare-serve", &bytes.to_string()]);
    Ok(command)
}

/// This program as client of the server that printed `line`.
pub(crate) fn fetch_command(line: &str, host: Ipv4Addr, bytes: u64) -> Result<Command> {
    let (peer, port) = line
        .trim()
        .split_once(' ')
        .context("odd line of a server")?;
    let address = format!("{host}:{port}");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bare-fetch", peer, &address, &bytes.to_string()]);
    Ok(command)
}

/// Serves `bytes` bytes to whoever connects, until it is killed; prints its peer id and port.
pub(crate) fn serve(bytes: u64) -> Result<()> {
    let identity = new_identity()?;
    let crypto = QuicServerConfig::try_from(identity.server_tls(ALPN)?)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(bare::transport(&ExchangeOptions::default(), 16));
    let mut content = vec![0; 64 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    let content = Bytes::from(content);
    runtime()?.block_on(async {
        let endpoint = endpoint(Some(config))?;
        println!("{} {}", identity.peer_id(), endpoint.local_addr()?.port());
        while let Some(incoming) = endpoint.accept().await {
            // One client at a time is all that is measured.
            serve_connection(incoming.await?, &content, bytes).await?;
        }
        Ok(())
    })
}

async fn serve_connection(connection: Connection, content: &Bytes, bytes: u64) -> Result<()> {
    let mut streams = JoinSet::new();
    for number in 0..STREAMS as u64 {
        let (send, receive) = connection.accept_bi().await?;
        let share = (bytes + number) / STREAMS as u64;
        streams.spawn(send_share(send, receive, content.clone(), share));
    }
    while let Some(ended) = streams.join_next().await {
        ended??;
    }
    connection.closed().await;
    Ok(())
}

async fn send_share(
    mut send: SendStream,
    mut receive: RecvStream,
    content: Bytes,
    share: u64,
) -> Result<()> {
    receive.read_to_end(16).await?;
    let mut left = usize::try_from(share)?;
    let mut offset = 0;
    while left > 0 {
        let length = CHUNK_BYTES.min(left);
        send.write_chunk(content.slice(offset..offset + length))
            .await?;
        left -= length;
        offset = (offset + CHUNK_BYTES) % (content.len() - CHUNK_BYTES);
    }
    send.finish()?;
    Ok(())
}

/// Fetches what [`serve`] gives and forgets it.
pub(crate) fn fetch(peer: PeerId, address: SocketAddr, bytes: u64) -> Result<()> {
    let tls = new_identity()?.client_tls(ALPN, peer)?;
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(bare::transport(&ExchangeOptions::default(), 0));
    runtime()?.block_on(async {
        let endpoint = endpoint(None)?;
        let connection = endpoint.connect_with(config, address, "bare")?.await?;
        let mut streams = JoinSet::new();
        for _ in 0..STREAMS {
            let (mut send, receive) = connection.open_bi().await?;
            send.write_all(b"go").await?;
            send.finish()?;
            streams.spawn(drain(receive));
        }
        let mut came = 0;
        while let Some(ended) = streams.join_next().await {
            came += ended??;
        }
        connection.close(0u32.into(), b"");
        endpoint.wait_idle().await;
        ensure!(came == bytes, "{came} bytes came, not {bytes}");
        Ok(())
    })
}

async fn drain(mut receive: RecvStream) -> Result<u64> {
    let mut came = 0;
    let mut chunks = [const { Bytes::new() }; 32];
    while let Some(count) = receive.read_chunks(&mut chunks).await? {
        came += chunks[..count].iter().map(|c| c.len() as u64).sum::<u64>();
    }
    Ok(came)
}

fn endpoint(server: Option<quinn::ServerConfig>) -> Result<Endpoint> {
    let socket = bare::open_socket(Listen::On(ANYWHERE))?;
    let runtime = Arc::new(quinn::TokioRuntime);
    Ok(Endpoint::new(bare::endpoint(), server, socket, runtime)?)
}

fn new_identity() -> Result<Identity> {
    let folder = tempfile::tempdir()?;
    Ok(Identity::load_or_create(&folder.path().join("identity"))?)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}
