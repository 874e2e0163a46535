//! The reference page must know every reason, and no other.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
use std::collections::BTreeSet;

#[test]
fn reference_page_lists_exactly_the_reasons_of_the_code() {
    let code = include_str!("../src/conditions.rs");
    let words: BTreeSet<&str> = code
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Self::")?.split_once(" => \"")?.1.strip_suffix("\","))
        .collect();
    let page = include_str!("../../docs/reference/conditions.md");
    let listed: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(word, _)| word))
        .collect();
    assert!(words.len() > 30, "the code was read");
    assert_eq!(words, listed);
}
