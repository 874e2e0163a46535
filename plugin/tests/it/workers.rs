//! Workers behind a way that is no port-forward: plain TCP.
use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use belay_proto::admin::{Fault, InjectRequest};
use futures::{
    FutureExt as _,
    future::{self, BoxFuture},
};
use kubectl_belay::{
    answers::GroupAnswers,
    cluster::Group,
    observe::{Tally, ask},
    workers::{ANSWER_LIMIT, Reach, Stream, WorkerError, Workers},
};
use tokio::net::TcpStream;

use crate::support::{
    group::{self, Size, of},
    worker::PlayedWorker,
};

struct Tcp(BTreeMap<String, SocketAddr>);

impl Reach for Tcp {
    fn open(&self, pod: &str) -> BoxFuture<'static, io::Result<Stream>> {
        let address = self.0.get(pod).copied();
        async move {
            let address = address.ok_or_else(|| io::Error::other("there is no such pod"))?;
            let bytes = Box::new(TcpStream::connect(address).await?);
            Ok(Stream { bytes, trouble: future::ready(None).boxed().shared() })
        }
        .boxed()
    }
}

fn reach(workers: &[&PlayedWorker]) -> Workers {
    within(workers, ANSWER_LIMIT)
}

fn within(workers: &[&PlayedWorker], limit: Duration) -> Workers {
    let pods =
        workers.iter().enumerate().map(|(index, worker)| (group::pod(index as u32).name, worker.address));
    Workers::new(Arc::new(Tcp(pods.collect())), limit)
}

#[tokio::test]
async fn all_workers_are_asked_and_one_that_is_gone_is_an_answer() {
    let mut told = group::group(Size::SMALL);
    let first = PlayedWorker::start(of(&mut told, 0).clone()).await;
    let second = PlayedWorker::start(of(&mut told, 1).clone()).await;
    let workers = reach(&[&first, &second]);
    let known = GroupAnswers { pods: vec![], ..told.clone() };
    let pods: Vec<_> = told.pods.iter().map(|pod| pod.pod.clone()).collect();
    let group = || Group { known: known.clone(), pods: pods.clone() };

    let tally = Tally::default();
    let seen = ask(&workers, group(), &tally).await;
    for (seen, told) in seen.pods.iter().zip(&told.pods) {
        let (seen, told) = (seen.worker.as_ref().unwrap(), told.worker.as_ref().unwrap());
        assert_eq!(seen.status, told.status);
        assert_eq!((&seen.experts, &seen.load), (&told.experts, &told.load));
    }

    drop(second);
    let seen = ask(&workers, group(), &tally).await;
    assert!(seen.pods[0].worker.is_ok());
    let why = seen.pods[1].worker.as_ref().unwrap_err();
    assert!(!why.is_empty(), "{why}");

    // its successor listens elsewhere: the old connection is not asked again
    let third = PlayedWorker::start(of(&mut told, 1).clone()).await;
    let workers = reach(&[&first, &third]);
    assert!(ask(&workers, group(), &tally).await.pods[1].worker.is_ok());
}

#[tokio::test]
async fn a_worker_of_an_older_version_tells_what_it_can() {
    let mut told = group::group(Size::SMALL);
    let worker = PlayedWorker::start(of(&mut told, 0).clone()).await;
    worker.change(|script| script.old = true);
    let workers = reach(&[&worker]);
    let answer = workers.look(&group::pod(0).name).await.unwrap();
    assert_eq!(answer.status.worker, 0);
    assert_eq!(answer.experts.unwrap_err(), "it is of a version that cannot do this");
    assert_eq!(
        workers.inject(&group::pod(0).name, InjectRequest::default()).await,
        Err(WorkerError::Unknown)
    );
}

#[tokio::test]
async fn a_worker_that_waits_says_why_it_does_not_tell() {
    let mut told = group::group(Size::SMALL);
    of(&mut told, 0).experts = Err("no placement yet".into());
    let worker = PlayedWorker::start(of(&mut told, 0).clone()).await;
    let answer = reach(&[&worker]).look(&group::pod(0).name).await.unwrap();
    assert_eq!(answer.experts.unwrap_err(), "no placement yet");
}

#[tokio::test]
async fn a_worker_that_hangs_is_given_up() {
    let mut told = group::group(Size::SMALL);
    let worker = PlayedWorker::start(of(&mut told, 0).clone()).await;
    worker.change(|script| script.hangs = true);
    let error = within(&[&worker], Duration::from_millis(100)).look(&group::pod(0).name).await.unwrap_err();
    assert_eq!(error.to_string(), "no answer from pod nano-ec7356da-0-0 within 100ms");
}

#[tokio::test]
async fn a_way_that_does_not_open_says_why() {
    let error = reach(&[]).look("nano-ec7356da-0-0").await.unwrap_err();
    assert!(error.to_string().contains("there is no such pod"), "{error}");
}

#[tokio::test]
async fn faults_reach_the_worker_unless_it_forbids_them() {
    let mut told = group::group(Size::SMALL);
    let worker = PlayedWorker::start(of(&mut told, 0).clone()).await;
    let (workers, pod) = (reach(&[&worker]), group::pod(0).name);
    let slow =
        InjectRequest { fault: Fault::Slow.into(), seconds: 3, delay_milliseconds: 40, workers: vec![] };
    workers.inject(&pod, slow.clone()).await.unwrap();
    assert_eq!(worker.injected(), std::slice::from_ref(&slow));

    worker.change(|script| script.breakable = false);
    let error = workers.inject(&pod, slow).await.unwrap_err();
    assert!(matches!(error, WorkerError::Forbidden(_)), "{error:?}");

    worker.change(|script| script.breakable = true);
    let exit = InjectRequest { fault: Fault::Exit.into(), ..InjectRequest::default() };
    let error = workers.inject(&pod, exit).await.unwrap_err();
    assert!(matches!(error, WorkerError::Unreachable(_)), "{error:?}");
}
