//! Settings: layers (default < file < environment < flag), checks with line and column.
//!
//! [`settings`] holds the one table: each row is a key, its type, default, range and text, and everything else is made from
//! it: the [`Settings`] the rooms read, TOML keys, `TIDEGATE_*` variables, flags, the annotated default file and every check.
//!
//! As in `wire`, lints refuse whatever could panic on what is read here.
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

pub mod derived;
pub mod exit;
pub mod file;
pub mod load;
pub mod problem;
pub mod relations;
pub mod render;
pub mod secret;
pub mod settings;
pub mod url;
pub mod value;

pub use exit::Exit;
pub use load::{Layers, Loaded, load};
pub use problem::{Place, Problem};
pub use settings::Settings;
pub use value::Secret;
