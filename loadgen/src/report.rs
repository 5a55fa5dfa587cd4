//! What a run found out: as text, as JSON, as one HTML page.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::churn::Churn;
use crate::client::Causes;
use crate::half_open::HalfOpen;
use crate::hold::Held;
use crate::pace::Leg;
use crate::stats::{Counts, Percentiles};
use crate::subject::Usage;
use crate::verify::Findings;

/// A whole run.
#[derive(Clone, Default, Debug, Serialize)]
pub struct Report {
    /// What was run.
    pub scenario: String,
    /// The command line, without the path of the program.
    pub command: String,
    /// Seconds since 1970.
    pub unix_s: u64,
    /// Kernel, processor, cores, memory, load.
    pub machine: BTreeMap<String, String>,
    /// Connections, users, conversations.
    pub size: BTreeMap<String, u64>,
    /// Seconds until all connections were welcomed.
    pub ramp_s: f64,
    /// Stages, in order.
    pub stages: Vec<Stage>,
    /// All stages together, where they follow each other without a pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole: Option<Stage>,
    /// From when to when the last stage was measured, seconds since the run began.
    pub measured_s: Option<(f64, f64)>,
    /// One line per second.
    pub samples: Vec<Sample>,
    /// Counted over all stages.
    pub counts: Counts,
    /// ERROR by code.
    pub errors: BTreeMap<u16, u64>,
    /// Close codes, HTTP refusals, reasons for giving up.
    pub causes: Causes,
    /// Only after a crash campaign.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crash: Option<Crash>,
    /// Only after a storm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm: Option<Storm>,
    /// Only where connections came and went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub churn: Option<Churn>,
    /// Only where connections stood half open.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub half_open: Vec<HalfOpen>,
    /// Only where very many connections were held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// Of the gateway, before the first connection, at the end with all of them, and after the last one left.
    pub gateway: Vec<(String, Usage)>,
    /// Of this program, per connection.
    pub own_bytes_per_connection: u64,
    /// What the ledger says.
    pub findings: Findings,
    /// Reasons not to believe a figure.
    pub warnings: Vec<String>,
    /// Thresholds that were not kept.
    pub broken: Vec<String>,
}

/// A rate, held for a while, or changed evenly.
#[derive(Clone, Default, Debug, Serialize)]
pub struct Stage {
    /// Messages per second that were meant to leave, on average.
    pub rate_wanted_per_s: f64,
    /// The same when it began.
    pub rate_from_per_s: f64,
    /// The same when it ended.
    pub rate_to_per_s: f64,
    /// Seconds measured.
    pub seconds: f64,
    /// SENT per second.
    pub acknowledged_per_s: f64,
    /// DELIVER per second.
    pub delivered_per_s: f64,
    /// Messages that waited for SENT when the measured time was over.
    pub backlog: u64,
    /// Microseconds from the intended time to SENT.
    pub sent_us: Percentiles,
    /// Microseconds from the intended time to each DELIVER.
    pub deliver_us: Percentiles,
    /// Microseconds from the intended time to the moment at which it was handed to the client: the generator's own error.
    pub pacing_us: Percentiles,
    /// CPU of the gateway in percent of a core, if its process is known.
    pub gateway_cpu_percent: Option<f64>,
    /// CPU of this program in percent of a core.
    pub generator_cpu_percent: f64,
}

/// One second of a run.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub struct Sample {
    /// Seconds since the run began.
    pub at_s: f64,
    /// SENT per second.
    pub acknowledged_per_s: f64,
    /// DELIVER per second.
    pub delivered_per_s: f64,
    /// WELCOME per second.
    pub welcomed_per_s: f64,
    /// Connections welcomed.
    pub active: u64,
    /// Messages that wait for SENT.
    pub unsent: u64,
    /// p99 of DELIVER since the stage began, microseconds.
    pub deliver_us_p99: f64,
    /// Of the gateway.
    pub gateway: Option<Usage>,
}

/// A crash campaign.
#[derive(Clone, Default, Debug, Serialize)]
pub struct Crash {
    /// kill -9.
    pub kills: u64,
    /// Milliseconds from the kill until the gateway was ready again: median, and longest.
    pub ready_ms_median: f64,
    /// See above.
    pub ready_ms_max: f64,
    /// Milliseconds from the kill until messages were acknowledged again: median.
    pub acknowledged_ms_median: f64,
    /// Repeats that the gateway recognised.
    pub repeats_recognised: u64,
}

