//! A few members of one branch start at the same moment: their planners and stewards, with a simulated
//! network and virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use branchline_core::planner::{
    Action, JoinFailure, OriginAccess, OriginPace, Planner, Setup, Sharing, Source,
};
use branchline_core::swarm::{Answer, Blocks, Steward, first_in_rank};
use branchline_core::{PeerId, SegmentRange, SegmentSet};
use branchline_hashing::{SegmentIndex, SwarmId};

const SEGMENT_BYTES: u32 = 32 << 10;
/// Segments of one tick of 10 ms over the WAN: 3.2 MB/s.
const WAN_SEGMENTS_PER_TICK: usize = 1;
const TICK: Duration = Duration::from_millis(10);
/// Ticks between two words of what a member has.
const HAVE_TICKS: u64 = 8;

fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

fn swarm() -> SwarmId {
    SwarmId::from_bytes([7; 32])
}

struct Machine {
    planner: Planner,
    steward: Steward,
    /// What it was asked for, by whom.
    asked: VecDeque<(PeerId, SegmentIndex)>,
    runs: VecDeque<(SegmentRange, u32)>,
    /// Those that watch it, and what they know.
    watchers: BTreeMap<PeerId, SegmentSet>,
    enlisted: Option<(PeerId, Blocks)>,
    finished: Option<u64>,
}

impl Machine {
    fn new(now: Instant, me: PeerId, members: BTreeSet<PeerId>, segments: u32) -> Self {
        let lengths: Arc<[u32]> = vec![SEGMENT_BYTES; segments as usize].into();
        let setup = Setup {
            lengths,
            done: SegmentSet::empty(segments),
            origin: OriginAccess::Ranges,
            pace: OriginPace::default(),
            seed: u64::from(me.public_key()[0]),
            sharing: Some(Sharing {
                me,
                swarm: swarm(),
                members,
                warmed: false,
                enrolment: None,
            }),
        };
        Self {
            planner: Planner::new(now, setup),
            steward: Steward::new(1),
            asked: VecDeque::new(),
            runs: VecDeque::new(),
            watchers: BTreeMap::new(),
            enlisted: None,
            finished: None,
        }
    }
}

struct Lan {
    now: Instant,
    tick: u64,
    machines: BTreeMap<PeerId, Machine>,
    from_origin: usize,
    dead: BTreeSet<PeerId>,
    turn: usize,
    wan_is_cut: bool,
    stewards_are_silent: bool,
    others: Others,
}

/// What the members do that are no machine here.
#[derive(Clone, Copy, PartialEq)]
enum Others {
    /// They are gone.
    Absent,
    /// They claim to hold everything and send nothing; a steward says that others fetch.
    Hung,
    /// They hold nothing, ever; a steward says that others fetch.
    Idle,
}

impl Lan {
    fn new(machines: u8, segments: u32) -> Self {
        let now = Instant::now();
        let members: BTreeSet<PeerId> = (1..=machines).map(peer).collect();
        let machine = |id: &PeerId| (*id, Machine::new(now, *id, members.clone(), segments));
        Self {
            now,
            tick: 0,
            machines: members.iter().map(machine).collect(),
            from_origin: 0,
            dead: BTreeSet::new(),
            turn: 0,
            wan_is_cut: false,
            stewards_are_silent: false,
            others: Others::Absent,
        }
    }

    fn ids(&self) -> Vec<PeerId> {
        self.machines.keys().copied().collect()
    }

    fn run(&mut self) -> u64 {
        while self
            .machines
            .values()
            .any(|machine| machine.finished.is_none())
        {
            self.step();
            assert!(self.tick < 60_000, "no end in sight");
        }
        self.machines
            .values()
            .filter_map(|m| m.finished)
            .max()
            .unwrap_or(0)
    }

    fn step(&mut self) {
        self.tick += 1;
        self.now += TICK;
        self.wan();
        for id in self.ids() {
            self.serve(id);
            self.push_haves(id);
            self.time(id);
        }
        // Words travel within a tick, there and back.
        for _ in 0..3 {
            for id in self.ids() {
                self.act(id);
                self.stewards_word(id);
            }
        }
    }

