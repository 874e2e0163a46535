//! A deployment as a tree: its revisions, their groups, the pods of each. [`look`] asks, [`grow`] puts the answers
//! together (pure), [`text`] makes lines of that; [`overview`] is one line for each deployment.

pub mod grow;
pub mod look;
pub mod overview;
pub mod pace;
pub mod text;
pub mod tree;
