//! Logs go to stderr: for a person with time and colour, for the journal with its own levels.

use std::fmt;
use std::io::{IsTerminal, stderr};

use branchline_agent::api::{Failure, FailureKind};
use branchline_agent::config::LogLevel;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

const VARIABLE: &str = "BRANCHLINE_LOG";

/// Starts logging; the variable `BRANCHLINE_LOG` goes before `level`.
pub(crate) fn start(level: LogLevel) -> Result<(), Failure> {
    let wanted = std::env::var(VARIABLE)
        .ok()
        .filter(|wanted| !wanted.is_empty());
    let wanted = wanted.unwrap_or_else(|| directives(level));
    let filter = EnvFilter::try_new(&wanted).map_err(|error| {
        let example = "info,branchline_exchange=debug";
        let message = format!("{VARIABLE}: {wanted}: {error}; an example is {example}");
        Failure::new(FailureKind::Usage, message)
    })?;
    let to_stderr = tracing_subscriber::fmt()
        .with_writer(stderr)
        .with_env_filter(filter);
    let started = match (stderr().is_terminal(), std::env::var_os("JOURNAL_STREAM")) {
        (false, Some(_)) => to_stderr.event_format(ForJournal::default()).try_init(),
        (terminal, _) => to_stderr.with_ansi(terminal).try_init(),
    };
    started.map_err(|error| Failure::new(FailureKind::Usage, format!("log: {error}")))
}

/// What libraries do is news only when something is wrong.
fn directives(level: LogLevel) -> String {
    match level {
        LogLevel::Error | LogLevel::Warn => level.to_string(),
        LogLevel::Info | LogLevel::Debug | LogLevel::Trace => format!("warn,branchline={level}"),
    }
}

/// The journal notes the time itself and takes the level from a prefix (sd-daemon(3)).
struct ForJournal {
    rest: Format<Full, ()>,
}

impl Default for ForJournal {
    fn default() -> Self {
        Self {
            rest: Format::default()
                .without_time()
                .with_level(false)
                .with_ansi(false),
        }
    }
}

impl<S, N> FormatEvent<S, N> for ForJournal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.rest.format_event(context, writer, event)
    }
}

/// syslog(3)'s priorities.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
