//! Bytes and their meaning, without I/O: RFC 6455 below, the `tidegate.v1` protocol above.

pub mod envelope;
pub mod frame;
pub mod mask;
pub mod message;
pub mod upgrade;
pub mod utf8;
pub mod violation;
