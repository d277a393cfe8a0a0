//! Agents on a LAN made of network namespaces: real multicast, real processes, real ends.
//!
//! Each test runs itself again inside namespaces of its own (as root, or as an ordinary user
//! through a user namespace). What cannot be made is a failure, never a skip.

mod namespace;
mod probe;
mod sniffer;
mod subnets;

use std::time::{Duration, Instant};

use namespace::{Lan, in_own_namespaces};
use probe::{Agent, Foreign, Hub};
use serde_json::json;
use sniffer::Sniffer;

/// The promise: agents find each other within this from their start.
const FOUND: Duration = Duration::from_secs(2);
/// A killed or unplugged agent is gone within this: six seconds of silence after at most two until
/// the next keep-alive, and one for a busy machine.
const NOTICED: Duration = Duration::from_secs(9);
/// One that says goodbye: sooner than any timer, so the goodbye was what was noticed.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What a pair may take: a tenth of a second of courtesy, a handshake, and a busy machine.
const PAIR: Duration = Duration::from_millis(250);
/// And sixteen on one machine of two cores, with 120 handshakes.
const CROWD: Duration = Duration::from_secs(1);

#[test]
fn three_agents_started_together_see_each_other_within_two_seconds() {
    in_own_namespaces(
        "three_agents_started_together_see_each_other_within_two_seconds",
        || {
            let lan = Lan::new();
            let hosts: Vec<_> = (1..=3).map(|n| lan.host(n)).collect();
            let mut agents: Vec<_> = hosts
                .iter()
                .map(|host| Agent::prepare(host, 7000))
                .collect();
            let started = Instant::now();
            agents.iter_mut().for_each(|agent| agent.start(&json!({})));
            let all = || Hub::of(&agents);
            all().wait(FOUND, "each sees the two others", |seen| {
                seen.iter().all(|members| members.len() == 2)
            });
            println!(
                "three agents see each other {:?} after their start",
                started.elapsed()
            );
            for (index, agent) in agents.iter().enumerate() {
                let addresses = agents[(index + 1) % 3].addresses_of(&agent.peer_id());
                assert_eq!(addresses, [format!("10.77.0.{}:{}", index + 1, 7000)]);
                agents[(index + 1) % 3].wait(FOUND, "it heard of it by mDNS", |members| {
                    members[&agent.peer_id()]["found_by"] == "mdns"
                });
            }
        },
    );
}

#[test]
fn two_agents_started_together_see_each_other_within_a_quarter_of_a_second() {
    in_own_namespaces(
        "two_agents_started_together_see_each_other_within_a_quarter_of_a_second",
        || {
            // Several pairs, for which key is the smaller and which agent is first is chance.
            for number in 100..106 {
                let took = time_to_see_all(&Lan::numbered(number), 2);
                println!("a pair: both see each other {took:?} after the second is ready");
                assert!(took < PAIR, "a pair took {took:?}");
            }
        },
    );
}

#[test]
fn sixteen_agents_started_together_see_each_other_within_a_second() {
    in_own_namespaces(
        "sixteen_agents_started_together_see_each_other_within_a_second",
        || {
            let took = time_to_see_all(&Lan::new(), 16);
            println!("sixteen agents see each other {took:?} after the last is ready");
            assert!(took < CROWD, "sixteen agents took {took:?}");
        },
    );
}

/// Starts agents at the same moment, and returns how long after the last of them was ready each
/// saw all others.
fn time_to_see_all(lan: &Lan, count: u8) -> Duration {
    let hosts: Vec<_> = (1..=count).map(|n| lan.host(n)).collect();
    let mut agents: Vec<_> = hosts
        .iter()
        .map(|host| Agent::prepare(host, 7000))
        .collect();
    agents.iter_mut().for_each(|agent| agent.spawn(&json!({})));
    agents.iter().for_each(Agent::wait_until_ready);
    let ready = Instant::now();
    let others = usize::from(count) - 1;
    Hub::of(&agents).wait(FOUND * 5, "each sees all others", |seen| {
        seen.iter().all(|members| members.len() == others)
    });
    ready.elapsed()
}

