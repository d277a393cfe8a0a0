//! `branchline cache`

use std::time::{SystemTime, UNIX_EPOCH};

use branchline_agent::api::{CacheEntry, Failure, without_password};

use crate::args::ShowArgs;
use crate::context::Context;
use crate::output::{self, Column, ago, bytes, table};

/// Asks the running agent.
pub(super) async fn list(args: &ShowArgs, context: &Context) -> Result<(), Failure> {
    let entries = context.client()?.cache().await?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    match args.json {
        true => output::print_json(&entries),
        false => output::print(&text(&entries, now)),
    }
}

fn text(entries: &[CacheEntry], now_unix_seconds: u64) -> String {
    if entries.is_empty() {
        return "the store is empty\n".into();
    }
    let columns = [
        Column::Left("FILE"),
        Column::Right("SIZE"),
        Column::Right("HELD"),
        Column::Left("TRUST"),
        Column::Left("USED"),
        Column::Left("CONTENT"),
        Column::Left("URL"),
    ];
    let rows: Vec<_> = entries
        .iter()
        .map(|entry| row(entry, now_unix_seconds))
        .collect();
    table(columns, &rows)
}

/// The ContentKey opens its content, so that a screen shows only as much of it as tells it apart.
const SHOWN_KEY_DIGITS: usize = 12;

fn row(entry: &CacheEntry, now_unix_seconds: u64) -> [String; 7] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    [
        or_dash(entry.file_name.clone()),
        bytes(entry.bytes),
        held(entry.segments_present, entry.segments),
        entry.trust.to_string(),
        ago(now_unix_seconds.saturating_sub(entry.last_used_unix_seconds)),
        entry
            .content
            .to_string()
            .chars()
            .take(SHOWN_KEY_DIGITS)
            .collect(),
        or_dash(
            entry
                .url
                .as_ref()
                .map(|url| without_password(url).to_string()),
        ),
    ]
}

/// 100 % only if nothing is missing.
fn held(present: u64, segments: u64) -> String {
    match segments {
        0 => "100%".into(),
        _ => format!("{}%", u128::from(present) * 100 / u128::from(segments)),
    }
}

#[cfg(test)]
mod tests {
    use branchline_agent::api::Trust;
    use branchline_hashing::ContentKey;

    use super::*;

    #[test]
    fn a_cache_reads_so() {
        let entry = CacheEntry {
            content: ContentKey::from_bytes([0xab; 32]),
            url: Some(
                "https://u:secret@origin.example/f.iso"
                    .parse()
                    .expect("a URL"),
            ),
            file_name: Some("f.iso".into()),
            bytes: 5 << 30,
            segments: 1000,
            segments_present: 999,
            trust: Trust::Manifest,
            last_used_unix_seconds: 940,
        };
        let other = CacheEntry {
            url: None,
            file_name: None,
            bytes: 0,
            segments: 0,
            segments_present: 0,
            trust: Trust::Digest,
            ..entry.clone()
        };
        insta::assert_snapshot!(text(&[entry, other], 1000), @r"
        FILE       SIZE  HELD  TRUST     USED       CONTENT       URL
        f.iso  5.00 GiB   99%  manifest  1 min ago  abababababab  https://u:***@origin.example/f.iso
        -           0 B  100%  digest    1 min ago  abababababab  -
        ");
        insta::assert_snapshot!(text(&[], 1000), @"the store is empty");
        assert_eq!(held(u64::MAX - 1, u64::MAX), "99%");
    }
}
