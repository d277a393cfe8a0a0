use super::*;

const VALID: Duration = Duration::from_secs(150);

fn peer(n: u8) -> PeerId {
    PeerId::from_public_key([n; 32])
}

fn invented(n: u16) -> PeerId {
    let mut key = [0; 32];
    key[..2].copy_from_slice(&n.to_be_bytes());
    PeerId::from_public_key(key)
}

fn host(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn at(port: u16) -> Vec<SocketAddr> {
    vec![SocketAddr::new(host(1), port)]
}

fn announced(now: Instant, peer: PeerId, port: u16) -> Announced {
    Announced {
        peer,
        source: host(1),
        addresses: at(port),
        expires: now + VALID,
    }
}

fn from(source: IpAddr, announced: Announced) -> Announced {
    Announced {
        source,
        ..announced
    }
}

/// Candidates of the agent with this key.
fn of(own: PeerId, now: Instant) -> Candidates {
    Candidates::new(own, now)
}

/// Uniform over all values, but the same each time.
fn scrambled(n: u64) -> u64 {
    (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Peer 2 is dialled in vain again and again. Returns when for the last time.
fn fail_often(candidates: &mut Candidates) -> Instant {
    let mut now = Instant::now();
    let mut failed = 0;
    while failed < 9 {
        now = now.max(candidates.deadline().expect("a dial"));
        for (peer, _) in candidates.take_due(now, 9) {
            candidates.handle_failed(now, peer, &[], u64::MAX / 2);
            failed += 1;
        }
    }
    now
}

/// Lets time pass, with an announcement of peer 2 each millisecond and every dial failing at once,
/// and returns when it was dialled.
fn dials_with(
    announce: impl Fn(&mut Candidates, Instant, u64),
    connected_ports: &[u16],
) -> Vec<Duration> {
    let start = Instant::now();
    let mut candidates = of(peer(1), start);
    let mut dialled = Vec::new();
    for ms in 0..60_000 {
        let now = start + Duration::from_millis(ms);
        announce(&mut candidates, now, ms);
        for (peer, _) in candidates.take_due(now, 9) {
            dialled.push(now - start);
            candidates.handle_failed(now, peer, connected_ports, scrambled(ms));
        }
    }
    dialled
}

#[test]
fn the_smaller_key_dials_at_once_and_the_larger_one_later() {
    let now = Instant::now();
    let mut candidates = of(peer(5), now);
    candidates.handle_here(now, announced(now, peer(9), 1), &[]);
    candidates.handle_here(now, announced(now, peer(2), 2), &[]);
    assert_eq!(candidates.take_due(now, 9), [(peer(9), at(1))]);
    assert_eq!(candidates.deadline(), Some(now + COURTESY));
    candidates.handle_connected(now, peer(2), at(2)[0]);
    assert_eq!(candidates.take_due(now + VALID / 2, 9), []);
    assert_eq!(candidates.deadline(), None);
}

#[test]
fn one_whose_connection_is_being_made_is_waited_for_once() {
    let now = Instant::now();
    let mut candidates = of(peer(5), now);
    candidates.handle_here(now, announced(now, peer(2), 2), &[]);
    candidates.handle_incoming(now, at(2)[0]);
    assert_eq!(candidates.take_due(now + YIELD / 2, 9), []);
    candidates.handle_incoming(now + YIELD / 2, at(2)[0]);
    assert_eq!(candidates.take_due(now + YIELD, 9).len(), 1);
}

#[test]
fn repeating_an_announcement_does_not_shorten_the_waits() {
    let now = Instant::now();
    let mut candidates = of(peer(1), now);
    candidates.handle_here(now, announced(now, peer(2), 1), &[]);
    for _ in 0..5 {
        let due = candidates.deadline().expect("a dial");
        assert_eq!(candidates.take_due(due, 9).len(), 1);
        candidates.handle_failed(due, peer(2), &[], u64::MAX);
        candidates.handle_here(due, announced(due, peer(2), 1), &[]);
        assert_eq!(candidates.take_due(due, 9), []);
        let wait = candidates.deadline().expect("a dial");
        assert!(wait >= due + REDIAL.min);
    }
}

#[test]
fn neither_changing_ports_nor_goodbyes_nor_both_shorten_the_waits_for_long() {
    let hop = |candidates: &mut Candidates, now, ms: u64| {
        let port = if ms.is_multiple_of(2) { 1 } else { 2 };
        candidates.handle_here(now, announced(now, peer(2), port), &[]);
    };
    let flap = |candidates: &mut Candidates, now, _| {
        candidates.handle_gone(now, peer(2), host(1));
        candidates.handle_here(now, announced(now, peer(2), 1), &[]);
    };
    let with_a_victim = |candidates: &mut Candidates, now, ms: u64| {
        let port = if ms.is_multiple_of(2) { 4000 } else { 2 };
        candidates.handle_here(now, announced(now, peer(2), port), &[4000]);
        candidates.handle_greeted(now, peer(2));
    };
    let dialled = [
        dials_with(hop, &[]),
        dials_with(flap, &[]),
        dials_with(with_a_victim, &[4000]),
    ];
    for dialled in dialled {
        // An unanswered announcement alone makes about fifteen dials in a minute.
        assert!((5..40).contains(&dialled.len()), "{dialled:?}");
    }
}

#[test]
fn a_peer_that_greets_and_goes_is_dialled_less_and_less() {
    let start = Instant::now();
    let mut candidates = of(peer(1), start);
    let mut dialled = 0;
    for ms in 0..60_000 {
        let now = start + Duration::from_millis(ms);
        candidates.handle_here(now, announced(now, peer(2), 1), &[]);
        for (peer, addresses) in candidates.take_due(now, 9) {
            dialled += 1;
            candidates.handle_connected(now, peer, addresses[0]);
            candidates.handle_greeted(now, peer);
            candidates.handle_lost(now, peer, scrambled(ms));
        }
    }
    assert!((5..30).contains(&dialled), "{dialled}");
}

#[test]
fn a_peer_that_was_here_for_long_is_dialled_soon_after_it_is_lost() {
    let now = Instant::now();
    let mut candidates = of(peer(1), now);
    candidates.handle_here(now, announced(now, peer(2), 1), &[]);
    let now = fail_often(&mut candidates);
    candidates.handle_connected(now, peer(2), at(1)[0]);
    let later = now + STEADY;
    candidates.handle_greeted(later, peer(2));
    candidates.handle_lost(later, peer(2), u64::MAX);
    assert_eq!(candidates.take_due(later + REDIAL.min, 9).len(), 1);
}

#[test]
fn a_peer_that_moves_is_dialled_at_once_however_long_it_was_away() {
    let now = Instant::now();
    let mut candidates = of(peer(1), now);
    candidates.handle_here(now, announced(now, peer(2), 1), &[1]);
    candidates.handle_here(now, announced(now, peer(2), 1), &[1]);
    assert_eq!(candidates.take_due(now, 9), []);
    candidates.handle_here(now, announced(now, peer(2), 7), &[1]);
    assert_eq!(candidates.take_due(now, 9), [(peer(2), at(7))]);

    candidates.handle_failed(now, peer(2), &[], 0);
    // Twice as long as the first time, for the first move led to nobody.
    let later = fail_often(&mut candidates) + REDIAL.min * 2;
    assert_eq!(candidates.take_due(later, 9), []);
    candidates.handle_here(later, announced(later, peer(2), 8), &[]);
    assert_eq!(candidates.take_due(later, 9), [(peer(2), at(8))]);
}

#[test]
fn a_peer_that_moves_while_it_is_dialled_in_vain_is_dialled_again_before_that_ends() {
    let now = Instant::now();
    let mut candidates = of(peer(1), now);
    candidates.handle_here(now, announced(now, peer(2), 1), &[]);
    assert_eq!(candidates.take_due(now, 9).len(), 1);
    candidates.handle_here(now, announced(now, peer(2), 7), &[]);
    let due = now + REDIAL.min;
    assert_eq!(candidates.take_due(due, 9), [(peer(2), at(7))]);
}

#[test]
fn a_failed_dial_of_one_that_moved_is_repeated_though_its_old_connection_is_still_there() {
    let now = Instant::now();
    let mut candidates = of(peer(1), now);
    candidates.handle_here(now, announced(now, peer(2), 7), &[1]);
    assert_eq!(candidates.take_due(now, 9).len(), 1);
    candidates.handle_failed(now, peer(2), &[1], 0);
    assert_eq!(candidates.take_due(now + REDIAL.min, 9).len(), 1);
    candidates.handle_failed(now, peer(2), &[1, 7], 0);
    assert_eq!(candidates.take_due(now + VALID / 2, 9), []);
}

#[test]
fn the_newest_addresses_are_kept() {
    let now = Instant::now();
    let mut candidates = of(peer(1), now);
    let many = (1..=20).map(|n| SocketAddr::new(host(n), 1)).collect();
    let crowded = Announced {
        addresses: many,
        ..announced(now, peer(2), 1)
    };
    candidates.handle_here(now, crowded, &[]);
    let elsewhere = SocketAddr::new(host(99), 1);
    let moved = Announced {
        addresses: vec![elsewhere],
        ..announced(now, peer(2), 1)
    };
    candidates.handle_here(now, moved, &[]);
    let addresses = candidates.addresses(&peer(2));
    assert_eq!(addresses[..2], [elsewhere, at(1)[0]]);
    assert_eq!(addresses.len(), crate::peers::MAX_ADDRESSES);
}

#[test]
fn what_expired_or_said_goodbye_is_dialled_no_more_and_forgotten() {
    let now = Instant::now();
    let mut candidates = of(peer(1), now);
    candidates.handle_here(now, announced(now, peer(2), 1), &[1]);
    candidates.handle_here(now, announced(now, peer(3), 1), &[1]);
    candidates.handle_gone(now, peer(2), host(66));
    candidates.handle_gone(now, peer(3), host(1));
    candidates.handle_lost(now, peer(3), 0);
    candidates.handle_lost(now, peer(2), 0);
    let due = candidates.take_due(now + REDIAL.min, 9);
    assert_eq!(
        due,
        [(peer(2), at(1))],
        "a goodbye counts from its own address"
    );
    candidates.handle_failed(now, peer(2), &[], 0);
    assert_eq!(candidates.take_due(now + VALID, 9), []);
    assert_eq!(candidates.deadline(), None);
    candidates.forget_expired(now + VALID);
    assert!(candidates.known.is_empty());
}

#[test]
fn when_the_own_network_comes_back_everybody_is_dialled_at_once() {
    let now = Instant::now();
    let mut candidates = of(peer(1), now);
    candidates.handle_here(now, announced(now, peer(2), 1), &[]);
    let now = fail_often(&mut candidates);
    let at = now + Duration::from_millis(1);
    assert_eq!(candidates.take_due(at, 9), []);
    candidates.handle_link_up(at);
    assert_eq!(candidates.take_due(at, 9).len(), 1);
}

#[test]
fn a_flood_of_names_stays_within_the_bounds() {
    let now = Instant::now();
    let mut candidates = of(peer(0), now);
    for n in 0..=u16::MAX {
        let [source, _] = n.to_be_bytes();
        let named = announced(now, invented(n), n.max(1));
        candidates.handle_here(now, from(host(source), named), &[]);
        let of_one = candidates
            .known
            .values()
            .filter(|k| k.source == Source::Link(host(source)));
        assert!(of_one.count() <= MAX_OF_SOURCE);
    }
    assert_eq!(candidates.known.len(), MAX_CANDIDATES);
    assert_eq!(candidates.take_due(now + COURTESY, 32).len(), 32);
}

#[test]
fn invented_peers_that_came_first_do_not_keep_a_real_one_waiting() {
    let start = Instant::now();
    // The real one has the largest key and is announced when the table is full and many wait.
    let (real, home) = (PeerId::from_public_key([0xff; 32]), host(200));
    let mut candidates = of(peer(0), start);
    for n in 0..2048 {
        let source = host(u8::try_from(n / 32).expect("64 sources"));
        candidates.handle_here(start, from(source, announced(start, invented(n), 9)), &[]);
    }
    let mut under_way = std::collections::VecDeque::new();
    let mut waited = None;
    for ms in 0..20_000 {
        let now = start + Duration::from_millis(ms);
        if ms == 5_000 {
            let named = announced(now, real, 1);
            candidates.handle_here(now, from(home, named), &[]);
        }
        // None of the invented ones answers: each dial lasts three seconds.
        while under_way.front().is_some_and(|(until, _)| *until <= now) {
            let (_, peer) = under_way.pop_front().expect("the front");
            candidates.handle_failed(now, peer, &[], scrambled(ms));
        }
        for (peer, _) in candidates.take_due(now, 32 - under_way.len()) {
            if peer == real {
                waited = waited.or(Some(ms - 5_000));
            }
            under_way.push_back((now + Duration::from_secs(3), peer));
        }
    }
    assert!(waited.is_some_and(|ms| ms < 1_500), "{waited:?} ms");
}

#[test]
fn invented_peers_cost_a_bounded_number_of_dials() {
    let start = Instant::now();
    let mut candidates = of(peer(0), start);
    let mut dialled = 0;
    for ms in 0..60_000_u32 {
        let now = start + Duration::from_millis(ms.into());
        // A new peer from a new address each time, which refuses each dial at once.
        let [_, a, b, c] = ms.to_be_bytes();
        let mut key = [0; 32];
        key[..3].copy_from_slice(&[a, b, c]);
        let named = announced(now, PeerId::from_public_key(key), 1);
        let source = IpAddr::from([10, a, b, c]);
        candidates.handle_here(now, from(source, named), &[]);
        for (peer, _) in candidates.take_due(now, 32) {
            dialled += 1;
            candidates.handle_failed(now, peer, &[], 0);
        }
    }
    let most = 1024 + 60_000 / 31 + 1;
    assert!((1024..=most).contains(&dialled), "{dialled}");
}

fn told(peer: PeerId, port: u16) -> [(PeerId, Vec<SocketAddr>); 1] {
    [(peer, at(port))]
}

#[test]
fn one_that_members_told_of_is_dialled_a_few_times_and_then_forgotten_until_told_again() {
    let start = Instant::now();
    let mut candidates = of(peer(1), start);
    let mut dialled = 0;
    for ms in 0..120_000 {
        let now = start + Duration::from_millis(ms);
        if ms == 0 || ms == 100_000 {
            candidates.handle_told(now, peer(7), told(peer(2), 1));
        }
        for (peer, addresses) in candidates.take_due(now, 9) {
            assert_eq!(addresses, at(1));
            candidates.handle_failed(now, peer, &[], scrambled(ms));
            dialled += 1;
        }
        candidates.forget_expired(now);
        if ms == 60_000 {
            assert_eq!(dialled, TOLD_ATTEMPTS);
            assert!(candidates.known.is_empty());
        }
    }
    assert_eq!(dialled, 2 * TOLD_ATTEMPTS);
}

#[test]
fn one_that_members_told_of_is_dialled_again_when_it_is_lost_after_long() {
    let now = Instant::now();
    let mut candidates = of(peer(1), now);
    candidates.handle_told(now, peer(7), told(peer(2), 1));
    assert_eq!(candidates.take_due(now, 9).len(), 1);
    candidates.handle_connected(now, peer(2), at(1)[0]);
    assert!(candidates.is_told_of(&peer(2)));
    let later = now + TOLD_FOR * 9;
    candidates.handle_greeted(later, peer(2));
    candidates.forget_expired(later);
    candidates.handle_lost(later, peer(2), 0);
    assert_eq!(candidates.take_due(later + REDIAL.min, 9).len(), 1);
}

#[test]
fn what_members_tell_takes_nothing_away_of_what_multicast_says() {
    let now = Instant::now();
    let mut candidates = of(peer(1), now);
    candidates.handle_here(now, announced(now, peer(2), 1), &[]);
    for port in 100..120 {
        candidates.handle_told(now, peer(7), told(peer(2), port));
    }
    assert_eq!(candidates.addresses(&peer(2)), at(1));
    assert!(!candidates.is_told_of(&peer(2)));
    let (_, dialled) = candidates.take_due(now, 9).remove(0);
    assert_eq!((dialled[0], dialled.len()), (at(1)[0], 8));
    // Nor does it come true by being told before it is announced.
    candidates.handle_told(now, peer(7), told(peer(3), 100));
    candidates.handle_here(now, announced(now, peer(3), 1), &[]);
    assert_eq!(candidates.addresses(&peer(3)), at(1));
}

#[test]
fn a_member_is_asked_for_more_when_those_it_told_of_were_dialled() {
    let now = Instant::now();
    let mut candidates = of(peer(0), now);
    let twenty = (1..=20).map(|n| (invented(n), at(n)));
    candidates.handle_told(now, peer(7), twenty);
    assert!(!candidates.may_tell_more(now, &peer(7)));
    assert!(candidates.may_tell_more(now, &peer(8)));
    for round in 0..2 {
        let due = candidates.take_due(now, 32);
        assert_eq!(due.len(), MAX_DIALS_OF_SOURCE);
        for (dialled, addresses) in due {
            candidates.handle_connected(now, dialled, addresses[0]);
        }
        assert_eq!(candidates.may_tell_more(now, &peer(7)), round == 1);
    }
}

/// Members that keep inventing, as fast as they are asked, beside one that names real peers.
#[test]
fn peers_that_members_invent_do_not_keep_real_ones_waiting() {
    let start = Instant::now();
    let (liars, honest) = ([peer(0xf1), peer(0xf2), peer(0xf3)], peer(0xf4));
    let mut candidates = of(peer(0), start);
    let mut under_way = std::collections::VecDeque::new();
    let (mut named, mut waited, mut dialled) = (0, None, 0);
    for ms in 0..60_000 {
        let now = start + Duration::from_millis(ms);
        for liar in liars {
            if candidates.may_tell_more(now, &liar) {
                let twenty = (named..named + 20).map(|n| (invented(n), at(n.max(1))));
                candidates.handle_told(now, liar, twenty);
                named += 20;
            }
        }
        if ms == 20_000 {
            // A liar names the real one, too, to have it charged to itself.
            candidates.handle_told(now, liars[0], told(peer(0xff), 1));
            candidates.handle_told(now, honest, told(peer(0xff), 1));
        }
        while under_way.front().is_some_and(|(until, _)| *until <= now) {
            let (_, peer) = under_way.pop_front().expect("the front");
            candidates.handle_failed(now, peer, &[], scrambled(ms));
        }
        for (dial, _) in candidates.take_due(now, 32 - under_way.len()) {
            dialled += 1;
            if dial == peer(0xff) {
                waited = waited.or(Some(ms - 20_000));
            }
            under_way.push_back((now + Duration::from_secs(3), dial));
        }
        let of_one = candidates
            .known
            .values()
            .filter(|k| k.source == Source::Member(liars[1]));
        assert!(of_one.count() <= MAX_OF_SOURCE);
        candidates.forget_expired(now);
    }
    assert!(waited.is_some_and(|ms| ms < 1_000), "{waited:?} ms");
    // Three sources with eight dials of three seconds each.
    assert!(dialled <= 60 / 3 * 24 + 24, "{dialled}");
    println!("{named} invented peers were named in a minute, {dialled} dials made");
}
