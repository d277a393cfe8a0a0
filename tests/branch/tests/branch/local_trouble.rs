//! Disks that are full or damaged, folders that are not ours, ports and files that are taken.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use branchline_branch_tests::{Branch, Got, Machine, PATIENCE, Setup, random_bytes, sha256_hex};

use crate::MEBIBYTE;

const FILE_BYTES: usize = 8 * MEBIBYTE;

fn files_there(machine: &Machine, folder: &Path) -> Result<String> {
    machine.host().sh(&format!("ls -A '{}'", folder.display()))
}

#[test]
fn a_folder_that_cannot_be_written_to_is_said_in_one_line() -> Result<()> {
    let branch = Branch::with_agents(Setup::fast(1))?;
    let url = branch.publish("file.bin", &random_bytes(70, FILE_BYTES))?;
    let machine = branch.machine(0);
    let read_only = machine.small_disk("read-only", "ro,size=1m")?;
    let places = [
        read_only.join("file.bin"),
        machine.home().join("no-such-folder/file.bin"),
    ];
    for target in places {
        // Agents see the mount only if they were started after it: without one here.
        let got = machine.get_to(&url, &target, &[])?;
        let line = got.failed(6)?;
        println!("{line}");
        ensure!(
            line.contains(&*target.with_file_name("").to_string_lossy()),
            "{line}"
        );
    }
    Ok(())
}

