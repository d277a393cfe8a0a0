//! What happens between fork and exec: a new process enters the lab's namespaces.
//!
//! A process that joins or makes a PID namespace is not in it, only its children are. So the forked
//! child forks once more: its child executes the program inside, while it stays outside as the
//! *waiter*, reports the program's process id and, at the end, its status and resource usage over a
//! pipe, and is killed with its parent.
//!
//! Why not `nsenter` and `unshare`: the waiter knows the program's exact process id and usage, no
//! helper binary has to be found, and the test process, which has many threads, could not enter a
//! user namespace itself.
//!
//! Invariant: everything here runs in the child of a fork of a multi-threaded process. It makes
//! system calls on prepared data, and neither allocates nor takes a lock.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::tun::{self, InterfaceName};

/// The step that failed, as told over the report pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Join = 1,
    UserNamespace,
    IdMaps,
    Namespaces,
    PrivateMounts,
    Scratch,
    HostName,
    Fork,
    Directory,
    Inherit,
    OpenTun,
    CreateTun,
    SendTun,
}

impl Step {
    const ALL: [Self; 13] = [
        Self::Join,
        Self::UserNamespace,
        Self::IdMaps,
        Self::Namespaces,
        Self::PrivateMounts,
        Self::Scratch,
        Self::HostName,
        Self::Fork,
        Self::Directory,
        Self::Inherit,
        Self::OpenTun,
        Self::CreateTun,
        Self::SendTun,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == byte)
    }

    /// What could not be done, and what to do about it.
    pub(crate) fn explain(self) -> &'static str {
        match self {
            Self::Join => "cannot enter the lab's namespaces; has the lab been dropped?",
            Self::UserNamespace => {
                "cannot make a user namespace; allow it with `sysctl -w \
                 user.max_user_namespaces=15000` (and on some systems \
                 `kernel.unprivileged_userns_clone=1` or \
                 `kernel.apparmor_restrict_unprivileged_userns=0`), or run as root"
            }
            Self::IdMaps => "cannot map root in the user namespace",
            Self::Namespaces => {
                "cannot make network, mount and process namespaces; run as root or where user \
                 namespaces are allowed"
            }
            Self::PrivateMounts => "cannot make mounts private",
            Self::Scratch => "cannot mount the lab's scratch tmpfs",
            Self::HostName => "cannot set the host name",
            Self::Fork => "cannot fork",
            Self::Directory => "cannot enter the working directory",
            Self::Inherit => "cannot pass a file descriptor on",
            Self::OpenTun => {
                "cannot open /dev/net/tun; if it is missing `modprobe tun`, if permission is \
                 denied `chmod 0666 /dev/net/tun` (Debian's default), or run as root"
            }
            Self::CreateTun => "cannot make a TUN device",
            Self::SendTun => "cannot hand the TUN device out of the namespace",
        }
    }
}

type Stepped = Result<(), (Step, Errno)>;

fn at<T>(step: Step, result: Result<T, Errno>) -> Result<T, (Step, Errno)> {
    result.map_err(|errno| (step, errno))
}

/// New namespaces to make before the program runs.
#[derive(Default)]
pub(crate) struct Creation {
    /// `Some` makes a user namespace in which this user is root.
    pub(crate) user: Option<IdMaps>,
    pub(crate) pid: bool,
    pub(crate) network: bool,
    /// An empty directory to cover with a tmpfs of the lab's own.
    pub(crate) scratch: Option<CString>,
    pub(crate) host_name: Option<String>,
}

/// The lines of `uid_map` and `gid_map` that make the calling user root.
pub(crate) struct IdMaps {
    uid: String,
    gid: String,
}

impl IdMaps {
    pub(crate) fn of_this_user() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        Self {
            uid: format!("0 {uid} 1"),
            gid: format!("0 {gid} 1"),
        }
    }
}

/// A TUN device to make, and the socket to hand it out over.
pub(crate) struct TunRequest {
    pub(crate) name: InterfaceName,
    pub(crate) socket: OwnedFd,
}

/// How a new process enters the lab.
#[derive(Default)]
pub(crate) struct Entrance {
    /// Namespaces to join, the user namespace first.
    pub(crate) join: Vec<(Arc<OwnedFd>, Option<LinkNameSpaceType>)>,
    pub(crate) create: Option<Creation>,
    /// Working directory; entering a mount namespace forgets it.
    pub(crate) directory: CString,
    /// File descriptors the program inherits under their numbers.
    pub(crate) inherit: Vec<Arc<OwnedFd>>,
    pub(crate) tun: Option<TunRequest>,
}

