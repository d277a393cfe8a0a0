//! Aligned columns.

use super::printable;

/// A column's title and side.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    /// Texts.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

/// A line of titles and one a row. Columns are two spaces apart; no line ends in spaces.
pub(crate) fn table<const N: usize>(columns: [Column; N], rows: &[[String; N]]) -> String {
    let titles = columns.map(|column| match column {
        Column::Left(title) | Column::Right(title) => title.to_owned(),
    });
    let lines: Vec<[String; N]> = [&titles]
        .into_iter()
        .chain(rows)
        .map(|row| row.each_ref().map(|c| printable(c)))
        .collect();
    let width = |i: usize| {
        lines
            .iter()
            .map(|line| line[i].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        let cells =
            line.iter()
                .zip(columns)
                .zip(widths)
                .map(|((cell, column), width)| match column {
                    Column::Left(_) => format!("{cell:<width$}"),
                    Column::Right(_) => format!("{cell:>width$}"),
                });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_are_shown_as_such() {
        let rows = [
            ["é".into(), "1".into(), "short".into()],
            ["\u{1b}[2J".into(), "1000".into(), String::new()],
        ];
        let columns = [
            Column::Left("NAME"),
            Column::Right("SIZE"),
            Column::Left("NOTE"),
        ];
        insta::assert_snapshot!(table(columns, &rows), @r"
        NAME  SIZE  NOTE
        é        1  short
        �[2J  1000
        ");
        insta::assert_snapshot!(table(columns, &[]), @"NAME  SIZE  NOTE");
    }
}
