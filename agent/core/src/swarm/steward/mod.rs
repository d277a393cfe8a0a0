//! The steward of swarms: says who fetches which blocks from the origin, and who is there.
//!
//! Sans-IO: inputs are `handle_*` with the time they happened; afterwards the caller drains
//! [`Steward::poll_output`] and waits for the next input or [`Steward::next_deadline`].
//!
//! Invariants, for each swarm (and way of dividing it into blocks):
//! - no block is leased to two members at once;
//! - a block that a live member has reported held is not leased, unless nobody has got it from there within
//!   [`SPREADS_WITHIN`];
//! - at most [`MAX_LESSEES`] live members hold leases;
//! - a block that is neither held nor leased is granted as soon as a member that may have it wants it;
//! - an agent's announcement that it holds all counts as holding all;
//! - memory is bounded by [`MAX_STEWARD_BYTES`], whatever members say;
//! - no input costs more than the blocks it names: nothing looks at all members.
//!
//! It knows neither the content nor its length, believes each member about itself only, and sends nothing.

mod directory;
mod ledger;
mod member;
mod queue;
mod roster;
mod spread;
mod table;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use branchline_hashing::SwarmId;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::{Answer, Blocks, Enlist, MAX_ANSWER_PEERS, Report};
use crate::{Deadline, PeerId};
use directory::Directory;
use table::Table;

/// Members that fetch a content from the origin at once. One fills the line, too; four share a bottleneck
/// better with others, go on when one fails, and are few connections for an origin.
pub const MAX_LESSEES: usize = 4;

/// Leases of one member that is alone: as many range requests as fill a line while one ends and the
/// next begins.
const RUNS_OF_ONE: usize = 4;

/// Leases of one swarm when several members want some: two of each of [`MAX_LESSEES`], so that
/// each has one under way while it asks for the next.
const RUNS_IN_ALL: usize = 8;

/// A lease ends after so long without a block of it: 256 KiB, the shortest block, take that long at
/// 100 kbit/s, an eighth of a line of 0.8 Mbit/s.
pub const LEASE_LASTS: Duration = Duration::from_secs(20);

/// A lessee that says nothing for so long loses its leases: it would report each second.
pub const LESSEE_SILENCE: Duration = Duration::from_secs(4);

/// What a member holds does not count any more when nothing was heard for so long; three of its
/// reports are missing then.
pub const MEMBER_SILENCE: Duration = Duration::from_secs(10);

/// A block that nobody but its fetcher holds after so long, while others have waited for leases as long, is
/// leased again, and its fetcher gets no more: it lies, sends slowly, or is not reached. Those that have
/// leases report 200 ms after a block came, the others each at its own time within three seconds.
pub const SPREADS_WITHIN: Duration = Duration::from_millis(2_500);

/// What a member held and leased when its stream ended counts for so long: members that move to
/// another steward go on with both, and all will have moved by then.
pub const GONE_LINGERS: Duration = Duration::from_secs(2);

/// A member that gave a lease back and wants another is granted nothing for so long: it would be given the same again. One
/// that wanted nothing then has a reason when it does: a neighbour that held all has left, or lied.
const RETURNED_RESTS: Duration = Duration::from_millis(250);

/// How long one member may take to fetch the manifest before another is asked to: a manifest is
/// 1/1000 of its content, and those who wait have the content yet to fetch.
pub const MANIFEST_LEASE: Duration = Duration::from_secs(2);

/// So many of those who wait for the manifest are sent to each member that has it: it serves them
/// within milliseconds, and ten thousand have it after five rounds.
const MANIFEST_FANOUT: usize = 8;

/// A member is told of so many peers: as many neighbours as it can have.
const NEIGHBOURS_TOLD: usize = 24;

/// Of the peers a member is told of, one in so many has announced that it holds everything, while there are
/// members enough: those few would otherwise serve everybody.
const HOLDERS_NAMED_OF: usize = 6;

/// Members that lack neighbours hear of new members together, this long after the first.
const NEWS_COALESCED: Duration = Duration::from_millis(100);

/// A member hears of so many more peers this often, in place of those that went: 22 bytes a second.
const PEERS_REFRESHED: usize = 2;
const REFRESH_EVERY: Duration = Duration::from_secs(3);

/// Swarms at one time. A branch of a thousand machines with as many files under way has one each.
const MAX_TABLES: usize = 1024;

/// Of those, the ones that one agent is a member of: it has fewer downloads under way at one time.
const MAX_TABLES_OF_ONE: usize = 64;

/// Members of one swarm.
const MAX_MEMBERS: usize = 16_384;

/// The memory of all swarms: ten thousand members of one with the most blocks take a third of it.
pub const MAX_STEWARD_BYTES: usize = 24 << 20;

