//! Configuration: one TOML file in, a checked [`Config`] out.
//!
//! Every key has a default, so that no file is needed; every key the file names is known and
//! holds a value that makes sense, or loading fails and says where. The keys, their units and
//! their reasons are in `docs/configuration.md`, and a test keeps it so. Nothing here looks at the
//! network or at the files that the configuration names.

mod error;
mod paths;
mod reader;
mod values;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use branchline_core::jobs;

pub use error::ConfigError;
pub use paths::{Environment, SYSTEM_STATE_DIR, default_config_file, default_state_dir};
use reader::Document;
use values::{
    ANY_SIZE, absolute_file, address, bytes_or_any, duration_between, format_duration, interface,
    loopback, quoted, quoted_list,
};
pub use values::{
    HostPort, LogLevel, ParseValueError, StoreLimit, format_bytes, parse_bytes, parse_duration,
};

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How other agents are found.
    pub discovery: DiscoveryConfig,
    /// How segments are given to other agents.
    pub exchange: ExchangeConfig,
    /// What is kept.
    pub store: StoreConfig,
    /// How origins are asked.
    pub origin: OriginConfig,
    /// What jobs may do.
    pub jobs: JobsConfig,
    /// Who may tell the agent what to do.
    pub control: ControlConfig,
    /// What is logged.
    pub log: LogConfig,
}

/// `[discovery]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryConfig {
    /// Whether other agents are looked for at all.
    pub enabled: bool,
    /// Whether by multicast.
    pub mdns: bool,
    /// Whether agents past multicast are found through those that know them.
    pub kademlia: bool,
    /// The only network interfaces to use; none named means all.
    pub interfaces: Vec<String>,
    /// Agents to call where multicast does not reach: host and their `discovery.port`.
    pub static_peers: Vec<HostPort>,
    /// UDP port; 0 is any free one.
    pub port: u16,
}

/// `[exchange]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeConfig {
    /// The address to serve at; `::` is all of them, IPv4 included.
    pub listen: IpAddr,
    /// UDP port; 0 is any free one.
    pub port: u16,
    /// Requests answered at the same time; others are told that this agent is busy.
    pub max_uploads: NonZeroU16,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// What the segments may take.
    pub limit: StoreLimit,
}

/// `[origin]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginConfig {
    /// For name resolution, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Without a byte, a connection counts as dead after it.
    pub stall_timeout: Duration,
    /// PEM file with authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// `[jobs]`: what [`branchline_core::jobs`] is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JobsConfig(pub branchline_core::jobs::Config);

/// `[control]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlConfig {
    /// Whether an agent of root serves other users.
    pub other_users: bool,
    /// A loopback address to serve at besides the socket.
    pub listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// The least serious thing that is written.
    pub level: LogLevel,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            discovery: DiscoveryConfig {
                enabled: true,
                mdns: true,
                kademlia: true,
                interfaces: Vec::new(),
                static_peers: Vec::new(),
                port: 0,
            },
            exchange: ExchangeConfig {
                listen: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                port: 0,
                max_uploads: NonZeroU16::new(64).expect("64 is not 0"),
            },
            store: StoreConfig {
                limit: StoreLimit::PercentOfFileSystem(10),
            },
            origin: OriginConfig {
                connect_timeout: Duration::from_secs(10),
                stall_timeout: Duration::from_secs(30),
                ca_file: None,
            },
            jobs: JobsConfig::default(),
            control: ControlConfig {
                other_users: true,
                listen: None,
            },
            log: LogConfig {
                level: LogLevel::Info,
            },
        }
    }
}

impl Config {
    /// Reads the file the user named, which must be there, or else the default one, which need not.
    ///
    /// # Errors
    /// [`ConfigError`] when it cannot be read, is no TOML, or says what makes no sense.
    pub fn load(named: Option<&Path>, default: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(file) = named.or(default) else {
            return Ok(Self::default());
        };
        match std::fs::read_to_string(file) {
            Ok(text) => Self::parse(file, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read {
                file: file.to_owned(),
                source,
            }),
        }
    }

