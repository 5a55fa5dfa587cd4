//! One connection: its state machine, unfinished bytes, send queue and timers. Pure.

pub mod carry;
pub mod connection;
pub mod deflate;
pub mod send_queue;
pub mod timers;
