//! The store's directory: whose it is, who uses it now, and which format is in it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::OpenError;
use crate::linux;
use crate::packs::sync_dir;

/// The whole content of the file `FORMAT`.
const FORMAT: &str = "branchline store 1\n";

/// A directory that this process alone uses, of the format that this program knows.
pub(crate) struct Directory {
    path: PathBuf,
    /// Locked; the system lets go of it when the process ends, however it ends.
    _lock: File,
}

impl Directory {
    /// Makes the directory if there is none, locks it, checks its format.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        make_dir(path)?;
        check_owner(path)?;
        let lock = take_lock(path)?;
        check_format(path)?;
        let directory = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        for dir in [directory.packs(), directory.manifests()] {
            make_dir(&dir)?;
        }
        sync_dir(path).map_err(OpenError::io("writing to", path))?;
        Ok(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn packs(&self) -> PathBuf {
        self.path.join("packs")
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.path.join("manifests")
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.path.join("index")
    }
}

/// Only its user may look inside: content keys open contents.
fn make_dir(path: &Path) -> Result<(), OpenError> {
    let result = DirBuilder::new().recursive(true).mode(0o700).create(path);
    result.map_err(OpenError::io("making the directory", path))
}

fn check_owner(dir: &Path) -> Result<(), OpenError> {
    let metadata = std::fs::metadata(dir).map_err(OpenError::io("looking at", dir))?;
    let (owner, user) = (linux::owner(&metadata), linux::effective_user());
    if owner == user {
        Ok(())
    } else {
        Err(OpenError::OtherOwner {
            dir: dir.to_owned(),
            owner,
            user,
        })
    }
}

fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let mut file = options
        .open(&path)
        .map_err(OpenError::io("opening", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            return Err(OpenError::InUse {
                dir: dir.to_owned(),
                holder: holder(&mut file),
            });
        }
        Err(std::fs::TryLockError::Error(error)) => {
            return Err(OpenError::io("locking", &path)(error));
        }
    }
    leave_process_id(&mut file).map_err(OpenError::io("writing", &path))?;
    Ok(file)
}

fn leave_process_id(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

fn holder(lock: &mut File) -> String {
    let mut text = String::new();
    let read = lock.take(20).read_to_string(&mut text);
    match read.ok().and_then(|_| text.trim().parse::<u32>().ok()) {
        Some(process) => format!("process {process}"),
        None => "another process".to_owned(),
    }
}

fn check_format(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join("FORMAT");
    let found = match File::open(&path) {
        Ok(file) => beginning(file).map_err(OpenError::io("reading", &path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_new(dir) => {
            return write_format(dir).map_err(OpenError::io("writing", &path));
        }
        Err(error) => return Err(OpenError::io("reading", &path)(error)),
    };
    if found == FORMAT {
        Ok(())
    } else {
        let found = found.trim_end().to_owned();
        Err(OpenError::OtherFormat {
            dir: dir.to_owned(),
            found,
            expected: FORMAT.trim_end(),
        })
    }
}

fn beginning(file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `FORMAT` is written before anything else, so without it nothing else is there.
fn is_new(dir: &Path) -> bool {
    !dir.join("index").exists() && !dir.join("packs").exists()
}

fn write_format(dir: &Path) -> io::Result<()> {
    let new = dir.join("FORMAT.new");
    let mut file = File::create(&new)?;
    file.write_all(FORMAT.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join("FORMAT"))?;
    sync_dir(dir)
}
