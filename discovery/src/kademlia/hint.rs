//! What of a named peer can be true, and is worth a dial.

use std::net::SocketAddr;

use branchline_core::PeerId;
use libp2p::kad::KadPeer;

use crate::interfaces;
use crate::swarm;

/// Told and taken of one peer: one of each address family.
pub(crate) const MAX_ADDRESSES: usize = 2;

/// The agent that is named and where it may be; `None` when nobody could be dialled by it.
pub(crate) fn hint(named: &KadPeer) -> Option<(PeerId, Vec<SocketAddr>)> {
    let peer = swarm::agent(&named.node_id)?;
    let addresses = named.multiaddrs.iter().filter_map(swarm::socket_address);
    let mut dialable: Vec<_> = addresses
        .filter(|address| interfaces::is_routable(*address))
        .collect();
    dialable.dedup();
    dialable.truncate(MAX_ADDRESSES);
    (!dialable.is_empty()).then_some((peer, dialable))
}

#[cfg(test)]
mod tests {
    use libp2p::kad::ConnectionType;

    use super::*;

    fn named(addresses: &[&str]) -> KadPeer {
        let key = libp2p::identity::Keypair::generate_ed25519();
        KadPeer {
            node_id: key.public().to_peer_id(),
            multiaddrs: addresses
                .iter()
                .map(|text| text.parse().expect("an address"))
                .collect(),
            connection_ty: ConnectionType::Connected,
        }
    }

    #[test]
    fn only_addresses_that_mean_the_same_everywhere_are_taken() {
        for useless in [
            "/ip4/127.0.0.1/udp/1/quic-v1",
            "/ip4/169.254.3.4/udp/1/quic-v1",
            "/ip4/0.0.0.0/udp/1/quic-v1",
            "/ip4/224.0.0.251/udp/5353/quic-v1",
            "/ip4/255.255.255.255/udp/1/quic-v1",
            "/ip4/10.0.0.1/udp/0/quic-v1",
            "/ip4/10.0.0.1/tcp/1",
            "/ip6/::1/udp/1/quic-v1",
            "/ip6/fe80::1/udp/1/quic-v1",
            "/ip6/::ffff:127.0.0.1/udp/1/quic-v1",
            "/dns/example.org/udp/1/quic-v1",
        ] {
            assert_eq!(hint(&named(&[useless])), None, "{useless}");
        }
        let good = [
            "/ip4/10.1.2.3/udp/4001/quic-v1",
            "/ip6/fd00::7/udp/4001/quic-v1",
        ];
        let (_, addresses) = hint(&named(&good)).expect("a hint");
        assert_eq!(
            addresses,
            ["10.1.2.3:4001", "[fd00::7]:4001"].map(|a| a.parse().expect("one"))
        );
    }

    #[test]
    fn of_many_addresses_few_are_taken() {
        let many: Vec<_> = (1..=99)
            .map(|n| format!("/ip4/10.0.0.{n}/udp/1/quic-v1"))
            .collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let (_, addresses) = hint(&named(&many)).expect("a hint");
        assert_eq!(addresses.len(), MAX_ADDRESSES);
    }
}
