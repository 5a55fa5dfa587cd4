//! Counters, histograms and logs.

pub mod auth;
pub mod counters;
pub mod histogram;
pub mod log;
pub mod metrics;
pub mod pressure;
pub mod trace;
