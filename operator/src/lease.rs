//! Leader election by a `coordination.k8s.io/v1` Lease.
//!
//! Clocks of machines differ, so another holder's `renewTime` is not compared with ours: a lease counts as expired
//! when *we* have not seen it change for its duration. Writes carry the resourceVersion that was read, so of two
//! candidates one fails.
use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How the election goes.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who we are: unique for each process.
    pub identity: String,
    /// How long the lease holds without being renewed.
    pub duration: Duration,
    /// How long to wait between attempts.
    pub retry: Duration,
}

/// What we know of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Present holder; empty after a release.
    pub holder: String,
    /// How long its claim holds without being renewed.
    pub duration: Duration,
    /// When we saw the Lease change last, by our own clock.
    pub changed_at: Instant,
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nobody holds it: take it.
    Acquire,
    /// It is ours: say so again.
    Renew,
    /// Somebody else holds it.
    Wait,
}

/// Decides by what was seen.
pub fn evaluate(seen: Option<&Seen>, identity: &str, now: Instant) -> Decision {
    match seen {
        None => Decision::Acquire,
        Some(seen) if seen.holder == identity => Decision::Renew,
        Some(seen) if seen.holder.is_empty() => Decision::Acquire,
        Some(seen) if now.saturating_duration_since(seen.changed_at) >= seen.duration => Decision::Acquire,
        Some(_) => Decision::Wait,
    }
}

/// Why leadership ended.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// Somebody else took the lease.
    #[error("lease {name} was taken by {holder}")]
    Taken {
        /// Name of the Lease.
        name: String,
        /// Who holds it now.
        holder: String,
    },
    /// The lease could not be renewed in time, so that somebody else may hold it by now.
    #[error("lease {name} could not be renewed for {seconds} s")]
    Expired {
        /// Name of the Lease.
        name: String,
        /// For how long.
        seconds: u64,
    },
}

/// Takes part in the election until `stop`, then releases the lease. `leading` turns true once.
///
/// # Errors
/// When leadership is lost. The process must end then: what it has under way may be done by another by now.
pub async fn run(
    client: Client,
    config: LeaseConfig,
    leading: watch::Sender<bool>,
    stop: CancellationToken,
) -> Result<(), LeaseError> {
    let api: Api<Lease> = Api::namespaced(client, &config.namespace);
    let mut seen: Option<Seen> = None;
    let mut version = None;
    let mut renewed: Option<Instant> = None;
    loop {
        // the claim counts from before the write, and one retry less than what others are told
        let began = Instant::now();
        let give_up = renewed.unwrap_or(began) + config.duration - config.retry;
        let limit = give_up.saturating_duration_since(began).min(config.duration / 2);
        match tokio::time::timeout(limit, attempt(&api, &config, &mut seen, &mut version)).await {
            Ok(Ok(Outcome::Held)) => {
                renewed = Some(began);
                if !leading.send_replace(true) {
                    info!(lease = config.name, identity = config.identity, "leading");
                }
            }
            Ok(Ok(Outcome::Other)) if renewed.is_some() => {
                let holder = seen.map(|seen| seen.holder).unwrap_or_default();
                return Err(LeaseError::Taken { name: config.name, holder });
            }
            Ok(Ok(Outcome::Other | Outcome::Raced)) => {}
            Ok(Err(error)) => warn!(
                lease = config.name,
                error = crate::error::describe(&error),
                "attempt on the lease failed"
            ),
            Err(_) => warn!(lease = config.name, "attempt on the lease took too long"),
        }
        if let Some(at) = renewed
            && at.elapsed() + config.retry * 2 >= config.duration
        {
            return Err(LeaseError::Expired { name: config.name, seconds: at.elapsed().as_secs() });
        }
        tokio::select! {
            () = tokio::time::sleep(config.retry) => {}
            () = stop.cancelled() => break,
        }
    }
    if renewed.is_some() {
        release(&api, &config).await;
    }
    Ok(())
}

/// What came of one attempt.
enum Outcome {
    /// We hold the lease.
    Held,
    /// Somebody else holds it.
    Other,
    /// It was written to between our look and our write.
    Raced,
}

/// One look at the Lease and one write, if it is due.
async fn attempt(
    api: &Api<Lease>,
    config: &LeaseConfig,
    seen: &mut Option<Seen>,
    version: &mut Option<String>,
) -> Result<Outcome, kube::Error> {
    let present = api.get_opt(&config.name).await?;
    match &present {
        Some(lease) if *version != lease.metadata.resource_version || seen.is_none() => {
            *version = lease.metadata.resource_version.clone();
            *seen = Some(observed(lease));
        }
        Some(_) => {}
        None => *seen = None,
    }
    let decision = evaluate(seen.as_ref(), &config.identity, Instant::now());
    if decision == Decision::Wait {
        return Ok(Outcome::Other);
    }
    let next = claim(present.as_ref(), config, decision);
    let params =
        PostParams { field_manager: Some(belay_crds::labels::OPERATOR.to_owned()), ..PostParams::default() };
    let written = match present {
        Some(_) => api.replace(&config.name, &params, &next).await,
        None => api.create(&params, &next).await,
    };
    match written {
        Ok(lease) => {
            *version = lease.metadata.resource_version.clone();
            *seen = Some(observed(&lease));
            Ok(Outcome::Held)
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Outcome::Raced),
        Err(error) => Err(error),
    }
}

