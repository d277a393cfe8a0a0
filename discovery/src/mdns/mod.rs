//! Finding agents by multicast DNS on the chosen interfaces.
//!
//! libp2p's own mDNS sends on every interface there is, under a name shared with every libp2p
//! program, and says no goodbye; this one does what an administrator chose. It yields hints whom to
//! dial: nothing it hears is authenticated, and nobody becomes or ceases to be a member by it.

mod cables;
mod packet;
mod schedule;
mod socket;
mod sources;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use branchline_core::PeerId;
use futures_util::StreamExt;
use if_watch::tokio::IfWatcher;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use self::cables::CableWatcher;
use self::packet::{Announcement, Packet};
use self::schedule::{Schedule, Send};
use self::socket::Family;
use self::sources::SourceAllowances;
use crate::interfaces::{self, InterfaceAddress, InterfaceChoice, Network};

/// Packets waiting to be looked at. When full, more are dropped, as the network would: they repeat.
const QUEUE: usize = 256;
/// Larger packets are cut, do not parse, and are ignored; an announcement has under 512 bytes.
const MAX_PACKET_BYTES: usize = 2048;
/// Interfaces are looked at again this often even without a notice: an interface that was down, or
/// port 5353 that another program held for itself, may have become usable.
const RESCAN: Duration = Duration::from_secs(30);
/// A link whose socket failed is opened anew after this; a socket that fails at once must not keep a
/// core busy.
const REOPEN: Duration = Duration::from_secs(1);
/// More links than this are not used: a machine with hundreds of virtual interfaces has no LAN
/// behind most of them.
const MAX_LINKS: usize = 64;

/// What was heard, filtered to what may be true on the link it came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    /// `peer`'s discovery is to be dialled at one of these, for so long.
    Here {
        peer: PeerId,
        /// Who said so.
        source: IpAddr,
        addresses: Vec<SocketAddr>,
        valid_for: Duration,
    },
    /// `peer` said goodbye.
    Gone { peer: PeerId, source: IpAddr },
    /// One of this machine's own interfaces came up.
    LinkUp,
}

pub(crate) struct Mdns {
    choice: InterfaceChoice,
    own: PeerId,
    own_port: u16,
    links: BTreeMap<LinkKey, Link>,
    problems: BTreeMap<String, String>,
    missing: Vec<String>,
    /// `None` once the system stopped telling; [`RESCAN`] remains.
    watcher: Option<IfWatcher>,
    cables: Option<CableWatcher>,
    next_scan: Instant,
    received: mpsc::Receiver<Received>,
    receiver_of_links: mpsc::Sender<Received>,
    readers: JoinSet<ReaderId>,
    readers_started: u64,
}

type LinkKey = (u32, Family);

/// Which reader: its end may be told when the link has another already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ReaderId {
    link: LinkKey,
    number: u64,
}

struct Link {
    name: String,
    addresses: Vec<InterfaceAddress>,
    socket: Arc<tokio::net::UdpSocket>,
    schedule: Schedule,
    reader: AbortHandle,
    reader_id: ReaderId,
}

struct Received {
    link: LinkKey,
    from: SocketAddr,
    packet: Packet,
}

enum Wake {
    Received(Received),
    ReaderEnded(ReaderId),
    Scan,
    Send,
}

impl Mdns {
    /// Starts on the interfaces there are. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system does not let interfaces be watched.
    pub(crate) fn start(choice: InterfaceChoice, own: PeerId, own_port: u16) -> io::Result<Self> {
        let (receiver_of_links, received) = mpsc::channel(QUEUE);
        let mut mdns = Self {
            choice,
            own,
            own_port,
            links: BTreeMap::new(),
            problems: BTreeMap::new(),
            missing: Vec::new(),
            watcher: Some(IfWatcher::new()?),
            cables: Some(CableWatcher::new()?),
            next_scan: Instant::now(),
            received,
            receiver_of_links,
            readers: JoinSet::new(),
            readers_started: 0,
        };
        mdns.scan();
        Ok(mdns)
    }

    /// The next thing heard. Cancel-safe. Ends only with the program.
    pub(crate) async fn next(&mut self) -> Vec<Heard> {
        loop {
            match self.wake().await {
                Wake::Received(received) => {
                    let heard = self.handle_received(received);
                    if !heard.is_empty() {
                        return heard;
                    }
                }
                Wake::ReaderEnded(reader) => self.handle_reader_ended(reader),
                Wake::Scan => {
                    if self.scan() {
                        return vec![Heard::LinkUp];
                    }
                }
                Wake::Send => self.send_what_is_due(),
            }
        }
    }