#[test]
fn a_late_comer_is_found_within_two_seconds() {
    in_own_namespaces("a_late_comer_is_found_within_two_seconds", || {
        let lan = Lan::new();
        let (one, two) = (lan.host(1), lan.host(2));
        let mut first = Agent::prepare(&one, 7000);
        first.start(&json!({}));
        // Past the first agent's announcements: only question and answer can work now.
        std::thread::sleep(Duration::from_secs(4));
        let mut second = Agent::prepare(&two, 7000);
        let started = Instant::now();
        second.start(&json!({}));
        first.wait(FOUND, "it sees the late comer", |members| {
            members.len() == 1
        });
        second.wait(FOUND, "it sees who was there", |members| members.len() == 1);
        println!(
            "the late comer and the agent see each other after {:?}",
            started.elapsed()
        );
    });
}

#[test]
fn a_killed_agent_is_noticed_and_one_that_stops_is_noticed_at_once() {
    in_own_namespaces(
        "a_killed_agent_is_noticed_and_one_that_stops_is_noticed_at_once",
        || {
            let lan = Lan::new();
            let hosts: Vec<_> = (1..=3).map(|n| lan.host(n)).collect();
            let mut agents: Vec<_> = hosts
                .iter()
                .map(|host| Agent::prepare(host, 7000))
                .collect();
            agents.iter_mut().for_each(|agent| agent.start(&json!({})));
            Hub::of(&agents).wait(FOUND * 5, "all see all", |seen| {
                seen.iter().all(|m| m.len() == 2)
            });

            let mut killed = agents.pop().expect("the third");
            let gone = killed.peer_id();
            let at = Instant::now();
            killed.kill();
            Hub::of(&agents).wait(NOTICED, "the killed one is gone", |seen| {
                seen.iter().all(|members| !members.contains_key(&gone))
            });
            println!("a killed agent was gone after {:?}", at.elapsed());

            let stopped = agents.pop().expect("the second");
            let at = Instant::now();
            stopped.stop();
            agents[0].wait(AT_ONCE, "the stopped one is gone", |members| {
                members.is_empty()
            });
            println!(
                "a stopped agent was gone {:?} after it was told to stop",
                at.elapsed()
            );
        },
    );
}

#[test]
fn an_unplugged_agent_goes_and_comes_back() {
    in_own_namespaces("an_unplugged_agent_goes_and_comes_back", || {
        let lan = Lan::new();
        let (one, two) = (lan.host(1), lan.host(2));
        let mut agents = [Agent::prepare(&one, 7000), Agent::prepare(&two, 7000)];
        agents.iter_mut().for_each(|agent| agent.start(&json!({})));
        let both = |count| move |seen: &[probe::Members]| seen.iter().all(|m| m.len() == count);
        Hub::of(&agents).wait(FOUND * 5, "they see each other", both(1));
        lan.unplug(2);
        Hub::of(&agents).wait(NOTICED, "they are gone to each other", both(0));
        let at = Instant::now();
        lan.plug(2);
        // Sooner than the waits between dials: it is told that its cable is in again.
        Hub::of(&agents).wait(FOUND, "they see each other again", both(1));
        println!("back {:?} after the cable was plugged in", at.elapsed());
    });
}

#[test]
fn an_agent_restarted_on_other_ports_is_updated_at_once() {
    in_own_namespaces(
        "an_agent_restarted_on_other_ports_is_updated_at_once",
        || {
            let lan = Lan::new();
            let (one, two) = (lan.host(1), lan.host(2));
            let mut first = Agent::prepare(&one, 7000);
            let mut second = Agent::prepare(&two, 7001);
            first.start(&json!({}));
            second.start(&json!({}));
            first.wait(FOUND * 5, "it sees the other", |members| members.len() == 1);
            second.kill();
            let mut again = second.with_exchange_port(7002);
            let at = Instant::now();
            again.start(&json!({}));
            let (peer, now) = (again.peer_id(), format!("10.77.0.2:{}", 7002));
            first.wait(FOUND, "it has the new port", |members| {
                members
                    .get(&peer)
                    .is_some_and(|m| m["exchange_addresses"] == json!([now]))
            });
            println!(
                "the new port was known {:?} after the restart",
                at.elapsed()
            );
            // The connection to the killed process must not take the member with it when it times out.
            first.stays(NOTICED, "it stays a member", |members| members.len() == 1);
        },
    );
}

