//! Bytes and their meaning, without I/O: RFC 6455 below, the `tidegate.v1` protocol above.

pub mod envelope;
pub mod message;
