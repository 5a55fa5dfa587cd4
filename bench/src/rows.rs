//! Rows of the second table in README.md: figures that are held against a bar and not against somebody else. Of each the latest record of
//! the same case counts.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// The rows of which there is a record, as lines of a table, and the origin of each kind of machine and commit below them.
///
/// # Errors
/// A file of results that cannot be read.
pub fn render(results: &Path) -> Result<String, String> {
    let mut lines = vec!["| figure | result | aim | `tidegate-bench` |".to_owned(), "|---|---|---|---|".to_owned()];
    let mut origins: Vec<String> = Vec::new();
    for row in ROWS {
        let path = results.join(format!("{}.json", row.subject));
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let records: Vec<Value> = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        let Some(record) = records.iter().rfind(|record| row.is_of(record)) else { continue };
        lines.push(row.line(record));
        let origin = origin(&record["machine"]);
        if !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    lines.push(String::new());
    lines.push(format!(
        "Medians, in brackets the least and the most of the runs; bold: short of the aim; limits on what one user may send lifted. {}.",
        origins.join("; ")
    ));
    Ok(lines.join("\n") + "\n")
}

/// The machine and the commit of a record.
pub fn origin(machine: &Value) -> String {
    let word = |name: &str| match &machine[name] {
        Value::String(word) => word.clone(),
        Value::Null => "?".to_owned(),
        other => other.to_string(),
    };
    format!("Linux {}, {}, {} cores, commit {}", word("kernel"), word("processor"), word("cores"), word("commit"))
}

struct Row {
    what: &'static str,
    subject: &'static str,
    /// Figures that make a record one of this case.
    case: &'static [(&'static str, f64)],
    figures: &'static [Figure],
    aim: Aim,
}

/// One figure of a row: `label`, the value times `scale`, `unit`.
struct Figure {
    label: &'static str,
    name: &'static str,
    scale: f64,
    unit: &'static str,
}

/// What the first figure of a row is to be, in its own unit.
enum Aim {
    None,
    AtLeast(f64),
    AtMost(f64),
}

impl Row {
    fn is_of(&self, record: &Value) -> bool {
        let has =
            |name: &str, value: f64| record["figures"][name]["median"].as_f64().is_some_and(|known| (known - value).abs() < 0.5);
        self.case.iter().all(|&(name, value)| has(name, value))
            && self.figures.first().is_some_and(|first| first.of(record).is_some())
    }

    fn line(&self, record: &Value) -> String {
        let mut texts: Vec<String> = self.figures.iter().filter_map(|figure| figure.text(record)).collect();
        let found = self.figures.first().and_then(|first| Some(first.of(record)?[0] * first.scale)).unwrap_or_default();
        let unit = self.figures.first().map_or("", |first| first.unit);
        let (aim, is_missed) = match self.aim {
            Aim::None => (String::new(), false),
            Aim::AtLeast(aim) => (format!("at least {}{unit}", number(aim)), found < aim),
            Aim::AtMost(aim) => (format!("at most {}{unit}", number(aim)), found > aim),
        };
        if let Some(first) = texts.first_mut().filter(|_| is_missed) {
            *first = format!("**{first}**");
        }
        let texts = texts.join("; ");
        let command = record["command"].as_str().unwrap_or_default();
        let command = command.strip_prefix("tidegate-bench ").unwrap_or(command);
        format!("| {} | {texts} | {aim} | `{command}` |", self.what)
    }
}

impl Figure {
    /// Median, least and most.
    fn of(&self, record: &Value) -> Option<[f64; 3]> {
        let figure = &record["figures"][self.name];
        Some([figure["median"].as_f64()?, figure["least"].as_f64()?, figure["most"].as_f64()?])
    }

    fn text(&self, record: &Value) -> Option<String> {
        let [median, least, most] = self.of(record)?.map(|value| number(value * self.scale));
        let range = if least == most { String::new() } else { format!(" ({least} to {most})") };
        Some(format!("{}{median}{range}{}", self.label, self.unit))
    }
}

/// Three digits, or all before the point, in groups of three.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let decimals = if size >= 100.0 || value.fract() == 0.0 { 0 } else { usize::from(size < 10.0) + 1 };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let from_end = |at: usize| whole.len() - at;
    let grouped: String = whole.char_indices().fold(String::new(), |mut grouped, (at, digit)| {
        if at > 0 && from_end(at).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
        grouped
    });
    grouped + rest
}

const fn figure(label: &'static str, name: &'static str, scale: f64, unit: &'static str) -> Figure {
    Figure { label, name, scale, unit }
}

