//! One transfer of one file of a job, by the engine.

use std::path::Path;
use std::time::Duration;

use branchline_core::jobs::{
    BySource, ByteRange, ErrorContext, Event, Failure, Live, Order, Proof, ProxyChoice, Trouble,
};
use branchline_hashing::Digest;
use branchline_origin::{NetworkKind, OriginError, Retry};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::placing;
use crate::api::{GetRequest, Progress};
use crate::engine::{Downloads, Errand, GetError, Login, Part, PartialError, Word};
use crate::owner::Owner;

/// How often the desk hears how far a transfer is: people look no more often.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// A thread that writes ends after what it was given last, also when the disk is slow.
const LOCK_TIME: Duration = Duration::from_secs(10);

/// How often the lock is looked at.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Transfers until the file is there, or it ends otherwise, or is cancelled; `tell` hears all of it. The last
/// event ends the attempt.
pub(super) async fn run<F: Future<Output = ()>>(
    downloads: Downloads,
    order: Order,
    cancel: CancellationToken,
    tell: impl Fn(Event) -> F,
) {
    let last = match errand(order) {
        Ok(errand) => {
            placing::take_up_staged(errand.owner, errand.appears_at.clone()).await;
            attempt(&downloads, errand, &cancel, &tell).await
        }
        Err(cause) => Event::Failed(Failure::Permanent {
            trouble: Trouble::new(ErrorContext::RemoteFile, &cause),
        }),
    };
    tell(last).await;
}

/// Transfers. The writer of the attempt before may still hold the partial file, for moments.
async fn attempt<F: Future<Output = ()>>(
    downloads: &Downloads,
    errand: Errand,
    cancel: &CancellationToken,
    tell: &impl Fn(Event) -> F,
) -> Event {
    let until = Instant::now() + LOCK_TIME;
    let target = errand.request.path.clone();
    loop {
        match follow(downloads.start(errand.clone()), &target, cancel, tell).await {
            Ended::InUse(_) if Instant::now() < until && !cancel.is_cancelled() => {
                tokio::time::sleep(LOCK_POLL).await;
            }
            Ended::InUse(last) | Ended::Otherwise(last) => return last,
        }
    }
}

/// How an attempt ended.
#[derive(Debug)]
enum Ended {
    /// Somebody else writes to the partial file.
    InUse(Event),
    Otherwise(Event),
}

fn errand(order: Order) -> Result<Errand, String> {
    let url = Url::parse(order.url.expose());
    let url = url.map_err(|error| format!("{}: {error}; replace the URL", order.url))?;
    let (sha256, blake3) = match order.digest {
        Some(Digest::Sha256(digest)) => (Some(digest), None),
        Some(Digest::Blake3(digest)) => (None, Some(digest)),
        None => (None, None),
    };
    let headers = order.headers.iter();
    let headers = headers.map(|header| (header.name.clone(), header.value.expose().to_owned()));
    Ok(Errand {
        request: GetRequest {
            url,
            path: order.path.as_path().to_owned(),
            sha256,
            blake3,
            headers: headers.collect(),
            without_manifest: order.without_manifest,
        },
        appears_at: order.staged,
        owner: Owner::of(order.owner.0),
        proxy: proxy_of(&order.proxy),
        parts: order.ranges.iter().map(part).collect(),
        login: order.credentials.map(|credentials| Login {
            user: credentials.user,
            password: credentials.password.expose().to_owned(),
        }),
    })
}

/// What the origin's client is told; `None` for what it does anyway.
pub(crate) fn proxy_of(choice: &ProxyChoice) -> Option<branchline_origin::ProxyChoice> {
    match choice {
        ProxyChoice::Preconfigured => None,
        ProxyChoice::None => Some(branchline_origin::ProxyChoice::Direct),
        ProxyChoice::Url(url) => Some(branchline_origin::ProxyChoice::Through {
            url: url.expose().to_owned(),
            except: String::new(),
        }),
    }
}

fn part(range: &ByteRange) -> Part {
    Part {
        first: range.first,
        length: range.length,
    }
}

