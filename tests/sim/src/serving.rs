//! A member as others see it: it lets them join, tells them what it comes to hold, sends segments.

use std::rc::Rc;
use std::time::Duration;

use branchline_core::planner::TELL_EVERY;
use branchline_core::{SegmentRange, SegmentSet};
use branchline_hashing::SegmentIndex;

use crate::member::{MemberId, Phase};
use crate::message::Message;
use crate::uploads::StreamKey;
use crate::world::{Event, World};

/// The proof of a join, and the look-up of what is there.
const JOIN_TIME: Duration = Duration::from_micros(500);

/// What a requester that is turned away is told to wait (`ExchangeOptions::busy_retry_after`).
const BUSY_RETRY: Duration = Duration::from_millis(500);

/// The receiver's hashing and writing (docs/benchmarks.md has about 1 GB/s).
const VERIFIED_BYTES_PER_SEC: f64 = 1e9;

/// A liar sends wrong bytes once in so many segments.
const LIES_ONE_IN: u64 = 4;

impl World {
    /// A message is there. The dead hear nothing, and nothing more comes from them.
    pub(crate) fn deliver(&mut self, from: MemberId, to: MemberId, message: Message) {
        if !self.lives(to) || !self.lives(from) {
            return;
        }
        match message {
            Message::Join => self.asked_to_join(to, from),
            Message::Joined(have) => self.joined(to, from, &have),
            Message::Unknown => self.not_joined(to, from),
            Message::Request {
                download,
                stream,
                range,
            } => {
                let key = StreamKey {
                    requester: from.0,
                    download,
                    stream,
                };
                self.member(to).serving.uploads.ask(key, range);
                self.pump(to);
            }
            Message::Stop { download } => self.member(to).serving.uploads.stop(from.0, download),
            Message::Bye => self.forget_requester(to, from),
            Message::Segment {
                download,
                stream,
                index,
                right,
            } => self.segment_came(to, from, (download, stream), index, right),
            Message::Absent {
                download,
                stream,
                index,
            } => self.segment_absent(to, from, (download, stream), index),
            Message::RangeBusy {
                download,
                stream,
                range,
            } => self.refused(to, from, (download, stream), range, BUSY_RETRY),
            Message::HaveMore(ranges) => self.peer_has_more(to, from, &ranges),
            Message::ManifestRequest => self.asked_for_manifest(to, from),
            Message::Manifest { there } => self.manifest_answered(to, from, there),
            Message::Enlist { stream, enlist } => self.member_enlists(to, from, stream, *enlist),
            Message::Report { stream, report } => self.member_reports(to, from, stream, *report),
            Message::Answer { stream, answer } => self.steward_answers(to, from, stream, &answer),
            Message::Announce => self.member_announces(to, from),
            Message::Leave { stream } => self.member_leaves(to, from, stream),
        }
    }

    fn asked_to_join(&mut self, id: MemberId, requester: MemberId) {
        let member = self.member(id);
        let answer = if member.serves() {
            member.serving.watchers.insert(requester);
            Message::Joined(Rc::new(member.verified.clone()))
        } else {
            Message::Unknown
        };
        self.send_after(JOIN_TIME, id, requester, answer);
    }

    /// The manifest is a body of some kilobytes: it goes with the small messages, and is not counted as one.
    fn asked_for_manifest(&mut self, id: MemberId, requester: MemberId) {
        let there = self.member(id).serves();
        let message = Message::Manifest { there };
        if there {
            let (now, bytes) = (self.clock.now() + JOIN_TIME, self.manifest_bytes());
            let at = self.lan.control(now, id.0, requester.0, bytes);
            self.send_after(at.saturating_sub(self.clock.now()), id, requester, message);
        } else {
            self.send_after(JOIN_TIME, id, requester, message);
        }
    }

    pub(crate) fn forget_requester(&mut self, id: MemberId, requester: MemberId) {
        let serving = &mut self.member(id).serving;
        serving.watchers.remove(&requester);
        serving.uploads.forget(requester.0);
    }

    /// The member has come to hold a segment.
    pub(crate) fn have_new(&mut self, id: MemberId, index: SegmentIndex) {
        let serving = &mut self.member(id).serving;
        serving.untold.insert(index);
        if !std::mem::replace(&mut serving.push_is_due, true) {
            self.schedule_push(id);
        }
    }

