//! Sends requests: what each has in common, credentials, redirects.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
};
use reqwest::{Method, Response};
use tokio::time::timeout;
use url::Url;

use crate::cause::{self, clean};
use crate::clients::Clients;
use crate::error::{NetworkKind, OriginError};
use crate::netrc::{Login, Netrc};
use crate::options::{OriginOptions, OriginSetupError};
use crate::target::{Place, Target, is_http, without_login};

/// How many redirects are followed. Browsers take 20; mirrors need two or three.
const MAX_REDIRECTS: usize = 10;

/// The way to HTTP origins: one connection pool, cheap to clone.
#[derive(Clone)]
pub struct Origin {
    shared: Arc<Shared>,
}

struct Shared {
    clients: Clients,
    netrc: Netrc,
    connect_timeout: Duration,
    stall_timeout: Duration,
}

/// An answer's head, and where it came from after redirects.
pub(crate) struct Answer {
    pub(crate) response: Response,
    pub(crate) url: Url,
}

impl Origin {
    /// Reads the CA file and netrc, and sets up the pool. No request is made.
    ///
    /// # Errors
    /// [`OriginSetupError`], which says which option is wrong.
    pub fn new(options: &OriginOptions) -> Result<Self, OriginSetupError> {
        let shared = Shared {
            clients: Clients::new(options)?,
            netrc: Netrc::load(&options.netrc)?,
            connect_timeout: options.connect_timeout,
            stall_timeout: options.stall_timeout,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    pub(crate) fn stall_timeout(&self) -> Duration {
        self.shared.stall_timeout
    }

    /// Asks `url` on behalf of `target`, and follows redirects. `fields` go along everywhere.
    pub(crate) async fn send(
        &self,
        method: &Method,
        target: &Target,
        url: &Url,
        fields: &HeaderMap,
    ) -> Result<Answer, OriginError> {
        let (mut url, mut login) = without_login(url.clone());
        for _ in 0..=MAX_REDIRECTS {
            let headers = self.headers(target, &url, login.as_ref(), fields);
            let response = self.send_once(method, target, &url, headers).await?;
            let Some(next) = redirect(&response, &url)? else {
                return Ok(Answer { response, url });
            };
            tracing::debug!(from = %Place::of(&url), to = %Place::of(&next), "redirected");
            (url, login) = without_login(next);
        }
        Err(OriginError::TooManyRedirects {
            at: target.place(),
            limit: MAX_REDIRECTS,
        })
    }

    /// Posts JSON and wants a status of 2xx. Redirects are not followed: a webhook that has moved is somebody else's.
    ///
    /// # Errors
    /// [`OriginError`] when it is not taken.
    pub async fn post_json(&self, url: &Url, body: Vec<u8>) -> Result<(), OriginError> {
        let (url, login) = without_login(url.clone());
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(value) = login.as_ref().and_then(Login::basic) {
            headers.insert(AUTHORIZATION, value);
        }
        let request = self
            .shared
            .clients
            .usual()
            .post(url.clone())
            .headers(headers)
            .body(body);
        let response = self.in_time(&url, request).await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(OriginError::of_status(
                Place::of(&url),
                status,
                response.headers(),
            )),
        }
    }

    async fn send_once(
        &self,
        method: &Method,
        target: &Target,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<Response, OriginError> {
        let client = self.shared.clients.through(target.proxy());
        let client = client.map_err(|error| OriginError::Network {
            at: Place::of(url),
            kind: NetworkKind::Connect,
            cause: clean(&error.to_string()),
        })?;
        let request = client.request(method.clone(), url.clone()).headers(headers);
        self.in_time(url, request).await
    }

    async fn in_time(
        &self,
        url: &Url,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, OriginError> {
        let patience = self.shared.connect_timeout + self.shared.stall_timeout;
        match timeout(patience, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(cause::no_answer(error, Place::of(url))),
            Err(_) => Err(OriginError::Stalled {
                at: Place::of(url),
                offset: 0,
                after: patience,
            }),
        }
    }

    /// The user's headers come first, and count before credentials from URL and netrc. What the
    /// request itself says cannot be overridden: [`Target`] refuses such headers.
    fn headers(
        &self,
        target: &Target,
        url: &Url,
        login: Option<&Login>,
        fields: &HeaderMap,
    ) -> HeaderMap {
        let mut headers = target.headers_for(url).cloned().unwrap_or_default();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.extend(fields.clone());
        if !headers.contains_key(AUTHORIZATION)
            && let Some(value) = self.login(target, url, login).and_then(Login::basic)
        {
            headers.insert(AUTHORIZATION, value);
        }
        headers
    }

    fn login<'a>(
        &'a self,
        target: &'a Target,
        url: &'a Url,
        from_url: Option<&'a Login>,
    ) -> Option<&'a Login> {
        let host = url.host_str().unwrap_or_default();
        let asked_for = target.vouches_for(url);
        from_url.or_else(|| target.login_for(url)).or_else(|| {
            let netrc = target.may_use_netrc().then_some(&self.shared.netrc);
            netrc?.login(host, asked_for)
        })
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").finish_non_exhaustive()
    }
}

/// Where a response redirects to; `None` when it is an answer of its own.
fn redirect(response: &Response, url: &Url) -> Result<Option<Url>, OriginError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let at = Place::of(url);
    let Some(location) = response.headers().get(LOCATION) else {
        return Err(OriginError::BadAnswer {
            at,
            what: "a redirect to nowhere".to_owned(),
        });
    };
    let location = String::from_utf8_lossy(location.as_bytes());
    match url.join(&location) {
        Ok(next) if is_http(&next) => Ok(Some(next)),
        Ok(next) => Err(OriginError::UnsupportedScheme {
            at,
            scheme: clean(next.scheme()),
        }),
        Err(error) => Err(OriginError::BadAnswer {
            at,
            what: format!("a redirect to no URL ({error})"),
        }),
    }
}
