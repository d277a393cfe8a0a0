//! Medians, and how figures are printed.

/// The middle of the values; of an even number the mean of the two in the middle. `NAN` of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len(), values.len() % 2) {
        (0, _) => f64::NAN,
        (_, 1) => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The smallest and the largest, as `1.23-1.45`.
pub(crate) fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{least:.2}-{most:.2}")
}

/// The median of the ratios of what ran side by side: round by round, so that a machine that gets
/// slower for a while slows both.
pub(crate) fn median_ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    median(ours.iter().zip(theirs).map(|(our, their)| our / their))
}

/// A goal and a figure, side by side.
pub(crate) fn print_goal(what: &str, goal: &str, figure: &str) {
    println!("  {what:<62} goal {goal:<10} here {figure}");
}

/// Bytes as MiB.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Bytes as GB, the unit CPU seconds are given for.
pub(crate) fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The second round was twice as slow for both.
        assert_eq!(median_ratio(&[1.0, 2.0, 1.0], &[2.0, 4.0, 2.0]), 0.5);
    }
}
