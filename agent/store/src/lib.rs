//! Segments on disk: pack files that segments are appended to, and a RocksDB index of them.
//!
//! A cache, not a journal: what is lost here is fetched again. Its promises are these.
//! - What [`Store::append`] reported is on disk, whatever happens to the process or the power.
//! - No wrong byte comes out: each segment is hashed when it is read, and dropped if it is bad.
//! - A segment is stored once, whatever file it belongs to.
//! - It stays within its limit, and evicts what was used longest ago, never what is held.
//!
//! Everything here blocks: callers are threads that may wait for a disk. The store does not know
//! what a manifest says, fetches nothing, and decides nothing about jobs or trust.
//! The format and every crash case: `docs/store.md`.

mod append;
mod contents;
mod directory;
mod error;
mod eviction;
mod hold;
mod index;
mod linux;
mod manifests;
mod options;
mod packs;
mod record;
mod recovery;
mod store;
mod touches;

pub use append::Appended;
pub use contents::{ContentRecord, ContentSummary, ParseTrustError, Trust};
pub use error::{IndexError, OpenError, StoreError};
pub use hold::Hold;
pub use options::{Clock, DEFAULT_KEEP_FREE_BYTES, MAX_SEGMENT_BYTES, PACK_BYTES, StoreOptions};
pub use recovery::RecoveryReport;
pub use store::{NoteChange, Store, StoreStats};
