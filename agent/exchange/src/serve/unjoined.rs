//! Connections on which nobody joins do not stay.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Ends when no stream has been joined for `timeout`; `joined` counts those that are.
pub(super) async fn unjoined_for(timeout: Duration, mut joined: watch::Receiver<usize>) {
    loop {
        let anybody = *joined.borrow_and_update() > 0;
        // The sender lives as long as the connection.
        let _changed = if anybody {
            joined.changed().await
        } else {
            match tokio::time::timeout(timeout, joined.changed()).await {
                Ok(changed) => changed,
                Err(_) => return,
            }
        };
    }
}

/// A joined stream in its connection's count.
pub(super) struct Joined(Arc<watch::Sender<usize>>);

impl Joined {
    pub(super) fn count(joined: &Arc<watch::Sender<usize>>) -> Self {
        joined.send_modify(|count| *count += 1);
        Self(Arc::clone(joined))
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ends_within(seconds: u64, future: impl Future<Output = ()>) -> bool {
        let deadline = Duration::from_secs(seconds);
        tokio::time::timeout(deadline, future).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_unjoined_after_a_whole_timeout_without_a_joined_stream() {
        let timeout = Duration::from_secs(30);
        let joined = Arc::new(watch::Sender::new(0));
        let mut unjoined = std::pin::pin!(unjoined_for(timeout, joined.subscribe()));
        assert!(!ends_within(29, unjoined.as_mut()).await);
        let stream = Joined::count(&joined);
        assert!(!ends_within(100, unjoined.as_mut()).await);
        drop(stream);
        assert!(!ends_within(29, unjoined.as_mut()).await);
        drop(Joined::count(&joined));
        assert!(!ends_within(29, unjoined.as_mut()).await);
        assert!(ends_within(2, unjoined.as_mut()).await);
    }
}
