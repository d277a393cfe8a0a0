//! How a change of a file is noticed.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};

/// Linux stamps files with a clock that moves each timer tick: 10 ms at most (CONFIG_HZ=100).
/// Twice that, so that a change after the wait surely has another time.
const MTIME_TICK: Duration = Duration::from_millis(20);

/// What must stay the same while a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    pub(crate) length: u64,
    pub(crate) mtime_seconds: i64,
    pub(crate) mtime_nanoseconds: i64,
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            mtime_seconds: metadata.mtime(),
            mtime_nanoseconds: metadata.mtime_nsec(),
        }
    }

    pub(crate) fn has_mtime_of(&self, other: &Metadata) -> bool {
        (self.mtime_seconds, self.mtime_nanoseconds) == (other.mtime(), other.mtime_nsec())
    }

    /// Whether the open file, and the file of that name, are still what they were.
    pub(crate) fn still_holds(&self, file: &File, path: &Path) -> io::Result<bool> {
        let is_same = |metadata: Metadata| Self::of(&metadata) == *self;
        Ok(is_same(file.metadata()?) && std::fs::metadata(path).is_ok_and(is_same))
    }
}

/// Opens a regular file for reading from start to end; others give `InvalidInput`, without waiting
/// for a FIFO's writer.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(file)
}

/// The stamp of a file that any later change is bound to alter: waits until the clock that stamps
/// files has moved on since the last change.
pub(crate) fn settled_stamp(file: &File) -> io::Result<Stamp> {
    let mtime = file.metadata()?.modified()?;
    // A time in the future says nothing of when the change was, and a later one will differ.
    let age = SystemTime::now()
        .duration_since(mtime)
        .unwrap_or(MTIME_TICK);
    if let Some(rest) = MTIME_TICK.checked_sub(age) {
        thread::sleep(rest);
    }
    Ok(Stamp::of(&file.metadata()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_change_right_after_the_stamp_has_another_time() -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        for byte in 0..20 {
            file.write_all(&[byte])?;
            let mut stamp = settled_stamp(file.as_file())?;
            let age = file.as_file().metadata()?.modified()?.elapsed();
            assert!(
                age.is_ok_and(|age| age >= MTIME_TICK),
                "the clock may not have moved"
            );
            assert!(stamp.still_holds(file.as_file(), file.path())?);
            file.write_all(&[byte])?;
            // Only its time may tell: a change can keep the length.
            stamp.length += 1;
            assert!(
                !stamp.still_holds(file.as_file(), file.path())?,
                "change {byte}"
            );
        }
        Ok(())
    }
}
