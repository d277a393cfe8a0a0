//! A file of 100 kB that nobody in the branch has: what it costs that Branchline asks around first.

use std::thread;

use anyhow::{Context, Result};
use branchline_lab::Agent;

use crate::Extent;
use crate::agents;
use crate::common_start::{Scene, Start};
use crate::figures::{median, print_goal, spread};
use crate::work::{ensure_same, remove};

const MACHINES: usize = 4;

const BYTES: u64 = 100_000;

/// How the file is asked for. Gives the time of the last machine in seconds.
type Case = (&'static str, fn(&Start) -> Result<f64>);

const CASES: [Case; 4] = [
    ("curl", Start::one_curl),
    (
        "get by one of four that know one another",
        one_of_acquaintances,
    ),
    (
        "get by one of four that were started just now",
        one_of_strangers,
    ),
    ("get by all four at once, the last", all_at_once),
];

pub(crate) fn run(extent: Extent) -> Result<()> {
    let start = Start::prepare(MACHINES, BYTES)?;
    let mut milliseconds = vec![Vec::new(); CASES.len()];
    for _ in 0..extent.rounds {
        for ((_, case), taken) in CASES.iter().zip(&mut milliseconds) {
            start.work.settle()?;
            taken.push(1e3 * case(&start)?);
        }
    }
    println!("\n{BYTES} bytes, medians of {}, ms", extent.rounds);
    for ((name, _), taken) in CASES.iter().zip(&milliseconds) {
        let middle = median(taken.iter().copied());
        println!("  {name:<50} {middle:>8.0}  {:>16}", spread(taken));
    }
    let curl = median(milliseconds[0].iter().copied());
    for ((name, _), taken) in CASES.iter().zip(&milliseconds).skip(1) {
        let more = median(taken.iter().copied()) - curl;
        print_goal(
            &format!("{name}: more than curl"),
            "<= 50 ms",
            &format!("{more:.0} ms"),
        );
    }
    Ok(())
}

fn one_of_acquaintances(start: &Start) -> Result<f64> {
    get_and_end(start, start.agents(MACHINES)?)
}

/// All are started at the same moment, and the first is asked as soon as it answers.
fn one_of_strangers(start: &Start) -> Result<f64> {
    let hosts = start.lab.members();
    let agents = thread::scope(|scope| {
        let begin = |host| {
            scope.spawn(move || agents::start(host, &start.work, branchline_lab::Host::name(host)))
        };
        let starting: Vec<_> = hosts.iter().map(begin).collect();
        starting
            .into_iter()
            .map(|one| one.join().ok().context("a thread broke")?)
            .collect::<Result<Vec<Agent>>>()
    })?;
    get_and_end(start, agents)
}

fn get_and_end(start: &Start, agents: Vec<Agent>) -> Result<f64> {
    let target = start.target(0);
    let got = agents::get(&agents[0], &start.url(), &target)?;
    ensure_same(&start.file, &target)?;
    remove(&target)?;
    agents.into_iter().try_for_each(agents::end)?;
    Ok(got.seconds)
}

fn all_at_once(start: &Start) -> Result<f64> {
    Ok(Scene::set(start, MACHINES)?.play(|_| Ok(()))?.last())
}
