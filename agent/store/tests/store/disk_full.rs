//! A full disk, on a small tmpfs of the test's own.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use branchline_hashing::VerifiedSegment;
use branchline_store::{OpenError, Store, StoreError, StoreOptions};

use crate::support::{
    KIB, MIB, TestChild, allocated_bytes, assert_all_right, child_dir, options, segment_of, tell,
};

fn batch(number: u64) -> Vec<VerifiedSegment> {
    (0..16)
        .map(|i| segment_of(number * 16 + i, 64 * KIB))
        .collect()
}

/// Appends until there is no room; what was stored.
fn append_until_full(store: &Store, first: u64) -> Vec<VerifiedSegment> {
    let mut stored = Vec::new();
    for number in first.. {
        match store.append(&batch(number)) {
            Ok(_) => stored.extend(batch(number)),
            Err(StoreError::NoSpace { needed_bytes, .. }) => {
                assert_eq!(needed_bytes, MIB);
                break;
            }
            Err(other) => panic!("another error than a full disk: {other}"),
        }
    }
    stored
}

/// Takes all that is left of the file system.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("filler");
    let mut file = File::create(&path).expect("made");
    for block in [MIB, 4 * KIB, 1] {
        let block = vec![1; usize::try_from(block).expect("small")];
        while file.write_all(&block).is_ok() {}
    }
    path
}

/// RocksDB takes its log's space in advance; until that is used up it goes on.
fn fill_the_index(store: &Store) {
    let large = vec![1; 1 << 20];
    let error = (0..100).find_map(|_| store.put_note("large", &large).err());
    assert!(
        matches!(error, Some(StoreError::NoSpace { .. })),
        "{error:?}"
    );
}

/// RocksDB looks for free space again some seconds after it ran out.
fn when_space_is_back(store: &Store, mut write: impl FnMut(&Store) -> Result<(), StoreError>) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = write(store) {
        assert!(
            Instant::now() < deadline,
            "the store did not recover: {error}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn appending_to_a_full_disk_loses_nothing_and_goes_on_when_space_is_back() {
    let dir = tempfile::tempdir().expect("a directory");
    TestChild::start_on_tmpfs("disk_full::child_fills_its_disk", dir.path(), "40m")
        .must_say("full and back");
}

#[test]
#[ignore = "the child of a test"]
fn child_fills_its_disk() {
    let Some(dir) = child_dir() else { return };
    let store_dir = dir.join("store");
    let reserve = StoreOptions {
        keep_free_bytes: 8 * MIB,
        ..options(1024 * MIB)
    };
    let store = Store::open(&store_dir, reserve).expect("opens");
    let stored = append_until_full(&store, 0);
    assert!(stored.len() >= 16 * 20);
    assert_all_right(&store, &stored);
    store
        .put_note("job", b"still written")
        .expect("the reserve is for this");

    // Somebody else takes the reserve too: now the index cannot be written either.
    let filler = fill(&dir);
    assert!(matches!(
        store.append(&batch(1000)),
        Err(StoreError::NoSpace { .. })
    ));
    fill_the_index(&store);
    assert_all_right(&store, &stored);
    std::fs::remove_file(filler).expect("removed");
    when_space_is_back(&store, |store| store.shrink_to(16 * MIB));
    store
        .append(&batch(1000))
        .expect("eviction gave space back");
    assert_all_right(&store, &batch(1000));
    assert_eq!(
        store.note("job").expect("read").as_deref(),
        Some(&b"still written"[..])
    );
    assert_eq!(store.stats().bad_segments_dropped, 0);
    tell("full and back");
}

#[test]
fn without_a_reserve_eviction_still_gives_space_back() {
    let dir = tempfile::tempdir().expect("a directory");
    TestChild::start_on_tmpfs("disk_full::child_has_no_reserve", dir.path(), "40m")
        .must_say("full and back");
}

#[test]
#[ignore = "the child of a test"]
fn child_has_no_reserve() {
    let Some(dir) = child_dir() else { return };
    let store_dir = dir.join("store");
    let store = Store::open(&store_dir, options(1024 * MIB)).expect("opens");
    let stored = append_until_full(&store, 0);
    assert!(stored.len() >= 16 * 25);
    drop(store);
    let store = Store::open(&store_dir, options(1024 * MIB)).expect("opens");
    assert_all_right(&store, &stored);
    store.shrink_to(16 * MIB).expect("evicted");
    store.append(&batch(1000)).expect("there is space again");
    assert_all_right(&store, &batch(1000));
    assert_eq!(store.stats().bad_segments_dropped, 0);
    tell("full and back");
}

#[test]
fn a_write_that_fails_midway_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let test = "disk_full::child_cannot_write_on";
    TestChild::start_with_largest_file(test, dir.path(), 4 * MIB).must_say("cut");
}

