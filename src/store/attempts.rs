//! How often each device may say HELLO.
//!
//! One number per device: the time at which its last attempt is paid for, when each costs its share of a minute. So a device that has
//! rested may try a whole minute's worth at once, and one that keeps trying gets its share and no more. A refused attempt costs nothing.

use std::collections::{HashMap, VecDeque};

use crate::limits::DEVICE_ATTEMPTS_MAX;

/// The attempts of all devices.
#[derive(Debug)]
pub struct Attempts {
    per_minute: u32,
    /// When the attempts of a device are paid for, milliseconds of the monotonic clock.
    paid_ms: HashMap<(u64, u64), u64>,
    /// Oldest first.
    order: VecDeque<(u64, u64)>,
}

impl Attempts {
    /// So many per minute and device; 0: no limit.
    #[must_use]
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute, paid_ms: HashMap::new(), order: VecDeque::new() }
    }

    /// An attempt of this user and device: whether it may be made.
    pub fn take(&mut self, device: (u64, u64), now_ms: u64) -> bool {
        if self.per_minute == 0 {
            return true;
        }
        let cost_ms = u64::from((60_000 / self.per_minute).max(1));
        if let Some(paid_ms) = self.paid_ms.get_mut(&device) {
            let next_ms = (*paid_ms).max(now_ms) + cost_ms;
            let fits = next_ms <= now_ms + 60_000;
            if fits {
                *paid_ms = next_ms;
            }
            return fits;
        }
        if self.order.len() >= DEVICE_ATTEMPTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.paid_ms.remove(&oldest);
        }
        self.paid_ms.insert(device, now_ms + cost_ms);
        self.order.push_back(device);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A minute's worth at once, then one share after another; others are not concerned.
    #[test]
    fn a_device_gets_its_share() {
        let mut attempts = Attempts::new(10);
        assert!((0..10).all(|_| attempts.take((1, 1), 5_000)));
        assert!(!attempts.take((1, 1), 5_000) && !attempts.take((1, 1), 10_999));
        assert!(attempts.take((1, 2), 5_000) && attempts.take((2, 1), 5_000));
        assert!(attempts.take((1, 1), 11_000) && !attempts.take((1, 1), 11_000));
        assert!((0..10).all(|_| attempts.take((1, 1), 100_000)) && !attempts.take((1, 1), 100_000));
        let mut free = Attempts::new(0);
        assert!((0..1000).all(|_| free.take((1, 1), 0)));
    }

    /// However many devices come, the table keeps its bound, and who is remembered still counts.
    #[test]
    fn the_table_is_bounded() {
        let mut attempts = Attempts::new(1);
        for device in 0..DEVICE_ATTEMPTS_MAX as u64 * 2 {
            assert!(attempts.take((device, 0), 0));
            assert!(!attempts.take((device, 0), 0));
        }
        assert_eq!((attempts.paid_ms.len(), attempts.order.len()), (DEVICE_ATTEMPTS_MAX, DEVICE_ATTEMPTS_MAX));
    }
}