/// Both ways round, for which of two keys is the smaller decides who dials and who closes.
#[test]
fn an_agent_restarted_on_the_same_port_right_after_its_start_is_seen_and_stays() {
    in_own_namespaces(
        "an_agent_restarted_on_the_same_port_right_after_its_start_is_seen_and_stays",
        || {
            let lan = Lan::new();
            let (one, two) = (lan.host(1), lan.host(2));
            let mut agents = [Agent::prepare(&one, 7000), Agent::prepare(&two, 7001)];
            let same_port = json!({ "listen_port": 4001 });
            agents.iter_mut().for_each(|agent| agent.start(&same_port));
            for round in 0..4 {
                agents.swap(0, 1);
                let [stays, restarts] = &mut agents;
                stays.wait(FOUND * 5, "it sees the other", |members| members.len() == 1);
                let lines = stays.line_count();
                restarts.kill();
                let at = Instant::now();
                restarts.start(&same_port);
                restarts.wait(FOUND, "the new process sees the other", |members| {
                    members.len() == 1
                });
                println!("round {round}: seen {:?} after the restart", at.elapsed());
                stays.wait(FOUND, "it sees the new process", |members| {
                    members.len() == 1
                });
                stays.stays(NOTICED, "it stays a member", |members| members.len() == 1);
                let gone = stays.longest_alone_since(lines);
                println!("round {round}: it was gone for {gone:?}");
                assert!(gone < Duration::from_millis(500), "gone for {gone:?}");
            }
        },
    );
}

#[test]
fn another_libp2p_program_does_no_harm() {
    in_own_namespaces("another_libp2p_program_does_no_harm", || {
        let lan = Lan::new();
        let hosts: Vec<_> = (1..=3).map(|n| lan.host(n)).collect();
        let mut agents = [
            Agent::prepare(&hosts[0], 7000),
            Agent::prepare(&hosts[1], 7000),
        ];
        agents[0].start(&json!({ "listen_port": 4001 }));
        let mut foreign = Foreign::start(&hosts[2], "/ip4/10.77.0.1/udp/4001/quic-v1");
        let mut second_foreign = Foreign::start(&hosts[2], "/ip4/10.77.0.1/udp/4001/quic-v1");
        foreign.wait_for_event("discovered");
        foreign.wait_for_event("connected");
        foreign.wait_for_event("closed");
        second_foreign.wait_for_event("closed");
        agents[1].start(&json!({}));
        let one = |seen: &[probe::Members]| seen.iter().all(|members| members.len() == 1);
        Hub::of(&agents).wait(FOUND, "the agents see each other alone", one);
        agents[0].stays(Duration::from_secs(3), "and nobody else", |members| {
            members.len() == 1
        });
        // However often it dials, each connection is closed again.
        let (opened, closed) = (foreign.count("connected"), foreign.count("closed"));
        assert!(
            opened > 5 && opened - closed <= 1,
            "{opened} opened, {closed} closed"
        );
    });
}