    /// Checks `text`; `file` is for error messages alone.
    ///
    /// # Errors
    /// [`ConfigError`] when it is no TOML, or says what makes no sense.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut document = Document::parse(file, text)?;
        let config = Self::read(&mut document)?;
        document.finish()?;
        Ok(config)
    }

    /// Takes each key, in the order of the documentation.
    fn read(document: &mut Document<'_>) -> Result<Self, ConfigError> {
        let Self {
            discovery,
            exchange,
            store,
            origin,
            jobs,
            control,
            log,
        } = Self::default();
        Ok(Self {
            discovery: discovery.read(document)?,
            exchange: exchange.read(document)?,
            store: StoreConfig {
                limit: document.text("store.limit", store.limit, str::parse)?,
            },
            origin: origin.read(document)?,
            jobs: jobs.read(document)?,
            control: ControlConfig {
                other_users: document.boolean("control.other_users", control.other_users)?,
                listen: document.text("control.listen", control.listen, loopback)?,
            },
            log: LogConfig {
                level: document.text("log.level", log.level, str::parse)?,
            },
        })
    }

    /// Each key with its value as TOML; [`Config::parse`] makes the same configuration of it.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let Self {
            discovery,
            exchange,
            store,
            origin,
            jobs,
            control,
            log,
        } = self;
        let ca_file = origin.ca_file.as_deref().unwrap_or(Path::new(""));
        let listen = control.listen.map_or_else(String::new, |it| it.to_string());
        let first = vec![
            ("discovery.enabled", discovery.enabled.to_string()),
            ("discovery.mdns", discovery.mdns.to_string()),
            ("discovery.kademlia", discovery.kademlia.to_string()),
            ("discovery.interfaces", quoted_list(&discovery.interfaces)),
            (
                "discovery.static_peers",
                quoted_list(&discovery.static_peers),
            ),
            ("discovery.port", discovery.port.to_string()),
            ("exchange.listen", quoted(exchange.listen)),
            ("exchange.port", exchange.port.to_string()),
            ("exchange.max_uploads", exchange.max_uploads.to_string()),
            ("store.limit", quoted(store.limit)),
            (
                "origin.connect_timeout",
                quoted(format_duration(origin.connect_timeout)),
            ),
            (
                "origin.stall_timeout",
                quoted(format_duration(origin.stall_timeout)),
            ),
            ("origin.ca_file", quoted(ca_file.display())),
        ];
        let last = [
            ("control.other_users", control.other_users.to_string()),
            ("control.listen", quoted(listen)),
            ("log.level", quoted(log.level)),
        ];
        first
            .into_iter()
            .chain(jobs.settings())
            .chain(last)
            .collect()
    }

    /// The configuration as a TOML file.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for (key, value) in self.settings() {
            let (of, name) = key.split_once('.').expect("every key is in a section");
            if of != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}[{of}]\n"));
                section = of;
            }
            text.push_str(&format!("{name} = {value}\n"));
        }
        text
    }
}

impl DiscoveryConfig {
    fn read(self, document: &mut Document<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            enabled: document.boolean("discovery.enabled", self.enabled)?,
            mdns: document.boolean("discovery.mdns", self.mdns)?,
            kademlia: document.boolean("discovery.kademlia", self.kademlia)?,
            interfaces: document.list("discovery.interfaces", self.interfaces, interface)?,
            static_peers: document.list("discovery.static_peers", self.static_peers, str::parse)?,
            port: document.number("discovery.port", self.port, 0..=u16::MAX)?,
        })
    }
}

