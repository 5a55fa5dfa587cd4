//! Figures with their spread, printed and kept.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::{Common, machine};

/// The figures of one run: name, with its unit at the end, and value.
#[derive(Clone, Debug, Default)]
pub struct Run {
    figures: Vec<(String, f64)>,
}

impl Run {
    /// Adds a figure.
    pub fn add(&mut self, name: impl Into<String>, value: f64) {
        self.figures.push((name.into(), value));
    }

    fn value(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|(known, _)| known == name).map(|&(_, value)| value)
    }
}

/// Prints a line per figure and appends the record.
pub fn report(subject: &str, common: &Common, runs: &[Run]) -> Result<(), String> {
    let mut figures = serde_json::Map::new();
    println!("{:<36} {:>12} {:>12} {:>12}", format!("{subject}, {} runs", runs.len()), "median", "least", "most");
    for name in names(runs) {
        let spread = spread(runs.iter().filter_map(|run| run.value(&name)).collect());
        println!("{name:<36} {:>12.2} {:>12.2} {:>12.2}", spread.median, spread.least, spread.most);
        figures.insert(name, spread.json());
    }
    append(subject, common, with_origin(subject, common, json!({ "figures": figures })))
}

/// Keeps a record of a comparison, in place of an earlier one of the same case.
pub fn keep(subject: &str, common: &Common, record: Value) -> Result<(), String> {
    append(subject, common, with_origin(subject, common, record))
}

fn with_origin(subject: &str, common: &Common, mut record: Value) -> Value {
    let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    record["subject"] = json!(subject);
    record["command"] = json!(command());
    record["note"] = json!(common.note);
    record["unix_s"] = json!(unix_s);
    record["machine"] = machine::facts(&common.data);
    record
}

/// Median and extremes of some runs.
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
    runs: Vec<f64>,
}

impl Spread {
    /// As it is kept.
    pub fn json(&self) -> Value {
        json!({ "median": self.median, "least": self.least, "most": self.most, "runs": self.runs })
    }
}

/// Of at least one value.
pub fn spread(runs: Vec<f64>) -> Spread {
    let mut sorted = runs.clone();
    sorted.sort_by(f64::total_cmp);
    Spread { median: sorted[sorted.len() / 2], least: sorted[0], most: sorted[sorted.len() - 1], runs }
}

/// Every figure of any run, in the order in which they first appear.
fn names(runs: &[Run]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in runs.iter().flat_map(|run| &run.figures) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// The command line; of the program only its name, since where it stood says nothing.
fn command() -> String {
    std::iter::once("tidegate-bench".to_owned()).chain(std::env::args().skip(1)).collect::<Vec<_>>().join(" ")
}

fn append(subject: &str, common: &Common, record: Value) -> Result<(), String> {
    let path = common.results.join(format!("{subject}.json"));
    let name = path.display();
    let mut records: Vec<Value> = match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| format!("{name} is not a list of results: {error}"))?,
        Err(_) => Vec::new(),
    };
    // A comparison of the same case replaces the one before: history has it.
    records.retain(|known| record["case"].is_null() || known["case"] != record["case"]);
    records.push(record);
    let text = serde_json::to_string_pretty(&records).map_err(|error| error.to_string())?;
    fs::create_dir_all(&common.results).and_then(|()| fs::write(&path, text + "\n")).map_err(|error| format!("{name}: {error}"))
}
