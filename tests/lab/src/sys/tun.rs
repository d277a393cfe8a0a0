//! TUN devices: made inside a namespace, handed out of it over a Unix socket.
//!
//! The one ioctl of this module has no wrapper in rustix. [`create`] runs between fork and exec:
//! it allocates nothing.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Where the kernel offers TUN devices.
pub(crate) const TUN_DEVICE: &CStr = c"/dev/net/tun";

/// An interface name as the kernel takes it: at most 15 bytes and a zero.
#[derive(Clone, Copy)]
pub(crate) struct InterfaceName([u8; libc::IFNAMSIZ]);

impl InterfaceName {
    /// `None` when the name is empty, too long, or holds a zero byte.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; libc::IFNAMSIZ];
        if name.is_empty() || name.len() >= bytes.len() || name.contains('\0') {
            return None;
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self(bytes))
    }
}

/// `struct ifreq` as TUNSETIFF reads it: the name, the flags, and padding to the union's size.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    padding: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

struct SetInterface(InterfaceRequest);

// SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `InterfaceRequest` has the size and
// layout of (asserted above); it is declared mutating because the kernel writes the name back.
unsafe impl Ioctl for SetInterface {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::write::<libc::c_int>(b'T', 202)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Opens the TUN driver in the calling process's network namespace, non-blocking.
pub(crate) fn open_driver() -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        TUN_DEVICE,
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Makes `driver` the device `name`: bare IP packets, one per read or write.
pub(crate) fn create(driver: BorrowedFd<'_>, name: InterfaceName) -> Result<(), Errno> {
    let flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).map_err(|_| Errno::INVAL)?;
    let request = SetInterface(InterfaceRequest {
        name: name.0,
        flags,
        padding: [0; 22],
    });
    // SAFETY: the request is a valid TUNSETIFF argument, see its `Ioctl` implementation.
    unsafe { ioctl(driver, request) }
}

/// Passes a file descriptor over a Unix socket.
pub(crate) fn send_fd(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(
        socket,
        &[IoSlice::new(b"T")],
        &mut control,
        SendFlags::empty(),
    )
    .map(drop)
}

/// Receives the file descriptor that [`send_fd`] sent; `None` when the sender went without one.
pub(crate) fn receive_fd(socket: impl AsFd) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        flags,
    )?;
    Ok(control.drain().find_map(first_right))
}

fn first_right(message: RecvAncillaryMessage<'_>) -> Option<OwnedFd> {
    if let RecvAncillaryMessage::ScmRights(mut fds) = message {
        fds.next()
    } else {
        None
    }
}
