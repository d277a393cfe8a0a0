//! Agents that behave, over loopback.

#![allow(clippy::wildcard_enum_match_arm)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use branchline_core::planner::Source;
use branchline_core::repair::Claim;
use branchline_core::wire::Standing;
use branchline_exchange::{
    DialError, DownloadSpec, EventSink, Exchange, ExchangeError, ExchangeOptions, JoinError,
    Listen, Misbehaviour, PeerEventKind, PeerFailure, RequestRefused, ServedContent,
};
use branchline_hashing::{ContentKey, SegmentHash, SegmentIndex};
use bytes::Bytes;

use common::*;

#[tokio::test]
async fn a_connection_waits_a_moment_for_the_next_question_and_then_ends() {
    let (raw, bob) = (RawPeer::start(), Agent::start(&[]));
    bob.exchange.warm(raw.peer, vec![raw.address()]);
    let connection = raw.accept().await;
    let key = Memory::even(1, 5, 10).key;
    let joining = tokio::spawn(bob.exchange.join(raw.peer, vec![raw.address()], key));
    let _question = soon(connection.accept_bi()).await.expect("on the same one");
    joining.abort();
    soon(connection.closed()).await;
}

#[tokio::test]
async fn one_agent_takes_a_content_from_two_that_have_half_of_it_each() {
    let content = Arc::new(Memory::new(1, 300));
    let odd = Arc::new(Memory::new(1, 300).only(|index| index % 2 == 1));
    let even = Arc::new(Memory::new(1, 300).only(|index| index % 2 == 0));
    let (alice, bob, carol) = (
        Agent::start(&[&odd]),
        Agent::start(&[&even]),
        Agent::start(&[]),
    );

    let mut got = BTreeMap::new();
    for other in [&alice, &bob] {
        let session = carol.join(other, &content).await;
        let (download, mut events) = download(&session, &content, 8);
        let have = events.have().await;
        assert_eq!(have.len(), 150);
        for run in have.ranges() {
            download.request(run).expect("taken");
        }
        for _ in 0..have.len() {
            let (index, bytes) = events.segment().await;
            assert!(have.contains(index));
            got.insert(index.0, bytes);
        }
    }
    assert_eq!(got.into_values().collect::<Vec<_>>(), content.all);

    let (from_alice, from_bob) = (alice.exchange.upload_stats(), bob.exchange.upload_stats());
    assert_eq!(
        from_alice.total_bytes + from_bob.total_bytes,
        content.length()
    );
    assert_eq!(
        from_alice.bytes_by_peer,
        BTreeMap::from([(carol.peer, from_alice.total_bytes)])
    );
    assert_eq!(carol.exchange.upload_stats().total_bytes, 0);
}

#[tokio::test]
async fn provisional_bytes_are_given_to_those_who_were_told_so_and_with_them_what_they_are() {
    let standing = Standing::Provisional { file_bytes: 77 };
    let mut memory = Memory::even(3, 8, 900).only(|index| index != 5);
    memory.standing = standing;
    let content = Arc::new(memory);
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    assert_eq!(session.standing(), standing);
    let (download, mut events) = download(&session, &content, 8);
    download.request(range(2, 1)).expect("taken");
    events.have().await;
    let (index, bytes) = events.segment().await;
    assert_eq!((index.0, &bytes), (2, &content.all[2]));
    assert_eq!(content.reads.load(Ordering::SeqCst), 0, "read as verified");
    let claims = session.claims(range(4, 3)).await.expect("an answer");
    let claim = |index: usize, first_hand| {
        let hash = SegmentHash::of(&content.all[index]);
        Some(Claim { hash, first_hand })
    };
    assert_eq!(claims, [claim(4, true), None, claim(6, true)]);
}

#[tokio::test]
async fn requests_are_pipelined_and_each_segment_comes_once() {
    let content = Arc::new(Memory::even(2, 900, 4000));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let (download, mut events) = download(&session, &content, 16);
    for index in 0..content.size() {
        download.request(range(index, 1)).expect("taken");
    }
    events.have().await;
    let mut got = BTreeMap::new();
    for _ in 0..content.size() {
        let (index, bytes) = events.segment().await;
        assert!(got.insert(index.0, bytes).is_none(), "{index} came twice");
    }
    assert_eq!(got.into_values().collect::<Vec<_>>(), content.all);
}

#[tokio::test]
async fn a_segment_the_peer_lost_is_absent_and_the_rest_comes() {
    let content = Arc::new(Memory::new(3, 9).only(|index| index != 4));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let (download, mut events) = download(&session, &content, 16);
    download.request(range(3, 3)).expect("taken");
    events.have().await;
    assert_eq!(events.segment().await.0, SegmentIndex(3));
    assert!(matches!(
        events.next().await,
        PeerEventKind::Absent(SegmentIndex(4))
    ));
    assert_eq!(events.segment().await.0, SegmentIndex(5));
}

