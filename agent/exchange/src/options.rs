//! How an exchange is set up.

use std::net::SocketAddr;
use std::time::Duration;

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// All addresses, IPv6 and IPv4, one UDP port; 0 lets the system choose.
    Everywhere {
        /// The UDP port.
        port: u16,
    },
    /// One address only.
    On(SocketAddr),
}

/// How an exchange is set up; the defaults suit a LAN.
#[derive(Debug, Clone)]
pub struct ExchangeOptions {
    /// Where to listen. Default: all addresses, a port of the system's choice.
    pub listen: Listen,
    /// Requests answered at one time, half of them to one peer; beyond, requesters are told to come
    /// again. Default 64: each holds two batches of at most 256 KiB or one segment, and each
    /// connection what its send window allows (8 MiB).
    pub max_uploads: usize,
    /// Connections accepted at one time. Default 1536: a steward has one from each of a thousand members, some 50 KiB each.
    pub max_connections: usize,
    /// Threads that read and verify what is served. Default 2: BLAKE3 on one core outruns 10 Gbit/s,
    /// the second hides the disk.
    pub reader_threads: usize,
    /// After this long without a packet a connection is dead. Default 15 s. Keep-alives go out
    /// three times as often.
    pub idle_timeout: Duration,
    /// How long an accepted connection may be without a joined stream. Default 30 s: honest
    /// requesters join with their first message and keep streams open while they download; with
    /// room for their retries, who has not joined by then only holds one of `max_connections`.
    pub unjoined_timeout: Duration,
    /// Streams of members and announcers at one time. Default 4096: each is a task, and holds a message
    /// of about 1 KiB at most, or 32 KiB where it announces.
    pub max_steward_streams: usize,
    /// The same of one peer. Default 256: the contents it downloads at one time.
    pub max_steward_streams_per_peer: usize,
    /// How long a member or an announcer may say nothing. Default 60 s: members report every second
    /// or so while they download, and [`Announcer`](crate::Announcer) speaks up by itself in a third
    /// of it. Who says nothing for longer only holds a connection.
    pub steward_idle_timeout: Duration,
    /// How long dialling a peer, over all its addresses, may take. Default 3 s: a LAN needs milliseconds.
    pub dial_timeout: Duration,
    /// How long a peer may take to answer a join. Default 3 s. Waiting for one of its streams to
    /// become free does not count.
    pub answer_timeout: Duration,
    /// What a requester that is turned away is told to wait. Default 500 ms.
    pub busy_retry_after: Duration,
}

impl Default for ExchangeOptions {
    fn default() -> Self {
        Self {
            listen: Listen::Everywhere { port: 0 },
            max_uploads: 64,
            max_connections: 1536,
            reader_threads: 2,
            idle_timeout: Duration::from_secs(15),
            unjoined_timeout: Duration::from_secs(30),
            max_steward_streams: 4096,
            max_steward_streams_per_peer: 256,
            steward_idle_timeout: Duration::from_secs(60),
            dial_timeout: Duration::from_secs(3),
            answer_timeout: Duration::from_secs(3),
            busy_retry_after: Duration::from_millis(500),
        }
    }
}
