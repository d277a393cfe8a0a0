//! How a manifest comes, with virtual time.

use super::*;
use crate::swarm::{STEWARD_PATIENCE, SwarmPeer};

fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

fn plan(now: Instant, members: impl IntoIterator<Item = u8>, bytes: u64) -> ManifestPlan {
    let setup = ManifestSetup {
        me: peer(1),
        swarm: SwarmId::from_bytes([7; 32]),
        blocks: Blocks::of(2000, bytes),
        content_bytes: bytes,
        manifest_bytes: 70_000,
        members: members.into_iter().map(peer).collect(),
        warmed: false,
        pace: OriginPace::default(),
        origin_open: true,
    };
    ManifestPlan::new(now, setup)
}

fn drain(plan: &mut ManifestPlan) -> Vec<ManifestAction> {
    std::iter::from_fn(|| plan.poll_action()).collect()
}

fn steward_of(actions: &[ManifestAction]) -> PeerId {
    let enlisted = actions.iter().find_map(|action| match action {
        ManifestAction::Enlist { steward, .. } => Some(*steward),
        ManifestAction::Report { .. }
        | ManifestAction::LeaveSteward { .. }
        | ManifestAction::AskPeer { .. }
        | ManifestAction::FetchFromOrigin => None,
    });
    enlisted.expect("it enlists")
}

fn says(manifest: ManifestLease) -> Answer {
    Answer {
        asked: true,
        manifest,
        ..Answer::default()
    }
}

#[test]
fn without_company_the_origin_is_asked_at_once() {
    let mut plan = plan(Instant::now(), [1], 64 << 20);
    assert_eq!(drain(&mut plan), [ManifestAction::FetchFromOrigin]);
}

#[test]
fn who_has_the_lease_fetches_when_those_asked_do_not_have_it() {
    let now = Instant::now();
    let mut plan = plan(now, [1, 2], 64 << 20);
    let steward = steward_of(&drain(&mut plan));
    plan.handle_answer(now, steward, &says(ManifestLease::Fetch));
    assert_eq!(
        drain(&mut plan),
        [ManifestAction::AskPeer { peer: peer(2) }]
    );
    plan.handle_peer_failed(now, peer(2));
    assert_eq!(drain(&mut plan), [ManifestAction::FetchFromOrigin]);
}

#[test]
fn who_waits_asks_whom_the_steward_names_and_the_origin_after_the_wait() {
    let now = Instant::now();
    let mut plan = plan(now, [1, 2], 64 << 20);
    let steward = steward_of(&drain(&mut plan));
    plan.handle_answer(now, steward, &says(ManifestLease::Wait));
    assert_eq!(
        drain(&mut plan),
        [ManifestAction::AskPeer { peer: peer(2) }]
    );
    plan.handle_peer_failed(now, peer(2));
    assert_eq!(drain(&mut plan), []);
    let named = SwarmPeer {
        peer: peer(2),
        has_manifest: true,
    };
    let mut names = says(ManifestLease::Wait);
    names.peers = vec![named];
    plan.handle_answer(now, steward, &names);
    assert_eq!(
        drain(&mut plan),
        [ManifestAction::AskPeer { peer: peer(2) }]
    );
    plan.handle_peer_failed(now, peer(2));
    let deadline = plan.next_deadline().expect("a deadline");
    assert_eq!(deadline.waiting_for, "others to bring the manifest");
    plan.handle_timeout(deadline.at);
    assert!(drain(&mut plan).contains(&ManifestAction::FetchFromOrigin));
}

#[test]
fn the_steward_is_asked_first_and_the_others_a_moment_later_whether_it_answers_or_not() {
    let asked = |actions: &[ManifestAction]| {
        let asks = |a: &&ManifestAction| matches!(a, ManifestAction::AskPeer { .. });
        actions.iter().filter(asks).count()
    };
    let start = Instant::now();
    let mut large = plan(start, 1..=9, 64 << 20);
    assert_eq!(asked(&drain(&mut large)), 0);
    let deadline = large.next_deadline().expect("a deadline");
    assert_eq!(deadline.at, start + Duration::from_millis(150));
    large.handle_timeout(deadline.at);
    assert_eq!(asked(&drain(&mut large)), 8);

    let mut small = plan(start, 1..=9, 100_000);
    assert_eq!(asked(&drain(&mut small)), 8);
}

#[test]
fn the_first_question_asks_for_more_where_fewer_ask_it() {
    let asked = [1, 7, 15, 31, 9_999].map(first_bytes_of_manifest);
    assert_eq!(asked, [4096, 4096, 2048, 1024, 1024]);
}

#[test]
fn silent_stewards_cost_a_small_file_fifty_milliseconds_and_a_large_one_a_second() {
    for (bytes, most) in [(100_000, 50), (64 << 20, 950)] {
        let start = Instant::now();
        let mut plan = plan(start, 1..=9, bytes);
        let mut now = start;
        let mut tried = 0;
        loop {
            let actions = drain(&mut plan);
            let enlists = |a: &&ManifestAction| matches!(a, ManifestAction::Enlist { .. });
            tried += actions.iter().filter(enlists).count();
            if actions.contains(&ManifestAction::FetchFromOrigin) {
                break;
            }
            now = plan.next_deadline().expect("a deadline").at;
            plan.handle_timeout(now);
        }
        assert!(
            now - start <= Duration::from_millis(most),
            "{:?}",
            now - start
        );
        let patience = usize::try_from(STEWARD_PATIENCE.as_millis()).expect("few");
        assert_eq!(
            tried,
            (usize::try_from(most).expect("few") / patience).max(1)
        );
    }
}

#[test]
fn a_steward_that_says_nothing_of_the_manifest_costs_one_wait() {
    let start = Instant::now();
    let mut plan = plan(start, [1, 2], 64 << 20);
    let mut now = start;
    loop {
        for action in drain(&mut plan) {
            match action {
                ManifestAction::FetchFromOrigin => {
                    assert!(now < start + Duration::from_secs(4), "{:?}", now - start);
                    return;
                }
                ManifestAction::Enlist { steward, .. } | ManifestAction::Report { steward, .. } => {
                    plan.handle_answer(now, steward, &says(ManifestLease::NotAsked));
                }
                ManifestAction::AskPeer { peer } => plan.handle_peer_failed(now, peer),
                ManifestAction::LeaveSteward { .. } => {}
            }
        }
        now = plan.next_deadline().expect("a deadline").at;
        assert!(now < start + Duration::from_secs(60), "it never ends");
        plan.handle_timeout(now);
    }
}
