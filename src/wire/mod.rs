//! Bytes and their meaning, without I/O: RFC 6455 below, the `tidegate.v1` protocol above.
//!
//! Bytes from outside decide no index here, unwrap nothing and overflow no number: lints say so. What writes into a block it has just made is
//! excepted by name, with the reason why it fits.
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

pub mod deflate;
pub mod envelope;
pub mod forwarded;
pub mod frame;
pub mod mask;
pub mod message;
pub mod proxy;
#[cfg(feature = "gateway")]
pub mod tls;
pub mod upgrade;
pub mod utf8;
pub mod violation;
