//! Network namespaces: a LAN is a bridge, a host is a namespace with one cable to it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The last part of a router's addresses.
const ROUTER: u8 = 254;
const INSIDE: &str = "BRANCHLINE_DISCOVERY_TEST_INSIDE";

/// Runs `body` in fresh user, network, mount and process namespaces by running this test anew in
/// them. Whatever it starts dies with it, and its interfaces vanish with the namespace.
pub(crate) fn in_own_namespaces(test: &str, body: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
    ]);
    unshare.arg(std::env::current_exe().expect("this test's program"));
    unshare
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1");
    let status = unshare
        .status()
        .expect("unshare(1) of util-linux must be installed");
    assert!(
        status.success(),
        "inside its namespaces the test ended with {status}"
    );
}

/// Runs `ip` in this namespace.
fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("ip(8) of iproute2");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {stderr}");
}

/// A switch with hosts on it: 10.NET.0.0/24, or fdNET::/64.
pub(crate) struct Lan {
    number: u8,
    ipv6_only: bool,
}

/// A machine: a process that holds its network namespace open.
pub(crate) struct Host {
    holder: Child,
    number: u8,
}

impl Lan {
    pub(crate) fn new() -> Self {
        Self::numbered(77)
    }

    pub(crate) fn numbered(number: u8) -> Self {
        let lan = Self {
            number,
            ipv6_only: false,
        };
        ip(&format!(
            "link add {} type bridge mcast_snooping 0",
            lan.bridge()
        ));
        ip(&format!("link set {} up", lan.bridge()));
        lan
    }

    pub(crate) fn of_ipv6_only() -> Self {
        Self {
            ipv6_only: true,
            ..Self::new()
        }
    }

    /// A new machine on this LAN, with the address that ends in `number`.
    pub(crate) fn host(&self, number: u8) -> Host {
        let host = Host::new(number);
        host.ip("link set lo up");
        self.attach(&host, number);
        host
    }

    /// One more interface for a machine, on this LAN. It has its address when this returns.
    pub(crate) fn attach(&self, host: &Host, number: u8) {
        let (cable, inside) = (self.cable(number), self.interface());
        let namespace = host.holder.id();
        ip(&format!(
            "link add {cable} type veth peer name {inside} netns {namespace}"
        ));
        ip(&format!("link set {cable} master {} up", self.bridge()));
        if !self.ipv6_only {
            // The kernel's own multicast (neighbour and router discovery) is none of ours.
            host.sysctl(&format!("net/ipv6/conf/{inside}/disable_ipv6"), "1");
        }
        host.ip(&format!(
            "link set {inside} address {} multicast on up",
            self.mac(number)
        ));
        let address = match self.ipv6_only {
            true => format!("fd{}::{number}/64", self.number),
            false => format!("10.{}.0.{number}/24", self.number),
        };
        // nodad: without a second of waiting until the address may be used.
        let nodad = if self.ipv6_only { " nodad" } else { "" };
        host.ip(&format!("addr add {address} dev {inside}{nodad}"));
    }

    /// A machine that stands in several LANs as number 254 and forwards between them, unicast only.
    pub(crate) fn router(lans: &[&Self]) -> Host {
        let router = Host::new(ROUTER);
        router.ip("link set lo up");
        router.sysctl("net/ipv4/ip_forward", "1");
        lans.iter().for_each(|lan| lan.attach(&router, ROUTER));
        router
    }

    /// A new machine on this LAN that reaches the others through the router.
    pub(crate) fn routed_host(&self, number: u8) -> Host {
        let host = self.host(number);
        host.ip(&format!(
            "route add default via 10.{}.0.{ROUTER}",
            self.number
        ));
        host
    }

    pub(crate) fn router_mac(&self) -> String {
        self.mac(ROUTER)
    }

    pub(crate) fn unplug(&self, number: u8) {
        ip(&format!("link set {} down", self.cable(number)));
    }

    pub(crate) fn plug(&self, number: u8) {
        ip(&format!("link set {} up", self.cable(number)));
    }

    /// What the interface is called inside each host.
    pub(crate) fn interface(&self) -> String {
        format!("eth{}", self.number)
    }

    /// The hardware address of host `number`'s interface.
    pub(crate) fn mac(&self, number: u8) -> String {
        format!("02:00:00:00:{:02x}:{number:02x}", self.number)
    }

    fn bridge(&self) -> String {
        format!("br{}", self.number)
    }

    fn cable(&self, number: u8) -> String {
        format!("v{}-{number}", self.number)
    }
}

impl Host {
    fn new(number: u8) -> Self {
        // `cat` says when the namespace is there, by the line it passes on, and then holds it.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare --net");
        let mut there = [0; 6];
        let stdout = holder.stdout.as_mut().expect("it is piped");
        stdout
            .read_exact(&mut there)
            .expect("a network namespace can be made");
        Self { holder, number }
    }

    /// A command that will run on this machine.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.network_namespace().display()))
            .arg(program);
        command
    }

    /// Which namespace a thread has to enter to be on this machine.
    pub(crate) fn network_namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    fn sysctl(&self, name: &str, value: &str) {
        let mut command = self.command(Path::new("sh"));
        let script = format!("echo {value} > /proc/sys/{name}");
        let status = command
            .args(["-c", &script])
            .status()
            .expect("nsenter of util-linux");
        assert!(
            status.success(),
            "host {}: setting {name} ended with {status}",
            self.number
        );
    }

    fn ip(&self, arguments: &str) {
        let mut command = self.command(Path::new("ip"));
        let output = command
            .args(arguments.split(' '))
            .output()
            .expect("nsenter of util-linux");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "host {}: ip {arguments}: {stderr}",
            self.number
        );
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
