//! Whether this machine has a network, and when that changes.
//!
//! The kernel tells of each change of links, addresses and routes (rtnetlink(7)). What a message says is not
//! looked at: it is the moment to read the routes.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::net::UnixDatagram;

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE` of
/// linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Hears of changes.
pub(super) struct RouteChanges {
    /// A netlink socket in the clothes of one that tokio waits for: of both, messages are received and nothing else.
    socket: UnixDatagram,
}

impl RouteChanges {
    /// Listens from now on. Inside a tokio runtime only.
    ///
    /// # Errors
    /// When the kernel has no such socket for this process.
    pub(super) fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self {
            socket: UnixDatagram::from_std(socket.into())?,
        })
    }

    /// Waits until something has changed since the last call. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<()> {
        loop {
            self.socket.readable().await?;
            if self.drain()? {
                return Ok(());
            }
        }
    }

    /// Throws away what lies there; whether there was anything. Messages that did not fit are changes, too.
    fn drain(&self) -> io::Result<bool> {
        let mut buffer = [0; 8 << 10];
        let mut any = false;
        loop {
            match self.socket.try_recv(&mut buffer) {
                Ok(_) => any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) if error.raw_os_error() == Some(NO_BUFFERS) => any = true,
                Err(error) => return Err(error),
            }
        }
    }
}

const NO_BUFFERS: i32 = rustix::io::Errno::NOBUFS.raw_os_error();

/// Whether any route leads out of this machine, over a link that works. Reads two small files.
pub(super) fn is_up() -> bool {
    let read = |path| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let links = Links::now();
    has_route_v4(&read("/proc/net/route"), &links)
        || has_route_v6(&read("/proc/net/ipv6_route"), &links)
}

/// The links that lead out of this machine and work. Routes stay when a cable is pulled, `IFF_RUNNING` does not
/// (netdevice(7)).
struct Links(BTreeSet<String>);

impl Links {
    fn now() -> Self {
        let links = getifaddrs().into_iter().flatten();
        let works = |flags| {
            let (wanted, besides) = (InterfaceFlags::IFF_RUNNING, InterfaceFlags::IFF_LOOPBACK);
            flags & (wanted | besides) == wanted
        };
        let working = links.filter(|link| works(link.flags));
        Self(working.map(|link| link.interface_name).collect())
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// `RTF_UP` and `RTF_REJECT` of linux/route.h.
const UP: u32 = 0x1;
const REJECT: u32 = 0x200;

/// proc(5): interface, destination, gateway, flags, ...; hexadecimal.
fn has_route_v4(table: &str, links: &Links) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace();
        let (device, destination) = (fields.next(), fields.next());
        let flags = fields
            .nth(1)
            .and_then(|flags| u32::from_str_radix(flags, 16).ok());
        let destination = destination.and_then(|text| u32::from_str_radix(text, 16).ok());
        let loops = destination.is_some_and(|to| Ipv4Addr::from(to.to_be()).is_loopback());
        device.is_some_and(|device| links.has(device))
            && flags.is_some_and(|flags| flags & UP != 0 && flags & REJECT == 0)
            && !loops
    })
}

/// Destination, its length, source, its length, next hop, metric, two counters, flags, interface.
fn has_route_v6(table: &str, links: &Links) -> bool {
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[destination, _, _, _, _, _, _, _, flags, device] = fields.as_slice() else {
            return false;
        };
        let (Ok(to), Ok(flags)) = (
            u128::from_str_radix(destination, 16),
            u32::from_str_radix(flags, 16),
        ) else {
            return false;
        };
        let to = Ipv6Addr::from(to);
        let local = to.is_loopback() || to.is_unicast_link_local() || to.is_multicast();
        links.has(device) && flags & UP != 0 && flags & REJECT == 0 && !local
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";

    fn eth0() -> Links {
        Links(["eth0".to_owned()].into())
    }

    #[test]
    fn the_loopback_is_no_link_that_leads_out() {
        assert!(!Links::now().has("lo"));
    }

    #[test]
    fn a_route_over_a_link_that_works_is_a_network() {
        let route = |line: &str| has_route_v4(&format!("{HEAD}{line}\n"), &eth0());
        assert!(!route(
            "eth1\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0"
        ));
        assert!(route(
            "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0"
        ));
        assert!(route(
            "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0"
        ));
        assert!(!route(
            "lo\t0000007F\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0"
        ));
        assert!(!route(
            "*\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0"
        ));
        for none in [HEAD, "", "\n\nx"] {
            assert!(!has_route_v4(none, &eth0()));
        }
    }

    #[test]
    fn link_local_addresses_alone_lead_nowhere() {
        let route = |to: &str, flags: &str, device: &str| {
            let zero = "0".repeat(32);
            let line =
                format!("{to} 40 {zero} 00 {zero} 00000100 00000001 00000000 {flags} {device}");
            has_route_v6(&line, &eth0())
        };
        let global = "20010db8000000000000000000000000";
        assert!(route(global, "00000001", "eth0"));
        assert!(!route(
            "fe800000000000000000000000000000",
            "00000001",
            "eth0"
        ));
        assert!(!route(
            "ff000000000000000000000000000000",
            "00000001",
            "eth0"
        ));
        assert!(!route("00000000000000000000000000000001", "80200001", "lo"));
        assert!(!route(&"0".repeat(32), "00200200", "lo"));
        assert!(!route("zz", "00000001", "eth0"));
    }
}
