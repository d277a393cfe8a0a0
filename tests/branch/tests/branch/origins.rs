//! Origins that change, break, refuse, or know no ranges.

use std::fs;

use anyhow::{Context, Result, ensure};
use branchline_branch_tests::{Branch, Got, PATIENCE, Setup, random_bytes};

use crate::MEBIBYTE;

const FILE_BYTES: usize = 8 * MEBIBYTE;

/// At this rate [`FILE_BYTES`] take a second.
const RATE_BYTES_PER_SEC: u64 = 8_000_000;

#[test]
fn a_file_that_changed_after_it_was_published_is_an_error_that_names_both() -> Result<()> {
    let branch = Branch::with_agents(Setup::fast(1))?;
    let file = random_bytes(60, FILE_BYTES);
    let mut same_length = file.clone();
    same_length[FILE_BYTES / 2] ^= 1;
    let longer = random_bytes(61, FILE_BYTES + 1000);
    for (name, changed) in [("same.bin", same_length), ("longer.bin", longer)] {
        let url = branch.publish(name, &file)?;
        branch.place(name, &changed)?;
        let got = branch.machine(0).get(&url, &[])?;
        let line = got.failed(5)?;
        println!("{line}");
        let manifest = format!("{url}.branchline");
        ensure!(line.contains(&manifest) && line.contains("--without-manifest"));
        ensure!(line.replace(&manifest, "").contains(&url), "{line}");
        let got = branch.machine(0).get(&url, &["--without-manifest"])?;
        branch.machine(0).ensure_file(&got.target, &changed)?;
        assert_eq!(got.done()?.trust, "origin");
    }
    Ok(())
}

#[test]
fn a_manifest_of_another_file_is_an_error() -> Result<()> {
    let branch = Branch::with_agents(Setup::fast(1))?;
    let (one, two) = (random_bytes(62, FILE_BYTES), random_bytes(63, FILE_BYTES));
    let (url, _) = (
        branch.publish("one.bin", &one)?,
        branch.publish("two.bin", &two)?,
    );
    fs::copy(
        branch.www("two.bin.branchline"),
        branch.www("one.bin.branchline"),
    )?;
    let got = branch.machine(0).get(&url, &[])?;
    println!("{}", got.failed(5)?);
    Ok(())
}

