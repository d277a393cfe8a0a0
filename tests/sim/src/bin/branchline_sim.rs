//! `branchline-sim [SVG]`: the table over numbers of members, and its plot.
fn main() {}
