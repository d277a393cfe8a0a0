//! The table in docs/jobs.md is the one in the code.

use super::super::state::table_in_markdown;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/jobs.md");
const BEGIN: &str =
    "<!-- table of transitions: written by BRANCHLINE_WRITE_DOCS=1 cargo test -->\n";
const END: &str = "<!-- end of table -->";

#[test]
fn the_document_has_the_table_of_the_code() {
    let document = std::fs::read_to_string(DOCUMENT).expect("docs/jobs.md");
    let (before, rest) = document.split_once(BEGIN).expect("the table's beginning");
    let (table, after) = rest.split_once(END).expect("the table's end");
    let wanted = table_in_markdown();
    if std::env::var_os("BRANCHLINE_WRITE_DOCS").is_some() {
        let written = format!("{before}{BEGIN}{wanted}{END}{after}");
        std::fs::write(DOCUMENT, written).expect("docs/jobs.md can be written");
    } else {
        assert_eq!(table, wanted, "run this test with BRANCHLINE_WRITE_DOCS=1");
    }
}
