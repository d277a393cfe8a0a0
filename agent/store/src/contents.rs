//! Contents: what this machine knows about whole files. A record in the index and the manifest
//! in a file; the segments are shared and age by themselves.

use std::fmt;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::{MutexGuard, PoisonError};

use branchline_hashing::{ContentKey, SegmentHash, SwarmId};
use bytes::Bytes;

use crate::error::StoreError;
use crate::index::Table;
use crate::manifests::ManifestSum;
use crate::options::MAX_MANIFEST_BYTES;
use crate::store::{Inner, Store};

/// Longest URL or file name in a record.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// First byte of a record: its layout.
const RECORD_VERSION: u8 = 1;

/// Length of what comes before the two texts.
const FIXED_BYTES: usize = 70;

/// Why a content is believed to be what its key says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// The origin published a manifest.
    Manifest,
    /// A digest was known beforehand.
    Digest,
    /// The enrolled branch vouches for it.
    Branch,
    /// It came from the origin alone.
    Origin,
}

/// Text that names no kind of trust.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is none of manifest, digest, branch, origin")]
pub struct ParseTrustError {
    /// The text.
    pub found: String,
}

impl Trust {
    const ALL: [Self; 4] = [Self::Manifest, Self::Digest, Self::Branch, Self::Origin];

    /// The word the command line uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Digest => "digest",
            Self::Branch => "branch",
            Self::Origin => "origin",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Manifest => 1,
            Self::Digest => 2,
            Self::Branch => 3,
            Self::Origin => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|trust| trust.code() == code)
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Trust {
    type Err = ParseTrustError;

    fn from_str(text: &str) -> Result<Self, ParseTrustError> {
        let found = Self::ALL.into_iter().find(|trust| trust.as_str() == text);
        found.ok_or_else(|| ParseTrustError {
            found: text.to_owned(),
        })
    }
}

/// A content with its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentRecord {
    /// Its key.
    pub key: ContentKey,
    /// The encoded manifest, or the table of segments that was made here. The store does not
    /// look inside.
    pub manifest: Bytes,
    /// Where it came from.
    pub url: String,
    /// What a person calls it.
    pub file_name: String,
    /// Why it is believed.
    pub trust: Trust,
    /// Bytes of the whole file.
    pub length: u64,
    /// Seconds since 1970.
    pub stored_at: u64,
    /// Seconds since 1970.
    pub last_used: u64,
}

/// A content without its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentSummary {
    /// Its key.
    pub key: ContentKey,
    /// Bytes of the manifest.
    pub manifest_bytes: u32,
    /// Where it came from.
    pub url: String,
    /// What a person calls it.
    pub file_name: String,
    /// Why it is believed.
    pub trust: Trust,
    /// Bytes of the whole file.
    pub length: u64,
    /// Seconds since 1970.
    pub stored_at: u64,
    /// Seconds since 1970.
    pub last_used: u64,
}

/// How many contents there are, and how large their manifests are together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ContentFigures {
    pub(crate) contents: u64,
    pub(crate) manifest_bytes: u64,
}

/// What the index keeps of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) summary: ContentSummary,
    manifest_hash: SegmentHash,
}

impl Store {
    /// Keeps a content, in place of what was kept under its key; on disk when this returns. When
    /// there are too many, the least recently used go.
    ///
    /// # Errors
    /// [`StoreError`] when the disk is full or fails: what was kept before stays.
    pub fn put_content(&self, record: &ContentRecord) -> Result<(), StoreError> {
        let needed_bytes = record.manifest.len() as u64;
        let put = self.inner().put_content(record);
        put.map_err(|error| error.or_no_space(self.inner().dir(), needed_bytes))
    }

    /// The content of this key, if its manifest is still as it was written.
    ///
    /// # Errors
    /// [`StoreError`] when the disk or the index fails.
    pub fn content(&self, key: &ContentKey) -> Result<Option<ContentRecord>, StoreError> {
        self.inner().content(key)
    }

    /// The content that is known to strangers by this name.
    ///
    /// # Errors
    /// [`StoreError`] when the disk or the index fails.
    pub fn content_by_swarm(&self, swarm: &SwarmId) -> Result<Option<ContentRecord>, StoreError> {
        let key = self.inner().index.value(Table::Swarms, swarm.as_bytes())?;
        match key.and_then(|key| key.try_into().ok()) {
            Some(key) => self.content(&ContentKey::from_bytes(key)),
            None => Ok(None),
        }
    }

