//! The WAN has the rate, the delay, the loss and the counters it says.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use branchline_lab::{Host, Lab, LabOptions, Origin, OriginOptions, Privilege, WanProfile};

use super::{curl, lab_with_wan, write_file};

const PATIENCE: Duration = Duration::from_secs(30);

/// Downloads `size` bytes over this line and gives the seconds and the ratio of WAN bytes to size.
fn download(options: LabOptions, size: usize) -> Result<(f64, f64)> {
    let lab = Lab::start(options)?;
    let folder = tempfile::tempdir()?;
    let content = write_file(&folder.path().join("file"), size)?;
    let mut origin = Origin::start(lab.origin(), &OriginOptions::serving(folder.path()))?;
    let target = folder.path().join("received");
    let seconds = curl(
        lab.member(0),
        &[&origin.url("file")],
        "%{time_total}",
        &target,
    )?;
    ensure!(fs::read(&target)? == content, "other bytes than were sent");
    let counters = lab.wan().counters();
    ensure!(counters.down.bytes > 10 * counters.up.bytes, "{counters:?}");
    let served: u64 = origin
        .requests()?
        .iter()
        .map(|request| request.body_bytes)
        .sum();
    assert_eq!(served, size as u64);
    Ok((seconds.parse()?, counters.down.bytes as f64 / size as f64))
}

#[test]
fn ten_megabytes_at_20_mbit_take_four_seconds_and_are_counted_with_their_headers() -> Result<()> {
    let (seconds, ratio) = download(
        LabOptions {
            members: 1,
            ..LabOptions::default()
        },
        10_000_000,
    )?;
    println!("{seconds:.3} s, {ratio:.4} x");
    // 10 MB x 1.036 at 2.5 MB/s are 4.14 s; slow start and the handshake add some round trips.
    assert!((4.1..5.5).contains(&seconds), "{seconds}");
    assert!((1.03..1.05).contains(&ratio), "{ratio}");
    Ok(())
}

#[test]
fn the_wan_works_in_a_user_namespace_and_with_jumbo_frames_on_the_lan() -> Result<()> {
    let options = LabOptions {
        members: 1,
        lan_mtu: 9000,
        privilege: Privilege::UserNamespace,
        ..LabOptions::default()
    };
    let (seconds, ratio) = download(options, 2_000_000)?;
    assert!((0.8..2.5).contains(&seconds), "{seconds}");
    assert!((1.03..1.06).contains(&ratio), "{ratio}");
    Ok(())
}

#[test]
fn the_relay_carries_100_mbit() -> Result<()> {
    let wan = WanProfile::branch_100mbit_20ms_rtt();
    let (seconds, ratio) = download(
        LabOptions {
            members: 1,
            wan,
            ..LabOptions::default()
        },
        40_000_000,
    )?;
    println!("{seconds:.3} s, {ratio:.4} x");
    // 3.32 s on the line alone; the band leaves room for a busy machine.
    assert!((3.3..5.5).contains(&seconds), "{seconds}");
    assert!((1.03..1.05).contains(&ratio), "{ratio}");
    Ok(())
}

#[test]
fn the_round_trip_takes_40_milliseconds() -> Result<()> {
    let lab = lab_with_wan(1, WanProfile::branch_20mbit_40ms_rtt())?;
    let folder = tempfile::tempdir()?;
    write_file(&folder.path().join("file"), 10)?;
    let origin = Origin::start(lab.origin(), &OriginOptions::serving(folder.path()))?;
    let target = folder.path().join("received");
    let url = origin.url("file");
    let handshake = || -> Result<f64> {
        Ok(curl(lab.member(0), &["--ipv4", &url], "%{time_connect}", &target)?.parse()?)
    };
    // The least of some: a busy machine makes a single one later, never earlier.
    let times = (0..5).map(|_| handshake()).collect::<Result<Vec<_>>>()?;
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    println!("{times:?}");
    assert!((0.040..0.048).contains(&least), "{times:?}");
    Ok(())
}

