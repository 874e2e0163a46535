//! The admin service of workers.
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use belay_proto::admin::{
    ExpertLoad, GetExpertLoadRequest, GetStatusRequest, Placement, SetDrainRequest, SetPlacementRequest,
    WorkerStatus, admin_client::AdminClient,
};
use thiserror::Error;
use tonic::transport::{Channel, Endpoint};

/// Port of the admin service in every worker pod.
pub const ADMIN_PORT: u16 = 50052;

/// How long one call may take. Every call states an absolute target or reads, so a late one is simply repeated.
const CALL_LIMIT: Duration = Duration::from_secs(2);

/// Why a call to a worker came to nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WorkerError {
    /// The address is not one.
    #[error("address {address} is not valid")]
    Address {
        /// What was tried.
        address: String,
    },
    /// Nobody answered.
    #[error("no answer from {address}: {message}")]
    Unreachable {
        /// Who was asked.
        address: String,
        /// What the transport says.
        message: String,
    },
    /// The worker refused.
    #[error("refused by {address}: {message}")]
    Refused {
        /// Who was asked.
        address: String,
        /// The worker's words.
        message: String,
    },
}

/// How long a worker that took a placement is not told it again: it is at work on it, and placements are large.
const TOLD_LIMIT: Duration = Duration::from_secs(2);

/// Connections that are kept. One takes some 50 KB; to make one anew takes a round trip.
const KEPT: usize = 256;

/// A connection that was not used for so long is not missed.
const IDLE: Duration = Duration::from_secs(30);

/// Calls workers. Keeps a connection for each address, up to [`KEPT`]; further workers are connected to for each call.
#[derive(Default)]
pub struct WorkerClient {
    channels: Mutex<BTreeMap<String, Kept>>,
    told: Mutex<BTreeMap<String, (Epochs, Instant)>>,
}

/// A connection, and when it was used last.
struct Kept {
    channel: Channel,
    used: Instant,
}

/// What tells one placement request of a group from another: in force, target, to retire.
type Epochs = (u64, u64, u64);

fn epochs(request: &SetPlacementRequest) -> Epochs {
    let epoch = |placement: &Option<Placement>| placement.as_ref().map_or(0, |placement| placement.epoch);
    (epoch(&request.in_force), epoch(&request.target), request.retire_epoch)
}

impl WorkerClient {
    /// What the worker says about itself.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn status(&self, ip: &str) -> Result<WorkerStatus, WorkerError> {
        let (address, mut client) = self.client(ip)?;
        let answer = client.get_status(GetStatusRequest {}).await;
        self.settle(address, answer.map(tonic::Response::into_inner))
    }

    /// Tells the worker where the experts of its group are, and where they will be; not again if it has just taken the same.
    ///
    /// # Errors
    /// When it does not answer in time, or refuses.
    pub async fn set_placement(&self, ip: &str, request: SetPlacementRequest) -> Result<(), WorkerError> {
        let (address, mut client) = self.client(ip)?;
        let epochs = epochs(&request);
        let fresh = |(told, at): &(Epochs, Instant)| *told == epochs && at.elapsed() < TOLD_LIMIT;
        if self.told().get(&address).is_some_and(fresh) {
            return Ok(());
        }
        self.told().remove(&address);
        let answer = client.set_placement(request).await;
        if answer.is_ok() {
            let mut told = self.told();
            told.retain(|_, (_, at)| at.elapsed() < TOLD_LIMIT);
            told.insert(address.clone(), (epochs, Instant::now()));
        }
        self.settle(address, answer.map(drop))
    }

    /// How many tokens the worker sent to each expert.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn expert_load(&self, ip: &str) -> Result<ExpertLoad, WorkerError> {
        let (address, mut client) = self.client(ip)?;
        let answer = client.get_expert_load(GetExpertLoadRequest {}).await;
        self.settle(address, answer.map(tonic::Response::into_inner))
    }

    /// Tells the worker to take no new request.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn set_drain(&self, ip: &str) -> Result<(), WorkerError> {
        let (address, mut client) = self.client(ip)?;
        let answer = client.set_drain(SetDrainRequest { draining: true }).await;
        self.settle(address, answer.map(drop))
    }

    fn told(&self) -> MutexGuard<'_, BTreeMap<String, (Epochs, Instant)>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self, ip: &str) -> Result<(String, AdminClient<Channel>), WorkerError> {
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let address = format!("{host}:{ADMIN_PORT}");
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let used = Instant::now();
        let channel = match channels.get_mut(&address) {
            Some(kept) => {
                kept.used = used;
                kept.channel.clone()
            }
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{address}"))
                    .map_err(|_| WorkerError::Address { address: address.clone() })?
                    .connect_timeout(CALL_LIMIT)
                    .timeout(CALL_LIMIT);
                let channel = endpoint.connect_lazy();
                if channels.len() >= KEPT {
                    channels.retain(|_, kept| kept.used.elapsed() < IDLE);
                }
                if channels.len() < KEPT {
                    channels.insert(address.clone(), Kept { channel: channel.clone(), used });
                }
                channel
            }
        };
        Ok((address, AdminClient::new(channel)))
    }

    fn settle<T>(&self, address: String, answer: Result<T, tonic::Status>) -> Result<T, WorkerError> {
        use tonic::Code;
        answer.map_err(|status| {
            let message = status.message().to_owned();
            match status.code() {
                Code::FailedPrecondition
                | Code::InvalidArgument
                | Code::PermissionDenied
                | Code::Internal => WorkerError::Refused { address, message },
                _ => {
                    // a pod's address may belong to another pod next time: do not keep a connection that failed
                    let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
                    channels.remove(&address);
                    WorkerError::Unreachable { address, message }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_are_kept_up_to_a_number_and_those_in_use_stay() {
        let workers = WorkerClient::default();
        let kept = || workers.channels.lock().unwrap().keys().cloned().collect::<Vec<_>>();
        for n in 0..KEPT + 10 {
            workers.client(&format!("10.0.{}.{}", n / 256, n % 256)).unwrap();
        }
        assert_eq!(kept().len(), KEPT);
        let long_ago = Instant::now() - 2 * IDLE;
        for kept in workers.channels.lock().unwrap().values_mut().skip(1) {
            kept.used = long_ago;
        }
        workers.client("10.1.0.1").unwrap();
        assert_eq!(kept(), ["10.0.0.0:50052", "10.1.0.1:50052"]);
    }
}
