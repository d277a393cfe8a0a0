//! The exchange's one owner of state: connections by peer, and every task.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use branchline_core::PeerId;
use branchline_core::swarm::WARM_FOR;
use branchline_core::wire::CloseCode;
use branchline_discovery::Identity;
use quinn::{Connection, Endpoint, ServerConfig, VarInt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id as TaskId, JoinError as TaskError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use crate::dial;
use crate::error::{DialError, PeerFailure};
use crate::options::ExchangeOptions;
use crate::serve::{self, Server};
use crate::{tls, transport};

/// Tasks of sessions and downloads at one time: far above what the engine starts; beyond, a task
/// is dropped, which tells its caller: a question's answer is [`PeerFailure::Stopped`], and a
/// download's last event too.
const MAX_TASKS: usize = 4096;

/// Between the end of all uploads and the goodbye. quinn sends no CONNECTION_CLOSE while the
/// congestion window is full and takes no acknowledgements once a connection is closed: what is in
/// flight has to arrive first. A LAN's round trip and the 25 ms that acknowledgements may be delayed.
const SETTLE: Duration = Duration::from_millis(100);

/// A link stays so long after somebody asked for it, twice that at most: who was asked for a manifest is joined a moment later,
/// and each handshake costs both sides milliseconds of a core.
const LINGER: Duration = WARM_FOR;

/// Links that linger at a time: the others' places for connections are few.
const MAX_LINGERING: usize = 32;

/// How long peers have to hear the goodbye.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
type LinkReply = oneshot::Sender<Result<Arc<Link>, DialError>>;

pub(crate) enum Command {
    Link {
        peer: PeerId,
        addresses: Vec<SocketAddr>,
        reply: LinkReply,
    },
    Run(Task),
}

/// A connection this agent dialled. When the last session on it has ended and it has lingered, it is closed.
pub(crate) struct Link {
    pub(crate) peer: PeerId,
    pub(crate) connection: Connection,
    pub(crate) answer_timeout: Duration,
}

impl Link {
    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        self.connection
            .close(VarInt::from_u32(code.code()), reason.as_bytes());
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close(CloseCode::Done, "");
    }
}

/// Gives work to the exchange's thread.
#[derive(Clone)]
pub(crate) struct HubHandle {
    commands: mpsc::Sender<Command>,
}

impl HubHandle {
    pub(crate) fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands }
    }

    /// A connection to `peer`: the one there is, or a new one.
    pub(crate) async fn link(
        &self,
        peer: PeerId,
        addresses: Vec<SocketAddr>,
    ) -> Result<Arc<Link>, DialError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Link {
            peer,
            addresses,
            reply,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| DialError::Stopped)?;
        answer.await.unwrap_or(Err(DialError::Stopped))
    }

    /// Has a link made or kept, if there is room for the wish.
    pub(crate) fn warm(&self, peer: PeerId, addresses: Vec<SocketAddr>) {
        let (reply, _nobody_waits) = oneshot::channel();
        let command = Command::Link {
            peer,
            addresses,
            reply,
        };
        let _no_room = self.commands.try_send(command);
    }

    /// Runs `work` on the exchange's thread; dropping the returned future ends it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, PeerFailure>> + Send + 'static,
    ) -> Result<T, PeerFailure> {
        let (mut reply, answer) = oneshot::channel();
        let task = async move {
            tokio::select! {
                () = reply.closed() => {}
                result = work => { let _nobody_waits = reply.send(result); }
            }
        };
        let command = Command::Run(Box::pin(task));
        self.commands
            .send(command)
            .await
            .map_err(|_| PeerFailure::Stopped)?;
        answer.await.unwrap_or(Err(PeerFailure::Stopped))
    }

    /// Starts `task` on the exchange's thread, or drops it when that takes no more.
    pub(crate) fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        let _dropped = self.commands.try_send(Command::Run(Box::pin(task)));
    }
}

enum LinkState {
    Dialling {
        task: TaskId,
        waiting: Vec<LinkReply>,
    },
    Up(Weak<Link>),
}

