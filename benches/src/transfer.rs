//! 1 GiB from one machine of the LAN to another, to a new file, by everyone who can.
//!
//! Each round runs every contestant once, so that a ratio compares neighbours in time. Before each
//! run the disk has caught up with what was written before. Branchline's time, like curl's, is that of the command, from
//! its start to its end; Branchline has by then synced the file and its folder, so curl is measured
//! twice, alone and followed by `sync`.

mod branchline;
mod others;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use branchline_lab::{Lab, LabOptions, WanProfile};

use crate::Extent;
use crate::figures::{gigabytes, mebibytes, median, median_ratio, print_goal, spread};
use crate::machine::busy_seconds;
use crate::threads::Cpu;
use crate::tools::{NOT_INSTALLED, find};
use crate::work::{Work, generate, remove};
pub(crate) use branchline::Branchline;
use others::{BareQuic, Curl, Rqbit, Sendme};

/// The file's name at the origin.
pub(crate) const FILE: &str = "file";

/// One run of one contestant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) receiver: Cpu,
    pub(crate) sender: Cpu,
    pub(crate) receiver_peak_bytes: u64,
    pub(crate) sender_peak_bytes: u64,
}

/// Somebody who can bring the file from member 0 to `target` on member 1.
pub(crate) trait Contestant {
    fn name(&self) -> &'static str;
    /// What is done before the clock starts, for each run.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }
    fn run(&mut self, target: &Path) -> Result<Sample>;
    /// What is done after the clock has stopped.
    fn clean_up(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Where all of this takes place.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) work: Work,
    /// Served by nginx at the origin and on member 0, with its manifest beside it.
    pub(crate) www: PathBuf,
    pub(crate) bytes: u64,
}

impl Stage {
    /// Two machines, and a file that neither has. The WAN is thin, so that whoever took bytes from
    /// the origin would be slow; its delay is small, for start-up is not what is measured.
    pub(crate) fn new(lan_mtu: u16, bytes: u64) -> Result<Self> {
        let lab = Lab::start(LabOptions {
            members: 2,
            lan_mtu,
            wan: WanProfile::symmetric(2_500_000, std::time::Duration::from_millis(1)),
            ..LabOptions::default()
        })?;
        // The file, the sender's store and copy, the receiver's, one contestant's own store.
        let work = Work::new(6 * bytes)?;
        let www = work.folder("www")?;
        let file = www.join(FILE);
        generate(&file, bytes, "transfer")?;
        crate::agents::publish(&file)?;
        Ok(Self {
            lab,
            work,
            www,
            bytes,
        })
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.www.join(FILE)
    }
}

/// All runs of one contestant.
struct Row {
    name: &'static str,
    samples: Vec<Sample>,
    machine_seconds: Vec<f64>,
}

impl Row {
    fn seconds(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.seconds).collect()
    }

    fn cpu(&self, of: fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of))
    }
}

pub(crate) fn run(extent: Extent) -> Result<()> {
    for lan_mtu in [1500, 9000] {
        let bytes = extent.bytes(1024);
        let stage = Stage::new(lan_mtu, bytes)?;
        let rows = measure(&stage, extent)?;
        print_rows(lan_mtu, bytes, &rows);
        print_goals(lan_mtu, &rows)?;
    }
    Ok(())
}

fn measure(stage: &Stage, extent: Extent) -> Result<Vec<Row>> {
    // The holder's own nginx, on the same machine, has ended before curl's starts.
    let branchline = Branchline::new(stage)?;
    let [curl, curl_and_sync] = Curl::both(stage)?;
    let mut contestants: Vec<Box<dyn Contestant + '_>> = vec![
        Box::new(branchline),
        Box::new(curl),
        Box::new(curl_and_sync),
        Box::new(BareQuic::new(stage)?),
    ];
    for name in ["sendme", "rqbit"] {
        match find(name)? {
            Some(program) if name == "sendme" => {
                contestants.push(Box::new(Sendme::new(stage, program)?));
            }
            Some(program) => contestants.push(Box::new(Rqbit::new(stage, program)?)),
            None => println!("{name}: {NOT_INSTALLED}"),
        }
    }
    let mut rows: Vec<Row> = contestants.iter().map(|c| empty(c.name())).collect();
    for _ in 0..extent.rounds {
        for (contestant, row) in contestants.iter_mut().zip(&mut rows) {
            run_once(stage, extent, contestant.as_mut(), row)
                .with_context(|| contestant.name().to_owned())?;
        }
    }
    Ok(rows)
}

