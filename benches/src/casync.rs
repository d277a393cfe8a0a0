//! What casync, with its defaults, would fetch for a new version: chunks the old version's store
//! lacks, and the index.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Before an index's table: length, type, flags and three chunk sizes, then the table's own length
/// and type, 8 bytes each.
const TABLE_OFFSET: usize = 64;

/// An entry: where the chunk ends, and its id.
const ENTRY_BYTES: usize = 40;

/// Bytes to fetch for the new version, index included.
pub(crate) struct Fetched {
    /// The chunks as they are in the file: what Branchline's figure compares with.
    pub(crate) raw_bytes: u64,
    /// As they lie in casync's store, compressed.
    pub(crate) compressed_bytes: u64,
}

/// Makes both versions' chunks in a store inside `folder` and counts.
pub(crate) fn fetched(old: &Path, new: &Path, folder: &Path) -> Result<Fetched> {
    let store = folder.join("store.castr");
    let had = make(old, &store, &folder.join("old.caibx"))?;
    let wanted_index = folder.join("new.caibx");
    let wanted = make(new, &store, &wanted_index)?;
    let index_bytes = fs::metadata(&wanted_index)?.len();
    let mut fetched = Fetched {
        raw_bytes: index_bytes,
        compressed_bytes: index_bytes,
    };
    for (id, length) in wanted.iter().filter(|(id, _)| !had.contains_key(*id)) {
        fetched.raw_bytes += length;
        fetched.compressed_bytes += fs::metadata(chunk(&store, id))?.len();
    }
    Ok(fetched)
}

type Chunks = BTreeMap<[u8; 32], u64>;

fn make(file: &Path, store: &Path, index: &Path) -> Result<Chunks> {
    let done = Command::new("casync")
        .arg("make")
        .arg(format!("--store={}", store.display()))
        .args([index, file])
        .output()
        .context("cannot run casync (Debian: casync)")?;
    ensure!(
        done.status.success(),
        "casync make: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    chunks(&fs::read(index)?).with_context(|| format!("{} is no index", index.display()))
}

/// The chunks an index lists, with their lengths. The last entry-sized piece is the table's tail.
fn chunks(index: &[u8]) -> Option<Chunks> {
    let table = index.get(TABLE_OFFSET..index.len().checked_sub(ENTRY_BYTES)?)?;
    let mut start = 0;
    let mut chunks = Chunks::new();
    for entry in table.chunks(ENTRY_BYTES) {
        let (end, id) = entry.split_first_chunk::<8>()?;
        let end = u64::from_le_bytes(*end);
        chunks.insert(id.try_into().ok()?, end.checked_sub(start)?);
        start = end;
    }
    Some(chunks)
}

fn chunk(store: &Path, id: &[u8; 32]) -> PathBuf {
    let hex = id.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    store.join(&hex[..4]).join(format!("{hex}.cacnk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_lists_where_chunks_end() {
        let mut index = vec![0; TABLE_OFFSET];
        for (end, id) in [(10_u64, 1), (25, 2)] {
            index.extend(end.to_le_bytes());
            index.extend([id; 32]);
        }
        index.extend([0; ENTRY_BYTES]);
        let chunks = chunks(&index).expect("a whole index");
        assert_eq!(chunks, Chunks::from([([1; 32], 10), ([2; 32], 15)]));
    }
}
