//! Peers made of bare quinn that do what no honest agent does.

#![allow(clippy::wildcard_enum_match_arm)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use branchline_core::wire::WireError;
use branchline_exchange::{ExchangeOptions, JoinError, Misbehaviour, PeerFailure};
use branchline_hashing::{ContentKey, SegmentIndex};
use quinn::{Connection, RecvStream, SendStream};

use common::*;

/// `CloseCode::Done`, `ProtocolViolation`, `Misbehaved` and `TooManyConnections`, as docs/exchange.md has them.
const DONE: u64 = 0;
const PROTOCOL_VIOLATION: u64 = 2;
const MISBEHAVED: u64 = 3;
const TOO_MANY_CONNECTIONS: u64 = 4;

async fn ask(connection: &Connection, bytes: &[u8]) -> (SendStream, RecvStream) {
    let (mut send, receive) = soon(connection.open_bi()).await.expect("a stream");
    soon(send.write_all(bytes)).await.expect("written");
    (send, receive)
}

/// Everything the responder says on a stream it ends.
async fn whole_answer(connection: &Connection, bytes: &[u8]) -> Vec<u8> {
    let (_send, mut receive) = ask(connection, bytes).await;
    soon(receive.read_to_end(1000))
        .await
        .expect("an answer and an end")
}

async fn first_byte(connection: &Connection, bytes: &[u8]) -> u8 {
    let (_send, mut receive) = ask(connection, bytes).await;
    let mut first = [0];
    soon(receive.read_exact(&mut first))
        .await
        .expect("an answer");
    first[0]
}

#[tokio::test]
async fn a_wrong_proof_and_no_such_content_get_the_same_answer() {
    let content = Arc::new(Memory::new(1, 3));
    let alice = Agent::start(&[&content]);
    let raw = RawPeer::start();
    let connection = raw.dial(&alice).await;
    let swarm = content.key.swarm_id();
    let unknown = ContentKey::from_bytes([77; 32]);

    let wrong_proof = whole_answer(&connection, &join_message(&swarm, &[5; 32])).await;
    let of_unknown = proof(&connection, &unknown, 0);
    let no_content =
        whole_answer(&connection, &join_message(&unknown.swarm_id(), &of_unknown)).await;
    assert_eq!(wrong_proof, [0x82]);
    assert_eq!(wrong_proof, no_content);
    // The key that stands in for a missing one opens nothing.
    let stand_in = ContentKey::from_bytes([0; 32]);
    let mut proof_key_message = [0; 32];
    proof_key_message.copy_from_slice(&proof(&connection, &stand_in, 0));
    let answer = whole_answer(
        &connection,
        &join_message(&stand_in.swarm_id(), &proof_key_message),
    )
    .await;
    assert_eq!(answer, [0x82]);
    let looked_up = alice.shelf.looked_up.load(Ordering::SeqCst);
    assert_eq!(looked_up, 0, "nothing but keys before a right proof");

    let right = proof(&connection, &content.key, 0);
    assert_eq!(
        first_byte(&connection, &join_message(&swarm, &right)).await,
        0x81
    );
}

#[tokio::test]
async fn a_proof_is_worth_nothing_on_another_connection_or_turned_around() {
    let content = Arc::new(Memory::new(2, 3));
    let alice = Agent::start(&[&content]);
    let (raw, thief) = (RawPeer::start(), RawPeer::start());
    let swarm = content.key.swarm_id();
    let owned = raw.dial(&alice).await;
    let join = join_message(&swarm, &proof(&owned, &content.key, 0));
    assert_eq!(first_byte(&owned, &join).await, 0x81);

    let stolen = thief.dial(&alice).await;
    assert_eq!(whole_answer(&stolen, &join).await, [0x82]);
    let again = raw.dial(&alice).await;
    assert_eq!(
        whole_answer(&again, &join).await,
        [0x82],
        "the same peer, another session"
    );

    let responders = proof(&owned, &content.key, 1);
    assert_eq!(
        whole_answer(&owned, &join_message(&swarm, &responders)).await,
        [0x82]
    );
}

