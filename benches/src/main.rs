//! `branchline-bench [NAME...]`: measures Branchline and prints figures, never a verdict.
//!
//! Each benchmark runs the real program in a lab of network namespaces, beside what it is compared
//! with: the two alternate in the same run, and a figure is the median. Goals are printed next to
//! figures. Whether a figure is good is for the reader to say: this machine may be busy.
//!
//! Everything is written below a folder of its own in `$BRANCHLINE_BENCH_DIR`, else
//! `~/.cache/branchline/bench`, and removed at the end; downloaded packages stay in its `packages`.

mod agents;
mod bare;
mod branch;
mod casync;
mod common_start;
mod compare;
mod disturbances;
mod figures;
mod jobs;
mod machine;
mod many_files;
mod memory;
mod never_slower;
mod packages;
mod profile;
mod publish;
mod rqbit;
mod small_file;
mod threads;
mod tools;
mod transfer;
mod versions;
mod work;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use branchline_core::PeerId;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Measures Branchline beside other programs and prints figures.
#[derive(Parser)]
#[command(name = "branchline-bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    selection: Selection,
    #[command(subcommand)]
    internal: Option<Internal>,
}

/// What to measure.
#[derive(Args)]
struct Selection {
    /// What to measure; nothing means all but `profile`.
    names: Vec<Name>,
    #[command(flatten)]
    extent: Extent,
}

/// How much to measure.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Runs of each; the figure is their median.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Divides all file sizes, to try the benchmarks out quickly.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    shrink: u64,
    /// Before each run, waits up to so many seconds for others to leave the machine alone.
    #[arg(long, default_value_t = 0)]
    wait_for_quiet: u64,
    /// The common start with so many machines alone.
    #[arg(long, value_parser = clap::value_parser!(u64).range(2..=64))]
    machines: Option<u64>,
}

impl Extent {
    /// Waits for others to leave the machine alone, as long as was allowed.
    pub(crate) fn wait_for_quiet(self) -> Result<()> {
        machine::wait_until_quiet(Duration::from_secs(self.wait_for_quiet))
    }

    /// A size in MiB, made smaller when only trying out.
    pub(crate) fn bytes(self, mebibytes: u64) -> u64 {
        (mebibytes << 20) / self.shrink
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// 1 GiB between two agents, beside nginx + curl, bare QUIC, sendme, rqbit
    Transfer,
    /// 2 GiB published, beside `openssl dgst -sha256` and `casync digest`
    Publish,
    /// Bytes fetched for version 2 by who has version 1, beside casync
    Versions,
    /// Resident memory, idle and while 4 GiB are fetched and served
    Memory,
    /// Four machines one after the other over a thin WAN
    Branch,
    /// 2, 4, 16 and 50 machines that start together over a thin WAN
    CommonStart,
    /// The same with 16 machines while something goes wrong
    Disturbances,
    /// A file of 100 kB in a quiet branch, beside curl
    SmallFile,
    /// A download while all peers are frozen, or lie, beside curl
    NeverSlower,
    /// 16 machines that start together, by curl, squid, BitTorrent and Branchline
    Compare,
    /// 10,000 jobs: submits, lists, memory, restart
    Jobs,
    /// A job of 1,000 small files over 40 ms, beside aria2
    ManyFiles,
    /// Where the CPU goes in a transfer, by thread and, with perf, by function
    Profile,
}

/// The two sides of a bare QUIC transfer, which `transfer` starts on two machines of the lab.
#[derive(Subcommand)]
enum Internal {
    #[command(hide = true)]
    BareServe { bytes: u64 },
    #[command(hide = true)]
    BareFetch {
        peer: PeerId,
        address: SocketAddr,
        bytes: u64,
    },
}

/// What runs when nothing is named.
const ALL: [Name; 12] = [
    Name::Transfer,
    Name::Publish,
    Name::Versions,
    Name::Memory,
    Name::Branch,
    Name::CommonStart,
    Name::Disturbances,
    Name::SmallFile,
    Name::NeverSlower,
    Name::Compare,
    Name::Jobs,
    Name::ManyFiles,
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.internal {
        None => measure(&arguments.selection),
        Some(Internal::BareServe { bytes }) => bare::serve(bytes),
        Some(Internal::BareFetch {
            peer,
            address,
            bytes,
        }) => bare::fetch(peer, address, bytes),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("branchline-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(selection: &Selection) -> Result<()> {
    let names = match selection.names.is_empty() {
        true => &ALL[..],
        false => &selection.names,
    };
    machine::print_headline()?;
    for name in names {
        println!("\n== {}\n", title(*name));
        machine::print_load()?;
        run(*name, selection.extent)?;
        machine::print_load()?;
    }
    Ok(())
}

fn run(name: Name, extent: Extent) -> Result<()> {
    match name {
        Name::Transfer => transfer::run(extent),
        Name::Publish => publish::run(extent),
        Name::Versions => versions::run(),
        Name::Memory => memory::run(extent),
        Name::Branch => branch::run(extent),
        Name::CommonStart => common_start::run(extent),
        Name::Disturbances => disturbances::run(extent),
        Name::SmallFile => small_file::run(extent),
        Name::NeverSlower => never_slower::run(extent),
        Name::Compare => compare::run(extent),
        Name::Jobs => jobs::run(extent),
        Name::ManyFiles => many_files::run(extent),
        Name::Profile => profile::run(extent),
    }
}

fn title(name: Name) -> &'static str {
    match name {
        Name::Transfer => "transfer: 1 GiB from one machine of the LAN to another",
        Name::Publish => "publish: the manifest of 2 GiB",
        Name::Versions => "versions: bytes fetched for version 2 by who has version 1",
        Name::Memory => "memory: resident, idle and while 4 GiB are fetched and served",
        Name::Branch => "branch: four machines one after the other, WAN of 20 Mbit/s and 40 ms",
        Name::CommonStart => "common start: nobody has the file, all are told at once",
        Name::Disturbances => "disturbances: a common start while something goes wrong",
        Name::SmallFile => "small file: 100 kB in a quiet branch",
        Name::NeverSlower => "never slower: all peers are frozen, or lie",
        Name::Compare => "compare: a common start by everyone who can",
        Name::Jobs => "jobs: ten thousand in one agent",
        Name::ManyFiles => "many files: a job of a thousand small ones over 40 ms",
        Name::Profile => "profile: where the CPU goes in a transfer",
    }
}
