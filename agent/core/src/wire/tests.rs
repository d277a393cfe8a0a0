use branchline_hashing::SegmentHash;
use proptest::prelude::*;

use super::*;
use crate::swarm::{
    BlockIndex, BlockRange, BlockSet, Blocks, Grant, ManifestLease, SwarmPeer, Want,
};
use crate::{PeerId, SegmentSet};

fn range() -> impl Strategy<Value = SegmentRange> {
    (0..u32::MAX - MAX_REQUEST_SEGMENTS, 1..=MAX_REQUEST_SEGMENTS)
        .prop_map(|(first, count)| SegmentRange::new(SegmentIndex(first), count).expect("in range"))
}

fn segment_set() -> impl Strategy<Value = SegmentSet> {
    (0u32..2000).prop_flat_map(|size| {
        prop::collection::vec((0..=size, 0u32..70), 0..40).prop_map(move |runs| {
            let mut set = SegmentSet::empty(size);
            for (first, count) in runs {
                for index in first..first.saturating_add(count) {
                    set.insert(SegmentIndex(index));
                }
            }
            set
        })
    })
}

fn swarm() -> impl Strategy<Value = SwarmId> {
    any::<[u8; 32]>().prop_map(SwarmId::from_bytes)
}

fn swarms() -> impl Strategy<Value = Vec<SwarmId>> {
    prop::collection::vec(swarm(), 0..20)
}

/// How a content is divided, small ones and those of as many blocks as there can be.
fn blocks() -> impl Strategy<Value = Blocks> {
    let count = prop_oneof![1u32..200, Just(MAX_BLOCKS)];
    (count, 1u32..1000).prop_flat_map(|(count, per_block)| {
        let fewest = (count - 1) * per_block + 1;
        (fewest..=count * per_block)
            .prop_map(move |segments| Blocks::claimed(segments, per_block).expect("blocks"))
    })
}

fn block_set(size: u32) -> impl Strategy<Value = BlockSet> {
    prop::collection::vec((0..size, 1u32..9), 0..90).prop_map(move |runs| {
        let mut set = BlockSet::empty(size);
        for (first, count) in runs {
            (first..first + count).for_each(|index| {
                set.insert(BlockIndex(index));
            });
        }
        set
    })
}

fn block_ranges(size: u32) -> impl Strategy<Value = Vec<BlockRange>> {
    let range = (0..size).prop_flat_map(move |first| {
        (1..=size - first)
            .prop_map(move |count| BlockRange::new(BlockIndex(first), count).expect("a range"))
    });
    prop::collection::vec(range, 0..=MAX_LEASES)
}

fn want() -> impl Strategy<Value = Want> {
    any::<(u8, u32, bool)>().prop_map(|(runs, blocks_per_run, manifest)| Want {
        runs,
        blocks_per_run,
        manifest,
    })
}

fn enlist() -> impl Strategy<Value = Enlist> {
    (swarm(), blocks(), any::<bool>(), want()).prop_flat_map(
        |(swarm, blocks, has_manifest, want)| {
            (block_set(blocks.count()), block_ranges(blocks.count())).prop_map(
                move |(held, leased)| Enlist {
                    swarm,
                    blocks,
                    held,
                    leased,
                    has_manifest,
                    want,
                },
            )
        },
    )
}

fn report() -> impl Strategy<Value = Report> {
    (1..=MAX_BLOCKS, any::<bool>(), want()).prop_flat_map(|(size, has_manifest, want)| {
        (block_set(size), block_ranges(size)).prop_map(move |(held, returned)| Report {
            held,
            returned,
            has_manifest,
            want,
        })
    })
}

fn answer() -> impl Strategy<Value = Answer> {
    let manifest = prop_oneof![
        Just(ManifestLease::NotAsked),
        Just(ManifestLease::Fetch),
        Just(ManifestLease::Wait),
    ];
    let peer = any::<([u8; 32], bool)>().prop_map(|(key, has_manifest)| SwarmPeer {
        peer: PeerId::from_public_key(key),
        has_manifest,
    });
    let peers = prop::collection::vec(peer, 0..=MAX_ANSWER_PEERS);
    let granted = (block_ranges(MAX_BLOCKS), any::<u32>()).prop_map(|(ranges, ms)| {
        let lasts = Duration::from_millis(ms.into());
        let grant = |blocks| Grant { blocks, lasts };
        ranges.into_iter().map(grant).collect()
    });
    (any::<(bool, u32)>(), manifest, granted, peers).prop_map(
        |((asked, lessees), manifest, granted, peers)| Answer {
            asked,
            granted,
            manifest,
            peers,
            lessees,
        },
    )
}

