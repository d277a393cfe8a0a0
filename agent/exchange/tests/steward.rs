//! Members, their steward, and announcers, over loopback.

#![allow(clippy::wildcard_enum_match_arm)]

mod common;

use std::time::Duration;

use branchline_core::swarm::{
    Answer, BlockIndex, BlockRange, BlockSet, Blocks, Enlist, Grant, ManifestLease, Report,
    SwarmPeer, Want,
};
use branchline_core::wire::{RequesterMessage, ResponderMessage, WireMessage};
use branchline_core::{PeerId, SegmentSet};
use branchline_exchange::{
    ExchangeOptions, Misbehaviour, PeerFailure, ReportRefused, SeatEvent, SeatEvents, StewardLink,
};
use branchline_hashing::SwarmId;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;

use common::*;

/// As docs/exchange.md has them.
const DONE: u64 = 0;
const PROTOCOL_VIOLATION: u64 = 2;
const MISBEHAVED: u64 = 3;

const BLOCKS: u32 = 100;

fn swarm(name: u8) -> SwarmId {
    SwarmId::from_bytes([name; 32])
}

fn blocks(first: u32, count: u32) -> BlockRange {
    BlockRange::new(BlockIndex(first), count).expect("a range")
}

fn enlist(name: u8) -> Enlist {
    let mut held = BlockSet::empty(BLOCKS);
    held.insert(BlockIndex(3));
    Enlist {
        swarm: swarm(name),
        blocks: Blocks::claimed(1000, 10).expect("blocks"),
        held,
        leased: vec![blocks(7, 2)],
        has_manifest: true,
        want: Want {
            runs: 1,
            blocks_per_run: 5,
            manifest: false,
        },
    }
}

/// A report that can be told from others.
fn report(number: u32) -> Report {
    Report {
        held: BlockSet::empty(BLOCKS),
        returned: vec![blocks(number % BLOCKS, 1)],
        has_manifest: false,
        want: Want {
            blocks_per_run: number,
            ..Want::default()
        },
    }
}

fn answer(first: u32) -> Answer {
    Answer {
        asked: true,
        granted: vec![Grant {
            blocks: blocks(first, 10),
            lasts: Duration::from_secs(10),
        }],
        manifest: ManifestLease::Wait,
        peers: vec![SwarmPeer {
            peer: PeerId::from_public_key([9; 32]),
            has_manifest: true,
        }],
        lessees: 3,
    }
}

async fn next(events: &mut SeatEvents) -> SeatEvent {
    soon(events.next()).await.expect("the exchange runs")
}

async fn enlisted(events: &mut SeatEvents) -> (PeerId, Enlist, mpsc::Sender<Answer>) {
    match next(events).await {
        SeatEvent::Enlisted {
            peer,
            enlist,
            answers,
        } => (peer, enlist, answers),
        other => panic!("a member was expected, {other:?} came"),
    }
}

async fn left(events: &mut SeatEvents) -> (PeerId, SwarmId) {
    match next(events).await {
        SeatEvent::Left { peer, swarm } => (peer, swarm),
        other => panic!("a member's end was expected, {other:?} came"),
    }
}

async fn announced(events: &mut SeatEvents) -> Vec<SwarmId> {
    match next(events).await {
        SeatEvent::Announced { swarms, .. } => swarms,
        other => panic!("an announcement was expected, {other:?} came"),
    }
}

async fn enlist_at(member: &Agent, steward: &Agent, name: u8) -> StewardLink {
    let link = member
        .exchange
        .enlist(steward.peer, vec![steward.address()], enlist(name));
    soon(link).await.expect("reached")
}

async fn failure(link: &mut StewardLink) -> PeerFailure {
    soon(link.next()).await.expect_err("no answer")
}

#[tokio::test]
async fn a_member_and_its_steward_hear_each_other() {
    let (alice, mut events) = Agent::steward(options(), &[]);
    let bob = Agent::start(&[]);
    let mut link = enlist_at(&bob, &alice, 1).await;
    assert_eq!(link.peer(), alice.peer);
    let (peer, first, answers) = enlisted(&mut events).await;
    assert_eq!((peer, first), (bob.peer, enlist(1)));

    for number in 0..3 {
        answers.try_send(answer(number)).expect("room");
        assert_eq!(soon(link.next()).await, Ok(answer(number)));
        link.report(report(number)).expect("taken");
        match next(&mut events).await {
            SeatEvent::Reported {
                peer,
                swarm: of,
                report: said,
            } => assert_eq!((peer, of, said), (bob.peer, swarm(1), report(number))),
            other => panic!("a report was expected, {other:?} came"),
        }
    }
    let unasked = Answer {
        asked: false,
        ..answer(50)
    };
    answers.try_send(unasked.clone()).expect("room");
    assert_eq!(soon(link.next()).await, Ok(unasked));
}

