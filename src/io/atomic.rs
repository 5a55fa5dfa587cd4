//! The atomics of the wake-up protocol and of the mailbox, under one name, so that a model checker can stand in for them.

pub use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

/// What of threads the wake-up needs.
pub mod thread {
    pub use std::thread::{Thread, current, park_timeout};
}
