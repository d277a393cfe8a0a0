//! TLS 1.3 for the exchange with the same identity that libp2p uses.
//!
//! A certificate is libp2p's: self-signed with a throw-away key, and carrying a signature of that
//! key by the agent's Ed25519 key (libp2p specs, tls/tls.md). Both sides show one. Names,
//! authorities and dates play no part; who the other is follows from the certificate alone.
//!
//! Invariant: no connection comes about without the client's certificate, so sessions are never
//! resumed (a resumed one shows no certificate) and there is no 0-RTT. Nothing writes session keys
//! anywhere: `SSLKEYLOGFILE` has no effect on these configurations.

use std::sync::Arc;

use branchline_core::{ParsePeerIdError, PeerId};
use libp2p_tls::certificate;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};

use crate::identity::Identity;

/// What agents sign handshakes with: their certificates are ECDSA P-256; P-384 and Ed25519 are what
/// libp2p's other implementations make. No RSA, which only costs.
const SIGNATURE_SCHEMES: [SignatureScheme; 3] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP384_SHA384,
];

/// Why no TLS configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be made.
    #[error("making this agent's TLS certificate failed: {0}")]
    Certificate(#[from] certificate::GenError),
    /// rustls refused the configuration.
    #[error("configuring TLS failed: {0}")]
    Configuration(#[from] rustls::Error),
}

/// A certificate that shows no agent's identity.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not libp2p's form, or one of its two signatures is wrong.
    #[error("the peer's certificate is not an agent's: {0}")]
    Malformed(#[from] certificate::ParseError),
    /// Well-formed, but of a kind of key agents do not have.
    #[error("the peer's certificate is not of an Ed25519 identity")]
    NotEd25519(#[from] ParsePeerIdError),
}

/// Who showed this certificate, after checking the libp2p extension and the self-signature.
///
/// # Errors
/// [`CertificateError`] when it is not the certificate of an agent.
pub fn peer_id_of_certificate(der: &CertificateDer<'_>) -> Result<PeerId, CertificateError> {
    let shown = certificate::parse(der)?.peer_id();
    Ok(PeerId::from_libp2p_bytes(&shown.to_bytes())?)
}

impl Identity {
    /// For accepting connections: every client must show an agent's certificate. Afterwards
    /// [`peer_id_of_certificate`] says whose it was.
    ///
    /// # Errors
    /// [`TlsError`] when the certificate or configuration cannot be made.
    pub fn server_tls(&self, alpn: &[u8]) -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(AnyAgent))
            .with_cert_resolver(Arc::new(self.own_certificate()?));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// For connecting to the agent `expected`: whoever else answers is refused in the handshake.
    ///
    /// # Errors
    /// [`TlsError`] when the certificate or configuration cannot be made.
    pub fn client_tls(&self, alpn: &[u8], expected: PeerId) -> Result<ClientConfig, TlsError> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ThisAgent { expected }))
            .with_client_cert_resolver(Arc::new(self.own_certificate()?));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(config)
    }

    /// Without rustls's check that key and certificate belong together, which reads certificates
    /// as browsers do and stops at the libp2p extension; they were made together.
    fn own_certificate(&self) -> Result<SingleCertAndKey, TlsError> {
        let (certificate, key) = certificate::generate(self.keypair())?;
        let key = default_provider().key_provider.load_private_key(key)?;
        Ok(SingleCertAndKey::from(CertifiedKey::new(
            vec![certificate],
            key,
        )))
    }
}

/// AES-128-GCM first: ChaCha20 costs quinn half as much again on machines with AES instructions.
/// X25519 first: with the post-quantum hybrid a handshake no longer fits one datagram each way; it
/// is accepted from those that ask for it.
/// aws-lc takes some 20 ms of a core to gather randomness before it gives any, once for a process. Done
/// while an agent starts, the first handshakes on both sides do not wait for it.
pub(crate) fn gather_randomness() {
    // A failure shows in every handshake.
    let _ = provider().secure_random.fill(&mut [0]);
}

fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![
            kx_group::X25519,
            kx_group::X25519MLKEM768,
            kx_group::SECP256R1,
        ],
        ..default_provider()
    }
}

fn only_certificate(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<PeerId, rustls::Error> {
    if !intermediates.is_empty() {
        return Err(rustls::Error::General(
            "an agent shows exactly one certificate".into(),
        ));
    }
    peer_id_of_certificate(end_entity).map_err(refusal)
}

fn refusal(error: CertificateError) -> rustls::Error {
    let other = rustls::OtherError(Arc::new(error));
    rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))
}

fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let bad = |_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadSignature);
    let parsed = certificate::parse(certificate).map_err(|e| refusal(e.into()))?;
    parsed
        .verify_signature(signature.scheme, message, signature.signature())
        .map_err(bad)?;
    Ok(HandshakeSignatureValid::assertion())
}

/// Unreachable, for only TLS 1.3 is configured; an error rather than a panic if that ever changes.
fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
}

/// The server's view: any agent may try; what it may have is decided after the handshake.
#[derive(Debug)]
struct AnyAgent;

impl ClientCertVerifier for AnyAgent {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        only_certificate(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURE_SCHEMES.to_vec()
    }
}