async fn follow<F: Future<Output = ()>>(
    (mut words, task): (mpsc::Receiver<Word>, JoinHandle<()>),
    target: &Path,
    cancel: &CancellationToken,
    tell: &impl Fn(Event) -> F,
) -> Ended {
    let mut connected = false;
    let mut reported: Option<Instant> = None;
    loop {
        let word = tokio::select! {
            biased;
            word = words.recv() => word,
            () = cancel.cancelled() => break,
        };
        match word {
            Some(Word::Progress(progress)) => {
                // Not every origin says how long a file is.
                let answered = progress.bytes.is_some() || progress.bytes_done() > 0;
                if answered && !connected {
                    connected = true;
                    let length = progress.bytes;
                    tell(Event::Connected { length }).await;
                }
                if connected && reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
                    reported = Some(Instant::now());
                    let (bytes, sources) = (progress.bytes_done(), sources(&progress));
                    tell(Event::Progress { bytes, sources }).await;
                    let live = Live {
                        peers: progress.peers,
                        waiting_for: progress.waiting_for,
                    };
                    tell(Event::Live(live)).await;
                }
            }
            Some(Word::Notice(notice)) => tell(Event::Notice(notice)).await,
            Some(Word::Ended(Ok(report))) => {
                return Ended::Otherwise(Event::Staged {
                    bytes: report.bytes,
                    sources: BySource {
                        from_origin: report.from_origin,
                        from_peers: report.from_peers,
                        from_store: report.from_store,
                    },
                    proof: Proof {
                        content: report.content,
                        trust: report.trust,
                    },
                });
            }
            Some(Word::Ended(Err(error @ GetError::Local(PartialError::InUse { .. })))) => {
                return Ended::InUse(ended(&error, target));
            }
            Some(Word::Ended(Err(error))) => return Ended::Otherwise(ended(&error, target)),
            None => return Ended::Otherwise(Event::Stopped),
        }
    }
    drop(words);
    // Its partial file must not be in use any more when the next attempt opens it. A panic there was told of already.
    let _ = task.await;
    Ended::Otherwise(Event::Stopped)
}

fn sources(progress: &Progress) -> BySource {
    BySource {
        from_origin: progress.from_origin,
        from_peers: progress.from_peers,
        from_store: progress.from_store,
    }
}

/// What an error means for a job.
fn ended(error: &GetError, target: &Path) -> Event {
    let (context, outlook) = match error {
        GetError::Target(_) | GetError::NoSuchRange { .. } => {
            (ErrorContext::RemoteFile, Outlook::Permanent)
        }
        GetError::Origin(error) => of_origin(error),
        GetError::Local(PartialError::InUse { .. }) => {
            (ErrorContext::LocalFile, Outlook::Transient(None))
        }
        GetError::Local(
            PartialError::BadTarget { .. }
            | PartialError::DiskFull { .. }
            | PartialError::Io { .. },
        ) => (ErrorContext::LocalFile, Outlook::Permanent),
        GetError::Store(_) => (ErrorContext::LocalFile, Outlook::Transient(None)),
        GetError::Stale { .. } | GetError::BadManifest { .. } | GetError::WrongDigest { .. } => {
            (ErrorContext::Verification, Outlook::Permanent)
        }
        GetError::KeepsChanging { .. } => return Event::Modified,
        GetError::NobodyHasIt { .. } => (ErrorContext::Transport, Outlook::Transient(None)),
        GetError::Cancelled => return Event::Stopped,
    };
    let cause = if let GetError::Local(error) = error {
        error.of_job(target)
    } else {
        error.to_string()
    };
    let trouble = Trouble::new(context, &cause);
    match outlook {
        Outlook::Permanent => Event::Failed(Failure::Permanent { trouble }),
        Outlook::Transient(retry_after) => Event::Failed(Failure::Transient {
            trouble,
            retry_after,
        }),
        Outlook::Modified => Event::Modified,
    }
}

enum Outlook {
    Permanent,
    Transient(Option<Duration>),
    Modified,
}

