//! The gateway binary beside this test, built if it is not there, and the load generator run against it.
#![allow(dead_code, reason = "each test takes what it needs")]

#[path = "../../../tests/support/port.rs"]
mod port;
pub mod proxy;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

pub use port::free_port;

/// Ports and a data directory for one gateway.
pub struct Place {
    pub port: u16,
    pub admin: u16,
    pub data: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let data = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("loadgen-{}-{number}", std::process::id()));
        drop(std::fs::remove_dir_all(&data));
        Self { port: free_port(), admin: free_port(), data }
    }

    /// The command that starts it, on the driver of this run.
    pub fn command(&self) -> String {
        let Self { port, admin, data } = self;
        let driver = std::env::var("TIDEGATE_TEST_DRIVER").map_or_else(|_| String::new(), |name| format!(" --driver {name}"));
        format!(
            "{} serve --listen 127.0.0.1:{port} --admin-listen 127.0.0.1:{admin} --data-dir {} --log-level error \
             --store-free-bytes-min 1048576 --protocol-send-rate 10000 --protocol-send-burst 1000 --protocol-fetch-rate 10000{driver}",
            gateway().display(),
            data.display()
        )
    }

    /// Runs the load generator, which starts the gateway, with connections going to `port`.
    pub fn loadgen(&self, scenario: &str, start: &str, port: u16, more: &[&str]) -> (Output, serde_json::Value) {
        let output = self.line(scenario, start, port, more).output().expect("the load generator runs");
        (output, self.report())
    }

    /// The command line for that.
    pub fn line(&self, scenario: &str, start: &str, port: u16, more: &[&str]) -> Command {
        let mut line = Command::new(env!("CARGO_BIN_EXE_loadgen"));
        line.args([scenario, "--start", start])
            .args(if more.contains(&"--url") {
                Vec::new()
            } else {
                vec!["--url".to_owned(), format!("ws://127.0.0.1:{port}/ws")]
            })
            .args(["--admin", &format!("127.0.0.1:{}", self.admin), "--data-dir"])
            .arg(&self.data)
            .arg("--json")
            .arg(self.data.with_extension("json"))
            .args(more);
        line
    }

    /// Runs the scenario of a file, which also says where everything is.
    pub fn file(&self, scenario: &str, start: &str, more: &str) -> (Output, serde_json::Value) {
        let (file, json) = (self.data.with_extension("toml"), self.data.with_extension("json"));
        let Self { port, admin, data } = self;
        let text = format!(
            "scenario = \"{scenario}\"\nstart = \"{start}\"\nurl = \"ws://127.0.0.1:{port}/ws\"\nadmin = \"127.0.0.1:{admin}\"\n\
             data_dir = \"{}\"\njson = \"{}\"\n{more}",
            data.display(),
            json.display()
        );
        std::fs::write(&file, text).expect("a file");
        let output = Command::new(env!("CARGO_BIN_EXE_loadgen")).arg("file").arg(&file).output();
        std::fs::remove_file(&file).expect("a file");
        (output.expect("the load generator runs"), self.report())
    }

    /// What the run reported; null if nothing.
    pub fn report(&self) -> serde_json::Value {
        let report = std::fs::read_to_string(self.data.with_extension("json")).ok();
        report.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.data));
        drop(std::fs::remove_file(self.data.with_extension("json")));
    }
}

/// Everything a run said, for the message of an assertion.
pub fn said(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The gateway that is tested with this; what has been built is not built again.
fn gateway() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let built = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/build-gateway")).output().expect("a shell");
        assert!(built.status.success(), "the gateway is built: {}", said(&built));
        PathBuf::from(String::from_utf8_lossy(&built.stdout).trim_end())
    })
}
