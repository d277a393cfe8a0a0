//! The key file: made once, readable by its owner alone.
//!
//! One line of text, `branchline-ed25519-v1 ` and the 32 secret bytes in hexadecimal. The file
//! appears whole or not at all, and an existing one is never overwritten: a machine that silently
//! changed its identity would be a stranger to its branch.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use branchline_core::PeerId;
use libp2p::identity::Keypair;
use rustix::fs::{Mode, OFlags};

/// What a key file begins with: the format's name and version.
const MAGIC: &str = "branchline-ed25519-v1 ";
/// A key file has 87 bytes; more than this is not read.
const MAX_FILE_BYTES: u64 = 256;

/// This agent's Ed25519 key.
#[derive(Clone)]
pub struct Identity {
    keypair: Keypair,
    peer_id: PeerId,
}

/// Why there is no identity to work with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file or its folder could not be read or written.
    #[error("identity {}: {action} failed: {source}; the agent must be able to write its state \
             folder", path.display())]
    Io {
        /// The key file.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Others may read or write the file.
    #[error("identity {}: its mode {mode:04o} lets others at the secret key; if nobody can have \
             read it run `chmod 600 {0}`, otherwise remove it to get a new identity", path.display())]
    OpenToOthers {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to another user.
    #[error("identity {}: it belongs to user {owner}, the agent runs as user {user}; run the agent \
             as its owner or choose another state folder", path.display())]
    OtherOwner {
        /// The key file.
        path: PathBuf,
        /// User id of the file's owner.
        owner: u32,
        /// User id of this process.
        user: u32,
    },
    /// The file holds something else than a key.
    #[error("identity {}: {why}; restore it from a backup, or remove it to get a new identity",
             path.display())]
    BadContent {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Identity {
    /// Reads the key file, or makes it on the first start. Does file I/O: not for an async thread.
    ///
    /// # Errors
    /// [`IdentityError`] when the file is open to others, of another user, damaged, or I/O fails.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match load(path) {
            Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                create(path)?;
                load(path)
            }
            loaded => loaded,
        }
    }

    /// Who this agent is to others.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// The key, for libp2p and certificates.
    pub(crate) fn keypair(&self) -> &Keypair {
        &self.keypair
    }

    fn from_secret(secret: &mut [u8; 32]) -> Option<Self> {
        let keypair = Keypair::ed25519_from_bytes(secret).ok()?;
        let peer_id = PeerId::from_libp2p_bytes(&keypair.public().to_peer_id().to_bytes()).ok()?;
        Some(Self { keypair, peer_id })
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("peer_id", &self.peer_id)
            .finish_non_exhaustive()
    }
}

fn load(path: &Path) -> Result<Identity, IdentityError> {
    let failed = |action| {
        move |source| IdentityError::Io {
            path: path.into(),
            action,
            source,
        }
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| failed("opening")(errno.into()))?;
    let file = File::from(file);
    check_owner_and_mode(path, &file.metadata().map_err(failed("examining"))?)?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(failed("reading"))?;
    parse(&text).map_err(|why| IdentityError::BadContent {
        path: path.into(),
        why,
    })
}

fn check_owner_and_mode(path: &Path, metadata: &std::fs::Metadata) -> Result<(), IdentityError> {
    if !metadata.is_file() {
        return Err(IdentityError::BadContent {
            path: path.into(),
            why: "it is not a regular file",
        });
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        let owner = metadata.uid();
        return Err(IdentityError::OtherOwner {
            path: path.into(),
            owner,
            user,
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::OpenToOthers {
            path: path.into(),
            mode,
        });
    }
    Ok(())
}

fn parse(text: &str) -> Result<Identity, &'static str> {
    let hex = text
        .strip_prefix(MAGIC)
        .ok_or("it is no Branchline key file")?;
    let hex = hex.strip_suffix('\n').unwrap_or(hex).as_bytes();
    if hex.len() != 64 {
        return Err("its key is cut short or too long");
    }
    let mut secret = [0; 32];
    for (byte, pair) in secret.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = hex_byte(pair).ok_or("its key is not hexadecimal")?;
    }
    Identity::from_secret(&mut secret).ok_or("its key is not an Ed25519 key")
}

