//! Hosts, the LAN, and processes on hosts.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use branchline_lab::{Agent, Lab, LabOptions, Origin, OriginOptions, Privilege, Signal};

use super::{curl, lab_of, write_file};

const PATIENCE: Duration = Duration::from_secs(20);

fn sh(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

fn perl(script: &str) -> Command {
    let mut command = Command::new("perl");
    command.args(["-MIO::Socket::INET", "-MSocket=:all", "-e", script]);
    command
}

#[test]
fn hosts_see_the_lan_and_the_origin_and_nothing_else() -> Result<()> {
    let lab = lab_of(2)?;
    let devices = lab
        .member(0)
        .sh("ip -o link | cut -d: -f2 | cut -d@ -f1 | xargs")?;
    assert_eq!(devices.trim(), "lo lan0");
    assert_eq!(lab.member(1).sh("hostname")?.trim(), "machine-2");
    let resolved = lab
        .member(0)
        .sh("getent hosts origin.test machine-2.test")?;
    assert!(
        resolved.contains("203.0.113.2") && resolved.contains("10.77.1.2"),
        "{resolved}"
    );
    let unknown = lab
        .member(0)
        .run(sh("getent hosts deb.debian.org"), PATIENCE)?;
    assert!(!unknown.status.success() && unknown.elapsed < Duration::from_secs(3));
    Ok(())
}

#[test]
fn loopback_is_up_and_is_not_the_machines_own() -> Result<()> {
    let lab = lab_of(1)?;
    let ours = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = ours.local_addr()?.port();
    let refused = format!("! curl --silent --max-time 5 http://127.0.0.1:{port}/");
    lab.member(0).sh(&refused)?;
    ours.set_nonblocking(true)?;
    let nobody = ours
        .accept()
        .map(drop)
        .expect_err("the lab reached the machine's loopback");
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
    Ok(())
}

fn tcp_across_the_lan(options: LabOptions) -> Result<()> {
    let lab = Lab::start(options)?;
    let folder = tempfile::tempdir()?;
    let content = write_file(&folder.path().join("file"), 30_000_000)?;
    let origin = Origin::start(lab.member(0), &OriginOptions::serving(folder.path()))?;
    let target = folder.path().join("received");
    let (ca, url) = (
        origin.ca_certificate().display().to_string(),
        origin.https_url("file"),
    );
    let args = ["--cacert", &ca, &url];
    let version = curl(lab.member(1), &args, "%{http_version}", &target)?;
    assert_eq!(version, "2");
    ensure!(
        std::fs::read(&target)? == content,
        "other bytes than were sent"
    );
    let device = lab.member(1).sh("ip -o link show lan0")?;
    assert!(
        device.contains(&format!("mtu {} ", options.lan_mtu)),
        "{device}"
    );
    assert_eq!(
        lab.wan().counters().bytes(),
        0,
        "LAN traffic is not on the WAN"
    );
    Ok(())
}

#[test]
fn tcp_crosses_the_lan_at_mtu_1500() -> Result<()> {
    tcp_across_the_lan(LabOptions {
        members: 2,
        ..LabOptions::default()
    })
}

#[test]
fn tcp_crosses_the_lan_at_mtu_9000() -> Result<()> {
    tcp_across_the_lan(LabOptions {
        members: 2,
        lan_mtu: 9000,
        ..LabOptions::default()
    })
}

#[test]
fn tcp_crosses_the_lan_in_a_user_namespace() -> Result<()> {
    let privilege = Privilege::UserNamespace;
    tcp_across_the_lan(LabOptions {
        members: 2,
        privilege,
        ..LabOptions::default()
    })
}

const MULTICAST_RECEIVER: &str = r#"
    my $s = IO::Socket::INET->new(LocalPort => 5353, Proto => 'udp', ReuseAddr => 1) or die $!;
    my $group = pack_ip_mreq(inet_aton('224.0.0.251'), INADDR_ANY);
    setsockopt($s, IPPROTO_IP, IP_ADD_MEMBERSHIP, $group) or die $!;
    $| = 1; print "ready\n"; $s->recv(my $m, 100); print "$m\n";"#;

const MULTICAST_SENDER: &str = r#"
    my $s = IO::Socket::INET->new(PeerAddr => '224.0.0.251', PeerPort => 5353, Proto => 'udp')
        or die $!;
    $s->send('hello branch') or die $!;"#;

#[test]
fn multicast_reaches_every_member() -> Result<()> {
    let lab = lab_of(3)?;
    let receivers = [1, 2].map(|index| lab.member(index).spawn(perl(MULTICAST_RECEIVER)));
    let receivers = receivers.into_iter().collect::<Result<Vec<_>>>()?;
    for receiver in &receivers {
        receiver.wait_for_line(PATIENCE, |line| line == "ready")?;
    }
    lab.member(0)
        .run(perl(MULTICAST_SENDER), PATIENCE)?
        .success()?;
    for receiver in &receivers {
        receiver.wait_for_line(PATIENCE, |line| line == "hello branch")?;
    }
    Ok(())
}

#[test]
fn a_killed_process_is_gone_when_kill_returns() -> Result<()> {
    let lab = lab_of(1)?;
    let folder = tempfile::tempdir()?;
    let lock = folder.path().join("lock");
    for _ in 0..20 {
        let mut flock = Command::new("flock");
        flock.args(["--no-fork", "--nonblock"]).arg(&lock);
        flock.args(["sh", "-c", "echo held; exec sleep 1000"]);
        let mut process = lab.member(0).spawn(flock)?;
        process
            .wait_for_line(PATIENCE, |line| line == "held")
            .context("the lock is not free")?;
        let end = process.kill()?;
        assert_eq!(end.status.signal(), Some(9));
        assert!(!process.is_running());
    }
    Ok(())
}

#[test]
fn a_process_survives_the_thread_that_started_it() -> Result<()> {
    let lab = lab_of(1)?;
    let host = lab.member(0).clone();
    let script = "trap 'echo terminated; exit 7' TERM; echo ready; while :; do sleep 0.01; done";
    let started = std::thread::spawn(move || host.spawn(sh(script)));
    let mut process = started.join().expect("the thread does not panic")?;
    process.wait_for_line(PATIENCE, |line| line == "ready")?;
    assert!(process.is_running());
    let end = process.terminate(PATIENCE)?;
    assert_eq!(
        (end.status.code(), end.text().as_str()),
        (Some(7), "ready\nterminated\n")
    );
    Ok(())
}

#[test]
fn a_stopped_process_stands_still_until_continued() -> Result<()> {
    let lab = lab_of(1)?;
    let mut process = lab.member(0).spawn(sh(
        "echo ready; read -r line </dev/null; sleep 0.05; echo late",
    ))?;
    process.wait_for_line(PATIENCE, |line| line == "ready")?;
    process.signal(Signal::STOP)?;
    assert!(
        process.wait(Duration::from_millis(300)).is_err(),
        "it went on while stopped"
    );
    process.signal(Signal::CONT)?;
    assert!(process.wait(PATIENCE)?.status.success());
    Ok(())
}

#[test]
fn a_program_that_does_not_exist_is_named() -> Result<()> {
    let lab = lab_of(1)?;
    let error = lab
        .member(0)
        .spawn(Command::new("no-such-program-here"))
        .map(drop);
    let message = format!("{:#}", error.expect_err("it does not exist"));
    assert!(message.contains("no-such-program-here"), "{message}");
    Ok(())
}

#[test]
fn the_working_directory_and_the_callers_files_are_there() -> Result<()> {
    let lab = lab_of(1)?;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("here"), "yes")?;
    let mut cat = Command::new("cat");
    cat.arg("here").current_dir(folder.path());
    assert_eq!(lab.member(0).run(cat, PATIENCE)?.success()?.text(), "yes");
    Ok(())
}

