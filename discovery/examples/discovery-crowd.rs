//! Many agents in one process with one configuration: for measuring what a member costs. With
//! `{"mdns": false, "kademlia": false, "static_peers": ["HOST:PORT"]}` they are members of that one
//! agent alone. Ends when its standard input ends.
//!
//!     discovery-crowd CONFIGURATION_AS_JSON COUNT

use std::time::{Duration, Instant};

use branchline_discovery::{Discovery, DiscoveryConfig, Identity};
use tokio::sync::oneshot;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let config = arguments.next().ok_or("first argument: JSON")?;
    let config: DiscoveryConfig = serde_json::from_str(&config)?;
    let count = arguments.next().ok_or("second argument: how many")?;
    let folder = tempfile::tempdir()?;
    let started = Instant::now();
    let mut crowd = Vec::new();
    for n in 0..count.parse::<u32>()? {
        let identity = Identity::load_or_create(&folder.path().join(n.to_string()))?;
        crowd.push(Discovery::start(config.clone(), &identity, 7000)?);
    }
    println!("{count} agents started after {:?}", started.elapsed());
    for agent in &crowd {
        let mut members = agent.members();
        let joined = members.wait_for(|members| members.count() > 0);
        drop(tokio::time::timeout(Duration::from_secs(60), joined).await??);
    }
    println!("each has a member after {:?}", started.elapsed());
    input_ended().await?;
    Ok(())
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
