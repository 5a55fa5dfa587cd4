//! When messages leave.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A part of a [`Schedule`] in which the rate changes evenly.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Leg {
    /// Messages per second when it begins.
    pub from_per_s: f64,
    /// When it ends.
    pub to_per_s: f64,
    /// How long it lasts; may be infinite where both rates are the same.
    pub seconds: f64,
}

impl Leg {
    /// Messages that are due in it.
    #[must_use]
    pub fn messages(&self) -> f64 {
        self.mean_per_s() * self.seconds
    }

    /// Messages per second over all of it.
    #[must_use]
    pub fn mean_per_s(&self) -> f64 {
        f64::midpoint(self.from_per_s, self.to_per_s)
    }

    /// Seconds from its begin until `count` of its messages were due; fewer than there are.
    ///
    /// While the rate climbs from `a` by `k` per second, `a t + k t^2 / 2` are due after `t` seconds.
    fn seconds_until(&self, count: f64) -> f64 {
        let (a, k) = (self.from_per_s, (self.to_per_s - self.from_per_s) / self.seconds);
        // The root in a form that needs no division by `k`, which may be zero.
        let root = a + (a * a + 2.0 * k * count).max(0.0).sqrt();
        if count > 0.0 { 2.0 * count / root } else { 0.0 }
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from_per_s, to_per_s, .. } = self;
        if (from_per_s - to_per_s).abs() < 0.5 {
            write!(f, "{to_per_s:.0}/s")
        } else {
            write!(f, "{from_per_s:.0} to {to_per_s:.0}/s")
        }
    }
}

/// Legs from the rates that stages come to, and how many seconds each takes to: the first climbs from 0, each other from where the one
/// before it ended, so that a stage of no seconds is a jump.
///
/// # Errors
/// They take no time, or send nothing.
pub fn legs(stages: &[(f64, f64)]) -> Result<Vec<Leg>, String> {
    let from = std::iter::once(0.0).chain(stages.iter().map(|&(_, per_s)| per_s));
    let leg = |(from_per_s, &(seconds, to_per_s)): (f64, &(f64, f64))| Leg { from_per_s, to_per_s, seconds };
    let legs: Vec<Leg> = from.zip(stages).map(leg).collect();
    if legs.iter().map(Leg::messages).sum::<f64>() < 1.0 {
        return Err("the stages send nothing: give one of them seconds and a rate, such as 30s:1000".to_owned());
    }
    Ok(legs)
}

/// An open-loop schedule: when a message is due follows from the rate alone, however late the ones before it were.
#[derive(Clone, PartialEq, Debug)]
pub struct Schedule {
    legs: Arc<[Leg]>,
    start_ns: u64,
}

impl Schedule {
    /// One leg after the other from `start_ns` on, and then nothing more.
    #[must_use]
    pub fn new(legs: &[Leg], start_ns: u64) -> Self {
        Self { legs: legs.into(), start_ns }
    }

    /// `rate_per_s` from `start_ns` on, without an end; 0 sends nothing.
    #[must_use]
    pub fn steady(rate_per_s: f64, start_ns: u64) -> Self {
        let leg = Leg { from_per_s: rate_per_s, to_per_s: rate_per_s, seconds: f64::INFINITY };
        Self::new(if rate_per_s > 0.0 { std::slice::from_ref(&leg) } else { &[] }, start_ns)
    }

    /// When the message with this number is due, the first of which is 0. `None`: there are not so many.
    fn due_ns(&self, number: u64) -> Option<u64> {
        let (mut left, mut begun_s) = (number as f64, 0.0);
        for leg in self.legs.iter() {
            let messages = leg.messages();
            if left < messages {
                return Some(self.start_ns + nanos(Duration::from_secs_f64(begun_s + leg.seconds_until(left))));
            }
            left -= messages;
            begun_s += leg.seconds;
        }
        None
    }
}

impl Default for Schedule {
    /// Nothing.
    fn default() -> Self {
        Self::new(&[], 0)
    }
}

