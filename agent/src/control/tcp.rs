//! The control API over TCP, for programs that cannot speak to a Unix socket: on a loopback address alone, and only for
//! who can read the token beside the socket.

use std::io;
use std::net::{SocketAddr, TcpListener as BlockingListener};
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::api::{Failure, FailureKind};
use crate::secret_file::{random, read_or_make};

/// The token's name in the state directory.
pub const TOKEN_NAME: &str = "control.token";

/// Bytes of a token before they are written as hexadecimal digits: nobody guesses that.
const TOKEN_BYTES: usize = 32;

/// A listening port, and what opens it.
#[derive(Debug)]
pub struct ControlPort {
    pub(super) listener: TcpListener,
    pub(super) token: Token,
}

/// What a caller must know. Its `Debug` does not show it.
#[derive(Clone)]
pub(super) struct Token(Arc<[u8]>);

impl ControlPort {
    /// Listens, and makes the token where there is none: a file with mode 0600 that is kept over restarts.
    ///
    /// # Errors
    /// [`Failure`] when the address is taken, or the token cannot be read or made.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(address: SocketAddr, state_dir: &Path) -> Result<Self, Failure> {
        let path = state_dir.join(TOKEN_NAME);
        let token = Token::read_or_make(&path).map_err(|error| bad_token(&path, &error))?;
        let listener = listen(address).map_err(|error| {
            let message = format!(
                "control port {address}: {error}; choose another address for `control.listen`"
            );
            Failure::new(FailureKind::Usage, message)
        })?;
        Ok(Self { listener, token })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = BlockingListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn bad_token(path: &Path, error: &io::Error) -> Failure {
    let message = format!(
        "control token {}: {error}; remove the file, and a new one is made",
        path.display()
    );
    Failure::new(FailureKind::LocalDisk, message)
}

impl Token {
    fn read_or_make(path: &Path) -> io::Result<Self> {
        let make = || {
            let bytes = random::<TOKEN_BYTES>()?;
            let digits = data_encoding::HEXLOWER.encode(&bytes);
            Ok((digits + "\n").into_bytes())
        };
        let text = read_or_make(path, make)?;
        let token = text.trim_ascii_end();
        match token.len() >= TOKEN_BYTES && token.iter().all(u8::is_ascii_graphic) {
            true => Ok(Self(token.into())),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it holds no token of at least 32 characters",
            )),
        }
    }

    /// Whether a header says `Bearer` and this (RFC 6750, section 2.1), in a time that does not tell how much of it is right.
    pub(super) fn opens(&self, authorization: Option<&[u8]>) -> bool {
        let Some((scheme, said)) = authorization.and_then(|value| value.split_at_checked(7)) else {
            return false;
        };
        let equal = aws_lc_rs::constant_time::verify_slices_are_equal(said, &self.0).is_ok();
        scheme.eq_ignore_ascii_case(b"Bearer ") && equal
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_opens_for_who_knows_the_whole_of_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(TOKEN_NAME);
        let token = Token::read_or_make(&path).expect("a token");
        let text = std::fs::read_to_string(&path).expect("written");
        let right = format!("Bearer {}", text.trim_end());
        assert!(token.opens(Some(right.as_bytes())));
        assert!(token.opens(Some(right.replace("Bearer", "bearer").as_bytes())));
        let again = Token::read_or_make(&path).expect("the same");
        assert!(again.opens(Some(right.as_bytes())));
        for end in 0..right.len() {
            assert!(!token.opens(Some(&right.as_bytes()[..end])));
        }
        assert!(!token.opens(Some(format!("{right}0").as_bytes())));
        assert!(!token.opens(Some(right.replace("Bearer", "Basic ").as_bytes())));
        assert!(!token.opens(None));
    }

    #[test]
    fn a_token_that_others_can_read_or_guess_is_none() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(TOKEN_NAME);
        Token::read_or_make(&path).expect("a token");
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, mode(0o640)).expect("set");
        assert!(Token::read_or_make(&path).is_err());
        std::fs::write(&path, "secret").expect("written");
        std::fs::set_permissions(&path, mode(0o600)).expect("set");
        assert!(Token::read_or_make(&path).is_err());
    }
}