/// All connections cut at once.
#[derive(Clone, Default, Debug, Serialize)]
pub struct Storm {
    /// Connections cut.
    pub cut: u64,
    /// Seconds until 99.9 % were welcomed again; `None`: not in time.
    pub back_s: Option<f64>,
    /// Of these, sessions taken up again.
    pub resumed: u64,
    /// Connections that were spared.
    pub spared: u64,
    /// Their p99 of DELIVER before the storm, and until it was over, microseconds.
    pub spared_us_p99: Option<(f64, f64)>,
    /// Whether the thread of the spared ran before all others of its core (`SCHED_FIFO`), as if it had one of its own.
    pub spared_go_first: bool,
    /// Resident bytes of the gateway before the storm, and the most until it was over.
    pub memory_bytes: Option<(u64, u64)>,
    /// With TLS: handshakes of those who came back, in full, and by a ticket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshakes: Option<(u64, u64)>,
    /// How even the rate was at which those who were cut came back.
    pub welcomes: Option<Welcomes>,
    /// p99 of the generator's own lateness until it was over, microseconds.
    pub pacing_us_p99: f64,
}

/// Connections welcomed per second, while so many waited that each second had some: the first and the last such second are left out, as
/// they are parts.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize)]
pub struct Welcomes {
    /// `limits.accept_per_s` of the gateway; 0: no limit, `None`: it does not say.
    pub set_per_s: Option<u64>,
    /// Seconds.
    pub seconds: usize,
    /// The least of these seconds, the middle one, and what 99 in 100 of them stay below.
    pub min_per_s: f64,
    /// See above.
    pub median_per_s: f64,
    /// See above.
    pub p99_per_s: f64,
}

impl Welcomes {
    /// Of the samples since the storm began; `None`: it was over too soon.
    #[must_use]
    pub fn of(samples: &[Sample], set_per_s: Option<u64>) -> Option<Self> {
        let is_some = |sample: &&Sample| sample.welcomed_per_s > 0.0;
        let waited = samples.iter().skip_while(|sample| !is_some(sample)).take_while(is_some);
        let rates: Vec<f64> = waited.map(|sample| sample.welcomed_per_s).collect();
        let [_, whole @ .., _] = &*rates else { return None };
        let mut whole = whole.to_vec();
        whole.sort_by(f64::total_cmp);
        let seconds = whole.len();
        let at = |percent: usize| whole.get(seconds * percent / 100).copied();
        Some(Self { set_per_s, seconds, min_per_s: at(0)?, median_per_s: at(50)?, p99_per_s: at(99)? })
    }
}

