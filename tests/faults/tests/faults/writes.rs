//! The disk refuses: the journal, the cache, the file that is being fetched.
//!
//! What was answered as done is done, no file has a wrong byte, what went wrong is said, and when the disk works again
//! all goes on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use branchline_branch_tests::{Branch, Machine, PATIENCE, Setup, random_bytes, sha256_hex, until};
use branchline_lab::Process;
use serde_json::{Value, json};

use crate::MEBIBYTE;
use crate::control::{Asked, Control};
use crate::strace::{Fault, Faulty};

/// Jobs that are asked for while the journal's disk fails.
const JOBS: usize = 6;

const FILE_BYTES: usize = MEBIBYTE / 2;

/// RocksDB begins a new log when it is opened, and when one is full or has failed.
const LOGS: usize = 400;

/// The logs of RocksDB, to which all that the journal has goes first.
fn journal(machine: &Machine) -> Vec<PathBuf> {
    let index = machine.state_dir().join("store/index");
    (1..=LOGS)
        .map(|number| index.join(format!("{number:06}.log")))
        .collect()
}

fn packs(machine: &Machine) -> Vec<PathBuf> {
    let packs = machine.state_dir().join("store/packs");
    (1..=9)
        .map(|number| packs.join(format!("{number:08}.pack")))
        .collect()
}

/// One machine, and files for its jobs.
struct Trial {
    branch: Branch,
    files: Vec<(String, Vec<u8>)>,
}

impl Trial {
    fn start() -> Result<Self> {
        let branch = Branch::start(Setup::fast(1))?;
        let publish = |number: usize| {
            let bytes = random_bytes(number as u64, FILE_BYTES);
            let url = match number.is_multiple_of(2) {
                true => branch.publish(&format!("{number}.bin"), &bytes)?,
                false => branch.place(&format!("{number}.bin"), &bytes)?,
            };
            Ok((url, bytes))
        };
        let files = (0..JOBS).map(publish).collect::<Result<_>>()?;
        Ok(Self { branch, files })
    }

    fn machine(&self) -> &Machine {
        self.branch.machine(0)
    }

    /// From now on with an empty state directory, and a folder for targets, both of this name.
    fn begin(&mut self, name: &str) -> Result<()> {
        let home = self.machine().home().join(name);
        std::fs::create_dir(&home)?;
        let machine = self.branch.machine_mut(0);
        machine.set_state_dir(home.join("state"));
        Ok(())
    }

    fn control(&self) -> Control {
        Control::of(self.machine().state_dir())
    }

    fn target(&self, number: usize) -> PathBuf {
        let state_dir = self.machine().state_dir();
        state_dir.with_file_name(format!("{number}.bin"))
    }

    fn order(&self, number: usize) -> Result<Value> {
        let target = self.target(number);
        order(&self.files[number].0, &target)
    }

    fn ensure_file(&self, number: usize) -> Result<()> {
        let target = self.target(number);
        self.machine().ensure_file(&target, &self.files[number].1)
    }

    fn start_agent(&self) -> Result<Process> {
        let agent = self.machine().spawn_agent()?;
        agent.wait_for_line(PATIENCE, |line| line == "ready")?;
        Ok(agent)
    }
}

fn order(url: &str, target: &Path) -> Result<Value> {
    let path = target.to_str().context("UTF-8")?;
    Ok(json!({
        "settings": {"auto_complete": true}, "files": [{"url": url, "path": path}], "start": true
    }))
}

/// What became of a wish for a job.
enum Created {
    Taken(u64),
    /// The agent said why.
    Refused(String),
    /// It opens its state anew just now, or has ended.
    Nobody,
}

fn create(control: &Control, order: &Value) -> Result<Created> {
    match control.ask("POST", "/v1/jobs", Some(order))? {
        Asked::Answered(201, view) => Ok(Created::Taken(view["id"].as_u64().context("a number")?)),
        Asked::Answered(status, answer) => {
            let why = answer["detail"].as_str().context("a reason")?.to_owned();
            ensure!(status == 500 && answer["kind"] == "local_disk", "{answer}");
            let advice = ["check the disk", "free some space"];
            ensure!(advice.iter().any(|word| why.contains(word)), "{why}");
            ensure!(why.contains("journal"), "{why}");
            Ok(Created::Refused(why))
        }
        Asked::Nobody | Asked::Unknown => Ok(Created::Nobody),
    }
}

/// The jobs with these numbers, in their order; `None` while nobody answers.
fn jobs(control: &Control, ids: &[u64]) -> Result<Option<Vec<Value>>> {
    let Asked::Answered(200, page) = control.ask("GET", "/v1/jobs?limit=1000", None)? else {
        return Ok(None);
    };
    let rows = page["jobs"].as_array().context("a list")?;
    let row = |id: &u64| {
        let found = rows.iter().find(|row| row["id"] == *id).cloned();
        found.with_context(|| format!("job {id} was promised and is lost: {page}"))
    };
    ids.iter().map(row).collect::<Result<_>>().map(Some)
}

