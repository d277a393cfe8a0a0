//! Folders of targets, reached so that nobody leads root elsewhere.
//!
//! What an ordinary user's job may reach the kernel decides, for it is done with his rights (`owner.rs`). Root may reach
//! everything, so that whoever can plant a link on the way to a target of root's could choose where it leads. So root's
//! way follows no link but root's own, step by step from `/`, and what was reached is held open: whatever is renamed
//! afterwards, what is done there is done in that very folder.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

use crate::owner::Owner;

/// As the kernel: path_resolution(7).
const MAX_LINKS: u32 = 40;

/// A folder to do something in.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Where the way there had to be looked at.
    held: Option<OwnedFd>,
}

impl Folder {
    /// The folder of a target, for what `owner` has done there. Blocks.
    ///
    /// # Errors
    /// When there is none, or the way leads over another user's link and the owner is root.
    pub(crate) fn of(target: &Path, owner: Owner) -> io::Result<Self> {
        let path = target.parent().unwrap_or(Path::new("/")).to_owned();
        let is_root = owner == Owner::Process && rustix::process::geteuid().is_root();
        let held = match is_root && path.is_absolute() {
            true => Some(walk(&path)?),
            false => None,
        };
        Ok(Self { path, held })
    }

    /// What has this name in it, as a path to use at once.
    pub(crate) fn join(&self, name: &OsStr) -> PathBuf {
        match &self.held {
            // A link of the kernel's own, to that folder and no other: proc_pid_fd(5).
            Some(held) => PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd())).join(name),
            None => self.path.join(name),
        }
    }
}

/// Goes from `/` to a folder, one step after the other.
fn walk(path: &Path) -> io::Result<OwnedFd> {
    let root = || open_folder(CWD, OsStr::new("/"));
    let mut reached = root()?;
    // The next step last.
    let mut left = steps(path);
    let mut links = 0;
    while let Some(step) = left.pop() {
        match step_into(&reached, &step)? {
            Step::Folder(folder) => reached = folder,
            Step::Link(to) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(rustix::io::Errno::LOOP.into());
                }
                if to.is_absolute() {
                    reached = root()?;
                }
                left.extend(steps(&to));
            }
        }
    }
    Ok(reached)
}

/// The steps of a path, the first one last. `..` is one too: a link of root's may have it.
fn steps(path: &Path) -> Vec<OsString> {
    let step = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(step).collect()
}

enum Step {
    Folder(OwnedFd),
    Link(PathBuf),
}

/// Looks and opens are two calls; what stands there in between is opened as a folder, or not at all.
fn step_into(folder: &OwnedFd, name: &OsStr) -> io::Result<Step> {
    let found = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
        return Ok(Step::Folder(open_folder(folder, name)?));
    }
    if found.st_uid != 0 {
        let message = format!(
            "the link {name:?} on the way is user {}'s, and root follows none but root's own; name the folder that it leads to",
            found.st_uid
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let to = rustix::fs::readlinkat(folder, name, Vec::new())?;
    // Read anew: it must still be the one that was looked at.
    let again = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match (again.st_ino, again.st_uid) == (found.st_ino, 0) {
        true => Ok(Step::Link(OsString::from_vec(to.into_bytes()).into())),
        false => Err(rustix::io::Errno::AGAIN.into()),
    }
}

fn open_folder(at: impl std::os::fd::AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(
        at,
        name.as_bytes(),
        flags,
        Mode::empty(),
    )?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{lchown, symlink};

    use super::*;

    /// Debian's `nobody`.
    const NOBODY: u32 = 65534;

    fn write_in(folder: &Path) -> io::Result<()> {
        let target = folder.join("f");
        let folder = Folder::of(&target, Owner::Process)?;
        fs::write(folder.join(OsStr::new("f")), "here")
    }

    #[test]
    fn a_folder_and_ones_own_links_to_it_are_reached() {
        let dir = tempfile::tempdir().expect("a folder");
        let base = dir.path().canonicalize().expect("a path");
        fs::create_dir_all(base.join("a/b")).expect("made");
        symlink("../a/b", base.join("a/relative")).expect("linked");
        symlink(base.join("a"), base.join("absolute")).expect("linked");
        for way in ["a/b", "a/relative", "absolute/b", "absolute/relative"] {
            write_in(&base.join(way)).expect(way);
            fs::remove_file(base.join("a/b/f")).expect("written there");
        }
        symlink("loop", base.join("loop")).expect("linked");
        assert!(write_in(&base.join("loop")).is_err());
        let none = write_in(&base.join("none")).expect_err("nothing there");
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn root_follows_nobody_elses_link_and_stays_where_it_was() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let base = dir.path().canonicalize().expect("a path");
        fs::create_dir(base.join("precious")).expect("made");
        symlink(base.join("precious"), base.join("planted")).expect("linked");
        lchown(base.join("planted"), Some(NOBODY), None).expect("given away");
        let refused = write_in(&base.join("planted")).expect_err("another user's link");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);

        fs::create_dir(base.join("his")).expect("made");
        let folder = Folder::of(&base.join("his/f"), Owner::Process).expect("reached");
        fs::rename(base.join("his"), base.join("moved")).expect("moved");
        symlink(base.join("precious"), base.join("his")).expect("linked");
        fs::write(folder.join(OsStr::new("f")), "here").expect("written");
        assert!(base.join("moved/f").is_file());
        assert_eq!(
            fs::read_dir(base.join("precious")).expect("read").count(),
            0
        );
    }
}
