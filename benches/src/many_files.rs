//! A job of a thousand small files over a line with 40 ms there and back, beside `aria2c -j16 -i list`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use branchline_lab::{Agent, Lab, LabOptions, Origin, OriginOptions, WanProfile};
use serde_json::{Value, json};

use crate::Extent;
use crate::agents::{self, PATIENCE};
use crate::figures::{median, print_goal, spread};
use crate::jobs::Control;
use crate::tools::find;
use crate::work::{Work, ensure_same, remove};

const FILES: usize = 1_000;

/// Sizes go up from this by equal steps to [`LARGEST_BYTES`]: packages of a distribution's index, parts of a web site.
const SMALLEST_BYTES: usize = 1 << 10;

const LARGEST_BYTES: usize = 32 << 10;

/// What a job has at a time, too.
const AT_A_TIME: &str = "-j16";

/// 100 Mbit/s, so that the line's length counts and not its width.
fn wan() -> WanProfile {
    WanProfile::symmetric(12_500_000, Duration::from_millis(20))
}

struct Files {
    lab: Lab,
    work: Work,
    urls: Vec<String>,
}

pub(crate) fn run(extent: Extent) -> Result<()> {
    let count = FILES / usize::try_from(extent.shrink)?;
    let (files, _origin) = prepare(count)?;
    let mut seconds = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..extent.rounds {
        extent.wait_for_quiet()?;
        if find("aria2c")?.is_some() {
            seconds[0].push(files.aria2()?);
        }
        seconds[1].push(files.job(false)?);
        seconds[2].push(files.job(true)?);
    }
    println!(
        "\n{count} files of {SMALLEST_BYTES} to {LARGEST_BYTES} bytes, medians of {}, s",
        extent.rounds
    );
    let names = [
        "aria2c -j16 -i list",
        "a job",
        "a job, files of known digest",
    ];
    for (name, taken) in names
        .iter()
        .zip(&seconds)
        .filter(|(_, taken)| !taken.is_empty())
    {
        let middle = median(taken.iter().copied());
        println!("  {name:<34} {middle:>8.2}  {:>16}", spread(taken));
    }
    if !seconds[0].is_empty() {
        let aria2 = median(seconds[0].iter().copied());
        let ratio = |taken: &[f64]| format!("{:.2}", median(taken.iter().copied()) / aria2);
        print_goal("a job / aria2c", "<= 1.2", &ratio(&seconds[1]));
        print_goal("the same with digests / aria2c", "-", &ratio(&seconds[2]));
    }
    Ok(())
}

fn prepare(count: usize) -> Result<(Files, Origin)> {
    let lab = Lab::start(LabOptions {
        members: 1,
        wan: wan(),
        ..LabOptions::default()
    })?;
    let work = Work::new((count * LARGEST_BYTES * 4) as u64)?;
    let www = work.folder("www")?;
    let step = (LARGEST_BYTES - SMALLEST_BYTES) / count.max(1);
    for number in 0..count {
        let byte = |at: usize| u8::try_from((at * 31 + number * 7 + at / 251) % 251).unwrap_or(0);
        let bytes: Vec<u8> = (0..SMALLEST_BYTES + number * step).map(byte).collect();
        fs::write(www.join(format!("f{number}")), bytes)?;
    }
    let options = OriginOptions {
        root: www,
        ..OriginOptions::default()
    };
    let origin = Origin::start(lab.origin(), &options)?;
    let urls = (0..count)
        .map(|number| origin.url(&format!("f{number}")))
        .collect();
    Ok((Files { lab, work, urls }, origin))
}

impl Files {
    fn aria2(&self) -> Result<f64> {
        let folder = self.fresh("by-aria2")?;
        let list = self.work.path("list");
        fs::write(&list, self.urls.join("\n"))?;
        let mut command = Command::new("aria2c");
        command
            .args(["--no-conf", "--quiet", AT_A_TIME, "-i"])
            .arg(&list);
        command.arg("--dir").arg(&folder);
        let ran = self.lab.member(0).run(command, PATIENCE)?.success()?;
        self.ensure_all(&folder)?;
        Ok(ran.elapsed.as_secs_f64())
    }

    fn job(&self, with_digests: bool) -> Result<f64> {
        let folder = self.fresh("by-job")?;
        let state_dir = self.work.path("state");
        remove(&state_dir)?;
        let agent = Agent::start(self.lab.member(0), "", &state_dir)?;
        let spec = self.spec(&folder, with_digests)?;
        let mut control = Control::open(&agent)?;
        let began = Instant::now();
        let job = control.ask("POST", "/v1/jobs", &spec)?;
        let route = format!("/v1/jobs/{}?limit=0", job["id"]);
        while control.ask("GET", &route, &Value::Null)?["state"] != "acknowledged" {
            ensure!(began.elapsed() < PATIENCE, "the job is not done: {job}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let taken = began.elapsed().as_secs_f64();
        agents::end(agent)?;
        self.ensure_all(&folder)?;
        Ok(taken)
    }

    fn spec(&self, folder: &Path, with_digests: bool) -> Result<Value> {
        let file = |(number, url): (usize, &String)| {
            let name = format!("f{number}");
            let mut file = json!({"url": url, "path": folder.join(&name)});
            if with_digests {
                let bytes = fs::read(self.work.path("www").join(&name))?;
                file["digest"] = json!({"blake3": blake3_hex(&bytes)});
            }
            Ok(file)
        };
        let files = self.urls.iter().enumerate().map(file);
        let files = files.collect::<Result<Vec<_>>>()?;
        Ok(json!({"settings": {"auto_complete": true}, "files": files, "start": true}))
    }

    fn fresh(&self, name: &str) -> Result<std::path::PathBuf> {
        let folder = self.work.path(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        self.work.folder(name).context("a folder")
    }

    fn ensure_all(&self, folder: &Path) -> Result<()> {
        for number in 0..self.urls.len() {
            let name = format!("f{number}");
            ensure_same(&self.work.path("www").join(&name), &folder.join(&name))?;
        }
        Ok(())
    }
}

/// A whole file's BLAKE3 is that of one segment with the same bytes.
fn blake3_hex(bytes: &[u8]) -> String {
    branchline_hashing::SegmentHash::of(bytes).to_string()
}
