//! The greeting that makes a connected peer a member: `/branchline/member/1`.
//!
//! Request and answer have the same form, so each side learns the other's port from one exchange
//! whichever of them asks.

use serde::{Deserialize, Serialize};

/// The protocol's name in libp2p's negotiation.
pub(crate) const PROTOCOL: &str = "/branchline/member/1";
/// Version of the message's meaning; another number is another protocol.
pub(crate) const VERSION: u32 = 1;
/// A hello has about 60 bytes; the rest is room for fields that later versions add.
pub(crate) const MAX_BYTES: u64 = 4096;
/// The longest agent version that is kept and shown.
const MAX_AGENT_BYTES: usize = 64;

/// What agents tell each other first. Unknown fields are ignored, so that more can be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) protocol: u32,
    pub(crate) exchange_port: u16,
    pub(crate) agent: String,
}

/// A hello that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) exchange_port: u16,
    pub(crate) version: String,
}

/// Why a hello makes no member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHello {
    #[error("it speaks membership protocol {0}, this agent speaks {VERSION}")]
    OtherProtocol(u32),
    #[error("it names exchange port 0")]
    NoPort,
}

impl Hello {
    pub(crate) fn new(exchange_port: u16) -> Self {
        let agent = concat!("branchline/", env!("CARGO_PKG_VERSION")).to_owned();
        Self {
            protocol: VERSION,
            exchange_port,
            agent,
        }
    }

    pub(crate) fn check(self) -> Result<Greeting, BadHello> {
        if self.protocol != VERSION {
            return Err(BadHello::OtherProtocol(self.protocol));
        }
        if self.exchange_port == 0 {
            return Err(BadHello::NoPort);
        }
        Ok(Greeting {
            exchange_port: self.exchange_port,
            version: printable(&self.agent),
        })
    }
}

/// The text will stand on terminals and in logs: no control characters, and not long.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .take(MAX_AGENT_BYTES)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_of_another_protocol_or_without_port_makes_no_member() {
        assert_eq!(Hello::new(0).check(), Err(BadHello::NoPort));
        let newer = Hello {
            protocol: 2,
            ..Hello::new(1)
        };
        assert_eq!(newer.check(), Err(BadHello::OtherProtocol(2)));
    }

    #[test]
    fn a_version_cannot_steer_a_terminal() {
        let agent = format!("evil\u{1b}[2J\n{}", "x".repeat(4000));
        let greeting = Hello {
            agent,
            ..Hello::new(7)
        }
        .check()
        .expect("a greeting");
        assert!(greeting.version.starts_with("evil[2Jx"));
        assert_eq!(greeting.version.len(), MAX_AGENT_BYTES);
    }
}
