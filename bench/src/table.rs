//! The tables of figures in README.md, written from `bench/results`, good and bad alike.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::million;
use crate::paired::Options;
use crate::rows;

/// Writes them between their markers.
pub fn run(options: &Options) -> Result<(), String> {
    let path = Path::new("README.md");
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}; run this at the root", path.display()))?;
    let text = between(&text, BEGIN, END, &render(&options.results)?)?;
    let text = match million::render(&options.results)? {
        Some(table) => between(&text, BEGIN_MILLION, END_MILLION, &table)?,
        None => text,
    };
    let text = between(&text, BEGIN_ROWS, END_ROWS, &rows::render(&options.results)?)?;
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Puts a table in place of what stands between two lines.
fn between(text: &str, begin: &str, end: &str, table: &str) -> Result<String, String> {
    let (head, rest) = text.split_once(begin).ok_or_else(|| format!("no line {begin:?} in README.md"))?;
    let (_, tail) = rest.split_once(end).ok_or_else(|| format!("no line {end:?} in README.md"))?;
    Ok(format!("{head}{begin}\n{table}{end}{tail}"))
}

/// The numbers in the name of a case, by which cases stand in order: one at a time before sixteen.
fn order(record: &Value) -> Vec<u64> {
    let case = record["case"].as_str().unwrap_or_default();
    case.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn render(results: &Path) -> Result<String, String> {
    let mut out = String::new();
    for section in SECTIONS {
        let path = results.join(format!("{}.json", section.subject));
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let records: Vec<Value> = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut records: Vec<&Value> = records.iter().filter(|record| record["contenders"].is_object()).collect();
        if records.is_empty() {
            continue;
        }
        let origins: BTreeSet<String> = records.iter().map(|record| origin(record)).collect();
        records.sort_by_key(|record| order(record));
        let columns: Vec<&(&str, &str)> =
            COLUMNS.iter().filter(|(name, _)| records.iter().any(|record| record["contenders"][name].is_object())).collect();
        let line = |out: &mut String, cells: Vec<String>| writeln!(out, "| {} |", cells.join(" | ")).expect("a string takes all");
        line(
            &mut out,
            [section.title]
                .into_iter()
                .chain(columns.iter().map(|(_, title)| *title))
                .chain(["aim"])
                .map(str::to_owned)
                .collect(),
        );
        line(&mut out, ["---"].into_iter().chain(columns.iter().map(|_| "--:")).chain(["--:"]).map(str::to_owned).collect());
        for record in &records {
            let case = record["case"].as_str().unwrap_or_default();
            let aim = section.aims.iter().find(|(part, _)| case.contains(part)).and_then(|&(_, aim)| aim);
            let cells = columns.iter().map(|(name, _)| cell(&record["contenders"][name], record, aim, is_ours(name)));
            let aim = aim.map_or_else(String::new, |aim| format!("{aim:.2}"));
            line(&mut out, [case.to_owned()].into_iter().chain(cells).chain([aim]).collect());
        }
        let origins: Vec<String> = origins.into_iter().collect();
        writeln!(out, "\n{}.\n", origins.join("; ")).expect("a string takes all");
    }
    if out.is_empty() {
        return Err("there is nothing in the results yet".to_owned());
    }
    out.push_str(CAPTION);
    Ok(out)
}

/// How often and how long was measured, and on what.
fn origin(record: &Value) -> String {
    format!("{} × {} s, {}", record["repetitions"], record["seconds"], rows::origin(&record["machine"]))
}

fn cell(figures: &Value, record: &Value, aim: Option<f64>, is_ours: bool) -> String {
    let (bytes, us) = (&figures["user_bytes_per_connection"], &figures["cpu_us_per_connection"]["median"]);
    if let (Some(median), Some(least), Some(most)) = (bytes["median"].as_f64(), bytes["least"].as_f64(), bytes["most"].as_f64()) {
        return format!("{median:.0} B ({least:.0} to {most:.0}), {:.0} µs", us.as_f64().unwrap_or_default());
    }
    let figure = |name: &str| figures[name]["median"].as_f64();
    if let (Some(seconds), Some(us), Some(memory)) = (figure("back_s"), us.as_f64(), figure("memory_ratio")) {
        let p99 = figure("ping_p99_ratio").map_or_else(String::new, |ratio| format!(", p99 × {ratio:.1}"));
        return format!("{seconds:.2} s, {us:.0} µs, memory × {memory:.2}{p99}");
    }
    let ratio = &figures["ratio"];
    let (Some(median), Some(least), Some(most)) = (ratio["median"].as_f64(), ratio["least"].as_f64(), ratio["most"].as_f64())
    else {
        return String::new();
    };
    let mut text = format!("{median:.2} ({least:.2} to {most:.2})");
    let unit = UNITS.iter().find(|unit| !figures[format!("cpu_us_per_{unit}")].is_null());
    if let Some(us) = unit.and_then(|unit| figures[format!("cpu_us_per_{unit}")]["median"].as_f64()) {
        write!(text, ", {us:.2} µs").expect("a string takes all");
    }
    if let Some(calls) = figure("system_calls_per_message").filter(|_| record["subject"] == "echo") {
        write!(text, ", {calls:.2} calls").expect("a string takes all");
    }
    if let Some((rate, syncs)) = figure("messages_per_s").zip(figure("syncs_per_message")) {
        let decimals = if syncs < 0.1 { 4 } else { 2 };
        write!(text, ", {:.1} thousand/s, {syncs:.decimals$} syncs", rate / 1e3).expect("a string takes all");
    }
    if let Some(rate) = figures["deliverys_per_s"]["median"].as_f64() {
        write!(text, ", {:.0} thousand/s", rate / 1e3).expect("a string takes all");
    }
    if is_ours && aim.is_some_and(|aim| median < aim) { format!("**{text}**") } else { text }
}

fn is_ours(name: &str) -> bool {
    name == "epoll" || name == "uring"
}

struct Section {
    subject: &'static str,
    title: &'static str,
    /// A part of the name of a case, and the ratio wanted, if there is one; the first that fits counts.
    aims: &'static [(&'static str, Option<f64>)],
}

