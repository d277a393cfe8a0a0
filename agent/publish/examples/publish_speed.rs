//! Publishes a file and prints how long that took, for comparison with `openssl dgst -sha256`.
//!
//! `cargo run --release -p branchline-publish --example publish_speed FILE`
//!
//! It removes FILE's manifest first, so that FILE is really read.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use branchline_publish::{PublishOptions, manifest_path, publish, verify};

fn main() -> Result<(), Box<dyn Error>> {
    let file = PathBuf::from(env::args_os().nth(1).ok_or("usage: publish_speed FILE")?);
    let manifest = manifest_path(&file);
    if manifest.exists() {
        fs::remove_file(&manifest)?;
    }
    let bytes = fs::metadata(&file)?.len() as f64;

    let start = Instant::now();
    let report = publish(
        std::slice::from_ref(&file),
        &PublishOptions::default(),
        &|_| {},
    )?;
    if let Some(error) = report.failed.into_iter().next() {
        return Err(error.into());
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("publish {seconds:.3} s, {:.2} GB/s", bytes / seconds / 1e9);

    let start = Instant::now();
    let is_intact = verify(&file, &manifest, &|_| {})?.is_intact();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "verify  {seconds:.3} s, {:.2} GB/s, intact: {is_intact}",
        bytes / seconds / 1e9
    );
    Ok(())
}
