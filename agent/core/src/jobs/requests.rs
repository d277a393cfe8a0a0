//! What users ask for. A request is checked first and changes nothing when it is refused.

use super::file::File;
use super::files::Files;
use super::job::Job;
use super::pool::PoolKind;
use super::usage::within;
use super::{
    Caller, CancelCause, FileIndex, FileSpec, FileState, Happening, JobId, JobRecord, JobSpec,
    JobState, Jobs, Now, RemoteUrl, RequestError, Revision, SettingsChange, StateKind, Trigger,
    Writing, check, next,
};

/// What is asked of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// More files.
    AddFiles(Vec<FileSpec>),
    /// Go on, or try again now.
    Resume,
    /// Pause.
    Suspend,
    /// Give the files their names; drop what is not there yet.
    Complete,
    /// End it; drop all that has no name yet.
    Cancel,
    /// Other settings; transfers that run go on with the old ones, unless the job goes to the foreground or comes
    /// from there.
    Set(Box<SettingsChange>),
    /// Another URL for one file.
    ReplaceUrl {
        /// Which.
        file: FileIndex,
        /// The new one.
        url: RemoteUrl,
    },
    /// Another beginning for the URLs of all files that are not there yet.
    ReplacePrefix {
        /// What they begin with now.
        from: String,
        /// What they are to begin with.
        to: String,
    },
}

impl Request {
    /// Its row in the table.
    pub fn trigger(&self) -> Trigger {
        match self {
            Self::AddFiles(_) => Trigger::AddFiles,
            Self::Resume => Trigger::Resume,
            Self::Suspend => Trigger::Suspend,
            Self::Complete => Trigger::Complete,
            Self::Cancel => Trigger::Cancel,
            Self::Set(_) => Trigger::Set,
            Self::ReplaceUrl { .. } | Self::ReplacePrefix { .. } => Trigger::ReplaceUrl,
        }
    }
}

impl Jobs {
    /// A new job, suspended, or queued when the spec says so.
    ///
    /// # Errors
    ///
    /// [`RequestError::Spec`], `Quota`, or `EmptyJob` for one that is to start without files.
    pub fn handle_create(
        &mut self,
        now: Now,
        caller: Caller,
        spec: JobSpec,
    ) -> Result<JobId, RequestError> {
        check::settings(&spec.settings)?;
        self.check_files(caller.user, caller.administrates, None, &spec.files)?;
        if spec.start && spec.files.is_empty() {
            return Err(RequestError::EmptyJob);
        }
        let id = self.counters.next_job;
        self.counters.next_job.0 += 1;
        let record = JobRecord {
            id,
            owner: caller.user,
            exempt: caller.administrates,
            kind: spec.kind,
            settings: spec.settings,
            state: JobState::Suspended,
            since: now.time,
            revision: Revision(0),
            created: now.wall,
            touched: now.time,
            active: std::time::Duration::ZERO,
            failing_since: None,
            files: 0,
        };
        self.usage.add_job(caller.user, id, true);
        self.jobs.insert(id, Job::new(record, Files::default()));
        self.log(now, id, Happening::Created);
        self.push_files(now, id, spec.files);
        if spec.start {
            self.resume(now, id);
        }
        self.finish(now);
        Ok(id)
    }

