//! What every command starts from: the state directory and the configuration.

use std::path::{Path, PathBuf};

use branchline_agent::api::{Failure, FailureKind};
use branchline_agent::config::{Config, Environment, default_config_file, default_state_dir};
use branchline_agent::control::Client;

use crate::args::Global;

/// The global options, with the environment's defaults.
#[derive(Debug)]
pub(crate) struct Context {
    state_dir: Option<PathBuf>,
    config_file: Option<PathBuf>,
    environment: Environment,
}

impl Context {
    pub(crate) fn new(global: Global) -> Result<Self, Failure> {
        // An empty variable is how a unit file or a shell says that there is none.
        let given = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
        let state_dir = given(global.state_dir)
            .map(|dir| absolute(&dir))
            .transpose()?;
        let environment = Environment::of_process();
        Ok(Self {
            state_dir,
            config_file: given(global.config),
            environment,
        })
    }

    pub(crate) fn state_dir(&self) -> Result<PathBuf, Failure> {
        self.state_dir
            .clone()
            .map_or_else(|| Ok(default_state_dir(&self.environment)?), Ok)
    }

    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let default = default_config_file(&self.environment);
        Ok(Config::load(
            self.config_file.as_deref(),
            default.as_deref(),
        )?)
    }

    /// For the agent of this state directory, whether it runs or not.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(&self.state_dir()?)?)
    }
}

/// A path that means the same to an agent with another working directory.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        Failure::new(
            FailureKind::Usage,
            format!("path: {}: {error}", path.display()),
        )
    })
}
