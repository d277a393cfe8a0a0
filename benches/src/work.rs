//! The folder that benchmarks write into.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// Set to write elsewhere: another disk, or a tmpfs, to leave the disk out of the figures.
const FOLDER_VARIABLE: &str = "BRANCHLINE_BENCH_DIR";

/// A folder of one run, removed with this value.
pub(crate) struct Work {
    folder: TempDir,
}

impl Work {
    /// Makes it, on a file system with room for `bytes`.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let home = home()?;
        let room = rustix::fs::statvfs(&home)?;
        let free = room.f_bavail * room.f_frsize;
        ensure!(
            free > bytes,
            "{} has {} MiB left, this needs {}: set {FOLDER_VARIABLE} to a folder with more room",
            home.display(),
            free >> 20,
            bytes >> 20
        );
        let folder = tempfile::Builder::new().prefix("run-").tempdir_in(home)?;
        Ok(Self { folder })
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new folder in it.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Waits until everything written so far is on the disk, so that what comes next does not pay for it.
    pub(crate) fn settle(&self) -> Result<()> {
        let folder = File::open(self.folder.path())?;
        rustix::fs::syncfs(folder).context("cannot sync the file system")
    }
}

/// Where packages are kept between runs.
pub(crate) fn packages_folder() -> Result<PathBuf> {
    let folder = home()?.join("packages");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn home() -> Result<PathBuf> {
    let folder = match std::env::var_os(FOLDER_VARIABLE) {
        Some(set) => PathBuf::from(set),
        None => cache_home()?.join("branchline/bench"),
    };
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.canonicalize()?)
}

/// `$XDG_CACHE_HOME`, else `~/.cache`.
pub(crate) fn cache_home() -> Result<PathBuf> {
    let set = std::env::var_os("XDG_CACHE_HOME").filter(|set| !set.is_empty());
    let in_home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    set.map(PathBuf::from)
        .or_else(in_home)
        .with_context(|| format!("set {FOLDER_VARIABLE}: there is no HOME"))
}

/// Writes bytes that neither compress nor repeat; the same for the same seed.
pub(crate) fn generate(path: &Path, bytes: u64, seed: &str) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut out = BufWriter::new(file);
    let mut stream = blake3::Hasher::new().update(seed.as_bytes()).finalize_xof();
    let mut block = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
        stream.fill(&mut block[..length]);
        out.write_all(&block[..length])?;
        left -= length as u64;
    }
    let file = out.into_inner().map_err(|error| error.into_error())?;
    file.sync_all()?;
    Ok(())
}

/// Removes a file or a folder that may not be there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Two files hold the same bytes.
pub(crate) fn ensure_same(left: &Path, right: &Path) -> Result<()> {
    let same = std::process::Command::new("cmp")
        .arg("-s")
        .arg(left)
        .arg(right)
        .status()?;
    ensure!(
        same.success(),
        "{} and {} differ",
        left.display(),
        right.display()
    );
    Ok(())
}