    fn wan(&mut self) {
        if self.wan_is_cut {
            return;
        }
        for _ in 0..WAN_SEGMENTS_PER_TICK {
            let busy = |id: &PeerId| !self.machines[id].runs.is_empty();
            let fetching: Vec<PeerId> = self.ids().into_iter().filter(busy).collect();
            let Some(id) = fetching.get(self.turn % fetching.len().max(1)).copied() else {
                return;
            };
            self.turn += 1;
            let machine = self.machines.get_mut(&id).expect("there");
            let (run, come) = machine.runs.pop_front().expect("busy");
            let index = SegmentIndex(run.first().0 + come);
            self.from_origin += 1;
            machine
                .planner
                .handle_stored(self.now, Source::Origin, index);
            if come + 1 == run.count() {
                machine.planner.handle_origin_run_ended(self.now, run);
            } else {
                machine.runs.push_back((run, come + 1));
            }
        }
    }

    fn serve(&mut self, id: PeerId) {
        let asked = std::mem::take(&mut self.machines.get_mut(&id).expect("there").asked);
        for (to, index) in asked {
            if let Some(machine) = self.machines.get_mut(&to) {
                machine
                    .planner
                    .handle_stored(self.now, Source::Peer(id), index);
            }
        }
    }

    fn push_haves(&mut self, id: PeerId) {
        if !self.tick.is_multiple_of(HAVE_TICKS) {
            return;
        }
        let machine = self.machines.get_mut(&id).expect("there");
        let done = machine.planner.done().clone();
        let mut words = Vec::new();
        for (watcher, known) in &mut machine.watchers {
            let mut more = SegmentSet::empty(done.size());
            done.iter()
                .filter(|index| !known.contains(*index))
                .for_each(|index| {
                    more.insert(index);
                });
            known.unite(&more);
            words.push((*watcher, more));
        }
        for (watcher, more) in words {
            if let Some(machine) = self.machines.get_mut(&watcher)
                && !more.is_empty()
            {
                machine
                    .planner
                    .handle_have_more(self.now, id, more.ranges());
            }
        }
    }

    fn time(&mut self, id: PeerId) {
        let machine = self.machines.get_mut(&id).expect("there");
        if machine
            .planner
            .next_deadline()
            .is_some_and(|next| next.at <= self.now)
        {
            machine.planner.handle_timeout(self.now);
        }
        if machine
            .steward
            .next_deadline()
            .is_some_and(|next| next.at <= self.now)
        {
            machine.steward.handle_timeout(self.now);
        }
        if machine.planner.is_finished() {
            machine.finished.get_or_insert(self.tick);
        }
    }

    fn act(&mut self, id: PeerId) {
        while let Some(action) = self
            .machines
            .get_mut(&id)
            .and_then(|m| m.planner.poll_action())
        {
            self.carry_out(id, action);
        }
    }

    fn carry_out(&mut self, id: PeerId, action: Action) {
        match action {
            Action::Join { peer } => self.join(id, peer),
            Action::Request { peer, range } => {
                if let Some(machine) = self.machines.get_mut(&peer) {
                    machine.asked.extend(range.iter().map(|index| (id, index)));
                }
            }
            Action::Cancel { peer, range } => {
                if let Some(machine) = self.machines.get_mut(&peer) {
                    machine
                        .asked
                        .retain(|(by, index)| *by != id || !range.contains(*index));
                }
            }
            Action::Interrupt { peer } | Action::DropPeer { peer, .. } => {
                if let Some(machine) = self.machines.get_mut(&peer) {
                    machine.asked.retain(|(by, _)| *by != id);
                }
            }
            Action::FetchFromOrigin { run } => self.mine(id).runs.push_back((run, 0)),
            Action::CancelOrigin { run } => self.mine(id).runs.retain(|(of, _)| *of != run),
            Action::Enlist { steward, enlist } => {
                self.mine(id).enlisted = Some((steward, enlist.blocks));
                self.tell_that_others_fetch(id, steward);
                let now = self.now;
                if let Some(machine) = self.machines.get_mut(&steward) {
                    machine.steward.handle_enlist(now, id, enlist);
                }
            }
            Action::Report { steward, report } => {
                self.tell_that_others_fetch(id, steward);
                let (_, blocks) = self.mine(id).enlisted.expect("enlisted");
                let now = self.now;
                if let Some(machine) = self.machines.get_mut(&steward) {
                    machine
                        .steward
                        .handle_report(now, id, swarm(), blocks, report);
                }
            }
            Action::LeaveSteward { steward } => {
                let blocks = self.mine(id).enlisted.take().map(|(_, blocks)| blocks);
                let now = self.now;
                if let (Some(machine), Some(blocks)) = (self.machines.get_mut(&steward), blocks) {
                    machine.steward.handle_left(now, id, swarm(), blocks);
                }
            }
        }
    }

