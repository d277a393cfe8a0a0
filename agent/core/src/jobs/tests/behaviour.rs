//! What becomes of a job, one behaviour at a time.

use std::time::Duration;

use super::world::*;
use super::*;

const FIRST: FileIndex = FileIndex(0);
const SECOND: FileIndex = FileIndex(1);
const DAY: Duration = Duration::from_secs(86_400);

fn one(files: u64) -> (World, JobId) {
    let mut world = World::new(small());
    let id = world
        .create(ALICE, spec(files, Priority::Normal))
        .expect("a job");
    (world, id)
}

fn set(change: SettingsChange) -> Request {
    Request::Set(Box::new(change))
}

fn retry(change: impl FnOnce(&mut RetryPolicy)) -> Request {
    let mut retry = RetryPolicy::default();
    change(&mut retry);
    set(SettingsChange {
        retry: Some(retry),
        ..SettingsChange::default()
    })
}

#[test]
fn a_job_goes_through_its_states() {
    let (mut world, id) = one(1);
    assert_eq!(world.kind(id), StateKind::Connecting);
    world.progress(id, FIRST);
    assert_eq!(world.kind(id), StateKind::Transferring);
    world.tell(id, FIRST, staged());
    assert_eq!(world.kind(id), StateKind::Transferred);
    world.ask(id, Request::Complete).expect("completes");
    assert_eq!(world.ask(id, Request::Cancel), Err(RequestError::Placing));
    world.answer_place((id, FIRST), None);
    assert_eq!(world.kind(id), StateKind::Acknowledged);
    assert_eq!(world.file_states(id), ["in_place"]);
    world.pass(8 * DAY);
    assert!(world.jobs.is_empty() && world.journal.files.is_empty());
}

#[test]
fn a_job_that_completes_itself_needs_nobody() {
    let mut world = World::new(small());
    let mut spec = spec(2, Priority::Normal);
    spec.settings.auto_complete = true;
    spec.settings.notify.command = vec!["/bin/notify".into()];
    let id = world.create(ALICE, spec).expect("a job");
    world.tell(id, SECOND, staged());
    world.tell(id, FIRST, staged());
    world.answer_place((id, FIRST), None);
    assert!(
        world.notifications.is_empty(),
        "told when the files are in place"
    );
    world.answer_place((id, SECOND), None);
    assert_eq!(world.kind(id), StateKind::Acknowledged);
    let told = world.notifications.values().next().expect("a notification");
    assert_eq!(told.record.of, NotifyOf::Transferred);
}

#[test]
fn an_empty_job_cannot_be_resumed() {
    let mut world = World::new(small());
    let mut spec = spec(0, Priority::Normal);
    spec.start = false;
    let id = world.create(ALICE, spec).expect("a job");
    assert_eq!(world.ask(id, Request::Resume), Err(RequestError::EmptyJob));
    assert_eq!(world.kind(id), StateKind::Suspended);
    world
        .ask(id, Request::AddFiles(vec![file(1)]))
        .expect("a file");
    world.ask(id, Request::Resume).expect("resumes");
    assert_eq!(world.kind(id), StateKind::Connecting);
}

#[test]
fn completing_in_the_middle_keeps_what_is_there_and_removes_the_rest() {
    let (mut world, id) = one(3);
    world.tell(id, FIRST, staged());
    world.ask(id, Request::Complete).expect("completes");
    world.answer_place((id, FIRST), None);
    assert_eq!(world.kind(id), StateKind::Acknowledged);
    assert_eq!(world.file_states(id), ["in_place", "dropped", "dropped"]);
    assert!(
        world.discards.is_empty(),
        "a transfer ends before its file goes"
    );
    world.pass(8 * DAY);
    assert_eq!(
        world.jobs.len(),
        1,
        "not forgotten while something lies about"
    );
    world.let_stop();
    for index in [SECOND, FileIndex(2)] {
        world.answer_discard((id, index));
    }
    world.pass(Duration::ZERO);
    assert!(world.jobs.is_empty());
}

