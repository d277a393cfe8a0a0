//! The agent's identity as QUIC wants it.

use std::sync::Arc;

use branchline_core::PeerId;
use branchline_core::wire::ALPN;
use branchline_discovery::{Identity, peer_id_of_certificate};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::CertificateDer;

/// A TLS configuration that could not be made, or a certificate that names no peer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl TlsError {
    fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Proofs are bound to a session, so none is ever resumed: the identity's configurations send no
/// tickets and accept no early data.
pub(crate) fn server_crypto(identity: &Identity) -> Result<QuicServerConfig, TlsError> {
    let tls = identity.server_tls(ALPN).map_err(TlsError::of)?;
    QuicServerConfig::try_from(tls).map_err(TlsError::of)
}

/// Accepts `expected` only.
pub(crate) fn client_crypto(
    identity: &Identity,
    expected: PeerId,
) -> Result<Arc<QuicClientConfig>, TlsError> {
    let tls = identity.client_tls(ALPN, expected).map_err(TlsError::of)?;
    Ok(Arc::new(
        QuicClientConfig::try_from(tls).map_err(TlsError::of)?,
    ))
}

/// Who is at the other end of an established connection.
pub(crate) fn peer_of(connection: &quinn::Connection) -> Result<PeerId, TlsError> {
    let chain = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or_else(|| TlsError("the peer showed no certificate".to_owned()))?;
    let own = chain
        .first()
        .ok_or_else(|| TlsError("the peer's chain is empty".to_owned()))?;
    peer_id_of_certificate(own).map_err(TlsError::of)
}
