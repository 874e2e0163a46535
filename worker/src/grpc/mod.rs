//! The services, one file each.

pub mod admin;
pub mod errors;
pub mod infer_fields;
pub mod inference;
pub mod kserve;
pub mod tensors;

/// Largest message that a service takes or sends: a prompt of a million tokens with room to spare.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