const RATE: Figure = figure("", "messages_per_s", 1.0, "/s");
const P50: Figure = figure("SENT p50 ", "sent_us_p50", 1e-3, " ms");
const P99: Figure = figure("p99 ", "sent_us_p99", 1e-3, " ms");
const P999: Figure = figure("p99.9 ", "sent_us_p999", 1e-3, " ms");
const CPU: Figure = figure("CPU of the gateway ", "cpu_us_per_message", 1.0, " µs per message");
const GATEWAY: Figure = figure("", "gateway_cpu_percent", 1.0, " % of a core");
const GENERATOR: Figure = figure("generator ", "generator_cpu_percent", 1.0, " %");
const SYNC: Figure = figure("fdatasync p50 ", "gateway_sync_us_p50", 1e-3, " ms");
const STOLEN: Figure = figure("stolen ", "steal_percent", 1.0, " %");
const REACTOR_WAIT: Figure = figure("waits for a core, each time: reactors ", "run_queue_wait_us_mean_reactor", 1.0, " µs");
const STORE_WAIT: Figure = figure("store ", "run_queue_wait_us_mean_store", 1.0, " µs");
const GENERATOR_WAIT: Figure = figure("generator ", "generator_run_queue_wait_us_mean", 1.0, " µs");

const ROWS: &[Row] = &[
    Row {
        what: "messages of 200 B, synced, acknowledged, delivered; 16 in flight on each of 1,000 sessions, nobody else",
        subject: "send",
        case: &[("connections_count", 1e3), ("idle_sessions_beside_count", 0.0), ("in_flight_count", 16.0)],
        figures: &[RATE, P50, P99, P999, CPU, GATEWAY, GENERATOR, SYNC, STOLEN],
        aim: Aim::AtLeast(100_000.0),
    },
    Row {
        what: "the same with 99,000 idle sessions beside them, held by a third process",
        subject: "send",
        case: &[("connections_count", 1e3), ("idle_sessions_beside_count", 99e3), ("in_flight_count", 16.0)],
        figures: &[RATE, P50, P99, P999, CPU, GATEWAY, GENERATOR, SYNC, STOLEN],
        aim: Aim::AtLeast(100_000.0),
    },
    Row {
        what: "the same, one in flight each, nobody else",
        subject: "send",
        case: &[("connections_count", 1e3), ("idle_sessions_beside_count", 0.0), ("in_flight_count", 1.0)],
        figures: &[CPU, RATE, P50, P99, P999, GATEWAY, GENERATOR, SYNC, STOLEN],
        aim: Aim::AtMost(17.0),
    },
    Row {
        what: "20,000 per second, open loop, seconds in which the hypervisor stole nothing",
        subject: "send",
        case: &[("connections_count", 1e3), ("idle_sessions_beside_count", 0.0), ("rate_wanted_per_s", 20e3)],
        figures: &[
            figure("SENT p99 ", "sent_us_p99_calm", 1e-3, " ms"),
            figure("p50 ", "sent_us_p50_calm", 1e-3, " ms"),
            figure("p99.9 ", "sent_us_p999_calm", 1e-3, " ms"),
            figure("", "calm_seconds_count", 1.0, " such seconds"),
            figure("all seconds p99 ", "sent_us_p99", 1e-3, " ms"),
            STOLEN,
            REACTOR_WAIT,
            STORE_WAIT,
            GENERATOR_WAIT,
            SYNC,
        ],
        aim: Aim::AtMost(10.0),
    },
    Row {
        what: "the same: bytes that the disk wrote per message, for log, engine, its compaction, and the file system",
        subject: "send",
        case: &[("connections_count", 1e3), ("idle_sessions_beside_count", 0.0), ("rate_wanted_per_s", 20e3)],
        figures: &[
            figure("", "disk_bytes_per_message", 1.0, " B"),
            figure("written to the log ", "log_bytes_per_message", 1.0, " B"),
            figure("", "messages_count", 1e-6, " million messages"),
        ],
        aim: Aim::AtMost(1024.0),
    },
    Row {
        what: "a redelivery, each message refused once: CPU beyond the same messages not refused",
        subject: "redeliver",
        case: &[],
        figures: &[
            figure("", "cpu_us_per_redelivery", 1.0, " µs"),
            figure("", "redeliveries_per_s", 1.0, " redeliveries/s"),
            figure("a message not refused ", "cpu_us_per_message_before", 1.0, " µs"),
        ],
        aim: Aim::None,
    },
    Row {
        what: "10,000 sessions cut at once that all come back at once, each with a message it missed: until the last has it",
        subject: "resume",
        case: &[("sessions_count", 10e3)],
        figures: &[
            figure("", "all_back_s", 1.0, " s"),
            figure("p50 ", "back_us_p50", 1e-3, " ms"),
            figure("CPU of the gateway ", "cpu_us_per_resume", 1.0, " µs each"),
        ],
        aim: Aim::None,
    },
    Row {
        what: "memory of a session that waits to be resumed, after its connection is gone",
        subject: "resume",
        case: &[("sessions_count", 10e3)],
        figures: &[
            figure("", "resumable_pss_bytes_per_session", 1.0, " B"),
            figure("while it was connected ", "live_pss_bytes_per_session", 1.0, " B"),
        ],
        aim: Aim::None,
    },
    Row {
        what: "SYNC of a user with 1,000 conversations, all pages",
        subject: "sync",
        case: &[("conversations_count", 1e3)],
        figures: &[
            figure("p99 ", "sync_us_p99", 1e-3, " ms"),
            figure("p50 ", "sync_us_p50", 1e-3, " ms"),
            figure("CPU of the gateway ", "cpu_us_per_sync", 1e-3, " ms"),
        ],
        aim: Aim::None,
    },
    Row {
        what: "ready again after kill -9 at full load, 128 MiB of log of which the engine has nothing",
        subject: "reopen",
        case: &[],
        figures: &[figure("", "lost_ready_s", 1.0, " s"), figure("engine as the kill left it ", "kept_ready_s", 1.0, " s")],
        aim: Aim::AtMost(4.0),
    },
    Row {
        what: "what 1 GiB of older log segments adds to that",
        subject: "reopen",
        case: &[],
        figures: &[figure("", "older_adds_s", 1.0, " s"), figure("for ", "older_log_mib", 1.0, " MiB")],
        aim: Aim::AtMost(0.5),
    },
    Row {
        what: "memory of an idle session, all included, at 10,000 sessions",
        subject: "idle",
        case: &[("connections_count", 10e3)],
        figures: &[
            figure("", "pss_bytes_per_connection", 1.0, " B"),
            figure("without what is paid once ", "pss_bytes_per_connection_marginal", 1.0, " B"),
        ],
        aim: Aim::AtMost(512.0),
    },
    Row {
        what: "handshakes of TLS 1.3 per CPU-second of the gateway, in full, ECDSA P-256; of the library's own in memory",
        subject: "tls",
        case: &[],
        figures: &[
            figure("", "tls13_full_per_cpu_s", 1.0, ""),
            figure("", "tls13_full_of_library", 100.0, " %"),
            figure("resumed ", "tls13_resumed_per_cpu_s", 1.0, ""),
            figure("", "tls13_resumed_of_library", 100.0, " %"),
        ],
        aim: Aim::None,
    },
    Row {
        what: "the same of TLS 1.2",
        subject: "tls",
        case: &[],
        figures: &[
            figure("", "tls12_full_per_cpu_s", 1.0, ""),
            figure("", "tls12_full_of_library", 100.0, " %"),
            figure("resumed ", "tls12_resumed_per_cpu_s", 1.0, ""),
            figure("", "tls12_resumed_of_library", 100.0, " %"),
        ],
        aim: Aim::None,
    },
    Row {
        what: "memory of an idle session with TLS, beside one without",
        subject: "tls",
        case: &[],
        figures: &[
            figure("", "tls_bytes_per_session", 1.0, " B"),
            figure("all included ", "pss_bytes_per_session_tls", 1.0, " B"),
        ],
        aim: Aim::AtMost(8192.0),
    },
    Row {
        what: "CPU of a refusal: at accept; before TLS; of an origin; of a token",
        subject: "refuse",
        case: &[],
        figures: &[
            figure("", "at_accept_429_cpu_us", 1.0, " µs"),
            figure("", "before_tls_cpu_us", 1.0, " µs"),
            figure("", "origin_403_cpu_us", 1.0, " µs"),
            figure("", "token_4401_cpu_us", 1.0, " µs"),
        ],
        aim: Aim::None,
    },
    Row {
        what: "limits that each message passes, of its connection and its user",
        subject: "refuse",
        case: &[],
        figures: &[figure("", "limits_per_message_ns", 1.0, " ns")],
        aim: Aim::AtMost(20.0),
    },
    Row {
        what: "the limit of a user alone, of very many users in turn, each time another line of the cache",
        subject: "refuse",
        case: &[],
        figures: &[figure("", "meter_many_users_ns", 1.0, " ns")],
        aim: Aim::AtMost(20.0),
    },
    Row {
        what: "slowloris, a byte per second on each of 20,000 connections, bounds on newcomers lifted: memory of each before it is authenticated",
        subject: "slowloris",
        case: &[("slow_connections_count", 20e3)],
        figures: &[figure("", "pss_bytes_per_slow_connection", 1.0, " B")],
        aim: Aim::AtMost(2048.0),
    },
    Row {
        what: "honest newcomers meanwhile, TCP to WELCOME: p99 beside that without",
        subject: "slowloris",
        case: &[("slow_connections_count", 20e3)],
        figures: &[
            figure("", "honest_p99_ratio", 1.0, " times"),
            figure("p99 ", "honest_beside_us_p99", 1e-3, " ms"),
            figure("without ", "honest_alone_us_p99", 1e-3, " ms"),
        ],
        aim: Aim::AtMost(2.0),
    },
    Row {
        what: "1,000 clients that stop reading, beside 1,000 honest ones: the most resident, of `limits.memory_bytes`",
        subject: "deaf",
        case: &[("deaf_count", 1e3)],
        figures: &[figure("", "resident_of_bound", 100.0, " %"), figure("readers given up ", "readers_shed_count", 1.0, "")],
        aim: Aim::AtMost(105.0),
    },
    Row {
        what: "p99 of DELIVER to the honest meanwhile, beside that when all read",
        subject: "deaf",
        case: &[("deaf_count", 1e3)],
        figures: &[
            figure("", "deliver_p99_ratio", 1.0, " times"),
            figure("p99 ", "deliver_us_p99", 1e-3, " ms"),
            figure("when all read ", "deliver_us_p99_everybody_reads", 1e-3, " ms"),
        ],
        aim: Aim::AtMost(1.1),
    },
    Row {
        what: "a gateway on a share of a core, twice its peak offered: acknowledged, of the peak",
        subject: "overload",
        case: &[],
        figures: &[
            figure("", "goodput_ratio", 100.0, " %"),
            figure("", "goodput_at_twice_per_s", 1.0, " per second"),
            figure("offered ", "offered_at_twice_per_s", 1.0, ""),
            figure("the peak ", "peak_per_s", 1.0, ""),
            figure("refused with 5002 ", "refused_5002_count", 1.0, ""),
            figure("SENT p99 ", "sent_at_twice_us_p99", 1e-3, " ms"),
            figure("generator ", "generator_cpu_percent_at_twice", 1.0, " %"),
        ],
        aim: Aim::AtLeast(90.0),
    },
    Row {
        what: "then half of what it carries promptly: until no more than a quarter of a second's messages wait",
        subject: "overload",
        case: &[],
        figures: &[
            figure("", "recovery_s", 1.0, " s"),
            figure("it carries ", "carried_per_s", 1.0, " per second"),
            figure("", "gateway_share_percent", 1.0, " % of a core"),
        ],
        aim: Aim::AtMost(5.0),
    },
    Row {
        what: "a client that sends without end is cut off, longest of all; a window is a full burst, 6.4 s",
        subject: "abuser",
        case: &[],
        figures: &[
            figure("", "cut_after_s_max", 1e3, " ms"),
            figure("times ", "abusers_cut_count", 1.0, ""),
            figure("not let in again ", "abuser_refused_count", 1.0, " times"),
        ],
        aim: Aim::AtMost(6_400.0),
    },
    Row {
        what: "p99 of DELIVER to others meanwhile, beside that without",
        subject: "abuser",
        case: &[],
        figures: &[
            figure("", "deliver_p99_ratio", 1.0, " times"),
            figure("turns ", "deliver_p99_ratio_least", 1.0, ""),
            figure("to ", "deliver_p99_ratio_most", 1.0, ""),
            figure("p99 ", "deliver_us_p99", 1e-3, " ms"),
            figure("without ", "deliver_us_p99_alone", 1e-3, " ms"),
            figure("the generator was late, p99 ", "generator_late_us_p99", 1e-3, " ms"),
            figure("without ", "generator_late_us_p99_alone", 1e-3, " ms"),
        ],
        aim: Aim::AtMost(1.1),
    },
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(rate: f64) -> Value {
        let figure = |value: f64| json!({ "median": value, "least": value - 1.0, "most": value + 1.0 });
        let figures = json!({
            "connections_count": figure(1e3),
            "idle_sessions_beside_count": figure(0.0),
            "in_flight_count": figure(16.0),
            "messages_per_s": figure(rate),
        });
        json!({ "command": "tidegate-bench send --in-flight 16", "figures": figures })
    }

    /// The case decides which record a row takes; a figure short of its aim is bold; what was not measured is not named.
    #[test]
    fn row_says_what_was_measured() {
        let row = &ROWS[0];
        assert!(row.is_of(&record(1e5)) && !ROWS[1].is_of(&record(1e5)));
        let good = "| 123,457 (123,456 to 123,458)/s | at least 100,000/s | `send --in-flight 16` |";
        assert!(row.line(&record(123_457.0)).ends_with(good), "{}", row.line(&record(123_457.0)));
        assert!(row.line(&record(99_000.0)).contains("| **99,000 (98,999 to 99,001)/s** |"));
    }

    /// Three digits are enough, and large numbers stay whole.
    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.236, "0.24"),
            (9.94, "9.94"),
            (12.34, "12.3"),
            (512.0, "512"),
            (1_234_567.8, "1,234,568"),
            (4.0, "4"),
            (-1234.5, "-1,234"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
