//! Manifests beside files: made, kept current, checked.
//!
//! [`publish`] writes `NAME.branchline` beside each file, and only where the file changed since;
//! [`verify`] says where a file differs from its manifest. Both read a file once, from start to
//! end, in constant memory, with SHA-256 on one core and the segments on another.
//!
//! A manifest appears whole or not at all, and never describes bytes that were changing while they
//! were read. Nothing here talks to a network, and no manifest is ever removed.

mod candidates;
mod file;
mod manifest_file;
mod progress;
mod publish;
mod reading;
mod stamp;
mod verify;

pub use file::PublishFileError;
pub use manifest_file::{ReadManifestError, manifest_path, read_manifest};
pub use progress::{Outcome, Progress, ProgressSink};
pub use publish::{PublishError, PublishOptions, PublishReport, publish};
pub use verify::{VerifyError, VerifyReport, verify};
