//! Sizes and times for people.

use indicatif::BinaryBytes;

/// `1.20 MiB`
pub(crate) fn bytes(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

/// Units of time in seconds, the largest first.
const TIME_UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];

/// The two largest units: `2 d 3 h`, `59 s`.
pub(crate) fn duration(seconds: u64) -> String {
    let largest = TIME_UNITS
        .iter()
        .position(|(unit, _)| seconds >= *unit)
        .unwrap_or(3);
    let (unit, name) = TIME_UNITS[largest];
    let first = format!("{} {name}", seconds / unit);
    match TIME_UNITS.get(largest + 1) {
        Some((next, name)) if seconds % unit >= *next => {
            format!("{first} {} {name}", seconds % unit / next)
        }
        Some(_) | None => first,
    }
}

/// `3 min ago`
pub(crate) fn ago(seconds: u64) -> String {
    match seconds {
        0 => "now".into(),
        _ => format!("{} ago", duration(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_at_most_two_units() {
        let times = [
            0,
            59,
            60,
            61,
            3_600,
            3_661,
            86_399,
            86_400,
            90_061,
            u64::MAX,
        ];
        let shown: Vec<String> = times.into_iter().map(duration).collect();
        insta::assert_snapshot!(shown.join(", "), @"0 s, 59 s, 1 min, 1 min 1 s, 1 h, 1 h 1 min, 23 h 59 min, 1 d, 1 d 1 h, 213503982334601 d 7 h");
        assert_eq!(ago(0), "now");
        assert_eq!(ago(5), "5 s ago");
    }
}