    fn mine(&mut self, id: PeerId) -> &mut Machine {
        self.machines.get_mut(&id).expect("there")
    }

    fn tell_that_others_fetch(&mut self, id: PeerId, steward: PeerId) {
        if self.others == Others::Absent || self.machines.contains_key(&steward) {
            return;
        }
        let answer = Answer {
            asked: true,
            lessees: 4,
            ..Answer::default()
        };
        let now = self.now;
        self.mine(id).planner.handle_answer(now, steward, &answer);
    }

    fn join(&mut self, id: PeerId, peer: PeerId) {
        let (now, others) = (self.now, self.others);
        let Some(other) = self.machines.get_mut(&peer) else {
            let size = self.mine(id).planner.done().size();
            let planner = &mut self.mine(id).planner;
            return match others {
                Others::Absent => planner.handle_not_joined(now, peer, JoinFailure::Absent),
                Others::Hung => planner.handle_joined(now, peer, SegmentSet::full(size)),
                Others::Idle => planner.handle_joined(now, peer, SegmentSet::empty(size)),
            };
        };
        let have = other.planner.done().clone();
        other.watchers.insert(id, have.clone());
        self.mine(id).planner.handle_joined(now, peer, have);
    }

    fn stewards_word(&mut self, id: PeerId) {
        while let Some(told) = self
            .machines
            .get_mut(&id)
            .and_then(|m| m.steward.poll_output())
        {
            let now = self.now;
            if self.stewards_are_silent {
                continue;
            }
            if let Some(machine) = self.machines.get_mut(&told.to) {
                machine.planner.handle_answer(now, id, &told.answer);
            }
        }
    }

    /// A machine is gone, and nobody is told but those that are connected to it as peers.
    fn kill(&mut self, id: PeerId) {
        self.machines.remove(&id);
        self.dead.insert(id);
        let now = self.now;
        for machine in self.machines.values_mut() {
            machine.asked.retain(|(by, _)| *by != id);
            machine.planner.handle_left(now, id);
        }
    }

    /// The steward that most members are enlisted with.
    fn steward(&self) -> PeerId {
        let enlisted = self
            .machines
            .values()
            .filter_map(|machine| machine.enlisted);
        enlisted
            .map(|(steward, _)| steward)
            .max()
            .expect("somebody")
    }

    fn kill_steward_at(&mut self, tick: u64) {
        while self.tick < tick {
            self.step();
        }
        self.kill(self.steward());
    }
}

/// Ticks that one machine would need for itself.
fn alone(segments: u32) -> u64 {
    u64::from(segments) / WAN_SEGMENTS_PER_TICK as u64
}

#[test]
fn sixteen_that_start_together_fetch_each_segment_about_once() {
    for segments in [4, 60, 2000] {
        let mut lan = Lan::new(16, segments);
        let ticks = lan.run();
        let ideal = alone(segments);
        println!(
            "{segments}: {} from the origin, {ticks} ticks of {ideal}",
            lan.from_origin
        );
        assert!(lan.from_origin <= segments as usize + segments as usize / 50 + 1);
        assert!(ticks <= ideal + ideal / 10 + 40, "{ticks} ticks");
    }
}

#[test]
fn when_the_steward_dies_at_half_time_little_is_fetched_twice() {
    let segments = 2000;
    let mut lan = Lan::new(16, segments);
    lan.kill_steward_at(alone(segments) / 2);
    let ticks = lan.run();
    let ideal = alone(segments);
    println!(
        "{} from the origin, {ticks} ticks of {ideal}",
        lan.from_origin
    );
    assert!(
        lan.from_origin <= segments as usize * 115 / 100,
        "{}",
        lan.from_origin
    );
    assert!(ticks <= ideal * 130 / 100, "{ticks} ticks");
}