#[tokio::test]
async fn a_member_that_goes_has_left_whether_its_connection_stays_or_not() {
    let content = std::sync::Arc::new(Memory::new(1, 3));
    let (alice, mut events) = Agent::steward(options(), &[&content]);
    let bob = Agent::start(&[]);
    let session = bob.join(&alice, &content).await;
    let link = enlist_at(&bob, &alice, 1).await;
    let _answers = enlisted(&mut events).await;
    drop(link);
    assert_eq!(left(&mut events).await, (bob.peer, swarm(1)));
    soon(session.ask_have(3)).await.expect("the session stays");

    let mut link = enlist_at(&bob, &alice, 2).await;
    let _answers = enlisted(&mut events).await;
    soon(bob.exchange.shut_down()).await;
    assert_eq!(left(&mut events).await, (bob.peer, swarm(2)));
    assert!(matches!(
        failure(&mut link).await,
        PeerFailure::Lost { .. } | PeerFailure::Stopped
    ));
    assert_eq!(link.report(report(1)), Err(ReportRefused::Ended));
}

#[tokio::test]
async fn a_member_hears_that_its_steward_has_done_with_it_or_has_gone() {
    let (alice, mut events) = Agent::steward(options(), &[]);
    let bob = Agent::start(&[]);
    let mut first = enlist_at(&bob, &alice, 1).await;
    let (_, _, answers) = enlisted(&mut events).await;
    let mut second = enlist_at(&bob, &alice, 2).await;
    let _answers = enlisted(&mut events).await;

    answers.try_send(answer(1)).expect("room");
    drop(answers);
    assert_eq!(soon(first.next()).await, Ok(answer(1)));
    let ended = failure(&mut first).await;
    assert!(ended.to_string().contains("ended the stream"), "{ended}");
    assert_eq!(left(&mut events).await, (bob.peer, swarm(1)));

    soon(alice.exchange.shut_down()).await;
    let gone = failure(&mut second).await;
    assert!(matches!(gone, PeerFailure::Lost { .. }), "{gone}");
}

#[tokio::test]
async fn who_is_no_steward_says_so() {
    let (alice, bob) = (Agent::start(&[]), Agent::start(&[]));
    let mut link = enlist_at(&bob, &alice, 1).await;
    assert_eq!(failure(&mut link).await, PeerFailure::Unknown);
    let announcer = bob.exchange.announce(alice.peer, vec![alice.address()]);
    let mut announcer = soon(announcer).await.expect("reached");
    assert_eq!(soon(announcer.ended()).await, PeerFailure::Unknown);
    let refused = soon(announcer.announce(vec![swarm(1)])).await;
    assert_eq!(refused, Err(PeerFailure::Unknown));

    let (carol, events) = Agent::steward(options(), &[]);
    drop(events);
    let mut link = enlist_at(&bob, &carol, 1).await;
    assert_eq!(failure(&mut link).await, PeerFailure::Unknown);
}

#[tokio::test]
async fn a_member_that_comes_again_takes_its_own_place() {
    let (alice, mut events) = Agent::steward(options(), &[]);
    let bob = Agent::start(&[]);
    let mut old = enlist_at(&bob, &alice, 1).await;
    let _old_answers = enlisted(&mut events).await;
    let mut new = enlist_at(&bob, &alice, 1).await;
    assert_eq!(left(&mut events).await, (bob.peer, swarm(1)));
    let (peer, _, answers) = enlisted(&mut events).await;
    assert_eq!(peer, bob.peer);
    assert!(matches!(failure(&mut old).await, PeerFailure::Lost { .. }));
    answers.try_send(answer(4)).expect("room");
    assert_eq!(soon(new.next()).await, Ok(answer(4)));
    drop(new);
    // The old one has left once.
    assert_eq!(left(&mut events).await, (bob.peer, swarm(1)));
    let _again = enlist_at(&bob, &alice, 1).await;
    enlisted(&mut events).await;
}

