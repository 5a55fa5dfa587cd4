//! What the admin listener shows under `/metrics`: every counter and histogram in OpenMetrics text.        [prometheus-client]
//!
//! Names follow from the counters: `x_count` becomes `tidegate_x_total`, a gauge keeps its name, the store's carry
//! `tidegate_store_`. Counters are summed over reactors; gauges carry a label `reactor`, so that imbalance shows and the number of
//! series stays small. `docs/metrics.md` describes each; a test below holds the two together.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::clock::Moment;
use crate::observe::auth::AuthFacts;
use crate::observe::counters::{Field, ReactorBlock, ReactorCounters, Shape, StoreBlock, StoreCounters};
use crate::observe::histogram::{Source, Totals};
use crate::observe::pressure::Pressure;

/// Content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is shown, read when it is asked for.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    shared: Arc<Shared>,
}

impl Metrics {
    /// Shows these blocks and histograms under this version. `started` is when the process began; what it holds of memory now is what
    /// it needs without clients. `idle_session_bytes` is what a session occupies by layout.
    #[must_use]
    pub fn new(
        version: &'static str,
        started: Moment,
        idle_session_bytes: usize,
        reactors: Vec<Arc<ReactorBlock>>,
        store: Arc<StoreBlock>,
        histograms: Vec<Source>,
        (auth, pressure): (Arc<AuthFacts>, Arc<Pressure>),
    ) -> Self {
        let totals = Mutex::new(Totals::new(histograms));
        let empty_bytes = resident_bytes();
        let is_ready = Mutex::new(false);
        let shared =
            Shared { version, started, idle_session_bytes, empty_bytes, reactors, store, auth, pressure, totals, is_ready };
        let shared = Arc::new(shared);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&shared)));
        Self { registry, shared }
    }

    /// Takes what the threads measured; to be called once a second.
    pub fn collect(&self, now: Moment) {
        lock(&self.shared.totals).collect(now);
    }

    /// The whole exposition. `is_ready` is what `/readyz` says at this moment.
    ///
    /// # Errors
    /// None in practice: writing to a string does not fail.
    pub fn text(&self, is_ready: bool) -> Result<String, fmt::Error> {
        *lock(&self.shared.is_ready) = is_ready;
        let mut text = String::with_capacity(TEXT_BYTES_USUAL);
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What the collector reads. `Collector` demands `Sync`; only the admin thread comes here, so no lock is ever contended.
#[derive(Debug)]
struct Shared {
    version: &'static str,
    started: Moment,
    idle_session_bytes: usize,
    /// Resident when nobody was connected.
    empty_bytes: u64,
    reactors: Vec<Arc<ReactorBlock>>,
    store: Arc<StoreBlock>,
    auth: Arc<AuthFacts>,
    pressure: Arc<Pressure>,
    totals: Mutex<Totals>,
    is_ready: Mutex<bool>,
}

impl Collector for Shared {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        self.encode_process(out)?;
        let reactors: Vec<Vec<u64>> = self.reactors.iter().map(|block| block.read()).collect();
        let mut at = 0;
        for field in ReactorCounters::FIELDS {
            let parts: Vec<&[u64]> = reactors.iter().map(|values| &values[at..at + field.width()]).collect();
            encode_field(out, "tidegate", field, &parts, Some("reactor"))?;
            at += field.width();
        }
        let store = self.store.read();
        at = 0;
        for field in StoreCounters::FIELDS {
            encode_field(out, "tidegate_store", field, &[&store[at..at + field.width()]], None)?;
            at += field.width();
        }
        self.encode_auth(out)?;
        encode_stages(out, &lock(&self.totals))
    }
}

