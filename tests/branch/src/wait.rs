//! Waiting for something to become true.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::PATIENCE;

/// Between two looks: short beside anything that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Looks until `look` gives something; `what` is for the message when it never does.
///
/// # Errors
/// When `look` fails, or gives nothing for a minute.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {PATIENCE:?} in vain for {what}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
