//! Progress on a terminal; nothing where stderr is none.

use std::sync::Arc;
use std::time::Duration;

use branchline_agent::api::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{bytes, printable};

/// Bytes done of bytes to do. Clones are the same bar; it goes with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Bar(Arc<Shown>);

#[derive(Debug)]
struct Shown(ProgressBar);

/// Two lines, for the sources need half the width of a usual terminal.
const KNOWN: &str = "{percent:>3}% [{wide_bar}] {binary_bytes}/{binary_total_bytes} \
                     {binary_bytes_per_sec} {eta}\n     {wide_msg}";
const UNKNOWN: &str = "{spinner} {binary_bytes} {binary_bytes_per_sec}\n     {wide_msg}";

impl Bar {
    /// Draws only if stderr is a terminal.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style(UNKNOWN));
        bar.enable_steady_tick(Duration::from_millis(250));
        Self(Arc::new(Shown(bar)))
    }

    /// Whether anybody sees it.
    pub(crate) fn is_shown(&self) -> bool {
        !self.bar().is_hidden()
    }

    fn bar(&self) -> &ProgressBar {
        &self.0.0
    }

    /// There are so many bytes to do.
    pub(crate) fn expect(&self, total: u64) {
        if self.bar().length().is_none() {
            self.bar().set_style(style(KNOWN).progress_chars("=> "));
        }
        self.bar().set_length(total);
    }

    /// So many more are done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.bar().inc(bytes);
    }

    /// What stands behind the figures.
    pub(crate) fn say(&self, message: &str) {
        self.bar().set_message(printable(message));
    }

    /// Runs what writes to the terminal with the bar out of its way.
    pub(crate) fn aside(&self, write: impl FnOnce()) {
        self.bar().suspend(write);
    }

    /// How far a download is.
    pub(crate) fn show(&self, progress: &Progress) {
        if let Some(total) = progress.bytes {
            self.expect(total);
        }
        self.bar().set_position(progress.bytes_done());
        self.say(&sources(progress));
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a constant that the tests draw")
}

/// Where the bytes came from, and what is missing.
fn sources(progress: &Progress) -> String {
    let Progress {
        from_origin,
        from_peers,
        from_store,
        peers,
        waiting_for,
        bytes: _,
    } = progress;
    let mut parts = vec![
        format!("origin {}", bytes(*from_origin)),
        format!("{peers} peers {}", bytes(*from_peers)),
        format!("store {}", bytes(*from_store)),
    ];
    parts.extend(
        waiting_for
            .as_ref()
            .map(|what| format!("waiting for {what}")),
    );
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_shows_bytes_by_source_and_what_it_waits_for() {
        let mut progress = Progress {
            from_store: 1 << 20,
            waiting_for: Some("the origin".into()),
            ..Progress::default()
        };
        let bar = Bar::new();
        bar.show(&progress);
        assert_eq!((bar.bar().position(), bar.bar().length()), (1 << 20, None));
        insta::assert_snapshot!(bar.bar().message(), @"origin 0 B, 0 peers 0 B, store 1.00 MiB, waiting for the origin");

        progress.bytes = Some(4 << 20);
        (progress.from_peers, progress.peers, progress.waiting_for) = (1 << 20, 2, None);
        bar.show(&progress);
        assert_eq!(
            (bar.bar().position(), bar.bar().length()),
            (2 << 20, Some(4 << 20))
        );
        insta::assert_snapshot!(bar.bar().message(), @"origin 0 B, 2 peers 1.00 MiB, store 1.00 MiB");
    }

    #[test]
    fn the_bar_goes_with_its_last_clone() {
        let bar = Bar::new();
        let (clone, shown) = (bar.clone(), bar.bar().clone());
        drop(bar);
        assert!(!shown.is_finished());
        drop(clone);
        assert!(shown.is_finished());
    }
}
