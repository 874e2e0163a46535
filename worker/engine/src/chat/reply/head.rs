//! The heads of calls and parameters, from the name on: `f">` and `a" string="true">`. No name has the marker of tags in it.

use crate::chat::texts::MARKER;

/// Longest name, in bytes.
const LONGEST: usize = 512;
/// Most white space between the parts of a head, in bytes.
const GAP: usize = 8;

/// What a text begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum Head<'a> {
    /// A head; `taken` is its length.
    Whole { name: &'a str, is_string: bool, taken: usize },
    /// May become one.
    Open,
    /// No head.
    None,
}

/// Head of a call. The name has no line breaks.
pub fn call(text: &str) -> Head<'_> {
    head(text, |name| name.contains('\n') || name.contains(MARKER), end)
}

/// Head of a parameter. Names are not escaped, so there may be quotes in them. Without the attribute the value counts
/// as not a string: JSON if it is that, text if not.
pub fn parameter(text: &str) -> Head<'_> {
    head(
        text,
        |name| name.contains(MARKER),
        |rest| match attribute(rest) {
            Tail::None => end(rest),
            tail => tail,
        },
    )
}

/// What follows a name's closing quote.
enum Tail {
    Whole { is_string: bool, taken: usize },
    Open,
    None,
}

fn head<'a>(text: &'a str, is_no_name: impl Fn(&str) -> bool, tail: impl Fn(&str) -> Tail) -> Head<'a> {
    // by bytes: where a name becomes too long must not depend on how the text is cut
    let quotes = text.bytes().enumerate().take(LONGEST).filter(|(_, byte)| *byte == b'"').map(|(at, _)| at);
    for quote in quotes {
        let name = &text[..quote];
        if name.is_empty() || is_no_name(name) {
            return Head::None;
        }
        match tail(&text[quote + 1..]) {
            Tail::Whole { is_string, taken } => {
                return Head::Whole { name, is_string, taken: quote + 1 + taken };
            }
            Tail::Open => return Head::Open,
            Tail::None => {}
        }
    }
    if text.len() >= LONGEST || is_no_name(text) { Head::None } else { Head::Open }
}

fn attribute(text: &str) -> Tail {
    [(true, "string=\"true\""), (false, "string=\"false\"")].into_iter().fold(
        Tail::None,
        |found, (is_string, attribute)| match (found, strip(text, attribute)) {
            (Tail::None, Stripped::Rest(rest)) => match end(rest) {
                Tail::Whole { taken, .. } => {
                    Tail::Whole { is_string, taken: text.len() - rest.len() + taken }
                }
                tail => tail,
            },
            (Tail::None, Stripped::Open) => Tail::Open,
            (found, _) => found,
        },
    )
}

fn end(text: &str) -> Tail {
    match strip(text, ">") {
        Stripped::Rest(rest) => Tail::Whole { is_string: false, taken: text.len() - rest.len() },
        Stripped::Open => Tail::Open,
        Stripped::None => Tail::None,
    }
}

enum Stripped<'a> {
    Rest(&'a str),
    Open,
    None,
}

/// A part of a head with the white space before it taken off.
fn strip<'a>(text: &'a str, part: &str) -> Stripped<'a> {
    let trimmed = text.trim_start_matches([' ', '\t', '\n', '\r']);
    if text.len() - trimmed.len() > GAP {
        return Stripped::None;
    }
    match trimmed.strip_prefix(part) {
        Some(rest) => Stripped::Rest(rest),
        None if part.starts_with(trimmed) => Stripped::Open,
        None => Stripped::None,
    }
}
