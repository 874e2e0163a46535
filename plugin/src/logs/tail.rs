//! The streams of the logs of pods.
use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use futures::{AsyncBufReadExt as _, StreamExt as _, future::join_all, stream::BoxStream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Error, ResourceExt as _, api::LogParams};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::line::{LogLine, next};
use crate::error::describe;

/// The container of a worker.
const CONTAINER: &str = "worker";

/// How often new pods are looked for.
const PERIOD: Duration = Duration::from_secs(1);

/// Lines that wait for being written.
const BACKLOG: usize = 1024;

/// From where logs are wanted.
#[derive(Clone, Debug, Default)]
pub struct From {
    /// So many lines from the end of each.
    pub tail: Option<i64>,
    /// Not older than that.
    pub since_seconds: Option<i64>,
    /// Those of the container's life before.
    pub previous: bool,
}

impl From {
    fn params(&self, follow: bool) -> LogParams {
        LogParams {
            container: Some(CONTAINER.to_owned()),
            follow,
            previous: self.previous,
            tail_lines: self.tail,
            since_seconds: self.since_seconds,
            timestamps: true,
            ..LogParams::default()
        }
    }
}

/// Something to show.
#[derive(Clone, Debug)]
pub enum Item {
    /// A line of a pod.
    Line(String, String),
    /// Why there are no lines of a pod.
    Trouble(String),
}

async fn open(pods: &Api<Pod>, name: &str, params: &LogParams) -> Result<BoxStream<'static, LogLine>, Error> {
    let lines = pods.log_stream(name, params).await?.lines();
    // a stream that breaks is a stream that ends: whoever follows it opens the next one
    let lines = lines.take_while(|line| std::future::ready(line.is_ok()));
    Ok(lines.filter_map(|line| std::future::ready(line.ok().map(|line| LogLine::read(&line)))).boxed())
}

/// What is there now, in the order of time. Says how many pods told anything.
///
/// # Errors
/// When nobody takes what is told.
pub async fn once(
    pods: &Api<Pod>,
    names: &[String],
    from: &From,
    mut show: impl FnMut(Item) -> Result<()>,
) -> Result<usize> {
    let params = from.params(false);
    let mut streams = vec![];
    for (name, opened) in names.iter().zip(join_all(names.iter().map(|name| open(pods, name, &params))).await)
    {
        match opened {
            Ok(stream) => streams.push((name, stream)),
            Err(error) => show(Item::Trouble(format!("pod {name}: {}", describe(&error))))?,
        }
    }
    let mut heads = vec![];
    for (_, stream) in &mut streams {
        heads.push(stream.next().await);
    }
    while let Some(index) = next(&heads) {
        let (Some(head), Some((name, stream))) = (heads.get_mut(index), streams.get_mut(index)) else {
            break;
        };
        let line = std::mem::replace(head, stream.next().await);
        if let Some(line) = line {
            show(Item::Line((*name).clone(), line.text))?;
        }
    }
    Ok(streams.len())
}

/// What is known of a pod whose log is followed.
#[derive(Debug, Default)]
struct Followed {
    /// Time of the last line that was shown.
    last: Option<Timestamp>,
    /// Whether a stream is open.
    open: bool,
    /// Whether trouble was told.
    told: bool,
}

/// What comes, of the pods that `look` finds, those that come later too: until nobody takes it.
///
/// # Errors
/// When nobody takes what is told, or the pods can't be listed at the beginning.
pub async fn follow(
    pods: &Api<Pod>,
    mut look: impl AsyncFnMut() -> Result<Vec<Pod>>,
    from: &From,
    mut show: impl FnMut(Item) -> Result<()>,
) -> Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(String, String, LogLine)>(BACKLOG);
    let mut tasks: JoinSet<(String, Option<Error>)> = JoinSet::new();
    let mut followed: BTreeMap<String, Followed> = BTreeMap::new();
    let mut first = true;
    let mut due = Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(due) => {
                due = Instant::now() + PERIOD;
                // the API server may be away for a while: streams that are open go on
                let found = match look().await {
                    Ok(found) => found,
                    Err(error) if first => return Err(error).context("nothing to follow"),
                    Err(_) => continue,
                };
                for pod in found {
                    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
                    let state = followed.entry(uid.clone()).or_default();
                    if state.open {
                        continue;
                    }
                    state.open = true;
                    let params = reopened(from, first, state.last);
                    let (pods, sender) = (pods.clone(), sender.clone());
                    tasks.spawn(async move {
                        let error = carry(&pods, &name, &uid, &params, &sender).await.err();
                        (uid, error)
                    });
                }
                first = false;
            }
            Some((uid, name, line)) = receiver.recv() => {
                let state = followed.entry(uid).or_default();
                // the API server knows whole seconds only: lines that were shown come again
                if line.at.is_some() && line.at <= state.last {
                    continue;
                }
                state.last = line.at.or(state.last);
                show(Item::Line(name, line.text))?;
            }
            Some(Ok((uid, error))) = tasks.join_next() => {
                let state = followed.entry(uid).or_default();
                state.open = false;
                // a container that does not run yet has no log yet; that is no news
                if let Some(error) = error.filter(|error| !waits(error) && !state.told) {
                    state.told = true;
                    show(Item::Trouble(describe(&error)))?;
                }
            }
        }
    }
}

/// From where the log of a pod goes on.
fn reopened(from: &From, first: bool, last: Option<Timestamp>) -> LogParams {
    let mut params = from.params(true);
    match last {
        Some(last) => {
            (params.tail_lines, params.since_seconds) = (None, None);
            params.since_time = Some(last);
        }
        // a pod that came later is new from its first line on
        None if !first => (params.tail_lines, params.since_seconds) = (None, None),
        None => (),
    }
    params
}

async fn carry(
    pods: &Api<Pod>,
    name: &str,
    uid: &str,
    params: &LogParams,
    sender: &mpsc::Sender<(String, String, LogLine)>,
) -> Result<(), Error> {
    let mut stream = open(pods, name, params).await?;
    while let Some(line) = stream.next().await {
        if sender.send((uid.to_owned(), name.to_owned(), line)).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn waits(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 400 || status.code == 404)
}
