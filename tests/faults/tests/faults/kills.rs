//! An agent with jobs in all states is killed again and again, and nothing that it promised is lost.

use std::fs;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use branchline_branch_tests::{Branch, PATIENCE, Random, Setup, until};
use branchline_lab::Process;
use serde_json::{Value, json};

use crate::control::{Asked, Control};
use crate::ledger::{Ledger, STATES, Wish};
use crate::orders::{DIRECTIVES, Order, Wanted, open, prepare};
use crate::told::{Expected, Told};

/// How often it is killed, unless `BRANCHLINE_TEST_KILLS` says otherwise.
const KILLS: u64 = 200;

/// Slow enough that few jobs are enough for all kills.
const RATE_BYTES_PER_SEC: u64 = 2_000_000;

/// More than are ever asked for at this rate.
const ORDERS: usize = 112;

/// All kinds, and more than run at once.
const FIRST_JOBS: usize = 20;

/// When fewer than so many jobs have something to do, another one is asked for.
const BUSY_JOBS: usize = 7;

/// An agent that is killed before its start is over has lived so long; it is ready after 60 to 120 ms.
const STARTING_MICROS: Range<u64> = 0..120_000;

/// An agent that is killed so long after it was ready.
const RUNNING_MICROS: Range<u64> = 0..1_200_000;

/// An agent that is killed when so much has come over the WAN since its start, or after a time.
const BYTES: Range<u64> = 10_000..1_500_000;

const BYTES_TIME: Duration = Duration::from_millis(1_500);

/// What its owner waits between two requests.
const PAUSE_MICROS: Range<u64> = 0..60_000;

/// What one kill, or one cut of the WAN, may lose: what is on the line (20 ms of queue and 15 ms of delay until the origin
/// hears of it: 70 KB), of a segment on each connection of some ten files what has come (16 KB each), by a validator or
/// digest alone what came since the last note (50 ms: 100 KB), and what comes in one piece. What each start asks the
/// origin is in it as well. Measured 260 KB; without partial files it would be 520 KB.
const LOST_BYTES_MAX: f64 = 400_000.0;

/// TCP and IP headers.
const HEADERS: f64 = 1.045;

/// Where webhooks go, on a machine of their own.
const TOLD_PORT: u16 = 8_080;

/// Of so many posts one is refused after it was taken.
const REFUSED: &str = "7";

/// When an agent is killed.
#[derive(Debug)]
enum Moment {
    Starting(Duration),
    Running(Duration),
    Bytes(u64),
}

impl Moment {
    fn random(random: &mut Random) -> Self {
        match random.in_range(0..8) {
            0 | 1 => Self::Starting(Duration::from_micros(random.in_range(STARTING_MICROS))),
            2..5 => Self::Running(Duration::from_micros(random.in_range(RUNNING_MICROS))),
            _ => Self::Bytes(random.in_range(BYTES)),
        }
    }

    fn wait(&self, branch: &Branch, agent: &Process, begin: u64) -> Result<()> {
        match self {
            Self::Starting(time) => std::thread::sleep(*time),
            Self::Running(time) => {
                ready(agent)?;
                std::thread::sleep(*time);
            }
            Self::Bytes(bytes) => {
                ready(agent)?;
                let deadline = Instant::now() + BYTES_TIME;
                until("bytes over the WAN, or a time", || {
                    let reached = branch.wan_down() >= begin + bytes;
                    Ok((reached || Instant::now() > deadline).then_some(()))
                })?;
            }
        }
        Ok(())
    }
}

fn ready(agent: &Process) -> Result<()> {
    agent.wait_for_line(PATIENCE, |line| line == "ready")?;
    Ok(())
}

/// Whoever the jobs belong to: asks for this and that until the agent is gone.
struct Owner<'a> {
    control: Control,
    orders: &'a [Order],
    ledger: Ledger,
    random: Random,
}