    /// As the exchange does: when the member's planner lets it, which is looked at again each [`TELL_EVERY`].
    fn schedule_push(&mut self, id: MemberId) {
        let at = self.push_due_at(id);
        let at = at.min(self.clock.now() + TELL_EVERY);
        self.clock.at(at, Event::Push(id));
    }

    fn push_due_at(&mut self, id: MemberId) -> Duration {
        let member = self.member(id);
        let every = match &member.phase {
            Phase::Segments(planner) => planner.tell_every(),
            Phase::Idle | Phase::Asking | Phase::Manifest(_) => TELL_EVERY,
        };
        let told_at = member.serving.told_at;
        told_at.map_or(Duration::ZERO, |told_at| told_at + every)
    }

    /// Tells the watchers what is new, when it is time. When all is told they watch no longer.
    pub(crate) fn push(&mut self, id: MemberId) {
        let empty = SegmentSet::empty(self.scenario.segments);
        if self.push_due_at(id) > self.clock.now() {
            return self.schedule_push(id);
        }
        let now = self.clock.now();
        let member = self.member(id);
        member.serving.push_is_due = false;
        if !member.lives() {
            return;
        }
        member.serving.told_at = Some(now);
        let untold = std::mem::replace(&mut member.serving.untold, empty);
        let all_is_there = member.verified.is_full();
        let watchers = if all_is_there {
            std::mem::take(&mut member.serving.watchers)
        } else {
            member.serving.watchers.clone()
        };
        let ranges: Rc<[SegmentRange]> = untold.ranges().collect();
        for watcher in watchers {
            self.send(id, watcher, Message::HaveMore(Rc::clone(&ranges)));
        }
    }

    fn peer_has_more(&mut self, id: MemberId, peer: MemberId, ranges: &Rc<[SegmentRange]>) {
        let member = self.member(id);
        if member.ended.is_some() || !member.asking.sessions.contains_key(&peer) {
            return;
        }
        let peer = self.peer_of(peer);
        let more = ranges.iter().copied();
        self.with_planner(id, |planner, now| planner.handle_have_more(now, peer, more));
    }

    /// Puts the next segment on the uplink when that is free, and says no to those that get no slot.
    pub(crate) fn pump(&mut self, id: MemberId) {
        while let Some((key, range)) = self.member(id).serving.uploads.next_refusal() {
            let message = Message::RangeBusy {
                download: key.download,
                stream: key.stream,
                range,
            };
            self.send(id, MemberId(key.requester), message);
        }
        while !self.member(id).serving.uploads.sending {
            let Some((key, index)) = self.member(id).serving.uploads.next_segment() else {
                return;
            };
            self.send_segment(id, key, index);
        }
    }

    fn send_segment(&mut self, id: MemberId, key: StreamKey, index: SegmentIndex) {
        let requester = MemberId(key.requester);
        if !self.lives(requester) {
            // Nothing is acknowledged: QUIC soon stops sending. Its slots are free a little early.
            self.forget_requester(id, requester);
            return;
        }
        if !self.member(id).verified.contains(index) {
            let message = Message::Absent {
                download: key.download,
                stream: key.stream,
                index,
            };
            return self.send(id, requester, message);
        }
        let lies = self.member(id).nature.lying && self.chance.below(LIES_ONE_IN) == 0;
        let bytes = self.lengths[index.0 as usize].into();
        let now = self.clock.now();
        let passage = self.lan.bulk(now, id.0, requester.0, bytes);
        let member = self.member(id);
        member.serving.uploads.sending = true;
        member.tally.upload_bytes += bytes;
        self.clock.at(passage.sent, Event::UplinkFree(id));
        let hashing = Duration::from_secs_f64(bytes as f64 / VERIFIED_BYTES_PER_SEC);
        let event = Event::Deliver {
            from: id,
            to: requester,
            message: Message::Segment {
                download: key.download,
                stream: key.stream,
                index,
                right: !lies,
            },
        };
        self.clock.at(passage.received + hashing, event);
    }

    pub(crate) fn uplink_free(&mut self, id: MemberId) {
        let member = self.member(id);
        member.serving.uploads.sending = false;
        if member.lives() {
            self.pump(id);
        }
    }
}
