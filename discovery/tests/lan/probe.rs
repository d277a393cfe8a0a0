//! Processes on the hosts, and what they print.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::namespace::Host;

/// A probe's membership: peer id to member.
pub(crate) type Members = BTreeMap<String, Value>;

/// For a process to start and print its first line on a busy machine.
const START: Duration = Duration::from_secs(20);

/// Told whenever any process printed a line.
static PRINTED: Condvar = Condvar::new();
static PRINTING: Mutex<()> = Mutex::new(());

/// A running program and the lines it printed.
struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Process {
    fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("nsenter of util-linux");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let printed = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).expect("programs print JSON");
                printed.lock().expect("no panic elsewhere").push(line);
                drop(PRINTING.lock());
                PRINTED.notify_all();
            }
        });
        Self { child, lines }
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Value>> {
        self.lines.lock().expect("no panic elsewhere")
    }

    fn find<T>(&self, what: &str, find: impl Fn(&[Value]) -> Option<T>) -> T {
        wait_until(START, what, || find(&self.lines()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until lines were printed that make `find` succeed.
fn wait_until<T>(within: Duration, what: &str, find: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    let mut guard = PRINTING.lock().expect("no panic elsewhere");
    loop {
        if let Some(found) = find() {
            return found;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "not within {within:?}: {what}");
        guard = PRINTED
            .wait_timeout(guard, left)
            .expect("no panic elsewhere")
            .0;
    }
}

fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test's program");
    let folder = test
        .parent()
        .and_then(Path::parent)
        .expect("target/release/deps/lan");
    let program = folder.join("examples").join(name);
    assert!(
        program.exists(),
        "{} is missing: build the package's examples",
        program.display()
    );
    program
}

/// An agent's discovery on one host.
pub(crate) struct Agent<'h> {
    host: &'h Host,
    folder: Arc<tempfile::TempDir>,
    exchange_port: u16,
    process: Option<Process>,
}

impl<'h> Agent<'h> {
    /// An agent that does not run yet.
    pub(crate) fn prepare(host: &'h Host, exchange_port: u16) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        Self {
            host,
            folder,
            exchange_port,
            process: None,
        }
    }

    /// The same agent, not running, with another exchange port.
    pub(crate) fn with_exchange_port(self, exchange_port: u16) -> Self {
        let (host, folder) = (self.host, Arc::clone(&self.folder));
        Self {
            host,
            folder,
            exchange_port,
            process: None,
        }
    }

    /// Starts it and waits until it listens.
    pub(crate) fn start(&mut self, config: &Value) {
        self.spawn(config);
        self.wait_until_ready();
    }

    /// Starts it.
    pub(crate) fn spawn(&mut self, config: &Value) {
        let mut command = self.host.command(&example("discovery-probe"));
        command.arg(self.folder.path().join("identity"));
        command.args([self.exchange_port.to_string(), config.to_string()]);
        self.process = Some(Process::spawn(command));
    }

    /// Waits until it listens.
    pub(crate) fn wait_until_ready(&self) {
        self.process()
            .find("the probe is ready", |lines| lines.first().map(drop));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let process = self.process.as_mut().expect("it runs");
        process.child.kill().expect("killed");
        process.child.wait().expect("ended");
    }

    /// Ends it in good order, without waiting for the end.
    pub(crate) fn stop(mut self) {
        let mut process = self.process.take().expect("it runs");
        drop(process.child.stdin.take());
        let status = process.child.wait().expect("ended");
        assert!(status.success(), "the probe ended with {status}");
    }

    pub(crate) fn peer_id(&self) -> String {
        let lines = self.process().lines();
        lines[0]["ready"].as_str().expect("a peer id").to_owned()
    }

    pub(crate) fn members(&self) -> Members {
        let lines = self.process().lines();
        let Some(last) = lines.last().filter(|line| !line["members"].is_null()) else {
            return Members::new();
        };
        serde_json::from_value(last["members"].clone()).expect("members by peer id")
    }

    pub(crate) fn line_count(&self) -> usize {
        self.process().lines().len()
    }

    /// The longest time without any member, from this line on.
    pub(crate) fn longest_alone_since(&self, line: usize) -> Duration {
        let lines = self.process().lines();
        let (mut longest_ms, mut alone_from_ms) = (0, None);
        for line in lines.iter().skip(line) {
            let at_ms = line["unix_ms"].as_u64().expect("a time");
            let is_alone = line["members"].as_object().expect("members").is_empty();
            if is_alone {
                alone_from_ms.get_or_insert(at_ms);
            } else if let Some(from_ms) = alone_from_ms.take() {
                longest_ms = longest_ms.max(at_ms.saturating_sub(from_ms));
            }
        }
        Duration::from_millis(longest_ms)
    }

    pub(crate) fn status(&self) -> Value {
        self.process().lines().last().expect("a line")["status"].clone()
    }

    pub(crate) fn found_by(&self, peer: &str) -> String {
        self.members()[peer]["found_by"]
            .as_str()
            .expect("a text")
            .to_owned()
    }

    pub(crate) fn addresses_of(&self, peer: &str) -> Vec<String> {
        let addresses = self.members()[peer]["exchange_addresses"].clone();
        serde_json::from_value(addresses).expect("addresses")
    }

    pub(crate) fn wait(&self, within: Duration, what: &str, found: impl Fn(&Members) -> bool) {
        wait_until(within, what, || found(&self.members()).then_some(()));
    }

    /// Whatever it prints until then, the condition holds.
    pub(crate) fn stays(&self, during: Duration, what: &str, holds: impl Fn(&Members) -> bool) {
        let deadline = Instant::now() + during;
        let mut guard = PRINTING.lock().expect("no panic elsewhere");
        loop {
            assert!(holds(&self.members()), "{what}: {:?}", self.members());
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            guard = PRINTED
                .wait_timeout(guard, left)
                .expect("no panic elsewhere")
                .0;
        }
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("it runs")
    }
}

