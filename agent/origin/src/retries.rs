//! The one place that decides whether to ask an origin again, and when.

use std::fmt;
use std::time::Duration;

use branchline_core::backoff::{Backoff, Proportional};
use tokio::time::{Instant, sleep_until};

use crate::error::{OriginError, Retry};

/// How long to keep trying. Progress starts the bounds anew, and so does a failure of the other kind, busy or not; but failures of
/// both kinds in turns end after twice the longer [`Self::give_up_after`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The waits between attempts.
    pub backoff: Backoff,
    /// Failures in a row, without progress, after which to give up.
    pub failures: u32,
    /// Time since the first of these failures after which to give up.
    pub give_up_after: Duration,
    /// What holds instead while the origin says that it has enough to do (429, 503); without it, that is a failure like others.
    pub when_busy: Option<BusyPolicy>,
}

/// How to ask an origin again that has enough to do. It is there, and what keeps it busy may end at any moment: where it serves
/// one request at a time, that is another machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPolicy {
    /// The waits between attempts, whose number has no bound; the shortest backoff and up to twice that at first, where it says that
    /// it is asked too often (429). A longer one that it asks for is kept if [`RetryPolicy::give_up_after`] has room for it.
    pub waits: Proportional,
    /// Time since the first such answer after which to give up.
    pub give_up_after: Duration,
}

impl Default for BusyPolicy {
    /// As long as an origin that is down.
    fn default() -> Self {
        Self {
            waits: Proportional {
                min: Duration::from_millis(100),
                max: Duration::from_secs(30),
            },
            give_up_after: Duration::from_secs(180),
        }
    }
}

impl Default for RetryPolicy {
    /// About three minutes of an origin that is down, for someone who waits at a terminal.
    fn default() -> Self {
        Self {
            backoff: Backoff {
                min: Duration::from_millis(500),
                max: Duration::from_secs(30),
            },
            failures: 12,
            give_up_after: Duration::from_secs(180),
            when_busy: None,
        }
    }
}

/// The state of trying again: failures since the last progress, and the wait that is due.
pub struct Retries {
    policy: RetryPolicy,
    random: Box<dyn FnMut() -> u64 + Send>,
    failing: Option<Failing>,
    pause_until: Option<Instant>,
}

/// Failures since the last progress.
#[derive(Debug, Clone, Copy)]
struct Failing {
    since: Instant,
    /// Of the last kind: busy, or not.
    busy: bool,
    /// The first of these in a row, and how many they are.
    of_kind_since: Instant,
    of_kind: u32,
}

impl Failing {
    fn begin(now: Instant, busy: bool) -> Self {
        Self {
            since: now,
            busy,
            of_kind_since: now,
            of_kind: 0,
        }
    }
}

impl Retries {
    /// `random` gives values uniform over all of `u64`, for the jitter.
    pub fn new(policy: RetryPolicy, random: impl FnMut() -> u64 + Send + 'static) -> Self {
        Self {
            policy,
            random: Box::new(random),
            failing: None,
            pause_until: None,
        }
    }

    /// Something came: the bounds start anew.
    pub fn progressed(&mut self) {
        self.failing = None;
    }

