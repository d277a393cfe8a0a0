//! Who may not have a file from the origin does not get it from peers.

use std::process::Command;

use anyhow::Result;
use branchline_branch_tests::{Branch, PATIENCE, Setup, random_bytes};

use crate::{BAD_PEER, MEBIBYTE};

const FILE_BYTES: usize = 4 * MEBIBYTE;

#[test]
fn who_does_not_know_the_content_key_is_told_nothing() -> Result<()> {
    let mut branch = Branch::start(Setup::fast(2))?;
    let file = random_bytes(50, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    branch.machine_mut(0).start_agent()?;
    branch.machine(0).get(&url, &[])?.done()?;
    let mut ask = Command::new(BAD_PEER);
    ask.arg(branch.machine(1).home().join("identity"));
    ask.arg("ask").arg(branch.www("file.bin.branchline"));
    let told = branch
        .machine(1)
        .host()
        .run(ask, PATIENCE)?
        .success()?
        .text();
    println!("{told}");
    let lines: Vec<&str> = told.lines().collect();
    let unknown = "the peer does not share this content";
    assert!(lines[0].starts_with("key: ") && lines[0].ends_with(" segments"));
    assert_ne!(lines[0], "key: 0 segments");
    assert_eq!(lines[1], format!("swarm: {unknown}"));
    assert_eq!(lines[2], format!("nothing: {unknown}"));
    let status = branch.machine(0).json(&["status"])?;
    assert_eq!(status["bytes"]["to_peers"], 0);
    Ok(())
}

#[test]
fn whom_the_origin_refuses_gets_nothing_from_peers_either() -> Result<()> {
    let guarded = "if ($http_authorization != \"Bearer right\") { return 403; }";
    // The lab's own requests carry no credentials, so only the files are guarded.
    let directives = Box::leak(format!("location ~ bin {{ {guarded} }}").into_boxed_str());
    let branch = Branch::with_agents(Setup::fast(2).origin(directives))?;
    let file = random_bytes(51, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let right = ["--header", "Authorization: Bearer right"];
    let wrong = ["--header", "Authorization: Bearer wrong"];
    branch.machine(0).get(&url, &right)?.done()?;
    for args in [&[][..], &wrong[..]] {
        let refused = branch.machine(1).get(&url, args)?;
        println!("{}", refused.failed(3)?);
    }
    let status = branch.machine(1).json(&["status"])?;
    assert_eq!(status["bytes"]["from_peers"], 0);
    let got = branch.machine(1).get(&url, &right)?;
    assert_eq!(got.done()?.from_peers, file.len() as u64);
    branch.machine(1).ensure_file(&got.target, &file)
}
