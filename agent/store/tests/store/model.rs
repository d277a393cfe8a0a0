//! The store against a slow, obvious twin, step by step.

use std::collections::{BTreeMap, BTreeSet};

use branchline_hashing::VerifiedSegment;
use branchline_store::{Hold, Store, StoreError, StoreOptions};
use proptest::prelude::*;

use crate::support::{HandClock, KIB, hashes, options, segment};

/// Its slack, a 128th, is two blocks: often enough for a small segment more.
const LIMIT_BYTES: u64 = 1024 * KIB;
const NUMBERS: u64 = 150;

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<u64>),
    Read(u64),
    Hold(Vec<u64>),
    LetGo,
    Wait(u64),
    Shrink(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let numbers = |most| prop::collection::vec(0..NUMBERS, 1..most);
    prop_oneof![
        6 => numbers(40_usize).prop_map(Step::Append),
        6 => (0..NUMBERS).prop_map(Step::Read),
        1 => numbers(60_usize).prop_map(Step::Hold),
        1 => Just(Step::LetGo),
        4 => (0_u64..30).prop_map(Step::Wait),
        1 => (0..LIMIT_BYTES).prop_map(Step::Shrink),
        1 => Just(Step::Reopen),
    ]
}

/// What a segment needs to be evicted in the right order: when it was used, and which was stored
/// before which.
#[derive(Clone, Copy)]
struct Kept {
    last_used: u64,
    order: u64,
}

#[derive(Default)]
struct Twin {
    kept: BTreeMap<u64, Kept>,
    uses: BTreeMap<u64, u64>,
    now: u64,
    stored: u64,
}

impl Twin {
    fn blocks(number: u64) -> u64 {
        (segment(number).bytes().len() as u64).next_multiple_of(4 * KIB)
    }

    fn disk_bytes(&self) -> u64 {
        self.kept.keys().map(|number| Self::blocks(*number)).sum()
    }

    fn write_uses(&mut self) {
        for (number, minute) in std::mem::take(&mut self.uses) {
            if let Some(kept) = self.kept.get_mut(&number) {
                kept.last_used = minute;
            }
        }
    }

    /// Evicts `wanted` bytes and a little more if it is not more than `slack`; if that cannot be,
    /// all it may, or nothing when it must be `all_or_nothing`.
    fn evict(
        &mut self,
        held: &BTreeSet<u64>,
        wanted: u64,
        slack: u64,
        all_or_nothing: bool,
    ) -> bool {
        let mut order: Vec<_> = self
            .kept
            .iter()
            .map(|(n, k)| (k.last_used, k.order, *n))
            .collect();
        order.sort_unstable();
        let mut freed = 0;
        let mut victims = Vec::new();
        for (_, _, number) in order.into_iter().filter(|(_, _, n)| !held.contains(n)) {
            if freed >= wanted && freed + Self::blocks(number) > wanted + slack {
                break;
            }
            freed += Self::blocks(number);
            victims.push(number);
        }
        if freed >= wanted || !all_or_nothing {
            self.kept.retain(|number, _| !victims.contains(number));
        }
        freed >= wanted
    }

    /// How many are stored; `None` when there is no room.
    fn append(&mut self, numbers: &[u64], held: &BTreeSet<u64>) -> Option<u64> {
        let batch: BTreeSet<u64> = numbers.iter().copied().collect();
        let (here, new): (Vec<u64>, Vec<u64>) = batch
            .iter()
            .partition(|number| self.kept.contains_key(number));
        self.uses
            .extend(here.iter().map(|number| (*number, self.now)));
        if new.is_empty() {
            return Some(0);
        }
        self.write_uses();
        let needed: u64 = new.iter().map(|number| Self::blocks(*number)).sum();
        let over = (self.disk_bytes() + needed).saturating_sub(LIMIT_BYTES);
        let held = held | &batch;
        if needed > LIMIT_BYTES || over > 0 && !self.evict(&held, over, LIMIT_BYTES / 128, true) {
            return None;
        }
        let mut seen = BTreeSet::new();
        for number in numbers
            .iter()
            .filter(|n| new.contains(n) && seen.insert(**n))
        {
            self.stored += 1;
            self.kept.insert(
                *number,
                Kept {
                    last_used: self.now,
                    order: self.stored,
                },
            );
        }
        Some(new.len() as u64)
    }

