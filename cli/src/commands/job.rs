//! `branchline job`

use std::time::Duration;

use branchline_agent::api::jobs::{
    FileIndex, FileSpec, Header, JobId, JobSpec, JobSummary, JobView, NotifySettings, RemoteUrl,
    Request, Secret, Settings, SettingsChange, StateKind, TargetPath,
};
use branchline_agent::api::{Failure, FailureKind};
use branchline_agent::control::Client;
use branchline_hashing::Digest;
use url::Url;

use crate::args::{
    JobAddArgs, JobArgs, JobCommand, JobCreateArgs, JobFileArgs, JobListArgs, JobSetArgs,
    JobWaitArgs,
};
use crate::context::Context;
use crate::output::{self, Column, bytes, printable, table};
use crate::target::target;

/// Asks the running agent.
pub(super) async fn run(command: JobCommand, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        JobCommand::Create(args) => create(args, &client).await,
        JobCommand::Add(args) => add(args, &client).await,
        JobCommand::Resume(args) => request(&args, &client, Request::Resume).await,
        JobCommand::Suspend(args) => request(&args, &client, Request::Suspend).await,
        JobCommand::Complete(args) => request(&args, &client, Request::Complete).await,
        JobCommand::Cancel(args) => request(&args, &client, Request::Cancel).await,
        JobCommand::Set(args) => set(args, &client).await,
        JobCommand::Show(args) => show_all(&args, &client).await,
        JobCommand::List(args) => list(&args, &client).await,
        JobCommand::Wait(args) => wait(&args, &client).await,
    }
}

async fn create(args: JobCreateArgs, client: &Client) -> Result<(), Failure> {
    let header = |secret| {
        move |(name, value): (String, String)| Header {
            name,
            value: Secret::new(value),
            secret,
        }
    };
    let open = args.headers.into_iter().map(header(false));
    let secret = args.secret_headers.into_iter().map(header(true));
    let spec = JobSpec {
        kind: Default::default(),
        settings: Settings {
            name: args.name,
            description: args.description,
            priority: args.priority,
            headers: open.chain(secret).collect(),
            notify: NotifySettings {
                webhook: args.webhook.as_ref().map(remote).transpose()?,
                ..NotifySettings::default()
            },
            auto_complete: !args.no_auto_complete,
            ..Settings::default()
        },
        files: vec![file(args.file)?],
        start: !args.suspended,
    };
    show(&client.create_job(&spec).await?, args.json)
}

async fn add(args: JobAddArgs, client: &Client) -> Result<(), Failure> {
    let request = Request::AddFiles(vec![file(args.file)?]);
    show(&client.request(JobId(args.id), &request).await?, args.json)
}

fn file(args: JobFileArgs) -> Result<FileSpec, Failure> {
    let JobFileArgs {
        url,
        output,
        sha256,
        blake3,
    } = args;
    let path = target(&url, output.as_deref())?;
    let text = path.to_str().ok_or_else(|| {
        usage(format!(
            "{}: the path is no UTF-8; choose another",
            path.display()
        ))
    })?;
    Ok(FileSpec {
        url: remote(&url)?,
        path: TargetPath::new(text).map_err(usage)?,
        ranges: Vec::new(),
        digest: sha256
            .map(Digest::Sha256)
            .or_else(|| blake3.map(Digest::Blake3)),
    })
}

fn remote(url: &Url) -> Result<RemoteUrl, Failure> {
    RemoteUrl::new(url.as_str()).map_err(usage)
}

async fn request(args: &JobArgs, client: &Client, request: Request) -> Result<(), Failure> {
    show(&client.request(JobId(args.id), &request).await?, args.json)
}

/// One request for each kind of change that was asked for.
async fn set(args: JobSetArgs, client: &Client) -> Result<(), Failure> {
    let mut requests = Vec::new();
    let change = SettingsChange {
        name: args.name,
        description: args.description,
        priority: args.priority,
        ..SettingsChange::default()
    };
    if change != SettingsChange::default() {
        requests.push(Request::Set(Box::new(change)));
    }
    if let Some([from, to]) = args.replace_prefix.as_deref() {
        let (from, to) = (from.clone(), to.clone());
        requests.push(Request::ReplacePrefix { from, to });
    }
    if let Some([file, url]) = args.replace_url.as_deref() {
        let file = file
            .parse()
            .map_err(|_| usage(format!("{file}: `job show` has the numbers of files")))?;
        let url = RemoteUrl::new(url.as_str()).map_err(usage)?;
        requests.push(Request::ReplaceUrl {
            file: FileIndex(file),
            url,
        });
    }
    let id = JobId(args.id);
    let mut view = None;
    for request in &requests {
        view = Some(client.request(id, request).await?);
    }
    match view {
        Some(view) => show(&view, args.json),
        None => Err(usage("nothing to change; see `branchline job set --help`")),
    }
}

async fn show_all(args: &JobArgs, client: &Client) -> Result<(), Failure> {
    let id = JobId(args.id);
    let mut view = client.job(id, FileIndex(0)).await?;
    while let Some(next) = view.next_file {
        let more = client.job(id, next).await?;
        view.next_file = more.next_file;
        view.file_page.extend(more.file_page);
    }
    show(&view, args.json)
}

