//! Counters and histograms of one worker, and how they add up.                                                 [hdrhistogram]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tidegate_client::SendError;

use crate::client::{Causes, name_of};
use crate::pace::{Leg, nanos};

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
    /// Connections that the gateway refused at the upgrade, or ended with a Close frame of its own.
    pub sent_away: u64,
    /// Connections this generator cut on purpose.
    pub cut_on_purpose: u64,
    /// Connections it left with a Close frame.
    pub left: u64,
}

/// Which messages are measured: those that were meant to leave in one of its stages, which follow each other.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Window {
    from_ns: u64,
    /// Of each stage.
    ends_ns: Arc<[u64]>,
}

impl Window {
    /// One stage.
    #[must_use]
    pub fn new(from_ns: u64, until_ns: u64) -> Self {
        Self { from_ns, ends_ns: [until_ns].into() }
    }

    /// A stage for each leg, the first from `from_ns` on.
    #[must_use]
    pub fn of_legs(from_ns: u64, legs: &[Leg]) -> Self {
        let end = |end_s: &mut f64, leg: &Leg| {
            *end_s += leg.seconds;
            Some(from_ns + nanos(Duration::from_secs_f64(*end_s)))
        };
        Self { from_ns, ends_ns: legs.iter().scan(0.0, end).collect() }
    }

    /// When its first stage begins.
    #[must_use]
    pub fn from_ns(&self) -> u64 {
        self.from_ns
    }

    /// When its last stage ends.
    #[must_use]
    pub fn until_ns(&self) -> u64 {
        self.ends_ns.last().copied().unwrap_or(self.from_ns)
    }

    /// When each stage ends.
    #[must_use]
    pub fn ends_ns(&self) -> &[u64] {
        &self.ends_ns
    }

    /// The stage in which a message was meant to leave; `None`: it is not measured.
    #[must_use]
    pub fn stage(&self, intended_ns: u64) -> Option<usize> {
        let stage = self.ends_ns.partition_point(|&end_ns| end_ns <= intended_ns);
        (self.from_ns <= intended_ns && stage < self.ends_ns.len()).then_some(stage)
    }
}

/// Latencies, of all messages that are measured and of those of each stage.
#[derive(Clone, Debug)]
pub struct Latency {
    /// All, in nanoseconds.
    pub all: Histogram<u64>,
    /// Of each stage, where there are several.
    pub stages: Vec<Histogram<u64>>,
}

impl Latency {
    /// Nothing yet, for the stages of this window.
    #[must_use]
    pub fn new(window: &Window) -> Self {
        let count = if window.ends_ns.len() > 1 { window.ends_ns.len() } else { 0 };
        Self { all: histogram(), stages: (0..count).map(|_| histogram()).collect() }
    }

    /// A message of this stage took so long.
    pub fn record(&mut self, stage: usize, took_ns: u64) {
        self.all.saturating_record(took_ns);
        if let Some(one) = self.stages.get_mut(stage) {
            one.saturating_record(took_ns);
        }
    }

    /// Adds what another thread measured.
    pub fn add(&mut self, other: &Self) {
        let missing = other.stages.len().saturating_sub(self.stages.len());
        self.stages.extend((0..missing).map(|_| histogram()));
        let all = std::iter::once((&mut self.all, &other.all));
        for (sum, one) in all.chain(self.stages.iter_mut().zip(&other.stages)) {
            sum.add(one).expect("all histograms have the same bounds");
        }
    }

    /// Of one stage; of all where there is only one.
    #[must_use]
    pub fn of_stage(&self, stage: usize) -> Percentiles {
        Percentiles::of(self.stages.get(stage).unwrap_or(&self.all))
    }
}

/// Latencies are counted for messages that were meant to leave inside the window.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Intended times that count.
    pub window: Window,
    /// From the intended time to SENT.
    pub sent: Latency,
    /// From the intended time to each DELIVER.
    pub deliver: Latency,
    /// From the intended time to the moment at which it was handed to the client.
    pub pacing: Latency,
    /// From the first step of a connection to its WELCOME.
    pub connect: Latency,
    /// Everything since the run began.
    pub counts: Counts,
    /// ERROR by code.
    pub errors: BTreeMap<u16, u64>,
    /// Close codes, HTTP refusals and reasons for giving up.
    pub causes: Causes,
}

impl Default for Stats {
    fn default() -> Self {
        let window = Window::default();
        let latency = Latency::new(&window);
        Self {
            window,
            sent: latency.clone(),
            deliver: latency.clone(),
            pacing: latency.clone(),
            connect: latency,
            counts: Counts::default(),
            errors: BTreeMap::new(),
            causes: Causes::new(),
        }
    }
}

impl Stats {
    /// Latencies start from nothing, for messages in this window; counts go on.
    pub fn begin(&mut self, window: Window) {
        for latency in [&mut self.sent, &mut self.deliver, &mut self.pacing, &mut self.connect] {
            *latency = Latency::new(&window);
        }
        self.window = window;
    }

