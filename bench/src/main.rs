//! Measures the release binary from outside: `idle`, `send`, `echo`.
//!
//! ```text
//! cargo build --release --workspace
//! tidegate-bench idle --connections 10000
//! tidegate-bench send --connections 1000                  # as fast as it goes, one message in flight each
//! tidegate-bench send --connections 1000 --rate 10000     # open loop: latency from the intended time
//! tidegate-bench echo --connections 100
//! ```
//!
//! Each run starts a gateway of its own on an empty data directory. A figure is printed with its spread over the runs and appended,
//! with command, commit, kernel, machine and limits, to `bench/results/<subject>.json`.

mod client;
mod echo;
mod gateway;
mod idle;
mod machine;
mod pace;
mod results;
mod send;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::results::Run;

fn main() -> ExitCode {
    let command = Command::parse();
    let (subject, common) = match &command.subject {
        Subject::Idle(common) => ("idle", common),
        Subject::Send(send) => ("send", &send.common),
        Subject::Echo(common) => ("echo", common),
    };
    match measure(&command.subject, common).and_then(|runs| results::report(subject, common, &runs)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn measure(subject: &Subject, common: &Common) -> Result<Vec<Run>, String> {
    machine::raise_descriptors(common.connections)?;
    (0..common.runs)
        .map(|_| match subject {
            Subject::Idle(common) => idle::run(common),
            Subject::Send(options) => send::run(options),
            Subject::Echo(common) => echo::run(common),
        })
        .collect()
}

/// Measures the Tidegate gateway.
#[derive(Debug, Parser)]
struct Command {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// User memory per idle authenticated connection.
    Idle(Common),
    /// Durable messages: rate, latency of SENT and DELIVER, CPU per message.
    Send(SendOptions),
    /// Bare WebSocket echo: rate, latency, CPU per message.
    Echo(Common),
}

/// What every subject is told.
#[derive(Clone, Debug, Args)]
struct Common {
    /// The binary to measure; by default the one beside this program.
    #[arg(long)]
    gateway: Option<PathBuf>,
    /// Where data directories are made, on the disk to be measured; removed after each run.
    #[arg(long, default_value = "target/bench-data")]
    data: PathBuf,
    /// Where results are appended.
    #[arg(long, default_value = "bench/results")]
    results: PathBuf,
    /// Connections.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// How often to measure.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Seconds before measuring.
    #[arg(long, default_value_t = 3.0)]
    warm_up: f64,
    /// Seconds of measuring.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Bytes of payload; by default 200 for `send`, 64 for `echo`.
    #[arg(long)]
    payload: Option<usize>,
    /// A setting of the gateway, such as `store.level=1`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// A word about these runs, kept with the result.
    #[arg(long)]
    note: Option<String>,
}

impl Common {
    fn gateway(&self) -> PathBuf {
        let beside = || std::env::current_exe().unwrap_or_default().with_file_name("tidegate");
        self.gateway.clone().unwrap_or_else(beside)
    }

    fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up)
    }

    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

#[derive(Clone, Debug, Args)]
struct SendOptions {
    #[command(flatten)]
    common: Common,
    /// Messages per second over all connections, open loop. 0: closed loop, as fast as answers come.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Closed loop: messages of each connection in flight.
    #[arg(long, default_value_t = 1)]
    in_flight: u32,
}
