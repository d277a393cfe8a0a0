//! Where files come to lie.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{FileIndex, JobId};

/// The longest path that Linux takes (PATH_MAX, with its NUL).
pub(super) const MAX_PATH_BYTES: usize = 4095;

/// The longest file name of common file systems.
const MAX_NAME_BYTES: usize = 255;

/// So much of a file's name goes into its hidden one: leaves room for our own additions and those
/// of the partial file within [`MAX_NAME_BYTES`].
const NAME_KEPT_BYTES: usize = 128;

/// The absolute path of a file, without `..`, in UTF-8 (it travels in JSON).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetPath(String);

/// A path that no file can be put at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the path of a file: {0:?} (it must be absolute, end in a file's name and hold no `..`)"
)]
pub struct NotATarget(pub String);

impl TargetPath {
    /// Takes an absolute path.
    ///
    /// # Errors
    ///
    /// When it is relative, holds `..` or a NUL, is too long, or names a folder.
    pub fn new(path: impl Into<String>) -> Result<Self, NotATarget> {
        let path = path.into();
        let mut parts = Path::new(&path).components();
        let absolute = parts.next() == Some(Component::RootDir);
        let plain = parts
            .all(|part| matches!(part, Component::Normal(name) if name.len() <= MAX_NAME_BYTES));
        let named = !path.ends_with('/') && !path.ends_with("/.") && path.len() > 1;
        if absolute && plain && named && path.len() <= MAX_PATH_BYTES && !path.contains('\0') {
            Ok(Self(path))
        } else {
            Err(NotATarget(path))
        }
    }

    /// As a path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The hidden file, in the same folder, that is complete and verified before it gets its name:
    /// `.NAME.branchline-job-17-0`. No other file of any job has the same.
    pub fn staged(&self, job: JobId, file: FileIndex) -> PathBuf {
        let path = self.as_path();
        let name = path.file_name().map(|name| name.to_string_lossy());
        let name = name.as_deref().unwrap_or_default();
        let kept = &name[..name.floor_char_boundary(NAME_KEPT_BYTES)];
        path.with_file_name(format!(".{kept}.branchline-job-{job}-{file}"))
    }
}

impl fmt::Display for TargetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TargetPath {
    type Error = NotATarget;

    fn try_from(path: String) -> Result<Self, NotATarget> {
        Self::new(path)
    }
}

impl From<TargetPath> for String {
    fn from(path: TargetPath) -> Self {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_paths_of_files_are_targets() {
        for good in ["/a", "/srv/images/debian 12.iso", "/a/./b", "/a//b", "/ä"] {
            assert!(TargetPath::new(good).is_ok(), "{good}");
        }
        let long = format!("/{}", "n".repeat(256));
        for bad in [
            "", "/", "a", "./a", "/a/..", "/a/../b", "/a/", "/a/.", "/a\0b", &long,
        ] {
            assert!(TargetPath::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hidden_name_lies_beside_its_target_and_is_not_too_long() {
        let target = TargetPath::new("/srv/a.iso").expect("a target");
        let staged = target.staged(JobId(17), FileIndex(3));
        assert_eq!(staged, Path::new("/srv/.a.iso.branchline-job-17-3"));
        let target = TargetPath::new(format!("/{}", "ä".repeat(127))).expect("a target");
        let staged = target.staged(JobId(u64::MAX), FileIndex(u32::MAX));
        assert!(staged.as_os_str().len() < 200, "{}", staged.display());
    }
}
