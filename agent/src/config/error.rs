//! What can be wrong with a configuration.

use std::path::PathBuf;

use crate::api::{Failure, FailureKind};

/// A configuration that cannot be used. Each message names the file, and the line if there is one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration: {}: {source}; name another with --config, or mend its permissions", .file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("configuration: {}:{line}: {problem}", .file.display())]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What the parser says.
        problem: String,
    },
    /// There is no such key.
    #[error("configuration: {}:{line}: unknown key `{key}`; did you mean `{nearest}`?", .file.display())]
    UnknownKey {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// The key, with its section.
        key: String,
        /// The most similar one there is.
        nearest: &'static str,
    },
    /// The key cannot have this value.
    #[error("configuration: {}:{line}: {key}: {problem}", .file.display())]
    Value {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// The key, with its section.
        key: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The environment does not say where the user's files lie.
    #[error("{what}: neither {variable} nor HOME is set to an absolute path; give {option}")]
    NoHome {
        /// What was looked for.
        what: &'static str,
        /// The variable that would have said it.
        variable: &'static str,
        /// The option that says it too.
        option: &'static str,
    },
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(FailureKind::Usage, error)
    }
}
