//! `branchline get`
//!
//! A running agent does it as a job, which goes on when this command does not; without an agent, the same engine runs in
//! this process. Which of them it is makes no difference to what is seen.

mod here;
mod job;

use std::time::Duration;

use branchline_agent::api::{Failure, FailureKind, GetReport, GetRequest, without_password};

use crate::args::GetArgs;
use crate::context::Context;
use crate::output::{self, bytes};
use crate::signals::Stop;
use crate::target::target;

use job::JobGet;

/// An agent answers in milliseconds; who interrupts does not wait long.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Downloads one file.
pub(super) async fn run(args: GetArgs, context: &Context) -> Result<(), Failure> {
    let (json, cancels) = (args.json, args.cancel_on_interrupt);
    let request = request(args)?;
    let mut signals = Stop::listen()?;
    let mut taking_up = Box::pin(JobGet::take_up(&request, context.client()?));
    let taken_up = tokio::select! {
        taken_up = &mut taking_up => taken_up?,
        () = signals.requested() => {
            // The agent may have heard of it: then it is left as one that runs.
            let left = match tokio::time::timeout(ANSWER_TIME, taking_up).await {
                Ok(Ok(Some(job))) => job.leave(cancels).await,
                Ok(Ok(None) | Err(_)) | Err(_) => "the same command goes on".to_owned(),
            };
            return Err(interrupted(&request, &left));
        }
    };
    let Some(mut job) = taken_up else {
        return here::run(request.clone(), context, &mut signals, json).await;
    };
    let outcome = tokio::select! {
        outcome = job.follow() => outcome,
        () = signals.requested() => {
            let left = job.leave(cancels).await;
            return Err(interrupted(&request, &left));
        }
    };
    show(&outcome?, json)
}

fn request(args: GetArgs) -> Result<GetRequest, Failure> {
    let GetArgs {
        url,
        output,
        sha256,
        blake3,
        headers,
        without_manifest,
        cancel_on_interrupt: _,
        json: _,
    } = args;
    let path = target(&url, output.as_deref())?;
    Ok(GetRequest {
        url,
        path,
        sha256,
        blake3,
        headers,
        without_manifest,
    })
}

fn show(report: &GetReport, json: bool) -> Result<(), Failure> {
    match json {
        true => output::print_json(report),
        false => output::print(&summary(report)),
    }
}

fn interrupted(request: &GetRequest, what_now: &str) -> Failure {
    let url = without_password(&request.url);
    let message = format!("get: {url}: interrupted; {what_now}");
    Failure::new(FailureKind::Interrupted, message)
}

fn summary(report: &GetReport) -> String {
    let GetReport {
        path,
        from_origin,
        from_peers,
        from_store,
        seconds,
        trust,
        ..
    } = report;
    let line = format!(
        "{}: {} in {seconds:.1} s: {} from the origin, {} from peers, {} from the store; trust: {trust}",
        path.display(),
        bytes(report.bytes),
        bytes(*from_origin),
        bytes(*from_peers),
        bytes(*from_store),
    );
    output::printable(&line) + "\n"
}

#[cfg(test)]
mod tests {
    use branchline_agent::api::Trust;
    use branchline_hashing::ContentKey;

    use super::*;

    fn report() -> GetReport {
        GetReport {
            url: "https://origin.example/f.iso".parse().expect("a URL"),
            path: "/srv/f.iso".into(),
            bytes: 10 << 20,
            from_origin: 1 << 20,
            from_peers: 9 << 20,
            from_store: 0,
            seconds: 1.25,
            content: ContentKey::from_bytes([0xab; 32]),
            trust: Trust::Manifest,
            notices: Vec::new(),
            job: None,
        }
    }

    #[test]
    fn a_finished_download_reads_so() {
        insta::assert_snapshot!(summary(&report()), @"/srv/f.iso: 10.00 MiB in 1.2 s: 1.00 MiB from the origin, 9.00 MiB from peers, 0 B from the store; trust: manifest");
        let json = serde_json::to_string(&report()).expect("plain data");
        insta::assert_snapshot!(json, @r#"{"url":"https://origin.example/f.iso","path":"/srv/f.iso","bytes":10485760,"from_origin":1048576,"from_peers":9437184,"from_store":0,"seconds":1.25,"content":"abababababababababababababababababababababababababababababababab","trust":"manifest","notices":[]}"#);
    }

    #[test]
    fn an_interruption_says_how_to_go_on() {
        let url = "https://u:secret@origin.example/f.iso"
            .parse()
            .expect("a URL");
        let request = GetRequest {
            url,
            path: "/srv/f.iso".into(),
            sha256: None,
            blake3: None,
            headers: Vec::new(),
            without_manifest: false,
        };
        let failure = interrupted(&request, here::GO_ON);
        assert_eq!(failure.kind.exit_code(), 130);
        insta::assert_snapshot!(failure, @"get: https://u:***@origin.example/f.iso: interrupted; the partial file stays, and the same command goes on from there");
    }
}