#[test]
fn a_file_that_cannot_be_placed_is_an_error_that_resume_mends() {
    let (mut world, id) = one(2);
    world.tell(id, FIRST, staged());
    world.tell(id, SECOND, staged());
    world.ask(id, Request::Complete).expect("completes");
    world.answer_place((id, FIRST), Some(Staging::Lost));
    assert_eq!(
        world.kind(id),
        StateKind::Transferred,
        "the other one is still to answer"
    );
    world.answer_place((id, SECOND), None);
    let view = world.job(id);
    assert_eq!(view.summary.state, StateKind::Error);
    assert_eq!(
        view.last_error.expect("an error").context,
        ErrorContext::LocalFile
    );
    world.ask(id, Request::Resume).expect("resumes");
    assert_eq!(world.file_states(id), ["running", "in_place"]);
}

#[test]
fn a_transient_failure_waits_and_is_tried_again() {
    let (mut world, id) = one(1);
    world.tell(id, FIRST, transient());
    assert_eq!(world.kind(id), StateKind::TransientError);
    let wait = world
        .job(id)
        .last_error
        .and_then(|error| error.retry_in_seconds);
    let policy = RetryPolicy::default();
    let wait = Duration::from_secs(wait.expect("a time"));
    assert!((policy.min_delay..=policy.min_delay * 2).contains(&wait));
    world.pass(policy.min_delay * 2);
    assert_eq!(world.kind(id), StateKind::Connecting);
}

#[test]
fn what_can_be_fetched_is_fetched_before_a_job_gives_up() {
    let (mut world, id) = one(3);
    world.tell(id, FIRST, permanent());
    assert_eq!(world.file_states(id), ["failed", "running", "running"]);
    world.tell(id, SECOND, staged());
    world.tell(id, FileIndex(2), staged());
    let error = world.job(id).last_error.expect("an error");
    assert_eq!(
        (error.context, error.file),
        (ErrorContext::RemoteFile, Some(FIRST))
    );
    assert_eq!(world.kind(id), StateKind::Error);
    world.pass(DAY);
    assert_eq!(world.kind(id), StateKind::Error, "it waits for its owner");
    world.ask(id, Request::Resume).expect("resumes");
    world.tell(id, FIRST, staged());
    assert_eq!(world.kind(id), StateKind::Transferred);
}

#[test]
fn a_server_that_names_a_time_is_not_asked_before() {
    let (mut world, id) = one(1);
    let failure = Failure::Transient {
        trouble: trouble(),
        retry_after: Some(Duration::from_secs(7_200)),
    };
    world.tell(id, FIRST, Event::Failed(failure));
    world.network(false);
    world.network(true);
    world.pass(Duration::from_secs(7_199));
    assert_eq!(world.kind(id), StateKind::TransientError);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.kind(id), StateKind::Connecting);
}

#[test]
fn without_progress_a_job_gives_up_after_its_timeout() {
    let (mut world, id) = one(1);
    let end = world.now.time.after(14 * DAY);
    while world.kind(id) != StateKind::Error {
        assert!(world.now.time <= end.after(Duration::from_secs(601)));
        if world.first_transfer(|_| true).is_some() {
            world.tell(id, FIRST, transient());
        }
        world.pass(Duration::from_secs(60));
    }
    assert!(world.now.time >= end);
}

#[test]
fn a_byte_begins_the_timeout_anew() {
    let (mut world, id) = one(1);
    world
        .ask(id, retry(|it| it.no_progress_timeout = DAY))
        .expect("set");
    world.tell(id, FIRST, transient());
    world.pass(Duration::from_secs(86_000));
    assert_eq!(world.kind(id), StateKind::Connecting);
    world.progress(id, FIRST);
    world.tell(id, FIRST, transient());
    world.pass(Duration::from_secs(1_000));
    assert_ne!(world.kind(id), StateKind::Error);
}

#[test]
fn a_timeout_of_zero_never_tries_again() {
    let (mut world, id) = one(1);
    let request = retry(|it| it.no_progress_timeout = Duration::ZERO);
    world.ask(id, request).expect("set");
    world.tell(id, FIRST, transient());
    assert_eq!(world.kind(id), StateKind::Error);
}

