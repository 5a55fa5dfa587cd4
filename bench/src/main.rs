//! Measures the release binary from outside.
//!
//! ```text
//! cargo build --release --workspace
//! tidegate-bench all                                      # every comparison, then the table in README.md
//! tidegate-bench echo                                     # one subject: against a bare echo, and peers that are installed
//! tidegate-bench echo --case "64 B, 100 " --against OLD   # one case, and another build beside this one
//! tidegate-bench table                                    # both tables in README.md from what is kept
//! ```
//!
//! Figures held against a bar (the second table; each of them is kept before the next begins):
//!
//! ```text
//! tidegate-bench send --in-flight 16                      # durable messages per second, closed loop
//! tidegate-bench send --in-flight 16 --beside 99000       # the same with 100,000 open sessions
//! tidegate-bench send --rate 20000 --seconds 300 --runs 1 # open loop: latency from the intended time, bytes written per message
//! tidegate-bench redeliver                                # refused once and delivered again, against not refused
//! tidegate-bench resume --connections 10000               # all cut, all back at once
//! tidegate-bench sync                                     # SYNC of 1,000 conversations
//! tidegate-bench reopen                                   # from kill -9 at full load until ready again
//! tidegate-bench idle --connections 10000
//! ```
//!
//! Each run starts servers of its own, a gateway on an empty data directory. A figure is printed with its spread over the runs and kept,
//! with command, commit, kernel, machine and limits, in `bench/results/<subject>.json`. [`paired`] says how comparisons are made.

mod abuser;
mod client;
mod crowd;
mod deaf;
mod durable;
mod echo;
mod fanout;
mod floor;
mod gateway;
mod idle;
mod kernel;
mod load;
mod machine;
mod million;
mod nats;
mod overload;
mod pace;
mod paired;
mod peer;
mod redeliver;
mod refuse;
mod reopen;
mod results;
mod resume;
mod rows;
mod rush;
mod send;
mod server;
mod share;
mod slowloris;
mod stretch;
mod sync;
mod table;
mod threads;
mod tls;
mod upgrade;
mod volley;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::floor::Duty;
use crate::overload::OverloadOptions;
use crate::paired::Options;
use crate::redeliver::RedeliverOptions;
use crate::reopen::ReopenOptions;
use crate::results::Run;

