//! Files that are complete get their names; those that nobody wants any more go. All of it with their owner's rights.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use branchline_core::jobs::{ErrorContext, PlaceFailure, Staging, TargetPath, Trouble, UserId};

use crate::engine::partial_name;
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
        let acted = Owner::of(owner.0).act(|| rename(&from, to.as_path(), again));
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

fn rename(from: &Path, to: &Path, again: bool) -> io::Result<()> {
    if to.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "it is a folder",
        ));
    }
    match std::fs::rename(from, to) {
        Err(error) if again && error.kind() == io::ErrorKind::NotFound && to.is_file() => {}
        renamed => renamed?,
    }
    // A folder that may be written to but not read cannot be synced; the file is there.
    let folder = to.parent().unwrap_or(Path::new("/"));
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        tracing::warn!(folder = %folder.display(), %error, "a new name may be lost with the power");
    }
    Ok(())
}

/// A file that is complete under its hidden name, of which the journal knows nothing, is a partial file again: what it holds
/// is found by its hashes, and nothing is fetched twice.
pub(super) async fn take_up_staged(owner: Owner, staged: PathBuf) {
    let taking = tokio::task::spawn_blocking(move || {
        let name = staged.file_name()?;
        let partial = staged.with_file_name(partial_name(name));
        let renamed = owner.act(|| match staged.is_file() && !partial.exists() {
            true => std::fs::rename(&staged, &partial),
            false => Ok(()),
        });
        renamed.and_then(|renamed| renamed).err()
    });
    if let Ok(Some(error)) = taking.await {
        tracing::warn!(%error, "what was complete is fetched anew");
    }
}

/// Removes the file under its hidden name, and its partial file. What cannot be removed stays.
pub(super) async fn discard(owner: UserId, staged: PathBuf) {
    let discarding = tokio::task::spawn_blocking(move || {
        let partial = staged
            .file_name()
            .map(|name| staged.with_file_name(partial_name(name)));
        let removed = Owner::of(owner.0).act(|| {
            let paths = [Some(&staged), partial.as_ref()];
            paths
                .into_iter()
                .flatten()
                .try_for_each(|path| match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    Ok(()) | Err(_) => Ok(()),
                })
        });
        if let Err(error) = removed.and_then(|removed| removed) {
            tracing::warn!(path = %staged.display(), %error, "what was fetched of a dropped file stays");
        }
    });
    if let Err(error) = discarding.await {
        tracing::warn!(%error, "discarding broke");
    }
}
