//! A job's settings, from what was typed.

use std::path::Path;

use branchline_agent::api::jobs::{
    Credentials, CredentialsChange, FileIndex, Header, JobView, NotifySettings, ProxyChoice,
    RemoteUrl, Request, RetryPolicy, Secret, SettingsChange,
};
use branchline_agent::api::{Failure, FailureKind};

use super::{remote, usage};
use url::Url;

use crate::args::{JobSetArgs, JobSettingsArgs, Proxy};

/// Words that run a command as it is typed into a shell.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// What is to change, where it retries and tells as it says now.
pub(super) fn change(
    args: JobSettingsArgs,
    retry: RetryPolicy,
    notify: NotifySettings,
) -> Result<SettingsChange, Failure> {
    let (says_retry, says_notify) = (says_retry(&args), says_notify(&args));
    let new_retry = retry_with(&args, retry);
    let new_notify = notify_with(&args, notify)?;
    let credentials = match (args.user, args.password_file) {
        (Some(user), Some(file)) => Some(CredentialsChange::Use(Credentials {
            user,
            password: password(&file)?,
        })),
        (Some(_), None) | (None, _) => None,
    };
    let header = |secret| {
        move |(name, value): (String, String)| Header {
            name,
            value: Secret::new(value),
            secret,
        }
    };
    let open = args.headers.into_iter().map(header(false));
    let secret = args.secret_headers.into_iter().map(header(true));
    let headers: Vec<_> = open.chain(secret).collect();
    Ok(SettingsChange {
        name: args.name,
        description: args.description,
        priority: args.priority,
        headers: (!headers.is_empty()).then_some(headers),
        credentials,
        proxy: args.proxy.map(|proxy| match proxy {
            Proxy::Preconfigured => ProxyChoice::Preconfigured,
            Proxy::None => ProxyChoice::None,
            Proxy::Url(url) => ProxyChoice::Url(url),
        }),
        retry: says_retry.then_some(new_retry),
        notify: says_notify.then_some(new_notify),
        auto_complete: None,
    })
}

/// The change of settings that `job set` asks for; `None` when there is none.
pub(super) fn change_of(
    args: JobSetArgs,
    view: &JobView,
) -> Result<Option<SettingsChange>, Failure> {
    let (no_user, auto_complete) = (args.no_user, args.auto_complete);
    let keeps_webhook = says_notify(&args.settings) && args.settings.webhook.is_none();
    let notify = told_now(view, keeps_webhook)?;
    let mut change = change(args.settings, view.settings.retry, notify)?;
    if no_user {
        change.credentials = Some(CredentialsChange::Forget);
    }
    change.auto_complete = auto_complete;
    Ok((change != SettingsChange::default()).then_some(change))
}

/// The changes of URLs that `job set` asks for.
pub(super) fn requests(args: &JobSetArgs, view: &JobView) -> Result<Vec<Request>, Failure> {
    let mut requests = Vec::new();
    if let Some([from, to]) = args.replace_prefix.as_deref() {
        let (from, to) = (from.clone(), to.clone());
        requests.push(Request::ReplacePrefix { from, to });
    }
    if let Some([file, url]) = args.replace_url.as_deref() {
        let id = view.summary.id;
        let file = file.parse().map_err(|_| {
            usage(format!(
                "{file}: `branchline job show {id}` has the numbers of files"
            ))
        })?;
        requests.push(Request::ReplaceUrl {
            file: FileIndex(file),
            url: RemoteUrl::new(url.as_str()).map_err(usage)?,
        });
    }
    Ok(requests)
}

fn says_retry(args: &JobSettingsArgs) -> bool {
    let delays = args.retry_delay.or(args.max_retry_delay);
    let limits = args.no_progress_timeout.or(args.max_active);
    delays.or(limits).is_some()
}

fn says_notify(args: &JobSettingsArgs) -> bool {
    args.webhook.is_some() || args.notify_command.is_some() || !args.notify_on.is_empty()
}

fn retry_with(args: &JobSettingsArgs, now: RetryPolicy) -> RetryPolicy {
    RetryPolicy {
        min_delay: args.retry_delay.unwrap_or(now.min_delay),
        max_delay: args.max_retry_delay.unwrap_or(now.max_delay),
        no_progress_timeout: args.no_progress_timeout.unwrap_or(now.no_progress_timeout),
        max_active: args.max_active.unwrap_or(now.max_active),
    }
}

fn notify_with(args: &JobSettingsArgs, now: NotifySettings) -> Result<NotifySettings, Failure> {
    let command = args.notify_command.as_ref().map(|command| {
        let words = SHELL.into_iter().chain([command.as_str()]);
        let words = words.filter(|_| !command.is_empty());
        words.map(String::from).collect()
    });
    Ok(NotifySettings {
        webhook: match &args.webhook {
            Some(url) => Some(remote(url)?),
            None => now.webhook,
        },
        command: command.unwrap_or(now.command),
        of: match args.notify_on.as_slice() {
            [] => now.of,
            events => events.iter().copied().collect(),
        },
    })
}

/// Whom the job tells now. The agent does not give a webhook's password away, so that it must be said again.
fn told_now(view: &JobView, keeps_webhook: bool) -> Result<NotifySettings, Failure> {
    let settings = &view.settings;
    let webhook = settings.webhook.as_ref().filter(|_| keeps_webhook);
    let parsed = webhook.and_then(|url| Url::parse(url).ok());
    if parsed.is_some_and(|url| url.password().is_some()) {
        let message = "the password of the webhook is not told; give --webhook again, with it";
        return Err(usage(message));
    }
    Ok(NotifySettings {
        webhook: webhook
            .map(|url| RemoteUrl::new(url.as_str()).map_err(usage))
            .transpose()?,
        command: settings.command.clone(),
        of: settings.notify_of.clone(),
    })
}

/// The first line of a file, or of standard input.
fn password(file: &Path) -> Result<Secret, Failure> {
    let text = match file == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(file),
    };
    let text = text.map_err(|error| {
        let message = format!("job: --password-file {}: {error}", file.display());
        Failure::new(FailureKind::LocalDisk, message)
    })?;
    Ok(Secret::new(text.lines().next().unwrap_or_default()))
}
