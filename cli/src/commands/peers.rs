//! `branchline peers`

use branchline_agent::api::{Failure, PeerInfo};

use crate::args::ShowArgs;
use crate::context::Context;
use crate::output::{self, Column, ago, bytes, duration, table};

/// Asks the running agent.
pub(super) async fn run(args: &ShowArgs, context: &Context) -> Result<(), Failure> {
    let peers = context.client()?.peers().await?;
    match args.json {
        true => output::print_json(&peers),
        false => output::print(&text(&peers)),
    }
}

fn text(peers: &[PeerInfo]) -> String {
    if peers.is_empty() {
        return "no other agent is seen\n".into();
    }
    let columns = [
        Column::Left("PEER"),
        Column::Left("ADDRESS"),
        Column::Left("FOUND BY"),
        Column::Left("SEEN"),
        Column::Left("KNOWN FOR"),
        Column::Right("FROM IT"),
        Column::Right("TO IT"),
        Column::Left("VERSION"),
    ];
    let rows: Vec<_> = peers.iter().map(row).collect();
    table(columns, &rows)
}

fn row(peer: &PeerInfo) -> [String; 8] {
    let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
    [
        peer.peer_id.to_string(),
        addresses.join(","),
        peer.found_by.to_string(),
        ago(peer.last_seen_seconds),
        duration(peer.seconds_known),
        bytes(peer.from_peer_bytes),
        bytes(peer.to_peer_bytes),
        peer.version.clone().unwrap_or_else(|| "-".into()),
    ]
}

#[cfg(test)]
mod tests {
    use branchline_agent::api::FoundBy;

    use super::*;

    #[test]
    fn peers_read_so() {
        let peer = PeerInfo {
            peer_id: "12D3KooWHHzSeKaY8xuZVzkLbKFfvNgPPeKhFBGrMbNzbm5akpqu"
                .parse()
                .expect("a peer id"),
            addresses: vec!["192.0.2.7:4002".parse().expect("an address")],
            found_by: FoundBy::Mdns,
            version: Some("0.1.0\u{7}".into()),
            seconds_known: 7_322,
            last_seen_seconds: 1,
            from_peer_bytes: 1 << 30,
            to_peer_bytes: 0,
        };
        let addresses = ["[2001:db8::7]:9", "192.0.2.8:9"];
        let addresses = addresses
            .map(|address| address.parse().expect("an address"))
            .to_vec();
        let other = PeerInfo {
            addresses,
            found_by: FoundBy::Static,
            version: None,
            ..peer.clone()
        };
        insta::assert_snapshot!(text(&[peer, other]), @r"
        PEER                                                  ADDRESS                      FOUND BY  SEEN     KNOWN FOR   FROM IT  TO IT  VERSION
        12D3KooWHHzSeKaY8xuZVzkLbKFfvNgPPeKhFBGrMbNzbm5akpqu  192.0.2.7:4002               mdns      1 s ago  2 h 2 min  1.00 GiB    0 B  0.1.0�
        12D3KooWHHzSeKaY8xuZVzkLbKFfvNgPPeKhFBGrMbNzbm5akpqu  [2001:db8::7]:9,192.0.2.8:9  static    1 s ago  2 h 2 min  1.00 GiB    0 B  -
        ");
        insta::assert_snapshot!(text(&[]), @"no other agent is seen");
    }
}
