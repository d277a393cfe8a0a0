//! `branchline-sim [--troubles] [--seeds N] [--svg PATH] [MEMBERS...]`: simulates branches of several sizes, or what goes
//! wrong in some of them, and prints figures beside goals, never a verdict.

use std::path::PathBuf;

use anyhow::{Context, Result};
use branchline_sim::table::{self, Row};
use branchline_sim::{Joins, plot, troubles_table};
use clap::Parser;

/// Simulates branches of several sizes and prints figures beside goals.
#[derive(Parser)]
#[command(name = "branchline-sim")]
struct Arguments {
    /// Numbers of members.
    #[arg(default_values_t = [16, 100, 1_000, 10_000])]
    members: Vec<u32>,
    /// Seeds of each: 1, 2, and so on. The table has the worst.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Prints the table of what goes wrong, of short files and of long segments instead.
    #[arg(long, conflicts_with_all = ["members", "seeds", "svg"])]
    troubles: bool,
    /// Draws the growth of the figures, for a common start, into this file.
    #[arg(long)]
    svg: Option<PathBuf>,
}

fn main() -> Result<()> {
    let Arguments {
        members,
        seeds,
        troubles,
        svg,
    } = Arguments::parse();
    if troubles {
        troubles_table(|line| println!("{line}"));
        return Ok(());
    }
    let seeds: Vec<u64> = (1..=seeds).collect();
    println!("{}", table::head());
    let rows = table::table(&members, &seeds, |row| println!("{}", table::line(row)));
    if let Some(path) = svg {
        let together = |row: &Row| row.joins == Joins::Together;
        let common_start: Vec<Row> = rows.into_iter().filter(together).collect();
        let picture = plot::growth(&common_start)?;
        std::fs::write(&path, picture)
            .with_context(|| format!("cannot write the plot to {}", path.display()))?;
    }
    Ok(())
}
