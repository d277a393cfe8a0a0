//! The whole branch: members, network, clock; hands each event to whom it concerns.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use branchline_core::swarm::Blocks;
use branchline_core::{PeerId, SegmentRange};
use branchline_hashing::{SegmentIndex, SwarmId};

use crate::chance::Chance;
use crate::checks::Checks;
use crate::clock::Clock;
use crate::figures::{Figures, QUESTION_ROUND_TRIPS, ideal};
use crate::lan::Lan;
use crate::member::{Member, MemberId};
use crate::message::{HANDSHAKE_BYTES, Message};
use crate::scenario::{Joins, Scenario};
use crate::wan::{FetchId, Wan};

/// Each member's link, either way.
pub(crate) const LAN_BITS_PER_SEC: f64 = 1e9;

/// One way through the switch, and a thread that wakes up.
const LAN_LATENCY: Duration = Duration::from_micros(200);

/// Of a handshake: two round trips, and 2 ms for the signatures of both sides.
const HANDSHAKE_TIME: Duration = Duration::from_micros(2_800);

/// What a slow member's rate is divided by.
const SLOWNESS: f64 = 100.0;

/// On the WAN, downwards, of the question what is current: TCP's handshake, the answers to HEAD and to a range of the
/// manifest, the manifest's first KiB. TLS would add about 3,500 bytes.
const QUESTION_BYTES: u32 = 2_070;

/// The header of the answer to a range request.
const RANGE_HEADER_BYTES: u32 = 400;

/// A segment's hash and length, as the manifest has them.
const MANIFEST_BYTES_PER_SEGMENT: u32 = 36;

/// Late comers start so long after all others have ended.
const LATE_BY: Duration = Duration::from_secs(1);

/// Something that happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// A member is told to fetch the file.
    Start(MemberId),
    /// The answer to a range request, or to the question, begins.
    FetchBegins(FetchId),
    /// The origin notices that a request was closed.
    FetchEnds(FetchId),
    /// The WAN's next segment is complete, unless the plan was changed since.
    Wan { plan: u64 },
    /// A message is there.
    Deliver {
        from: MemberId,
        to: MemberId,
        message: Message,
    },
    /// A member's uplink is free again.
    UplinkFree(MemberId),
    /// A member tells its watchers what is new.
    Push(MemberId),
    /// A deadline of a member's planner.
    PlannerAlarm(MemberId),
    /// A deadline of a member's steward.
    StewardAlarm(MemberId),
    /// A connection was tried long enough.
    DialFailed { from: MemberId, to: MemberId },
    /// The same for a stream to a steward.
    StewardUnreachable {
        from: MemberId,
        to: MemberId,
        stream: u32,
    },
    /// There is a connection to a steward.
    StewardReached {
        from: MemberId,
        to: MemberId,
        stream: u32,
    },
    /// A member dies without a word.
    Die(MemberId),
    /// The connections to a dead member have timed out.
    Missed(MemberId),
    /// Members' views of the branch have changed.
    Membership,
    /// The steward stops answering.
    StewardHangs,
    /// The steward dies.
    StewardDies,
}

/// Something asked of the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fetch {
    pub(crate) member: MemberId,
    pub(crate) what: Fetched,
    /// The requester has closed it: what still comes is thrown away.
    pub(crate) closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fetched {
    Question,
    Manifest,
    Run(SegmentRange),
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) chance: Chance,
    pub(crate) lengths: Arc<[u32]>,
    pub(crate) file_bytes: u64,
    pub(crate) blocks: Blocks,
    pub(crate) swarm: SwarmId,
    pub(crate) clock: Clock<Event>,
    pub(crate) lan: Lan,
    pub(crate) wan: Wan,
    wan_plan: u64,
    pub(crate) fetches: BTreeMap<FetchId, Fetch>,
    last_fetch: u64,
    pub(crate) members: Vec<Member>,
    pub(crate) checks: Checks,
    /// Members that are to end and have not.
    pub(crate) unfinished: u32,
    pub(crate) late_ones_started: bool,
    pub(crate) views: crate::troubles::Views,
    pub(crate) question_bytes: f64,
    pub(crate) late_bytes: u64,
}

