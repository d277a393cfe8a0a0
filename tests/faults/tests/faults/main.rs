//! Real agents that are killed at any moment, and real disks' errors, in the lab's namespaces.
//!
//! These tests fail, and do not skip, where namespaces cannot be made or strace is missing.

mod control;
mod kills;
mod ledger;
mod orders;
mod strace;
mod told;
mod writes;

/// Bytes of a file that takes a moment and not longer.
const MEBIBYTE: usize = 1 << 20;
