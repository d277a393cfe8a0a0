//! The LAN: a full-duplex link a member, behind a switch that never drops.
//!
//! Each direction is a queue in which bytes follow one another at the link's rate. Control messages
//! go first and in order, bulk loses the time they take: among fair queues a small message does
//! not wait for megabytes. Which bulk goes next is for [`Uploads`](crate::uploads::Uploads) to say. A byte is received while
//! it is sent; when several send to one member at once its own link is what they queue for. Not modelled:
//! loss, congestion control, acknowledgements (their bytes are part of the headers' factor).

use std::time::Duration;

/// Bytes on the wire for a byte of a segment: QUIC over UDP over IPv4 at MTU 1500, 1,452 bytes of
/// datagram less about 30 of QUIC's and AEAD's own, and an acknowledgement of 80 bytes for every ten
/// packets.
const BULK_FACTOR: f64 = 1.062;

/// What a small message costs besides itself: IPv4, UDP, QUIC's short header, AEAD tag, stream
/// frame; and its share of acknowledgements.
const MESSAGE_OVERHEAD_BYTES: u64 = 28 + 25 + 8 + 20;

#[derive(Debug)]
pub(crate) struct Lan {
    latency: Duration,
    links: Vec<Link>,
}

#[derive(Debug)]
struct Link {
    up: Direction,
    down: Direction,
}

#[derive(Debug)]
struct Direction {
    bytes_per_sec: f64,
    /// When the last control message so far has passed.
    control_passed: Duration,
    /// When the last bulk so far has passed.
    bulk_passed: Duration,
    /// Time that control messages took and bulk has not lost yet.
    debt: Duration,
}

impl Direction {
    fn new(bytes_per_sec: f64) -> Self {
        Self {
            bytes_per_sec,
            control_passed: Duration::ZERO,
            bulk_passed: Duration::ZERO,
            debt: Duration::ZERO,
        }
    }

    fn control(&mut self, now: Duration, wire_bytes: f64) -> Duration {
        let takes = Duration::from_secs_f64(wire_bytes / self.bytes_per_sec);
        self.debt += takes;
        self.control_passed = self.control_passed.max(now) + takes;
        self.control_passed
    }

    fn bulk(&mut self, now: Duration, wire_bytes: f64) -> Duration {
        let start = self.bulk_passed.max(now);
        // Control messages that passed while the link was idle held nobody up.
        let idle = start.saturating_sub(self.bulk_passed);
        let debt = std::mem::take(&mut self.debt).saturating_sub(idle);
        let takes = Duration::from_secs_f64(wire_bytes / self.bytes_per_sec);
        self.bulk_passed = start + debt + takes;
        self.bulk_passed
    }
}

/// When bulk has left the sender, and when the receiver has all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passage {
    pub(crate) sent: Duration,
    pub(crate) received: Duration,
}

impl Lan {
    /// A link a member, each with the rate it sends at; all receive at `down_bytes_per_sec`.
    pub(crate) fn new(latency: Duration, up: &[f64], down_bytes_per_sec: f64) -> Self {
        let link = |up_bytes_per_sec: &f64| Link {
            up: Direction::new(*up_bytes_per_sec),
            down: Direction::new(down_bytes_per_sec),
        };
        Self {
            latency,
            links: up.iter().map(link).collect(),
        }
    }

    /// What a message of so many bytes puts on the wire.
    pub(crate) fn message_bytes(body: u64) -> u64 {
        body + MESSAGE_OVERHEAD_BYTES
    }

    /// Sends a control message of so many bytes on the wire; says when it is there.
    pub(crate) fn control(&mut self, now: Duration, from: u32, to: u32, wire: u64) -> Duration {
        let sent = self.links[from as usize].up.control(now, wire as f64);
        let arrives = sent + self.latency;
        self.links[to as usize].down.control(arrives, wire as f64)
    }

    /// Sends a segment.
    pub(crate) fn bulk(&mut self, now: Duration, from: u32, to: u32, bytes: u64) -> Passage {
        let wire = bytes as f64 * BULK_FACTOR;
        let sent = self.links[from as usize].up.bulk(now, wire);
        let first_byte = now + self.latency;
        let passed = self.links[to as usize].down.bulk(first_byte, wire);
        Passage {
            sent,
            received: passed.max(sent + self.latency),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATENCY: Duration = Duration::from_millis(1);

    fn lan() -> Lan {
        Lan::new(LATENCY, &[1_062_000.0; 3], 1_062_000.0)
    }

    #[test]
    fn two_senders_share_the_link_of_one_receiver() {
        let mut lan = lan();
        let first = lan.bulk(Duration::ZERO, 0, 2, 1_000_000);
        let second = lan.bulk(Duration::ZERO, 1, 2, 1_000_000);
        assert_eq!(first.sent, Duration::from_secs(1));
        assert_eq!(first.received, Duration::from_secs(1) + LATENCY);
        assert_eq!(second.sent, Duration::from_secs(1));
        assert_eq!(second.received, Duration::from_secs(2) + LATENCY);
    }

    #[test]
    fn a_control_message_does_not_wait_for_bulk_which_loses_the_time() {
        let mut lan = lan();
        lan.bulk(Duration::ZERO, 0, 2, 1_000_000);
        let arrives = lan.control(Duration::ZERO, 0, 1, 106_200);
        assert_eq!(arrives, Duration::from_millis(201));
        let next = lan.bulk(Duration::from_secs(1), 0, 2, 1_000_000);
        assert_eq!(next.sent, Duration::from_millis(2_100));
    }

    #[test]
    fn control_messages_between_two_members_stay_in_order() {
        let mut lan = lan();
        let long = lan.control(Duration::ZERO, 0, 1, 100_000);
        let short = lan.control(Duration::ZERO, 0, 1, 100);
        assert!(long < short, "{long:?} then {short:?}");
    }
}
