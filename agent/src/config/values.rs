//! The texts a configuration is made of: sizes, times, hosts. Every parser is total.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// A text that is no such value; says what would be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found:?}")]
pub struct ParseValueError {
    expected: String,
    found: String,
}

fn not(expected: impl Into<String>, found: &str) -> ParseValueError {
    // A message is one line of a terminal, whatever the text was.
    ParseValueError {
        expected: expected.into(),
        found: found.chars().take(80).collect(),
    }
}

/// Units of bytes, the largest of each kind first.
const BYTE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Units of time, the largest first, in milliseconds.
const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// A whole number and its unit, with or without a space between.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let (_, factor) = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// The unit that says it exactly in the fewest digits.
fn exactly<'u>(value: u64, units: &[(&'u str, u64)]) -> (u64, &'u str) {
    let exact = units
        .iter()
        .filter(|(_, factor)| value.is_multiple_of(*factor));
    let shortest = exact.min_by_key(|(_, factor)| value / factor);
    let (unit, factor) = shortest.expect("the smallest unit is 1 and divides all");
    (value / factor, unit)
}

/// Reads a size: `64 MiB`, `1GB`.
///
/// # Errors
/// [`ParseValueError`] for anything else, and past 2^64 bytes.
pub fn parse_bytes(text: &str) -> Result<u64, ParseValueError> {
    let expected = "a size such as \"64 MiB\" or \"1GB\"";
    quantity(text, &BYTE_UNITS).ok_or_else(|| not(expected, text))
}

/// Writes a size so that [`parse_bytes`] reads the very same.
pub fn format_bytes(bytes: u64) -> String {
    let (number, unit) = exactly(bytes, &BYTE_UNITS);
    format!("{number} {unit}")
}

/// The text for a size that is not bounded.
pub(super) const ANY_SIZE: &str = "unlimited";

/// Reads a size, or that it is not bounded.
pub(super) fn bytes_or_any(text: &str) -> Result<u64, ParseValueError> {
    let expected = "a size such as \"64 MiB\" or \"1GB\", or \"unlimited\"";
    match text {
        ANY_SIZE => Ok(u64::MAX),
        text => quantity(text, &BYTE_UNITS).ok_or_else(|| not(expected, text)),
    }
}

/// Reads an address of this machine that no other reaches; `""` is none.
pub(super) fn loopback(text: &str) -> Result<Option<SocketAddr>, ParseValueError> {
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse::<SocketAddr>().ok();
    let loopback = address.filter(|address| address.ip().is_loopback());
    let expected = "a loopback address with a port such as \"127.0.0.1:4003\" or \"[::1]:4003\", or \"\" for none";
    loopback.map(Some).ok_or_else(|| not(expected, text))
}

/// Reads a time: `250ms`, `10s`, `5m`, `1h`, `14d`.
///
/// # Errors
/// [`ParseValueError`] for anything else, and past 2^64 milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, ParseValueError> {
    let expected = "a time such as \"250ms\", \"10s\", \"5m\", \"1h\" or \"14d\"";
    let milliseconds = quantity(text, &TIME_UNITS).ok_or_else(|| not(expected, text))?;
    Ok(Duration::from_millis(milliseconds))
}

pub(super) fn format_duration(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (number, unit) = exactly(milliseconds, &TIME_UNITS);
    format!("{number}{unit}")
}

pub(super) fn duration_between(
    text: &str,
    range: RangeInclusive<Duration>,
) -> Result<Duration, ParseValueError> {
    let duration = parse_duration(text)?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    let (least, most) = (
        format_duration(*range.start()),
        format_duration(*range.end()),
    );
    Err(not(format!("a time from {least} to {most}"), text))
}

/// How much the store may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreLimit {
    /// So many bytes.
    Bytes(u64),
    /// So much of the file system the state directory lies on, 1 to 100.
    PercentOfFileSystem(u8),
}

impl StoreLimit {
    /// Below it hardly a pack fits, and what is put is evicted before anyone asks for it.
    pub const LEAST_BYTES: u64 = 64 << 20;

    /// The limit on a file system of `file_system_bytes`.
    pub fn bytes_of(self, file_system_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::PercentOfFileSystem(percent) => file_system_bytes / 100 * u64::from(percent),
        }
    }
}

impl FromStr for StoreLimit {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Self, ParseValueError> {
        let least = format_bytes(Self::LEAST_BYTES);
        let expected = format!(
            "a share of the file system from \"1%\" to \"100%\", or a size of at least \"{least}\""
        );
        let limit = match text.strip_suffix('%') {
            Some(percent) => percent
                .parse()
                .ok()
                .filter(|percent| (1..=100).contains(percent))
                .map(Self::PercentOfFileSystem),
            None => parse_bytes(text)
                .ok()
                .filter(|b| *b >= Self::LEAST_BYTES)
                .map(Self::Bytes),
        };
        limit.ok_or_else(|| not(expected, text))
    }
}

impl fmt::Display for StoreLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&format_bytes(*bytes)),
            Self::PercentOfFileSystem(percent) => write!(f, "{percent}%"),
        }
    }
}

/// A host by name or address, and a port of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// A DNS name, or an address without brackets.
    pub host: String,
    /// Not 0.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Self, ParseValueError> {
        let error = || {
            not(
                "\"HOST:PORT\" such as \"192.0.2.7:4001\" or \"[2001:db8::7]:4001\"",
                text,
            )
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(error)?;
        let host = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(address) => address
                .parse::<Ipv6Addr>()
                .map_err(|_| error())?
                .to_string(),
            None if is_host_name(host) => host.to_owned(),
            None => return Err(error()),
        };
        Ok(Self { host, port })
    }
}

/// RFC 1123, section 2.1, and the underscore that is met in practice.
fn is_host_name(host: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    !host.is_empty() && host.len() <= 253 && host.chars().all(allowed)
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// How serious a thing must be to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// What went wrong.
    Error,
    /// And what looks wrong.
    Warn,
    /// And what was done.
    Info,
    /// And how.
    Debug,
    /// And each segment.
    Trace,
}

impl LogLevel {
    const ALL: [Self; 5] = [
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
    ];
}

impl FromStr for LogLevel {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Self, ParseValueError> {
        let level = Self::ALL
            .into_iter()
            .find(|level| level.to_string() == text);
        level.ok_or_else(|| {
            not(
                "one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
                text,
            )
        })
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

/// Linux's IFNAMSIZ is 16, with the NUL at the end.
pub(super) fn interface(text: &str) -> Result<String, ParseValueError> {
    let allowed = |c: char| c.is_ascii_graphic() && c != '/';
    let fine = (1..=15).contains(&text.len()) && text.chars().all(allowed);
    fine.then(|| text.to_owned())
        .ok_or_else(|| not("an interface's name such as \"eth0\"", text))
}

pub(super) fn address(text: &str) -> Result<IpAddr, ParseValueError> {
    text.parse().map_err(|_| {
        not(
            "an IP address such as \"192.0.2.7\", or \"::\" for all",
            text,
        )
    })
}

/// The empty text is how a configuration says that there is none.
pub(super) fn absolute_file(text: &str) -> Result<Option<PathBuf>, ParseValueError> {
    match text {
        "" => Ok(None),
        text if Path::new(text).is_absolute() => Ok(Some(text.into())),
        text => Err(not("an absolute path, or \"\" for none", text)),
    }
}

pub(super) fn quoted(value: impl fmt::Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

pub(super) fn quoted_list<T: fmt::Display>(values: &[T]) -> String {
    let values: Vec<String> = values.iter().map(quoted).collect();
    format!("[{}]", values.join(", "))
}