impl Shared {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit 53 bits")]
    fn encode_process(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut build = out.encode_descriptor("tidegate_build", "What is running.", None, MetricType::Info)?;
        build.encode_info(&[("version", self.version)])?;
        let ready = u64::from(*lock(&self.is_ready));
        encode_gauge(out, "tidegate_ready", "1 while /readyz answers 200, else 0.", ready)?;
        encode_gauge(out, "tidegate_idle_connection_bytes", HELP_IDLE, self.idle_session_bytes as u64)?;
        encode_gauge(out, "tidegate_memory_budget_bytes", HELP_BUDGET, self.pressure.budget_bytes())?;
        encode_gauge(out, "tidegate_memory_used_bytes", HELP_USED, self.pressure.used_bytes())?;
        encode_gauge(out, "tidegate_memory_level", HELP_LEVEL, self.pressure.level() as u64)?;
        let started = out.encode_descriptor("process_start_time_seconds", HELP_STARTED, None, MetricType::Gauge)?;
        let mut started = started;
        started.encode_gauge(&(self.started.unix_ms as f64 / 1e3))?;
        let Some(process) = ProcessFacts::read() else { return Ok(()) };
        encode_gauge(out, "process_resident_memory_bytes", "Resident memory of the process.", process.resident_bytes)?;
        encode_gauge(out, "tidegate_session_memory_bytes", HELP_SESSION, self.session_bytes(process.resident_bytes))?;
        encode_gauge(out, "process_threads", "Threads of the process.", process.threads)?;
        let mut cpu = out.encode_descriptor("process_cpu_seconds", HELP_CPU, None, MetricType::Counter)?;
        cpu.encode_counter::<NoLabelSet, _, u64>(&process.cpu_seconds, None)
    }

    fn encode_auth(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let auth = &self.auth;
        encode_gauge(out, "tidegate_jwks_fetched_timestamp_seconds", HELP_FETCHED, auth.jwks_fetched_s.value())?;
        encode_gauge(
            out,
            "tidegate_webhook_open",
            "1 while the webhook is left alone after failures, else 0.",
            auth.webhook_open.value(),
        )?;
        let counters = [
            (
                "tidegate_jwks_failures",
                "Fetches of auth.jwks_url that failed; the keys stayed as they were.",
                &auth.jwks_failures,
            ),
            ("tidegate_webhook_asked", "Tokens the webhook was asked about.", &auth.webhook_asked),
            ("tidegate_webhook_known", "Tokens whose verdict by the webhook was remembered.", &auth.webhook_known),
            ("tidegate_webhook_failures", "Questions that the webhook did not answer, or with 5xx.", &auth.webhook_failures),
        ];
        for (name, help, fact) in counters {
            let mut counter = out.encode_descriptor(name, help, None, MetricType::Counter)?;
            counter.encode_counter::<NoLabelSet, _, u64>(&fact.value(), None)?;
        }
        Ok(())
    }

    /// What the process has grown by for each session; 0 while they are too few to tell.
    fn session_bytes(&self, resident_bytes: u64) -> u64 {
        let sessions: u64 = self.reactors.iter().filter_map(|block| block.value("sessions_open")).sum();
        if sessions < SESSIONS_TELLING_MIN { 0 } else { resident_bytes.saturating_sub(self.empty_bytes) / sessions }
    }
}

