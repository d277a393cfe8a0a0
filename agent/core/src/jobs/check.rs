//! What is asked for is checked once, here; after that it is trusted.

use std::collections::BTreeSet;
use std::time::Duration;

use super::spec::DAY;
use super::{FileSpec, Header, RetryPolicy, Settings, TargetPath};

/// The longest name and description: as BITS has them.
pub const MAX_NAME_BYTES: usize = 256;
/// The longest description.
pub const MAX_DESCRIPTION_BYTES: usize = 1024;

/// Headers of a job, and their bytes together: what common servers take.
pub const MAX_HEADERS: usize = 64;
/// Bytes of all headers of a job; also of its credentials.
pub const MAX_HEADER_BYTES: usize = 16 << 10;

/// Ranges of one file: as BITS.
pub const MAX_RANGES: usize = 500;

/// The words of a notification's command, and their bytes together.
pub const MAX_COMMAND_WORDS: usize = 64;
/// Bytes of a notification's command.
pub const MAX_COMMAND_BYTES: usize = 8 << 10;

/// No server is asked again sooner.
pub const LEAST_RETRY_DELAY: Duration = Duration::from_secs(1);

/// No timeout is longer: ten years, so that sums of times stay far from overflow.
pub const LONGEST_TIMEOUT: Duration = DAY.saturating_mul(3_650);

/// What is wrong with what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A text is too long, or is not one.
    #[error("{what} must have at most {most} bytes and no control characters")]
    Text {
        /// Which.
        what: &'static str,
        /// How many bytes it may have.
        most: usize,
    },
    /// Too many of something.
    #[error("at most {most} {what} are taken")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        most: usize,
    },
    /// A header that cannot be sent.
    #[error("{0:?} is not a header's name, or its value has control characters")]
    Header(String),
    /// A time that is not possible.
    #[error("{what} must lie between {} s and {} s", .least.as_secs(), .most.as_secs())]
    Time {
        /// Which.
        what: &'static str,
        /// The shortest.
        least: Duration,
        /// The longest.
        most: Duration,
    },
    /// A range without bytes, or past what a file can have.
    #[error("a byte range must hold at least one byte and end before 2^63")]
    Range,
    /// Two files at one place.
    #[error("two files of the job have the path {0}")]
    SamePath(TargetPath),
}

/// Checks what an owner sets.
pub(super) fn settings(settings: &Settings) -> Result<(), SpecError> {
    text("the name", &settings.name, MAX_NAME_BYTES, "")?;
    let description = &settings.description;
    text(
        "the description",
        description,
        MAX_DESCRIPTION_BYTES,
        "\n\t",
    )?;
    headers(&settings.headers)?;
    if let Some(credentials) = &settings.credentials {
        text("the user", &credentials.user, MAX_HEADER_BYTES, "")?;
        let password = credentials.password.expose();
        text("the password", password, MAX_HEADER_BYTES, "")?;
    }
    retry(&settings.retry)?;
    let command = &settings.notify.command;
    at_most("words of a command", command.len(), MAX_COMMAND_WORDS)?;
    let bytes: usize = command.iter().map(String::len).sum();
    at_most("bytes of a command", bytes, MAX_COMMAND_BYTES)?;
    let mut words = command.iter();
    words.try_for_each(|word| text("a command's word", word, MAX_COMMAND_BYTES, "\n\t"))
}

/// Checks files that come to `present` ones.
pub(super) fn files(present: &BTreeSet<&TargetPath>, added: &[FileSpec]) -> Result<(), SpecError> {
    let mut paths = BTreeSet::new();
    for file in added {
        at_most("ranges of a file", file.ranges.len(), MAX_RANGES)?;
        let good = |first: u64, length: Option<u64>| {
            let end = first.checked_add(length.unwrap_or(1));
            length != Some(0) && end.is_some_and(|end| end < 1 << 63)
        };
        if !file
            .ranges
            .iter()
            .all(|range| good(range.first, range.length))
        {
            return Err(SpecError::Range);
        }
        if present.contains(&file.path) || !paths.insert(&file.path) {
            return Err(SpecError::SamePath(file.path.clone()));
        }
    }
    Ok(())
}

fn headers(headers: &[Header]) -> Result<(), SpecError> {
    at_most("headers", headers.len(), MAX_HEADERS)?;
    let bytes = |header: &Header| header.name.len() + header.value.expose().len();
    let all: usize = headers.iter().map(bytes).sum();
    at_most("bytes of headers", all, MAX_HEADER_BYTES)?;
    // RFC 9110, section 5.6.2: a token.
    let in_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let sendable = |header: &&Header| {
        let value = header.value.expose();
        let named = !header.name.is_empty() && header.name.chars().all(in_token);
        named && !value.contains(|c: char| c.is_control() && c != '\t')
    };
    match headers.iter().find(|header| !sendable(header)) {
        Some(header) => Err(SpecError::Header(header.name.clone())),
        None => Ok(()),
    }
}

fn retry(retry: &RetryPolicy) -> Result<(), SpecError> {
    let most = LONGEST_TIMEOUT;
    time(
        "the shortest retry delay",
        retry.min_delay,
        LEAST_RETRY_DELAY,
        most,
    )?;
    time(
        "the longest retry delay",
        retry.max_delay,
        retry.min_delay,
        most,
    )?;
    let no_progress = retry.no_progress_timeout;
    time("the no-progress timeout", no_progress, Duration::ZERO, most)?;
    let active = retry.max_active;
    time("the longest active time", active, LEAST_RETRY_DELAY, most)
}

fn time(
    what: &'static str,
    given: Duration,
    least: Duration,
    most: Duration,
) -> Result<(), SpecError> {
    if (least..=most).contains(&given) {
        Ok(())
    } else {
        Err(SpecError::Time { what, least, most })
    }
}

fn text(what: &'static str, given: &str, most: usize, besides: &str) -> Result<(), SpecError> {
    let strange = |c: char| c.is_control() && !besides.contains(c);
    if given.len() > most || given.contains(strange) {
        return Err(SpecError::Text { what, most });
    }
    Ok(())
}

fn at_most(what: &'static str, given: usize, most: usize) -> Result<(), SpecError> {
    if given > most {
        return Err(SpecError::TooMany { what, most });
    }
    Ok(())
}
