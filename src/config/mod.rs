//! Settings: layers (default < file < environment < flag), checks with line and column.
