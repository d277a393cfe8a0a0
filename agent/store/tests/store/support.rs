//! What the tests share: segments that a number names, a clock that is set by hand, and children
//! that run one test of this program.

use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use branchline_hashing::{SegmentHash, VerifiedSegment};
use branchline_store::{Clock, Store, StoreOptions};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// SplitMix64: one number gives a sequence.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    /// Other ones in each run; printed, so that a failure can be repeated.
    pub(crate) fn fresh() -> Self {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let seed = u64::from(now.subsec_nanos()) ^ now.as_secs();
        println!("seed {seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The segment with this number and length; the same bytes each time.
pub(crate) fn segment_of(number: u64, length: u64) -> VerifiedSegment {
    let mut numbers = Numbers(number);
    let length = usize::try_from(length).expect("small");
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| numbers.next().to_le_bytes())
        .take(length / 8 + 1)
        .flatten()
        .collect();
    bytes.truncate(length);
    VerifiedSegment::of(bytes.into())
}

/// The segment with this number; 1 byte to 24 KiB.
pub(crate) fn segment(number: u64) -> VerifiedSegment {
    segment_of(number, 1 + Numbers(!number).below(24 * KIB))
}

pub(crate) fn segments(numbers: std::ops::Range<u64>) -> Vec<VerifiedSegment> {
    numbers.map(segment).collect()
}

pub(crate) fn hashes(segments: &[VerifiedSegment]) -> Vec<SegmentHash> {
    segments.iter().map(VerifiedSegment::hash).collect()
}

/// Small packs, no reserve.
pub(crate) fn options(limit_bytes: u64) -> StoreOptions {
    StoreOptions {
        keep_free_bytes: 0,
        pack_bytes: 1 << 20,
        ..StoreOptions::new(limit_bytes)
    }
}

/// A clock that stands still until it is moved.
#[derive(Clone, Default)]
pub(crate) struct HandClock(Arc<AtomicU64>);

impl HandClock {
    pub(crate) fn clock(&self) -> Clock {
        let minutes = Arc::clone(&self.0);
        Clock::from_fn(move || {
            let seconds = 60 * (30_000_000 + minutes.load(Ordering::Relaxed));
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        })
    }

    pub(crate) fn advance(&self, minutes: u64) {
        self.0.fetch_add(minutes, Ordering::Relaxed);
    }
}

/// Reads all of them and compares.
pub(crate) fn assert_all_right(store: &Store, segments: &[VerifiedSegment]) {
    for segment in segments {
        let read = store
            .read(segment.hash())
            .expect("the disk works")
            .expect("it was stored");
        assert_eq!(read.bytes(), segment.bytes());
    }
}

pub(crate) fn pack_files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("packs")).expect("a store has packs");
    let mut packs: Vec<PathBuf> = entries.map(|entry| entry.expect("listed").path()).collect();
    packs.sort();
    packs
}

/// What the packs really occupy.
pub(crate) fn allocated_bytes(dir: &Path) -> u64 {
    pack_files(dir)
        .iter()
        .map(|pack| pack.metadata().expect("there").blocks() * 512)
        .sum()
}

/// A child that runs one ignored test of this program, and what it prints.
pub(crate) struct TestChild {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

/// Children say what matters on lines that begin so; the test harness prints others.
const MARK: &str = "child: ";

/// What a child says to the test that started it.
pub(crate) fn tell(what: impl std::fmt::Display) {
    println!("\n{MARK}{what}");
}

/// The directory given to this child; `None` when nobody started it as one.
pub(crate) fn child_dir() -> Option<PathBuf> {
    std::env::var_os("BRANCHLINE_STORE_TEST_DIR").map(PathBuf::from)
}

impl TestChild {
    pub(crate) fn start(test: &str, dir: &Path) -> Self {
        let exe = std::env::current_exe().expect("this program has a path");
        Self::spawn(Command::new(exe), test, dir)
    }

    /// Runs the test in namespaces of its own, with a small tmpfs mounted at `dir`.
    pub(crate) fn start_on_tmpfs(test: &str, dir: &Path, size: &str) -> Self {
        let exe = std::env::current_exe().expect("this program has a path");
        let flags = if rustix::process::geteuid().is_root() {
            "-m"
        } else {
            "-Urm"
        };
        let mut command = Command::new("unshare");
        let script =
            r#"mount -t tmpfs -o size="$1",mode=700 branchline-test "$2" && shift 2 && exec "$@""#;
        command
            .args([flags, "sh", "-c", script, "sh", size])
            .arg(dir)
            .arg(exe);
        Self::spawn(command, test, dir)
    }

    /// Runs the test so that no file can grow past this size: writing there fails with EFBIG, as
    /// it fails with ENOSPC when another program takes the last space at that moment.
    pub(crate) fn start_with_largest_file(test: &str, dir: &Path, bytes: u64) -> Self {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            r#"trap "" XFSZ && ulimit -f "$1" && shift && exec "$@""#,
            "sh",
        ]);
        command.arg((bytes / 512).to_string());
        command.arg(std::env::current_exe().expect("this program has a path"));
        Self::spawn(command, test, dir)
    }

    fn spawn(mut command: Command, test: &str, dir: &Path) -> Self {
        command.args(["--exact", test, "--ignored", "--nocapture"]);
        command.env("BRANCHLINE_STORE_TEST_DIR", dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .expect("the child starts; it may need util-linux's unshare");
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self {
            child,
            stdin,
            lines,
        }
    }

    /// What the child says next; `None` when it has ended.
    pub(crate) fn hear(&mut self) -> Option<String> {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        lines.find_map(|line| line.strip_prefix(MARK).map(str::to_owned))
    }

    /// SIGKILL; what it had said until then.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.child.kill().expect("it is ours");
        let said = std::iter::from_fn(|| self.hear()).collect();
        self.child.wait().expect("it is ours");
        said
    }

    /// The child must end well, and its last words must be these.
    pub(crate) fn must_say(mut self, last: &str) {
        let said: Vec<String> = std::iter::from_fn(|| self.hear()).collect();
        let status = self.child.wait().expect("it is ours");
        assert!(
            status.success(),
            "the child failed: {status}, it said {said:?}"
        );
        assert_eq!(said.last().map(String::as_str), Some(last));
    }
}