/// Whether the agent still answers.
enum Life {
    Lives,
    Gone,
}

impl Owner<'_> {
    /// Looks whether all is as promised as soon as the agent answers, then does as he likes.
    fn live(&mut self, gone: &AtomicBool) -> Result<()> {
        loop {
            if matches!(self.look()?, Life::Lives) {
                break;
            }
            if gone.load(Ordering::Acquire) {
                return Ok(());
            }
            // The socket is there before anybody could tell.
            std::thread::sleep(Duration::from_millis(1));
        }
        while let Life::Lives = self.act()? {
            let pause = Duration::from_micros(self.random.in_range(PAUSE_MICROS));
            std::thread::sleep(pause);
        }
        ensure!(
            gone.load(Ordering::Acquire),
            "the agent left a request without an answer, and nobody had killed it"
        );
        Ok(())
    }

    fn look(&mut self) -> Result<Life> {
        match self.control.ask("GET", "/v1/jobs?limit=1000", None)? {
            Asked::Answered(200, page) => {
                self.ledger.check(&page, self.orders)?;
                Ok(Life::Lives)
            }
            Asked::Answered(status, answer) => bail!("{status}: {answer}"),
            Asked::Nobody | Asked::Unknown => Ok(Life::Gone),
        }
    }

    fn act(&mut self) -> Result<Life> {
        let jobs = self.ledger.jobs.iter();
        let live: Vec<(u64, String)> = jobs
            .filter(|(_, job)| !job.has_ended())
            .map(|(id, job)| (*id, job.state.clone()))
            .collect();
        let busy = live.iter().filter(|(_, state)| is_busy(state)).count();
        let draw = self.random.next_u64();
        if busy < BUSY_JOBS && draw.is_multiple_of(2) {
            return self.create();
        }
        let one = usize::try_from(draw % live.len().max(1) as u64)?;
        let Some((id, state)) = live.get(one) else {
            return self.look();
        };
        match (state.as_str(), self.random.in_range(0..24)) {
            (_, 0..6) => self.look(),
            (_, 6..9) => self.set_priority(*id),
            ("suspended" | "transient_error" | "error", 9..18) => {
                self.request(*id, "resume", Wish::Go)
            }
            ("transferred", 9..14) => self.request(*id, "complete", Wish::Complete),
            ("queued" | "connecting" | "transferring", 9..14) => {
                self.request(*id, "suspend", Wish::Rest)
            }
            (_, 23) => self.end(*id),
            _ => self.look(),
        }
    }

    /// Now and then a job is not wanted any more.
    fn end(&mut self, id: u64) -> Result<Life> {
        match self.random.in_range(0..12) {
            0 => self.request(id, "cancel", Wish::Cancel),
            _ => self.look(),
        }
    }

    fn create(&mut self) -> Result<Life> {
        let next = (0..self.orders.len()).find(|number| !self.ledger.has(*number));
        let number = next.context("more orders are needed")?;
        let order = &self.orders[number];
        let asked = self.control.ask("POST", "/v1/jobs", Some(&order.body))?;
        match self.answered(asked)? {
            Some(Ok(view)) => self.ledger.created(number, order, &view)?,
            Some(Err(refused)) => bail!("refused: {refused}"),
            None => {
                self.ledger.creation_in_doubt(number, order);
                return Ok(Life::Gone);
            }
        }
        Ok(Life::Lives)
    }

    fn request(&mut self, id: u64, what: &str, wish: Wish) -> Result<Life> {
        let route = format!("/v1/jobs/{id}/{what}");
        let asked = self.control.ask("POST", &route, None)?;
        match self.answered(asked)? {
            Some(Ok(view)) => self.ledger.promised(id, wish, &view)?,
            // It has gone on since it was seen.
            Some(Err(_)) => {}
            None => {
                self.ledger.wish_in_doubt(id, wish)?;
                return Ok(Life::Gone);
            }
        }
        Ok(Life::Lives)
    }

    fn set_priority(&mut self, id: u64) -> Result<Life> {
        let one = usize::try_from(self.random.in_range(0..4))?;
        let priority = ["foreground", "high", "normal", "low"][one];
        let change = json!({"priority": priority});
        let asked = (self.control).ask("PATCH", &format!("/v1/jobs/{id}"), Some(&change))?;
        match self.answered(asked)? {
            Some(Ok(view)) => self.ledger.priority_promised(id, priority, &view)?,
            Some(Err(_)) => {}
            None => {
                self.ledger.priority_in_doubt(id, priority)?;
                return Ok(Life::Gone);
            }
        }
        Ok(Life::Lives)
    }

    /// `None`: nobody answered. What a job's state does not allow is refused; nothing else may be.
    fn answered(&mut self, asked: Asked) -> Result<Option<Result<Value, Value>>> {
        match asked {
            Asked::Answered(200 | 201, view) => {
                self.ledger.answered += 1;
                Ok(Some(Ok(view)))
            }
            Asked::Answered(409, refused) => {
                self.ledger.answered += 1;
                Ok(Some(Err(refused)))
            }
            Asked::Answered(status, answer) => bail!("{status}: {answer}"),
            Asked::Nobody | Asked::Unknown => {
                self.ledger.unanswered += 1;
                Ok(None)
            }
        }
    }
}

