//! Ten thousand jobs in one agent: how fast they are taken, listed and taken up again, and what they weigh.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use branchline_lab::{Agent, Lab, LabOptions};
use serde_json::{Value, json};

use crate::Extent;
use crate::agents;
use crate::figures::{mebibytes, median, print_goal};
use crate::memory;
use crate::work::{Work, remove};

const JOBS: usize = 10_000;

/// Jobs of one request: some 25 KB.
const BATCH: usize = 100;

/// Lists that are timed.
const LISTS: usize = 50;

/// The control API, over one connection.
pub(crate) struct Control {
    stream: BufReader<UnixStream>,
}

pub(crate) fn run(extent: Extent) -> Result<()> {
    let jobs = JOBS / usize::try_from(extent.shrink)?;
    let lab = Lab::start(LabOptions {
        members: 1,
        ..LabOptions::default()
    })?;
    // Nothing answers, so that all but a few wait for their turn.
    lab.wan().cut();
    let work = Work::new(64 << 20)?;
    let state_dir = work.path("state");
    remove(&state_dir)?;
    let mut agent = Agent::start(lab.member(0), "", &state_dir)?;
    let url = format!("http://{}/f", lab.origin().address());
    let mut control = Control::open(&agent)?;

    let began = Instant::now();
    for first in (0..jobs).step_by(BATCH) {
        let specs: Vec<Value> = (first..jobs.min(first + BATCH))
            .map(|number| spec(&url, &work, number))
            .collect();
        let created = control.ask("POST", "/v1/jobs/batch", &json!(specs))?;
        ensure!(
            created
                .as_array()
                .is_some_and(|all| all.len() == specs.len()),
            "{created}"
        );
    }
    let rate = jobs as f64 / began.elapsed().as_secs_f64();

    let one_by_one = time_each(LISTS, |number| {
        control
            .ask("POST", "/v1/jobs", &spec(&url, &work, jobs + number))
            .map(drop)
    })?;
    let lists = time_each(LISTS, |number| {
        let after = number * jobs / LISTS;
        let page = control.ask(
            "GET",
            &format!("/v1/jobs?limit=100&after={after}"),
            &Value::Null,
        )?;
        ensure!(page["jobs"].is_array(), "{page}");
        Ok(())
    })?;
    let changes = time_each(LISTS, |number| {
        let route = format!("/v1/jobs/{}/suspend", 100 + number);
        control.ask("POST", &route, &Value::Null).map(drop)
    })?;
    let resident = memory::resident_bytes(&mut agent)?;
    agent.process().terminate(agents::PATIENCE)?.success()?;
    let began = Instant::now();
    let agent = Agent::start(lab.member(0), "", &state_dir)?;
    let restart = began.elapsed().as_secs_f64();
    let mut control = Control::open(&agent)?;
    let kept = control.ask("GET", &format!("/v1/jobs/{jobs}"), &Value::Null)?;
    ensure!(kept["id"] == json!(jobs), "the last job is gone: {kept}");
    agents::end(agent)?;

    println!("\n{jobs} jobs");
    let each = format!("submits, {BATCH} a request, each durable");
    print_goal(&each, ">= 1000/s", &format!("{rate:.0}/s"));
    print_goal("a submit alone", "-", &format!("{one_by_one:.1} ms"));
    print_goal("a list of 100", "<= 5 ms", &format!("{lists:.1} ms"));
    print_goal("a change of state", "-", &format!("{changes:.1} ms"));
    let resident = format!("{:.0} MiB", mebibytes(resident));
    print_goal("resident memory", "<= 128 MiB", &resident);
    print_goal(
        "restart, until it serves",
        "<= 2 s",
        &format!("{restart:.2} s"),
    );
    Ok(())
}

fn spec(url: &str, work: &Work, number: usize) -> Value {
    json!({
        "settings": {"name": format!("job number {number}"), "priority": "low", "auto_complete": true},
        "files": [{"url": url, "path": work.path(&format!("file-{number}"))}],
        "start": true,
    })
}

/// The median time in milliseconds.
fn time_each(count: usize, mut work: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut taken = Vec::new();
    for number in 0..count {
        let began = Instant::now();
        work(number)?;
        taken.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(taken))
}

impl Control {
    pub(crate) fn open(agent: &Agent) -> Result<Self> {
        let socket = agent.state_dir().join("control.sock");
        let stream = UnixStream::connect(&socket).context("the control socket")?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// The JSON of a good answer.
    pub(crate) fn ask(&mut self, method: &str, route: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let head = format!(
            "{method} {route} HTTP/1.1\r\nHost: l\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.stream.get_mut().write_all((head + &body).as_bytes())?;
        let mut status = String::new();
        self.stream.read_line(&mut status)?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse()?;
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        ensure!(
            status.contains(" 200 ") || status.contains(" 201 "),
            "{method} {route}: {status}{}",
            String::from_utf8_lossy(&answer)
        );
        Ok(serde_json::from_slice(&answer)?)
    }
}
