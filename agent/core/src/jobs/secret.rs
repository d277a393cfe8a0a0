//! Values that nobody may read in a log or an answer.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A password or a header's secret value. `Debug` hides it, and it is not `Serialize`: a field that is
/// written to the journal, or sent to the agent, says so with [`Secret::serialize_exposed`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `value`.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// For `#[serde(serialize_with)]`: writes the value in the clear.
    ///
    /// # Errors
    ///
    /// The serializer's own.
    pub fn serialize_exposed<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// A URL as it was given. `Debug` and `Display` hide a password in it. Whether it is a good URL is
/// for those to say who use it; here it is one printable word with a scheme.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemoteUrl(String);

/// The longest URL taken: what common servers take in a request line.
pub const MAX_URL_BYTES: usize = 8 << 10;

/// A URL that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a URL: one word of at most {MAX_URL_BYTES} bytes with a scheme is wanted, as https://host/path"
)]
pub struct NotAUrl;

impl RemoteUrl {
    /// Takes a word with a scheme.
    ///
    /// # Errors
    ///
    /// When it has none, is too long, or holds blanks or control characters.
    pub fn new(url: impl Into<String>) -> Result<Self, NotAUrl> {
        let url = url.into();
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let is_word = !url.contains(|c: char| c.is_whitespace() || c.is_control());
        let good = !scheme.is_empty() && scheme.chars().all(is_scheme) && is_word;
        (good && url.len() <= MAX_URL_BYTES)
            .then_some(Self(url))
            .ok_or(NotAUrl)
    }

    /// The whole of it, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The user and password part, with what stands before and after it.
    fn parts(&self) -> Option<(&str, &str, &str)> {
        let authority = self.0.find("://")? + 3;
        let rest = &self.0[authority..];
        let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        let at = rest[..end].rfind('@')?;
        Some((&self.0[..authority], &rest[..at], &rest[at..]))
    }
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            None => f.write_str(&self.0),
            Some((scheme, user, rest)) => match user.split_once(':') {
                None => f.write_str(&self.0),
                Some((user, _)) => write!(f, "{scheme}{user}:***{rest}"),
            },
        }
    }
}

impl fmt::Debug for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteUrl({self})")
    }
}

impl Serialize for RemoteUrl {
    /// In the clear: for the journal and for requests. Views hold a `String` made with `Display`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RemoteUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let url = String::deserialize(deserializer)?;
        Self::new(url).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(hidden)");
    }

    #[test]
    fn a_password_in_a_url_does_not_show() {
        let shown = |url: &str| RemoteUrl::new(url).expect("a URL").to_string();
        assert_eq!(shown("https://h/a?b=c:d@e"), "https://h/a?b=c:d@e");
        assert_eq!(shown("https://me@h/"), "https://me@h/");
        assert_eq!(shown("https://me:p@ss:word@h:8/x"), "https://me:***@h:8/x");
        assert_eq!(shown("https://me:pw@h"), "https://me:***@h");
        let debug = format!("{:?}", RemoteUrl::new("ftp://u:pw@h/").expect("a URL"));
        assert_eq!(debug, "RemoteUrl(ftp://u:***@h/)");
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for bad in [
            "",
            "host/path",
            "://h",
            "http://a b",
            "ht tp://h",
            "http://h/\n",
        ] {
            assert_eq!(RemoteUrl::new(bad), Err(NotAUrl), "{bad:?}");
        }
    }
}
