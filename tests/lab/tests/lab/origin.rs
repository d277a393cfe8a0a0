//! nginx as the origin: ranges, validators, and what it was asked.

use std::fs;

use anyhow::Result;
use branchline_lab::{Lab, LabOptions, Origin, OriginOptions, WanProfile};

use super::{curl, write_file};

fn lab() -> Result<Lab> {
    let wan = WanProfile::branch_100mbit_20ms_rtt();
    Lab::start(LabOptions {
        members: 1,
        wan,
        ..LabOptions::default()
    })
}

#[test]
fn requests_are_logged_with_range_status_and_bytes() -> Result<()> {
    let lab = lab()?;
    let folder = tempfile::tempdir()?;
    let content = write_file(&folder.path().join("file"), 100_000)?;
    let target = folder.path().join("received");
    let mut origin = Origin::start(lab.origin(), &OriginOptions::serving(folder.path()))?;
    let url = origin.url("file");
    let head = curl(lab.member(0), &["--head", &url], "%{http_code}", &target)?;
    assert_eq!(head, "200");
    let headers = fs::read_to_string(&target)?.to_lowercase();
    assert!(
        headers.contains("\netag: ") && headers.contains("\naccept-ranges: bytes"),
        "{headers}"
    );
    curl(lab.member(0), &["--range", "10-29", &url], "", &target)?;
    assert_eq!(fs::read(&target)?, content[10..30]);
    let ca = origin.ca_certificate().display().to_string();
    let https = origin.https_url("file?version=2");
    curl(lab.member(0), &["--cacert", &ca, &https], "", &target)?;
    assert_eq!(fs::read(&target)?, content);
    let seen: Vec<_> = origin
        .requests()?
        .into_iter()
        .map(|request| {
            (
                request.method,
                request.path,
                request.range,
                request.status,
                request.body_bytes,
                request.protocol,
            )
        })
        .collect();
    let expected = [
        ("HEAD", "/file", "", 200, 0, "HTTP/1.1"),
        ("GET", "/file", "bytes=10-29", 206, 20, "HTTP/1.1"),
        ("GET", "/file?version=2", "", 200, 100_000, "HTTP/2.0"),
    ];
    let expected: Vec<_> = expected
        .map(|(method, path, range, status, bytes, protocol)| {
            (
                method.to_owned(),
                path.to_owned(),
                range.to_owned(),
                status,
                bytes,
                protocol.to_owned(),
            )
        })
        .into();
    assert_eq!(seen, expected);
    assert_eq!(origin.requests()?[1].client, "10.77.1.1");
    Ok(())
}

#[test]
fn directives_change_how_it_serves() -> Result<()> {
    let lab = lab()?;
    let folder = tempfile::tempdir()?;
    write_file(&folder.path().join("file"), 1000)?;
    let mut options = OriginOptions::serving(folder.path());
    options.server_directives = "max_ranges 0;".to_owned();
    let origin = Origin::start(lab.origin(), &options)?;
    let target = folder.path().join("received");
    let args = ["--range", "10-29", &origin.url("file")];
    assert_eq!(curl(lab.member(0), &args, "%{http_code}", &target)?, "200");
    Ok(())
}

#[test]
fn a_wrong_directive_is_reported_with_nginxs_own_words() -> Result<()> {
    let lab = lab()?;
    let mut options = OriginOptions::serving("/usr/share/doc");
    options.server_directives = "no_such_directive;".to_owned();
    let error = Origin::start(lab.origin(), &options)
        .map(drop)
        .expect_err("a wrong directive");
    let message = format!("{error:#}");
    assert!(message.contains("no_such_directive"), "{message}");
    Ok(())
}