#[test]
fn only_chosen_interfaces_carry_discovery() {
    in_own_namespaces("only_chosen_interfaces_carry_discovery", || {
        let (office, other) = (Lan::new(), Lan::numbered(78));
        let both = office.host(1);
        other.attach(&both, 1);
        let (near, far, listener) = (office.host(2), other.host(2), other.host(9));
        let mut chooser = Agent::prepare(&both, 7000);
        let mut agents = [Agent::prepare(&near, 7001), Agent::prepare(&far, 7002)];
        let sniffer = Sniffer::on(&listener);
        let near_sniffer = Sniffer::on(&near);
        chooser.start(
            &json!({ "interfaces": [office.interface(), "eth-to-come"], "listen_port": 4001 }),
        );
        agents[0].start(&json!({}));
        // The far one even dials: through an interface that was not chosen.
        agents[1].start(&json!({ "static_peers": ["10.78.0.1:4001"] }));
        chooser.wait(FOUND * 5, "it sees the near one", |members| {
            members.len() == 1
        });
        chooser.stays(Duration::from_secs(5), "and only that one", |members| {
            members.contains_key(&agents[0].peer_id()) && members.len() == 1
        });
        assert!(
            near_sniffer.multicasts_from(&office.mac(1)) > 0,
            "it speaks where it may"
        );
        assert!(
            sniffer.multicasts_from(&other.mac(2)) > 0,
            "the sniffer hears the other LAN"
        );
        assert_eq!(
            sniffer.multicasts_from(&other.mac(1)),
            0,
            "not one packet leaks"
        );
        agents[1].stays(Duration::ZERO, "the far one sees nobody", |members| {
            members.is_empty()
        });
        assert_eq!(
            chooser.status()["missing_interfaces"],
            json!(["eth-to-come"])
        );
        assert_eq!(
            chooser.status()["mdns_interfaces"],
            json!([office.interface()])
        );
    });
}

#[test]
fn an_interface_that_appears_later_is_used() {
    in_own_namespaces("an_interface_that_appears_later_is_used", || {
        let (office, other) = (Lan::new(), Lan::numbered(78));
        let (moving, waiting) = (office.host(1), other.host(2));
        let mut agents = [
            Agent::prepare(&moving, 7000),
            Agent::prepare(&waiting, 7001),
        ];
        agents[0].start(&json!({ "interfaces": [other.interface()] }));
        agents[1].start(&json!({}));
        agents[0].stays(Duration::from_secs(1), "alone", |members| {
            members.is_empty()
        });
        other.attach(&moving, 1);
        Hub::of(&agents).wait(FOUND * 2, "they see each other", |seen| {
            seen.iter().all(|members| members.len() == 1)
        });
    });
}

#[test]
fn agents_find_each_other_by_ipv6_alone() {
    in_own_namespaces("agents_find_each_other_by_ipv6_alone", || {
        let lan = Lan::of_ipv6_only();
        let (one, two) = (lan.host(1), lan.host(2));
        let mut agents = [Agent::prepare(&one, 7000), Agent::prepare(&two, 7000)];
        agents.iter_mut().for_each(|agent| agent.start(&json!({})));
        Hub::of(&agents).wait(FOUND, "they see each other", |seen| {
            seen.iter().all(|members| members.len() == 1)
        });
        assert_eq!(
            agents[0].addresses_of(&agents[1].peer_id()),
            ["[fd77::2]:7000"]
        );
    });
}

#[test]
fn static_peers_need_no_multicast() {
    in_own_namespaces("static_peers_need_no_multicast", || {
        let lan = Lan::new();
        let hosts: Vec<_> = (1..=3).map(|n| lan.host(n)).collect();
        let sniffer = Sniffer::on(&hosts[2]);
        let mut depot = Agent::prepare(&hosts[0], 7000);
        let mut client = Agent::prepare(&hosts[1], 7001);
        // Its own address is in the list too, as in a configuration all machines share.
        let shared = json!({
            "mdns": false, "listen_port": 4001, "static_peers": ["10.77.0.1:4001", "10.77.0.2:4001"],
        });
        client.start(&shared);
        // The client dials in vain until then, and must come back to it.
        depot.start(&shared);
        client.wait(Duration::from_secs(15), "it sees the depot", |members| {
            members.len() == 1
        });
        depot.wait(FOUND, "it sees the client", |members| members.len() == 1);
        assert_eq!(client.found_by(&depot.peer_id()), "static");
        let multicasts = [1, 2].map(|n| sniffer.multicasts_from(&lan.mac(n)));
        assert_eq!(multicasts, [0, 0], "mDNS is off");
    });
}