/// Arranges that `command` enters by `entrance` and reports on `report`.
pub(crate) fn prepare(command: &mut Command, entrance: Entrance, report: OwnedFd) {
    let lab = rustix::process::getpid();
    let closure = move || {
        enter(&entrance, &report, lab).map_err(|(step, errno)| {
            let _ = rustix::io::write(&report, &[FAILED, step as u8]);
            io::Error::from_raw_os_error(errno.raw_os_error())
        })
    };
    // SAFETY: the closure makes system calls on data prepared before the fork; it does not
    // allocate, lock, or touch anything another thread could have held at the fork.
    unsafe {
        command.pre_exec(closure);
    }
}

fn enter(entrance: &Entrance, report: &OwnedFd, lab: rustix::process::Pid) -> Stepped {
    for (namespace, kind) in &entrance.join {
        at(
            Step::Join,
            rustix::thread::move_into_link_name_space(namespace.as_fd(), *kind),
        )?;
    }
    if let Some(creation) = &entrance.create {
        create(creation)?;
    }
    // Credentials change on entering a user namespace, which clears both settings: so they come
    // after it. Dumpable, so that the lab may read this process's /proc entries.
    at(
        Step::Fork,
        rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable),
    )?;
    die_with_parent();
    if rustix::process::getppid() != Some(lab) {
        return Err((Step::Fork, Errno::SRCH));
    }
    let is_init = entrance
        .create
        .as_ref()
        .is_some_and(|creation| creation.pid);
    fork_waiter(report, is_init)?;
    prepare_program(entrance)
}

fn create(creation: &Creation) -> Stepped {
    if let Some(maps) = &creation.user {
        at(Step::UserNamespace, unshare(UnshareFlags::NEWUSER))?;
        at(Step::IdMaps, write_file(c"/proc/self/setgroups", b"deny"))?;
        at(
            Step::IdMaps,
            write_file(c"/proc/self/uid_map", maps.uid.as_bytes()),
        )?;
        at(
            Step::IdMaps,
            write_file(c"/proc/self/gid_map", maps.gid.as_bytes()),
        )?;
    }
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWUTS;
    flags.set(UnshareFlags::NEWPID, creation.pid);
    flags.set(UnshareFlags::NEWNET, creation.network);
    at(Step::Namespaces, unshare(flags))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    at(
        Step::PrivateMounts,
        rustix::mount::mount_change(c"/", private),
    )?;
    if let Some(scratch) = &creation.scratch {
        at(Step::Scratch, mount_scratch(scratch))?;
    }
    if let Some(name) = &creation.host_name {
        at(Step::HostName, rustix::system::sethostname(name.as_bytes()))?;
    }
    Ok(())
}

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: FILES is not among the flags, so no other thread sees a different descriptor table;
    // the caller has one thread anyway.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

fn write_file(path: &CStr, content: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, content).map(drop)
}

fn mount_scratch(directory: &CStr) -> Result<(), Errno> {
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount(c"branchline-lab", directory, c"tmpfs", flags, c"mode=0755")
}

fn die_with_parent() {
    // It cannot fail: the signal is valid, and there is no other reason in prctl(2).
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
}

/// Forks. The child returns; the parent becomes the waiter and never returns.
fn fork_waiter(report: &OwnedFd, is_init: bool) -> Stepped {
    // SAFETY: this process has one thread; the child goes on with system calls only.
    let forked = unsafe { libc::fork() };
    match forked {
        -1 => Err((Step::Fork, last_errno())),
        0 => {
            die_with_parent();
            if is_init {
                // Orphans of the lab fall to its first process: let the kernel reap them.
                ignore(libc::SIGCHLD);
            }
            Ok(())
        }
        program => wait_and_report(program, report.as_raw_fd()),
    }
}

fn ignore(signal: libc::c_int) {
    // SAFETY: ignoring a signal installs no handler.
    unsafe {
        libc::signal(signal, libc::SIG_IGN);
    }
}

fn last_errno() -> Errno {
    let code = io::Error::last_os_error().raw_os_error();
    code.map_or(Errno::IO, Errno::from_raw_os_error)
}

