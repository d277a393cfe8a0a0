//! `branchline verify`

use std::ops::Range;
use std::path::{Path, PathBuf};

use branchline_agent::api::{Failure, FailureKind};
use branchline_hashing::ContentKey;
use branchline_publish::{
    Progress, ReadManifestError, VerifyError, VerifyReport, manifest_path, verify,
};
use serde::Serialize;

use super::blocking;
use crate::args::VerifyArgs;
use crate::output::{self, Bar, bytes};

/// Prints where the file differs, and fails if it does.
pub(super) async fn run(args: VerifyArgs) -> Result<(), Failure> {
    let VerifyArgs {
        file,
        manifest,
        json,
    } = args;
    let manifest = manifest.unwrap_or_else(|| manifest_path(&file));
    let report = compare(file.clone(), manifest.clone()).await?;
    match json {
        true => output::print_json(&Summary::of(&file, &report))?,
        false => output::print(&text(&file, &report))?,
    }
    match report.is_intact() {
        true => Ok(()),
        false => Err(differs(&file, &manifest)),
    }
}

async fn compare(file: PathBuf, manifest: PathBuf) -> Result<VerifyReport, Failure> {
    let bar = Bar::new();
    let sink = bar.clone();
    let work = move || verify(&file, &manifest, &|step| show(&sink, step));
    blocking("verify", work)
        .await?
        .map_err(|error| incomparable(&error))
}

fn show(bar: &Bar, step: Progress<'_>) {
    match step {
        Progress::Found { bytes, .. } => bar.expect(bytes),
        Progress::Advanced { bytes } => bar.advance(bytes),
        Progress::Finished { .. } => {}
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Summary {
    path: String,
    content: ContentKey,
    intact: bool,
    bytes: u64,
    expected_bytes: u64,
    sha256_matches: bool,
    different: Vec<DifferentRange>,
}

#[derive(Serialize)]
struct DifferentRange {
    offset: u64,
    bytes: u64,
}

impl Summary {
    fn of(path: &Path, report: &VerifyReport) -> Self {
        let range = |range: &Range<u64>| DifferentRange {
            offset: range.start,
            bytes: range.end - range.start,
        };
        Self {
            path: path.display().to_string(),
            content: report.content_key,
            intact: report.is_intact(),
            bytes: report.file_length,
            expected_bytes: report.expected_length,
            sha256_matches: report.sha256_matches,
            different: report.different.iter().map(range).collect(),
        }
    }
}

/// A line for each range, and one for each end that is not where it should be.
fn text(file: &Path, report: &VerifyReport) -> String {
    let file = output::printable(&file.display().to_string());
    if report.is_intact() {
        return format!("{file}: intact, {}\n", bytes(report.file_length));
    }
    let line = |what: &str, range: &Range<u64>| {
        let length = range.end - range.start;
        format!(
            "{file}: {what} {length} bytes from offset {}\n",
            range.start
        )
    };
    let mut lines: Vec<String> = report
        .different
        .iter()
        .map(|r| line("differs:", r))
        .collect();
    let ends = [
        ("missing:", report.missing()),
        ("too long:", report.extra()),
    ];
    lines.extend(
        ends.iter()
            .filter(|(_, r)| !r.is_empty())
            .map(|(what, r)| line(what, r)),
    );
    if lines.is_empty() {
        // Segments that are right make up a file that is not: the manifest contradicts itself.
        lines.push(format!(
            "{file}: every segment is right, the SHA-256 is not\n"
        ));
    }
    lines.concat()
}

fn differs(file: &Path, manifest: &Path) -> Failure {
    let (file, manifest) = (file.display(), manifest.display());
    let message = format!(
        "verify: {file}: not what {manifest} describes; \
         fetch the file again, or publish it if it was changed on purpose"
    );
    Failure::new(FailureKind::Verification, message)
}

fn incomparable(error: &VerifyError) -> Failure {
    let kind = match error {
        VerifyError::Manifest(ReadManifestError::Invalid { .. }) => FailureKind::Verification,
        VerifyError::Manifest(ReadManifestError::Io { .. })
        | VerifyError::Read { .. }
        | VerifyError::Changed { .. } => FailureKind::LocalDisk,
    };
    Failure::new(kind, format!("verify: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> VerifyReport {
        VerifyReport {
            content_key: ContentKey::from_bytes([0xab; 32]),
            file_length: 1 << 20,
            expected_length: 1 << 20,
            different: Vec::new(),
            sha256_matches: true,
        }
    }

    #[test]
    fn reports_read_so() {
        let text = |report: &VerifyReport| text(Path::new("/srv/f.iso"), report);
        insta::assert_snapshot!(text(&report()), @"/srv/f.iso: intact, 1.00 MiB");
        let damaged = VerifyReport {
            different: vec![0..10, 65536..131072],
            ..report()
        };
        insta::assert_snapshot!(text(&damaged), @r"
        /srv/f.iso: differs: 10 bytes from offset 0
        /srv/f.iso: differs: 65536 bytes from offset 65536
        ");
        let short = VerifyReport {
            expected_length: (1 << 20) + 7,
            ..damaged.clone()
        };
        insta::assert_snapshot!(text(&short), @r"
        /srv/f.iso: differs: 10 bytes from offset 0
        /srv/f.iso: differs: 65536 bytes from offset 65536
        /srv/f.iso: missing: 7 bytes from offset 1048576
        ");
        let long = VerifyReport {
            expected_length: (1 << 20) - 7,
            ..report()
        };
        insta::assert_snapshot!(text(&long), @"/srv/f.iso: too long: 7 bytes from offset 1048569");
        let odd = VerifyReport {
            sha256_matches: false,
            ..report()
        };
        insta::assert_snapshot!(text(&odd), @"/srv/f.iso: every segment is right, the SHA-256 is not");
        let json = serde_json::to_string(&Summary::of(Path::new("/srv/f.iso"), &damaged));
        insta::assert_snapshot!(json.expect("plain data"), @r#"{"path":"/srv/f.iso","content":"abababababababababababababababababababababababababababababababab","intact":false,"bytes":1048576,"expected_bytes":1048576,"sha256_matches":true,"different":[{"offset":0,"bytes":10},{"offset":65536,"bytes":65536}]}"#);
    }
}
