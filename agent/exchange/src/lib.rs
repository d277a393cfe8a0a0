//! Segments between peers: the protocol `branchline/1` over QUIC (`docs/exchange.md`).
//!
//! An [`Exchange`] runs on a thread of its own with a current-thread runtime: measured, two worker
//! threads cost 1.3 times the CPU of one. On that thread nothing hashes, reads a disk or waits for
//! a lock; the [`ContentSource`] is asked on reader threads, and what arrives leaves through
//! bounded channels, unverified, to whoever verifies it.
//!
//! Invariants: nothing about a content but its swarm id travels before both sides have proved that
//! they know its key; every buffer's size is bounded by the manifest or a constant, never by a
//! peer's claim; a requester is the side that dialled, so proofs cannot be turned around.
//!
//! Streams of stewards and announcers need no proof and say nothing but swarm ids, numbers of blocks and
//! peers; what comes in on them is the owner's [`StewardSeat`]'s, and what it means is
//! `branchline_core::swarm`'s.
//!
//! Not here: which segment to ask of whom, stalled peers, retries (the planner's), and whether a
//! segment is right (the writer's: this crate never hashes one).

mod announce;
mod dial;
mod download;
mod enlist;
mod error;
mod exchange;
mod hub;
mod options;
mod peer_limit;
mod proof;
mod reader_pool;
mod reading;
mod seat;
mod serve;
mod session;
mod sink;
mod socket;
mod source;
mod tls;
mod transport;
mod upload;
mod watch;

pub use announce::Announcer;
pub use download::{
    Download, DownloadSpec, PeerEvent, PeerEventKind, RequestRefused, SegmentLengths,
};
pub use enlist::{ReportRefused, StewardLink};
pub use error::{DialError, ExchangeError, JoinError, Misbehaviour, PeerFailure};
pub use exchange::Exchange;
pub use options::{ExchangeOptions, Listen};
pub use seat::{SeatEvent, SeatEvents, StewardSeat};
pub use session::PeerSession;
pub use sink::EventSink;
pub use source::{ContentSource, ServedContent};
pub use tls::TlsError;
pub use upload::UploadStats;
pub use watch::{HaveUpdate, HaveWatch};

/// The transport below the protocol, on quinn's own socket, for benchmarks to compare with.
#[doc(hidden)]
pub mod bare {
    use std::sync::Arc;

    use crate::options::ExchangeOptions;
    pub use crate::transport::{endpoint, open_socket};

    /// Past this a batch of ten packets exceeds what quinn's own socket can send in one call.
    const MAX_UDP_PAYLOAD_BYTES: u16 = 6_500;

    /// Parameters of a connection; `streams` is how many the other side may open.
    pub fn transport(options: &ExchangeOptions, streams: u32) -> Arc<quinn::TransportConfig> {
        crate::transport::transport_up_to(MAX_UDP_PAYLOAD_BYTES, options, streams)
    }
}