fn wait_until_done(control: &Control, ids: &[u64]) -> Result<()> {
    until(&format!("jobs {ids:?} to be done"), || {
        Ok(jobs(control, ids)?.filter(|jobs| are_done(jobs)).map(drop))
    })
}

fn are_done(jobs: &[Value]) -> bool {
    jobs.iter().all(|job| job["state"] == "acknowledged")
}

/// How asking went while the journal's disk failed.
#[derive(Debug, Default)]
struct Asking {
    ids: Vec<u64>,
    refused: usize,
    /// The agent found its state still broken when it opened it anew, and ended.
    ended: bool,
}

/// Asks for all jobs, again and again until each was taken.
fn create_all(trial: &Trial, faulty: &mut Faulty) -> Result<Asking> {
    let (control, mut asking) = (trial.control(), Asking::default());
    for number in 0..JOBS {
        let order = trial.order(number)?;
        let id = until("a job to be taken", || match create(&control, &order)? {
            Created::Taken(id) => Ok(Some(id)),
            Created::Refused(why) => {
                if asking.refused == 0 {
                    println!("{why}");
                }
                asking.refused += 1;
                Ok(None)
            }
            Created::Nobody => {
                asking.ended |= started_anew(trial, faulty)?;
                Ok(None)
            }
        })?;
        asking.ids.push(id);
    }
    Ok(asking)
}

/// An agent that has ended is started anew, as systemd does, and on a good disk. Whether it had.
fn started_anew(trial: &Trial, faulty: &mut Faulty) -> Result<bool> {
    if faulty.agent.is_running() {
        return Ok(false);
    }
    ensure_ended_well(&mut faulty.agent)?;
    faulty.agent = trial.start_agent()?;
    Ok(true)
}

/// It could not open its state, and said so.
fn ensure_ended_well(agent: &mut Process) -> Result<()> {
    let ended = agent.wait(PATIENCE)?;
    let log = ended.error_text();
    ensure!(ended.status.code() == Some(6), "{log}");
    let last = log.lines().last().unwrap_or_default();
    ensure!(
        last.starts_with("branchline: cannot open the index"),
        "{log}"
    );
    let why = ["Input/output error", "No space left"];
    ensure!(why.iter().any(|why| last.contains(why)), "{log}");
    Ok(())
}

/// Some writes of the journal fail, and later ones do not.
fn journal_fails_for_a_while(
    trial: &mut Trial,
    calls: &'static str,
    error: &'static str,
    when: &str,
) -> Result<Asking> {
    trial.begin(&format!("{calls}-{error}-{when}"))?;
    trial.start_agent()?.kill()?;
    let fault = Fault {
        paths: journal(trial.machine()),
        calls,
        error,
        when: when.to_owned(),
    };
    let mut faulty = fault.start(trial.machine())?;
    let mut asking = create_all(trial, &mut faulty)?;
    until("the jobs to be done", || {
        asking.ended |= started_anew(trial, &mut faulty)?;
        let jobs = jobs(&trial.control(), &asking.ids)?;
        Ok(jobs.filter(|jobs| are_done(jobs)).map(drop))
    })?;
    ensure!(faulty.hits()? > 0, "{fault:?} was never met");
    let log = faulty.agent.kill()?.error_text();
    let said = asking.ended || log.contains("the journal of jobs") || log.contains("not cached");
    ensure!(said && !log.contains("panicked"), "{log}");
    println!(
        "{calls} {error} {when}: {} refused, {}",
        asking.refused,
        if asking.ended {
            "ended"
        } else {
            "same process"
        }
    );
    let _agent = trial.start_agent()?;
    wait_until_done(&trial.control(), &asking.ids)?;
    (0..JOBS).try_for_each(|number| trial.ensure_file(number))?;
    Ok(asking)
}

#[test]
fn a_journal_that_could_not_be_written_goes_on_when_it_can() -> Result<()> {
    let mut trial = Trial::start()?;
    let (mut refused, mut ended, mut tried) = (0, 0, 0);
    for calls in ["write", "fdatasync"] {
        for when in ["2", "3", "4", "5"] {
            for error in ["EIO", "ENOSPC"] {
                let asking = journal_fails_for_a_while(&mut trial, calls, error, when);
                let asking = asking.with_context(|| format!("{calls} {error} {when}"))?;
                refused += asking.refused;
                ended += usize::from(asking.ended);
                tried += 1;
            }
        }
    }
    println!("{tried} faults: {refused} requests refused, {ended} agents ended");
    ensure!(refused > 0, "no request met a fault");
    ensure!(ended * 2 < tried, "few went on in the same process");
    Ok(())
}

