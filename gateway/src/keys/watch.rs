//! Follows the file of keys. Mounted Secrets change by a link of a folder above, which file events tell unreliably: so it is
//! read every few seconds, which costs nothing at its size.
use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::observe::Metrics;

use super::{Keyring, file};

const INTERVAL: Duration = Duration::from_secs(2);

/// Reads the file for ever; `last` is its text so far. A file that cannot be read or makes no sense changes nothing, and
/// that is told once for each such text.
pub async fn watch(path: PathBuf, mut last: String, ring: Arc<Keyring>, metrics: Arc<Metrics>) {
    let mut interval = tokio::time::interval(INTERVAL);
    let mut last_error = String::new();
    loop {
        interval.tick().await;
        let read = match tokio::fs::read_to_string(&path).await {
            Ok(text) if text == last => continue,
            Ok(text) => {
                let entries = file::read(&text);
                last = text;
                entries
            }
            Err(error) => Err(error.into()),
        };
        match read {
            Ok(entries) => {
                ring.replace(entries);
                last_error.clear();
                metrics.keys_are_current(true);
                tracing::info!(keys = ring.count(), "keys were read anew");
            }
            Err(error) => {
                metrics.keys_are_current(false);
                let error = error.to_string();
                if error != last_error {
                    tracing::warn!(error, "the keys from before stay in use");
                    last_error = error;
                }
            }
        }
    }
}
