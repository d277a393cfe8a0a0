//! Requests to an agent that may die over any of them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use branchline_branch_tests::PATIENCE;
use serde_json::Value;

/// The way to an agent, whether it runs or not.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    socket: PathBuf,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Asked {
    /// Nobody listens: it was not asked.
    Nobody,
    /// The agent went away before it had answered: what was asked may be done.
    Unknown,
    /// The whole answer: its status, and its body.
    Answered(u16, Value),
}

impl Control {
    pub(crate) fn of(state_dir: &Path) -> Self {
        let socket = state_dir.join("control.sock");
        Self { socket }
    }

    pub(crate) fn ask(&self, method: &str, route: &str, body: Option<&Value>) -> Result<Asked> {
        let Ok(stream) = UnixStream::connect(&self.socket) else {
            return Ok(Asked::Nobody);
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        // Any error of the stream is the agent's death.
        match exchange(stream, method, route, body) {
            Ok(answer) => parse(&answer),
            Err(_) => Ok(Asked::Unknown),
        }
    }

    /// Asks an agent that runs, and gives what it answered.
    pub(crate) fn answer(
        &self,
        method: &str,
        route: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value)> {
        match self.ask(method, route, body)? {
            Asked::Answered(status, answer) => Ok((status, answer)),
            Asked::Nobody | Asked::Unknown => bail!("{method} {route}: no answer"),
        }
    }
}

fn exchange(
    mut stream: UnixStream,
    method: &str,
    route: &str,
    body: Option<&Value>,
) -> std::io::Result<Vec<u8>> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "{method} {route} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// An answer that is not whole is none.
fn parse(answer: &[u8]) -> Result<Asked> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Ok(Asked::Unknown);
    };
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.with_context(|| format!("no status: {head}"))?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.parse::<usize>().ok());
    let length = length.with_context(|| format!("no length: {head}"))?;
    if body.len() < length {
        return Ok(Asked::Unknown);
    }
    let body = serde_json::from_str(body).with_context(|| format!("no JSON: {body}"))?;
    Ok(Asked::Answered(status, body))
}