#[tokio::test]
async fn before_the_proof_only_the_swarm_id_travels() {
    let raw = RawPeer::start();
    let bob = Agent::start(&[]);
    let key = ContentKey::from_bytes([3; 32]);
    let joining = tokio::spawn(bob.exchange.join(raw.peer, vec![raw.address()], key));
    let connection = raw.accept().await;
    let (mut send, mut receive) = soon(connection.accept_bi()).await.expect("a stream");
    let mut said = [0; 65];
    soon(receive.read_exact(&mut said)).await.expect("a join");
    send.write_all(&[0x82]).await.expect("Unknown");
    send.finish().expect("open");
    // He is refused, and says no more: the stream or the connection ends.
    assert!(matches!(
        soon(receive.read(&mut [0; 10])).await,
        Ok(None) | Err(_)
    ));
    assert_eq!(
        said[..],
        join_message(&key.swarm_id(), &proof(&connection, &key, 0))
    );
    assert!(!said.windows(32).any(|window| window == key.as_bytes()));
    let refused = soon(joining)
        .await
        .expect("no panic")
        .err()
        .expect("unknown");
    assert!(
        matches!(refused, JoinError::Peer(PeerFailure::Unknown)),
        "{refused}"
    );
}

#[tokio::test]
async fn a_responder_that_does_not_know_the_key_is_cut_off() {
    let raw = RawPeer::start();
    let bob = Agent::start(&[]);
    let key = ContentKey::from_bytes([4; 32]);
    let joining = tokio::spawn(bob.exchange.join(raw.peer, vec![raw.address()], key));
    let connection = raw.accept().await;
    let (mut send, mut receive) = soon(connection.accept_bi()).await.expect("a stream");
    let mut join = [0; 65];
    soon(receive.read_exact(&mut join)).await.expect("a join");
    // What it can do is to give the requester's own proof back.
    let own: [u8; 32] = join[33..].try_into().expect("32 bytes");
    send.write_all(&joined_message(&own, 10))
        .await
        .expect("written");
    let refused = soon(joining)
        .await
        .expect("no panic")
        .err()
        .expect("a wrong proof");
    let wrong = JoinError::Peer(PeerFailure::Misbehaved(Misbehaviour::WrongProof));
    assert_eq!(refused.to_string(), wrong.to_string());
    assert_eq!(close_code(&connection).await, MISBEHAVED);
}

/// Lets bob download `content` from a raw peer that joins honestly and answers the first request of
/// each stream with `answer`; bob's verdict and the code he closes with.
async fn verdict_on(answer: Vec<u8>, then_finish: bool) -> (PeerFailure, u64) {
    let content = Arc::new(Memory::even(5, 8, 1000));
    let raw = RawPeer::start();
    let bob = Agent::start(&[]);
    let key = content.key;
    let joining = tokio::spawn(bob.exchange.join(raw.peer, vec![raw.address()], key));
    let connection = raw.accept().await;
    let responder = connection.clone();
    let serving = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut send, mut receive)) = responder.accept_bi().await {
            let mut join = [0; 65];
            receive.read_exact(&mut join).await.expect("a join");
            let joined = joined_message(&proof(&responder, &key, 1), 8);
            send.write_all(&joined).await.expect("written");
            let mut request = [0; 9];
            // The first stream only joins, and those without a request only wait.
            let answer = answer.clone();
            kept.push(tokio::spawn(async move {
                if receive.read_exact(&mut request).await.is_ok() {
                    let _cut_off = send.write_all(&answer).await;
                    if then_finish {
                        let _cut_off = send.finish();
                    }
                    let _cut_off = send.stopped().await;
                }
            }));
        }
    });
    let session = soon(joining).await.expect("no panic").expect("joined");
    let (download, mut events) = download(&session, &content, 4);
    download.request(range(2, 3)).expect("taken");
    let failure = events.failure().await;
    let code = close_code(&connection).await;
    serving.abort();
    (failure, code)
}

async fn check_misbehaviour(answer: Vec<u8>, then_finish: bool, expected: Misbehaviour) {
    let (failure, code) = verdict_on(answer, then_finish).await;
    assert_eq!(failure, PeerFailure::Misbehaved(expected));
    assert_eq!(code, MISBEHAVED);
}

fn bodied(index: u32, length: u32) -> Vec<u8> {
    let mut bytes = segment_header(index, length);
    bytes.resize(bytes.len() + length as usize, 0xAA);
    bytes
}

