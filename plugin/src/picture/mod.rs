//! From answers to lines. Pure: [`view`] says what each copy is, [`grid`] folds copies into cells, [`text`] draws them.

pub mod copies;
pub mod grid;
pub mod heat;
pub mod operation;
pub mod text;
pub mod units;
pub mod view;
pub mod workers;
