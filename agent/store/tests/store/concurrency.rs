//! Several threads at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use branchline_store::Store;

use crate::support::{MIB, Numbers, assert_all_right, options, segment, segments};

/// Ends the other threads of a test, also when this one panics.
struct EndsWith<'a>(&'a AtomicBool);

impl Drop for EndsWith<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn threads_that_append_the_same_segments_store_each_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(1024 * MIB)).expect("opens");
    let stored = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (store, stored) = (store.clone(), &stored);
            scope.spawn(move || {
                for step in 0..20 {
                    let first = (step * 7 + thread * 31) % 140;
                    let done = store.append(&segments(first..first + 20)).expect("stored");
                    stored.fetch_add(done.stored, Ordering::Relaxed);
                    assert_all_right(&store, &segments(first..first + 20));
                }
            });
        }
    });
    let numbers: std::collections::BTreeSet<u64> = (0..4)
        .flat_map(|thread| (0..20).map(move |step| (step * 7 + thread * 31) % 140))
        .flat_map(|first| first..first + 20)
        .collect();
    assert_eq!(stored.into_inner(), numbers.len() as u64);
    assert_eq!(store.stats().segments, numbers.len() as u64);
}

#[test]
fn readers_see_right_bytes_or_none_while_others_evict() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(MIB)).expect("opens");
    let done = AtomicBool::new(false);
    let found = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let _end = EndsWith(&done);
        for reader in 0..2 {
            let (store, done, found) = (store.clone(), &done, &found);
            scope.spawn(move || {
                let mut numbers = Numbers(reader);
                while !done.load(Ordering::Relaxed) {
                    let segment = segment(numbers.below(400));
                    if let Some(read) = store.read(segment.hash()).expect("no error") {
                        assert_eq!(read.bytes(), segment.bytes());
                        found.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let store = store.clone();
                scope.spawn(move || {
                    let mut numbers = Numbers(100 + writer);
                    for _ in 0..100 {
                        let first = numbers.below(380);
                        store.append(&segments(first..first + 20)).expect("stored");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().expect("no panic");
        }
    });
    assert!(found.into_inner() > 0);
    assert_eq!(store.stats().bad_segments_dropped, 0);
    assert!(store.stats().disk_bytes <= MIB);
}

#[test]
fn whoever_holds_a_segment_and_finds_it_can_read_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(MIB)).expect("opens");
    let done = AtomicBool::new(false);
    let read = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let _end = EndsWith(&done);
        let (reading, done, read) = (store.clone(), &done, &read);
        scope.spawn(move || {
            let mut numbers = Numbers(7);
            while !done.load(Ordering::Relaxed) {
                let segment = segment(numbers.below(200));
                let _hold = reading.hold([segment.hash()]);
                if reading.contains(&[segment.hash()]).expect("asked")[0] {
                    assert_all_right(&reading, &[segment]);
                    read.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for round in 0..150 {
            let first = round * 17 % 190;
            store.append(&segments(first..first + 10)).expect("stored");
        }
    });
    assert!(read.into_inner() > 0);
}
