//! Reads a file once, for two who both need all of it: SHA-256 and the segments.
//!
//! Buffers go round: one thread reads into them, one adds them to the SHA-256, the caller cuts and
//! hashes segments. SHA-256 is the dearest step and cannot be divided, so nothing else is on its thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use branchline_hashing::{Sha256, Sha256Digest};
use rustix::fs::Advice;

/// Longer reads gain nothing, and this fits the second-level cache.
const READ_LENGTH: usize = 1024 * 1024;
/// One for each of the three, and one to spare between them.
const BUFFERS: usize = 4;

/// Reads the first `length` bytes of `file`, or what there is of them, and gives their SHA-256.
///
/// `on_window` sees the bytes in order. It is given those that it left last time followed by new
/// ones, and whether the window ends the file; it answers how many it is done with, and may leave
/// at most `longest` of them, none at the end.
pub(crate) fn read_through<E: From<io::Error>>(
    file: &File,
    length: u64,
    longest: usize,
    on_window: impl FnMut(&[u8], bool) -> Result<usize, E>,
) -> Result<Sha256Digest, E> {
    // Advice only: a file system that takes none is as good.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::Sequential);
    let source = Source {
        file,
        offset: 0,
        length,
    };
    match usize::try_from(length) {
        Ok(length) if length <= READ_LENGTH => read_at_once(source, length, on_window),
        _ => read_in_turns(source, longest, on_window),
    }
}

/// For a file of one buffer: threads would cost more than they bring.
fn read_at_once<E: From<io::Error>>(
    mut source: Source<'_>,
    length: usize,
    mut on_window: impl FnMut(&[u8], bool) -> Result<usize, E>,
) -> Result<Sha256Digest, E> {
    let mut buffer = Buffer::new(0, length);
    source.fill(&mut buffer)?;
    let mut sha256 = Sha256::new();
    sha256.update(buffer.fresh());
    on_window(buffer.fresh(), true)?;
    Ok(sha256.finish())
}