fn prepare_program(entrance: &Entrance) -> Stepped {
    at(
        Step::Directory,
        rustix::process::chdir(entrance.directory.as_c_str()),
    )?;
    for fd in &entrance.inherit {
        at(Step::Inherit, rustix::io::fcntl_setfd(fd, FdFlags::empty()))?;
    }
    if let Some(request) = &entrance.tun {
        let driver = at(Step::OpenTun, tun::open_driver())?;
        at(Step::CreateTun, tun::create(driver.as_fd(), request.name))?;
        at(
            Step::SendTun,
            tun::send_fd(request.socket.as_fd(), driver.as_fd()),
        )?;
    }
    Ok(())
}

const STARTED: u8 = b'S';
const FAILED: u8 = b'F';
const EXITED: u8 = b'X';
const EXIT_BYTES: usize = 4 + 3 * 8;

/// The waiter: closes all it inherited (an open end of a pipe would keep readers waiting), tells
/// the program's process id, and at its end its status and usage.
fn wait_and_report(program: libc::pid_t, report: RawFd) -> ! {
    close_all_but(report);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // A signal to the whole terminal group must not cost us the program's status.
        ignore(signal);
    }
    // SAFETY: the name is a constant; `usage` and `status` are valid for writing; `_exit` ends the
    // process without running anything of the parent's.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"lab-waiter".as_ptr());
        let mut started = [STARTED; 5];
        started[1..].copy_from_slice(&program.to_ne_bytes());
        write_report(report, &started);
        let mut status = 0;
        let mut usage: libc::rusage = std::mem::zeroed();
        while libc::wait4(program, &raw mut status, 0, &raw mut usage) == -1 {
            if last_errno() != Errno::INTR {
                libc::_exit(1);
            }
        }
        write_report(report, &exit_report(status, &usage));
        libc::_exit(0)
    }
}

fn exit_report(status: i32, usage: &libc::rusage) -> [u8; 1 + EXIT_BYTES] {
    let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    let mut bytes = [EXITED; 1 + EXIT_BYTES];
    bytes[1..5].copy_from_slice(&status.to_ne_bytes());
    bytes[5..13].copy_from_slice(&micros(usage.ru_utime).to_ne_bytes());
    bytes[13..21].copy_from_slice(&micros(usage.ru_stime).to_ne_bytes());
    bytes[21..29].copy_from_slice(&usage.ru_maxrss.to_ne_bytes());
    bytes
}

fn write_report(report: RawFd, bytes: &[u8]) {
    // SAFETY: the pointer and length are of one slice. A message is shorter than PIPE_BUF, so it
    // is written whole; a lab that reads no more has no use for it.
    unsafe {
        libc::write(report, bytes.as_ptr().cast(), bytes.len());
    }
}

fn close_all_but(kept: RawFd) {
    let kept = kept.cast_unsigned();
    // SAFETY: the waiter returns to no Rust code that owns a descriptor.
    unsafe {
        if kept > 0 {
            libc::syscall(libc::SYS_close_range, 0, kept - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, kept + 1, u32::MAX, 0);
    }
}

/// What came over the report pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The program's process id, as the lab sees it.
    Started(i32),
    /// It never ran.
    Failed(Option<Step>),
    /// The raw wait status, user and system time, peak resident set (of the process before exec
    /// too, which is a fork of the lab).
    Exited {
        status: i32,
        user_micros: u64,
        system_micros: u64,
        peak_kib: u64,
    },
}

/// Reads the next report; `None` at the pipe's end, when the waiter was killed.
pub(crate) fn read_report(mut pipe: impl io::Read) -> io::Result<Option<Report>> {
    let mut tag = [0];
    if pipe.read(&mut tag)? == 0 {
        return Ok(None);
    }
    match tag[0] {
        STARTED => {
            let mut pid = [0; 4];
            pipe.read_exact(&mut pid)?;
            Ok(Some(Report::Started(i32::from_ne_bytes(pid))))
        }
        FAILED => {
            let mut step = [0];
            pipe.read_exact(&mut step)?;
            Ok(Some(Report::Failed(Step::from_byte(step[0]))))
        }
        _ => read_exit(pipe).map(Some),
    }
}

fn read_exit(mut pipe: impl io::Read) -> io::Result<Report> {
    let mut status = [0; 4];
    pipe.read_exact(&mut status)?;
    let mut number = || {
        let mut bytes = [0; 8];
        pipe.read_exact(&mut bytes)
            .map(|()| u64::from_ne_bytes(bytes))
    };
    Ok(Report::Exited {
        status: i32::from_ne_bytes(status),
        user_micros: number()?,
        system_micros: number()?,
        peak_kib: number()?,
    })
}
