//! A run of `loadgen`, the program beside this one, against a gateway under measurement.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::gateway::Gateway;

/// A run under way; killed when dropped.
pub struct Load {
    child: Child,
    report: PathBuf,
}

/// What it reported.
pub struct Report(Value);

impl Load {
    /// Starts a scenario with its flags.
    pub fn start(gateway: &Gateway, scenario: &str) -> Result<Self, String> {
        let report = gateway.data().with_extension("json");
        let mut command = gateway.loadgen(scenario);
        command.args(["--pid", &gateway.pid().to_string(), "--json"]).arg(&report).stdout(Stdio::null());
        let child = command.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
        Ok(Self { child, report })
    }

    /// Whether it goes on.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It ended early, or found a message lost, doubled or out of order.
    pub fn finish(mut self) -> Result<Report, String> {
        let status = self.child.wait().map_err(|error| error.to_string())?;
        let text =
            fs::read_to_string(&self.report).map_err(|error| format!("loadgen ended without a report, {status}: {error}"))?;
        let _ = fs::remove_file(&self.report);
        let report = serde_json::from_str(&text).map(Report).map_err(|error| error.to_string())?;
        if status.success() { Ok(report) } else { Err(format!("loadgen: {status}: {}", report.0["findings"])) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One scenario from beginning to end.
///
/// # Errors
/// As [`Load::finish`].
pub fn run(gateway: &Gateway, scenario: &str) -> Result<Report, String> {
    Load::start(gateway, scenario)?.finish()
}

impl Report {
    /// The number at a JSON pointer, such as `/stages/0/sent_us/p99`.
    pub fn number(&self, pointer: &str) -> Result<f64, String> {
        self.0.pointer(pointer).and_then(Value::as_f64).ok_or_else(|| format!("loadgen reports no {pointer}"))
    }

    /// What it did once a second.
    pub fn samples(&self) -> &[Value] {
        self.0["samples"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The most that the gateway had resident, bytes.
    pub fn resident_bytes_max(&self) -> f64 {
        self.samples().iter().filter_map(|sample| sample["gateway"]["rss_bytes"].as_f64()).fold(0.0, f64::max)
    }
}
