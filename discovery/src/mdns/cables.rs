//! Whether cables are plugged in: Linux tells it in a group of rtnetlink(7) of its own, which
//! watchers of addresses do not join, for an interface without carrier keeps its addresses.

use std::io;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::UnixDatagram;

/// RTMGRP_LINK of linux/rtnetlink.h.
const LINK_GROUP: u32 = 1;

pub(crate) struct CableWatcher {
    /// tokio has no type for netlink. Receiving is the same call for every datagram socket, and
    /// nothing else is done with this one.
    socket: UnixDatagram,
}

impl CableWatcher {
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system does not let interfaces be watched.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, LINK_GROUP))?;
        let socket = UnixDatagram::from_std(socket.into())?;
        Ok(Self { socket })
    }

    /// Returns when something about an interface changed; what, is to be looked up. Cancel-safe.
    ///
    /// # Errors
    /// When nothing more will be told.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        // The messages are not read, so their beginnings are enough.
        let mut buffer = [0; 16];
        let mut received = self.socket.recv(&mut buffer).await;
        while received.is_ok() || received.as_ref().is_err_and(is_overflow) {
            received = self.socket.try_recv(&mut buffer);
        }
        match received {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Messages were lost, which is a change, too.
fn is_overflow(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}
