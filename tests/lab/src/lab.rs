//! The lab itself: who is in it, how they are wired, and its end.
//!
//! ```text
//! origin  203.0.113.2 ── TUN ── relay ── TUN ── 203.0.113.1  gateway  10.77.0.1 ── bridge
//!                                                                    member i  10.77.1.(i+1)
//! ```

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::namespaces::Namespaces;
use crate::wan::{Wan, WanProfile};

/// The last byte of a member's address is its number.
const MEMBERS_MAX: usize = 250;

const ORIGIN_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const GATEWAY_WAN_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const GATEWAY_LAN_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// How the lab gets the right to make namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Privilege {
    /// As root directly, as anybody else through a user namespace.
    #[default]
    Automatic,
    /// Through a user namespace, even as root.
    UserNamespace,
}

/// What lab to make.
#[derive(Clone, Copy, Debug)]
pub struct LabOptions {
    /// Machines on the LAN, at most 250.
    pub members: usize,
    /// MTU of the LAN: 1500, or 9000 for jumbo frames. The WAN's is always 1500.
    pub lan_mtu: u16,
    /// The line to the origin.
    pub wan: WanProfile,
    /// How to get the right to make namespaces.
    pub privilege: Privilege,
}

impl Default for LabOptions {
    /// Four members, MTU 1500, 20 Mbit/s with 40 ms of round trip.
    fn default() -> Self {
        Self {
            members: 4,
            lan_mtu: 1500,
            wan: WanProfile::branch_20mbit_40ms_rtt(),
            privilege: Privilege::Automatic,
        }
    }
}

/// What servers do unless told otherwise, whatever this machine does. Best effort: some kernels let nobody choose.
const CONGESTION_CONTROL: &str =
    "echo cubic 2> /dev/null > /proc/sys/net/ipv4/tcp_congestion_control || true\n";

/// A running lab. Dropping it kills every process in it and removes everything.
pub struct Lab {
    wan: Option<Wan>,
    origin: Host,
    gateway: Host,
    members: Vec<Host>,
    namespaces: Arc<Namespaces>,
}

impl Lab {
    /// Makes a lab.
    ///
    /// # Errors
    /// When this user may not make namespaces or TUN devices, or `ip` is not installed; the
    /// message says what to do.
    pub fn start(options: LabOptions) -> Result<Self> {
        ensure!(
            options.members <= MEMBERS_MAX,
            "at most {MEMBERS_MAX} members"
        );
        make_room_for_neighbours(options.members)?;
        let namespaces = Arc::new(Namespaces::create(options.privilege)?);
        write_name_files(&namespaces, options.members)?;
        let origin = Host::create(
            &namespaces,
            "origin",
            ORIGIN_ADDRESS,
            None,
            &(base_script(&namespaces) + CONGESTION_CONTROL),
        )?;
        let gateway = make_gateway(&namespaces, options.lan_mtu)?;
        let members = (0..options.members)
            .map(|index| make_member(&namespaces, &gateway, index, options.lan_mtu))
            .collect::<Result<Vec<_>>>()?;
        let wan = join_wan(options.wan, &origin, &gateway)?;
        Ok(Self {
            wan: Some(wan),
            origin,
            gateway,
            members,
            namespaces,
        })
    }

    /// The host of the origin, `origin.test`, beyond the WAN.
    #[must_use]
    pub fn origin(&self) -> &Host {
        &self.origin
    }

    /// The branch's gateway: WAN on one side, the LAN's bridge on the other.
    #[must_use]
    pub fn gateway(&self) -> &Host {
        &self.gateway
    }

    /// A machine on the LAN, counted from 0; its name is `machine-1.test` and so on.
    ///
    /// # Panics
    /// When the lab has fewer members.
    #[must_use]
    pub fn member(&self, index: usize) -> &Host {
        &self.members[index]
    }

    /// All machines on the LAN.
    #[must_use]
    pub fn members(&self) -> &[Host] {
        &self.members
    }

    /// Pulls a machine's cable: it keeps its addresses and routes and reaches nobody.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn unplug(&self, index: usize) -> Result<()> {
        self.set_port(index, "down")
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// As [`Self::unplug`].
    pub fn plug_in(&self, index: usize) -> Result<()> {
        self.set_port(index, "up")
    }

    fn set_port(&self, index: usize, state: &str) -> Result<()> {
        let script = format!("ip link set {} {state}", port_name(index));
        self.gateway.sh(&script).map(drop)
    }

    /// The line between origin and branch.
    ///
    /// # Panics
    /// Never: the line ends with the lab.
    #[must_use]
    pub fn wan(&self) -> &Wan {
        self.wan.as_ref().expect("only drop takes it")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.namespaces.end();
        self.wan.take();
    }
}