#[test]
fn processor_time_and_memory_are_measured() -> Result<()> {
    let lab = lab_of(1)?;
    // 64 MiB of string, then half a second or so of counting, then it waits to be looked at.
    let script = "my $x = 'a' x (64 << 20); for my $i (1 .. 10_000_000) {} $| = 1; print qq(done\\n); sleep 1000";
    let mut process = lab.member(0).spawn(perl(script))?;
    process.wait_for_line(PATIENCE, |line| line == "done")?;
    let alive = process.measured()?;
    assert!(
        (64 << 20..160 << 20).contains(&alive.peak_resident_bytes),
        "{alive:?}"
    );
    assert!(alive.cpu() >= Duration::from_millis(50), "{alive:?}");
    let end = process.kill()?.measured;
    assert!(
        end.cpu() + Duration::from_millis(20) >= alive.cpu(),
        "{end:?} after {alive:?}"
    );
    assert!(
        (64 << 20..160 << 20).contains(&end.peak_resident_bytes),
        "{end:?}"
    );
    Ok(())
}

/// Plays `branchline`: enough of the contract to see that `Agent` holds its side.
const PLAYED_BINARY: &str = r#"#!/bin/sh
[ "$1" = --state-dir ] && [ "$3" = --config ] || exit 2
state=$2 config=$4
shift 4
case $1 in
    agent) [ "$(cat "$config")" = 'key = 1' ] || exit 2; echo starting; echo ready; exec sleep 1000;;
    status) echo "$state $*"; exit 3;;
