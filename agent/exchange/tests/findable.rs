//! What an agent that has just started holds is made findable at its stewards.

#![allow(clippy::wildcard_enum_match_arm)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use branchline_core::PeerId;
use branchline_core::swarm::{AnnouncementWord, Announcements, first_in_rank};
use branchline_exchange::{ExchangeOptions, SeatEvent, SeatEvents};
use branchline_hashing::{ContentKey, SwarmId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use common::*;

const AGENTS: usize = 100;

const CONTENTS: u32 = 10_000;

/// Bytes that came over the loopback interface of this network namespace so far, from whatever process.
fn loopback_bytes() -> u64 {
    let table = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix("lo:"));
    let received = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    received.unwrap_or(0)
}

fn contents() -> BTreeSet<SwarmId> {
    let key = |number: u32| {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        ContentKey::from_bytes(bytes).swarm_id()
    };
    (0..CONTENTS).map(key).collect()
}

/// Passes on what a steward hears, and who it is.
async fn listen(me: PeerId, mut events: SeatEvents, heard: mpsc::Sender<(PeerId, Vec<SwarmId>)>) {
    while let Some(event) = events.next().await {
        if let SeatEvent::Announced { swarms, .. } = event
            && heard.send((me, swarms)).await.is_err()
        {
            return;
        }
    }
}

/// `docs/swarm.md` has the figures this prints, measured in a network namespace of its own.
#[tokio::test]
async fn ten_thousand_contents_become_findable_at_a_hundred_agents() {
    let options = || ExchangeOptions {
        reader_threads: 1,
        ..options()
    };
    let (holder, _own_events) = Agent::steward(options(), &[]);
    let others: Vec<_> = (1..AGENTS)
        .map(|_| Agent::steward(options(), &[]))
        .collect();
    let (heard, mut words) = mpsc::channel(AGENTS);
    let mut at_work = JoinSet::new();
    let mut addresses = BTreeMap::new();
    let mut agents = Vec::new();
    for (agent, events) in others {
        at_work.spawn(listen(agent.peer, events, heard.clone()));
        addresses.insert(agent.peer, agent.address());
        agents.push(agent);
    }
    let held = contents();
    let members: BTreeSet<PeerId> = addresses.keys().copied().collect();

    let all: Vec<_> = members.iter().copied().chain([holder.peer]).collect();
    let where_looked_for: BTreeMap<SwarmId, PeerId> = held
        .iter()
        .map(|swarm| (*swarm, first_in_rank(swarm, all.iter().copied(), 1)[0]))
        .collect();

    let (bytes_before, begin) = (loopback_bytes(), Instant::now());
    let mut announcements = Announcements::new(holder.peer);
    announcements.handle_members(begin, &members);
    announcements.handle_held(held.clone());
    let mut findable: BTreeMap<SwarmId, PeerId> = BTreeMap::new();
    let mut streams = BTreeMap::new();
    let mut said = JoinSet::new();
    soon(async {
        while findable != where_looked_for {
            while let Some(word) = announcements.poll_word() {
                let (steward, swarms) = match word {
                    AnnouncementWord::Announce { steward, swarms } => (steward, swarms),
                    // Its own, before it heard of the others.
                    AnnouncementWord::Withdraw { steward, swarms } => {
                        assert_eq!(steward, holder.peer);
                        findable.retain(|swarm, at| *at != steward || !swarms.contains(swarm));
                        continue;
                    }
                };
                if steward == holder.peer {
                    findable.extend(swarms.into_iter().map(|swarm| (swarm, steward)));
                    continue;
                }
                let stream = streams.entry(steward).or_insert_with(|| {
                    let announcer = holder.exchange.announce(steward, vec![addresses[&steward]]);
                    let (to_say, mut words) = mpsc::unbounded_channel();
                    said.spawn(async move {
                        let announcer = announcer.await.expect("reached");
                        while let Some(word) = words.recv().await {
                            announcer.announce(word).await.expect("said");
                        }
                    });
                    to_say
                });
                stream.send(swarms).expect("it is listened to");
            }
            let deadline = announcements.next_deadline();
            let until = deadline.map_or(begin + PATIENCE, |deadline| deadline.at);
            tokio::select! {
                Some((steward, swarms)) = words.recv() => {
                    findable.extend(swarms.into_iter().map(|swarm| (swarm, steward)));
                }
                () = tokio::time::sleep_until(until.into()) => {
                    announcements.handle_timeout(Instant::now());
                }
            }
        }
    })
    .await;
    let (took, bytes) = (begin.elapsed(), loopback_bytes() - bytes_before);
    let stewards = streams.len();
    println!(
        "{CONTENTS} contents at {stewards} other agents: {:.2} s, {bytes} bytes on the loopback interface",
        took.as_secs_f64()
    );
}
