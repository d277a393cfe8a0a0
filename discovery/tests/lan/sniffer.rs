//! Hears every frame that reaches a machine's interfaces.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Host;

/// ETH_P_ALL in network byte order, as packet sockets want it (packet(7)).
const ALL_PROTOCOLS: i32 = 0x0003_u16.to_be() as i32;

/// Between looks at what was heard.
const LOOK: Duration = Duration::from_millis(100);

type HardwareAddress = [u8; 6];

/// Listens until the test ends.
pub(crate) struct Sniffer {
    /// Destination and source of each frame.
    frames: Arc<Mutex<Vec<(HardwareAddress, HardwareAddress)>>>,
}

impl Sniffer {
    /// It listens when this returns.
    pub(crate) fn on(host: &Host) -> Self {
        let frames = Arc::new(Mutex::new(Vec::new()));
        let (listening, started) = mpsc::channel();
        let namespace = File::open(host.network_namespace()).expect("the host's namespace");
        let heard = Arc::clone(&frames);
        std::thread::spawn(move || {
            // Namespaces are a thread's: the rest of the test stays where it is.
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(LinkNameSpaceType::Network),
            )
            .expect("entering the host's namespace");
            let mut socket = Socket::new(
                Domain::PACKET,
                Type::RAW,
                Some(Protocol::from(ALL_PROTOCOLS)),
            )
            .expect("a packet socket");
            listening.send(()).expect("the test waits");
            let mut frame = [0; 2048];
            while let Ok(length) = socket.read(&mut frame) {
                let Some((destination, rest)) = frame[..length].split_first_chunk() else {
                    continue;
                };
                let Some(source) = rest.first_chunk() else {
                    continue;
                };
                heard
                    .lock()
                    .expect("no panic elsewhere")
                    .push((*destination, *source));
            }
        });
        started.recv().expect("the sniffer starts");
        Self { frames }
    }

    /// Multicast frames, broadcast (ARP) not among them, heard from a hardware address.
    pub(crate) fn multicasts_from(&self, mac: &str) -> usize {
        self.count_from(mac, |to| to[0] & 1 == 1 && *to != [0xff; 6])
    }

    /// Frames to one machine heard from a hardware address.
    pub(crate) fn unicasts_from(&self, mac: &str) -> usize {
        self.count_from(mac, |to| to[0] & 1 == 0)
    }

    /// Waits until nothing but multicast was heard from a hardware address for `quiet`. Returns when it began.
    pub(crate) fn quiet_from(&self, mac: &str, quiet: Duration, within: Duration) -> Instant {
        let deadline = Instant::now() + within;
        let (mut heard, mut since) = (self.unicasts_from(mac), Instant::now());
        while since.elapsed() < quiet {
            assert!(
                Instant::now() < deadline,
                "{mac} is not quiet for {quiet:?}"
            );
            std::thread::sleep(LOOK);
            let now = self.unicasts_from(mac);
            if now != heard {
                (heard, since) = (now, Instant::now());
            }
        }
        since
    }

    fn count_from(&self, mac: &str, is_counted: impl Fn(&HardwareAddress) -> bool) -> usize {
        let bytes = mac
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal"));
        let source: Vec<u8> = bytes.collect();
        let frames = self.frames.lock().expect("no panic elsewhere");
        frames
            .iter()
            .filter(|(to, from)| is_counted(to) && from[..] == source[..])
            .count()
    }
}
