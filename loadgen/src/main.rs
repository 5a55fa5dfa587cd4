//! The command line of the load generator.                                                            [clap, indicatif, toml_edit]

use std::fs;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use loadgen::hdr::Log;
use loadgen::hold::{self, Task};
use loadgen::network::{SOURCES_MAX, source};
use loadgen::page;
use loadgen::phantom::Device;
use loadgen::report::{Report, Sample, Stage};
use loadgen::run::{Bench, Progress, Run, unix_ms};
use loadgen::scenario::Load;
use loadgen::subject::{Minter, Process, Started, Target};
use loadgen::swarm::{self, Pulse, Swarm};
use loadgen::verify::PAYLOAD_BYTES_MIN;
use tidegate::io::descriptors::Descriptors;
use tidegate::verify::Verdict;

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

/// The command line that a file stands for.
fn arguments(file: &Path) -> Result<Vec<String>, String> {
    let name = file.display();
    let text = fs::read_to_string(file).map_err(|error| format!("cannot read {name}: {error}"))?;
    let table: toml_edit::DocumentMut = text.parse().map_err(|error| format!("{name}: {error}"))?;
    let scenario = table
        .get("scenario")
        .and_then(|item| item.as_str())
        .ok_or_else(|| format!("{name}: scenario = \"chat\" or so is missing"))?;
    let mut line = vec!["loadgen".to_owned(), scenario.to_owned()];
    for (key, item) in table.iter().filter(|(key, _)| *key != "scenario") {
        let flag = format!("--{}", key.replace('_', "-"));
        match item.as_value() {
            Some(toml_edit::Value::Boolean(on)) => line.extend(on.value().then_some(flag)),
            Some(toml_edit::Value::String(text)) => line.push(format!("{flag}={}", text.value())),
            Some(toml_edit::Value::Integer(number)) => line.push(format!("{flag}={}", number.value())),
            Some(toml_edit::Value::Float(number)) => line.push(format!("{flag}={}", number.value())),
            _ => return Err(format!("{name}: {key} is neither text, number, true nor false")),
        }
    }
    Ok(line)
}