    /// The key of the content that is known to strangers by this name, and why it is believed: two
    /// look-ups in the index, and no file.
    ///
    /// # Errors
    /// [`StoreError`] when the index fails.
    pub fn key_of_swarm(&self, swarm: &SwarmId) -> Result<Option<(ContentKey, Trust)>, StoreError> {
        let inner = self.inner();
        let key = inner.index.value(Table::Swarms, swarm.as_bytes())?;
        let Some(key) = key.and_then(|key| key.try_into().ok()) else {
            return Ok(None);
        };
        let key = ContentKey::from_bytes(key);
        let entry = inner.entry(&key)?;
        Ok(entry.map(|entry| (key, entry.summary.trust)))
    }

    /// All contents, in the order of their keys. No manifest is read.
    ///
    /// # Errors
    /// [`StoreError`] when the index fails.
    pub fn contents(&self) -> Result<Vec<ContentSummary>, StoreError> {
        let entries = self.inner().entries()?;
        Ok(entries.into_iter().map(|entry| entry.summary).collect())
    }

    /// Forgets a content; `false` if there was none. Its segments stay: others may need them, and
    /// they age by themselves.
    ///
    /// # Errors
    /// [`StoreError`] when the index fails.
    pub fn remove_content(&self, key: &ContentKey) -> Result<bool, StoreError> {
        let inner = self.inner();
        let mut figures = inner.content_figures();
        let Some(entry) = inner.entry(key)? else {
            return Ok(false);
        };
        inner.remove_entries(&mut figures, &[entry])?;
        Ok(true)
    }

    /// Notes that a content is used now; `false` if there is none.
    ///
    /// # Errors
    /// [`StoreError`] when the index fails.
    pub fn touch_content(&self, key: &ContentKey) -> Result<bool, StoreError> {
        let inner = self.inner();
        let _figures = inner.content_figures();
        let Some(mut entry) = inner.entry(key)? else {
            return Ok(false);
        };
        entry.summary.last_used = inner.options.clock.unix_seconds();
        let mut batch = inner.index.batch();
        batch.put(Table::Contents, key.as_bytes(), &entry.encode());
        batch.commit_lazily()?;
        Ok(true)
    }
}

impl Inner {
    fn put_content(&self, record: &ContentRecord) -> Result<(), StoreError> {
        let entry = Entry::of(record)?;
        let mut figures = self.content_figures();
        let before = self.entry(&record.key)?;
        let name = entry.file_name();
        let path = self.manifests.path(&name);
        let written = self.manifests.write(&name, &record.manifest);
        written.map_err(StoreError::io("writing the manifest", &path))?;
        if let Err(error) = self.commit_entry(&entry) {
            if before
                .as_ref()
                .is_none_or(|before| before.file_name() != name)
            {
                self.manifests.remove(&name);
            }
            return Err(error);
        }
        if let Some(before) = before {
            figures.take_away(&before);
            if before.file_name() != name {
                self.manifests.remove(&before.file_name());
            }
        }
        figures.add(&entry);
        self.keep_within_bounds(&mut figures, &record.key)
    }

    fn commit_entry(&self, entry: &Entry) -> Result<(), StoreError> {
        let key = entry.summary.key;
        let mut batch = self.index.batch();
        batch.put(Table::Contents, key.as_bytes(), &entry.encode());
        batch.put(Table::Swarms, key.swarm_id().as_bytes(), key.as_bytes());
        Ok(batch.commit_synced()?)
    }

    /// Too many: the least recently used go, and a sixteenth more, so that this is rare.
    fn keep_within_bounds(
        &self,
        figures: &mut ContentFigures,
        newest: &ContentKey,
    ) -> Result<(), StoreError> {
        let max_contents = self.options.max_contents.max(1);
        if figures.fits(max_contents, MAX_MANIFEST_BYTES) {
            return Ok(());
        }
        let mut entries = self.entries()?;
        entries.retain(|entry| entry.summary.key != *newest);
        entries.sort_unstable_by_key(|entry| entry.summary.last_used);
        let mut left = *figures;
        let wanted = (
            max_contents - max_contents / 16,
            MAX_MANIFEST_BYTES / 16 * 15,
        );
        let victims = entries.iter().take_while(|entry| {
            let too_many = !left.fits(wanted.0, wanted.1);
            left.take_away(entry);
            too_many
        });
        let count = victims.count();
        self.remove_entries(figures, &entries[..count])
    }

