//! Lines of styled words, and how they reach people.

pub mod line;
pub mod output;
pub mod progress;
pub mod screen;