fn requester_message() -> impl Strategy<Value = RequesterMessage> {
    prop_oneof![
        any::<([u8; 32], [u8; 32])>().prop_map(|(swarm, proof)| RequesterMessage::Join {
            swarm: SwarmId::from_bytes(swarm),
            proof: JoinProof(proof),
        }),
        range().prop_map(RequesterMessage::Request),
        range().prop_map(RequesterMessage::HashesRequest),
        Just(RequesterMessage::ManifestRequest),
        Just(RequesterMessage::HaveRequest),
        enlist().prop_map(RequesterMessage::Enlist),
        report().prop_map(RequesterMessage::Report),
        swarms().prop_map(|swarms| RequesterMessage::Announce { swarms }),
        swarms().prop_map(|swarms| RequesterMessage::Withdraw { swarms }),
        Just(RequesterMessage::HaveWatch),
    ]
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        Just(Standing::Proved),
        any::<u64>().prop_map(|file_bytes| Standing::Provisional { file_bytes }),
    ]
}

fn hashes() -> impl Strategy<Value = ResponderMessage> {
    let claim = any::<([u8; 32], bool)>().prop_map(|(hash, first_hand)| Claim {
        hash: SegmentHash::from_bytes(hash),
        first_hand,
    });
    let claims = prop::collection::vec(prop::option::of(claim), 1..40);
    (0u32..1 << 30, claims).prop_map(|(first, claims)| ResponderMessage::Hashes {
        first: SegmentIndex(first),
        claims,
    })
}

fn responder_message() -> impl Strategy<Value = ResponderMessage> {
    let wait = any::<u32>().prop_map(|ms| Duration::from_millis(ms.into()));
    prop_oneof![
        (any::<[u8; 32]>(), standing(), segment_set()).prop_map(|(proof, standing, set)| {
            ResponderMessage::Joined {
                proof: JoinProof(proof),
                standing,
                have: Have::of(&set),
            }
        }),
        hashes(),
        Just(ResponderMessage::Unknown),
        wait.clone()
            .prop_map(|retry_after| ResponderMessage::Busy { retry_after }),
        (any::<u32>(), 0..=MAX_SEGMENT_BYTES).prop_map(|(index, length)| {
            ResponderMessage::Segment {
                index: SegmentIndex(index),
                length,
            }
        }),
        any::<u32>().prop_map(|index| ResponderMessage::Absent {
            index: SegmentIndex(index)
        }),
        (range(), wait)
            .prop_map(|(range, retry_after)| ResponderMessage::RangeBusy { range, retry_after }),
        any::<u32>().prop_map(|length| ResponderMessage::Manifest { length }),
        Just(ResponderMessage::NoManifest),
        segment_set().prop_map(|set| ResponderMessage::Have(Have::of(&set))),
        segment_set().prop_map(|set| ResponderMessage::HaveMore(Have::of(&set))),
        answer().prop_map(ResponderMessage::Answer),
    ]
}

/// Decoding is exact: the whole message and anything after it gives the message; each truncation
/// gives a need that the message itself meets.
fn check_round_trip<M: WireMessage + PartialEq + std::fmt::Debug>(
    message: &M,
    tail: &[u8],
) -> Result<(), TestCaseError> {
    let mut bytes = message.to_bytes();
    let length = bytes.len();
    prop_assert!(length <= MAX_MESSAGE_BYTES);
    for cut in 0..length {
        match M::decode(&bytes[..cut]) {
            Ok(Decoded::Incomplete { needs }) => prop_assert!(needs > cut && needs <= length),
            other => prop_assert!(false, "{cut} of {length} bytes gave {other:?}"),
        }
    }
    bytes.extend_from_slice(tail);
    match M::decode(&bytes) {
        Ok(Decoded::Message {
            message: read,
            length: taken,
        }) => {
            prop_assert_eq!(&read, message);
            prop_assert_eq!(taken, length);
        }
        other => prop_assert!(false, "{message:?} came back as {other:?}"),
    }
    Ok(())
}

