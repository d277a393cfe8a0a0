//! Branchline itself: one agent that holds the file, and for each run a new one that does not.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use branchline_lab::{Agent, Host, Origin, OriginOptions};

use crate::agents;
use crate::transfer::{Contestant, FILE, Sample, Stage};
use crate::work::remove;

/// See the module's text.
pub(crate) struct Branchline<'a> {
    stage: &'a Stage,
    pub(crate) origin: Origin,
    pub(crate) holder: Agent,
    pub(crate) newcomer: Option<Agent>,
}

impl<'a> Branchline<'a> {
    /// Starts the origin and the agent that holds the file.
    pub(crate) fn new(stage: &'a Stage) -> Result<Self> {
        let origin = Origin::start(stage.lab.origin(), &OriginOptions::serving(&stage.www))?;
        let holder = holder(stage, stage.lab.member(0))?;
        Ok(Self {
            stage,
            origin,
            holder,
            newcomer: None,
        })
    }
}

/// An agent whose store holds the file, and nothing else does. It fetches it from an nginx on its own
/// machine, under another URL: what counts is the manifest.
fn holder(stage: &Stage, host: &Host) -> Result<Agent> {
    let nearby = Origin::start(host, &OriginOptions::serving(&stage.www))?;
    let mut agent = agents::start(host, &stage.work, "holder")?;
    let target = stage.work.path("holders-copy");
    agents::get(&agent, &nearby.url(FILE), &target)?;
    agents::wait_until_stored(&mut agent, stage.bytes)?;
    // Served from the store, and with a memory that has only served.
    remove(&target)?;
    agent.stop()?;
    agent.restart()?;
    Ok(agent)
}

impl Contestant for Branchline<'_> {
    fn name(&self) -> &'static str {
        "branchline"
    }

    fn prepare(&mut self) -> Result<()> {
        let host = self.stage.lab.member(1);
        let mut newcomer = agents::start(host, &self.stage.work, "newcomer")?;
        agents::wait_for_peers(&mut newcomer, 1)?;
        self.newcomer = Some(newcomer);
        Ok(())
    }

    fn run(&mut self, target: &Path) -> Result<Sample> {
        let newcomer = self.newcomer.as_mut().context("prepare makes it")?;
        let (receiver, sender) = (newcomer.process(), self.holder.process());
        let before = (receiver.measured()?, sender.measured()?);
        let got = agents::get(newcomer, &self.origin.url(FILE), target)?;
        let after = (
            newcomer.process().measured()?,
            self.holder.process().measured()?,
        );
        ensure!(
            got.outcome.from_peers == self.stage.bytes,
            "{} bytes came from the origin: this is no measurement of the LAN",
            got.outcome.from_origin
        );
        Ok(Sample {
            seconds: got.seconds,
            receiver: got
                .command_cpu
                .plus(crate::threads::Cpu::from(after.0).since(before.0.into())),
            sender: crate::threads::Cpu::from(after.1).since(before.1.into()),
            receiver_peak_bytes: after.0.peak_resident_bytes,
            sender_peak_bytes: after.1.peak_resident_bytes,
        })
    }

    /// The agent is putting the file into its store now; it is not needed for anything more.
    fn clean_up(&mut self) -> Result<()> {
        self.newcomer.take().map_or(Ok(()), agents::end)
    }
}