fn is_busy(state: &str) -> bool {
    ["queued", "connecting", "transferring"].contains(&state)
}

/// The WAN, which is cut now and then.
#[derive(Default)]
struct Line {
    is_cut: bool,
    cuts: u64,
}

impl Line {
    fn change(&mut self, branch: &Branch, random: &mut Random) {
        if std::mem::take(&mut self.is_cut) {
            branch.wan().mend();
        } else if random.in_range(0..8) == 0 {
            branch.wan().cut();
            self.is_cut = true;
            self.cuts += 1;
        }
    }
}

/// Seed of all that is random, printed so that a run can be had again; the moments themselves also hang on the machine.
fn seed() -> Result<u64> {
    let seed = match std::env::var("BRANCHLINE_TEST_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => u64::from(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos()),
    };
    println!("BRANCHLINE_TEST_SEED={seed}");
    Ok(seed)
}

fn kills() -> Result<u64> {
    match std::env::var("BRANCHLINE_TEST_KILLS") {
        Ok(kills) => Ok(kills.parse()?),
        Err(_) => Ok(KILLS),
    }
}

/// Every third job has a webhook, every third a command, and the others tell nobody.
fn notify(branch: &Branch, number: usize) -> Value {
    let of = ["transferred", "error", "file_done"];
    let script = format!("exec cat >> '{}'", commands_told(branch).display());
    match number % 3 {
        0 => json!({"of": of, "webhook": format!("http://machine-2.test:{TOLD_PORT}/")}),
        1 => json!({"of": of, "command": ["/bin/sh", "-c", script]}),
        _ => json!({}),
    }
}

fn commands_told(branch: &Branch) -> std::path::PathBuf {
    branch.machine(0).home().join("told")
}

fn start_listener(branch: &Branch) -> Result<Process> {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_branchline-told"));
    command.args([&TOLD_PORT.to_string(), REFUSED]);
    let listener = branch.machine(1).host().spawn(command)?;
    ready(&listener)?;
    Ok(listener)
}

