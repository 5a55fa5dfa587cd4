//! How messages are ordered, made durable and kept.

pub mod apply;
pub mod attempts;
pub mod backup;
pub mod cursor;
pub mod dedup;
pub mod disk;
pub mod disk_memory;
pub mod disk_real;
pub mod engine;
pub mod engine_memory;
pub mod entry;
pub mod export;
pub mod history;
pub mod hold;
pub mod job;
pub mod keeper;
pub mod level;
pub mod log;
pub mod outbox;
pub mod park;
pub mod projector;
pub mod reader;
pub mod record;
pub mod recovery;
pub mod restore;
pub mod retention;
pub mod revocations;
pub mod rows;
pub mod schema;
pub mod sequencer;
pub mod thread;

#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod neighbours;
