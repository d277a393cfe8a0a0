//! Who runs: the order of jobs, and how files share the places. Pure: nothing here changes a job.

use std::collections::BTreeSet;

use super::{JobId, Priority};

/// Which places a job runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PoolKind {
    Foreground,
    Background,
}

impl PoolKind {
    pub(super) fn of(priority: Priority) -> Self {
        match priority {
            Priority::Foreground => Self::Foreground,
            Priority::High | Priority::Normal | Priority::Low => Self::Background,
        }
    }
}

/// Where a job stands among those that want to run: the least goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Was stuck, and lets all others go first for a while.
    pub(super) resting: bool,
    pub(super) priority: Priority,
    /// Drawn at the end of its equals.
    pub(super) ticket: u64,
    pub(super) job: JobId,
}

/// Places for transfers, and the jobs that want them.
#[derive(Debug)]
pub(super) struct Pool {
    ranks: BTreeSet<Rank>,
    max_jobs: usize,
    bounds: FileBounds,
    /// Transfers that have a place, those being stopped included.
    occupied: usize,
}

/// How many files run at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileBounds {
    pub(super) in_all: usize,
    pub(super) per_job: usize,
}

impl Pool {
    pub(super) fn new(max_jobs: usize, bounds: FileBounds) -> Self {
        Self {
            ranks: BTreeSet::new(),
            max_jobs,
            bounds,
            occupied: 0,
        }
    }

    pub(super) fn insert(&mut self, rank: Rank) {
        self.ranks.insert(rank);
    }

    pub(super) fn remove(&mut self, rank: &Rank) {
        self.ranks.remove(rank);
    }

    /// The jobs that run, the first in rank first.
    pub(super) fn chosen(&self) -> impl Iterator<Item = JobId> + '_ {
        self.ranks.iter().take(self.max_jobs).map(|rank| rank.job)
    }

    pub(super) fn max_jobs(&self) -> usize {
        self.max_jobs
    }

    pub(super) fn is_chosen(&self, job: JobId) -> bool {
        self.chosen().any(|chosen| chosen == job)
    }

    pub(super) fn take_place(&mut self) {
        self.occupied += 1;
    }

    pub(super) fn leave_place(&mut self) {
        self.occupied -= 1;
    }

    pub(super) fn share_out(&self, demands: &[Demand]) -> Vec<Grant> {
        share_out(self.bounds, self.occupied, demands)
    }
}

/// What one of the chosen jobs has and wants, in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demand {
    pub(super) running: usize,
    pub(super) startable: usize,
}

/// What it gets: so many more started, or stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Grant {
    pub(super) start: usize,
    pub(super) stop: usize,
}

/// Shares the places for files among the chosen jobs.
///
/// Each job has a claim to an equal share. Free places go to claims first, one to each job in turn, then, while
/// any are left, to whoever has files. Only when claims cannot be met are files of jobs stopped that have more than
/// their share; a place that is just being left counts for the claims that wait for it.
fn share_out(bounds: FileBounds, occupied: usize, demands: &[Demand]) -> Vec<Grant> {
    let fair = (bounds.in_all / demands.len().max(1)).clamp(1, bounds.per_job);
    let mut grants = vec![Grant::default(); demands.len()];
    let mut free = bounds.in_all.saturating_sub(occupied);
    for limit in [fair, bounds.per_job] {
        while free > 0 {
            let before = free;
            for (grant, demand) in grants.iter_mut().zip(demands) {
                if free > 0 && grant.start < demand.claim(limit) {
                    grant.start += 1;
                    free -= 1;
                }
            }
            if free == before {
                break;
            }
        }
    }
    let unmet = demands.iter().zip(&grants);
    let unmet = unmet.map(|(demand, grant)| demand.claim(fair).saturating_sub(grant.start));
    let running: usize = demands.iter().map(|demand| demand.running).sum();
    let being_left = occupied.saturating_sub(running);
    stop_excess(
        fair,
        unmet.sum::<usize>().saturating_sub(being_left),
        demands,
        &mut grants,
    );
    grants
}

