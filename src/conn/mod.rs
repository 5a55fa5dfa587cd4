//! One connection: its state machine, unfinished bytes, send queue and timers. Pure.
//!
//! As in `wire`, bytes from outside decide no index and nothing is unwrapped. What is indexed are places that this code has handed out or cut
//! itself; each is excepted by name, with the reason why it is there.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod carry;
pub mod connection;
pub mod deflate;
pub mod send_queue;
pub mod timers;
