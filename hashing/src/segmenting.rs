//! Where segments end.
//!
//! Boundaries depend on the bytes and the [`SegmentingParameters`] alone: not on how the bytes
//! arrived, nor on the size of the windows they are looked at through. Once published, the rule
//! behind an algorithm's number never changes; another rule is another number.

use fastcdc::v2020;

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

/// No segment is longer, whatever a manifest says: the receiver holds a whole one in memory
/// before it can verify it.
pub const SEGMENT_LENGTH_LIMIT: u32 = 16 * MIB;

/// How a file is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SegmentingAlgorithm {
    /// Segments of one length; the last may be shorter. For files without a manifest, where
    /// whoever fetches first cannot know the content.
    Fixed,
    /// FastCDC as published in 2020 (Xia et al., "The Design of Fast Content-Defined Chunking
    /// for Data Deduplication Based Storage Systems"): an insertion moves no boundary far from it.
    FastCdc2020,
}

/// How a file is cut, with the lengths in bytes; only values that the algorithm can honour exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentingParameters {
    algorithm: SegmentingAlgorithm,
    normalization: u8,
    min: u32,
    average: u32,
    max: u32,
}

/// Parameters that no file can be cut by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParametersError {
    /// FastCDC has the levels 0 to 3; fixed segments have none, so 0.
    #[error("segmenting parameters have normalization level {0}; use 0 to 3, 0 for fixed segments")]
    Normalization(u8),
    /// A length outside what the algorithm can do.
    #[error("segmenting parameters have a {which} of {bytes} bytes; use {from} to {to}, even")]
    Length {
        /// Which of the three lengths.
        which: &'static str,
        /// Its value.
        bytes: u32,
        /// The smallest that would do.
        from: u32,
        /// The largest that would do.
        to: u32,
    },
    /// The three lengths contradict each other.
    #[error(
        "segmenting parameters min {min}, average {average}, max {max} bytes are out of order; \
         they must rise, and be one for fixed segments"
    )]
    Order {
        /// Shortest segment.
        min: u32,
        /// Length aimed at.
        average: u32,
        /// Longest segment.
        max: u32,
    },
}

impl SegmentingParameters {
    /// What `publish` uses, for every file alike, so that versions and files share segments.
    /// Why these figures: `docs/manifest.md`, "Why these sizes".
    pub const DEFAULT: Self = Self {
        algorithm: SegmentingAlgorithm::FastCdc2020,
        normalization: 2,
        min: 8 * KIB,
        average: 32 * KIB,
        max: 128 * KIB,
    };

    /// For a file without a manifest: large enough that a table of them is a two-thousandth of the file,
    /// small enough that members of a branch see each other's progress in a file of some MiB.
    pub const FIXED: Self = Self {
        algorithm: SegmentingAlgorithm::Fixed,
        normalization: 0,
        min: 64 * KIB,
        average: 64 * KIB,
        max: 64 * KIB,
    };

    /// Checks parameters that came from outside.
    ///
    /// # Errors
    /// [`ParametersError`] says which one cannot be, and what could.
    pub fn new(
        algorithm: SegmentingAlgorithm,
        normalization: u8,
        min: u32,
        average: u32,
        max: u32,
    ) -> Result<Self, ParametersError> {
        let parameters = Self {
            algorithm,
            normalization,
            min,
            average,
            max,
        };
        match algorithm {
            SegmentingAlgorithm::Fixed => parameters.check_fixed()?,
            SegmentingAlgorithm::FastCdc2020 => parameters.check_fast_cdc()?,
        }
        Ok(parameters)
    }

    fn check_fixed(&self) -> Result<(), ParametersError> {
        if self.normalization != 0 {
            return Err(ParametersError::Normalization(self.normalization));
        }
        if self.min != self.average || self.average != self.max {
            return Err(self.out_of_order());
        }
        check_length("length", self.max, 4 * KIB, SEGMENT_LENGTH_LIMIT)
    }

    fn check_fast_cdc(&self) -> Result<(), ParametersError> {
        if self.normalization > 3 {
            return Err(ParametersError::Normalization(self.normalization));
        }
        // The limits of the fastcdc crate, which its release builds do not check by themselves.
        check_length("minimum", self.min, 64, MIB)?;
        check_length("average", self.average, 256, 4 * MIB)?;
        check_length("maximum", self.max, KIB, SEGMENT_LENGTH_LIMIT)?;
        if self.min > self.average || self.average > self.max {
            return Err(self.out_of_order());
        }
        Ok(())
    }