#[tokio::test]
async fn what_a_peer_has_is_told_anew_when_asked() {
    let content = Arc::new(Memory::new(4, 200).only(|index| index < 10));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    assert_eq!(session.claimed_segments(), 200);
    assert_eq!(session.have(200).expect("right size").len(), 10);
    for index in (20..200).step_by(2) {
        content
            .have
            .lock()
            .expect("no panic")
            .insert(SegmentIndex(index));
    }
    let have = soon(session.ask_have(200)).await.expect("told");
    assert_eq!(have, *content.have.lock().expect("no panic"));
    let wrong = Misbehaviour::WrongSegmentCount {
        expected: 199,
        found: 200,
    };
    assert_eq!(session.have(199), Err(PeerFailure::Misbehaved(wrong)));
}

#[tokio::test]
async fn a_manifest_comes_whole_or_not_at_all() {
    let manifest = Bytes::from(vec![7; 3_000_000]);
    let with = Arc::new(Memory {
        manifest: Some(manifest.clone()),
        ..Memory::new(5, 3)
    });
    let without = Arc::new(Memory::new(6, 3));
    let (alice, bob) = (Agent::start(&[&with, &without]), Agent::start(&[]));

    let session = bob.join(&alice, &without).await;
    assert_eq!(soon(session.manifest(100)).await, Ok(None));
    let session = bob.join(&alice, &with).await;
    assert_eq!(soon(session.manifest(3_000_000)).await, Ok(Some(manifest)));
    let too_long = Misbehaviour::ManifestTooLong {
        length: 3_000_000,
        limit: 2_999_999,
    };
    assert_eq!(
        soon(session.manifest(2_999_999)).await,
        Err(PeerFailure::Misbehaved(too_long))
    );
    assert!(matches!(
        soon(session.manifest(3_000_000)).await,
        Err(PeerFailure::Lost { .. })
    ));
}

#[tokio::test]
async fn who_does_not_know_the_key_is_told_nothing() {
    let content = Arc::new(Memory::new(7, 3));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let other = ContentKey::from_bytes([99; 32]);
    let joined = soon(bob.exchange.join(alice.peer, vec![alice.address()], other)).await;
    let error = joined.err().expect("alice has no such content");
    assert!(
        matches!(error, JoinError::Peer(PeerFailure::Unknown)),
        "{error}"
    );
}

