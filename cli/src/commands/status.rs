//! `branchline status`

use std::fmt::Write;

use branchline_agent::api::{DiscoveryStatus, Failure, Status, TransferStatus, without_password};

use crate::args::ShowArgs;
use crate::context::Context;
use crate::output::{self, bytes, duration, printable};

/// Asks the running agent.
pub(super) async fn run(args: &ShowArgs, context: &Context) -> Result<(), Failure> {
    let status = context.client()?.status().await?;
    match args.json {
        true => output::print_json(&status),
        false => output::print(&text(&status)),
    }
}

fn text(status: &Status) -> String {
    let Status {
        peer_id,
        version,
        state_dir,
        peers,
        jobs,
        bytes: moved,
        store,
        ..
    } = status;
    let uptime = duration(status.uptime_seconds);
    let lines = [
        (
            "agent",
            format!("{peer_id}, version {version}, up {uptime}"),
        ),
        ("state", state_dir.display().to_string()),
        ("discovery", discovery(&status.discovery)),
        ("exchange", port(status.exchange_port)),
        ("peers", peers.to_string()),
        (
            "store",
            format!(
                "{} segments, {} of {}",
                store.segments,
                bytes(store.bytes),
                bytes(store.limit_bytes)
            ),
        ),
        (
            "received",
            format!(
                "{} from the origin, {} from peers, {} from the store",
                bytes(moved.from_origin),
                bytes(moved.from_peers),
                bytes(moved.from_store)
            ),
        ),
        ("given", format!("{} to peers", bytes(moved.to_peers))),
        ("jobs", jobs.len().to_string()),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<10} {}", printable(&value));
    }
    for job in jobs {
        let _ = writeln!(text, "  {}", printable(&transfer(job)));
    }
    text
}

fn discovery(discovery: &DiscoveryStatus) -> String {
    let DiscoveryStatus {
        enabled,
        mdns,
        port: number,
    } = discovery;
    match (enabled, mdns) {
        (false, _) => "off".into(),
        (true, true) => format!("multicast and static peers, {}", port(*number)),
        (true, false) => format!("static peers only, {}", port(*number)),
    }
}

fn port(port: u16) -> String {
    match port {
        0 => "off".into(),
        port => format!("UDP port {port}"),
    }
}

fn transfer(job: &TransferStatus) -> String {
    let TransferStatus {
        url,
        path,
        progress,
    } = job;
    let done = bytes(progress.bytes_done());
    let of = progress
        .bytes
        .map_or(String::new(), |total| format!(" of {}", bytes(total)));
    let waits = progress.waiting_for.as_ref();
    let waits = waits.map_or(String::new(), |what| format!(", waiting for {what}"));
    let (url, path) = (without_password(url), path.display());
    format!(
        "{done}{of} from {} peers{waits}: {url} -> {path}",
        progress.peers
    )
}

#[cfg(test)]
mod tests {
    use branchline_agent::api::{ByteCounts, Progress, StoreStatus};

    use super::*;

    #[test]
    fn a_status_reads_so() {
        let id = "12D3KooWHHzSeKaY8xuZVzkLbKFfvNgPPeKhFBGrMbNzbm5akpqu";
        let progress = Progress {
            bytes: Some(10 << 20),
            from_origin: 1 << 20,
            from_peers: 4 << 20,
            from_store: 0,
            peers: 2,
            waiting_for: None,
        };
        let waiting = Progress {
            waiting_for: Some("the origin".into()),
            ..Progress::default()
        };
        let job = |url: &str, progress| TransferStatus {
            url: url.parse().expect("a URL"),
            path: "/srv/f.iso".into(),
            progress,
        };
        let status = Status {
            peer_id: id.parse().expect("a peer id"),
            version: "0.1.0".into(),
            state_dir: "/var/lib/branchline".into(),
            uptime_seconds: 93_784,
            peers: 3,
            jobs: vec![
                job("https://u:secret@origin.example/f.iso", progress),
                job("https://origin.example/g.iso", waiting),
            ],
            bytes: ByteCounts {
                from_origin: 1,
                from_peers: 2048,
                from_store: 0,
                to_peers: 7 << 30,
            },
            store: StoreStatus {
                segments: 12,
                bytes: 3 << 20,
                limit_bytes: 10 << 30,
            },
            exchange_port: 4002,
            discovery: DiscoveryStatus {
                enabled: true,
                mdns: true,
                port: 4001,
            },
        };
        insta::assert_snapshot!(text(&status), @r"
        agent      12D3KooWHHzSeKaY8xuZVzkLbKFfvNgPPeKhFBGrMbNzbm5akpqu, version 0.1.0, up 1 d 2 h
        state      /var/lib/branchline
        discovery  multicast and static peers, UDP port 4001
        exchange   UDP port 4002
        peers      3
        store      12 segments, 3.00 MiB of 10.00 GiB
        received   1 B from the origin, 2.00 KiB from peers, 0 B from the store
        given      7.00 GiB to peers
        jobs       2
          5.00 MiB of 10.00 MiB from 2 peers: https://u:***@origin.example/f.iso -> /srv/f.iso
          0 B from 0 peers, waiting for the origin: https://origin.example/g.iso -> /srv/f.iso
        ");
    }
}
