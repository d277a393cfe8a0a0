//! A download while every other machine of the branch says that it has the file, and none gives it.

use anyhow::Result;
use branchline_lab::{Agent, Origin, OriginOptions, Process, Signal};

use crate::Extent;
use crate::agents;
use crate::common_start::{FILE, Start};
use crate::figures::{mebibytes, print_goal};
use crate::work::{ensure_same, remove};

/// Sizes of the file in MiB.
const SIZES: [u64; 2] = [8, 64];

/// The most others there are.
const OTHERS_MAX: usize = 3;

/// What is wrong with the others.
#[derive(Clone, Copy)]
enum Fault {
    /// They hold the file and are stopped when it is asked for.
    Frozen,
    /// They give wrong bytes.
    Lying,
}

const COMPANIES: [(&str, Fault, usize); 4] = [
    ("one other, frozen", Fault::Frozen, 1),
    ("three others, frozen", Fault::Frozen, OTHERS_MAX),
    ("one other, lying", Fault::Lying, 1),
    ("three others, lying", Fault::Lying, OTHERS_MAX),
];

/// The others, as long as they are needed.
enum Others {
    Frozen(Vec<Agent>),
    Lying(Vec<Process>),
}

pub(crate) fn run(extent: Extent) -> Result<()> {
    for size in SIZES {
        let start = Start::prepare(OTHERS_MAX + 1, extent.bytes(size))?;
        let alone = start.one_curl()?;
        println!(
            "\n{:.0} MiB; one curl alone: {alone:.2} s",
            mebibytes(start.bytes)
        );
        for (name, fault, others) in COMPANIES {
            let seconds = measure(&start, fault, others)?;
            let figure = format!("{:.3} ({seconds:.2} s)", seconds / alone);
            print_goal(&format!("{name}: time / curl alone"), "<= 1.10", &figure);
        }
    }
    Ok(())
}

fn measure(start: &Start, fault: Fault, count: usize) -> Result<f64> {
    let others = match fault {
        Fault::Frozen => Others::Frozen(holders(start, count)?),
        Fault::Lying => Others::Lying(
            (1..=count)
                .map(|index| start.liar(index))
                .collect::<Result<_>>()?,
        ),
    };
    let host = start.lab.member(0);
    let mut newcomer = agents::start(host, &start.work, host.name())?;
    agents::wait_for_peers(&mut newcomer, count)?;
    start.work.settle()?;
    let target = start.target(0);
    let got = match others {
        Others::Frozen(mut holders) => {
            for holder in &mut holders {
                holder.process().signal(Signal::STOP)?;
            }
            let got = agents::get(&newcomer, &start.url(), &target)?;
            holders.into_iter().try_for_each(agents::end)?;
            got
        }
        Others::Lying(liars) => {
            let got = agents::get(&newcomer, &start.url(), &target)?;
            drop(liars);
            got
        }
    };
    ensure_same(&start.file, &target)?;
    remove(&target)?;
    agents::end(newcomer)?;
    Ok(got.seconds)
}

/// Agents on the machines after the first whose stores hold the file. They fetched it from an nginx
/// in the LAN under another URL: what counts is the manifest.
fn holders(start: &Start, count: usize) -> Result<Vec<Agent>> {
    let nearby = Origin::start(start.lab.gateway(), &OriginOptions::serving(start.folder()))?;
    let mut all = Vec::new();
    for index in 1..=count {
        let host = start.lab.member(index);
        let mut holder = agents::start(host, &start.work, host.name())?;
        let target = start.target(index);
        agents::get(&holder, &nearby.url(FILE), &target)?;
        agents::wait_until_listed(&mut holder, start.bytes)?;
        remove(&target)?;
        all.push(holder);
    }
    Ok(all)
}
