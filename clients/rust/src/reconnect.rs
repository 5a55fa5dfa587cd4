//! When to come back after a connection was lost, and when not to (docs/protocol.md sections 6 and 9).

use std::time::Duration;

use crate::random::Random;

/// Full-jitter exponential back-off: `random(0, min(cap, base x 2^attempt))`.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
    active_since: Option<Duration>,
}

impl Backoff {
    pub(crate) fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempt: 0, active_since: None }
    }

    /// A WELCOME has come at `now`.
    pub(crate) fn active(&mut self, now: Duration) {
        self.active_since = Some(now);
    }

    /// The connection ended at `now`. Only a connection that stood for a while forgets the attempts before it: one that is
    /// accepted and dropped at once must not be hammered.
    pub(crate) fn lost(&mut self, now: Duration) {
        if self.active_since.take().is_some_and(|since| now.saturating_sub(since) >= ACTIVE_RESETS) {
            self.attempt = 0;
        }
    }

    /// How long to wait before the next attempt, which is counted.
    pub(crate) fn delay(&mut self, random: &mut Random) -> Duration {
        let ceiling = self.base.saturating_mul(1 << self.attempt.min(ATTEMPT_SHIFT_MAX)).min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        random.up_to(ceiling)
    }
}

/// What a close code asks of the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Reconnect with back-off.
    Retry,
    /// As above, with a token that was not used yet.
    FreshToken,
    /// As above, and forget `since`.
    SyncFromZero,
    /// Do not come back without being told.
    Stop,
}

/// Reads a close code; `None` is a connection that ended without one. An unknown code means reconnect.
pub(crate) fn verdict(close: Option<u16>) -> Verdict {
    match close {
        Some(4400 | 4403 | 4409) => Verdict::Stop,
        Some(4401) => Verdict::FreshToken,
        Some(4411) => Verdict::SyncFromZero,
        _ => Verdict::Retry,
    }
}

/// A connection that was ACTIVE for this long resets the attempts.
const ACTIVE_RESETS: Duration = Duration::from_secs(60);
/// Beyond this the ceiling has long been the cap; it keeps the shift inside 32 bits.
const ATTEMPT_SHIFT_MAX: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// The ceiling doubles from 0.5 s to 30 s, and every delay lies below it.
    #[test]
    fn delays_stay_under_a_doubling_ceiling() {
        let mut random = Random::new(1);
        for _ in 0..100 {
            let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
            for attempt in 0..40 {
                let ceiling = Duration::from_millis(500 << attempt.min(10)).min(Duration::from_secs(30));
                assert!(backoff.delay(&mut random) <= ceiling);
            }
        }
    }

    /// 59 s of ACTIVE keep the attempts, 60 s reset them: seen through the ceiling of many draws.
    #[test]
    fn only_a_minute_of_active_resets_the_attempts() {
        let longest = |active: u64| {
            let mut random = Random::new(2);
            (0..200)
                .map(|_| {
                    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
                    for _ in 0..8 {
                        let _ = backoff.delay(&mut random);
                    }
                    backoff.active(Duration::ZERO);
                    backoff.lost(Duration::from_secs(active));
                    backoff.delay(&mut random)
                })
                .max()
        };
        assert!(longest(59) > Some(Duration::from_secs(20)));
        assert!(longest(60) <= Some(Duration::from_millis(500)));
    }

    /// The table of close codes.
    #[test]
    fn close_codes_say_whether_to_come_back() {
        for code in [4400, 4403, 4409] {
            assert_eq!(verdict(Some(code)), Verdict::Stop);
        }
        assert_eq!(verdict(Some(4401)), Verdict::FreshToken);
        assert_eq!(verdict(Some(4411)), Verdict::SyncFromZero);
        for code in [None, Some(1001), Some(1006), Some(1012), Some(4408), Some(4410), Some(4429), Some(4503), Some(4999)] {
            assert_eq!(verdict(code), Verdict::Retry);
        }
    }
}
