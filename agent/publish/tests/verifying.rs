//! `verify` on files that are, and are not, what their manifest says.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use branchline_hashing::Manifest;
use branchline_publish::{
    Progress, PublishOptions, ReadManifestError, VerifyError, VerifyReport, manifest_path, publish,
    read_manifest, verify,
};
use tempfile::TempDir;

const LENGTH: usize = 3_000_000;

fn silent(_: Progress<'_>) {}

struct Published {
    _folder: TempDir,
    file: PathBuf,
    content: Vec<u8>,
    manifest: Manifest,
}

impl Published {
    fn new() -> io::Result<Self> {
        let folder = TempDir::new()?;
        let file = folder.path().join("file");
        let content: Vec<u8> = (0..LENGTH as u64)
            .map(|i| (i * i * 40_503).to_le_bytes()[2])
            .collect();
        fs::write(&file, &content)?;
        let report = publish(
            std::slice::from_ref(&file),
            &PublishOptions::default(),
            &silent,
        );
        assert!(report.is_ok_and(|report| report.written == 1));
        let manifest = read_manifest(&manifest_path(&file)).expect("a manifest");
        Ok(Self {
            _folder: folder,
            file,
            content,
            manifest,
        })
    }

    fn verify_as(&self, content: &[u8]) -> io::Result<VerifyReport> {
        fs::write(&self.file, content)?;
        Ok(self.verify().expect("file and manifest can be read"))
    }

    fn verify(&self) -> Result<VerifyReport, VerifyError> {
        verify(&self.file, &manifest_path(&self.file), &silent)
    }

    /// Of the segments that hold the bytes at these offsets.
    fn segment_at(&self, offset: u64) -> Range<u64> {
        self.manifest
            .segment_at(offset)
            .expect("within the file")
            .range()
    }
}

#[test]
fn an_intact_file_is_intact() -> io::Result<()> {
    let published = Published::new()?;
    let report = published.verify_as(&published.content)?;
    assert!(report.is_intact());
    assert!(report.missing().is_empty() && report.extra().is_empty());
    assert_eq!(report.content_key, published.manifest.content_key());
    Ok(())
}

#[test]
fn differing_segments_are_named_and_neighbours_joined() -> io::Result<()> {
    let published = Published::new()?;
    let first = published.segment_at(0);
    let middle = published.segment_at(1_500_000);
    let after = published.segment_at(middle.end);
    let last = published.segment_at(LENGTH as u64 - 1);
    let mut content = published.content.clone();
    for offset in [first.start, middle.end - 1, middle.end, last.end - 1] {
        content[usize::try_from(offset).expect("small")] ^= 1;
    }
    let report = published.verify_as(&content)?;
    assert_eq!(report.different, [first, middle.start..after.end, last]);
    assert!(!report.is_intact() && !report.sha256_matches);
    Ok(())
}

#[test]
fn a_missing_tail_is_named() -> io::Result<()> {
    let published = Published::new()?;
    let segment = published.segment_at(1_500_000);
    let boundary = usize::try_from(segment.start).expect("small");
    for (length, different) in [
        (boundary, None),
        (boundary + 10, Some(segment.start..segment.start + 10)),
        (0, None),
    ] {
        let report = published.verify_as(&published.content[..length])?;
        assert_eq!(report.missing(), length as u64..LENGTH as u64);
        assert_eq!(report.different, Vec::from_iter(different));
        assert!(!report.is_intact() && report.extra().is_empty());
    }
    Ok(())
}

#[test]
fn an_extra_tail_is_named() -> io::Result<()> {
    let published = Published::new()?;
    let content = [&published.content[..], &[0; 2_500_000]].concat();
    let report = published.verify_as(&content)?;
    assert_eq!(report.extra(), LENGTH as u64..content.len() as u64);
    assert!(report.different.is_empty() && report.missing().is_empty());
    assert!(!report.is_intact());
    Ok(())
}

#[test]
fn a_manifest_with_another_sha256_is_noticed() -> io::Result<()> {
    let published = Published::new()?;
    let report = verified_with_sha256(&published, [1; 32])?;
    assert!(report.different.is_empty() && !report.sha256_matches && !report.is_intact());
    Ok(())
}

#[test]
fn a_manifest_that_states_no_sha256_is_checked_by_its_segments() -> io::Result<()> {
    let published = Published::new()?;
    assert!(verified_with_sha256(&published, [0; 32])?.is_intact());
    Ok(())
}

/// Verifies against the same manifest with another SHA-256.
fn verified_with_sha256(published: &Published, sha256: [u8; 32]) -> io::Result<VerifyReport> {
    let mut builder = branchline_hashing::ManifestBuilder::new(published.manifest.parameters());
    for segment in published.manifest.segments() {
        builder
            .push(segment.length, segment.hash)
            .expect("as it was");
    }
    let sha256 = branchline_hashing::Sha256Digest::from_bytes(sha256);
    let other = builder.finish(sha256).expect("consistent");
    fs::write(manifest_path(&published.file), other.encode())?;
    Ok(published.verify().expect("file and manifest can be read"))
}

#[test]
fn what_cannot_be_compared_is_an_error() -> io::Result<()> {
    let published = Published::new()?;
    let path = manifest_path(&published.file);
    let right = fs::read(&path)?;

    fs::write(&path, &right[..right.len() - 1])?;
    let error = published.verify();
    assert!(matches!(
        error,
        Err(VerifyError::Manifest(ReadManifestError::Invalid { .. }))
    ));
    fs::write(&path, [&right[..], b"x"].concat())?;
    let error = published.verify();
    assert!(matches!(
        error,
        Err(VerifyError::Manifest(ReadManifestError::Invalid { .. }))
    ));
    fs::remove_file(&path)?;
    let error = published.verify();
    assert!(matches!(
        error,
        Err(VerifyError::Manifest(ReadManifestError::Io { .. }))
    ));

    fs::write(&path, &right)?;
    fs::remove_file(&published.file)?;
    assert!(matches!(published.verify(), Err(VerifyError::Read { .. })));
    Ok(())
}

#[test]
fn a_file_that_changes_meanwhile_is_an_error() -> io::Result<()> {
    let published = Published::new()?;
    let progress = |step: Progress<'_>| {
        if matches!(step, Progress::Advanced { .. }) {
            fs::write(&published.file, b"other").expect("the file can be written");
        }
    };
    let result = verify(&published.file, &manifest_path(&published.file), &progress);
    assert!(matches!(result, Err(VerifyError::Changed { .. })));
    Ok(())
}