esac
"#;

#[test]
fn an_agent_is_started_and_spoken_to_by_the_command_line() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir()?;
    let binary = folder.path().join("branchline");
    std::fs::write(&binary, PLAYED_BINARY)?;
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755))?;
    with_binary(&binary)
}

/// Environment variables belong to the whole process, so the test goes on in one of its own.
fn with_binary(binary: &std::path::Path) -> Result<()> {
    let mut test = Command::new(std::env::current_exe()?);
    test.args([
        "--exact",
        "hosts::agent_with_a_played_binary",
        "--ignored",
        "--nocapture",
    ]);
    let output = test.env("BRANCHLINE_BIN", binary).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    Ok(())
}

#[test]
#[ignore = "run by an_agent_is_started_and_spoken_to_by_the_command_line"]
fn agent_with_a_played_binary() -> Result<()> {
    let lab = lab_of(1)?;
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state");
    let mut agent = Agent::start(lab.member(0), "key = 1", &state)?;
    assert!(agent.process().is_running());
    let answer = agent.run(["status", "--json"], PATIENCE)?;
    assert_eq!(answer.status.code(), Some(3));
    assert_eq!(
        answer.text().trim(),
        format!("{} status --json", state.display())
    );
    agent.kill()?;
    agent.restart()?;
    assert!(agent.process().is_running());
    let wrong = Agent::start(lab.member(0), "key = 2", &state).map(drop);
    let message = format!("{:#}", wrong.expect_err("the played binary refuses this"));
    assert!(message.contains("machine-1"), "{message}");
    Ok(())
}

#[test]
fn the_end_of_a_lab_is_quick_and_takes_all_processes_along() -> Result<()> {
    let lab = lab_of(4)?;
    // A daemon in a session of its own, whose parent has gone.
    lab.member(3)
        .sh("setsid sh -c 'sleep 1000 & echo $! > /dev/null' </dev/null >/dev/null 2>&1")?;
    let mut process = lab.member(0).spawn(sh("echo ready; exec sleep 1000"))?;
    process.wait_for_line(PATIENCE, |line| line == "ready")?;
    let namespace = std::fs::read_link(format!("/proc/{}/ns/pid", process.pid()))?;
    let before = super::leftovers::processes_in(&namespace);
    assert!(
        before.len() >= 3,
        "first process, daemon and sleep: {before:?}"
    );
    let begun = Instant::now();
    drop(lab);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        super::leftovers::processes_in(&namespace),
        Vec::<i32>::new()
    );
    let end = process.wait(PATIENCE).context("it died with the lab")?;
    assert!(!end.status.success());
    Ok(())
}