fn of_origin(error: &OriginError) -> (ErrorContext, Outlook) {
    let outlook = match error.retry() {
        Retry::Never => Outlook::Permanent,
        Retry::Backoff => Outlook::Transient(None),
        Retry::After(wait) => Outlook::Transient(Some(wait)),
        Retry::StartAnew => Outlook::Modified,
    };
    match error {
        // Whoever mends the certificate, or the clock, does not know of this job.
        OriginError::Network {
            kind: NetworkKind::Certificate,
            ..
        } => (ErrorContext::Transport, Outlook::Transient(None)),
        OriginError::Network { .. }
        | OriginError::Stalled { .. }
        | OriginError::Truncated { .. } => (ErrorContext::Transport, outlook),
        OriginError::Unavailable { .. }
        | OriginError::UnsupportedScheme { .. }
        | OriginError::Refused { .. }
        | OriginError::NotFound { .. }
        | OriginError::Overlong { .. }
        | OriginError::Changed { .. }
        | OriginError::CannotResume { .. }
        | OriginError::BadRange { .. }
        | OriginError::BadAnswer { .. }
        | OriginError::TooManyRedirects { .. } => (ErrorContext::RemoteFile, outlook),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What the desk hears of a download that says this and ends cancelled.
    async fn heard(said: Vec<Progress>) -> Vec<Event> {
        let (sender, words) = mpsc::channel(8);
        let task = tokio::spawn(async move {
            for progress in said {
                sender.send(Word::Progress(progress)).await.expect("heard");
            }
            let ended = Word::Ended(Err(GetError::Cancelled));
            sender.send(ended).await.expect("heard");
        });
        let heard = Mutex::new(Vec::new());
        let tell = |event| {
            heard.lock().expect("one thread").push(event);
            std::future::ready(())
        };
        let last = follow(
            (words, task),
            Path::new("/f"),
            &CancellationToken::new(),
            &tell,
        )
        .await;
        let Ended::Otherwise(last) = last else {
            panic!("{last:?}")
        };
        let mut heard = heard.into_inner().expect("one thread");
        heard.push(last);
        heard
    }

    #[tokio::test]
    async fn a_file_of_unknown_length_comes_forward_like_any_other() {
        let nothing_yet = Progress::default();
        let some = Progress {
            from_origin: 5,
            ..Progress::default()
        };
        let events = heard(vec![nothing_yet, some]).await;
        let sources = BySource {
            from_origin: 5,
            ..BySource::default()
        };
        let wanted = [
            Event::Connected { length: None },
            Event::Progress { bytes: 5, sources },
            Event::Live(Live::default()),
            Event::Stopped,
        ];
        assert_eq!(events, wanted);
    }

    #[test]
    fn what_a_server_says_of_later_is_kept_and_a_certificate_may_be_mended() {
        let at = branchline_origin::Target::new("https://origin/f", [])
            .expect("a target")
            .place();
        let wait = Some(Duration::from_secs(7));
        let busy = OriginError::Unavailable {
            at: at.clone(),
            status: 503,
            retry_after: wait,
        };
        let failed = ended(&GetError::Origin(busy), Path::new("/f"));
        assert!(
            matches!(&failed, Event::Failed(Failure::Transient { retry_after, .. }) if *retry_after == wait),
            "{failed:?}"
        );
        let certificate = OriginError::Network {
            at: at.clone(),
            kind: NetworkKind::Certificate,
            cause: "expired".into(),
        };
        let failed = ended(&GetError::Origin(certificate), Path::new("/f"));
        assert!(
            matches!(
                failed,
                Event::Failed(Failure::Transient {
                    retry_after: None,
                    ..
                })
            ),
            "{failed:?}"
        );
        let gone = OriginError::NotFound { at, status: 404 };
        let failed = ended(&GetError::Origin(gone), Path::new("/f"));
        assert!(
            matches!(failed, Event::Failed(Failure::Permanent { .. })),
            "{failed:?}"
        );
    }
}
