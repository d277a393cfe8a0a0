//! Runs discovery and prints what it sees, one JSON object a line: for tests, and for looking at a
//! network by hand. Ends with goodbyes when its standard input ends.
//!
//!     discovery-probe KEY_FILE EXCHANGE_PORT [CONFIGURATION_AS_JSON]

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use branchline_discovery::{Discovery, DiscoveryConfig, Identity};
use serde_json::json;
use tokio::sync::oneshot;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let key_file = arguments.next().ok_or("first argument: the key file")?;
    let exchange_port = arguments
        .next()
        .ok_or("second argument: the exchange's port")?
        .parse()?;
    let config: DiscoveryConfig = arguments
        .next()
        .map_or(Ok(DiscoveryConfig::default()), |text| {
            serde_json::from_str(&text)
        })?;

    let identity = Identity::load_or_create(Path::new(&key_file))?;
    let discovery = Discovery::start(config, &identity, exchange_port)?;
    println!(
        "{}",
        json!({ "ready": discovery.peer_id(), "port": discovery.port() })
    );

    let mut members = discovery.members();
    let mut input_ended = input_ended();
    loop {
        let now = members.borrow_and_update().clone();
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let unix_ms = u64::try_from(unix_ms)?;
        println!(
            "{}",
            json!({ "members": *now, "status": *discovery.status(), "unix_ms": unix_ms })
        );
        tokio::select! {
            changed = members.changed() => changed?,
            _ = &mut input_ended => break,
        }
    }
    discovery.shut_down().await;
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