    /// Tells everybody that this agent goes. Best effort: whoever misses it notices the closed
    /// connection.
    pub(crate) fn say_goodbye(&self) {
        for (key, link) in &self.links {
            self.send(
                *key,
                link,
                packet::encode_announcement(&self.announcement(link, 0)),
            );
        }
    }

    /// Interfaces in use, by name.
    pub(crate) fn active(&self) -> Vec<String> {
        let mut names: Vec<_> = self.links.values().map(|link| link.name.clone()).collect();
        names.dedup();
        names
    }

    /// Chosen interfaces that are not there.
    pub(crate) fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Interfaces that should be in use and cannot, with the reason.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.problems
            .iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect()
    }

    async fn wake(&mut self) -> Wake {
        let deadline = self
            .links
            .values()
            .map(|link| link.schedule.deadline())
            .min();
        let deadline = deadline.unwrap_or(self.next_scan).min(self.next_scan);
        tokio::select! {
            Some(received) = self.received.recv() => Wake::Received(received),
            Some(Ok(ended)) = self.readers.join_next(), if !self.readers.is_empty() => {
                Wake::ReaderEnded(ended)
            }
            told = interface_change(&mut self.watcher) => {
                if let Err(error) = told {
                    tracing::warn!(%error, "no longer told of interface changes");
                    self.watcher = None;
                }
                Wake::Scan
            }
            told = cable_change(&mut self.cables) => {
                if let Err(error) = told {
                    tracing::warn!(%error, "no longer told of cables");
                    self.cables = None;
                }
                Wake::Scan
            }
            () = tokio::time::sleep_until(deadline.into()) => {
                if Instant::now() >= self.next_scan { Wake::Scan } else { Wake::Send }
            }
        }
    }

    fn handle_received(&mut self, received: Received) -> Vec<Heard> {
        let Some(link) = self.links.get_mut(&received.link) else {
            return Vec::new();
        };
        if !link.is_neighbour(received.from.ip()) {
            return Vec::new();
        }
        match received.packet {
            Packet::Query => {
                link.schedule.handle_query(Instant::now(), rand::random());
                Vec::new()
            }
            Packet::Announcements(all) => {
                let source = received.from.ip();
                let others = all
                    .into_iter()
                    .filter(|announced| announced.peer != self.own);
                others
                    .filter_map(|announced| link.heard(source, announced))
                    .collect()
            }
        }
    }

    fn handle_reader_ended(&mut self, ended: ReaderId) {
        let current = self.links.get(&ended.link);
        if current.is_some_and(|link| link.reader_id == ended) {
            tracing::debug!(link = ?ended.link, "an mDNS socket failed");
            self.links.remove(&ended.link);
            self.next_scan = self.next_scan.min(Instant::now() + REOPEN);
        }
    }

    fn send_what_is_due(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (key, link) in &mut self.links {
            if let Some(send) = link.schedule.poll_send(now, rand::random()) {
                due.push((*key, send));
            }
        }
        for (key, send) in due {
            let Some(link) = self.links.get(&key) else {
                continue;
            };
            if send == Send::QueryAndAnnouncement {
                self.send(key, link, packet::encode_query());
            }
            let announcement = self.announcement(link, packet::TTL_SECS);
            self.send(key, link, packet::encode_announcement(&announcement));
        }
    }

    fn announcement(&self, link: &Link, ttl_secs: u32) -> Announcement {
        let own = link.addresses.iter().map(|address| address.network.address);
        let addresses = own
            .filter(|address| interfaces::is_usable(*address))
            .collect();
        Announcement {
            peer: self.own,
            port: self.own_port,
            ttl_secs,
            addresses,
        }
    }

    fn send(&self, key: LinkKey, link: &Link, bytes: Result<Vec<u8>, hickory_proto::ProtoError>) {
        let sent = bytes.map_err(io::Error::other).and_then(|bytes| {
            let group = key.1.group(key.0);
            socket2::SockRef::from(&*link.socket).send_to(&bytes, &group.into())
        });
        if let Err(error) = sent {
            tracing::debug!(interface = link.name, %error, "an mDNS packet was not sent");
        }
    }

    /// Brings the links in line with the interfaces there are. True when there is a new link.
    fn scan(&mut self) -> bool {
        self.next_scan = Instant::now() + RESCAN;
        let present = match interfaces::present() {
            Ok(present) => present,
            Err(error) => {
                tracing::warn!(%error, "listing network interfaces failed");
                return false;
            }
        };
        self.note_missing(&present);
        let wanted = self.wanted(present);
        self.links.retain(|key, _| wanted.contains_key(key));
        self.problems.clear();
        let mut is_new = false;
        for (key, addresses) in wanted.into_iter().take(MAX_LINKS) {
            is_new |= self.update_link(key, addresses);
        }
        is_new
    }

    fn note_missing(&mut self, present: &[InterfaceAddress]) {
        let missing = self.choice.missing(present);
        if missing != self.missing && !missing.is_empty() {
            let mut there: Vec<_> = present
                .iter()
                .map(|address| address.name.as_str())
                .collect();
            there.dedup();
            tracing::warn!(
                ?missing,
                ?there,
                "waiting for chosen interfaces to get an address"
            );
        }
        self.missing = missing;
    }

    fn wanted(&self, present: Vec<InterfaceAddress>) -> BTreeMap<LinkKey, Vec<InterfaceAddress>> {
        let mut wanted: BTreeMap<LinkKey, Vec<InterfaceAddress>> = BTreeMap::new();
        let usable = |a: &InterfaceAddress| interfaces::is_usable(a.network.address);
        let present = present.into_iter().filter(usable);
        for address in present.filter(|a| self.choice.allows_multicast(a)) {
            let family = Family::of(address.network.address);
            wanted
                .entry((address.index, family))
                .or_default()
                .push(address);
        }
        wanted
    }

    /// True when the link was opened anew.
    fn update_link(&mut self, key: LinkKey, addresses: Vec<InterfaceAddress>) -> bool {
        let unchanged = self
            .links
            .get(&key)
            .is_some_and(|link| link.addresses == addresses);
        let Some(first) = addresses.first().filter(|_| !unchanged) else {
            return false;
        };
        let name = first.name.clone();
        match self.open_link(key, addresses) {
            Ok(link) => {
                self.links.insert(key, link);
                true
            }
            Err(error) => {
                tracing::debug!(interface = name, %error, "mDNS cannot use an interface");
                self.problems
                    .insert(name, format!("opening the mDNS socket failed: {error}"));
                false
            }
        }
    }

    fn open_link(&mut self, key: LinkKey, addresses: Vec<InterfaceAddress>) -> io::Result<Link> {
        let first = addresses.first().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let name = first.name.clone();
        let socket: UdpSocket = socket::open(&name, first.index, first.network.address)?;
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        tracing::info!(interface = name, family = ?key.1, "looking for agents by mDNS");
        Ok(self.link(key, addresses, Arc::new(socket)))
    }

    fn link(
        &mut self,
        key: LinkKey,
        addresses: Vec<InterfaceAddress>,
        socket: Arc<tokio::net::UdpSocket>,
    ) -> Link {
        self.readers_started += 1;
        let reader_id = ReaderId {
            link: key,
            number: self.readers_started,
        };
        let queue = self.receiver_of_links.clone();
        let reader = read_packets(reader_id, Arc::clone(&socket), queue);
        let reader = self.readers.spawn(reader);
        Link {
            name: addresses
                .first()
                .map_or_else(String::new, |a| a.name.clone()),
            addresses,
            socket,
            schedule: Schedule::new(Instant::now()),
            reader,
            reader_id,
        }
    }
}

