//! Branches of several IP subnets: a router forwards between them, multicast stays in each.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::namespace::{Host, Lan, in_own_namespaces};
use crate::probe::{Agent, Foreign, Hub, Members};
use crate::sniffer::Sniffer;
use crate::{FOUND, NOTICED};

/// For all agents of two or three subnets to become members of each other. The static peer is
/// dialled a second after a first dial in vain, and then newcomers are asked three times, at most 0.5, 0.5
/// and 1 s apart, on a busy machine.
const JOINED: Duration = Duration::from_secs(10);
/// A dead agent is dialled for so long at most: until it is noticed, then five dials of three
/// seconds and the waits between them, and once more for each that was told of it late.
const DIALLED_IN_VAIN: Duration = Duration::from_secs(60);
/// And this long nobody has dialled it: longer than any wait between two dials.
const QUIET: Duration = Duration::from_secs(20);

const PORT: u16 = 4001;

/// Subnets in a row, each with as many agents; the first of each but the first subnet has the last
/// one of the subnet before it as its static peer.
struct Row {
    lans: Vec<Lan>,
    hosts: Vec<Host>,
    _router: Host,
    agents_each: u8,
}

impl Row {
    fn new(subnets: u8, agents_each: u8) -> Self {
        let lans: Vec<_> = (0..subnets).map(|n| Lan::numbered(77 + n)).collect();
        let _router = Lan::router(&lans.iter().collect::<Vec<_>>());
        let hosts = lans
            .iter()
            .flat_map(|lan| (1..=agents_each).map(|n| lan.routed_host(n)));
        let hosts = hosts.collect();
        Self {
            lans,
            hosts,
            _router,
            agents_each,
        }
    }

    fn agents(&self) -> Vec<Agent<'_>> {
        let hosts = self.hosts.iter();
        hosts.map(|host| Agent::prepare(host, 7000)).collect()
    }

    /// The configuration of agent `index`; `more` is what is different in this test.
    fn config(&self, index: usize, more: &Value) -> Value {
        let each = usize::from(self.agents_each);
        let mut config = json!({ "listen_port": PORT });
        if index >= each && index.is_multiple_of(each) {
            let before = self.address(index - 1);
            config["static_peers"] = json!([format!("{before}:{PORT}")]);
        }
        for (key, value) in more.as_object().expect("a map") {
            config[key] = value.clone();
        }
        config
    }

    fn address(&self, index: usize) -> String {
        let each = usize::from(self.agents_each);
        format!("10.{}.0.{}", 77 + index / each, 1 + index % each)
    }

    fn multiaddr(&self, index: usize) -> String {
        format!("/ip4/{}/udp/{PORT}/quic-v1", self.address(index))
    }

    /// Starts all together. Returns when they listen.
    fn start(&self, agents: &mut [Agent<'_>], more: &Value) -> Instant {
        for (index, agent) in agents.iter_mut().enumerate() {
            agent.spawn(&self.config(index, more));
        }
        agents.iter().for_each(Agent::wait_until_ready);
        Instant::now()
    }
}

fn all_see_all(seen: &[Members]) -> bool {
    seen.iter().all(|members| members.len() + 1 == seen.len())
}

#[test]
fn agents_of_two_subnets_all_become_members_of_each_other_by_one_static_peer() {
    in_own_namespaces(
        "subnets::agents_of_two_subnets_all_become_members_of_each_other_by_one_static_peer",
        || {
            let row = Row::new(2, 8);
            let mut agents = row.agents();
            let ready = row.start(&mut agents, &json!({}));
            Hub::of(&agents).wait(JOINED, "all see all", all_see_all);
            println!(
                "two subnets of eight: all see all after {:?}",
                ready.elapsed()
            );
            // Somebody was found in no other way, at the port that it listens on.
            let told = agents.iter().flat_map(|agent| {
                let members = agent.members();
                members
                    .into_iter()
                    .filter(|(_, m)| m["found_by"] == "kademlia")
            });
            assert!(told.count() > 0, "nobody was found by Kademlia");

            let addresses = agents[0].addresses_of(&agents[15].peer_id());
            assert_eq!(addresses, ["10.78.0.8:7000"]);
        },
    );
}

#[test]
fn agents_of_three_subnets_in_a_row_find_each_other_and_a_late_comer_and_forget_the_dead() {
    in_own_namespaces(
        "subnets::agents_of_three_subnets_in_a_row_find_each_other_and_a_late_comer_and_forget_the_dead",
        || {
            let row = Row::new(3, 5);
            let mut agents = row.agents();
            let mut late = agents.pop().expect("the last");
            let ready = row.start(&mut agents, &json!({}));
            Hub::of(&agents).wait(JOINED, "all see all", all_see_all);
            println!(
                "three subnets of five: all see all after {:?}",
                ready.elapsed()
            );

            let at = Instant::now();
            late.start(&row.config(14, &json!({})));
            agents.push(late);
            Hub::of(&agents).wait(JOINED, "all see the late comer", all_see_all);
            println!("a late comer: all see it after {:?}", at.elapsed());

            let mut killed = agents.pop().expect("the late comer");
            let gone = killed.peer_id();
            let sniffer = Sniffer::on(&row.hosts[14]);
            let at = Instant::now();
            killed.kill();
            Hub::of(&agents).wait(NOTICED, "the killed one is gone", |seen| {
                seen.iter().all(|members| !members.contains_key(&gone))
            });
            println!(
                "a killed agent was gone everywhere after {:?}",
                at.elapsed()
            );
            let router = row.lans[2].router_mac();
            let last = sniffer.quiet_from(&router, QUIET, DIALLED_IN_VAIN + QUIET);
            println!("other subnets dialled it for {:?}", last - at);
            Hub::of(&agents).wait(Duration::ZERO, "the others stayed", all_see_all);
        },
    );
}

