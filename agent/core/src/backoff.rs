//! How long to wait before trying again: policy values, applied in one place.

use std::time::Duration;

/// Exponential backoff with full jitter (the waiting time is uniform between `min` and the
/// current ceiling), which spreads machines that failed together. Source: M. Brooker,
/// "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The shortest wait, and the first ceiling.
    pub min: Duration,
    /// The ceiling that doubling ends at.
    pub max: Duration,
}

impl Backoff {
    /// The wait before attempt `attempt` (0: the first retry). `random` is uniform over all values.
    pub fn delay(&self, attempt: u32, random: u64) -> Duration {
        let span = u64::try_from((self.ceiling(attempt) - self.min).as_nanos()).unwrap_or(u64::MAX);
        let jitter = if span == 0 {
            0
        } else {
            random % span.saturating_add(1).max(1)
        };
        self.min + Duration::from_nanos(jitter)
    }

    /// The longest wait before attempt `attempt`.
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let doubled = self
            .min
            .saturating_mul(2u32.saturating_pow(attempt.min(31)));
        doubled.clamp(self.min, self.max.max(self.min))
    }
}

/// Waits in proportion to the time waited already, a twentieth to a tenth of it (which spreads machines that were refused
/// together): what is waited for is noticed at most a tenth later than it could be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proportional {
    /// The longest of the first waits, while a tenth of the time is less.
    pub min: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Proportional {
    /// The wait before the next attempt, `waited` after the first. `random` is uniform over all values.
    pub fn delay(&self, waited: Duration, random: u64) -> Duration {
        let ceiling = (waited / 10).clamp(self.min, self.max.max(self.min));
        let half = u64::try_from(ceiling.as_nanos() / 2).unwrap_or(u64::MAX);
        ceiling / 2 + Duration::from_nanos(random % half.saturating_add(1).max(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_proportional_delay_is_at_most_a_tenth_of_what_was_waited(millis in 0u64..1_000_000, random: u64) {
            let policy = Proportional { min: Duration::from_millis(50), max: Duration::from_secs(30) };
            let delay = policy.delay(Duration::from_millis(millis), random);
            let most = Duration::from_millis(millis).div_f64(10.0).clamp(policy.min, policy.max);
            prop_assert!(delay >= most / 2 && delay <= most, "{delay:?} of {most:?}");
        }

        #[test]
        fn a_delay_lies_between_min_and_the_doubled_ceiling(attempt: u32, random: u64) {
            let policy = Backoff { min: Duration::from_millis(200), max: Duration::from_secs(60) };
            let delay = policy.delay(attempt, random);
            prop_assert!(delay >= policy.min && delay <= policy.ceiling(attempt));
            prop_assert!(policy.ceiling(attempt) <= policy.max);
            if attempt < 4 {
                prop_assert!(delay <= policy.min * 2u32.pow(attempt));
            }
        }
    }
}
