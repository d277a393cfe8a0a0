//! Files that are complete get their names; those that nobody wants any more go. All of it with their owner's rights.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use branchline_core::jobs::{ErrorContext, PlaceFailure, Staging, TargetPath, Trouble, UserId};

use rustix::fs::OFlags;

use crate::engine::partial_name;
use crate::folder::Folder;
use crate::owner::Owner;

/// A file that is to get its name.
pub(super) struct Placed {
    pub(super) owner: UserId,
    pub(super) from: PathBuf,
    pub(super) to: TargetPath,
    /// It may have been done before.
    pub(super) again: bool,
}

/// Gives the file its name, durably. What had that name is replaced.
pub(super) async fn place(placed: Placed) -> Result<(), PlaceFailure> {
    let placing = tokio::task::spawn_blocking(move || {
        let Placed {
            owner,
            from,
            to,
            again,
        } = placed;
        let owner = Owner::of(owner.0);
        let acted = owner.act(|| rename(&from, to.as_path(), owner, again));
        let staged = |error: &io::Error| {
            let lost = error.kind() == io::ErrorKind::NotFound && !from.exists();
            if lost { Staging::Lost } else { Staging::Kept }
        };
        acted
            .and_then(|renamed| renamed)
            .map_err(|error| PlaceFailure {
                staged: staged(&error),
                trouble: Trouble::new(
                    ErrorContext::LocalFile,
                    &format!("{to}: {error}; make it possible, then complete the job again"),
                ),
            })
    });
    placing.await.unwrap_or_else(|error| {
        Err(PlaceFailure {
            trouble: Trouble::new(ErrorContext::LocalFile, &error.to_string()),
            staged: Staging::Kept,
        })
    })
}

/// Both are in one folder.
fn rename(from: &Path, to: &Path, owner: Owner, again: bool) -> io::Result<()> {
    let folder = Folder::of(to, owner)?;
    let named = |path: &Path| folder.join(path.file_name().unwrap_or_default());
    let (from, to) = (&named(from), &named(to));
    if to.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "it is a folder",
        ));
    }
    if let Err(error) = keep_mode(from, to) {
        tracing::debug!(%error, to = %to.display(), "the mode of the file before is not kept");
    }
    match std::fs::rename(from, to) {
        Err(error) if again && error.kind() == io::ErrorKind::NotFound && to.is_file() => {}
        renamed => renamed?,
    }
    // A folder that may be written to but not read cannot be synced; the file is there.
    let here = folder.join(OsStr::new("."));
    if let Err(error) = File::open(here).and_then(|folder| folder.sync_all()) {
        tracing::warn!(?folder, %error, "a new name may be lost with the power");
    }
    Ok(())
}

/// The new file has the mode that the one with its name had before, where that was a file of the same user; what runs with
/// a user's or group's rights does not any more. Whatever else lies under the hidden name than the new file is not touched.
fn keep_mode(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(old) = std::fs::symlink_metadata(to) else {
        return Ok(());
    };
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(from)?;
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() > 1 || !old.is_file() || old.uid() != found.uid() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mode = old.permissions().mode() & 0o777;
    file.set_permissions(Permissions::from_mode(mode))
}

/// A file that is complete under its hidden name, of which the journal knows nothing, is a partial file again: what it holds
/// is found by its hashes, and nothing is fetched twice.
pub(super) async fn take_up_staged(owner: Owner, staged: PathBuf) {
    let taking = tokio::task::spawn_blocking(move || {
        let name = staged.file_name()?;
        let partial = staged.with_file_name(partial_name(name));
        let renamed = owner.act(|| {
            let folder = Folder::of(&staged, owner)?;
            let named = |path: &Path| folder.join(path.file_name().unwrap_or_default());
            let (staged, partial) = (named(&staged), named(&partial));
            match staged.is_file() && !partial.exists() {
                true => std::fs::rename(&staged, &partial),
                false => Ok(()),
            }
        });
        renamed.and_then(|renamed| renamed).err()
    });
    if let Ok(Some(error)) = taking.await {
        tracing::warn!(%error, "what was complete is fetched anew");
    }
}

/// What is not there needs not be removed.
fn remove(staged: &Path, owner: Owner) -> io::Result<()> {
    let name = staged.file_name().unwrap_or_default();
    let folder = match Folder::of(staged, owner) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        folder => folder?,
    };
    let names = [name.to_owned(), partial_name(name)];
    names
        .iter()
        .try_for_each(|name| match std::fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        })
}

/// Removes the file under its hidden name, and its partial file. What cannot be removed stays.
pub(super) async fn discard(owner: UserId, staged: PathBuf) {
    let discarding = tokio::task::spawn_blocking(move || {
        let owner = Owner::of(owner.0);
        let removed = owner.act(|| remove(&staged, owner));
        if let Err(error) = removed.and_then(|removed| removed) {
            tracing::warn!(path = %staged.display(), %error, "what was fetched of a dropped file stays");
        }
    });
    if let Err(error) = discarding.await {
        tracing::warn!(%error, "discarding broke");
    }
}