impl Link {
    /// RFC 6762 section 11: only who is on the link is believed.
    fn is_neighbour(&self, source: IpAddr) -> bool {
        let link_local = matches!(source, IpAddr::V6(v6) if v6.is_unicast_link_local());
        link_local || self.networks().any(|network| network.contains(source))
    }

    fn networks(&self) -> impl Iterator<Item = Network> {
        self.addresses.iter().map(|address| address.network)
    }

    /// Keeps of an announcement what can be true here: addresses of this link's own networks, if
    /// the sender is among them. A link-local sender cannot be, see [`interfaces::is_usable`].
    fn heard(&self, source: IpAddr, announced: Announcement) -> Option<Heard> {
        let peer = announced.peer;
        let speaks_for_itself = announced.addresses.contains(&source);
        if interfaces::is_usable(source) && !speaks_for_itself {
            return None;
        }
        if announced.ttl_secs == 0 {
            return Some(Heard::Gone { peer, source });
        }
        let near = |address: &IpAddr| {
            interfaces::is_usable(*address) && self.networks().any(|net| net.contains(*address))
        };
        let addresses: Vec<_> = announced.addresses.into_iter().filter(near).collect();
        let addresses: Vec<_> = addresses
            .into_iter()
            .map(|ip| SocketAddr::new(ip, announced.port))
            .collect();
        let valid_for = Duration::from_secs(announced.ttl_secs.into());
        (!addresses.is_empty()).then_some(Heard::Here {
            peer,
            source,
            addresses,
            valid_for,
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn interface_change(watcher: &mut Option<IfWatcher>) -> io::Result<()> {
    match watcher {
        Some(watcher) => match watcher.next().await {
            Some(told) => told.map(drop),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        },
        None => std::future::pending().await,
    }
}

async fn cable_change(watcher: &mut Option<CableWatcher>) -> io::Result<()> {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

/// Reads until the socket fails; then the link is dropped and a scan opens it anew.
async fn read_packets(
    reader: ReaderId,
    socket: Arc<tokio::net::UdpSocket>,
    queue: mpsc::Sender<Received>,
) -> ReaderId {
    let link = reader.link;
    let mut sources = SourceAllowances::new(Instant::now());
    let mut buffer = vec![0; MAX_PACKET_BYTES];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let bytes = &buffer[..length];
        if !packet::may_concern_us(bytes) || !sources.take(Instant::now(), from.ip()) {
            continue;
        }
        let Some(packet) = packet::decode(bytes) else {
            continue;
        };
        if packet != Packet::Announcements(Vec::new()) {
            // A full queue drops the packet, see QUEUE.
            let _ = queue.try_send(Received { link, from, packet });
        }
    }
    reader
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interfaces::InterfaceAddress;

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// A link whose socket is on loopback and hears nobody.
    fn quiet_link(mdns: &mut Mdns, key: LinkKey) -> Link {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_nonblocking(true).expect("a socket");
        let network = |address, prefix_bits| InterfaceAddress {
            name: "eth7".into(),
            index: key.0,
            network: Network {
                address: ip(address),
                prefix_bits,
            },
            is_point_to_point: false,
            is_running: true,
        };
        let addresses = vec![network("10.0.0.1", 24), network("fd00::1", 64)];
        let socket = tokio::net::UdpSocket::from_std(socket).expect("a socket");
        mdns.link(key, addresses, Arc::new(socket))
    }

    /// It is off: no interface is called like that.
    fn nowhere() -> Mdns {
        let choice = InterfaceChoice::new(vec!["none-such".into()]);
        Mdns::start(choice, peer(1), 4001).expect("started")
    }

    #[tokio::test]
    async fn the_late_end_of_a_former_reader_leaves_the_new_link_alone() {
        let mut mdns = nowhere();
        let key = (7, Family::V4);
        let former = quiet_link(&mut mdns, key);
        let former_id = former.reader_id;
        mdns.links.insert(key, former);
        let fresh = quiet_link(&mut mdns, key);
        mdns.links.insert(key, fresh);
        mdns.handle_reader_ended(former_id);
        let current = mdns.links.get(&key).expect("the new link stays").reader_id;
        mdns.handle_reader_ended(current);
        assert!(mdns.links.is_empty());
        assert!(
            mdns.next_scan <= Instant::now() + REOPEN,
            "and is soon opened again"
        );
    }

    #[tokio::test]
    async fn only_who_speaks_for_itself_is_believed() {
        let mut mdns = nowhere();
        let link = quiet_link(&mut mdns, (7, Family::V4));
        let says = |addresses: &[&str], ttl_secs| Announcement {
            peer: peer(2),
            port: 4001,
            ttl_secs,
            addresses: addresses.iter().map(|text| ip(text)).collect(),
        };
        let cases = [
            ("10.0.0.2", &["10.0.0.2"][..], true),
            ("10.0.0.2", &["192.168.1.2", "10.0.0.2"], true),
            ("10.0.0.66", &["10.0.0.2"], false),
            ("fe80::2", &["fd00::2"], true),
            ("fd00::66", &["fd00::2"], false),
        ];
        for (source, addresses, believed) in cases {
            for ttl_secs in [150, 0] {
                let heard = link.heard(ip(source), says(addresses, ttl_secs));
                assert_eq!(heard.is_some(), believed, "{source}: {addresses:?}");
            }
        }
    }
}
