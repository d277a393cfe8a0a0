//! SIGKILL at random moments: what was acknowledged is there, nothing is wrong, nothing piles up.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use branchline_store::Store;

use crate::support::{
    KIB, MIB, Numbers, TestChild, allocated_bytes, assert_all_right, child_dir, options, segment,
    segments, tell,
};

const ROUNDS: u32 = 30;
const LIMIT_WITH_EVICTION: u64 = 2 * MIB;

/// Appends batches for ever and says so after each. Numbers go on behind what the store has seen,
/// which it keeps in a note.
fn append_until_killed(dir: &Path, limit_bytes: u64) {
    let store = Store::open(dir, options(limit_bytes)).expect("recovers");
    let mut next = next_number(&store);
    loop {
        let count = 1 + Numbers(next).below(40);
        store
            .put_note("next", &(next + count).to_be_bytes())
            .expect("noted");
        store
            .append(&segments(next..next + count))
            .expect("appended");
        tell(format_args!("{next} {count}"));
        next += count;
    }
}

fn next_number(store: &Store) -> u64 {
    let note = store.note("next").expect("read");
    note.map_or(0, |note| {
        u64::from_be_bytes(note.try_into().expect("8 bytes"))
    })
}

#[test]
#[ignore = "the child of a test"]
fn child_appends_until_killed() {
    if let Some(dir) = child_dir() {
        append_until_killed(&dir, 1024 * MIB);
    }
}

#[test]
#[ignore = "the child of a test"]
fn child_appends_and_evicts_until_killed() {
    if let Some(dir) = child_dir() {
        append_until_killed(&dir, LIMIT_WITH_EVICTION);
    }
}

/// Starts the child, lets it go on for a random while, kills it; the numbers it acknowledged.
fn run_and_kill(test: &str, dir: &Path, numbers: &mut Numbers) -> BTreeSet<u64> {
    let mut child = TestChild::start(test, dir);
    let mut said = Vec::new();
    for _ in 0..numbers.below(5) {
        said.push(child.hear().expect("it goes on for ever"));
    }
    // Not a wait for anything: the random moment of the kill, in a recovery or in an append.
    std::thread::sleep(Duration::from_micros(numbers.below(40_000)));
    said.extend(child.kill());
    said.iter().flat_map(|line| acknowledged(line)).collect()
}

fn acknowledged(line: &str) -> std::ops::Range<u64> {
    let (first, count) = line.split_once(' ').expect("two numbers");
    let first: u64 = first.parse().expect("a number");
    first..first + count.parse::<u64>().expect("a number")
}

#[test]
fn what_was_acknowledged_survives_sigkill_at_any_moment() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut numbers = Numbers::fresh();
    let mut stored = BTreeSet::new();
    for round in 0..ROUNDS {
        let test = "crash::child_appends_until_killed";
        stored.extend(run_and_kill(test, dir.path(), &mut numbers));

        let store = Store::open(dir.path(), options(1024 * MIB)).expect("recovers");
        let known: Vec<_> = stored.iter().map(|number| segment(*number)).collect();
        assert_all_right(&store, &known);
        assert_nothing_else_is_wrong(&store, dir.path());

        let own = u64::MAX - u64::from(round);
        store.append(&[segment(own)]).expect("still appendable");
        stored.insert(own);
    }
    assert!(
        stored.len() > 100,
        "the children got too little done: {}",
        stored.len()
    );
}

#[test]
fn a_kill_during_eviction_leaves_no_wrong_byte_and_no_garbage() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut numbers = Numbers::fresh();
    let mut acknowledged = 0;
    for _ in 0..ROUNDS {
        let test = "crash::child_appends_and_evicts_until_killed";
        acknowledged += run_and_kill(test, dir.path(), &mut numbers).len();
        let store = Store::open(dir.path(), options(LIMIT_WITH_EVICTION)).expect("recovers");
        assert_nothing_else_is_wrong(&store, dir.path());
    }
    assert!(
        acknowledged as u64 * 12 * KIB > 2 * LIMIT_WITH_EVICTION,
        "nothing was evicted"
    );
}

/// Every number ever used reads as itself or not at all, and packs hold what the index says.
fn assert_nothing_else_is_wrong(store: &Store, dir: &Path) {
    let mut present = 0;
    for number in 0..next_number(store) {
        let segment = segment(number);
        let here = store.contains(&[segment.hash()]).expect("asked")[0];
        let read = store.read(segment.hash()).expect("the disk works");
        assert_eq!(read.is_some(), here, "segment {number} was promised");
        assert!(read.is_none_or(|read| read.bytes() == segment.bytes()));
        present += u64::from(here);
    }
    let stats = store.stats();
    assert!(stats.segments >= present && stats.segments <= present + u64::from(ROUNDS));
    assert_eq!(stats.bad_segments_dropped, 0);
    assert_eq!(store.recovery().segments_lost, 0);
    assert!(stats.disk_bytes <= stats.limit_bytes);
    let allocated = allocated_bytes(dir);
    // A file system may keep a block or two of its own for each file.
    let allowed = stats.disk_bytes + 16 * KIB * crate::support::pack_files(dir).len() as u64;
    assert!(
        allocated <= allowed,
        "{allocated} bytes on disk for {} stored",
        stats.disk_bytes
    );
}
