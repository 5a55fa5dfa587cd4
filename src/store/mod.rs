//! How messages are ordered, made durable and kept.

pub mod entry;
pub mod job;
pub mod record;
pub mod schema;
