//! One process inside a host: its output, its end, what it used.

use std::fs;
use std::io::PipeReader;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::capture::{Capture, LineWait};
use crate::sys::enter::{Report, read_report};

/// How long output may lag behind the end of its process.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// How long a killed process may take to disappear (it may be in the middle of a big fsync).
const KILL_PATIENCE: Duration = Duration::from_secs(60);

/// A process in a host of the lab. Dropping it kills it.
pub struct Process {
    name: String,
    waiter: Child,
    pid: Pid,
    /// `None` when the process had ended before it could be opened.
    pidfd: Option<OwnedFd>,
    report: PipeReader,
    stdout: Capture,
    stderr: Capture,
    started: Instant,
    end: Option<End>,
}

#[derive(Clone, Copy)]
struct End {
    status: ExitStatus,
    measured: Measured,
    elapsed: Duration,
}

/// CPU time and memory that a process used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// Peak resident set. Of a running process the exact figure of its program; of a finished one
    /// the kernel's `ru_maxrss`, which is never below what the lab's own process occupied at the
    /// fork (a few MiB).
    pub peak_resident_bytes: u64,
}

impl Measured {
    /// User and system time together.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

/// A process that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub name: String,
    /// Exit code or signal.
    pub status: ExitStatus,
    /// All it printed (up to 64 MiB).
    pub stdout: Vec<u8>,
    /// All it complained about (up to 64 MiB).
    pub stderr: Vec<u8>,
    /// What it used, with the children it waited for.
    pub measured: Measured,
    /// From start to end.
    pub elapsed: Duration,
}

impl Finished {
    /// Itself when the exit code was 0, else an error with what was printed on stderr.
    ///
    /// # Errors
    /// When the process ended in any other way.
    pub fn success(self) -> Result<Self> {
        ensure!(
            self.status.success(),
            "`{}` ended with {}: {}",
            self.name,
            self.status,
            String::from_utf8_lossy(&self.stderr).trim_end()
        );
        Ok(self)
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl Process {
    /// Takes over what the keeper spawned, once the waiter has told the program's process id.
    pub(crate) fn adopt(name: String, mut waiter: Child, mut report: PipeReader) -> Result<Self> {
        let started = Instant::now();
        let pid = loop {
            match read_report(&mut report)? {
                Some(Report::Started(pid)) => break Pid::from_raw(pid),
                Some(Report::Failed(_) | Report::Exited { .. }) => {}
                None => bail!("`{name}`: its waiter was killed before it started"),
            }
        };
        let pid = pid.with_context(|| format!("`{name}`: no process id"))?;
        let stdout = waiter
            .stdout
            .take()
            .map(Capture::start)
            .context("stdout not captured")?;
        let stderr = waiter
            .stderr
            .take()
            .map(Capture::start)
            .context("stderr not captured")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
        Ok(Self {
            name,
            waiter,
            pid,
            pidfd,
            report,
            stdout,
            stderr,
            started,
            end: None,
        })
    }

    pub(crate) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.waiter.stdin.take()
    }

    /// Its process id in the machine's `/proc`.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Its command line.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.end.is_none() && !self.poll_end(Duration::ZERO).unwrap_or(true)
    }

