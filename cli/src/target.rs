//! Where `get` saves a file.

use std::path::{Component, Path, PathBuf};

use branchline_agent::api::{Failure, FailureKind, without_password};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::context::absolute;

/// NAME_MAX of Linux's file systems.
const MAX_NAME_BYTES: usize = 255;

/// `output` itself, or the URL's last name in it if it is a directory.
pub(crate) fn target(url: &Url, output: Option<&Path>) -> Result<PathBuf, Failure> {
    let output = output.unwrap_or(Path::new("."));
    if output == Path::new("-") {
        let message = "get: -o -: a file is verified where it stands, not on standard output; \
                       name a file (./- if it is called so)";
        return Err(Failure::new(FailureKind::Usage, message));
    }
    let resolved = without_parents(output)?;
    let output = resolved.as_path();
    let directory = output.is_dir() || output.as_os_str().as_encoded_bytes().ends_with(b"/");
    match (directory, file_name(url)) {
        (false, _) => absolute(output),
        (true, Some(name)) => Ok(absolute(output)?.join(name)),
        (true, None) => {
            let url = without_password(url);
            let message = format!("get: {url}: its last part is no file name; name one with -o");
            Err(Failure::new(FailureKind::Usage, message))
        }
    }
}

/// The path without `..`, which no agent takes: what it leads to now is meant. Its folder must be there then.
fn without_parents(path: &Path) -> Result<PathBuf, Failure> {
    let mut components = path.components();
    if !components.any(|component| component == Component::ParentDir) {
        return Ok(path.to_owned());
    }
    let (folder, name) = match path.file_name() {
        Some(name) => (path.parent().unwrap_or(Path::new("")), Some(name)),
        // It ends in `..`.
        None => (path, None),
    };
    let resolved = folder.canonicalize().map_err(|error| {
        let message = format!(
            "path: {}: {error}; name a folder that is there",
            path.display()
        );
        Failure::new(FailureKind::LocalDisk, message)
    })?;
    let ends_in_slash = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    Ok(match name {
        Some(name) if ends_in_slash => resolved.join(name).join(""),
        Some(name) => resolved.join(name),
        None => resolved,
    })
}

/// The last part of the path, decoded; `/` and control characters in it become `_`, so that no
/// URL reaches outside the directory or plays with the terminal.
fn file_name(url: &Url) -> Option<String> {
    let last = url.path_segments()?.next_back()?;
    let decoded = percent_decode_str(last).decode_utf8_lossy();
    let replaced = |c: char| if c == '/' || c.is_control() { '_' } else { c };
    let name: String = decoded.chars().map(replaced).collect();
    let usable = !matches!(name.as_str(), "" | "." | "..") && name.len() <= MAX_NAME_BYTES;
    usable.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(url: &str) -> Option<String> {
        file_name(&Url::parse(url).expect("a URL"))
    }

    #[test]
    fn the_name_is_the_last_part_of_the_path_and_stays_in_the_directory() {
        let named = |url, expected: &str| assert_eq!(name(url).as_deref(), Some(expected), "{url}");
        named("https://a/b/c.iso?x=/y#z", "c.iso");
        named("https://a/b/with%20space%C3%A9", "with spaceé");
        named("https://a/b/..%2f..%2Fetc%2fpasswd", ".._.._etc_passwd");
        named(
            "https://a/b/a%0Ab%1b[31m%00",
            "a_b__31m_".replace("__31m", "_[31m").as_str(),
        );
        named("https://a/%ff", "\u{fffd}");
        for url in [
            "https://a",
            "https://a/",
            "https://a/b/",
            "https://a/b/..",
            "https://a/%2e%2E",
        ] {
            assert_eq!(name(url), None, "{url}");
        }
        assert_eq!(name(&format!("https://a/{}", "x".repeat(256))), None);
    }

    #[test]
    fn a_directory_gets_the_file_and_anything_else_is_the_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = Url::parse("https://a/f.iso").expect("a URL");
        let no_name = Url::parse("https://u:secret@a/").expect("a URL");
        let to = |path: &Path| target(&url, Some(path)).expect("fine");
        assert_eq!(to(folder.path()), folder.path().join("f.iso"));
        assert_eq!(to(&folder.path().join("new")), folder.path().join("new"));
        assert_eq!(
            to(&folder.path().join("new/")),
            folder.path().join("new/f.iso")
        );
        assert!(target(&url, None).expect("fine").is_absolute());
        assert_eq!(
            target(&no_name, Some(&folder.path().join("n"))).ok(),
            Some(folder.path().join("n"))
        );
        let inner = folder.path().canonicalize().expect("a path").join("inner");
        std::fs::create_dir(&inner).expect("made");
        assert_eq!(to(&inner.join("../new")), inner.with_file_name("new"));
        assert_eq!(to(&inner.join("..")), inner.with_file_name("f.iso"));
        assert_eq!(to(&inner.join("../inner/")), inner.join("f.iso"));
        assert!(target(&url, Some(&inner.join("none/../new"))).is_err());
        let failure = target(&no_name, None).expect_err("no name");
        assert_eq!(failure.kind, FailureKind::Usage);
        assert!(!failure.message.contains("secret"), "{failure}");
        assert!(target(&url, Some(Path::new("-"))).is_err());
    }
}