    fn read(&mut self, number: u64) -> bool {
        let Some(kept) = self.kept.get(&number) else {
            return false;
        };
        if self.now >= kept.last_used + 10 {
            self.uses.insert(number, self.now);
        }
        true
    }

    fn shrink(&mut self, target: u64, held: &BTreeSet<u64>) {
        self.write_uses();
        let over = self.disk_bytes().saturating_sub(target);
        if over > 0 {
            self.evict(held, over, 0, false);
        }
    }
}

struct Run {
    dir: tempfile::TempDir,
    options: StoreOptions,
    clock: HandClock,
    store: Option<Store>,
    holds: Vec<(Hold, Vec<u64>)>,
    twin: Twin,
}

fn of(numbers: &[u64]) -> Vec<VerifiedSegment> {
    numbers.iter().map(|number| segment(*number)).collect()
}

impl Run {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = HandClock::default();
        let options = StoreOptions {
            clock: clock.clock(),
            pack_bytes: 64 << 10,
            ..options(LIMIT_BYTES)
        };
        let store = Some(Store::open(dir.path(), options.clone()).expect("opens"));
        Self {
            dir,
            options,
            clock,
            store,
            holds: Vec::new(),
            twin: Twin::default(),
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("open between steps")
    }

    fn held(&self) -> BTreeSet<u64> {
        self.holds
            .iter()
            .flat_map(|(_, numbers)| numbers)
            .copied()
            .collect()
    }

    fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let held = self.held();
        match step {
            Step::Append(numbers) => self.append(numbers, &held)?,
            Step::Read(number) => {
                let read = self
                    .store()
                    .read(segment(*number).hash())
                    .expect("no error");
                prop_assert_eq!(read.is_some(), self.twin.read(*number));
                let right = segment(*number);
                prop_assert!(read.is_none_or(|read| read.bytes() == right.bytes()));
            }
            Step::Hold(numbers) => {
                let hold = self.store().hold(hashes(&of(numbers)));
                self.holds.push((hold, numbers.clone()));
            }
            Step::LetGo => drop(self.holds.pop()),
            Step::Wait(minutes) => {
                self.clock.advance(*minutes);
                self.twin.now += minutes;
            }
            Step::Shrink(target) => {
                self.store().shrink_to(*target).expect("shrinks");
                self.twin.shrink(*target, &held);
            }
            Step::Reopen => {
                self.holds.clear();
                self.store = None;
                self.store =
                    Some(Store::open(self.dir.path(), self.options.clone()).expect("opens"));
                self.twin.write_uses();
            }
        }
        self.compare()
    }

    fn append(&mut self, numbers: &[u64], held: &BTreeSet<u64>) -> Result<(), TestCaseError> {
        let stored = match self.store().append(&of(numbers)) {
            Ok(done) => {
                prop_assert_eq!(done.stored + done.already_there, numbers.len() as u64);
                Some(done.stored)
            }
            Err(StoreError::Full { .. }) => None,
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        prop_assert_eq!(stored, self.twin.append(numbers, held));
        Ok(())
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let all: Vec<u64> = (0..NUMBERS).collect();
        let here = self.store().contains(&hashes(&of(&all))).expect("asked");
        let expected: Vec<bool> = all.iter().map(|n| self.twin.kept.contains_key(n)).collect();
        prop_assert_eq!(here, expected);
        let stats = self.store().stats();
        prop_assert_eq!(stats.segments, self.twin.kept.len() as u64);
        prop_assert_eq!(stats.disk_bytes, self.twin.disk_bytes());
        prop_assert!(stats.disk_bytes <= LIMIT_BYTES);
        prop_assert_eq!(stats.bad_segments_dropped, 0);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_its_twin_does(steps in prop::collection::vec(step(), 1..40)) {
        let mut run = Run::new();
        for step in &steps {
            run.take(step)?;
        }
    }
}