fn read_in_turns<E: From<io::Error>>(
    source: Source<'_>,
    longest: usize,
    on_window: impl FnMut(&[u8], bool) -> Result<usize, E>,
) -> Result<Sha256Digest, E> {
    thread::scope(|scope| {
        // Each has room for all buffers, so that only waiting for a buffer holds anybody up.
        let (to_sha256, read) = sync_channel(BUFFERS);
        let (to_window, hashed) = sync_channel(BUFFERS);
        let (recycle, free) = sync_channel(BUFFERS);
        let fresh = (0..BUFFERS).map(move |_| Buffer::new(longest, READ_LENGTH));
        let reader = scope.spawn(move || read_all(source, fresh, &free, &to_sha256));
        let sha256 = scope.spawn(move || sha256_of(&read, &to_window));

        // Taking both ends, it lets the other two end when it ends early.
        show_windows(hashed, recycle, on_window)?;
        reader.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok(sha256.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

fn read_all(
    mut source: Source<'_>,
    mut unused: impl Iterator<Item = Buffer>,
    free: &Receiver<Buffer>,
    to_sha256: &SyncSender<Buffer>,
) -> io::Result<()> {
    while let Some(mut buffer) = unused.next().or_else(|| free.recv().ok()) {
        source.fill(&mut buffer)?;
        let is_last = buffer.is_last;
        if to_sha256.send(buffer).is_err() || is_last {
            break;
        }
    }
    Ok(())
}

fn sha256_of(read: &Receiver<Buffer>, to_window: &SyncSender<Buffer>) -> Sha256Digest {
    let mut sha256 = Sha256::new();
    for buffer in read {
        sha256.update(buffer.fresh());
        if to_window.send(buffer).is_err() {
            break;
        }
    }
    sha256.finish()
}

fn show_windows<E>(
    hashed: Receiver<Buffer>,
    recycle: SyncSender<Buffer>,
    mut on_window: impl FnMut(&[u8], bool) -> Result<usize, E>,
) -> Result<(), E> {
    let mut left = Vec::new();
    for mut buffer in hashed {
        let is_last = buffer.is_last;
        let window = buffer.window_after(&left);
        let done = on_window(window, is_last)?;
        left.clear();
        left.extend_from_slice(&window[done..]);
        // Nobody wants it back once the file is read.
        let _ = recycle.send(buffer);
    }
    Ok(())
}

/// The part of a file that has not been read.
struct Source<'a> {
    file: &'a File,
    offset: u64,
    length: u64,
}

impl Source<'_> {
    fn fill(&mut self, buffer: &mut Buffer) -> io::Result<()> {
        let wanted = usize::try_from(self.length - self.offset).unwrap_or(READ_LENGTH);
        let until = buffer.bytes.len().min(buffer.reserve + wanted);
        buffer.end = buffer.reserve;
        while buffer.end < until {
            match self
                .file
                .read_at(&mut buffer.bytes[buffer.end..until], self.offset)
            {
                Ok(0) => {
                    // The file became shorter; its end is here now.
                    self.length = self.offset;
                    break;
                }
                Ok(read) => {
                    buffer.end += read;
                    self.offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.is_last = self.offset == self.length;
        Ok(())
    }
}

/// Bytes of the file, with a reserve before them for what was left of the window before.
struct Buffer {
    bytes: Vec<u8>,
    reserve: usize,
    end: usize,
    is_last: bool,
}

impl Buffer {
    fn new(reserve: usize, length: usize) -> Self {
        Self {
            bytes: vec![0; reserve + length],
            reserve,
            end: reserve,
            is_last: false,
        }
    }

    fn fresh(&self) -> &[u8] {
        &self.bytes[self.reserve..self.end]
    }

    fn window_after(&mut self, left: &[u8]) -> &[u8] {
        let start = self.reserve - left.len();
        self.bytes[start..self.reserve].copy_from_slice(left);
        &self.bytes[start..self.end]
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn windows_join_up_to_the_file_whatever_they_leave() -> io::Result<()> {
        for length in [
            0,
            1,
            READ_LENGTH - 1,
            READ_LENGTH,
            READ_LENGTH + 1,
            9 * READ_LENGTH,
        ] {
            let bytes: Vec<u8> = (0..length).map(|i| (i * i / 7).to_le_bytes()[0]).collect();
            let mut file = tempfile::tempfile()?;
            file.write_all(&bytes)?;

            let mut seen = Vec::new();
            let sha256 = read_through(&file, length as u64, 5000, |window, is_last| {
                let left = if is_last {
                    0
                } else {
                    (window.len() * 31 % 5001).min(window.len())
                };
                seen.extend_from_slice(&window[..window.len() - left]);
                Ok::<_, io::Error>(window.len() - left)
            })?;
            assert!(seen == bytes, "{length} bytes came out otherwise");
            let mut expected = Sha256::new();
            expected.update(&bytes);
            assert_eq!(sha256, expected.finish());
        }
        Ok(())
    }

    #[test]
    fn a_file_that_became_shorter_ends_where_it_ends() -> io::Result<()> {
        let mut file = tempfile::tempfile()?;
        file.write_all(&vec![7; 2 * READ_LENGTH])?;
        for length in [2 * READ_LENGTH + 1, 10 * READ_LENGTH] {
            let (mut seen, mut ends) = (0, 0);
            read_through(&file, length as u64, 0, |window, is_last| {
                seen += window.len();
                ends += usize::from(is_last);
                Ok::<_, io::Error>(window.len())
            })?;
            assert_eq!((seen, ends), (2 * READ_LENGTH, 1));
        }
        Ok(())
    }

    #[test]
    fn an_error_of_the_window_ends_the_reading() -> io::Result<()> {
        let mut file = tempfile::tempfile()?;
        file.write_all(&vec![7; 9 * READ_LENGTH])?;
        let result = read_through(&file, 9 * READ_LENGTH as u64, 0, |_, _| {
            Err::<usize, _>(io::Error::other("enough"))
        });
        assert_eq!(result.map_err(|e| e.to_string()), Err("enough".to_owned()));
        Ok(())
    }
}
