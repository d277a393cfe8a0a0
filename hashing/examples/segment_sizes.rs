//! How many bytes version 2 of a file costs a machine that holds version 1, by segment size.
//!
//! `cargo run --release -p branchline-hashing --example segment_sizes OLD NEW [OLD NEW]...`
//!
//! For each pair it prints one line for each average length and normalization level: segments of
//! NEW, the bytes of those that OLD lacks, the manifest, and both together beside NEW's length.
//! `docs/manifest.md` has its results.

use std::collections::HashSet;
use std::error::Error;
use std::{env, fs};

use branchline_hashing::{
    ManifestHead, SegmentHash, Segmenter, SegmentingAlgorithm, SegmentingParameters,
};

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<String> = env::args().skip(1).collect();
    let (pairs, []) = paths.as_chunks::<2>() else {
        return Err("usage: segment_sizes OLD NEW [OLD NEW]...".into());
    };
    for [old, new] in pairs {
        println!("{old} -> {new}");
        println!(
            "average level min   max    segments      missing   manifest        total  of new"
        );
        let (old, new) = (fs::read(old)?, fs::read(new)?);
        for average in [16, 32, 48, 64, 128] {
            for level in 0..=3 {
                for (min, max) in [(average / 4, average * 4), (average / 2, average * 2)] {
                    print_line(&old, &new, parameters(level, min, average, max)?);
                }
            }
        }
    }
    Ok(())
}

fn parameters(
    level: u8,
    min_kib: u32,
    average_kib: u32,
    max_kib: u32,
) -> Result<SegmentingParameters, Box<dyn Error>> {
    let [min, average, max] = [min_kib, average_kib, max_kib].map(|kib| kib * 1024);
    Ok(SegmentingParameters::new(
        SegmentingAlgorithm::FastCdc2020,
        level,
        min,
        average,
        max,
    )?)
}

fn print_line(old: &[u8], new: &[u8], parameters: SegmentingParameters) {
    let mut held: HashSet<SegmentHash> = segments(old, parameters).map(SegmentHash::of).collect();
    let (mut count, mut missing) = (0_usize, 0_usize);
    for segment in segments(new, parameters) {
        count += 1;
        // What NEW holds twice is fetched once.
        if held.insert(SegmentHash::of(segment)) {
            missing += segment.len();
        }
    }
    let manifest = ManifestHead::LENGTH + count * 36 + 32;
    let total = missing + manifest;
    println!(
        "{:>4} KiB {:>4} {:>4} {:>4} KiB {:>8} {:>12} {:>10} {:>12} {:>6.2}%",
        parameters.average() / 1024,
        parameters.normalization(),
        parameters.min() / 1024,
        parameters.max() / 1024,
        count,
        missing,
        manifest,
        total,
        100.0 * total as f64 / new.len() as f64,
    );
}

fn segments(mut bytes: &[u8], parameters: SegmentingParameters) -> impl Iterator<Item = &[u8]> {
    let segmenter = Segmenter::new(parameters);
    std::iter::from_fn(move || {
        let (segment, rest) = bytes.split_at(segmenter.next_boundary(bytes, true)?);
        bytes = rest;
        Some(segment)
    })
}
