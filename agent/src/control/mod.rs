//! The control API: how commands talk to a running agent.
//!
//! HTTP/1.1 with JSON over the Unix socket `control.sock` in the state directory; every route is
//! in `docs/control-api.md`. The kernel says who called. An agent of root serves all users, each his own jobs; another
//! agent its own user and root. The server does nothing itself: it hands requests to a
//! [`Backend`](crate::api::Backend) and to the desk of the jobs.

mod client;
mod jobs;
mod openapi;
mod problem;
mod server;
mod socket;
mod tcp;

pub use client::{Client, ClientError, EventStream, GetStream};
pub(crate) use server::{Doors, serve};
pub use socket::{BindError, ControlSocket, SOCKET_NAME};
pub use tcp::{ControlPort, TOKEN_NAME};

/// A line of events or a request is a few hundred bytes; a cache list is the longest, at some 300
/// bytes an entry. What is longer than this is no answer of an agent.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A request is a URL, a path, digests and headers; origins take no more than this themselves.
const MAX_REQUEST_BYTES: usize = 256 << 10;

/// `application/json` with one event a line.
const EVENT_LINES: &str = "application/x-ndjson";

#[cfg(test)]
mod tests;
