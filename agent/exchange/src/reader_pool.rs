//! The threads on which content is looked up, read and verified.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

/// A few threads with one queue. The queue needs no bound of its own: each stream has at most
/// [`crate::serve`]'s read-ahead in it, and streams are bounded; being first in, first out, it is
/// fair between them.
pub(crate) struct ReaderPool {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    closed: bool,
}

impl ReaderPool {
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        let mut pool = Self {
            queue: Arc::default(),
            threads: Vec::new(),
        };
        for number in 0..threads.max(1) {
            let queue = Arc::clone(&pool.queue);
            let thread = std::thread::Builder::new()
                .name(format!("bl-reader-{number}"))
                .spawn(move || queue.run())?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Runs `work` on one of the threads. The receiver gets an error when `work` panicked.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (reply, receiver) = oneshot::channel();
        let work = Box::new(move || {
            if !reply.is_closed() {
                let _nobody_waits = reply.send(work());
            }
        });
        self.queue.lock().work.push_back(work);
        self.queue.wake.notify_one();
        receiver
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(work) = self.next() {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!(
                    "reading content for a peer panicked; the peer is told it is absent"
                );
            }
        }
    }

    fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(work) = state.work.pop_front() {
                return Some(work);
            }
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for ReaderPool {
    /// Waits for what the threads are in the middle of; what is queued is dropped.
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.closed = true;
        state.work.clear();
        drop(state);
        self.queue.wake.notify_all();
        for thread in self.threads.drain(..) {
            // Work's panics are caught: the thread itself has none to report.
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_panics_leaves_the_threads_alive() {
        let pool = ReaderPool::start(1).expect("a thread");
        let broken = pool.run(|| panic!("as a broken source would"));
        assert!(broken.blocking_recv().is_err());
        assert_eq!(pool.run(|| 7).blocking_recv(), Ok(7));
    }

    #[test]
    fn dropping_the_pool_drops_what_is_queued() {
        let pool = ReaderPool::start(1).expect("a thread");
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let first = pool.run(move || gate.recv().is_ok());
        let second = pool.run(|| ());
        release.send(()).expect("the thread waits");
        drop(pool);
        // The first may have begun before the pool was closed; the second never hangs its waiter.
        let _either = first.blocking_recv();
        let _either = second.blocking_recv();
    }
}
