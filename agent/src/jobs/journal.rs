//! Jobs on the disk: one note of the store for each job, file and notification.
//!
//! | key | value, sealed |
//! |---|---|
//! | `jobs/format` | [`FORMAT_VERSION`], from the first opening on |
//! | `jobs/clock` | [`ClockRecord`]: with each write, and each minute |
//! | `jobs/counters` | the numbers that are given next |
//! | `jobs/job/ID` | a job without its files |
//! | `jobs/file/ID/INDEX` | one of its files |
//! | `jobs/notification/ID` | what nobody is known to have been told |
//!
//! Numbers are hexadecimal with leading zeros, values JSON. What belongs together is written together and synced;
//! a record is replaced, never appended to, so that nothing grows but with the number of jobs.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use branchline_core::jobs::{
    Change, Counters, FileIndex, FileRecord, JobId, JobRecord, NotificationRecord, Records,
};
use branchline_store::{NoteChange, Store, StoreError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::clock::ClockRecord;
use super::sealing::{KeyError, Sealer};

const FORMAT: &str = "jobs/format";
const CLOCK: &str = "jobs/clock";
const COUNTERS: &str = "jobs/counters";
const JOBS: &str = "jobs/job/";
const FILES: &str = "jobs/file/";
const NOTIFICATIONS: &str = "jobs/notification/";

/// Of the records. One that has more fields than are known is read all the same; another version is for records that
/// must not be read as if they were of this one.
const FORMAT_VERSION: u32 = 1;

/// Why jobs are not read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The key of the records.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The index, or its disk.
    #[error("the journal of jobs: {}", of_journal(.0))]
    Store(#[from] StoreError),
    /// A later program has been here.
    #[error(
        "the journal of jobs has format {found}, and this program knows {FORMAT_VERSION}; use the program that wrote it, or another state directory"
    )]
    OtherFormat {
        /// What the journal says.
        found: u32,
    },
    /// A record that cannot be made.
    #[error("the journal of jobs: {0}")]
    Record(#[from] io::Error),
}

impl JournalError {
    /// Whether writing goes on by itself when the disk has room. All else lasts until the store is opened anew.
    pub(super) fn mends_itself(&self) -> bool {
        matches!(self, Self::Store(StoreError::NoSpace { .. }))
    }
}

/// The index holds more than segments, without which one could do.
fn of_journal(error: &StoreError) -> String {
    if let StoreError::NoSpace { dir, .. } = error {
        let dir = dir.display();
        return format!("no room in {dir}: the disk is full; free some space");
    }
    error.to_string()
}

/// The journal of one agent.
pub(super) struct Journal {
    store: Store,
    sealer: Sealer,
}

/// What it held.
pub(super) struct Loaded {
    pub(super) records: Records,
    pub(super) clock: Option<ClockRecord>,
}

impl Journal {
    /// Opens it. Blocks.
    pub(super) fn open(store: Store, state_dir: &Path) -> Result<Self, JournalError> {
        let sealer = Sealer::open(state_dir)?;
        let journal = Self { store, sealer };
        match journal.one::<u32>(FORMAT)? {
            Some(FORMAT_VERSION) => {}
            Some(found) => return Err(JournalError::OtherFormat { found }),
            None => {
                let note = journal.put(FORMAT.into(), &FORMAT_VERSION)?;
                journal.store.change_notes(&[note])?;
            }
        }
        Ok(journal)
    }