#[tokio::test]
async fn a_peer_gets_only_so_many_places_and_so_do_all_together() {
    let options = ExchangeOptions {
        max_steward_streams: 3,
        max_steward_streams_per_peer: 2,
        ..options()
    };
    let retry_after = options.busy_retry_after;
    let (alice, mut events) = Agent::steward(options, &[]);
    let (bob, carol) = (Agent::start(&[]), Agent::start(&[]));
    let first = enlist_at(&bob, &alice, 1).await;
    let _first = enlisted(&mut events).await;
    let _second = enlist_at(&bob, &alice, 2).await;
    let _second_answers = enlisted(&mut events).await;
    let mut third = enlist_at(&bob, &alice, 3).await;
    assert_eq!(failure(&mut third).await, PeerFailure::Busy { retry_after });

    let _carols = enlist_at(&carol, &alice, 1).await;
    let _carols_answers = enlisted(&mut events).await;
    let mut one_too_many = enlist_at(&carol, &alice, 2).await;
    assert_eq!(
        failure(&mut one_too_many).await,
        PeerFailure::Busy { retry_after }
    );
    // Its own place is no further one.
    let _again = enlist_at(&carol, &alice, 1).await;
    assert_eq!(left(&mut events).await, (carol.peer, swarm(1)));
    let _again_answers = enlisted(&mut events).await;

    drop(first);
    assert_eq!(left(&mut events).await, (bob.peer, swarm(1)));
    let _now = enlist_at(&bob, &alice, 3).await;
    assert_eq!(enlisted(&mut events).await.0, bob.peer);
}

/// Resident memory of this process in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kibibytes.map_or(0, |number| number.parse::<u64>().expect("a number") << 10)
}

/// `docs/exchange.md` has what this prints.
#[tokio::test]
async fn a_steward_has_a_thousand_members() {
    const MEMBERS: usize = 1000;
    let (alice, mut events) = Agent::steward(options(), &[]);
    let house = RawPeer::start();
    let members: Vec<RawPeer> = (0..MEMBERS).map(|_| house.housemate()).collect();
    let (before, begun) = (resident_bytes(), std::time::Instant::now());
    let mut streams = Vec::new();
    let mut seats = Vec::new();
    for member in &members {
        let connection = member.dial(&alice).await;
        let enlistment = RequesterMessage::Enlist(enlist(1)).to_bytes();
        let stream = say(&connection, &[enlistment]).await;
        let (peer, _, answers) = enlisted(&mut events).await;
        assert_eq!(peer, member.peer);
        streams.push((connection, stream));
        seats.push(answers);
    }
    let each = (resident_bytes().saturating_sub(before)) / MEMBERS as u64;
    let seconds = begun.elapsed().as_secs_f64();
    let milliseconds = seconds * 1e3 / MEMBERS as f64;
    println!("a member: {each} bytes and {milliseconds:.2} ms, both sides");
    for answers in &seats {
        answers.try_send(answer(1)).expect("room");
    }
    let said = ResponderMessage::Answer(answer(1)).to_bytes();
    for (_connection, (_send, receive)) in &mut streams {
        let mut heard = vec![0; said.len()];
        soon(receive.read_exact(&mut heard)).await.expect("told");
        assert_eq!(heard, said);
    }
}

#[tokio::test]
async fn announcements_come_in_order_and_end_with_the_stream() {
    let (alice, mut events) = Agent::steward(options(), &[]);
    let bob = Agent::start(&[]);
    let announcer = bob.exchange.announce(alice.peer, vec![alice.address()]);
    let announcer = soon(announcer).await.expect("reached");
    let many: Vec<SwarmId> = (0u32..2500)
        .map(|number| SwarmId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes()))
        .collect();
    soon(announcer.announce(many.clone())).await.expect("said");
    soon(announcer.withdraw(many[3..5].to_vec()))
        .await
        .expect("said");
    assert_eq!(announced(&mut events).await, []);
    let mut come = Vec::new();
    for _ in 0..3 {
        come.extend(announced(&mut events).await);
    }
    assert_eq!(come, many);
    match next(&mut events).await {
        SeatEvent::Withdrawn { peer, swarms } => {
            assert_eq!((peer, &swarms[..]), (bob.peer, &many[3..5]));
        }
        other => panic!("a withdrawal was expected, {other:?} came"),
    }
    drop(announcer);
    match next(&mut events).await {
        SeatEvent::Silent { peer } => assert_eq!(peer, bob.peer),
        other => panic!("the end of announcements was expected, {other:?} came"),
    }
}

/// One stream on which `messages` are said.
async fn say(connection: &Connection, messages: &[Vec<u8>]) -> (SendStream, RecvStream) {
    let (mut send, receive) = soon(connection.open_bi()).await.expect("a stream");
    soon(send.write_all(&messages.concat()))
        .await
        .expect("written");
    (send, receive)
}

