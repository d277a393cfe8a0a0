//! Machines that are told at the same moment to fetch the same file, which none of them has.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use branchline_core::swarm::first_in_rank;
use branchline_hashing::Manifest;
use branchline_lab::{
    Agent, Finished, Lab, LabOptions, Origin, OriginOptions, Process, WanProfile, branchline_binary,
};

use crate::Extent;
use crate::agents;
use crate::figures::{mebibytes, print_goal};
use crate::work::{Work, ensure_same, generate, remove};

/// The file's name at the origin.
pub(crate) const FILE: &str = "file";

/// Sizes of the branch, and of the file in MiB: the machine that this runs on has to carry all of it.
const BRANCHES: [(usize, u64); 4] = [(2, 64), (4, 64), (16, 64), (50, 16)];

/// Between two looks at the WAN's counter.
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub(crate) fn run(extent: Extent) -> Result<()> {
    if let Some(machines) = extent.machines {
        let known = BRANCHES
            .iter()
            .any(|(members, _)| *members as u64 == machines);
        ensure!(
            known,
            "--machines: 2, 4, 16 and 50 are measured, not {machines}"
        );
    }
    let chosen = |members| {
        extent
            .machines
            .is_none_or(|machines| machines == members as u64)
    };
    for (members, mebibytes) in BRANCHES {
        if !chosen(members) {
            continue;
        }
        let start = Start::prepare(members, extent.bytes(mebibytes))?;
        let alone = start.one_curl()?;
        let outcome = Scene::set(&start, members)?.play(|_| Ok(()))?;
        outcome.print(&start, alone);
    }
    Ok(())
}

/// A branch with an origin that has the file and its manifest, and nobody else has anything.
pub(crate) struct Start {
    pub(crate) lab: Lab,
    pub(crate) work: Work,
    pub(crate) members: usize,
    pub(crate) bytes: u64,
    pub(crate) file: PathBuf,
    origin: Origin,
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
        let start = Self {
            lab,
            work,
            members,
            bytes,
            file,
            origin,
        };
        (0..members).try_for_each(|index| start.clear_downloads(index))?;
        Ok(start)
    }

    pub(crate) fn url(&self) -> String {
        self.origin.url(FILE)
    }

    pub(crate) fn manifest(&self) -> PathBuf {
        self.file.with_added_extension("branchline")
    }

    /// What the origin serves.
    pub(crate) fn folder(&self) -> PathBuf {
        self.work.path("www")
    }

    /// Where a machine puts the file.
    pub(crate) fn target(&self, index: usize) -> PathBuf {
        self.downloads(index).join(FILE)
    }

    fn downloads(&self, index: usize) -> PathBuf {
        let name = self.lab.member(index).name();
        self.work.path(&format!("downloads-{name}"))
    }

    /// Removes what a machine has fetched, the partial file of a killed one too: the next download
    /// would go on with it.
    fn clear_downloads(&self, index: usize) -> Result<()> {
        remove(&self.downloads(index))?;
        Ok(std::fs::create_dir(self.downloads(index))?)
    }

    /// How long one machine takes that fetches the file alone.
    pub(crate) fn one_curl(&self) -> Result<f64> {
        let target = self.work.path("target-curl");
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--output"]);
        curl.arg(&target).arg(self.url());
        let begun = Instant::now();
        self.lab.member(0).run(curl, agents::PATIENCE)?.success()?;
        let seconds = begun.elapsed().as_secs_f64();
        remove(&target)?;
        Ok(seconds)
    }

    /// Agents on the first `count` machines that know one another and hold nothing.
    pub(crate) fn agents(&self, count: usize) -> Result<Vec<Agent>> {
        let hosts = self.lab.members().iter().take(count);
        let start = |host| agents::start(host, &self.work, branchline_lab::Host::name(host));
        let mut all = hosts.map(start).collect::<Result<Vec<_>>>()?;
        for agent in &mut all {
            agents::wait_for_peers(agent, count - 1)?;
        }
        Ok(all)
    }

    /// A peer on this machine that says it holds everything, and gives wrong bytes.
    pub(crate) fn liar(&self, index: usize) -> Result<Process> {
        let program = branchline_binary()?.with_file_name("branchline-bad-peer");
        ensure!(program.is_file(), "there is no {}", program.display());
        let mut command = Command::new(program);
        command
            .arg(self.work.path(&format!("liar-{index}")))
            .arg("wrong");
        command.arg(self.manifest());
        let liar = self.lab.member(index).spawn(command)?;
        liar.wait_for_line(agents::PATIENCE, |line| line == "ready")?;
        Ok(liar)
    }

    pub(crate) fn wan_bytes(&self) -> u64 {
        self.lab.wan().counters().down.bytes
    }
}

/// A common start about to be made, or under way.
pub(crate) struct Scene<'a> {
    pub(crate) start: &'a Start,
    /// Of the first machines; liars have the others.
    pub(crate) agents: Vec<Agent>,
    liars: Vec<Process>,
    /// Machines that were killed.
    dead: BTreeSet<usize>,
    /// Machines that send slowly.
    slow: Vec<usize>,
    wan_before: u64,
    /// What the agents had used when they were told to begin.
    cpu_before: Duration,
}