    /// Asks something of a job. `expected` is the revision that the caller has seen, if it matters to him;
    /// the answer is the one after it.
    ///
    /// # Errors
    ///
    /// [`RequestError`], and nothing has changed.
    pub fn handle_request(
        &mut self,
        now: Now,
        caller: Caller,
        id: JobId,
        expected: Option<Revision>,
        request: Request,
    ) -> Result<Revision, RequestError> {
        self.check_request(caller, id, expected, request.trigger())?;
        match request {
            Request::AddFiles(files) => self.add_files(now, id, files)?,
            Request::Resume => self.check_not_empty(id).map(|()| self.resume(now, id))?,
            Request::Suspend => self.suspend(now, id),
            Request::Complete => {
                self.check_not_empty(id)?;
                self.revise(now, id);
                self.complete(now, id);
            }
            Request::Cancel => self.cancel(now, id, Trigger::Cancel, CancelCause::Request),
            Request::Set(change) => self.set(now, id, *change)?,
            Request::ReplaceUrl { file, url } => self.replace_url(now, id, file, url)?,
            Request::ReplacePrefix { from, to } => self.replace_prefix(now, id, &from, &to)?,
        }
        self.finish(now);
        Ok(self
            .jobs
            .get(&id)
            .map_or(Revision(0), |job| job.record.revision))
    }

    /// A job that `caller` may see.
    pub(super) fn visible(&self, caller: Caller, id: JobId) -> Result<&Job, RequestError> {
        let job = self.jobs.get(&id);
        job.filter(|job| caller.may_see(job.record.owner))
            .ok_or(RequestError::NoSuchJob(id))
    }

