//! QUIC's parameters for a LAN, and the socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{
    AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use crate::options::{ExchangeOptions, Listen};

/// The largest UDP payload tried and accepted: what an MTU of 9,000 leaves after the headers of IPv6
/// and UDP. quinn alone would fail above 6,500, with ten packets a call; [`crate::socket`] cuts them.
const MAX_UDP_PAYLOAD_BYTES: u16 = 8_952;

/// What every path carries (RFC 9000, section 14).
const MIN_UDP_PAYLOAD_BYTES: u16 = 1_200;

/// What a connection may hold of data that its reader has not taken yet: 6 ms at 10 Gbit/s, and with
/// eight peers at once still only half of what a whole agent may use.
const RECEIVE_WINDOW_BYTES: u32 = 8 << 20;

/// The same for one stream.
const STREAM_RECEIVE_WINDOW_BYTES: u32 = 4 << 20;

/// What a connection may hold of data that was not acknowledged yet.
const SEND_WINDOW_BYTES: u64 = 8 << 20;

/// Before anything was measured: a LAN, not the 333 ms of RFC 9002, section 6.2.2.
const INITIAL_RTT: Duration = Duration::from_millis(50);

/// Packets between acknowledgements, where both sides know the extension: fewer cost the sender less,
/// and a LAN's round trips are short.
const ACK_EVERY_PACKETS: u32 = 10;

/// What a sender may send before anything was acknowledged. RFC 9002 (section 7.2) has ten packets, which would wait here for
/// the 25 ms that an acknowledgement of fewer than the above may take; two segments on a LAN do no harm.
const INITIAL_WINDOW_BYTES: u64 = 64 << 10;

/// Streams one requester may have open on a connection. All that it wants of this agent shares one, and
/// a download keeps six open at most, four for segments, a watch and a membership: 42 downloads at a time.
/// A stream that has said nothing yet costs 3 KiB, for [`crate::serve`]'s deadline.
pub(crate) const MAX_STREAMS_PER_CONNECTION: u32 = 256;

/// Room for a burst while the exchange's thread is not scheduled; the kernel doubles it and, without
/// CAP_NET_ADMIN, caps it at `net.core.rmem_max`.
const UDP_BUFFER_BYTES: usize = 4 << 20;

/// What Ethernet carries.
const USUAL_MTU: u32 = 1_500;

/// Parameters of a connection to `address`; `streams` is how many the other side may open.
pub(crate) fn transport_to(
    address: SocketAddr,
    options: &ExchangeOptions,
    streams: u32,
) -> Arc<TransportConfig> {
    transport_up_to(largest_payload_to(address), options, streams)
}

/// The largest UDP payload that this machine's own interface lets through. To look for more costs much: of a probe
/// that is too long nothing comes back, three are sent of each length, and after each the other side is asked for an
/// acknowledgement. Where 9,000 bytes were looked for behind 1,500 that was a third of all packets of a small swarm.
fn largest_payload_to(address: SocketAddr) -> u16 {
    let address = match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // A link-local address is nothing without its interface.
        IpAddr::V6(_) => address,
    };
    payload_of(address, mtu_to(address).unwrap_or(USUAL_MTU))
}

fn payload_of(address: SocketAddr, mtu: u32) -> u16 {
    let payload = mtu.saturating_sub(header_bytes(address));
    u16::try_from(payload).map_or(MAX_UDP_PAYLOAD_BYTES, |payload| {
        payload.clamp(MIN_UDP_PAYLOAD_BYTES, MAX_UDP_PAYLOAD_BYTES)
    })
}

/// Of UDP and of IP without options.
fn header_bytes(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 8 + 20,
        SocketAddr::V6(_) => 8 + 40,
    }
}

/// Of the route to `address`. Sends nothing.
fn mtu_to(address: SocketAddr) -> io::Result<u32> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    let mtu = match address {
        SocketAddr::V4(_) => sockopt::ip_mtu(&socket),
        SocketAddr::V6(_) => sockopt::ipv6_mtu(&socket),
    };
    Ok(mtu?)
}

/// Parameters of a connection that sends so many bytes at a time at most.
pub(crate) fn transport_up_to(
    payload_bytes: u16,
    options: &ExchangeOptions,
    streams: u32,
) -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(payload_bytes);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY_PACKETS));
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW_BYTES);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(idle_timeout(options.idle_timeout)))
        .keep_alive_interval(Some(options.idle_timeout / 3))
        .stream_receive_window(VarInt::from_u32(STREAM_RECEIVE_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .initial_rtt(INITIAL_RTT)
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(congestion))
        .enable_segmentation_offload(true);
    Arc::new(transport)
}

fn idle_timeout(timeout: Duration) -> IdleTimeout {
    let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    IdleTimeout::from(VarInt::from_u32(milliseconds))
}

/// Parameters of the endpoint. The payload size also bounds quinn's receive buffer (64 x 32 of it).
pub fn endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(MAX_UDP_PAYLOAD_BYTES)
        .expect("8,952 is above QUIC's minimum of 1,200");
    config
}

/// Opens the socket; best effort for its buffers.
pub fn open_socket(listen: Listen) -> io::Result<UdpSocket> {
    let socket = match listen {
        Listen::On(address) => UdpSocket::bind(address)?,
        Listen::Everywhere { port } => match bind_dual_stack(port) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?
            }
            result => result?,
        },
    };
    socket.set_nonblocking(true)?;
    enlarge_buffers(&socket);
    Ok(socket)
}

fn bind_dual_stack(port: u16) -> io::Result<UdpSocket> {
    let socket = socket_with(
        AddressFamily::INET6,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    bind(
        &socket,
        &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0),
    )?;
    Ok(UdpSocket::from(socket))
}

fn enlarge_buffers(socket: &UdpSocket) {
    let received = sockopt::set_socket_recv_buffer_size_force(socket, UDP_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, UDP_BUFFER_BYTES));
    let sent = sockopt::set_socket_send_buffer_size_force(socket, UDP_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, UDP_BUFFER_BYTES));
    if let Err(error) = received.and(sent) {
        tracing::debug!(%error, "the UDP socket keeps the system's buffer sizes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_what_the_headers_leave_and_never_less_than_every_path_carries() {
        let v4 = "192.0.2.1:1".parse().expect("an address");
        let v6 = "[2001:db8::1]:1".parse().expect("an address");
        let payloads = |address| [500, 1_500, 9_000, 65_536].map(|mtu| payload_of(address, mtu));
        assert_eq!(payloads(v4), [1_200, 1_472, 8_952, 8_952]);
        assert_eq!(payloads(v6), [1_200, 1_452, 8_952, 8_952]);
    }

    #[test]
    fn the_route_says_what_it_carries_whichever_way_the_address_is_written() {
        for address in ["127.0.0.1:1", "[::ffff:127.0.0.1]:1"] {
            let address = address.parse().expect("an address");
            assert_eq!(largest_payload_to(address), MAX_UDP_PAYLOAD_BYTES);
        }
        // A route to nowhere: what Ethernet carries.
        let nowhere = "255.255.255.255:1".parse().expect("an address");
        assert_eq!(largest_payload_to(nowhere), 1_472);
    }
}