#[test]
fn no_room_for_the_file_is_said_before_a_byte_is_fetched() -> Result<()> {
    let mut branch = Branch::start(Setup::fast(1))?;
    let file = random_bytes(71, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let disk = branch.machine(0).small_disk("disk", "size=5m")?;
    let target = disk.join("file.bin");
    let got = branch.machine(0).get_to(&url, &target, &[])?;
    let line = got.failed(6)?;
    println!("{line}");
    ensure!(line.contains("no room"), "{line}");
    assert_eq!(
        files_there(branch.machine(0), &disk)?.trim(),
        ".file.bin.branchline-part"
    );
    let requests = branch.requests_of(0)?;
    let body = requests
        .iter()
        .filter(|r| r.path == "/file.bin")
        .map(|r| r.body_bytes);
    assert_eq!(body.sum::<u64>(), 0, "{requests:?}");
    make_room(branch.machine(0), &disk)?;
    let got = branch.machine(0).get_to(&url, &target, &[])?;
    got.done()?;
    assert_eq!(branch.machine(0).sha256_there(&target)?, sha256_hex(&file));
    Ok(())
}

fn make_room(machine: &Machine, disk: &Path) -> Result<()> {
    let room = format!("mount -o remount,size=64m '{}'", disk.display());
    machine.host().sh(&room).map(drop)
}

#[test]
fn a_disk_that_fills_up_midway_keeps_what_came_and_the_same_command_finishes() -> Result<()> {
    let branch = Branch::start(Setup::fast(1))?;
    let file = random_bytes(72, FILE_BYTES);
    let url = branch.place("file.bin", &file)?;
    let machine = branch.machine(0);
    let disk = machine.small_disk("disk", "size=5m")?;
    let target = disk.join("file.bin");
    let got = machine.get_to(&url, &target, &[])?;
    println!("{}", got.failed(6)?);
    assert_eq!(
        files_there(machine, &disk)?.trim(),
        ".file.bin.branchline-part"
    );
    make_room(machine, &disk)?;
    let got = machine.get_to(&url, &target, &[])?;
    let report = got.done()?;
    println!("then: {report:?}");
    assert_eq!(machine.sha256_there(&target)?, sha256_hex(&file));
    assert!(report.from_store > 0, "nothing was kept: {report:?}");
    Ok(())
}

#[test]
fn a_full_disk_below_the_store_costs_the_cache_and_not_the_file() -> Result<()> {
    let mut branch = Branch::start(Setup::fast(2))?;
    let file = random_bytes(73, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let plain = branch.place("plain.bin", &file)?;
    let disk = branch.machine(0).small_disk("disk", "size=24m")?;
    branch.machine_mut(0).set_state_dir(disk.join("state"));
    branch.machine_mut(0).start_agent()?;
    let machine = branch.machine(0);
    let fill = format!(
        "dd if=/dev/zero of='{}/filler' bs=64k 2>&1 || true",
        disk.display()
    );
    machine.host().sh(&fill)?;
    for url in [&url, &plain] {
        let got = machine.get(url, &[])?;
        got.done()?;
        machine.ensure_file(&got.target, &file)?;
    }
    machine
        .host()
        .sh(&format!("rm '{}/filler'", disk.display()))?;
    let room = format!("mount -o remount,size=512m '{}'", disk.display());
    machine.host().sh(&room)?;
    let target = machine.home().join("again.bin");
    machine.get_to(&url, &target, &[])?.done()?;
    machine.ensure_file(&target, &file)?;
    // The agent has got over it: what came last is in the store, or the next start puts it there.
    branch.machine_mut(0).kill_agent()?;
    branch.machine_mut(0).start_agent()?;
    let machine = branch.machine(0);
    machine
        .get_to(&url, &machine.home().join("third.bin"), &[])?
        .done()?;
    machine.wait_for_cached(1)?;
    let got = machine.get_to(&url, &machine.home().join("fourth.bin"), &[])?;
    assert_eq!(got.done()?.from_store, file.len() as u64);
    Ok(())
}

#[test]
fn a_state_directory_of_another_user_is_refused() -> Result<()> {
    let mut branch = Branch::start(Setup::fast(1))?;
    let url = branch.publish("file.bin", b"some bytes")?;
    let store = branch.machine(0).state_dir().join("store");
    fs::create_dir_all(&store)?;
    // Without the right to give files away: a folder that is not ours as it is.
    if std::os::unix::fs::chown(&store, Some(65_534), None).is_err() {
        branch.machine_mut(0).set_state_dir("/usr".into());
    }
    let got = branch.machine(0).get(&url, &[])?;
    println!("{}", got.failed(6)?);
    let mut agent = branch.machine(0).spawn_agent()?;
    let ended = agent.wait(PATIENCE)?;
    assert_eq!(ended.status.code(), Some(6), "{}", ended.error_text());
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_state_is_refused_and_told_by_whom() -> Result<()> {
    let mut branch = Branch::with_agents(Setup::fast(1))?;
    let ended = branch.machine(0).spawn_agent()?.wait(PATIENCE)?;
    let text = ended.error_text();
    println!("{}", text.trim_end());
    assert_eq!(ended.status.code(), Some(7), "{text}");
    // The number is the one in the lab's own process namespace.
    let status = branch.machine_mut(0).agent()?.pid();
    let status = fs::read_to_string(format!("/proc/{status}/status"))?;
    let pid = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let pid = pid.and_then(|line| line.split_whitespace().last());
    let pid = pid.context("no process id")?;
    ensure!(
        text.contains(&format!("process {pid} ")),
        "not {pid}: {text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
    // The first one is none the worse for it.
    branch.machine(0).json(&["status"])?;
    Ok(())
}

#[test]
fn a_port_that_is_taken_is_said_in_one_line() -> Result<()> {
    for section in ["exchange", "discovery"] {
        let mut branch = Branch::start(Setup::fast(1))?;
        let machine = branch.machine_mut(0);
        machine.configure(&format!("{section}.port = 4002"))?;
        machine.start_agent()?;
        let other = machine.home().join("other");
        machine.set_state_dir(other);
        let ended = machine.spawn_agent()?.wait(PATIENCE)?;
        let text = ended.error_text();
        println!("{}", text.trim_end());
        assert_eq!(ended.status.code(), Some(4), "{text}");
        ensure!(text.contains("4002"), "{text}");
        let lines: Vec<&str> = text
            .lines()
            .filter(|l| l.starts_with("branchline: "))
            .collect();
        assert_eq!(lines.len(), 1, "{text}");
    }
    Ok(())
}

#[test]
fn of_two_downloads_to_the_same_target_another_one_is_refused_and_the_same_joins() -> Result<()> {
    let branch = Branch::with_agents(Setup::slow(1, 4_000_000))?;
    let file = random_bytes(74, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let machine = branch.machine(0);
    let target = machine.target(&url);
    let begin = branch.wan_down();
    let mut first = machine.start_get(&url, &target, &[])?;
    branch.wait_for_wan(begin, 1_000_000)?;
    let status = machine.json(&["status"])?;
    assert_eq!(status["jobs"][0]["url"], *url, "{status}");
    assert_eq!(status["jobs"][0]["bytes"], FILE_BYTES);
    let elsewhere = branch.place("elsewhere.bin", &file)?;
    let other = machine.get_to(&elsewhere, &target, &[])?;
    let line = other.failed(6)?;
    println!("{line}");
    ensure!(line.contains("job 1"), "{line}");
    let same = machine.get(&url, &[])?;
    assert_eq!(same.done()?.job, Some(1));
    let first = Got::of(&first.wait(PATIENCE)?, target.clone())?;
    first.done()?;
    machine.ensure_file(&target, &file)
}

/// Flips a byte in every fourth mebibyte of each pack.
fn damage_packs(machine: &Machine) -> Result<usize> {
    let mut flipped = 0;
    for entry in fs::read_dir(machine.state_dir().join("store/packs"))? {
        let pack = File::options().read(true).write(true).open(entry?.path())?;
        let mut at = MEBIBYTE as u64 / 2;
        while at < pack.metadata()?.len() {
            let mut byte = [0];
            pack.read_exact_at(&mut byte, at)?;
            pack.write_all_at(&[byte[0] ^ 0xff], at)?;
            flipped += 1;
            at += 4 * MEBIBYTE as u64;
        }
    }
    ensure!(flipped > 0, "there is no pack to damage");
    Ok(flipped)
}

#[test]
fn a_damaged_pack_is_noticed_and_what_was_damaged_is_fetched_again() -> Result<()> {
    for stopped in [false, true] {
        let mut branch = Branch::with_agents(Setup::fast(2))?;
        let file = random_bytes(75, 16 * MEBIBYTE);
        let url = branch.publish("file.bin", &file)?;
        branch.machine(0).get(&url, &[])?.done()?;
        branch.machine(0).wait_for_cached(1)?;
        if stopped {
            branch.machine_mut(0).stop_agent()?;
        }
        let flipped = damage_packs(branch.machine(0))?;
        if stopped {
            branch.machine_mut(0).start_agent()?;
            branch.machine(1).wait_for_peer(branch.machine(0))?;
        }
        let got = branch.machine(1).get(&url, &[])?;
        branch.machine(1).ensure_file(&got.target, &file)?;
        let other = got.done()?.clone();
        println!(
            "{flipped} bytes flipped (agent stopped: {stopped}): the other machine had {} from the origin, {} from the peer",
            other.from_origin, other.from_peers
        );
        assert!(other.from_origin > 0 && other.from_peers > other.from_origin);
        // The machine itself gets the damaged segments anew, and has them for good.
        let machine = branch.machine(0);
        let again = machine.get_to(&url, &machine.home().join("again.bin"), &[])?;
        machine.ensure_file(&again.target, &file)?;
        let report = again.done()?;
        println!("the machine itself: {report:?}");
        assert!(report.from_store > 0 && report.from_store < report.bytes);
        machine.wait_for_cached(1)?;
        let third = machine.get_to(&url, &machine.home().join("third.bin"), &[])?;
        machine.ensure_file(&third.target, &file)?;
        assert_eq!(third.done()?.from_store, file.len() as u64);
    }
    Ok(())
}
