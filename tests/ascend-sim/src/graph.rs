//! Captured graphs: the tasks of one stream, run again in order.

use std::sync::Arc;

use crate::codes;
use crate::failure::Outcome;
use crate::registry::Registry;
use crate::stream::{Stream, Task};

/// All captured graphs.
pub static GRAPHS: Registry<Graph> =
    Registry::new("graph", codes::RT_INVALID_HANDLE, codes::RT_INVALID_HANDLE);

/// A captured graph.
pub struct Graph {
    tasks: Vec<Task>,
}

impl Graph {
    /// A graph of captured tasks.
    pub fn new(tasks: Vec<Task>) -> Arc<Self> {
        Arc::new(Self { tasks })
    }

    /// Puts the tasks on a stream.
    pub fn execute(&self, stream: &Stream) -> Outcome {
        for task in &self.tasks {
            stream.submit(task.clone())?;
        }
        Ok(())
    }
}
