//! What members and stewards say, as it travels.
//!
//! A message's fields of fixed size come first and its set last, so that a reader that waits for
//! the next bytes decodes the set once.

use std::time::Duration;

use branchline_hashing::SwarmId;

use super::codec::{Fields, Stop, WireError, put_u32s, to_milliseconds};
use super::{Have, MAX_ANNOUNCED_SWARMS};
use crate::PeerId;
use crate::swarm::{
    Answer, BlockIndex, BlockRange, BlockSet, Blocks, Enlist, Grant, MAX_ANSWER_PEERS, MAX_BLOCKS,
    MAX_LEASES, ManifestLease, Report, SwarmPeer, Want,
};

/// `has_manifest`, `want` and how many leases follow.
const STATE_BYTES: usize = 8;

pub(super) fn read_enlist(fields: &mut Fields<'_>) -> Result<Enlist, Stop> {
    fields.need(32 + 8 + STATE_BYTES)?;
    let swarm = SwarmId::from_bytes(fields.array()?);
    let blocks = read_blocks(fields)?;
    let state = read_state(fields)?;
    let leased = read_ranges(fields, state.leases)?;
    let held = read_block_set(fields)?;
    if held.size() != blocks.count() {
        return Err(WireError::WrongBlockCount { size: held.size() }.into());
    }
    check_ranges(&leased, held.size())?;
    Ok(Enlist {
        swarm,
        blocks,
        held,
        leased,
        has_manifest: state.has_manifest,
        want: state.want,
    })
}

pub(super) fn write_enlist(enlist: &Enlist, out: &mut Vec<u8>) {
    out.extend_from_slice(enlist.swarm.as_bytes());
    let blocks = &enlist.blocks;
    put_u32s(out, &[blocks.segments(), blocks.segments_per_block()]);
    write_state(enlist.has_manifest, &enlist.want, &enlist.leased, out);
    write_block_set(&enlist.held, out);
}

pub(super) fn read_report(fields: &mut Fields<'_>) -> Result<Report, Stop> {
    fields.need(STATE_BYTES)?;
    let state = read_state(fields)?;
    let returned = read_ranges(fields, state.leases)?;
    let held = read_block_set(fields)?;
    check_ranges(&returned, held.size())?;
    Ok(Report {
        held,
        returned,
        has_manifest: state.has_manifest,
        want: state.want,
    })
}

pub(super) fn write_report(report: &Report, out: &mut Vec<u8>) {
    write_state(report.has_manifest, &report.want, &report.returned, out);
    write_block_set(&report.held, out);
}

pub(super) fn read_answer(fields: &mut Fields<'_>) -> Result<Answer, Stop> {
    fields.need(8)?;
    let asked = read_flag(fields)?;
    let manifest = read_manifest_lease(fields)?;
    let lessees = fields.u32()?;
    let grants = read_count(fields, MAX_LEASES)?;
    let peers = read_count(fields, MAX_ANSWER_PEERS)?;
    fields.need(12 * grants + 33 * peers)?;
    Ok(Answer {
        asked,
        granted: (0..grants)
            .map(|_| read_grant(fields))
            .collect::<Result<_, _>>()?,
        manifest,
        peers: (0..peers)
            .map(|_| read_peer(fields))
            .collect::<Result<_, _>>()?,
        lessees,
    })
}

/// Grants and peers beyond what may travel are not told.
pub(super) fn write_answer(answer: &Answer, out: &mut Vec<u8>) {
    out.push(answer.asked.into());
    out.push(match answer.manifest {
        ManifestLease::NotAsked => 0,
        ManifestLease::Fetch => 1,
        ManifestLease::Wait => 2,
    });
    put_u32s(out, &[answer.lessees]);
    let granted = at_most(&answer.granted, MAX_LEASES, out);
    let peers = at_most(&answer.peers, MAX_ANSWER_PEERS, out);
    for grant in granted {
        let (blocks, lasts) = (grant.blocks, to_milliseconds(grant.lasts));
        put_u32s(out, &[blocks.first().0, blocks.count(), lasts]);
    }
    for known in peers {
        out.extend_from_slice(known.peer.public_key());
        out.push(known.has_manifest.into());
    }
}

pub(super) fn read_swarms(fields: &mut Fields<'_>) -> Result<Vec<SwarmId>, Stop> {
    let count = fields.u32()?;
    let most = MAX_ANNOUNCED_SWARMS;
    if count as usize > most {
        return Err(WireError::ListTooLong { count, most }.into());
    }
    let bytes = fields.take(count as usize * 32)?;
    let swarms = bytes.as_chunks::<32>().0.iter();
    Ok(swarms.copied().map(SwarmId::from_bytes).collect())
}