/// Puts a Tidegate gateway under load and keeps a ledger of every message.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes:\n  0  the ledger is clean and every threshold was kept\n  1  the ledger found something lost, duplicate, out of order or corrupt\n  2  a mistake in the command line\n  3  a threshold was broken\n  4  nothing can be said: the run did not take place or broke off"
)]
struct Line {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Users write to each other and to groups at a steady rate, open loop.
    Chat(ChatArgs),
    /// The same with every message going to a group, unless a smaller share is asked for.
    Group(ChatArgs),
    /// Chat beside connections that read slowly or not at all.
    Slow(SlowArgs),
    /// Chat beside connections that begin and never come to an end; the gateway must close them.
    HalfOpen(HalfOpenArgs),
    /// Very many sessions that only live: no messages but heartbeats, and what that costs.
    Idle(IdleArgs),
    /// Messages that come back from a gateway started with --echo, among connections that only live.
    Echo(EchoArgs),
    /// The highest rate the gateway follows, and the latencies at parts of it.
    Peak(PeakArgs),
    /// Kill -9 under load, restart, and again.
    Crash(CrashArgs),
    /// Everybody is cut off at once and comes back.
    Storm(StormArgs),
    /// Join ledgers with what the gateway holds: what is lost, duplicate, reordered or late. With --canary, of a load made for it.
    Verify(VerifyArgs),
    /// Run the scenario of a TOML file: `scenario = "chat"`, and the flags as keys.
    File {
        /// The file.
        file: PathBuf,
    },
    /// One HTML page out of one JSON report, or out of two to compare.
    Page {
        /// The run.
        run: PathBuf,
        /// Another run.
        other: Option<PathBuf>,
        /// Where to write.
        #[arg(long, value_name = "FILE")]
        html: PathBuf,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum BackEnd {
    /// Real sockets.
    Sockets,
    /// Clients that cost this machine a few bytes each.
    Phantom,
}

/// What is put under load, and where the report goes.
#[derive(Clone, Debug, Args)]
struct Aim {
    /// Where clients connect.
    #[arg(long, default_value = "ws://127.0.0.1:8080/ws")]
    url: String,
    /// The gateway's admin side.
    #[arg(long, default_value = "127.0.0.1:8081")]
    admin: SocketAddr,
    /// Whose TCP carries the clients: the kernel's, or one of this program's own on a TUN device, which needs CAP_NET_ADMIN and reaches
    /// a gateway at 198.18.0.1.
    #[arg(long, value_enum, default_value_t = BackEnd::Sockets)]
    back_end: BackEnd,
    /// Allow a gateway on another machine.
    #[arg(long)]
    allow_remote: bool,
    /// File with the secret that signs tokens.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Data directory of the gateway, where its generated secret is.
    #[arg(long, value_name = "DIR", default_value = "tidegate-data")]
    data_dir: PathBuf,
    /// Start the gateway by this command, and end it afterwards.
    #[arg(long, value_name = "CMD")]
    start: Option<String>,
    /// The gateway's process, whose CPU, memory and descriptors are then reported.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Decides every draw; the same seed brings the same schedule.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Add the report to a list of reports.
    #[arg(long, value_name = "FILE")]
    append: Option<PathBuf>,
    /// A fact that belongs to the report, such as commit=1a2b3c; may be repeated.
    #[arg(long = "fact", value_name = "NAME=VALUE", value_parser = fact)]
    facts: Vec<(String, String)>,
    /// The command line the report names, where another program runs this one.
    #[arg(long, value_name = "COMMAND")]
    told: Option<String>,
    /// Write the report as one HTML page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write latencies, and the lateness of sending, as a HdrHistogram log: by the second, of idle and echo in one interval.
    #[arg(long, value_name = "FILE")]
    hdr: Option<PathBuf>,
}

/// What scenarios of messages are told.
#[derive(Clone, Debug, Args)]
struct Common {
    #[command(flatten)]
    aim: Aim,
    /// Connections.
    #[arg(long, short = 'n', default_value_t = 100)]
    connections: usize,
    /// Users, who own the connections as devices in turn; by default one each.
    #[arg(long)]
    users: Option<usize>,
    /// Payload bytes, or the least and the most: 200 or 32-1024.
    #[arg(long, default_value = "200", value_parser = range)]
    payload: (usize, usize),
    /// Part of the messages that go to a group.
    #[arg(long)]
    group_share: Option<f64>,
    /// Members of a group.
    #[arg(long, default_value_t = 10)]
    group_size: usize,
    /// Connections opened per second.
    #[arg(long, default_value_t = 2000.0)]
    ramp: f64,
    /// Threads that carry connections.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Loopback addresses to come from in turn, so that ports suffice: 127.1.0.1 and so on.
    #[arg(long, default_value_t = 0)]
    sources: u16,
    /// Give each thread a descriptor table, and so a limit of open files, of its own.
    #[arg(long)]
    private_tables: bool,
    /// First ceiling of the clients' reconnect delay, in milliseconds.
    #[arg(long, default_value_t = 500)]
    back_off_ms: u64,
    /// Last ceiling of the clients' reconnect delay, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    back_off_max_ms: u64,
    /// In the end, let one new device per user read everything again.
    #[arg(long)]
    audit: bool,
    /// Seconds that everything may take to arrive in the end.
    #[arg(long, default_value_t = 30.0)]
    drain: f64,
    /// Write down what happens to every device, for `verify`.
    #[arg(long, value_name = "FILE")]
    ledger_out: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
struct ChatArgs {
    #[command(flatten)]
    common: Common,
    /// Messages per second in all.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Seconds before measuring.
    #[arg(long, default_value_t = 2.0)]
    warm_up: f64,
    /// Seconds of measuring.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Connections cut per second, which then come back by themselves.
    #[arg(long, default_value_t = 0.0)]
    churn: f64,
    /// Fail if the p99 of DELIVER is above this many milliseconds.
    #[arg(long, value_name = "MS")]
    max_p99: Option<f64>,
    /// Fail if the p99.9 of DELIVER is above this many milliseconds.
    #[arg(long, value_name = "MS")]
    max_p999: Option<f64>,
    /// Fail if less than this part of the rate is acknowledged, such as 0.99.
    #[arg(long, value_name = "PART")]
    min_rate: Option<f64>,
    /// Fail if the gateway's memory in the second half of the measured time exceeds the most of the first half by so many percent.
    #[arg(long, value_name = "PERCENT")]
    max_growth: Option<f64>,
    /// Fail if the gateway has more sockets after the last connection than before the first.
    #[arg(long)]
    no_sockets_left: bool,
    /// Fail if the gateway ever has more than so many MiB resident.
    #[arg(long, value_name = "MIB")]
    max_rss: Option<f64>,
}

#[derive(Clone, Debug, Args)]
struct VerifyArgs {
    #[command(flatten)]
    common: Common,
    /// Ledgers to judge.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    ledger: Vec<PathBuf>,
    /// First put a gateway that runs under a small load for so many seconds, and judge its ledger, which is written to --ledger-out.
    #[arg(long, value_name = "SECONDS", requires = "ledger_out")]
    canary: Option<f64>,
    /// Messages per second of the canary.
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Compare with this export instead of what the gateway on --data-dir holds.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// Milliseconds from which on an acknowledgement or a delivery counts as late.
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    late_ms: u64,
}

#[derive(Clone, Debug, Args)]
struct SlowArgs {
    #[command(flatten)]
    chat: ChatArgs,
    /// How many of the connections read 10 KiB per second; by default a tenth of them.
    #[arg(long, value_name = "N")]
    slow: Option<usize>,
    /// How many read nothing once they are welcomed; by default a tenth.
    #[arg(long, value_name = "N")]
    deaf: Option<usize>,
}

#[derive(Clone, Debug, Args)]
struct HalfOpenArgs {
    #[command(flatten)]
    chat: ChatArgs,
    /// Connections of each kind: silent, with half a request, without HELLO.
    #[arg(long, default_value_t = 50)]
    each: usize,
    /// Seconds within which the gateway must close them.
    #[arg(long, default_value_t = 15.0)]
    within: f64,
}

/// What scenarios with very many connections are told.
#[derive(Clone, Debug, Args)]
struct ManyArgs {
    #[command(flatten)]
    aim: Aim,
    /// Connections.
    #[arg(long, short = 'n', default_value_t = 100)]
    connections: usize,
    /// Connections opened per second; 0: as fast as it goes.
    #[arg(long, default_value_t = 0.0)]
    ramp: f64,
    /// Connections between connect and welcome at the same time.
    #[arg(long, default_value_t = swarm::OPENING_MAX)]
    opening: usize,
    /// Threads that carry connections; by default as many as the limit of open files asks for, each with a descriptor table of its own.
    #[arg(long)]
    threads: Option<usize>,
    /// Loopback addresses to come from in turn: 127.1.0.1 and so on; by default as many as there are ports for.
    #[arg(long)]
    sources: Option<usize>,
    /// Seconds of rest before measuring.
    #[arg(long, default_value_t = 2.0)]
    warm_up: f64,
}

#[derive(Clone, Debug, Args)]
struct IdleArgs {
    #[command(flatten)]
    many: ManyArgs,
    /// Seconds of heartbeats that are measured.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Then pings of 64 B per second, each to a connection drawn from all, whose pongs are timed.
    #[arg(long, value_name = "PER_S")]
    echo_rate: Option<f64>,
    /// Seconds of these.
    #[arg(long, default_value_t = 10.0)]
    echo_seconds: f64,
    /// Fail if opening takes longer than so many seconds.
    #[arg(long, value_name = "S")]
    max_open: Option<f64>,
    /// Fail if a session costs the gateway more user memory than so many bytes.
    #[arg(long, value_name = "BYTES")]
    max_user_bytes: Option<f64>,
    /// Fail if the gateway needs more CPU while holding than so many percent of a core.
    #[arg(long, value_name = "PERCENT")]
    max_cpu: Option<f64>,
}

#[derive(Clone, Debug, Args)]
struct EchoArgs {
    #[command(flatten)]
    many: ManyArgs,
    /// Bytes of each message.
    #[arg(long, default_value_t = 64)]
    payload: usize,
    /// Messages per second in all, open loop, each to a connection drawn from all.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Instead of a rate: messages under way at any time on each busy connection.
    #[arg(long, default_value_t = 0)]
    depth: usize,
    /// With --depth: how many connections are busy; by default all.
    #[arg(long)]
    busy: Option<usize>,
    /// Seconds of measuring.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Fail if the p99 of the round trip is above this many milliseconds.
    #[arg(long, value_name = "MS")]
    max_p99: Option<f64>,
}

#[derive(Clone, Debug, Args)]
struct PeakArgs {
    #[command(flatten)]
    common: Common,
    /// The first rate to try.
    #[arg(long, default_value_t = 1000.0)]
    from: f64,
    /// Seconds per stage.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// A rate counts while the p99 of SENT stays below this many milliseconds.
    #[arg(long, default_value_t = 1000.0)]
    p99: f64,
    /// Parts of the peak to measure afterwards.
    #[arg(long, value_delimiter = ',', default_values_t = [0.25, 0.5, 0.75, 0.9])]
    parts: Vec<f64>,
}

#[derive(Clone, Debug, Args)]
struct CrashArgs {
    #[command(flatten)]
    common: Common,
    /// Messages per second in all.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// How often to kill.
    #[arg(long, default_value_t = 20)]
    kills: u64,
}

#[derive(Clone, Debug, Args)]
struct StormArgs {
    #[command(flatten)]
    common: Common,
    /// Messages per second in all, before and during the storm.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Seconds that 99.9 % may take to be back; more is a broken threshold.
    #[arg(long, default_value_t = 60.0)]
    wait: f64,
    /// Connections that are not cut, and are then the only ones that send: an even number.
    #[arg(long, default_value_t = 0)]
    spared: usize,
    /// Fail if the p99 of DELIVER of the spared rises to more than so many times what it was before.
    #[arg(long, value_name = "TIMES")]
    max_ratio: Option<f64>,
}

impl Line {
    fn run(&self) -> Result<Report, String> {
        let (name, common) = match &self.scenario {
            Scenario::Chat(args) => ("chat", &args.common),
            Scenario::Group(args) => ("group", &args.common),
            Scenario::Slow(args) => ("slow", &args.chat.common),
            Scenario::HalfOpen(args) => ("half-open", &args.chat.common),
            Scenario::Idle(args) => return args.run(),
            Scenario::Echo(args) => return args.run(),
            Scenario::Peak(args) => ("peak", &args.common),
            Scenario::Crash(args) => ("crash", &args.common),
            Scenario::Storm(args) => ("storm", &args.common),
            Scenario::File { .. } | Scenario::Page { .. } | Scenario::Verify(_) => {
                return Err("a file names chat, group, slow, half-open, idle, echo, peak, crash or storm".to_owned());
            }
        };
        let devices = common.aim.devices(common.threads)?;
        let mut started = common.aim.start()?;
        let bench = common.bench(started.as_ref(), devices, name == "crash")?;
        let mut load = common.load(if name == "group" { 1.0 } else { 0.0 });
        if let Scenario::Slow(args) = &self.scenario {
            load.slow = args.slow.unwrap_or(common.connections / 10);
            load.deaf = args.deaf.unwrap_or(common.connections / 10);
        }
        if let Scenario::Storm(args) = &self.scenario {
            load.spared = args.spared;
        }
        let seconds = Duration::from_secs_f64;
        let mut broken = Vec::new();
        let mut report = match &self.scenario {
            Scenario::Chat(args) | Scenario::Group(args) | Scenario::Slow(SlowArgs { chat: args, .. }) => {
                bench.run(name, load, |run| args.stage(run).map(|stage| broken.extend(args.broken(&stage))))
            }
            Scenario::HalfOpen(HalfOpenArgs { chat: args, each, within }) => bench.run(name, load, |run| {
                let stage = run.half_open(*each, seconds(*within), |run| args.stage(run))?;
                broken.extend(args.broken(&stage));
                Ok(())
            }),
            Scenario::Peak(args) => bench.run(name, load, |run| {
                run.peak(args.from, seconds(args.seconds), seconds(args.p99 / 1e3), &args.parts).map(drop)
            }),
            Scenario::Crash(args) => {
                let gateway = started.as_mut().ok_or("a crash campaign starts the gateway itself: give --start CMD")?;
                bench.run(name, load, |run| run.crash(gateway, args.rate, args.kills))
            }
            Scenario::Storm(args) => bench.run(name, load, |run| {
                run.stage(args.rate, seconds(1.0), seconds(5.0), seconds(common.drain))?;
                run.storm(args.rate, seconds(args.wait))
            }),
            Scenario::Idle(_) | Scenario::Echo(_) | Scenario::File { .. } | Scenario::Page { .. } | Scenario::Verify(_) => {
                return Err("this is no scenario of messages".to_owned());
            }
        }?;
        BAR.finish_and_clear();
        if let Scenario::Chat(args)
        | Scenario::Group(args)
        | Scenario::Slow(SlowArgs { chat: args, .. })
        | Scenario::HalfOpen(HalfOpenArgs { chat: args, .. }) = &self.scenario
        {
            broken.extend(args.max_growth.and_then(|percent| report.growth(percent)));
            broken.extend(args.max_rss.and_then(|mib| report.too_large(mib)));
            broken.extend(args.no_sockets_left.then(|| report.sockets_left()).flatten());
        }
        if let Scenario::Storm(args) = &self.scenario {
            broken.extend(report.unweathered(args.max_ratio));
        }
        broken.extend(report.left_standing());
        report.broken = broken;
        common.aim.keep(&mut report)?;
        Ok(report)
    }
}

impl Aim {
    /// Starts the gateway if that was asked for.
    fn start(&self) -> Result<Option<Started>, String> {
        self.start.as_deref().map(|command| Started::run(command, self.admin)).transpose()
    }

    fn target(&self) -> Result<Target, String> {
        let target = Target::parse(&self.url)?;
        let is_local = target.is_loopback() || self.back_end == BackEnd::Phantom;
        let is_here = is_local && self.admin.ip().is_loopback();
        if !is_here && !self.allow_remote {
            return Err(format!("{} is not this machine; --allow-remote if that is meant", self.url));
        }
        Ok(target)
    }

    /// The devices of the threads, if clients are phantoms. To be made first: the gateway listens on their address.
    fn devices(&self, threads: usize) -> Result<Option<Vec<Device>>, String> {
        if self.back_end == BackEnd::Sockets {
            return Ok(None);
        }
        Device::all(self.target()?.address, threads).map(Some)
    }

    fn minter(&self) -> Result<Minter, String> {
        Minter::read(&self.secret_file.clone().unwrap_or_else(|| self.data_dir.join("secret")))
    }

    fn process(&self, started: Option<&Started>) -> Option<Process> {
        started.map(Started::process).or(self.pid.map(Process))
    }

    /// Writes the report to wherever it was asked for.
    fn keep(&self, report: &mut Report) -> Result<(), String> {
        report.command = self.told.clone().unwrap_or_else(command);
        report.machine.extend(self.facts.iter().cloned());
        let cannot = |path: &Path, error: &dyn std::fmt::Display| format!("cannot write {}: {error}", path.display());
        let value = serde_json::to_value(&*report).map_err(|error| error.to_string())?;
        if let Some(path) = &self.html {
            fs::write(path, page::html(&value, None)).map_err(|error| cannot(path, &error))?;
        }
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&value).map_err(|error| error.to_string())?;
            fs::write(path, text + "\n").map_err(|error| cannot(path, &error))?;
        }
        if let Some(path) = &self.append {
            let mut list: Vec<serde_json::Value> = match fs::read_to_string(path) {
                Ok(text) => serde_json::from_str(&text).map_err(|error| format!("{} is no list: {error}", path.display()))?,
                Err(_) => Vec::new(),
            };
            list.push(value);
            let text = serde_json::to_string_pretty(&list).map_err(|error| error.to_string())?;
            fs::write(path, text + "\n").map_err(|error| cannot(path, &error))?;
        }
        Ok(())
    }
}

impl ManyArgs {
    /// Opens them, does `task`, and lets them go.
    fn run(&self, name: &str, is_protocol: bool, task: &Task) -> Result<Report, String> {
        let target = self.aim.target()?;
        if self.connections == 0 {
            return Err("at least one connection, please".to_owned());
        }
        let back_end = self.back_end(&target)?;
        let threads = match &back_end {
            swarm::BackEnd::Sockets { .. } => self.threads_of_sockets()?,
            swarm::BackEnd::Phantom(devices) => devices.len(),
        };
        let started = self.aim.start()?;
        let minter = if is_protocol { Some(self.aim.minter()?) } else { None };
        let mut swarm = Swarm::new(target, minter, tag(), self.connections, threads);
        swarm.back_end = back_end;
        swarm.ramp_per_s = self.ramp;
        swarm.opening_max = self.opening.max(1);
        swarm.seed = self.aim.seed;
        let log = self.aim.hdr.as_deref().map(|path| Log::create(path, unix_ms() / 1000)).transpose();
        let log = log.map_err(|error| format!("cannot write the HdrHistogram log: {error}"))?;
        let process = self.aim.process(started.as_ref());
        let mut report = hold::run(&swarm, task, process, Some(self.aim.admin), log, show_held)?;
        BAR.finish_and_clear();
        report.scenario = name.to_owned();
        Ok(report)
    }
}

impl ManyArgs {
    fn back_end(&self, target: &Target) -> Result<swarm::BackEnd, String> {
        if let Some(devices) = self.aim.devices(self.threads.unwrap_or(1))? {
            return Ok(swarm::BackEnd::Phantom(devices));
        }
        let few = self.connections <= PORTS_OF_SOURCE || !target.is_loopback();
        let sources = self.sources.unwrap_or(if few { 0 } else { self.connections.div_ceil(PORTS_OF_SOURCE) });
        if sources > SOURCES_MAX {
            return Err(format!("at most {SOURCES_MAX} sources"));
        }
        Ok(swarm::BackEnd::Sockets { private_tables: self.threads_of_sockets()? > 1, sources })
    }