#[test]
fn an_agent_that_is_killed_two_hundred_times_keeps_every_promise() -> Result<()> {
    let setup = Setup::slow(2, RATE_BYTES_PER_SEC).origin(DIRECTIVES);
    let branch = Branch::start(setup)?;
    let listener = start_listener(&branch)?;
    let orders = prepare(&branch, ORDERS, |number| notify(&branch, number))?;
    let mut random = Random::new(seed()?);
    let mut owner = Owner {
        control: Control::of(branch.machine(0).state_dir()),
        orders: &orders,
        ledger: Ledger::default(),
        random: Random::new(random.next_u64()),
    };
    let (kills, begin, started) = (kills()?, branch.wan_down(), Instant::now());
    let mut line = Line::default();
    begin_jobs(&branch, &mut owner)?;
    for kill in 0..kills {
        line.change(&branch, &mut random);
        let moment = Moment::random(&mut random);
        let lived = live_once(&branch, &mut owner, &moment);
        lived.with_context(|| format!("life {kill}, killed at {moment:?}"))?;
    }
    branch.wan().mend();
    let killing = started.elapsed();
    let (states, answered) = (owner.ledger.states(), owner.ledger.answered);
    println!("{states:?}");
    let all_seen = STATES.iter().all(|state| states[state] > 0);
    ensure!(all_seen || kills < KILLS, "{states:?}");
    println!(
        "{kills} kills in {:.0} s, {} cuts of the WAN; {} jobs, {answered} requests answered, {} not",
        killing.as_secs_f64(),
        line.cuts,
        owner.ledger.jobs.len(),
        owner.ledger.unanswered
    );
    let _agent = finish(&branch, &mut owner)?;
    let useful = ensure_files(&branch, &owner)?;
    ensure_told(&branch, &listener, &owner)?;
    account(&branch, begin, useful, kills, line.cuts)?;
    println!("{:.0} s in all", started.elapsed().as_secs_f64());
    Ok(())
}

/// The first agent gets its jobs in peace, and is killed all the same.
fn begin_jobs(branch: &Branch, owner: &mut Owner) -> Result<()> {
    let mut agent = branch.machine(0).spawn_agent()?;
    ready(&agent)?;
    for _ in 0..FIRST_JOBS {
        ensure!(matches!(owner.create()?, Life::Lives), "no answer");
    }
    agent.kill().map(drop)
}

/// Starts an agent, lets its owner ask this and that, and kills it at that moment.
fn live_once(branch: &Branch, owner: &mut Owner, moment: &Moment) -> Result<()> {
    let begin = branch.wan_down();
    let mut agent = branch.machine(0).spawn_agent()?;
    let gone = AtomicBool::new(false);
    let killed = std::thread::scope(|scope| {
        let living = scope.spawn(|| owner.live(&gone));
        let waited = moment.wait(branch, &agent, begin);
        let lived = agent.is_running();
        gone.store(true, Ordering::Release);
        let killed = agent.kill();
        living.join().expect("the owner's thread")?;
        waited?;
        let killed = killed?;
        ensure!(lived, "it ended by itself: {}", killed.error_text());
        Ok(killed)
    })?;
    let log = killed.error_text();
    let bad = log
        .lines()
        .find(|l| l.contains("panicked") || l.contains("ERROR"));
    ensure!(bad.is_none(), "{log}");
    Ok(())
}

/// Everything that can end does, without further trouble.
fn finish(branch: &Branch, owner: &mut Owner) -> Result<Process> {
    open(branch, owner.orders)?;
    let agent = branch.machine(0).spawn_agent()?;
    ready(&agent)?;
    until("all jobs to end", || {
        ensure!(matches!(owner.look()?, Life::Lives), "no answer");
        let jobs = owner.ledger.jobs.iter();
        let left: Vec<(u64, String)> = jobs
            .filter(|(_, job)| !job.has_ended())
            .map(|(id, job)| (*id, job.state.clone()))
            .collect();
        for (id, state) in &left {
            match state.as_str() {
                "suspended" | "error" | "transient_error" => {
                    owner.request(*id, "resume", Wish::Go)?;
                }
                "transferred" => {
                    owner.request(*id, "complete", Wish::Complete)?;
                }
                _ => {}
            }
        }
        Ok(left.is_empty().then_some(()))
    })?;
    Ok(agent)
}