/// Whatever is accepted is written back as the same bytes.
fn check_arbitrary<M: WireMessage>(bytes: &[u8]) -> Result<(), TestCaseError> {
    match M::decode(bytes) {
        Ok(Decoded::Message { message, length }) => {
            prop_assert!(length <= bytes.len());
            prop_assert_eq!(&message.to_bytes()[..], &bytes[..length]);
        }
        Ok(Decoded::Incomplete { needs }) => {
            prop_assert!(needs > bytes.len() && needs <= MAX_MESSAGE_BYTES);
        }
        Err(_) => {}
    }
    Ok(())
}

fn flipped(mut bytes: Vec<u8>, (byte, bit): (prop::sample::Index, prop::sample::Index)) -> Vec<u8> {
    let byte = byte.index(bytes.len());
    bytes[byte] ^= 1 << bit.index(8);
    bytes
}

fn bytes_with_a_type() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![0u8..0x0c, 0x80u8..0x8e, any::<u8>()];
    (
        kind,
        prop::collection::vec(
            prop_oneof![3 => Just(0u8), 1 => 0u8..4, 1 => any::<u8>()],
            0..90,
        ),
    )
        .prop_map(|(kind, mut rest)| {
            rest.insert(0, kind);
            rest
        })
}

proptest! {
    #[test]
    fn a_requesters_message_survives_a_round_trip(
        message in requester_message(),
        tail: [u8; 3],
    ) {
        check_round_trip(&message, &tail)?;
    }

    #[test]
    fn a_responders_message_survives_a_round_trip(
        message in responder_message(),
        tail: [u8; 3],
    ) {
        check_round_trip(&message, &tail)?;
    }

    #[test]
    fn arbitrary_bytes_are_a_message_a_beginning_or_an_error(bytes in bytes_with_a_type()) {
        check_arbitrary::<RequesterMessage>(&bytes)?;
        check_arbitrary::<ResponderMessage>(&bytes)?;
    }

    #[test]
    fn a_message_with_a_bit_flipped_is_another_one_a_beginning_or_an_error(
        requesters in requester_message(),
        responders in responder_message(),
        at in any::<(prop::sample::Index, prop::sample::Index)>(),
    ) {
        check_arbitrary::<RequesterMessage>(&flipped(requesters.to_bytes(), at))?;
        check_arbitrary::<ResponderMessage>(&flipped(responders.to_bytes(), at))?;
    }

    #[test]
    fn what_members_and_stewards_say_is_no_longer_than_promised(
        enlist in enlist(),
        report in report(),
        answer in answer(),
    ) {
        prop_assert!(RequesterMessage::Enlist(enlist).to_bytes().len() <= MAX_ENLIST_BYTES);
        prop_assert!(RequesterMessage::Report(report).to_bytes().len() <= MAX_ENLIST_BYTES);
        prop_assert!(ResponderMessage::Answer(answer).to_bytes().len() <= MAX_ANSWER_BYTES);
    }

    #[test]
    fn a_set_comes_back_as_it_was(set in segment_set(), other_size in 0u32..3000) {
        let have = Have::of(&set);
        prop_assert_eq!(have.to_set(set.size()), Some(set.clone()));
        if other_size != set.size() {
            prop_assert_eq!(have.to_set(other_size), None);
        }
    }
}

#[test]
fn a_claim_of_four_thousand_million_segments_costs_nothing_until_it_is_compared() {
    let mut bytes = vec![0x89];
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    bytes.push(0);
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(&0u32.to_le_bytes());
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    let Ok(Decoded::Message {
        message: ResponderMessage::Have(have),
        length: 18,
    }) = ResponderMessage::decode(&bytes)
    else {
        panic!("one range over everything is a valid claim");
    };
    assert_eq!(have.to_set(1000), None);
}

