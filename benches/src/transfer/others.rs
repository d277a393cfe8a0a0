//! Those whom Branchline is compared with.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use branchline_lab::{Finished, Host, Origin, OriginOptions, Process};

use crate::bare;
use crate::rqbit::{self, LocalDiscovery};
use crate::threads::Cpu;
use crate::transfer::{Contestant, FILE, Sample, Stage};
use crate::work::{ensure_same, remove};

/// The longest a transfer may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// sendme hashes the whole file before it offers it.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// A client run to its end beside a server that goes on.
fn sample(server: &mut Process, host: &Host, client: Command) -> Result<(Sample, Finished)> {
    let before = Cpu::from(server.measured()?);
    let begun = Instant::now();
    let finished = host.run(client, PATIENCE)?.success()?;
    let seconds = begun.elapsed().as_secs_f64();
    let after = server.measured()?;
    let sample = Sample {
        seconds,
        receiver: finished.measured.into(),
        sender: Cpu::from(after).since(before),
        receiver_peak_bytes: finished.measured.peak_resident_bytes,
        sender_peak_bytes: after.peak_resident_bytes,
    };
    Ok((sample, finished))
}

/// nginx and curl over TLS 1.3 and HTTP/1.1, which is faster here than HTTP/2.
pub(crate) struct Curl<'a> {
    stage: &'a Stage,
    nginx: Rc<RefCell<Origin>>,
    sync: bool,
}

impl<'a> Curl<'a> {
    /// curl alone, and curl followed by what Branchline does before it says that it is done.
    pub(crate) fn both(stage: &'a Stage) -> Result<[Self; 2]> {
        let options = OriginOptions::serving(&stage.www);
        let nginx = Origin::start(stage.lab.member(0), &options)?;
        let nginx = Rc::new(RefCell::new(nginx));
        Ok([false, true].map(|sync| Self {
            stage,
            nginx: Rc::clone(&nginx),
            sync,
        }))
    }
}

impl Contestant for Curl<'_> {
    fn name(&self) -> &'static str {
        match self.sync {
            false => "nginx + curl",
            true => "curl, then sync",
        }
    }

    fn run(&mut self, target: &Path) -> Result<Sample> {
        let mut nginx = self.nginx.borrow_mut();
        let script = match self.sync {
            false => r#"exec curl "$@""#,
            true => r#"curl "$@"; sync "$TARGET""#,
        };
        let mut client = Command::new("/bin/sh");
        client
            .args(["-euc", script, "sh"])
            .env("TARGET", target)
            .args(["--silent", "--show-error", "--fail"])
            .args(["--http1.1", "--tlsv1.3", "--cacert"])
            .arg(nginx.ca_certificate())
            .arg("--output")
            .arg(target)
            .arg(nginx.https_url(FILE));
        let host = self.stage.lab.member(1);
        Ok(sample(nginx.process(), host, client)?.0)
    }
}

/// The exchange's transport without the exchange, from memory to nowhere.
pub(crate) struct BareQuic<'a> {
    stage: &'a Stage,
    server: Process,
    line: String,
}

impl<'a> BareQuic<'a> {
    pub(crate) fn new(stage: &'a Stage) -> Result<Self> {
        let server = stage
            .lab
            .member(0)
            .spawn(bare::serve_command(stage.bytes)?)?;
        let line = server.wait_for_line(START_PATIENCE, |_| true)?;
        Ok(Self {
            stage,
            server,
            line,
        })
    }
}

impl Contestant for BareQuic<'_> {
    fn name(&self) -> &'static str {
        "bare quinn"
    }

    fn run(&mut self, _nothing_is_written: &Path) -> Result<Sample> {
        let address = self.stage.lab.member(0).address();
        let client = bare::fetch_command(&self.line, address, self.stage.bytes)?;
        let host = self.stage.lab.member(1);
        Ok(sample(&mut self.server, host, client)?.0)
    }
}

/// sendme, which is iroh-blobs: BLAKE3-verified, over QUIC.
pub(crate) struct Sendme<'a> {
    stage: &'a Stage,
    program: PathBuf,
    server: Process,
    ticket: String,
}

impl<'a> Sendme<'a> {
    pub(crate) fn new(stage: &'a Stage, program: PathBuf) -> Result<Self> {
        let mut send = Command::new(&program);
        send.args(["send", "--no-progress", "--relay", "disabled"]);
        send.args(["--ticket-type", "addresses"]).arg(stage.file());
        send.current_dir(stage.work.folder("sendme-sender")?);
        let server = stage.lab.member(0).spawn(send)?;
        let is_ticket = |line: &str| line.starts_with("sendme receive ");
        let line = server.wait_for_line(START_PATIENCE, is_ticket)?;
        let ticket = line.rsplit(' ').next().context("no ticket")?.to_owned();
        Ok(Self {
            stage,
            program,
            server,
            ticket,
        })
    }
}

impl Contestant for Sendme<'_> {
    fn name(&self) -> &'static str {
        "sendme"
    }

    fn run(&mut self, _it_chooses_the_name: &Path) -> Result<Sample> {
        let folder = self.stage.work.folder("sendme-receiver")?;
        let mut receive = Command::new(&self.program);
        receive.args([
            "receive",
            "--no-progress",
            "--relay",
            "disabled",
            &self.ticket,
        ]);
        receive.current_dir(&folder);
        let host = self.stage.lab.member(1);
        let (sample, _) = sample(&mut self.server, host, receive)?;
        ensure_same(&self.stage.file(), &folder.join(FILE))?;
        Ok(sample)
    }

    fn clean_up(&mut self) -> Result<()> {
        remove(&self.stage.work.path("sendme-receiver"))
    }
}

pub(crate) struct Rqbit<'a> {
    stage: &'a Stage,
    program: PathBuf,
    server: Process,
    magnet: String,
}

impl<'a> Rqbit<'a> {
    pub(crate) fn new(stage: &'a Stage, program: PathBuf) -> Result<Self> {
        let command = rqbit(&program, stage)?;
        let (server, magnet) = rqbit::share(command, stage.lab.member(0), &stage.file())?;
        Ok(Self {
            stage,
            program,
            server,
            magnet,
        })
    }
}

fn rqbit(program: &Path, stage: &Stage) -> Result<Command> {
    rqbit::command(program, &stage.work.path("rqbit-home"), LocalDiscovery::Off)
}

impl Contestant for Rqbit<'_> {
    fn name(&self) -> &'static str {
        "rqbit"
    }

    fn run(&mut self, _it_chooses_the_name: &Path) -> Result<Sample> {
        let folder = self.stage.work.folder("rqbit-receiver")?;
        let mut command = rqbit(&self.program, self.stage)?;
        command.args(["-v", "error"]);
        let seed = self.stage.lab.member(0);
        rqbit::download(&mut command, [seed], &folder, &self.magnet);
        command.arg("--exit-on-finish");
        let host = self.stage.lab.member(1);
        let (sample, _) = sample(&mut self.server, host, command)?;
        ensure_same(&self.stage.file(), &folder.join(FILE))?;
        Ok(sample)
    }

    fn clean_up(&mut self) -> Result<()> {
        remove(&self.stage.work.path("rqbit-receiver"))
    }
}
