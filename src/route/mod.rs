//! Who receives a message. Pure; owned by the store thread.

pub mod fanout;
pub mod roster;
