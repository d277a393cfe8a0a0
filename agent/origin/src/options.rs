//! How to reach origins: what the agent's configuration says, and what can be wrong with it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How to reach origins.
#[derive(Debug, Clone)]
pub struct OriginOptions {
    /// What `User-Agent` says.
    pub user_agent: String,
    /// How long name resolution, TCP, proxy and TLS may take together.
    pub connect_timeout: Duration,
    /// After this long without a byte, while one is waited for, a request counts as stalled.
    pub stall_timeout: Duration,
    /// PEM certificates that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Which proxy to go through.
    pub proxy: ProxyChoice,
    /// Where credentials by host are found.
    pub netrc: NetrcChoice,
}

impl Default for OriginOptions {
    fn default() -> Self {
        Self {
            user_agent: concat!("branchline/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(30),
            ca_file: None,
            proxy: ProxyChoice::Environment,
            netrc: NetrcChoice::Environment,
        }
    }
}

/// Which proxy requests go through.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum ProxyChoice {
    /// What `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say, in either case.
    #[default]
    Environment,
    /// None, whatever the environment says.
    Direct,
    /// This one (`http`, `https`, `socks5` or `socks5h`), except for the hosts of `except`.
    Through {
        /// Its URL; may hold a user and a password.
        url: String,
        /// Hosts reached directly, written as in `NO_PROXY`.
        except: String,
    },
}

impl fmt::Debug for ProxyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("Environment"),
            Self::Direct => f.write_str("Direct"),
            Self::Through { .. } => f.write_str("Through { .. }"),
        }
    }
}

/// Where credentials by host are found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NetrcChoice {
    /// The file `NETRC` names, else `~/.netrc`; a missing file means no credentials.
    #[default]
    Environment,
    /// Nowhere.
    Nowhere,
    /// In this file, which must be there.
    File(PathBuf),
}

/// Options that no [`crate::Origin`] can be made from.
#[derive(Debug, thiserror::Error)]
pub enum OriginSetupError {
    /// The CA file cannot be read or holds something else than certificates.
    #[error(
        "cannot use the CA file {}: {why}; name a readable file with PEM certificates",
        .path.display()
    )]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The netrc file that was named cannot be read.
    #[error("cannot read the netrc file {}: {why}; name a readable file", .path.display())]
    Netrc {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The proxy's URL is none.
    #[error("the proxy's URL cannot be used: {why}; write it as http://HOST:PORT")]
    Proxy {
        /// What is wrong with it.
        why: String,
    },
    /// The HTTP client cannot be made.
    #[error(
        "cannot set up the HTTP client: {why}; check the user agent and the system's TLS files"
    )]
    Client {
        /// What it said.
        why: String,
    },
}
