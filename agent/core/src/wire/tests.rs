use proptest::prelude::*;

use super::*;
use crate::SegmentSet;

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

fn requester_message() -> impl Strategy<Value = RequesterMessage> {
    prop_oneof![
        any::<([u8; 32], [u8; 32])>().prop_map(|(swarm, proof)| RequesterMessage::Join {
            swarm: SwarmId::from_bytes(swarm),
            proof: JoinProof(proof),
        }),
        range().prop_map(RequesterMessage::Request),
        Just(RequesterMessage::ManifestRequest),
        Just(RequesterMessage::HaveRequest),
    ]
}

fn responder_message() -> impl Strategy<Value = ResponderMessage> {
    let wait = any::<u32>().prop_map(|ms| Duration::from_millis(ms.into()));
    prop_oneof![
        (any::<[u8; 32]>(), segment_set()).prop_map(|(proof, set)| ResponderMessage::Joined {
            proof: JoinProof(proof),
            have: Have::of(&set),
        }),
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

fn bytes_with_a_type() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![0u8..8, 0x80u8..0x8c, any::<u8>()];
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
