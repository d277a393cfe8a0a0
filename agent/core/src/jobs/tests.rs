//! Jobs under a simulated shell, with virtual time.