    fn out_of_order(&self) -> ParametersError {
        ParametersError::Order {
            min: self.min,
            average: self.average,
            max: self.max,
        }
    }

    /// The rule.
    pub fn algorithm(&self) -> SegmentingAlgorithm {
        self.algorithm
    }

    /// FastCDC's normalization level; 0 for fixed segments.
    pub fn normalization(&self) -> u8 {
        self.normalization
    }

    /// Bytes of the shortest segment; only a file's last one may be shorter.
    pub fn min(&self) -> u32 {
        self.min
    }

    /// Bytes that FastCDC aims at.
    pub fn average(&self) -> u32 {
        self.average
    }

    /// Bytes of the longest segment.
    pub const fn max(&self) -> u32 {
        self.max
    }

    /// Whether a segment of `length` bytes can stand there in a file cut by these parameters.
    pub fn allow(&self, length: u32, is_last: bool) -> bool {
        let min = if is_last { 1 } else { self.min };
        (min..=self.max).contains(&length)
    }
}

fn check_length(
    which: &'static str,
    bytes: u32,
    from: u32,
    to: u32,
) -> Result<(), ParametersError> {
    if (from..=to).contains(&bytes) && bytes.is_multiple_of(2) {
        Ok(())
    } else {
        Err(ParametersError::Length {
            which,
            bytes,
            from,
            to,
        })
    }
}

/// Finds boundaries in bytes that are seen through windows, in constant memory.
///
/// It keeps no state between calls: the caller keeps the bytes behind the last boundary and puts
/// what comes next after them.
#[derive(Debug, Clone)]
pub struct Segmenter {
    parameters: SegmentingParameters,
    /// FastCDC's masks before and after the average length; unused for fixed segments.
    mask_small: u64,
    mask_large: u64,
}

impl Segmenter {
    /// Prepares to cut by `parameters`.
    pub fn new(parameters: SegmentingParameters) -> Self {
        let (mask_small, mask_large) =
            v2020::select_masks(parameters.average as usize, level(parameters.normalization));
        Self {
            parameters,
            mask_small,
            mask_large,
        }
    }

    /// What it cuts by.
    pub fn parameters(&self) -> SegmentingParameters {
        self.parameters
    }

    /// Length of the first segment of `window`, which starts at a boundary and, when `is_last`,
    /// ends with the file. `None` when more bytes are needed to tell, or none are left.
    ///
    /// A window of [`SegmentingParameters::max`] bytes or more always has an answer. A shorter one
    /// may be scanned in vain, and its bytes are then scanned again.
    pub fn next_boundary(&self, window: &[u8], is_last: bool) -> Option<usize> {
        let max = self.parameters.max as usize;
        let end = match self.parameters.algorithm {
            SegmentingAlgorithm::Fixed => max.min(window.len()),
            SegmentingAlgorithm::FastCdc2020 => self.cut(window),
        };
        // Both rules answer "the end of the window" where they found no boundary before it.
        let is_boundary = end < window.len() || end == max || (is_last && end > 0);
        is_boundary.then_some(end)
    }

    fn cut(&self, window: &[u8]) -> usize {
        let SegmentingParameters {
            min, average, max, ..
        } = self.parameters;
        let (_, end) = v2020::cut(
            window,
            min as usize,
            average as usize,
            max as usize,
            self.mask_small,
            self.mask_large,
            self.mask_small << 1,
            self.mask_large << 1,
        );
        end
    }
}