#[tokio::test]
async fn who_falls_silent_is_given_up_and_an_announcer_never_does() {
    let options = ExchangeOptions {
        steward_idle_timeout: Duration::from_millis(600),
        unjoined_timeout: Duration::from_millis(300),
        ..options()
    };
    let (alice, mut events) = Agent::steward(options.clone(), &[]);
    let bob = Agent::with(options, &[]);
    let announcer = bob.exchange.announce(alice.peer, vec![alice.address()]);
    let announcer = soon(announcer).await.expect("reached");
    announced(&mut events).await;

    let raw = RawPeer::start();
    let connection = raw.dial(&alice).await;
    let enlistment = RequesterMessage::Enlist(enlist(1)).to_bytes();
    let (mut send, mut receive) = say(&connection, &[enlistment]).await;
    let (_, _, answers) = enlisted(&mut events).await;
    let began = std::time::Instant::now();
    // A report in between counts.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let bytes = RequesterMessage::Report(report(1)).to_bytes();
    send.write_all(&bytes).await.expect("written");
    assert!(matches!(
        next(&mut events).await,
        SeatEvent::Reported { .. }
    ));
    assert_eq!(left(&mut events).await, (raw.peer, swarm(1)));
    assert!(began.elapsed() >= Duration::from_millis(900));
    assert!(soon(receive.read_to_end(10)).await.is_err(), "it is reset");
    soon(answers.closed()).await;
    // Without a stream that has a place the connection does not stay.
    assert_eq!(close_code(&connection).await, DONE);

    soon(announcer.announce(vec![swarm(5)]))
        .await
        .expect("said");
    assert_eq!(announced(&mut events).await, [swarm(5)]);
}

#[tokio::test]
async fn who_breaks_a_stewards_protocol_is_disconnected_and_has_left() {
    let enlistment = RequesterMessage::Enlist(enlist(1)).to_bytes();
    let said = RequesterMessage::Report(report(1)).to_bytes();
    let announcement = |count: usize| {
        let swarms = vec![swarm(1); count];
        RequesterMessage::Announce { swarms }.to_bytes()
    };
    let withdrawal = RequesterMessage::Withdraw { swarms: vec![] }.to_bytes();
    let of_other_blocks = Report {
        held: BlockSet::empty(BLOCKS + 1),
        ..report(1)
    };
    let of_other_blocks = RequesterMessage::Report(of_other_blocks).to_bytes();
    let first: [Vec<u8>; 4] = [
        said.clone(),
        withdrawal.clone(),
        vec![0x09],
        announcement(1024),
    ];
    let later: [[Vec<u8>; 2]; 8] = [
        [enlistment.clone(), enlistment.clone()],
        [enlistment.clone(), announcement(0)],
        [enlistment.clone(), announcement(1024)],
        [enlistment.clone(), of_other_blocks],
        [enlistment.clone(), vec![0x04]],
        [announcement(1), said],
        [announcement(1), enlistment],
        [announcement(1), vec![0x8a]],
    ];
    let (alice, mut events) = Agent::steward(options(), &[]);
    for bytes in first {
        let raw = RawPeer::start();
        let connection = raw.dial(&alice).await;
        let _stream = say(&connection, std::slice::from_ref(&bytes)).await;
        let code = close_code(&connection).await;
        assert_eq!(code, PROTOCOL_VIOLATION, "{:?}", &bytes[..1]);
    }
    for bytes in later {
        let raw = RawPeer::start();
        let connection = raw.dial(&alice).await;
        let _stream = say(&connection, &bytes).await;
        // Dropped at once, the answers would end the stream before it is read on.
        let _answers = match next(&mut events).await {
            SeatEvent::Enlisted { answers, .. } => Some(answers),
            SeatEvent::Announced { .. } => None,
            other => panic!("a beginning was expected, {other:?} came"),
        };
        let code = close_code(&connection).await;
        assert_eq!(code, PROTOCOL_VIOLATION, "{:?}", &bytes[1][..1]);
        match next(&mut events).await {
            SeatEvent::Left { peer, .. } | SeatEvent::Silent { peer } => {
                assert_eq!(peer, raw.peer);
            }
            other => panic!("an end was expected, {other:?} came"),
        }
    }
}