/// Runs a scenario to its end.
///
/// # Panics
/// When an invariant does not hold: a defect of the planner, the steward or the simulator.
pub fn simulate(scenario: &Scenario) -> Figures {
    let mut world = World::new(scenario.clone());
    world.schedule_starts();
    world.schedule_troubles();
    let limit = world.time_limit();
    while world.unfinished > 0 {
        let Some(event) = world.clock.next() else {
            let seed = scenario.seed;
            panic!("seed {seed}: nothing happens any more and a transfer has not ended");
        };
        world.happen(event);
        let now = world.clock.now();
        world.checks.in_time(now, limit, world.unfinished);
    }
    world.checks.all_is_verified(&world.members);
    world.figures()
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let mut chance = Chance::new(scenario.seed);
        let lengths = lengths(&scenario, &mut chance);
        let file_bytes = lengths.iter().map(|length| u64::from(*length)).sum();
        let swarm = SwarmId::from_bytes(chance.bytes());
        let all = scenario.members + scenario.late;
        let mut members: Vec<Member> = (0..all)
            .map(|number| {
                let peer = peer_id(&mut chance, number);
                Member::new(peer, chance.next(), scenario.segments)
            })
            .collect();
        crate::troubles::assign_natures(&scenario, &mut chance, &mut members);
        let rate = |member: &Member| {
            let slowness = if member.nature.slow { SLOWNESS } else { 1.0 };
            LAN_BITS_PER_SEC / 8.0 / slowness
        };
        let up: Vec<f64> = members.iter().map(rate).collect();
        Self {
            lan: Lan::new(LAN_LATENCY, &up, LAN_BITS_PER_SEC / 8.0),
            wan: Wan::new(scenario.wan_bits_per_sec / 8.0),
            wan_plan: 0,
            fetches: BTreeMap::new(),
            last_fetch: 0,
            blocks: Blocks::of(scenario.segments, file_bytes),
            views: crate::troubles::Views::new(&scenario, &mut chance, &members, swarm),
            checks: Checks::new(scenario.seed, all),
            unfinished: scenario.members,
            late_ones_started: scenario.late == 0,
            question_bytes: 0.0,
            late_bytes: 0,
            clock: Clock::new(),
            scenario,
            chance,
            lengths,
            file_bytes,
            swarm,
            members,
        }
    }

    pub(crate) fn member(&mut self, id: MemberId) -> &mut Member {
        &mut self.members[id.0 as usize]
    }

    pub(crate) fn lives(&self, id: MemberId) -> bool {
        self.members[id.0 as usize].lives()
    }

    /// The member with this key: its number is part of it.
    pub(crate) fn id_of(peer: PeerId) -> MemberId {
        let [.., a, b, c, d] = *peer.public_key();
        MemberId(u32::from_be_bytes([a, b, c, d]))
    }

    pub(crate) fn peer_of(&self, id: MemberId) -> PeerId {
        self.members[id.0 as usize].peer
    }

    /// Three hundred seconds more than twenty times what it should take.
    fn time_limit(&self) -> Duration {
        let spread = match self.scenario.joins {
            Joins::Together => Duration::ZERO,
            Joins::Within(time) => time,
        };
        (self.scenario.wan_time(self.file_bytes) + spread) * 20 + Duration::from_secs(300)
    }

    fn schedule_starts(&mut self) {
        let within = match self.scenario.joins {
            Joins::Together => Duration::from_millis(5),
            Joins::Within(time) => time,
        };
        for number in 0..self.scenario.members {
            let at = self.chance.wait(within);
            self.clock.at(at, Event::Start(MemberId(number)));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start(id) => self.start(id),
            Event::FetchBegins(id) => self.fetch_begins(id),
            Event::FetchEnds(id) => self.fetch_ends(id),
            Event::Wan { plan } => self.wan_arrivals(plan),
            Event::Deliver { from, to, message } => self.deliver(from, to, message),
            Event::UplinkFree(id) => self.uplink_free(id),
            Event::Push(id) => self.push(id),
            Event::PlannerAlarm(id) => self.planner_alarm(id),
            Event::StewardAlarm(id) => self.steward_alarm(id),
            Event::DialFailed { from, to } => self.dial_failed(from, to),
            Event::StewardUnreachable { from, to, stream } => {
                self.steward_unreachable(from, to, stream);
            }
            Event::StewardReached { from, to, stream } => self.steward_reached(from, to, stream),
            Event::Die(id) => self.die(id),
            Event::Missed(id) => self.missed(id),
            Event::Membership => self.membership_changes(),
            Event::StewardHangs => self.steward_hangs(),
            Event::StewardDies => self.steward_dies(),
        }
    }

    /// Sends a message over the LAN after `wait`. A dead sender says nothing; what a dead receiver is sent is lost.
    pub(crate) fn send_after(
        &mut self,
        wait: Duration,
        from: MemberId,
        to: MemberId,
        message: Message,
    ) {
        if !self.lives(from) {
            return;
        }
        // An agent's word to itself takes no network.
        if from == to {
            self.clock.after(wait, Event::Deliver { from, to, message });
            return;
        }
        let wire = Lan::message_bytes(message.bytes());
        let tally = &mut self.member(from).tally;
        tally.messages += 1;
        tally.message_bytes += wire;
        let at = self
            .lan
            .control(self.clock.now() + wait, from.0, to.0, wire);
        self.clock.at(at, Event::Deliver { from, to, message });
    }

    pub(crate) fn send(&mut self, from: MemberId, to: MemberId, message: Message) {
        self.send_after(Duration::ZERO, from, to, message);
    }

    /// The time until a stream to `to` can be opened: that of a handshake, if there is no connection.
    pub(crate) fn connect(&mut self, from: MemberId, to: MemberId) -> Duration {
        if from == to || !self.member(from).asking.dialled.insert(to) {
            return Duration::ZERO;
        }
        for id in [from, to] {
            self.member(id).tally.message_bytes += HANDSHAKE_BYTES;
        }
        HANDSHAKE_TIME
    }

    /// Asks something of the origin.
    pub(crate) fn fetch(&mut self, member: MemberId, what: Fetched) {
        self.last_fetch += 1;
        let id = FetchId(self.last_fetch);
        let fetch = Fetch {
            member,
            what,
            closed: false,
        };
        self.fetches.insert(id, fetch);
        self.member(member).asking.fetches.insert(id);
        let round_trips = match what {
            Fetched::Question => QUESTION_ROUND_TRIPS,
            Fetched::Manifest | Fetched::Run(_) => 1,
        };
        let wait = self.scenario.wan_rtt * round_trips;
        self.clock.after(wait, Event::FetchBegins(id));
    }

    /// Closes a request: the origin's bytes stop a round trip later.
    pub(crate) fn close_fetch(&mut self, id: FetchId) {
        if let Some(fetch) = self.fetches.get_mut(&id) {
            fetch.closed = true;
            self.clock
                .after(self.scenario.wan_rtt, Event::FetchEnds(id));
        }
    }

    fn fetch_begins(&mut self, id: FetchId) {
        let Some(fetch) = self.fetches.get(&id) else {
            return;
        };
        let mut pieces: VecDeque<(SegmentIndex, u32)> = match fetch.what {
            Fetched::Question => VecDeque::from([(SegmentIndex(0), QUESTION_BYTES)]),
            Fetched::Manifest => {
                let bytes = self.scenario.segments * MANIFEST_BYTES_PER_SEGMENT;
                VecDeque::from([(SegmentIndex(0), bytes)])
            }
            Fetched::Run(run) => run
                .iter()
                .map(|index| (index, self.lengths[index.0 as usize]))
                .collect(),
        };
        if fetch.what == Fetched::Question {
            self.question_bytes += f64::from(QUESTION_BYTES) * crate::wan::WAN_FACTOR;
        } else if let Some((_, length)) = pieces.front_mut() {
            *length += RANGE_HEADER_BYTES;
        }
        self.wan.begin(self.clock.now(), id, pieces);
        self.plan_wan();
    }

    fn fetch_ends(&mut self, id: FetchId) {
        if self.fetches.remove(&id).is_some() {
            self.wan.cancel(self.clock.now(), id);
            self.plan_wan();
        }
    }

    fn wan_arrivals(&mut self, plan: u64) {
        if plan != self.wan_plan {
            return;
        }
        while let Some(arrival) = self.wan.poll(self.clock.now()) {
            let Some(fetch) = self.fetches.get(&arrival.fetch).copied() else {
                continue;
            };
            if arrival.ends {
                self.fetches.remove(&arrival.fetch);
            }
            if !fetch.closed {
                self.origin_sent(arrival, fetch);
            }
        }
        self.plan_wan();
    }

    fn plan_wan(&mut self) {
        self.wan_plan += 1;
        let plan = self.wan_plan;
        if let Some(at) = self.wan.next_at() {
            self.clock.at(at, Event::Wan { plan });
        }
    }

    /// A member has all segments.
    pub(crate) fn ended(&mut self, id: MemberId) {
        let now = self.clock.now();
        self.member(id).ended = Some(now);
        self.announce(id);
        self.one_less();
    }

    /// One member less is waited for; after the last of the others the late ones start.
    pub(crate) fn one_less(&mut self) {
        self.unfinished -= 1;
        if self.unfinished > 0 || self.late_ones_started {
            return;
        }
        self.late_ones_started = true;
        self.unfinished = self.scenario.late;
        let all = self.scenario.members + self.scenario.late;
        for number in self.scenario.members..all {
            let at = LATE_BY + self.chance.wait(Duration::from_secs(1));
            self.clock.after(at, Event::Start(MemberId(number)));
        }
    }

    fn figures(&self) -> Figures {
        let common = &self.members[..self.scenario.members as usize];
        let first = common.iter().filter_map(|member| member.started).min();
        let first = first.unwrap_or_default();
        let last_start = common.iter().filter_map(|member| member.started).max();
        let last_start = last_start.unwrap_or_default().saturating_sub(first);
        let last_end = common.iter().filter_map(|member| member.ended).max();
        let of_all = |count: fn(&Member) -> u64| self.members.iter().map(count).sum();
        let largest = |count: fn(&Member) -> u64| self.members.iter().map(count).max().unwrap_or(0);
        let wan = self.wan.carried_bytes();
        let dead = self.members.iter().filter(|member| !member.lives()).count();
        Figures {
            seed: self.scenario.seed,
            members: self.scenario.members,
            file_bytes: self.file_bytes,
            wan_content_bytes: wan - self.question_bytes,
            wan_question_bytes: self.question_bytes,
            late_bytes: self.late_bytes,
            fetched_again: self.checks.fetched_again(),
            makespan: last_end.unwrap_or_default().saturating_sub(first),
            ideal: ideal(&self.scenario, self.file_bytes, last_start),
            control_messages: of_all(|member| member.tally.messages),
            control_bytes: of_all(|member| member.tally.message_bytes),
            control_bytes_largest: largest(|member| member.tally.message_bytes),
            upload_bytes_largest: largest(|member| member.tally.upload_bytes),
            planning: self
                .members
                .iter()
                .map(|member| member.tally.planning)
                .sum(),
            segments_stored: of_all(|member| member.tally.stored),
            peer_duplicates: of_all(|member| member.tally.duplicates),
            members_failed: u32::try_from(dead).unwrap_or(u32::MAX),
        }
    }
}

/// Between half and one and a half of the mean.
fn lengths(scenario: &Scenario, chance: &mut Chance) -> Arc<[u32]> {
    let mean = u64::from(scenario.segment_bytes);
    (0..scenario.segments)
        .map(|_| u32::try_from(mean / 2 + chance.below(mean)).unwrap_or(u32::MAX))
        .collect()
}

/// A key by chance whose last four bytes are the member's number, so that it is found at once.
fn peer_id(chance: &mut Chance, number: u32) -> PeerId {
    let mut key = chance.bytes();
    key[28..].copy_from_slice(&number.to_be_bytes());
    PeerId::from_public_key(key)
}