#[test]
fn the_longest_active_time_counts_only_turns_and_survives_restarts() {
    let (mut world, id) = one(1);
    let hour = Duration::from_secs(3_600);
    world
        .ask(id, retry(|it| it.max_active = hour))
        .expect("set");
    world.pass(hour / 2);
    world.ask(id, Request::Suspend).expect("suspends");
    world.let_stop();
    world.pass(5 * hour);
    world.restart();
    world.ask(id, Request::Resume).expect("resumes");
    world.pass(hour / 2 - Duration::from_secs(1));
    assert_eq!(world.kind(id), StateKind::Connecting);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.kind(id), StateKind::Error);
    assert_eq!(
        world.job(id).last_error.expect("an error").context,
        ErrorContext::Queue
    );
}

#[test]
fn jobs_wait_out_a_lost_network_without_burning_tries() {
    let (mut world, id) = one(1);
    world.network(false);
    assert_eq!(world.kind(id), StateKind::TransientError);
    world.tell(id, FIRST, transient());
    let waiting = world
        .create(ALICE, spec(1, Priority::Normal))
        .expect("a job");
    world.pass(3 * DAY);
    assert_eq!(world.kind(waiting), StateKind::Queued);
    assert_eq!(world.journal.files[&(id, FIRST)].failures, 0);
    assert_eq!(world.started.len(), 1);
    world.network(true);
    assert_eq!(world.kind(id), StateKind::Connecting);
    assert_eq!(world.kind(waiting), StateKind::Connecting);
}

#[test]
fn the_networks_return_ends_waits_between_tries() {
    let (mut world, id) = one(1);
    world.tell(id, FIRST, transient());
    world.network(false);
    world.network(true);
    assert_eq!(world.kind(id), StateKind::Connecting);
}

#[test]
fn a_changed_remote_file_restarts_alone() {
    let (mut world, id) = one(2);
    world.tell(id, FIRST, Event::Modified);
    assert_eq!(world.file_states(id), ["running", "running"]);
    assert_eq!(world.started, [(id, FIRST), (id, SECOND), (id, FIRST)]);
    world.tell(id, FIRST, Event::Modified);
    assert_eq!(
        world.file_states(id),
        ["retry_later", "running"],
        "not for ever at once"
    );
}

#[test]
fn a_moved_server_is_replaced_for_all_that_is_not_there() {
    let (mut world, id) = one(3);
    world.tell(id, FIRST, staged());
    world.tell(id, SECOND, permanent());
    let request = Request::ReplacePrefix {
        from: "https://origin/".into(),
        to: "https://mirror/a/".into(),
    };
    world.ask(id, request.clone()).expect("replaces");
    assert_eq!(world.ask(id, request), Err(RequestError::PrefixNotFound));
    let urls: Vec<String> = world
        .job(id)
        .file_page
        .into_iter()
        .map(|file| file.url)
        .collect();
    assert_eq!(
        urls,
        [
            "https://origin/0",
            "https://mirror/a/1",
            "https://mirror/a/2"
        ]
    );
    world.let_stop();
    let url = world.transfers[&(id, FileIndex(2))].order.url.to_string();
    assert_eq!(url, "https://mirror/a/2", "what ran is started anew");
    let first = Request::ReplaceUrl {
        file: FIRST,
        url: file(9).url,
    };
    assert_eq!(world.ask(id, first), Err(RequestError::FileFinished(FIRST)));
}

#[test]
fn a_job_nobody_touches_is_cancelled() {
    let (mut world, id) = one(1);
    world.ask(id, Request::Suspend).expect("suspends");
    world.let_stop();
    world.pass(89 * DAY);
    let named = SettingsChange {
        name: Some("mine".into()),
        ..SettingsChange::default()
    };
    world.ask(id, set(named)).expect("set");
    world.pass(89 * DAY);
    assert_eq!(world.kind(id), StateKind::Suspended);
    world.pass(DAY);
    assert_eq!(world.kind(id), StateKind::Cancelled);
    assert!(world.discards.contains(&(id, FIRST)));
}

#[test]
fn late_events_of_an_earlier_attempt_are_ignored() {
    let (mut world, id) = one(1);
    let earlier = world.transfers[&(id, FIRST)].attempt;
    world.tell(id, FIRST, transient());
    world.pass(Duration::from_secs(10));
    world
        .jobs
        .handle_event(world.now, id, FIRST, earlier, permanent());
    assert_eq!(world.kind(id), StateKind::Connecting);
}