/// One of several who take turns on a schedule, so that all together are as even as one alone.
#[derive(Clone, Default, Debug)]
pub struct Pace {
    schedule: Schedule,
    number: u64,
    step: u64,
}

impl Pace {
    /// The `turn`-th of `turns`, counted from 0.
    #[must_use]
    pub fn new(schedule: Schedule, turn: usize, turns: usize) -> Self {
        Self { schedule, number: turn as u64, step: turns as u64 }
    }

    /// The intended time of the next message if it has come; it counts as sent from here on.
    pub fn due(&mut self, now_ns: u64) -> Option<u64> {
        let at = self.next().filter(|&at| at <= now_ns)?;
        self.number += self.step;
        Some(at)
    }

    /// The intended time of the next message; `None`: there is none.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        self.schedule.due_ns(self.number)
    }
}

/// Nanoseconds as everything here counts them, good for 580 years.
#[must_use]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn count(pace: &mut Pace, now_ns: u64) -> usize {
        std::iter::from_fn(|| pace.due(now_ns)).count()
    }

    /// The schedule does not wait for anybody: after a late look all that was missed is due, at its own times.
    #[test]
    fn lateness_shifts_nothing() {
        let mut pace = Pace::new(Schedule::steady(1000.0, 5_000_000), 0, 1);
        assert_eq!(pace.due(4_999_999), None);
        assert_eq!(pace.due(5_000_000), Some(5_000_000));
        assert_eq!(pace.due(5_999_999), None);
        let missed: Vec<u64> = std::iter::from_fn(|| pace.due(8_500_000)).collect();
        assert_eq!(missed, [6_000_000, 7_000_000, 8_000_000]);
    }

    #[test]
    fn zero_is_silence() {
        assert_eq!(Pace::new(Schedule::steady(0.0, 0), 0, 1).due(u64::MAX), None);
    }

    /// A leg brings the mean of both its rates, half of a climb less than half of it, and after the last one nothing is due.
    #[test]
    fn a_rate_climbs_stays_and_falls() {
        let leg = |from_per_s, to_per_s, seconds| Leg { from_per_s, to_per_s, seconds };
        let schedule = Schedule::new(&[leg(100.0, 300.0, 2.0), leg(300.0, 300.0, 1.0), leg(300.0, 0.0, 2.0)], SECOND);
        let mut pace = Pace::new(schedule, 0, 1);
        // After half of the climb: 100 t + 50 t^2, and the one at the begin.
        assert_eq!(count(&mut pace, 2 * SECOND), 151);
        assert_eq!(count(&mut pace, 3 * SECOND), 250);
        assert_eq!(count(&mut pace, 4 * SECOND), 300);
        assert_eq!((count(&mut pace, 60 * SECOND), pace.next()), (299, None));
        let mut from_nothing = Pace::new(Schedule::new(&[leg(0.0, 200.0, 2.0)], 0), 0, 1);
        assert_eq!((from_nothing.next(), count(&mut from_nothing, SECOND)), (Some(0), 51));
        // A jump, and silence in between.
        let mut jump = Pace::new(Schedule::new(&[leg(0.0, 0.0, 1.0), leg(0.0, 50.0, 0.0), leg(50.0, 50.0, 1.0)], 0), 0, 1);
        assert_eq!((jump.next(), count(&mut jump, 60 * SECOND)), (Some(SECOND), 50));
    }

    /// Those who take turns send together what one alone would, at the same times.
    #[test]
    fn turns_share_a_schedule() {
        let schedule = Schedule::new(&[Leg { from_per_s: 10.0, to_per_s: 90.0, seconds: 2.0 }], 0);
        let all = |mut pace: Pace| std::iter::from_fn(move || pace.due(u64::MAX)).collect::<Vec<u64>>();
        let mut shared: Vec<u64> = (0..3).flat_map(|turn| all(Pace::new(schedule.clone(), turn, 3))).collect();
        shared.sort_unstable();
        assert_eq!(shared, all(Pace::new(schedule, 0, 1)));
    }
}
