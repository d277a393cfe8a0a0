//! The multicast packets, as DNS-SD (RFC 6763) has them: a PTR from the service to an instance
//! named by the agent's peer id, its SRV with the discovery port, and its host's A and AAAA.
//!
//! Pure: bytes in, records out. What is read here is not authenticated; it only says whom to dial.

use std::collections::BTreeMap;
use std::net::IpAddr;

use branchline_core::PeerId;
use hickory_proto::ProtoError;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// The service's name. It is Branchline's own, so other libp2p programs (`_p2p._udp`) and
/// Branchline never see each other's announcements.
const SERVICE: &str = "_branchline._udp.local.";
/// Its first label.
const LABEL: &[u8] = b"_branchline";
/// How long an announcement holds, in seconds. Two minutes are RFC 6762's value for records that
/// depend on a host's address; half a minute more lets two announcements in a row get lost.
pub(crate) const TTL_SECS: u32 = 150;
/// More instances in one packet than this are ignored: an agent announces one, itself.
const MAX_INSTANCES: usize = 16;
/// More addresses of an instance than this are ignored.
pub(crate) const MAX_ADDRESSES: usize = 8;

/// One agent's word about where its discovery listens. `ttl_secs` 0 is its goodbye.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announcement {
    pub(crate) peer: PeerId,
    pub(crate) port: u16,
    pub(crate) ttl_secs: u32,
    pub(crate) addresses: Vec<IpAddr>,
}

/// What a packet means to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet {
    /// Somebody wants to know who is here.
    Query,
    /// Somebody says who is here; empty when it is about other services.
    Announcements(Vec<Announcement>),
}

/// Asks who is here.
pub(crate) fn encode_query() -> Result<Vec<u8>, ProtoError> {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(SERVICE)?, RecordType::PTR));
    message.to_vec()
}

