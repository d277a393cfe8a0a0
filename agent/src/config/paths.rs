//! Where the state and the configuration lie when nobody says.

use std::ffi::OsString;
use std::path::PathBuf;

use super::ConfigError;

/// What the defaults depend on.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Whether this is root.
    pub root: bool,
    /// `HOME`
    pub home: Option<OsString>,
    /// `XDG_STATE_HOME`
    pub xdg_state_home: Option<OsString>,
    /// `XDG_CONFIG_HOME`
    pub xdg_config_home: Option<OsString>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        Self {
            root: rustix::process::geteuid().is_root(),
            home: std::env::var_os("HOME"),
            xdg_state_home: std::env::var_os("XDG_STATE_HOME"),
            xdg_config_home: std::env::var_os("XDG_CONFIG_HOME"),
        }
    }

    /// A variable of the XDG base directory specification, which says that a relative path counts
    /// as none.
    fn base(&self, variable: &Option<OsString>, below_home: &str) -> Option<PathBuf> {
        let absolute = |path: &OsString| Some(PathBuf::from(path)).filter(|p| p.is_absolute());
        let below_home = || Some(absolute(self.home.as_ref()?)?.join(below_home));
        variable.as_ref().and_then(absolute).or_else(below_home)
    }
}

/// Where root's agent keeps its state, and serves all users of the machine.
pub const SYSTEM_STATE_DIR: &str = "/var/lib/branchline";

/// `/var/lib/branchline` for root, else `$XDG_STATE_HOME/branchline`.
///
/// # Errors
/// [`ConfigError::NoHome`] for a user without a home.
pub fn default_state_dir(environment: &Environment) -> Result<PathBuf, ConfigError> {
    if environment.root {
        return Ok(SYSTEM_STATE_DIR.into());
    }
    let base = environment.base(&environment.xdg_state_home, ".local/state");
    base.map(|base| base.join("branchline"))
        .ok_or(ConfigError::NoHome {
            what: "state directory",
            variable: "XDG_STATE_HOME",
            option: "--state-dir DIR",
        })
}

/// `/etc/branchline/branchline.toml` for root, else `$XDG_CONFIG_HOME/branchline/branchline.toml`;
/// none for a user without a home.
pub fn default_config_file(environment: &Environment) -> Option<PathBuf> {
    if environment.root {
        return Some("/etc/branchline/branchline.toml".into());
    }
    let base = environment.base(&environment.xdg_config_home, ".config")?;
    Some(base.join("branchline/branchline.toml"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn user(home: Option<&str>, state: Option<&str>) -> Environment {
        let os = |text: Option<&str>| text.map(OsString::from);
        Environment {
            root: false,
            home: os(home),
            xdg_state_home: os(state),
            xdg_config_home: None,
        }
    }

    #[test]
    fn the_state_lies_where_the_environment_says() {
        let of = |environment: &Environment| default_state_dir(environment).ok();
        let root = Environment {
            root: true,
            ..user(Some("/root"), Some("/x"))
        };
        assert_eq!(of(&root).as_deref(), Some(Path::new("/var/lib/branchline")));
        let xdg = user(Some("/home/u"), Some("/s"));
        assert_eq!(of(&xdg).as_deref(), Some(Path::new("/s/branchline")));
        let relative = user(Some("/home/u"), Some("s"));
        let below_home = Path::new("/home/u/.local/state/branchline");
        assert_eq!(of(&relative).as_deref(), Some(below_home));
        assert_eq!(of(&user(None, None)), None);
        assert_eq!(default_config_file(&user(None, None)), None);
        let config = default_config_file(&user(Some("/home/u"), None));
        assert_eq!(
            config,
            Some("/home/u/.config/branchline/branchline.toml".into())
        );
    }
}
