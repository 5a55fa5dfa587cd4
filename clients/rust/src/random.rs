//! Randomness for jitter: a seeded generator, because the machine fetches nothing by itself.

use std::time::Duration;

/// SplitMix64: 64 bits of state, good enough to spread clients, useless for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A duration in `[0, max]`, to the microsecond.
    pub(crate) fn up_to(&mut self, max: Duration) -> Duration {
        let max_us = u64::try_from(max.as_micros()).unwrap_or(u64::MAX - 1);
        Duration::from_micros(self.next() % (max_us + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws stay inside the bound and reach both halves of it.
    #[test]
    fn draws_fill_the_bound() {
        let mut random = Random::new(7);
        let max = Duration::from_millis(10);
        let draws: Vec<Duration> = (0..1000).map(|_| random.up_to(max)).collect();
        assert!(draws.iter().all(|&draw| draw <= max));
        assert!(draws.iter().any(|&draw| draw < max / 4) && draws.iter().any(|&draw| draw > max / 4 * 3));
        assert_eq!(random.up_to(Duration::ZERO), Duration::ZERO);
    }
}
