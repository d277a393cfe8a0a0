//! The index: RocksDB, its tables and its memory. Nothing else in Branchline knows RocksDB.
//!
//! A batch is applied as a whole or not at all, over all tables; a synced batch is on disk when
//! `commit_synced` returns. What a record means is `record.rs`'s business.

use std::ops::ControlFlow;
use std::path::Path;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB,
    DBCompressionType, LogLevel, Options, WriteBatch, WriteOptions,
};

use crate::error::IndexError;

/// All memtables together. A batch of 32 MiB of segments is 60 KB of index.
const WRITE_BUFFER_BYTES: usize = 4 << 20;
/// Blocks, table indexes and filters; the page cache has the rest.
const BLOCK_CACHE_BYTES: usize = 6 << 20;
/// Log that is replayed at the next open, and its file.
const MAX_LOG_BYTES: u64 = 8 << 20;
/// 8 MiB a table file: a compaction needs little room on a nearly full disk.
const TABLE_FILE_BYTES: u64 = 8 << 20;
/// A million segments are about a dozen table files.
const MAX_OPEN_FILES: i32 = 48;
/// Keys looked up in one call: bounds the blocks pinned meanwhile.
const KEYS_PER_LOOKUP: usize = 512;

/// The index's tables: RocksDB column families. `segments` and `lru` grow with the segments, the
/// others stay small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// hash -> place and time of use
    Segments,
    /// time of use and place -> hash, length
    Lru,
    /// pack -> end and figures
    Packs,
    /// ranges whose blocks are being given back
    Reclaim,
    /// content key -> record without the manifest
    Contents,
    /// swarm id -> content key
    Swarms,
    /// the caller's keys and values
    Notes,
    /// the store's own counters
    Meta,
}

impl Table {
    const ALL: [Self; 8] = [
        Self::Segments,
        Self::Lru,
        Self::Packs,
        Self::Reclaim,
        Self::Contents,
        Self::Swarms,
        Self::Notes,
        Self::Meta,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Segments => "segments",
            Self::Lru => "lru",
            Self::Packs => "packs",
            Self::Reclaim => "reclaim",
            Self::Contents => "contents",
            Self::Swarms => "swarms",
            Self::Notes => "notes",
            Self::Meta => "meta",
        }
    }
}

/// An open index.
pub(crate) struct Index {
    db: DB,
}

impl Index {
    pub(crate) fn open(path: &Path) -> Result<Self, IndexError> {
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        // RocksDB's own "default" is not used. It is named all the same: with its usual write
        // buffer of 64 MiB, RocksDB would wait for that much free space after a full disk.
        let names = Table::ALL.map(Table::name).into_iter().chain(["default"]);
        let tables =
            names.map(|name| ColumnFamilyDescriptor::new(name, table_options(name, &cache)));
        Ok(Self {
            db: DB::open_cf_descriptors(&database_options(), path, tables)?,
        })
    }

    pub(crate) fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.db.get_cf(self.family(table), key)?)
    }

    /// Looks up keys that the caller has sorted; `found` gets the position and the value of each
    /// that is there.
    pub(crate) fn values<K: AsRef<[u8]>>(
        &self,
        table: Table,
        sorted_keys: &[K],
        mut found: impl FnMut(usize, &[u8]),
    ) -> Result<(), IndexError> {
        let family = self.family(table);
        for (chunk, keys) in sorted_keys.chunks(KEYS_PER_LOOKUP).enumerate() {
            let values = self.db.batched_multi_get_cf(family, keys, true);
            for (i, value) in values.into_iter().enumerate() {
                if let Some(value) = value? {
                    found(chunk * KEYS_PER_LOOKUP + i, &value);
                }
            }
        }
        Ok(())
    }

    /// Visits entries in key order, from `from` on, as they are now: writes made by the visitor
    /// are not seen.
    pub(crate) fn scan(
        &self,
        table: Table,
        from: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        let mut entries = self.db.raw_iterator_cf(self.family(table));
        entries.seek(from);
        while let Some((key, value)) = entries.item() {
            if visit(key, value).is_break() {
                return Ok(());
            }
            entries.next();
        }
        Ok(entries.status()?)
    }

    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch {
            index: self,
            writes: WriteBatch::default(),
        }
    }

    /// Writes what is in memory into table files, so that the next open replays nothing.
    pub(crate) fn flush(&self) -> Result<(), IndexError> {
        let families = Table::ALL.map(|table| self.family(table));
        Ok(self
            .db
            .flush_cfs_opt(&families, &rocksdb::FlushOptions::default())?)
    }

    fn family(&self, table: Table) -> &ColumnFamily {
        self.db
            .cf_handle(table.name())
            .expect("every table is created at open")
    }
}

/// Writes that happen together or not at all.
pub(crate) struct Batch<'a> {
    index: &'a Index,
    writes: WriteBatch,
}

impl Batch<'_> {
    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.writes.put_cf(self.index.family(table), key, value);
    }

    pub(crate) fn delete(&mut self, table: Table, key: &[u8]) {
        self.writes.delete_cf(self.index.family(table), key);
    }

    pub(crate) fn len(&self) -> usize {
        self.writes.len()
    }

    /// On disk when this returns.
    pub(crate) fn commit_synced(self) -> Result<(), IndexError> {
        self.commit(true)
    }

    /// On disk soon; survives the end of the process, not that of the power.
    pub(crate) fn commit_lazily(self) -> Result<(), IndexError> {
        self.commit(false)
    }

    fn commit(self, sync: bool) -> Result<(), IndexError> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        Ok(self.index.db.write_opt(self.writes, &options)?)
    }
}

impl From<rocksdb::Error> for IndexError {
    fn from(error: rocksdb::Error) -> Self {
        let message = error.into_string();
        // RocksDB's binding hands the cause over as text only: strerror(ENOSPC) and its own name.
        let no_space = message.contains("No space left") || message.contains("Disk quota exceeded");
        Self { message, no_space }
    }
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_db_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_total_wal_size(MAX_LOG_BYTES);
    options.set_max_open_files(MAX_OPEN_FILES);
    options.set_max_background_jobs(2);
    // Each input of a compaction reads ahead by this much, 2 MiB if one does not say.
    options.set_compaction_readahead_size(256 << 10);
    options.set_writable_file_max_buffer_size(256 << 10);
    options.set_skip_stats_update_on_db_open(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_max_manifest_file_size(4 << 20);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options
}

fn table_options(name: &str, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    // Indexes and filters of all tables come out of the one cache: memory stays bounded however
    // many segments there are. Two levels, so that only the part in use is loaded.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_metadata_block_size(4096);
    if name == Table::Segments.name() {
        // Most questions about segments are answered with "not here"; 10 bits make 99 % of
        // those free of a block read.
        blocks.set_bloom_filter(10.0, false);
        blocks.set_partition_filters(true);
    }
    let grows = [Table::Segments, Table::Lru]
        .map(Table::name)
        .contains(&name);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(if grows { 2 << 20 } else { 256 << 10 });
    options.set_max_write_buffer_number(2);
    options.set_target_file_size_base(TABLE_FILE_BYTES);
    options.set_max_bytes_for_level_base(4 * TABLE_FILE_BYTES);
    options
}
