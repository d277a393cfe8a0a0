//! Random requests, events, restarts and power cuts; and what must hold after each.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::super::job::Job;
use super::super::pool::PoolKind;
use super::world::*;
use super::*;

#[derive(Debug, Clone)]
enum Step {
    Create {
        files: u64,
        priority: Priority,
        auto_complete: bool,
        start: bool,
        never_retries: bool,
    },
    Ask(usize, Asked),
    Tell(usize, Told),
    LetStop,
    Place(usize, Option<Staging>),
    Discard(usize),
    Notification(usize, bool),
    Network(bool),
    Jump(u64),
    Restart,
    /// The power goes after so many actions of the next step.
    Cut(usize),
}

#[derive(Debug, Clone, Copy)]
enum Asked {
    AddFile(u64),
    Resume,
    Suspend,
    Complete,
    Cancel,
    Priority(Priority),
    Url(u32),
    Prefix,
}

#[derive(Debug, Clone, Copy)]
enum Told {
    Connected,
    Progress,
    Staged,
    Modified,
    Transient,
    RetryAfter(u64),
    Permanent,
    Stopped,
}

fn priority() -> impl Strategy<Value = Priority> {
    prop::sample::select(vec![
        Priority::Foreground,
        Priority::High,
        Priority::Normal,
        Priority::Low,
    ])
}

fn asked() -> impl Strategy<Value = Asked> {
    prop_oneof![
        2 => (10..99u64).prop_map(Asked::AddFile),
        6 => Just(Asked::Resume),
        3 => Just(Asked::Suspend),
        2 => Just(Asked::Complete),
        1 => Just(Asked::Cancel),
        2 => priority().prop_map(Asked::Priority),
        1 => (0..3u32).prop_map(Asked::Url),
        1 => Just(Asked::Prefix),
    ]
}