    /// As many threads as tables of descriptors are needed, unless it is said.
    fn threads_of_sockets(&self) -> Result<usize, String> {
        let descriptors = Descriptors::for_connections(0).map_err(|error| format!("open files: {error}"))?;
        let per_table = usize::try_from(descriptors.connections_per_table()).unwrap_or(usize::MAX).max(1);
        let enough = self.connections.div_ceil(per_table);
        let threads = self.threads.unwrap_or(enough);
        if threads < enough {
            return Err(format!(
                "{} connections need {enough} threads or more under a limit of open files of {per_table}",
                self.connections
            ));
        }
        Ok(threads)
    }
}

impl IdleArgs {
    fn run(&self) -> Result<Report, String> {
        let pulse = |rate_per_s| Pulse { rate_per_s, payload_bytes: PING_BYTES, ..Pulse::default() };
        let task = Task {
            rest: Duration::from_secs_f64(self.many.warm_up),
            hold: Duration::from_secs_f64(self.seconds),
            echo: self.echo_rate.map(|rate| (pulse(rate), Duration::from_secs_f64(self.echo_seconds))),
        };
        let mut report = self.many.run("idle", true, &task)?;
        let held = report.held.clone().unwrap_or_default();
        let limits = [
            ("opening took", self.max_open, Some(held.open_s), "s"),
            ("a session costs in user memory", self.max_user_bytes, held.gateway_user_bytes, "bytes"),
            ("the gateway's CPU while holding was", self.max_cpu, held.hold_cpu_percent.gateway, "% of a core"),
        ];
        for (what, limit, found, unit) in limits {
            let Some(limit) = limit else { continue };
            match found {
                Some(found) if found <= limit => {}
                Some(found) => report.broken.push(format!("{what} {found:.1} {unit}, above {limit}")),
                None => report.broken.push(format!("{what} ? {unit}: the gateway's process is not known")),
            }
        }
        self.many.aim.keep(&mut report)?;
        Ok(report)
    }
}

impl EchoArgs {
    fn run(&self) -> Result<Report, String> {
        let busy = self.busy.unwrap_or(self.many.connections);
        let pulse = Pulse { busy, depth: self.depth, payload_bytes: self.payload, ..Pulse::default() };
        let pulse = if self.depth > 0 { pulse } else { Pulse { rate_per_s: self.rate, busy: 0, ..pulse } };
        let task = Task {
            rest: Duration::from_secs_f64(self.many.warm_up),
            hold: Duration::ZERO,
            echo: Some((pulse, Duration::from_secs_f64(self.seconds))),
        };
        let mut report = self.many.run("echo", false, &task)?;
        let p99_us = report.held.as_ref().and_then(|held| held.echo.as_ref()).map_or(0.0, |echo| echo.round_trip_us.p99);
        let limit = self.max_p99.filter(|limit| p99_us > limit * 1e3);
        report.broken.extend(limit.map(|limit| format!("p99 of the round trip is {:.1} ms, above {limit} ms", p99_us / 1e3)));
        self.many.aim.keep(&mut report)?;
        Ok(report)
    }
}

impl VerifyArgs {
    /// The verdict, and whether the canary itself saw nothing wrong on the wire.
    fn run(&self) -> Result<(Verdict, bool), String> {
        let mut ledgers = self.ledger.clone();
        let mut is_clean = true;
        if let Some(seconds) = self.canary {
            let seconds = Duration::from_secs_f64(seconds);
            let report = self.common.bench(None, self.common.aim.devices(self.common.threads)?, false)?.run(
                "canary",
                self.common.load(0.0),
                |run| run.stage(self.rate, Duration::ZERO, seconds, Duration::from_secs_f64(self.common.drain)).map(drop),
            )?;
            BAR.finish_and_clear();
            is_clean = report.findings.is_empty();
            if !is_clean {
                print!("{}", report.text());
            }
            ledgers.extend(self.common.ledger_out.clone());
        }
        if ledgers.is_empty() {
            return Err("nothing to judge: name ledgers with --ledger, or make one with --canary".to_owned());
        }
        let settings = tidegate::config::Settings { data_dir: self.common.aim.data_dir.clone(), ..Default::default() };
        let verdict = tidegate::keep::audit(&ledgers, self.export.as_deref(), self.late_ms, &settings);
        verdict.map(|verdict| (verdict, is_clean)).map_err(|error| error.reason)
    }
}

impl ChatArgs {
    fn stage(&self, run: &mut Run<'_>) -> Result<Stage, String> {
        let seconds = Duration::from_secs_f64;
        run.churn(self.churn);
        run.stage(self.rate, seconds(self.warm_up), seconds(self.seconds), seconds(self.common.drain))
    }

