//! An origin that takes one request at a time, and refuses with 503 what it does not take.

use std::time::Instant;

use anyhow::{Result, ensure};
use branchline_branch_tests::{Branch, Got, PATIENCE, Setup, random_bytes};

use crate::MEBIBYTE;

const ONE_AT_A_TIME: &str = "limit_conn all 1;";
const RATE_BYTES_PER_SEC: u64 = 6_250_000;

/// What machines that start together need for a file: seconds for a curl alone, for the last of them, and how often the file
/// came over the WAN.
struct Needed {
    curl: f64,
    last: f64,
    wan: f64,
}

fn fetch_together(machines: usize, bytes: usize, directives: &'static str) -> Result<Needed> {
    let line = Setup::slow(machines, RATE_BYTES_PER_SEC).origin(directives);
    let branch = Branch::with_agents(line)?;
    let file = random_bytes(bytes as u64, bytes);
    let url = branch.publish("file.bin", &file)?;
    let curl = branch.machine(0).curl(&url)?.as_secs_f64();
    let (begin, started) = (branch.wan_down(), Instant::now());
    let start = |index| {
        let machine = branch.machine(index);
        let target = machine.target(&url);
        Ok((machine.start_get(&url, &target, &[])?, target))
    };
    let gets = (0..machines).map(start).collect::<Result<Vec<_>>>()?;
    for (index, (mut get, target)) in gets.into_iter().enumerate() {
        Got::of(&get.wait(PATIENCE)?, target.clone())?.done()?;
        branch.machine(index).ensure_file(&target, &file)?;
    }
    let last = started.elapsed().as_secs_f64();
    let wan = (branch.wan_down() - begin) as f64 / bytes as f64;
    Ok(Needed { curl, last, wan })
}

#[test]
fn all_machines_get_the_file_once_over_the_wan() -> Result<()> {
    for (machines, bytes, most_wan) in [
        (1, 100_000, 1.3),
        (1, 8 * MEBIBYTE, 1.1),
        (4, 100_000, 3.0),
        (4, 8 * MEBIBYTE, 1.2),
        (4, 32 * MEBIBYTE, 1.1),
    ] {
        for directives in [ONE_AT_A_TIME, ""] {
            let Needed { curl, last, wan } = fetch_together(machines, bytes, directives)?;
            let (times, later) = (last / curl, last - curl);
            println!(
                "{machines} machines, {bytes} bytes, {directives:<17}: last {times:.2} of one curl, {later:.3} s later, WAN {wan:.3}"
            );
            ensure!(wan < most_wan, "{wan:.3} of the file over the WAN");
        }
    }
    Ok(())
}

#[test]
fn an_origin_that_has_no_room_for_the_manifest_ever_gives_the_file_without() -> Result<()> {
    for status in ["503", "429"] {
        let directives = match status {
            "503" => "location ~ branchline$ { return 503; }",
            _ => "location ~ branchline$ { return 429; }",
        };
        let branch = Branch::with_agents(Setup::fast(2).origin(directives))?;
        let file = random_bytes(71, MEBIBYTE);
        let url = branch.publish("file.bin", &file)?;
        let got = branch.machine(0).get(&url, &[])?;
        got.done()?;
        branch.machine(0).ensure_file(&got.target, &file)?;
        println!("the manifest is answered with {status}: {:?}", got.elapsed);
    }
    Ok(())
}

/// Its question what is current is refused for as long as the origin is busy with the first one.
#[test]
fn who_comes_later_gets_the_file_and_not_over_the_wan() -> Result<()> {
    let branch = Branch::with_agents(Setup::slow(2, RATE_BYTES_PER_SEC).origin(ONE_AT_A_TIME))?;
    let file = random_bytes(70, 64 * MEBIBYTE);
    let url = branch.publish("file.bin", &file)?;
    let (begin, targets) = (
        branch.wan_down(),
        [0, 1].map(|i| branch.machine(i).target(&url)),
    );
    let mut first = branch.machine(0).start_get(&url, &targets[0], &[])?;
    branch.wait_for_wan(begin, file.len() as u64 / 8)?;
    let mut second = branch.machine(1).start_get(&url, &targets[1], &[])?;
    let first = Got::of(&first.wait(PATIENCE)?, targets[0].clone())?;
    let second = Got::of(&second.wait(PATIENCE)?, targets[1].clone())?;
    first.done()?;
    second.done()?;
    for (index, target) in targets.iter().enumerate() {
        branch.machine(index).ensure_file(target, &file)?;
    }
    let wan = (branch.wan_down() - begin) as f64 / file.len() as f64;
    println!(
        "first {:?}, who came later {:?}, WAN {wan:.3}",
        first.elapsed, second.elapsed
    );
    ensure!(wan < 1.1, "{wan:.3} of the file over the WAN");
    Ok(())
}
