//! How messages are ordered, made durable and kept.
