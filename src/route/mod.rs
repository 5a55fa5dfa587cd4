//! Who receives a message. Pure; owned by the store thread.
