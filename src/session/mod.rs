//! What frames mean: who the device is, what it may do and what it has received. Pure.
//!
//! As in `wire`, nothing is indexed or unwrapped, and no number overflows.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod auth;
pub mod delivery;
pub mod hold;
pub mod keys;
pub mod meters;
pub mod nack;
pub mod pace;
pub mod rate;
