//! Every decoder input gives a manifest or a typed error, and only the true one gives the true one.

use proptest::prelude::*;

use super::*;
use crate::SegmentingAlgorithm;

const SIGNATURE_AREA: Range<usize> = 158..256;

fn parameters(algorithm: SegmentingAlgorithm) -> SegmentingParameters {
    let (normalization, min) = match algorithm {
        SegmentingAlgorithm::Fixed => (0, 4096),
        SegmentingAlgorithm::FastCdc2020 => (1, 1024),
    };
    SegmentingParameters::new(algorithm, normalization, min, 4096, 4096).expect("valid parameters")
}

fn manifest_of(algorithm: SegmentingAlgorithm, lengths: &[u32]) -> Manifest {
    let mut builder = ManifestBuilder::new(parameters(algorithm));
    for length in lengths {
        builder
            .push(*length, SegmentHash::of(&length.to_le_bytes()))
            .expect("an allowed length");
    }
    builder
        .finish(Sha256Digest::from_bytes([9; 32]))
        .expect("a consistent manifest")
}

fn sample() -> Manifest {
    manifest_of(SegmentingAlgorithm::FastCdc2020, &[1024, 4096, 2000, 5])
}

/// `bytes` with the right hash again, so that what lies behind that check is reached.
fn with_right_hash(mut bytes: Vec<u8>) -> Vec<u8> {
    let hashed = [&bytes[..40], &bytes[ManifestHead::LENGTH..]].concat();
    let hash = *blake3::hash(&hashed).as_bytes();
    bytes[40..72].copy_from_slice(&hash);
    bytes
}

fn with(bytes: &[u8], at: usize, field: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + field.len()].copy_from_slice(field);
    bytes
}

fn algorithms() -> impl Strategy<Value = SegmentingAlgorithm> {
    prop_oneof![
        Just(SegmentingAlgorithm::Fixed),
        Just(SegmentingAlgorithm::FastCdc2020)
    ]
}

fn manifests() -> impl Strategy<Value = Manifest> {
    let lengths = prop::collection::vec(1024..=4096_u32, 0..40);
    (algorithms(), lengths, 1..=4096_u32).prop_map(|(algorithm, mut lengths, last)| {
        if algorithm == SegmentingAlgorithm::Fixed {
            lengths.fill(4096);
        }
        if !lengths.is_empty() {
            lengths.push(last);
        }
        manifest_of(algorithm, &lengths)
    })
}

fn contents(manifest: &Manifest) -> reference::Contents {
    reference::Contents {
        file_length: manifest.file_length().into(),
        sha256: manifest.sha256().as_bytes().to_vec(),
        segments: manifest
            .segments()
            .map(|s| (s.length.into(), s.hash.as_bytes().to_vec()))
            .collect(),
    }
}

proptest! {
    #[test]
    fn encoding_survives_a_round_trip(manifest in manifests()) {
        let bytes = manifest.encode();
        let decoded = Manifest::decode(&bytes);
        prop_assert_eq!(decoded.as_ref(), Ok(&manifest));
        prop_assert_eq!(decoded.map(|m| m.encode()), Ok(bytes));
    }

    #[test]
    fn arbitrary_bytes_give_a_typed_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Manifest::decode(&bytes).is_err());
        prop_assert!(ManifestHead::decode(&bytes).is_err());
    }

    #[test]
    fn the_slow_decoder_agrees_on_changed_manifests(
        manifest in manifests(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        at_lengths in any::<bool>(),
        rehash in any::<bool>(),
    ) {
        let mut bytes = manifest.encode();
        for (at, byte) in changes {
            // Most of a manifest is hashes; changed lengths are the interesting ones.
            let at = if at_lengths { 8 + at.index(32) } else { at.index(bytes.len()) };
            bytes[at] = byte;
        }
        if rehash {
            bytes = with_right_hash(bytes);
        }
        let decoded = Manifest::decode(&bytes).ok();
        prop_assert_eq!(decoded.as_ref().map(contents), reference::decode(&bytes));
    }

    #[test]
    fn segments_tile_the_file(manifest in manifests()) {
        let mut offset = 0;
        for (i, segment) in manifest.segments().enumerate() {
            prop_assert_eq!(segment.offset, offset);
            prop_assert_eq!(segment.index.0 as usize, i);
            prop_assert_eq!(manifest.segment_at(segment.offset), Some(segment));
            offset = segment.range().end;
            prop_assert_eq!(manifest.segment_at(offset - 1), Some(segment));
        }
        prop_assert_eq!(offset, manifest.file_length());
        prop_assert_eq!(manifest.segment_at(offset), None);
        prop_assert_eq!(manifest.segment(SegmentIndex(manifest.segment_count())), None);
    }
}