fn told() -> impl Strategy<Value = Told> {
    prop_oneof![
        2 => Just(Told::Connected),
        4 => Just(Told::Progress),
        5 => Just(Told::Staged),
        1 => Just(Told::Modified),
        3 => Just(Told::Transient),
        1 => (0..200_000u64).prop_map(Told::RetryAfter),
        1 => Just(Told::Permanent),
        1 => Just(Told::Stopped),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let create = (0..4u64, priority(), any::<bool>(), any::<bool>(), 0..8u8);
    let create = create.prop_map(
        |(files, priority, auto_complete, start, never)| Step::Create {
            files,
            priority,
            auto_complete,
            start,
            never_retries: never == 0,
        },
    );
    let staging = prop::option::of(prop::sample::select(vec![Staging::Kept, Staging::Lost]));
    let spans = vec![0, 1, 10, 65, 310, 3_600, 86_400, 20 * 86_400, 100 * 86_400];
    prop_oneof![
        4 => create,
        6 => (0..20usize, asked()).prop_map(|(job, asked)| Step::Ask(job, asked)),
        16 => (0..20usize, told()).prop_map(|(at, told)| Step::Tell(at, told)),
        6 => Just(Step::LetStop),
        3 => (0..9usize, staging).prop_map(|(at, failure)| Step::Place(at, failure)),
        2 => (0..9usize).prop_map(Step::Discard),
        2 => (0..9usize, any::<bool>()).prop_map(|(at, good)| Step::Notification(at, good)),
        2 => any::<bool>().prop_map(Step::Network),
        4 => prop::sample::select(spans).prop_map(Step::Jump),
        1 => Just(Step::Restart),
        1 => (0..5usize).prop_map(Step::Cut),
    ]
}

impl World {
    fn take(&mut self, step: Step) {
        match step {
            Step::Create {
                files,
                priority,
                auto_complete,
                start,
                never_retries,
            } => {
                let mut spec = spec(files, priority);
                spec.start = start;
                spec.settings.auto_complete = auto_complete;
                spec.settings.notify.command = vec!["/bin/true".into()];
                spec.settings.notify.of.insert(NotifyOf::FileDone);
                if never_retries {
                    spec.settings.retry.no_progress_timeout = Duration::ZERO;
                }
                let made = self.create(ALICE, spec);
                assert_eq!(made == Err(RequestError::EmptyJob), start && files == 0);
            }
            Step::Ask(at, asked) => {
                if let Some(id) = nth(self.journal.jobs.keys(), at) {
                    self.ask_something(id, asked);
                }
            }
            Step::Tell(at, told) => {
                if let Some(key) = nth(self.transfers.keys(), at) {
                    self.tell_something(key, told);
                }
            }
            Step::LetStop => {
                if let Some((id, index)) = self.first_transfer(|transfer| transfer.stopping) {
                    self.tell(id, index, Event::Stopped);
                }
            }
            Step::Place(at, failure) => {
                if let Some(key) = nth(self.places.keys(), at) {
                    self.answer_place(key, failure);
                }
            }
            Step::Discard(at) => {
                if let Some(key) = nth(self.discards.iter(), at) {
                    self.answer_discard(key);
                }
            }
            Step::Notification(at, good) => {
                if let Some(id) = nth(self.notifications.keys(), at) {
                    self.answer_notification(id, good);
                }
            }
            Step::Network(up) => self.network(up),
            Step::Jump(seconds) => self.jump(Duration::from_secs(seconds)),
            Step::Restart => self.restart(),
            Step::Cut(actions) => self.power = Some(actions),
        }
    }

    fn ask_something(&mut self, id: JobId, asked: Asked) {
        let before = self.jobs.state(ROOT, id);
        let request = match asked {
            Asked::AddFile(number) => Request::AddFiles(vec![file(number)]),
            Asked::Resume => Request::Resume,
            Asked::Suspend => Request::Suspend,
            Asked::Complete => Request::Complete,
            Asked::Cancel => Request::Cancel,
            Asked::Priority(priority) => Request::Set(Box::new(SettingsChange {
                priority: Some(priority),
                ..SettingsChange::default()
            })),
            Asked::Url(index) => Request::ReplaceUrl {
                file: FileIndex(index),
                url: RemoteUrl::new("https://other/x").expect("a URL"),
            },
            Asked::Prefix => Request::ReplacePrefix {
                from: "https://o".into(),
                to: "https://mirror.o".into(),
            },
        };
        let trigger = request.trigger();
        let cut = self.power.is_some();
        let answer = self.ask(id, request);
        if let (Err(_), false) = (&answer, cut) {
            assert_eq!(
                self.jobs.state(ROOT, id),
                before,
                "a refusal changes nothing"
            );
        }
        if let Ok((kind, _)) = before {
            let refused = matches!(answer, Err(RequestError::WrongState { .. }));
            assert_eq!(refused, next(kind, trigger).is_none());
        }
    }

    fn tell_something(&mut self, (id, index): (JobId, FileIndex), told: Told) {
        match told {
            Told::Connected => self.tell(id, index, Event::Connected { length: Some(100) }),
            Told::Progress => self.progress(id, index),
            Told::Staged => self.tell(id, index, staged()),
            Told::Modified => self.tell(id, index, Event::Modified),
            Told::Transient => self.tell(id, index, transient()),
            Told::RetryAfter(seconds) => {
                let retry_after = Some(Duration::from_secs(seconds));
                let trouble = trouble();
                let failure = Failure::Transient {
                    trouble,
                    retry_after,
                };
                self.tell(id, index, Event::Failed(failure));
            }
            Told::Permanent => self.tell(id, index, permanent()),
            Told::Stopped => self.tell(id, index, Event::Stopped),
        }
    }

    /// From now on everything works: all that its owner wants ends.
    fn mend(&mut self) {
        self.power = None;
        self.network(true);
        let wanted: Vec<JobId> = self.journal.jobs.keys().copied().collect();
        for id in &wanted {
            let _ = self.ask(*id, Request::Resume);
        }
        let mut resumed = BTreeSet::new();
        for _ in 0..10_000 {
            if let Some((id, index)) = self.first_transfer(|transfer| transfer.stopping) {
                self.tell(id, index, Event::Stopped);
            } else if let Some((id, index)) = self.first_transfer(|_| true) {
                self.tell(id, index, staged());
            } else if let Some(key) = nth(self.places.keys(), 0) {
                self.answer_place(key, None);
            } else if let Some(key) = nth(self.discards.iter(), 0) {
                self.answer_discard(key);
            } else if let Some(id) = nth(self.notifications.keys(), 0) {
                self.answer_notification(id, true);
            } else if let Some(id) = wanted.iter().find(|id| self.is_in_error(**id)) {
                // One of its files could not be placed before all was mended.
                assert!(resumed.insert(*id), "a job fails though everything works");
                let _ = self.ask(*id, Request::Resume);
            } else if wanted.iter().all(|id| self.is_settled(*id)) {
                return;
            } else {
                let (due, _) = self.jobs.next_deadline().expect("something is waited for");
                self.jump(due.since(self.now.time));
            }
        }
        panic!("some job never ends");
    }

    fn is_in_error(&self, id: JobId) -> bool {
        let state = self.jobs.state(ROOT, id);
        state.is_ok_and(|(kind, _)| kind == StateKind::Error)
    }

    /// Done, as far as that needs nobody; whether it is over, or waits for `complete`, or has no files.
    fn is_settled(&self, id: JobId) -> bool {
        let Ok((kind, _)) = self.jobs.state(ROOT, id) else {
            return true;
        };
        let job = &self.journal.jobs[&id];
        match kind {
            StateKind::Acknowledged | StateKind::Cancelled => true,
            StateKind::Transferred => !job.settings.auto_complete,
            StateKind::Suspended => job.files == 0,
            StateKind::Error
            | StateKind::Queued
            | StateKind::Connecting
            | StateKind::Transferring
            | StateKind::TransientError => false,
        }
    }
}

fn nth<T: Copy>(
    all: impl ExactSizeIterator<Item = impl std::borrow::Borrow<T>>,
    at: usize,
) -> Option<T> {
    let count = all.len();
    let mut all = all;
    all.nth(at.checked_rem(count)?).map(|it| *it.borrow())
}

/// What holds after each input.
pub(super) fn check(world: &World) {
    let jobs = &world.jobs;
    let mut live = BTreeMap::new();
    for (id, job) in &jobs.jobs {
        check_journal(world, *id, job);
        let kind = job.kind();
        assert_eq!(jobs.active.contains(id), kind.is_active());
        assert_eq!(job.turn.is_some(), kind.is_active());
        assert_eq!(
            job.files.running() > 0,
            kind.is_active(),
            "job {id} is {kind}"
        );
        assert_eq!(
            jobs.faltered.contains(id),
            kind == StateKind::TransientError
        );
        assert_eq!(job.rank, job.wanted_rank());
        assert_eq!(
            job.due,
            job.next_due(&jobs.config).map(|(at, _)| at).min(job.due)
        );
        assert!(job.due.is_none_or(|at| jobs.due.contains(&(at, *id))));
        let sums = job.files.sums();
        let of: &mut (usize, usize, u64) = live.entry(job.record.owner).or_default();
        if !kind.has_ended() {
            *of = (of.0 + 1, of.1 + job.files.len(), of.2 + sums.length);
        }
        let _ = jobs.why_of(world.now, job).to_string();
    }
    for (user, sums) in live {
        assert_eq!(jobs.usage.of(user), sums, "what counts for quotas");
    }
    check_choice(world, &jobs.foreground, PoolKind::Foreground);
    check_choice(world, &jobs.background, PoolKind::Background);
}

/// The journal has what lasts.
fn check_journal(world: &World, id: JobId, job: &Job) {
    let written = &world.journal.jobs[&id];
    let lasting = job.lasting();
    assert_eq!(written.state, lasting.state);
    assert_eq!(written.settings, lasting.settings);
    assert_eq!(written.revision, lasting.revision);
    assert_eq!(written.failing_since, lasting.failing_since);
    for (index, file) in job.files.iter() {
        let written = &world.journal.files[&(id, index)];
        assert_eq!(written.state, file.record.state);
        assert_eq!(written.spec, file.record.spec);
        let left = file.record.state == (FileState::Dropped { discarded: false });
        let goes = file.transfer.is_some() || world.discards.contains(&(id, index));
        assert!(!left || goes, "what is dropped is removed");
        let transfer = world.transfers.get(&(id, index));
        let attempt = file.transfer.map(|transfer| transfer.attempt);
        assert_eq!(transfer.map(|transfer| transfer.attempt), attempt);
    }
}

/// The slow, obvious twin of the choice of who runs.
fn check_choice(world: &World, pool: &Pool, kind: PoolKind) {
    let jobs = &world.jobs;
    let wants = |job: &&Job| job.kind().is_scheduled() && job.pool() == kind;
    let mut wanting: Vec<&Job> = jobs.jobs.values().filter(wants).collect();
    wanting.sort_by(|one, other| first_of(one, other));
    let chosen: Vec<JobId> = wanting.iter().map(|job| job.record.id).collect();
    let chosen: Vec<JobId> = chosen.into_iter().take(pool.max_jobs()).collect();
    assert_eq!(pool.chosen().collect::<Vec<_>>(), chosen);
    let stopping = world.transfers.values().any(|transfer| transfer.stopping);
    if !world.setup.network_up || stopping {
        return;
    }
    let runs: BTreeSet<JobId> = chosen.into_iter().collect();
    for job in wanting {
        let id = job.record.id;
        assert_eq!(
            job.kind().is_active(),
            runs.contains(&id),
            "who is chosen runs"
        );
    }
}

fn first_of(one: &Job, other: &Job) -> Ordering {
    let rested = (one.resting_until.is_some()).cmp(&other.resting_until.is_some());
    let priority = (one.record.settings.priority).cmp(&other.record.settings.priority);
    rested.then(priority).then(one.ticket.cmp(&other.ticket))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_all_ends(
        steps in prop::collection::vec(step(), 1..80),
        seed: u64,
    ) {
        let mut setup = small();
        setup.seed = seed;
        let mut world = World::new(setup);
        for step in steps {
            world.take(step);
        }
        world.mend();
    }
}