#[tokio::test]
async fn another_agent_than_the_expected_is_refused() {
    let content = Arc::new(Memory::new(8, 3));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let somebody = identity().peer_id();
    let joined = soon(
        bob.exchange
            .join(somebody, vec![alice.address()], content.key),
    )
    .await;
    let error = joined.err().expect("alice is not somebody");
    assert!(
        matches!(error, JoinError::Dial(DialError::Handshake { .. })),
        "{error}"
    );

    let joined = soon(
        bob.exchange
            .join(bob.peer, vec![bob.address()], content.key),
    )
    .await;
    let error = joined.err().expect("bob needs no dialling");
    assert!(
        matches!(error, JoinError::Dial(DialError::Ourselves { .. })),
        "{error}"
    );

    let joined = soon(bob.exchange.join(alice.peer, vec![], content.key)).await;
    let error = joined.err().expect("nowhere to dial");
    assert!(
        matches!(error, JoinError::Dial(DialError::NoAddress { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_dead_address_does_not_hide_a_live_one() {
    let content = Arc::new(Memory::new(9, 3));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let dead = UdpSocket::bind("127.0.0.1:0").expect("a socket that never answers");
    let dead = dead.local_addr().expect("bound");
    let addresses = vec![
        dead,
        "[::1]:9".parse().expect("an address"),
        alice.address(),
    ];
    let session = soon(bob.exchange.join(alice.peer, addresses, content.key)).await;
    assert_eq!(
        session.expect("the third address answers").peer(),
        alice.peer
    );
}

#[tokio::test]
async fn a_peer_nobody_answers_for_is_unreachable_within_the_deadline() {
    let options = ExchangeOptions {
        dial_timeout: std::time::Duration::from_millis(300),
        ..options()
    };
    let bob = Agent::with(options, &[]);
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a socket that never answers");
    let address = silent.local_addr().expect("bound");
    let joined = bob.exchange.join(
        identity().peer_id(),
        vec![address],
        ContentKey::from_bytes([1; 32]),
    );
    let error = soon(joined).await.err().expect("nobody is there");
    assert!(
        matches!(error, JoinError::Dial(DialError::Unreachable { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn beyond_the_upload_limit_requesters_are_told_to_come_again() {
    let gated = Memory {
        gate: Some(Gate::default()),
        ..Memory::even(10, 4, 1000)
    };
    let content = Arc::new(gated);
    let options = ExchangeOptions {
        max_uploads: 1,
        // Two wait at the gate for bob; look-ups go on.
        reader_threads: 4,
        ..options()
    };
    let retry_after = options.busy_retry_after;
    let alice = Agent::with(options, &[&content]);
    let (bob, carol) = (Agent::start(&[]), Agent::start(&[]));

    let bobs = bob.join(&alice, &content).await;
    let (bobs, mut bobs_events) = download(&bobs, &content, 16);
    bobs.request(range(0, 4)).expect("taken");
    bobs_events.have().await;
    until(|| alice.exchange.upload_stats().active_uploads == 1).await;

    let session = carol.join(&alice, &content).await;
    let (carols, mut carols_events) = download(&session, &content, 16);
    carols.request(range(1, 2)).expect("taken");
    carols_events.have().await;
    match carols_events.next().await {
        PeerEventKind::Busy {
            range: refused,
            retry_after: told,
        } => {
            assert_eq!((refused, told), (range(1, 2), retry_after));
        }
        other => panic!("busy was expected, {other:?} came"),
    }
    assert_eq!(
        soon(session.manifest(10)).await,
        Err(PeerFailure::Busy { retry_after })
    );

    content.gate.as_ref().expect("gated").open();
    for _ in 0..4 {
        bobs_events.segment().await;
    }
    until(|| alice.exchange.upload_stats().active_uploads == 0).await;
    carols.request(range(1, 1)).expect("taken");
    assert_eq!(carols_events.segment().await.1, content.all[1]);
}

#[tokio::test]
async fn one_peer_gets_only_half_of_all_uploads() {
    let gated = Memory {
        gate: Some(Gate::default()),
        ..Memory::even(17, 8, 1 << 20)
    };
    let content = Arc::new(gated);
    let options = ExchangeOptions {
        max_uploads: 4,
        // Two for each of three uploads wait at the gate; look-ups go on.
        reader_threads: 7,
        ..options()
    };
    let alice = Agent::with(options, &[&content]);
    let (bob, carol) = (Agent::start(&[]), Agent::start(&[]));
    let bobs = bob.join(&alice, &content).await;
    let (bobs, mut bobs_events) = download(&bobs, &content, 16);
    // Four streams with two requests each.
    bobs.request(range(0, 8)).expect("taken");
    bobs_events.have().await;
    let refused = bobs_events.next().await;
    assert!(matches!(refused, PeerEventKind::Busy { .. }), "{refused:?}");
    assert_eq!(alice.exchange.upload_stats().active_uploads, 2);

    let carols = carol.join(&alice, &content).await;
    let (carols, mut carols_events) = download(&carols, &content, 16);
    carols.request(range(7, 1)).expect("taken");
    until(|| alice.exchange.upload_stats().active_uploads == 3).await;
    content.gate.as_ref().expect("gated").open();
    carols_events.have().await;
    assert_eq!(carols_events.segment().await.0, SegmentIndex(7));
}

#[tokio::test]
async fn many_downloads_from_one_peer_at_a_time_all_get_their_segments() {
    let content = Arc::new(Memory::new(18, 3));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let mut downloads = Vec::new();
    for _ in 0..24 {
        let session = bob.join(&alice, &content).await;
        let (download, mut events) = download(&session, &content, 4);
        events.have().await;
        downloads.push((download, events));
    }
    for (download, events) in &mut downloads {
        download.request(range(1, 1)).expect("taken");
        assert_eq!(events.segment().await.0, SegmentIndex(1));
    }
}

#[tokio::test]
async fn segments_and_words_come_apart_when_asked_to() {
    let content = Arc::new(Memory::new(19, 3).only(|index| index != 1));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let (segments, mut arrivals) = tokio::sync::mpsc::channel(4);
    let (rest, words) = tokio::sync::mpsc::channel(4);
    let by_manifest = Arc::clone(&content);
    let download = session.download(DownloadSpec {
        segments: content.size(),
        lengths: Arc::new(move |index| ServedContent::length(&*by_manifest, index)),
        events: EventSink::Apart { segments, rest },
        streams: None,
    });
    download.request(range(0, 3)).expect("taken");
    let mut words = Events(words);
    assert_eq!(words.have().await.len(), 2);
    for index in [0, 2] {
        let arrival = soon(arrivals.recv()).await.expect("the download lives");
        assert_eq!(arrival.source, Source::Peer(alice.peer));
        assert_eq!(arrival.index, SegmentIndex(index));
        assert_eq!(arrival.bytes, content.all[index as usize]);
    }
    let absent = words.next().await;
    assert!(
        matches!(absent, PeerEventKind::Absent(SegmentIndex(1))),
        "{absent:?}"
    );
    session.cut_off("enough");
    assert!(matches!(words.failure().await, PeerFailure::Lost { .. }));
}

#[tokio::test]
async fn a_cancelled_download_stops_the_reading_and_the_next_one_works() {
    let content = Arc::new(Memory::even(11, 2000, 100_000));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let (cancelled, mut events) = download(&session, &content, 1);
    cancelled.request(range(0, 2000)).expect("taken");
    events.have().await;
    events.segment().await;
    drop(cancelled);
    until(|| alice.exchange.upload_stats().active_uploads == 0).await;
    assert!(
        content.reads.load(Ordering::SeqCst) < 1000,
        "nearly everything was read for nobody"
    );

    let (again, mut events) = download(&session, &content, 4);
    again.request(range(1999, 1)).expect("taken");
    events.have().await;
    assert_eq!(
        events.segment().await,
        (SegmentIndex(1999), content.all[1999].clone())
    );
}

#[tokio::test]
async fn what_is_taken_back_in_time_does_not_come() {
    let gated = Memory {
        gate: Some(Gate::default()),
        ..Memory::even(16, 40, 1 << 20)
    };
    let content = Arc::new(gated);
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let (download, mut events) = download(&session, &content, 40);
    // Four streams with two pieces each: what is further back waits at home.
    download.request(range(0, 40)).expect("taken");
    events.have().await;
    until(|| content.reads.load(Ordering::SeqCst) > 0).await;
    download.cancel(range(10, 20));
    download.cancel(range(35, 100));
    content.gate.as_ref().expect("gated").open();
    let mut come = BTreeSet::new();
    for _ in 0..15 {
        come.insert(events.segment().await.0.0);
    }
    assert_eq!(come, (0..10).chain(30..35).collect());
}

#[tokio::test]
async fn a_full_channel_stops_the_peer_and_nothing_is_lost() {
    let content = Arc::new(Memory::even(12, 1000, 100_000));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let (download, mut events) = download(&session, &content, 1);
    download.request(range(0, 1000)).expect("taken");
    // Nothing is taken until the reading at alice's has come to rest.
    let mut before = usize::MAX;
    soon(async {
        while before != content.reads.load(Ordering::SeqCst) || before == 0 {
            before = content.reads.load(Ordering::SeqCst);
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    })
    .await;
    assert!(
        before < 300,
        "{before} segments were read though nobody took one"
    );
    events.have().await;
    let mut got = BTreeMap::new();
    for _ in 0..1000 {
        let (index, bytes) = events.segment().await;
        got.insert(index.0, bytes);
    }
    assert_eq!(got.into_values().collect::<Vec<_>>(), content.all);
}

#[tokio::test]
async fn requests_past_the_manifest_are_refused_at_home() {
    let content = Arc::new(Memory::new(13, 5));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let (download, _events) = download(&session, &content, 1);
    let refused = Err(RequestRefused::NoSuchSegment {
        index: SegmentIndex(5),
    });
    assert_eq!(download.request(range(3, 3)), refused);
}

#[tokio::test]
async fn a_peer_that_is_cut_off_gives_nothing_more() {
    let content = Arc::new(Memory::new(14, 5));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let (download, mut events) = download(&session, &content, 4);
    events.have().await;
    session.cut_off("segment #0 hashes to something else");
    assert!(matches!(events.failure().await, PeerFailure::Lost { .. }));
    assert_eq!(download.request(range(0, 1)), Err(RequestRefused::Ended));
}

#[tokio::test]
async fn shutting_down_tells_peers_and_frees_the_port() {
    let content = Arc::new(Memory {
        gate: Some(Gate::default()),
        ..Memory::even(15, 5, 1 << 20)
    });
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let session = bob.join(&alice, &content).await;
    let (download, mut events) = download(&session, &content, 4);
    download.request(range(0, 5)).expect("taken");
    events.have().await;
    until(|| alice.exchange.upload_stats().active_uploads > 0).await;
    let address = alice.address();
    content.gate.as_ref().expect("gated").open();
    soon(alice.exchange.shut_down()).await;
    assert!(matches!(events.failure().await, PeerFailure::Lost { .. }));
    let failure = soon(session.ask_have(5)).await.expect_err("alice has gone");
    assert!(failure.to_string().contains("the agent stops"), "{failure}");
    UdpSocket::bind(address).expect("the port is free again");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let alice = Agent::start(&[]);
    let options = ExchangeOptions {
        listen: Listen::On(alice.address()),
        ..options()
    };
    let port = alice.exchange.port();
    match Exchange::start(options, identity(), Shelf::of(&[])).err() {
        Some(ExchangeError::PortInUse { port: found }) => assert_eq!(found, port),
        other => panic!("port in use was expected, not {other:?}"),
    }
}