fn empty(name: &'static str) -> Row {
    Row {
        name,
        samples: Vec::new(),
        machine_seconds: Vec::new(),
    }
}

fn run_once(
    stage: &Stage,
    extent: Extent,
    contestant: &mut dyn Contestant,
    row: &mut Row,
) -> Result<()> {
    let target = stage.work.path("target");
    contestant.prepare()?;
    stage.work.settle()?;
    extent.wait_for_quiet()?;
    let busy = busy_seconds()?;
    let sample = contestant.run(&target)?;
    row.machine_seconds.push(busy_seconds()? - busy);
    row.samples.push(sample);
    contestant.clean_up()?;
    remove(&target)
}

fn print_rows(lan_mtu: u16, bytes: u64, rows: &[Row]) {
    let gigabytes = gigabytes(bytes);
    println!(
        "\nMTU {lan_mtu}, {:.0} MiB; CPU in seconds per GB, user + system; medians of {}; \
         all: what the machine spent, others included",
        mebibytes(bytes),
        rows.first().map_or(0, |row| row.samples.len())
    );
    println!(
        "  {:<14} {:>7} {:>11} {:>6} {:>19} {:>19} {:>8} {:>13}",
        "", "seconds", "from-to", "GB/s", "receiver", "sender", "all", "peak MiB r/s"
    );
    for row in rows {
        let seconds = median(row.seconds());
        let both = |user: fn(&Sample) -> f64, system: fn(&Sample) -> f64| {
            let (user, system) = (row.cpu(user) / gigabytes, row.cpu(system) / gigabytes);
            format!("{:.2} = {user:.2} + {system:.2}", user + system)
        };
        println!(
            "  {:<14} {:>7.2} {:>11} {:>6.2} {:>19} {:>19} {:>8.2} {:>7.0} {:>5.0}",
            row.name,
            seconds,
            spread(&row.seconds()),
            gigabytes / seconds,
            both(|s| s.receiver.user_seconds, |s| s.receiver.system_seconds),
            both(|s| s.sender.user_seconds, |s| s.sender.system_seconds),
            median(row.machine_seconds.iter().copied()) / gigabytes,
            row.cpu(|s| mebibytes(s.receiver_peak_bytes)),
            row.cpu(|s| mebibytes(s.sender_peak_bytes)),
        );
    }
}

fn print_goals(lan_mtu: u16, rows: &[Row]) -> Result<()> {
    let ours = rows.first().context("Branchline did not run")?;
    println!();
    for other in &rows[1..] {
        let faster = median_ratio(&other.seconds(), &ours.seconds());
        let what = format!("MTU {lan_mtu}: speed against {}", other.name);
        print_goal(&what, goal(other.name, lan_mtu), &format!("{faster:.2}"));
    }
    for other in rows
        .iter()
        .filter(|row| ["sendme", "rqbit"].contains(&row.name))
    {
        let cpu = |row: &Row| row.cpu(|s| s.receiver.seconds() + s.sender.seconds());
        let what = format!("MTU {lan_mtu}: CPU of both sides against {}", other.name);
        print_goal(&what, "<= 0.5", &format!("{:.2}", cpu(ours) / cpu(other)));
    }
    Ok(())
}

fn goal(other: &str, lan_mtu: u16) -> &'static str {
    match (other, lan_mtu) {
        ("nginx + curl", 1500) => ">= 0.8",
        ("nginx + curl", _) => ">= 1.0",
        ("bare quinn", _) => ">= 0.7",
        ("sendme" | "rqbit", _) => "> 1",
        _ => "-",
    }
}
