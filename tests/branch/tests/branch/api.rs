//! The control API, as its description has it, asked by a program that makes up requests.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use branchline_branch_tests::{Branch, Setup};

/// Some dozens of requests for each operation take a minute on two cores.
const API_PATIENCE: Duration = Duration::from_secs(300);

/// What an answer is held against. Not whether each request that breaks the description is refused: it is stricter in places
/// than the agent, in what a number or a text may be.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance,ignored_auth,unsupported_method";

/// Where `scripts/setup test` puts schemathesis.
fn schemathesis() -> Result<PathBuf> {
    let program = match env::var_os("BRANCHLINE_SCHEMATHESIS") {
        Some(program) => PathBuf::from(program),
        None => {
            let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
            let cache = cache
                .or_else(home)
                .context("neither XDG_CACHE_HOME nor HOME is set")?;
            cache.join("branchline/tools/schemathesis/bin/schemathesis")
        }
    };
    let there = program.is_file();
    ensure!(
        there,
        "no {}; `scripts/setup test` installs it",
        program.display()
    );
    Ok(program)
}

/// In the namespace of the machine, from which no request of a made-up job leads anywhere.
#[test]
fn nothing_that_can_be_asked_is_a_server_error() -> Result<()> {
    let mut branch = Branch::start(Setup::fast(1))?;
    branch
        .machine(0)
        .configure("discovery.enabled = false\ncontrol.listen = \"127.0.0.1:403\"\n")?;
    branch.machine_mut(0).start_agent()?;
    let machine = branch.machine(0);
    // Those that the description takes for its examples.
    for number in 1..=3 {
        let url = branch.url(&format!("f{number}"));
        let target = machine
            .home()
            .join(format!("f{number}"))
            .display()
            .to_string();
        machine.json(&["job", "create", &url, "-o", &target, "--suspended"])?;
    }
    let token = std::fs::read_to_string(machine.state_dir().join("control.token"))?;
    let mut run = Command::new(schemathesis()?);
    run.args(["run", "http://127.0.0.1:403/v1/openapi.json", "--no-color"])
        .args(["--checks", CHECKS])
        .args([
            "--header",
            &format!("Authorization: Bearer {}", token.trim()),
        ])
        // The stream of events has no end.
        .args(["--exclude-path", "/v1/events"])
        .args(["--phases", "examples,fuzzing"])
        .args([
            "--max-examples",
            "60",
            "--seed",
            "1",
            "--request-timeout",
            "10",
        ])
        .args(["--generation-database", "none", "--workers", "2"])
        .current_dir(machine.home());
    let ran = machine.host().run(run, API_PATIENCE)?;
    ensure!(ran.status.success(), "{}\n{}", ran.text(), ran.error_text());
    println!("{}", ran.text());
    let status = machine.json(&["status"])?;
    ensure!(status["uptime_seconds"].is_number(), "{status}");
    Ok(())
}
