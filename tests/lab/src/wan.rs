//! The WAN between origin and branch: its profile, its counters, and its control.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::link::{Link, LinkProfile};
use crate::relay::{self, Wake};

/// What the WAN does to packets. "Down" is from the origin to the branch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WanProfile {
    /// Rate towards the branch, of whole IP packets.
    pub down_bytes_per_sec: u64,
    /// Rate towards the origin, of whole IP packets.
    pub up_bytes_per_sec: u64,
    /// One-way delay of each direction, without the time in the queue and on the line.
    pub delay: Duration,
    /// A packet that would wait longer than this for the line is dropped.
    pub queue: Duration,
    /// Probability, `0.0..=1.0`, that a packet is lost after it has occupied the line.
    pub loss: f64,
    /// Seed of the losses.
    pub seed: u64,
}

impl WanProfile {
    /// The same rate and one-way delay both ways, a quarter of a second of queue, no loss.
    #[must_use]
    pub const fn symmetric(rate_bytes_per_sec: u64, delay: Duration) -> Self {
        Self {
            down_bytes_per_sec: rate_bytes_per_sec,
            up_bytes_per_sec: rate_bytes_per_sec,
            delay,
            queue: Duration::from_millis(250),
            loss: 0.0,
            seed: 1,
        }
    }

    /// A branch office's line: 20 Mbit/s, 40 ms round trip, 250 ms of queue.
    #[must_use]
    pub const fn branch_20mbit_40ms_rtt() -> Self {
        Self::symmetric(2_500_000, Duration::from_millis(20))
    }

    /// A good line: 100 Mbit/s, 20 ms round trip, 250 ms of queue.
    #[must_use]
    pub const fn branch_100mbit_20ms_rtt() -> Self {
        Self::symmetric(12_500_000, Duration::from_millis(10))
    }

    /// An asymmetric line: 50 Mbit/s down, 10 Mbit/s up, 30 ms round trip, 250 ms of queue.
    #[must_use]
    pub const fn vdsl_50_10mbit_30ms_rtt() -> Self {
        let profile = Self::symmetric(6_250_000, Duration::from_millis(15));
        Self {
            up_bytes_per_sec: 1_250_000,
            ..profile
        }
    }

    /// The same line with this probability of loss.
    #[must_use]
    pub const fn with_loss(self, loss: f64, seed: u64) -> Self {
        Self { loss, seed, ..self }
    }

    fn link(&self, rate_bytes_per_sec: u64) -> LinkProfile {
        let Self {
            delay, queue, loss, ..
        } = *self;
        LinkProfile {
            rate_bytes_per_sec,
            delay,
            queue,
            loss,
        }
    }

    fn down(&self) -> LinkProfile {
        self.link(self.down_bytes_per_sec)
    }

    fn up(&self) -> LinkProfile {
        self.link(self.up_bytes_per_sec)
    }
}

/// What one direction has carried, in whole IP packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Bytes that occupied the line, lost ones included.
    pub bytes: u64,
    /// Packets that occupied the line, lost ones included.
    pub packets: u64,
    /// Packets lost on the line.
    pub lost_packets: u64,
    /// Packets dropped before the line because the queue was full.
    pub dropped_packets: u64,
    /// Packets that met a cut line.
    pub cut_packets: u64,
}

/// What the WAN has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WanCounters {
    /// From the origin to the branch.
    pub down: LinkCounters,
    /// From the branch to the origin.
    pub up: LinkCounters,
}

impl WanCounters {
    /// Bytes of both directions.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.down.bytes + self.up.bytes
    }
}

/// The running WAN. Dropping it stops the relay.
pub struct Wan {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the relay's thread and the lab share.
pub(crate) struct Shared {
    links: Mutex<Links>,
    pub(crate) wake: Wake,
}

/// Both directions, and whether to go on.
pub(crate) struct Links {
    pub(crate) down: Link,
    pub(crate) up: Link,
    pub(crate) stopped: bool,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wan {
    /// Relays between two TUN devices.
    pub(crate) fn start(profile: WanProfile, origin: OwnedFd, branch: OwnedFd) -> Result<Self> {
        let links = Links {
            down: Link::new(profile.down(), profile.seed),
            // Another sequence than downwards, from the same seed.
            up: Link::new(profile.up(), !profile.seed),
            stopped: false,
        };
        let shared = Arc::new(Shared {
            links: Mutex::new(links),
            wake: Wake::new()?,
        });
        let thread = relay::start(origin, branch, Arc::clone(&shared));
        Ok(Self {
            shared,
            thread: Some(thread.context("cannot start the relay")?),
        })
    }

    /// What has been carried since the start.
    #[must_use]
    pub fn counters(&self) -> WanCounters {
        let links = self.shared.lock();
        WanCounters {
            down: links.down.counters(),
            up: links.up.counters(),
        }
    }

    /// Cuts the line: what is queued or under way is lost, nothing passes until [`Self::mend`].
    pub fn cut(&self) {
        self.change(|links| {
            links.down.set_up(false);
            links.up.set_up(false);
        });
    }

    /// Mends the line.
    pub fn mend(&self) {
        self.change(|links| {
            links.down.set_up(true);
            links.up.set_up(true);
        });
    }

    /// Changes the line at run time; the seed is the one of the start.
    pub fn set_profile(&self, profile: WanProfile) {
        self.change(|links| {
            links.down.set_profile(profile.down());
            links.up.set_profile(profile.up());
        });
    }

    fn change(&self, apply: impl FnOnce(&mut Links)) {
        apply(&mut self.shared.lock());
        self.shared.wake.ring();
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.change(|links| links.stopped = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
