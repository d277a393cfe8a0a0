//! A steward and its members, with virtual time.

mod hostile;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::swarm::{BlockIndex, BlockRange, BlockSet, Grant, ManifestLease, Want};

fn peer(number: u16) -> PeerId {
    let mut key = [0; 32];
    key[..2].copy_from_slice(&number.to_le_bytes());
    PeerId::from_public_key(key)
}

fn swarm() -> SwarmId {
    SwarmId::from_bytes([7; 32])
}

/// One segment a block.
fn blocks(count: u32) -> Blocks {
    Blocks::claimed(count, 1).expect("few blocks")
}

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange::new(BlockIndex(first), count).expect("a range")
}

fn set(size: u32, members: impl IntoIterator<Item = u32>) -> BlockSet {
    let mut set = BlockSet::empty(size);
    for index in members {
        set.insert(BlockIndex(index));
    }
    set
}

fn want(runs: u8) -> Want {
    Want {
        runs,
        blocks_per_run: 8,
        manifest: false,
    }
}

/// One that holds nothing and wants runs.
fn starts(count: u32, runs: u8) -> Enlist {
    Enlist {
        swarm: swarm(),
        blocks: blocks(count),
        held: BlockSet::empty(count),
        leased: Vec::new(),
        has_manifest: true,
        want: want(runs),
    }
}

fn report(count: u32, held: impl IntoIterator<Item = u32>, runs: u8) -> Report {
    Report {
        held: set(count, held),
        returned: Vec::new(),
        has_manifest: true,
        want: want(runs),
    }
}

/// What was said to each since the last time.
fn said(steward: &mut Steward) -> Vec<(PeerId, Answer)> {
    std::iter::from_fn(|| steward.poll_output())
        .map(|told| (told.to, told.answer))
        .collect()
}

fn granted(steward: &mut Steward) -> Vec<(PeerId, BlockRange)> {
    let grants = |(to, answer): (PeerId, Answer)| {
        let grants = answer.granted.into_iter();
        grants.map(move |grant: Grant| (to, grant.blocks))
    };
    said(steward).into_iter().flat_map(grants).collect()
}

#[test]
fn a_lone_member_is_given_four_runs_and_nobody_else_what_it_has() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    steward.handle_enlist(now, peer(1), starts(100, 4));
    let first = granted(&mut steward);
    assert_eq!(first.len(), 4);
    assert!(
        first
            .iter()
            .all(|(to, blocks)| *to == peer(1) && blocks.count() <= 8)
    );
    steward.handle_enlist(now, peer(2), starts(100, 4));
    let second = granted(&mut steward);
    assert_eq!(second.len(), 4);
    let mut leased = BlockSet::empty(100);
    for (_, blocks) in first.into_iter().chain(second) {
        assert!(blocks.iter().all(|block| leased.insert(block)));
    }
}

#[test]
fn the_fifth_member_waits_until_one_of_the_four_has_gone() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    for number in 1..=5 {
        steward.handle_enlist(now, peer(number), starts(1000, 4));
    }
    assert!(granted(&mut steward).iter().all(|(to, _)| *to != peer(5)));
    steward.handle_left(now, peer(2), swarm(), blocks(1000));
    let next: Vec<_> = granted(&mut steward)
        .into_iter()
        .map(|(to, _)| to)
        .collect();
    assert!(next.contains(&peer(5)), "{next:?}");
}

#[test]
fn runs_shrink_towards_the_end_so_that_all_end_together() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    for number in 1..=4 {
        steward.handle_enlist(now, peer(number), starts(64, 4));
    }
    let lengths: Vec<u32> = granted(&mut steward)
        .iter()
        .map(|(_, b)| b.count())
        .collect();
    assert_eq!(lengths[0], 8, "of 64 free blocks an eighth");
    let last = *lengths.last().expect("some");
    assert!(last <= 3, "{lengths:?}");
}

/// As those say from whom the origin takes no more: what is gone between two requests is a larger part of short ones.
#[test]
fn where_few_runs_are_possible_they_are_long() {
    let now = Instant::now();
    let first = |seed, runs| {
        let mut steward = Steward::new(seed);
        for number in 1..=4 {
            let mut enlist = starts(100, 0);
            enlist.want.blocks_per_run = 100;
            steward.handle_enlist(now, peer(number), enlist);
        }
        let mut wants = report(100, [], runs);
        wants.want.blocks_per_run = 100;
        steward.handle_report(now, peer(2), swarm(), blocks(100), wants);
        granted(&mut steward)[0].1.count()
    };
    // A run that begins near the end is cut there.
    let longest_first = |runs: u8| (1..9).map(|seed| first(seed, runs)).max();
    assert_eq!(longest_first(1), Some(50));
    assert_eq!(longest_first(4), Some(12));
}

