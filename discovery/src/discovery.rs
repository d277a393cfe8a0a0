//! Starting discovery, asking it, and stopping it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use branchline_core::PeerId;
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::swarm::Swarm;
use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::config::DiscoveryConfig;
use crate::driver::Driver;
use crate::identity::Identity;
use crate::interfaces::{self, InterfaceChoice};
use crate::mdns::Mdns;
use crate::membership::Membership;
use crate::swarm::{self, Behaviour};
use crate::tls;

/// Saying goodbye takes one packet a peer; after this the connections are left to time out.
const SHUT_DOWN_DEADLINE: Duration = Duration::from_secs(2);
/// A port that was free a moment ago may be taken when the listener is opened; tried this often
/// where any port will do.
const PORT_ATTEMPTS: u32 = 8;

/// Running discovery. Dropping it stops at once, without goodbye; see [`Discovery::shut_down`].
#[derive(Debug)]
pub struct Discovery {
    peer_id: PeerId,
    port: u16,
    members: watch::Receiver<Arc<Membership>>,
    status: watch::Receiver<Arc<DiscoveryStatus>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    /// Nobody waits for it: a handshake before its end waits for the same.
    _randomness: JoinHandle<()>,
}

/// What discovery does, for `status` and `doctor`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DiscoveryStatus {
    /// Interfaces on which agents are looked for by multicast.
    pub mdns_interfaces: Vec<String>,
    /// Chosen interfaces that have no address yet; they are used once they have one.
    pub missing_interfaces: Vec<String>,
    /// Interfaces on which multicast should be used and cannot, with the reason.
    pub mdns_problems: Vec<String>,
}

/// Why discovery did not start.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// Another program, or another agent, has the port.
    #[error(
        "discovery: UDP port {port} is in use; stop the program that has it (`ss -ulnp` shows \
             it) or configure another discovery port"
    )]
    PortInUse {
        /// The configured port.
        port: u16,
    },
    /// The port cannot be listened on.
    #[error(
        "discovery: listening on UDP port {port} failed: {source}; ports under 1024 need \
             privileges"
    )]
    Listen {
        /// The configured port; 0 when any would have done.
        port: u16,
        /// Why it failed.
        source: io::Error,
    },
    /// The system does not tell of its interfaces.
    #[error(
        "discovery: watching the network interfaces failed: {0}; without them mDNS cannot be \
             used, it can be switched off in the configuration"
    )]
    Interfaces(io::Error),
    /// Nobody could fetch segments from port 0.
    #[error("discovery: the exchange's port is 0; discovery has to be started after the exchange")]
    NoExchangePort,
}

impl Discovery {
    /// Listens, announces and looks for agents. Must be called inside a tokio runtime, on which
    /// discovery then runs. `exchange_port` is the UDP port that this agent's exchange listens on.
    ///
    /// # Errors
    /// [`DiscoveryError`] when the port is taken, not permitted, or interfaces cannot be watched.
    pub fn start(
        config: DiscoveryConfig,
        identity: &Identity,
        exchange_port: u16,
    ) -> Result<Self, DiscoveryError> {
        if exchange_port == 0 {
            return Err(DiscoveryError::NoExchangePort);
        }
        if std::env::var_os("SSLKEYLOGFILE").is_some() {
            tracing::warn!("SSLKEYLOGFILE is set: libp2p writes the keys of its sessions there");
        }
        let randomness = tokio::task::spawn_blocking(tls::gather_randomness);
        let choice = InterfaceChoice::new(config.interfaces);
        let mut swarm = swarm::new(identity, config.kademlia);
        let port = listen(&mut swarm, config.listen_port)?;
        let own = identity.peer_id();
        let mdns = config
            .mdns
            .then(|| Mdns::start(choice.clone(), own, port))
            .transpose();
        let mdns = mdns.map_err(DiscoveryError::Interfaces)?;
        let (driver, members, status) =
            Driver::new(swarm, mdns, choice, config.static_peers, own, exchange_port);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(driver.run(stopped));
        tracing::info!(peer_id = %own, port, "discovery started");
        Ok(Self {
            peer_id: own,
            port,
            members,
            status,
            stop: Some(stop),
            task,
            _randomness: randomness,
        })
    }

    /// Who is here; it changes as agents come and go. When it closes, discovery has ended.
    pub fn members(&self) -> watch::Receiver<Arc<Membership>> {
        self.members.clone()
    }

