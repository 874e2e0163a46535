//! Expert dispatch and combine: in process, and framed TCP between workers.
#![forbid(unsafe_code)]