const SECTIONS: &[Section] = &[
    Section {
        subject: "echo",
        title: "WebSocket echo, messages per CPU-second, against a bare TCP echo",
        aims: &[
            // Wanted is this of 100 to 1,000 connections.
            (" 1 connections", None),
            (" 10000 connections", None),
            ("16 in flight", Some(0.92)),
            ("16384 B", Some(0.85)),
            ("4096 B", None),
            (" 100 connections", Some(0.93)),
            (" 1000 connections", Some(0.93)),
        ],
    },
    Section {
        subject: "upgrade",
        title: "newcomers per CPU-second, against accept and a canned answer",
        aims: &[("HELLO", None), ("full upgrade", Some(0.90))],
    },
    Section {
        subject: "fanout",
        title: "group deliveries per CPU-second, stored and synced, against bare sends",
        aims: &[("1000 members, 16 at a time", Some(0.75)), ("1000 members, 1 at a time", Some(0.90))],
    },
    Section {
        subject: "work",
        title: "one-to-one messages of 200 B per CPU-second, synced, acknowledged and delivered, against a bare echo at depth 1",
        aims: &[("16 in flight", Some(0.50)), ("1 in flight", Some(0.35))],
    },
    Section {
        subject: "durable",
        title: "durable acknowledged messages per second, against NATS JetStream with sync always",
        aims: &[("senders", Some(10.0))],
    },
    Section {
        subject: "crowd",
        title: "user memory of an idle connection, and CPU to let it in; ours with a session, rooms of strangers entered",
        aims: &[],
    },
    Section {
        subject: "rush",
        title: "everybody gone and back at once: until the last is back, CPU for each, memory and p99 of those who stayed against before",
        aims: &[],
    },
];
const COLUMNS: &[(&str, &str)] = &[
    ("epoll", "epoll"),
    ("uring", "io_uring"),
    ("bun", "Bun (uWebSockets' engine)"),
    ("tokio_tungstenite", "tokio-tungstenite"),
    ("nats_jetstream", "NATS JetStream"),
    ("nats_websocket", "NATS, WebSocket"),
    ("centrifugo", "Centrifugo"),
    ("nchan", "Nchan"),
    ("floor_again", "the floor itself"),
];
const CAPTION: &str = "Below each table: repetitions, how long each is driven in one, and what was measured. Medians of ratios taken within one \
    repetition, all contenders in turn, in brackets the least and the most; one core for the servers and one for the clients, limits on what \
    one user may send lifted. Calls: system calls of all threads of the server per message, counted by the kernel from the first message of a \
    window to its last, the median of three windows at least beside the repetitions. Syncs: the same of fsync and its kin, within the \
    repetitions.\n";
const UNITS: &[&str] = &["message", "connection", "delivery"];
const BEGIN: &str = "<!-- figures: written by `tidegate-bench table` -->";
const END: &str = "<!-- end of figures -->";
const BEGIN_MILLION: &str = "<!-- million: written by `tidegate-bench table` -->";
const END_MILLION: &str = "<!-- end of million -->";
const BEGIN_ROWS: &str = "<!-- rows: written by `tidegate-bench table` -->";
const END_ROWS: &str = "<!-- end of rows -->";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Numbers decide, and not how they are spelt.
    #[test]
    fn one_at_a_time_stands_before_sixteen() {
        let mut cases =
            ["1000 members, 16 at a time", "20 members in each of 50 groups, 1 at a time", "1000 members, 1 at a time"]
                .map(|case| json!({ "case": case }));
        cases.sort_by_key(order);
        assert_eq!(cases.each_ref().map(order), [vec![20, 50, 1], vec![1000, 1], vec![1000, 16]]);
    }

    /// What stands around a table stays.
    #[test]
    fn table_is_written_between_its_lines() {
        assert_eq!(between("a\n<\nold>\nb", "<", ">", "new\n").unwrap(), "a\n<\nnew\n>\nb");
        assert!(between("a", "<", ">", "new").is_err());
    }
}
