//! Time as an argument: the pure parts of the gateway are given a [`Moment`] and never read a clock.

use std::time::Duration;

/// One reading of both clocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Moment {
    /// Monotonic nanoseconds since an arbitrary origin of this process.
    pub mono_ns: u64,
    /// Wall clock, milliseconds since the Unix epoch. May jump: what must follow it compares the two.
    pub unix_ms: u64,
}

impl Moment {
    /// Monotonic time since `earlier`, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.mono_ns.saturating_sub(earlier.mono_ns))
    }

    /// Monotonic time in ticks of 100 ms, the unit of the timer wheel and of the liveness scan. Wraps after 13 years.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "wraps after 13 years of uptime, and differences still hold")]
    pub fn tick(self) -> u32 {
        (self.mono_ns / TICK_NS) as u32
    }

    /// The same ahead by a part of a tick that differs by core, so that not all of them begin a tick, and what is due in it, at once.
    #[must_use]
    pub fn tick_of(self, core: u16) -> u32 {
        // Multiplication by the golden ratio lays cores evenly over the tick.
        let phase_ns = (u64::from(u32::from(core).wrapping_mul(0x9E37_79B9)) * TICK_NS) >> 32;
        Self { mono_ns: self.mono_ns + phase_ns, ..self }.tick()
    }
}

/// One tick of the timer wheel in nanoseconds: 100 ms.
pub const TICK_NS: u64 = 100_000_000;

/// The clocks of the machine. Only threads (reactor, store, admin) own one.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: std::time::Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A clock whose monotonic origin is now. Threads of one process share one value, so that moments compare.
    #[must_use]
    pub fn new() -> Self {
        Self { origin: std::time::Instant::now() }
    }

    /// Reads both clocks. Cost: two vDSO calls, about 50 ns.
    ///
    /// # Panics
    /// If the wall clock stands before 1970.
    #[must_use]
    pub fn now(&self) -> Moment {
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let unix = unix.expect("the wall clock stands after 1970");
        Moment {
            mono_ns: u64::try_from(self.origin.elapsed().as_nanos()).expect("584 years of uptime"),
            unix_ms: u64::try_from(unix.as_millis()).expect("584 million years"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fifty-two cores begin their tick evenly over its 100 ms, none before the clock's own has begun, and the first with it.
    #[test]
    fn cores_begin_a_tick_one_after_another() {
        let mut begun = [0_u32; 10];
        for core in 0..52 {
            let begins = |&ms: &u64| Moment { mono_ns: 1_000 * TICK_NS + ms * 1_000_000, unix_ms: 0 }.tick_of(core) == 1_001;
            let ms = (1..=100).find(begins).expect("within the tick");
            begun[usize::try_from((ms - 1) / 10).expect("below ten")] += 1;
        }
        assert!(begun.iter().all(|count| (4..=6).contains(count)), "{begun:?}");
        assert_eq!(Moment { mono_ns: 5 * TICK_NS, unix_ms: 0 }.tick_of(0), 5);
    }
}