/// What a member and a table take besides their blocks, rounded up from the size of their parts.
const MEMBER_BYTES: usize = 512;
const TABLE_BYTES: usize = 2048;

/// Announced contents: a hundred agents with ten thousand each, spread over as many stewards, are
/// ten thousand at one; of one agent; agents kept for one content.
const MAX_ANNOUNCED: usize = 65_536;
const ANNOUNCED_OF_ONE: usize = 16_384;
const ANNOUNCERS_KEPT: usize = 64;

const _: () = assert!(NEIGHBOURS_TOLD <= MAX_ANSWER_PEERS, "an answer holds them");

/// All swarms this agent is the steward of.
#[derive(Debug)]
pub struct Steward {
    tables: BTreeMap<TableKey, Entry>,
    /// When each table is to be looked at.
    due: BTreeSet<(Instant, TableKey)>,
    directory: Directory,
    told: VecDeque<Told>,
    granted: GrantedTotals,
    bytes: usize,
    rng: Xoshiro256PlusPlus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct TableKey {
    swarm: SwarmId,
    blocks: Blocks,
}

#[derive(Debug)]
struct Entry {
    table: Table,
    due: Option<Instant>,
    used: Instant,
    bytes: usize,
}

/// What is to be told to a member, on the stream that it enlisted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Whom.
    pub to: PeerId,
    /// Of which swarm.
    pub swarm: SwarmId,
    /// How its content is divided: with the swarm and the member, this names the stream.
    pub blocks: Blocks,
    /// What.
    pub answer: Answer,
}

/// What has been granted since the start, for a budget of the whole branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GrantedTotals {
    /// Leases.
    pub leases: u64,
    /// Blocks.
    pub blocks: u64,
}

impl Steward {
    /// A steward of no swarm yet. `seed` is for choices by chance: which peers a member is told of.
    pub fn new(seed: u64) -> Self {
        Self {
            tables: BTreeMap::new(),
            due: BTreeSet::new(),
            directory: Directory::default(),
            told: VecDeque::new(),
            granted: GrantedTotals::default(),
            bytes: 0,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
        }
    }

    /// A member enlists: for the first time, or again on a new stream, which ends the old one.
    pub fn handle_enlist(&mut self, now: Instant, from: PeerId, enlist: Enlist) {
        let key = TableKey {
            swarm: enlist.swarm,
            blocks: enlist.blocks,
        };
        if enlist.held.size() != enlist.blocks.count()
            || !self.may_be_member(key, from)
            || !self.make_room(key, from)
        {
            return self.refuse(from, key);
        }
        let announcers = || self.directory.holders(&key.swarm);
        self.tables.entry(key).or_insert_with(|| Entry {
            table: Table::new(now, key.blocks, announcers(), &mut self.rng),
            due: None,
            used: now,
            bytes: 0,
        });
        self.with_table(now, key, |table, rng| table.enlist(now, rng, from, enlist));
    }

    /// A member reports what has changed. `swarm` and `blocks` are those of its stream's `Enlist`.
    pub fn handle_report(
        &mut self,
        now: Instant,
        from: PeerId,
        swarm: SwarmId,
        blocks: Blocks,
        report: Report,
    ) {
        let key = TableKey { swarm, blocks };
        if report.held.size() != blocks.count() || !self.tables.contains_key(&key) {
            return self.refuse(from, key);
        }
        self.with_table(now, key, |table, rng| table.report(now, rng, from, report));
    }

    /// A member's stream has ended.
    pub fn handle_left(&mut self, now: Instant, from: PeerId, swarm: SwarmId, blocks: Blocks) {
        self.with_table(now, TableKey { swarm, blocks }, |table, rng| {
            table.left(now, rng, from)
        });
    }

    /// An agent says which swarms it holds completely, in addition to those it said before.
    pub fn handle_announce(&mut self, now: Instant, from: PeerId, swarms: &[SwarmId]) {
        for swarm in swarms {
            if self.directory.add(&mut self.rng, from, *swarm) {
                self.announcers_changed(now, *swarm);
            }
        }
    }

    /// An agent holds these no more, or not completely.
    pub fn handle_withdraw(&mut self, now: Instant, from: PeerId, swarms: &[SwarmId]) {
        for swarm in swarms {
            if self.directory.withdraw(from, *swarm) {
                self.announcers_changed(now, *swarm);
            }
        }
    }

    /// The stream that an agent announced on has ended: what it announced is forgotten.
    pub fn handle_announcer_left(&mut self, now: Instant, from: PeerId) {
        for swarm in self.directory.remove(from) {
            self.announcers_changed(now, swarm);
        }
    }

