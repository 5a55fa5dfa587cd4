//! Counters, histograms and logs.

pub mod counters;
pub mod histogram;
pub mod metrics;
