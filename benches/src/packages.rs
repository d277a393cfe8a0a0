//! Pairs of successive versions of real software, from the registries' own clients.
//!
//! Each is unpacked and put into a tar again, so that nothing but the content differs. Packages are
//! kept in the cache folder; without a registry whoever is missing is left out, and it is said.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::work::{packages_folder, remove};

/// One program, two versions.
pub(crate) struct Pair {
    pub(crate) name: String,
    old: Package,
    new: Package,
}

#[derive(Clone)]
enum Package {
    Npm {
        name: &'static str,
        version: &'static str,
    },
    Debian {
        name: String,
    },
}

/// A mass of text and a Go program, and the two newest kernels of each series that Debian has here.
pub(crate) fn pairs() -> Vec<Pair> {
    let mut pairs = vec![
        npm("typescript", "5.8.2", "5.8.3"),
        npm("@esbuild/linux-x64", "0.25.0", "0.25.1"),
    ];
    match kernels() {
        Ok(kernels) => pairs.extend(kernels),
        Err(error) => println!("no Debian packages: {error:#}"),
    }
    pairs
}

fn npm(name: &'static str, old: &'static str, new: &'static str) -> Pair {
    Pair {
        name: format!("npm {name} {old} -> {new}"),
        old: Package::Npm { name, version: old },
        new: Package::Npm { name, version: new },
    }
}

fn kernels() -> Result<Vec<Pair>> {
    let architecture = text(Command::new("dpkg").arg("--print-architecture"))?;
    let names = text(Command::new("apt-cache").args(["pkgnames", "linux-image-"]))?;
    let mut series: BTreeMap<Vec<u32>, Vec<(Vec<u32>, &str)>> = BTreeMap::new();
    for name in names.lines() {
        if let Some(version) = kernel_version(name, architecture.trim()) {
            let key = version.iter().copied().take(2).collect();
            series.entry(key).or_default().push((version, name));
        }
    }
    let newest_two = |mut all: Vec<(Vec<u32>, &str)>| {
        all.sort();
        let (_, new) = all.pop()?;
        let (_, old) = all.pop()?;
        Some(debian(old, new))
    };
    Ok(series.into_values().filter_map(newest_two).collect())
}

/// The numbers in `linux-image-6.1.0-47-amd64`; nothing for flavours, debug symbols and the like.
fn kernel_version(name: &str, architecture: &str) -> Option<Vec<u32>> {
    let version = name
        .strip_prefix("linux-image-")?
        .strip_suffix(architecture)?
        .strip_suffix('-')?;
    let (version, release) = version.split_once('+').unwrap_or((version, ""));
    let numbers: Result<Vec<u32>, _> = version.split(['.', '-']).map(str::parse).collect();
    // A backport's flavour would follow its release.
    numbers.ok().filter(|_| !release.contains('-'))
}

fn debian(old: &str, new: &str) -> Pair {
    let short = |name: &str| name.replace("linux-image-", "");
    Pair {
        name: format!("Debian kernel {} -> {}", short(old), short(new)),
        old: Package::Debian {
            name: old.to_owned(),
        },
        new: Package::Debian {
            name: new.to_owned(),
        },
    }
}

impl Pair {
    /// Makes `old.tar` and `new.tar` in `folder`.
    ///
    /// # Errors
    /// When a package is neither in the cache folder nor to be had.
    pub(crate) fn make_tars(&self, folder: &Path) -> Result<()> {
        self.old.make_tar(&folder.join("old.tar"))?;
        self.new.make_tar(&folder.join("new.tar"))
    }
}

impl Package {
    fn make_tar(&self, tar: &Path) -> Result<()> {
        let package = self.fetched()?;
        let unpacked = tar.with_extension("unpacked");
        fs::create_dir(&unpacked)?;
        match self {
            Self::Npm { .. } => run(Command::new("tar")
                .arg("xzf")
                .arg(&package)
                .arg("-C")
                .arg(&unpacked))?,
            Self::Debian { .. } => run(Command::new("dpkg-deb")
                .arg("-x")
                .arg(&package)
                .arg(&unpacked))?,
        }
        run(Command::new("tar")
            .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0"])
            .args(["--numeric-owner", "-cf"])
            .arg(tar)
            .arg("-C")
            .arg(&unpacked)
            .arg("."))?;
        remove(&unpacked)
    }

    /// The package in the cache folder, downloaded if it is not there.
    fn fetched(&self) -> Result<PathBuf> {
        let folder = packages_folder()?;
        if let Some(there) = self.cached(&folder)? {
            return Ok(there);
        }
        match self {
            Self::Npm { name, version } => run(Command::new("npm")
                .args(["pack", "--silent", &format!("{name}@{version}")])
                .arg("--pack-destination")
                .arg(&folder))?,
            // As root apt would drop to a user that may not write here, and say so at length.
            Self::Debian { name } => run(Command::new("apt-get")
                .args(["-qq", "-o", "APT::Sandbox::User=root", "download", name])
                .current_dir(&folder))?,
        }
        self.cached(&folder)?
            .context("the download left no package")
    }

    fn cached(&self, folder: &Path) -> Result<Option<PathBuf>> {
        let (start, end) = match self {
            Self::Npm { name, version } => {
                let file = name.trim_start_matches('@').replace('/', "-");
                (format!("{file}-{version}"), ".tgz")
            }
            Self::Debian { name } => (format!("{name}_"), ".deb"),
        };
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&start) && name.ends_with(end) {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
    }
}

fn text(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    ensure!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn run(command: &mut Command) -> Result<()> {
    text(command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_from_their_flavours() {
        let version = |name| kernel_version(name, "amd64");
        assert_eq!(
            version("linux-image-6.1.0-47-amd64"),
            Some(vec![6, 1, 0, 47])
        );
        assert_eq!(
            version("linux-image-6.12.115+deb12-amd64"),
            Some(vec![6, 12, 115])
        );
        for other in [
            "linux-image-amd64",
            "linux-image-6.1.0-47-rt-amd64",
            "linux-image-6.12.115+deb12-rt-amd64",
            "linux-image-6.1.0-47-amd64-dbg",
        ] {
            assert_eq!(version(other), None, "{other}");
        }
    }
}
