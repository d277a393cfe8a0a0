//! The one place that decides whether to ask an origin again, and when.

use std::fmt;
use std::time::Duration;

use branchline_core::backoff::{Backoff, Proportional};
use tokio::time::{Instant, sleep_until};

use crate::error::{OriginError, Retry};

/// How long to keep trying. Progress starts both bounds anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The waits between attempts.
    pub backoff: Backoff,
    /// Failures in a row, without progress, after which to give up.
    pub failures: u32,
    /// Time since the first of these failures after which to give up.
    pub give_up_after: Duration,
    /// What holds instead while the origin says that it has enough to do (429, 503); nothing else where there is none.
    pub when_busy: Option<BusyPolicy>,
}

/// How to ask an origin again that has enough to do. It is there, and what keeps it busy may end at any moment: where it serves
/// one request at a time, that is another machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPolicy {
    /// The waits between attempts, whose number has no bound; the shortest backoff at least, where it says that it is asked too
    /// often (429).
    pub waits: Proportional,
    /// Time since the first failure after which to give up.
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
            when_busy: Some(BusyPolicy::default()),
        }
    }
}

/// The state of trying again: failures since the last progress, and the wait that is due.
pub struct Retries {
    policy: RetryPolicy,
    random: Box<dyn FnMut() -> u64 + Send>,
    failures: u32,
    failing_since: Option<Instant>,
    pause_until: Option<Instant>,
}

impl Retries {
    /// `random` gives values uniform over all of `u64`, for the jitter.
    pub fn new(policy: RetryPolicy, random: impl FnMut() -> u64 + Send + 'static) -> Self {
        Self {
            policy,
            random: Box::new(random),
            failures: 0,
            failing_since: None,
            pause_until: None,
        }
    }

    /// Something came: the bounds start anew.
    pub fn progressed(&mut self) {
        self.failures = 0;
        self.failing_since = None;
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
        let since = *self.failing_since.get_or_insert(now);
        let random = (self.random)();
        let busy = self.policy.when_busy.filter(|_| error.is_busy());
        let (wait, too_often, give_up_after) = match busy {
            Some(busy) => {
                let mut wait = busy.waits.delay(now - since, random);
                if error.asks_too_often() {
                    wait = wait.max(self.policy.backoff.min);
                }
                (wait, false, busy.give_up_after)
            }
            None => {
                let wait = self.policy.backoff.delay(self.failures, random);
                self.failures = self.failures.saturating_add(1);
                let too_often = self.failures >= self.policy.failures;
                (wait, too_often, self.policy.give_up_after)
            }
        };
        let wait = wait.max(asked);
        if too_often || now + wait > since + give_up_after {
            return Err(error);
        }
        tracing::debug!(%error, wait_ms = wait.as_millis(), failures = self.failures, "will retry");
        self.pause_until = Some(now + wait);
        Ok(())
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
            .field("failures", &self.failures)
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