impl ExchangeConfig {
    fn read(self, document: &mut Document<'_>) -> Result<Self, ConfigError> {
        let max_uploads =
            document.number("exchange.max_uploads", self.max_uploads.get(), 1..=u16::MAX)?;
        Ok(Self {
            listen: document.text("exchange.listen", self.listen, address)?,
            port: document.number("exchange.port", self.port, 0..=u16::MAX)?,
            max_uploads: NonZeroU16::new(max_uploads).unwrap_or(self.max_uploads),
        })
    }
}

impl OriginConfig {
    /// Less than a round trip to the far side of the world helps nobody; an hour is "never".
    const TIMEOUTS: std::ops::RangeInclusive<Duration> =
        Duration::from_millis(100)..=Duration::from_secs(3600);

    fn read(self, document: &mut Document<'_>) -> Result<Self, ConfigError> {
        let timeout = |text: &str| duration_between(text, Self::TIMEOUTS);
        let (connect, stall) = (self.connect_timeout, self.stall_timeout);
        Ok(Self {
            connect_timeout: document.text("origin.connect_timeout", connect, timeout)?,
            stall_timeout: document.text("origin.stall_timeout", stall, timeout)?,
            ca_file: document.text("origin.ca_file", self.ca_file, absolute_file)?,
        })
    }
}

impl JobsConfig {
    /// What is kept for less than an hour nobody has seen; ten years are for ever.
    const TIMES: std::ops::RangeInclusive<Duration> =
        Duration::from_secs(3_600)..=branchline_core::jobs::LONGEST_TIMEOUT;

    fn read(self, document: &mut Document<'_>) -> Result<Self, ConfigError> {
        let jobs::Config {
            parallel,
            quota,
            ended_kept,
            inactive_after,
        } = self.0;
        let time = |text: &str| duration_between(text, Self::TIMES);
        let mut places = |key, or| document.count(key, or, 1..=1_000);
        let parallel = jobs::Parallel {
            background_jobs: places("jobs.background_jobs", parallel.background_jobs)?,
            background_files: places("jobs.background_files", parallel.background_files)?,
            foreground_files: places("jobs.foreground_files", parallel.foreground_files)?,
            files_per_job: places("jobs.files_per_job", parallel.files_per_job)?,
        };
        let mut most = |key, or| document.count(key, or, 1..=1_000_000);
        let quota = jobs::Quota {
            jobs: most("jobs.max_jobs", quota.jobs)?,
            files_per_job: most("jobs.max_files_per_job", quota.files_per_job)?,
            files: most("jobs.max_files", quota.files)?,
            bytes: document.text("jobs.max_bytes", quota.bytes, bytes_or_any)?,
        };
        Ok(Self(jobs::Config {
            parallel,
            quota,
            ended_kept: document.text("jobs.ended_kept", ended_kept, time)?,
            inactive_after: document.text("jobs.inactive_after", inactive_after, time)?,
        }))
    }

    fn settings(&self) -> [(&'static str, String); 10] {
        let jobs::Config {
            parallel,
            quota,
            ended_kept,
            inactive_after,
        } = &self.0;
        let max_bytes = match quota.bytes {
            u64::MAX => ANY_SIZE.to_owned(),
            bytes => format_bytes(bytes),
        };
        [
            ("jobs.background_jobs", parallel.background_jobs.to_string()),
            (
                "jobs.background_files",
                parallel.background_files.to_string(),
            ),
            (
                "jobs.foreground_files",
                parallel.foreground_files.to_string(),
            ),
            ("jobs.files_per_job", parallel.files_per_job.to_string()),
            ("jobs.max_jobs", quota.jobs.to_string()),
            ("jobs.max_files_per_job", quota.files_per_job.to_string()),
            ("jobs.max_files", quota.files.to_string()),
            ("jobs.max_bytes", quoted(max_bytes)),
            ("jobs.ended_kept", quoted(format_duration(*ended_kept))),
            (
                "jobs.inactive_after",
                quoted(format_duration(*inactive_after)),
            ),
        ]
    }
}

#[cfg(test)]
mod tests;
