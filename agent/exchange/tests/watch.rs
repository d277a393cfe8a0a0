//! Watching what a peer comes to have, over loopback.

#![allow(clippy::wildcard_enum_match_arm)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use branchline_core::SegmentSet;
use branchline_core::wire::{Decoded, Have, ResponderMessage, WireMessage};
use branchline_exchange::{HaveUpdate, HaveWatch, Misbehaviour, PeerFailure};
use branchline_hashing::SegmentIndex;

use common::*;

const PROTOCOL_VIOLATION: u64 = 2;
const MISBEHAVED: u64 = 3;

/// What docs/exchange.md says lies between two updates.
const HAVE_EVERY: Duration = Duration::from_millis(60);

fn set(size: u32, members: impl IntoIterator<Item = u32>) -> SegmentSet {
    let mut set = SegmentSet::empty(size);
    members.into_iter().for_each(|index| {
        set.insert(SegmentIndex(index));
    });
    set
}

async fn update(watch: &mut HaveWatch) -> HaveUpdate {
    let update = soon(watch.next()).await.expect("the peer is there");
    update.expect("there is more to come")
}

async fn more(watch: &mut HaveWatch) -> SegmentSet {
    match update(watch).await {
        HaveUpdate::More(more) => more,
        HaveUpdate::All(all) => panic!("{all:?} came again"),
    }
}

#[tokio::test]
async fn a_watcher_is_told_all_and_then_what_is_new() {
    let content = Arc::new(Memory::even(1, 1000, 10).growing());
    content.add(0..10);
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let mut watch = session.watch(1000);
    assert_eq!(watch.peer(), alice.peer);
    let all = HaveUpdate::All(set(1000, 0..10));
    assert_eq!(update(&mut watch).await, all);
    for step in 1..5 {
        let new = (step * 100..step * 100 + 50).step_by(3);
        content.add(new.clone());
        assert_eq!(more(&mut watch).await, set(1000, new));
    }
    // One who comes later begins with all there is.
    let mut later = session.watch(1000);
    let all = HaveUpdate::All(content.have.lock().expect("no panic").clone());
    assert_eq!(update(&mut later).await, all);
    content.add([999]);
    assert_eq!(more(&mut later).await, set(1000, [999]));
    assert_eq!(more(&mut watch).await, set(1000, [999]));
}