/// Stops `wanted` files of those jobs that have more than `fair`, one of each in turn.
fn stop_excess(fair: usize, mut wanted: usize, demands: &[Demand], grants: &mut [Grant]) {
    while wanted > 0 {
        let before = wanted;
        for (grant, demand) in grants.iter_mut().zip(demands) {
            if wanted > 0 && demand.running > fair + grant.stop {
                grant.stop += 1;
                wanted -= 1;
            }
        }
        if wanted == before {
            return;
        }
    }
}

impl Demand {
    /// How many more files it may start while it has at most `limit`.
    fn claim(self, limit: usize) -> usize {
        limit.saturating_sub(self.running).min(self.startable)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn demand(running: usize, startable: usize) -> Demand {
        Demand { running, startable }
    }

    fn demands() -> impl Strategy<Value = (FileBounds, usize, Vec<Demand>)> {
        let each =
            (0..6usize, 0..6usize).prop_map(|(running, startable)| demand(running, startable));
        (
            1..12usize,
            1..6usize,
            0..3usize,
            prop::collection::vec(each, 0..6),
        )
            .prop_map(|(spare, per_job, stopping, mut demands)| {
                for demand in &mut demands {
                    demand.running = demand.running.min(per_job);
                }
                let running: usize = demands.iter().map(|demand| demand.running).sum();
                let occupied = running + stopping;
                let in_all = (occupied + spare - 1).max(demands.len()).max(1);
                (FileBounds { in_all, per_job }, occupied, demands)
            })
    }

    #[test]
    fn a_lone_job_takes_all_it_may_and_gives_it_back_to_claims() {
        let bounds = FileBounds {
            in_all: 8,
            per_job: 8,
        };
        assert_eq!(share_out(bounds, 0, &[demand(0, 20)])[0].start, 8);
        let grants = share_out(bounds, 8, &[demand(8, 12), demand(0, 3)]);
        assert_eq!(grants, [Grant { start: 0, stop: 3 }, Grant::default()]);
        let grants = share_out(bounds, 8, &[demand(5, 15), demand(0, 3)]);
        assert_eq!(
            grants,
            [Grant::default(); 2],
            "three are being stopped already"
        );
    }

    #[test]
    fn places_that_small_jobs_leave_go_to_the_large_one() {
        let bounds = FileBounds {
            in_all: 32,
            per_job: 16,
        };
        let small = demand(0, 1);
        let grants = share_out(bounds, 0, &[small, demand(0, 99), small, small]);
        assert_eq!(
            grants.iter().map(|grant| grant.start).collect::<Vec<_>>(),
            [1, 16, 1, 1]
        );
    }

    proptest! {
        #[test]
        fn shares_keep_their_bounds((bounds, occupied, demands) in demands()) {
            let grants = share_out(bounds, occupied, &demands);
            let started: usize = grants.iter().map(|grant| grant.start).sum();
            prop_assert!(occupied + started <= bounds.in_all.max(occupied));
            for (grant, demand) in grants.iter().zip(&demands) {
                prop_assert!(demand.running + grant.start <= bounds.per_job);
                prop_assert!(grant.start <= demand.startable && grant.stop <= demand.running);
                prop_assert!(grant.start == 0 || grant.stop == 0);
            }
        }

        /// Carried out until nothing changes, every job with files runs one, and no place is
        /// free that anybody wants.
        #[test]
        fn shares_settle_and_starve_nobody((bounds, occupied, demands) in demands()) {
            let mut demands = demands;
            let mut leaving = occupied - demands.iter().map(|demand| demand.running).sum::<usize>();
            for _ in 0..100 {
                let running: usize = demands.iter().map(|demand| demand.running).sum();
                let grants = share_out(bounds, running + leaving, &demands);
                leaving = 0;
                for (grant, demand) in grants.iter().zip(&mut demands) {
                    demand.running = demand.running + grant.start - grant.stop;
                    demand.startable = demand.startable + grant.stop - grant.start;
                    leaving += grant.stop;
                }
            }
            let running: usize = demands.iter().map(|demand| demand.running).sum();
            prop_assert_eq!(leaving, 0);
            for demand in &demands {
                prop_assert!(demand.running > 0 || demand.startable == 0);
                let satisfied = demand.startable == 0 || demand.running >= bounds.per_job;
                prop_assert!(satisfied || running >= bounds.in_all);
            }
        }
    }
}
