//! The real program in a branch of network namespaces, through its command line.
//!
//! These tests fail, and do not skip, where namespaces cannot be made. Each has a lab of its own.

mod api;
mod bad_peers;
mod busy_origin;
mod coming_from_bits;
mod common_start;
mod digests;
mod interrupted;
mod jobs;
mod local_trouble;
mod network;
mod once;
mod origins;
mod strangers;

/// The program that misbehaves as a peer.
const BAD_PEER: &str = env!("CARGO_BIN_EXE_branchline-bad-peer");

/// Bytes of a file that takes a moment and not longer.
const MEBIBYTE: usize = 1 << 20;