impl Report {
    /// Whether the ledger is clean and every threshold was kept.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings.is_empty() && self.broken.is_empty()
    }

    /// The most resident bytes of the gateway in the first and in the second half of the measured time; `None` if either is unknown.
    #[must_use]
    pub fn halves(&self) -> Option<[f64; 2]> {
        let (from, until) = self.measured_s?;
        let most = |from: f64, until: f64| {
            let within = self.samples.iter().filter(|sample| from <= sample.at_s && sample.at_s < until);
            within.filter_map(|sample| Some(sample.gateway?.rss_bytes as f64)).reduce(f64::max)
        };
        let middle = f64::midpoint(from, until);
        Some([most(from, middle)?, most(middle, until)?])
    }

    /// Why memory is not flat: the second half of the measured time needed more than `percent` over the first.
    #[must_use]
    pub fn growth(&self, percent: f64) -> Option<String> {
        let Some([first, second]) = self.halves() else { return Some("the gateway's memory is not known".to_owned()) };
        let grown = (second / first - 1.0) * 100.0;
        (grown > percent)
            .then(|| format!("memory grew by {grown:.1} % from {:.1} MiB in the first half, above {percent} %", first / MIB))
    }

    /// Why memory is too much: a sample, or the end, shows more than `mib`.
    #[must_use]
    pub fn too_large(&self, mib: f64) -> Option<String> {
        let ends = self.gateway.iter().map(|(_, usage)| usage.rss_bytes);
        let within = self.samples.iter().filter_map(|sample| Some(sample.gateway?.rss_bytes));
        let Some(most) = ends.chain(within).max() else { return Some("the gateway's memory is not known".to_owned()) };
        let most = most as f64 / MIB;
        (most > mib).then(|| format!("the gateway had {most:.1} MiB resident, above {mib}"))
    }

    /// Which half-open connections the gateway left standing.
    pub fn left_standing(&self) -> impl Iterator<Item = String> {
        let standing = self.half_open.iter().filter(|kind| kind.closed < kind.opened);
        standing
            .map(|kind| format!("{} of {} half-open connections stood on: {}", kind.opened - kind.closed, kind.opened, kind.kind))
    }

    /// Why a storm was not weathered: who was cut is not back in time, or the p99 of the spared rose to more than `ratio_max` times, or the
    /// gateway's memory to more than `memory_max` times.
    pub fn unweathered(&self, ratio_max: Option<f64>, memory_max: Option<f64>) -> impl Iterator<Item = String> {
        let storm = self.storm.as_ref();
        let times = storm.and_then(|storm| storm.memory_bytes).map(|(before, most)| most as f64 / before as f64);
        let swollen = memory_max.and_then(|most| match times {
            Some(times) if times <= most => None,
            Some(times) => Some(format!("the gateway's memory rose to {times:.2} times that before the storm, above {most}")),
            None => Some("the gateway's memory is not known".to_owned()),
        });
        let late = storm.filter(|storm| storm.back_s.is_none()).map(|_| "99.9 % were not back in time".to_owned());
        let ratio = storm.and_then(|storm| storm.spared_us_p99).map(|(before, during)| during / before);
        let disturbed = ratio_max.and_then(|most| match ratio {
            Some(ratio) if ratio <= most => None,
            Some(ratio) => Some(format!("the p99 of the spared was {ratio:.1} times that before the storm, above {most}")),
            None => Some("the p99 of the spared is not known: --spared N".to_owned()),
        });
        late.into_iter().chain(disturbed).chain(swollen)
    }

    /// Why sockets are left: there are more than before the first connection.
    #[must_use]
    pub fn sockets_left(&self) -> Option<String> {
        let (Some((_, before)), Some((_, after))) = (self.gateway.first(), self.gateway.last()) else {
            return Some("the gateway's descriptors are not known".to_owned());
        };
        let left = after.sockets.saturating_sub(before.sockets);
        (left > 0).then(|| format!("{left} sockets are left after the last connection"))
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let size: Vec<String> = self.size.iter().map(|(name, count)| format!("{count} {name}")).collect();
        writeln!(out, "{}: {}; all welcomed after {:.2} s", self.scenario, size.join(", "), self.ramp_s)?;
        for stage in &self.stages {
            stage.write(out)?;
        }
        if let Some(whole) = &self.whole {
            writeln!(out, "all stages together:")?;
            whole.write(out)?;
        }
        if let Some(crash) = &self.crash {
            let Crash { kills, ready_ms_median, ready_ms_max, acknowledged_ms_median, repeats_recognised } = crash;
            writeln!(
                out,
                "{kills} kills; ready again after {ready_ms_median:.0} ms (longest {ready_ms_max:.0}), acknowledging after \
                 {acknowledged_ms_median:.0} ms (medians); {repeats_recognised} repeats recognised"
            )?;
        }
        if let Some(storm) = &self.storm {
            let Storm {
                cut,
                back_s,
                resumed,
                spared,
                spared_us_p99,
                spared_go_first,
                memory_bytes,
                handshakes,
                welcomes,
                pacing_us_p99,
            } = storm;
            let back = back_s.map_or_else(|| "not in time".to_owned(), |seconds| format!("after {seconds:.2} s"));
            writeln!(out, "storm: {cut} cut at once, 99.9 % back {back}, {resumed} resumed")?;
            if let Some(Welcomes { set_per_s, seconds, min_per_s, median_per_s, p99_per_s }) = welcomes {
                let set = set_per_s.map_or_else(|| "an unknown rate".to_owned(), |set| format!("{set}/s"));
                writeln!(
                    out,
                    "storm: welcomed per second {median_per_s:.0} (median), {min_per_s:.0} at least, {p99_per_s:.0} (p99) in {seconds} s; set {set}"
                )?;
            }
            if let Some((full, by_ticket)) = handshakes {
                writeln!(out, "storm: {full} full handshakes, {by_ticket} by a ticket")?;
            }
            if let Some((before, most)) = memory_bytes {
                let (before, most) = (*before as f64 / MIB, *most as f64 / MIB);
                writeln!(out, "storm: gateway {before:.1} MiB resident before, at most {most:.1} MiB until it was over")?;
            }
            if let Some((before, during)) = spared_us_p99 {
                writeln!(
                    out,
                    "storm: p99 of DELIVER of the {spared} spared: {before:.0} us before, {during:.0} us until it was over; pacing {pacing_us_p99:.0} us"
                )?;
                if !spared_go_first {
                    writeln!(
                        out,
                        "storm: the spared waited for a core as all others did: --threads 2 or more, and CAP_SYS_NICE"
                    )?;
                }
            }
        }
        if let Some(churn) = &self.churn {
            churn.write(out)?;
        }
        for HalfOpen { kind, opened, closed, longest_s } in &self.half_open {
            writeln!(out, "half open, {kind}: {opened} opened, {closed} closed by the gateway, the last after {longest_s:.2} s")?;
        }
        if let Some(held) = &self.held {
            held.write(out)?;
            return self.write_end(out);
        }
        let Counts { submitted, acknowledged, delivered, received, given_up, welcomed, cut_off, cut_on_purpose, left, .. } =
            self.counts;
        writeln!(
            out,
            "messages: {submitted} submitted, {acknowledged} acknowledged, {given_up} given up; {delivered} delivered, {received} \
             given out; connections: {welcomed} welcomed, {cut_on_purpose} cut on purpose, {left} left, {cut_off} cut off otherwise"
        )?;
        if !self.errors.is_empty() || !self.causes.is_empty() {
            let errors = self.errors.iter().map(|(code, count)| format!("ERROR {code} x{count}"));
            let causes = self.causes.iter().map(|(cause, count)| format!("{cause} x{count}"));
            writeln!(out, "heard: {}", errors.chain(causes).collect::<Vec<_>>().join(", "))?;
        }
        for (when, Usage { cpu_s, rss_bytes, sockets, files, descriptors }) in &self.gateway {
            let mib = *rss_bytes as f64 / MIB;
            writeln!(
                out,
                "gateway {when}: {mib:.1} MiB resident, {descriptors} descriptors ({sockets} sockets, {files} files), {cpu_s:.1} s of CPU"
            )?;
        }
        if let Some([first, second]) = self.halves() {
            writeln!(
                out,
                "gateway while measured: at most {:.1} MiB resident in the first half, {:.1} MiB in the second",
                first / MIB,
                second / MIB
            )?;
        }
        writeln!(out, "generator: {} bytes of memory per connection", self.own_bytes_per_connection)?;
        self.write_end(out)
    }

    /// Warnings, thresholds, and the verdict.
    fn write_end(&self, out: &mut String) -> std::fmt::Result {
        self.warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))?;
        self.broken.iter().try_for_each(|broken| writeln!(out, "threshold broken: {broken}"))?;
        let verdict = if self.is_good() { "PASS" } else { "FAIL" };
        if self.held.is_none() {
            writeln!(out, "ledger: {}", self.findings)?;
        }
        writeln!(out, "{verdict}")
    }
}