#[tokio::test]
async fn a_change_after_a_pause_is_told_at_once_and_those_after_it_together() {
    let content = Arc::new(Memory::even(2, 5000, 10).growing());
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let mut watch = session.watch(5000);
    update(&mut watch).await;
    tokio::time::sleep(2 * HAVE_EVERY).await;

    let began = Instant::now();
    let growing = Arc::clone(&content);
    let adding = tokio::spawn(async move {
        for index in 0..4000 {
            growing.add([index]);
            if index % 20 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let first = more(&mut watch).await;
    assert!(first.len() < 4000, "the first was not waited for");
    let mut told = first;
    let mut updates = 1;
    while told.len() < 4000 {
        let more = more(&mut watch).await;
        assert!(more.iter().all(|index| !told.contains(index)), "told twice");
        told.unite(&more);
        updates += 1;
    }
    let longest = began.elapsed().as_millis() / HAVE_EVERY.as_millis() + 1;
    assert!(updates <= longest, "{updates} updates, {longest} are due");
    soon(adding).await.expect("no panic");
}

#[tokio::test]
async fn when_everything_is_there_a_watch_says_so_and_ends() {
    let content = Arc::new(Memory::even(3, 100, 10).growing());
    let whole = Arc::new(Memory::even(4, 100, 10));
    let part = Arc::new(Memory::even(5, 100, 10).only(|index| index < 50));
    let (alice, bob) = (Agent::start(&[&content, &whole, &part]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let mut watch = session.watch(100);
    update(&mut watch).await;
    content.add(0..100);
    assert_eq!(more(&mut watch).await, SegmentSet::full(100));
    assert_eq!(soon(watch.next()).await, Ok(None));
    let mut late = session.watch(100);
    assert_eq!(
        update(&mut late).await,
        HaveUpdate::All(SegmentSet::full(100))
    );
    assert_eq!(soon(late.next()).await, Ok(None));

    for never_changes in [whole, part] {
        let session = bob.join(&alice, &never_changes).await;
        let mut watch = session.watch(100);
        let all = never_changes.have.lock().expect("no panic").clone();
        assert_eq!(update(&mut watch).await, HaveUpdate::All(all));
        assert_eq!(soon(watch.next()).await, Ok(None));
    }
}

#[tokio::test]
async fn watchers_share_one_look_and_the_last_to_go_ends_it() {
    let content = Arc::new(Memory::even(6, 1000, 10).growing());
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let mut watches: Vec<_> = (0..60).map(|_| session.watch(1000)).collect();
    for watch in &mut watches {
        update(watch).await;
    }
    let before = content.looks.load(Ordering::SeqCst);
    for step in 0..10 {
        content.add([step]);
        for watch in &mut watches {
            assert_eq!(more(watch).await, set(1000, [step]));
        }
    }
    assert_eq!(content.looks.load(Ordering::SeqCst) - before, 10);
    assert_eq!(content.watched_by(), 1);
    drop(watches);
    until(|| content.watched_by() == 0).await;
    let mut again = session.watch(1000);
    let all = HaveUpdate::All(set(1000, 0..10));
    assert_eq!(update(&mut again).await, all);
    content.add([500]);
    assert_eq!(more(&mut again).await, set(1000, [500]));
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_told_all_it_has_missed_in_one_word() {
    let content = Arc::new(Memory::even(7, 4000, 10).growing());
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let mut bobs = session.watch(4000);
    update(&mut bobs).await;

    // Room for an answer to a join and half an update: a bit a segment has 500 bytes.
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window(300u32.into());
    let raw = RawPeer::start();
    let connection = raw.dial_with(&alice, transport).await;
    let join = join_message(
        &content.key.swarm_id(),
        &proof(&connection, &content.key, 0),
    );
    let (mut send, mut receive) = soon(connection.open_bi()).await.expect("a stream");
    soon(send.write_all(&[join, vec![0x09]].concat()))
        .await
        .expect("written");
    // Joined and Have, both with no ranges.
    let mut answers = [0; 43 + 10];
    soon(receive.read_exact(&mut answers)).await.expect("Have");
    assert_eq!((answers[0], answers[43]), (0x81, 0x89));
    for step in 0..5 {
        content.add((step..4000).step_by(10));
        more(&mut bobs).await;
    }
    let (mut bytes, mut updates) = (Vec::new(), Vec::new());
    let mut told = SegmentSet::empty(4000);
    while told.len() < 2000 {
        let chunk = soon(receive.read_chunk(1000, true)).await.expect("open");
        bytes.extend_from_slice(&chunk.expect("more").bytes);
        if let Decoded::Message { message, length } =
            ResponderMessage::decode(&bytes).expect("a message")
        {
            let ResponderMessage::HaveMore(more) = message else {
                panic!("{message:?} came");
            };
            bytes.drain(..length);
            let more = more.to_set(4000).expect("the size is right");
            updates.push(more.len());
            told.unite(&more);
        }
    }
    assert_eq!(updates, [400, 1600]);
}

#[tokio::test]
async fn a_watch_ends_with_the_connection_and_with_the_growing() {
    let content = Arc::new(Memory::even(8, 10, 10).growing());
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let mut watch = session.watch(10);
    update(&mut watch).await;
    soon(alice.exchange.shut_down()).await;
    let lost = soon(watch.next()).await.expect_err("alice has gone");
    assert!(matches!(lost, PeerFailure::Lost { .. }), "{lost}");

    let ended = Arc::new(Memory::even(9, 10, 10).growing());
    let carol = Agent::start(&[&ended]);
    let session = bob.join(&carol, &ended).await;
    let mut watch = session.watch(10);
    update(&mut watch).await;
    ended.add([1, 2]);
    ended.stop_growing();
    assert_eq!(more(&mut watch).await, set(10, [1, 2]));
    assert_eq!(soon(watch.next()).await, Ok(None));
}

#[tokio::test]
async fn how_often_watchers_are_told_may_change_while_they_wait() {
    let content = Arc::new(Memory::even(12, 10, 10).growing());
    let set_every = |every| *content.tell_every.lock().expect("no panic") = every;
    set_every(Duration::from_secs(60));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let mut watch = session.watch(10);
    update(&mut watch).await;
    content.add([1]);
    let early = tokio::time::timeout(HAVE_EVERY * 5, watch.next()).await;
    assert!(early.is_err(), "{early:?}");
    set_every(HAVE_EVERY);
    assert_eq!(more(&mut watch).await, set(10, [1]));
}

#[tokio::test]
async fn a_watcher_that_says_more_is_disconnected() {
    let content = Arc::new(Memory::even(10, 10, 10).growing());
    let alice = Agent::start(&[&content]);
    for more in [0x04, 0x09, 0x03] {
        let raw = RawPeer::start();
        let connection = raw.dial(&alice).await;
        let join = join_message(
            &content.key.swarm_id(),
            &proof(&connection, &content.key, 0),
        );
        let (mut send, _receive) = soon(connection.open_bi()).await.expect("a stream");
        soon(send.write_all(&[join, vec![0x09, more]].concat()))
            .await
            .expect("written");
        assert_eq!(close_code(&connection).await, PROTOCOL_VIOLATION);
    }
}

#[tokio::test]
async fn who_tells_of_another_content_or_out_of_turn_is_cut_off() {
    let have = |size| Have::of(&SegmentSet::empty(size));
    let wrong_count = Misbehaviour::WrongSegmentCount {
        expected: 5,
        found: 6,
    };
    let out_of_place = |message: &str| Misbehaviour::OutOfPlace {
        message: message.to_owned(),
    };
    let cases = [
        (
            [ResponderMessage::Have(have(6)), ResponderMessage::Unknown],
            wrong_count.clone(),
        ),
        (
            [
                ResponderMessage::Have(have(5)),
                ResponderMessage::HaveMore(have(6)),
            ],
            wrong_count,
        ),
        (
            [ResponderMessage::Have(have(5)), ResponderMessage::Unknown],
            out_of_place("Unknown"),
        ),
        (
            [
                ResponderMessage::HaveMore(have(5)),
                ResponderMessage::Unknown,
            ],
            out_of_place("HaveMore(Have(0 ranges of 5))"),
        ),
    ];
    for (words, expected) in cases {
        let (raw, bob) = (RawPeer::start(), Agent::start(&[]));
        let content = Memory::even(11, 5, 10);
        let key = content.key;
        let joining = tokio::spawn(bob.exchange.join(raw.peer, vec![raw.address()], key));
        let connection = raw.accept().await;
        let accept = async || {
            let (mut send, mut receive) = soon(connection.accept_bi()).await.expect("a stream");
            let mut join = [0; 65];
            soon(receive.read_exact(&mut join)).await.expect("a join");
            let joined = joined_message(&proof(&connection, &key, 1), 5);
            send.write_all(&joined).await.expect("written");
            (send, receive)
        };
        let _first = accept().await;
        let session = soon(joining).await.expect("no panic").expect("joined");
        let mut watch = session.watch(5);
        let (mut send, mut receive) = accept().await;
        let mut asked = [0];
        soon(receive.read_exact(&mut asked)).await.expect("a word");
        assert_eq!(asked, [0x09]);
        for word in &words {
            send.write_all(&word.to_bytes()).await.expect("written");
        }
        let failure = loop {
            if let Err(failure) = soon(watch.next()).await {
                break failure;
            }
        };
        assert_eq!(failure, PeerFailure::Misbehaved(expected));
        assert_eq!(close_code(&connection).await, MISBEHAVED);
    }
}