/// What is in place is right, nothing else is there. How many bytes had to be fetched, as far as anybody knows.
fn ensure_files(branch: &Branch, owner: &Owner) -> Result<u64> {
    let mut useful = 0;
    for (id, job) in &owner.ledger.jobs {
        let view = show(owner, *id)?;
        let files = view["file_page"].as_array().context("files")?;
        let mut placed = 0;
        for (file, wanted) in files.iter().zip(&owner.orders[job.order].files) {
            placed += ensure_file(branch, file, wanted).with_context(|| format!("{view}"))?;
        }
        let complete = files.iter().all(|file| file["state"] == "in_place");
        ensure!(complete || job.state == "cancelled", "{view}");
        useful += placed.max(job.bytes);
    }
    let targets = branch.machine(0).home().join("targets");
    until("all that is hidden to go", || {
        let mut hidden = Vec::new();
        for entry in fs::read_dir(&targets)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            hidden.extend(name.starts_with('.').then_some(name));
        }
        Ok(hidden.is_empty().then_some(()))
    })?;
    Ok(useful)
}

fn show(owner: &Owner, id: u64) -> Result<Value> {
    let route = format!("/v1/jobs/{id}");
    let (status, view) = owner.control.answer("GET", &route, None)?;
    ensure!(status == 200, "{view}");
    Ok(view)
}

fn ensure_file(branch: &Branch, file: &Value, wanted: &Wanted) -> Result<u64> {
    match file["state"].as_str() {
        Some("in_place") => {
            (branch.machine(0)).ensure_file(&wanted.target, &wanted.bytes())?;
            Ok(wanted.length as u64)
        }
        Some("dropped") => {
            let there = wanted.target.exists();
            ensure!(!there, "{} was dropped", wanted.target.display());
            Ok(0)
        }
        state => bail!("it has ended, and a file is {state:?}"),
    }
}

/// Everybody who was to be told has been told, at least once, and was warned when it may not have been the first time.
fn ensure_told(branch: &Branch, listener: &Process, owner: &Owner) -> Result<()> {
    let expected = expected(owner)?;
    let told = until("all notifications", || {
        let mut told = Told::default();
        told.read(&listener.stdout()["ready\n".len()..])?;
        told.read(&fs::read_to_string(commands_told(branch))?)?;
        let missing = told.first_missing(&expected);
        Ok((missing.is_none() && told.gaps().is_empty()).then_some(told))
    })?;
    told.ensure_repeats_say_so()?;
    let (notifications, repeats) = told.counts();
    println!("{notifications} notifications, {repeats} of them repeated");
    ensure!(repeats > 0, "nothing was ever told twice");
    Ok(())
}

fn expected(owner: &Owner) -> Result<Vec<Expected>> {
    let mut expected = Vec::new();
    for (id, job) in &owner.ledger.jobs {
        if job.order % 3 == 2 {
            continue;
        }
        let view = show(owner, *id)?;
        for file in view["file_page"].as_array().context("files")? {
            if file["state"] == "in_place" {
                expected.push((*id, "file_done", file["index"].as_u64()));
            }
        }
        let events = [("error", "error"), ("acknowledged", "transferred")];
        let seen = events
            .iter()
            .filter(|(state, _)| job.states.contains(*state));
        expected.extend(seen.map(|(_, event)| (*id, *event, None)));
    }
    Ok(expected)
}

fn account(branch: &Branch, begin: u64, useful: u64, kills: u64, cuts: u64) -> Result<()> {
    let wan = (branch.wan_down() - begin) as f64;
    let lost = (wan - useful as f64 * HEADERS).max(0.0) / (kills + cuts) as f64;
    println!(
        "{useful} bytes of files, {wan} over the WAN: {:.3} times; {lost:.0} with each kill",
        wan / useful as f64
    );
    ensure!(lost < LOST_BYTES_MAX, "{lost}");
    Ok(())
}
