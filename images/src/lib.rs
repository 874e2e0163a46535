//! Writes reproducible one-layer container images from static binaries, without a container engine.
#![forbid(unsafe_code)]