    /// A message was handed to its client.
    pub fn submitted(&mut self, intended_ns: u64, now_ns: u64) {
        self.counts.submitted += 1;
        if let Some(stage) = self.window.stage(intended_ns) {
            self.pacing.record(stage, now_ns.saturating_sub(intended_ns));
        }
    }

    /// SENT came.
    pub fn acknowledged(&mut self, intended_ns: u64, now_ns: u64) {
        self.counts.acknowledged += 1;
        if let Some(stage) = self.window.stage(intended_ns) {
            self.sent.record(stage, now_ns.saturating_sub(intended_ns));
        }
    }

    /// DELIVER came.
    pub fn delivered(&mut self, intended_ns: u64, now_ns: u64) {
        self.counts.delivered += 1;
        if let Some(stage) = self.window.stage(intended_ns) {
            self.deliver.record(stage, now_ns.saturating_sub(intended_ns));
        }
    }

    /// WELCOME came to a connection that was begun then.
    pub fn welcomed(&mut self, begun_ns: u64, now_ns: u64) {
        self.counts.welcomed += 1;
        if let Some(stage) = self.window.stage(begun_ns) {
            self.connect.record(stage, now_ns.saturating_sub(begun_ns));
        }
    }

    /// A message was given up.
    pub fn given_up(&mut self, error: &SendError) {
        self.counts.given_up += 1;
        *self.causes.entry(name_of(error)).or_default() += 1;
    }

    /// The gateway sent a Close frame.
    pub fn closed(&mut self, code: Option<u16>) {
        self.counts.sent_away += 1;
        let cause = code.map_or_else(|| "close without a code".to_owned(), |code| format!("close {code}"));
        *self.causes.entry(cause).or_default() += 1;
    }

    /// The gateway answered the upgrade with this status.
    pub fn refused(&mut self, status: &str) {
        self.counts.sent_away += 1;
        *self.causes.entry(format!("http {status}")).or_default() += 1;
    }

    /// Adds what another worker counted.
    pub fn add(&mut self, other: &Self) {
        self.sent.add(&other.sent);
        self.deliver.add(&other.deliver);
        self.pacing.add(&other.pacing);
        self.connect.add(&other.connect);
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
            (&mut sum.sent_away, one.sent_away),
            (&mut sum.cut_on_purpose, one.cut_on_purpose),
            (&mut sum.left, one.left),
        ] {
            *sum += one;
        }
        other.errors.iter().for_each(|(code, count)| *self.errors.entry(*code).or_default() += count);
        other.causes.iter().for_each(|(cause, count)| *self.causes.entry(cause.clone()).or_default() += count);
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
        let mut stats = Stats { window: Window::new(1_000_000, 2_000_000), ..Stats::default() };
        stats.acknowledged(999_999, 1_500_000);
        stats.acknowledged(1_000_000, 9_000_000);
        stats.acknowledged(2_000_000, 2_000_001);
        assert_eq!((stats.sent.all.len(), stats.counts.acknowledged), (1, 3));
        assert!((Percentiles::of(&stats.sent.all).p50 - 8_000.0).abs() < 8.0);
        let mut sum = Stats::default();
        sum.add(&stats);
        sum.add(&stats);
        assert_eq!((sum.sent.all.len(), sum.counts.acknowledged), (2, 6));
    }

    /// A message belongs to the stage in which it was meant to leave, whenever its answer comes; threads add up stage by stage.
    #[test]
    fn stages_are_of_intended_times() {
        let leg = |seconds| Leg { from_per_s: 1.0, to_per_s: 1.0, seconds };
        let window = Window::of_legs(1_000_000, &[leg(0.001), leg(0.0), leg(0.002)]);
        assert_eq!((window.ends_ns(), window.until_ns()), (&[2_000_000, 2_000_000, 4_000_000][..], 4_000_000));
        assert_eq!(
            [0, 1_000_000, 1_999_999, 2_000_000, 4_000_000].map(|at| window.stage(at)),
            [None, Some(0), Some(0), Some(2), None]
        );
        let mut stats = Stats::default();
        stats.begin(window);
        stats.acknowledged(1_500_000, 9_000_000);
        stats.acknowledged(3_000_000, 9_000_000);
        let mut sum = Stats::default();
        sum.add(&stats);
        sum.add(&stats);
        let counts: Vec<u64> = sum.sent.stages.iter().map(Histogram::len).collect();
        assert_eq!((counts, sum.sent.all.len(), sum.sent.of_stage(0).count), (vec![2, 0, 2], 4, 2));
        let mut one = Latency::new(&Window::new(0, 1));
        one.record(0, 5_000_000);
        assert_eq!((one.stages.len(), one.of_stage(0).count), (0, 1));
    }
}