    fn content(&self, key: &ContentKey) -> Result<Option<ContentRecord>, StoreError> {
        let Some(entry) = self.entry(key)? else {
            return Ok(None);
        };
        let name = entry.file_name();
        let read = self.manifests.read(&name, &entry.manifest_sum());
        let path = self.manifests.path(&name);
        match read.map_err(StoreError::io("reading the manifest", &path))? {
            Some(manifest) => Ok(Some(entry.summary.with_manifest(manifest))),
            None => self.drop_bad_entry(&entry),
        }
    }

    /// The manifest is gone or damaged: unless somebody has just replaced or removed the content,
    /// it is forgotten.
    fn drop_bad_entry(&self, bad: &Entry) -> Result<Option<ContentRecord>, StoreError> {
        let mut figures = self.content_figures();
        let now = self.entry(&bad.summary.key)?;
        if now
            .as_ref()
            .is_some_and(|now| now.manifest_hash == bad.manifest_hash)
        {
            tracing::warn!(
                url = bad.summary.url,
                "a stored manifest was damaged; dropped"
            );
            self.remove_entries(&mut figures, std::slice::from_ref(bad))?;
        }
        Ok(None)
    }

    fn entry(&self, key: &ContentKey) -> Result<Option<Entry>, StoreError> {
        let Some(value) = self.index.value(Table::Contents, key.as_bytes())? else {
            return Ok(None);
        };
        let damaged = StoreError::DamagedRecord { what: "content" };
        Entry::decode(key.as_bytes(), &value)
            .map(Some)
            .ok_or(damaged)
    }

    pub(crate) fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        let mut damaged = false;
        self.index.scan(Table::Contents, &[], |key, value| {
            let entry = Entry::decode(key, value);
            damaged |= entry.is_none();
            entries.extend(entry);
            ControlFlow::Continue(())
        })?;
        if damaged {
            Err(StoreError::DamagedRecord { what: "content" })
        } else {
            Ok(entries)
        }
    }

    pub(crate) fn remove_entries(
        &self,
        figures: &mut ContentFigures,
        entries: &[Entry],
    ) -> Result<(), StoreError> {
        let mut batch = self.index.batch();
        for entry in entries {
            let key = entry.summary.key;
            batch.delete(Table::Contents, key.as_bytes());
            batch.delete(Table::Swarms, key.swarm_id().as_bytes());
        }
        batch.commit_synced()?;
        self.figures().forgotten += entries.len() as u64;
        for entry in entries {
            figures.take_away(entry);
            self.manifests.remove(&entry.file_name());
        }
        Ok(())
    }

    /// Held while contents change, so that each change sees the one before.
    pub(crate) fn content_figures(&self) -> MutexGuard<'_, ContentFigures> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ContentFigures {
    pub(crate) fn add(&mut self, entry: &Entry) {
        self.contents += 1;
        self.manifest_bytes += u64::from(entry.summary.manifest_bytes);
    }

    fn take_away(&mut self, entry: &Entry) {
        self.contents = self.contents.saturating_sub(1);
        let bytes = u64::from(entry.summary.manifest_bytes);
        self.manifest_bytes = self.manifest_bytes.saturating_sub(bytes);
    }

    fn fits(&self, max_contents: u64, max_manifest_bytes: u64) -> bool {
        self.contents <= max_contents && self.manifest_bytes <= max_manifest_bytes
    }
}

impl ContentSummary {
    fn with_manifest(self, manifest: Bytes) -> ContentRecord {
        let Self {
            key,
            url,
            file_name,
            trust,
            length,
            stored_at,
            last_used,
            ..
        } = self;
        ContentRecord {
            key,
            manifest,
            url,
            file_name,
            trust,
            length,
            stored_at,
            last_used,
        }
    }
}

impl Entry {
    fn of(record: &ContentRecord) -> Result<Self, StoreError> {
        for text in [&record.url, &record.file_name] {
            if text.len() > MAX_TEXT_BYTES {
                let (bytes, limit) = (text.len(), MAX_TEXT_BYTES);
                return Err(StoreError::TextTooLong { bytes, limit });
            }
        }
        let sum = ManifestSum::of(&record.manifest)
            .map_err(StoreError::io("measuring the manifest", "".as_ref()))?;
        let summary = ContentSummary {
            key: record.key,
            manifest_bytes: sum.length,
            url: record.url.clone(),
            file_name: record.file_name.clone(),
            trust: record.trust,
            length: record.length,
            stored_at: record.stored_at,
            last_used: record.last_used,
        };
        Ok(Self {
            summary,
            manifest_hash: sum.hash,
        })
    }

