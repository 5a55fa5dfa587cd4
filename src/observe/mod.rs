//! Counters, histograms and logs.
