//! Finding tags in text that is still coming.

use crate::chat::texts::{CALLS, CALLS_END, INVOKE, INVOKE_END, PARAMETER, PARAMETER_END, THINK, THINK_END};

/// Tags of the format; those with a head end where their name begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    Think,
    ThinkEnd,
    Calls,
    CallsEnd,
    Invoke,
    InvokeEnd,
    Parameter,
    ParameterEnd,
}

impl Tag {
    fn text(self) -> &'static str {
        match self {
            Self::Think => THINK,
            Self::ThinkEnd => THINK_END,
            Self::Calls => CALLS,
            Self::CallsEnd => CALLS_END,
            Self::Invoke => INVOKE,
            Self::InvokeEnd => INVOKE_END,
            Self::Parameter => PARAMETER,
            Self::ParameterEnd => PARAMETER_END,
        }
    }

    /// Whether newlines before the tag belong to it: the format begins a line with it.
    fn takes_newlines(self) -> bool {
        !matches!(self, Self::Think | Self::ThinkEnd | Self::ParameterEnd)
    }
}

/// What a text begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum Scan {
    /// So many bytes are no tag; what follows them may become one.
    Text(usize),
    /// `plain` bytes are no tag, then comes one that ends at `end`, newlines before it included.
    Tag { plain: usize, tag: Tag, end: usize },
}

/// Looks for the first of the tags. At the end of the text nothing becomes a tag any more.
pub fn scan(text: &str, tags: &[Tag], newlines: usize, is_end: bool) -> Scan {
    let mut from = 0;
    while let Some(found) = text[from..].find('<') {
        let at = from + found;
        let rest = &text[at..];
        if let Some(&tag) = tags.iter().find(|tag| rest.starts_with(tag.text())) {
            let plain = if tag.takes_newlines() { without_newlines(text, at, newlines) } else { at };
            return Scan::Tag { plain, tag, end: at + tag.text().len() };
        }
        if !is_end && tags.iter().any(|tag| tag.text().starts_with(rest)) {
            return Scan::Text(without_newlines(text, at, newlines));
        }
        from = at + 1;
    }
    Scan::Text(if is_end { text.len() } else { without_newlines(text, text.len(), newlines) })
}

/// Where the last newlines before a place begin, at most so many of them.
fn without_newlines(text: &str, end: usize, newlines: usize) -> usize {
    let count = text[..end].bytes().rev().take(newlines).take_while(|&byte| byte == b'\n').count();
    end - count
}
