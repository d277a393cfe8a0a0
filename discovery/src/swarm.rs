//! libp2p, set up for many small, long-lived connections.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use branchline_core::PeerId;
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::Transport;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::request_response::{self, ProtocolSupport, cbor};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{NetworkBehaviour, StreamProtocol, Swarm};
use libp2p::{allow_block_list, quic};

use crate::hello::{self, Hello};
use crate::identity::Identity;
use crate::kademlia::Kademlia;
use crate::peers::MAX_MEMBERS;

/// A peer from which nothing was heard for this long is gone; with [`KEEP_ALIVE`] before it, an
/// agent that is killed or unplugged is noticed within eight seconds. Two packets in a row may get
/// lost without effect.
const IDLE_TIMEOUT_MS: u32 = 6_000;
/// One small packet each way and peer in this time.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// A LAN's handshake takes milliseconds; a machine under load gets the rest.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// An answer to a hello is sent at once; one in a row may be missed, see `peers::MAX_MISSED`.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);
/// Messages are at most 4 KiB, and few are under way at a time; a peer cannot make this agent
/// buffer more than this.
const STREAM_WINDOW_BYTES: u32 = 16 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 64 * 1024;
const MAX_STREAMS: u32 = 8;
/// Handshakes under way that others began; more are refused and come again, which costs both sides a
/// handshake and a wait: 500 agents that start at once with the same static peer cost it 0.45 s of
/// the processor, with a quarter of this bound 0.75 s. Each holds some 70 kB for three seconds at most.
const MAX_PENDING_INCOMING: u32 = 256;
/// A restarted peer and simultaneous dials make two connections for a moment.
const MAX_CONNECTIONS_PER_PEER: u32 = 4;
/// Connections that are no members' (yet): strangers until they are recognised, duplicates.
const SPARE_CONNECTIONS: usize = 128;

/// What this agent's libp2p does: greet, ask and tell who is here, keep strangers out for a while,
/// keep within bounds.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(crate) strangers: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    pub(crate) hello: cbor::Behaviour<Hello, Hello>,
    pub(crate) kademlia: Toggle<Kademlia>,
}

/// Must run inside a tokio runtime, which will run the connections' tasks.
pub(crate) fn new(identity: &Identity, has_kademlia: bool) -> Swarm<Behaviour> {
    let keypair = identity.keypair();
    let transport = quic::tokio::Transport::new(transport_config(identity))
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed();
    let config = libp2p::swarm::Config::with_tokio_executor()
        // A member's connection stays open for as long as both live, used or not.
        .with_idle_connection_timeout(Duration::MAX)
        .with_notify_handler_buffer_size(NonZeroUsize::MIN)
        .with_per_connection_event_buffer_size(2)
        .with_max_negotiating_inbound_streams(4);
    let own = keypair.public().to_peer_id();
    let kademlia = has_kademlia.then(|| Kademlia::new(own));
    Swarm::new(transport, behaviour(kademlia), own, config)
}

fn transport_config(identity: &Identity) -> quic::Config {
    // Nothing here fills a larger packet, and MTU probes to each peer are traffic for nothing.
    let mut config = quic::Config::new(identity.keypair()).disable_path_mtu_discovery();
    config.handshake_timeout = HANDSHAKE_TIMEOUT;
    config.max_idle_timeout = IDLE_TIMEOUT_MS;
    config.keep_alive_interval = KEEP_ALIVE;
    config.max_concurrent_stream_limit = MAX_STREAMS;
    config.max_stream_data = STREAM_WINDOW_BYTES;
    config.max_connection_data = CONNECTION_WINDOW_BYTES;
    config
}

fn behaviour(kademlia: Option<Kademlia>) -> Behaviour {
    let codec = cbor::codec::Codec::default()
        .set_request_size_maximum(hello::MAX_BYTES)
        .set_response_size_maximum(hello::MAX_BYTES);
    let protocol = (StreamProtocol::new(hello::PROTOCOL), ProtocolSupport::Full);
    let config = request_response::Config::default()
        .with_request_timeout(HELLO_TIMEOUT)
        .with_max_concurrent_streams(4);
    Behaviour {
        limits: connection_limits::Behaviour::new(limits()),
        strangers: allow_block_list::Behaviour::default(),
        hello: cbor::Behaviour::with_codec(codec, [protocol], config),
        kademlia: kademlia.into(),
    }
}

fn limits() -> ConnectionLimits {
    let established = u32::try_from(MAX_MEMBERS + SPARE_CONNECTIONS).unwrap_or(u32::MAX);
    ConnectionLimits::default()
        .with_max_pending_incoming(Some(MAX_PENDING_INCOMING))
        .with_max_established(Some(established))
        .with_max_established_per_peer(Some(MAX_CONNECTIONS_PER_PEER))
}

/// The address as libp2p writes it.
pub(crate) fn multiaddr(address: SocketAddr) -> Multiaddr {
    let ip = Multiaddr::from(address.ip());
    ip.with(Protocol::Udp(address.port()))
        .with(Protocol::QuicV1)
}

/// Reads an address of libp2p's QUIC transport.
pub(crate) fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = ip_address(&parts.next()?)?;
    let Protocol::Udp(port) = parts.next()? else {
        return None;
    };
    Some(SocketAddr::new(ip, port))
}

fn ip_address(part: &Protocol<'_>) -> Option<IpAddr> {
    if let Protocol::Ip4(v4) = part {
        return Some(IpAddr::V4(*v4));
    }
    let Protocol::Ip6(v6) = part else { return None };
    Some(IpAddr::V6(*v6))
}

/// The agent behind libp2p's peer id; `None` when its key is not Ed25519.
pub(crate) fn agent(peer: &libp2p::PeerId) -> Option<PeerId> {
    PeerId::from_libp2p_bytes(&peer.to_bytes()).ok()
}

/// libp2p's peer id of an agent; `None` never happens, but is not worth a panic.
pub(crate) fn libp2p_peer(peer: PeerId) -> Option<libp2p::PeerId> {
    libp2p::PeerId::from_bytes(&peer.to_libp2p_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_peers_survive_the_way_through_libp2p() {
        for text in ["10.1.2.3:4001", "[fd00::7]:4001"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(socket_address(&multiaddr(address)), Some(address));
        }
        let key = libp2p::identity::Keypair::generate_ed25519();
        let theirs = key.public().to_peer_id();
        let ours = agent(&theirs).expect("an Ed25519 key");
        assert_eq!(libp2p_peer(ours), Some(theirs));
        assert_eq!(ours.to_string(), theirs.to_string());
    }

    #[test]
    fn a_peer_with_another_kind_of_key_is_no_agent() {
        // The peer id of an RSA key: the SHA-256 of it, not the key itself.
        let rsa = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
            .parse()
            .expect("a peer id");
        assert_eq!(agent(&rsa), None);
    }
}
