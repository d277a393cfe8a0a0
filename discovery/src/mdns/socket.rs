//! One multicast socket for one address family on one interface.
//!
//! Invariant: what is sent here leaves through that interface and no other, and what is received
//! came in through it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

const PORT: u16 = 5353;
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Where packets for everybody on the link go.
    pub(crate) fn group(self, index: u32) -> SocketAddr {
        match self {
            Self::V4 => SocketAddr::from((GROUP_V4, PORT)),
            Self::V6 => SocketAddrV6::new(GROUP_V6, PORT, 0, index).into(),
        }
    }
}

/// Opens the socket: non-blocking, sharing port 5353 with other mDNS programs of this machine.
pub(crate) fn open(name: &str, index: u32, own: IpAddr) -> io::Result<UdpSocket> {
    let domain = match Family::of(own) {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Kernels before 5.7 want a capability for this; the per-family options below already choose
    // where packets leave, and packets from elsewhere are dropped by their source address.
    if let Err(error) = socket.bind_device(Some(name.as_bytes())) {
        tracing::debug!(interface = name, %error, "the mDNS socket is not bound to its device");
    }
    match own {
        IpAddr::V4(own) => prepare_v4(&socket, index, own)?,
        IpAddr::V6(_) => prepare_v6(&socket, index)?,
    }
    Ok(socket.into())
}

fn prepare_v4(socket: &Socket, index: u32, own: Ipv4Addr) -> io::Result<()> {
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
    socket.set_multicast_all_v4(false)?;
    socket.set_multicast_if_v4(&own)?;
    socket.set_multicast_loop_v4(true)?;
    socket.set_multicast_ttl_v4(255)?;
    socket.join_multicast_v4_n(&GROUP_V4, &socket2::InterfaceIndexOrAddress::Index(index))
}

fn prepare_v6(socket: &Socket, index: u32) -> io::Result<()> {
    socket.set_only_v6(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)).into())?;
    socket.set_multicast_all_v6(false)?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_loop_v6(true)?;
    socket.set_multicast_hops_v6(255)?;
    socket.join_multicast_v6(&GROUP_V6, index)
}
