//! The UDP socket under quinn: gathers what quinn sends into larger batches, and cuts those that are
//! too large.
//!
//! quinn hands over at most ten packets at a time, 14 KB at an MTU of 1500; the kernel takes 64 KB in
//! one call (UDP_SEGMENT, udp(7)) and carries them through the network stack as one. A batch waits
//! no longer than until the tasks that are ready have run. Past an MTU of 6,500 ten packets exceed
//! what one call can carry; they are sent in several. Measured at an MTU of 1500: 18,000 calls for
//! 1 GiB in place of 76,000, a seventh less CPU on both sides together.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

/// The most bytes in one call: the longest UDP payload over IPv4, 65,507 (RFC 791, RFC 768).
const MAX_BATCH_BYTES: usize = 65_507;

/// See the module's text. Send errors other than "would block" are packets lost, as quinn-udp holds it.
pub(crate) struct BatchingSocket {
    io: UdpSocket,
    state: UdpSocketState,
    pending: Mutex<Batch>,
    /// Told when a batch has begun.
    begun: Notify,
}

/// Datagrams of one length to one place; only the last may be shorter.
struct Batch {
    bytes: Vec<u8>,
    /// Nothing is waiting while this is `None`.
    kind: Option<Kind>,
    /// Whether others may follow. Not after a lone datagram: it may be longer than the path takes, to
    /// find that out (RFC 8899), and a call that fails loses all that is in it.
    open: bool,
    /// The network took nothing when it was asked last.
    held_up: bool,
}

/// What the datagrams of a batch have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    destination: SocketAddr,
    source: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    datagram_bytes: usize,
}

impl Kind {
    fn of(transmit: &Transmit<'_>) -> Self {
        Self {
            destination: transmit.destination,
            source: transmit.src_ip,
            ecn: transmit.ecn,
            datagram_bytes: transmit.segment_size.unwrap_or(transmit.contents.len()),
        }
    }

    /// The most bytes that one call takes of whole datagrams.
    fn most_bytes(&self, most_datagrams: usize) -> usize {
        let fitting = (MAX_BATCH_BYTES / self.datagram_bytes.max(1)).min(most_datagrams);
        fitting.max(1) * self.datagram_bytes
    }
}

/// How much of what waits is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    /// Only what fills calls to the kernel.
    WholeCalls,
}