/// RocksDB's own attempt to go on meets the second fault.
#[test]
fn a_journal_that_finds_no_room_twice_goes_on_in_the_same_process() -> Result<()> {
    let mut trial = Trial::start()?;
    let asking = journal_fails_for_a_while(&mut trial, "fdatasync", "ENOSPC", "2..3")?;
    ensure!(!asking.ended, "{asking:?}");
    Ok(())
}

#[test]
fn a_state_that_cannot_be_opened_is_said_in_one_line() -> Result<()> {
    let mut trial = Trial::start()?;
    for (calls, error) in [("write", "EIO"), ("fdatasync", "ENOSPC")] {
        trial.begin(&format!("{calls}-{error}"))?;
        let fault = Fault {
            paths: journal(trial.machine()),
            calls,
            error,
            when: "1".to_owned(),
        };
        ensure_ended_well(&mut fault.spawn(trial.machine())?.agent)?;
    }
    Ok(())
}

/// From some write on all fail, over the agent's attempts to open its state anew as well.
fn journal_fails_for_good(
    trial: &mut Trial,
    calls: &'static str,
    error: &'static str,
    when: &str,
) -> Result<()> {
    trial.begin(&format!("{calls}-{error}-{when}"))?;
    trial.start_agent()?.kill()?;
    let fault = Fault {
        paths: journal(trial.machine()),
        calls,
        error,
        when: when.to_owned(),
    };
    let mut faulty = fault.start(trial.machine())?;
    let (control, mut taken) = (trial.control(), Vec::new());
    // What was asked once more after a refusal may be there twice, so each target is asked for once.
    for number in 0..JOBS {
        if let Created::Taken(id) = create(&control, &trial.order(number)?)? {
            taken.push((number, id));
        }
    }
    let mut change = 0;
    until("the fault, again and again", || {
        // Each thread counts its own calls: some thread must come to the one that fails.
        change += 1;
        let change = json!({ "description": format!("number {change}") });
        control.ask("PATCH", "/v1/jobs/1", Some(&change))?;
        let ended = !faulty.agent.is_running();
        Ok((ended || faulty.hits()? >= 3).then_some(()))
    })?;
    match faulty.agent.is_running() {
        true => faulty.agent.kill().map(drop)?,
        false => ensure_ended_well(&mut faulty.agent)?,
    }
    println!("{calls} {error} {when}: {} taken before", taken.len());
    let _agent = trial.start_agent()?;
    let ids: Vec<u64> = taken.iter().map(|(_, id)| *id).collect();
    wait_until_done(&control, &ids)?;
    taken
        .iter()
        .try_for_each(|(number, _)| trial.ensure_file(*number))
}