    /// The thresholds that a stage did not keep.
    fn broken(&self, stage: &Stage) -> Vec<String> {
        let mut broken = Vec::new();
        let limits = [("p99", self.max_p99, stage.deliver_us.p99), ("p99.9", self.max_p999, stage.deliver_us.p999)];
        for (name, limit, found) in limits {
            let limit = limit.filter(|limit| found > limit * 1e3);
            broken.extend(limit.map(|limit| format!("{name} of DELIVER is {:.1} ms, above {limit} ms", found / 1e3)));
        }
        let part = stage.acknowledged_per_s / self.rate;
        let least = self.min_rate.filter(|&least| part < least);
        broken.extend(
            least.map(|least| format!("{:.1} % of the rate was acknowledged, below {:.1} %", part * 100.0, least * 100.0)),
        );
        broken
    }
}

impl Common {
    fn bench(&self, started: Option<&Started>, devices: Option<Vec<Device>>, is_audit: bool) -> Result<Bench, String> {
        let target = self.aim.target()?;
        if self.threads == 0 {
            return Err("at least one thread, please".to_owned());
        }
        let tables = if self.private_tables { self.threads } else { 1 };
        let descriptors = Descriptors::for_connections((self.connections / tables) as u64);
        let descriptors = descriptors.map_err(|error| format!("open files: {error}"))?;
        if devices.is_none() && !descriptors.suffice() {
            return Err(format!("{descriptors}; or use more --threads with --private-tables"));
        }
        Ok(Bench {
            target,
            admin: Some(self.aim.admin),
            minter: self.aim.minter()?,
            workers: self.threads,
            devices,
            sources: (0..usize::from(self.sources)).map(source).collect(),
            private_tables: self.private_tables,
            ramp_per_s: self.ramp,
            back_off: (Duration::from_millis(self.back_off_ms), Duration::from_millis(self.back_off_max_ms)),
            audit: self.audit || is_audit,
            drain: Duration::from_secs_f64(self.drain),
            ledger_out: self.ledger_out.clone(),
            hdr: self.aim.hdr.clone(),
            // The process changes with every kill.
            process: if is_audit { None } else { self.aim.process(started) },
            progress: show,
        })
    }

