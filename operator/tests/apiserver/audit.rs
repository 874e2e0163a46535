//! The API server's audit log: who asked for what.
use std::{collections::BTreeMap, fs, path::PathBuf};

use serde_json::Value;

/// Calls by verb and resource, and how often.
pub type Calls = BTreeMap<(String, String), u64>;

/// The log, from where it was last read.
pub struct AuditLog {
    path: PathBuf,
    read: usize,
}

impl AuditLog {
    /// From the beginning.
    pub fn new(path: PathBuf) -> Self {
        Self { path, read: 0 }
    }

    /// What was asked since this was called last. Leases are left out: the leader renews its own for ever.
    pub fn calls(&mut self) -> Calls {
        let text = fs::read(&self.path).unwrap();
        let new = &text[self.read..];
        // the last line may be written just now
        let end = new.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.read += end;
        let mut calls = Calls::new();
        for line in new[..end].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let event: Value = serde_json::from_slice(line).unwrap();
            let word =
                |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (mut resource, subresource) = (word("/objectRef/resource"), word("/objectRef/subresource"));
            if resource == "leases" {
                continue;
            }
            if !subresource.is_empty() {
                resource = format!("{resource}/{subresource}");
            }
            *calls.entry((word("/verb"), resource)).or_default() += 1;
        }
        calls
    }
}

/// Those that change something.
pub fn writes(calls: &Calls) -> Calls {
    without(calls, &["get", "list", "watch"])
}

/// Those that are answered once: a watch goes on.
pub fn asked(calls: &Calls) -> Calls {
    without(calls, &["watch"])
}

fn without(calls: &Calls, verbs: &[&str]) -> Calls {
    let kept = calls.iter().filter(|((verb, _), _)| !verbs.contains(&verb.as_str()));
    kept.map(|(call, count)| (call.clone(), *count)).collect()
}