#[test]
fn a_lease_ends_without_a_report_of_its_blocks_and_goes_to_another() {
    let start = Instant::now();
    let mut steward = Steward::new(1);
    steward.handle_enlist(start, peer(1), starts(1, 1));
    steward.handle_enlist(start, peer(2), starts(1, 1));
    assert_eq!(granted(&mut steward), [(peer(1), range(0, 1))]);
    let mut now = start;
    while now < start + LEASE_LASTS {
        now += Duration::from_secs(1);
        for number in [1, 2] {
            steward.handle_report(now, peer(number), swarm(), blocks(1), report(1, [], 1));
        }
        steward.handle_timeout(now);
    }
    assert_eq!(granted(&mut steward), [(peer(2), range(0, 1))]);
}

#[test]
fn a_silent_lessee_loses_its_leases_soon() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    steward.handle_enlist(now, peer(1), starts(1, 1));
    steward.handle_enlist(now, peer(2), starts(1, 1));
    said(&mut steward);
    steward.handle_timeout(now + LESSEE_SILENCE / 2);
    let waits = report(1, [], 1);
    steward.handle_report(now + LESSEE_SILENCE / 2, peer(2), swarm(), blocks(1), waits);
    assert_eq!(granted(&mut steward), []);
    steward.handle_timeout(now + LESSEE_SILENCE);
    assert_eq!(granted(&mut steward), [(peer(2), range(0, 1))]);
}

#[test]
fn what_a_lessee_gives_back_goes_to_another_at_once() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    steward.handle_enlist(now, peer(1), starts(1, 1));
    steward.handle_enlist(now, peer(2), starts(1, 1));
    said(&mut steward);
    let mut gives = report(1, [], 1);
    gives.returned = vec![range(0, 1)];
    steward.handle_report(now, peer(1), swarm(), blocks(1), gives);
    assert_eq!(granted(&mut steward), [(peer(2), range(0, 1))]);
}

#[test]
fn who_gives_a_lease_back_rests_unless_it_wants_nothing_until_something_happens() {
    for (wants_when_it_gives, granted_at_once) in [(1, 0), (0, 1)] {
        let now = Instant::now();
        let mut steward = Steward::new(1);
        steward.handle_enlist(now, peer(1), starts(1, 1));
        said(&mut steward);
        let mut gives = report(1, [], wants_when_it_gives);
        gives.returned = vec![range(0, 1)];
        steward.handle_report(now, peer(1), swarm(), blocks(1), gives);
        assert_eq!(granted(&mut steward), []);
        steward.handle_report(now, peer(1), swarm(), blocks(1), report(1, [], 1));
        assert_eq!(granted(&mut steward).len(), granted_at_once);
        steward.handle_timeout(now + RETURNED_RESTS);
        assert_eq!(granted(&mut steward).len(), 1 - granted_at_once);
    }
}

#[test]
fn a_member_that_moved_here_keeps_what_nobody_else_has() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    let mut holder = starts(100, 0);
    holder.held = set(100, 10..12);
    steward.handle_enlist(now, peer(1), holder);
    said(&mut steward);
    let mut moved = starts(100, 0);
    moved.leased = vec![range(8, 6)];
    steward.handle_enlist(now, peer(2), moved);
    assert_eq!(
        granted(&mut steward),
        [(peer(2), range(8, 2)), (peer(2), range(12, 2))]
    );
    assert_eq!(steward.granted(), GrantedTotals::default());
}

#[test]
fn what_only_a_gone_member_held_is_granted_after_it_may_have_moved() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    let mut holder = starts(1, 0);
    holder.held = BlockSet::full(1);
    steward.handle_enlist(now, peer(1), holder);
    steward.handle_enlist(now, peer(2), starts(1, 1));
    steward.handle_left(now, peer(1), swarm(), blocks(1));
    assert_eq!(granted(&mut steward), []);
    steward.handle_timeout(now + GONE_LINGERS);
    assert_eq!(granted(&mut steward), [(peer(2), range(0, 1))]);
}

