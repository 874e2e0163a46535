//! CANN behind safe wrappers.
