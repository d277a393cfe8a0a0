//! The HTTP origin: what it says of a file, and byte ranges of it.
//!
//! [`Origin::probe`] asks what the file is now, [`Origin::read`] brings a range of exactly that
//! version and survives what networks and servers do, [`Origin::document`] brings small files such
//! as the manifest. `docs/origin.md` has the requests, their order and every reaction in tables.
//!
//! Invariants:
//! - Bytes are handed out as they travel: no Content-Encoding is ever applied.
//! - Bytes of a [`Remote`] are only handed out while the origin still says that it is this version.
//! - A user's own headers and credentials go to the origin they were meant for and to no other.
//! - The policy of [`Retries`] is the only place that decides whether and when to try again.
//! - Nothing is allocated by what a server claims; what it claims is compared with what arrives.
//!
//! Absent: files (only the CA file and netrc are read, once, when an [`Origin`] is made), hashing,
//! caching, cookies, and any thought of peers.

mod body;
mod cause;
mod client;
mod clients;
mod document;
mod error;
mod fields;
mod link;
mod netrc;
mod options;
mod origin;
mod probe;
mod reader;
mod remote;
mod retries;
mod target;

pub use body::{Body, BodyKind};
pub use document::Document;
pub use error::{NetworkKind, OriginError, Retry};
pub use options::{NetrcChoice, OriginOptions, OriginSetupError, ProxyChoice};
pub use origin::Origin;
pub use reader::{RangeReader, Resume};
pub use remote::{Ranges, Remote, Validator, Version};
pub use retries::{BusyPolicy, Retries, RetryPolicy};
pub use target::{ByteRange, Place, Target, TargetError, manifest_url};