#[test]
fn nothing_is_granted_of_what_an_agent_announces_until_it_goes() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    steward.handle_announce(now, peer(9), &[swarm()]);
    steward.handle_enlist(now, peer(1), starts(10, 4));
    let (_, answer) = said(&mut steward).remove(0);
    assert_eq!(answer.granted, []);
    assert_eq!(answer.peers[0].peer, peer(9));
    steward.handle_announcer_left(now, peer(9));
    assert_eq!(granted(&mut steward).len(), 4);
}

#[test]
fn one_fetches_the_manifest_and_those_who_wait_are_told_who_has_it() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    let mut asks = starts(10, 0);
    asks.has_manifest = false;
    asks.want.manifest = true;
    for number in 1..=3 {
        steward.handle_enlist(now, peer(number), asks.clone());
    }
    let leases: Vec<_> = said(&mut steward).iter().map(|(_, a)| a.manifest).collect();
    use ManifestLease::{Fetch, Wait};
    assert_eq!(leases, [Fetch, Wait, Wait]);
    steward.handle_report(now, peer(1), swarm(), blocks(10), report(10, [], 0));
    let told = said(&mut steward);
    for number in [2, 3] {
        let (_, answer) = told
            .iter()
            .find(|(to, _)| *to == peer(number))
            .expect("told");
        assert!(answer.peers.iter().any(|named| named.peer == peer(1)));
    }
}

#[test]
fn when_the_manifest_does_not_come_the_next_one_fetches_it() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    let mut asks = starts(10, 0);
    asks.has_manifest = false;
    asks.want.manifest = true;
    for number in 1..=3 {
        steward.handle_enlist(now, peer(number), asks.clone());
    }
    said(&mut steward);
    steward.handle_timeout(now + MANIFEST_LEASE);
    let told = said(&mut steward);
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0].0, told[0].1.manifest),
        (peer(2), ManifestLease::Fetch)
    );
}

#[test]
fn the_first_member_hears_of_those_that_come_after_it() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    for number in 1..=3 {
        steward.handle_enlist(now, peer(number), starts(10, 0));
    }
    said(&mut steward);
    let deadline = steward.next_deadline().expect("news are waiting");
    assert_eq!(deadline.at, now + NEWS_COALESCED);
    steward.handle_timeout(deadline.at);
    let told: BTreeMap<_, _> = said(&mut steward).into_iter().collect();
    let named: BTreeSet<_> = told[&peer(1)].peers.iter().map(|p| p.peer).collect();
    assert!(
        named.contains(&peer(2)) && named.contains(&peer(3)),
        "{named:?}"
    );
}

#[test]
fn more_swarms_than_fit_push_out_those_that_nobody_uses_and_no_others() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    let enlist = |number: u32| {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_le_bytes());
        let mut enlist = starts(4096, 1);
        enlist.swarm = SwarmId::from_bytes(id);
        enlist
    };
    let member = |number: u32| peer(u16::try_from(number).expect("few"));
    let mut number = 0;
    loop {
        steward.handle_enlist(now, member(number), enlist(number));
        if granted(&mut steward).is_empty() {
            break;
        }
        number += 1;
    }
    assert!(steward.bytes <= MAX_STEWARD_BYTES && number > 100);
    steward.handle_left(now, member(3), enlist(3).swarm, blocks(4096));
    steward.handle_enlist(now, member(number), enlist(number));
    assert_eq!(granted(&mut steward).len(), 1);
    assert!(
        !steward
            .tables
            .keys()
            .any(|key| key.swarm == enlist(3).swarm)
    );
}

#[test]
fn ten_thousand_members_fit_and_each_is_told_about_two_things() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    for number in 0..10_000 {
        steward.handle_enlist(now, peer(number), starts(4096, 2));
    }
    let told = said(&mut steward).len();
    assert!(told < 21_000, "{told} answers to ten thousand members");
    assert!(steward.bytes < MAX_STEWARD_BYTES);
}

/// What may happen to a steward.
#[derive(Debug, Clone)]
enum Event {
    Enlist {
        who: u16,
        held: Vec<u32>,
        leased: (u32, u32),
        runs: u8,
    },
    Report {
        who: u16,
        held: Vec<u32>,
        returned: Option<(u32, u32)>,
        runs: u8,
    },
    Left {
        who: u16,
    },
    Pass {
        millis: u64,
    },
}

const COUNT: u32 = 40;