impl<'a> Scene<'a> {
    /// Agents on `honest` of the machines, liars on the others; everybody knows everybody.
    pub(crate) fn set(start: &'a Start, honest: usize) -> Result<Self> {
        let mut agents = start.agents(honest)?;
        let liars = (honest..start.members).map(|index| start.liar(index));
        let liars = liars.collect::<Result<Vec<_>>>()?;
        for agent in &mut agents {
            agents::wait_for_peers(agent, start.members - 1)?;
        }
        start.work.settle()?;
        Ok(Self {
            start,
            agents,
            liars,
            dead: BTreeSet::new(),
            slow: Vec::new(),
            wan_before: start.wan_bytes(),
            cpu_before: Duration::ZERO,
        })
    }

    /// Tells all agents to fetch the file, and lets `strike` do what it likes meanwhile.
    pub(crate) fn play(mut self, strike: impl FnOnce(&mut Self) -> Result<()>) -> Result<Outcome> {
        self.wan_before = self.start.wan_bytes();
        self.cpu_before = self.cpu()?;
        let url = self.start.url();
        let indexed = self.agents.iter().enumerate();
        let begin = |(index, agent)| agents::start_get(agent, &url, &self.start.target(index));
        let mut gets = indexed.map(begin).collect::<Result<Vec<_>>>()?;
        let ended = thread::scope(|scope| {
            let wait = |get: &'_ mut Process| get.wait(agents::PATIENCE);
            let waiting: Vec<_> = gets
                .iter_mut()
                .map(|get| scope.spawn(move || wait(get)))
                .collect();
            strike(&mut self)?;
            let join = |waiting: thread::ScopedJoinHandle<'_, _>| {
                waiting.join().ok().context("a thread broke")?
            };
            waiting.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        self.outcome(ended)
    }

    /// What all agents that run have used.
    fn cpu(&mut self) -> Result<Duration> {
        let living = self.agents.iter_mut().enumerate();
        let living = living.filter(|(index, _)| !self.dead.contains(index));
        living
            .map(|(_, agent)| Ok(agent.process().measured()?.cpu()))
            .sum()
    }

    fn outcome(mut self, ended: Vec<Finished>) -> Result<Outcome> {
        let mut outcome = Outcome {
            wan_bytes: self.start.wan_bytes() - self.wan_before,
            cpu: self.cpu()?.saturating_sub(self.cpu_before),
            seconds: Vec::new(),
            from_origin: 0,
        };
        for (index, finished) in ended.into_iter().enumerate() {
            let target = self.start.target(index);
            if !self.dead.contains(&index) {
                let seconds = finished.elapsed.as_secs_f64();
                let got = agents::got(finished, seconds)?;
                ensure_same(&self.start.file, &target)?;
                outcome.seconds.push(seconds);
                outcome.from_origin += got.outcome.from_origin;
            }
            self.start.clear_downloads(index)?;
        }
        drop(self.liars);
        for index in self.slow {
            let host = self.start.lab.member(index);
            host.sh("tc qdisc del dev lan0 root")?;
        }
        self.agents.into_iter().try_for_each(agents::end)?;
        Ok(outcome)
    }

    /// Waits until half of the file has come over the WAN.
    pub(crate) fn wait_for_half_time(&self) -> Result<()> {
        let deadline = Instant::now() + agents::PATIENCE;
        while self.start.wan_bytes() - self.wan_before < self.start.bytes / 2 {
            ensure!(Instant::now() < deadline, "half time never came");
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// SIGKILL for a machine's agent, and so for what was asked of it.
    pub(crate) fn kill(&mut self, index: usize) -> Result<()> {
        self.dead.insert(index);
        self.agents[index].kill().map(drop)
    }

    /// From now to the end a machine sends at 10 Mbit/s, to the origin and to peers; what it is sent
    /// comes as before.
    pub(crate) fn slow_down(&mut self, index: usize) -> Result<()> {
        let host = self.start.lab.member(index);
        host.sh("tc qdisc add dev lan0 root tbf rate 10mbit burst 20k latency 200ms")?;
        self.slow.push(index);
        Ok(())
    }

    /// The machine of the file's steward.
    pub(crate) fn steward(&self) -> Result<usize> {
        let ids = self.agents.iter().map(agents::peer_id);
        let ids = ids.collect::<Result<Vec<_>>>()?;
        let manifest = Manifest::decode(&std::fs::read(self.start.manifest())?)?;
        let swarm = manifest.content_key().swarm_id();
        let first = first_in_rank(&swarm, ids.iter().copied(), 1);
        let steward = ids.iter().position(|id| first.first() == Some(id));
        steward.context("no steward")
    }
}

/// What came of a common start.
pub(crate) struct Outcome {
    pub(crate) wan_bytes: u64,
    /// Of all agents that were not killed.
    cpu: Duration,
    /// Of each machine that was not killed.
    pub(crate) seconds: Vec<f64>,
    pub(crate) from_origin: u64,
}

impl Outcome {
    /// When the first machine was done.
    pub(crate) fn first(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// When the last machine was done.
    pub(crate) fn last(&self) -> f64 {
        self.seconds.iter().copied().fold(0.0, f64::max)
    }

    fn print(&self, start: &Start, alone: f64) {
        println!(
            "\n{} machines, {:.0} MiB; one curl alone: {alone:.2} s",
            start.members,
            mebibytes(start.bytes)
        );
        let share = |of: u64| of as f64 / start.bytes as f64;
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
        let (first, last) = (self.first(), self.last());
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
        let cpu = self.cpu.as_secs_f64();
        print_goal(
            "CPU of the agents, all machines",
            "-",
            &format!("{cpu:.2} s, {:.0} % of one core", 100.0 * cpu / last),
        );
    }
}
