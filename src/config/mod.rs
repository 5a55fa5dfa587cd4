//! Settings: layers (default < file < environment < flag), checks with line and column.
//!
//! [`settings`] holds the one table: each row is a key, its type, default, range and text, and everything else is made from
//! it: the [`Settings`] the rooms read, TOML keys, `TIDEGATE_*` variables, flags, the annotated default file and every check.

pub mod exit;
pub mod settings;
pub mod value;

pub use exit::Exit;
pub use settings::Settings;
pub use value::Secret;
