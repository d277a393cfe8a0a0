//! A shell without a network or a disk: carries out what jobs ask for, and checks at each step what must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::super::pool::PoolKind;
use super::*;

pub(super) const ALICE: Caller = Caller {
    user: UserId(1000),
    administrates: false,
};
pub(super) const BOB: Caller = Caller {
    user: UserId(1001),
    administrates: false,
};
pub(super) const ROOT: Caller = Caller {
    user: UserId::ROOT,
    administrates: true,
};

/// What a power cut leaves.
#[derive(Debug, Clone, Default)]
pub(super) struct Journal {
    pub(super) counters: Counters,
    pub(super) jobs: BTreeMap<JobId, JobRecord>,
    pub(super) files: BTreeMap<(JobId, FileIndex), FileRecord>,
    pub(super) notifications: BTreeMap<NotificationId, NotificationRecord>,
}

#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) attempt: Attempt,
    pub(super) stopping: bool,
    pub(super) order: Order,
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Place {
    from: PathBuf,
    again: bool,
}

pub(super) struct World {
    pub(super) jobs: Jobs,
    pub(super) setup: Setup,
    pub(super) now: Now,
    pub(super) journal: Journal,
    pub(super) transfers: BTreeMap<(JobId, FileIndex), Transfer>,
    pub(super) places: BTreeMap<(JobId, FileIndex), Place>,
    pub(super) discards: BTreeSet<(JobId, FileIndex)>,
    pub(super) notifications: BTreeMap<NotificationId, Notification>,
    pub(super) started: Vec<(JobId, FileIndex)>,
    /// Files under their hidden names.
    staged: BTreeSet<PathBuf>,
    /// Files whose staged copy somebody removed, which the shell has said.
    lost: BTreeSet<(JobId, FileIndex)>,
    told: BTreeSet<NotificationId>,
    /// The power goes after so many actions.
    pub(super) power: Option<usize>,
}

pub(super) fn at(seconds: u64) -> Now {
    Now {
        time: JobTime::since_epoch(Duration::from_secs(seconds)),
        wall: UnixSeconds(1_700_000_000 + seconds),
    }
}

pub(super) fn small() -> Setup {
    let parallel = Parallel {
        background_jobs: 2,
        files_per_job: 2,
        background_files: 3,
        foreground_files: 2,
    };
    Setup {
        config: Config {
            parallel,
            ..Config::default()
        },
        seed: 1,
        network_up: true,
    }
}

pub(super) fn file(number: u64) -> FileSpec {
    FileSpec {
        url: RemoteUrl::new(format!("https://origin/{number}")).expect("a URL"),
        path: TargetPath::new(format!("/srv/{number}")).expect("a path"),
        ranges: Vec::new(),
        digest: None,
        without_manifest: false,
    }
}

/// A job of so many files that starts at once.
pub(super) fn spec(files: u64, priority: Priority) -> JobSpec {
    JobSpec {
        kind: JobKind::Download,
        settings: Settings {
            priority,
            ..Settings::default()
        },
        files: (0..files).map(file).collect(),
        start: true,
    }
}

pub(super) fn trouble() -> Trouble {
    Trouble::new(ErrorContext::Transport, "connection reset")
}

pub(super) fn transient() -> Event {
    Event::Failed(Failure::Transient {
        trouble: trouble(),
        retry_after: None,
    })
}

pub(super) fn permanent() -> Event {
    let trouble = Trouble::new(ErrorContext::RemoteFile, "404 Not Found");
    Event::Failed(Failure::Permanent { trouble })
}

pub(super) fn proof() -> Proof {
    Proof {
        content: branchline_hashing::ContentKey::from_bytes([7; 32]),
        trust: Trust::Manifest,
    }
}

pub(super) fn staged() -> Event {
    let sources = BySource {
        from_origin: 100,
        ..BySource::default()
    };
    Event::Staged {
        bytes: 100,
        sources,
        proof: proof(),
    }
}

