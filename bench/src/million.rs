//! The table of very many sessions in README.md, written from the reports of `bench/million`. Of each driver, kind of client and number of
//! sessions the latest report counts.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::rows::{number, origin};

/// The table, and the origin of its reports below it. `None`: there is no report of a million sessions.
///
/// # Errors
/// Reports that cannot be read.
pub fn render(results: &Path) -> Result<Option<String>, String> {
    let path = results.join("million.json");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(None) };
    let records: Vec<Value> = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let columns = columns(&records);
    if columns.is_empty() {
        return Ok(None);
    }
    let titles = columns.iter().map(|record| title(record));
    let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let mut lines =
        vec![line(["sessions, one run each".to_owned()].into_iter().chain(titles).chain(["aim".to_owned()]).collect())];
    lines.push(format!("|---{}|---|", "|---".repeat(columns.len())));
    for row in ROWS {
        let cells = columns.iter().map(|record| row.cell(record));
        lines.push(line([row.what.to_owned()].into_iter().chain(cells).chain([row.aim()]).collect()));
    }
    let mut origins: Vec<String> = columns.iter().map(|record| origin(&record["machine"])).collect();
    origins.dedup();
    lines.push(String::new());
    lines.push(format!("Bold: short of the aim. {}.", origins.join("; ")));
    Ok(Some(lines.join("\n") + "\n"))
}

/// The latest report of each case, in order: few before many, sockets before phantoms, epoll before io_uring.
fn columns(records: &[Value]) -> Vec<&Value> {
    let mut columns: Vec<&Value> = Vec::new();
    for record in records.iter().filter(|record| wanted(record) >= MILLION) {
        columns.retain(|known| case(known) != case(record));
        columns.push(record);
    }
    columns.sort_by_key(|record| case(record));
    columns
}

fn wanted(record: &Value) -> u64 {
    record["held"]["wanted"].as_u64().unwrap_or(0)
}

fn case(record: &Value) -> (u64, bool, &str) {
    let is_phantom = record["held"]["back_end"] == "phantom";
    (wanted(record), is_phantom, record["machine"]["driver"].as_str().unwrap_or("?"))
}

fn title(record: &Value) -> String {
    let (wanted, is_phantom, driver) = case(record);
    let driver = if driver == "uring" { "io_uring" } else { driver };
    let clients = if is_phantom { "phantoms" } else { "sockets" };
    format!("{driver}, {} {clients}", number(wanted as f64))
}

struct Row {
    what: &'static str,
    text: fn(&Value) -> Option<String>,
    aim: Option<Aim>,
}

/// What is held against the aim, and what that is at most, in its unit.
struct Aim {
    value: fn(&Value) -> Option<f64>,
    most: f64,
    unit: &'static str,
}

impl Row {
    fn cell(&self, record: &Value) -> String {
        let Some(text) = (self.text)(record) else { return String::new() };
        let is_missed = self.aim.as_ref().is_some_and(|aim| (aim.value)(record).is_some_and(|value| value > aim.most));
        if is_missed { format!("**{text}**") } else { text }
    }

    fn aim(&self) -> String {
        self.aim.as_ref().map_or_else(String::new, |aim| format!("at most {} {}", number(aim.most), aim.unit))
    }
}

fn of(record: &Value, pointer: &str) -> Option<f64> {
    record["held"].pointer(pointer)?.as_f64()
}

/// Sessions that did not stand to the end.
fn missing(record: &Value) -> Option<f64> {
    Some(of(record, "/wanted")? - of(record, "/held")?)
}

/// Of kernel and process, this end only.
fn bytes(record: &Value) -> Option<f64> {
    Some(of(record, "/kernel_bytes")? + of(record, "/gateway_user_bytes")?)
}

fn pair(record: &Value, [first, second]: [&str; 2], scale: f64) -> Option<[String; 2]> {
    Some([number(of(record, first)? * scale), number(of(record, second)? * scale)])
}

