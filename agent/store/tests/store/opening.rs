//! Who may open a store, and what it says when it cannot be opened.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use branchline_store::{NoteChange, OpenError, Store};

use crate::support::{MIB, TestChild, child_dir, options, segment, tell};

#[test]
#[ignore = "the child of a test"]
fn child_keeps_a_store_open() {
    let Some(dir) = child_dir() else { return };
    let store = Store::open(dir, options(MIB)).expect("opens");
    tell("open");
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("the test ends it");
    drop(store);
    tell("closed");
}

#[test]
fn a_second_process_is_refused_and_told_who_has_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = TestChild::start("opening::child_keeps_a_store_open", dir.path());
    assert_eq!(child.hear().as_deref(), Some("open"));
    let error = Store::open(dir.path(), options(MIB)).expect_err("the child has it");
    assert!(matches!(error, OpenError::InUse { .. }));
    let pid = child.child.id();
    assert!(
        error
            .to_string()
            .contains(&format!("process {pid} uses it")),
        "{error}"
    );

    drop(child.stdin.take());
    child.must_say("closed");
    drop(Store::open(dir.path(), options(MIB)).expect("free again"));

    let mut child = TestChild::start("opening::child_keeps_a_store_open", dir.path());
    assert_eq!(child.hear().as_deref(), Some("open"));
    child.kill();
    Store::open(dir.path(), options(MIB)).expect("a killed process holds nothing");
}

#[test]
fn the_same_process_cannot_open_it_twice_until_the_last_clone_is_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(MIB)).expect("opens");
    let clone = store.clone();
    store.flush_and_close().expect("closed");
    let error = Store::open(dir.path(), options(MIB)).expect_err("a clone is left");
    assert!(
        error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
    drop(clone);
    Store::open(dir.path(), options(MIB)).expect("opens");
}

#[test]
fn another_users_directory_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let foreign = if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(dir.path(), Some(65534), None).expect("root may");
        dir.path().to_owned()
    } else {
        PathBuf::from("/")
    };
    let error = Store::open(foreign, options(MIB)).expect_err("not ours");
    assert!(matches!(error, OpenError::OtherOwner { .. }), "{error}");
    assert!(error.to_string().contains("it belongs to user"), "{error}");
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("written");
    let error = Store::open(file.join("store"), options(MIB)).expect_err("no directory");
    assert!(matches!(error, OpenError::Io { .. }));
    assert!(error.to_string().contains("file/store"), "{error}");
}

#[test]
fn a_new_store_is_for_its_user_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state/store");
    let store = Store::open(&path, options(MIB)).expect("opens");
    store.append(&[segment(1)]).expect("stored");
    for (path, mode) in [
        (path.clone(), 0o700),
        (path.join("packs/00000001.pack"), 0o600),
    ] {
        let permissions = path.metadata().expect("there").permissions();
        assert_eq!(permissions.mode() & 0o777, mode, "{}", path.display());
    }
}

#[test]
fn another_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(Store::open(dir.path(), options(MIB)).expect("opens"));
    std::fs::write(dir.path().join("FORMAT"), "branchline store 2\n").expect("written");
    let error = Store::open(dir.path(), options(MIB)).expect_err("another format");
    assert!(
        error.to_string().contains("\"branchline store 2\""),
        "{error}"
    );

    std::fs::remove_file(dir.path().join("FORMAT")).expect("removed");
    let error = Store::open(dir.path(), options(MIB)).expect_err("no format");
    assert!(error.to_string().contains("FORMAT"), "{error}");
}

#[test]
fn an_opening_cut_off_before_the_format_was_written_is_done_again() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("LOCK"), "1\n").expect("written");
    std::fs::write(dir.path().join("FORMAT.new"), "branch").expect("written");
    Store::open(dir.path(), options(MIB)).expect("opens");
}

#[test]
fn notes_are_kept_until_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), options(MIB)).expect("opens");
    store.put_note("a", b"1").expect("put");
    store.put_note("b", b"2").expect("put");
    store.put_note("a", b"3").expect("put");
    let put = |key: &str| NoteChange::Put {
        key: key.into(),
        value: key.into(),
    };
    let remove = NoteChange::Remove { key: "b".into() };
    store
        .change_notes(&[put("job/2"), put("job/10"), put("joc"), remove])
        .expect("changed");
    drop(store);
    let store = Store::open(dir.path(), options(MIB)).expect("opens");
    assert_eq!(store.note("a").expect("read").as_deref(), Some(&b"3"[..]));
    assert_eq!(store.note("b").expect("read"), None);
    let mut shown = Vec::new();
    let show = |key: &str, value: &[u8]| {
        assert_eq!(key.as_bytes(), value);
        shown.push(key.to_owned());
    };
    store.each_note("job/", show).expect("read");
    assert_eq!(shown, ["job/10", "job/2"]);
}
