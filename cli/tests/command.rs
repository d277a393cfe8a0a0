//! The binary itself: exit codes, streams, signals, and an agent's life.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Time that no step takes unless it hangs.
const LONG: Duration = Duration::from_secs(60);

/// A folder for one test: state, configuration and files.
struct Home {
    folder: TempDir,
}

impl Home {
    /// With a configuration that keeps the test to itself.
    fn new() -> Self {
        let home = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        home.write(
            "branchline.toml",
            "[discovery]\nenabled = false\n[store]\nlimit = '64 MiB'\n",
        );
        home
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path().join(name), content).expect("writable");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_branchline"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env("BRANCHLINE_STATE_DIR", self.path().join("state"))
            .env("BRANCHLINE_CONFIG", self.path().join("branchline.toml"))
            .env_remove("BRANCHLINE_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Running(self.command(arguments).spawn().expect("started")).ended()
    }
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// Failed with this code and one line that says these words.
    #[track_caller]
    fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        let last = self.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("branchline: "), "{}", self.stderr);
        for word in words {
            assert!(last.contains(word), "{word} in {}", self.stderr);
        }
    }
}

/// A process that is killed at the end, whatever the end is.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, signal).expect("it runs");
    }

    /// Its end, which must come by itself.
    fn ended(mut self) -> Ran {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.0.try_wait().expect("our child") {
                break status;
            }
            assert!(begun.elapsed() < LONG, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let (out, err) = (self.0.stdout.take(), self.0.stderr.take());
        out.map(|mut out| out.read_to_string(&mut stdout));
        err.map(|mut err| err.read_to_string(&mut stderr));
        Ran {
            code: status.code(),
            stdout,
            stderr,
        }
    }
}

#[test]
fn config_check_prints_what_is_in_force_or_what_is_wrong() {
    let home = Home::new();
    let checked = home.run(&["config", "check"]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    assert!(
        checked.stdout.contains("enabled = false\n"),
        "{}",
        checked.stdout
    );
    assert!(
        checked.stdout.contains("limit = \"64 MiB\"\n"),
        "{}",
        checked.stdout
    );

    home.write("branchline.toml", "[store]\nlimt = '5%'");
    home.run(&["config", "check"])
        .failed(2, &["branchline.toml:2", "`store.limit`"]);
    home.run(&["--config", "absent.toml", "config", "check"])
        .failed(2, &["absent.toml"]);
    home.run(&["agent"]).failed(2, &["branchline.toml:2"]);
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_code_2_and_one_line() {
    let home = Home::new();
    for arguments in [
        &["get"][..],
        &["get", "ftp://a/b"],
        &["get", "http://a/"],
        &["get", "http://a/b", "-o", "-"],
        &["frobnicate"],
    ] {
        let ran = home.run(arguments);
        ran.failed(2, &[]);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    assert_eq!(home.run(&["--version"]).code, Some(0));
    assert!(home.run(&["help"]).stdout.contains("publish"));
}

#[test]
fn without_an_agent_status_says_where_none_is_and_what_to_do() {
    let home = Home::new();
    for command in [&["status"][..], &["peers", "--json"], &["cache", "list"]] {
        home.run(command)
            .failed(7, &["control.sock", "`branchline agent`"]);
    }
}

#[test]
fn publish_and_verify_agree_until_the_file_is_damaged() {
    let home = Home::new();
    let mut content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::create_dir(home.path().join("files")).expect("writable");
    home.write("files/f.bin", &content);
    let published = home.run(&["publish", "files", "--json"]);
    assert_eq!(published.code, Some(0), "{}", published.stderr);
    let expected = "{\"written\":1,\"unchanged\":0,\"stale\":0,\"failed\":[]}\n";
    assert_eq!(published.stdout, expected);
    assert_eq!(published.stderr, "", "no bar in a pipe");
    let verified = home.run(&["verify", "files/f.bin"]);
    assert_eq!(
        verified.stdout, "files/f.bin: intact, 11.44 MiB\n",
        "{}",
        verified.stderr
    );

    content[6_000_000] ^= 1;
    home.write("files/g.bin", &content);
    let damaged = home.run(&["verify", "files/g.bin", "files/f.bin.branchline"]);
    damaged.failed(5, &["files/g.bin", "f.bin.branchline"]);
    let line = damaged.stdout.lines().next().expect("a range");
    let offset: u64 = line
        .rsplit(' ')
        .next()
        .expect("words")
        .parse()
        .expect("an offset");
    assert!(
        offset <= 6_000_000 && 6_000_000 - offset < 16 << 20,
        "{line}"
    );

    home.run(&["verify", "files/g.bin"])
        .failed(6, &["g.bin.branchline"]);
    home.run(&["verify", "files/g.bin", "files/f.bin"])
        .failed(5, &["files/f.bin"]);
    home.run(&["publish", "absent"]).failed(6, &["absent"]);
}

#[test]
fn an_agent_says_ready_answers_and_stops_within_five_seconds() {
    let home = Home::new();
    let mut agent = Running(home.command(&["agent"]).spawn().expect("started"));
    let stdout = agent.0.stdout.as_mut().expect("piped");
    let mut first = String::new();
    BufReader::new(stdout).read_line(&mut first).expect("UTF-8");
    assert_eq!(first, "ready\n");

    let status = home.run(&["status", "--json"]);
    assert_eq!(status.code, Some(0), "{}", status.stderr);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
    for field in ["peer_id", "peers", "jobs", "bytes", "store"] {
        assert!(status.get(field).is_some(), "{field} in {status}");
    }
    assert_eq!(home.run(&["peers", "--json"]).stdout, "[]\n");
    assert_eq!(home.run(&["cache", "list", "--json"]).stdout, "[]\n");
    assert_eq!(home.run(&["status"]).code, Some(0));
    home.run(&["agent"]).failed(7, &["state"]);

    let told = Instant::now();
    agent.signal(Signal::TERM);
    let ended = agent.ended();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        told.elapsed() < Duration::from_secs(6),
        "{:?}",
        told.elapsed()
    );
    assert!(!home.path().join("state/control.sock").exists());
}

/// An origin that accepts and never answers holds the command until the signal.
#[test]
fn an_interrupted_get_ends_with_code_130_and_says_how_to_go_on() {
    let home = Home::new();
    let origin = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/f.bin", origin.local_addr().expect("bound"));
    let mut command = home.command(&["get", &url]);
    command.env("NO_PROXY", "*").env("no_proxy", "*");
    let get = Running(command.spawn().expect("started"));
    let _connection = accepted(&origin);
    get.signal(Signal::INT);
    let ended = get.ended();
    ended.failed(130, &["interrupted", "goes on"]);
    assert!(!home.path().join("f.bin").exists());
}

fn accepted(origin: &TcpListener) -> std::net::TcpStream {
    origin.set_nonblocking(true).expect("a socket");
    let begun = Instant::now();
    loop {
        match origin.accept() {
            Ok((connection, _)) => return connection,
            Err(error) => assert!(begun.elapsed() < LONG, "nobody asks: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
