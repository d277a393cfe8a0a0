//! The lab's namespaces and the thread that all its processes are children of.
//!
//! One user namespace (for an ordinary user), one PID namespace whose first process ends with this
//! process, one parent mount namespace with a scratch tmpfs. They are held open as descriptors.
//!
//! The parent-death signal follows the *thread* that forked: were a test's short-lived thread to
//! spawn an agent, the agent would die with that thread. So one thread, the keeper, spawns all.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{CapabilitySet, LinkNameSpaceType};

use crate::lab::Privilege;
use crate::process::Process;
use crate::sys::enter::{Creation, Entrance, IdMaps, Report, prepare, read_report};

/// Directories that a machine has and seldom uses; the first empty one is covered by the scratch.
const SCRATCH_CANDIDATES: [&str; 5] = ["/srv", "/media", "/mnt", "/boot", "/opt"];

/// A namespace to join; the kind is checked by the kernel.
pub(crate) type Membership = (Arc<OwnedFd>, Option<LinkNameSpaceType>);

/// What all hosts of a lab share.
pub(crate) struct Namespaces {
    keeper: Keeper,
    init: Mutex<Process>,
    init_pid: i32,
    user: Option<Membership>,
    mounts: Membership,
    processes: Membership,
    scratch: PathBuf,
}

impl Namespaces {
    pub(crate) fn create(privilege: Privilege) -> Result<Self> {
        let keeper = Keeper::start();
        let user_namespace = match privilege {
            Privilege::Automatic => !may_administrate(),
            Privilege::UserNamespace => true,
        };
        let scratch = empty_directory()?;
        let creation = Creation {
            user: user_namespace.then(IdMaps::of_this_user),
            pid: true,
            network: true,
            scratch: Some(c_string(&scratch)?),
            host_name: None,
        };
        let entrance = Entrance {
            create: Some(creation),
            ..Entrance::at(Path::new("/"))?
        };
        let mut sleep = Command::new("sleep");
        sleep.arg("infinity");
        let init = keeper
            .spawn(sleep, entrance, Stdio::null())
            .context("cannot make the lab")?;
        let pid = init.pid();
        let user = user_namespace.then(|| namespace_of(pid, "user", LinkNameSpaceType::User));
        Ok(Self {
            user: user.transpose()?,
            mounts: namespace_of(pid, "mnt", LinkNameSpaceType::Mount)?,
            processes: namespace_of(pid, "pid", LinkNameSpaceType::ProcessID)?,
            init_pid: pid,
            init: Mutex::new(init),
            keeper,
            scratch,
        })
    }

    /// Starts `command` by `entrance`; the lab's environment has no proxies.
    pub(crate) fn spawn(
        &self,
        command: Command,
        entrance: Entrance,
        stdin: Stdio,
    ) -> Result<Process> {
        self.keeper.spawn(command, entrance, stdin)
    }

    /// What a host that is still to be made joins first.
    pub(crate) fn outer(&self) -> Vec<Membership> {
        let outer = [
            self.user.clone(),
            Some(self.mounts.clone()),
            Some(self.processes.clone()),
        ];
        outer.into_iter().flatten().collect()
    }

    /// What a process in a host joins besides the host's own namespaces.
    pub(crate) fn common(&self) -> Vec<Membership> {
        self.user
            .iter()
            .cloned()
            .chain([self.processes.clone()])
            .collect()
    }

    /// The scratch directory as processes in hosts see it.
    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The same directory as this process sees it.
    pub(crate) fn scratch_from_outside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.init_pid));
        root.join(self.scratch.strip_prefix("/").unwrap_or(&self.scratch))
    }

    /// Kills every process of the lab and waits until the kernel has done so.
    pub(crate) fn end(&self) {
        let mut init = self.init.lock().unwrap_or_else(PoisonError::into_inner);
        // An error means it is gone already.
        let _ = init.kill();
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.end();
    }
}

impl Entrance {
    /// An entrance that joins nothing and ends up in `directory`.
    pub(crate) fn at(directory: &Path) -> Result<Self> {
        Ok(Self {
            directory: c_string(directory)?,
            ..Self::default()
        })
    }
}

fn c_string(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).with_context(|| format!("odd path {path:?}"))
}

pub(crate) fn namespace_of(pid: i32, name: &str, kind: LinkNameSpaceType) -> Result<Membership> {
    let path = format!("/proc/{pid}/ns/{name}");
    let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    Ok((Arc::new(file.into()), Some(kind)))
}

fn may_administrate() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| {
        sets.effective
            .contains(CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN)
    })
}

fn empty_directory() -> Result<PathBuf> {
    let empty =
        |path: &&str| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    let found = SCRATCH_CANDIDATES.iter().find(|path| empty(path));
    found.map(PathBuf::from).ok_or_else(|| {
        anyhow!("the lab needs one empty directory of {SCRATCH_CANDIDATES:?} to mount a tmpfs on")
    })
}

/// The thread that forks all processes of a lab.
struct Keeper {
    /// `None` while it is being dropped.
    jobs: Mutex<Option<Sender<SpawnJob>>>,
    thread: Option<JoinHandle<()>>,
}

struct SpawnJob {
    command: Command,
    answer: SyncSender<io::Result<Child>>,
}

impl Keeper {
    fn start() -> Self {
        let (jobs, queue): (_, Receiver<SpawnJob>) = channel();
        let thread = thread::spawn(move || {
            for mut job in queue {
                let _ = job.answer.send(job.command.spawn());
                // The closure in the command holds the report pipe's writing end: it must be
                // closed here before anybody waits for the pipe's end.
                drop(job.command);
            }
        });
        Self {
            jobs: Mutex::new(Some(jobs)),
            thread: Some(thread),
        }
    }

    fn spawn(&self, mut command: Command, entrance: Entrance, stdin: Stdio) -> Result<Process> {
        let name = command_line(&command);
        without_proxies(&mut command);
        command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (report, report_end) = io::pipe().context("cannot make a pipe")?;
        prepare(&mut command, entrance, report_end.into());
        match self.spawn_there(command)? {
            Ok(child) => Process::adopt(name, child, report),
            Err(error) => Err(explain(error, &name, report)),
        }
    }

    fn spawn_there(&self, command: Command) -> Result<io::Result<Child>> {
        let (answer, result) = sync_channel(1);
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = jobs.as_ref().context("the lab is being removed")?;
        sender
            .send(SpawnJob { command, answer })
            .map_err(|_| anyhow!("the keeper has ended"))?;
        drop(jobs);
        result.recv().context("the keeper has ended")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn explain(error: io::Error, name: &str, mut report: io::PipeReader) -> anyhow::Error {
    while let Ok(Some(message)) = read_report(&mut report) {
        if let Report::Failed(Some(step)) = message {
            return anyhow::Error::new(error)
                .context(format!("{} (starting `{name}`)", step.explain()));
        }
    }
    anyhow::Error::new(error).context(format!("cannot run `{name}`; is it installed?"))
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The machine's proxies cannot be reached from the lab; what the caller set on purpose stays.
fn without_proxies(command: &mut Command) {
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        for name in [name.to_owned(), name.to_uppercase()] {
            if !command
                .get_envs()
                .any(|(set, _)| set.to_str() == Some(&name))
            {
                command.env_remove(&name);
            }
        }
    }
}
