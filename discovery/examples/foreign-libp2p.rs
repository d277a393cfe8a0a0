//! A program that speaks libp2p but not Branchline: mDNS and identify, and it dials an agent again
//! and again. For the test that such neighbours do no harm. Ends when its standard input ends.
//!
//!     foreign-libp2p AGENT_MULTIADDR

use std::time::Duration;

use futures_util::StreamExt;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, SwarmBuilder, identify, identity::Keypair, mdns};
use tokio::sync::oneshot;

#[derive(NetworkBehaviour)]
struct Behaviour {
    mdns: mdns::tokio::Behaviour,
    identify: identify::Behaviour,
}

fn behaviour(key: &Keypair) -> Result<Behaviour, Box<dyn std::error::Error + Send + Sync>> {
    let mdns = mdns::Behaviour::new(mdns::Config::default(), key.public().to_peer_id())?;
    let identify = identify::Config::new("/foreign/1".into(), key.public());
    Ok(Behaviour {
        mdns,
        identify: identify::Behaviour::new(identify),
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let agent: Multiaddr = std::env::args()
        .nth(1)
        .ok_or("first argument: an address")?
        .parse()?;
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(behaviour)?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::MAX))
        .build();
    swarm.listen_on("/ip4/0.0.0.0/udp/0/quic-v1".parse()?)?;
    println!("{{\"peer_id\":\"{}\"}}", swarm.local_peer_id());
    let mut input_ended = input_ended();
    let mut redial = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            event = swarm.select_next_some() => report(&event),
            // An error means that a dial is under way, or that the agent refuses: dialled again.
            _ = redial.tick() => drop(swarm.dial(agent.clone())),
            _ = &mut input_ended => return Ok(()),
        }
    }
}

fn report(event: &SwarmEvent<BehaviourEvent>) {
    if let SwarmEvent::ConnectionEstablished { .. } = event {
        println!("{{\"event\":\"connected\"}}");
    } else if let SwarmEvent::ConnectionClosed { .. } = event {
        println!("{{\"event\":\"closed\"}}");
    } else if let SwarmEvent::Behaviour(BehaviourEvent::Mdns(mdns::Event::Discovered(_))) = event {
        println!("{{\"event\":\"discovered\"}}");
    }
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