impl World {
    pub(super) fn new(setup: Setup) -> Self {
        Self {
            jobs: Jobs::new(at(0), setup),
            setup,
            now: at(0),
            journal: Journal::default(),
            transfers: BTreeMap::new(),
            places: BTreeMap::new(),
            discards: BTreeSet::new(),
            notifications: BTreeMap::new(),
            started: Vec::new(),
            staged: BTreeSet::new(),
            lost: BTreeSet::new(),
            told: BTreeSet::new(),
            power: None,
        }
    }

    pub(super) fn create(&mut self, caller: Caller, spec: JobSpec) -> Result<JobId, RequestError> {
        let id = self.jobs.handle_create(self.now, caller, spec);
        self.drain();
        id
    }

    pub(super) fn ask(&mut self, id: JobId, request: Request) -> Result<Revision, RequestError> {
        let answer = self.jobs.handle_request(self.now, ROOT, id, None, request);
        self.drain();
        answer
    }

    /// Tells what happened to the transfer of a file.
    pub(super) fn tell(&mut self, id: JobId, index: FileIndex, event: Event) {
        let key = (id, index);
        let transfer = self.transfers.get_mut(&key).expect("a transfer");
        let attempt = transfer.attempt;
        match &event {
            Event::Progress { bytes, .. } => transfer.bytes = *bytes,
            Event::Connected { .. } | Event::Live(_) | Event::Notice(_) => {}
            Event::Staged { .. } => {
                self.staged.insert(transfer.order.staged.clone());
                self.transfers.remove(&key);
            }
            Event::Modified | Event::Failed(_) | Event::Stopped => {
                self.transfers.remove(&key);
            }
        }
        self.jobs.handle_event(self.now, id, index, attempt, event);
        self.drain();
    }

    pub(super) fn progress(&mut self, id: JobId, index: FileIndex) {
        let bytes = self.transfers[&(id, index)].bytes + 10;
        let sources = BySource {
            from_origin: bytes,
            ..BySource::default()
        };
        self.tell(id, index, Event::Progress { bytes, sources });
    }

    /// Answers all that are being stopped.
    pub(super) fn let_stop(&mut self) {
        while let Some(key) = self.first_transfer(|transfer| transfer.stopping) {
            self.tell(key.0, key.1, Event::Stopped);
        }
    }

    pub(super) fn first_transfer(
        &self,
        wanted: impl Fn(&Transfer) -> bool,
    ) -> Option<(JobId, FileIndex)> {
        let mut all = self.transfers.iter();
        all.find(|(_, transfer)| wanted(transfer))
            .map(|(key, _)| *key)
    }

    pub(super) fn answer_place(&mut self, key: (JobId, FileIndex), failure: Option<Staging>) {
        let (id, index) = key;
        let place = self.places.remove(&key).expect("a place");
        let trouble = Trouble::new(ErrorContext::LocalFile, "read-only file system");
        // Done before the restart: that cannot fail any more.
        let done = place.again && !self.staged.contains(&place.from);
        match failure.filter(|_| !done) {
            None => {
                let is_there = self.staged.remove(&place.from);
                assert!(is_there || place.again, "the staged file is there");
                self.jobs.handle_placed(self.now, id, index);
            }
            Some(staging) => {
                if staging == Staging::Lost {
                    self.staged.remove(&place.from);
                    self.lost.insert(key);
                }
                let staged = staging;
                let failure = PlaceFailure { trouble, staged };
                self.jobs.handle_place_failed(self.now, id, index, failure);
            }
        }
        self.drain();
    }

    pub(super) fn answer_discard(&mut self, key: (JobId, FileIndex)) {
        self.discards.remove(&key);
        self.jobs.handle_discarded(self.now, key.0, key.1);
        self.drain();
    }

    pub(super) fn answer_notification(&mut self, id: NotificationId, delivered: bool) {
        self.notifications.remove(&id);
        self.told.insert(id);
        if delivered {
            self.jobs.handle_notified(self.now, id);
        } else {
            self.jobs.handle_notify_failed(self.now, id);
        }
        self.drain();
    }

    pub(super) fn network(&mut self, up: bool) {
        self.setup.network_up = up;
        self.jobs.handle_network(self.now, up);
        self.drain();
    }

