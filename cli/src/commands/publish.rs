//! `branchline publish`

use branchline_agent::api::{Failure, FailureKind};
use branchline_publish::{
    Progress, PublishError, PublishFileError, PublishOptions, PublishReport, publish,
};
use serde::Serialize;

use super::blocking;
use crate::args::PublishArgs;
use crate::output::{self, Bar};

/// Writes the manifests, and fails at the end if some could not be.
pub(super) async fn run(args: PublishArgs) -> Result<(), Failure> {
    let PublishArgs { paths, json } = args;
    let bar = Bar::new();
    let sink = bar.clone();
    let work = move || {
        publish(&paths, &PublishOptions::default(), &|step| {
            show(&sink, step)
        })
    };
    let report = blocking("publish", work)
        .await?
        .map_err(|error| unusable(&error))?;
    drop(bar);
    for error in &report.failed {
        output::complain(&format!("publish: {error}"));
    }
    match json {
        true => output::print_json(&Summary::of(&report))?,
        false => output::print(&text(&report))?,
    }
    match report.failed.len() {
        0 => Ok(()),
        failed => Err(incomplete(failed, &report)),
    }
}

fn show(bar: &Bar, step: Progress<'_>) {
    match step {
        Progress::Found { files, bytes } => {
            bar.expect(bytes);
            bar.say(&format!("{files} files"));
        }
        Progress::Advanced { bytes } => bar.advance(bytes),
        Progress::Finished { path, .. } => bar.say(&path.display().to_string()),
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Summary {
    written: u64,
    unchanged: u64,
    stale: u64,
    failed: Vec<String>,
}

impl Summary {
    fn of(report: &PublishReport) -> Self {
        let PublishReport {
            written,
            unchanged,
            stale,
            failed,
        } = report;
        let failed = failed.iter().map(PublishFileError::to_string).collect();
        Self {
            written: *written,
            unchanged: *unchanged,
            stale: *stale,
            failed,
        }
    }
}

fn text(report: &PublishReport) -> String {
    let PublishReport {
        written,
        unchanged,
        stale,
        failed,
    } = report;
    let mut text = format!("{written} manifests written, {unchanged} unchanged");
    if *stale > 0 {
        text += &format!(", {stale} whose file is gone");
    }
    if !failed.is_empty() {
        text += &format!(", {} failed", failed.len());
    }
    text + "\n"
}

fn incomplete(failed: usize, report: &PublishReport) -> Failure {
    let files = report.written + report.unchanged + failed as u64;
    let message = format!(
        "publish: no current manifest for {failed} of {files}; \
         mend what is said above, and the same command does the rest"
    );
    Failure::new(FailureKind::LocalDisk, message)
}

fn unusable(error: &PublishError) -> Failure {
    let kind = match error {
        PublishError::Path { .. } => FailureKind::LocalDisk,
        PublishError::Kind { .. } => FailureKind::Usage,
    };
    Failure::new(kind, format!("publish: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_read_so() {
        let mut report = PublishReport {
            written: 3,
            unchanged: 4,
            ..PublishReport::default()
        };
        insta::assert_snapshot!(text(&report), @"3 manifests written, 4 unchanged");
        report.stale = 1;
        report.failed = vec![PublishFileError::Changed {
            path: "/srv/log".into(),
        }];
        insta::assert_snapshot!(text(&report), @"3 manifests written, 4 unchanged, 1 whose file is gone, 1 failed");
        let json = serde_json::to_string(&Summary::of(&report)).expect("plain data");
        insta::assert_snapshot!(json, @r#"{"written":3,"unchanged":4,"stale":1,"failed":["/srv/log changed while it was read; publish it when its writer is done"]}"#);
        let failure = incomplete(1, &report);
        assert_eq!(failure.kind.exit_code(), 6);
        insta::assert_snapshot!(failure, @"publish: no current manifest for 1 of 8; mend what is said above, and the same command does the rest");
    }
}