#[test]
fn only_what_has_changed_is_written() {
    let mut world = World::new(Setup {
        config: Config::default(),
        ..small()
    });
    let id = world
        .create(ROOT, spec(1_000, Priority::Normal))
        .expect("a job");
    let attempt = world.transfers[&(id, FIRST)].attempt;
    world
        .jobs
        .handle_event(world.now, id, FIRST, attempt, staged());
    let Some(Action::Persist(changes)) = world.jobs.poll_action() else {
        panic!("a finished file is written");
    };
    assert!(
        matches!(changes[..], [Change::File(_, FIRST, _)]),
        "{changes:?}"
    );
}

#[test]
fn somebody_elses_job_does_not_exist() {
    let (mut world, id) = one(1);
    let now = world.now;
    let nobody = Err(RequestError::NoSuchJob(id));
    let cancel = |world: &mut World, caller| {
        world
            .jobs
            .handle_request(now, caller, id, None, Request::Cancel)
    };
    assert_eq!(cancel(&mut world, BOB), nobody);
    assert_eq!(world.jobs.state(BOB, id), Err(RequestError::NoSuchJob(id)));
    assert!(
        world
            .jobs
            .list(now, BOB, &Filter::default(), None, 10)
            .jobs
            .is_empty()
    );
    assert_eq!(world.jobs.events_after(BOB, EventSeq(0)).count(), 0);
    assert_eq!(
        world
            .jobs
            .list(now, ALICE, &Filter::default(), None, 10)
            .jobs
            .len(),
        1
    );
    assert!(cancel(&mut world, ROOT).is_ok());
}

#[test]
fn a_caller_with_an_old_revision_is_told_so() {
    let (mut world, id) = one(1);
    let (_, seen) = world.jobs.state(ALICE, id).expect("a job");
    world.ask(id, Request::Suspend).expect("suspends");
    let request = Request::Resume;
    let answer = world
        .jobs
        .handle_request(world.now, ALICE, id, Some(seen), request);
    let (_, actual) = world.jobs.state(ALICE, id).expect("a job");
    let expected = seen;
    assert_eq!(
        answer,
        Err(RequestError::RevisionMismatch { expected, actual })
    );
}

#[test]
fn quotas_bind_users_but_not_root() {
    let mut setup = small();
    setup.config.quota = Quota {
        jobs: 2,
        files_per_job: 3,
        files: 4,
        bytes: 150,
    };
    let mut world = World::new(setup);
    let refused =
        |answer: Result<JobId, RequestError>| matches!(answer, Err(RequestError::Quota { .. }));
    assert!(refused(world.create(ALICE, spec(4, Priority::Normal))));
    let id = world
        .create(ALICE, spec(3, Priority::Normal))
        .expect("a job");
    assert!(refused(world.create(ALICE, spec(2, Priority::Normal))));
    world
        .create(ALICE, spec(1, Priority::Normal))
        .expect("a job");
    assert!(refused(world.create(ALICE, spec(0, Priority::Normal))) || world.jobs.len() == 2);
    world.create(BOB, spec(1, Priority::Normal)).expect("a job");
    world
        .create(ROOT, spec(9, Priority::Normal))
        .expect("a job");
    world.tell(id, FIRST, Event::Connected { length: Some(100) });
    world.tell(id, SECOND, Event::Connected { length: Some(51) });
    assert_eq!(world.file_states(id), ["running", "failed", "waiting"]);
    world.ask(id, Request::Cancel).expect("cancels");
    world
        .create(ALICE, spec(3, Priority::Normal))
        .expect("room again");
}

#[test]
fn no_secret_is_seen() {
    let mut world = World::new(small());
    let mut spec = spec(1, Priority::Normal);
    spec.files[0].url = RemoteUrl::new("https://me:hush1@origin/f").expect("a URL");
    spec.settings.headers = vec![Header {
        name: "Authorization".into(),
        value: Secret::new("hush2"),
        secret: true,
    }];
    spec.settings.credentials = Some(Credentials {
        user: "me".into(),
        password: Secret::new("hush3"),
    });
    let proxy = RemoteUrl::new("http://me:hush4@proxy:3128").expect("a URL");
    spec.settings.proxy = ProxyChoice::Url(proxy);
    let id = world.create(ALICE, spec.clone()).expect("a job");
    let shown = [
        format!("{spec:?}"),
        format!("{:?} {:?}", world.journal, world.transfers),
        serde_json::to_string(&world.job(id)).expect("JSON"),
    ];
    for text in shown {
        assert!(!text.contains("hush"), "{text}");
        assert!(text.contains("Authorization"), "{text}");
    }
}