/// Says who this agent is.
pub(crate) fn encode_announcement(announcement: &Announcement) -> Result<Vec<u8>, ProtoError> {
    let service = Name::from_ascii(SERVICE)?;
    let label = announcement.peer.to_string();
    let instance = service.prepend_label(label.as_bytes())?;
    let host = Name::from_ascii("local.")?.prepend_label(label.as_bytes())?;
    let record = |name: &Name, data| Record::from_rdata(name.clone(), announcement.ttl_secs, data);
    let own = |name: &Name, data| {
        let mut record = record(name, data);
        record.mdns_cache_flush = true;
        record
    };

    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.metadata.authoritative = true;
    message.add_answer(record(&service, RData::PTR(PTR(instance.clone()))));
    let location = SRV::new(0, 0, announcement.port, host.clone());
    message.add_answer(own(&instance, RData::SRV(location)));
    message.add_answer(own(
        &instance,
        RData::TXT(TXT::new(vec!["txtvers=1".into()])),
    ));
    for address in announcement.addresses.iter().take(MAX_ADDRESSES) {
        message.add_additional(own(&host, address_data(*address)));
    }
    message.to_vec()
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

/// Whether it is worth reading: the service's label is in every packet about the service, for names
/// are compressed by whole labels. Most of a LAN's mDNS is about printers and televisions.
pub(crate) fn may_concern_us(bytes: &[u8]) -> bool {
    bytes
        .windows(LABEL.len())
        .any(|window| window.eq_ignore_ascii_case(LABEL))
}

/// Reads a packet; `None` when it is malformed or no business of Branchline's.
pub(crate) fn decode(bytes: &[u8]) -> Option<Packet> {
    let message = Message::from_vec(bytes).ok()?;
    let service = Name::from_ascii(SERVICE).ok()?;
    match message.metadata.message_type {
        MessageType::Query => asks_for(&message, &service).then_some(Packet::Query),
        MessageType::Response => Some(Packet::Announcements(announcements(&message, &service))),
    }
}

fn asks_for(message: &Message, service: &Name) -> bool {
    let asks = |query: &Query| {
        matches!(query.query_type(), RecordType::PTR | RecordType::ANY) && query.name() == service
    };
    message.queries.iter().any(asks)
}

fn announcements(message: &Message, service: &Name) -> Vec<Announcement> {
    let addresses = addresses_by_host(message);
    let located = message.all_sections().filter_map(|record| {
        let RData::SRV(location) = &record.data else {
            return None;
        };
        Some((instance_peer(&record.name, service)?, record.ttl, location))
    });
    let announced =
        located
            .filter(|(_, _, location)| location.port != 0)
            .map(|(peer, ttl_secs, location)| Announcement {
                peer,
                port: location.port,
                ttl_secs: ttl_secs.min(TTL_SECS),
                addresses: addresses.get(&location.target).cloned().unwrap_or_default(),
            });
    announced.take(MAX_INSTANCES).collect()
}

fn instance_peer(instance: &Name, service: &Name) -> Option<PeerId> {
    if !service.zone_of(instance) || instance.num_labels() != service.num_labels() + 1 {
        return None;
    }
    std::str::from_utf8(instance.iter().next()?)
        .ok()?
        .parse()
        .ok()
}

fn address_of(record: &Record) -> Option<IpAddr> {
    if let RData::A(A(v4)) = &record.data {
        return Some(IpAddr::V4(*v4));
    }
    let RData::AAAA(AAAA(v6)) = &record.data else {
        return None;
    };
    Some(IpAddr::V6(*v6))
}

fn addresses_by_host(message: &Message) -> BTreeMap<Name, Vec<IpAddr>> {
    let mut by_host: BTreeMap<Name, Vec<IpAddr>> = BTreeMap::new();
    for record in message.all_sections() {
        let Some(address) = address_of(record) else {
            continue;
        };
        let addresses = by_host.entry(record.name.clone()).or_default();
        if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    by_host
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn announcement() -> Announcement {
        let addresses = ["10.0.0.7", "fd00::7"].map(|text| text.parse().expect("an address"));
        let peer = PeerId::from_public_key([7; 32]);
        Announcement {
            peer,
            port: 4001,
            ttl_secs: TTL_SECS,
            addresses: addresses.to_vec(),
        }
    }

    #[test]
    fn an_announcement_survives_the_wire_within_one_datagram() {
        let bytes = encode_announcement(&announcement()).expect("encoded");
        assert!(bytes.len() < 512, "{} bytes", bytes.len());
        assert!(may_concern_us(&bytes));
        assert_eq!(
            decode(&bytes),
            Some(Packet::Announcements(vec![announcement()]))
        );
    }

    #[test]
    fn a_query_for_the_service_is_one_and_for_another_is_not() {
        let bytes = encode_query().expect("encoded");
        assert!(may_concern_us(&bytes));
        assert_eq!(decode(&bytes), Some(Packet::Query));
        let mut other = Message::new(0, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii("_p2p._udp.local.").expect("a name");
        other.add_query(Query::query(name, RecordType::PTR));
        let other = other.to_vec().expect("encoded");
        assert!(!may_concern_us(&other));
        assert_eq!(decode(&other), None);
    }

    #[test]
    fn instances_that_are_no_agents_are_ignored() {
        let good = encode_announcement(&announcement()).expect("encoded");
        let mut message = Message::from_vec(&good).expect("a message");
        for record in &mut message.answers {
            let service = Name::from_ascii(SERVICE).expect("a name");
            record.name = service.prepend_label("somebodys-printer").expect("a name");
        }
        let bytes = message.to_vec().expect("encoded");
        assert_eq!(decode(&bytes), Some(Packet::Announcements(Vec::new())));
    }

    #[test]
    fn a_crowded_packet_is_cut_to_the_bounds() {
        let many = Announcement {
            addresses: (0..=255).map(|n| IpAddr::from([10, 0, 0, n])).collect(),
            ttl_secs: u32::MAX,
            ..announcement()
        };
        let bytes = encode_announcement(&many).expect("encoded");
        let Some(Packet::Announcements(read)) = decode(&bytes) else {
            panic!("no announcement")
        };
        assert_eq!(
            (read[0].addresses.len(), read[0].ttl_secs),
            (MAX_ADDRESSES, TTL_SECS)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            decode(&bytes);
        }

        #[test]
        fn damaged_announcements_are_read_without_panic(at in 0usize..300, value: u8) {
            let mut bytes = encode_announcement(&announcement()).expect("encoded");
            let at = at % bytes.len();
            bytes[at] = value;
            decode(&bytes);
            decode(&bytes[..at]);
        }
    }
}
