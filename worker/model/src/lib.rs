//! DeepSeek-V4: configuration, checkpoint, forward; generic over the backend.
#![deny(unsafe_code)]