#[test]
fn a_damaged_manifest_is_an_error() -> Result<()> {
    let branch = Branch::with_agents(Setup::fast(2))?;
    let file = random_bytes(64, FILE_BYTES);
    let url = branch.publish("file.bin", &file)?;
    let place = branch.www("file.bin.branchline");
    let right = fs::read(&place)?;
    let flipped = |at: usize| {
        let mut bytes = right.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let damaged = [
        ("a body that ends early", right[..right.len() - 7].to_vec()),
        ("a head alone", right[..200].to_vec()),
        ("a bit in the head", flipped(20)),
        ("a bit in the table", flipped(right.len() / 2)),
        ("a bit at the end", flipped(right.len() - 1)),
    ];
    for (what, bytes) in damaged {
        fs::write(&place, bytes)?;
        let got = branch.machine(0).get(&url, &[])?;
        println!("{what}: {}", got.failed(5).context(what)?);
    }
    let got = branch.machine(0).get(&url, &["--without-manifest"])?;
    branch.machine(0).ensure_file(&got.target, &file)
}

#[test]
fn a_page_that_answers_every_address_is_no_manifest() -> Result<()> {
    let everything = "error_page 404 =200 /page.html;";
    let branch = Branch::with_agents(Setup::fast(1).origin(everything))?;
    let file = random_bytes(65, FILE_BYTES);
    branch.place("page.html", b"<html>not found, but politely</html>")?;
    let url = branch.place("file.bin", &file)?;
    let got = branch.machine(0).get(&url, &[])?;
    branch.machine(0).ensure_file(&got.target, &file)?;
    assert_eq!(got.done()?.trust, "origin");
    Ok(())
}

/// What happens at the origin in the middle of a download.
enum Midway {
    /// The new version is placed, its manifest too.
    Published,
    /// The new version is placed, the manifest stays.
    Placed,
}

/// Downloads while the file is replaced and every connection breaks.
fn replaced_midway(published: bool, midway: &Midway) -> Result<(Branch, Got, Vec<u8>)> {
    let mut branch = Branch::start(Setup::slow(1, RATE_BYTES_PER_SEC))?;
    let (old, new) = (
        random_bytes(66, FILE_BYTES),
        random_bytes(67, FILE_BYTES + 5),
    );
    let url = match published {
        true => branch.publish("file.bin", &old)?,
        false => branch.place("file.bin", &old)?,
    };
    let target = branch.machine(0).target(&url);
    let begin = branch.wan_down();
    let mut get = branch.machine(0).start_get(&url, &target, &[])?;
    branch.wait_for_wan(begin, FILE_BYTES as u64 / 3)?;
    match midway {
        Midway::Published => branch.publish("file.bin", &new)?,
        Midway::Placed => branch.place("file.bin", &new)?,
    };
    branch.restart_origin()?;
    let got = Got::of(&get.wait(PATIENCE)?, target)?;
    Ok((branch, got, new))
}

#[test]
fn a_plain_file_that_is_replaced_midway_ends_as_the_new_one() -> Result<()> {
    let (branch, got, new) = replaced_midway(false, &Midway::Placed)?;
    got.done()?;
    println!("{}", got.stderr.trim_end());
    branch.machine(0).ensure_file(&got.target, &new)
}

#[test]
fn a_published_file_that_is_published_anew_midway_ends_as_the_new_one() -> Result<()> {
    let (branch, got, new) = replaced_midway(true, &Midway::Published)?;
    got.done()?;
    println!("{}", got.stderr.trim_end());
    branch.machine(0).ensure_file(&got.target, &new)
}

#[test]
fn a_published_file_that_is_replaced_midway_without_its_manifest_is_an_error() -> Result<()> {
    let (_branch, got, _) = replaced_midway(true, &Midway::Placed)?;
    println!("{}", got.stderr.trim_end());
    assert_eq!(got.code, Some(5), "{}", got.stderr);
    assert!(!got.target.exists());
    let last = got.stderr.lines().last().context("no line")?;
    ensure!(
        last.contains("does not belong") && last.contains("--without-manifest"),
        "{last}"
    );
    Ok(())
}

#[test]
fn an_origin_that_is_restarted_midway_is_gone_on_with() -> Result<()> {
    for published in [true, false] {
        let mut branch = Branch::start(Setup::slow(1, RATE_BYTES_PER_SEC))?;
        let file = random_bytes(68, FILE_BYTES);
        let url = match published {
            true => branch.publish("file.bin", &file)?,
            false => branch.place("file.bin", &file)?,
        };
        let target = branch.machine(0).target(&url);
        let begin = branch.wan_down();
        let mut get = branch.machine(0).start_get(&url, &target, &[])?;
        branch.wait_for_wan(begin, FILE_BYTES as u64 / 2)?;
        branch.restart_origin()?;
        let got = Got::of(&get.wait(PATIENCE)?, target)?;
        got.done()?;
        branch.machine(0).ensure_file(&got.target, &file)?;
        let wan = (branch.wan_down() - begin) as f64 / FILE_BYTES as f64;
        println!(
            "origin restarted (manifest: {published}): {:?}, WAN {wan:.3} x",
            got.elapsed
        );
        assert!(wan < 1.3, "{wan}");
    }
    Ok(())
}

#[test]
fn what_the_origin_does_not_have_or_give_is_said_in_one_line() -> Result<()> {
    let directives = "location /forbidden { return 403; }\nlocation /gone { return 410; }";
    let branch = Branch::with_agents(Setup::fast(1).origin(directives))?;
    for name in ["missing.bin", "forbidden.bin", "gone.bin"] {
        let got = branch.machine(0).get(&branch.url(name), &[])?;
        println!("{}", got.failed(3)?);
    }
    for url in ["ftp://origin.test/file", "file:///etc/passwd", "not a url"] {
        let target = branch.machine(0).home().join("x");
        let got = branch.machine(0).get_to(url, &target, &[])?;
        println!("{}", got.failed(2)?);
    }
    Ok(())
}

#[test]
fn an_origin_without_ranges_still_works() -> Result<()> {
    for published in [true, false] {
        let mut branch = Branch::with_agents(Setup::fast(2).origin("max_ranges 0;"))?;
        let file = random_bytes(69, FILE_BYTES);
        let url = match published {
            true => branch.publish("file.bin", &file)?,
            false => branch.place("file.bin", &file)?,
        };
        for index in 0..2 {
            let got = branch.machine(index).get(&url, &[])?;
            branch.machine(index).ensure_file(&got.target, &file)?;
            let report = got.done()?;
            let from_peers = if published && index == 1 {
                report.bytes
            } else {
                0
            };
            assert_eq!(report.from_peers, from_peers);
        }
        let requests = branch.requests_of(0)?;
        let bodies: u64 = requests.iter().map(|request| request.body_bytes).sum();
        println!(
            "no ranges (manifest: {published}): {bodies} body bytes for {}",
            file.len()
        );
        assert!(bodies < file.len() as u64 * 11 / 10, "{requests:?}");
    }
    Ok(())
}

#[test]
fn an_origin_that_compresses_on_the_way_gives_the_bytes_of_the_file() -> Result<()> {
    let gzip = "gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;";
    let branch = Branch::with_agents(Setup::fast(1).origin(gzip))?;
    let file = b"This compresses very well. ".repeat(100_000);
    let (plain, published) = (
        branch.place("a.txt", &file)?,
        branch.publish("b.txt", &file)?,
    );
    for url in [plain, published] {
        let got = branch.machine(0).get(&url, &[])?;
        got.done()?;
        branch.machine(0).ensure_file(&got.target, &file)?;
    }
    Ok(())
}

#[test]
fn empty_and_tiny_files_arrive_too() -> Result<()> {
    let branch = Branch::with_agents(Setup::fast(2))?;
    for (name, file) in [("empty", &b""[..]), ("tiny", b"x")] {
        for published in [true, false] {
            let name = format!("{name}-{published}");
            let url = match published {
                true => branch.publish(&name, file)?,
                false => branch.place(&name, file)?,
            };
            for index in 0..2 {
                let got = branch.machine(index).get(&url, &[])?;
                got.done().with_context(|| name.clone())?;
                branch.machine(index).ensure_file(&got.target, file)?;
            }
        }
    }
    Ok(())
}
