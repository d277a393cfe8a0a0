//! A member's side of the relation with its steward: whom it asks, how long it waits, what it says.
//!
//! Used by [`ManifestPlan`](super::ManifestPlan) first and by the planner after it, over one stream.

/// See the module's text.
#[derive(Debug)]
pub struct Enrolment {}