    /// Notes a failure and sets the next wait.
    ///
    /// # Errors
    /// The error itself when trying again makes no sense, or not any more.
    pub fn failed(&mut self, error: OriginError) -> Result<(), OriginError> {
        let asked = match error.retry() {
            Retry::Never | Retry::StartAnew => return Err(error),
            Retry::Backoff => Duration::ZERO,
            Retry::After(wait) => wait,
        };
        let now = Instant::now();
        let busy = self.policy.when_busy.filter(|_| error.is_busy());
        let first = Failing::begin(now, busy.is_some());
        let mut failing = match self.failing {
            Some(before) if before.busy == first.busy => before,
            Some(Failing { since, .. }) => Failing { since, ..first },
            None => first,
        };
        let (wait, tries_left) = self.next_wait(now, &failing, busy, error.asks_too_often());
        failing.of_kind = failing.of_kind.saturating_add(1);
        self.failing = Some(failing);
        let wait = wait.max(asked);
        let of_kind = busy.map_or(self.policy.give_up_after, |busy| busy.give_up_after);
        let in_all = of_kind.max(self.policy.give_up_after);
        let too_late =
            now + wait > failing.of_kind_since + of_kind || now + wait > failing.since + 2 * in_all;
        if !tries_left || too_late || asked > self.policy.give_up_after {
            return Err(error);
        }
        let failures = failing.of_kind;
        tracing::debug!(%error, wait_ms = wait.as_millis(), failures, "will retry");
        self.pause_until = Some(now + wait);
        Ok(())
    }

    /// The wait before the next attempt, and whether there may be one, as far as their number goes.
    fn next_wait(
        &mut self,
        now: Instant,
        failing: &Failing,
        busy: Option<BusyPolicy>,
        asks_too_often: bool,
    ) -> (Duration, bool) {
        let (random, backoff) = ((self.random)(), self.policy.backoff);
        let Some(BusyPolicy { mut waits, .. }) = busy else {
            let tries_left = failing.of_kind + 1 < self.policy.failures;
            return (backoff.delay(failing.of_kind, random), tries_left);
        };
        if asks_too_often {
            waits.min = waits.min.max(2 * backoff.min);
        }
        (waits.delay(now - failing.of_kind_since, random), true)
    }

    /// Waits until the next attempt is due. Cancel-safe: what is left of the wait stays due.
    pub async fn pause(&mut self) {
        if let Some(due) = self.pause_until {
            sleep_until(due).await;
            self.pause_until = None;
        }
    }

    /// How long the wait is that is due.
    fn pause_left(&self) -> Option<Duration> {
        let due = self.pause_until?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Tries `operation` until it succeeds or the policy gives up; `tell` is called before each wait, with its length.
    /// Cancel-safe if `operation` is.
    ///
    /// # Errors
    /// The last error.
    pub async fn run<T, F>(
        &mut self,
        mut operation: impl FnMut() -> F,
        tell: impl Fn(Duration),
    ) -> Result<T, OriginError>
    where
        F: Future<Output = Result<T, OriginError>>,
    {
        loop {
            self.pause_left().inspect(|left| tell(*left));
            self.pause().await;
            match operation().await {
                Ok(value) => {
                    self.progressed();
                    return Ok(value);
                }
                Err(error) => self.failed(error)?,
            }
        }
    }
}

impl fmt::Debug for Retries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retries")
            .field("policy", &self.policy)
            .field("failing", &self.failing)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;
    use crate::target::Place;

    const POLICY: RetryPolicy = RetryPolicy {
        backoff: Backoff {
            min: Duration::from_secs(1),
            max: Duration::from_secs(8),
        },
        failures: 5,
        give_up_after: Duration::from_secs(60),
        when_busy: None,
    };

    fn error(retry_after: Option<u64>) -> OriginError {
        let at = Place::of(&Url::parse("http://h/").expect("a URL"));
        let retry_after = retry_after.map(Duration::from_secs);
        OriginError::Unavailable {
            at,
            status: 503,
            retry_after,
        }
    }

