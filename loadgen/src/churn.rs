//! Connections that come, talk a little and go, at a rate: who leaves and how, and what it came to.

use serde::Serialize;

use crate::stats::{Counts, Percentiles};
use crate::subject::Usage;

/// Who leaves from now on; they come back by themselves, as the client does.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Departures {
    /// Connections that leave per second in all.
    pub per_s: f64,
    /// Part of them that says goodbye first, 0 to 1; the others are cut off, as by a cable.
    pub polite: f64,
    /// Which.
    pub who: Who,
}

/// Which connection leaves next.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Who {
    /// Drawn from all.
    #[default]
    Anyone,
    /// One after the other, so that all live equally long.
    NextInTurn,
}

/// What coming and going was like while it was measured.
#[derive(Clone, PartialEq, Default, Debug, Serialize)]
pub struct Churn {
    /// Connections that were meant to leave per second.
    pub wanted_per_s: f64,
    /// Welcomed per second.
    pub opened_per_s: f64,
    /// Ended by this generator per second.
    pub closed_per_s: f64,
    /// Of those that were welcomed, sessions taken up again.
    pub resumed: u64,
    /// Microseconds from the first step of a connection to its WELCOME.
    pub connect_us: Percentiles,
    /// Connections that were refused, could not be opened, or were ended by the gateway.
    pub failed: u64,
    /// Resident bytes of the gateway at the beginning and at the end.
    pub memory_bytes: Option<(u64, u64)>,
    /// Its sockets before the first connection, and after the last one left.
    pub sockets: Option<(u64, u64)>,
}

/// What there was at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Nanoseconds since the run began.
    pub at_ns: u64,
    /// Counted until then.
    pub counts: Counts,
    /// The gateway's.
    pub gateway: Option<Usage>,
}

/// Thresholds; what is `None` is not asked.
#[derive(Clone, Copy, Default, Debug)]
pub struct Bounds {
    /// Of `connect_us.p99`, milliseconds.
    pub connect_ms_p99: Option<f64>,
    /// Part of `wanted_per_s` that must be opened and closed.
    pub part_min: Option<f64>,
    /// Of `failed`.
    pub failed_max: Option<u64>,
}

impl Churn {
    /// Between two moments.
    #[must_use]
    pub fn between(from: &Moment, until: &Moment, wanted_per_s: f64, connect_us: Percentiles) -> Self {
        let seconds = until.at_ns.saturating_sub(from.at_ns) as f64 / 1e9;
        let (then, now) = (from.counts, until.counts);
        let per_s = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let ended = |counts: Counts| counts.cut_on_purpose + counts.left;
        let failed = |counts: Counts| counts.cut_off + counts.sent_away;
        Self {
            wanted_per_s,
            opened_per_s: per_s(now.welcomed - then.welcomed),
            closed_per_s: per_s(ended(now) - ended(then)),
            resumed: now.resumed - then.resumed,
            connect_us,
            failed: failed(now) - failed(then),
            memory_bytes: from.gateway.zip(until.gateway).map(|(from, until)| (from.rss_bytes, until.rss_bytes)),
            sockets: None,
        }
    }

    /// The thresholds that were not kept.
    #[must_use]
    pub fn broken(&self, bounds: Bounds) -> Vec<String> {
        let Self { wanted_per_s, opened_per_s, closed_per_s, connect_us, failed, .. } = self;
        let p99_ms = connect_us.p99 / 1e3;
        // Where nobody came there is nothing to say a threshold was kept by.
        let is_unknown = connect_us.count == 0;
        let slow = bounds.connect_ms_p99.filter(|&most| is_unknown || p99_ms > most);
        let slow = slow.map(|most| {
            if is_unknown {
                "nobody was welcomed, so how long it takes is not known".to_owned()
            } else {
                format!("p99 of connecting is {p99_ms:.1} ms, above {most} ms")
            }
        });
        let part = opened_per_s.min(*closed_per_s) / wanted_per_s;
        let few = bounds.part_min.filter(|&least| part.is_nan() || part < least).map(|least| {
            format!("{opened_per_s:.1} opened and {closed_per_s:.1} closed per second, below {least} of {wanted_per_s}")
        });
        let refused = bounds.failed_max.filter(|most| failed > most);
        let refused = refused.map(|most| format!("{failed} connections were refused, cut off or sent away, above {most}"));
        [slow, few, refused].into_iter().flatten().collect()
    }

    /// For people.
    pub(crate) fn write(&self, out: &mut String) -> std::fmt::Result {
        use std::fmt::Write;
        let Self { wanted_per_s, opened_per_s, closed_per_s, resumed, connect_us, failed, memory_bytes, sockets } = self;
        let Percentiles { p50, p99, max, .. } = connect_us;
        writeln!(
            out,
            "churn: {opened_per_s:.1} opened and {closed_per_s:.1} closed per second of {wanted_per_s:.1}; {resumed} resumed, {failed} \
             refused, cut off or sent away"
        )?;
        writeln!(out, "churn: connect to WELCOME p50 {p50:.0} us, p99 {p99:.0} us, longest {max:.0} us")?;
        if let Some((from, until)) = memory_bytes {
            let mib = |bytes: &u64| *bytes as f64 / 1_048_576.0;
            writeln!(out, "churn: gateway {:.1} MiB resident at the beginning, {:.1} MiB at the end", mib(from), mib(until))?;
        }
        if let Some((before, after)) = sockets {
            writeln!(out, "churn: gateway {before} sockets before the first connection, {after} after the last one left")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn churn() -> Churn {
        let moment = |at_ns, welcomed, cut_on_purpose, left, cut_off, rss_bytes| Moment {
            at_ns,
            counts: Counts { welcomed, resumed: welcomed / 2, cut_on_purpose, left, cut_off, sent_away: 1, ..Counts::default() },
            gateway: Some(Usage { rss_bytes, ..Usage::default() }),
        };
        let (from, until) = (moment(1_000_000_000, 100, 3, 4, 5, 70), moment(3_000_000_000, 120, 10, 19, 7, 90));
        Churn::between(&from, &until, 11.0, Percentiles { count: 20, p99: 2_000.0, ..Percentiles::default() })
    }

    /// Rates are of what happened between the two moments; what was before counts for nothing.
    #[test]
    fn rates_are_of_the_time_between() {
        let churn = churn();
        assert!((churn.opened_per_s - 10.0).abs() < 1e-9 && (churn.closed_per_s - 11.0).abs() < 1e-9, "{churn:?}");
        assert_eq!((churn.resumed, churn.failed, churn.memory_bytes), (10, 2, Some((70, 90))));
    }

    /// Each threshold is named once it is passed, and none before; where nobody came, nothing was kept.
    #[test]
    fn thresholds_are_kept_or_named() {
        let within = Bounds { connect_ms_p99: Some(2.0), part_min: Some(0.9), failed_max: Some(2) };
        assert_eq!(churn().broken(within), [""; 0]);
        assert_eq!(churn().broken(Bounds::default()), [""; 0]);
        let beyond = Bounds { connect_ms_p99: Some(1.9), part_min: Some(0.95), failed_max: Some(1) };
        let broken = churn().broken(beyond);
        assert_eq!(broken.len(), 3, "{broken:?}");
        let none = Churn::default().broken(within);
        assert!(none.len() == 2 && none[0].contains("nobody was welcomed"), "{none:?}");
    }
}
