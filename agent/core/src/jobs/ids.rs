//! Who and what: jobs, files, users, attempts.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
            ToSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Names a job: small running numbers from 1, never used twice, for people type them.
    JobId(u64)
}
number! {
    /// Which file of its job, from 0.
    FileIndex(u32)
}
number! {
    /// A user's number on this machine (uid).
    UserId(u32)
}
number! {
    /// Counts the lasting changes of a job; what an ETag is made of.
    Revision(u64)
}
number! {
    /// One try to transfer one file; never used twice until the agent restarts.
    Attempt(u64)
}
number! {
    /// Names a notification, never twice: who receives one a second time knows it by this.
    NotificationId(u64)
}
number! {
    /// Where an event stands in the stream of all; grows over restarts.
    EventSeq(u64)
}

impl FileIndex {
    /// As an index of a list.
    pub(super) fn at(self) -> usize {
        self.0 as usize
    }
}

impl UserId {
    /// The superuser.
    pub const ROOT: Self = Self(0);
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Whose jobs he makes, and may see and change.
    pub user: UserId,
    /// Whether he may see and change everybody's, and no quota binds him: root, or whoever runs
    /// the agent.
    pub administrates: bool,
}

impl Caller {
    /// Somebody with his own jobs; root has them all.
    pub fn of(user: UserId) -> Self {
        Self {
            user,
            administrates: user == UserId::ROOT,
        }
    }

    /// Whether he may see and change jobs of `owner`.
    pub fn may_see(&self, owner: UserId) -> bool {
        self.administrates || self.user == owner
    }
}
