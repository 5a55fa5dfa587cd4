//! The load generator: what a run comes to, as an exit code.

mod line;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use loadgen::page;

use crate::line::{Line, Scenario, arguments};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let line = Line::parse();
    let done = match line.scenario {
        Scenario::Page { run, other, html } => {
            return match compare(&run, other.as_deref(), &html) {
                Ok(()) => ExitCode::SUCCESS,
                Err(reason) => fail(&reason),
            };
        }
        Scenario::Verify(args) => {
            return match args.run() {
                Ok((verdict, is_clean)) => {
                    print!("{verdict}");
                    ExitCode::from(if is_clean && verdict.total().is_clean() { 0 } else { EXIT_LEDGER })
                }
                Err(reason) => fail(&reason),
            };
        }
        Scenario::File { file } => arguments(&file).and_then(|line| Line::parse_from(line).run()),
        _ => line.run(),
    };
    match done {
        Ok(report) => {
            print!("{}", report.text());
            if !report.findings.is_empty() {
                ExitCode::from(EXIT_LEDGER)
            } else if !report.broken.is_empty() {
                ExitCode::from(EXIT_THRESHOLD)
            } else {
                ExitCode::SUCCESS
            }
        }
        Err(reason) => fail(&reason),
    }
}

fn fail(reason: &str) -> ExitCode {
    eprintln!("loadgen: {reason}");
    ExitCode::from(EXIT_FAILED)
}

fn compare(run: &Path, other: Option<&Path>, html: &Path) -> Result<(), String> {
    let read = |path: &Path| -> Result<serde_json::Value, String> {
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        serde_json::from_str(&text).map_err(|error| format!("{} is no report: {error}", path.display()))
    };
    let other = other.map(read).transpose()?;
    fs::write(html, page::html(&read(run)?, other.as_ref())).map_err(|error| format!("cannot write {}: {error}", html.display()))
}

const EXIT_LEDGER: u8 = 1;
const EXIT_THRESHOLD: u8 = 3;
const EXIT_FAILED: u8 = 4;
