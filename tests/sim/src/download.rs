//! What one member asks one peer for, as the exchange's requesting side does it: requests cut into
//! pieces, four streams, each with so much on its way and no more.

use std::collections::VecDeque;

use branchline_core::SegmentRange;
use branchline_hashing::SegmentIndex;

/// As in the exchange: streams to one peer, the size of a piece, what one stream has on its way.
pub(crate) const STREAMS: u8 = 4;
const PIECE_BYTES: u64 = 1 << 20;
const PIPELINE_BYTES: u64 = 2 << 20;

#[derive(Debug)]
pub(crate) struct Download {
    /// Another number for each download of a member: what an earlier one still had on its way is void.
    pub(crate) id: u32,
    waiting: VecDeque<SegmentRange>,
    on_the_way: [u64; STREAMS as usize],
}

impl Download {
    pub(crate) fn new(id: u32) -> Self {
        Self {
            id,
            waiting: VecDeque::new(),
            on_the_way: [0; STREAMS as usize],
        }
    }

    /// Puts `range` into the queue, in pieces of about 1 MiB and at least one segment.
    pub(crate) fn request(&mut self, range: SegmentRange, lengths: &[u32]) {
        let (mut first, mut bytes) = (range.first().0, 0);
        for index in range.first().0..range.end() {
            let length = length_of(lengths, index);
            if index > first && bytes + length > PIECE_BYTES {
                self.wait(first, index);
                (first, bytes) = (index, 0);
            }
            bytes += length;
        }
        self.wait(first, range.end());
    }

    /// Takes back what was not asked yet.
    pub(crate) fn cancel(&mut self, range: SegmentRange) {
        self.waiting = std::mem::take(&mut self.waiting)
            .into_iter()
            .flat_map(|piece| piece.without(range))
            .collect();
    }

    /// The next piece that a stream has room to ask for.
    pub(crate) fn next(&mut self, lengths: &[u32]) -> Option<(u8, SegmentRange)> {
        let (stream, on_the_way) = (0..STREAMS)
            .zip(&mut self.on_the_way)
            .min_by_key(|(_, bytes)| **bytes)?;
        if *on_the_way >= PIPELINE_BYTES {
            return None;
        }
        let range = self.waiting.pop_front()?;
        *on_the_way += bytes_of(range, lengths);
        Some((stream, range))
    }

    /// Something asked on `stream` was answered, one way or the other.
    pub(crate) fn settle(&mut self, stream: u8, range: SegmentRange, lengths: &[u32]) {
        if let Some(on_the_way) = self.on_the_way.get_mut(usize::from(stream)) {
            *on_the_way = on_the_way.saturating_sub(bytes_of(range, lengths));
        }
    }

    fn wait(&mut self, first: u32, end: u32) {
        let piece = SegmentRange::new(SegmentIndex(first), end - first);
        self.waiting.extend(piece);
    }
}

pub(crate) fn bytes_of(range: SegmentRange, lengths: &[u32]) -> u64 {
    (range.first().0..range.end())
        .map(|index| length_of(lengths, index))
        .sum()
}

fn length_of(lengths: &[u32], index: u32) -> u64 {
    lengths.get(index as usize).copied().unwrap_or(0).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, count: u32) -> SegmentRange {
        SegmentRange::new(SegmentIndex(first), count).expect("a range")
    }

    #[test]
    fn streams_take_pieces_of_a_mebibyte_until_each_has_two_on_its_way() {
        let lengths = vec![512 << 10; 100];
        let mut download = Download::new(0);
        download.request(range(0, 100), &lengths);
        let asked: Vec<_> = std::iter::from_fn(|| download.next(&lengths)).collect();
        assert_eq!(asked.len(), 8, "{asked:?}");
        assert_eq!(asked[5], (1, range(10, 2)));
        download.settle(1, range(10, 1), &lengths);
        assert_eq!(download.next(&lengths), Some((1, range(16, 2))));
        assert_eq!(download.next(&lengths), None);
        download.cancel(range(18, 82));
        download.settle(0, range(0, 4), &lengths);
        assert_eq!(download.next(&lengths), None, "what waited was taken back");
    }
}
