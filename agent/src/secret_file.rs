//! Small secrets in files that their owner alone can read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Nothing that is kept so is longer.
const MAX_BYTES: u64 = 4 << 10;

/// What the file holds; where there is none, it is made of `make`'s bytes. Blocks.
///
/// # Errors
/// When others can read it, or the disk refuses.
pub(crate) fn read_or_make(
    path: &Path,
    make: impl FnOnce() -> io::Result<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret = make()?;
            write(path, &secret)?;
            Ok(secret)
        }
        read => read,
    }
}

/// Bytes that nobody can guess.
///
/// # Errors
/// When the system has none.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("no randomness"))?;
    Ok(bytes)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        let message = "others can read it; give it mode 0600";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let mut secret = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut secret)?;
    Ok(secret)
}

/// It gets its name when it is whole and on the disk.
fn write(path: &Path, secret: &[u8]) -> io::Result<()> {
    let mut before = path.as_os_str().to_owned();
    before.push(".new");
    let before = Path::new(&before);
    match std::fs::remove_file(before) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(before)?;
    file.write_all(secret)?;
    file.sync_all()?;
    std::fs::rename(before, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
