//! Whether clients may come, and if not, why.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Moment;

/// What `/readyz` says. The gateway writes it, the admin thread reads it.
#[derive(Debug)]
pub struct Health {
    reactors_expected: u64,
    reactors_accepting: AtomicU64,
    is_store_open: AtomicBool,
    awaits_keys: AtomicBool,
    is_draining: AtomicBool,
    has_failed: AtomicBool,
    turns: Mutex<Vec<Turns>>,
}

/// When a reactor was last seen to turn.
#[derive(Clone, Copy, Debug)]
struct Turns {
    count: u64,
    seen: Moment,
    is_stuck: bool,
}

impl Health {
    /// Not ready yet: the store is closed and none of the `reactors` accepts.
    #[must_use]
    pub fn new(reactors: u16) -> Self {
        Self {
            reactors_expected: u64::from(reactors),
            reactors_accepting: AtomicU64::new(0),
            is_store_open: AtomicBool::new(false),
            awaits_keys: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            turns: Mutex::new(Vec::new()),
        }
    }

    /// One more reactor accepts connections.
    pub fn reactor_accepts(&self) {
        self.reactors_accepting.fetch_add(1, Ordering::Relaxed);
    }

    /// The store has read its log and takes submissions.
    pub fn store_opened(&self) {
        self.is_store_open.store(true, Ordering::Relaxed);
    }

    /// Tokens cannot be judged before [`Health::keys_came`].
    pub fn await_keys(&self) {
        self.awaits_keys.store(true, Ordering::Relaxed);
    }

    /// Every source of public keys has given its first.
    pub fn keys_came(&self) {
        self.awaits_keys.store(false, Ordering::Relaxed);
    }

    /// The node is leaving; there is no way back.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Whether the node is leaving.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// A thread cannot go on, and the process ends; there is no way back.
    pub fn fail(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    /// Every reason why clients should not come; none: ready.
    #[must_use]
    pub fn reasons(&self, is_read_only: bool) -> Vec<String> {
        let mut reasons = Vec::new();
        let accepting = self.reactors_accepting.load(Ordering::Relaxed);
        if accepting < self.reactors_expected {
            reasons.push(format!("{accepting} of {} reactors accept connections", self.reactors_expected));
        }
        if !self.is_store_open.load(Ordering::Relaxed) {
            reasons.push("the store is still reading its log".to_owned());
        }
        if self.awaits_keys.load(Ordering::Relaxed) {
            reasons.push("auth.jwks_url has not given keys yet; the log says why".to_owned());
        }
        if self.is_draining.load(Ordering::Relaxed) {
            reasons.push("the node is draining".to_owned());
        }
        if self.has_failed.load(Ordering::Relaxed) {
            reasons.push("the node has failed, and ends; the log says why".to_owned());
        }
        if is_read_only {
            reasons.push("the store refuses messages because the disk is full or failed; free space on it".to_owned());
        }
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let stuck = turns.iter().enumerate().filter(|(_, turns)| turns.is_stuck);
        reasons.extend(stuck.map(|(number, _)| format!("reactor {number} has not turned for {} s", STUCK_AFTER.as_secs())));
        reasons
    }

    /// Looks whether each reactor turned since it was last seen to. A reactor at rest turns ten times a second.
    pub(super) fn watch_turns(&self, counts: impl Iterator<Item = u64>, now: Moment) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, count) in counts.enumerate() {
            match turns.get_mut(number) {
                None => turns.push(Turns { count, seen: now, is_stuck: false }),
                // A reactor that has not begun is not stuck: it is counted as not accepting.
                Some(last) if last.count == count && count > 0 => last.is_stuck = now.since(last.seen) > STUCK_AFTER,
                Some(last) => *last = Turns { count, seen: now, is_stuck: false },
            }
        }
    }
}

/// A reactor that has not turned for so long gets no new clients.
const STUCK_AFTER: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment { mono_ns: seconds * 1_000_000_000, unix_ms: 0 }
    }

    /// Each thing that is missing is a reason of its own; with none left the node is ready, until it drains.
    #[test]
    fn ready_only_when_nothing_is_missing() {
        let health = Health::new(2);
        assert_eq!(health.reasons(true).len(), 3);
        health.reactor_accepts();
        health.store_opened();
        assert_eq!(health.reasons(false), ["1 of 2 reactors accept connections"]);
        health.reactor_accepts();
        assert!(health.reasons(false).is_empty());
        assert_eq!(health.reasons(true).len(), 1);
        health.await_keys();
        assert_eq!(health.reasons(false), ["auth.jwks_url has not given keys yet; the log says why"]);
        health.keys_came();
        health.drain();
        assert_eq!(health.reasons(false), ["the node is draining"]);
        health.fail();
        assert_eq!(health.reasons(false), ["the node is draining", "the node has failed, and ends; the log says why"]);
    }

    /// A reactor whose turns stand still for more than two seconds is named, and forgiven when it turns again.
    #[test]
    fn a_reactor_that_stands_still_is_named() {
        let health = Health::new(0);
        health.store_opened();
        for second in 1..=4 {
            health.watch_turns([second, 7].into_iter(), at(second));
        }
        assert_eq!(health.reasons(false), ["reactor 1 has not turned for 2 s"]);
        health.watch_turns([5, 8].into_iter(), at(5));
        assert!(health.reasons(false).is_empty());
    }
}
