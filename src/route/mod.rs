//! Who receives a message. Pure; owned by the store thread.

pub mod fanout;
pub mod notices;
pub mod presence;
pub mod receipts;
pub mod roster;
