//! What every command starts from: the state directory and the configuration.

use std::path::{Path, PathBuf};

use branchline_agent::api::{Failure, FailureKind};
use branchline_agent::config::{
    Config, Environment, SYSTEM_STATE_DIR, default_config_file, default_state_dir,
};
use branchline_agent::control::{Client, SOCKET_NAME};
use rustix::fs::Access;

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

    /// For the agent of this state directory, whether it runs or not. Where none was named and the user has no agent of
    /// his own: for root's, if that serves him.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let own = self.state_dir()?;
        let system = Path::new(SYSTEM_STATE_DIR);
        let is_systems = self.state_dir.is_none() && is_for_systems(&own, system);
        Ok(Client::new(if is_systems { system } else { &own })?)
    }
}

/// Whether the user has no agent of his own, and the system has one that he may speak to.
fn is_for_systems(own: &Path, system: &Path) -> bool {
    let serves = |dir: &Path| rustix::fs::access(dir.join(SOCKET_NAME), Access::WRITE_OK).is_ok();
    !serves(own) && serves(system)
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn ones_own_agent_goes_before_the_systems() {
        let dir = tempfile::tempdir().expect("a folder");
        let (own, system) = (dir.path().join("own"), dir.path().join("system"));
        for dir in [&own, &system] {
            std::fs::create_dir(dir).expect("made");
        }
        assert!(!is_for_systems(&own, &system), "nobody serves");
        let _system = UnixListener::bind(system.join(SOCKET_NAME)).expect("bound");
        assert!(is_for_systems(&own, &system));
        let _own = UnixListener::bind(own.join(SOCKET_NAME)).expect("bound");
        assert!(!is_for_systems(&own, &system));
    }
}