/// All hosts' neighbour tables (ARP, NDP) share one bound of the kernel, 1,024 entries each unless raised. Past it
/// packets are lost without a word: of 50 machines 17 saw nobody.
fn make_room_for_neighbours(members: usize) -> Result<()> {
    let needed = (members + 1) * (members + 1);
    for family in ["ipv4", "ipv6"] {
        let setting = format!("/proc/sys/net/{family}/neigh/default/gc_thresh3");
        // A kernel without IPv6 has no such table.
        let Ok(bound) = fs::read_to_string(&setting) else {
            continue;
        };
        let bound: usize = bound
            .trim()
            .parse()
            .with_context(|| format!("odd {setting}"))?;
        if bound < needed {
            fs::write(&setting, needed.to_string()).with_context(|| {
                format!("{members} machines need {needed} in {setting}, which holds {bound}: set it as root")
            })?;
        }
    }
    Ok(())
}

fn member_address(index: usize) -> Ipv4Addr {
    let number = u8::try_from(index + 1).expect("at most MEMBERS_MAX members");
    Ipv4Addr::new(10, 77, 1, number)
}

fn member_name(index: usize) -> String {
    format!("machine-{}", index + 1)
}

/// The gateway's end of a machine's cable.
fn port_name(index: usize) -> String {
    format!("port{}", index + 1)
}

/// `hosts` resolves the lab's names; an empty `resolv.conf` makes all others fail at once.
fn write_name_files(namespaces: &Namespaces, members: usize) -> Result<()> {
    let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
    let machines = (0..members).map(|index| (member_address(index), member_name(index)));
    let fixed = [
        (ORIGIN_ADDRESS, "origin".to_owned()),
        (GATEWAY_LAN_ADDRESS, "gateway".to_owned()),
    ];
    for (address, name) in fixed.into_iter().chain(machines) {
        writeln!(hosts, "{address} {name}.test {name}")?;
    }
    let scratch = namespaces.scratch_from_outside();
    fs::write(scratch.join("hosts"), hosts).context("cannot write to the lab's scratch")?;
    fs::write(scratch.join("resolv.conf"), "").context("cannot write to the lab's scratch")
}

/// What every host does first. Duplicate address detection would keep IPv6 addresses unusable for
/// seconds. A machine may have no resolv.conf, or no IPv6.
fn base_script(namespaces: &Namespaces) -> String {
    let scratch = namespaces.scratch().display();
    format!(
        "for conf in default all; do
           dad=/proc/sys/net/ipv6/conf/$conf/accept_dad
           if [ -e $dad ]; then echo 0 > $dad; fi
         done
         mount --bind {scratch}/hosts /etc/hosts
         if [ -e /etc/resolv.conf ]; then mount --bind {scratch}/resolv.conf /etc/resolv.conf; fi
         ip link set lo up\n"
    )
}

/// The bridge forwards at once and floods multicast: with snooping and no querier it would forget
/// the groups after some minutes.
fn make_gateway(namespaces: &Arc<Namespaces>, mtu: u16) -> Result<Host> {
    let script = base_script(namespaces)
        + &format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward
             ip link add name lan type bridge stp_state 0 forward_delay 0 mcast_snooping 0
             ip link set lan mtu {mtu} up
             ip address add {GATEWAY_LAN_ADDRESS}/16 dev lan\n"
        );
    Host::create(namespaces, "gateway", GATEWAY_LAN_ADDRESS, None, &script)
}

fn make_member(
    namespaces: &Arc<Namespaces>,
    gateway: &Host,
    index: usize,
    mtu: u16,
) -> Result<Host> {
    let port = port_name(index);
    let address = member_address(index);
    let script = base_script(namespaces)
        + &format!(
            "ip link add name lan0 mtu {mtu} type veth peer name {port} mtu {mtu} netns $PEER
             ip address add {address}/16 dev lan0
             ip link set lan0 up
             ip route add default via {GATEWAY_LAN_ADDRESS}\n"
        );
    let member = Host::create(
        namespaces,
        &member_name(index),
        address,
        Some(gateway),
        &script,
    )?;
    gateway.sh(&format!("ip link set {port} master lan up"))?;
    Ok(member)
}

fn join_wan(profile: WanProfile, origin: &Host, gateway: &Host) -> Result<Wan> {
    let ends = (origin.tun("wan0")?, gateway.tun("wan0")?);
    let wan = Wan::start(profile, ends.0, ends.1)?;
    origin.sh(&wan_script(ORIGIN_ADDRESS, GATEWAY_WAN_ADDRESS, "default"))?;
    gateway.sh(&wan_script(GATEWAY_WAN_ADDRESS, ORIGIN_ADDRESS, ""))?;
    Ok(wan)
}

/// No IPv6 on the WAN: its own chatter (router solicitations, multicast reports) would be counted.
fn wan_script(own: Ipv4Addr, other: Ipv4Addr, route: &str) -> String {
    let mut script = format!(
        "ipv6=/proc/sys/net/ipv6/conf/wan0/disable_ipv6
         if [ -e $ipv6 ]; then echo 1 > $ipv6; fi
         ip address add {own} peer {other} dev wan0
         ip link set wan0 mtu 1500 txqueuelen 5000 up\n"
    );
    if !route.is_empty() {
        let _ = writeln!(script, "ip route add {route} via {other}");
    }
    script
}