#[tokio::test]
async fn a_segment_of_another_length_ends_it() {
    let index = SegmentIndex(2);
    for found in [0, 999, 1001, 16 << 20] {
        let wrong = Misbehaviour::WrongLength {
            index,
            expected: 1000,
            found,
        };
        check_misbehaviour(segment_header(2, found), false, wrong).await;
    }
    let endless = WireError::SegmentTooLong {
        index: 2,
        length: u32::MAX,
    };
    check_misbehaviour(segment_header(2, u32::MAX), false, endless.into()).await;
}

#[tokio::test]
async fn a_segment_out_of_order_or_never_asked_for_ends_it() {
    for found in [3, 4, 7, 1_000_000] {
        let (expected, found) = (SegmentIndex(2), SegmentIndex(found));
        let wrong = Misbehaviour::WrongOrder { expected, found };
        check_misbehaviour(bodied(found.0, 1000), false, wrong).await;
    }
    let twice = [bodied(2, 1000), bodied(2, 1000)].concat();
    let wrong = Misbehaviour::WrongOrder {
        expected: SegmentIndex(3),
        found: SegmentIndex(2),
    };
    check_misbehaviour(twice, false, wrong).await;
}

#[tokio::test]
async fn garbage_and_messages_out_of_place_end_it() {
    let garbage = vec![0x5A; 100_000];
    check_misbehaviour(
        garbage,
        false,
        WireError::UnknownType { found: 0x5A }.into(),
    )
    .await;
    let out_of_place = Misbehaviour::OutOfPlace {
        message: "Unknown".to_owned(),
    };
    check_misbehaviour(vec![0x82], false, out_of_place).await;
    let other_range = [&[0x86][..], &[2, 0, 0, 0], &[2, 0, 0, 0], &[0; 4]].concat();
    let out_of_place = Misbehaviour::OutOfPlace {
        message: "RangeBusy for #2+2".to_owned(),
    };
    check_misbehaviour(other_range, false, out_of_place).await;
}

#[tokio::test]
async fn an_end_within_a_segment_or_before_an_answer_ends_it() {
    let half = bodied(2, 1000)[..500].to_vec();
    check_misbehaviour(half, true, Misbehaviour::Truncated { what: "a segment" }).await;
    let half_a_header = segment_header(2, 1000)[..5].to_vec();
    check_misbehaviour(
        half_a_header,
        true,
        Misbehaviour::Truncated { what: "a request" },
    )
    .await;
    check_misbehaviour(vec![], true, Misbehaviour::Truncated { what: "a request" }).await;
}

#[tokio::test]
async fn endless_bytes_after_the_answer_stay_unread() {
    // All three segments, then as much as the peer likes: bob asks for nothing more, so he reads
    // nothing more; the next request meets the garbage.
    let mut answer: Vec<u8> = (2..5).flat_map(|index| bodied(index, 1000)).collect();
    answer.resize(answer.len() + (64 << 20), 0x5A);
    let content = Arc::new(Memory::even(5, 8, 1000));
    let (raw, bob) = (RawPeer::start(), Agent::start(&[]));
    let key = content.key;
    let joining = tokio::spawn(bob.exchange.join(raw.peer, vec![raw.address()], key));
    let connection = raw.accept().await;
    let responder = connection.clone();
    let serving = tokio::spawn(async move {
        let mut writing = Vec::new();
        while let Ok((mut send, mut receive)) = responder.accept_bi().await {
            let mut join = [0; 65];
            receive.read_exact(&mut join).await.expect("a join");
            let joined = joined_message(&proof(&responder, &key, 1), 8);
            send.write_all(&joined).await.expect("written");
            let answer = answer.clone();
            writing.push(tokio::spawn(async move {
                let mut request = [0; 9];
                if receive.read_exact(&mut request).await.is_ok() {
                    let _cut_off = send.write_all(&answer).await;
                }
            }));
        }
    });
    let session = soon(joining).await.expect("no panic").expect("joined");
    let spec_streams = std::num::NonZeroUsize::MIN;
    let (events, receiver) = tokio::sync::mpsc::channel(4);
    let download = session.download(branchline_exchange::DownloadSpec {
        segments: 8,
        lengths: Arc::new(|_| Some(1000)),
        events: branchline_exchange::EventSink::Together(events),
        streams: Some(spec_streams),
    });
    let mut events = Events(receiver);
    download.request(range(2, 3)).expect("taken");
    events.have().await;
    for index in 2..5 {
        assert_eq!(events.segment().await.0, SegmentIndex(index));
    }
    download.request(range(6, 1)).expect("taken");
    let wire = WireError::UnknownType { found: 0x5A };
    assert_eq!(events.failure().await, PeerFailure::Misbehaved(wire.into()));
    assert_eq!(close_code(&connection).await, MISBEHAVED);
    assert!(
        connection.stats().frame_tx.stream < 60_000,
        "flow control held most of it back"
    );
    serving.abort();
}