fn level(normalization: u8) -> v2020::Normalization {
    match normalization {
        0 => v2020::Normalization::Level0,
        1 => v2020::Normalization::Level1,
        2 => v2020::Normalization::Level2,
        _ => v2020::Normalization::Level3,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn small(algorithm: SegmentingAlgorithm) -> SegmentingParameters {
        let (normalization, min, average) = match algorithm {
            SegmentingAlgorithm::Fixed => (0, 4096, 4096),
            SegmentingAlgorithm::FastCdc2020 => (2, 256, 1024),
        };
        SegmentingParameters::new(algorithm, normalization, min, average, 4096)
            .expect("lengths within the limits")
    }

    /// Segment lengths when the bytes arrive in pieces of the given lengths, over and over.
    fn lengths_through_windows(
        parameters: SegmentingParameters,
        bytes: &[u8],
        pieces: &[usize],
    ) -> Vec<usize> {
        let segmenter = Segmenter::new(parameters);
        let (mut lengths, mut start, mut end) = (Vec::new(), 0, 0);
        for piece in pieces.iter().cycle() {
            end = (end + piece).min(bytes.len());
            let is_last = end == bytes.len();
            while let Some(length) = segmenter.next_boundary(&bytes[start..end], is_last) {
                lengths.push(length);
                start += length;
            }
            if is_last {
                break;
            }
        }
        lengths
    }

    /// Bytes with long runs of one value between noise, as real files have.
    fn file_bytes() -> impl Strategy<Value = Vec<u8>> {
        let run = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..6000),
            (any::<u8>(), 0..9000_usize).prop_map(|(byte, length)| vec![byte; length]),
        ];
        prop::collection::vec(run, 0..6).prop_map(|runs| runs.concat())
    }

    proptest! {
        #[test]
        fn any_windows_give_the_boundaries_of_the_whole(
            bytes in file_bytes(),
            pieces in prop::collection::vec(1..5000_usize, 1..8),
        ) {
            let parameters = small(SegmentingAlgorithm::FastCdc2020);
            let whole: Vec<usize> = v2020::FastCDC::with_level(
                &bytes, 256, 1024, 4096, v2020::Normalization::Level2,
            )
            .map(|chunk| chunk.length)
            .collect();
            prop_assert_eq!(lengths_through_windows(parameters, &bytes, &pieces), whole);
        }

        #[test]
        fn every_length_is_one_the_parameters_allow(
            bytes in file_bytes(),
            pieces in prop::collection::vec(1..5000_usize, 1..8),
        ) {
            for algorithm in [SegmentingAlgorithm::Fixed, SegmentingAlgorithm::FastCdc2020] {
                let parameters = small(algorithm);
                let lengths = lengths_through_windows(parameters, &bytes, &pieces);
                prop_assert_eq!(lengths.iter().sum::<usize>(), bytes.len());
                for (i, length) in lengths.iter().enumerate() {
                    let length = u32::try_from(*length).expect("at most 4096");
                    prop_assert!(parameters.allow(length, i + 1 == lengths.len()));
                }
            }
        }
    }

    #[test]
    fn fixed_segments_end_at_multiples_of_their_length() {
        let parameters = small(SegmentingAlgorithm::Fixed);
        assert_eq!(
            lengths_through_windows(parameters, &[7; 10_000], &[999]),
            [4096, 4096, 1808]
        );
        assert_eq!(
            lengths_through_windows(parameters, &[7; 8192], &[8192]),
            [4096, 4096]
        );
        assert_eq!(lengths_through_windows(parameters, &[], &[1]), [0; 0]);
    }

    #[test]
    fn the_constants_are_parameters_that_the_check_accepts() {
        for p in [SegmentingParameters::DEFAULT, SegmentingParameters::FIXED] {
            let checked = SegmentingParameters::new(
                p.algorithm(),
                p.normalization(),
                p.min(),
                p.average(),
                p.max(),
            );
            assert_eq!(checked, Ok(p));
        }
    }

    #[test]
    fn impossible_parameters_are_refused() {
        use SegmentingAlgorithm::{FastCdc2020, Fixed};
        let new = SegmentingParameters::new;
        assert!(matches!(
            new(Fixed, 1, 4096, 4096, 4096),
            Err(ParametersError::Normalization(1))
        ));
        assert!(matches!(
            new(Fixed, 0, 2048, 4096, 4096),
            Err(ParametersError::Order { .. })
        ));
        assert!(matches!(
            new(Fixed, 0, 0, 0, 0),
            Err(ParametersError::Length { .. })
        ));
        assert!(matches!(
            new(FastCdc2020, 4, 64, 256, 1024),
            Err(ParametersError::Normalization(4))
        ));
        assert!(matches!(
            new(FastCdc2020, 0, 512, 256, 1024),
            Err(ParametersError::Order { .. })
        ));
        assert!(matches!(
            new(FastCdc2020, 0, 64, 257, 1024),
            Err(ParametersError::Length { .. })
        ));
        let too_long = SEGMENT_LENGTH_LIMIT + 2;
        assert!(matches!(
            new(FastCdc2020, 0, 64, 256, too_long),
            Err(ParametersError::Length { .. })
        ));
    }
}
