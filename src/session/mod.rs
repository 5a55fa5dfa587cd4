//! What frames mean: who the device is, what it may do and what it has received. Pure.

pub mod auth;
pub mod delivery;
pub mod hold;
pub mod nack;
pub mod rate;