#[test]
fn sets_beyond_their_bounds_are_refused_before_their_bytes_are_waited_for() {
    let have = |size: u32, form: u8, count: u32| {
        let mut bytes = vec![0x89];
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.push(form);
        bytes.extend_from_slice(&count.to_le_bytes());
        ResponderMessage::decode(&bytes)
    };
    assert!(matches!(
        have(u32::MAX, 0, MAX_HAVE_RANGES + 1),
        Err(WireError::HaveTooLong { .. })
    ));
    assert!(matches!(
        have(MAX_BITMAP_SEGMENTS + 1, 1, 0),
        Err(WireError::HaveTooLong {
            size: 16_777_217,
            ..
        })
    ));
    assert!(matches!(
        have(10, 2, 0),
        Err(WireError::UnknownForm { found: 2 })
    ));
    assert!(matches!(
        have(MAX_BITMAP_SEGMENTS, 1, 0),
        Ok(Decoded::Incomplete { .. })
    ));
}

#[test]
fn ranges_out_of_order_adjacent_empty_or_past_the_end_are_refused() {
    let have = |ranges: &[(u32, u32)]| {
        let mut bytes = vec![0x89];
        bytes.extend_from_slice(&100u32.to_le_bytes());
        bytes.push(0);
        bytes.extend_from_slice(&u32::try_from(ranges.len()).expect("few").to_le_bytes());
        for (first, count) in ranges {
            bytes.extend_from_slice(&first.to_le_bytes());
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        ResponderMessage::decode(&bytes)
    };
    assert!(have(&[(0, 10), (11, 89)]).is_ok());
    let wrong: [&[(u32, u32)]; 5] = [
        &[(0, 10), (10, 5)],
        &[(20, 5), (0, 5)],
        &[(0, 0)],
        &[(0, 101)],
        &[(u32::MAX, 1)],
    ];
    for ranges in wrong {
        assert_eq!(
            have(ranges),
            Err(WireError::HaveNotCanonical { size: 100 }),
            "{ranges:?}"
        );
    }
}

#[test]
fn requests_and_segments_beyond_their_bounds_are_refused() {
    let request = |first: u32, count: u32| {
        let mut bytes = vec![0x02];
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        RequesterMessage::decode(&bytes)
    };
    assert!(request(5, MAX_REQUEST_SEGMENTS).is_ok());
    for (first, count) in [
        (5, 0),
        (5, MAX_REQUEST_SEGMENTS + 1),
        (u32::MAX, 1),
        (1, u32::MAX),
    ] {
        assert_eq!(
            request(first, count),
            Err(WireError::BadRange { first, count })
        );
    }
    let mut segment = vec![0x84, 1, 0, 0, 0];
    segment.extend_from_slice(&(MAX_SEGMENT_BYTES + 1).to_le_bytes());
    assert!(matches!(
        ResponderMessage::decode(&segment),
        Err(WireError::SegmentTooLong { index: 1, .. })
    ));
}

#[test]
fn a_scattered_set_too_large_for_a_bitmap_says_less_but_nothing_wrong() {
    let size = MAX_BITMAP_SEGMENTS + 64;
    let mut set = SegmentSet::empty(size);
    (0..200_000).for_each(|at| {
        set.insert(SegmentIndex(at * 2));
    });
    let told = Have::of(&set).to_set(size).expect("the size is right");
    assert_eq!(told.len(), MAX_HAVE_RANGES);
    assert!(told.iter().all(|index| set.contains(index)));
}

/// An [`Enlist`] for a content of 1000 segments in 100 blocks, of which it holds none and leases
/// `leased`.
fn enlist_bytes(leased: &[(u32, u32)], set: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x05];
    bytes.extend([7; 32]);
    bytes.extend(1000u32.to_le_bytes());
    bytes.extend(10u32.to_le_bytes());
    bytes.extend([1, 2, 30, 0, 0, 0, 1]);
    bytes.push(u8::try_from(leased.len()).expect("few"));
    for (first, count) in leased {
        bytes.extend(first.to_le_bytes());
        bytes.extend(count.to_le_bytes());
    }
    bytes.extend(set);
    bytes
}