impl Stage {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let cpu = self.gateway_cpu_percent.map_or_else(String::new, |cpu| format!(", gateway {cpu:.0} % of a core"));
        writeln!(
            out,
            "{} wanted for {:.0} s: {:.0}/s acknowledged, {:.0}/s delivered, {} waiting at the end; generator {:.0} % of a core{cpu}",
            Leg { from_per_s: self.rate_from_per_s, to_per_s: self.rate_to_per_s, seconds: self.seconds },
            self.seconds,
            self.acknowledged_per_s,
            self.delivered_per_s,
            self.backlog,
            self.generator_cpu_percent
        )?;
        writeln!(
            out,
            "  {:<10} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
            "us", "count", "p50", "p90", "p99", "p99.9", "p99.99", "max"
        )?;
        for (name, row) in [("SENT", &self.sent_us), ("DELIVER", &self.deliver_us), ("pacing", &self.pacing_us)] {
            let Percentiles { count, p50, p90, p99, p999, p9999, max } = row;
            writeln!(out, "  {name:<10} {count:>9} {p50:>10.0} {p90:>10.0} {p99:>10.0} {p999:>10.0} {p9999:>10.0} {max:>10.0}")?;
        }
        Ok(())
    }
}

const MIB: f64 = 1_048_576.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rss_mib: &[u64]) -> Report {
        let at = |(index, &mib): (usize, &u64)| {
            let gateway = Some(Usage { rss_bytes: mib << 20, ..Usage::default() });
            Sample { at_s: index as f64, gateway, ..Sample::default() }
        };
        let samples = rss_mib.iter().enumerate().map(at).collect();
        Report { samples, measured_s: Some((1.0, rss_mib.len() as f64)), ..Report::default() }
    }

    /// A saw that comes to the same height is flat; one whose teeth grow is not; what was before the measured time says nothing.
    #[test]
    fn growth_compares_the_halves() {
        let flat = report(&[500, 100, 150, 100, 150, 100, 154, 100, 154]);
        assert_eq!(flat.halves(), Some([150.0 * MIB, 154.0 * MIB]));
        assert_eq!(flat.growth(5.0), None);
        assert!(flat.growth(2.0).is_some());
        let rising = report(&[100, 100, 110, 120, 130, 140, 150, 160, 170]);
        assert!(rising.growth(5.0).is_some_and(|text| text.contains("by 30.8 %")));
        assert!(Report::default().growth(5.0).is_some());
    }

    /// A storm that is not over in time is named, and so are spared ones that were disturbed, or none where there should be some.
    #[test]
    fn a_storm_is_weathered_or_not() {
        let report = |back_s, spared_us_p99| Report {
            storm: Some(Storm { back_s, spared_us_p99, ..Storm::default() }),
            ..Report::default()
        };
        let why = |report: Report, most| report.unweathered(most, None).count();
        assert_eq!(why(report(Some(9.0), None), None), 0);
        assert_eq!(why(report(None, None), None), 1);
        assert_eq!(why(report(Some(9.0), None), Some(3.0)), 1);
        assert_eq!(why(report(Some(9.0), Some((2.0, 6.0))), Some(3.0)), 0);
        assert_eq!(why(report(None, Some((2.0, 6.1))), Some(3.0)), 2);
        assert_eq!(why(Report::default(), None), 0);
        let storm = Storm { back_s: Some(1.0), memory_bytes: Some((100, 131)), ..Storm::default() };
        let swollen = Report { storm: Some(storm), ..Report::default() };
        assert_eq!((swollen.unweathered(None, Some(1.32)).count(), swollen.unweathered(None, Some(1.3)).count()), (0, 1));
        assert_eq!(report(Some(9.0), None).unweathered(None, Some(1.3)).count(), 1);
    }

    /// The rate of welcomes is that of whole seconds in which some came: neither those before, nor the parts at both ends, nor those after.
    #[test]
    fn welcomes_are_those_of_whole_seconds() {
        let samples = |rates: &[u32]| -> Vec<Sample> {
            rates.iter().map(|&rate| Sample { welcomed_per_s: rate.into(), ..Sample::default() }).collect()
        };
        let welcomes = Welcomes::of(&samples(&[0, 0, 40, 100, 90, 110, 100, 100, 7, 0, 9]), Some(100));
        let expected = Welcomes { set_per_s: Some(100), seconds: 5, min_per_s: 90.0, median_per_s: 100.0, p99_per_s: 110.0 };
        assert_eq!(welcomes, Some(expected));
        assert_eq!((Welcomes::of(&samples(&[0, 5, 5]), None), Welcomes::of(&[], None)), (None, None));
    }

    /// A socket more than before is named, one fewer is not.
    #[test]
    fn sockets_are_compared_with_those_before() {
        let usage = |sockets| Usage { sockets, ..Usage::default() };
        let mut report = Report { gateway: vec![("a".to_owned(), usage(3)), ("b".to_owned(), usage(4))], ..Report::default() };
        assert!(report.sockets_left().is_some_and(|text| text.starts_with("1 sockets")));
        report.gateway[1].1.sockets = 2;
        assert_eq!(report.sockets_left(), None);
        assert!(Report::default().sockets_left().is_some());
    }
}
