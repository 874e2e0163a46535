//! The long campaign of faults: what is tried, what came of it, and how that is published.

pub mod change;
pub mod csv;
pub mod load;
pub mod page;
pub mod provenance;
pub mod row;
pub mod scaling;
pub mod scenario;
pub mod selection;
