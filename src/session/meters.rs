//! Limits that hold for the node: how fast each key may go, and how many of each there may be. Keys are keyed hashes of users or addresses.
//!
//! A connection lives on one core and has buckets of its own ([`crate::session::rate`]). What several connections share is here: two tables of
//! fixed size that all cores write with single atomic operations, so that nobody waits and nothing grows.
//!
//! ```text
//!  key ─► line (64 bytes) ─► eight cells: [tag 24][due 40]      Meters: when the key will have paid for what it took
//!                                         [tag 32][count 32]    Tally:  how many of it are open
//! ```
//!
//! [`Meters`] is the generic cell rate algorithm (ITU-T I.371), a sliding window that needs one number: each event moves `due` one interval
//! into the future, and an event that would move it further ahead than the burst is refused. In any window of t seconds at most burst + rate * t
//! pass. A cell whose `due` is past says nothing, so it is free. When all eight of a line say something and a ninth key comes, the one that
//! owes least is forgotten: it may take one burst more than it should.
//!
//! [`Tally`] forgets the key with the fewest. Those that leave later are not counted, so a forgotten key may have up to twice its number.

use std::fmt;

use crate::io::atomic::{AtomicU64, Ordering};
use crate::session::rate::Rate;

/// Cells that share a cache line, and therefore their fate.
const WAYS: usize = 8;

#[derive(Default)]
#[repr(align(64))]
struct Line([AtomicU64; WAYS]);

fn lines(cells: usize) -> Box<[Line]> {
    (0..(cells / WAYS).next_power_of_two()).map(|_| Line::default()).collect()
}

/// The line of a key: its low bits.
#[expect(clippy::expect_used, reason = "lines() makes as many as a power of two, and the index is masked by one less")]
fn line_of(lines: &[Line], key: u64) -> &Line {
    let index = (key & 0xffff_ffff) as usize & lines.len().saturating_sub(1);
    lines.get(index).expect("masked by a length that is a power of two")
}

/// How fast each key may go.
pub struct Meters(Box<[Line]>);

impl Meters {
    /// Meters for about so many keys at once, 8 bytes each.
    #[must_use]
    pub fn new(keys: usize) -> Self {
        Self(lines(keys))
    }

