//! The files of one job, with what is asked of them at each step ready at hand.
//!
//! Invariant: the indexes and sums are those of the list; all changes go through [`Files::change`],
//! which costs the logarithm of the files.

use std::collections::BTreeSet;

use super::file::File;
use super::{Attempt, BySource, FileIndex, FileState, JobTime, TargetPath};

#[derive(Debug, Default)]
pub(super) struct Files {
    list: Vec<File>,
    /// May be started.
    startable: BTreeSet<FileIndex>,
    /// Transfers, the oldest first.
    running: BTreeSet<(Attempt, FileIndex)>,
    stopping: BTreeSet<FileIndex>,
    retries: BTreeSet<(JobTime, FileIndex)>,
    failed: BTreeSet<FileIndex>,
    placing: BTreeSet<FileIndex>,
    sums: Sums,
}

/// What all files of a job are together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sums {
    /// There, staged or in place.
    pub(super) finished: u32,
    pub(super) in_place: u32,
    pub(super) dropped: u32,
    /// Dropped, with something left on the disk.
    pub(super) undiscarded: u32,
    /// Files of unknown length, dropped ones not counted.
    pub(super) unmeasured: u32,
    /// All lengths that are known.
    pub(super) length: u64,
    pub(super) bytes: u64,
    pub(super) sources: BySource,
}

impl Files {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn get(&self, index: FileIndex) -> Option<&File> {
        self.list.get(index.at())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (FileIndex, &File)> {
        (0..).map(FileIndex).zip(&self.list)
    }

    pub(super) fn indexes(&self) -> impl Iterator<Item = FileIndex> + use<> {
        (0u32..).take(self.list.len()).map(FileIndex)
    }

    pub(super) fn paths(&self) -> BTreeSet<&TargetPath> {
        self.list
            .iter()
            .map(|file| &file.record.spec.path)
            .collect()
    }

    pub(super) fn push(&mut self, file: File) -> Option<FileIndex> {
        let index = FileIndex(u32::try_from(self.list.len()).ok()?);
        self.list.push(file);
        self.enter(index);
        Some(index)
    }

    /// Applies `change` to a file; `None` when there is no such file.
    pub(super) fn change<R>(
        &mut self,
        index: FileIndex,
        change: impl FnOnce(&mut File) -> R,
    ) -> Option<R> {
        self.leave(index);
        let result = self.list.get_mut(index.at()).map(change);
        self.enter(index);
        result
    }

    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    pub(super) fn first_startable(&self) -> Option<FileIndex> {
        self.startable.first().copied()
    }

    pub(super) fn startable(&self) -> usize {
        self.startable.len()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// The transfer that was started last: it has the least to lose.
    pub(super) fn last_started(&self) -> Option<FileIndex> {
        self.running.last().map(|(_, index)| *index)
    }

    pub(super) fn stopping(&self) -> usize {
        self.stopping.len()
    }

    pub(super) fn placing(&self) -> usize {
        self.placing.len()
    }

    pub(super) fn first_failed(&self) -> Option<FileIndex> {
        self.failed.first().copied()
    }

    /// The file that is tried again first, and when.
    pub(super) fn first_retry(&self) -> Option<(JobTime, FileIndex)> {
        self.retries.first().copied()
    }

    pub(super) fn retries(&self) -> Vec<FileIndex> {
        self.retries.iter().map(|(_, index)| *index).collect()
    }

    /// Those that failed, for now or for good.
    pub(super) fn to_try_again(&self) -> Vec<FileIndex> {
        let mut files = self.retries();
        files.extend(&self.failed);
        files
    }

    fn enter(&mut self, index: FileIndex) {
        let Some(file) = self.list.get(index.at()) else {
            return;
        };
        if let Some(transfer) = &file.transfer {
            if transfer.stopping {
                self.stopping.insert(index);
            } else {
                self.running.insert((transfer.attempt, index));
            }
        } else if file.is_startable() {
            self.startable.insert(index);
        }
        let kept = match &file.record.state {
            FileState::RetryLater { at, .. } => self.retries.insert((*at, index)),
            FileState::Failed { .. } => self.failed.insert(index),
            FileState::Placing => self.placing.insert(index),
            FileState::Waiting
            | FileState::Staged
            | FileState::InPlace
            | FileState::Dropped { .. } => true,
        };
        debug_assert!(kept, "a file is in an index once");
        self.sums.add(&Sums::of(file));
    }

    fn leave(&mut self, index: FileIndex) {
        let Some(file) = self.list.get(index.at()) else {
            return;
        };
        if let Some(transfer) = &file.transfer {
            self.running.remove(&(transfer.attempt, index));
        }
        self.stopping.remove(&index);
        self.startable.remove(&index);
        if let FileState::RetryLater { at, .. } = &file.record.state {
            self.retries.remove(&(*at, index));
        }
        self.failed.remove(&index);
        self.placing.remove(&index);
        self.sums.subtract(&Sums::of(file));
    }
}

impl Sums {
    /// Of one file.
    fn of(file: &File) -> Self {
        let mut sums = Self {
            bytes: file.record.bytes,
            sources: file.sources(),
            ..Self::default()
        };
        match &file.record.state {
            FileState::Staged | FileState::Placing => sums.finished = 1,
            FileState::InPlace => (sums.finished, sums.in_place) = (1, 1),
            FileState::Dropped { discarded } => {
                (sums.dropped, sums.undiscarded) = (1, u32::from(!discarded));
                return sums;
            }
            FileState::Waiting | FileState::RetryLater { .. } | FileState::Failed { .. } => {}
        }
        match file.record.length {
            Some(length) => sums.length = length,
            None => sums.unmeasured = 1,
        }
        sums
    }

    fn add(&mut self, other: &Self) {
        self.finished += other.finished;
        self.in_place += other.in_place;
        self.dropped += other.dropped;
        self.undiscarded += other.undiscarded;
        self.unmeasured += other.unmeasured;
        self.length = self.length.saturating_add(other.length);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.sources = self.sources.plus(&other.sources);
    }

    fn subtract(&mut self, other: &Self) {
        self.finished -= other.finished;
        self.in_place -= other.in_place;
        self.dropped -= other.dropped;
        self.undiscarded -= other.undiscarded;
        self.unmeasured -= other.unmeasured;
        self.length = self.length.saturating_sub(other.length);
        self.bytes = self.bytes.saturating_sub(other.bytes);
        self.sources = self.sources.minus(&other.sources);
    }
}
