//! When something is to be looked at again, and why.

use std::time::Instant;

/// A time at which a state machine's `handle_timeout` is to be called, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    /// When.
    pub at: Instant,
    /// What is waited for until then.
    pub waiting_for: &'static str,
}
