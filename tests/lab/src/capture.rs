//! What a process printed: collected by a thread, readable while it runs.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Output past this is read and dropped, so that a chatty process neither blocks nor fills memory.
const LIMIT_BYTES: usize = 64 << 20;

/// The collected output of one stream.
#[derive(Clone)]
pub(crate) struct Capture {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    closed: bool,
}

/// How a wait for a line ended.
pub(crate) enum LineWait {
    Found(String),
    Closed,
    TimedOut,
}

impl Capture {
    /// Reads `source` to its end on a thread of its own, which ends with the stream.
    pub(crate) fn start(source: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        });
        let capture = Self {
            shared: Arc::clone(&shared),
        };
        // Not joined: a daemon that outlives its parent may hold the stream open until the lab's
        // end, which closes it for certain.
        thread::spawn(move || shared.collect(source));
        capture
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.shared.lock().bytes.clone()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Waits for the stream's end, at most for `patience`; the output may be incomplete after it.
    pub(crate) fn wait_closed(&self, patience: Duration) {
        let state = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, patience, |s| !s.closed);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits for a whole line that `wanted` accepts, from the beginning of the output.
    pub(crate) fn wait_line(
        &self,
        patience: Duration,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> LineWait {
        let deadline = Instant::now() + patience;
        let mut seen = 0;
        let mut state = self.shared.lock();
        loop {
            while let Some(line) = next_line(&state.bytes, &mut seen) {
                if wanted(&line) {
                    return LineWait::Found(line);
                }
            }
            if state.closed {
                return LineWait::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return LineWait::TimedOut;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn next_line(bytes: &[u8], seen: &mut usize) -> Option<String> {
    let rest = &bytes[*seen..];
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    *seen += end + 1;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, mut source: impl Read) {
        let mut buffer = [0; 16 << 10];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => self.append(&buffer[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn append(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let room = LIMIT_BYTES.saturating_sub(state.bytes.len());
        state
            .bytes
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.changed.notify_all();
    }
}