    fn load(&self, group_share: f64) -> Load {
        let (least, most) = self.payload;
        Load {
            connections: self.connections,
            users: self.users.unwrap_or(self.connections),
            payload_bytes: (least.max(PAYLOAD_BYTES_MIN), most.max(PAYLOAD_BYTES_MIN)),
            group_share: self.group_share.unwrap_or(group_share),
            group_size: self.group_size,
            seed: self.aim.seed,
            tag: tag(),
            slow: 0,
            deaf: 0,
            spared: 0,
        }
    }
}

/// Begins the names of this run.
fn tag() -> String {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}", unix.as_millis())
}

/// The same as [`show`], for connections that are only held.
fn show_held(phase: &str, part: f64, sample: &Sample) {
    let gateway = sample.gateway.unwrap_or_default();
    let memory = gateway.rss_bytes as f64 / 1_048_576.0;
    let line = format!(
        "{phase}: {} welcomed, {:.0}/s echoed, gateway {memory:.0} MiB, {:.1} s of CPU",
        sample.active, sample.delivered_per_s, gateway.cpu_s
    );
    draw(part, sample.at_s, line);
}

/// One line on a terminal; elsewhere a line every five seconds.
fn show(progress: &Progress<'_>) {
    let Progress { phase, part, sample, findings } = progress;
    let line = format!(
        "{phase}: {} welcomed, {:.0}/s acknowledged, {:.0}/s delivered, {} waiting, p99 {:.1} ms, {findings} findings",
        sample.active,
        sample.acknowledged_per_s,
        sample.delivered_per_s,
        sample.unsent,
        sample.deliver_us_p99 / 1e3
    );
    draw(*part, sample.at_s, line);
}

