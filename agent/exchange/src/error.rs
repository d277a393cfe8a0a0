//! What can go wrong, by operation.

use std::net::SocketAddr;
use std::time::Duration;

use branchline_core::PeerId;
use branchline_core::wire::WireError;
use branchline_hashing::SegmentIndex;

use crate::tls::TlsError;

/// An exchange that could not start.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Another program has the port.
    #[error(
        "cannot listen on UDP port {port}: another program uses it; stop that program, or configure another port"
    )]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// The socket could not be opened for another reason.
    #[error("cannot open the UDP socket for peers: {0}; check the listen address")]
    Socket(#[source] std::io::Error),
    /// No TLS configuration could be made from the identity.
    #[error("cannot set up TLS for peers: {0}")]
    Tls(#[from] TlsError),
    /// The thread or its runtime could not be made.
    #[error("cannot start the exchange's thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// A peer that could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// It is this agent.
    #[error("peer {peer} is this agent itself")]
    Ourselves {
        /// Who.
        peer: PeerId,
    },
    /// None of its addresses is known.
    #[error("no address of peer {peer} is known")]
    NoAddress {
        /// Who.
        peer: PeerId,
    },
    /// Somebody answered who is not the peer, or does not speak the protocol.
    #[error("{address} is not peer {peer} or speaks no branchline/1: {reason}")]
    Handshake {
        /// Who was expected.
        peer: PeerId,
        /// Where.
        address: SocketAddr,
        /// What TLS says.
        reason: String,
    },
    /// No address answered.
    #[error("peer {peer} does not answer at {address} ({tried} addresses tried): {reason}")]
    Unreachable {
        /// Who.
        peer: PeerId,
        /// The address that failed last.
        address: SocketAddr,
        /// How many were tried.
        tried: usize,
        /// Why.
        reason: String,
    },
    /// No TLS configuration could be made for it.
    #[error("cannot set up TLS for peer {peer}: {reason}")]
    Tls {
        /// Who.
        peer: PeerId,
        /// Why.
        reason: String,
    },
    /// The attempt itself broke; the log says how.
    #[error("dialling peer {peer} broke: a defect, of which the log says more")]
    Broke {
        /// Who.
        peer: PeerId,
    },
    /// The exchange was shut down.
    #[error("the exchange was shut down")]
    Stopped,
}

/// A swarm that could not be joined at a peer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JoinError {
    /// The peer could not be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It was, and then did not let this agent join.
    #[error(transparent)]
    Peer(#[from] PeerFailure),
}

/// Why a peer gives nothing (more).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerFailure {
    /// It has no such content, or does not believe that this agent may have it.
    #[error("the peer does not share this content")]
    Unknown,
    /// It has too much to do.
    #[error("the peer is busy for another {retry_after:?}")]
    Busy {
        /// When to try again, by its own word.
        retry_after: Duration,
    },
    /// It broke the protocol; the connection is closed.
    #[error("the peer misbehaved: {0}")]
    Misbehaved(#[from] Misbehaviour),
    /// The connection or a stream is gone.
    #[error("the connection to the peer is lost: {reason}")]
    Lost {
        /// Why, as far as QUIC knows.
        reason: String,
    },
    /// It did not answer in time.
    #[error("the peer did not answer within {waited:?}")]
    TimedOut {
        /// How long it had.
        waited: Duration,
    },
    /// The exchange was shut down, or has too much to do.
    #[error("this agent's exchange was shut down or does not take more")]
    Stopped,
}

/// What a peer did that no honest one does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misbehaviour {
    /// Bytes that are no message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A message that does not belong here.
    #[error("a message out of place: {message}")]
    OutOfPlace {
        /// Which.
        message: String,
    },
    /// It does not know the content's key, though it knows the swarm.
    #[error("its proof of the content's key is wrong")]
    WrongProof,
    /// Another segment than the one that is next.
    #[error("segment {found} came where {expected} was next")]
    WrongOrder {
        /// What was next.
        expected: SegmentIndex,
        /// What came.
        found: SegmentIndex,
    },
    /// A segment of another length than the manifest says.
    #[error("segment {index} came with {found} bytes, the manifest says {expected}")]
    WrongLength {
        /// Which.
        index: SegmentIndex,
        /// The manifest's length.
        expected: u32,
        /// The peer's.
        found: u32,
    },
    /// The stream ended in the middle of something.
    #[error("the stream ended in the middle of {what}")]
    Truncated {
        /// What.
        what: &'static str,
    },
    /// A manifest beyond the limit.
    #[error("its manifest has {length} bytes, more than {limit}")]
    ManifestTooLong {
        /// The length.
        length: u32,
        /// The limit.
        limit: usize,
    },
    /// A set of segments of some other content.
    #[error("it speaks of {found} segments, the manifest has {expected}")]
    WrongSegmentCount {
        /// The manifest's.
        expected: u32,
        /// The peer's.
        found: u32,
    },
}

impl PeerFailure {
    pub(crate) fn lost(error: &dyn std::error::Error) -> Self {
        let reason = match error.source() {
            Some(source) => source.to_string(),
            None => error.to_string(),
        };
        Self::Lost { reason }
    }
}
