//! Jobs: they outlive agents, networks and servers, and each user's are his own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use branchline_branch_tests::{Branch, Machine, PATIENCE, Random, Setup, random_bytes, until};
use branchline_lab::Finished;
use serde_json::Value;

use crate::MEBIBYTE;
use crate::local_trouble::small_disk;

const RATE_BYTES_PER_SEC: u64 = 10_000_000;

const FILE_BYTES: usize = 24 * MEBIBYTE;

const KILLS: u64 = 6;

/// What one kill may lose: see `interrupted.rs`.
const LOST_BYTES_MAX: f64 = 1_000_000.0;

/// TCP and IP headers.
const HEADERS: f64 = 1.045;

/// Debian's `nobody`.
const NOBODY: u32 = 65534;

fn create(machine: &Machine, url: &str, args: &[&str]) -> Result<Value> {
    let target = machine.target(url);
    let target = target.to_str().context("a path in UTF-8")?;
    machine.json(&[&["job", "create", url, "-o", target], args].concat())
}

fn state(machine: &Machine, id: &str) -> Result<String> {
    let job = machine.json(&["job", "show", id])?;
    Ok(job["state"].as_str().context("a state")?.to_owned())
}

fn wait_for_state(machine: &Machine, id: &str, wanted: &str) -> Result<()> {
    until(&format!("job {id} to be {wanted}"), || {
        Ok((state(machine, id)? == wanted).then_some(()))
    })
}

fn wait_for_bytes(machine: &Machine, id: &str) -> Result<()> {
    until("the first bytes", || {
        let job = machine.json(&["job", "show", id])?;
        Ok(job["bytes"].as_u64().filter(|bytes| *bytes > 0).map(drop))
    })
}

