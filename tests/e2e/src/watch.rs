//! `kubectl get --watch`: every change of some objects, as it happens.

use std::{
    io::BufReader,
    process::{Child, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Deserializer, Value};

use crate::kubectl::Kubectl;

/// Before a watch that ended is begun again.
const PAUSE: Duration = Duration::from_millis(200);

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The object was deleted.
    pub gone: bool,
    /// The object, as it is now or was at the end.
    pub object: Value,
}

/// A watch; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    running: Arc<Mutex<Running>>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Running {
    stopped: bool,
    child: Option<Child>,
}

impl Watch {
    /// Calls `each` for every object that is there, and then for every change, from a thread of its own. `what` is
    /// what follows `kubectl get`: kind and selector. The API server ends a watch after half an hour or so; then it is
    /// begun again, with all objects that are there.
    #[must_use]
    pub fn start(kubectl: &Kubectl, what: &[&str], mut each: impl FnMut(Change) + Send + 'static) -> Self {
        let mut args = vec!["get"];
        args.extend_from_slice(what);
        args.extend_from_slice(&["--watch", "--output-watch-events", "--output=json"]);
        let mut command = kubectl.command(&args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let running = Arc::new(Mutex::new(Running::default()));
        let shared = Arc::clone(&running);
        let reader = thread::spawn(move || {
            loop {
                let mut lock = guard(&shared);
                if lock.stopped {
                    return;
                }
                let output = match command.spawn() {
                    Ok(mut child) => {
                        let output = child.stdout.take();
                        lock.child = Some(child);
                        output
                    }
                    Err(error) => {
                        eprintln!("kubectl get --watch: {error}");
                        None
                    }
                };
                drop(lock);
                if let Some(output) = output {
                    let events = Deserializer::from_reader(BufReader::new(output)).into_iter::<Value>();
                    // an event that is cut off is the end
                    events.map_while(Result::ok).filter_map(change).for_each(&mut each);
                }
                if let Some(mut child) = guard(&shared).child.take() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                thread::sleep(PAUSE);
            }
        });
        Self { running, reader: Some(reader) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut running = guard(&self.running);
        running.stopped = true;
        if let Some(child) = &mut running.child {
            let _ = child.kill();
        }
        drop(running);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn guard(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None` for what is no change: bookmarks, errors.
fn change(mut event: Value) -> Option<Change> {
    let gone = match event["type"].as_str()? {
        "ADDED" | "MODIFIED" => false,
        "DELETED" => true,
        _ => return None,
    };
    Some(Change { gone, object: event["object"].take() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_changes_or_nothing() {
        let event = |kind: &str| change(json!({"type": kind, "object": {"a": 1}}));
        assert_eq!(event("ADDED"), Some(Change { gone: false, object: json!({"a": 1}) }));
        assert_eq!(event("MODIFIED").map(|change| change.gone), Some(false));
        assert_eq!(event("DELETED").map(|change| change.gone), Some(true));
        assert_eq!(event("BOOKMARK"), None);
    }
}
