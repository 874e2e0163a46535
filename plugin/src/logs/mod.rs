//! Logs of many pods as one: each line behind the name of its pod. [`line`] reads, merges and writes lines (pure), [`tail`] opens
//! the streams of pods, again and again where it follows them.

pub mod line;
pub mod tail;
