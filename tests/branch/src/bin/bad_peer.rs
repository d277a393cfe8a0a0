//! A peer that is found, greets, proves that it knows the content, and then misbehaves.
//!
//! `branchline-bad-peer IDENTITY MODE MANIFEST`: serves the content of this manifest file, and says
//! it holds all of it. `branchline-bad-peer IDENTITY table SHA256 FILE`: serves FILE as if it had this
//! SHA-256, and has a table of it. `branchline-bad-peer IDENTITY fourth SHA256 FILE`: says it has
//! each fourth segment of a file of this SHA-256 from the origin, which it has not seen whole, and gives those of
//! FILE; `others` in place of `fourth`: the other three quarters. `branchline-bad-peer IDENTITY ask MANIFEST`: asks the first agent it sees for this content
//! with the right key and with keys that a stranger could have, and prints what it was told.
//! Prints `ready` once others can find it, and runs until it is killed.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use branchline_core::repair::Claim;
use branchline_core::wire::Standing;
use branchline_core::{SegmentRange, SegmentSet};
use branchline_discovery::{Discovery, DiscoveryConfig, Identity, Member};
use branchline_exchange::{ContentSource, Exchange, ExchangeOptions, ServedContent};
use branchline_hashing::{
    ContentKey, Digest, Manifest, ManifestBuilder, ProvisionalSegment, SegmentHash, SegmentIndex,
    SegmentingParameters, Sha256Digest, SwarmId, VerifiedSegment,
};
use bytes::Bytes;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match args.as_slice() {
        [identity, "ask", manifest] => runtime.block_on(ask(identity, manifest)),
        [identity, "table", sha256, file] => {
            let content = Content::impostor(Misdeed::Impostor, sha256, file)?;
            runtime.block_on(serve(identity, content, 64))
        }
        [identity, part @ ("fourth" | "others"), sha256, file] => {
            let fourth = *part == "fourth";
            let content = Content::impostor(Misdeed::Provisional { fourth }, sha256, file)?;
            runtime.block_on(serve(identity, content, 64))
        }
        [identity, mode, manifest] => {
            let uploads = if *mode == "busy" { 0 } else { 64 };
            runtime.block_on(serve(identity, Content::bad(mode, manifest)?, uploads))
        }
        _ => bail!("usage: IDENTITY MODE MANIFEST"),
    }
}

/// How it misbehaves once it is asked.
#[derive(Debug, Clone, Copy)]
enum Misdeed {
    /// Segments of the right length and other bytes.
    Wrong,
    /// Half of each segment, of right bytes as far as anybody knows.
    Short,
    /// Holds everything, gives nothing.
    Absent,
    /// Never answers a request.
    Hang,
    /// Never answers the join.
    Mute,
    /// Says "busy" to every request, forever: the exchange is given no upload slots.
    Busy,
    /// A manifest of rubbish, and no segments.
    Rubbish,
    /// Right segments, each after half a second.
    Slow,
    /// Serves another file faithfully.
    Impostor,
    /// Serves each fourth segment of another file, or the others, as one that does not know yet whether
    /// they are right.
    Provisional { fourth: bool },
}

#[derive(Debug)]
struct Content {
    key: ContentKey,
    manifest: Manifest,
    misdeed: Misdeed,
    file: Vec<u8>,
}

impl Content {
    fn bad(mode: &str, manifest: &str) -> Result<Self> {
        let misdeed = match mode {
            "wrong" => Misdeed::Wrong,
            "short" => Misdeed::Short,
            "absent" => Misdeed::Absent,
            "hang" => Misdeed::Hang,
            "mute" => Misdeed::Mute,
            "busy" => Misdeed::Busy,
            "rubbish" => Misdeed::Rubbish,
            "slow" => Misdeed::Slow,
            _ => bail!("there is no mode {mode}"),
        };
        let described = Path::new(manifest).with_extension("");
        let manifest = Manifest::decode(&fs::read(manifest)?)?;
        Ok(Self {
            key: manifest.content_key(),
            manifest,
            misdeed,
            file: fs::read(described)?,
        })
    }

    fn impostor(misdeed: Misdeed, sha256: &str, file: &str) -> Result<Self> {
        let file = fs::read(file)?;
        let parameters = SegmentingParameters::FIXED;
        let mut table = ManifestBuilder::new(parameters);
        for segment in file.chunks(parameters.max() as usize) {
            table.push(u32::try_from(segment.len())?, SegmentHash::of(segment))?;
        }
        let digest: Sha256Digest = sha256.parse()?;
        Ok(Self {
            key: ContentKey::of_digest(&Digest::Sha256(digest)),
            manifest: table.finish(Sha256Digest::from_bytes([0; 32]))?,
            misdeed,
            file,
        })
    }
}

/// Blocks its thread for good.
fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

struct Source(Arc<Content>);

impl ContentSource for Source {
    fn key(&self, swarm: &SwarmId) -> Option<ContentKey> {
        if matches!(self.0.misdeed, Misdeed::Mute) {
            hang();
        }
        (self.0.key.swarm_id() == *swarm).then_some(self.0.key)
    }

    fn content(&self, swarm: &SwarmId) -> Option<Arc<dyn ServedContent>> {
        (self.0.key.swarm_id() == *swarm).then(|| Arc::clone(&self.0) as Arc<dyn ServedContent>)
    }
}

impl ServedContent for Content {
    fn standing(&self) -> Standing {
        if let Misdeed::Provisional { .. } = self.misdeed {
            let file_bytes = self.manifest.file_length();
            return Standing::Provisional { file_bytes };
        }
        Standing::Proved
    }

