//! Content records and their manifests.

use std::path::PathBuf;

use branchline_hashing::ContentKey;
use branchline_store::{ContentRecord, Store, StoreOptions, Trust};

use crate::support::{HandClock, MIB, options};

fn record(number: u8) -> ContentRecord {
    ContentRecord {
        key: ContentKey::from_bytes([number; 32]),
        manifest: vec![number; 5000].into(),
        url: format!("https://origin.example/{number}.iso"),
        file_name: format!("{number}.iso"),
        trust: Trust::Manifest,
        length: 1 << 40,
        stored_at: 1000 + u64::from(number),
        last_used: 2000 + u64::from(number),
    }
}

fn manifest_files(store_dir: &std::path::Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(store_dir.join("manifests")).expect("listed");
    entries.map(|entry| entry.expect("listed").path()).collect()
}

#[test]
fn contents_are_found_by_key_and_by_swarm_until_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(MIB)).expect("opens");
    for number in [3, 1, 2] {
        store.put_content(&record(number)).expect("put");
    }
    drop(store);
    let store = Store::open(dir.path(), options(MIB)).expect("opens");
    for number in 1..=3 {
        let key = record(number).key;
        assert_eq!(store.content(&key).expect("read"), Some(record(number)));
        let by_swarm = store.content_by_swarm(&key.swarm_id()).expect("read");
        assert_eq!(by_swarm, Some(record(number)));
        let found = store.key_of_swarm(&key.swarm_id()).expect("read");
        assert_eq!(found, Some((key, record(number).trust)));
    }
    let urls: Vec<_> = store
        .contents()
        .expect("listed")
        .into_iter()
        .map(|c| c.url)
        .collect();
    assert_eq!(urls, [record(1).url, record(2).url, record(3).url]);

    let key = record(2).key;
    assert!(store.remove_content(&key).expect("removed"));
    assert!(!store.remove_content(&key).expect("asked"));
    assert_eq!(store.content(&key).expect("read"), None);
    assert_eq!(store.content_by_swarm(&key.swarm_id()).expect("read"), None);
    assert_eq!(store.key_of_swarm(&key.swarm_id()).expect("read"), None);
    assert_eq!(manifest_files(dir.path()).len(), 2);
}

#[test]
fn a_new_manifest_replaces_the_old_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(MIB)).expect("opens");
    store.put_content(&record(1)).expect("put");
    let newer = ContentRecord {
        manifest: vec![9; 70_000].into(),
        ..record(1)
    };
    store.put_content(&newer).expect("put");
    assert_eq!(
        store.content(&newer.key).expect("read"),
        Some(newer.clone())
    );
    assert_eq!(manifest_files(dir.path()).len(), 1);
    store.put_content(&newer).expect("put again");
    assert_eq!(store.content(&newer.key).expect("read"), Some(newer));
}

#[test]
fn a_damaged_or_missing_manifest_is_dropped() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(MIB)).expect("opens");
    store.put_content(&record(1)).expect("put");
    let file = manifest_files(dir.path()).remove(0);
    std::fs::write(&file, vec![0; 5000]).expect("written");
    assert_eq!(store.content(&record(1).key).expect("no error"), None);
    assert_eq!(store.contents().expect("listed"), []);
    assert!(!file.exists());

    store.put_content(&record(1)).expect("put");
    store.put_content(&record(2)).expect("put");
    let swarm = record(1).key.swarm_id().to_string();
    drop(store);
    let files = manifest_files(dir.path());
    let first = files
        .iter()
        .find(|path| path.to_string_lossy().contains(&swarm));
    std::fs::remove_file(first.expect("named by its swarm")).expect("removed");
    std::fs::write(dir.path().join("manifests/left-over.new"), "half").expect("written");
    let store = Store::open(dir.path(), options(MIB)).expect("opens");
    assert_eq!(store.recovery().contents_lost, 1);
    assert_eq!(store.recovery().orphan_manifests_removed, 1);
    assert_eq!(store.contents().expect("listed").len(), 1);
    assert_eq!(
        store.content(&record(2).key).expect("read"),
        Some(record(2))
    );
}

#[test]
fn the_least_recently_used_contents_make_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = HandClock::default();
    let few = StoreOptions {
        max_contents: 4,
        clock: clock.clock(),
        ..options(MIB)
    };
    let store = Store::open(dir.path(), few).expect("opens");
    for number in 1..=4 {
        store.put_content(&record(number)).expect("put");
    }
    assert!(store.touch_content(&record(1).key).expect("touched"));
    assert!(!store.touch_content(&record(9).key).expect("asked"));
    store.put_content(&record(5)).expect("put");
    store.put_content(&record(6)).expect("put");
    let left: Vec<_> = store
        .contents()
        .expect("listed")
        .into_iter()
        .map(|c| c.key)
        .collect();
    assert_eq!(left, [1, 4, 5, 6].map(|number| record(number).key));
    assert_eq!(manifest_files(dir.path()).len(), 4);
}
