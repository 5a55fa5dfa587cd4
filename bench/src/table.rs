//! The table of figures in README.md, written from `bench/results`, good and bad alike.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::paired::Options;

/// Writes it between the markers.
pub fn run(options: &Options) -> Result<(), String> {
    let path = Path::new("README.md");
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}; run this at the root", path.display()))?;
    let (head, rest) = text.split_once(BEGIN).ok_or_else(|| format!("no line {BEGIN:?} in README.md"))?;
    let (_, tail) = rest.split_once(END).ok_or_else(|| format!("no line {END:?} in README.md"))?;
    let table = render(&options.results)?;
    fs::write(path, format!("{head}{BEGIN}\n{table}{END}{tail}")).map_err(|error| format!("{}: {error}", path.display()))
}

fn render(results: &Path) -> Result<String, String> {
    let mut out = String::new();
    let mut origin = None;
    for section in SECTIONS {
        let path = results.join(format!("{}.json", section.subject));
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let records: Vec<Value> = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        let records: Vec<&Value> = records.iter().filter(|record| record["contenders"].is_object()).collect();
        let Some(last) = records.last() else { continue };
        origin.get_or_insert_with(|| (*last).clone());
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
            let aim = section.aims.iter().find(|(part, _)| case.contains(part)).map(|&(_, aim)| aim);
            let cells = columns.iter().map(|(name, _)| cell(&record["contenders"][name], record, aim, is_ours(name)));
            let aim = aim.map_or_else(String::new, |aim| format!("{aim:.2}"));
            line(&mut out, [case.to_owned()].into_iter().chain(cells).chain([aim]).collect());
        }
        out.push('\n');
    }
    let Some(origin) = origin else { return Err("there is nothing in the results yet".to_owned()) };
    let machine = &origin["machine"];
    let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    writeln!(
        out,
        "Medians of ratios taken within one repetition, {} repetitions of {} s each in turn, in brackets the least and the most. Linux {}, {}, {} \
         cores, one for the servers and one for the clients; commit {}.",
        origin["repetitions"],
        origin["seconds"],
        word(&machine["kernel"]),
        word(&machine["processor"]),
        machine["cores"],
        word(&machine["commit"]),
    )
    .expect("a string takes all");
    Ok(out)
}

fn cell(figures: &Value, record: &Value, aim: Option<f64>, is_ours: bool) -> String {
    let (bytes, us) = (&figures["user_bytes_per_connection"], &figures["cpu_us_per_connection"]["median"]);
    if let (Some(median), Some(least), Some(most)) = (bytes["median"].as_f64(), bytes["least"].as_f64(), bytes["most"].as_f64()) {
        return format!("{median:.0} B ({least:.0} to {most:.0}), {:.0} µs", us.as_f64().unwrap_or_default());
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
    if let Some(calls) = figures["system_calls_per_message"].as_f64().filter(|_| record["subject"] == "echo") {
        write!(text, ", {calls:.2} calls").expect("a string takes all");
    }
    if is_ours && aim.is_some_and(|aim| median < aim) { format!("**{text}**") } else { text }
}

fn is_ours(name: &str) -> bool {
    name == "epoll" || name == "uring"
}

struct Section {
    subject: &'static str,
    title: &'static str,
    /// A part of the name of a case, and the ratio wanted; the first that fits counts.
    aims: &'static [(&'static str, f64)],
}

const SECTIONS: &[Section] = &[
    Section {
        subject: "echo",
        title: "WebSocket echo, messages per CPU-second, against a bare TCP echo",
        aims: &[("16 in flight", 0.92), ("16384 B", 0.85), (" 100 connections", 0.93), (" 1000 connections", 0.93)],
    },
    Section {
        subject: "upgrade",
        title: "newcomers per CPU-second, against accept and a canned answer",
        aims: &[("full upgrade", 0.90)],
    },
    Section {
        subject: "fanout",
        title: "group deliveries per CPU-second, stored and synced, against bare sends",
        aims: &[("16 at a time", 0.75), ("1 at a time", 0.90)],
    },
    Section {
        subject: "work",
        title: "one-to-one messages of 200 B per CPU-second, synced, acknowledged and delivered, against a bare echo at depth 1",
        aims: &[("16 in flight", 0.50), ("1 in flight", 0.35)],
    },
    Section {
        subject: "durable",
        title: "durable acknowledged messages per second, against NATS JetStream with sync always",
        aims: &[("senders", 10.0)],
    },
    Section {
        subject: "crowd",
        title: "user memory of an idle connection, and CPU to let it in; ours with a session, rooms of strangers entered",
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
const UNITS: &[&str] = &["message", "connection", "delivery"];
const BEGIN: &str = "<!-- figures: written by `tidegate-bench table` -->";
const END: &str = "<!-- end of figures -->";
