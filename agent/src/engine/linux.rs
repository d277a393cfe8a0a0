//! What only Linux has, for the files of downloads.

use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom};

/// Opening follows no symbolic link and blocks on no pipe.
pub(crate) const NO_FOLLOW: i32 = (OFlags::NOFOLLOW.bits() | OFlags::NONBLOCK.bits()) as i32;

/// Takes the file's lock, which ends with the process; `false` when another has it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Writes `parts` one behind the other from `offset` on, all of them.
pub(crate) fn write_all_at(file: &File, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match rustix::io::pwritev(file, rest, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reserves blocks for the first `length` bytes. File systems that cannot do that are let be.
pub(crate) fn reserve(file: &File, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The next stretch from `offset` on that was ever written; `None` when there is none.
pub(crate) fn next_data(file: &File, offset: u64) -> io::Result<Option<Range<u64>>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some(start..end))
}

/// Names this boot of the machine: what was written since it began is still in the page cache,
/// whatever happened to processes.
pub(crate) fn boot_id() -> String {
    // Without it every resumption counts as one after a power loss, which is safe.
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// A random number for jitter.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    // A failure leaves less jitter and no harm.
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    u64::from_le_bytes(bytes)
}

/// The size of the file system that `path` lies on.
pub(crate) fn file_system_bytes(path: &std::path::Path) -> io::Result<u64> {
    let figures = rustix::fs::statvfs(path)?;
    Ok(figures.f_blocks.saturating_mul(figures.f_frsize))
}

/// The extended attribute that a partial file carries its note in: it belongs to the bytes, and goes
/// where they go.
const NOTE: &str = "user.branchline.partial";

/// Longer notes are nobody's.
const NOTE_LIMIT_BYTES: usize = 8 << 10;

/// The note on a file; `None` when there is none, or the file system has no room for notes.
pub(crate) fn note(file: &File) -> Option<Vec<u8>> {
    let mut bytes = vec![0; NOTE_LIMIT_BYTES];
    let length = rustix::fs::fgetxattr(file, NOTE, &mut bytes[..]).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// Puts a note on a file, in place of another.
pub(crate) fn put_note(file: &File, note: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(
        file,
        NOTE,
        note,
        rustix::fs::XattrFlags::empty(),
    )?)
}

/// Takes a file's note off.
pub(crate) fn remove_note(file: &File) -> io::Result<()> {
    match rustix::fs::fremovexattr(file, NOTE) {
        Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Another way into an open file, for reading: with a position and locks of its own.
pub(crate) fn reopen(file: &File) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
