//! Results: rows of a CSV file, and tables of them.

mod row;
mod table;

pub use row::{Row, read, write};
pub use table::markdown;
