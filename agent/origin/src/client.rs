//! Makes the HTTP client: TLS, proxy, and everything off that would act behind our back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_platform_verifier::Verifier;

use crate::cause::one_line;
use crate::options::{OriginOptions, OriginSetupError, ProxyChoice};

/// Idle connections kept for each host: as many as a machine fetches from one origin at a time,
/// with room to spare, so that hundreds are not held open at a server that sees hundreds of agents.
const IDLE_CONNECTIONS_PER_HOST: usize = 8;

/// Shorter than the 60 to 75 seconds after which common servers close an idle connection, so that
/// requests seldom meet one that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// Redirects, retries and cookies are off: `origin.rs` follows redirects, `retries.rs` tries again.
///
/// An HTTP/2 connection outlives a request that stalled on it, so its silence has to be noticed by
/// pings within the stall timeout; or the next attempts would be made on the same dead line.
pub(crate) fn build(options: &OriginOptions) -> Result<reqwest::Client, OriginSetupError> {
    let builder = reqwest::Client::builder()
        .user_agent(&options.user_agent)
        .tls_backend_preconfigured(tls(options.ca_file.as_deref())?)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.stall_timeout / 3)
        .http2_keep_alive_timeout(options.stall_timeout / 2)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_PER_HOST);
    through(builder, &options.proxy)?
        .build()
        .map_err(|error| OriginSetupError::Client {
            why: one_line(&error),
        })
}

/// Whether requests can go through such a proxy at all.
pub(crate) fn check_proxy(proxy: &ProxyChoice) -> Result<(), OriginSetupError> {
    through(reqwest::Client::builder(), proxy).map(drop)
}

fn through(
    builder: reqwest::ClientBuilder,
    proxy: &ProxyChoice,
) -> Result<reqwest::ClientBuilder, OriginSetupError> {
    match proxy {
        ProxyChoice::Environment => Ok(builder),
        ProxyChoice::Direct => Ok(builder.no_proxy()),
        ProxyChoice::Through { url, except } => {
            let proxy = reqwest::Proxy::all(url).map_err(|error| OriginSetupError::Proxy {
                why: one_line(&error.without_url()),
            })?;
            Ok(builder.proxy(proxy.no_proxy(reqwest::NoProxy::from_string(except))))
        }
    }
}

fn tls(ca_file: Option<&Path>) -> Result<ClientConfig, OriginSetupError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let extra = ca_file.map(certificates).transpose()?.unwrap_or_default();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| OriginSetupError::Client {
            why: one_line(&error),
        })?;
    let mut config = with_roots(builder, extra, provider);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A machine without any root certificate still reaches origins over plain HTTP, so that is no
/// error here; HTTPS then fails with "unknown issuer".
fn with_roots(
    builder: ConfigBuilder<ClientConfig, WantsVerifier>,
    extra: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> ClientConfig {
    match Verifier::new_with_extra_roots(extra, provider) {
        Ok(verifier) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth(),
        Err(error) => {
            tracing::warn!(%error, "no root certificates: install ca-certificates for HTTPS");
            builder
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth()
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, OriginSetupError> {
    let refuse = |why: String| OriginSetupError::CaFile {
        path: path.to_owned(),
        why,
    };
    let pem = std::fs::read(path).map_err(|error| refuse(one_line(&error)))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| refuse(one_line(&error)))?;
    let mut store = RootCertStore::empty();
    for certificate in &found {
        store
            .add(certificate.clone())
            .map_err(|error| refuse(one_line(&error)))?;
    }
    if found.is_empty() {
        Err(refuse("it holds no certificate".to_owned()))
    } else {
        Ok(found)
    }
}
