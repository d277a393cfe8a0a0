//! `branchline get`
//!
//! A running agent does the work; without one, the same engine runs in this process. Which of
//! them it is makes no difference to what is seen.

use std::time::Duration;

use branchline_agent::api::{
    Failure, FailureKind, GetEvent, GetReport, GetRequest, without_password,
};
use branchline_agent::control::{ClientError, GetStream};
use branchline_agent::service::{Here, get_here};

use crate::args::GetArgs;
use crate::context::Context;
use crate::output::{self, Bar, bytes};
use crate::signals::Stop;
use crate::target::target;

/// What an interrupted engine may take to give back what it holds.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);

/// Downloads one file.
pub(super) async fn run(args: GetArgs, context: &Context) -> Result<(), Failure> {
    let json = args.json;
    let request = request(args)?;
    let mut signals = Stop::listen()?;
    let mut events = tokio::select! {
        events = Events::start(&request, context) => events?,
        () = signals.requested() => return Err(interrupted(&request)),
    };
    let outcome = tokio::select! {
        outcome = follow(&mut events) => outcome.and_then(|report| show(&report, json)),
        () = signals.requested() => Err(interrupted(&request)),
    };
    // Now whoever waits for the file has it. What remains is to keep it for others, and that may be
    // interrupted again.
    let keep_on = outcome.is_ok();
    let ended = tokio::select! {
        () = events.finish() => true,
        () = signals.requested() => false,
        () = tokio::time::sleep(STOP_TIMEOUT), if !keep_on => false,
    };
    if !ended {
        tracing::warn!("the engine was not waited for");
    }
    outcome
}

fn request(args: GetArgs) -> Result<GetRequest, Failure> {
    let GetArgs {
        url,
        output,
        sha256,
        blake3,
        headers,
        without_manifest,
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

/// To the last event.
async fn follow(events: &mut Events) -> Result<GetReport, Failure> {
    let bar = Bar::new();
    loop {
        match events.next().await? {
            GetEvent::Progress(progress) => bar.show(&progress),
            GetEvent::Notice(notice) => bar.aside(|| output::complain(&notice)),
            GetEvent::Done(report) => return Ok(report),
            GetEvent::Failed(failure) => return Err(failure),
        }
    }
}

/// Of an agent, or of the engine in this process.
enum Events {
    Agent(Box<GetStream>),
    Here(Here),
}

impl Events {
    async fn start(request: &GetRequest, context: &Context) -> Result<Self, Failure> {
        match context.client()?.get(request).await {
            Ok(stream) => Ok(Self::Agent(Box::new(stream))),
            Err(ClientError::NotRunning { .. }) => {
                let (config, state_dir) = (context.config()?, context.state_dir()?);
                Ok(Self::Here(get_here(config, &state_dir, request.clone())))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn next(&mut self) -> Result<GetEvent, Failure> {
        match self {
            Self::Agent(stream) => Ok(stream.next().await?),
            Self::Here(here) => here.next().await.ok_or_else(|| {
                let message = "get: the engine ended without a word; BRANCHLINE_LOG=info says more";
                Failure::new(FailureKind::AgentUnreachable, message)
            }),
        }
    }

    /// Cancels what is not done. An agent notices that the command has gone; the engine in this
    /// process gives back what it holds.
    async fn finish(self) {
        match self {
            Self::Agent(stream) => drop(stream),
            Self::Here(here) => here.finish().await,
        }
    }
}

fn show(report: &GetReport, json: bool) -> Result<(), Failure> {
    match json {
        true => output::print_json(report),
        false => output::print(&summary(report)),
    }
}

fn interrupted(request: &GetRequest) -> Failure {
    let url = without_password(&request.url);
    let message = format!(
        "get: {url}: interrupted; the partial file stays, and the same command goes on from there"
    );
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
        let failure = interrupted(&request);
        assert_eq!(failure.kind.exit_code(), 130);
        insta::assert_snapshot!(failure, @"get: https://u:***@origin.example/f.iso: interrupted; the partial file stays, and the same command goes on from there");
    }
}
