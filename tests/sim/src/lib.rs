//! A simulated branch: the real planner and steward of `branchline-core` under a virtual clock.
//!
//! [`simulate`] runs one [`Scenario`] and gives its [`Figures`]; [`table()`] runs many and
//! `branchline-sim` prints them. One seed gives one run, to the event: time is virtual, chance
//! comes from the seed, and nothing iterates in the order of addresses. After each input to a
//! planner or steward the invariants are checked; one that does not hold panics, and the message
//! names the seed.
//!
//! The simulator decides nothing about segments: it carries out the actions of
//! [`Planner`](branchline_core::planner::Planner), [`ManifestPlan`](branchline_core::swarm::ManifestPlan)
//! and [`Steward`](branchline_core::swarm::Steward) as the agent's shell does. What is modelled of
//! the network and the exchange, and what is not, is in `docs/swarm-simulation.md`.
//!
//! Top down: `world` owns everything and hands out events; `shell`, `serving` and `stewarding` are what
//! a member does when one concerns it; `lan`, `wan`, `uploads` and `download` are the network and
//! the exchange; `checks` has the invariants.

mod chance;
mod checks;
mod clock;
mod download;
mod figures;
mod lan;
mod member;
mod message;
pub mod plot;
mod scenario;
mod serving;
mod shell;
mod stewarding;
pub mod table;
mod troubles;
mod troubles_table;
mod uploads;
mod wan;
mod world;

pub use figures::Figures;
pub use scenario::{Joins, Scenario, StewardFate, Troubles};
pub use table::table;
pub use troubles_table::troubles_table;
pub use world::simulate;
