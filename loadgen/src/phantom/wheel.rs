//! A coarse timer wheel: who may have to send again, by tick. Entries are cheap and never taken out; whoever is due decides whether it
//! still counts. Pure.

/// Timers of [`TICK_MS`]; at most [`SLOTS`] of them ahead.
#[derive(Debug)]
pub struct Wheel {
    slots: Vec<Vec<Entry>>,
    /// The first tick that has not been turned.
    tick: u64,
}

/// Which connection, and which of its timers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The connection.
    pub index: u32,
    /// Tells a timer from an older one of the same connection.
    pub stamp: u32,
}

impl Wheel {
    /// Empty, at the time 0.
    #[must_use]
    pub fn new() -> Self {
        Self { slots: vec![Vec::new(); SLOTS], tick: 0 }
    }

    /// Notes that `entry` is due at `due_ms`, or earlier if that is farther away than the wheel reaches.
    pub fn add(&mut self, due_ms: u64, entry: Entry) {
        // Up, so that nobody is called before the time.
        let tick = due_ms.div_ceil(TICK_MS).clamp(self.tick, self.tick + SLOTS as u64 - 1);
        self.slots[slot(tick)].push(entry);
    }

    /// Takes those that are due, of one tick at a time; `None`: all that are due were taken.
    pub fn turn(&mut self, now_ms: u64) -> Option<Vec<Entry>> {
        while self.tick <= now_ms / TICK_MS {
            let due = std::mem::take(&mut self.slots[slot(self.tick)]);
            self.tick += 1;
            if !due.is_empty() {
                return Some(due);
            }
        }
        None
    }
}

impl Default for Wheel {
    fn default() -> Self {
        Self::new()
    }
}

fn slot(tick: u64) -> usize {
    usize::try_from(tick % SLOTS as u64).expect("fewer than the slots")
}

/// Milliseconds of a tick.
pub const TICK_MS: u64 = 100;
/// Ticks that the wheel reaches ahead: 12.8 s.
pub const SLOTS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn due(wheel: &mut Wheel, now_ms: u64) -> Vec<u32> {
        std::iter::from_fn(|| wheel.turn(now_ms)).flatten().map(|entry| entry.index).collect()
    }

    /// Nobody is called before the time, everybody within a tick after it, and who is beyond the wheel's reach is called early.
    #[test]
    fn entries_come_at_their_time() {
        let mut wheel = Wheel::new();
        for (index, due_ms) in [(1, 100), (2, 101), (3, 1000), (4, 1_000_000)] {
            wheel.add(due_ms, Entry { index, stamp: 0 });
        }
        assert!(due(&mut wheel, 99).is_empty());
        assert_eq!(due(&mut wheel, 100), [1]);
        assert_eq!(due(&mut wheel, 200), [2]);
        assert_eq!(due(&mut wheel, 5000), [3]);
        wheel.add(0, Entry { index: 5, stamp: 0 });
        assert!(due(&mut wheel, 5099).is_empty());
        assert_eq!(due(&mut wheel, 100 * SLOTS as u64), [5, 4]);
    }
}