#[tokio::test]
async fn a_peer_that_falls_silent_in_a_segment_is_given_up_after_the_idle_timeout() {
    let content = Arc::new(Memory::even(6, 2, 1_000_000));
    let options = ExchangeOptions {
        idle_timeout: Duration::from_millis(800),
        ..options()
    };
    let bob = Agent::with(options, &[]);
    let (place, found) = tokio::sync::oneshot::channel();
    let (thaw, frozen) = std::sync::mpsc::channel::<()>();
    let key = content.key;
    // A runtime of its own, whose only thread stops: not even QUIC's acknowledgements go on.
    let silent = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async move {
            let raw = RawPeer::start();
            place
                .send((raw.peer, raw.address()))
                .expect("the test waits");
            let connection = raw.accept().await;
            loop {
                let (mut send, mut receive) = connection.accept_bi().await.expect("a stream");
                let mut join = [0; 65];
                receive.read_exact(&mut join).await.expect("a join");
                let joined = joined_message(&proof(&connection, &key, 1), 2);
                send.write_all(&joined).await.expect("written");
                let mut request = [0; 9];
                if receive.read_exact(&mut request).await.is_ok() {
                    send.write_all(&bodied(0, 1_000_000)[..500_000])
                        .await
                        .expect("written");
                    while connection.stats().udp_tx.bytes < 500_000 {
                        tokio::task::yield_now().await;
                    }
                    let _thawed = frozen.recv();
                    return;
                }
            }
        });
    });
    let (peer, address) = soon(found).await.expect("the silent peer started");
    let session = soon(bob.exchange.join(peer, vec![address], key))
        .await
        .expect("joined");
    let (events, receiver) = tokio::sync::mpsc::channel(4);
    let by_manifest = Arc::clone(&content);
    let download = session.download(branchline_exchange::DownloadSpec {
        segments: 2,
        lengths: Arc::new(move |i| by_manifest.all.get(i.0 as usize).map(|_| 1_000_000)),
        events: branchline_exchange::EventSink::Together(events),
        streams: Some(std::num::NonZeroUsize::MIN),
    });
    download.request(range(0, 1)).expect("taken");
    let failure = Events(receiver).failure().await;
    assert!(
        matches!(&failure, PeerFailure::Lost { reason } if reason.contains("timed out")),
        "{failure}"
    );
    thaw.send(()).expect("the thread waits");
    silent.join().expect("no panic");
}

