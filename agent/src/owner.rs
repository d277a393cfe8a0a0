//! With whose rights files are touched.
//!
//! An agent of root works for many users. What it does in their folders it does with the rights of the user it does
//! it for, and the kernel sees to the rest: a link planted somewhere, a folder renamed in between, lead to nothing
//! that this user could not reach himself.
//!
//! Such work runs on a thread of its own, which takes on the user's identity for file access, his groups, and no
//! capability, and ends with it. Only the identity for file access: with another real user that user could send
//! signals to the thread, and end the agent (credentials(7)).

use std::ffi::CString;
use std::io;

use nix::unistd::{Gid, Uid, User, getgrouplist, setfsgid, setfsuid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_thread_groups};

/// The user for whom something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The one this process runs as.
    Process,
    /// Another one, by uid.
    User(u32),
}

impl Owner {
    /// The user with this uid.
    pub(crate) fn of(uid: u32) -> Self {
        if uid == rustix::process::geteuid().as_raw() {
            Self::Process
        } else {
            Self::User(uid)
        }
    }

    /// Does `work` with this user's rights. Blocks, and costs a thread unless it is the process's own user.
    ///
    /// # Errors
    /// When the user is not known any more or his rights cannot be taken on: nothing was done then.
    pub(crate) fn act<T: Send>(self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        match self {
            Self::Process => Ok(work()),
            Self::User(uid) => std::thread::scope(|scope| {
                let thread = std::thread::Builder::new().name("branchline-owner".into());
                let acting = thread.spawn_scoped(scope, move || {
                    become_user(uid)?;
                    Ok(work())
                })?;
                acting
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }),
        }
    }
}

/// What a user is to the kernel, by the user database as it is now.
pub(crate) struct Identity {
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: std::path::PathBuf,
    pub(crate) name: String,
}

impl Identity {
    /// Looks the user up. Blocks.
    ///
    /// # Errors
    /// When there is none with this uid, or the database cannot be read.
    pub(crate) fn of(uid: u32) -> io::Result<Self> {
        let user = User::from_uid(Uid::from_raw(uid)).map_err(io::Error::from)?;
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("there is no user {uid}"));
        let user = user.ok_or_else(unknown)?;
        let name = CString::new(user.name.clone()).map_err(|_| unknown())?;
        let groups = getgrouplist(&name, user.gid).map_err(io::Error::from)?;
        Ok(Self {
            gid: user.gid.as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
            home: user.dir,
            name: user.name,
        })
    }
}

/// Makes the calling thread touch files as this user does.
fn become_user(uid: u32) -> io::Result<()> {
    let identity = Identity::of(uid)?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(identity.gid));
    let groups: Vec<_> = identity
        .groups
        .iter()
        .map(|group| rustix::process::Gid::from_raw(*group))
        .collect();
    set_thread_groups(&groups)?;
    setfsgid(group);
    setfsuid(user);
    // They say what was before, and never that it did not work.
    if setfsgid(group) != group || setfsuid(user) != user {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    // Not those that the other identity takes away already: reserved blocks, quotas, other people's files.
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    /// Debian's `nobody`.
    const NOBODY: u32 = 65534;

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn the_agents_own_user_acts_on_the_callers_thread() {
        let here = std::thread::current().id();
        let own = Owner::of(rustix::process::geteuid().as_raw());
        let there = own.act(|| std::thread::current().id()).expect("acted");
        assert_eq!(here, there);
    }

    #[test]
    fn what_is_done_for_a_user_is_done_with_his_rights_alone() {
        if !is_root() {
            // Nobody else's rights can be taken on; that must be an error, not silently one's own.
            assert!(Owner::User(NOBODY).act(|| ()).is_err());
            return;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let (secret, open) = (dir.path().join("secret"), dir.path().join("open"));
        fs::write(&secret, "root's").expect("written");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("set");
        fs::create_dir(&open).expect("made");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("set");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("set");
        let (read, made) = Owner::User(NOBODY)
            .act(|| (fs::read(&secret), File::create(open.join("f"))))
            .expect("acted");
        assert_eq!(
            read.expect_err("his").kind(),
            io::ErrorKind::PermissionDenied
        );
        let made = made.expect("made").metadata().expect("metadata");
        assert_eq!((made.uid(), made.gid()), (NOBODY, NOBODY));
        assert!(fs::read(&secret).is_ok(), "this thread has kept its rights");
    }

    #[test]
    fn a_user_that_is_not_known_can_do_nothing() {
        let acted = Owner::User(u32::MAX - 7).act(|| ());
        assert_eq!(
            acted.expect_err("no such user").kind(),
            io::ErrorKind::NotFound
        );
    }
}
