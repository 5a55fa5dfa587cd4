//! A measurement second by second, and which of its seconds were calm: those in which the hypervisor took no core from this machine.
//!
//! On a rented machine a latency of the worst hundredth may be the neighbours'. The kernel counts what was stolen in ticks of ten
//! milliseconds, for each core; so the latencies of calm seconds are kept once more, apart.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::machine::Ticks;
use crate::results::Run;
use crate::send::latency_histogram;

/// Latencies of a measurement, by seconds.
pub struct Stretches {
    ends_at: Instant,
    begun: Ticks,
    ticks: Ticks,
    /// What was stolen in the second before counts for its successor too: an answer may be late.
    was_calm: bool,
    stolen_most: f64,
    all: Histogram<u64>,
    calm: Histogram<u64>,
    calm_count: u32,
}

impl Stretches {
    /// From now on, for so long.
    pub fn begin(duration: Duration) -> Result<Self, String> {
        let ticks = Ticks::now()?;
        Ok(Self {
            ends_at: Instant::now() + duration,
            begun: ticks,
            ticks,
            was_calm: false,
            stolen_most: 0.0,
            all: latency_histogram()?,
            calm: latency_histogram()?,
            calm_count: 0,
        })
    }

    /// How long until the next end of a second; `None` at the end of the measurement. Less than half a second is none.
    pub fn next(&self) -> Option<Duration> {
        let left = self.ends_at.saturating_duration_since(Instant::now());
        (left >= SECOND / 2).then(|| left.min(SECOND))
    }

    /// A second ended. Takes what was recorded in it out of `latency`.
    pub fn take(&mut self, latency: &mut Histogram<u64>) -> Result<(), String> {
        let ticks = Ticks::now()?;
        self.end_second(ticks, latency)
    }

    fn end_second(&mut self, ticks: Ticks, latency: &mut Histogram<u64>) -> Result<(), String> {
        let stolen = ticks.stolen_since(self.ticks);
        self.ticks = ticks;
        self.stolen_most = self.stolen_most.max(stolen);
        let is_calm = stolen == 0.0;
        let add = |sum: &mut Histogram<u64>| sum.add(&*latency).map_err(|error| format!("histogram: {error:?}"));
        add(&mut self.all)?;
        if is_calm && self.was_calm {
            add(&mut self.calm)?;
            self.calm_count += 1;
        }
        self.was_calm = is_calm;
        latency.reset();
        Ok(())
    }

    /// Adds quantiles of all seconds and of the calm ones, and how much was stolen.
    pub fn report(&self, run: &mut Run) {
        run.add("steal_percent", self.ticks.stolen_since(self.begun) * 100.0);
        run.add("steal_percent_worst_second", self.stolen_most * 100.0);
        run.add("calm_seconds_count", f64::from(self.calm_count));
        for (name, quantile) in QUANTILES {
            run.add(format!("sent_us_{name}"), self.all.value_at_quantile(quantile) as f64 / 1e3);
            if !self.calm.is_empty() {
                run.add(format!("sent_us_{name}_calm"), self.calm.value_at_quantile(quantile) as f64 / 1e3);
            }
        }
    }
}

/// Those that are reported, by name.
pub const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)];
const SECOND: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// A second is calm if nothing was stolen in it nor in the one before; each latency counts once in all of them.
    #[test]
    fn calm_seconds_are_apart() {
        let mut stretches = Stretches::begin(SECOND).unwrap();
        let mut ticks = stretches.ticks;
        for (stolen, latency_ns) in [(0, 1_000_000), (0, 2_000_000), (5, 90_000_000), (0, 80_000_000), (0, 3_000_000)] {
            ticks.total += 200;
            ticks.stolen += stolen;
            let mut latency = latency_histogram().unwrap();
            latency.record(latency_ns).unwrap();
            stretches.end_second(ticks, &mut latency).unwrap();
            assert!(latency.is_empty());
        }
        assert_eq!(stretches.all.len(), 5);
        assert_eq!((stretches.calm.len(), stretches.calm_count), (2, 2));
        assert!(stretches.calm.max() < 4_000_000, "{}", stretches.calm.max());
        assert!((stretches.stolen_most - 0.025).abs() < 1e-9);
    }
}
