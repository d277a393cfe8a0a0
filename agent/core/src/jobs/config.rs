//! The bounds that an administrator sets, with their reasons.

use std::time::Duration;

use super::spec::DAY;

/// What holds for all jobs of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How much runs at once.
    pub parallel: Parallel,
    /// What one user may have.
    pub quota: Quota,
    /// How long jobs that have ended are kept for people to look at.
    pub ended_kept: Duration,
    /// A job that nobody changed and nothing moved in for so long is cancelled.
    pub inactive_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            parallel: Parallel::default(),
            quota: Quota::default(),
            // A week: Monday's administrator sees what Friday's jobs did.
            ended_kept: DAY.saturating_mul(7),
            // As BITS.
            inactive_after: DAY.saturating_mul(90),
        }
    }
}

/// How much runs at once. Foreground and background have places of their own, so that neither takes
/// the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parallel {
    /// Background jobs that run beside one another. More would share the same line, and all end later.
    pub background_jobs: usize,
    /// Files of one job: 16 requests in flight fill a line with small files over 40 ms.
    pub files_per_job: usize,
    /// Files of all background jobs together: two jobs with all they may have.
    pub background_files: usize,
    /// Files of all foreground jobs together, and so the most foreground jobs that run.
    pub foreground_files: usize,
}

impl Default for Parallel {
    fn default() -> Self {
        Self {
            background_jobs: 4,
            files_per_job: 16,
            background_files: 32,
            foreground_files: 32,
        }
    }
}

impl Parallel {
    /// Each bound at least one, and a place for a file of each background job.
    #[must_use]
    pub(super) fn sound(self) -> Self {
        let background_jobs = self.background_jobs.max(1);
        Self {
            background_jobs,
            files_per_job: self.files_per_job.max(1),
            background_files: self.background_files.max(background_jobs),
            foreground_files: self.foreground_files.max(1),
        }
    }
}

/// What one user may have in jobs that have not ended. Those who administrate are not bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Jobs: all that the agent is built to hold; BITS allows 60.
    pub jobs: usize,
    /// Files of one job; BITS allows 200.
    pub files_per_job: usize,
    /// Files of all jobs: about 100 MB of records.
    pub files: usize,
    /// Bytes of all files whose length is known.
    pub bytes: u64,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            jobs: 10_000,
            files_per_job: 10_000,
            files: 100_000,
            bytes: u64::MAX,
        }
    }
}

/// Records of ended jobs of one user, one for each job and each of its files, that are kept at most; the job that ended
/// last is kept whatever its size. Some 15 MB: a machine that downloads all day long must not grow with it.
pub const ENDED_RECORDS_KEPT: usize = 10_000;

/// No ended job is forgotten before: whoever waits for it has looked by then.
pub const ENDED_KEPT_LEAST: Duration = Duration::from_secs(60);

/// A time slice: after so long a job goes behind its equals. Long against the seconds that stopping one
/// transfer and starting another costs, short enough that a small job behind large ones is not forgotten.
pub const TIME_SLICE: Duration = Duration::from_secs(300);

/// A running job is stuck when nothing came for so long: twice what a connection takes to fail.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);

/// A stuck job lets others go first for so long, then has its turn again.
pub const STUCK_RESTS: Duration = TIME_SLICE;

/// A file that keeps changing at the origin is fetched anew at once this often, then as after a failure.
pub const RESTARTS_AT_ONCE: u32 = 1;

/// No wait that a server asks for is longer; it may mean what it says, but a job would look dead.
pub const LONGEST_RETRY_AFTER: Duration = DAY;

/// Notifications that are delivered at one time: a flood of them leaves the machine its breath.
pub const NOTIFY_AT_ONCE: usize = 8;

/// A notification is tried so often: with the waits below, for about nine hours.
pub const NOTIFY_TRIES: u32 = 16;

/// The first wait between two tries of a notification, and the longest.
pub const NOTIFY_WAITS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3_600));

/// Events that are remembered for who streams them: some MB, and hours of an ordinary agent.
pub const EVENTS_KEPT: usize = 8_192;

/// Rows of one page of a list.
pub const MAX_PAGE: usize = 1_000;
