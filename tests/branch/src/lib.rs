//! A branch for the end-to-end tests: the lab's origin, WAN and machines, and what is done with them.
//!
//! [`Branch`] is the set-up, [`Machine`] one member with its state directory, [`Got`] what a
//! `branchline get` ended with. Everything goes through the command line, as a user would. It asserts
//! nothing by itself beyond "this command must work"; the tests do.

mod branch;
mod content;
mod got;
mod machine;
mod wait;

pub use branch::{Branch, Setup};
pub use content::{Random, random_bytes, sha256_hex, similar_bytes};
pub use got::{Got, Report};
pub use machine::Machine;
pub use wait::until;

/// Longer than anything here takes, shorter than a test run that hangs.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
