//! `publish` on real folders.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use branchline_hashing::{SegmentHash, SegmentingParameters, Sha256};
use branchline_publish::{
    Outcome, Progress, PublishError, PublishFileError, PublishOptions, PublishReport,
    manifest_path, publish, read_manifest,
};
use tempfile::TempDir;

const MIB: usize = 1024 * 1024;

fn silent(_: Progress<'_>) {}

fn publish_quietly(path: &Path) -> PublishReport {
    let report = publish(&[path.to_owned()], &PublishOptions::default(), &silent);
    let report = report.expect("a path that exists");
    report.failed.iter().for_each(|error| println!("{error}"));
    report
}

fn counts(report: &PublishReport) -> (u64, u64, u64, usize) {
    (
        report.written,
        report.unchanged,
        report.stale,
        report.failed.len(),
    )
}

/// Bytes without long repetitions, the same each time.
fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = 2 * seed + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8))
        .flat_map(|_| next())
        .take(length)
        .collect()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().expect("a folder"))?;
    fs::write(&path, bytes)?;
    Ok(path)
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn assert_describes(file: &Path, content: &[u8]) {
    let manifest = read_manifest(&manifest_path(file)).expect("a manifest beside the file");
    assert_eq!(manifest.file_length(), content.len() as u64);
    assert_eq!(manifest.parameters(), SegmentingParameters::DEFAULT);
    let mut sha256 = Sha256::new();
    sha256.update(content);
    assert_eq!(*manifest.sha256(), sha256.finish());
    for segment in manifest.segments() {
        let start = usize::try_from(segment.offset).expect("a small file");
        let bytes = &content[start..start + segment.length as usize];
        assert_eq!(SegmentHash::of(bytes), segment.hash, "{}", segment.index);
    }
}

#[test]
fn manifests_describe_files_of_any_length() -> io::Result<()> {
    let folder = TempDir::new()?;
    for length in [0, 1, 8191, MIB - 1, MIB, MIB + 1, 5 * MIB, 9 * MIB + 12_345] {
        let content = bytes(length, 7);
        let file = write(folder.path(), "file", &content)?;
        assert_eq!(
            counts(&publish_quietly(&file)),
            (1, 0, 0, 0),
            "{length} bytes"
        );
        assert_describes(&file, &content);
    }
    Ok(())
}

#[test]
fn constant_bytes_are_cut_at_the_maximum() -> io::Result<()> {
    let folder = TempDir::new()?;
    let content = vec![0; 3 * MIB + 5];
    let file = write(folder.path(), "zeros", &content)?;
    publish_quietly(&file);
    assert_describes(&file, &content);
    let manifest = read_manifest(&manifest_path(&file)).expect("a manifest");
    assert_eq!(manifest.segment_count(), 25);
    Ok(())
}

#[test]
fn only_what_changed_is_published_again() -> io::Result<()> {
    let folder = TempDir::new()?;
    let changed = write(folder.path(), "deep/er/changed", &bytes(2 * MIB, 1))?;
    write(folder.path(), "same", b"same")?;
    assert_eq!(counts(&publish_quietly(folder.path())), (2, 0, 0, 0));
    let before = fs::metadata(manifest_path(&changed))?.ino();
    assert_eq!(counts(&publish_quietly(folder.path())), (0, 2, 0, 0));
    assert_eq!(fs::metadata(manifest_path(&changed))?.ino(), before);

    // Same length, at once: only the time tells.
    let content = bytes(2 * MIB, 2);
    fs::write(&changed, &content)?;
    assert_eq!(counts(&publish_quietly(folder.path())), (1, 1, 0, 0));
    assert_describes(&changed, &content);
    Ok(())
}

#[test]
fn a_manifest_that_does_not_fit_is_made_anew() -> io::Result<()> {
    let folder = TempDir::new()?;
    let content = bytes(MIB, 3);
    let file = write(folder.path(), "file", &content)?;
    publish_quietly(&file);
    let path = manifest_path(&file);
    let right = fs::read(&path)?;
    let mtime = fs::metadata(&file)?.modified()?;

    let mut other_magic = right.clone();
    other_magic[0] ^= 1;
    let mut other_length = right.clone();
    other_length[32] ^= 1;
    let cut_short = right[..right.len() - 1].to_vec();
    for damaged in [other_magic, other_length, cut_short, Vec::new()] {
        fs::write(&path, damaged)?;
        File::options()
            .write(true)
            .open(&path)?
            .set_modified(mtime)?;
        assert_eq!(counts(&publish_quietly(&file)), (1, 0, 0, 0));
        assert_eq!(fs::read(&path)?, right);
    }

    let options = PublishOptions {
        parameters: SegmentingParameters::FIXED,
        ..PublishOptions::default()
    };
    let report = publish(std::slice::from_ref(&file), &options, &silent).expect("the file");
    assert_eq!(counts(&report), (1, 0, 0, 0));
    assert_eq!(counts(&publish_quietly(&file)), (1, 0, 0, 0));
    Ok(())
}

