//! Credentials by host, from a netrc file.
//!
//! Reading is total: words that mean nothing here are passed over, so no file is an error and no
//! message can show a password. The first entry of a host counts, as in curl.

use std::fmt;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use reqwest::header::HeaderValue;

use crate::cause::one_line;
use crate::options::{NetrcChoice, OriginSetupError};

/// A user and a password. Its `Debug` shows neither.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Login {
    /// The `Authorization` that says it (RFC 7617).
    pub(crate) fn basic(&self) -> Option<HeaderValue> {
        let pair = BASE64.encode(format!("{}:{}", self.user, self.password).as_bytes());
        let mut value = HeaderValue::from_str(&format!("Basic {pair}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login { .. }")
    }
}

/// The entries of a netrc file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Netrc {
    machines: Vec<(String, Login)>,
    default: Option<Login>,
}

impl Netrc {
    pub(crate) fn load(choice: &NetrcChoice) -> Result<Self, OriginSetupError> {
        match choice {
            NetrcChoice::Nowhere => Ok(Self::default()),
            NetrcChoice::Environment => Ok(usual_file()
                .and_then(|path| read(&path).ok())
                .unwrap_or_default()),
            NetrcChoice::File(path) => read(path).map_err(|error| OriginSetupError::Netrc {
                path: path.clone(),
                why: one_line(&error),
            }),
        }
    }

    /// The credentials of a host that is named; the default entry only for one the user asked for,
    /// never for one that a redirect leads to.
    pub(crate) fn login(&self, host: &str, asked_for: bool) -> Option<&Login> {
        let named = self
            .machines
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(host));
        let login = named.map(|(_, login)| login);
        let login = login.or(self.default.as_ref().filter(|_| asked_for));
        login.filter(|login| **login != Login::default())
    }

    fn parse(text: &str) -> Self {
        let mut netrc = Self::default();
        let mut words = Words { rest: text };
        let mut entry = Entry::Outside;
        let mut login = Login::default();
        while let Some(word) = words.keyword() {
            match word.as_str() {
                "machine" => {
                    netrc.close(&mut entry, &mut login);
                    entry = words.value().map_or(Entry::Outside, Entry::Machine);
                }
                "default" => {
                    netrc.close(&mut entry, &mut login);
                    entry = Entry::Default;
                }
                "login" | "user" => login.user = words.value().unwrap_or_default(),
                "password" | "passwd" => login.password = words.value().unwrap_or_default(),
                "account" => drop(words.value()),
                "macdef" => words.skip_macro(),
                _ => {}
            }
        }
        netrc.close(&mut entry, &mut login);
        netrc
    }

    fn close(&mut self, entry: &mut Entry, login: &mut Login) {
        let login = std::mem::take(login);
        match std::mem::replace(entry, Entry::Outside) {
            Entry::Outside => {}
            Entry::Machine(name) => self.machines.push((name, login)),
            Entry::Default => self.default = self.default.take().or(Some(login)),
        }
    }
}

/// What the words that follow belong to.
enum Entry {
    Outside,
    Machine(String),
    Default,
}

/// The words of a netrc file: separated by white space, quoted with `"` and `\` if they hold some;
/// a word that begins with `#` where a keyword may stand comments its line out.
struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    fn keyword(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        while self.rest.starts_with('#') {
            self.skip_line();
            self.rest = self.rest.trim_start();
        }
        self.plain()
    }

    /// A password may begin with `#`.
    fn value(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix('"') {
            Some(quoted) => Some(self.quoted(quoted.len())),
            None => self.plain(),
        }
    }

    fn plain(&mut self) -> Option<String> {
        let end = self
            .rest
            .find(char::is_whitespace)
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then(|| word.to_owned())
    }

    fn quoted(&mut self, length: usize) -> String {
        let mut word = String::new();
        let mut chars = self.rest[self.rest.len() - length..].chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => word.extend(chars.next()),
                other => word.push(other),
            }
        }
        self.rest = chars.as_str();
        word
    }

    fn skip_line(&mut self) {
        self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
    }

    /// A macro ends with an empty line.
    fn skip_macro(&mut self) {
        while !self.rest.is_empty() {
            self.skip_line();
            if self.rest.starts_with('\n') || self.rest.starts_with("\r\n") {
                break;
            }
        }
    }
}

fn read(path: &Path) -> std::io::Result<Netrc> {
    let bytes = std::fs::read(path)?;
    Ok(Netrc::parse(&String::from_utf8_lossy(&bytes)))
}

fn usual_file() -> Option<PathBuf> {
    let named = std::env::var_os("NETRC")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    named.or_else(|| std::env::home_dir().map(|home| home.join(".netrc")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn login(text: &str, host: &str) -> Option<(String, String)> {
        let netrc = Netrc::parse(text);
        netrc
            .login(host, true)
            .map(|login| (login.user.clone(), login.password.clone()))
    }

    fn pair(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.to_owned(), password.to_owned()))
    }

    #[test]
    fn entries_stand_on_one_line_or_on_several() {
        let text = "machine a login u1 password p1 machine b\n\tlogin u2\n  password p2\n";
        assert_eq!(login(text, "a"), pair("u1", "p1"));
        assert_eq!(login(text, "B"), pair("u2", "p2"));
        assert_eq!(login(text, "c"), None);
    }

    #[test]
    fn comments_macros_quotes_and_unknown_words_are_understood() {
        let text = "# machine a login no password no\n\
                    macdef init\ncd /x machine a login no\n\n\
                    machine a port 21 account #x user \"u \\\"1\" password \"p 1\" # the end\n\
                    default login d password e";
        assert_eq!(login(text, "a"), pair("u \"1", "p 1"));
        assert_eq!(login(text, "elsewhere"), pair("d", "e"));
        assert_eq!(Netrc::parse(text).login("elsewhere", false), None);
    }

    #[test]
    fn the_first_entry_of_a_host_counts() {
        assert_eq!(
            login("machine a login 1 machine a login 2", "a"),
            pair("1", "")
        );
    }

    #[test]
    fn basic_credentials_are_those_of_rfc_7617() {
        let login = Login {
            user: "Aladdin".to_owned(),
            password: "open sesame".to_owned(),
        };
        let value = login.basic().expect("base64 makes a header value");
        assert_eq!(value.as_bytes(), b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(!format!("{login:?}{value:?}").contains("QWxh"));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(machine|default|macdef|login|password|\"|#|\\\\|\n| |[a-z])*") {
            let _ = Netrc::parse(&text);
        }
    }
}
