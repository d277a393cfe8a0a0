//! Which network interfaces there are, and which of them discovery may use.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The administrator's choice; no names means every interface.
#[derive(Debug, Clone)]
pub(crate) struct InterfaceChoice {
    names: Vec<String>,
}

/// One address of one interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InterfaceAddress {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) network: Network,
    pub(crate) is_point_to_point: bool,
    /// Whether the cable is plugged in, or the radio associated.
    pub(crate) is_running: bool,
}

/// An address and how many of its bits name the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Network {
    pub(crate) address: IpAddr,
    pub(crate) prefix_bits: u8,
}

impl Network {
    /// Whether `other` is on this link by its number. Never true across families.
    pub(crate) fn contains(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let host_bits = 32u32.saturating_sub(self.prefix_bits.into());
                (u64::from(u32::from(own) ^ u32::from(other)) >> host_bits) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let host_bits = 128u32.saturating_sub(self.prefix_bits.into());
                (u128::from(own) ^ u128::from(other))
                    .checked_shr(host_bits)
                    .unwrap_or(0)
                    == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl InterfaceChoice {
    pub(crate) fn new(names: Vec<String>) -> Self {
        Self { names }
    }

    /// Every interface, or exactly the chosen ones.
    pub(crate) fn allows(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|chosen| chosen == name)
    }

    /// Whether multicast may leave here. Unless chosen by name, point-to-point links are left out:
    /// they are VPNs and WANs, and the other end is no LAN.
    pub(crate) fn allows_multicast(&self, address: &InterfaceAddress) -> bool {
        let chosen = !self.names.is_empty();
        let lan = !address.network.address.is_loopback() && !address.is_point_to_point;
        self.allows(&address.name) && (chosen || lan)
    }

    /// Chosen names that no address belongs to.
    pub(crate) fn missing(&self, present: &[InterfaceAddress]) -> Vec<String> {
        let absent = |name: &&String| !present.iter().any(|address| address.name == **name);
        self.names.iter().filter(absent).cloned().collect()
    }

    /// Whether traffic to `remote` leaves through an allowed interface. This machine itself is
    /// always allowed.
    ///
    /// # Errors
    /// When there is no route to it or the interfaces cannot be listed.
    pub(crate) fn permits(&self, remote: SocketAddr) -> io::Result<bool> {
        if self.names.is_empty() || remote.ip().is_loopback() {
            return Ok(true);
        }
        let source = source_address(remote)?;
        let present = present()?;
        let mut own = present
            .iter()
            .filter(|address| address.network.address == source);
        Ok(own.any(|address| self.allows(&address.name)))
    }
}

/// The address this machine would send from: connecting a UDP socket asks the routing table and
/// sends nothing.
fn source_address(remote: SocketAddr) -> io::Result<IpAddr> {
    let unspecified: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(unspecified, 0))?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

/// Every address of every interface, in a fixed order.
pub(crate) fn present() -> io::Result<Vec<InterfaceAddress>> {
    let listed = if_addrs::get_if_addrs()?;
    let mut present: Vec<_> = listed.into_iter().filter_map(known).collect();
    present.sort();
    Ok(present)
}

fn known(listed: if_addrs::Interface) -> Option<InterfaceAddress> {
    let network = match &listed.addr {
        if_addrs::IfAddr::V4(v4) => Network {
            address: v4.ip.into(),
            prefix_bits: v4.prefixlen,
        },
        if_addrs::IfAddr::V6(v6) => Network {
            address: v6.ip.into(),
            prefix_bits: v6.prefixlen,
        },
    };
    let is_point_to_point = listed.is_p2p;
    let is_running = listed.is_oper_up();
    Some(InterfaceAddress {
        name: listed.name,
        index: listed.index?,
        network,
        is_point_to_point,
        is_running,
    })
}

/// Link-local IPv6 addresses mean nothing without their interface, which libp2p's addresses cannot
/// name; they are neither announced nor used.
pub(crate) fn is_usable(address: IpAddr) -> bool {
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    !(link_local || address.is_unspecified() || address.is_multicast())
}

/// Whether an address that somebody tells means the same to who hears it: a machine, by a number
/// that is not this machine's or this link's own business.
pub(crate) fn is_routable(address: SocketAddr) -> bool {
    let ip = address.ip();
    let is_of_a_machine = match ip {
        IpAddr::V4(v4) => {
            // RFC 1122 section 3.2.1.3 ("this network") and RFC 1112 section 4 (class E, broadcast).
            let [first, ..] = v4.octets();
            !v4.is_link_local() && first != 0 && first < 240
        }
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_none(),
    };
    is_of_a_machine && is_usable(ip) && !ip.is_loopback() && address.port() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str, prefix_bits: u8) -> Network {
        Network {
            address: address.parse().expect("an address"),
            prefix_bits,
        }
    }

    fn on(name: &str, address: &str) -> InterfaceAddress {
        let network = network(address, 24);
        InterfaceAddress {
            name: name.into(),
            index: 1,
            network,
            is_point_to_point: false,
            is_running: true,
        }
    }

    #[test]
    fn a_network_contains_its_own_addresses_only() {
        let contains = |net: Network, other: &str| net.contains(other.parse().expect("an address"));
        assert!(contains(network("10.1.2.3", 24), "10.1.2.250"));
        assert!(!contains(network("10.1.2.3", 24), "10.1.3.250"));
        assert!(contains(network("10.1.2.3", 32), "10.1.2.3"));
        assert!(!contains(network("10.1.2.3", 32), "10.1.2.4"));
        assert!(contains(network("10.1.2.3", 0), "8.8.8.8"));
        assert!(contains(network("fd00::1", 64), "fd00::ffff"));
        assert!(!contains(network("fd00::1", 64), "fd00:0:0:1::1"));
        assert!(contains(network("fd00::1", 0), "2001:db8::1"));
        assert!(!contains(network("10.1.2.3", 0), "fd00::1"));
    }

    #[test]
    fn only_chosen_interfaces_carry_multicast() {
        let chosen = InterfaceChoice::new(vec!["eth1".into(), "eth7".into()]);
        let present = [on("eth0", "10.0.0.1"), on("eth1", "10.0.1.1")];
        assert!(!chosen.allows_multicast(&present[0]));
        assert!(chosen.allows_multicast(&present[1]));
        assert_eq!(chosen.missing(&present), ["eth7"]);
        let all = InterfaceChoice::new(Vec::new());
        assert!(all.allows_multicast(&present[0]));
        assert!(!all.allows_multicast(&on("lo", "127.0.0.1")));
        let tunnel = InterfaceAddress {
            is_point_to_point: true,
            ..on("tun0", "10.9.0.1")
        };
        assert!(!all.allows_multicast(&tunnel));
    }

    #[test]
    fn this_machine_is_reached_whatever_is_chosen() {
        let chosen = InterfaceChoice::new(vec!["none-such".into()]);
        let own = "127.0.0.1:9".parse().expect("an address");
        assert!(chosen.permits(own).expect("no routing needed"));
    }
}
