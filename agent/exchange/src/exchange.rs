//! The handle on a running exchange.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use branchline_core::PeerId;
use branchline_core::swarm::Enlist;
use branchline_discovery::Identity;
use branchline_hashing::ContentKey;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::announce::{self, Announcer};
use crate::enlist::{self, StewardLink};
use crate::error::{DialError, ExchangeError, JoinError};
use crate::hub::{Hub, HubHandle};
use crate::options::{ExchangeOptions, Listen};
use crate::seat::StewardSeat;
use crate::serve::Server;
use crate::session::PeerSession;
use crate::socket::BatchingSocket;
use crate::source::ContentSource;
use crate::tls;
use crate::transport;
use crate::upload::UploadStats;

/// Commands that wait for the exchange's thread; a full queue makes the caller wait.
const COMMAND_QUEUE: usize = 256;

/// How long [`Exchange::shut_down`] waits: the hub's own deadline and some.
const SHUT_DOWN_DEADLINE: Duration = Duration::from_secs(5);

/// A running exchange: it serves what its source has, and joins swarms at other peers. Dropping it
/// stops it without waiting.
pub struct Exchange {
    address: SocketAddr,
    hub: HubHandle,
    server: Arc<Server>,
    /// Announcers say something at least as often.
    speak_up_after: Duration,
    /// Dropping it stops the hub.
    stop: Option<oneshot::Sender<()>>,
    ended: Option<oneshot::Receiver<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Exchange {
    /// Opens the socket and starts the thread.
    ///
    /// # Errors
    /// [`ExchangeError`]; a port in use has a variant of its own.
    pub fn start(
        options: ExchangeOptions,
        identity: Identity,
        source: Arc<dyn ContentSource>,
    ) -> Result<Self, ExchangeError> {
        Self::start_any(options, identity, source, None)
    }

    /// The same for an agent that is a steward: other agents' enlistments and announcements come out of
    /// `seat`. Without one they are refused.
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub fn start_with_seat(
        options: ExchangeOptions,
        identity: Identity,
        source: Arc<dyn ContentSource>,
        seat: StewardSeat,
    ) -> Result<Self, ExchangeError> {
        Self::start_any(options, identity, source, Some(seat))
    }

    fn start_any(
        options: ExchangeOptions,
        identity: Identity,
        source: Arc<dyn ContentSource>,
        seat: Option<StewardSeat>,
    ) -> Result<Self, ExchangeError> {
        let socket =
            transport::open_socket(options.listen).map_err(|e| socket_error(options.listen, e))?;
        let address = socket.local_addr().map_err(ExchangeError::Socket)?;
        let accepting = server_config(&options, &identity)?;
        let server = Server::start(&options, source, seat).map_err(ExchangeError::Thread)?;
        let server = Arc::new(server);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ExchangeError::Thread)?;
        let (endpoint, socket) = open_endpoint(&runtime, accepting.clone(), socket)?;
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let hub = HubHandle::new(commands);
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let speak_up_after = options.steward_idle_timeout / 3;
        let serving = Arc::clone(&server);
        let work = Hub::new(endpoint, identity, options, accepting, serving, receiver);
        let thread = std::thread::Builder::new()
            .name("bl-exchange".to_owned())
            .spawn(move || {
                runtime.block_on(run(work, socket, stopped));
                drop(runtime);
                let _nobody_waits = end.send(());
            })
            .map_err(ExchangeError::Thread)?;
        let (stop, ended, thread) = (Some(stop), Some(ended), Some(thread));
        Ok(Self {
            address,
            hub,
            server,
            speak_up_after,
            stop,
            ended,
            thread,
        })
    }

    /// The UDP port it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Begins a connection to `peer`, unless there is one: it stays for some seconds, for who is about to have something to
    /// say. Best effort.
    pub fn warm(&self, peer: PeerId, addresses: Vec<SocketAddr>) {
        self.hub.warm(peer, addresses);
    }

    /// Joins the swarm of `key` at `peer`, dialling it at `addresses` unless there is a connection
    /// already. Cancel-safe: a connection nobody uses is closed after some seconds. The future runs on any runtime, or none.
    ///
    /// # Errors
    /// [`JoinError`]: not reached, or reached and refused.
    pub fn join(
        &self,
        peer: PeerId,
        addresses: Vec<SocketAddr>,
        key: ContentKey,
    ) -> impl Future<Output = Result<PeerSession, JoinError>> + Send + use<> {
        let hub = self.hub.clone();
        async move {
            let link = hub.link(peer, addresses).await?;
            Ok(PeerSession::join(hub, link, key).await?)
        }
    }

