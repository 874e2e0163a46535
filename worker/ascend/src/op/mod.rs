//! Operators, by the convention of two phases: one plans on the host and says how much workspace it needs, one queues
//! the planned work on a stream.
//!
//! The methods of [`Launcher`] name what an operator computes. Which shapes and types a chip takes is for the library to
//! say, and its message comes with the error; only what could be mistaken silently is checked here.

mod axis;
mod elementwise;
mod executor;
mod grouped;
mod launcher;
mod movement;
mod product;

pub use elementwise::{Binary, Unary};
pub use grouped::GroupedProduct;
pub use launcher::{Launcher, Plans};

use crate::tensor::View;
use crate::{Error, Result};

/// Refuses views that do not fit an operation.
fn check(operation: &'static str, fits: bool, views: &[&View]) -> Result<()> {
    if fits {
        return Ok(());
    }
    let shapes: Vec<String> = views.iter().map(|view| format!("{:?}", view.layout())).collect();
    Err(Error::Shape { operation, cause: format!("{} do not fit", shapes.join(", ")) })
}

fn same_type(views: &[&View]) -> bool {
    views.windows(2).all(|pair| pair[0].layout().dtype() == pair[1].layout().dtype())
}