    /// This agent's identity.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// The UDP port that other agents may name this one by as a static peer.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// This machine's addresses with the discovery port, loopback not among them.
    ///
    /// # Errors
    /// When the system cannot list its interfaces.
    pub fn local_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let addresses = interfaces::present()?
            .into_iter()
            .map(|present| present.network.address);
        let outside = addresses.filter(|ip| interfaces::is_usable(*ip) && !ip.is_loopback());
        Ok(outside.map(|ip| SocketAddr::new(ip, self.port)).collect())
    }

    /// What discovery does at the moment.
    pub fn status(&self) -> Arc<DiscoveryStatus> {
        self.status.borrow().clone()
    }

    /// Says goodbye, so that peers notice at once, and ends. Takes two seconds at most.
    pub async fn shut_down(mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that the task has ended already.
            let _ = stop.send(());
        }
        if tokio::time::timeout(SHUT_DOWN_DEADLINE, &mut self.task)
            .await
            .is_err()
        {
            tracing::warn!("discovery did not end in time and was stopped");
        }
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens on every address, so that interfaces may come and go; the choice of interfaces is
/// enforced on each connection. Returns the port, the same for IPv4 and IPv6.
fn listen(swarm: &mut Swarm<Behaviour>, wanted: u16) -> Result<u16, DiscoveryError> {
    let failed = |source: io::Error| {
        if wanted != 0 && source.kind() == io::ErrorKind::AddrInUse {
            return DiscoveryError::PortInUse { port: wanted };
        }
        DiscoveryError::Listen {
            port: wanted,
            source,
        }
    };
    for _ in 1..PORT_ATTEMPTS {
        match try_listen(swarm, wanted) {
            Err(error) if wanted == 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            done => return done.map_err(failed),
        }
    }
    try_listen(swarm, wanted).map_err(failed)
}

fn try_listen(swarm: &mut Swarm<Behaviour>, wanted: u16) -> io::Result<u16> {
    // libp2p wraps the reason in an error without kind; trying the port first gives it plainly.
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, wanted))?;
    let port = probe.local_addr()?.port();
    let has_v6 = probe_v6(port)?;
    drop(probe);
    listen_on(swarm, Multiaddr::from(Ipv4Addr::UNSPECIFIED), port)?;
    if has_v6 {
        listen_on(swarm, Multiaddr::from(Ipv6Addr::UNSPECIFIED), port)?;
    }
    Ok(port)
}

/// Whether there is IPv6 at all; an error when there is but the port is taken.
fn probe_v6(port: u16) -> io::Result<bool> {
    use socket2::{Domain, Socket, Type};

    let Ok(socket) = Socket::new(Domain::IPV6, Type::DGRAM, None) else {
        return Ok(false);
    };
    socket.set_only_v6(true)?;
    match socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
        Err(error) => Err(error),
    }
}

fn listen_on(swarm: &mut Swarm<Behaviour>, ip: Multiaddr, port: u16) -> io::Result<()> {
    let address = ip.with(Protocol::Udp(port)).with(Protocol::QuicV1);
    swarm.listen_on(address).map(drop).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Identity::load_or_create(&folder.path().join("identity")).expect("an identity")
    }

    fn quiet(listen_port: u16) -> DiscoveryConfig {
        DiscoveryConfig {
            mdns: false,
            listen_port,
            ..DiscoveryConfig::default()
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let holder = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
        let port = holder.local_addr().expect("its address").port();
        let error = Discovery::start(quiet(port), &identity(), 1).expect_err("the port is taken");
        assert!(matches!(error, DiscoveryError::PortInUse { .. }), "{error}");
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }

    #[tokio::test]
    async fn without_an_exchange_there_is_nothing_to_discover() {
        let error = Discovery::start(quiet(0), &identity(), 0).expect_err("no exchange");
        assert!(matches!(error, DiscoveryError::NoExchangePort), "{error}");
    }

    /// One way only knows of the other: the second has to learn of the first by being connected to.
    #[tokio::test]
    async fn a_static_peer_and_who_has_it_see_each_other_without_mdns() {
        for localhost in ["127.0.0.1", "[::1]", "localhost"] {
            let (first, second) = (identity(), identity());
            let listening = Discovery::start(quiet(0), &first, 7001).expect("started");
            let address = format!("{localhost}:{}", listening.port());
            let config = DiscoveryConfig {
                static_peers: vec![address.parse().expect("a static peer")],
                ..quiet(0)
            };
            let dialling = Discovery::start(config, &second, 7002).expect("started");
            let seen = member(&dialling, first.peer_id()).await;
            assert_eq!(
                (seen.found_by, port_of(&seen)),
                (crate::FoundBy::Static, 7001)
            );
            let seen = member(&listening, second.peer_id()).await;
            assert_eq!(
                (seen.found_by, port_of(&seen)),
                (crate::FoundBy::Inbound, 7002)
            );
            dialling.shut_down().await;
            nobody(&listening).await;
        }
    }

    fn port_of(member: &crate::Member) -> u16 {
        member.exchange_addresses[0].port()
    }

    async fn member(discovery: &Discovery, peer: PeerId) -> crate::Member {
        let mut members = discovery.members();
        let here = members.wait_for(|now| now.member(&peer).is_some());
        let here = tokio::time::timeout(Duration::from_secs(20), here).await;
        let here = here.expect("it joins in time").expect("discovery runs");
        here.member(&peer).expect("it is here").clone()
    }

    async fn nobody(discovery: &Discovery) {
        let mut members = discovery.members();
        let empty = members.wait_for(|now| now.count() == 0);
        // Less than the idle timeout: the goodbye was heard.
        let empty = tokio::time::timeout(Duration::from_secs(2), empty).await;
        drop(empty.expect("it leaves at once").expect("discovery runs"));
    }
}
