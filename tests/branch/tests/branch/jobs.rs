//! Jobs: they outlive agents, networks and servers, and each user's are his own.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use branchline_branch_tests::{
    Branch, Machine, PATIENCE, Random, Setup, random_bytes, sha256_hex, until,
};
use branchline_lab::{Finished, Process, Signal};
use serde_json::Value;

use crate::MEBIBYTE;

const RATE_BYTES_PER_SEC: u64 = 10_000_000;

const FILE_BYTES: usize = 24 * MEBIBYTE;

const KILLS: u64 = 6;

/// What one kill may lose: see `interrupted.rs`.
const LOST_BYTES_MAX: f64 = 1_000_000.0;

/// TCP and IP headers.
const HEADERS: f64 = 1.045;

/// Debian's `nobody` and `daemon`, two ordinary users; their groups have the same numbers.
const NOBODY: u32 = 65534;
const DAEMON: u32 = 1;

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
fn a_pulled_cable_is_no_network_and_nothing_is_tried_meanwhile() -> Result<()> {
    let branch = Branch::with_agents(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    let machine = branch.machine(0);
    let file = random_bytes(87, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let begin = branch.wan_down();
    create(machine, &url, &[])?;
    wait_for_bytes(machine, "1")?;
    branch.lab().unplug(0)?;
    wait_for_state(machine, "1", "transient_error")?;
    let job = machine.json(&["job", "show", "1"])?;
    let why = job["why"].as_str().context("a reason")?;
    ensure!(why.contains("network"), "{why}");
    branch.lab().plug_in(0)?;
    let job = machine.json(&["job", "wait", "1"])?;
    assert_eq!(job["state"], "acknowledged");
    machine.ensure_file(&machine.target(&url), &file)?;
    let wan = (branch.wan_down() - begin) as f64 / FILE_BYTES as f64;
    assert!(wan < 1.15, "{wan:.3} times the file crossed the WAN");
    Ok(())
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
    let disk = branch.machine(0).small_disk("disk", "size=48m")?;
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
    // Long records: what RocksDB has reserved for its log is used up sooner.
    let long = "long ".repeat(200);
    let asked = [
        "job",
        "create",
        &url,
        "-o",
        &target,
        "--description",
        &long,
        "--json",
    ];
    let mut taken = 0;
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

fn run_as_nobody(machine: &Machine, args: &[&str]) -> Result<Finished> {
    run_as(NOBODY, machine, args)
}

/// Runs `branchline` as another user.
fn run_as(user: u32, machine: &Machine, args: &[&str]) -> Result<Finished> {
    let command = machine.command()?;
    let mut as_user = Command::new("setpriv");
    as_user
        .args([format!("--reuid={user}"), format!("--regid={user}")])
        .args(["--clear-groups", "--"])
        .arg(command.get_program())
        .args(command.get_args())
        .args(args);
    machine.host().run(as_user, PATIENCE)
}

/// `user` sees no job of others, and cannot do anything to this one.
fn ensure_nothing_of_others(user: u32, machine: &Machine, id: &str) -> Result<()> {
    let list = run_as(user, machine, &["job", "list", "--json"])?.success()?;
    assert_eq!(String::from_utf8_lossy(&list.stdout).trim(), "[]");
    for request in ["show", "cancel", "resume", "suspend", "complete"] {
        let refused = run_as(user, machine, &["job", request, id])?;
        let said = refused.error_text();
        ensure!(said.contains("no such job"), "{said}");
    }
    Ok(())
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

    ensure_nothing_of_others(NOBODY, machine, "1")?;
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
    ensure_nothing_of_others(DAEMON, machine, "3")?;
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

/// Starts a `get`, and waits until some of it is here.
fn begun_get(branch: &Branch, url: &str, args: &[&str]) -> Result<Process> {
    let machine = branch.machine(0);
    let get = machine.start_get(url, &machine.target(url), args)?;
    branch.wait_for_wan(branch.wan_down(), FILE_BYTES as u64 / 4)?;
    Ok(get)
}

#[test]
fn a_get_that_is_left_goes_on_and_the_same_command_returns_to_it() -> Result<()> {
    let branch = Branch::with_agents(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    let machine = branch.machine(0);
    let file = random_bytes(77, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let begin = branch.wan_down();
    let mut get = begun_get(&branch, &url, &[])?;
    get.signal(Signal::INT)?;
    assert_eq!(get.wait(PATIENCE)?.status.code(), Some(130));
    branch.wait_for_wan(branch.wan_down(), FILE_BYTES as u64 / 4)?;
    let got = machine.get(&url, &[])?;
    let report = got.done()?;
    assert_eq!((report.job, report.bytes), (Some(1), FILE_BYTES as u64));
    let sources = report.from_origin + report.from_peers + report.from_store;
    assert_eq!(sources, report.bytes);
    machine.ensure_file(&machine.target(&url), &file)?;
    let wan = (branch.wan_down() - begin) as f64 / FILE_BYTES as f64;
    assert!(wan < 1.15, "{wan:.3} times the file crossed the WAN");
    Ok(())
}

#[test]
fn a_get_that_cancels_when_interrupted_leaves_nothing() -> Result<()> {
    let branch = Branch::with_agents(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    let machine = branch.machine(0);
    let url = branch.publish("file.bin", &random_bytes(78, FILE_BYTES))?;
    let before = names(machine)?;
    let mut get = begun_get(&branch, &url, &["--cancel-on-interrupt"])?;
    assert_ne!(names(machine)?, before, "nothing was begun");
    get.signal(Signal::TERM)?;
    let ended = get.wait(PATIENCE)?;
    assert_eq!(ended.status.code(), Some(130), "{}", ended.error_text());
    assert_eq!(state(machine, "1")?, "cancelled");
    until("what was fetched to be removed", || {
        Ok((names(machine)? == before).then_some(()))
    })
}

fn names(machine: &Machine) -> Result<BTreeSet<OsString>> {
    let entries = fs::read_dir(machine.home())?;
    entries.map(|entry| Ok(entry?.file_name())).collect()
}

#[test]
fn a_get_that_fails_leaves_a_job_only_if_something_of_the_file_is_here() -> Result<()> {
    let mut branch = Branch::with_agents(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    let nowhere = branch.url("nowhere.bin");
    let got = branch.machine(0).get(&nowhere, &[])?;
    let line = got.failed(3)?;
    ensure!(line.contains("404"), "{line}");
    assert_eq!(state(branch.machine(0), "1")?, "cancelled");

    let file = random_bytes(79, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let mut get = begun_get(&branch, &url, &[])?;
    let moved = branch.www("moved.bin");
    fs::rename(branch.www("file.bin"), &moved)?;
    fs::rename(branch.www("file.bin.branchline"), branch.www("moved"))?;
    branch.restart_origin()?;
    let ended = get.wait(PATIENCE)?;
    assert_eq!(ended.status.code(), Some(3), "{}", ended.error_text());
    let said = ended.error_text();
    ensure!(said.contains("job 2 keeps what is here"), "{said}");
    fs::rename(&moved, branch.www("file.bin"))?;
    fs::rename(branch.www("moved"), branch.www("file.bin.branchline"))?;
    let machine = branch.machine(0);
    let got = machine.get(&url, &[])?;
    let report = got.done()?;
    assert_eq!(report.job, Some(2));
    machine.ensure_file(&machine.target(&url), &file)
}

/// The parts of a file that `--range` names.
const RANGES: [(usize, usize); 3] = [(10, 99), (1_000_000, 9_999_999), (5, 5)];

#[test]
fn parts_of_a_file_are_joined_and_survive_a_kill() -> Result<()> {
    let mut branch = Branch::with_agents(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    let file = random_bytes(80, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let parts = RANGES
        .iter()
        .flat_map(|(first, last)| &file[*first..=*last]);
    let wanted: Vec<u8> = parts.copied().collect();
    let ranges = RANGES.map(|(first, last)| format!("{first}-{last}"));
    let digest = sha256_hex(&wanted);
    let mut args = vec!["--sha256", &digest];
    args.extend(ranges.iter().flat_map(|range| ["--range", range]));
    let begin = branch.wan_down();
    create(branch.machine(0), &url, &args)?;
    branch.wait_for_wan(begin, 4_000_000)?;
    branch.machine_mut(0).kill_agent()?;
    branch.machine_mut(0).start_agent()?;
    let machine = branch.machine(0);
    let job = machine.json(&["job", "wait", "1"])?;
    assert_eq!(job["bytes"], wanted.len());
    machine.ensure_file(&machine.target(&url), &wanted)?;
    let wan = (branch.wan_down() - begin) as f64 / wanted.len() as f64;
    assert!(wan < 1.2, "{wan:.3} times the parts crossed the WAN");

    let past = format!("{}-", FILE_BYTES);
    create(machine, &format!("{url}?2"), &["--range", &past])?;
    let ended = machine.run(&["job", "wait", "2"])?;
    assert_eq!(ended.status.code(), Some(3), "{}", ended.error_text());
    let said = ended.error_text();
    ensure!(said.contains(&FILE_BYTES.to_string()), "{said}");
    Ok(())
}

#[test]
fn a_job_reaches_its_origin_over_the_proxy_that_it_was_given() -> Result<()> {
    let branch = Branch::with_agents(Setup::fast(1))?;
    let machine = branch.machine(0);
    let file = random_bytes(81, MEBIBYTE);
    let url = branch.publish("file.bin", &file)?;
    // nginx answers for a host that nobody can find, to whoever takes it for the proxy.
    let hidden = "http://nowhere.invalid/file.bin";
    let proxy = url.strip_suffix("/file.bin").context("a URL")?;
    create(machine, hidden, &["--no-progress-timeout", "0s"])?;
    let ended = machine.run(&["job", "wait", "1"])?;
    assert_eq!(ended.status.code(), Some(4), "{}", ended.error_text());
    machine.json(&["job", "set", "1", "--proxy", proxy])?;
    machine.json(&["job", "resume", "1"])?;
    let job = machine.json(&["job", "wait", "1"])?;
    assert_eq!(job["state"], "acknowledged");
    machine.ensure_file(&machine.target(hidden), &file)
}

#[test]
fn a_command_is_told_of_each_file_and_of_the_end_and_a_webhook_too() -> Result<()> {
    let hook = "location = /hook { return 204; }";
    let mut branch = Branch::with_agents(Setup::fast(1).origin(hook))?;
    let machine = branch.machine(0);
    let url = branch.publish("file.bin", &random_bytes(82, MEBIBYTE))?;
    let told = machine.home().join("told");
    // In one write each, for both may be told at the same time.
    let command = format!("printf '%s\\n' \"$(cat)\" >> '{}'", told.display());
    let webhook = branch.url("hook");
    let args = ["--notify-command", &command, "--webhook", &webhook];
    let on = ["--notify-on", "file-done", "--notify-on", "transferred"];
    create(machine, &url, &[&args[..], &on[..]].concat())?;
    machine.json(&["job", "wait", "1"])?;
    let events = until("both to be told", || {
        let text = fs::read_to_string(&told).unwrap_or_default();
        let lines = text.lines().map(serde_json::from_str::<Value>);
        let events: Vec<Value> = lines.filter_map(Result::ok).collect();
        Ok((events.len() == 2).then_some(events))
    })?;
    let words: BTreeSet<_> = events.iter().map(|it| it["event"].to_string()).collect();
    assert_eq!(
        words,
        ["\"file_done\"", "\"transferred\""]
            .map(String::from)
            .into()
    );
    assert!(events.iter().all(|it| it["may_be_repeated"] == false));
    until("the webhook to be called", || {
        let requests = branch.requests_of(0)?;
        let posted = requests.iter().filter(|it| it.path == "/hook").count();
        Ok((posted == 2).then_some(()))
    })
}

/// What the shell is offered for the number of a job; `line` is what was typed.
fn offered(machine: &Machine, line: &[&str]) -> Result<String> {
    let program = machine.command()?;
    let mut command = Command::new(program.get_program());
    command
        .env("COMPLETE", "fish")
        .env("BRANCHLINE_STATE_DIR", machine.state_dir())
        .args(["--", "branchline"])
        .args(line);
    let ran = machine.host().run(command, PATIENCE)?.success()?;
    Ok(ran.text())
}

#[test]
fn shells_are_offered_the_numbers_of_jobs() -> Result<()> {
    let mut branch = Branch::with_agents(Setup::fast(1))?;
    let url = branch.publish("file.bin", &random_bytes(85, MEBIBYTE))?;
    create(branch.machine(0), &url, &["--suspended", "--name", "big"])?;
    create(branch.machine(0), &format!("{url}?2"), &["--suspended"])?;
    let all = offered(branch.machine(0), &["job", "resume", ""])?;
    ensure!(
        all.contains("1\tbig: suspended") && all.contains("2\tsuspended"),
        "{all}"
    );
    let second = offered(branch.machine(0), &["job", "show", "2"])?;
    ensure!(!second.contains("big") && second.contains('2'), "{second}");
    branch.machine_mut(0).stop_agent()?;
    let none = offered(branch.machine(0), &["job", "resume", ""])?;
    ensure!(!none.contains("suspended"), "{none}");
    Ok(())
}

/// Root's job into a folder on whose way another user has planted a link.
#[test]
fn a_planted_link_does_not_lead_roots_job_elsewhere() -> Result<()> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(());
    }
    let branch = Branch::with_agents(Setup::fast(1))?;
    let machine = branch.machine(0);
    let url = branch.publish("file.bin", &random_bytes(86, MEBIBYTE))?;
    let precious = machine.home().join("precious");
    fs::create_dir(&precious)?;
    let planted = machine.home().join("planted");
    std::os::unix::fs::symlink(&precious, &planted)?;
    std::os::unix::fs::lchown(&planted, Some(NOBODY), None)?;
    let target = planted.join("f").display().to_string();
    machine.json(&["job", "create", &url, "-o", &target])?;
    let waited = machine.run(&["job", "wait", "1"])?;
    assert_eq!(waited.status.code(), Some(6), "{}", waited.error_text());
    let said = waited.error_text();
    ensure!(said.contains("link"), "{said}");
    assert_eq!(fs::read_dir(&precious)?.count(), 0);
    Ok(())
}

#[test]
fn an_orderly_stop_is_no_failure_of_a_job_that_does_not_try_again() -> Result<()> {
    let mut branch = Branch::with_agents(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    let file = random_bytes(88, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    create(branch.machine(0), &url, &["--no-progress-timeout", "0s"])?;
    wait_for_bytes(branch.machine(0), "1")?;
    branch.machine_mut(0).stop_agent()?;
    branch.machine_mut(0).start_agent()?;
    let machine = branch.machine(0);
    assert_eq!(
        machine.json(&["job", "wait", "1"])?["state"],
        "acknowledged"
    );
    machine.ensure_file(&machine.target(&url), &file)
}

#[test]
fn a_get_takes_a_job_up_as_it_is() -> Result<()> {
    let guarded = "location = /file.bin { if ($http_x_token != \"hunter2\") { return 403; } }";
    let branch = Branch::with_agents(Setup::fast(1).origin(guarded))?;
    let machine = branch.machine(0);
    let file = random_bytes(89, MEBIBYTE);
    let url = branch.publish("file.bin", &file)?;
    let settings = ["--secret-header", "X-Token: hunter2", "--no-auto-complete"];
    create(machine, &url, &[&settings[..], &["--suspended"]].concat())?;
    let got = machine.get(&url, &[])?;
    assert_eq!(got.done()?.job, Some(1));
    machine.ensure_file(&machine.target(&url), &file)
}

#[test]
fn the_password_of_a_webhook_is_not_lost_by_another_change() -> Result<()> {
    let branch = Branch::with_agents(Setup::fast(1))?;
    let machine = branch.machine(0);
    let url = branch.url("file.bin");
    let hook = [
        "--webhook",
        "http://me:hunter2@127.0.0.1/hook",
        "--suspended",
    ];
    create(machine, &url, &hook)?;
    let refused = machine.run(&["job", "set", "1", "--notify-on", "error"])?;
    assert_eq!(refused.status.code(), Some(2), "{}", refused.error_text());
    let said = refused.error_text();
    ensure!(said.contains("--webhook"), "{said}");
    machine.json(&["job", "set", "1", "--name", "renamed"])?;
    Ok(())
}

/// What root's agent opens to others is for root to say.
#[test]
fn roots_agent_serves_whom_its_configuration_lets_in() -> Result<()> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(());
    }
    let mut branch = Branch::start(Setup::fast(1))?;
    let machine = branch.machine_mut(0);
    machine.configure("control.listen = \"127.0.0.1:4003\"")?;
    let ended = machine.spawn_agent()?.wait(PATIENCE)?;
    assert_eq!(ended.status.code(), Some(2), "{}", ended.error_text());
    let said = ended.error_text();
    ensure!(said.contains("below 1024"), "{said}");
    machine.configure("control.other_users = false")?;
    machine.start_agent()?;
    open_the_way(machine.state_dir())?;
    let refused = run_as_nobody(machine, &["job", "list"])?;
    assert_eq!(refused.status.code(), Some(7), "{}", refused.error_text());
    machine.json(&["job", "list"])?;
    Ok(())
}