/// Swarms beyond what may travel are not told.
pub(super) fn write_swarms(swarms: &[SwarmId], out: &mut Vec<u8>) {
    let told = &swarms[..swarms.len().min(MAX_ANNOUNCED_SWARMS)];
    let count = u32::try_from(told.len()).expect("at most MAX_ANNOUNCED_SWARMS");
    put_u32s(out, &[count]);
    told.iter()
        .for_each(|swarm| out.extend_from_slice(swarm.as_bytes()));
}

/// The fields that an [`Enlist`] and a [`Report`] share.
struct State {
    has_manifest: bool,
    want: Want,
    leases: usize,
}

fn read_state(fields: &mut Fields<'_>) -> Result<State, Stop> {
    Ok(State {
        has_manifest: read_flag(fields)?,
        want: Want {
            runs: fields.u8()?,
            blocks_per_run: fields.u32()?,
            manifest: read_flag(fields)?,
        },
        leases: read_count(fields, MAX_LEASES)?,
    })
}

/// Leases beyond what may travel are not told: they end by themselves.
fn write_state(has_manifest: bool, want: &Want, leases: &[BlockRange], out: &mut Vec<u8>) {
    out.push(has_manifest.into());
    out.push(want.runs);
    put_u32s(out, &[want.blocks_per_run]);
    out.push(want.manifest.into());
    for range in at_most(leases, MAX_LEASES, out) {
        put_u32s(out, &[range.first().0, range.count()]);
    }
}

fn read_blocks(fields: &mut Fields<'_>) -> Result<Blocks, Stop> {
    let (segments, segments_per_block) = (fields.u32()?, fields.u32()?);
    Blocks::claimed(segments, segments_per_block).ok_or(Stop::Wrong(WireError::BadBlocks {
        segments,
        segments_per_block,
    }))
}

fn read_block_set(fields: &mut Fields<'_>) -> Result<BlockSet, Stop> {
    fields.need(5)?;
    let size = fields.u32()?;
    if !(1..=MAX_BLOCKS).contains(&size) {
        return Err(WireError::WrongBlockCount { size }.into());
    }
    let have = Have::read_of(fields, size)?;
    have.to_set(size)
        // Here a set has one form, the one that is written.
        .filter(|set| Have::of(set) == have)
        .map(BlockSet::from_segments)
        .ok_or(Stop::Wrong(WireError::HaveNotCanonical { size }))
}

fn write_block_set(set: &BlockSet, out: &mut Vec<u8>) {
    Have::of(set.as_segments()).write(out);
}

fn read_ranges(fields: &mut Fields<'_>, count: usize) -> Result<Vec<BlockRange>, Stop> {
    fields.need(8 * count)?;
    (0..count).map(|_| read_range(fields)).collect()
}

fn read_range(fields: &mut Fields<'_>) -> Result<BlockRange, Stop> {
    let (first, count) = (fields.u32()?, fields.u32()?);
    BlockRange::new(BlockIndex(first), count)
        .filter(|range| range.end() <= MAX_BLOCKS)
        .ok_or(Stop::Wrong(WireError::BadBlockRange { first, count }))
}

/// Whether each lies within a content of `blocks` blocks.
fn check_ranges(ranges: &[BlockRange], blocks: u32) -> Result<(), Stop> {
    match ranges.iter().find(|range| range.end() > blocks) {
        None => Ok(()),
        Some(range) => Err(WireError::BadBlockRange {
            first: range.first().0,
            count: range.count(),
        }
        .into()),
    }
}

fn read_grant(fields: &mut Fields<'_>) -> Result<Grant, Stop> {
    Ok(Grant {
        blocks: read_range(fields)?,
        lasts: Duration::from_millis(fields.u32()?.into()),
    })
}

fn read_peer(fields: &mut Fields<'_>) -> Result<SwarmPeer, Stop> {
    Ok(SwarmPeer {
        peer: PeerId::from_public_key(fields.array()?),
        has_manifest: read_flag(fields)?,
    })
}

fn read_manifest_lease(fields: &mut Fields<'_>) -> Result<ManifestLease, Stop> {
    match fields.u8()? {
        0 => Ok(ManifestLease::NotAsked),
        1 => Ok(ManifestLease::Fetch),
        2 => Ok(ManifestLease::Wait),
        found => Err(WireError::UnknownValue { found }.into()),
    }
}

fn read_flag(fields: &mut Fields<'_>) -> Result<bool, Stop> {
    match fields.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(WireError::UnknownValue { found }.into()),
    }
}

fn read_count(fields: &mut Fields<'_>, most: usize) -> Result<usize, Stop> {
    let count = fields.u8()?;
    match usize::from(count) <= most {
        true => Ok(count.into()),
        false => Err(WireError::ListTooLong {
            count: count.into(),
            most,
        }
        .into()),
    }
}

/// Writes how many of `list` travel, and gives those.
fn at_most<'a, T>(list: &'a [T], most: usize, out: &mut Vec<u8>) -> &'a [T] {
    let told = &list[..list.len().min(most)];
    out.push(u8::try_from(told.len()).expect("the bounds fit a byte"));
    told
}
