//! What ten thousand jobs cost: `cargo run --release -p branchline-core --example jobs_speed`.

use std::time::{Duration, Instant};

use branchline_core::jobs::{
    Action, BySource, Caller, Change, Config, Event, FileIndex, FileSpec, Filter, JobId, JobKind,
    JobSpec, JobTime, Jobs, Now, Proof, Records, RemoteUrl, Request, Settings, Setup, TargetPath,
    Trust, UnixSeconds, UserId,
};
use branchline_hashing::ContentKey;

const JOBS: u64 = 10_000;
const ME: UserId = UserId(1000);

fn at(milliseconds: u64) -> Now {
    Now {
        time: JobTime::since_epoch(Duration::from_millis(milliseconds)),
        wall: UnixSeconds(0),
    }
}

fn spec(number: u64) -> JobSpec {
    let url = RemoteUrl::new(format!("https://origin.example/files/{number}.bin"));
    let path = TargetPath::new(format!("/srv/files/{number}.bin"));
    JobSpec {
        kind: JobKind::Download,
        settings: Settings::default(),
        files: vec![FileSpec {
            url: url.expect("a URL"),
            path: path.expect("a path"),
            ranges: Vec::new(),
            digest: None,
            without_manifest: false,
        }],
        start: true,
    }
}

/// Carries out nothing, and remembers what the journal would have and what was started.
#[derive(Default)]
struct Shell {
    records: Records,
    started: Vec<(JobId, FileIndex, branchline_core::jobs::Attempt)>,
}

impl Shell {
    fn drain(&mut self, jobs: &mut Jobs) {
        while let Some(action) = jobs.poll_action() {
            match action {
                Action::Persist(changes) => changes.into_iter().for_each(|it| self.write(it)),
                Action::Start {
                    job, file, attempt, ..
                } => self.started.push((job, file, attempt)),
                Action::Stop { .. }
                | Action::Place { .. }
                | Action::Discard { .. }
                | Action::Notify(_) => {}
            }
        }
    }

    fn write(&mut self, change: Change) {
        match change {
            Change::Counters(counters) => self.records.counters = counters,
            Change::Job(job) => self.records.jobs.push(*job),
            Change::File(job, index, file) => self.records.files.push((job, index, *file)),
            Change::ForgetJob { .. } | Change::Notification(_) | Change::ForgetNotification(_) => {}
        }
    }
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident = pages.split(' ').nth(1).and_then(|it| it.parse().ok());
    resident.unwrap_or(0) * 4096
}

fn timed(what: &str, times: u64, mut act: impl FnMut(u64)) {
    let begin = Instant::now();
    (0..times).for_each(&mut act);
    let each = begin.elapsed() / u32::try_from(times).unwrap_or(1);
    println!("{what}: {each:?}");
}

fn main() {
    let setup = Setup {
        config: Config::default(),
        seed: 1,
        network_up: true,
    };
    let me = Caller::of(ME);
    let mut jobs = Jobs::new(at(0), setup);
    let mut shell = Shell::default();
    let before = resident_bytes();
    timed("submit, queued", JOBS, |number| {
        jobs.handle_create(at(number), me, spec(number))
            .expect("a job");
        while jobs.poll_action().is_some() {}
    });
    println!(
        "memory: {} bytes a job",
        (resident_bytes() - before) / 10_000
    );

    let mut jobs = Jobs::new(at(0), setup);
    (0..JOBS).for_each(|number| {
        jobs.handle_create(at(number), me, spec(number))
            .expect("a job");
        shell.drain(&mut jobs);
    });
    let records = shell.records.clone();
    timed("list of 100", 100, |page| {
        jobs.list(
            at(JOBS),
            me,
            &Filter::default(),
            Some(JobId(page * 100)),
            100,
        );
    });
    timed("suspend and resume", 1_000, |number| {
        for request in [Request::Suspend, Request::Resume] {
            let id = JobId(JOBS - number);
            let answer = jobs.handle_request(at(JOBS), me, id, None, request);
            answer.expect("allowed");
        }
        shell.drain(&mut jobs);
    });
    timed("progress", 1_000_000, |number| {
        let (job, file, attempt) = shell.started[0];
        let (bytes, sources) = (number, BySource::default());
        jobs.handle_event(
            at(JOBS),
            job,
            file,
            attempt,
            Event::Progress { bytes, sources },
        );
    });
    let proof = Proof {
        content: ContentKey::from_bytes([7; 32]),
        trust: Trust::Manifest,
    };
    timed("a file done, the next job started", 9_000, |number| {
        let (job, file, attempt) = shell.started[usize::try_from(number).expect("small")];
        let (bytes, sources) = (1, BySource::default());
        jobs.handle_event(
            at(JOBS),
            job,
            file,
            attempt,
            Event::Staged {
                bytes,
                sources,
                proof,
            },
        );
        shell.drain(&mut jobs);
    });
    timed("restart with all queued", 1, |_| {
        Jobs::restore(at(JOBS), setup, records.clone()).expect("sound records");
    });
}