/// Size 100, ranges, none.
const NO_BLOCKS: [u8; 9] = [100, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn an_enlistment_is_the_bytes_that_the_documentation_says() {
    let enlist = Enlist {
        swarm: SwarmId::from_bytes([7; 32]),
        blocks: Blocks::claimed(1000, 10).expect("100 blocks"),
        held: BlockSet::empty(100),
        leased: vec![BlockRange::new(BlockIndex(90), 10).expect("a range")],
        has_manifest: true,
        want: Want {
            runs: 2,
            blocks_per_run: 30,
            manifest: true,
        },
    };
    assert_eq!(
        RequesterMessage::Enlist(enlist).to_bytes(),
        enlist_bytes(&[(90, 10)], &NO_BLOCKS)
    );
}

#[test]
fn an_enlistment_whose_parts_do_not_fit_together_is_refused() {
    let enlist = |leased: &[(u32, u32)], set: &[u8]| {
        let bytes = enlist_bytes(leased, set);
        RequesterMessage::decode(&bytes).map(|_| ())
    };
    assert_eq!(enlist(&[(0, 100), (0, 1)], &NO_BLOCKS), Ok(()));
    for (first, count) in [(90, 11), (100, 1), (5, 0), (u32::MAX, 1), (1, u32::MAX)] {
        let wrong = WireError::BadBlockRange { first, count };
        assert_eq!(enlist(&[(first, count)], &NO_BLOCKS), Err(wrong));
    }
    for size in [0u32, 99, 101, MAX_BLOCKS + 1, u32::MAX] {
        let set = [&size.to_le_bytes()[..], &[0; 5]].concat();
        assert_eq!(enlist(&[], &set), Err(WireError::WrongBlockCount { size }));
    }
    // One range is shorter than the bits that say the same.
    let bits = [&[100, 0, 0, 0, 1, 0xff][..], &[0; 12]].concat();
    let wrong = WireError::HaveNotCanonical { size: 100 };
    assert_eq!(enlist(&[], &bits), Err(wrong));
    let scattered = [&[100, 0, 0, 0, 1, 0x55][..], &[0; 12]].concat();
    assert_eq!(enlist(&[], &scattered), Ok(()));
}

#[test]
fn lists_and_values_beyond_their_bounds_are_refused_before_their_bytes_are_waited_for() {
    let mut enlist = enlist_bytes(&[], &[]);
    *enlist.last_mut().expect("the count") = 65;
    let list_too_long = |count, most| Err(WireError::ListTooLong { count, most });
    assert_eq!(
        RequesterMessage::decode(&enlist),
        list_too_long(65, MAX_LEASES)
    );
    for kind in [0x07, 0x08] {
        let announce = [&[kind][..], &1025u32.to_le_bytes()].concat();
        assert_eq!(
            RequesterMessage::decode(&announce),
            list_too_long(1025, MAX_ANNOUNCED_SWARMS)
        );
    }
    let answer = |fields: [u8; 8]| ResponderMessage::decode(&[&[0x8a][..], &fields].concat());
    let peers = answer([1, 0, 0, 0, 0, 0, 0, 65]);
    assert_eq!(
        peers.map(|_| ()),
        Err(WireError::ListTooLong {
            count: 65,
            most: MAX_ANSWER_PEERS
        })
    );
    let asked = answer([2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(asked, Err(WireError::UnknownValue { found: 2 }));
    let manifest = answer([0, 3, 0, 0, 0, 0, 0, 0]);
    assert_eq!(manifest, Err(WireError::UnknownValue { found: 3 }));
    assert!(answer([1, 2, 9, 0, 0, 0, 0, 0]).is_ok());
}

#[test]
fn what_is_beyond_a_lists_bound_is_not_told() {
    let swarms = vec![SwarmId::from_bytes([1; 32]); MAX_ANNOUNCED_SWARMS + 1];
    let bytes = RequesterMessage::Announce { swarms }.to_bytes();
    assert_eq!(bytes.len(), MAX_ANNOUNCE_BYTES);
    assert!(matches!(
        RequesterMessage::decode(&bytes),
        Ok(Decoded::Message { length, .. }) if length == bytes.len()
    ));
}
