//! A simulator with the C ABI of CANN.