fn main() -> ExitCode {
    match run(&Command::parse().subject) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(subject: &Subject) -> Result<(), String> {
    match subject {
        Subject::Idle(common) => results::report("idle", common, &repeat(common, || idle::run(common))?),
        Subject::Refuse(common) => results::report("refuse", common, &repeat(common, || refuse::run(common))?),
        Subject::Tls(common) => results::report("tls", common, &repeat(common, || tls::run(common))?),
        Subject::Slowloris(common) => {
            let runs = repeat_with(common, slowloris::per_table(common), || slowloris::run(common))?;
            results::report("slowloris", common, &runs)
        }
        Subject::Deaf(common) => results::report("deaf", common, &repeat(common, || deaf::run(common))?),
        Subject::Overload(options) => {
            results::report("overload", &options.common, &repeat(&options.common, || overload::run(options))?)
        }
        Subject::Abuser(common) => results::report("abuser", common, &repeat(common, || abuser::run(common))?),
        Subject::Send(options) => results::report("send", &options.common, &repeat(&options.common, || send::run(options))?),
        Subject::Reopen(options) => {
            results::report("reopen", &options.common, &repeat(&options.common, || reopen::run(options))?)
        }
        Subject::Redeliver(options) => {
            results::report("redeliver", &options.common, &repeat(&options.common, || redeliver::run(options))?)
        }
        Subject::Resume(common) => results::report("resume", common, &repeat(common, || resume::run(common))?),
        Subject::Sync(common) => results::report("sync", common, &repeat(common, || sync::run(common))?),
        Subject::Floor { duty, members } => floor::run(*duty, *members).map_err(|error| error.to_string()),
        Subject::Echo(options) => compare(options, &[echo::run]),
        Subject::Upgrade(options) => compare(options, &[upgrade::run]),
        Subject::Fanout(options) => compare(options, &[fanout::run]),
        Subject::Work(options) => compare(options, &[work::run]),
        Subject::Durable(options) => compare(options, &[durable::run]),
        Subject::Crowd(options) => compare(options, &[crowd::run]),
        Subject::Rush(options) => compare(options, &[rush::run]),
        Subject::All(options) => {
            let subjects = [echo::run, upgrade::run, fanout::run, work::run, durable::run, crowd::run, rush::run, table::run];
            compare(options, &subjects)
        }
        Subject::Table(options) => table::run(options),
    }
}

fn repeat(common: &Common, measure: impl FnMut() -> Result<Run, String>) -> Result<Vec<Run>, String> {
    repeat_with(common, common.connections, measure)
}

/// [`repeat`], where one descriptor table holds so many connections.
fn repeat_with(common: &Common, per_table: usize, mut measure: impl FnMut() -> Result<Run, String>) -> Result<Vec<Run>, String> {
    machine::raise_descriptors(per_table)?;
    (0..common.runs).map(|_| measure()).collect()
}

/// What measures a subject.
type Compare = fn(&Options) -> Result<(), String>;

fn compare(options: &Options, subjects: &[Compare]) -> Result<(), String> {
    machine::raise_descriptors(0)?;
    subjects.iter().try_for_each(|subject| subject(options))
}

/// Measures the Tidegate gateway.
#[derive(Debug, Parser)]
struct Command {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Every comparison, and then the table.
    All(Options),
    /// WebSocket echo: messages per CPU-second against a bare TCP echo.
    Echo(Options),
    /// Newcomers: connections per CPU-second against a bare accept with a canned answer.
    Upgrade(Options),
    /// Group messages: deliveries per CPU-second against bare sends.
    Fanout(Options),
    /// One-to-one messages, stored and delivered: messages per CPU-second against a bare echo.
    Work(Options),
    /// Durable acknowledged messages per second against NATS JetStream.
    Durable(Options),
    /// Connections that only stand: user memory of each, and CPU to let it in.
    Crowd(Options),
    /// Everybody gone and back at once: seconds, CPU, memory, and what those notice who stayed.
    Rush(Options),
    /// Writes the table of figures into README.md.
    Table(Options),
    /// User memory per idle authenticated connection.
    Idle(Common),
    /// What a refusal costs, and the limits that every message passes.
    Refuse(Common),
    /// TLS handshakes per CPU-second against the library's own, and memory of a session that rests against plaintext.
    Tls(Common),
    /// Connections that send a byte per second: memory of each before it is authenticated, and honest newcomers meanwhile.
    Slowloris(Common),
    /// Half of the clients read nothing: the memory bound, honest clients, and what is lost.
    Deaf(Common),
    /// Twice the peak of a gateway on a share of a core is offered, then half of what it carries: what is acknowledged meanwhile, and how
    /// long until nothing waits.
    Overload(OverloadOptions),
    /// Somebody sends without end: how long until that one is cut off, and what others notice.
    Abuser(Common),
    /// Durable messages: rate, latency of SENT and DELIVER, CPU per message.
    Send(SendOptions),
    /// Messages that are refused once and come again, against messages that are not: CPU of a redelivery.
    Redeliver(RedeliverOptions),
    /// From kill -9 at full load until ready again.
    Reopen(ReopenOptions),
    /// Everybody gone and back at once: memory of a session that waits, cost of resuming it.
    Resume(Common),
    /// SYNC of one user with as many conversations as `--connections` says.
    Sync(Common),
    /// What others are held against; started by the comparisons.
    #[command(hide = true)]
    Floor {
        duty: Duty,
        /// Fanout: so many connections, in the order in which they came, are one room.
        #[arg(long, default_value_t = usize::MAX)]
        members: usize,
    },
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
    /// Bytes of payload of a message; 200 by default.
    #[arg(long)]
    payload: Option<usize>,
    /// A setting of the gateway, such as `store.level=1`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// A word about these runs, kept with the result.
    #[arg(long)]
    note: Option<String>,
    /// Tells data directories of one run apart.
    #[arg(skip)]
    label: String,
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
    /// Each message is refused once by its receiver, and comes again a second later.
    #[arg(long)]
    nack: bool,
    /// Idle sessions beside those that send, held open by the `loadgen` beside this program.
    #[arg(long, default_value_t = 0)]
    beside: usize,
}