async fn list(args: &JobListArgs, client: &Client) -> Result<(), Failure> {
    let mut page = client.jobs(&args.states, None).await?;
    let mut jobs = page.jobs;
    while let Some(after) = page.next_after {
        page = client.jobs(&args.states, Some(after)).await?;
        jobs.append(&mut page.jobs);
    }
    match args.json {
        true => output::print_json(&jobs),
        false => output::print(&list_text(&jobs)),
    }
}

/// Until the job needs nobody any more, or its owner.
async fn wait(args: &JobWaitArgs, client: &Client) -> Result<(), Failure> {
    let id = JobId(args.id);
    let limit = args.timeout.map_or(Duration::MAX, Duration::from_secs);
    let waited = tokio::time::timeout(limit, until_settled(client, id)).await;
    let view = waited.map_err(|_| {
        let message = format!("job {id}: not done after {} s; it goes on", limit.as_secs());
        Failure::new(FailureKind::Interrupted, message)
    })??;
    match view.summary.state {
        StateKind::Transferred | StateKind::Acknowledged => show(&view, args.json),
        StateKind::Cancelled => Err(Failure::new(
            FailureKind::Interrupted,
            format!("job {id}: it was cancelled"),
        )),
        StateKind::Suspended
        | StateKind::Queued
        | StateKind::Connecting
        | StateKind::Transferring
        | StateKind::TransientError
        | StateKind::Error => Err(Failure::new(
            failure_kind(&view),
            format!("job {id}: {}", view.summary.why),
        )),
    }
}

async fn until_settled(client: &Client, id: JobId) -> Result<JobView, Failure> {
    let mut events = client.events(Some(id)).await?;
    loop {
        let view = client.job(id, FileIndex(0)).await?;
        let settled = match view.summary.state {
            StateKind::Transferred => !view.settings.auto_complete,
            StateKind::Acknowledged | StateKind::Cancelled | StateKind::Error => true,
            StateKind::Suspended
            | StateKind::Queued
            | StateKind::Connecting
            | StateKind::Transferring
            | StateKind::TransientError => false,
        };
        if settled {
            return Ok(view);
        }
        if !events.next().await {
            let message = format!(
                "job {id}: the agent has ended; it goes on with the job when it is started again"
            );
            return Err(Failure::new(FailureKind::AgentUnreachable, message));
        }
    }
}

fn failure_kind(view: &JobView) -> FailureKind {
    use branchline_agent::api::jobs::ErrorContext;
    match view.last_error.as_ref().map(|error| error.context) {
        Some(ErrorContext::LocalFile) => FailureKind::LocalDisk,
        Some(ErrorContext::RemoteFile) => FailureKind::OriginRefused,
        Some(ErrorContext::Verification) => FailureKind::Verification,
        Some(ErrorContext::Queue | ErrorContext::Transport | ErrorContext::Notification) | None => {
            FailureKind::Network
        }
    }
}

fn show(view: &JobView, json: bool) -> Result<(), Failure> {
    match json {
        true => output::print_json(view),
        false => output::print(&view_text(view)),
    }
}

fn view_text(view: &JobView) -> String {
    let JobSummary {
        id,
        name,
        state,
        priority,
        ..
    } = &view.summary;
    let named = if name.is_empty() {
        String::new()
    } else {
        format!(" ({name})")
    };
    let head = format!("job {id}{named}: {state}, priority {}", priority.word());
    let mut text = printable(&head) + "\n";
    text += &(printable(&format!("  {}", view.summary.why)) + "\n");
    for file in &view.file_page {
        let length = file.length.map_or_else(|| "?".into(), bytes);
        let line = format!(
            "  file {}: {}: {} of {length}; {} from the origin, {} from peers, {} from the store",
            file.index,
            file.state,
            bytes(file.bytes),
            bytes(file.sources.from_origin),
            bytes(file.sources.from_peers),
            bytes(file.sources.from_store),
        );
        text += &(printable(&line) + "\n");
        text += &(printable(&format!("    {} -> {}", file.url, file.path)) + "\n");
        if let Some(error) = &file.error {
            text += &(printable(&format!("    {}", error.cause)) + "\n");
        }
    }
    text
}

fn list_text(jobs: &[JobSummary]) -> String {
    if jobs.is_empty() {
        return "there are no jobs\n".into();
    }
    let columns = [
        Column::Right("ID"),
        Column::Left("STATE"),
        Column::Left("PRIORITY"),
        Column::Right("FILES"),
        Column::Right("HERE"),
        Column::Right("OF"),
        Column::Left("NAME"),
        Column::Left("WHY"),
    ];
    let row = |job: &JobSummary| {
        [
            job.id.to_string(),
            job.state.to_string(),
            job.priority.word().to_owned(),
            format!("{}/{}", job.files_done, job.files),
            bytes(job.bytes),
            job.length.map_or_else(|| "?".into(), bytes),
            job.name.clone(),
            job.why.clone(),
        ]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    table(columns, &rows)
}

fn usage(message: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Usage, format!("job: {message}"))
}