impl BatchingSocket {
    /// Takes a bound socket. Inside a tokio runtime only.
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self {
            io: UdpSocket::from_std(socket)?,
            state,
            pending: Mutex::new(Batch {
                bytes: Vec::with_capacity(MAX_BATCH_BYTES),
                kind: None,
                open: false,
                held_up: false,
            }),
            begun: Notify::new(),
        })
    }

    /// Sends each batch once everybody who is ready to add to it has. Never ends.
    pub(crate) async fn send_batches(&self) {
        loop {
            self.begun.notified().await;
            // The connection that began the batch is the next to run but for others that are ready.
            tokio::task::yield_now().await;
            while let Err(error) = self.flush() {
                tracing::trace!(%error, "the network takes nothing at the moment");
                if self.io.writable().await.is_err() {
                    return;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush(&self) -> io::Result<()> {
        self.send(&mut self.lock(), Part::All)
    }

    /// Sends what waits; an error means "would block", and leaves what was not sent.
    fn send(&self, batch: &mut Batch, part: Part) -> io::Result<()> {
        while let Some(kind) = batch.kind {
            let most = kind.most_bytes(self.state.max_gso_segments());
            if part == Part::WholeCalls && batch.bytes.len() < most {
                break;
            }
            let contents = &batch.bytes[..batch.bytes.len().min(most)];
            let sent = self.io.try_io(Interest::WRITABLE, || {
                let transmit = Transmit {
                    destination: kind.destination,
                    ecn: kind.ecn,
                    contents,
                    segment_size: (contents.len() > kind.datagram_bytes)
                        .then_some(kind.datagram_bytes),
                    src_ip: kind.source,
                };
                self.state.send((&self.io).into(), &transmit)?;
                Ok(contents.len())
            });
            batch.held_up = sent.is_err();
            batch.bytes.drain(..sent?);
            if batch.bytes.is_empty() {
                batch.kind = None;
            }
        }
        Ok(())
    }
}

impl Batch {
    /// Whether `kind`'s datagrams can follow what waits.
    fn accepts(&self, kind: &Kind) -> bool {
        let waiting = self.bytes.len();
        self.open
            && self.kind.as_ref() == Some(kind)
            && waiting.is_multiple_of(kind.datagram_bytes.max(1))
            && waiting < MAX_BATCH_BYTES
    }
}

impl AsyncUdpSocket for BatchingSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            socket: self,
            writable: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let kind = Kind::of(transmit);
        let mut batch = self.lock();
        if !batch.accepts(&kind) {
            self.send(&mut batch, Part::All)?;
            batch.kind = Some(kind);
            batch.open = transmit.segment_size.is_some();
        }
        batch.bytes.extend_from_slice(transmit.contents);
        // What does not go now goes later: `send_batches` is told.
        let _would_block = self.send(&mut batch, Part::WholeCalls);
        if batch.kind.is_some() {
            self.begun.notify_one();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let received = self.io.try_io(Interest::READABLE, || {
                self.state.recv((&self.io).into(), buffers, meta)
            });
            if let Ok(count) = received {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

impl fmt::Debug for BatchingSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchingSocket")
            .field("io", &self.io)
            .finish_non_exhaustive()
    }
}

/// Waits until the socket takes more; one for each connection, each with a waker of its own.
struct Poller {
    socket: Arc<BatchingSocket>,
    writable: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.socket.lock().held_up {
            return Poll::Ready(Ok(()));
        }
        let socket = Arc::clone(&self.socket);
        let writable = self
            .writable
            .get_or_insert_with(|| Box::pin(async move { socket.io.writable().await }));
        let result = ready!(writable.as_mut().poll(cx));
        self.writable = None;
        Poll::Ready(result)
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    async fn pair() -> (Arc<BatchingSocket>, UdpSocket) {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sender = std::net::UdpSocket::bind(any).expect("a socket");
        let sender = BatchingSocket::new(sender).expect("a non-blocking socket");
        sender.io.writable().await.expect("a working socket");
        let receiver = UdpSocket::bind(any).await.expect("a socket");
        (Arc::new(sender), receiver)
    }

    fn send(socket: &BatchingSocket, to: &UdpSocket, contents: &[u8], datagram_bytes: usize) {
        let transmit = Transmit {
            destination: to.local_addr().expect("bound"),
            ecn: None,
            contents,
            segment_size: (contents.len() > datagram_bytes).then_some(datagram_bytes),
            src_ip: None,
        };
        socket
            .try_send(&transmit)
            .expect("an idle network takes it");
    }

    async fn lengths_of(receiver: &UdpSocket, count: usize) -> Vec<usize> {
        let mut lengths = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        for _ in 0..count {
            let next = receiver.recv(&mut buffer);
            let next = tokio::time::timeout(Duration::from_secs(10), next).await;
            lengths.push(next.expect("all arrive").expect("received"));
        }
        lengths
    }

    #[tokio::test]
    async fn transmits_that_fit_together_wait_for_one_call() {
        let (socket, receiver) = pair().await;
        send(&socket, &receiver, &[1; 3000], 1000);
        send(&socket, &receiver, &[2; 2500], 1000);
        assert_eq!(socket.lock().bytes.len(), 5500);
        socket.flush().expect("sent");
        assert!(socket.lock().kind.is_none());
        let lengths = lengths_of(&receiver, 6).await;
        assert_eq!(lengths, [1000, 1000, 1000, 1000, 1000, 500]);
    }

    #[tokio::test]
    async fn nothing_follows_a_short_datagram_or_one_of_another_length() {
        let (socket, receiver) = pair().await;
        send(&socket, &receiver, &[1; 1500], 1000);
        send(&socket, &receiver, &[2; 1000], 1000);
        assert_eq!(
            socket.lock().bytes.len(),
            1000,
            "the first two are on their way"
        );
        send(&socket, &receiver, &[3; 1400], 1400);
        send(&socket, &receiver, &[4; 1400], 1400);
        assert_eq!(socket.lock().bytes.len(), 1400, "a lone one stays alone");
        socket.flush().expect("sent");
        assert_eq!(
            lengths_of(&receiver, 5).await,
            [1000, 500, 1000, 1400, 1400]
        );
    }

    #[tokio::test]
    async fn what_one_call_cannot_carry_is_cut_between_datagrams() {
        let (socket, receiver) = pair().await;
        send(&socket, &receiver, &[1; 89_520], 8952);
        assert_eq!(socket.lock().bytes.len(), 3 * 8952, "seven went at once");
        socket.flush().expect("sent");
        assert_eq!(lengths_of(&receiver, 10).await, [8952; 10]);
    }

    #[tokio::test]
    async fn a_batch_that_nobody_fills_is_sent_all_the_same() {
        let (socket, receiver) = pair().await;
        let sending = Arc::clone(&socket);
        let sender = tokio::spawn(async move { sending.send_batches().await });
        send(&socket, &receiver, &[1; 700], 1000);
        assert_eq!(lengths_of(&receiver, 1).await, [700]);
        sender.abort();
    }
}