fn events() -> impl Strategy<Value = Vec<Event>> {
    let who = || 1u16..9;
    let held = || prop::collection::vec(0..COUNT, 0..6);
    let part = || (0..COUNT, 1..6u32);
    let event = prop_oneof![
        (who(), held(), part(), 0..5u8).prop_map(|(who, held, leased, runs)| Event::Enlist {
            who,
            held,
            leased,
            runs
        }),
        (who(), held(), prop::option::of(part()), 0..5u8).prop_map(
            |(who, held, returned, runs)| Event::Report {
                who,
                held,
                returned,
                runs
            }
        ),
        who().prop_map(|who| Event::Left { who }),
        (0..3000u64).prop_map(|millis| Event::Pass { millis }),
    ];
    prop::collection::vec(event, 0..120)
}

fn apply(steward: &mut Steward, now: &mut Instant, event: Event) {
    match event {
        Event::Enlist {
            who,
            held,
            leased,
            runs,
        } => {
            let mut enlist = starts(COUNT, runs);
            enlist.held = set(COUNT, held);
            enlist.leased = vec![range(leased.0, leased.1)];
            steward.handle_enlist(*now, peer(who), enlist);
        }
        Event::Report {
            who,
            held,
            returned,
            runs,
        } => {
            let mut says = report(COUNT, held, runs);
            says.returned
                .extend(returned.map(|(first, count)| range(first, count)));
            steward.handle_report(*now, peer(who), swarm(), blocks(COUNT), says);
        }
        Event::Left { who } => steward.handle_left(*now, peer(who), swarm(), blocks(COUNT)),
        Event::Pass { millis } => {
            *now += Duration::from_millis(millis);
            steward.handle_timeout(*now);
            let next = steward.next_deadline();
            assert!(
                next.is_none_or(|next| next.at > *now),
                "{next:?} is not over"
            );
        }
    }
}

/// What must hold after each event.
fn check(steward: &Steward, now: Instant) -> Result<(), TestCaseError> {
    let Some(entry) = steward.tables.values().next() else {
        return Ok(());
    };
    let table = &entry.table;
    let mut lessees = BTreeSet::new();
    for block in (0..COUNT).map(BlockIndex) {
        let holds = |m: &&member::Member| m.counts() && m.held.contains(block);
        let held = table.members.values().find(holds).is_some();
        let lessee = table.ledger.lessee_of(block);
        prop_assert!(!(held && lessee.is_some()), "{block:?} is held and leased");
        prop_assert_eq!(table.ledger.is_free(block), !held && lessee.is_none());
        lessees.extend(lessee);
    }
    prop_assert!(lessees.iter().all(|id| table.members.contains_key(id)));
    lessees.retain(|id| table.members[id].is_live());
    prop_assert!(lessees.len() <= MAX_LESSEES);
    let mut waiting = table.members.iter().filter(|(_, m)| m.wants_run(now));
    let starves = table.ledger.free() > 0
        && lessees.len() < MAX_LESSEES
        && waiting.any(|(id, _)| !lessees.contains(id));
    prop_assert!(!starves, "free blocks, and one that wants them");
    Ok(())
}

proptest! {
    #[test]
    fn whatever_members_say_no_block_is_leased_twice_or_lost(events in events()) {
        let mut now = Instant::now();
        let mut steward = Steward::new(5);
        let mut leased: BTreeMap<PeerId, BlockSet> = BTreeMap::new();
        for event in events {
            apply(&mut steward, &mut now, event);
            check(&steward, now)?;
            for (to, answer) in said(&mut steward) {
                let mine = leased.entry(to).or_insert_with(|| BlockSet::empty(COUNT));
                answer.granted.iter().flat_map(|g| g.blocks.iter()).for_each(|b| {
                    mine.insert(b);
                });
            }
        }
    }

    #[test]
    fn every_block_comes_though_members_fail(fails in prop::collection::vec(any::<bool>(), 8)) {
        let mut now = Instant::now();
        let mut steward = Steward::new(5);
        for who in 0..8 {
            steward.handle_enlist(now, peer(who), starts(COUNT, 2));
        }
        let mut held = BlockSet::empty(COUNT);
        for _ in 0..400 {
            now += Duration::from_millis(200);
            steward.handle_timeout(now);
            let grants = granted(&mut steward);
            for who in 0..8u16 {
                let fail = fails[usize::from(who)] && fails.iter().any(|fails| !fails);
                if fail {
                    continue;
                }
                let mine = grants.iter().filter(|(to, _)| *to == peer(who));
                let come: Vec<u32> = mine.flat_map(|(_, b)| b.iter()).map(|b| b.0).collect();
                come.iter().for_each(|index| { held.insert(BlockIndex(*index)); });
                steward.handle_report(now, peer(who), swarm(), blocks(COUNT), report(COUNT, come, 2));
            }
        }
        prop_assert!(held.is_full(), "{} of {COUNT}", held.len());
    }
}