    /// A deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        // Each table once, whatever deadline it names afterwards.
        let due: Vec<TableKey> = self
            .due
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, key)| *key)
            .collect();
        for key in due {
            self.with_table(now, key, |table, rng| table.timeout(now, rng));
        }
    }

    /// When to call [`Steward::handle_timeout`] if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Deadline> {
        self.due.first().map(|(at, _)| Deadline {
            at: *at,
            waiting_for: "members of a swarm to report",
        })
    }

    /// The next word to a member.
    pub fn poll_output(&mut self) -> Option<Told> {
        self.told.pop_front()
    }

    /// What has been granted since the start.
    pub fn granted(&self) -> GrantedTotals {
        self.granted
    }

    /// Swarms that there are members of.
    pub fn swarms(&self) -> usize {
        self.tables.len()
    }

    fn announcers_changed(&mut self, now: Instant, swarm: SwarmId) {
        let first = TableKey {
            swarm,
            blocks: Blocks::of(0, 0),
        };
        let from_first = self.tables.range(first..).map(|(key, _)| *key);
        let keys: Vec<TableKey> = from_first.take_while(|key| key.swarm == swarm).collect();
        for key in keys {
            let announcers = self.directory.holders(&swarm);
            self.with_table(now, key, |table, rng| {
                table.set_announcers(now, rng, announcers);
            });
        }
    }

    /// Lets an input do its work, and passes on what came of it.
    fn with_table(
        &mut self,
        now: Instant,
        key: TableKey,
        input: impl FnOnce(&mut Table, &mut Xoshiro256PlusPlus),
    ) {
        let Some(entry) = self.tables.get_mut(&key) else {
            return;
        };
        let table = &mut entry.table;
        input(table, &mut self.rng);
        let TableKey { swarm, blocks } = key;
        for (to, answer) in table.said.drain(..) {
            self.told.push_back(Told {
                to,
                swarm,
                blocks,
                answer,
            });
        }
        self.granted.leases += std::mem::take(&mut table.leases_granted);
        self.granted.blocks += std::mem::take(&mut table.blocks_granted);
        entry.used = now;
        let bytes = bytes_of(blocks, table.members.len());
        self.bytes = self.bytes - entry.bytes + bytes;
        entry.bytes = bytes;
        if let Some(old) = std::mem::replace(&mut entry.due, table.next_deadline()) {
            self.due.remove(&(old, key));
        }
        self.due.extend(entry.due.map(|at| (at, key)));
        if table.members.is_empty() {
            self.remove(key);
        }
    }

    fn refuse(&mut self, to: PeerId, TableKey { swarm, blocks }: TableKey) {
        let answer = Answer {
            asked: true,
            ..Answer::default()
        };
        self.told.push_back(Told {
            to,
            swarm,
            blocks,
            answer,
        });
    }

    fn remove(&mut self, key: TableKey) {
        if let Some(entry) = self.tables.remove(&key) {
            self.bytes -= entry.bytes;
            if let Some(at) = entry.due {
                self.due.remove(&(at, key));
            }
        }
    }

    /// Whether an agent is a member of few enough tables, or of this one already.
    fn may_be_member(&self, key: TableKey, from: PeerId) -> bool {
        let member = |entry: &Entry| entry.table.members.contains_key(&from);
        self.tables.get(&key).is_some_and(member)
            || self.tables.values().filter(|entry| member(entry)).count() < MAX_TABLES_OF_ONE
    }

    /// Whether there is room for one more member of a table, after the tables that nobody uses, the
    /// least recently used first, have gone for it.
    fn make_room(&mut self, key: TableKey, from: PeerId) -> bool {
        let members = self.tables.get(&key).map(|entry| &entry.table.members);
        let known = members.is_some_and(|members| members.contains_key(&from));
        let count = members.map_or(0, BTreeMap::len);
        if known {
            return true;
        }
        let more =
            bytes_of(key.blocks, count + 1) - members.map_or(0, |_| bytes_of(key.blocks, count));
        let is_new = members.is_none();
        while self.bytes + more > MAX_STEWARD_BYTES || (is_new && self.tables.len() >= MAX_TABLES) {
            let idle = self
                .tables
                .iter()
                .filter(|(of, entry)| **of != key && entry.table.is_idle());
            let Some(oldest) = idle.min_by_key(|(_, entry)| entry.used).map(|(of, _)| *of) else {
                return false;
            };
            self.remove(oldest);
        }
        count < MAX_MEMBERS
    }
}

/// About what a table with so many members takes: 12 bytes a block for the table, a bit for each member.
fn bytes_of(blocks: Blocks, members: usize) -> usize {
    let blocks = blocks.count() as usize;
    TABLE_BYTES + blocks * 12 + members * (MEMBER_BYTES + blocks.div_ceil(8))
}

#[cfg(test)]
mod tests;
