//! The thread that carries packets between the WAN's two TUN devices.
//!
//! It waits for either device or for the next arrival, and works in batches. Packets come without offloads (a TUN device without them makes the kernel
//! finish checksums and cut large segments first), so every packet is what a wire would see.

use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::link::Link;
use crate::wan::{Links, Shared};

/// Packets read from one device before arrivals are looked at again.
const BATCH: usize = 64;

/// Arrivals are handed over on a grid of this: at 100 Mbit/s a packet is due every 120 microseconds,
/// and waking for each would cost more processor time than carrying it. A packet is late by half
/// of this on average, never early.
const GRID: Duration = Duration::from_micros(200);

/// Of this thread alone, as Linux has it.
const HIGHEST_PRIORITY: i32 = -20;

/// Larger than any MTU a TUN device can have.
const BUFFER_BYTES: usize = 64 << 10;

/// Wakes the relay when its links were changed from outside.
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map(Self)
    }

    pub(crate) fn ring(&self) {
        // The counter is full only when the relay has 2^64 wake-ups pending: it is awake anyway.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn silence(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

pub(crate) fn start(
    origin: OwnedFd,
    branch: OwnedFd,
    shared: Arc<Shared>,
) -> std::io::Result<JoinHandle<()>> {
    let mut relay = Relay {
        origin,
        branch,
        shared,
        clock: Instant::now(),
        buffer: vec![0; BUFFER_BYTES],
    };
    thread::Builder::new()
        .name("lab-wan".to_owned())
        .spawn(move || relay.run())
}

struct Relay {
    origin: OwnedFd,
    branch: OwnedFd,
    shared: Arc<Shared>,
    clock: Instant,
    buffer: Vec<u8>,
}

impl Relay {
    fn run(&mut self) {
        // The default slack of 50 microseconds would be a tenth of a packet's time at 20 Mbit/s.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        // A line is not slower because the machines at its ends are busy. Best effort: only root may.
        let _ = rustix::process::setpriority_process(None, HIGHEST_PRIORITY);
        let shared = Arc::clone(&self.shared);
        loop {
            let mut links = shared.lock();
            if links.stopped || self.pass(&mut links).is_err() {
                return;
            }
            let due = earliest(links.down.next_due(), links.up.next_due());
            drop(links);
            self.wait(due);
        }
    }

    fn pass(&mut self, links: &mut Links) -> Result<(), Errno> {
        self.take_in(|relay| &relay.origin, &mut links.down)?;
        self.take_in(|relay| &relay.branch, &mut links.up)?;
        let now = self.clock.elapsed();
        deliver(&mut links.down, now, &self.branch)?;
        deliver(&mut links.up, now, &self.origin)
    }

    fn take_in(&mut self, from: fn(&Self) -> &OwnedFd, link: &mut Link) -> Result<(), Errno> {
        for _ in 0..BATCH {
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = rustix::io::read(from(self), buffer.as_mut_slice());
            let now = self.clock.elapsed();
            self.buffer = buffer;
            match read {
                Ok(size) => link.handle_packet(now, &self.buffer[..size]),
                Err(Errno::INTR) => {}
                Err(errno) => return tolerate(errno),
            }
        }
        Ok(())
    }

    fn wait(&self, due: Option<Duration>) {
        let left = due.map(|due| on_grid(due).saturating_sub(self.clock.elapsed()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let wake = &self.shared.wake;
        let mut fds = [
            PollFd::new(&self.origin, PollFlags::IN),
            PollFd::new(&self.branch, PollFlags::IN),
            PollFd::new(&wake.0, PollFlags::IN),
        ];
        // An interruption only makes the next pass come early.
        let _ = poll(&mut fds, timeout.as_ref());
        if !fds[2].revents().is_empty() {
            wake.silence();
        }
    }
}

fn deliver(link: &mut Link, now: Duration, to: impl AsFd) -> Result<(), Errno> {
    while let Some(packet) = link.poll_arrival(now) {
        let written = rustix::io::write(&to, &packet);
        link.recycle(packet);
        if let Err(errno) = written {
            tolerate(errno)?;
        }
    }
    Ok(())
}

/// EAGAIN: nothing to read, or no room. EIO: the device is not up yet, or its host was unplugged.
/// Anything else means the device is gone, and the relay with it.
fn tolerate(errno: Errno) -> Result<(), Errno> {
    match errno {
        Errno::AGAIN | Errno::IO | Errno::NOBUFS | Errno::INTR => Ok(()),
        other => Err(other),
    }
}

/// The first point of the grid that is not before `due`.
fn on_grid(due: Duration) -> Duration {
    let late = due.subsec_nanos() % GRID.subsec_nanos();
    if late == 0 {
        due
    } else {
        due + GRID - Duration::from_nanos(late.into())
    }
}

fn earliest(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_is_never_early_and_less_than_one_step_late() {
        for nanos in [0, 1, 199_999, 200_000, 200_001, 999_999_999, 1_000_000_000] {
            let due = Duration::from_nanos(nanos);
            let late = on_grid(due).checked_sub(due).expect("never early");
            assert!(late < GRID, "{late:?} for {due:?}");
        }
    }
}
