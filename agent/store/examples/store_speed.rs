//! Measures the store: `store_speed DIR [GIB] [MILLIONS]`.
//!
//! Appends GIB GiB (default 4) of 64 KiB segments in batches of 32 MiB, reads them back verified,
//! asks for all of them at once; then fills another store with MILLIONS million tiny segments
//! (default 1), opens it in a process of its own and shows the memory there. DIR must not exist;
//! it is removed at the end.

use std::path::Path;
use std::time::Instant;

use branchline_hashing::{SegmentHash, VerifiedSegment};
use branchline_store::{Store, StoreOptions};
use rustix::time::{ClockId, clock_gettime};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const SEGMENT_BYTES: usize = 64 << 10;
const BATCH_SEGMENTS: u64 = 512;
const TINY_BATCH_SEGMENTS: usize = 8192;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let dir = args
        .next()
        .ok_or("usage: store_speed DIR [GIB] [MILLIONS]")?;
    if dir == "--open" {
        return use_many(args.next().ok_or("usage: store_speed --open DIR")?.as_ref());
    }
    let gib: u64 = args.next().map_or(Ok(4), |text| text.parse())?;
    let millions: u64 = args.next().map_or(Ok(1), |text| text.parse())?;
    std::fs::create_dir(&dir)?;
    let result = measure(dir.as_ref(), gib, millions);
    std::fs::remove_dir_all(&dir)?;
    result
}

fn measure(dir: &Path, gib: u64, millions: u64) -> Outcome<()> {
    println!("empty program: {}", memory()?);
    let options = StoreOptions::new(1 << 40);
    let store = Store::open(dir.join("large"), options.clone())?;
    println!("new store open: {}", memory()?);
    let hashes = append(&store, gib)?;
    read(&store, &hashes)?;
    ask(&store, &hashes)?;
    drop((store, hashes));

    let store = Store::open(dir.join("tiny"), options)?;
    fill(&store, millions)?;
    store.flush_and_close()?;
    let mut opener = std::process::Command::new(std::env::current_exe()?);
    let status = opener.arg("--open").arg(dir.join("tiny")).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("--open: {status}").into())
    }
}

/// What a fresh process needs for a store of many segments.
fn use_many(dir: &Path) -> Outcome<()> {
    println!("another process: {}", memory()?);
    let started = Instant::now();
    let store = Store::open(dir, StoreOptions::new(1 << 40))?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} segments opened in {seconds:.2} s: {}",
        store.stats().segments,
        memory()?
    );
    let hashes: Vec<_> = (0..163_840).map(|n| tiny(n * 3).hash()).collect();
    ask(&store, &hashes)?;
    for hash in &hashes {
        store.read(*hash)?.ok_or("a segment is missing")?;
    }
    println!("163840 of them read: {}", memory()?);
    evict(&store)
}

fn append(store: &Store, gib: u64) -> Outcome<Vec<SegmentHash>> {
    let mut hashes = Vec::new();
    let (mut seconds, mut cpu_seconds) = (0.0, 0.0);
    for batch in 0..gib * 32 {
        let segments: Vec<_> = (0..BATCH_SEGMENTS)
            .map(|i| large(batch * BATCH_SEGMENTS + i))
            .collect();
        hashes.extend(segments.iter().map(VerifiedSegment::hash));
        let (started, cpu) = (Instant::now(), cpu_time());
        store.append(&segments)?;
        seconds += started.elapsed().as_secs_f64();
        cpu_seconds += cpu_time() - cpu;
    }
    report("append", gib, seconds, cpu_seconds)?;
    Ok(hashes)
}

fn read(store: &Store, hashes: &[SegmentHash]) -> Outcome<()> {
    let (started, cpu) = (Instant::now(), cpu_time());
    for hash in hashes {
        store.read(*hash)?.ok_or("a segment is missing")?;
    }
    let gib = (hashes.len() as u64 * SEGMENT_BYTES as u64) >> 30;
    report(
        "verified read",
        gib,
        started.elapsed().as_secs_f64(),
        cpu_time() - cpu,
    )
}

fn ask(store: &Store, hashes: &[SegmentHash]) -> Outcome<()> {
    let started = Instant::now();
    let here = store
        .contains(hashes)?
        .into_iter()
        .filter(|here| *here)
        .count();
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "asked for {} segments, {here} here: {seconds:.3} s",
        hashes.len()
    );
    Ok(())
}

fn fill(store: &Store, millions: u64) -> Outcome<()> {
    let started = Instant::now();
    let total = millions * 1_000_000;
    for first in (0..total).step_by(TINY_BATCH_SEGMENTS) {
        let batch = first..total.min(first + TINY_BATCH_SEGMENTS as u64);
        store.append(&batch.map(tiny).collect::<Vec<_>>())?;
    }
    println!(
        "{total} tiny segments in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

fn evict(store: &Store) -> Outcome<()> {
    let (before, started) = (store.stats(), Instant::now());
    store.shrink_to(before.disk_bytes / 2)?;
    let evicted = before.segments - store.stats().segments;
    println!(
        "evicted {evicted} in {:.2} s: {}",
        started.elapsed().as_secs_f64(),
        memory()?
    );
    Ok(())
}

fn report(what: &str, gib: u64, seconds: f64, cpu_seconds: f64) -> Outcome<()> {
    let gb = (gib << 30) as f64 / 1e9;
    println!(
        "{what}: {gib} GiB, {:.2} GB/s, {:.3} CPU-s/GB; {}",
        gb / seconds,
        cpu_seconds / gb,
        memory()?
    );
    Ok(())
}

/// Different bytes for each number, cheaply.
fn large(number: u64) -> VerifiedSegment {
    let mut bytes = vec![0x5a; SEGMENT_BYTES];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    VerifiedSegment::of(bytes.into())
}

fn tiny(number: u64) -> VerifiedSegment {
    VerifiedSegment::of(number.to_le_bytes().to_vec().into())
}

/// Of all threads, RocksDB's included.
fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn memory() -> Outcome<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let [now, anonymous, peak] =
        ["VmRSS:", "RssAnon:", "VmHWM:"].map(|name| line(name).unwrap_or("?"));
    Ok(format!(
        "resident {now} ({anonymous} anonymous), peak {peak}"
    ))
}