#[test]
fn a_manifest_has_its_files_mode_and_time() -> io::Result<()> {
    let folder = TempDir::new()?;
    for mode in [0o644, 0o755, 0o640, 0o600] {
        let file = write(folder.path(), "file", &bytes(100, mode.into()))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        let mtime = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000 + u64::from(mode), 12_345);
        File::options()
            .write(true)
            .open(&file)?
            .set_modified(mtime)?;
        assert_eq!(counts(&publish_quietly(&file)), (1, 0, 0, 0));
        let metadata = fs::metadata(manifest_path(&file))?;
        assert_eq!(metadata.mode() & 0o7777, mode & 0o666);
        assert_eq!(metadata.modified()?, mtime);
    }
    Ok(())
}

#[test]
fn own_files_and_special_files_are_passed_over() -> io::Result<()> {
    let folder = TempDir::new()?;
    let file = write(folder.path(), "file", b"content")?;
    write(folder.path(), "gone.branchline", b"stale")?;
    write(folder.path(), ".file.branchline-x1", b"half a file")?;
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket"))?;
    symlink("nowhere", folder.path().join("dangling"))?;

    assert_eq!(counts(&publish_quietly(folder.path())), (1, 0, 1, 0));
    assert_describes(&file, b"content");
    assert_eq!(
        names(folder.path())?,
        [
            ".file.branchline-x1",
            "dangling",
            "file",
            "file.branchline",
            "gone.branchline",
            "socket"
        ]
    );
    // As a shell's `*` would name them.
    let paths: Vec<PathBuf> = ["file", "file.branchline"]
        .map(|name| folder.path().join(name))
        .into();
    let report = publish(&paths, &PublishOptions::default(), &silent).expect("files");
    assert_eq!(counts(&report), (0, 1, 0, 0));
    Ok(())
}

#[test]
fn links_to_files_are_followed_and_links_to_folders_are_not() -> io::Result<()> {
    let folder = TempDir::new()?;
    write(folder.path(), "outside/file", b"outside")?;
    let tree = folder.path().join("tree");
    fs::create_dir(&tree)?;
    symlink("../outside/file", tree.join("latest"))?;
    symlink("../outside", tree.join("folder"))?;
    symlink(".", tree.join("loop"))?;
    assert_eq!(counts(&publish_quietly(&tree)), (1, 0, 0, 0));
    assert_describes(&tree.join("latest"), b"outside");
    assert!(!manifest_path(&folder.path().join("outside/file")).exists());

    // Named, a link to a folder is the folder.
    assert_eq!(counts(&publish_quietly(&tree.join("folder"))), (1, 0, 0, 0));
    assert!(manifest_path(&folder.path().join("outside/file")).exists());
    Ok(())
}

#[test]
fn a_file_that_changes_once_while_it_is_read_is_read_again() -> io::Result<()> {
    let folder = TempDir::new()?;
    let file = write(folder.path(), "file", &bytes(6 * MIB, 4))?;
    let content = bytes(6 * MIB, 5);
    let replaced = AtomicU64::new(0);
    let progress = |step: Progress<'_>| {
        if matches!(step, Progress::Advanced { .. }) && replaced.fetch_add(1, Ordering::SeqCst) == 2
        {
            fs::write(&file, &content).expect("the file can be written");
        }
    };
    let report = publish(
        std::slice::from_ref(&file),
        &PublishOptions::default(),
        &progress,
    )
    .expect("file");
    assert_eq!(counts(&report), (1, 0, 0, 0));
    assert_describes(&file, &content);
    Ok(())
}

#[test]
fn a_file_replaced_by_another_while_it_is_read_is_read_again() -> io::Result<()> {
    let folder = TempDir::new()?;
    let content = bytes(3 * MIB, 6);
    let file = write(folder.path(), "file", &bytes(3 * MIB, 7))?;
    let new = write(folder.path(), "new", &content)?;
    let mtime = fs::metadata(&file)?.modified()?;
    File::options()
        .write(true)
        .open(&new)?
        .set_modified(mtime)?;
    let progress = |step: Progress<'_>| {
        if matches!(step, Progress::Advanced { .. }) && new.exists() {
            fs::rename(&new, &file).expect("the file can be replaced");
        }
    };
    let report = publish(
        std::slice::from_ref(&file),
        &PublishOptions::default(),
        &progress,
    )
    .expect("file");
    assert_eq!(counts(&report), (1, 0, 0, 0));
    assert_describes(&file, &content);
    Ok(())
}

