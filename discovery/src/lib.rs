//! Who is here: this agent's identity, and the membership of its LAN.
//!
//! [`Identity`] is the one Ed25519 key that libp2p and the exchange's mutual TLS share.
//! [`Discovery`] finds other agents (mDNS, static peers, and whom those know, by Kademlia), greets
//! each over an authenticated libp2p connection and keeps [`Membership`], which names only peers
//! that proved their identity and answered the greeting.
//!
//! Nothing here knows of jobs, contents or segments. libp2p appears in this crate alone, and what
//! arrives from the network is bounded before it is looked at. The messages on the LAN are
//! specified in `docs/discovery.md`.

mod allowance;
mod candidates;
mod config;
mod discovery;
mod driver;
mod hello;
mod identity;
mod interfaces;
mod kademlia;
mod mdns;
mod membership;
mod peers;
mod statics;
mod swarm;
mod tls;

pub use config::{DiscoveryConfig, ParseStaticPeerError, StaticPeer};
pub use discovery::{Discovery, DiscoveryError, DiscoveryStatus};
pub use identity::{Identity, IdentityError};
pub use membership::{FoundBy, Member, Membership};
pub use tls::{CertificateError, TlsError, peer_id_of_certificate};