fn draw(part: f64, at_s: f64, line: String) {
    if std::io::stderr().is_terminal() {
        #[expect(clippy::cast_possible_truncation, reason = "0 to 100")]
        BAR.set_position((part.clamp(0.0, 1.0) * 100.0) as u64);
        BAR.set_message(line);
    } else if at_s % 5.0 < 1.0 {
        eprintln!("{at_s:>5.0} s  {line}");
    }
}

static BAR: LazyLock<ProgressBar> = LazyLock::new(|| {
    let style = ProgressStyle::with_template("{elapsed:>5} {bar:20} {wide_msg}").expect("a good template");
    ProgressBar::new(100).with_style(style)
});

/// `200`, or `32-1024`.
fn range(text: &str) -> Result<(usize, usize), String> {
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<usize>().map_err(|_| "a number of bytes, or two with a dash".to_owned());
    let (least, most) = (number(least)?, number(most)?);
    if least <= most { Ok((least, most)) } else { Err("the least first".to_owned()) }
}

/// `commit=1a2b3c`.
fn fact(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The command line; of the program only its name, since where it stood says nothing.
fn command() -> String {
    std::iter::once("loadgen".to_owned()).chain(std::env::args().skip(1)).collect::<Vec<_>>().join(" ")
}

/// Payload of the pings of `idle --echo-rate`.
const PING_BYTES: usize = 64;
/// Connections that one source address carries, well below the ports there are.
const PORTS_OF_SOURCE: usize = 4_000;
const EXIT_LEDGER: u8 = 1;
const EXIT_THRESHOLD: u8 = 3;
const EXIT_FAILED: u8 = 4;