#[test]
#[ignore = "the child of a test"]
fn child_cannot_write_on() {
    let Some(dir) = child_dir() else { return };
    let one_pack = StoreOptions {
        pack_bytes: 64 << 20,
        ..options(64 * MIB)
    };
    let store = Store::open(&dir, one_pack.clone()).expect("opens");
    let mut stored = vec![segment_of(1, 64 * KIB)];
    store.append(&stored).expect("stored");
    for number in 1..4 {
        store.append(&batch(number)).expect("stored");
        stored.extend(batch(number));
    }
    let failed = store.append(&batch(4)).expect_err("fifteen of sixteen fit");
    assert!(
        matches!(
            failed,
            StoreError::Io {
                doing: "writing",
                ..
            }
        ),
        "{failed}"
    );
    assert_eq!(
        store.contains(&[batch(4)[0].hash()]).expect("asked"),
        [false]
    );
    assert!(allocated_bytes(&dir) <= store.stats().disk_bytes + 64 * KIB);

    store.append(&batch(4)[..15]).expect("their place is free");
    stored.extend_from_slice(&batch(4)[..15]);
    assert_all_right(&store, &stored);
    drop(store);
    let store = Store::open(&dir, one_pack).expect("opens");
    assert_all_right(&store, &stored);
    assert_eq!(store.stats().bad_segments_dropped, 0);
    tell("cut");
}

#[test]
fn opening_on_a_full_disk_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    TestChild::start_on_tmpfs("disk_full::child_opens_on_a_full_disk", dir.path(), "40m")
        .must_say("opened again");
}

#[test]
#[ignore = "the child of a test"]
fn child_opens_on_a_full_disk() {
    let Some(dir) = child_dir() else { return };
    let store_dir = dir.join("store");
    let stored: Vec<_> = (0..8).flat_map(batch).collect();
    Store::open(&store_dir, options(64 * MIB))
        .expect("opens")
        .append(&stored)
        .expect("stored");
    let filler = fill(&dir);
    match Store::open(&store_dir, options(64 * MIB)) {
        Ok(store) => assert_all_right(&store, &stored),
        Err(error) => {
            assert!(
                matches!(error, OpenError::Index { .. } | OpenError::Io { .. }),
                "{error}"
            );
            assert!(error.to_string().contains("No space left"), "{error}");
        }
    }
    std::fs::remove_file(filler).expect("removed");
    let store = Store::open(&store_dir, options(64 * MIB)).expect("opens");
    assert_all_right(&store, &stored);
    store.append(&batch(9)).expect("stored");
    tell("opened again");
}

#[test]
fn a_read_only_file_system_is_a_clear_error() {
    let dir = tempfile::tempdir().expect("a directory");
    TestChild::start_on_tmpfs("disk_full::child_opens_read_only", dir.path(), "8m")
        .must_say("refused");
}

#[test]
#[ignore = "the child of a test"]
fn child_opens_read_only() {
    let Some(dir) = child_dir() else { return };
    let remounted = std::process::Command::new("mount")
        .args(["-o", "remount,bind,ro"])
        .arg(&dir)
        .status()
        .expect("mount is there");
    assert!(remounted.success());
    let error = Store::open(dir.join("store"), options(MIB)).expect_err("read-only");
    assert!(
        error.to_string().contains("Read-only file system"),
        "{error}"
    );
    tell("refused");
}
