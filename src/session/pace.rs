//! How fast the node takes newcomers, whichever reactors they come to, and when those whom it sends away are to come back.
//!
//! ```text
//!            │◄─ 1/rate ─►│
//!  entries   │ A  A  A  A │ B  B  B  B │ A  A  A  A │ B  B  B  B │     batches, booked by reactor A and reactor B in turn
//!  returns   │ c │ d │ e │ f │ g │ h │ …                              one place for each whom the node sends away
//! ```
//!
//! A [`Calendar`] is the generic cell rate algorithm (ITU-T I.371) seen from the other side: it does not ask whether an event may be now but
//! says when it is. All cores book in it with one atomic operation, so no place is given twice and nobody waits for another core. A reactor
//! books its next batch of entries once it has used up the one before: of those where newcomers wait each gets as much as any other, and one
//! where nobody waits keeps a single batch from the others.

use crate::io::atomic::{AtomicU64, Ordering};
use crate::session::rate::Rate;

/// Shared by all reactors of the node; see the module text. All calendars run at the rate of newcomers, refusals faster.
#[derive(Debug, Default)]
pub struct Pace {
    /// When newcomers may come in.
    pub entries: Calendar,
    /// When newcomers may be accepted only to be refused.
    pub refusals: Calendar,
    /// When those come back who were told to go, or not let in.
    pub returns: Calendar,
}

/// Places one after the other, at a rate.
#[derive(Debug, Default)]
pub struct Calendar {
    /// The first place that nobody has booked, nanoseconds of the clock that all cores share.
    free_ns: AtomicU64,
}

impl Calendar {
    /// Books `count` places in a row, the first not before `from_ns`, and returns when that is. If the calendar is booked for more than
    /// `ahead_ns` beyond `from_ns`, the places from there on are given once more: the rate is exceeded, but evenly.
    ///
    /// A rate of 0 has no places to wait for. Cost: one atomic exchange, some 10 ns.
    pub fn book(&self, from_ns: u64, count: u32, per_second: u32, ahead_ns: u64) -> u64 {
        let taken_ns = u64::from(count).saturating_mul(step_ns(per_second));
        let place =
            |free_ns: u64| if (from_ns..=from_ns.saturating_add(ahead_ns)).contains(&free_ns) { free_ns } else { from_ns };
        let book = |free_ns| Some(place(free_ns).saturating_add(taken_ns));
        match self.free_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, book) {
            Ok(free_ns) | Err(free_ns) => place(free_ns),
        }
    }

    /// Whether the next place is at `until_ns` or before.
    #[must_use]
    pub fn is_free(&self, until_ns: u64) -> bool {
        self.free_ns.load(Ordering::Relaxed) <= until_ns
    }
}

/// Entries that one reactor has booked and not used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch {
    left: u32,
    due_ns: u64,
}

impl Batch {
    /// Whether a newcomer may come in now. Books the next batch if there is none.
    pub fn is_due(&mut self, pace: &Pace, rate: Rate, now_ns: u64) -> bool {
        if rate.per_second == 0 {
            return true;
        }
        if self.left == 0 {
            self.left = (rate.per_second / BATCHES_PER_SECOND).clamp(1, rate.burst.max(1));
            let place_ns = pace.entries.book(now_ns, self.left, rate.per_second, u64::MAX);
            self.due_ns = place_ns.saturating_sub(early_ns(rate, self.left));
        }
        self.due_ns <= now_ns
    }

    /// A newcomer has come in. One who came in the same turn as the last of a batch is paid for all the same.
    pub fn take(&mut self, pace: &Pace, rate: Rate, now_ns: u64) {
        if rate.per_second > 0 {
            self.is_due(pace, rate, now_ns);
            self.left = self.left.saturating_sub(1);
        }
    }

    /// Other bounds hold: what was booked by the old ones is forgotten.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Nanoseconds until the batch is due; `None`: it is, or nobody has asked for one.
    #[must_use]
    pub fn wait_ns(&self, now_ns: u64) -> Option<u64> {
        self.due_ns.checked_sub(now_ns).filter(|&wait_ns| wait_ns > 0 && self.left > 0)
    }
}

/// How long before its place a batch of so many may be used, nanoseconds: then a whole burst comes at once after a rest.
#[must_use]
pub fn early_ns(rate: Rate, count: u32) -> u64 {
    u64::from(rate.burst.saturating_sub(count)).saturating_mul(step_ns(rate.per_second))
}

/// Nanoseconds between two places.
fn step_ns(per_second: u32) -> u64 {
    1_000_000_000_u64.checked_div(per_second.into()).unwrap_or(0)
}

