//! What people see of jobs.

use std::io::IsTerminal;

use branchline_agent::api::Failure;
use branchline_agent::api::jobs::{BySource, FileView, JobSummary, JobView};

use crate::output::{self, Column, bytes, printable, table};

/// Cells of a bar.
const BAR_CELLS: u64 = 20;

/// What a bar's cells are made of: from the origin, from peers, from the store, and what is missing.
const CELLS: [char; 4] = ['#', '=', '-', ' '];

pub(super) fn show(view: &JobView, json: bool) -> Result<(), Failure> {
    match json {
        true => output::print_json(view),
        false => output::print(&view_text(view)),
    }
}

fn view_text(view: &JobView) -> String {
    let JobSummary {
        id,
        name,
        state,
        priority,
        ..
    } = &view.summary;
    let named = match name.is_empty() {
        true => String::new(),
        false => format!(" ({name})"),
    };
    let head = format!("job {id}{named}: {state}, priority {}", priority.word());
    let mut lines = vec![head, format!("  {}", view.summary.why)];
    let files = view.file_page.iter();
    lines.extend(files.flat_map(|file| file_lines(file, is_seen())));
    let lines = lines.iter().map(|line| printable(line) + "\n");
    lines.collect()
}

fn file_lines(file: &FileView, bars: bool) -> Vec<String> {
    let length = file.length.map_or_else(|| "?".into(), bytes);
    let bar = match bars {
        true => bar(&file.sources, file.length) + " ",
        false => String::new(),
    };
    let line = format!(
        "  file {}: {}: {bar}{} of {length}; {} from the origin, {} from peers, {} from the store",
        file.index,
        file.state,
        bytes(file.bytes),
        bytes(file.sources.from_origin),
        bytes(file.sources.from_peers),
        bytes(file.sources.from_store),
    );
    let mut lines = vec![line, format!("    {} -> {}", file.url, file.path)];
    let waiting = file.waiting_for.iter();
    lines.extend(waiting.map(|what| format!("    waiting for {what}")));
    lines.extend(
        file.error
            .iter()
            .map(|error| format!("    {}", error.cause)),
    );
    lines.extend(file.notices.iter().map(|notice| format!("    {notice}")));
    lines
}

/// A table; with bars where somebody looks at it.
pub(super) fn list_text(jobs: &[JobSummary]) -> String {
    match jobs {
        [] => "there are no jobs\n".into(),
        jobs if is_seen() => table_with_bars(jobs),
        jobs => plain_table(jobs),
    }
}

fn is_seen() -> bool {
    std::io::stdout().is_terminal()
}

fn plain_table(jobs: &[JobSummary]) -> String {
    let columns = [
        Column::Right("ID"),
        Column::Left("STATE"),
        Column::Left("PRIORITY"),
        Column::Right("FILES"),
        Column::Right("HERE"),
        Column::Right("OF"),
        Column::Left("NAME"),
        Column::Left("WHY"),
    ];
    let row = |job: &JobSummary| {
        [
            job.id.to_string(),
            job.state.to_string(),
            job.priority.word().to_owned(),
            format!("{}/{}", job.files_done, job.files),
            bytes(job.bytes),
            job.length.map_or_else(|| "?".into(), bytes),
            job.name.clone(),
            job.why.clone(),
        ]
    };
    table(columns, &jobs.iter().map(row).collect::<Vec<_>>())
}

fn table_with_bars(jobs: &[JobSummary]) -> String {
    let columns = [
        Column::Right("ID"),
        Column::Left("STATE"),
        Column::Left(" # origin = peers - store"),
        Column::Right("HERE"),
        Column::Right("OF"),
        Column::Left("NAME"),
        Column::Left("WHY"),
    ];
    let row = |job: &JobSummary| {
        [
            job.id.to_string(),
            job.state.to_string(),
            bar(&job.sources, job.length),
            bytes(job.bytes),
            job.length.map_or_else(|| "?".into(), bytes),
            job.name.clone(),
            job.why.clone(),
        ]
    };
    table(columns, &jobs.iter().map(row).collect::<Vec<_>>())
}

/// `[####==--          ]`: what is here, by where it came from.
fn bar(sources: &BySource, length: Option<u64>) -> String {
    let ends = [
        sources.from_origin,
        sources.from_origin.saturating_add(sources.from_peers),
        sources.total(),
    ];
    let length = u128::from(length.unwrap_or(0).max(sources.total()).max(1));
    let cell = |at: u64| {
        let reached =
            |end: &u64| u128::from(*end) * u128::from(BAR_CELLS) > u128::from(at) * length;
        let kind = ends.iter().position(reached).unwrap_or(ends.len());
        CELLS[kind]
    };
    let cells: String = (0..BAR_CELLS).map(cell).collect();
    format!("[{cells}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(from_origin: u64, from_peers: u64, from_store: u64, length: Option<u64>) -> String {
        let sources = BySource {
            from_origin,
            from_peers,
            from_store,
        };
        bar(&sources, length)
    }

    #[test]
    fn a_bar_shows_what_came_from_where() {
        assert_eq!(of(0, 0, 0, None), "[                    ]");
        assert_eq!(of(5, 5, 5, Some(20)), "[#####=====-----     ]");
        assert_eq!(of(1, 0, 0, Some(1_000_000)), "[#                   ]");
        assert_eq!(of(0, 7, 0, None), "[====================]");
        assert_eq!(of(u64::MAX, 0, 0, Some(1)), "[####################]");
    }
}