#[test]
fn records_survive_json() {
    let (mut world, id) = one(2);
    world.tell(id, FIRST, transient());
    world.tell(id, SECOND, permanent());
    world.ask(id, Request::Suspend).expect("suspends");
    for record in world.journal.jobs.values() {
        let json = serde_json::to_string(record).expect("JSON");
        assert_eq!(
            &serde_json::from_str::<JobRecord>(&json).expect("a record"),
            record
        );
    }
    for record in world.journal.files.values() {
        let json = serde_json::to_string(record).expect("JSON");
        assert_eq!(
            &serde_json::from_str::<FileRecord>(&json).expect("a record"),
            record
        );
    }
}

#[test]
fn notifications_are_tried_again_and_then_given_up() {
    let mut world = World::new(small());
    let mut spec = spec(1, Priority::Normal);
    spec.settings.notify.webhook = Some(RemoteUrl::new("https://hook/").expect("a URL"));
    let id = world.create(ALICE, spec).expect("a job");
    world.tell(id, FIRST, permanent());
    let mut tries = 0;
    while world.jobs.undelivered() > 0 {
        if let Some(number) = world.notifications.keys().next().copied() {
            assert_eq!(world.notifications[&number].may_be_repeated, tries > 0);
            tries += 1;
            world.answer_notification(number, false);
        }
        world.pass(Duration::from_secs(3_600));
    }
    assert_eq!(tries, NOTIFY_TRIES);
    assert!(world.journal.notifications.is_empty());
    let last = world.jobs.events_after(ALICE, EventSeq(0)).last();
    let last = last.map(|event| event.what.clone());
    assert!(matches!(last, Some(Happening::NotificationFailed { .. })));
}

#[test]
fn numbers_are_never_used_twice() {
    let (mut world, id) = one(1);
    let before = world.jobs.last_event();
    world.ask(id, Request::Cancel).expect("cancels");
    world.let_stop();
    world.answer_discard((id, FIRST));
    world.pass(8 * DAY);
    assert!(world.jobs.is_empty());
    world.restart();
    let next = world
        .create(ALICE, spec(1, Priority::Normal))
        .expect("a job");
    assert!(next > id);
    assert!(world.jobs.last_event() > before);
}

#[test]
fn each_wait_is_explained_in_a_line() {
    let (mut world, id) = one(1);
    let why = |world: &World| world.job(id).summary.why;
    assert_eq!(
        why(&world),
        "waiting for the first bytes, for 0 s; in 1 min at the latest it lets other jobs go first"
    );
    let request = retry(|it| it.max_delay = it.min_delay);
    world.ask(id, request).expect("set");
    world.tell(id, FIRST, transient());
    world.jump(Duration::from_secs(2));
    assert_eq!(
        why(&world),
        "waiting to try again after transport: connection reset (file 0), for 2 s; \
         in 3 s at the latest it is tried again"
    );
    world.network(false);
    assert_eq!(
        why(&world),
        "waiting for a network, for 2 s; in 13 d 23 h at the latest it gives up"
    );
    world.network(true);
    world.tell(id, FIRST, staged());
    assert_eq!(
        why(&world),
        "all files are here, waiting for `complete`, for 0 s; in 90 d at the latest it is cancelled"
    );
}

#[test]
fn lists_come_in_pages() {
    let mut world = World::new(small());
    for _ in 0..5 {
        world.create(ALICE, spec(1, Priority::Low)).expect("a job");
        world.create(BOB, spec(1, Priority::Low)).expect("a job");
    }
    let page = |caller, filter: &Filter, after| {
        let page = world.jobs.list(world.now, caller, filter, after, 3);
        let ids: Vec<u64> = page.jobs.iter().map(|job| job.id.0).collect();
        (ids, page.next_after)
    };
    let all = Filter::default();
    assert_eq!(page(ALICE, &all, None), (vec![1, 3, 5], Some(JobId(5))));
    assert_eq!(page(ALICE, &all, Some(JobId(5))), (vec![7, 9], None));
    let connecting = Filter {
        states: Some([StateKind::Connecting].into()),
        ..Filter::default()
    };
    assert_eq!(page(ROOT, &connecting, None), (vec![1, 2], None));
}