/// A batch is worth a hundredth of a second: so often at most do all reactors together wake for one.
const BATCHES_PER_SECOND: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;
    const S: u64 = 1_000 * MS;

    proptest! {
        /// However many leave, at whatever rate and however quickly: each gets the next place, none before it leaves, and nobody waits
        /// longer than the bound allows.
        #[test]
        fn places_are_given_evenly(
            per_second in 1_u32..5_000,
            leavers in prop::collection::vec(0_u64..20 * MS, 1..2_000),
            ahead_s in 1_u64..1_000,
        ) {
            let calendar = Calendar::default();
            let (mut now_ns, ahead_ns, step_ns) = (S, ahead_s * S, S / u64::from(per_second));
            let mut free_ns = 0;
            for pause_ns in leavers {
                now_ns += pause_ns;
                let place_ns = calendar.book(now_ns, 1, per_second, ahead_ns);
                prop_assert!(place_ns >= now_ns && place_ns - now_ns <= ahead_ns);
                prop_assert!(place_ns == now_ns.max(free_ns) || free_ns > now_ns + ahead_ns);
                free_ns = place_ns + step_ns;
            }
        }

        /// Reactors that all have newcomers waiting take, together, the rate and one burst, in any stretch of time; each gets its share.
        #[test]
        fn reactors_share_the_rate(
            per_second in 1_u32..5_000,
            burst in 1_u32..1_000,
            reactors in 1_usize..6,
            turn_ms in 1_u64..50,
        ) {
            let (pace, rate) = (Pace::default(), Rate { per_second, burst });
            let mut batches = vec![(Batch::default(), 0_u64); reactors];
            let (begun, seconds) = (100 * S, 20);
            for now_ns in (begun..begun + seconds * S).step_by(usize::try_from(turn_ms * MS).unwrap()) {
                for (batch, count) in &mut batches {
                    while batch.is_due(&pace, rate, now_ns) {
                        batch.take(&pace, rate, now_ns);
                        *count += 1;
                    }
                }
            }
            let all: u64 = batches.iter().map(|(_, count)| count).sum();
            let size = u64::from((per_second / BATCHES_PER_SECOND).clamp(1, burst));
            let (most, held) = (u64::from(per_second) * seconds + u64::from(burst), size * (reactors as u64 + 1));
            prop_assert!(all <= most + held, "{all} of {most}");
            // What comes due while everybody sleeps is lost beyond the burst, and the last turn is not the end.
            let asleep = u64::from(per_second) * turn_ms / 1_000 + 1;
            if asleep + size * 2 < u64::from(burst) {
                prop_assert!(all + held + size + asleep >= most, "{all} of {most}");
            }
        }
    }

    /// Reactors that take newcomers whenever they may get equal parts, whoever asks more often.
    #[test]
    fn nobody_takes_it_all() {
        let (pace, rate) = (Pace::default(), Rate { per_second: 1_000, burst: 200 });
        let mut batches = [(Batch::default(), 0_u32); 2];
        for turn in 0..10_000_u64 {
            let now_ns = 100 * S + turn * MS;
            for (index, (batch, count)) in batches.iter_mut().enumerate() {
                // The second sleeps until its batch is due, and a little longer.
                let sleeps = index == 1 && (batch.wait_ns(now_ns).is_some() || turn % 3 > 0);
                while !sleeps && batch.is_due(&pace, rate, now_ns) {
                    batch.take(&pace, rate, now_ns);
                    *count += 1;
                }
            }
        }
        let [(_, quick), (_, slow)] = batches;
        assert!((9_900..=10_300).contains(&(quick + slow)), "{quick} {slow}");
        assert!(slow > 4_000, "{quick} {slow}");
    }

    /// More than was booked comes in the turn of the last: the next ones wait for it.
    #[test]
    fn what_came_too_much_is_paid_for() {
        let (pace, rate) = (Pace::default(), Rate { per_second: 10, burst: 1 });
        let mut batch = Batch::default();
        assert!(batch.is_due(&pace, rate, 100 * S));
        for _ in 0..5 {
            batch.take(&pace, rate, 100 * S);
        }
        assert!(!batch.is_due(&pace, rate, 100 * S));
        assert_eq!(batch.wait_ns(100 * S), Some(500 * MS));
        assert!(!batch.is_due(&pace, rate, 100 * S + 499 * MS) && batch.is_due(&pace, rate, 100 * S + 500 * MS));
        assert_eq!(batch.wait_ns(101 * S), None);
    }

    /// Without a rate everybody comes in at once, nobody is told to wait, and a rate that is set later holds.
    #[test]
    fn zero_is_no_limit() {
        let (pace, none) = (Pace::default(), Rate::default());
        let mut batch = Batch::default();
        for _ in 0..1_000 {
            assert!(batch.is_due(&pace, none, S));
            batch.take(&pace, none, S);
            assert_eq!(pace.returns.book(S, 1, 0, S), S);
        }
        batch.forget();
        assert!(batch.is_due(&pace, Rate { per_second: 1, burst: 1 }, S) && pace.refusals.is_free(S));
    }

    /// So many leave at once: their places fill as many seconds as the rate needs for them, each second with as many.
    #[test]
    fn leavers_fill_their_time() {
        for (leavers, per_second) in [(1_000, 50), (1_000, 100), (3_000, 1_000)] {
            let calendar = Calendar::default();
            let mut seconds = vec![0; leavers / per_second as usize];
            for _ in 0..leavers {
                let place_ns = calendar.book(7 * S, 1, per_second, 600 * S);
                seconds[usize::try_from((place_ns - 7 * S) / S).unwrap()] += 1;
            }
            assert!(seconds.iter().all(|&count| count == per_second), "{seconds:?}");
        }
    }

    /// Beyond its bound a calendar begins anew, again and again: so many more than fit come evenly, none later than the bound.
    #[test]
    fn a_full_calendar_begins_anew() {
        let calendar = Calendar::default();
        let mut seconds = [0; 11];
        for _ in 0..3_300 {
            let place_ns = calendar.book(5 * S, 1, 100, 10 * S);
            seconds[usize::try_from((place_ns - 5 * S) / S).unwrap()] += 1;
        }
        assert!(seconds[..10].iter().all(|&count| (300..=400).contains(&count)) && seconds[10] <= 4, "{seconds:?}");
    }
}