const ROWS: &[Row] = &[
    Row {
        what: "held over two rounds of pings; ended early, or not let in",
        text: |record| Some(format!("{}; {}", number(of(record, "/held")?), number(missing(record)?))),
        aim: Some(Aim { value: missing, most: 0.0, unit: "lost" }),
    },
    Row {
        what: "time to open, full handshake and HELLO, accept limit lifted",
        text: |record| Some(format!("{} s", number(of(record, "/open_s")?))),
        aim: Some(Aim { value: |record| of(record, "/open_s"), most: 60.0, unit: "s" }),
    },
    Row {
        what: "the same: CPU of gateway + generator per session, pings meanwhile included",
        text: |record| pair(record, ["/open_cpu_us/gateway", "/open_cpu_us/generator"], 1.0).map(|both| both.join(" + ") + " µs"),
        aim: None,
    },
    Row {
        what: "memory of the gateway per session: kernel + user",
        text: |record| pair(record, ["/kernel_bytes", "/gateway_user_bytes"], 1.0).map(|both| both.join(" + ") + " bytes"),
        aim: Some(Aim { value: bytes, most: 4_700.0, unit: "bytes" }),
    },
    Row {
        what: "CPU of the gateway while they only live",
        text: |record| Some(format!("{} core", number(of(record, "/hold_cpu_percent/gateway")? / 100.0))),
        aim: Some(Aim {
            value: |record| of(record, "/hold_cpu_percent/gateway").map(|percent| percent / 100.0),
            most: 0.6,
            unit: "core",
        }),
    },
    Row {
        what: "64 B back from 10,000 of them per second, by ping and pong: p50 / p99",
        text: |record| {
            pair(record, ["/echo/round_trip_us/p50", "/echo/round_trip_us/p99"], 1e-3).map(|both| both.join(" / ") + " ms")
        },
        aim: Some(Aim { value: |record| of(record, "/echo/round_trip_us/p99").map(|us| us / 1e3), most: 2.0, unit: "ms" }),
    },
    Row {
        what: "of that the generator itself was late, p99",
        text: |record| Some(format!("{} ms", number(of(record, "/echo/pacing_us/p99")? / 1e3))),
        aim: None,
    },
];
const MILLION: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(wanted: u64, held: u64, back_end: &str, driver: &str, open_s: f64) -> Value {
        let held = json!({
            "wanted": wanted, "held": held, "back_end": back_end, "open_s": open_s, "kernel_bytes": 4_158.7, "gateway_user_bytes": 404.6
        });
        json!({ "held": held, "machine": { "driver": driver, "commit": "c", "kernel": "k", "processor": "p", "cores": 2 } })
    }

    /// Of each case the latest report is shown, phantoms beside sockets, and a short one not at all.
    #[test]
    fn phantoms_stand_beside_sockets() {
        let records = [
            report(1_000_000, 1_000_000, "phantom", "uring", 40.0),
            report(1_000_000, 1_000_000, "sockets", "uring", 66.0),
            report(60_000, 60_000, "sockets", "epoll", 5.0),
            report(4_000_000, 3_999_999, "phantom", "uring", 59.0),
            report(1_000_000, 1_000_000, "sockets", "uring", 61.0),
        ];
        let columns = columns(&records);
        let titles: Vec<String> = columns.iter().map(|record| title(record)).collect();
        assert_eq!(titles, ["io_uring, 1,000,000 sockets", "io_uring, 1,000,000 phantoms", "io_uring, 4,000,000 phantoms"]);
        let cells = |row: &Row| columns.iter().map(|record| row.cell(record)).collect::<Vec<_>>();
        assert_eq!(cells(&ROWS[0]), ["1,000,000; 0", "1,000,000; 0", "**3,999,999; 1**"]);
        assert_eq!(cells(&ROWS[1]), ["**61 s**", "40 s", "59 s"]);
        assert_eq!(cells(&ROWS[3])[0], "4,159 + 405 bytes");
        assert_eq!(cells(&ROWS[5]), ["", "", ""]);
    }
}