    /// Takes one of `rate` for `key`, or says in how many milliseconds there will be one. `credit` more than the burst may be taken ahead, at
    /// most as much again. A burst worth more than 18 minutes of its rate counts as that.
    ///
    /// Cost: one cache line and one atomic exchange, some 10 ns.
    ///
    /// # Errors
    /// The time to wait, at least 1 ms.
    pub fn take(&self, key: u64, rate: Rate, now_ns: u64, credit: u16) -> Result<(), u32> {
        let Some(step) = step(rate) else { return Ok(()) };
        let depth = step.saturating_mul(u64::from(rate.burst).saturating_add(u64::from(credit))).clamp(step, DEPTH_MAX);
        let most = step.saturating_mul(u64::from(rate.burst).saturating_mul(2)).min(DEPTH_MAX);
        let (now, tag) = (now_ns / UNIT_NS, key >> DUE_BITS);
        for _ in 0..TRIES {
            let (cell, seen, ahead) = self.find(key, tag, now);
            // Nobody owes more than a burst and its credit: what says so is left of 19 hours ago, when the numbers began anew.
            let next = if ahead > most { step } else { ahead.saturating_add(step) };
            let owed = next.saturating_sub(depth);
            if owed > 0 {
                let wait_ms = owed.saturating_mul(UNIT_NS).div_ceil(1_000_000);
                return Err(u32::try_from(wait_ms).unwrap_or(u32::MAX).max(1));
            }
            let paid = tag << DUE_BITS | now.wrapping_add(next) & DUE_MASK;
            if cell.compare_exchange(seen, paid, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes all that there is for `key` at the moment, however little.
    pub fn drain(&self, key: u64, rate: Rate, now_ns: u64) {
        for _ in 0..rate.burst {
            if self.take(key, rate, now_ns, 0).is_err() {
                return;
            }
        }
    }

    /// Milliseconds until `key` has paid for all that it took; 0: it owes nothing.
    #[must_use]
    pub fn owed_ms(&self, key: u64, now_ns: u64) -> u32 {
        let (_, _, ahead) = self.find(key, key >> DUE_BITS, now_ns / UNIT_NS);
        u32::try_from(ahead.saturating_mul(UNIT_NS).div_ceil(1_000_000)).unwrap_or(u32::MAX)
    }

    /// Puts back what was taken for something that cost nothing.
    pub fn give_back(&self, key: u64, rate: Rate, now_ns: u64) {
        let Some(step) = step(rate) else { return };
        let (now, tag) = (now_ns / UNIT_NS, key >> DUE_BITS);
        let (cell, seen, ahead) = self.find(key, tag, now);
        if seen >> DUE_BITS == tag && ahead > 0 {
            let paid = tag << DUE_BITS | now.wrapping_add(ahead.saturating_sub(step)) & DUE_MASK;
            // Another core was quicker: one token is lost until it comes back by itself.
            let _ = cell.compare_exchange(seen, paid, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The cell of a key, or the one to take for it: what stands there, and by how much the key is ahead of `now`.
    #[expect(clippy::expect_used, reason = "a line has WAYS cells, and one of them is the least")]
    fn find(&self, key: u64, tag: u64, now: u64) -> (&AtomicU64, u64, u64) {
        let Line(cells) = line_of(&self.0, key);
        let mut least: Option<(&AtomicU64, u64, u64)> = None;
        for cell in cells {
            let seen = cell.load(Ordering::Relaxed);
            let ahead = ahead(seen, now);
            if seen >> DUE_BITS == tag && seen != 0 {
                return (cell, seen, ahead);
            }
            if least.is_none_or(|(_, _, other)| ahead < other) {
                least = Some((cell, seen, ahead));
            }
        }
        let (cell, seen, _) = least.expect("a line has cells");
        (cell, seen, 0)
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Meters({} cells)", self.0.len().saturating_mul(WAYS))
    }
}

/// Units between two events; `None`: no limit.
fn step(rate: Rate) -> Option<u64> {
    (1_000_000_000 / UNIT_NS).checked_div(rate.per_second.into()).map(|units| units.clamp(1, DEPTH_MAX))
}

/// By how many units a cell is ahead of `now`; further than any rate allows: nothing.
fn ahead(cell: u64, now: u64) -> u64 {
    let ahead = cell.wrapping_sub(now) & DUE_MASK;
    if ahead <= DEPTH_MAX { ahead } else { 0 }
}

/// How many of each key there are.
pub struct Tally(Box<[Line]>);

/// There are as many as there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooMany;

impl Tally {
    /// Counts for about so many keys at once, 8 bytes each.
    #[must_use]
    pub fn new(keys: usize) -> Self {
        Self(lines(keys))
    }

    /// One more of `key`, if there are fewer than `most`. Every success wants a [`Tally::leave`].
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn enter(&self, key: u32, most: u32) -> Result<(), TooMany> {
        for _ in 0..TRIES {
            let (cell, seen) = self.find(key);
            let count = if is_of(seen, key) { seen & COUNT_MASK } else { 0 };
            if count >= u64::from(most) {
                return Err(TooMany);
            }
            if cell
                .compare_exchange(seen, u64::from(key) << 32 | count.saturating_add(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One fewer. A key that was forgotten is not looked for.
    pub fn leave(&self, key: u32) {
        for _ in 0..TRIES {
            let (cell, seen) = self.find(key);
            if !is_of(seen, key) {
                return;
            }
            let left = if seen & COUNT_MASK == 1 { 0 } else { seen.saturating_sub(1) };
            if cell.compare_exchange(seen, left, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    /// The cell of a key, or the one with the fewest, and what stands there.
    #[expect(clippy::expect_used, reason = "a line has WAYS cells, and one of them is the least")]
    fn find(&self, key: u32) -> (&AtomicU64, u64) {
        let Line(cells) = line_of(&self.0, u64::from(key));
        let mut least: Option<(&AtomicU64, u64)> = None;
        for cell in cells {
            let seen = cell.load(Ordering::Relaxed);
            if is_of(seen, key) {
                return (cell, seen);
            }
            if least.is_none_or(|(_, other)| seen & COUNT_MASK < other & COUNT_MASK) {
                least = Some((cell, seen));
            }
        }
        least.expect("a line has cells")
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tally({} cells)", self.0.len().saturating_mul(WAYS))
    }
}

/// An empty cell has no count and belongs to nobody.
fn is_of(cell: u64, key: u32) -> bool {
    cell >> 32 == u64::from(key) && cell & COUNT_MASK > 0
}

const COUNT_MASK: u64 = 0xffff_ffff;
/// Nanoseconds of one unit of `due`.
const UNIT_NS: u64 = 64;
const DUE_BITS: u32 = 40;
const DUE_MASK: u64 = (1 << DUE_BITS) - 1;
/// The furthest ahead that a key can be, in units: 18 minutes.
const DEPTH_MAX: u64 = 1 << 34;
/// How often a cell is tried that other cores change meanwhile; each failure is a success of another. Then one passes uncounted.
const TRIES: u32 = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 20, burst: 3 };
    const SECOND: u64 = 1_000_000_000;
    /// The clock of a node that has run for a month.
    const LATE: u64 = 30 * 86_400 * SECOND;

    /// A burst passes, the next is told when, and at that time it passes; another key has its own. Rate 0 is no limit.
    #[test]
    fn a_key_that_spent_its_burst_is_told_when_to_come_back() {
        let meters = Meters::new(64);
        for now in [1, LATE] {
            for _ in 0..3 {
                assert_eq!(meters.take(7, RATE, now, 0), Ok(()));
            }
            assert_eq!(meters.take(7, RATE, now, 0), Err(50));
            assert_eq!(meters.take(8, RATE, now, 0), Ok(()));
            assert_eq!(meters.take(7, RATE, now + SECOND / 20 - 1_000_000, 0), Err(1));
            assert_eq!(meters.take(7, RATE, now + SECOND / 20, 0), Ok(()));
            assert_eq!(meters.take(7, RATE, now + SECOND / 20, 1), Ok(()), "on credit");
            meters.give_back(7, RATE, now + SECOND / 20);
            meters.give_back(7, RATE, now + SECOND / 20);
            assert_eq!(meters.take(7, RATE, now + SECOND / 20, 0), Ok(()), "given back");
        }
        let unlimited = Rate { per_second: 0, burst: 0 };
        assert!((0..1000).all(|_| meters.take(9, unlimited, 1, 0).is_ok()));
    }

    /// What a key owes is what it took, gets less with time, and is its own.
    #[test]
    fn a_key_owes_what_it_took() {
        let meters = Meters::new(64);
        let rate = Rate { per_second: 1, burst: 10 };
        assert_eq!(meters.owed_ms(7, LATE), 0);
        meters.drain(7, rate, LATE);
        assert_eq!((meters.owed_ms(7, LATE), meters.owed_ms(8, LATE)), (10_000, 0));
        meters.drain(7, rate, LATE + 4 * SECOND);
        assert_eq!(meters.owed_ms(7, LATE + 4 * SECOND), 10_000, "not more than a burst");
        assert_eq!((meters.owed_ms(7, LATE + 13 * SECOND), meters.owed_ms(7, LATE + 14 * SECOND)), (1_000, 0));
    }

    /// However long it rests, over every wrap of its 40 bits, a key has no more than its burst and no less.
    #[test]
    fn rest_makes_no_key_rich_or_poor() {
        let meters = Meters::new(64);
        for hours in [0, 1, 5, 9, 10, 19, 20, 38, 39, 1000] {
            let now = LATE + hours * 3600 * SECOND;
            assert_eq!((0..5).filter(|_| meters.take(7, RATE, now, 0).is_ok()).count(), 3, "after {hours} hours");
        }
    }

    /// A ninth key of a line takes the place of the one that owes least; whoever owes most is not let off.
    #[test]
    fn the_one_that_owes_least_is_forgotten() {
        let meters = Meters::new(1);
        let key = |number: u64| number << DUE_BITS;
        for _ in 0..3 {
            assert_eq!(meters.take(key(1), RATE, LATE, 0), Ok(()));
        }
        (2..100).for_each(|number| assert_eq!(meters.take(key(number), RATE, LATE, 0), Ok(())));
        assert_eq!(meters.take(key(1), RATE, LATE, 0), Err(50), "not let off");
        assert_eq!((0..4).filter(|_| meters.take(key(2), RATE, LATE, 0).is_ok()).count(), 3, "forgotten: a burst again");
    }

    /// So many of a key and no more; whoever leaves makes room. Beyond the room of a line the one with the fewest is forgotten.
    #[test]
    fn a_tally_counts_those_that_are_there() {
        let tally = Tally::new(1);
        (0..3).for_each(|_| assert_eq!(tally.enter(1, 3), Ok(())));
        assert_eq!(tally.enter(1, 3), Err(TooMany));
        tally.leave(1);
        assert_eq!((tally.enter(1, 3), tally.enter(1, 3)), (Ok(()), Err(TooMany)));
        (2..100).for_each(|key| assert_eq!(tally.enter(key, 3), Ok(())));
        assert_eq!(tally.enter(1, 3), Err(TooMany), "the one with the most is remembered");
        (2..100).for_each(|key| tally.leave(key));
        (0..3).for_each(|_| tally.leave(1));
        tally.leave(1);
        assert!(
            tally.0.iter().all(|line| line.0.iter().all(|cell| cell.load(Ordering::Relaxed) & COUNT_MASK == 0)),
            "all have left"
        );
    }

    /// Four threads at once: not one more passes than may, and nobody that left is still counted.
    #[test]
    fn cores_do_not_lose_count() {
        let (meters, tally) = (Meters::new(64), Tally::new(64));
        let rate = Rate { per_second: 1, burst: 1000 };
        let passed: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1000).for_each(|_| {
                            if tally.enter(7, 2).is_ok() {
                                tally.leave(7);
                            }
                        });
                        (0..1000).filter(|_| meters.take(7, rate, LATE, 0).is_ok()).count()
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("no panic")).sum()
        });
        assert_eq!(passed, 1000);
    }

    proptest! {
        /// A sliding window: whatever the times, in every window no more pass than burst + rate * length, and what is refused could not have
        /// passed.
        #[test]
        fn no_window_lets_more_pass(gaps_ms in prop::collection::vec(0_u64..200, 1..120), per_second in 1_u32..100, burst in 1_u32..10) {
            let meters = Meters::new(64);
            let rate = Rate { per_second, burst };
            let (mut now, mut passed) = (LATE, Vec::new());
            for gap in gaps_ms {
                now += gap * 1_000_000;
                if meters.take(7, rate, now, 0).is_ok() {
                    passed.push(now);
                }
            }
            for (first, from) in passed.iter().enumerate() {
                for (last, to) in passed.iter().enumerate().skip(first) {
                    let most = u64::from(burst) + ((to - from) * u64::from(per_second)).div_ceil(SECOND) + 1;
                    prop_assert!((last - first + 1) as u64 <= most);
                }
            }
        }
    }
}
