//! Reaching a peer at one of its addresses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use branchline_core::PeerId;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint};
use tokio::task::JoinSet;

use crate::error::DialError;
use crate::options::ExchangeOptions;
use crate::transport;

/// Addresses tried; a machine has a few, discovery may have learnt more that are out of date.
const MAX_ADDRESSES: usize = 8;

/// Each further address is tried this much later: ten times a slow LAN's handshake.
const STAGGER: Duration = Duration::from_millis(100);

/// TLS wants a name; certificates are checked for the peer id instead (libp2p's TLS handshake
/// specification), and the name is not sent.
const SERVER_NAME: &str = "branchline";

/// QUIC transport errors 0x100 to 0x1ff are TLS alerts (RFC 9000, section 20.1).
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;

fn client_config(
    crypto: Arc<QuicClientConfig>,
    options: &ExchangeOptions,
    address: SocketAddr,
) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(crypto);
    // The side that accepted never opens a stream: requesters are those that dial.
    config.transport_config(transport::transport_to(address, options, 0));
    config
}

/// Tries the addresses one shortly after the other; the first that answers as `peer` wins.
pub(crate) async fn dial(
    endpoint: &Endpoint,
    crypto: Arc<QuicClientConfig>,
    peer: PeerId,
    addresses: Vec<SocketAddr>,
    options: &ExchangeOptions,
) -> Result<Connection, DialError> {
    let Some(first) = addresses.first().copied() else {
        return Err(DialError::NoAddress { peer });
    };
    let tried = addresses.len().min(MAX_ADDRESSES);
    let mut attempts = JoinSet::new();
    for (address, number) in addresses.into_iter().take(MAX_ADDRESSES).zip(0u32..) {
        let (endpoint, crypto, options) = (endpoint.clone(), Arc::clone(&crypto), options.clone());
        attempts.spawn(async move {
            tokio::time::sleep(STAGGER * number).await;
            let config = client_config(crypto, &options, address);
            (address, connect(&endpoint, config, address).await)
        });
    }
    let silent = |reason: &str| DialError::Unreachable {
        peer,
        address: first,
        tried,
        reason: reason.to_owned(),
    };
    let any = async {
        let mut last = silent("the attempt broke");
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                Ok((_, Ok(connection))) => return Ok(connection),
                Ok((address, Err(failure))) => last = failure.of(peer, address, tried),
                Err(error) => tracing::error!(%error, "a task that dialled an address broke"),
            }
        }
        Err(last)
    };
    let timeout = options.dial_timeout;
    match tokio::time::timeout(timeout, any).await {
        Ok(result) => result,
        Err(_) => Err(silent(&format!("no answer within {timeout:?}"))),
    }
}

enum AttemptFailure {
    Handshake(String),
    Other(String),
}

impl AttemptFailure {
    fn of(self, peer: PeerId, address: SocketAddr, tried: usize) -> DialError {
        match self {
            Self::Handshake(reason) => DialError::Handshake {
                peer,
                address,
                reason,
            },
            Self::Other(reason) => DialError::Unreachable {
                peer,
                address,
                tried,
                reason,
            },
        }
    }
}

async fn connect(
    endpoint: &Endpoint,
    config: quinn::ClientConfig,
    address: SocketAddr,
) -> Result<Connection, AttemptFailure> {
    let connecting = endpoint
        .connect_with(config, address, SERVER_NAME)
        .map_err(|error| AttemptFailure::Other(error.to_string()))?;
    connecting.await.map_err(|error| {
        let alert = match &error {
            ConnectionError::TransportError(e) => TLS_ALERTS.contains(&u64::from(e.code)),
            ConnectionError::ConnectionClosed(e) => TLS_ALERTS.contains(&u64::from(e.error_code)),
            ConnectionError::VersionMismatch
            | ConnectionError::ApplicationClosed(_)
            | ConnectionError::Reset
            | ConnectionError::TimedOut
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted => false,
        };
        match alert {
            true => AttemptFailure::Handshake(error.to_string()),
            false => AttemptFailure::Other(error.to_string()),
        }
    })
}
