//! Turns what the HTTP client says went wrong into an [`OriginError`], in one line of text.

use std::error::Error;
use std::io;

use crate::error::{NetworkKind, OriginError};
use crate::target::Place;

/// Longest cause in a message: enough for the longest certificate error, too short to be abused.
const MAX_CAUSE_CHARS: usize = 300;

/// The request failed before its answer's head was read.
pub(crate) fn no_answer(error: reqwest::Error, at: Place) -> OriginError {
    let error = error.without_url();
    let cause = one_line(&error);
    if find::<hyper::Error>(&error).is_some_and(hyper::Error::is_parse) {
        return OriginError::BadAnswer {
            at,
            what: format!("an answer that is not HTTP ({cause})"),
        };
    }
    OriginError::Network {
        at,
        kind: network_kind(&error),
        cause,
    }
}

/// The connection ended inside a body; `None` when it ended for another reason than its end.
pub(crate) fn is_early_end(error: &reqwest::Error) -> bool {
    chain(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(is_eof)
        || find::<hyper::Error>(error).is_some_and(hyper::Error::is_incomplete_message)
}

/// Any other failure inside a body.
pub(crate) fn broken_body(error: reqwest::Error, at: Place) -> OriginError {
    let error = error.without_url();
    OriginError::Network {
        at,
        kind: network_kind(&error),
        cause: one_line(&error),
    }
}

fn is_eof(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

fn network_kind(error: &reqwest::Error) -> NetworkKind {
    if error.is_dns() {
        return NetworkKind::Dns;
    }
    match find::<rustls::Error>(error) {
        Some(tls) if distrusts(tls) => NetworkKind::Certificate,
        Some(_) => NetworkKind::Tls,
        None if error.is_connect() => NetworkKind::Connect,
        None => NetworkKind::Broken,
    }
}

fn distrusts(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented
    )
}

/// The innermost two causes of an error in one line: what lies around them names the client's
/// layers, which help nobody.
pub(crate) fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut causes: Vec<String> = Vec::new();
    for cause in chain(error).map(ToString::to_string) {
        if causes.last().is_none_or(|outer| !outer.contains(&cause)) {
            causes.push(cause);
        }
    }
    clean(&causes[causes.len().saturating_sub(2)..].join(": "))
}

/// Foreign text as it may stand in a message: no control characters, bounded.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .take(MAX_CAUSE_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim()
        .to_owned()
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(error).find_map(|cause| cause.downcast_ref::<E>())
}

/// `io::Error` hides the error it carries from `source`; `get_ref` shows it.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let cause = next?;
        next = match cause.downcast_ref::<io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => cause.source(),
        };
        Some(cause)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_one_bounded_line_without_repetition() {
        let inner = io::Error::other("first\r\nsecond");
        let outer = io::Error::other(inner);
        assert_eq!(one_line(&outer), "first  second");
        assert_eq!(clean(&"x".repeat(10_000)).len(), MAX_CAUSE_CHARS);
    }

    #[test]
    fn an_error_wrapped_in_io_errors_is_found() {
        let tls = rustls::Error::HandshakeNotComplete;
        let wrapped = io::Error::other(io::Error::other(tls));
        assert!(find::<rustls::Error>(&wrapped).is_some());
    }
}