    /// All it has printed so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// All it has complained about so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until a whole line on stdout satisfies `wanted`; lines already printed count.
    ///
    /// # Errors
    /// When stdout is closed or `patience` ends first; the message holds what was printed.
    pub fn wait_for_line(
        &self,
        patience: Duration,
        wanted: impl FnMut(&str) -> bool,
    ) -> Result<String> {
        let why = match self.stdout.wait_line(patience, wanted) {
            LineWait::Found(line) => return Ok(line),
            LineWait::Closed => "closed its output without the line waited for".to_owned(),
            LineWait::TimedOut => format!("did not print the line waited for in {patience:?}"),
        };
        self.stderr.wait_closed(Duration::from_millis(100));
        Err(anyhow!(
            "`{}` {why}; stdout: {:?}; stderr: {:?}",
            self.name,
            self.stdout(),
            self.stderr()
        ))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `patience`; it goes on running.
    pub fn wait(&mut self, patience: Duration) -> Result<Finished> {
        if self.end.is_none() && !self.poll_end(patience)? {
            bail!(
                "`{}` still runs after {patience:?}; stderr: {:?}",
                self.name,
                self.stderr()
            );
        }
        let end = self.end.context("no end recorded")?;
        self.stdout.wait_closed(OUTPUT_PATIENCE);
        self.stderr.wait_closed(OUTPUT_PATIENCE);
        Ok(Finished {
            name: self.name.clone(),
            status: end.status,
            stdout: self.stdout.bytes(),
            stderr: self.stderr.bytes(),
            measured: end.measured,
            elapsed: end.elapsed,
        })
    }

    /// Sends a signal, SIGSTOP and SIGCONT included. To a process that has ended, nothing happens.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pidfd) = &self.pidfd else {
            return Ok(());
        };
        match pidfd_send_signal(pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno).with_context(|| format!("cannot signal `{}`", self.name)),
        }
    }

    /// SIGKILL, and waits until it is gone: its files are closed and its locks free.
    ///
    /// # Errors
    /// When it cannot be signalled or does not go.
    pub fn kill(&mut self) -> Result<Finished> {
        self.signal(Signal::KILL)?;
        self.wait(KILL_PATIENCE)
    }

    /// SIGTERM, and waits for its own orderly end.
    ///
    /// # Errors
    /// When it cannot be signalled or takes longer than `patience`.
    pub fn terminate(&mut self, patience: Duration) -> Result<Finished> {
        self.signal(Signal::TERM)?;
        self.wait(patience)
    }

    /// What it has used up to now, or at its end.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn measured(&mut self) -> Result<Measured> {
        if self.is_running() {
            return measure(self.pid());
        }
        Ok(self.end.context("no end recorded")?.measured)
    }

    /// Waits for the exit report; true when the process has ended.
    fn poll_end(&mut self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !readable(&self.report, left)? {
                return Ok(false);
            }
            let report = read_report(&mut self.report)?;
            if let Some(end) = self.end_of(report)? {
                self.end = Some(end);
                return Ok(true);
            }
        }
    }

    fn end_of(&mut self, report: Option<Report>) -> Result<Option<End>> {
        let (status, measured) = match report {
            Some(Report::Started(_) | Report::Failed(_)) => return Ok(None),
            Some(Report::Exited {
                status,
                user_micros,
                system_micros,
                peak_kib,
            }) => {
                let measured = Measured {
                    user: Duration::from_micros(user_micros),
                    system: Duration::from_micros(system_micros),
                    peak_resident_bytes: peak_kib * 1024,
                };
                (Some(ExitStatus::from_raw(status)), measured)
            }
            None => (None, Measured::default()),
        };
        let waiter_status = self.waiter.wait()?;
        let status = status.unwrap_or(waiter_status);
        Ok(Some(End {
            status,
            measured,
            elapsed: self.started.elapsed(),
        }))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            // Best effort: should it linger, it ends with the lab's first process at the latest.
            let _ = self.signal(Signal::KILL);
            let _ = self.poll_end(KILL_PATIENCE);
        }
    }
}

pub(crate) fn readable(fd: impl AsFd, patience: Duration) -> Result<bool> {
    let timeout = Timespec::try_from(patience).context("wait too long")?;
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot poll"),
        }
    }
}

fn measure(pid: i32) -> Result<Measured> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let (user, system) = cpu_of_stat(&stat).with_context(|| format!("odd stat: {stat}"))?;
    let peak_kib = peak_of_status(&status).unwrap_or(0);
    Ok(Measured {
        user,
        system,
        peak_resident_bytes: peak_kib * 1024,
    })
}

/// utime and stime are fields 14 and 15 of proc_pid_stat(5); field 2 may hold spaces, so counting
/// starts after its closing parenthesis.
fn cpu_of_stat(stat: &str) -> Option<(Duration, Duration)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    let mut time = || -> Option<Duration> {
        let ticks: u64 = fields.next()?.parse().ok()?;
        Some(Duration::from_millis(ticks * 1000 / ticks_per_second))
    };
    Some((time()?, time()?))
}

fn peak_of_status(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_name_with_spaces_and_parentheses() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4 1 2 3 4 250 50 9 9 20 0 1 0";
        let ticks = rustix::param::clock_ticks_per_second();
        let expected = (
            Duration::from_millis(250 * 1000 / ticks),
            Duration::from_millis(50 * 1000 / ticks),
        );
        assert_eq!(cpu_of_stat(stat), Some(expected));
    }

    #[test]
    fn peak_memory_is_read_from_status() {
        assert_eq!(
            peak_of_status("Name:\tx\nVmHWM:\t    5236 kB\nVmRSS:\t 1 kB\n"),
            Some(5236)
        );
        assert_eq!(peak_of_status("Name:\tzombie\n"), None);
    }
}
