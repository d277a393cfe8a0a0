//! What Branchline decides, sans-IO: jobs, planning of transfers, stewards, retry policy, wire messages.
//!
//! Nothing here reads the clock, draws a random number, opens a socket or a file: time and
//! randomness come in as arguments, effects go out as data.

pub mod backoff;
mod deadline;
pub mod jobs;
mod peer;
pub mod planner;
pub mod repair;
mod segments;
pub mod swarm;
pub mod wire;

pub use deadline::Deadline;
pub use peer::{ParsePeerIdError, PeerId};
pub use segments::{SegmentRange, SegmentSet};