    fn check_request(
        &self,
        caller: Caller,
        id: JobId,
        expected: Option<Revision>,
        request: Trigger,
    ) -> Result<(), RequestError> {
        let job = self.visible(caller, id)?;
        let actual = job.record.revision;
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            return Err(RequestError::RevisionMismatch { expected, actual });
        }
        let state = job.kind();
        if next(state, request).is_none() {
            return Err(RequestError::WrongState { state, request });
        }
        match job.record.state {
            JobState::Transferred { placing: Some(_) } => Err(RequestError::Placing),
            JobState::Transferred { placing: None }
            | JobState::Suspended
            | JobState::Queued
            | JobState::Connecting
            | JobState::Transferring
            | JobState::TransientError { .. }
            | JobState::Error { .. }
            | JobState::Acknowledged { .. }
            | JobState::Cancelled { .. } => Ok(()),
        }
    }

    fn check_not_empty(&self, id: JobId) -> Result<(), RequestError> {
        match self.jobs.get(&id) {
            Some(job) if job.files.len() > 0 => Ok(()),
            Some(_) | None => Err(RequestError::EmptyJob),
        }
    }

    /// Whether these files may come to a job, or to one that is to be made.
    fn check_files(
        &self,
        owner: super::UserId,
        exempt: bool,
        job: Option<&Job>,
        files: &[FileSpec],
    ) -> Result<(), RequestError> {
        check::files(&job.map(|job| job.files.paths()).unwrap_or_default(), files)?;
        if exempt {
            return Ok(());
        }
        let present = job.map_or(0, |job| job.files.len());
        let quota = &self.config.quota;
        within("files of a job", present + files.len(), quota.files_per_job)?;
        self.usage
            .admits(quota, owner, usize::from(job.is_none()), files.len())
    }

    fn add_files(&mut self, now: Now, id: JobId, files: Vec<FileSpec>) -> Result<(), RequestError> {
        if files.is_empty() {
            return Ok(());
        }
        let Some(job) = self.jobs.get(&id) else {
            return Err(RequestError::NoSuchJob(id));
        };
        self.check_files(job.record.owner, job.record.exempt, Some(job), &files)?;
        let was_done = job.kind() == StateKind::Transferred;
        self.push_files(now, id, files);
        if was_done {
            self.queue(now, id, Trigger::AddFiles);
        }
        self.log(now, id, Happening::Changed);
        Ok(())
    }

    fn push_files(&mut self, now: Now, id: JobId, files: Vec<FileSpec>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        self.usage.add_files(job.record.owner, files.len());
        let touch = self.touched.entry(id).or_default();
        for spec in files {
            touch.files.extend(job.files.push(File::new(spec)));
        }
        job.record.files = u32::try_from(job.files.len()).unwrap_or(u32::MAX);
        self.revise(now, id);
    }

    /// All that failed is tried again, and all timeouts begin anew.
    fn resume(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let kind = job.kind();
        let again = job.files.to_try_again();
        if kind.is_scheduled() && again.is_empty() {
            return;
        }
        job.record.failing_since = None;
        if kind == StateKind::Error {
            job.record.active = std::time::Duration::ZERO;
        }
        for index in again {
            self.change_file(id, index, |file| {
                file.record.state = FileState::Waiting;
                file.record.failures = 0;
            });
        }
        self.revise(now, id);
        if !kind.is_scheduled() {
            self.queue(now, id, Trigger::Resume);
        }
    }

    /// To the end of its equals.
    fn queue(&mut self, now: Now, id: JobId, by: Trigger) {
        let ticket = self.draw_ticket();
        if let Some(job) = self.jobs.get_mut(&id) {
            job.ticket = ticket;
        }
        self.enter(now, id, by, JobState::Queued);
    }

    fn suspend(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if job.kind() != StateKind::Suspended {
            self.stop_all(id);
            self.revise(now, id);
            self.enter(now, id, Trigger::Suspend, JobState::Suspended);
        }
    }

    fn set(&mut self, now: Now, id: JobId, change: SettingsChange) -> Result<(), RequestError> {
        let Some(job) = self.jobs.get_mut(&id) else {
            return Err(RequestError::NoSuchJob(id));
        };
        let settings = job.record.settings.with(change);
        check::settings(&settings)?;
        if settings == job.record.settings {
            return Ok(());
        }
        let before = job.record.settings.priority;
        let priority = settings.priority;
        job.record.settings = settings;
        if before != priority {
            self.next_ticket += 1;
            job.ticket = self.next_ticket;
        }
        // A transfer keeps its place among its kind, foreground or background, until it ends.
        if PoolKind::of(before) != PoolKind::of(priority) {
            self.stop_all(id);
        }
        self.revise(now, id);
        self.log(now, id, Happening::Changed);
        Ok(())
    }

    fn replace_url(
        &mut self,
        now: Now,
        id: JobId,
        index: FileIndex,
        url: RemoteUrl,
    ) -> Result<(), RequestError> {
        let file = self.jobs.get(&id).and_then(|job| job.files.get(index));
        let Some(file) = file else {
            return Err(RequestError::NoSuchFile {
                job: id,
                file: index,
            });
        };
        if !file.is_unfinished() {
            return Err(RequestError::FileFinished(index));
        }
        self.fetch_from(id, index, url);
        self.revise(now, id);
        self.log(now, id, Happening::Changed);
        Ok(())
    }

    fn replace_prefix(
        &mut self,
        now: Now,
        id: JobId,
        from: &str,
        to: &str,
    ) -> Result<(), RequestError> {
        let Some(job) = self.jobs.get(&id) else {
            return Err(RequestError::NoSuchJob(id));
        };
        let unfinished = job.files.iter().filter(|(_, file)| file.is_unfinished());
        let replaced = unfinished.filter_map(|(index, file)| {
            let rest = file.record.spec.url.expose().strip_prefix(from)?;
            Some(RemoteUrl::new(format!("{to}{rest}")).map(|url| (index, url)))
        });
        let replaced = replaced.collect::<Result<Vec<_>, _>>()?;
        if replaced.is_empty() {
            return Err(RequestError::PrefixNotFound);
        }
        for (index, url) in replaced {
            self.fetch_from(id, index, url);
        }
        self.revise(now, id);
        self.log(now, id, Happening::Changed);
        Ok(())
    }

    /// The file is fetched from `url`, as soon as its job runs; what is here of it is kept.
    fn fetch_from(&mut self, id: JobId, index: FileIndex, url: RemoteUrl) {
        self.stop(id, index);
        self.change_file(id, index, |file| {
            file.record.spec.url = url;
            file.record.state = FileState::Waiting;
            file.record.failures = 0;
        });
        self.touch(id, Writing::Not);
    }
}
