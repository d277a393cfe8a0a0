//! The system calls that have no safe wrapper: entering namespaces between fork and exec, and TUN.

pub(crate) mod enter;
pub(crate) mod tun;
