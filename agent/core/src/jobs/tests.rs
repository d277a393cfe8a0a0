//! Jobs under a simulated shell, with virtual time.

mod behaviour;
mod document;
mod random;
mod scheduling;
mod world;

use super::*;