#[test]
fn what_was_promised_before_the_disk_failed_for_good_is_there_on_a_good_one() -> Result<()> {
    let mut trial = Trial::start()?;
    for calls in ["write", "fdatasync"] {
        for error in ["EIO", "ENOSPC"] {
            for when in ["2+", "4+"] {
                let done = journal_fails_for_good(&mut trial, calls, error, when);
                done.with_context(|| format!("{calls} {error} {when}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_cache_that_cannot_be_written_costs_no_file_and_takes_the_next_one() -> Result<()> {
    let mut trial = Trial::start()?;
    for calls in ["pwrite64", "fdatasync"] {
        for error in ["EIO", "ENOSPC"] {
            cache_fails(&mut trial, calls, error).with_context(|| format!("{calls} {error}"))?;
        }
    }
    Ok(())
}

fn cache_fails(trial: &mut Trial, calls: &'static str, error: &'static str) -> Result<()> {
    trial.begin(&format!("{calls}-{error}"))?;
    let fault = Fault {
        paths: packs(trial.machine()),
        calls,
        error,
        when: "1".to_owned(),
    };
    let mut faulty = fault.start(trial.machine())?;
    let (machine, control) = (trial.machine(), trial.control());
    for (number, cached) in [(0, 0), (2, 1)] {
        let Created::Taken(id) = create(&control, &trial.order(number)?)? else {
            anyhow::bail!("the journal has no fault");
        };
        wait_until_done(&control, &[id])?;
        trial.ensure_file(number)?;
        until("the cache to fail", || {
            Ok((faulty.hits()? > 0).then_some(()))
        })?;
        machine.wait_for_cached(cached)?;
    }
    let again = machine.get_to(&trial.files[2].0, &machine.home().join("again"), &[])?;
    ensure!(again.done()?.from_store == FILE_BYTES as u64, "{again:?}");
    machine.ensure_file(&again.target, &trial.files[2].1)?;
    let log = faulty.agent.kill()?.error_text();
    ensure!(log.contains("a download was not cached"), "{log}");
    Ok(())
}

#[test]
fn a_file_that_cannot_be_written_is_its_jobs_error_and_nobody_elses() -> Result<()> {
    let mut trial = Trial::start()?;
    for (calls, when, failing) in [
        // For what is not described no room is reserved.
        ("fallocate", "1", &[1][..]),
        ("pwrite64,pwritev", "1", &[1, 2]),
        ("pwrite64,pwritev", "2", &[1, 2]),
        // One thread may finish both files, and each thread counts its own calls.
        ("fsync", "1+", &[1, 2]),
    ] {
        for error in ["EIO", "ENOSPC"] {
            let failed = file_fails(&mut trial, calls, error, when, failing);
            failed.with_context(|| format!("{calls} {error} {when}"))?;
        }
    }
    Ok(())
}

fn file_fails(
    trial: &mut Trial,
    calls: &'static str,
    error: &'static str,
    when: &str,
    failing: &[usize],
) -> Result<()> {
    trial.begin(&format!("{calls}-{error}-{when}"))?;
    let hidden = |id: &usize| {
        let name = format!("..{}.bin.branchline-job-{id}-0.branchline-part", id - 1);
        trial.target(0).with_file_name(name)
    };
    let fault = Fault {
        // The first has a manifest, the second none; the third job's is always a good one.
        paths: failing.iter().map(hidden).collect(),
        calls,
        error,
        when: when.to_owned(),
    };
    let mut faulty = fault.start(trial.machine())?;
    let control = trial.control();
    for number in 0..3 {
        let created = create(&control, &trial.order(number)?)?;
        ensure!(matches!(created, Created::Taken(id) if id == number as u64 + 1));
    }
    wait_until_done(&control, &[3])?;
    trial.ensure_file(2)?;
    for id in failing.iter().copied() {
        let why = wait_for_error(&control, id)?;
        println!("{calls} {error} {when}: {why}");
        ensure!(
            ["disk", "space"].iter().any(|word| why.contains(word)),
            "{why}"
        );
        ensure!(!trial.target(id - 1).exists(), "it has its name");
    }
    ensure!(faulty.hits()? >= failing.len(), "{fault:?}");
    faulty.agent.kill()?;
    let _agent = trial.start_agent()?;
    for id in failing.iter().copied() {
        wait_for_error(&control, id)?;
        resume(&control, id)?;
    }
    wait_until_done(&control, &[1, 2])?;
    (0..3).try_for_each(|number| trial.ensure_file(number))
}

/// Waits for a job's error, which must be the owner's to mend, and gives its cause.
fn wait_for_error(control: &Control, id: usize) -> Result<String> {
    until(&format!("job {id} to fail"), || {
        let (_, view) = control.answer("GET", &format!("/v1/jobs/{id}"), None)?;
        if view["state"] != "error" {
            ensure!(view["state"] != "acknowledged", "{view}");
            return Ok(None);
        }
        let error = &view["last_error"];
        ensure!(error["context"] == "local_file", "{view}");
        ensure!(error["transient"] == false, "{view}");
        Ok(error["cause"].as_str().map(str::to_owned))
    })
}

fn resume(control: &Control, id: usize) -> Result<()> {
    let (status, view) = control.answer("POST", &format!("/v1/jobs/{id}/resume"), None)?;
    ensure!(status == 200, "{view}");
    Ok(())
}

#[test]
fn a_full_disk_under_the_target_is_its_jobs_error_and_with_room_it_is_finished() -> Result<()> {
    for known in [true, false] {
        let branch = Branch::start(Setup::fast(1))?;
        let machine = branch.machine(0);
        let bytes = random_bytes(7, 8 * MEBIBYTE);
        let url = match known {
            true => branch.publish("file.bin", &bytes)?,
            false => branch.place("file.bin", &bytes)?,
        };
        let disk = machine.small_disk("disk", "size=5m")?;
        let mut agent = machine.spawn_agent()?;
        agent.wait_for_line(PATIENCE, |line| line == "ready")?;
        let control = Control::of(machine.state_dir());
        let target = disk.join("file.bin");
        let created = create(&control, &order(&url, &target)?)?;
        ensure!(matches!(created, Created::Taken(1)));
        let why = wait_for_error(&control, 1)?;
        println!("{why}");
        ensure!(why.contains("free some space"), "{why}");
        let room = format!("mount -o remount,size=64m '{}'", disk.display());
        machine.host().sh(&room)?;
        resume(&control, 1)?;
        wait_until_done(&control, &[1])?;
        ensure!(
            machine.sha256_there(&target)? == sha256_hex(&bytes),
            "other bytes"
        );
        let left = machine.host().sh(&format!("ls -A '{}'", disk.display()))?;
        ensure!(left.trim() == "file.bin", "{left}");
        agent.kill()?;
    }
    Ok(())
}
