//! Which parts of a campaign are run, and how often: what its environment variables say.

use std::str::FromStr;

use anyhow::{Context, Result};

/// Whether `words`, separated by commas, select a name: one of them is part of it, or there is none.
#[must_use]
pub fn selects(words: &str, name: &str) -> bool {
    let mut words = words.split(',').map(str::trim).filter(|word| !word.is_empty()).peekable();
    words.peek().is_none() || words.any(|word| name.contains(word))
}

/// A number from the environment.
///
/// # Errors
/// If it is none.
pub fn setting<T: FromStr>(name: &str, otherwise: T) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(otherwise),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_word_selects_and_no_word_selects_all() {
        assert!(selects("", "scale") && selects(" , ", "scale"));
        assert!(selects("drain, sca", "scale"));
        assert!(!selects("drain,", "scale") && !selects("drain, ,kill", "scale"));
    }
}