fn observed(lease: &Lease) -> Seen {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
    Seen {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: Duration::from_secs(seconds),
        changed_at: Instant::now(),
    }
}

fn claim(present: Option<&Lease>, config: &LeaseConfig, decision: Decision) -> Lease {
    let now = MicroTime(Timestamp::now());
    let old = present.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let taken = decision == Decision::Acquire;
    let made = || ObjectMeta {
        name: Some(config.name.clone()),
        namespace: Some(config.namespace.clone()),
        ..ObjectMeta::default()
    };
    Lease {
        // labels and annotations are those of who made it: Helm knows by them that it may delete it
        metadata: present.map_or_else(made, |lease| lease.metadata.clone()),
        spec: Some(LeaseSpec {
            holder_identity: Some(config.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(config.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: if taken { Some(now.clone()) } else { old.acquire_time },
            renew_time: Some(now),
            lease_transitions: Some(
                old.lease_transitions.unwrap_or(0) + i32::from(taken && present.is_some()),
            ),
            ..LeaseSpec::default()
        }),
    }
}

/// Gives the lease back, so that the next leader need not wait for it to expire.
async fn release(api: &Api<Lease>, config: &LeaseConfig) {
    let given_back = async {
        let mut lease = api.get(&config.name).await?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&config.identity) {
            return Ok(());
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        api.replace(&config.name, &PostParams::default(), &lease).await.map(drop)
    };
    match tokio::time::timeout(config.retry, given_back).await {
        Ok(Ok(())) => info!(lease = config.name, "lease released"),
        Ok(Err(error)) => warn!(
            lease = config.name,
            error = crate::error::describe(&error),
            "lease not released; it will expire"
        ),
        Err(_) => warn!(lease = config.name, "lease not released in time; it will expire"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    #[test]
    fn a_claim_keeps_what_others_wrote_on_the_lease() {
        let config = LeaseConfig {
            namespace: "system".into(),
            name: "operator".into(),
            identity: "me".into(),
            duration: DURATION,
            retry: Duration::from_secs(2),
        };
        let made = claim(None, &config, Decision::Acquire);
        assert_eq!(made.metadata.name.as_deref(), Some("operator"));
        let mut present = made;
        present.metadata.resource_version = Some("7".into());
        present.metadata.labels =
            Some([("app.kubernetes.io/managed-by".to_owned(), "Helm".to_owned())].into());
        for decision in [Decision::Acquire, Decision::Renew] {
            assert_eq!(claim(Some(&present), &config, decision).metadata, present.metadata);
        }
    }

    fn seen(holder: &str, age: Duration, now: Instant) -> Seen {
        Seen { holder: holder.into(), duration: DURATION, changed_at: now - age }
    }

    #[test]
    fn free_lease_is_taken() {
        let now = Instant::now();
        assert_eq!(evaluate(None, "me", now), Decision::Acquire);
        assert_eq!(evaluate(Some(&seen("", Duration::ZERO, now)), "me", now), Decision::Acquire);
    }

    proptest! {
        #[test]
        fn lease_of_another_is_taken_only_after_it_stood_still_for_its_duration(age_ms in 0u64..60_000) {
            let now = Instant::now() + Duration::from_secs(3600);
            let age = Duration::from_millis(age_ms);
            let decision = evaluate(Some(&seen("other", age, now)), "me", now);
            prop_assert_eq!(decision == Decision::Acquire, age >= DURATION);
            prop_assert!(decision != Decision::Renew);
        }

        #[test]
        fn own_lease_is_renewed_however_old(age_ms in 0u64..60_000) {
            let now = Instant::now() + Duration::from_secs(3600);
            let own = seen("me", Duration::from_millis(age_ms), now);
            prop_assert_eq!(evaluate(Some(&own), "me", now), Decision::Renew);
        }

        /// Two candidates, any interleaving of looks and steps of time: never do both decide to write the same
        /// version while one of them still counts on its lease.
        #[test]
        fn follower_never_takes_over_while_the_leader_still_counts_on_it(
            steps in proptest::collection::vec((0u64..4000, any::<bool>()), 1..100),
        ) {
            let retry = Duration::from_secs(2);
            let start = Instant::now();
            let (mut now, mut renewed, mut follower) = (start, start, seen("leader", Duration::ZERO, start));
            for (pause, leader_alive) in steps {
                now += Duration::from_millis(pause);
                let leader_counts_on_it = now - renewed + retry < DURATION;
                if leader_alive && leader_counts_on_it {
                    renewed = now;
                    follower.changed_at = now;
                }
                if evaluate(Some(&follower), "follower", now) == Decision::Acquire {
                    prop_assert!(now - renewed + retry >= DURATION);
                    break;
                }
            }
        }
    }
}
