//! `branchline job`

mod settings;
mod show;
mod wait;

use branchline_agent::api::jobs::{
    ErrorContext, FileIndex, FileSpec, Filter, JobId, JobSpec, JobView, RemoteUrl, Request,
    Settings, TargetPath, UserId,
};
use branchline_agent::api::{Failure, FailureKind};
use branchline_agent::control::Client;
use branchline_hashing::Digest;
use url::Url;

use crate::args::{
    JobAddArgs, JobArgs, JobCommand, JobCreateArgs, JobFileArgs, JobListArgs, JobSetArgs,
};
use crate::context::Context;
use crate::output;
use crate::target::target;

use show::{list_text, show};
pub(super) use wait::until_next_look;

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
        JobCommand::List(args) => list(args, &client).await,
        JobCommand::Wait(args) => wait::run(&args, &client).await,
    }
}

async fn create(args: JobCreateArgs, client: &Client) -> Result<(), Failure> {
    let settings = Settings {
        auto_complete: !args.no_auto_complete,
        ..Settings::default()
    };
    let change = settings::change(args.settings, settings.retry, settings.notify.clone())?;
    let spec = JobSpec {
        kind: Default::default(),
        settings: settings.with(change),
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
        ranges,
        without_manifest,
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
        ranges,
        digest: sha256
            .map(Digest::Sha256)
            .or_else(|| blake3.map(Digest::Blake3)),
        without_manifest,
    })
}

pub(super) fn remote(url: &Url) -> Result<RemoteUrl, Failure> {
    RemoteUrl::new(url.as_str()).map_err(usage)
}

async fn request(args: &JobArgs, client: &Client, request: Request) -> Result<(), Failure> {
    show(&client.request(JobId(args.id), &request).await?, args.json)
}

/// One request for each kind of change that was asked for.
async fn set(args: JobSetArgs, client: &Client) -> Result<(), Failure> {
    let (id, json) = (JobId(args.id), args.json);
    let view = client.job(id, FileIndex(0)).await?;
    let mut requests = settings::requests(&args, &view)?;
    let change = settings::change_of(args, &view)?;
    requests.extend(change.map(|change| Request::Set(Box::new(change))));
    let Some((last, first)) = requests.split_last() else {
        return Err(usage("nothing to change; see `branchline job set --help`"));
    };
    for request in first {
        client.request(id, request).await?;
    }
    show(&client.request(id, last).await?, json)
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

async fn list(args: JobListArgs, client: &Client) -> Result<(), Failure> {
    let states = (!args.states.is_empty()).then(|| args.states.into_iter().collect());
    let filter = Filter {
        states,
        name: args.name,
        owner: args.owner.map(UserId),
        ..Filter::default()
    };
    let mut page = client.jobs(&filter, None).await?;
    let mut jobs = page.jobs;
    while let Some(after) = page.next_after {
        page = client.jobs(&filter, Some(after)).await?;
        jobs.append(&mut page.jobs);
    }
    match args.json {
        true => output::print_json(&jobs),
        false => output::print(&list_text(&jobs)),
    }
}

/// What a job's error is to a script.
pub(super) fn failure_kind(view: &JobView) -> FailureKind {
    let Some(error) = &view.last_error else {
        return FailureKind::Network;
    };
    match error.context {
        ErrorContext::LocalFile => FailureKind::LocalDisk,
        // An origin that is busy, or changes the file, has not refused it.
        ErrorContext::RemoteFile if error.transient => FailureKind::Network,
        ErrorContext::RemoteFile => FailureKind::OriginRefused,
        ErrorContext::Verification => FailureKind::Verification,
        ErrorContext::Queue | ErrorContext::Transport | ErrorContext::Notification => {
            FailureKind::Network
        }
    }
}

fn usage(message: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Usage, format!("job: {message}"))
}
