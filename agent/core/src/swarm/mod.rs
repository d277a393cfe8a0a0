//! A common start without a server: the steward of a swarm, its leases, and who is asked whom.
//!
//! `docs/swarm.md` has the protocol, its deadlines and the reason of each constant.

mod announcements;
mod blocks;
mod enrolment;
mod manifest_plan;
mod message;
mod rendezvous;
mod steward;

pub use announcements::{AnnouncementWord, Announcements, MAX_ANNOUNCEMENTS};
pub use blocks::{BlockIndex, BlockRange, BlockSet, Blocks, MAX_BLOCKS};
pub use enrolment::{
    ALONE_AGAIN, Enrolment, IDLE_REPORT_EVERY, MOVES_AFTER, REPORT_EVERY, SETTLES,
    STEWARD_PATIENCE, STEWARD_SILENCE, STEWARDS_TRIED,
};
pub(crate) use enrolment::{Heard, News};
pub use manifest_plan::{
    ManifestAction, ManifestPlan, ManifestSetup, WARM_FOR, first_bytes_of_manifest, is_warm, warms,
};
pub use message::{
    Answer, Enlist, Grant, MAX_ANSWER_PEERS, MAX_LEASES, ManifestLease, Report, SwarmPeer, Want,
};
pub use rendezvous::first_in_rank;
pub use steward::{
    GONE_LINGERS, GrantedTotals, LEASE_LASTS, LESSEE_SILENCE, MANIFEST_LEASE, MAX_LESSEES,
    MAX_STEWARD_BYTES, MEMBER_SILENCE, SPREADS_WITHIN, Steward, Told,
};