#[test]
fn when_a_quarter_of_the_machines_dies_the_others_end_soon() {
    let segments = 2000;
    let mut lan = Lan::new(16, segments);
    while lan.tick < 700 {
        lan.step();
    }
    for number in [2, 5, 9, 13] {
        lan.kill(peer(number));
    }
    let ticks = lan.run();
    println!("{} from the origin, {ticks} ticks", lan.from_origin);
    assert!(
        lan.from_origin <= segments as usize * 115 / 100,
        "{}",
        lan.from_origin
    );
    assert!(ticks <= alone(segments) * 130 / 100, "{ticks} ticks");
}

#[test]
fn who_comes_when_all_have_it_asks_the_origin_for_nothing() {
    let segments = 2000;
    let mut lan = Lan::new(4, segments);
    lan.run();
    let fetched = lan.from_origin;
    for number in 30..33 {
        let id = peer(number);
        let mut members: BTreeSet<PeerId> = lan.ids().into_iter().collect();
        members.insert(id);
        for machine in lan.machines.values_mut() {
            machine.planner.handle_members(lan.now, &members);
        }
        let late = Machine::new(lan.now, id, members, segments);
        lan.machines.insert(id, late);
        lan.run();
    }
    assert_eq!(lan.from_origin, fetched);
}

#[test]
fn after_the_wan_was_cut_for_ten_seconds_little_is_fetched_twice() {
    let segments = 2000;
    let mut lan = Lan::new(16, segments);
    while lan.tick < 1000 {
        lan.step();
    }
    lan.wan_is_cut = true;
    while lan.tick < 2000 {
        lan.step();
    }
    lan.wan_is_cut = false;
    let ticks = lan.run();
    println!("{} from the origin, {ticks} ticks", lan.from_origin);
    assert!(
        lan.from_origin <= segments as usize * 115 / 100,
        "{}",
        lan.from_origin
    );
    assert!(ticks <= alone(segments) * 130 / 100 + 1000, "{ticks} ticks");
}

#[test]
fn without_any_steward_the_members_still_share() {
    let segments = 2000;
    let mut lan = Lan::new(16, segments);
    lan.stewards_are_silent = true;
    let ticks = lan.run();
    println!("{} from the origin, {ticks} ticks", lan.from_origin);
    assert!(ticks <= alone(segments) * 130 / 100, "{ticks} ticks");
}

#[test]
fn when_a_new_machine_becomes_the_steward_little_is_fetched_twice() {
    let segments = 2000;
    let mut lan = Lan::new(15, segments);
    while lan.tick < 500 {
        lan.step();
    }
    let mut members: BTreeSet<PeerId> = lan.ids().into_iter().collect();
    let ranks_first = |id: &PeerId| {
        let all = members.iter().copied().chain([*id]);
        first_in_rank(&swarm(), all, 1) == [*id]
    };
    let new = (30..=255).map(peer).find(ranks_first).expect("one of many");
    members.insert(new);
    let machine = Machine::new(lan.now, new, members.clone(), segments);
    lan.machines.insert(new, machine);
    for id in lan.ids() {
        let now = lan.now;
        lan.mine(id).planner.handle_members(now, &members);
        (0..3).for_each(|_| lan.step());
    }
    while lan.tick < 800 {
        lan.step();
    }
    assert_eq!(lan.steward(), new);
    let ticks = lan.run();
    println!("{} from the origin, {ticks} ticks", lan.from_origin);
    assert!(
        lan.from_origin <= segments as usize * 105 / 100,
        "{}",
        lan.from_origin
    );
    assert!(ticks <= alone(segments) * 110 / 100, "{ticks} ticks");
}

#[test]
fn with_every_other_member_broken_a_file_comes_a_tenth_later_at_most() {
    for others in [Others::Absent, Others::Hung, Others::Idle] {
        let segments = 2000;
        let mut lan = Lan::new(0, segments);
        lan.others = others;
        let members: BTreeSet<PeerId> = (1..=16).map(peer).collect();
        // One that is not its own steward.
        let me = *members
            .iter()
            .find(|id| first_in_rank(&swarm(), members.iter().copied(), 1) != [**id])
            .expect("15 of 16");
        let machine = Machine::new(lan.now, me, members, segments);
        lan.machines.insert(me, machine);
        let ticks = lan.run();
        println!("{} from the origin, {ticks} ticks", lan.from_origin);
        assert!(ticks <= alone(segments) * 110 / 100, "{ticks} ticks");
    }
}
