//! What an administrator may decide about discovery.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How other agents are found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscoveryConfig {
    /// Find agents by multicast DNS. Off: only static peers, and agents that have this one as theirs.
    pub mdns: bool,
    /// Ask members whom they know, and tell them: past multicast all become members of all. Off: only
    /// multicast and static peers, for a static peer that is another branch's.
    pub kademlia: bool,
    /// The network interfaces to use, by name; empty means all. One that does not exist yet is
    /// waited for, so that a cable or a VLAN may come later than the agent.
    pub interfaces: Vec<String>,
    /// Agents where multicast does not reach, by the address of their discovery port.
    pub static_peers: Vec<StaticPeer>,
    /// The UDP port to be reached at; 0 lets the system choose one.
    pub listen_port: u16,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self {
            mdns: true,
            kademlia: true,
            interfaces: Vec::new(),
            static_peers: Vec::new(),
            listen_port: 0,
        }
    }
}

/// The discovery port of an agent, by IP address or DNS name: `host:port`, `[v6]:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StaticPeer {
    host: String,
    port: u16,
}

/// Text that names no host and port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("static peer {text:?} is not of the form host:port (an IPv6 address goes in brackets)")]
pub struct ParseStaticPeerError {
    text: String,
}

impl StaticPeer {
    /// The DNS name or IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The UDP port of its discovery.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for StaticPeer {
    type Err = ParseStaticPeerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        split(text).ok_or_else(|| ParseStaticPeerError {
            text: text.to_owned(),
        })
    }
}

fn split(text: &str) -> Option<StaticPeer> {
    let (host, port) = text.trim().rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .filter(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok())?,
        None => host,
    };
    let bracketless_v6 = host.contains(':') && !text.trim().starts_with('[');
    let odd = host.is_empty() || bracketless_v6 || host.chars().any(char::is_whitespace);
    (!odd).then(|| StaticPeer {
        host: host.to_owned(),
        port,
    })
}

impl fmt::Display for StaticPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl TryFrom<String> for StaticPeer {
    type Error = ParseStaticPeerError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<StaticPeer> for String {
    fn from(peer: StaticPeer) -> Self {
        peer.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_peer_is_a_host_and_a_port() {
        for good in ["10.0.0.7:4001", "depot.example.org:1", "[fd00::7]:4001"] {
            let peer: StaticPeer = good.parse().expect(good);
            assert_eq!(peer.to_string(), good);
        }
        for bad in [
            "",
            "host",
            "host:",
            "host:0",
            "host:65536",
            ":1",
            "fd00::7:1",
            "[x]:1",
            "a b:1",
        ] {
            assert!(bad.parse::<StaticPeer>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        let parsed = serde_json::from_str::<DiscoveryConfig>(r#"{"mdsn": false}"#);
        assert!(
            parsed
                .expect_err("a misspelt key")
                .to_string()
                .contains("mdsn")
        );
    }
}
