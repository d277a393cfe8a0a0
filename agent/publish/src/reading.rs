//! Reads a file once, for two who both need all of it: SHA-256 on a thread of its own, which is
//! the dearest step, and the segments on the caller's.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use branchline_hashing::{Sha256, Sha256Digest};
use rustix::fs::Advice;

/// Measured: longer reads gain nothing, and this still fits the second-level cache.
const READ_LENGTH: usize = 1024 * 1024;
/// One being read and cut, one being hashed, and one on its way in each direction.
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
    mut on_window: impl FnMut(&[u8], bool) -> Result<usize, E>,
) -> Result<Sha256Digest, E> {
    // Advice only: a file system that takes none is as good.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::Sequential);
    let mut source = Source {
        file,
        offset: 0,
        length,
    };
    match usize::try_from(length) {
        Ok(length) if length <= READ_LENGTH => {
            let mut buffer = Buffer::with_room_for(length);
            source.fill(&mut buffer, &[])?;
            on_window(buffer.window(), true)?;
            let mut sha256 = Sha256::new();
            sha256.update(buffer.fresh());
            Ok(sha256.finish())
        }
        _ => read_beside_sha256(source, longest, on_window),
    }
}

fn read_beside_sha256<E: From<io::Error>>(
    mut source: Source<'_>,
    longest: usize,
    mut on_window: impl FnMut(&[u8], bool) -> Result<usize, E>,
) -> Result<Sha256Digest, E> {
    thread::scope(|scope| {
        // Both have room for all buffers, so that sending never waits; waiting for a free buffer
        // is what keeps reading from running ahead of SHA-256.
        let (to_sha256, full) = sync_channel(BUFFERS);
        let (recycle, free) = sync_channel(BUFFERS);
        let room = longest + READ_LENGTH;
        let mut unused = (0..BUFFERS).map(|_| Arc::new(Buffer::with_room_for(room)));
        let sha256 = scope.spawn(move || sha256_of(&full, &recycle));

        let mut before: Arc<Buffer> = Arc::new(Buffer::with_room_for(0));
        let mut left = 0..0;
        // No free buffer comes any more only when the thread panicked; joining says so.
        while let Some(mut buffer) = unused.next().or_else(|| free.recv().ok()) {
            // Buffers come back in order, so this is the oldest, nobody else holds it, and nothing
            // is cloned.
            let filled = Arc::make_mut(&mut buffer);
            let is_last = source.fill(filled, &before.window()[left])?;
            if to_sha256.send(Arc::clone(&buffer)).is_err() {
                break;
            }
            let done = on_window(buffer.window(), is_last)?;
            if is_last {
                break;
            }
            left = done..buffer.window().len();
            before = buffer;
        }
        drop(to_sha256);
        sha256
            .join()
            .map_err(|panic| std::panic::resume_unwind(panic))
    })
}

fn sha256_of(full: &Receiver<Arc<Buffer>>, recycle: &SyncSender<Arc<Buffer>>) -> Sha256Digest {
    let mut sha256 = Sha256::new();
    for buffer in full {
        sha256.update(buffer.fresh());
        // Nobody wants it back once the file is read.
        let _ = recycle.send(buffer);
    }
    sha256.finish()
}

/// The part of a file that has not been read.
struct Source<'a> {
    file: &'a File,
    offset: u64,
    length: u64,
}

impl Source<'_> {
    /// Puts what is left of the last window and what follows it into `buffer`; whether that ends
    /// the file.
    fn fill(&mut self, buffer: &mut Buffer, left: &[u8]) -> io::Result<bool> {
        buffer.bytes[..left.len()].copy_from_slice(left);
        buffer.fresh = left.len()..left.len();
        let wanted = usize::try_from(self.length - self.offset).unwrap_or(READ_LENGTH);
        let until = left.len() + wanted.min(READ_LENGTH);
        while buffer.fresh.end < until {
            match self
                .file
                .read_at(&mut buffer.bytes[buffer.fresh.end..until], self.offset)
            {
                Ok(0) => {
                    // The file became shorter; its end is here now.
                    self.length = self.offset;
                    break;
                }
                Ok(read) => {
                    buffer.fresh.end += read;
                    self.offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.offset == self.length)
    }
}

/// What is left of the window before, then fresh bytes.
#[derive(Clone)]
struct Buffer {
    bytes: Vec<u8>,
    fresh: Range<usize>,
}

impl Buffer {
    fn with_room_for(length: usize) -> Self {
        Self {
            bytes: vec![0; length],
            fresh: 0..0,
        }
    }

    fn window(&self) -> &[u8] {
        &self.bytes[..self.fresh.end]
    }

    fn fresh(&self) -> &[u8] {
        &self.bytes[self.fresh.clone()]
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
