//! What the end-to-end tests share: a real gateway in a process of its own, a hand-driven connection, and the ledger that judges.
#![allow(dead_code, reason = "every test file uses its own part")]

pub mod disk;
pub mod gate;
pub mod gateway;
pub mod ledger;
pub mod peer;
pub mod port;
pub mod raw;
pub mod secure;

use std::time::{Duration, Instant};

/// Longest wait for something that must happen. No test says how fast it happens; this only ends one that hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