    async fn waited(retries: &mut Retries) -> Duration {
        let before = Instant::now();
        retries.pause().await;
        before.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_and_failures_in_a_row_end_it() {
        let mut retries = Retries::new(POLICY, || u64::MAX / 2);
        let mut waits = Vec::new();
        while retries.failed(error(None)).is_ok() {
            waits.push(waited(&mut retries).await);
        }
        assert_eq!(waits.len(), 4, "the fifth failure is the last");
        assert!(
            waits.iter().all(|wait| *wait >= POLICY.backoff.min),
            "{waits:?}"
        );
        retries.progressed();
        assert!(
            retries.failed(error(None)).is_ok(),
            "progress starts the count anew"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_a_server_asks_for_is_kept_unless_it_is_longer_than_patience() {
        let mut retries = Retries::new(POLICY, || 0);
        assert!(retries.failed(error(Some(30))).is_ok());
        assert!(waited(&mut retries).await >= Duration::from_secs(30));
        assert!(
            retries.failed(error(Some(40))).is_err(),
            "70 s in all are over the 60"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_busy_is_asked_again_when_a_tenth_of_the_time_is_over_until_it_is_given_up() {
        let busy = BusyPolicy::default();
        let policy = RetryPolicy {
            when_busy: Some(busy),
            ..POLICY
        };
        let (mut retries, start, mut attempts) =
            (Retries::new(policy, || u64::MAX / 2), Instant::now(), 0);
        while retries.failed(error(None)).is_ok() {
            let waited_before = start.elapsed();
            let wait = waited(&mut retries).await;
            assert!(
                wait <= busy
                    .waits
                    .min
                    .max(waited_before / 10 + Duration::from_millis(2)),
                "{wait:?} after {waited_before:?}"
            );
            attempts += 1;
        }
        assert!(
            start.elapsed() > busy.give_up_after * 9 / 10,
            "{:?}",
            start.elapsed()
        );
        assert!((50..200).contains(&attempts), "{attempts}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_that_it_is_asked_too_often_is_left_alone_for_a_backoff() {
        let policy = RetryPolicy {
            when_busy: Some(BusyPolicy::default()),
            ..POLICY
        };
        let mut retries = Retries::new(policy, || 0);
        let at = Place::of(&Url::parse("http://h/").expect("a URL"));
        let too_often = OriginError::Unavailable {
            at,
            status: 429,
            retry_after: None,
        };
        assert!(retries.failed(too_often).is_ok());
        assert!(waited(&mut retries).await >= POLICY.backoff.min);
    }

    #[tokio::test(start_paused = true)]
    async fn other_failures_after_a_busy_time_have_their_own_bounds_and_all_together_one() {
        let busy = BusyPolicy {
            give_up_after: Duration::from_secs(50),
            ..BusyPolicy::default()
        };
        let policy = RetryPolicy {
            when_busy: Some(busy),
            ..POLICY
        };
        let mut retries = Retries::new(policy, || 0);
        let at = Place::of(&Url::parse("http://h/").expect("a URL"));
        let broken = || OriginError::Unavailable {
            at: at.clone(),
            status: 502,
            retry_after: None,
        };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(40) {
            retries.failed(error(None)).expect("50 s are not over");
            retries.pause().await;
        }
        for _ in 1..POLICY.failures {
            retries.failed(broken()).expect("they are tried as often");
            retries.pause().await;
        }
        assert!(retries.failed(broken()).is_err());
        let mut retries = Retries::new(policy, || 0);
        let start = Instant::now();
        while retries.failed(error(None)).is_ok() && retries.failed(broken()).is_ok() {
            retries.pause().await;
        }
        let after = start.elapsed();
        assert!(
            after > Duration::from_secs(60) && after <= Duration::from_secs(120),
            "{after:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_wait_stays_due() {
        let mut retries = Retries::new(POLICY, || 0);
        retries
            .failed(error(Some(10)))
            .expect("one failure is allowed");
        let before = Instant::now();
        let cut = tokio::time::timeout(Duration::from_secs(4), retries.pause()).await;
        assert!(cut.is_err());
        retries.pause().await;
        assert!(before.elapsed() >= Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_not_change_is_not_tried_again() {
        let mut retries = Retries::new(POLICY, || 0);
        let at = Place::of(&Url::parse("http://h/").expect("a URL"));
        assert!(
            retries
                .failed(OriginError::NotFound { at, status: 404 })
                .is_err()
        );
    }
}