    /// Time goes by, and each deadline in it is kept.
    pub(super) fn pass(&mut self, span: Duration) {
        let end = self.now.time.after(span);
        while let Some((due, _)) = self.jobs.next_deadline().filter(|(due, _)| *due <= end) {
            self.jump(due.since(self.now.time));
        }
        self.set_time(end);
    }

    /// Time jumps, as over a sleep of the machine.
    pub(super) fn jump(&mut self, span: Duration) {
        self.set_time(self.now.time.after(span));
        let cut = self.power.is_some();
        self.jobs.handle_timeout(self.now);
        self.drain();
        let next = self.jobs.next_deadline();
        let over = next.is_some_and(|(at, _)| at <= self.now.time);
        assert!(cut || !over, "{next:?} is over");
    }

    fn set_time(&mut self, time: JobTime) {
        self.now = at(time.elapsed().as_secs());
        self.now.time = time;
    }

    /// The agent dies and starts again from the journal. Places that were under way are done for
    /// every other file.
    pub(super) fn restart(&mut self) {
        self.transfers.clear();
        self.discards.clear();
        self.told.extend(self.notifications.keys());
        self.notifications.clear();
        for (at, (_, place)) in std::mem::take(&mut self.places).into_iter().enumerate() {
            if at % 2 == 0 {
                self.staged.remove(&place.from);
            }
        }
        let records = self.journal.clone().records();
        self.jobs = Jobs::restore(self.now, self.setup, records).expect("a sound journal");
        self.drain();
    }

    pub(super) fn job(&self, id: JobId) -> JobView {
        let view = self.jobs.view(self.now, ROOT, id, FileIndex(0), 100);
        view.expect("a job")
    }

    pub(super) fn kind(&self, id: JobId) -> StateKind {
        self.job(id).summary.state
    }

    pub(super) fn file_states(&self, id: JobId) -> Vec<std::borrow::Cow<'static, str>> {
        let files = self.job(id).file_page.into_iter();
        files.map(|file| file.state).collect()
    }

    /// Carries out the actions of one input.
    fn drain(&mut self) {
        let mut effects = false;
        let mut done = 0;
        while let Some(action) = self.jobs.poll_action() {
            if self.power.is_some_and(|power| done >= power) {
                self.power = None;
                return self.restart();
            }
            done += 1;
            match action {
                Action::Persist(changes) => {
                    assert!(!effects, "what must last is written first");
                    self.write(changes);
                }
                effect @ (Action::Start { .. }
                | Action::Stop { .. }
                | Action::Place { .. }
                | Action::Discard { .. }
                | Action::Notify(_)) => {
                    effects = true;
                    self.carry_out(effect);
                }
            }
        }
        if self.power.take().is_some() {
            return self.restart();
        }
        super::random::check(self);
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Persist(_) => unreachable!("not an effect"),
            Action::Start {
                job,
                file,
                attempt,
                order,
            } => self.start(job, file, attempt, *order),
            Action::Stop { job, file, attempt } => {
                let transfer = self.transfers.get_mut(&(job, file));
                let transfer = transfer.expect("only what runs is stopped");
                assert_eq!(transfer.attempt, attempt);
                assert!(!transfer.stopping, "stopped once");
                transfer.stopping = true;
            }
            Action::Place {
                job,
                file,
                from,
                again,
                ..
            } => {
                assert_eq!(self.journal.files[&(job, file)].state, FileState::Placing);
                let place = Place { from, again };
                assert!(
                    self.places.insert((job, file), place).is_none(),
                    "placed once"
                );
            }
            Action::Discard {
                job, file, staged, ..
            } => {
                let state = &self.journal.files[&(job, file)].state;
                assert_eq!(*state, FileState::Dropped { discarded: false });
                assert!(!self.transfers.contains_key(&(job, file)));
                self.staged.remove(&staged);
                self.discards.insert((job, file));
            }
            Action::Notify(notification) => {
                let id = notification.record.id;
                assert!(self.journal.notifications.contains_key(&id));
                assert!(notification.may_be_repeated || !self.told.contains(&id));
                self.notifications.insert(id, *notification);
                assert!(self.notifications.len() <= NOTIFY_AT_ONCE);
            }
        }
    }

    fn start(&mut self, job: JobId, file: FileIndex, attempt: Attempt, order: Order) {
        assert!(self.setup.network_up, "nothing starts without a network");
        let key = (job, file);
        let state = &self.journal.files[&key].state;
        let is_finished = matches!(state, FileState::Staged | FileState::InPlace);
        assert!(!is_finished, "what is there is not fetched again");
        self.started.push(key);
        let transfer = Transfer {
            attempt,
            stopping: false,
            order,
            bytes: 0,
        };
        let before = self.transfers.insert(key, transfer);
        assert!(before.is_none(), "one transfer of a file at a time");
        let parallel = self.setup.config.parallel;
        for (kind, most) in [
            (PoolKind::Foreground, parallel.foreground_files),
            (PoolKind::Background, parallel.background_files),
        ] {
            let all = self.transfers.values();
            let of_kind = all.filter(|it| PoolKind::of(it.order.priority) == kind);
            assert!(of_kind.count() <= most, "{kind:?} has its bound");
        }
        let of_job = self.transfers.iter();
        let of_job = of_job.filter(|((id, _), transfer)| *id == job && !transfer.stopping);
        assert!(of_job.count() <= parallel.files_per_job);
    }

    fn write(&mut self, changes: Vec<Change>) {
        let cancelled: BTreeSet<JobId> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Job(job) => Some((job.id, job.state.kind())),
                Change::Counters(_)
                | Change::File(..)
                | Change::ForgetJob { .. }
                | Change::Notification(_)
                | Change::ForgetNotification(_) => None,
            })
            .filter(|(_, kind)| *kind == StateKind::Cancelled)
            .map(|(id, _)| id)
            .collect();
        for change in changes {
            if let Change::File(job, index, file) = &change {
                let key = (*job, *index);
                let before = self.journal.files.get(&key).map(|file| &file.state);
                let lost = self.lost.remove(&key);
                let may_drop = cancelled.contains(job);
                assert_not_lost(before, &file.state, lost, may_drop);
            }
            self.journal.apply(change);
        }
    }
}

