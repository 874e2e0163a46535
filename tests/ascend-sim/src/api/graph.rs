//! Capturing a stream's work and running it again.

use std::ffi::c_void;

use crate::codes;
use crate::failure::fail;
use crate::graph::{GRAPHS, Graph};
use crate::out::{needed, put};
use crate::stream::of_current;
use crate::symbols::export;

export! {
    /// From now on the stream's work is recorded and not done. Modes: 0 global, 1 thread, 2 relaxed.
    status fn aclmdlRICaptureBegin(stream: *mut c_void, mode: i32) {
        if !(0..=2).contains(&mode) {
            return fail(codes::INVALID_PARAM, format!("capture mode {mode}"));
        }
        of_current(stream)?.capture(mode)
    }

    /// Ends the recording.
    status fn aclmdlRICaptureEnd(stream: *mut c_void, graph: *mut *mut c_void) {
        needed(graph, codes::INVALID_PARAM, "modelRI")?;
        let tasks = of_current(stream)?.captured()?;
        let handle = GRAPHS.insert(Graph::new(tasks));
        // SAFETY: writable, by the contract of the function.
        unsafe { put(graph, handle, codes::INVALID_PARAM, "modelRI") }
    }

    /// Puts the recorded work on a stream.
    status fn aclmdlRIExecuteAsync(graph: *mut c_void, stream: *mut c_void) {
        GRAPHS.get(graph)?.execute(&*of_current(stream)?)
    }

    /// Destroys a graph.
    status fn aclmdlRIDestroy(graph: *mut c_void) { GRAPHS.remove(graph).map(|_| ()) }
}
