//! A common start of sixteen machines while something goes wrong.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::Extent;
use crate::common_start::{Scene, Start};
use crate::figures::mebibytes;

const MACHINES: usize = 16;

/// A machine without its LAN: longer than the waits for peers and stewards.
const LAN_OUTAGE: Duration = Duration::from_secs(5);

/// The branch without its WAN.
const WAN_OUTAGE: Duration = Duration::from_secs(10);

/// What goes wrong.
struct Disturbance {
    name: &'static str,
    /// Machines that lie: they say that they hold everything and give wrong bytes.
    liars: usize,
    /// While nobody, or the machine that is last, can get anything.
    outage: Duration,
    strike: fn(&mut Scene) -> Result<()>,
}

const DISTURBANCES: [Disturbance; 7] = [
    Disturbance {
        name: "nothing",
        liars: 0,
        outage: Duration::ZERO,
        strike: |_| Ok(()),
    },
    Disturbance {
        name: "the steward is killed at half time",
        liars: 0,
        outage: Duration::ZERO,
        strike: kill_the_steward,
    },
    Disturbance {
        name: "a quarter of the machines is killed at half time",
        liars: 0,
        outage: Duration::ZERO,
        strike: kill_a_quarter,
    },
    Disturbance {
        name: "a machine's LAN link is cut at half time, for 5 s",
        liars: 0,
        outage: LAN_OUTAGE,
        strike: unplug_a_machine,
    },
    Disturbance {
        name: "the WAN is cut at half time, for 10 s",
        liars: 0,
        outage: WAN_OUTAGE,
        strike: cut_the_wan,
    },
    Disturbance {
        name: "a peer sends at 10 Mbit/s, 100 times slower than the LAN",
        liars: 0,
        outage: Duration::ZERO,
        strike: slow_a_machine_down,
    },
    Disturbance {
        name: "a peer lies",
        liars: 1,
        outage: Duration::ZERO,
        strike: |_| Ok(()),
    },
];

pub(crate) fn run(extent: Extent) -> Result<()> {
    let start = Start::prepare(MACHINES, extent.bytes(64))?;
    let alone = start.one_curl()?;
    println!(
        "\n{MACHINES} machines, {:.0} MiB; one curl alone: {alone:.2} s; each machine that was not killed has the right file\n\
         {:<60} {:>10} {:>16} {:>14}",
        mebibytes(start.bytes),
        "what goes wrong",
        "WAN / file",
        "from origin",
        "last machine"
    );
    println!(
        "{:<60} {:>10} {:>16} {:>14}",
        "  goals", "<= 1.15", "-", "<= 1.30"
    );
    for disturbance in &DISTURBANCES {
        measure(&start, alone, disturbance)?;
    }
    println!("last machine: its time less the outage / curl alone");
    Ok(())
}

fn measure(start: &Start, alone: f64, disturbance: &Disturbance) -> Result<()> {
    let honest = MACHINES - disturbance.liars;
    let outcome = Scene::set(start, honest)?.play(disturbance.strike)?;
    let share = |bytes: u64| bytes as f64 / start.bytes as f64;
    let last = outcome.last() - disturbance.outage.as_secs_f64();
    println!(
        "{:<60} {:>10.3} {:>16.3} {:>14.3}",
        disturbance.name,
        share(outcome.wan_bytes),
        share(outcome.from_origin),
        last / alone
    );
    Ok(())
}

fn kill_the_steward(scene: &mut Scene) -> Result<()> {
    let steward = scene.steward()?;
    scene.wait_for_half_time()?;
    scene.kill(steward)
}

/// The steward is none of them: that is a disturbance of its own.
fn kill_a_quarter(scene: &mut Scene) -> Result<()> {
    let steward = scene.steward()?;
    scene.wait_for_half_time()?;
    let others = (0..MACHINES).filter(|index| *index != steward);
    others
        .take(MACHINES / 4)
        .try_for_each(|index| scene.kill(index))
}

fn unplug_a_machine(scene: &mut Scene) -> Result<()> {
    let machine = usize::from(scene.steward()? == 0);
    scene.wait_for_half_time()?;
    scene.start.lab.unplug(machine)?;
    thread::sleep(LAN_OUTAGE);
    scene.start.lab.plug_in(machine)
}

fn cut_the_wan(scene: &mut Scene) -> Result<()> {
    scene.wait_for_half_time()?;
    scene.start.lab.wan().cut();
    thread::sleep(WAN_OUTAGE);
    scene.start.lab.wan().mend();
    Ok(())
}

fn slow_a_machine_down(scene: &mut Scene) -> Result<()> {
    let machine = usize::from(scene.steward()? == 0);
    scene.slow_down(machine)
}
