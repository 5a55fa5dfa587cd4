//! The bounded queue under a lane, under one name, so that a model checker can stand in for it (`tests/loom`).   [crossbeam-channel]

pub use crossbeam_channel::{Receiver, RecvTimeoutError, SendError, SendTimeoutError, Sender, TrySendError, bounded};
