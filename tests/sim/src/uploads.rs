//! What one member is asked for, as the exchange's serving side does it.
//!
//! A stream's requests are answered in order, each complete before the next. A request that is
//! being answered takes an upload slot; without one it is refused. Streams that are answered send
//! a segment each in turn: QUIC's fair share, in coarse grains.

use std::collections::{BTreeMap, VecDeque};

use branchline_core::SegmentRange;
use branchline_hashing::SegmentIndex;

/// Requests answered at one time (`ExchangeOptions::max_uploads`), and those of one peer.
const SLOTS: usize = 64;
const SLOTS_PER_PEER: usize = SLOTS / 2;

/// One stream of one download of one requester.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamKey {
    pub(crate) requester: u32,
    pub(crate) download: u32,
    pub(crate) stream: u8,
}

#[derive(Debug, Default)]
pub(crate) struct Uploads {
    streams: BTreeMap<StreamKey, Stream>,
    taken: usize,
    taken_by: BTreeMap<u32, usize>,
    /// Streams with a request that is being answered.
    turns: VecDeque<StreamKey>,
    refused: VecDeque<(StreamKey, SegmentRange)>,
    /// A segment is on the uplink.
    pub(crate) sending: bool,
}

#[derive(Debug, Default)]
struct Stream {
    /// First and end of what is left of the request that is being answered.
    answering: Option<(u32, u32)>,
    waiting: VecDeque<SegmentRange>,
}

impl Uploads {
    /// A request has come.
    pub(crate) fn ask(&mut self, key: StreamKey, range: SegmentRange) {
        let stream = self.streams.entry(key).or_default();
        stream.waiting.push_back(range);
        if stream.answering.is_none() {
            self.answer_next(key);
        }
    }

    /// The next segment to send; its stream's next turn comes after all others'.
    pub(crate) fn next_segment(&mut self) -> Option<(StreamKey, SegmentIndex)> {
        while let Some(key) = self.turns.pop_front() {
            let Some(stream) = self.streams.get_mut(&key) else {
                continue;
            };
            let Some((first, end)) = stream.answering else {
                continue;
            };
            if first + 1 < end {
                stream.answering = Some((first + 1, end));
                self.turns.push_back(key);
            } else {
                stream.answering = None;
                self.give_slot_back(key.requester);
                self.answer_next(key);
            }
            return Some((key, SegmentIndex(first)));
        }
        None
    }

    /// A request that was refused for want of a slot, if there is one.
    pub(crate) fn next_refusal(&mut self) -> Option<(StreamKey, SegmentRange)> {
        self.refused.pop_front()
    }

    /// The requester has ended this download's streams.
    pub(crate) fn stop(&mut self, requester: u32, download: u32) {
        let key = |stream| StreamKey {
            requester,
            download,
            stream,
        };
        self.stop_range(key(0), key(u8::MAX));
    }

    /// The requester's connection has ended.
    pub(crate) fn forget(&mut self, requester: u32) {
        let key = |download, stream| StreamKey {
            requester,
            download,
            stream,
        };
        self.stop_range(key(0, 0), key(u32::MAX, u8::MAX));
    }

    fn stop_range(&mut self, from: StreamKey, to: StreamKey) {
        let keys: Vec<StreamKey> = self.streams.range(from..=to).map(|(key, _)| *key).collect();
        for key in keys {
            let stream = self.streams.remove(&key);
            if stream.is_some_and(|stream| stream.answering.is_some()) {
                self.give_slot_back(key.requester);
            }
        }
    }

    fn answer_next(&mut self, key: StreamKey) {
        let taken_by_peer = self.taken_by.get(&key.requester).copied().unwrap_or(0);
        let Some(stream) = self.streams.get_mut(&key) else {
            return;
        };
        while let Some(range) = stream.waiting.pop_front() {
            if self.taken < SLOTS && taken_by_peer < SLOTS_PER_PEER {
                stream.answering = Some((range.first().0, range.end()));
                self.taken += 1;
                *self.taken_by.entry(key.requester).or_default() += 1;
                self.turns.push_back(key);
                return;
            }
            self.refused.push_back((key, range));
        }
    }

    fn give_slot_back(&mut self, requester: u32) {
        self.taken -= 1;
        if let Some(count) = self.taken_by.get_mut(&requester) {
            *count -= 1;
            if *count == 0 {
                self.taken_by.remove(&requester);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(requester: u32, stream: u8) -> StreamKey {
        StreamKey {
            requester,
            download: 0,
            stream,
        }
    }

    fn range(first: u32, count: u32) -> SegmentRange {
        SegmentRange::new(SegmentIndex(first), count).expect("a range")
    }

    fn sent(uploads: &mut Uploads) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| uploads.next_segment())
            .map(|(key, index)| (key.requester, index.0))
            .collect()
    }

    #[test]
    fn streams_take_turns_and_each_answers_in_order() {
        let mut uploads = Uploads::default();
        uploads.ask(key(1, 0), range(0, 2));
        uploads.ask(key(1, 0), range(7, 1));
        uploads.ask(key(2, 0), range(3, 2));
        assert_eq!(sent(&mut uploads), [(1, 0), (2, 3), (1, 1), (2, 4), (1, 7)]);
    }

    #[test]
    fn half_of_the_slots_are_one_peers_and_the_rest_is_refused() {
        let mut uploads = Uploads::default();
        for stream in 0..33 {
            uploads.ask(key(1, stream), range(0, 1));
        }
        uploads.ask(key(2, 0), range(0, 1));
        assert_eq!(uploads.next_refusal(), Some((key(1, 32), range(0, 1))));
        assert_eq!(uploads.next_refusal(), None);
        uploads.stop(1, 0);
        assert_eq!(sent(&mut uploads), [(2, 0)]);
        assert_eq!(uploads.taken, 0);
    }
}
