//! Counters, histograms and logs.

pub mod counters;
