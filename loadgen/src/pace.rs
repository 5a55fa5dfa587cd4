//! When to send next, whatever the answers do.

use std::time::Duration;

/// An even, open-loop schedule: message `n` is due at `start + n / rate`, however late the ones before it were.
#[derive(Clone, Debug)]
pub struct Pace {
    start_ns: u64,
    rate_per_s: f64,
    count: u64,
}

impl Pace {
    /// `rate_per_s` messages per second from `start_ns` on; 0 sends nothing.
    #[must_use]
    pub fn new(rate_per_s: f64, start_ns: u64) -> Self {
        Self { start_ns, rate_per_s, count: 0 }
    }

    /// The intended time of the next message if it has come; it counts as sent from here on.
    pub fn due(&mut self, now_ns: u64) -> Option<u64> {
        let at = self.next().filter(|&at| at <= now_ns)?;
        self.count += 1;
        Some(at)
    }

    /// The intended time of the next message; `None`: there is none.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        if self.rate_per_s <= 0.0 {
            return None;
        }
        let offset = Duration::from_secs_f64(self.count as f64 / self.rate_per_s);
        Some(self.start_ns + nanos(offset))
    }
}

/// Nanoseconds; 584 years fit.
#[must_use]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver that comes late finds every missed message, each with the time at which it was meant.
    #[test]
    fn lateness_moves_no_intended_time() {
        let mut pace = Pace::new(1000.0, 5_000_000);
        assert_eq!(pace.due(4_999_999), None);
        assert_eq!(pace.due(5_000_000), Some(5_000_000));
        let late: Vec<u64> = std::iter::from_fn(|| pace.due(8_500_000)).collect();
        assert_eq!(late, [6_000_000, 7_000_000, 8_000_000]);
        assert_eq!(pace.next(), Some(9_000_000));
    }

    /// A rate of zero is never due.
    #[test]
    fn zero_is_silence() {
        assert_eq!(Pace::new(0.0, 0).due(u64::MAX), None);
    }
}