fn from_origin(bytes: u64) -> BySource {
    BySource {
        from_origin: bytes,
        ..BySource::default()
    }
}

/// What an attempt brought, and what an earlier one had left.
fn resumed(found: u64, fetched: u64) -> BySource {
    BySource {
        from_store: found,
        ..from_origin(fetched)
    }
}

#[test]
fn what_an_earlier_attempt_left_counts_as_it_came() {
    let (mut world, id) = one(1);
    let progress = |bytes, sources| Event::Progress { bytes, sources };
    world.tell(id, FIRST, progress(60, from_origin(60)));
    world.ask(id, Request::Suspend).expect("suspends");
    world.let_stop();
    world.ask(id, Request::Resume).expect("resumes");
    world.tell(id, FIRST, progress(0, resumed(0, 0)));
    assert_eq!(
        world.job(id).summary.sources,
        from_origin(60),
        "not lost yet"
    );
    world.tell(id, FIRST, progress(70, resumed(60, 10)));
    assert_eq!(world.job(id).summary.sources, from_origin(70));
    let sources = resumed(65, 35);
    let staged = Event::Staged {
        bytes: 100,
        sources,
        proof: proof(),
    };
    world.tell(id, FIRST, staged);
    assert_eq!(world.job(id).summary.sources, resumed(5, 95));
    world.restart();
    assert_eq!(world.job(id).summary.sources, resumed(5, 95));
}

#[test]
fn what_was_lost_of_an_attempt_does_not_count() {
    let (mut world, id) = one(1);
    let (bytes, sources) = (60, from_origin(60));
    world.tell(id, FIRST, Event::Progress { bytes, sources });
    world.ask(id, Request::Suspend).expect("suspends");
    world.let_stop();
    world.ask(id, Request::Resume).expect("resumes");
    world.tell(id, FIRST, staged());
    assert_eq!(world.job(id).summary.sources, from_origin(100));
}

#[test]
fn notices_are_kept_once_each_and_not_without_end() {
    let (mut world, id) = one(1);
    for number in 0..2 * NOTICES_KEPT {
        for _ in 0..2 {
            let notice = format!("number {number}\nsecond line");
            world.tell(id, FIRST, Event::Notice(notice));
        }
    }
    let notices = world.job(id).file_page[0].notices.clone();
    assert_eq!(notices.len(), NOTICES_KEPT);
    assert_eq!(notices[1], "number 1");
}

#[test]
fn ended_jobs_do_not_pile_up() {
    let mut world = World::new(small());
    let files = ENDED_RECORDS_KEPT as u64 / 4;
    let ended = |world: &mut World| {
        let mut spec = spec(files, Priority::Normal);
        spec.start = false;
        let id = world.create(ROOT, spec).expect("a job");
        world.ask(id, Request::Cancel).expect("cancels");
        world.pass(ENDED_KEPT_LEAST / 4);
        id
    };
    let of_alice = world
        .create(ALICE, spec(1, Priority::Normal))
        .expect("a job");
    world.ask(of_alice, Request::Cancel).expect("cancels");
    let ids: Vec<JobId> = (0..5).map(|_| ended(&mut world)).collect();
    let all = |world: &World| {
        let page = world
            .jobs
            .list(world.now, ROOT, &Filter::default(), None, 10);
        page.jobs.iter().map(|job| job.id).collect::<Vec<_>>()
    };
    let left = [&[of_alice], &ids[1..]].concat();
    assert_eq!(all(&world), left, "the second ended a moment ago");
    world.pass(ENDED_KEPT_LEAST);
    let next = ended(&mut world);
    assert_eq!(all(&world), [of_alice, ids[3], ids[4], next]);
    world.restart();
    assert_eq!(all(&world), [of_alice, ids[3], ids[4], next]);
}