    /// Enlists at `peer`, the steward of a swarm, dialling it as [`Exchange::join`] does. What the
    /// steward says to it, a refusal too, comes from the link. Cancel-safe.
    ///
    /// # Errors
    /// [`DialError`].
    pub fn enlist(
        &self,
        peer: PeerId,
        addresses: Vec<SocketAddr>,
        enlist: Enlist,
    ) -> impl Future<Output = Result<StewardLink, DialError>> + Send + use<> {
        let hub = self.hub.clone();
        async move {
            let link = hub.link(peer, addresses).await?;
            Ok(enlist::start(&hub, link, enlist))
        }
    }

    /// Opens the stream on which this agent tells `peer` what it holds, dialling it as
    /// [`Exchange::join`] does. One at a time for each peer. Cancel-safe.
    ///
    /// # Errors
    /// [`DialError`].
    pub fn announce(
        &self,
        peer: PeerId,
        addresses: Vec<SocketAddr>,
    ) -> impl Future<Output = Result<Announcer, DialError>> + Send + use<> {
        let (hub, speak_up_after) = (self.hub.clone(), self.speak_up_after);
        async move {
            let link = hub.link(peer, addresses).await?;
            Ok(announce::start(&hub, link, speak_up_after))
        }
    }

    /// What was served since the start.
    pub fn upload_stats(&self) -> UploadStats {
        self.server.stats()
    }

    /// Takes no more connections, tells every peer goodbye, and ends the threads. Bounded by a
    /// few seconds.
    pub async fn shut_down(mut self) {
        self.stop.take();
        let Some(ended) = self.ended.take() else {
            return;
        };
        if let Some(thread) = self.thread.take()
            && wait(ended).await
        {
            let _panicked = thread.join();
        }
    }
}

/// The hub, and beside it the task that sends what waits in batches: a task of its own, or each batch
/// would wake the hub. Without it nothing can be sent, so its end is the exchange's.
async fn run(hub: Hub, socket: Arc<BatchingSocket>, stopped: oneshot::Receiver<()>) {
    let mut sending = JoinSet::new();
    sending.spawn(async move { socket.send_batches().await });
    tokio::select! {
        () = hub.run(stopped) => {}
        Some(ended) = sending.join_next() => {
            tracing::error!(?ended, "the exchange's socket has broken; nothing is shared any more");
        }
    }
}

/// Whether the thread said that it has ended, in time.
async fn wait(ended: oneshot::Receiver<()>) -> bool {
    let in_time = tokio::time::timeout(SHUT_DOWN_DEADLINE, ended)
        .await
        .is_ok();
    if !in_time {
        tracing::warn!("the exchange's thread did not end in time and is left behind");
    }
    in_time
}

/// But for the transport, which depends on the address ([`Hub`]).
pub(crate) fn server_config(
    options: &ExchangeOptions,
    identity: &Identity,
) -> Result<quinn::ServerConfig, ExchangeError> {
    let crypto = tls::server_crypto(identity)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.max_incoming(options.max_connections);
    Ok(config)
}

fn open_endpoint(
    runtime: &tokio::runtime::Runtime,
    accepting: quinn::ServerConfig,
    socket: UdpSocket,
) -> Result<(quinn::Endpoint, Arc<BatchingSocket>), ExchangeError> {
    let _inside = runtime.enter();
    let socket = Arc::new(BatchingSocket::new(socket).map_err(ExchangeError::Socket)?);
    let tokio = Arc::new(quinn::TokioRuntime);
    let (config, under) = (transport::endpoint(), Arc::clone(&socket));
    quinn::Endpoint::new_with_abstract_socket(config, Some(accepting), under, tokio)
        .map(|endpoint| (endpoint, socket))
        .map_err(ExchangeError::Socket)
}

fn socket_error(listen: Listen, error: io::Error) -> ExchangeError {
    let port = match listen {
        Listen::Everywhere { port } => port,
        Listen::On(address) => address.port(),
    };
    if error.kind() == io::ErrorKind::AddrInUse {
        ExchangeError::PortInUse { port }
    } else {
        ExchangeError::Socket(error)
    }
}