/// The two that know each other tell nobody and ask nobody.
#[test]
fn without_kademlia_subnets_stay_apart() {
    in_own_namespaces("subnets::without_kademlia_subnets_stay_apart", || {
        let row = Row::new(2, 3);
        let mut agents = row.agents();
        for (index, agent) in agents.iter_mut().enumerate() {
            let knows_another_subnet = index == 2 || index == 3;
            let more = json!({ "kademlia": !knows_another_subnet });
            agent.start(&row.config(index, &more));
        }
        agents[2].wait(JOINED, "it sees the other subnet's", |m| m.len() == 3);
        agents[0].wait(FOUND, "it sees its own subnet", |m| m.len() == 2);
        agents[0].stays(Duration::from_secs(5), "and only that", |m| m.len() == 2);
        agents[5].stays(Duration::ZERO, "so does the other", |m| m.len() == 2);
    });
}

#[test]
fn who_is_told_of_behind_an_interface_not_chosen_is_not_dialled() {
    in_own_namespaces(
        "subnets::who_is_told_of_behind_an_interface_not_chosen_is_not_dialled",
        || {
            let (office, other) = (Lan::numbered(77), Lan::numbered(78));
            let (choosing, between) = (office.host(1), office.host(2));
            other.attach(&choosing, 1);
            other.attach(&between, 2);
            let far = other.host(3);
            let sniffer = Sniffer::on(&far);
            let mut chooser = Agent::prepare(&choosing, 7000);
            let mut agents = [Agent::prepare(&between, 7001), Agent::prepare(&far, 7002)];
            agents.iter_mut().for_each(|agent| agent.start(&json!({})));
            Hub::of(&agents).wait(FOUND * 5, "they see each other", all_see_all);
            chooser.start(&json!({ "interfaces": [office.interface()] }));
            chooser.wait(FOUND, "it sees who is on its own LAN", |m| m.len() == 1);
            let near = agents[0].peer_id();
            chooser.stays(Duration::from_secs(5), "and only that one", |members| {
                members.contains_key(&near) && members.len() == 1
            });
            assert_eq!(
                sniffer.unicasts_from(&other.mac(1)),
                0,
                "not one packet leaks"
            );
        },
    );
}

#[test]
fn a_member_that_names_invented_peers_does_no_harm() {
    in_own_namespaces(
        "subnets::a_member_that_names_invented_peers_does_no_harm",
        || {
            let row = Row::new(2, 5);
            let lying = row.lans[1].routed_host(66);
            let mut agents = row.agents();
            let late = [agents.pop().expect("the last"), agents.remove(0)];
            for (index, agent) in agents.iter_mut().enumerate() {
                agent.spawn(&row.config(index + 1, &json!({})));
            }
            agents.iter().for_each(Agent::wait_until_ready);
            // It is there before they know each other, and dials all of them.
            let dials: Vec<_> = (1..9).map(|index| row.multiaddr(index)).collect();
            let liar = Foreign::liar(&lying, 500, &dials);
            let ready = Instant::now();
            let is_joined = |seen: &[Members]| {
                let others = seen.len() - 1 + 1;
                seen.iter().all(|members| members.len() == others)
            };
            Hub::of(&agents).wait(JOINED, "all see all and the liar", is_joined);
            println!(
                "with a liar among them all see all after {:?}",
                ready.elapsed()
            );

            // Each asks the liar on and on now; those that come are found all the same.
            let at = Instant::now();
            for (mut agent, index) in late.into_iter().zip([9, 0]) {
                agent.start(&row.config(index, &json!({})));
                agents.push(agent);
            }
            let real: BTreeSet<_> = agents.iter().map(Agent::peer_id).collect();
            Hub::of(&agents).wait(JOINED, "all see the late comers", |seen| {
                seen.iter().zip(&agents).all(|(members, agent)| {
                    let own = agent.peer_id();
                    let seen = |peer: &String| *peer == own || members.contains_key(peer);
                    real.iter().all(seen)
                })
            });
            println!("late comers: all see them after {:?}", at.elapsed());
            for agent in &agents {
                agent.stays(Duration::from_secs(1), "nobody invented", |members| {
                    let mut names = members.keys();
                    names.all(|name| real.contains(name) || *name == liar.peer_id())
                });
            }
            let asked = liar.count("asked");
            println!("the liar was asked {asked} questions");
            assert!(asked >= 8, "each that it dialled asked it");
        },
    );
}
