//! Programs to compare with.

use std::path::PathBuf;

use anyhow::Result;

use crate::work::cache_home;

/// What is said in place of figures.
pub(crate) const NOT_INSTALLED: &str = "not installed: run scripts/install-compared-tools";

/// Where Debian keeps servers; not in an ordinary user's PATH.
const SERVERS: &str = "/usr/sbin";

/// Finds a program on PATH, among servers, or where `scripts/install-compared-tools` puts it.
pub(crate) fn find(name: &str) -> Result<Option<PathBuf>> {
    let own = cache_home()?.join("branchline/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([SERVERS.into(), own]);
    Ok(folders
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file()))
}
