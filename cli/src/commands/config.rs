//! `branchline config check`

use branchline_agent::api::Failure;

use crate::context::Context;
use crate::output;

/// Prints what is in force, as a configuration file.
pub(super) fn check(context: &Context) -> Result<(), Failure> {
    output::print(&context.config()?.to_toml())
}
