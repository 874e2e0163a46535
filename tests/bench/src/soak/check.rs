//! What is left behind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process::{Stack, resident_bytes};

/// Longest time until nothing is in use any more.
const SETTLES: Duration = Duration::from_secs(20);

/// Gauges that are zero when nobody asks.
const OF_WORKER: [&str; 4] = [
    "belay_num_requests_running",
    "belay_num_requests_waiting",
    "belay_requests_in_flight",
    "belay_kv_cache_bytes",
];
const OF_GATEWAY: [&str; 2] = ["belay_gateway_requests_in_flight", "belay_gateway_requests_held"];

/// How much a process may grow after the warm-up: the larger one counts.
const GROWTH_BYTES: u64 = 16 << 20;
const GROWTH_PERCENT: u64 = 5;

/// Waits until no request and no decode state is left.
///
/// # Errors
/// What is left after a while.
pub async fn settled(stack: &Stack) -> Result<()> {
    let begin = Instant::now();
    loop {
        let left = in_use(stack).await?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(begin.elapsed() < SETTLES, "still in use: {}", left.join(", "));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn in_use(stack: &Stack) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let servers =
        [(stack.worker_metrics().await?, &OF_WORKER[..]), (stack.gateway_metrics().await?, &OF_GATEWAY)];
    for (metrics, names) in servers {
        for name in names {
            let value = metrics.get(name)?;
            if value != 0.0 {
                left.push(format!("{name} {value}"));
            }
        }
    }
    Ok(left)
}

/// Resident memory of the processes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The worker's.
    pub worker: u64,
    /// The gateway's.
    pub gateway: u64,
}

impl Memory {
    /// Now.
    ///
    /// # Errors
    /// A process is gone.
    pub fn of(stack: &Stack) -> Result<Self> {
        let worker = resident_bytes(stack.worker.pid()).context("the worker")?;
        Ok(Self { worker, gateway: resident_bytes(stack.gateway.pid()).context("the gateway")? })
    }

    /// Whether a process has grown by more than 16 MiB and by more than a twentieth since `warm`.
    ///
    /// # Errors
    /// Which one, and by how much.
    pub fn is_flat_since(&self, warm: &Self) -> Result<()> {
        for (name, warm, end) in
            [("worker", warm.worker, self.worker), ("gateway", warm.gateway, self.gateway)]
        {
            let bound = warm + GROWTH_BYTES.max(warm * GROWTH_PERCENT / 100);
            ensure!(end <= bound, "the {name} grew from {} to {} MiB", warm >> 20, end >> 20);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_breathe_but_not_grow() {
        let memory = |worker: u64, gateway: u64| Memory { worker: worker << 20, gateway: gateway << 20 };
        let warm = memory(100, 1000);
        assert!(memory(116, 1050).is_flat_since(&warm).is_ok());
        assert!(memory(50, 900).is_flat_since(&warm).is_ok());
        assert!(memory(117, 1000).is_flat_since(&warm).unwrap_err().to_string().contains("worker"));
        assert!(memory(100, 1051).is_flat_since(&warm).unwrap_err().to_string().contains("gateway"));
    }
}