    fn have(&self) -> SegmentSet {
        let mut have = SegmentSet::full(self.manifest.segment_count());
        let all = have.clone();
        let others = all.iter().filter(|index| !self.offers(*index));
        others.for_each(|index| {
            have.remove(index);
        });
        have
    }

    fn read_provisional(&self, index: SegmentIndex) -> Option<ProvisionalSegment> {
        let verified = self.of_file(self.manifest.segment(index)?.range())?;
        Some(ProvisionalSegment::of(verified.into_bytes()))
    }

    fn claims(&self, range: SegmentRange) -> Vec<Option<Claim>> {
        let claim = |index| {
            let hash = self.manifest.segment(index)?.hash;
            let first_hand = true;
            self.offers(index).then_some(Claim { hash, first_hand })
        };
        range.iter().map(claim).collect()
    }

    fn manifest(&self) -> Option<Bytes> {
        match self.misdeed {
            Misdeed::Provisional { .. } => None,
            Misdeed::Rubbish => Some(vec![0x5a; self.manifest.encode().len()].into()),
            Misdeed::Wrong
            | Misdeed::Short
            | Misdeed::Absent
            | Misdeed::Hang
            | Misdeed::Mute
            | Misdeed::Busy
            | Misdeed::Slow
            | Misdeed::Impostor => Some(self.manifest.encode().into()),
        }
    }

    fn length(&self, index: SegmentIndex) -> Option<u32> {
        Some(self.manifest.segment(index)?.length)
    }

    fn read(&self, index: SegmentIndex) -> Option<VerifiedSegment> {
        let segment = self.manifest.segment(index)?;
        let rubbish = |length: u32| VerifiedSegment::of(vec![0x5a; length as usize].into());
        match self.misdeed {
            Misdeed::Wrong => Some(rubbish(segment.length)),
            Misdeed::Short => Some(rubbish(segment.length / 2)),
            Misdeed::Absent | Misdeed::Rubbish | Misdeed::Busy | Misdeed::Provisional { .. } => {
                None
            }
            Misdeed::Hang | Misdeed::Mute => hang(),
            Misdeed::Slow => {
                std::thread::sleep(Duration::from_millis(500));
                self.of_file(segment.range())
            }
            Misdeed::Impostor => self.of_file(segment.range()),
        }
    }
}

impl Content {
    fn offers(&self, index: SegmentIndex) -> bool {
        if let Misdeed::Provisional { fourth } = self.misdeed {
            return index.0.is_multiple_of(4) == fourth;
        }
        true
    }

    fn of_file(&self, range: std::ops::Range<u64>) -> Option<VerifiedSegment> {
        let (from, to) = (usize::try_from(range.start), usize::try_from(range.end));
        let bytes = self.file.get(from.ok()?..to.ok()?)?;
        Some(VerifiedSegment::of(bytes.to_vec().into()))
    }
}

async fn serve(identity: &str, content: Content, max_uploads: usize) -> Result<()> {
    let (_exchange, discovery) = join_branch(identity, Source(Arc::new(content)), max_uploads)?;
    println!("ready");
    let mut members = discovery.members();
    while members.changed().await.is_ok() {}
    Ok(())
}

fn join_branch(
    identity: &str,
    source: impl ContentSource,
    max_uploads: usize,
) -> Result<(Exchange, Discovery)> {
    let identity = Identity::load_or_create(Path::new(identity))?;
    let options = ExchangeOptions {
        max_uploads,
        ..ExchangeOptions::default()
    };
    let exchange = Exchange::start(options, identity.clone(), Arc::new(source))?;
    let discovery = Discovery::start(DiscoveryConfig::default(), &identity, exchange.port())?;
    Ok((exchange, discovery))
}

/// Holds nothing.
struct Nothing;

impl ContentSource for Nothing {
    fn key(&self, _: &SwarmId) -> Option<ContentKey> {
        None
    }

    fn content(&self, _: &SwarmId) -> Option<Arc<dyn ServedContent>> {
        None
    }
}

/// Asks the first agent it sees: with the key; with the swarm's id as if it were the key; with none.
async fn ask(identity: &str, manifest: &str) -> Result<()> {
    let manifest = Manifest::decode(&fs::read(manifest)?)?;
    let (exchange, discovery) = join_branch(identity, Nothing, 64)?;
    let mut members = discovery.members();
    let seen = members.wait_for(|members| members.count() > 0).await?;
    let member = seen.members().values().next().context("nobody")?.clone();
    drop(seen);
    let key = manifest.content_key();
    let swarm = ContentKey::from_bytes(*key.swarm_id().as_bytes());
    let nothing = ContentKey::from_bytes([0; 32]);
    for (name, key) in [("key", key), ("swarm", swarm), ("nothing", nothing)] {
        println!(
            "{name}: {}",
            answer(&exchange, &member, key, &manifest).await
        );
    }
    exchange.shut_down().await;
    discovery.shut_down().await;
    Ok(())
}

async fn answer(
    exchange: &Exchange,
    member: &Member,
    key: ContentKey,
    manifest: &Manifest,
) -> String {
    let addresses = member.exchange_addresses.clone();
    match exchange.join(member.peer_id, addresses, key).await {
        Ok(session) => match session.have(manifest.segment_count()) {
            Ok(have) => format!("{} segments", have.len()),
            Err(failure) => failure.to_string(),
        },
        Err(error) => error.to_string(),
    }
}