/// Several agents seen together.
pub(crate) struct Hub<'a, 'h> {
    agents: &'a [Agent<'h>],
}

impl<'a, 'h> Hub<'a, 'h> {
    pub(crate) fn of(agents: &'a [Agent<'h>]) -> Self {
        Self { agents }
    }

    pub(crate) fn wait(&self, within: Duration, what: &str, found: impl Fn(&[Members]) -> bool) {
        wait_until(within, what, || {
            let seen: Vec<_> = self.agents.iter().map(Agent::members).collect();
            found(&seen).then_some(())
        });
    }
}

/// A program of somebody else's on one host.
pub(crate) struct Foreign {
    process: Process,
}

impl Foreign {
    pub(crate) fn start(host: &Host, dials: &str) -> Self {
        let mut command = host.command(&example("foreign-libp2p"));
        command.arg(dials);
        let process = Process::spawn(command);
        process.find("the foreign program is ready", |lines| {
            lines.first().map(drop)
        });
        Self { process }
    }

    /// A member that names invented peers, and dials these agents.
    pub(crate) fn liar(host: &Host, invented: u32, dials: &[String]) -> Self {
        let mut command = host.command(&example("lying-member"));
        command.arg(invented.to_string()).args(dials);
        let process = Process::spawn(command);
        process.find("the liar is ready", |lines| lines.first().map(drop));
        Self { process }
    }

    pub(crate) fn peer_id(&self) -> String {
        let lines = self.process.lines();
        lines[0]["peer_id"].as_str().expect("a peer id").to_owned()
    }

    pub(crate) fn wait_for_event(&mut self, event: &str) {
        self.process.find(event, |lines| {
            lines.iter().any(|l| l["event"] == event).then_some(())
        });
    }

    pub(crate) fn count(&self, event: &str) -> usize {
        self.process
            .lines()
            .iter()
            .filter(|line| line["event"] == event)
            .count()
    }
}
