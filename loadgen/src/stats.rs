//! Counters and histograms of one worker, and how they add up.                                                 [hdrhistogram]

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;
use tidegate_client::SendError;

use crate::client::{Causes, name_of};

/// What is only counted.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub struct Counts {
    /// Messages whose time had come.
    pub submitted: u64,
    /// SENT.
    pub acknowledged: u64,
    /// DELIVER.
    pub delivered: u64,
    /// Messages that devices gave out, however they came.
    pub received: u64,
    /// Messages given up.
    pub given_up: u64,
    /// WELCOME.
    pub welcomed: u64,
    /// WELCOME of a session taken up again.
    pub resumed: u64,
    /// GOAWAY.
    pub goaways: u64,
    /// NOTICE.
    pub notices: u64,
    /// RESYNC.
    pub resyncs: u64,
    /// SENT that answered a repeat.
    pub repeats_recognised: u64,
    /// Connections that ended without a Close frame, or could not be opened.
    pub cut_off: u64,
    /// Connections this generator cut on purpose.
    pub cut_on_purpose: u64,
}

/// Latencies are counted for messages that were meant to leave inside the window.
#[derive(Clone, Debug)]
pub struct Stats {
    /// First and last intended time that counts.
    pub window: (u64, u64),
    /// From the intended time to SENT.
    pub sent_ns: Histogram<u64>,
    /// From the intended time to each DELIVER.
    pub deliver_ns: Histogram<u64>,
    /// From the intended time to the moment at which it was handed to the client.
    pub pace_ns: Histogram<u64>,
    /// Everything since the run began.
    pub counts: Counts,
    /// ERROR by code.
    pub errors: BTreeMap<u16, u64>,
    /// Close codes, HTTP refusals and reasons for giving up.
    pub causes: Causes,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            window: (u64::MAX, u64::MAX),
            sent_ns: histogram(),
            deliver_ns: histogram(),
            pace_ns: histogram(),
            counts: Counts::default(),
            errors: BTreeMap::new(),
            causes: Causes::new(),
        }
    }
}

impl Stats {
    /// Latencies start from nothing; counts go on.
    pub fn begin_stage(&mut self) {
        self.sent_ns.reset();
        self.deliver_ns.reset();
        self.pace_ns.reset();
    }

    /// A message was handed to its client.
    pub fn submitted(&mut self, intended_ns: u64, now_ns: u64) {
        self.counts.submitted += 1;
        if self.is_inside(intended_ns) {
            self.pace_ns.saturating_record(now_ns.saturating_sub(intended_ns));
        }
    }

    /// SENT came.
    pub fn acknowledged(&mut self, intended_ns: u64, now_ns: u64) {
        self.counts.acknowledged += 1;
        if self.is_inside(intended_ns) {
            self.sent_ns.saturating_record(now_ns.saturating_sub(intended_ns));
        }
    }

    /// DELIVER came.
    pub fn delivered(&mut self, intended_ns: u64, now_ns: u64) {
        self.counts.delivered += 1;
        if self.is_inside(intended_ns) {
            self.deliver_ns.saturating_record(now_ns.saturating_sub(intended_ns));
        }
    }

    /// A message was given up.
    pub fn given_up(&mut self, error: &SendError) {
        self.counts.given_up += 1;
        *self.causes.entry(name_of(error)).or_default() += 1;
    }

    /// The gateway sent a Close frame.
    pub fn closed(&mut self, code: Option<u16>) {
        let cause = code.map_or_else(|| "close without a code".to_owned(), |code| format!("close {code}"));
        *self.causes.entry(cause).or_default() += 1;
    }

    /// The gateway answered the upgrade with this status.
    pub fn refused(&mut self, status: &str) {
        *self.causes.entry(format!("http {status}")).or_default() += 1;
    }

    /// Adds what another worker counted.
    pub fn add(&mut self, other: &Self) {
        for (sum, one) in
            [(&mut self.sent_ns, &other.sent_ns), (&mut self.deliver_ns, &other.deliver_ns), (&mut self.pace_ns, &other.pace_ns)]
        {
            sum.add(one).expect("all histograms have the same bounds");
        }
        let (sum, one) = (&mut self.counts, &other.counts);
        for (sum, one) in [
            (&mut sum.submitted, one.submitted),
            (&mut sum.acknowledged, one.acknowledged),
            (&mut sum.delivered, one.delivered),
            (&mut sum.received, one.received),
            (&mut sum.given_up, one.given_up),
            (&mut sum.welcomed, one.welcomed),
            (&mut sum.resumed, one.resumed),
            (&mut sum.goaways, one.goaways),
            (&mut sum.notices, one.notices),
            (&mut sum.resyncs, one.resyncs),
            (&mut sum.repeats_recognised, one.repeats_recognised),
            (&mut sum.cut_off, one.cut_off),
            (&mut sum.cut_on_purpose, one.cut_on_purpose),
        ] {
            *sum += one;
        }
        other.errors.iter().for_each(|(code, count)| *self.errors.entry(*code).or_default() += count);
        other.causes.iter().for_each(|(cause, count)| *self.causes.entry(cause.clone()).or_default() += count);
    }

    fn is_inside(&self, intended_ns: u64) -> bool {
        (self.window.0..self.window.1).contains(&intended_ns)
    }
}

/// From a microsecond to ten minutes, three digits, in nanoseconds.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 600_000_000_000, 3).expect("good bounds")
}

/// The percentiles that are reported, in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Percentiles {
    /// How many values.
    pub count: u64,
    /// Half of them are below.
    pub p50: f64,
    /// Nine in ten.
    pub p90: f64,
    /// 99 in a hundred.
    pub p99: f64,
    /// 999 in a thousand.
    pub p999: f64,
    /// 9,999 in ten thousand.
    pub p9999: f64,
    /// All.
    pub max: f64,
}

impl Percentiles {
    /// Reads a histogram of nanoseconds.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: histogram.max() as f64 / 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only what was meant to leave inside the window is measured; everything is counted.
    #[test]
    fn the_window_is_of_intended_times() {
        let mut stats = Stats { window: (1_000_000, 2_000_000), ..Stats::default() };
        stats.acknowledged(999_999, 1_500_000);
        stats.acknowledged(1_000_000, 9_000_000);
        stats.acknowledged(2_000_000, 2_000_001);
        assert_eq!((stats.sent_ns.len(), stats.counts.acknowledged), (1, 3));
        assert!((Percentiles::of(&stats.sent_ns).p50 - 8_000.0).abs() < 8.0);
        let mut sum = Stats::default();
        sum.add(&stats);
        sum.add(&stats);
        assert_eq!((sum.sent_ns.len(), sum.counts.acknowledged), (2, 6));
    }
}
