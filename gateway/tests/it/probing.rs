//! The gateway itself finds out when a worker that failed is able again.
use std::sync::atomic::Ordering;

use crate::support::{Fault, Worker, eventually, gateway, generate, ids, request};

fn questions(worker: &Worker) -> usize {
    worker.script.questions.load(Ordering::SeqCst)
}

/// Asks until this worker has got a request, and not for ever.
async fn until_asked(gateway: &belay_gateway::run::Gateway, worker: &Worker) {
    let before = worker.script.seen().len();
    let asking = async {
        while worker.script.seen().len() == before {
            generate(gateway, request("p", 2)).await.unwrap();
        }
    };
    tokio::time::timeout(crate::support::LONG, asking).await.expect("it must get a request");
}

#[tokio::test]
async fn no_request_has_to_find_out_how_a_worker_is() {
    let (failed, sound) = (Worker::start().await, Worker::start().await);
    failed.script.unwell.store(true, Ordering::SeqCst);
    failed.script.faults.lock().unwrap().push_back(Fault::StepLost(0));
    let gateway = gateway(&[&failed, &sound], &[]).await;
    until_asked(&gateway, &failed).await;
    eventually("it is asked again and again", || questions(&failed) >= 3).await;
    for _ in 0..8 {
        assert_eq!(ids(&generate(&gateway, request("p", 2)).await.unwrap()).len(), 2);
    }
    assert_eq!(failed.script.seen().len(), 1, "it has not said that it is able");
    failed.script.unwell.store(false, Ordering::SeqCst);
    until_asked(&gateway, &failed).await;
    let asked = questions(&failed);
    generate(&gateway, request("p", 2)).await.unwrap();
    assert_eq!((questions(&failed), questions(&sound)), (asked, 0), "only those that failed are asked");
}

#[tokio::test]
async fn a_request_without_another_choice_does_not_wait_for_an_answer() {
    let only = Worker::start().await;
    only.script.unwell.store(true, Ordering::SeqCst);
    only.script.faults.lock().unwrap().push_back(Fault::StepLost(1));
    let gateway = gateway(&[&only], &[]).await;
    assert_eq!(ids(&generate(&gateway, request("p", 4)).await.unwrap()).len(), 4);
    assert_eq!(only.script.seen().len(), 2);
}

#[tokio::test]
async fn a_worker_that_comes_back_at_its_address_is_found_without_a_request() {
    let (gone, sound) = (Worker::start().await, Worker::start().await);
    let gateway = gateway(&[&gone, &sound], &[]).await;
    until_asked(&gateway, &gone).await;
    let address = gone.address;
    drop(gone);
    for _ in 0..4 {
        assert_eq!(ids(&generate(&gateway, request("p", 2)).await.unwrap()).len(), 2);
    }
    let back = Worker::at(address).await;
    eventually("it is asked how it is", || questions(&back) > 0).await;
    assert!(back.script.seen().is_empty());
    until_asked(&gateway, &back).await;
}