/// Sends datagrams of 100 bytes (128 with headers) to the origin's discard port, at a pace that
/// neither the line's queue nor the socket's buffer minds.
fn send_datagrams(host: &Host, count: u32) -> Result<()> {
    let script = format!(
        "my $s = IO::Socket::INET->new(PeerAddr => '203.0.113.2', PeerPort => 9, Proto => 'udp');
         for my $i (1 .. {count}) {{ $s->send('x' x 100); select(undef, undef, undef, 0.0002); }}"
    );
    let mut perl = Command::new("perl");
    perl.args(["-MIO::Socket::INET", "-e", &script]);
    host.run(perl, PATIENCE)?.success().map(drop)
}

/// Packets that came out of the WAN at the origin.
fn received_at_origin(lab: &Lab) -> Result<u64> {
    let devices = lab.origin().sh("cat /proc/net/dev")?;
    let line = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix("wan0:"));
    let packets = line.context("no wan0")?.split_ascii_whitespace().nth(1);
    Ok(packets.context("odd /proc/net/dev")?.parse()?)
}

/// A silent origin: no ICMP answers that would be lost in turn or stop the sender.
fn silence(lab: &Lab) -> Result<()> {
    lab.origin()
        .sh("ip route add blackhole 10.77.0.0/16")
        .map(drop)
}

fn wait_until(what: &str, mut reached: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !reached()? {
        ensure!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn packets_are_lost_with_the_given_probability() -> Result<()> {
    let lab = lab_with_wan(1, WanProfile::branch_20mbit_40ms_rtt().with_loss(0.1, 42))?;
    silence(&lab)?;
    send_datagrams(lab.member(0), 3000)?;
    wait_until("all datagrams on the line", || {
        Ok(lab.wan().counters().up.packets == 3000)
    })?;
    let up = lab.wan().counters().up;
    assert_eq!((up.bytes, up.dropped_packets), (3000 * 128, 0));
    // Four standard deviations of a binomial with n = 3000, p = 0.1 are 66.
    assert!((234..=366).contains(&up.lost_packets), "{up:?}");
    wait_until("the others at the origin", || {
        Ok(received_at_origin(&lab)? == 3000 - up.lost_packets)
    })
}

#[test]
fn a_cut_line_carries_nothing_until_mended() -> Result<()> {
    let lab = lab_with_wan(1, WanProfile::branch_20mbit_40ms_rtt())?;
    silence(&lab)?;
    send_datagrams(lab.member(0), 10)?;
    wait_until("ten at the origin", || Ok(received_at_origin(&lab)? == 10))?;
    lab.wan().cut();
    send_datagrams(lab.member(0), 10)?;
    wait_until("ten at the cut", || {
        Ok(lab.wan().counters().up.cut_packets == 10)
    })?;
    assert_eq!(
        (lab.wan().counters().up.packets, received_at_origin(&lab)?),
        (10, 10)
    );
    lab.wan().mend();
    send_datagrams(lab.member(0), 10)?;
    wait_until("twenty at the origin", || {
        Ok(received_at_origin(&lab)? == 20)
    })?;
    assert_eq!(lab.wan().counters().up.packets, 20);
    Ok(())
}

#[test]
fn a_transfer_survives_a_cut_and_follows_a_changed_profile() -> Result<()> {
    let lab = lab_with_wan(1, WanProfile::symmetric(250_000, Duration::from_millis(5)))?;
    let folder = tempfile::tempdir()?;
    let content = write_file(&folder.path().join("file"), 2_000_000)?;
    let origin = Origin::start(lab.origin(), &OriginOptions::serving(folder.path()))?;
    let target = folder.path().join("received");
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--fail", "--output"])
        .arg(&target);
    let mut transfer = lab.member(0).spawn({
        command.arg(origin.url("file"));
        command
    })?;
    let carried = || lab.wan().counters().down.bytes;
    wait_until("the transfer under way", || Ok(carried() > 100_000))?;
    lab.wan().cut();
    let at_cut = carried();
    wait_until("packets at the cut", || {
        Ok(lab.wan().counters().up.cut_packets > 0 || lab.wan().counters().down.cut_packets > 0)
    })?;
    assert_eq!(carried(), at_cut, "nothing passes a cut line");
    lab.wan().set_profile(WanProfile::branch_100mbit_20ms_rtt());
    lab.wan().mend();
    let end = transfer.wait(PATIENCE)?.success()?;
    ensure!(fs::read(&target)? == content, "other bytes than were sent");
    // At the first rate alone it would take more than eight seconds.
    assert!(end.elapsed < Duration::from_secs(7), "{:?}", end.elapsed);
    Ok(())
}
