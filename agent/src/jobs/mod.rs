//! Jobs on this machine: what [`branchline_core::jobs`] decides is carried out here.
//!
//! One task, the desk, owns all jobs. Requests of users and the reports of transfers come to it one after the other;
//! what they change is on the disk before anybody is answered and before anything else is done. docs/jobs.md has
//! the rules, `journal.rs` the records.

mod clock;
mod desk;
mod journal;
mod network;
mod notify;
mod placing;
mod sealing;
mod transfer;

pub(crate) use desk::{DeskTask, JobDesk, Parts};
pub(crate) use transfer::proxy_of;