#[tokio::test]
async fn a_requester_that_breaks_the_protocol_is_disconnected_and_others_are_not() {
    let content = Arc::new(Memory::new(7, 3));
    let alice = Agent::start(&[&content]);
    let bob = Agent::start(&[]);
    let bobs = bob.join(&alice, &content).await;
    let swarm = content.key.swarm_id();
    let request =
        |first: u32, count: u32| [&[0x02][..], &first.to_le_bytes(), &count.to_le_bytes()].concat();
    let before_a_join: [Vec<u8>; 5] = [
        vec![0x5A; 50_000],
        request(0, 1),
        vec![0x03],
        vec![0x04],
        vec![0x81],
    ];
    for bytes in before_a_join {
        let raw = RawPeer::start();
        let connection = raw.dial(&alice).await;
        let _stream = ask(&connection, &bytes).await;
        assert_eq!(
            close_code(&connection).await,
            PROTOCOL_VIOLATION,
            "{:?}",
            &bytes[..1]
        );
    }
    let after_a_join: [Vec<u8>; 5] = [
        request(0, 0),
        request(0, 1025),
        request(u32::MAX, 1),
        vec![0x84; 9],
        vec![0xFF],
    ];
    for bytes in after_a_join {
        let raw = RawPeer::start();
        let connection = raw.dial(&alice).await;
        let join = join_message(&swarm, &proof(&connection, &content.key, 0));
        let _stream = ask(&connection, &[join, bytes.clone()].concat()).await;
        assert_eq!(
            close_code(&connection).await,
            PROTOCOL_VIOLATION,
            "{bytes:?}"
        );
    }
    let raw = RawPeer::start();
    let connection = raw.dial(&alice).await;
    let join = join_message(&swarm, &proof(&connection, &content.key, 0));
    let _stream = ask(&connection, &[join.clone(), join.clone()].concat()).await;
    assert_eq!(
        close_code(&connection).await,
        PROTOCOL_VIOLATION,
        "a second join"
    );
    let connection = raw.dial(&alice).await;
    let (mut send, _receive) = ask(&connection, &join[..40]).await;
    send.finish().expect("open");
    assert_eq!(
        close_code(&connection).await,
        PROTOCOL_VIOLATION,
        "half a join"
    );

    let (download, mut events) = download(&bobs, &content, 4);
    download.request(range(0, 1)).expect("taken");
    events.have().await;
    assert_eq!(events.segment().await.1, content.all[0]);
}

#[tokio::test]
async fn a_request_for_what_the_content_has_not_is_answered_absent() {
    let content = Arc::new(Memory::new(8, 3).only(|index| index < 2));
    let alice = Agent::start(&[&content]);
    let raw = RawPeer::start();
    let connection = raw.dial(&alice).await;
    let join = join_message(
        &content.key.swarm_id(),
        &proof(&connection, &content.key, 0),
    );
    let request = [&[0x02][..], &2u32.to_le_bytes(), &3u32.to_le_bytes()].concat();
    let (mut send, mut receive) = ask(&connection, &[join, request].concat()).await;
    send.finish().expect("open");
    let answer = soon(receive.read_to_end(1000))
        .await
        .expect("an answer and an end");
    let absent: Vec<u8> = (2u32..5)
        .flat_map(|index| [&[0x85][..], &index.to_le_bytes()].concat())
        .collect();
    assert!(answer.ends_with(&absent), "{answer:02x?}");
}

