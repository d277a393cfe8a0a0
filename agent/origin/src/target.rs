//! What to ask for: a URL, the user's own headers for it, and ranges of bytes.

use std::fmt;

use percent_encoding::percent_decode_str;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use crate::client::check_proxy;
use crate::netrc::Login;
use crate::options::ProxyChoice;

/// Ends the name of a manifest beside its file.
const MANIFEST_SUFFIX: &str = ".branchline";

/// Headers that a request needs for itself; a user's own would break what is asked.
const RESERVED: [&str; 15] = [
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "if-range",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A file at an origin, and what its user wants said when it is asked for.
///
/// Neither header values nor credentials ever show in `Debug`.
#[derive(Clone)]
pub struct Target {
    url: Url,
    headers: HeaderMap,
    login: Option<Login>,
    without_netrc: bool,
    proxy: Option<ProxyChoice>,
}

/// A URL or header that cannot be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The text is no URL.
    #[error("this is not a URL ({why}); write it as https://HOST/PATH")]
    NotAUrl {
        /// What the parser said.
        why: String,
    },
    /// The URL has a scheme that is not spoken.
    #[error("{scheme}: URLs cannot be fetched; use an http: or https: URL")]
    UnsupportedScheme {
        /// The scheme.
        scheme: String,
    },
    /// No request can go through such a proxy.
    #[error("{why}")]
    BadProxy {
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A header that may not be set, or has characters that headers cannot have.
    #[error("the header {name:?} cannot be sent: {why}")]
    BadHeader {
        /// Its name; a name that is none is shown without what surrounds it.
        name: String,
        /// What is wrong with it, and what to do.
        why: &'static str,
    },
}

impl Target {
    /// Checks a URL and headers. A user and password in the URL are sent as Basic credentials.
    ///
    /// # Errors
    /// [`TargetError`], which never holds a header's value or the URL.
    pub fn new(
        url: &str,
        headers: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, TargetError> {
        let url = Url::parse(url).map_err(|error| TargetError::NotAUrl {
            why: error.to_string(),
        })?;
        check_scheme(&url)?;
        let (url, login) = without_login(url);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let (name, value) = checked(&name, &value)?;
            map.append(name, value);
        }
        Ok(Self {
            url,
            headers: map,
            login,
            without_netrc: false,
            proxy: None,
        })
    }

    /// With these credentials for its origin, whatever the URL says.
    #[must_use]
    pub fn with_login(self, user: String, password: String) -> Self {
        Self {
            login: Some(Login { user, password }),
            ..self
        }
    }

    /// Without the credentials of the netrc file: that is another user's.
    #[must_use]
    pub fn without_netrc(self) -> Self {
        Self {
            without_netrc: true,
            ..self
        }
    }

    /// Asked for through this proxy, whatever the options of the [`crate::Origin`] say.
    ///
    /// # Errors
    /// [`TargetError::BadProxy`] when the proxy's URL is none.
    pub fn through(self, proxy: ProxyChoice) -> Result<Self, TargetError> {
        check_proxy(&proxy).map_err(|error| TargetError::BadProxy {
            why: error.to_string(),
        })?;
        Ok(Self {
            proxy: Some(proxy),
            ..self
        })
    }

    /// Which proxy it is asked for through, if that matters to it.
    pub(crate) fn proxy(&self) -> Option<&ProxyChoice> {
        self.proxy.as_ref()
    }

    /// Whether the credentials of the netrc file are for its user.
    pub(crate) fn may_use_netrc(&self) -> bool {
        !self.without_netrc
    }

    /// The URL, without credentials and fragment.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The URL as error messages show it.
    pub fn place(&self) -> Place {
        Place::of(&self.url)
    }

    /// The user's own headers, if `url` is where they were meant for.
    pub(crate) fn headers_for(&self, url: &Url) -> Option<&HeaderMap> {
        self.vouches_for(url).then_some(&self.headers)
    }

    /// The credentials of the target's URL, if `url` is where they were meant for.
    pub(crate) fn login_for(&self, url: &Url) -> Option<&Login> {
        self.login.as_ref().filter(|_| self.vouches_for(url))
    }

    /// Whether `url` is at the origin (RFC 6454) of the target, or the same host's HTTPS at the
    /// default ports, where hosts commonly send those who come without.
    pub(crate) fn vouches_for(&self, url: &Url) -> bool {
        let upgraded = self.url.scheme() == "http"
            && url.scheme() == "https"
            && self.url.host_str() == url.host_str()
            && self.url.port().is_none()
            && url.port().is_none();
        upgraded || self.url.origin() == url.origin()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("url", &format_args!("{}", self.place()))
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("login", &self.login.is_some())
            .finish()
    }
}

fn check_scheme(url: &Url) -> Result<(), TargetError> {
    if is_http(url) {
        Ok(())
    } else {
        Err(TargetError::UnsupportedScheme {
            scheme: url.scheme().to_owned(),
        })
    }
}

/// Whether the URL's scheme is spoken here. Such a URL always has a host.
pub(crate) fn is_http(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
}

/// Takes credentials and fragment out of a URL: neither belongs into a request line or a message.
pub(crate) fn without_login(mut url: Url) -> (Url, Option<Login>) {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let login = (!url.username().is_empty() || url.password().is_some()).then(|| Login {
        user: decoded(url.username()),
        password: decoded(url.password().unwrap_or_default()),
    });
    // These fail only for URLs that cannot have credentials, which have none to remove.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    (url, login)
}

fn checked(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), TargetError> {
    let refuse = |name: &str, why| TargetError::BadHeader {
        name: name.to_owned(),
        why,
    };
    let key = HeaderName::from_bytes(name.trim().as_bytes())
        .map_err(|_| refuse("", "its name is not one; write 'Name: value'"))?;
    if RESERVED.contains(&key.as_str()) {
        return Err(refuse(
            key.as_str(),
            "Branchline sets it itself; leave it out",
        ));
    }
    let mut value = HeaderValue::from_bytes(value.trim().as_bytes()).map_err(|_| {
        refuse(
            key.as_str(),
            "its value has control characters; remove them",
        )
    })?;
    value.set_sensitive(true);
    Ok((key, value))
}

/// The URL of the manifest beside a file: the suffix ends the path, the query stays.
pub fn manifest_url(file: &Url) -> Url {
    let mut url = file.clone();
    url.set_path(&format!("{}{MANIFEST_SUFFIX}", file.path()));
    url.set_fragment(None);
    url
}

/// A URL as messages show it: no credentials, no query (it may hold a signature or a token).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(String);

impl Place {
    /// Shortens `url` to what may be shown.
    pub fn of(url: &Url) -> Self {
        let (mut url, _) = without_login(url.clone());
        let hidden = if url.query().is_some() { "?…" } else { "" };
        url.set_query(None);
        Self(format!("{url}{hidden}"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Adjacent bytes of a file. Never empty, never past `u64::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    offset: u64,
    length: u64,
}

impl ByteRange {
    /// `length` bytes from `offset` on; `None` when that is empty or runs past `u64::MAX`.
    pub fn new(offset: u64, length: u64) -> Option<Self> {
        (length > 0 && offset.checked_add(length).is_some()).then_some(Self { offset, length })
    }

    /// Where it begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes it has.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The offset after its last byte.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

impl fmt::Display for ByteRange {
    /// As the field `Range` names it after `bytes=`: first and last, both inside.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.offset, self.end() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target, TargetError> {
        Target::new(url, [])
    }

    fn header(name: &str, value: &str) -> Result<Target, TargetError> {
        Target::new("http://h/", [(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn other_schemes_are_named() {
        for scheme in ["ftp", "file", "smb", "data", "javascript"] {
            let error = target(&format!("{scheme}://host/x")).expect_err("scheme is not spoken");
            assert_eq!(
                error,
                TargetError::UnsupportedScheme {
                    scheme: scheme.to_owned()
                }
            );
        }
        assert!(matches!(
            target("/just/a/path"),
            Err(TargetError::NotAUrl { .. })
        ));
        assert!(matches!(
            target("https://"),
            Err(TargetError::NotAUrl { .. })
        ));
    }

    #[test]
    fn headers_cannot_smuggle_or_take_over_what_a_request_says() {
        for value in ["a\r\nX-Evil: 1", "a\nb", "a\0b", "a\x7fb"] {
            let error = header("X-Token", value).expect_err("control characters");
            assert!(!error.to_string().contains("Evil"), "{error}");
        }
        for name in ["X Y", "X:Y", "X\r\nEvil", "", "Ränge"] {
            assert!(header(name, "v").is_err(), "{name:?}");
        }
        for name in [
            "Range",
            "IF-RANGE",
            "Host",
            "Content-Length",
            "Accept-Encoding",
        ] {
            assert!(header(name, "v").is_err(), "{name}");
        }
        assert!(header("Authorization", "Bearer ä").is_ok());
    }

    #[test]
    fn secrets_show_nowhere() {
        let target = Target::new(
            "https://me:hunter2@host/a?sig=hunter2#hunter2",
            [("Cookie".to_owned(), "hunter2".to_owned())],
        )
        .expect("a good target");
        let shown = format!("{target:?} {} {}", target.place(), Place::of(target.url()));
        assert!(
            !shown.contains("hunter2") && shown.contains("cookie"),
            "{shown}"
        );
        assert!(shown.contains("https://host/a?…"), "{shown}");
        assert!(
            !target.url().as_str().contains("me:"),
            "credentials stay out of the URL"
        );
        let login = target.login_for(target.url()).expect("credentials");
        assert_eq!(
            (login.user.as_str(), login.password.as_str()),
            ("me", "hunter2")
        );
    }

    #[test]
    fn headers_are_meant_for_one_origin_and_its_https() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        let plain = target("http://host/a").expect("a good target");
        assert!(plain.vouches_for(&url("http://host/b")));
        assert!(plain.vouches_for(&url("https://host/b")));
        for other in [
            "http://host:81/",
            "http://other/",
            "https://host:444/",
            "http://host.evil/",
        ] {
            assert!(!plain.vouches_for(&url(other)), "{other}");
        }
        let secure = target("https://host/a").expect("a good target");
        assert!(
            !secure.vouches_for(&url("http://host/a")),
            "never back to plain text"
        );
        let odd = target("http://host:8080/").expect("a good target");
        assert!(!odd.vouches_for(&url("https://host/")));
    }

    #[test]
    fn the_manifest_stands_beside_the_file() {
        for (file, manifest) in [
            ("http://h/d/f.deb", "http://h/d/f.deb.branchline"),
            ("http://h/f?a=b#c", "http://h/f.branchline?a=b"),
            ("http://h/a%20b", "http://h/a%20b.branchline"),
            ("http://h", "http://h/.branchline"),
        ] {
            assert_eq!(
                manifest_url(&Url::parse(file).expect("a URL")).as_str(),
                manifest
            );
        }
    }

    #[test]
    fn ranges_that_are_empty_or_overflow_cannot_be_made() {
        assert_eq!(ByteRange::new(0, 0), None);
        assert_eq!(ByteRange::new(u64::MAX, 1), None);
        assert_eq!(
            ByteRange::new(5, 3).map(|r| r.to_string()),
            Some("5-7".to_owned())
        );
    }
}
