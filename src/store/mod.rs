//! How messages are ordered, made durable and kept.

pub mod apply;
pub mod dedup;
pub mod entry;
pub mod job;
pub mod record;
pub mod schema;

#[cfg(test)]
pub(crate) mod model;