#[test]
fn a_job_goes_on_by_itself_however_often_its_agent_is_killed() -> Result<()> {
    let mut branch = Branch::with_agents(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    let file = random_bytes(70, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let begin = branch.wan_down();
    create(branch.machine(0), &url, &[])?;
    let mut random = Random::new(7);
    for _ in 0..KILLS {
        let moment = random.in_range(1..FILE_BYTES as u64 / (KILLS + 1));
        branch.wait_for_wan(branch.wan_down(), moment)?;
        branch.machine_mut(0).kill_agent()?;
        branch.machine_mut(0).start_agent()?;
    }
    let machine = branch.machine(0);
    let job = machine.json(&["job", "wait", "1"])?;
    assert_eq!(job["state"], "acknowledged");
    machine.ensure_file(&machine.target(&url), &file)?;
    let wan = (branch.wan_down() - begin) as f64;
    let lost = (wan - FILE_BYTES as f64 * HEADERS).max(0.0) / KILLS as f64;
    println!("{KILLS} kills: {lost:.0} bytes lost with each");
    assert!(lost < LOST_BYTES_MAX, "{lost}");
    Ok(())
}

#[test]
fn without_a_network_a_job_waits_and_goes_on_when_it_is_back() -> Result<()> {
    let branch = Branch::with_agents(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    let machine = branch.machine(0);
    let file = random_bytes(71, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    create(machine, &url, &[])?;
    wait_for_bytes(machine, "1")?;
    let route = machine.host().sh("ip -o -4 route show default")?;
    let words: Vec<&str> = route.split_whitespace().collect();
    let after = |word| {
        let at = words.iter().position(|found| *found == word);
        at.and_then(|at| words.get(at + 1))
            .context("a default route")
    };
    let (gateway, device) = (after("via")?, after("dev")?);
    machine.host().sh(&format!("ip link set {device} down"))?;
    wait_for_state(machine, "1", "transient_error")?;
    let job = machine.json(&["job", "show", "1"])?;
    let why = job["why"].as_str().context("a reason")?;
    ensure!(why.contains("network"), "{why}");
    create(machine, &format!("{url}?again"), &["--name", "second"])?;
    assert_eq!(state(machine, "2")?, "queued");
    let up = format!("ip link set {device} up && ip route replace default via {gateway}");
    machine.host().sh(&up)?;
    let job = machine.json(&["job", "wait", "1"])?;
    assert_eq!(job["state"], "acknowledged");
    machine.ensure_file(&machine.target(&url), &file)
}

#[test]
fn a_suspended_job_keeps_what_it_has_and_its_server_may_move() -> Result<()> {
    let branch = Branch::with_agents(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    let machine = branch.machine(0);
    let file = random_bytes(72, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let moved = branch.publish("moved.bin", &file)?;
    let begin = branch.wan_down();
    create(machine, &url, &["--no-auto-complete"])?;
    branch.wait_for_wan(begin, FILE_BYTES as u64 / 2)?;
    machine.json(&["job", "suspend", "1"])?;
    assert_eq!(state(machine, "1")?, "suspended");
    machine.json(&["job", "set", "1", "--replace-prefix", &url, &moved])?;
    machine.json(&["job", "resume", "1"])?;
    let job = machine.json(&["job", "wait", "1"])?;
    assert_eq!(job["state"], "transferred");
    let target = machine.target(&url);
    assert!(!target.exists(), "it has its name before `complete`");
    machine.json(&["job", "complete", "1"])?;
    wait_for_state(machine, "1", "acknowledged")?;
    machine.ensure_file(&target, &file)?;
    let wan = (branch.wan_down() - begin) as f64 / FILE_BYTES as f64;
    assert!(wan < 1.15, "{wan:.3} times the file crossed the WAN");
    Ok(())
}

#[test]
fn what_cannot_work_is_an_error_that_says_so_and_can_be_mended() -> Result<()> {
    let branch = Branch::with_agents(Setup::fast(1))?;
    let machine = branch.machine(0);
    let file = random_bytes(73, MEBIBYTE);
    let url = branch.publish("file.bin", &file)?;
    let nowhere = url.replace("file.bin", "nowhere.bin");
    create(machine, &nowhere, &[])?;
    let ended = machine.run(&["job", "wait", "1"])?;
    assert_eq!(ended.status.code(), Some(3), "{}", ended.error_text());
    let job = machine.json(&["job", "show", "1"])?;
    assert_eq!(job["last_error"]["context"], "remote_file");
    assert_eq!(job["last_error"]["transient"], false);
    machine.json(&["job", "set", "1", "--replace-url", "0", &url])?;
    machine.json(&["job", "resume", "1"])?;
    assert_eq!(
        machine.json(&["job", "wait", "1"])?["state"],
        "acknowledged"
    );
    machine.ensure_file(&machine.target(&nowhere), &file)
}

#[test]
fn a_secret_is_sent_and_never_shown_nor_written_in_the_clear() -> Result<()> {
    let guarded =
        "location = /file.bin { if ($http_x_token != \"hunter2hunter2\") { return 403; } }";
    let mut branch = Branch::with_agents(Setup::fast(1).origin(guarded))?;
    let file = random_bytes(74, MEBIBYTE);
    let url = branch.publish("file.bin", &file)?;
    let secret = ["--secret-header", "X-Token: hunter2hunter2"];
    let job = create(branch.machine(0), &url, &secret)?;
    ensure!(!job.to_string().contains("hunter2"), "{job}");
    let done = branch.machine(0).json(&["job", "wait", "1"])?;
    assert_eq!(done["state"], "acknowledged");
    ensure!(!done.to_string().contains("hunter2"), "{done}");
    branch.machine_mut(0).stop_agent()?;
    ensure_nowhere(branch.machine(0).state_dir(), b"hunter2hunter2")
}

fn ensure_nowhere(folder: &Path, secret: &[u8]) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            ensure_nowhere(&path, secret)?;
        } else if path.is_file() {
            let bytes = fs::read(&path)?;
            let found = bytes.windows(secret.len()).any(|window| window == secret);
            ensure!(!found, "the secret is in {}", path.display());
        }
    }
    Ok(())
}

#[test]
fn without_room_for_the_journal_nothing_is_promised_and_with_room_it_goes_on() -> Result<()> {
    let mut branch = Branch::start(Setup::fast(1))?;
    let disk = small_disk(branch.machine(0), "disk", "size=48m")?;
    branch.machine_mut(0).set_state_dir(disk.join("state"));
    branch.machine_mut(0).start_agent()?;
    let machine = branch.machine(0);
    let file = random_bytes(76, MEBIBYTE);
    let url = branch.publish("file.bin", &file)?;
    let ballast = disk.join("ballast");
    let fill = format!(
        "dd if=/dev/zero of='{}' bs=4k 2>&1 || true",
        ballast.display()
    );
    machine.host().sh(&fill)?;
    let target = machine.target(&url).display().to_string();
    let asked = ["job", "create", &url, "-o", &target, "--json"];
    let mut taken = 0;
    // What RocksDB has reserved for its log is used up first.
    let refused = until("the disk to be full", || {
        let finished = machine.run(&asked)?;
        taken += u64::from(finished.status.success());
        Ok((!finished.status.success()).then_some(finished))
    })?;
    assert_eq!(refused.status.code(), Some(6), "{}", refused.error_text());
    ensure!(
        refused.error_text().contains("journal"),
        "{}",
        refused.error_text()
    );
    println!("{taken} taken before; {}", refused.error_text());
    machine.host().sh(&format!("rm '{}'", ballast.display()))?;
    let job = until("room", || {
        let finished = machine.run(&asked)?;
        Ok(finished.status.success().then_some(finished))
    })?;
    let job: Value = serde_json::from_slice(&job.stdout)?;
    let done = machine.json(&["job", "wait", &job["id"].to_string()])?;
    assert_eq!(done["state"], "acknowledged");
    machine.ensure_file(&machine.target(&url), &file)
}

/// Runs `branchline` as another user.
fn run_as_nobody(machine: &Machine, args: &[&str]) -> Result<Finished> {
    let command = machine.command()?;
    let mut as_nobody = Command::new("setpriv");
    as_nobody
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(command.get_program())
        .args(command.get_args())
        .args(args);
    machine.host().run(as_nobody, PATIENCE)
}

/// An ordinary user has nobody's rights but his own to give: what is shown here needs root.
#[test]
fn each_user_has_his_own_jobs_and_rights_and_no_others() -> Result<()> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(());
    }
    let branch = Branch::with_agents(Setup::fast(1))?;
    let machine = branch.machine(0);
    let file = random_bytes(75, MEBIBYTE);
    let url = branch.publish("file.bin", &file)?;
    open_the_way(machine.state_dir())?;
    create(machine, &url, &["--name", "of-root"])?;
    machine.json(&["job", "wait", "1"])?;

    let list = run_as_nobody(machine, &["job", "list", "--json"])?.success()?;
    assert_eq!(String::from_utf8_lossy(&list.stdout).trim(), "[]");
    for request in ["show", "cancel", "resume"] {
        let refused = run_as_nobody(machine, &["job", request, "1"])?;
        ensure!(
            refused.error_text().contains("no such job"),
            "{}",
            refused.error_text()
        );
    }
    let cache = run_as_nobody(machine, &["cache", "list"])?;
    assert_eq!(cache.status.code(), Some(7), "{}", cache.error_text());

    // In a folder of root's he gets nothing, in his own all he wants.
    let closed = machine.home().join("closed");
    fs::create_dir(&closed)?;
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755))?;
    let output = closed.join("f").display().to_string();
    run_as_nobody(machine, &["job", "create", &url, "-o", &output])?.success()?;
    let waited = run_as_nobody(machine, &["job", "wait", "2"])?;
    assert_eq!(waited.status.code(), Some(6), "{}", waited.error_text());
    assert_eq!(fs::read_dir(&closed)?.count(), 0);

    let own = machine.home().join("own");
    fs::create_dir(&own)?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o777))?;
    let output = own.join("f").display().to_string();
    run_as_nobody(
        machine,
        &["job", "create", &url, "-o", &output, "--no-auto-complete"],
    )?
    .success()?;
    run_as_nobody(machine, &["job", "wait", "3"])?.success()?;
    let target = own.join("f");
    // A link to what is root's, planted before the file gets its name, is replaced and not followed.
    let precious = machine.home().join("precious");
    fs::write(&precious, "root's")?;
    std::os::unix::fs::symlink(&precious, &target)?;
    run_as_nobody(machine, &["job", "complete", "3"])?.success()?;
    wait_for_state(machine, "3", "acknowledged")?;
    machine.ensure_file(&target, &file)?;
    let metadata = fs::symlink_metadata(&target)?;
    assert_eq!((metadata.uid(), metadata.is_file()), (NOBODY, true));
    assert_eq!(fs::read_to_string(&precious)?, "root's");
    Ok(())
}

/// The folders of tests are closed to others; a real state directory is not.
fn open_the_way(state_dir: &Path) -> Result<()> {
    let above = state_dir.ancestors().skip(1);
    for folder in
        above.take_while(|folder| *folder != Path::new("/tmp") && folder.parent().is_some())
    {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
