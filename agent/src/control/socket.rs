//! The socket in the state directory: made safely, removed at the end.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use tokio::net::UnixListener;

use crate::api::{Failure, FailureKind};

/// The socket's name in the state directory.
pub const SOCKET_NAME: &str = "control.sock";

/// Where the socket is made before it gets its name. Not longer than [`SOCKET_NAME`], so that
/// whoever may have the one may have the other.
const SOCKET_NAME_BEFORE: &str = "control.new";

/// `sun_path` has 108 bytes, the last of them NUL (unix(7)).
const MAX_PATH_BYTES: usize = 107;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The kernel takes no such path.
    #[error(
        "control socket {}: the path has {} bytes, and a Unix socket's may have {MAX_PATH_BYTES}; \
         choose a shorter --state-dir",
        .path.display(), .path.as_os_str().len()
    )]
    PathTooLong {
        /// The socket's.
        path: PathBuf,
    },
    /// Something else has its name.
    #[error(
        "control socket {}: this is no socket, and nothing that Branchline made; move it away",
        .path.display()
    )]
    NameTaken {
        /// The socket's.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error(
        "control socket {}: {source}; check the permissions of the state directory",
        .path.display()
    )]
    Io {
        /// The socket's.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        let kind = match &error {
            BindError::PathTooLong { .. } => FailureKind::Usage,
            BindError::NameTaken { .. } | BindError::Io { .. } => FailureKind::LocalDisk,
        };
        Self::new(kind, error)
    }
}

/// The path of the control socket of the agent with this state directory.
pub(super) fn socket_path(state_dir: &Path) -> Result<PathBuf, BindError> {
    let path = state_dir.join(SOCKET_NAME);
    match path.as_os_str().as_bytes().len() {
        0..=MAX_PATH_BYTES => Ok(path),
        _ => Err(BindError::PathTooLong { path }),
    }
}

/// A listening control socket; its file goes when this goes.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl ControlSocket {
    /// Makes the socket: for all users where those are served, else with mode 0600. The caller holds the state directory's lock: what stands
    /// under the socket's name is then the remains of a dead agent, and is replaced at one blow.
    ///
    /// # Errors
    /// [`BindError`], with nothing changed.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(state_dir: &Path, for_all: bool) -> Result<Self, BindError> {
        let path = socket_path(state_dir)?;
        if is_something_else(&path) {
            return Err(BindError::NameTaken { path });
        }
        match listen(&state_dir.join(SOCKET_NAME_BEFORE), &path, for_all) {
            Ok(listener) => Ok(Self {
                listener,
                file: SocketFile(path),
            }),
            Err(source) => Err(BindError::Io { path, source }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.file.0
    }

    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// The socket's file, removed on drop: still under the state directory's lock.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "control socket not removed");
        }
    }
}

fn is_something_else(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.file_type().is_socket())
}

/// The rename makes the socket appear with its mode already set, and lets no moment pass in which
/// a command finds none.
fn listen(before: &Path, path: &Path, for_all: bool) -> io::Result<UnixListener> {
    match fs::remove_file(before) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(before)?;
    let mode = if for_all { 0o666 } else { 0o600 };
    fs::set_permissions(before, fs::Permissions::from_mode(mode))?;
    fs::rename(before, path)?;
    Ok(listener)
}