fn hex_byte(pair: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// A temporary file (mode 0600, O_EXCL), synced, then moved to its name unless another process was
/// first: then that one's key counts, and the caller reads it.
fn create(path: &Path) -> Result<(), IdentityError> {
    let failed = |action| {
        move |source| IdentityError::Io {
            path: path.into(),
            action,
            source,
        }
    };
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new()
        .prefix(".identity-")
        .tempfile_in(folder)
        .map_err(failed("making a temporary file beside it"))?;
    temporary
        .write_all(new_key_line().as_bytes())
        .map_err(failed("writing"))?;
    temporary.as_file().sync_all().map_err(failed("syncing"))?;
    match temporary.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("naming")(error.error)),
    }
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("syncing its folder"))
}

fn new_key_line() -> String {
    use std::fmt::Write as _;

    let key = libp2p::identity::ed25519::Keypair::generate();
    let mut line = MAGIC.to_owned();
    for byte in key.secret().as_ref() {
        write!(line, "{byte:02x}").expect("a String takes all that is written");
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn the_key_is_made_once_for_its_owner_alone_and_stays() {
        let folder = folder();
        let path = folder.path().join("identity");
        let first = Identity::load_or_create(&path).expect("made");
        let mode = std::fs::metadata(&path).expect("the file").mode() & 0o7777;
        assert_eq!(mode, 0o600);
        let second = Identity::load_or_create(&path).expect("read");
        assert_eq!(first.peer_id(), second.peer_id());
        assert_eq!(
            std::fs::read_dir(folder.path()).expect("listing").count(),
            1,
            "nothing left over"
        );
    }

    #[test]
    fn many_first_starts_at_once_agree_on_one_key() {
        let folder = folder();
        let path = folder.path().join("identity");
        let ids = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| Identity::load_or_create(&path)))
                .collect();
            let joined = starts
                .into_iter()
                .map(|start| start.join().expect("no panic"));
            joined
                .map(|made| made.expect("an identity").peer_id())
                .collect::<Vec<_>>()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn a_file_open_to_others_is_refused_and_left_alone() {
        let folder = folder();
        let path = folder.path().join("identity");
        Identity::load_or_create(&path).expect("made");
        for mode in [0o640, 0o604, 0o620, 0o660] {
            set_mode(&path, mode);
            let error = Identity::load_or_create(&path).expect_err("a mode others profit from");
            assert!(
                matches!(error, IdentityError::OpenToOthers { .. }),
                "{error}"
            );
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn bad_content_is_refused_at_every_length_and_left_alone() {
        let folder = folder();
        let path = folder.path().join("identity");
        Identity::load_or_create(&path).expect("made");
        let good = std::fs::read_to_string(&path).expect("the line");
        let mut bad: Vec<String> = (0..good.len() - 1).map(|n| good[..n].to_owned()).collect();
        bad.push(good.replace("v1", "v2"));
        bad.push(format!("{good}{good}"));
        bad.push(good.replace(' ', " zz"));
        for content in bad {
            std::fs::write(&path, &content).expect("writing");
            let error = Identity::load_or_create(&path).expect_err("bad content");
            assert!(
                matches!(error, IdentityError::BadContent { .. }),
                "{content:?}: {error}"
            );
            assert_eq!(std::fs::read_to_string(&path).expect("reading"), content);
        }
    }

    #[test]
    fn a_symlink_or_a_folder_is_no_key_file() {
        let folder = folder();
        let path = folder.path().join("identity");
        std::os::unix::fs::symlink("elsewhere", &path).expect("a link");
        Identity::load_or_create(&path).expect_err("a symlink");
        Identity::load_or_create(folder.path()).expect_err("a folder");
    }
}
