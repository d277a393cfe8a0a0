//! Machines that are told at the same moment to fetch the same file, which none of them has.

use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use branchline_lab::{Agent, Lab, LabOptions, Origin, OriginOptions, WanProfile};

use crate::Extent;
use crate::agents::{self, Got};
use crate::figures::{mebibytes, print_goal};
use crate::work::{Work, ensure_same, generate, remove};

/// The file's name at the origin.
const FILE: &str = "file";

/// Sizes of the branch.
const MEMBERS: [usize; 3] = [2, 4, 16];

pub(crate) fn run(extent: Extent) -> Result<()> {
    let bytes = extent.bytes(64);
    for members in MEMBERS {
        let start = Start::prepare(members, bytes)?;
        let alone = start.one_curl()?;
        let outcome = start.all_at_once()?;
        outcome.print(members, bytes, alone);
    }
    Ok(())
}

/// A branch with an origin, and nobody has anything.
pub(crate) struct Start {
    pub(crate) lab: Lab,
    pub(crate) work: Work,
    origin: Origin,
    file: PathBuf,
    members: usize,
}

/// What came of a common start.
pub(crate) struct Outcome {
    pub(crate) wan_bytes: u64,
    pub(crate) seconds: Vec<f64>,
    pub(crate) from_origin: u64,
}

impl Start {
    pub(crate) fn prepare(members: usize, bytes: u64) -> Result<Self> {
        let lab = Lab::start(LabOptions {
            members,
            wan: WanProfile::branch_20mbit_40ms_rtt(),
            ..LabOptions::default()
        })?;
        let work = Work::new(3 * bytes * (members as u64 + 1))?;
        let www = work.folder("www")?;
        let file = www.join(FILE);
        generate(&file, bytes, "common start")?;
        agents::publish(&file)?;
        let origin = Origin::start(lab.origin(), &OriginOptions::serving(&www))?;
        Ok(Self {
            lab,
            work,
            origin,
            file,
            members,
        })
    }

    /// How long one machine takes that fetches the file alone.
    pub(crate) fn one_curl(&self) -> Result<f64> {
        let target = self.work.path("target-curl");
        let mut curl = std::process::Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--output"]);
        curl.arg(&target).arg(self.origin.url(FILE));
        let begun = Instant::now();
        self.lab.member(0).run(curl, agents::PATIENCE)?.success()?;
        let seconds = begun.elapsed().as_secs_f64();
        remove(&target)?;
        Ok(seconds)
    }

    /// Agents that know one another and hold nothing.
    pub(crate) fn agents(&self) -> Result<Vec<Agent>> {
        let hosts = self.lab.members().iter();
        let start = |host| agents::start(host, &self.work, branchline_lab::Host::name(host));
        let mut all = hosts.map(start).collect::<Result<Vec<_>>>()?;
        for agent in &mut all {
            agents::wait_for_peers(agent, self.members - 1)?;
        }
        self.work.settle()?;
        Ok(all)
    }

    fn all_at_once(&self) -> Result<Outcome> {
        let agents = self.agents()?;
        let before = self.lab.wan().counters().down.bytes;
        let begun = Instant::now();
        let got = thread::scope(|scope| {
            let fetch = |agent| scope.spawn(move || self.fetch(agent));
            let running: Vec<_> = agents.iter().map(fetch).collect();
            running
                .into_iter()
                .map(|one| one.join().ok().context("a thread broke")?)
                .collect::<Result<Vec<Got>>>()
        })?;
        let outcome = Outcome {
            wan_bytes: self.lab.wan().counters().down.bytes - before,
            seconds: got.iter().map(|one| one.seconds).collect(),
            from_origin: got.iter().map(|one| one.outcome.from_origin).sum(),
        };
        println!("  all done after {:.2} s", begun.elapsed().as_secs_f64());
        agents.into_iter().try_for_each(agents::end)?;
        Ok(outcome)
    }

    fn fetch(&self, agent: &Agent) -> Result<Got> {
        let target = self.target(agent);
        let got = agents::get(agent, &self.origin.url(FILE), &target)?;
        ensure_same(&self.file, &target)?;
        remove(&target)?;
        Ok(got)
    }

    fn target(&self, agent: &Agent) -> PathBuf {
        self.work.path(&format!("target-{}", agent.host().name()))
    }
}

impl Outcome {
    fn print(&self, members: usize, bytes: u64, alone: f64) {
        let first = self.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let last = self.seconds.iter().copied().fold(0.0, f64::max);
        println!(
            "\n{members} machines, {:.0} MiB; one curl alone: {alone:.2} s",
            mebibytes(bytes)
        );
        let share = |of: u64| of as f64 / bytes as f64;
        print_goal(
            "WAN bytes towards the branch / file",
            "<= 1.05",
            &format!("{:.3}", share(self.wan_bytes)),
        );
        print_goal(
            "bytes of the file from the origin, all machines / file",
            "-",
            &format!("{:.3}", share(self.from_origin)),
        );
        print_goal(
            "time of the first machine / curl alone",
            "-",
            &format!("{:.3} ({first:.2} s)", first / alone),
        );
        print_goal(
            "time of the last machine / curl alone",
            "<= 1.10",
            &format!("{:.3} ({last:.2} s)", last / alone),
        );
    }
}