/// Shows one field. Counters are summed over `parts`, one per thread; gauges get a series per thread if the thread has a label.
fn encode_field(
    out: &mut DescriptorEncoder<'_>,
    prefix: &str,
    field: &Field,
    parts: &[&[u64]],
    thread_label: Option<&str>,
) -> fmt::Result {
    let name = format!("{prefix}_{}", field.name.strip_suffix("_count").unwrap_or(field.name));
    let sum = |at: usize| parts.iter().map(|part| part[at]).fold(0, u64::wrapping_add);
    match (field.shape, field.label) {
        (Shape::Counter, None) => {
            let mut metric = out.encode_descriptor(&name, field.help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, _, u64>(&sum(0), None)
        }
        (Shape::Counter, Some(label)) => {
            let mut metric = out.encode_descriptor(&name, field.help, None, MetricType::Counter)?;
            for (at, &value) in field.values.iter().enumerate() {
                metric.encode_family(&[(label, value)])?.encode_counter::<NoLabelSet, _, u64>(&sum(at), None)?;
            }
            Ok(())
        }
        (Shape::Gauge, _) => {
            let mut metric = out.encode_descriptor(&name, field.help, None, MetricType::Gauge)?;
            let Some(label) = thread_label else { return metric.encode_gauge(&sum(0)) };
            for (number, part) in parts.iter().enumerate() {
                metric.encode_family(&[(label, number.to_string())])?.encode_gauge(&part[0])?;
            }
            Ok(())
        }
    }
}

fn encode_gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    out.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

fn encode_stages(out: &mut DescriptorEncoder<'_>, totals: &Totals) -> fmt::Result {
    let mut metric = out.encode_descriptor("tidegate_stage_seconds", HELP_STAGE, None, MetricType::Histogram)?;
    for (stage, total) in totals.stages() {
        let buckets: Vec<(f64, u64)> = total.buckets().collect();
        let labels = [("stage", stage.name())];
        metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(total.sum_s(), total.count(), &buckets, None)?;
    }
    let mut metric = out.encode_descriptor("tidegate_stage_quantile_seconds", HELP_QUANTILE, None, MetricType::Gauge)?;
    for (stage, total) in totals.stages() {
        for (name, quantile) in [("0.5", 0.5), ("0.99", 0.99), ("0.999", 0.999)] {
            let labels = [("stage", stage.name()), ("quantile", name)];
            metric.encode_family(&labels)?.encode_gauge(&total.quantile_s(quantile))?;
        }
    }
    Ok(())
}

/// Resident memory of the process, bytes; 0 where the kernel does not say.
#[must_use]
pub fn resident_bytes() -> u64 {
    std::fs::read_to_string(STATUS).ok().and_then(|status| resident_in(&status)).unwrap_or_default()
}

fn resident_in(status: &str) -> Option<u64> {
    Some(number_in(status, "VmRSS:")? * 1024)
}

fn number_in(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// What the kernel says about this process.
struct ProcessFacts {
    resident_bytes: u64,
    threads: u64,
    cpu_seconds: f64,
}

impl ProcessFacts {
    /// Reads `/proc/self`; `None` where there is none.
    #[expect(clippy::cast_precision_loss, reason = "clock ticks of 10 ms fit 53 bits")]
    fn read() -> Option<Self> {
        let status = std::fs::read_to_string(STATUS).ok()?;
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name of the process stands in parentheses and may hold spaces; utime and stime are the 12th and 13th field after it.
        let mut ticks = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
        let (user, system) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
        let cpu_seconds = (user + system) as f64 / TICKS_PER_SECOND;
        Some(Self { resident_bytes: resident_in(&status)?, threads: number_in(&status, "Threads:")?, cpu_seconds })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const STATUS: &str = "/proc/self/status";
/// `USER_HZ`, which Linux shows to user space as 100 whatever the kernel uses inside.
const TICKS_PER_SECOND: f64 = 100.0;
const TEXT_BYTES_USUAL: usize = 32 * 1024;
const HELP_BUDGET: &str = "Bytes that the process may hold: limits.memory_bytes.";
const HELP_USED: &str =
    "Bytes that the process holds by its own account, shared ones once, and near the first level what else is resident.";
const HELP_LEVEL: &str =
    "What is given up for want of memory: 0 nothing, 1 signals and presence, 2 newcomers too, 3 the slowest readers too.";
const HELP_STARTED: &str = "When the process began, in seconds since 1970.";
const HELP_FETCHED: &str =
    "When auth.jwks_url last gave good keys, in seconds since 1970; 0: never. Until the next they stay in force.";
const HELP_CPU: &str = "Processor time used, in user and kernel mode.";
const HELP_IDLE: &str =
    "Memory of an idle session by layout: connection, session, driver slot and roster entry; names come on top.";
const HELP_SESSION: &str = "Growth of resident memory since the start for each session, all included; 0 below 1,000 sessions.";
/// Fewer sessions than this say nothing about one: the process itself moves by more.
const SESSIONS_TELLING_MIN: u64 = 1_000;
const HELP_STAGE: &str = "Latency of one stage of a message's way since the start, within 1 %.";
const HELP_QUANTILE: &str = "Latency below which the share `quantile` of the last minute lies, within 1 %.";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::observe::histogram::{ReactorHistograms, StoreHistograms};

    fn exposition() -> String {
        let blocks = [Arc::new(ReactorBlock::default()), Arc::new(ReactorBlock::default())];
        let mut counters = ReactorCounters { connections_open: 3, messages_received_count: 5, ..ReactorCounters::default() };
        counters.count_error(4001);
        blocks[0].publish(&counters);
        blocks[1].publish(&counters);
        let (mut reactor, first) = ReactorHistograms::new();
        let (_store, second) = StoreHistograms::new();
        reactor.delivered(Duration::from_millis(2));
        reactor.publish(Moment { mono_ns: 2_000_000_000, unix_ms: 0 });
        let (store, pressure) = (Arc::new(StoreBlock::default()), Arc::new(Pressure::new(1_000, 2)));
        pressure.judge(850);
        let (histograms, facts) = (vec![first, second], (Arc::default(), pressure));
        let metrics = Metrics::new("1.2.3", Moment::default(), 196, blocks.to_vec(), store, histograms, facts);
        metrics.collect(Moment { mono_ns: 3_000_000_000, unix_ms: 0 });
        metrics.text(true).unwrap()
    }

    /// Counters are summed over reactors, gauges are not, labels and histograms read as Prometheus expects.
    #[test]
    fn exposition_shows_what_was_published() {
        let text = exposition();
        for line in [
            "tidegate_build_info{version=\"1.2.3\"} 1",
            "tidegate_ready 1",
            "tidegate_idle_connection_bytes 196",
            "tidegate_session_memory_bytes 0",
            "tidegate_memory_budget_bytes 1000",
            "tidegate_memory_used_bytes 850",
            "tidegate_memory_level 1",
            "tidegate_shed_total{kind=\"reader\"} 0",
            "tidegate_connections_open{reactor=\"0\"} 3",
            "tidegate_connections_open{reactor=\"1\"} 3",
            "tidegate_messages_received_total 10",
            "tidegate_errors_total{code=\"4001\"} 2",
            "tidegate_closes_total{cause=\"replaced\"} 0",
            "tidegate_store_messages_stored_total 0",
            "tidegate_stage_seconds_bucket{le=\"0.0025\",stage=\"delivery\"} 1",
            "tidegate_stage_seconds_bucket{le=\"+Inf\",stage=\"delivery\"} 1",
            "tidegate_stage_seconds_count{stage=\"delivery\"} 1",
            "# TYPE tidegate_connections_accepted counter",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(text.contains("process_cpu_seconds_total "));
    }

    /// Every family has HELP and TYPE once and appears in one piece, which OpenMetrics demands.
    #[test]
    fn every_family_is_described_once() {
        let text = exposition();
        let families: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let helps: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# HELP ")).collect();
        assert_eq!(families.len(), helps.len());
        for (family, help) in families.iter().zip(&helps) {
            let (name, _) = family.split_once(' ').unwrap();
            assert_eq!(help.split_once(' ').map(|(named, says)| (named, says.ends_with('.'))), Some((name, true)));
            assert_eq!(families.iter().filter(|other| other.split(' ').next() == Some(name)).count(), 1, "{name}");
        }
    }

    /// `docs/metrics.md` has a row for every metric, with its type and help text and an alert or a dash, and no other row.
    #[test]
    fn the_page_of_metrics_is_complete() {
        let text = exposition();
        let mut shown = BTreeMap::new();
        for line in text.lines() {
            let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else { continue };
            let kind = text.lines().find_map(|line| line.strip_prefix("# TYPE ")?.strip_prefix(name)?.strip_prefix(' ')).unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            shown.insert(format!("`{name}{suffix}`"), (kind.to_owned(), help.to_owned()));
        }
        let mut described = BTreeMap::new();
        for row in include_str!("../../docs/metrics.md").lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            if cells.len() == 4 {
                assert!(!cells[3].is_empty(), "{row}");
                described.insert(cells[0].to_owned(), (cells[1].to_owned(), cells[2].to_owned()));
            }
        }
        for (name, facts) in &shown {
            assert_eq!(described.get(name), Some(facts), "docs/metrics.md wants: | {name} | {} | {} | - |", facts.0, facts.1);
        }
        assert_eq!(described.len(), shown.len(), "docs/metrics.md describes a metric that is not there");
    }
}
