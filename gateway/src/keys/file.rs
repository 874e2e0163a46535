//! The file of keys: YAML or JSON, a list. Errors say where, and never what: the file is full of secrets.
use std::collections::HashSet;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::Limits;

/// SHA-256 of a key.
pub type Hash = [u8; 32];

/// What a key may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// For logs, metrics and the order of waiting requests.
    pub name: String,
    /// Of the key itself.
    pub hash: Hash,
    /// Served models that it may ask for; empty: all.
    pub models: Vec<String>,
    /// How much.
    pub limits: Limits,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be read.
    #[error("the file of keys: {0}")]
    Io(#[from] std::io::Error),
    /// It is no list of keys.
    #[error("the file of keys is not a list of keys as documented: line {line}, column {column}")]
    Syntax {
        /// From 1 on; 0: unknown.
        line: u64,
        /// From 1 on; 0: unknown.
        column: u64,
    },
    /// An entry makes no sense.
    #[error("the file of keys, entry {index}: {what}")]
    Entry {
        /// From 0 on.
        index: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    name: String,
    key: Option<String>,
    sha256: Option<String>,
    #[serde(default)]
    models: Vec<String>,
    requests_per_minute: Option<u64>,
    tokens_per_minute: Option<u64>,
    tokens_per_day: Option<u64>,
    max_concurrent: Option<u64>,
}

/// Reads the text of a file.
pub fn read(text: &str) -> Result<Vec<Entry>, FileError> {
    let raw: Vec<Raw> = serde_saphyr::from_str(text).map_err(|error| {
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        FileError::Syntax { line, column }
    })?;
    let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
    let mut entries = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let wrong = |what| FileError::Entry { index, what };
        let entry = entry(raw).map_err(wrong)?;
        if !names.insert(entry.name.clone()) {
            return Err(wrong("name: is that of another entry as well"));
        }
        if !hashes.insert(entry.hash) {
            return Err(wrong("key: is that of another entry as well"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(raw: Raw) -> Result<Entry, &'static str> {
    if raw.name.is_empty() {
        return Err("name: must not be empty");
    }
    let hash = match (raw.key, raw.sha256) {
        (Some(key), None) if key.is_empty() => return Err("key: must not be empty"),
        (Some(key), None) => hash(key.as_bytes()),
        (None, Some(hex)) => from_hex(&hex).ok_or("sha256: must be 64 hexadecimal digits")?,
        _ => return Err("exactly one of key and sha256 must be set"),
    };
    let limits = Limits {
        requests_per_minute: raw.requests_per_minute,
        tokens_per_minute: raw.tokens_per_minute,
        tokens_per_day: raw.tokens_per_day,
        max_concurrent: raw.max_concurrent,
    };
    let all =
        [limits.requests_per_minute, limits.tokens_per_minute, limits.tokens_per_day, limits.max_concurrent];
    if all.contains(&Some(0)) {
        return Err("a limit must be at least 1; leave it out for none");
    }
    Ok(Entry { name: raw.name, hash, models: raw.models, limits })
}

/// SHA-256.
pub fn hash(key: &[u8]) -> Hash {
    Sha256::digest(key).into()
}

fn from_hex(text: &str) -> Option<Hash> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
- name: team-a
  key: secret-a
  models: [nano, large]
  requestsPerMinute: 60
  tokensPerMinute: 10000
  tokensPerDay: 1000000
  maxConcurrent: 8
- name: team-b
  sha256: 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b
";

    #[test]
    fn yaml_and_json_are_read() {
        let entries = read(FILE).unwrap();
        assert_eq!(entries[0].hash, hash(b"secret-a"));
        assert_eq!(entries[0].models, ["nano", "large"]);
        assert_eq!(entries[0].limits.tokens_per_day, Some(1_000_000));
        assert_eq!(entries[1].hash, hash(b"secret"));
        assert_eq!(entries[1].limits, Limits::default());
        let json = r#"[{"name": "a", "key": "k"}]"#;
        assert_eq!(read(json).unwrap()[0].hash, hash(b"k"));
        assert!(read("[]").unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_told_without_a_secret() {
        for (text, said) in [
            ("- name: a\n  key: sk-secret\n  rate: 5\n", "line"),
            ("- name: a\n  key: sk-secret\n  requestsPerMinute: sk-secret\n", "line"),
            ("name: sk-secret", "line"),
            ("- name: a\n", "exactly one"),
            ("- name: a\n  key: sk-secret\n  sha256: sk-secret\n", "exactly one"),
            ("- name: a\n  sha256: sk-secret\n", "hexadecimal"),
            ("- name: a\n  key: sk-secret\n- name: a\n  key: b\n", "entry 1: name"),
            ("- name: a\n  key: sk-secret\n- name: b\n  key: sk-secret\n", "entry 1: key"),
            ("- name: a\n  key: sk-secret\n  maxConcurrent: 0\n", "at least 1"),
            ("- name: ''\n  key: sk-secret\n", "name"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(said) && !error.contains("sk-secret"), "{text}: {error}");
        }
    }
}
