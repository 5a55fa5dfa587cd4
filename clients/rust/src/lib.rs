//! Reference client of the `tidegate.v1` protocol.
