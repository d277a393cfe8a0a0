//! Members that claim too much, say too little, or stay away.

use super::*;

#[test]
fn those_who_wait_for_a_manifest_that_some_have_got_are_no_reason_to_wake_up() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    let mut waits = starts(4, 0);
    waits.has_manifest = false;
    waits.want.manifest = true;
    for number in 1..=20 {
        steward.handle_enlist(now, peer(number), waits.clone());
    }
    steward.handle_report(now, peer(1), swarm(), blocks(4), report(4, [], 0));
    let over = now + MANIFEST_LEASE;
    steward.handle_timeout(over);
    let next = steward.next_deadline().expect("members are looked at");
    assert!(next.at > over, "{:?}", next.at - now);
}

#[test]
fn an_agent_is_a_member_of_a_bounded_number_of_swarms() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    for number in 0..=u8::try_from(MAX_TABLES_OF_ONE).expect("few") {
        let mut enlist = starts(4, 1);
        enlist.swarm = SwarmId::from_bytes([number; 32]);
        steward.handle_enlist(now, peer(1), enlist);
    }
    assert_eq!(steward.swarms(), MAX_TABLES_OF_ONE);
    assert_eq!(granted(&mut steward).len(), MAX_TABLES_OF_ONE);
}

/// What is granted while members that wait for leases report each second, for so many seconds.
fn granted_within(steward: &mut Steward, start: Instant, members: &[u16], seconds: u64) -> usize {
    let mut count = 0;
    for second in 1..=seconds {
        let now = start + Duration::from_secs(second);
        for number in members {
            let nothing = report(4, [], 1);
            steward.handle_report(now, peer(*number), swarm(), blocks(4), nothing);
        }
        steward.handle_timeout(now);
        count += granted(steward).len();
    }
    count
}

#[test]
fn an_announcer_from_whom_nobody_gets_anything_stops_leases_for_a_while_only() {
    let start = Instant::now();
    let mut steward = Steward::new(1);
    steward.handle_announce(start, peer(9), &[swarm()]);
    for number in [1, 2] {
        steward.handle_enlist(start, peer(number), starts(4, 1));
    }
    assert_eq!(granted(&mut steward), []);
    assert_eq!(granted_within(&mut steward, start, &[1, 2], 2), 0);
    assert!(granted_within(&mut steward, start, &[1, 2], 6) > 0);
    steward.handle_withdraw(start, peer(9), &[swarm()]);
    steward.handle_announce(start, peer(9), &[swarm()]);
    let later = start + Duration::from_secs(10);
    steward.handle_enlist(later, peer(3), starts(4, 1));
    steward.handle_timeout(later);
    assert!(
        !granted(&mut steward).is_empty(),
        "it is not believed twice"
    );
}

#[test]
fn who_claims_at_once_to_hold_everything_stops_leases_for_a_while_only() {
    let start = Instant::now();
    let mut steward = Steward::new(1);
    let mut boasts = starts(4, 0);
    boasts.held = BlockSet::full(4);
    steward.handle_enlist(start, peer(9), boasts);
    for number in [1, 2] {
        steward.handle_enlist(start, peer(number), starts(4, 1));
    }
    assert_eq!(granted_within(&mut steward, start, &[1, 2], 2), 0);
    assert!(granted_within(&mut steward, start, &[1, 2], 6) > 0);
}

#[test]
fn who_claims_to_fetch_everything_already_gets_no_more_than_half_of_it() {
    let now = Instant::now();
    let mut steward = Steward::new(1);
    let mut claims = starts(100, 0);
    claims.leased = vec![range(0, 100)];
    steward.handle_enlist(now, peer(1), claims);
    let confirmed: u32 = granted(&mut steward).iter().map(|(_, b)| b.count()).sum();
    assert_eq!(confirmed, 50);
}

#[test]
fn a_lessee_not_heard_of_lately_is_granted_nothing_unasked() {
    let start = Instant::now();
    let mut steward = Steward::new(1);
    steward.handle_enlist(start, peer(1), starts(4, 4));
    steward.handle_enlist(start, peer(2), starts(4, 4));
    said(&mut steward);
    let late = start + LESSEE_SILENCE + Duration::from_secs(1);
    steward.handle_timeout(late);
    assert_eq!(granted(&mut steward), []);
    steward.handle_report(late, peer(2), swarm(), blocks(4), report(4, [], 4));
    assert!(granted(&mut steward).iter().all(|(to, _)| *to == peer(2)));
}