/// The client's view: exactly the agent that was meant.
#[derive(Debug)]
struct ThisAgent {
    expected: PeerId,
}

impl ServerCertVerifier for ThisAgent {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if only_certificate(end_entity, intermediates)? == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        let mismatch = rustls::CertificateError::ApplicationVerificationFailure;
        Err(rustls::Error::InvalidCertificate(mismatch))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURE_SCHEMES.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use rustls::{CipherSuite, ClientConnection, HandshakeKind, ProtocolVersion, ServerConnection};

    use super::*;

    const ALPN: &[u8] = b"branchline/1";

    fn identity() -> Identity {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Identity::load_or_create(&folder.path().join("identity")).expect("an identity")
    }

    /// Runs the handshake in memory; the first error of either side ends it.
    fn handshake(
        client: ClientConfig,
        server: ServerConfig,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        let name = ServerName::try_from("agent").expect("a name");
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).expect("memory takes it");
            }
            server
                .read_tls(&mut wire.as_slice())
                .expect("memory gives it");
            server.process_new_packets()?;
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).expect("memory takes it");
            }
            client
                .read_tls(&mut wire.as_slice())
                .expect("memory gives it");
            client.process_new_packets()?;
        }
        Ok((client, server))
    }

    fn shown_by(certificates: Option<&[CertificateDer<'_>]>) -> PeerId {
        let certificates = certificates.expect("a certificate was shown");
        peer_id_of_certificate(&certificates[0]).expect("an agent's")
    }

    #[test]
    fn two_agents_know_each_other_after_the_handshake() {
        let (alice, bob) = (identity(), identity());
        let client = alice.client_tls(ALPN, bob.peer_id()).expect("client");
        let server = bob.server_tls(ALPN).expect("server");
        let (client, server) = handshake(client, server).expect("a handshake");
        assert_eq!(shown_by(client.peer_certificates()), bob.peer_id());
        assert_eq!(shown_by(server.peer_certificates()), alice.peer_id());
        assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(client.alpn_protocol(), Some(ALPN));
        let suite = client.negotiated_cipher_suite().expect("a suite").suite();
        assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
    }

    #[test]
    fn a_server_that_is_not_the_expected_agent_is_refused() {
        let (alice, bob, mallory) = (identity(), identity(), identity());
        let client = alice.client_tls(ALPN, bob.peer_id()).expect("client");
        let server = mallory.server_tls(ALPN).expect("server");
        let error = handshake(client, server).expect_err("mallory is not bob");
        let mismatch = rustls::CertificateError::ApplicationVerificationFailure;
        assert_eq!(error, rustls::Error::InvalidCertificate(mismatch));
    }

    #[test]
    fn a_client_without_certificate_is_refused() {
        let bob = identity();
        let anonymous = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ThisAgent {
                expected: bob.peer_id(),
            }))
            .with_no_client_auth();
        let mut server = bob.server_tls(ALPN).expect("server");
        server.alpn_protocols.clear();
        let error = handshake(anonymous, server).expect_err("no certificate");
        assert_eq!(error, rustls::Error::NoCertificatesPresented);
    }

    #[test]
    fn a_certificate_without_the_owners_key_is_refused() {
        let (alice, bob) = (identity(), identity());
        let (alices, _) = certificate::generate(alice.keypair()).expect("a certificate");
        let (_, other_key) = certificate::generate(bob.keypair()).expect("a key");
        let mut client = alice.client_tls(ALPN, bob.peer_id()).expect("client");
        let key = default_provider()
            .key_provider
            .load_private_key(other_key)
            .expect("a key");
        let stolen = SingleCertAndKey::from(CertifiedKey::new(vec![alices], key));
        client.client_auth_cert_resolver = Arc::new(stolen);
        let error = handshake(client, bob.server_tls(ALPN).expect("server")).expect_err("a thief");
        let signature = rustls::CertificateError::BadSignature;
        assert_eq!(error, rustls::Error::InvalidCertificate(signature));
    }

    #[test]
    fn a_second_connection_shows_its_certificate_again() {
        let (alice, bob) = (identity(), identity());
        let client = alice.client_tls(ALPN, bob.peer_id()).expect("client");
        let server = bob.server_tls(ALPN).expect("server");
        for _ in 0..2 {
            let (_, served) = handshake(client.clone(), server.clone()).expect("a handshake");
            assert_eq!(served.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(shown_by(served.peer_certificates()), alice.peer_id());
        }
    }

    /// A few bits (the outermost tag, for one) are covered by neither signature and change nothing.
    #[test]
    fn a_damaged_certificate_names_nobody_else() {
        let identity = identity();
        let (good, _) = certificate::generate(identity.keypair()).expect("a certificate");
        let mut still_good = 0;
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.to_vec();
                bytes[at] ^= 1 << bit;
                if let Ok(named) = peer_id_of_certificate(&bytes.into()) {
                    assert_eq!(named, identity.peer_id(), "byte {at}, bit {bit}");
                    still_good += 1;
                }
            }
        }
        assert!(
            still_good < good.len() / 10,
            "{still_good} of {} bits",
            good.len() * 8
        );
        for length in 0..good.len() {
            let cut = CertificateDer::from(&good[..length]);
            assert!(peer_id_of_certificate(&cut).is_err(), "cut at {length}");
        }
    }
}