/// All blocks are fetched, and each is held by its fetcher alone.
fn blocks_that_do_not_spread(now: Instant) -> Steward {
    let mut steward = Steward::new(1);
    let two_a_run = |mut enlist: Enlist| {
        enlist.want.blocks_per_run = 2;
        enlist
    };
    steward.handle_enlist(now, peer(1), two_a_run(starts(4, 1)));
    steward.handle_enlist(now, peer(2), two_a_run(starts(4, 1)));
    steward.handle_enlist(now, peer(3), two_a_run(starts(4, 1)));
    let mut grants = granted(&mut steward);
    while let Some((to, blocks)) = grants.pop() {
        let held = report(4, blocks.iter().map(|block| block.0), 1);
        steward.handle_report(now, to, swarm(), self::blocks(4), held);
        grants.extend(granted(&mut steward));
    }
    steward
}

#[test]
fn what_nobody_gets_from_its_fetcher_is_leased_again() {
    let start = Instant::now();
    let mut steward = blocks_that_do_not_spread(start);
    let mut leased_again = Vec::new();
    for second in 1..=6 {
        let now = start + Duration::from_secs(second);
        for number in 1..=3 {
            let held = report(4, [], 1);
            steward.handle_report(now, peer(number), swarm(), blocks(4), held);
        }
        steward.handle_timeout(now);
        let grants = granted(&mut steward);
        assert!(
            second >= SPREADS_WITHIN.as_secs() || grants.is_empty(),
            "{grants:?} after {second} s"
        );
        leased_again.extend(grants);
    }
    assert!(!leased_again.is_empty());
}

#[test]
fn what_one_holds_alone_is_not_leased_again_while_nobody_waits_for_a_lease() {
    let start = Instant::now();
    let mut steward = blocks_that_do_not_spread(start);
    for second in 1..=20 {
        let now = start + Duration::from_secs(second);
        for number in 1..=3 {
            let held = report(4, [], 0);
            steward.handle_report(now, peer(number), swarm(), blocks(4), held);
        }
        steward.handle_timeout(now);
    }
    let now = start + Duration::from_secs(20);
    steward.handle_enlist(now, peer(4), starts(4, 1));
    assert_eq!(
        granted(&mut steward),
        [],
        "a newcomer gets it from who holds it"
    );
}

#[test]
fn two_stewards_of_one_swarm_lease_different_blocks_first() {
    let now = Instant::now();
    let first = |seed| {
        let mut steward = Steward::new(seed);
        steward.handle_enlist(now, peer(1), starts(1000, 1));
        granted(&mut steward)[0].1.first()
    };
    let begins: std::collections::BTreeSet<BlockIndex> = (0..8).map(first).collect();
    assert!(begins.len() >= 7, "{begins:?}");
}

#[test]
fn while_others_want_leases_the_runs_of_one_whose_blocks_nobody_got_are_short() {
    let start = Instant::now();
    let mut steward = Steward::new(1);
    for number in 1..=5 {
        steward.handle_enlist(start, peer(number), starts(1000, 2));
    }
    let grants = granted(&mut steward);
    let short = |(_, blocks): &&(PeerId, BlockRange)| blocks.count() <= 4;
    // The first one was alone when it came.
    assert!(
        grants
            .iter()
            .filter(|(to, _)| *to != peer(1))
            .all(|grant| short(&grant))
    );
    let (_, fetched) = grants
        .iter()
        .find(|(to, _)| *to == peer(2))
        .expect("it leases");
    for number in [2, 3] {
        let held = report(1000, fetched.iter().map(|block| block.0), 2);
        steward.handle_report(start, peer(number), swarm(), blocks(1000), held);
    }
    granted(&mut steward);
    let now = start + SPREADS_WITHIN;
    steward.handle_timeout(now);
    let (_, next) = grants.iter().rfind(|(to, _)| *to == peer(2)).expect("two");
    let held = report(1000, next.iter().map(|block| block.0), 2);
    steward.handle_report(now, peer(2), swarm(), blocks(1000), held);
    let of_two = granted(&mut steward);
    assert!(
        of_two
            .iter()
            .any(|(to, blocks)| *to == peer(2) && blocks.count() > 4)
    );
}
