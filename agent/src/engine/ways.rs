//! How a file is to be fetched, by what is known of it and who is believed.

use std::collections::BTreeSet;
use std::sync::Arc;

use branchline_core::PeerId;
use branchline_hashing::{ContentKey, FixedSegments, Manifest};
use branchline_origin::{Ranges, Remote};

use crate::api::Trust;
use crate::engine::hearsay::{self, PeersTable};
use crate::engine::lookup::Known;
use crate::engine::plain;
use crate::engine::undescribed::Came;
use crate::engine::{Shared, blocking};

/// A description of the file to fetch by segments, and how far it is believed.
pub(crate) struct Table {
    pub(crate) key: ContentKey,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) trust: Trust,
    /// Whether peers are asked.
    pub(crate) peers: bool,
    pub(crate) made_by: TableMaker,
    /// What has come of the file before there was a table.
    pub(crate) came: Option<Came>,
}

/// How a file is to be fetched.
pub(crate) enum Way {
    /// By this table.
    Table(Table),
    /// At fixed offsets, for only the digest is known.
    Undescribed {
        key: ContentKey,
        segments: FixedSegments,
    },
    /// As one stream from the origin.
    Plain,
}

/// Who made a table, and so what it means if the file turns out to be another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TableMaker {
    /// The publisher, beside the file.
    Publisher,
    /// This machine, when it had the file before: the origin may have other bytes now that it calls
    /// by the same name.
    ThisMachine,
    /// These strangers: right only if the whole file has its digest.
    Peers(BTreeSet<PeerId>),
}

/// Who has been wrong about a file so far.
#[derive(Debug, Default)]
pub(crate) struct Distrusted {
    /// They sent wrong bytes or gave a wrong table: they are asked for nothing.
    pub(crate) peers: BTreeSet<PeerId>,
    /// Whether what this machine had of it before was another file.
    own_tables: bool,
    /// Tables of peers that were wrong.
    peers_tables: u32,
}

/// Peers may be wrong about a table so often before none is taken from any: each costs a transfer, and
/// an agent can have as many names as it likes.
const WRONG_TABLES: u32 = 2;

impl Distrusted {
    /// Whether a table of peers is worth a try.
    pub(crate) fn takes_tables(&self) -> bool {
        self.peers_tables < WRONG_TABLES
    }

    /// Whether what this machine had of the file before is worth a try.
    pub(crate) fn takes_own_tables(&self) -> bool {
        !self.own_tables
    }

    /// A table turned out to be wrong.
    pub(crate) fn refute(&mut self, made_by: TableMaker) {
        match made_by {
            TableMaker::Publisher => {}
            TableMaker::ThisMachine => self.own_tables = true,
            TableMaker::Peers(givers) => {
                self.peers_tables += 1;
                for peer in givers {
                    tracing::warn!(%peer, "a peer gave a wrong table and is shut out");
                    self.peers.insert(peer);
                }
            }
        }
    }
}

impl Table {
    /// Of a file that this machine had before by its digest.
    pub(crate) fn of_this_machine(key: ContentKey, manifest: Arc<Manifest>) -> Self {
        Self {
            key,
            manifest,
            trust: Trust::Digest,
            peers: true,
            made_by: TableMaker::ThisMachine,
            came: None,
        }
    }

    pub(crate) fn of_peers(key: ContentKey, table: PeersTable, came: Option<Came>) -> Self {
        Self {
            key,
            manifest: Arc::new(table.manifest),
            trust: Trust::Digest,
            peers: true,
            made_by: TableMaker::Peers(table.givers),
            came,
        }
    }
}

/// How to fetch the file.
pub(crate) async fn choose(shared: &Shared, known: &Known, distrusted: &Distrusted) -> Way {
    if let Some(manifest) = &known.manifest {
        return Way::Table(Table {
            key: manifest.content_key(),
            manifest: Arc::clone(manifest),
            trust: Trust::Manifest,
            peers: true,
            made_by: TableMaker::Publisher,
            came: None,
        });
    }
    let Some(digest) = known.digests.first() else {
        let table = match distrusted.takes_own_tables() {
            true => table_of_version(shared, known).await,
            false => None,
        };
        return table.map_or(Way::Plain, Way::Table);
    };
    let key = ContentKey::of_digest(digest);
    if distrusted.takes_own_tables()
        && let Some(manifest) = kept(shared, key).await
    {
        return Way::Table(Table::of_this_machine(key, manifest));
    }
    let length = known.remote.as_ref().ok().and_then(Remote::length);
    let heard = hearsay::ask(shared, key, length, distrusted).await;
    if let Some(table) = heard.table {
        return Way::Table(Table::of_peers(key, table, None));
    }
    let segments = fixed_segments(shared, known, heard.file_bytes);
    segments.map_or(Way::Plain, |segments| Way::Undescribed { key, segments })
}

/// Where segments lie without a table, if it is of any use that all agree on it: members fetch parts
/// each, so the origin must give parts, and of one version.
fn fixed_segments(shared: &Shared, known: &Known, peers_say: Option<u64>) -> Option<FixedSegments> {
    shared.exchange.as_ref()?;
    let length = match &known.remote {
        Ok(remote) => {
            let in_parts = remote.ranges == Ranges::Yes && remote.validator.is_some();
            remote.length().filter(|_| in_parts)
        }
        Err(_) => peers_say,
    };
    FixedSegments::of(length?)
}

/// The table of a version that only the origin vouches for, if this machine had it before.
async fn table_of_version(shared: &Shared, known: &Known) -> Option<Table> {
    let remote = known.remote.as_ref().ok();
    let remote = remote.filter(|remote| remote.validator.is_some())?;
    let key = plain::key_of_version(remote, remote.length()?);
    let manifest = kept(shared, key).await?;
    Some(Table {
        key,
        manifest,
        trust: Trust::Origin,
        peers: false,
        made_by: TableMaker::ThisMachine,
        came: None,
    })
}

/// The table that an earlier download of the same content left here.
pub(crate) async fn kept(shared: &Shared, key: ContentKey) -> Option<Arc<Manifest>> {
    if let Some(local) = shared.shelf.find(key).filter(|local| local.is_proved()) {
        return Some(Arc::clone(&local.manifest));
    }
    let store = shared.store.clone();
    let record = blocking(move || store.content(&key)).await.ok()??;
    Some(Arc::new(Manifest::decode(&record.manifest).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_wrong_about_a_table_is_not_asked_again_and_after_two_none_is_taken() {
        let mut distrusted = Distrusted::default();
        distrusted.refute(TableMaker::ThisMachine);
        assert!(distrusted.own_tables && distrusted.takes_tables());
        for number in 1..=2 {
            assert!(distrusted.takes_tables());
            let peer = PeerId::from_public_key([number; 32]);
            distrusted.refute(TableMaker::Peers(BTreeSet::from([peer])));
            assert!(distrusted.peers.contains(&peer));
        }
        assert!(!distrusted.takes_tables());
    }
}
