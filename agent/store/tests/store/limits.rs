//! The size limit, the order of eviction, holds, and space that really comes back.

use branchline_hashing::VerifiedSegment;
use branchline_store::{Store, StoreError, StoreOptions};

use crate::support::{
    HandClock, KIB, MIB, allocated_bytes, assert_all_right, hashes, options, pack_files, segment_of,
};

/// Sixteen blocks each: 16 of them are a MiB, one pack.
fn equal(numbers: std::ops::Range<u64>) -> Vec<VerifiedSegment> {
    numbers.map(|number| segment_of(number, 64 * KIB)).collect()
}

fn present(store: &Store, segments: &[VerifiedSegment]) -> Vec<bool> {
    store.contains(&hashes(segments)).expect("asked")
}

#[test]
fn what_was_used_longest_ago_goes_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = HandClock::default();
    let limited = StoreOptions {
        clock: clock.clock(),
        ..options(4 * 64 * KIB)
    };
    let store = Store::open(dir.path(), limited).expect("opens");
    let all = equal(0..7);
    for segment in &all[..4] {
        store.append(std::slice::from_ref(segment)).expect("stored");
        clock.advance(20);
    }
    assert_all_right(&store, &all[..1]); // a use
    store.append(&all[2..3]).expect("a use as well");
    clock.advance(20);

    store.append(&all[4..5]).expect("stored");
    assert_eq!(
        present(&store, &all),
        [true, false, true, true, true, false, false]
    );
    store.append(&all[5..6]).expect("stored");
    assert_eq!(
        present(&store, &all),
        [true, false, true, false, true, true, false]
    );
    store.append(&all[6..7]).expect("stored");
    assert_eq!(
        present(&store, &all),
        [false, false, true, false, true, true, true]
    );
    assert_eq!(store.stats().forgotten, 3);
}

#[test]
fn a_use_survives_a_restart_however_the_store_was_closed() {
    let closings: [fn(Store); 2] = [|store| store.flush_and_close().expect("closed"), drop];
    for close in closings {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = HandClock::default();
        let limited = StoreOptions {
            clock: clock.clock(),
            ..options(2 * 64 * KIB)
        };
        let store = Store::open(dir.path(), limited.clone()).expect("opens");
        let all = equal(0..3);
        store.append(&all[..2]).expect("stored");
        clock.advance(20);
        assert_all_right(&store, &all[..1]);
        close(store);
        let store = Store::open(dir.path(), limited).expect("opens");
        store.append(&all[2..]).expect("stored");
        assert_eq!(present(&store, &all), [true, false, true]);
    }
}

#[test]
fn held_segments_stay_and_a_store_full_of_them_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(4 * 64 * KIB)).expect("opens");
    let all = equal(0..8);
    store.append(&all[..4]).expect("stored");
    let first = store.hold(hashes(&all[..2]));
    store.append(&all[4..6]).expect("the others make room");
    assert_eq!(
        present(&store, &all[..6]),
        [true, true, false, false, true, true]
    );

    let second = store.hold(hashes(&all[4..6]));
    let full = store.append(&all[6..8]).expect_err("everything is held");
    assert!(matches!(
        full,
        StoreError::Full {
            needed_bytes: 131_072,
            limit_bytes: 262_144
        }
    ));
    assert_eq!(
        present(&store, &all[..6]),
        [true, true, false, false, true, true]
    );
    drop(first);
    store.append(&all[6..8]).expect("room again");
    assert_eq!(
        present(&store, &all),
        [false, false, false, false, true, true, true, true]
    );
    drop(second);
    assert_all_right(&store, &all[4..]);
}

#[test]
fn a_batch_never_evicts_what_it_names() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(4 * 64 * KIB)).expect("opens");
    let all = equal(0..6);
    store.append(&all[..4]).expect("stored");
    let done = store
        .append(&[all[0].clone(), all[4].clone(), all[5].clone()])
        .expect("stored");
    assert_eq!((done.stored, done.already_there), (2, 1));
    assert_all_right(&store, &[all[0].clone(), all[4].clone(), all[5].clone()]);
}

#[test]
fn more_than_the_limit_is_refused_and_evicts_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(4 * 64 * KIB)).expect("opens");
    let all = equal(0..9);
    store.append(&all[..4]).expect("stored");
    let full = store.append(&all[4..]).expect_err("too much at once");
    assert!(matches!(full, StoreError::Full { .. }));
    assert_all_right(&store, &all[..4]);
}

#[test]
fn a_lowered_limit_holds_from_the_next_opening() {
    let dir = tempfile::tempdir().expect("a directory");
    let all = equal(0..64);
    Store::open(dir.path(), options(64 * MIB))
        .expect("opens")
        .append(&all)
        .expect("stored");
    let store = Store::open(dir.path(), options(MIB)).expect("opens");
    assert_eq!(store.stats().disk_bytes, MIB);
    assert_eq!(store.stats().limit_bytes, MIB);
    assert!(allocated_bytes(dir.path()) <= MIB + 64 * KIB);
    assert_all_right(&store, &all[48..]);
}

#[test]
fn evicted_space_comes_back_from_the_middle_of_packs() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(8 * MIB)).expect("opens");
    let all = equal(0..128);
    store.append(&all).expect("stored");
    let before = allocated_bytes(dir.path());
    assert!(before >= 8 * MIB);
    let every_second: Vec<_> = all.iter().step_by(2).map(VerifiedSegment::hash).collect();
    let hold = store.hold(every_second);
    store.shrink_to(0).expect("evicted");
    drop(hold);
    assert_eq!(store.stats().disk_bytes, 4 * MIB);
    let after = allocated_bytes(dir.path());
    assert!(
        after <= before - 4 * MIB + 64 * KIB,
        "{before} bytes before, {after} after"
    );
    assert_all_right(&store, &all.iter().step_by(2).cloned().collect::<Vec<_>>());

    store.shrink_to(0).expect("evicted");
    assert_eq!(pack_files(dir.path()), Vec::<std::path::PathBuf>::new());
    assert_eq!(store.stats().segments, 0);
    store.append(&all[..3]).expect("begins anew");
    assert_all_right(&store, &all[..3]);
}

#[test]
fn the_same_segment_is_stored_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(8 * MIB)).expect("opens");
    let all = equal(0..4);
    let twice: Vec<_> = all.iter().chain(&all).cloned().collect();
    let done = store.append(&twice).expect("stored");
    assert_eq!((done.stored, done.already_there), (4, 4));
    let done = store.append(&all).expect("stored");
    assert_eq!((done.stored, done.already_there), (0, 4));
    assert_eq!(
        (store.stats().segments, store.stats().bytes),
        (4, 4 * 64 * KIB)
    );
}

#[test]
fn sizes_that_no_segment_has_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(256 * MIB)).expect("opens");
    for bytes in [0, 64 * MIB + 1] {
        let refused = store.append(&[segment_of(1, bytes)]).expect_err("refused");
        assert!(
            matches!(refused, StoreError::SegmentSize { .. }),
            "{refused}"
        );
    }
    let largest = segment_of(2, 64 * MIB);
    store
        .append(std::slice::from_ref(&largest))
        .expect("larger than a pack, and stored");
    assert_all_right(&store, &[largest]);
}