    pub(crate) fn file_name(&self) -> String {
        self.manifest_sum().file_name(&self.summary.key.swarm_id())
    }

    fn manifest_sum(&self) -> ManifestSum {
        ManifestSum {
            length: self.summary.manifest_bytes,
            hash: self.manifest_hash,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let summary = &self.summary;
        let mut bytes = Vec::with_capacity(FIXED_BYTES + 8 + summary.url.len());
        bytes.extend([RECORD_VERSION, summary.trust.code()]);
        for number in [summary.length, summary.stored_at, summary.last_used] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(summary.manifest_bytes.to_be_bytes());
        bytes.extend(self.manifest_hash.as_bytes());
        let url_bytes = u32::try_from(summary.url.len()).expect("at most MAX_TEXT_BYTES");
        bytes.extend(url_bytes.to_be_bytes());
        let name_bytes = u32::try_from(summary.file_name.len()).expect("at most MAX_TEXT_BYTES");
        bytes.extend(name_bytes.to_be_bytes());
        bytes.extend(summary.url.as_bytes());
        bytes.extend(summary.file_name.as_bytes());
        bytes
    }

    fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let key = ContentKey::from_bytes(key.try_into().ok()?);
        let (fixed, texts) = value.split_first_chunk::<FIXED_BYTES>()?;
        let u64_at = |at: usize| Some(u64::from_be_bytes(*fixed[at..].first_chunk()?));
        let u32_at = |at: usize| Some(u32::from_be_bytes(*fixed[at..].first_chunk()?));
        if fixed[0] != RECORD_VERSION {
            return None;
        }
        let (url_bytes, name_bytes) = (u32_at(62)?, u32_at(66)?);
        let (url, file_name) = texts.split_at_checked(usize::try_from(url_bytes).ok()?)?;
        if file_name.len() != usize::try_from(name_bytes).ok()? {
            return None;
        }
        let summary = ContentSummary {
            key,
            manifest_bytes: u32_at(26)?,
            url: std::str::from_utf8(url).ok()?.to_owned(),
            file_name: std::str::from_utf8(file_name).ok()?.to_owned(),
            trust: Trust::from_code(fixed[1])?,
            length: u64_at(2)?,
            stored_at: u64_at(10)?,
            last_used: u64_at(18)?,
        };
        Some(Self {
            summary,
            manifest_hash: SegmentHash::from_bytes(*fixed[30..].first_chunk()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(url: String, file_name: String, numbers: [u64; 3], trust: Trust) -> ContentRecord {
        ContentRecord {
            key: ContentKey::from_bytes([5; 32]),
            manifest: Bytes::from_static(b"manifest"),
            url,
            file_name,
            trust,
            length: numbers[0],
            stored_at: numbers[1],
            last_used: numbers[2],
        }
    }

    proptest! {
        #[test]
        fn entries_survive_a_round_trip(
            url: String, name: String, numbers: [u64; 3], trust in prop::sample::select(&Trust::ALL),
        ) {
            let entry = Entry::of(&record(url, name, numbers, trust)).expect("short texts");
            prop_assert_eq!(Entry::decode(&[5; 32], &entry.encode()), Some(entry));
        }

        #[test]
        fn a_truncated_or_longer_entry_is_refused(cut in 0_usize..80, url in "[a-z]{8,20}") {
            let entry = Entry::of(&record(url, "name".to_owned(), [1, 2, 3], Trust::Origin));
            let mut bytes = entry.expect("short texts").encode();
            bytes.push(0);
            prop_assert_eq!(Entry::decode(&[5; 32], &bytes), None);
            prop_assert_eq!(Entry::decode(&[5; 32], &bytes[..cut]), None);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Entry::decode(&[5; 32], &bytes);
        }
    }

    #[test]
    fn trust_reads_back_what_it_prints() {
        for trust in Trust::ALL {
            assert_eq!(trust.to_string().parse(), Ok(trust));
        }
        assert!("Manifest".parse::<Trust>().is_err());
    }
}
