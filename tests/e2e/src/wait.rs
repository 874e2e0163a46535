//! Waiting for a state of the cluster: always on the state itself, never for a while.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks until the answer is `Ok(Some(_))`; every error in between is only reported if time runs out.
///
/// # Errors
/// After `limit`, with the last thing that `probe` said.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => String::from("not yet"),
            Err(error) => format!("{error:#}"),
        };
        if start.elapsed() > limit {
            bail!("{what}: not within {} s; last: {last}", limit.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