#[test]
fn a_manifest_cut_at_any_byte_is_refused() {
    let bytes = sample().encode();
    for length in 0..bytes.len() {
        let error = Manifest::decode(&bytes[..length]).expect_err("a cut manifest was accepted");
        let found = length as u64;
        assert!(
            matches!(error, ManifestError::Truncated { found: f, .. } if f == found),
            "{length}: {error:?}"
        );
    }
}

#[test]
fn bytes_behind_a_manifest_are_refused() {
    let bytes = [sample().encode(), vec![0]].concat();
    let found = bytes.len() as u64;
    let expected = ManifestError::TrailingBytes {
        expected: found - 1,
        found,
    };
    assert_eq!(Manifest::decode(&bytes), Err(expected));
}

#[test]
fn any_flipped_bit_is_noticed_or_lies_in_the_signature() {
    let manifest = sample();
    let bytes = manifest.encode();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match Manifest::decode(&flipped) {
            Err(_) => {}
            Ok(other) if SIGNATURE_AREA.contains(&(bit / 8)) => {
                assert_eq!(other.content_key(), manifest.content_key());
            }
            Ok(_) => panic!("bit {bit} flipped and not noticed"),
        }
    }
}

#[test]
fn a_flipped_bit_in_the_head_changes_the_content_key() {
    let manifest = sample();
    let head = manifest.head().encode();
    for bit in 0..SIGNATURE_AREA.start * 8 {
        let mut flipped = head;
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = ManifestHead::decode(&flipped) {
            assert_ne!(other.content_key(), manifest.content_key(), "bit {bit}");
        }
    }
}

#[test]
fn a_signature_is_carried_and_does_not_change_the_content_key() {
    let manifest = sample();
    let mut bytes = manifest.encode();
    bytes[SIGNATURE_AREA].fill(0x5a);
    let signed = Manifest::decode(&bytes).expect("a manifest with a signature");
    assert_eq!(signed.content_key(), manifest.content_key());
    assert_eq!(signed.encode(), bytes);
    assert_eq!(signed.head().signature().map(|s| s.scheme), Some(0x5a5a));
    assert_eq!(manifest.head().signature(), None);

    let without_scheme = with(&bytes, SIGNATURE_AREA.start, &[0, 0]);
    assert_eq!(
        Manifest::decode(&without_scheme),
        Err(ManifestError::SignatureWithoutScheme)
    );
}

#[test]
fn lengths_near_the_largest_number_are_refused() {
    let bytes = sample().encode();
    for file_length in [u64::MAX, u64::MAX - 1, 1 << 63, u64::MAX - 7124] {
        let changed = with(&bytes, 32, &file_length.to_le_bytes());
        let expected = ManifestError::Count {
            segment_count: 4,
            file_length,
        };
        assert_eq!(ManifestHead::decode(&changed), Err(expected.clone()));
        assert_eq!(Manifest::decode(&changed), Err(expected));
    }
    let longest_count = with(&bytes, 28, &u32::MAX.to_le_bytes());
    assert_eq!(
        Manifest::decode(&longest_count),
        Err(ManifestError::TooManySegments(u32::MAX))
    );
    let longest_segment = with_right_hash(with(&bytes, 256, &u32::MAX.to_le_bytes()));
    let expected = ManifestError::SegmentLength {
        segment: SegmentIndex(0),
        length: u32::MAX,
    };
    assert_eq!(Manifest::decode(&longest_segment), Err(expected));
}

