//! How messages are ordered, made durable and kept.

pub mod apply;
pub mod dedup;
pub mod disk;
pub mod disk_memory;
pub mod disk_real;
pub mod entry;
pub mod job;
pub mod log;
pub mod record;
pub mod schema;

#[cfg(test)]
pub(crate) mod model;
