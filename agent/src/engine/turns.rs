//! Downloads of one content on this machine take turns: the second takes from the first what it has
//! brought, and the WAN and the branch see one transfer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use branchline_hashing::ContentKey;
use tokio::sync::OwnedMutexGuard;

type Place = Arc<tokio::sync::Mutex<()>>;

/// Whose turn it is, by content.
#[derive(Default)]
pub(crate) struct Turns(Arc<Mutex<BTreeMap<ContentKey, Place>>>);

/// A download's turn. Dropping it gives it to the next, in the order they came.
pub(crate) struct Turn {
    key: ContentKey,
    turns: Arc<Mutex<BTreeMap<ContentKey, Place>>>,
    place: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Whether somebody has the turn now.
    pub(crate) fn is_taken(&self, key: ContentKey) -> bool {
        let places = lock(&self.0);
        places
            .get(&key)
            .is_some_and(|place| place.try_lock().is_err())
    }

    /// Waits for the turn. Cancel-safe.
    pub(crate) async fn take(&self, key: ContentKey) -> Turn {
        let place = Arc::clone(lock(&self.0).entry(key).or_default());
        // Made before the wait, so that a wait that is given up cleans up, too.
        let mut turn = Turn {
            key,
            turns: Arc::clone(&self.0),
            place: None,
        };
        turn.place = Some(place.lock_owned().await);
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut places = lock(&self.turns);
        self.place = None;
        // One reference is the table's; who waits has one, and so has its turn.
        if let Some(place) = places.get(&self.key)
            && Arc::strong_count(place) == 1
        {
            places.remove(&self.key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn now<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_has_the_turn_and_who_gives_up_waiting_is_forgotten() {
        let turns = Turns::default();
        let key = ContentKey::from_bytes([1; 32]);
        let first = now(pin!(turns.take(key))).expect("nobody has it");
        assert!(turns.is_taken(key));
        assert!(!turns.is_taken(ContentKey::from_bytes([2; 32])));
        let mut second = Box::pin(turns.take(key));
        assert!(now(second.as_mut()).is_none());
        {
            let mut third = Box::pin(turns.take(key));
            assert!(now(third.as_mut()).is_none());
        }
        drop(first);
        let second_has = now(second.as_mut()).expect("its turn");
        assert!(turns.is_taken(key));
        drop(second);
        drop(second_has);
        assert!(!turns.is_taken(key));
        assert!(lock(&turns.0).is_empty());
    }
}
