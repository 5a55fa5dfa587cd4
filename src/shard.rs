//! All that one core owns, pure: `handle_*` in, `poll_*` out.