#[tokio::test]
async fn a_peer_gets_only_so_many_connections() {
    let alice = Agent::start(&[]);
    let raw = RawPeer::start();
    let mut kept = Vec::new();
    for _ in 0..4 {
        let connection = raw.dial(&alice).await;
        let nothing = ContentKey::from_bytes([1; 32]);
        let join = join_message(&nothing.swarm_id(), &[0; 32]);
        assert_eq!(whole_answer(&connection, &join).await, [0x82]);
        kept.push(connection);
    }
    let fifth = raw.dial(&alice).await;
    assert_eq!(close_code(&fifth).await, TOO_MANY_CONNECTIONS);
    kept.pop().expect("four").close(0u32.into(), b"");
    let nothing = ContentKey::from_bytes([1; 32]);
    let join = join_message(&nothing.swarm_id(), &[0; 32]);
    // The place is free once alice has heard of the end.
    soon(async {
        loop {
            let connection = raw.dial(&alice).await;
            let Ok((mut send, mut receive)) = connection.open_bi().await else {
                continue;
            };
            let _maybe_closed = send.write_all(&join).await;
            if let Ok(answer) = receive.read_to_end(10).await {
                return assert_eq!(answer, [0x82]);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn streams_of_strangers_keep_nobody_out() {
    let content = Arc::new(Memory::new(17, 3));
    let (alice, bob) = (Agent::start(&[&content]), Agent::start(&[]));
    let join = join_message(&content.key.swarm_id(), &[0; 32]);
    let mut kept = Vec::new();
    // More than may be joined at one time, each waiting for the rest of its join.
    for _ in 0..3 {
        let raw = RawPeer::start();
        for _ in 0..3 {
            let connection = raw.dial(&alice).await;
            for _ in 0..127 {
                kept.push(ask(&connection, &join[..1]).await);
            }
            // The last is answered: the others have been accepted.
            assert_eq!(whole_answer(&connection, &join).await, [0x82]);
        }
    }
    bob.join(&alice, &content).await;
    assert_eq!(kept.len(), 1143);
}

#[tokio::test]
async fn a_connection_on_which_nobody_joins_is_closed_and_a_joined_one_is_not() {
    let content = Arc::new(Memory::new(18, 3));
    let options = ExchangeOptions {
        unjoined_timeout: Duration::from_millis(300),
        ..options()
    };
    let alice = Agent::with(options, &[&content]);
    let raw = RawPeer::start();
    let member = raw.dial(&alice).await;
    let right = proof(&member, &content.key, 0);
    let join = join_message(&content.key.swarm_id(), &right);
    let (mut send, mut receive) = ask(&member, &join).await;
    // A proof, that it is proved, and all three as one range.
    let mut joined = [0; 51];
    soon(receive.read_exact(&mut joined)).await.expect("Joined");

    let stranger = raw.dial(&alice).await;
    let join = join_message(&content.key.swarm_id(), &[0; 32]);
    assert_eq!(whole_answer(&stranger, &join).await, [0x82]);
    assert_eq!(close_code(&stranger).await, DONE);

    send.write_all(&[0x04]).await.expect("HaveRequest");
    let mut have = [0];
    soon(receive.read_exact(&mut have)).await.expect("Have");
    assert_eq!(have, [0x89]);
    drop((send, receive));
    assert_eq!(close_code(&member).await, DONE);
}

#[tokio::test]
async fn waiting_for_a_stream_is_not_waiting_for_an_answer() {
    let answer_timeout = Duration::from_millis(300);
    let raw = RawPeer::with_streams(1);
    let bob = Agent::with(
        ExchangeOptions {
            answer_timeout,
            ..options()
        },
        &[],
    );
    let key = ContentKey::from_bytes([19; 32]);
    let [first, second] =
        [(); 2].map(|()| tokio::spawn(bob.exchange.join(raw.peer, vec![raw.address()], key)));
    let connection = raw.accept().await;
    let answer = async || {
        let (mut send, mut receive) = soon(connection.accept_bi()).await.expect("a stream");
        let mut join = [0; 65];
        soon(receive.read_exact(&mut join)).await.expect("a join");
        let joined = joined_message(&proof(&connection, &key, 1), 5);
        send.write_all(&joined).await.expect("written");
        (send, receive)
    };
    // The one stream is not ended before the other join has waited twice as long as for an answer.
    let stream = answer().await;
    tokio::time::sleep(2 * answer_timeout).await;
    drop(stream);
    let _second = answer().await;
    for joining in [first, second] {
        soon(joining).await.expect("no panic").expect("joined");
    }
}

#[tokio::test]
async fn sessions_with_one_peer_share_a_connection_and_the_last_one_closes_it() {
    let raw = RawPeer::start();
    let bob = Agent::start(&[]);
    let key = ContentKey::from_bytes([9; 32]);
    let serve = async |connection: &Connection| {
        let (mut send, mut receive) = soon(connection.accept_bi()).await.expect("a stream");
        let mut join = [0; 65];
        soon(receive.read_exact(&mut join)).await.expect("a join");
        let joined = joined_message(&proof(connection, &key, 1), 5);
        send.write_all(&joined).await.expect("written");
        send.finish().expect("open");
    };
    let joins =
        [(); 2].map(|()| tokio::spawn(bob.exchange.join(raw.peer, vec![raw.address()], key)));
    let connection = raw.accept().await;
    serve(&connection).await;
    serve(&connection).await;
    let [first, second] = joins;
    let first = soon(first).await.expect("no panic").expect("joined");
    let second = soon(second).await.expect("no panic").expect("joined");
    assert_eq!(first.have(5).expect("five"), second.have(5).expect("five"));
    drop(first);
    let third = tokio::spawn(bob.exchange.join(raw.peer, vec![raw.address()], key));
    serve(&connection).await;
    let third = soon(third).await.expect("no panic").expect("joined");
    drop((second, third));
    assert_eq!(close_code(&connection).await, 0);
}