    /// All that it holds. A record that is damaged is left where it is, and so is a job that has not all its
    /// records: that is an error in the log, and no reason to lose the others. Blocks.
    pub(super) fn load(&self) -> Result<Loaded, JournalError> {
        let mut jobs: BTreeMap<JobId, JobRecord> = BTreeMap::new();
        self.each(JOBS, |job: JobRecord, _| {
            jobs.insert(job.id, job);
        })?;
        let mut files: BTreeMap<JobId, Vec<(FileIndex, FileRecord)>> = BTreeMap::new();
        self.each(FILES, |file: FileRecord, name| {
            if let Some((job, index)) = file_of(name) {
                files.entry(job).or_default().push((index, file));
            }
        })?;
        let mut notifications: Vec<NotificationRecord> = Vec::new();
        self.each(NOTIFICATIONS, |notification, _| {
            notifications.push(notification)
        })?;
        jobs.retain(|id, job| {
            let found = files.get(id).map_or(0, Vec::len);
            let whole = found == job.files as usize;
            if !whole {
                tracing::error!(job = %id, found, expected = job.files, "a job is left out: records of its files are damaged");
            }
            whole
        });
        let of_jobs = files.into_iter().filter(|(id, _)| jobs.contains_key(id));
        let files = of_jobs
            .flat_map(|(id, files)| {
                files
                    .into_iter()
                    .map(move |(index, file)| (id, index, file))
            })
            .collect();
        let records = Records {
            counters: self.one(COUNTERS)?.unwrap_or_default(),
            jobs: jobs.into_values().collect(),
            files,
            notifications,
        };
        Ok(Loaded {
            records,
            clock: self.one(CLOCK)?,
        })
    }

    /// Writes these, all or none; on disk when this returns. Blocks.
    pub(super) fn write(
        &self,
        changes: &[Change],
        clock: &ClockRecord,
    ) -> Result<(), JournalError> {
        let mut notes = vec![self.put(CLOCK.into(), clock)?];
        for change in changes {
            self.add(change, &mut notes)?;
        }
        Ok(self.store.change_notes(&notes)?)
    }

    fn add(&self, change: &Change, notes: &mut Vec<NoteChange>) -> io::Result<()> {
        match change {
            Change::Counters(counters) => {
                notes.push(self.put::<Counters>(COUNTERS.into(), counters)?)
            }
            Change::Job(job) => notes.push(self.put(job_key(job.id), job)?),
            Change::File(job, index, file) => notes.push(self.put(file_key(*job, *index), file)?),
            Change::ForgetJob { job, files } => {
                let of_files = (0..*files).map(|index| file_key(*job, FileIndex(index)));
                let keys = of_files.chain([job_key(*job)]);
                notes.extend(keys.map(|key| NoteChange::Remove { key }));
            }
            Change::Notification(notification) => {
                let key = format!("{NOTIFICATIONS}{:016x}", notification.id.0);
                notes.push(self.put(key, notification)?);
            }
            Change::ForgetNotification(id) => {
                let key = format!("{NOTIFICATIONS}{:016x}", id.0);
                notes.push(NoteChange::Remove { key });
            }
        }
        Ok(())
    }

    fn put<T: Serialize>(&self, key: String, record: &T) -> io::Result<NoteChange> {
        let text = serde_json::to_vec(record)?;
        let value = self.sealer.seal(&key, &text)?;
        Ok(NoteChange::Put { key, value })
    }

    fn one<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, JournalError> {
        let note = self.store.note(key)?;
        Ok(note.and_then(|sealed| self.read(key, &sealed)))
    }

    fn each<T: DeserializeOwned>(
        &self,
        prefix: &str,
        mut found: impl FnMut(T, &str),
    ) -> Result<(), JournalError> {
        self.store.each_note(prefix, |key, sealed| {
            if let Some(record) = self.read(key, sealed) {
                found(record, &key[prefix.len()..]);
            }
        })?;
        Ok(())
    }

    fn read<T: DeserializeOwned>(&self, key: &str, sealed: &[u8]) -> Option<T> {
        let Some(text) = self.sealer.unseal(key, sealed) else {
            tracing::error!(
                key,
                "a record of the jobs is damaged, or was sealed with another key"
            );
            return None;
        };
        serde_json::from_slice(&text)
            .inspect_err(
                |error| tracing::error!(key, %error, "a record of the jobs is not readable"),
            )
            .ok()
    }
}

fn job_key(job: JobId) -> String {
    format!("{JOBS}{:016x}", job.0)
}

fn file_key(job: JobId, index: FileIndex) -> String {
    format!("{FILES}{:016x}/{:08x}", job.0, index.0)
}

