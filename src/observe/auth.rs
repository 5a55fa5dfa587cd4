//! What is counted where tokens are judged beside the reactors. Written by several threads, so no block with one writer.

use std::sync::atomic::{AtomicU64, Ordering};

/// Shown under `/metrics`; everything starts at zero with the process.
#[derive(Debug, Default)]
pub struct AuthFacts {
    /// Unix second of the last good fetch of keys.
    pub jwks_fetched_s: Fact,
    /// Fetches that failed.
    pub jwks_failures: Fact,
    /// Tokens the webhook was asked about.
    pub webhook_asked: Fact,
    /// Tokens whose verdict was remembered.
    pub webhook_known: Fact,
    /// Questions that nobody answered, or with 5xx.
    pub webhook_failures: Fact,
    /// 1 while the webhook is left alone.
    pub webhook_open: Fact,
}

/// A number.
#[derive(Debug, Default)]
pub struct Fact(AtomicU64);

impl Fact {
    /// One more.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Now it is this.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
