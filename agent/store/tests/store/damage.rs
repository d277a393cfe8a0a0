//! Packs, manifests and indexes that were damaged behind the store's back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use branchline_store::{OpenError, Store};

use crate::support::{
    KIB, MIB, assert_all_right, hashes, options, pack_files, segment, segment_of, segments,
};

fn flip_byte(file: &Path, offset: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)
        .expect("it is that long");
    file.write_all_at(&[byte[0] ^ 0x40], offset)
        .expect("written");
}

#[test]
fn a_damaged_segment_is_dropped_and_can_be_stored_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(64 * MIB)).expect("opens");
    let all: Vec<_> = (0..8).map(|number| segment_of(number, 8 * KIB)).collect();
    store.append(&all).expect("stored");
    flip_byte(&pack_files(dir.path())[0], 3 * 8 * KIB + 5);

    assert!(store.read(all[3].hash()).expect("reading works").is_none());
    assert_eq!(
        store.contains(&hashes(&all[3..5])).expect("asked"),
        [false, true]
    );
    assert_eq!(store.stats().bad_segments_dropped, 1);
    assert_eq!(
        (store.stats().segments, store.stats().bytes),
        (7, 7 * 8 * KIB)
    );
    assert_all_right(&store, &all[..3]);
    assert_all_right(&store, &all[4..]);

    store.append(&all[3..4]).expect("stored again");
    assert_all_right(&store, &all);
    drop(store);
    let store = Store::open(dir.path(), options(64 * MIB)).expect("opens");
    assert_eq!(store.stats().bad_segments_dropped, 1);
    assert_all_right(&store, &all);
}

#[test]
fn a_truncated_pack_loses_what_was_cut_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let all: Vec<_> = (0..8).map(|number| segment_of(number, 8 * KIB)).collect();
    Store::open(dir.path(), options(64 * MIB))
        .expect("opens")
        .append(&all)
        .expect("stored");
    let pack = OpenOptions::new()
        .write(true)
        .open(&pack_files(dir.path())[0])
        .expect("there");
    pack.set_len(5 * 8 * KIB + 100).expect("cut");

    let store = Store::open(dir.path(), options(64 * MIB)).expect("opens");
    assert_eq!(store.recovery().segments_lost, 3);
    assert_eq!(
        (store.stats().segments, store.stats().bytes),
        (5, 5 * 8 * KIB)
    );
    assert_eq!(store.stats().bad_segments_dropped, 3);
    assert_all_right(&store, &all[..5]);
    assert_eq!(store.append(&all).expect("stored again").stored, 3);
    assert_all_right(&store, &all);
    drop(store);
    let store = Store::open(dir.path(), options(64 * MIB)).expect("opens");
    assert_eq!(
        store.recovery(),
        &branchline_store::RecoveryReport::default()
    );
    assert_all_right(&store, &all);
}

#[test]
fn a_missing_pack_loses_its_segments_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let all = segments(0..300);
    Store::open(dir.path(), options(64 * MIB))
        .expect("opens")
        .append(&all)
        .expect("stored");
    let packs = pack_files(dir.path());
    assert!(packs.len() >= 3, "the test needs several packs");
    std::fs::remove_file(&packs[1]).expect("removed");

    let store = Store::open(dir.path(), options(64 * MIB)).expect("opens");
    let lost = store.recovery().segments_lost;
    assert!(lost > 20 && lost < 200);
    let here = store.contains(&hashes(&all)).expect("asked");
    let left: Vec<_> = all
        .iter()
        .zip(&here)
        .filter(|(_, here)| **here)
        .map(|(s, _)| s.clone())
        .collect();
    assert_eq!(left.len() as u64, 300 - lost);
    assert_eq!(store.stats().segments, 300 - lost);
    assert_all_right(&store, &left);
    assert_eq!(store.append(&all).expect("stored again").stored, lost);
    assert_all_right(&store, &all);
}

#[test]
fn a_pack_removed_under_an_open_store_is_noticed_on_reading() {
    let dir = tempfile::tempdir().expect("a directory");
    let all = segments(0..20);
    Store::open(dir.path(), options(64 * MIB))
        .expect("opens")
        .append(&all)
        .expect("stored");
    let store = Store::open(dir.path(), options(64 * MIB)).expect("opens");
    std::fs::remove_file(&pack_files(dir.path())[0]).expect("removed");
    for segment in &all {
        assert!(store.read(segment.hash()).expect("no error").is_none());
    }
    assert_eq!(store.stats().segments, 0);
    store.append(&all).expect("stored again");
    assert_all_right(&store, &all);
}

/// What a power cut may leave: packs that are newer than the index.
#[test]
fn an_index_older_than_the_packs_keeps_what_it_knows_and_cuts_the_rest() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = segments(0..20);
    Store::open(dir.path(), options(64 * MIB))
        .expect("opens")
        .append(&old)
        .expect("stored");
    let saved = dir.path().join("saved");
    copy_dir(&dir.path().join("index"), &saved);
    Store::open(dir.path(), options(64 * MIB))
        .expect("opens")
        .append(&segments(20..300))
        .expect("ok");
    std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
    std::fs::rename(saved, dir.path().join("index")).expect("put back");

    let store = Store::open(dir.path(), options(64 * MIB)).expect("opens");
    assert!(store.recovery().bytes_cut > 0 && store.recovery().orphan_packs_removed > 0);
    assert_eq!(store.stats().segments, 20);
    assert_all_right(&store, &old);
    assert_eq!(pack_files(dir.path()).len(), 1);
    assert_eq!(store.append(&segments(0..300)).expect("stored").stored, 280);
    assert_all_right(&store, &segments(0..300));
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

#[test]
fn an_unreadable_index_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(Store::open(dir.path(), options(MIB)).expect("opens"));
    std::fs::write(dir.path().join("index/CURRENT"), "rubbish\n").expect("written");
    let error = Store::open(dir.path(), options(MIB)).expect_err("refused");
    assert!(matches!(error, OpenError::Index { .. }), "{error}");
    assert!(
        error.to_string().contains("move the directory away"),
        "{error}"
    );
}

#[test]
fn foreign_files_beside_the_packs_are_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(Store::open(dir.path(), options(MIB)).expect("opens"));
    let foreign = dir.path().join("packs/notes.txt");
    File::create(&foreign).expect("made");
    let store = Store::open(dir.path(), options(MIB)).expect("opens");
    store.append(&[segment(1)]).expect("stored");
    assert!(foreign.exists());
}
