//! What the output must look like: which tokens a grammar admits next.
//!
//! Grammars are compiled and followed by llguidance. A grammar comes from a client, so everything about it is
//! bounded: its size before it is compiled, the work and the memory of compiling it and of each mask by llguidance's
//! own limits (counts of operations, not time, so that the same request gets the same answer everywhere).

mod compile;
mod guide;
mod pool;
mod vocabulary;

pub use compile::bounded_schema;
pub use guide::Guide;
pub use vocabulary::Vocabulary;