/// A finished file stays finished.
fn assert_not_lost(before: Option<&FileState>, after: &FileState, lost: bool, may_drop: bool) {
    let dropped = matches!(after, FileState::Dropped { .. });
    let kept = match before {
        Some(FileState::Staged) => {
            matches!(after, FileState::Staged | FileState::Placing) || (dropped && may_drop)
        }
        Some(FileState::Placing) => {
            matches!(after, FileState::InPlace | FileState::Staged)
                || (*after == FileState::Waiting && lost)
        }
        Some(FileState::InPlace) => *after == FileState::InPlace,
        Some(FileState::Dropped { .. }) => dropped,
        Some(FileState::Waiting | FileState::RetryLater { .. } | FileState::Failed { .. }) => {
            *after != FileState::InPlace
        }
        None => *after == FileState::Waiting,
    };
    assert!(kept, "{before:?} -> {after:?}");
}

impl Journal {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Counters(counters) => self.counters = counters,
            Change::Job(job) => {
                assert!(!job.state.kind().is_active(), "the journal has no turns");
                self.jobs.insert(job.id, *job);
            }
            Change::File(job, index, file) => {
                self.files.insert((job, index), *file);
            }
            Change::ForgetJob { job, files } => {
                assert!(self.jobs.remove(&job).is_some());
                for index in (0..files).map(FileIndex) {
                    assert!(self.files.remove(&(job, index)).is_some());
                }
            }
            Change::Notification(record) => {
                self.notifications.insert(record.id, *record);
            }
            Change::ForgetNotification(id) => {
                assert!(self.notifications.remove(&id).is_some());
            }
        }
    }

    pub(super) fn records(self) -> Records {
        let files = self.files.into_iter();
        Records {
            counters: self.counters,
            jobs: self.jobs.into_values().collect(),
            files: files
                .map(|((job, index), file)| (job, index, file))
                .collect(),
            notifications: self.notifications.into_values().collect(),
        }
    }
}