#[test]
fn a_file_that_keeps_changing_is_reported_and_the_others_are_published() -> io::Result<()> {
    let folder = TempDir::new()?;
    let growing = write(folder.path(), "growing", &bytes(3 * MIB, 8))?;
    let other = write(folder.path(), "other", &bytes(10, 9))?;
    let progress = |step: Progress<'_>| {
        if matches!(step, Progress::Advanced { .. }) {
            let mut log = OpenOptions::new()
                .append(true)
                .open(&growing)
                .expect("a log");
            log.write_all(b"one more line\n").expect("room for a line");
        }
    };
    let paths = [growing.clone(), other.clone()];
    let report = publish(&paths, &PublishOptions::default(), &progress).expect("two files");
    assert_eq!(counts(&report), (1, 0, 0, 1));
    assert!(matches!(&report.failed[0], PublishFileError::Changed { path } if *path == growing));
    assert_describes(&other, &bytes(10, 9));
    assert_eq!(
        names(folder.path())?,
        ["growing", "other", "other.branchline"]
    );
    Ok(())
}

#[test]
fn a_manifest_that_cannot_be_written_leaves_nothing_behind() -> io::Result<()> {
    let folder = TempDir::new()?;
    let file = write(folder.path(), "file", b"content")?;
    write(folder.path(), "file.branchline/in the way", b"")?;
    let report = publish(
        std::slice::from_ref(&file),
        &PublishOptions::default(),
        &silent,
    )
    .expect("a file");
    assert_eq!(counts(&report), (0, 0, 0, 1));
    let message = report.failed[0].to_string();
    assert!(
        message.contains("cannot write") && message.contains("file.branchline"),
        "{message}"
    );
    assert_eq!(names(folder.path())?, ["file", "file.branchline"]);
    assert_eq!(names(&manifest_path(&file))?, ["in the way"]);
    Ok(())
}

#[test]
fn names_up_to_the_longest_get_a_manifest() -> io::Result<()> {
    let folder = TempDir::new()?;
    write(folder.path(), &"x".repeat(244), b"fits")?;
    write(folder.path(), &"y".repeat(245), b"does not")?;
    assert_eq!(counts(&publish_quietly(folder.path())), (1, 0, 0, 1));
    assert_eq!(names(folder.path())?.len(), 3);
    Ok(())
}

/// Runs as another user where the tests are root's, whom no mode stops.
#[test]
fn what_may_not_be_read_is_reported() -> io::Result<()> {
    let folder = TempDir::new()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
    let secret = write(folder.path(), "secret", b"secret")?;
    let closed = write(folder.path(), "closed/inside", b"inside")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000))?;
    let closed = closed.parent().expect("a folder");
    fs::set_permissions(closed, fs::Permissions::from_mode(0o000))?;

    let (report, left) = std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                let nobody = rustix::process::Uid::from_raw(65_534);
                rustix::thread::set_thread_uid(nobody)?;
            }
            fs::write(folder.path().join("open"), b"open")?;
            Ok::<_, io::Error>((publish_quietly(folder.path()), names(folder.path())?))
        });
        publishing.join().expect("no panic")
    })?;
    fs::set_permissions(closed, fs::Permissions::from_mode(0o700))?;

    assert_eq!(counts(&report), (1, 0, 0, 2));
    assert!(
        report
            .failed
            .iter()
            .all(|e| matches!(e, PublishFileError::Read { .. }))
    );
    assert_eq!(left, ["closed", "open", "open.branchline", "secret"]);
    Ok(())
}

#[test]
fn a_path_that_makes_no_sense_stops_everything() -> io::Result<()> {
    let folder = TempDir::new()?;
    let file = write(folder.path(), "file", b"content")?;
    let absent = folder.path().join("absent");
    let options = PublishOptions::default();
    let error = publish(&[file.clone(), absent.clone()], &options, &silent);
    assert!(matches!(error, Err(PublishError::Path { path, .. }) if path == absent));
    let error = publish(&[file.clone(), "/dev/null".into()], &options, &silent);
    assert!(matches!(error, Err(PublishError::Kind { .. })));
    assert!(!manifest_path(&file).exists());
    Ok(())
}

#[test]
fn progress_adds_up() -> io::Result<()> {
    let folder = TempDir::new()?;
    for i in 0..20 {
        write(folder.path(), &format!("{i}"), &bytes(i * 100_000, 10))?;
    }
    for expected_written in [20, 0] {
        let (found, advanced) = (AtomicU64::new(0), AtomicU64::new(0));
        let (finished, written) = (AtomicU64::new(0), AtomicU64::new(0));
        let progress = |step: Progress<'_>| match step {
            Progress::Found { files, bytes } => {
                assert_eq!(files, 20);
                found.store(bytes, Ordering::SeqCst);
            }
            Progress::Advanced { bytes } => {
                advanced.fetch_add(bytes, Ordering::SeqCst);
            }
            Progress::Finished { outcome, .. } => {
                let is_written = matches!(outcome, Outcome::Written);
                written.fetch_add(u64::from(is_written), Ordering::SeqCst);
                finished.fetch_add(1, Ordering::SeqCst);
            }
        };
        let paths = [folder.path().to_owned()];
        publish(&paths, &PublishOptions::default(), &progress).expect("a folder");
        let all = [found, advanced, finished, written].map(AtomicU64::into_inner);
        assert_eq!(all, [19_000_000, 19_000_000, 20, expected_written]);
    }
    Ok(())
}