/// What bob makes of a steward that answers his enlistment with `bytes`, and the code he closes with.
async fn verdict_on(bytes: Vec<u8>) -> (PeerFailure, u64) {
    let (raw, bob) = (RawPeer::start(), Agent::start(&[]));
    let enlisting = tokio::spawn(
        bob.exchange
            .enlist(raw.peer, vec![raw.address()], enlist(1)),
    );
    let connection = raw.accept().await;
    let (mut send, mut receive) = soon(connection.accept_bi()).await.expect("a stream");
    let mut said = vec![0; RequesterMessage::Enlist(enlist(1)).to_bytes().len()];
    soon(receive.read_exact(&mut said)).await.expect("a word");
    send.write_all(&bytes).await.expect("written");
    let link = soon(enlisting).await.expect("no panic");
    let failure = failure(&mut link.expect("reached")).await;
    (failure, close_code(&connection).await)
}

#[tokio::test]
async fn a_steward_that_misbehaves_is_cut_off() {
    let past_the_end = ResponderMessage::Answer(answer(91)).to_bytes();
    let have = branchline_core::wire::Have::of(&SegmentSet::full(5));
    let out_of_place = ResponderMessage::Have(have).to_bytes();
    let long = [&[0x89][..], &(1u32 << 20).to_le_bytes(), &[1]].concat();
    for (bytes, what) in [
        (past_the_end, "lease"),
        (out_of_place, "Have"),
        (long, "bytes or more"),
        (vec![0x05], "0x05"),
    ] {
        let (failure, code) = verdict_on(bytes).await;
        let PeerFailure::Misbehaved(misbehaviour) = failure else {
            panic!("misbehaviour was expected, not {failure}");
        };
        assert!(misbehaviour.to_string().contains(what), "{misbehaviour}");
        assert_eq!(code, MISBEHAVED);
    }
    let half = ResponderMessage::Answer(answer(1)).to_bytes()[..10].to_vec();
    let (raw, bob) = (RawPeer::start(), Agent::start(&[]));
    let link = bob
        .exchange
        .enlist(raw.peer, vec![raw.address()], enlist(1));
    let linking = tokio::spawn(link);
    let connection = raw.accept().await;
    let (mut send, _receive) = soon(connection.accept_bi()).await.expect("a stream");
    send.write_all(&half).await.expect("written");
    send.finish().expect("open");
    let mut link = soon(linking).await.expect("no panic").expect("reached");
    let what = "a steward's answer";
    let truncated = PeerFailure::Misbehaved(Misbehaviour::Truncated { what });
    assert_eq!(failure(&mut link).await, truncated);
}

#[tokio::test]
async fn however_late_the_steward_looks_nothing_is_lost_or_out_of_order() {
    let (alice, mut events) = Agent::steward(options(), &[]);
    let raw = RawPeer::start();
    let connection = raw.dial(&alice).await;
    let mut said = vec![RequesterMessage::Enlist(enlist(1)).to_bytes()];
    said.extend((0..1000).map(|number| RequesterMessage::Report(report(number)).to_bytes()));
    let (mut send, _receive) = say(&connection, &said).await;
    send.finish().expect("open");
    // Another member is held back, but not kept out.
    let bob = Agent::start(&[]);
    let _bobs = enlist_at(&bob, &alice, 2).await;
    let (mut reported, mut raw_left, mut kept) = (0, false, Vec::new());
    while !raw_left || kept.len() < 2 {
        match next(&mut events).await {
            SeatEvent::Enlisted { answers, .. } => kept.push(answers),
            SeatEvent::Reported { report: said, .. } => {
                assert_eq!(said, report(reported));
                reported += 1;
            }
            SeatEvent::Left { peer, .. } => {
                assert_eq!((peer, reported), (raw.peer, 1000));
                raw_left = true;
            }
            other => panic!("{other:?} came"),
        }
    }
}

#[tokio::test]
async fn a_member_shares_its_connection_with_its_sessions() {
    let content = std::sync::Arc::new(Memory::new(1, 3));
    let raw = RawPeer::start();
    let bob = Agent::start(&[]);
    let enlisting = bob
        .exchange
        .enlist(raw.peer, vec![raw.address()], enlist(1));
    let enlisting = tokio::spawn(enlisting);
    let joining = bob
        .exchange
        .join(raw.peer, vec![raw.address()], content.key);
    let joining = tokio::spawn(joining);
    let connection = raw.accept().await;
    let mut kinds = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let (send, mut receive) = soon(connection.accept_bi()).await.expect("a stream");
        let mut kind = [0];
        soon(receive.read_exact(&mut kind)).await.expect("a word");
        kinds.extend(kind);
        streams.push((send, receive));
    }
    kinds.sort_unstable();
    assert_eq!(kinds, [0x01, 0x05]);
    let link = soon(enlisting).await.expect("no panic").expect("reached");
    joining.abort();
    drop(link);
    assert_eq!(close_code(&connection).await, DONE);
}
