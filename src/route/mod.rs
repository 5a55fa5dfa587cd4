//! Who receives a message. Pure; owned by the store thread.

pub mod fanout;
pub mod presence;
pub mod receipts;
pub mod roster;