#[test]
fn a_head_that_claims_much_costs_nothing() {
    let count: u32 = SEGMENT_COUNT_LIMIT;
    let file_length = u64::from(count) * 4096;
    let bytes = with(&sample().encode(), 28, &count.to_le_bytes());
    let bytes = with(&bytes, 32, &file_length.to_le_bytes());
    let head = ManifestHead::decode(&bytes).expect("a head that could be true");
    assert_eq!(head.body_length(), 36 * (1 << 24) + 32);
    assert!(matches!(
        Manifest::decode(&bytes),
        Err(ManifestError::Truncated { .. })
    ));
}

#[test]
fn segments_must_add_up_to_the_file() {
    let bytes = with_right_hash(with(&sample().encode(), 32, &7124_u64.to_le_bytes()));
    let expected = ManifestError::FileLength {
        file_length: 7124,
        sum: 7125,
    };
    assert_eq!(Manifest::decode(&bytes), Err(expected));
}

#[test]
fn only_the_last_segment_may_be_short() {
    let bytes = sample().encode();
    for (entry, length, is_allowed) in [(0, 1023_u32, false), (3, 5, true), (3, 0, false)] {
        let changed = with_right_hash(with(&bytes, 256 + 36 * entry, &length.to_le_bytes()));
        let segment_is_refused = matches!(
            Manifest::decode(&changed),
            Err(ManifestError::SegmentLength { .. })
        );
        assert_eq!(
            segment_is_refused, !is_allowed,
            "entry {entry} of {length} bytes"
        );
    }
    let mut builder = ManifestBuilder::new(parameters(SegmentingAlgorithm::FastCdc2020));
    let hash = SegmentHash::of(b"");
    assert_eq!(builder.push(1023, hash), Ok(()));
    let expected = ManifestError::SegmentLength {
        segment: SegmentIndex(1),
        length: 1024,
    };
    assert_eq!(builder.push(1024, hash), Err(expected));
}

#[test]
fn unknown_formats_have_errors_of_their_own() {
    let bytes = sample().encode();
    let decode = |at, byte| Manifest::decode(&with(&bytes, at, &[byte])).expect_err("unknown");
    assert_eq!(decode(0, b'x'), ManifestError::Magic);
    assert_eq!(decode(8, 2), ManifestError::Version(2));
    assert_eq!(decode(10, 1), ManifestError::HeadLength(257));
    assert_eq!(decode(12, 2), ManifestError::SegmentingAlgorithm(2));
    assert!(matches!(decode(13, 4), ManifestError::Parameters(_)));
    assert_eq!(decode(14, 2), ManifestError::SegmentHashAlgorithm(2));
    assert_eq!(decode(15, 0), ManifestError::FileDigestAlgorithm(0));
    assert_eq!(decode(72, 1), ManifestError::Reserved);
    assert_eq!(decode(157, 1), ManifestError::Reserved);
    assert_eq!(decode(300, 1), ManifestError::Hash);
}

#[test]
fn the_body_of_another_file_is_refused() {
    let other = manifest_of(SegmentingAlgorithm::FastCdc2020, &[1024, 4096, 2001, 4]).encode();
    let joined = Manifest::from_parts(sample().head().clone(), &other[ManifestHead::LENGTH..]);
    assert_eq!(joined, Err(ManifestError::Hash));
}

#[test]
fn an_empty_file_has_a_manifest() {
    let manifest = manifest_of(SegmentingAlgorithm::FastCdc2020, &[]);
    assert_eq!((manifest.file_length(), manifest.segment_count()), (0, 0));
    assert_eq!(manifest.encode().len(), 256 + 32);
    assert_eq!(Manifest::decode(&manifest.encode()).as_ref(), Ok(&manifest));
}

/// The bytes of version 1 never change: what was published stays readable, and keys stay the same.
#[test]
fn version_1_is_what_it_was() {
    let bytes = sample().encode();
    assert_eq!(
        data_encoding::HEXLOWER.encode(&bytes[..40]),
        "8942524c0d0a1a0a010000010101010100040000001000000010000004000000d51b000000000000"
    );
    assert_eq!(
        sample().content_key().to_string(),
        "d4961bc3224083fe54c0dc21318a05ddd917b8c27cde45559f4106ff76769f18"
    );
}
