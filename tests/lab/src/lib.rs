//! A small branch office on one machine: an origin, a WAN, a gateway, a LAN and its member hosts.
//!
//! Each host is a network namespace of its own, the WAN is a user-space relay between two TUN
//! devices. Everything is anonymous: namespaces exist only as file descriptors of this process,
//! processes live in one PID namespace whose first process dies with this process. Nothing has a
//! name in the file system or in the machine's own network, so nothing is left after a SIGKILL.
//!
//! Invariants:
//! - no packet leaves the lab: no host has a route or a device to the machine's own network;
//! - a lab either starts whole or fails with what is missing, it never skips;
//! - the relay counts whole IP packets, headers included: its counters are the "WAN bytes".
//!
//! It does not imitate NAT, DNS or Wi-Fi, and knows nothing of the product but its command line.

mod agent;
mod capture;
mod host;
mod lab;
mod link;
mod namespaces;
mod origin;
mod process;
mod relay;
mod sys;
mod wan;

pub use agent::{Agent, branchline_binary};
pub use host::Host;
pub use lab::{Lab, LabOptions, Privilege};
pub use origin::{Origin, OriginOptions, Request};
pub use process::{Finished, Measured, Process};
pub use rustix::process::Signal;
pub use wan::{LinkCounters, Wan, WanCounters, WanProfile};
