//! Pack files: bytes at offsets. What lies where, and what is still wanted, the index knows.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::linux;
use crate::options::MAX_OPEN_PACKS;
use crate::record::{FreedRange, PackId};

/// The folder of pack files.
pub(crate) struct Packs {
    dir: PathBuf,
    /// The most recently used first.
    open: Mutex<VecDeque<(PackId, Arc<File>)>>,
}

impl Packs {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            open: Mutex::default(),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, pack: PackId) -> PathBuf {
        self.dir.join(format!("{:08}.pack", pack.0))
    }

    /// Makes an empty pack whose directory entry is on disk.
    pub(crate) fn create(&self, pack: PackId) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(self.path(pack))?;
        sync_dir(&self.dir)?;
        self.remember(pack, &Arc::new(file));
        Ok(())
    }

    pub(crate) fn write_at(&self, pack: PackId, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.file(pack)?.write_all_at(bytes, offset.into())
    }

    /// All that was written to the pack is on disk when this returns.
    pub(crate) fn sync(&self, pack: PackId) -> io::Result<()> {
        self.file(pack)?.sync_data()
    }

    /// Reads a range; `None` when the file ends before it does.
    pub(crate) fn read(&self, pack: PackId, offset: u32, length: u32) -> io::Result<Option<Bytes>> {
        let file = self.file(pack)?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = u64::from(offset) + bytes.len() as u64;
            match linux::read_at(&file, &mut bytes, at) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // The allocator may have given more than was asked for.
        bytes.truncate(length);
        Ok(Some(bytes.into()))
    }

    pub(crate) fn cut(&self, pack: PackId, length: u32) -> io::Result<()> {
        self.file(pack)?.set_len(length.into())
    }

    pub(crate) fn length(&self, pack: PackId) -> io::Result<u64> {
        Ok(std::fs::metadata(self.path(pack))?.len())
    }

    /// Gives the blocks of a range back. A pack that is gone has given them back already.
    pub(crate) fn punch(&self, range: &FreedRange) -> io::Result<()> {
        if range.length == 0 {
            return Ok(());
        }
        match self.file(range.pack) {
            Ok(file) => linux::punch_hole(&file, range.offset.into(), range.length.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn remove(&self, pack: PackId) -> io::Result<()> {
        self.lock().retain(|(open, _)| *open != pack);
        match std::fs::remove_file(self.path(pack)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// The packs in the folder, in order.
    pub(crate) fn list(&self) -> io::Result<Vec<PackId>> {
        let mut packs = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            packs.extend(entry?.file_name().to_str().and_then(pack_id));
        }
        packs.sort_unstable();
        Ok(packs)
    }

    fn file(&self, pack: PackId) -> io::Result<Arc<File>> {
        if let Some(file) = self.recall(pack) {
            return Ok(file);
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(pack))?;
        let file = Arc::new(file);
        self.remember(pack, &file);
        Ok(file)
    }

    fn recall(&self, pack: PackId) -> Option<Arc<File>> {
        let mut open = self.lock();
        let at = open.iter().position(|(id, _)| *id == pack)?;
        let entry = open.remove(at)?;
        let file = Arc::clone(&entry.1);
        open.push_front(entry);
        Some(file)
    }

    fn remember(&self, pack: PackId, file: &Arc<File>) {
        let mut open = self.lock();
        open.retain(|(id, _)| *id != pack);
        open.push_front((pack, Arc::clone(file)));
        open.truncate(MAX_OPEN_PACKS);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(PackId, Arc<File>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Directory entries made before are on disk when this returns.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn pack_id(file_name: &str) -> Option<PackId> {
    let digits = file_name.strip_suffix(".pack")?;
    if digits.len() < 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(PackId(digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pack_names_are_packs() {
        assert_eq!(pack_id("00000007.pack"), Some(PackId(7)));
        assert_eq!(pack_id("4294967295.pack"), Some(PackId(u32::MAX)));
        for other in [
            "7.pack",
            "00000007.pack~",
            "+0000007.pack",
            "4294967296.pack",
            "LOCK",
        ] {
            assert_eq!(pack_id(other), None, "{other}");
        }
    }
}