/// Whose file, and which, by what stands after the prefix.
fn file_of(name: &str) -> Option<(JobId, FileIndex)> {
    let (job, index) = name.split_once('/')?;
    let job = u64::from_str_radix(job, 16).ok()?;
    let index = u32::from_str_radix(index, 16).ok()?;
    Some((JobId(job), FileIndex(index)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use branchline_core::jobs::{
        Action, Caller, Config, FileSpec, JobSpec, JobTime, Jobs, Now, RemoteUrl, Setup,
        TargetPath, UnixSeconds, UserId,
    };
    use branchline_store::StoreOptions;

    use super::*;
    use crate::jobs::clock::JobClock;

    const NOW: Now = Now {
        time: JobTime::since_epoch(Duration::from_secs(1)),
        wall: UnixSeconds(1),
    };

    const SETUP: fn() -> Setup = || Setup {
        config: Config::default(),
        seed: 1,
        network_up: false,
    };

    fn open(dir: &Path) -> Journal {
        let store = Store::open(dir.join("store"), StoreOptions::new(64 << 20)).expect("a store");
        Journal::open(store, dir).expect("a journal")
    }

    fn spec(number: u32) -> JobSpec {
        let file = |index: u32| FileSpec {
            url: RemoteUrl::new("https://me:hunter2@origin/f").expect("a URL"),
            path: TargetPath::new(format!("/f/{number}-{index}")).expect("a path"),
            ranges: Vec::new(),
            digest: None,
            without_manifest: false,
        };
        let text = r#"{"settings": {"name": "one"}}"#;
        JobSpec {
            files: vec![file(0), file(1)],
            ..serde_json::from_str(text).expect("a job")
        }
    }

    /// Three jobs of two files each, on the disk.
    fn three_jobs(journal: &Journal) {
        let mut jobs = Jobs::new(NOW, SETUP());
        for number in 0..3 {
            jobs.handle_create(NOW, Caller::of(UserId(7)), spec(number))
                .expect("created");
        }
        let clock = JobClock::from(None).record();
        while let Some(action) = jobs.poll_action() {
            let Action::Persist(changes) = action else {
                panic!("{action:?}")
            };
            journal.write(&changes, &clock).expect("written");
        }
    }

    fn ids(loaded: Loaded) -> Vec<u64> {
        let jobs = loaded.records.jobs.iter().map(|job| job.id.0).collect();
        Jobs::restore(NOW, SETUP(), loaded.records).expect("records that belong together");
        jobs
    }

    #[test]
    fn what_was_written_is_there_again_and_not_in_the_clear() {
        let dir = tempfile::tempdir().expect("a folder");
        three_jobs(&open(dir.path()));
        let journal = open(dir.path());
        let loaded = journal.load().expect("read");
        assert!(loaded.clock.is_some());
        assert_eq!(loaded.records.counters.next_job, JobId(4));
        assert_eq!(ids(loaded), [1, 2, 3]);
        journal
            .store
            .each_note("jobs/", |_, value| {
                assert!(!value.windows(7).any(|window| window == b"hunter2"));
            })
            .expect("read");
    }

    #[test]
    fn a_damaged_record_costs_its_own_job_and_stays_where_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let journal = open(dir.path());
        three_jobs(&journal);
        let key = file_key(JobId(2), FileIndex(1));
        let mut value = journal.store.note(&key).expect("read").expect("there");
        value[20] ^= 1;
        journal.store.put_note(&key, &value).expect("put");
        assert_eq!(ids(journal.load().expect("read")), [1, 3]);
        assert_eq!(journal.store.note(&key).expect("read"), Some(value));
    }

    #[test]
    fn a_journal_of_a_later_program_is_not_touched() {
        let dir = tempfile::tempdir().expect("a folder");
        let journal = open(dir.path());
        three_jobs(&journal);
        let later = journal.put(FORMAT.into(), &2_u32).expect("a record");
        journal.store.change_notes(&[later]).expect("written");
        let store = journal.store.clone();
        let opened = Journal::open(store, dir.path());
        assert!(matches!(
            opened,
            Err(JournalError::OtherFormat { found: 2 })
        ));
    }

    #[test]
    fn a_record_in_another_ones_place_is_none() {
        let dir = tempfile::tempdir().expect("a folder");
        let journal = open(dir.path());
        three_jobs(&journal);
        let first = journal
            .store
            .note(&job_key(JobId(1)))
            .expect("read")
            .expect("there");
        journal
            .store
            .put_note(&job_key(JobId(2)), &first)
            .expect("put");
        assert_eq!(ids(journal.load().expect("read")), [1, 3]);
    }
}
