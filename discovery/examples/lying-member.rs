//! A member that lies: it greets like an agent, and answers each Kademlia question with peers that
//! do not exist. For the test that such members do no harm. It prints how many it was asked. Ends
//! when its standard input ends.
//!
//!     lying-member INVENTED_COUNT AGENT_MULTIADDR...

use std::net::Ipv4Addr;
use std::num::NonZeroUsize;
use std::time::Duration;

use futures_util::StreamExt;
use libp2p::kad::{self, store::MemoryStore};
use libp2p::request_response::{self, Message, ProtocolSupport, cbor};
use libp2p::swarm::{NetworkBehaviour, StreamProtocol, SwarmEvent};
use libp2p::{Multiaddr, PeerId, SwarmBuilder, identity::Keypair};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    exchange_port: u16,
    agent: String,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    hello: cbor::Behaviour<Hello, Hello>,
    kademlia: kad::Behaviour<MemoryStore>,
}

fn hello() -> Hello {
    Hello {
        protocol: 1,
        exchange_port: 7000,
        agent: "liar".into(),
    }
}

fn behaviour(key: &Keypair) -> Behaviour {
    let member = StreamProtocol::new("/branchline/member/1");
    let greeting = request_response::Config::default();
    let mut config = kad::Config::new(StreamProtocol::new("/branchline/kad/1"));
    config
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_kbucket_size(NonZeroUsize::new(1000).unwrap_or(NonZeroUsize::MIN))
        .set_periodic_bootstrap_interval(None);
    let own = key.public().to_peer_id();
    let mut kademlia = kad::Behaviour::with_config(own, MemoryStore::new(own), config);
    kademlia.set_mode(Some(kad::Mode::Server));
    Behaviour {
        hello: cbor::Behaviour::new([(member, ProtocolSupport::Full)], greeting),
        kademlia,
    }
}

/// Where nobody answers, on the agents' own links.
fn nowhere(n: u32) -> Result<Multiaddr, Box<dyn std::error::Error>> {
    let [.., last] = n.to_be_bytes();
    let ip = Ipv4Addr::new(10, 77, 0, 100 + last % 100);
    Ok(format!("/ip4/{ip}/udp/{}/quic-v1", 10_000 + n).parse()?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().ok_or("first argument: how many")?;
    let agents: Vec<Multiaddr> = arguments
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(behaviour)?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::MAX))
        .build();
    for n in 0..count.parse()? {
        let invented = Keypair::generate_ed25519().public().to_peer_id();
        let kademlia = &mut swarm.behaviour_mut().kademlia;
        kademlia.add_address(&invented, nowhere(n)?);
    }
    swarm.listen_on("/ip4/0.0.0.0/udp/0/quic-v1".parse()?)?;
    println!("{{\"peer_id\":\"{}\"}}", swarm.local_peer_id());
    for agent in agents {
        swarm.dial(agent)?;
    }
    let mut input_ended = input_ended();
    loop {
        tokio::select! {
            event = swarm.select_next_some() => act(&mut swarm, event),
            _ = &mut input_ended => return Ok(()),
        }
    }
}

fn act(swarm: &mut libp2p::Swarm<Behaviour>, event: SwarmEvent<BehaviourEvent>) {
    if let SwarmEvent::ConnectionEstablished { peer_id, .. } = event {
        greet(swarm, &peer_id);
    } else if let SwarmEvent::Behaviour(BehaviourEvent::Hello(request_response::Event::Message {
        message: Message::Request { channel, .. },
        ..
    })) = event
    {
        // Fails when the connection is gone.
        let _ = swarm.behaviour_mut().hello.send_response(channel, hello());
    } else if let SwarmEvent::Behaviour(BehaviourEvent::Kademlia(kad::Event::InboundRequest {
        ..
    })) = event
    {
        println!("{{\"event\":\"asked\"}}");
    }
}

fn greet(swarm: &mut libp2p::Swarm<Behaviour>, agent: &PeerId) {
    swarm.behaviour_mut().hello.send_request(agent, hello());
}

fn input_ended() -> oneshot::Receiver<()> {
    let (ended, when_ended) = oneshot::channel();
    std::thread::spawn(move || {
        // Whatever comes in is ignored; an error is an end, too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.send(())
    });
    when_ended
}
