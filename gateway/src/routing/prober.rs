//! Asks workers that failed how they are, so that no request has to find out.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{Fleet, live::Live};

/// A worker that takes longer to say how it is would be no help to a request.
const LONGEST: Duration = Duration::from_secs(1);

/// Asks for ever.
pub async fn probe(fleet: Arc<Fleet>) {
    let mut questions = JoinSet::new();
    loop {
        let (due, next) = fleet.due(Instant::now());
        for (worker, epoch) in due {
            questions.spawn(ask(fleet.clone(), worker, epoch));
        }
        let rested = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = fleet.failure() => {}
            () = rested => {}
            // one that got no answer rests again
            Some(_) = questions.join_next() => {}
        }
    }
}

async fn ask(fleet: Arc<Fleet>, worker: Arc<Live>, epoch: u64) {
    let answer = tokio::time::timeout(LONGEST, health(worker.channel.clone())).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
    let name = &worker.info.name;
    if is_able(&answer) {
        tracing::debug!(worker = name, "answers again");
        worker.circuit().answered(epoch);
    } else {
        tracing::debug!(worker = name, ?answer, "rests on");
        worker.circuit().unanswered(epoch, Instant::now());
    }
    fleet.wake_waiting();
}

async fn health(channel: Channel) -> Result<ServingStatus, Status> {
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await?;
    Ok(answer.get_ref().status())
}

/// Whether an answer is that of a worker that requests may go to. One without a health service has answered all the
/// same; what was made on this side has a source.
fn is_able(answer: &Result<ServingStatus, Status>) -> bool {
    match answer {
        Ok(status) => *status == ServingStatus::Serving,
        Err(status) => status.code() == Code::Unimplemented && std::error::Error::source(status).is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_means() {
        assert!(is_able(&Ok(ServingStatus::Serving)));
        assert!(!is_able(&Ok(ServingStatus::NotServing)));
        assert!(!is_able(&Ok(ServingStatus::Unknown)));
        assert!(is_able(&Err(Status::unimplemented(""))));
        assert!(!is_able(&Err(Status::unavailable("draining"))));
        let mut of_this_side = Status::unimplemented("");
        of_this_side.set_source(Arc::new(std::io::Error::other("reset")));
        assert!(!is_able(&Err(of_this_side)));
    }
}