pub(crate) struct Hub {
    endpoint: Endpoint,
    identity: Identity,
    options: ExchangeOptions,
    /// How connections are accepted, but for what depends on the address.
    accepting: ServerConfig,
    server: Arc<Server>,
    commands: mpsc::Receiver<Command>,
    links: BTreeMap<PeerId, LinkState>,
    /// Links that were asked for lately, and until when they stay.
    lingering: BTreeMap<PeerId, (Instant, Arc<Link>)>,
    dials: JoinSet<(PeerId, Result<Connection, DialError>)>,
    tasks: JoinSet<()>,
    serving: JoinSet<()>,
}

impl Hub {
    pub(crate) fn new(
        endpoint: Endpoint,
        identity: Identity,
        options: ExchangeOptions,
        accepting: ServerConfig,
        server: Arc<Server>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let links = BTreeMap::new();
        let (dials, tasks, serving) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
        Self {
            endpoint,
            identity,
            options,
            accepting,
            server,
            commands,
            links,
            lingering: BTreeMap::new(),
            dials,
            tasks,
            serving,
        }
    }

    pub(crate) async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut look = tokio::time::interval(LINGER);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                Some(command) = self.commands.recv() => self.handle_command(command),
                Some(incoming) = self.endpoint.accept() => self.handle_incoming(incoming),
                Some(dialled) = self.dials.join_next() => self.handle_dialled(dialled),
                Some(ended) = self.tasks.join_next() => note_end(ended),
                Some(ended) = self.serving.join_next() => note_end(ended),
                now = look.tick(), if !self.lingering.is_empty() => {
                    self.lingering.retain(|_, (until, _)| now < *until);
                }
            }
        }
        self.say_goodbye().await;
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Link {
                peer,
                addresses,
                reply,
            } => self.handle_link(peer, addresses, reply),
            Command::Run(task) => {
                if self.tasks.len() < MAX_TASKS {
                    self.tasks.spawn(task);
                }
            }
        }
    }

    fn handle_link(&mut self, peer: PeerId, addresses: Vec<SocketAddr>, reply: LinkReply) {
        self.links.retain(|_, state| match state {
            LinkState::Dialling { .. } => true,
            LinkState::Up(link) => link.strong_count() > 0,
        });
        match self.links.get_mut(&peer) {
            Some(LinkState::Dialling { waiting, .. }) => return waiting.push(reply),
            Some(LinkState::Up(link)) => {
                if let Some(link) = link
                    .upgrade()
                    .filter(|l| l.connection.close_reason().is_none())
                {
                    linger(&mut self.lingering, &link);
                    let _nobody_waits = reply.send(Ok(link));
                    return;
                }
            }
            None => {}
        }
        match self.dial(peer, addresses) {
            Ok(task) => {
                let waiting = vec![reply];
                let state = LinkState::Dialling { task, waiting };
                self.links.insert(peer, state);
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn dial(&mut self, peer: PeerId, addresses: Vec<SocketAddr>) -> Result<TaskId, DialError> {
        if peer == self.identity.peer_id() {
            return Err(DialError::Ourselves { peer });
        }
        let crypto = tls::client_crypto(&self.identity, peer).map_err(|error| DialError::Tls {
            peer,
            reason: error.to_string(),
        })?;
        let (endpoint, options) = (self.endpoint.clone(), self.options.clone());
        let task = self.dials.spawn(async move {
            (
                peer,
                dial::dial(&endpoint, crypto, peer, addresses, &options).await,
            )
        });
        Ok(task.id())
    }

    /// The peer that this task dialled.
    fn dialled_by(&self, broken: TaskId) -> Option<PeerId> {
        let dialled = self.links.iter().find(|(_, state)| match state {
            LinkState::Dialling { task, .. } => *task == broken,
            LinkState::Up(_) => false,
        });
        dialled.map(|(peer, _)| *peer)
    }

    fn handle_dialled(
        &mut self,
        ended: Result<(PeerId, Result<Connection, DialError>), TaskError>,
    ) {
        let (peer, result) = match ended {
            Ok(dialled) => dialled,
            Err(error) => {
                tracing::error!(%error, "a task that dialled a peer broke");
                let Some(peer) = self.dialled_by(error.id()) else {
                    return;
                };
                (peer, Err(DialError::Broke { peer }))
            }
        };
        let Some(LinkState::Dialling { waiting, .. }) = self.links.remove(&peer) else {
            return;
        };
        let answer_timeout = self.options.answer_timeout;
        let result = result.map(|connection| {
            Arc::new(Link {
                peer,
                connection,
                answer_timeout,
            })
        });
        if let Ok(link) = &result {
            self.links.insert(peer, LinkState::Up(Arc::downgrade(link)));
            linger(&mut self.lingering, link);
        }
        for reply in waiting {
            let _nobody_waits = reply.send(result.clone());
        }
    }

    fn handle_incoming(&mut self, incoming: quinn::Incoming) {
        if self.serving.len() >= self.options.max_connections {
            return incoming.refuse();
        }
        let address = incoming.remote_address();
        let mut accepting = self.accepting.clone();
        let streams = transport::MAX_STREAMS_PER_CONNECTION;
        accepting.transport_config(transport::transport_to(address, &self.options, streams));
        match incoming.accept_with(Arc::new(accepting)) {
            Ok(connecting) => {
                let server = Arc::clone(&self.server);
                self.serving
                    .spawn(serve::serve_connection(server, connecting));
            }
            Err(error) => tracing::debug!(%address, %error, "no handshake with a peer"),
        }
    }

    async fn say_goodbye(mut self) {
        self.endpoint.set_server_config(None);
        self.commands.close();
        self.server.stop_uploads();
        if !self.serving.is_empty() {
            tokio::time::sleep(SETTLE).await;
        }
        let code = VarInt::from_u32(CloseCode::ShuttingDown.code());
        self.endpoint.close(code, b"the agent stops");
        if tokio::time::timeout(GOODBYE_DEADLINE, self.endpoint.wait_idle())
            .await
            .is_err()
        {
            tracing::debug!("not every peer has heard the goodbye");
        }
    }
}

fn linger(lingering: &mut BTreeMap<PeerId, (Instant, Arc<Link>)>, link: &Arc<Link>) {
    if lingering.len() >= MAX_LINGERING && !lingering.contains_key(&link.peer) {
        return;
    }
    lingering.insert(link.peer, (Instant::now() + LINGER, Arc::clone(link)));
}

fn note_end(ended: Result<(), TaskError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a task of the exchange broke");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use branchline_hashing::{ContentKey, SwarmId};

    use super::*;
    use crate::exchange::server_config;
    use crate::source::{ContentSource, ServedContent};

    struct Nothing;

    impl ContentSource for Nothing {
        fn key(&self, _: &SwarmId) -> Option<ContentKey> {
            None
        }

        fn content(&self, _: &SwarmId) -> Option<Arc<dyn ServedContent>> {
            None
        }
    }

    fn hub() -> Hub {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let identity = Identity::load_or_create(&folder.path().join("identity"));
        let identity = identity.expect("an identity");
        let options = ExchangeOptions::default();
        let accepting = server_config(&options, &identity).expect("TLS");
        let server = Server::start(&options, Arc::new(Nothing), None).expect("threads");
        let endpoint = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        Hub::new(
            endpoint.expect("a socket"),
            identity,
            options,
            accepting,
            Arc::new(server),
            mpsc::channel(1).1,
        )
    }

    #[tokio::test]
    async fn who_waits_for_a_dial_that_breaks_is_told_and_the_peer_can_be_dialled_again() {
        let mut hub = hub();
        let peer = PeerId::from_public_key([1; 32]);
        let (reply, answer) = oneshot::channel();
        let task = hub.dials.spawn(async { panic!("as a bug would") }).id();
        let waiting = vec![reply];
        hub.links
            .insert(peer, LinkState::Dialling { task, waiting });
        let broken = hub.dials.join_next().await.expect("one task");
        hub.handle_dialled(broken);
        let told = answer.await.expect("told").err();
        assert!(matches!(told, Some(DialError::Broke { .. })), "{told:?}");
        assert!(hub.links.is_empty());
    }

    #[tokio::test]
    async fn a_task_too_many_is_dropped() {
        let mut hub = hub();
        for _ in 0..MAX_TASKS {
            hub.handle_command(Command::Run(Box::pin(std::future::pending())));
        }
        let (held, dropped) = oneshot::channel::<()>();
        hub.handle_command(Command::Run(Box::pin(async move {
            std::future::pending::<()>().await;
            drop(held);
        })));
        assert!(dropped.await.is_err());
        assert_eq!(hub.tasks.len(), MAX_TASKS);
    }
}
