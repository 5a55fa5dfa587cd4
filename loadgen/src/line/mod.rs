//! The command line: one definition of every flag, which is also a key in a file.                     [clap]

mod aim;
mod file;
mod many;
mod messages;
mod show;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Parser, Subcommand};
use loadgen::report::Report;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

pub use self::file::arguments;
use self::many::{EchoArgs, IdleArgs};
use self::messages::{ChatArgs, ChurnArgs, CrashArgs, HalfOpenArgs, PeakArgs, SlowArgs, StormArgs};
use self::show::BAR;
use self::verify::VerifyArgs;

/// Puts a Tidegate gateway under load and keeps a ledger of every message.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes:\n  0  the ledger is clean and every threshold was kept\n  1  the ledger found something lost, duplicate, out of order or corrupt\n  2  a mistake in the command line\n  3  a threshold was broken\n  4  nothing can be said: the run did not take place or broke off"
)]
pub struct Line {
    #[command(subcommand)]
    pub scenario: Scenario,
}

#[derive(Debug, Subcommand)]
pub enum Scenario {
    /// Users write to each other and to groups at a steady rate, open loop.
    Chat(ChatArgs),
    /// The same with every message going to a group, unless a smaller share is asked for.
    Group(ChatArgs),
    /// Chat beside connections that read slowly or not at all.
    Slow(SlowArgs),
    /// Connections come, talk a little and go, at a rate; how long it takes to come, and what is left behind.
    Churn(ChurnArgs),
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

impl Line {
    pub fn run(&self) -> Result<Report, String> {
        let (name, common) = match &self.scenario {
            Scenario::Chat(args) => ("chat", &args.common),
            Scenario::Group(args) => ("group", &args.common),
            Scenario::Slow(args) => ("slow", &args.chat.common),
            Scenario::Churn(args) => ("churn", &args.chat.common),
            Scenario::HalfOpen(args) if args.chat.common.aim.target()?.is_secure => {
                return Err("half-open has no TLS: name a ws:// address".to_owned());
            }
            Scenario::HalfOpen(args) => ("half-open", &args.chat.common),
            Scenario::Idle(args) => return args.run(),
            Scenario::Echo(args) => return args.run(),
            Scenario::Peak(args) => ("peak", &args.common),
            Scenario::Crash(args) => ("crash", &args.common),
            Scenario::Storm(args) => ("storm", &args.common),
            Scenario::File { .. } | Scenario::Page { .. } | Scenario::Verify(_) => {
                return Err("a file names chat, group, slow, churn, half-open, idle, echo, peak, crash or storm".to_owned());
            }
        };
        if let Scenario::Chat(args)
        | Scenario::Group(args)
        | Scenario::Slow(SlowArgs { chat: args, .. })
        | Scenario::Churn(ChurnArgs { chat: args, .. })
        | Scenario::HalfOpen(HalfOpenArgs { chat: args, .. }) = &self.scenario
        {
            args.legs()?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        if matches!(self.scenario, Scenario::Crash(_)) {
            on_signal(&stop)?;
        }
        let trust = common.aim.trust()?;
        let devices = common.aim.devices(common.threads)?;
        let mut started = common.aim.start()?;
        let is_audit = name == "crash";
        let is_restarted = is_audit || matches!(&self.scenario, Scenario::Storm(args) if args.restart);
        let bench = common.bench(started.as_ref(), devices, trust, is_audit, is_restarted)?;
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
            Scenario::Churn(args) => {
                bench.run(name, load, |run| args.stage(run).map(|stage| broken.extend(args.chat.broken(&stage))))
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
                bench.run(name, load, |run| run.crash(gateway, args.rate, args.kills, &stop))
            }
            Scenario::Storm(args) => {
                let gateway = args.restart.then(|| started.as_mut().ok_or("--restart needs --start CMD")).transpose()?;
                bench.run(name, load, |run| {
                    run.stage(args.rate, seconds(1.0), seconds(args.calm), seconds(common.drain))?;
                    run.storm(args.rate, seconds(args.wait), gateway)
                })
            }
            Scenario::Idle(_) | Scenario::Echo(_) | Scenario::File { .. } | Scenario::Page { .. } | Scenario::Verify(_) => {
                return Err("this is no scenario of messages".to_owned());
            }
        }?;
        BAR.finish_and_clear();
        if let Scenario::Chat(args)
        | Scenario::Group(args)
        | Scenario::Slow(SlowArgs { chat: args, .. })
        | Scenario::Churn(ChurnArgs { chat: args, .. })
        | Scenario::HalfOpen(HalfOpenArgs { chat: args, .. }) = &self.scenario
        {
            broken.extend(args.max_growth.and_then(|percent| report.growth(percent)));
            broken.extend(args.max_rss.and_then(|mib| report.too_large(mib)));
            broken.extend(args.no_sockets_left.then(|| report.sockets_left()).flatten());
        }
        if let (Scenario::Churn(args), Some(churn)) = (&self.scenario, &report.churn) {
            broken.extend(churn.broken(args.bounds()));
        }
        if let Scenario::Storm(args) = &self.scenario {
            broken.extend(report.unweathered(args.max_ratio, args.max_memory));
            broken.extend(args.no_sockets_left.then(|| report.sockets_left()).flatten());
        }
        broken.extend(report.left_standing());
        report.broken = broken;
        common.aim.keep(&mut report)?;
        Ok(report)
    }
}

/// SIGINT and SIGTERM set `stop`; a second one ends the program at once.
fn on_signal(stop: &Arc<AtomicBool>) -> Result<(), String> {
    for signal in [SIGINT, SIGTERM] {
        let ended = flag::register_conditional_shutdown(signal, 128 + signal, stop.clone());
        let asked = ended.and_then(|_| flag::register(signal, stop.clone()));
        asked.map_err(|error| format!("signals: {error}"))?;
    }
    Ok(())
}
