//! Scenarios with very many connections.

use std::time::Duration;

use clap::Args;
use loadgen::hdr::Log;
use loadgen::hold::{self, Echoes, Task};
use loadgen::network::SOURCES_MAX;
use loadgen::pace::legs;
use loadgen::report::Report;
use loadgen::run::unix_ms;
use loadgen::subject::Target;
use loadgen::swarm::{self, Swarm};
use tidegate::io::descriptors::Descriptors;

use super::aim::{Aim, tag};
use super::messages::stage;
use super::show::{BAR, show_held};

/// What scenarios with very many connections are told.
#[derive(Clone, Debug, Args)]
pub struct ManyArgs {
    #[command(flatten)]
    pub aim: Aim,
    /// Connections.
    #[arg(long, short = 'n', default_value_t = 100)]
    pub connections: usize,
    /// Connections opened per second; 0: as fast as it goes.
    #[arg(long, default_value_t = 0.0)]
    pub ramp: f64,
    /// Connections between connect and welcome at the same time.
    #[arg(long, default_value_t = swarm::OPENING_MAX)]
    pub opening: usize,
    /// Threads that carry connections; by default as many as the limit of open files asks for, each with a descriptor table of its own.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Loopback addresses to come from in turn: 127.1.0.1 and so on; by default as many as there are ports for.
    #[arg(long)]
    pub sources: Option<usize>,
    /// Seconds of rest before measuring.
    #[arg(long, default_value_t = 2.0)]
    pub warm_up: f64,
}

#[derive(Clone, Debug, Args)]
pub struct IdleArgs {
    #[command(flatten)]
    pub many: ManyArgs,
    /// Seconds of heartbeats that are measured.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Then pings of 64 B per second, each to a connection drawn from all, whose pongs are timed.
    #[arg(long, value_name = "PER_S")]
    pub echo_rate: Option<f64>,
    /// Seconds of these.
    #[arg(long, default_value_t = 10.0)]
    pub echo_seconds: f64,
    /// Instead of one rate of pings: climb, or fall, evenly to RATE per second within TIME, such as 30s:1000. May be repeated; the first
    /// begins at 0.
    #[arg(long = "stage", value_name = "TIME:RATE", value_parser = stage, conflicts_with_all = ["echo_rate", "echo_seconds"])]
    pub stages: Vec<(f64, f64)>,
    /// Fail if opening takes longer than so many seconds.
    #[arg(long, value_name = "S")]
    pub max_open: Option<f64>,
    /// Fail if a session costs the gateway more user memory than so many bytes.
    #[arg(long, value_name = "BYTES")]
    pub max_user_bytes: Option<f64>,
    /// Fail if the gateway needs more CPU while holding than so many percent of a core.
    #[arg(long, value_name = "PERCENT")]
    pub max_cpu: Option<f64>,
}

#[derive(Clone, Debug, Args)]
pub struct EchoArgs {
    #[command(flatten)]
    pub many: ManyArgs,
    /// Bytes of each message.
    #[arg(long, default_value_t = 64)]
    pub payload: usize,
    /// Messages per second in all, open loop, each to a connection drawn from all.
    #[arg(long, default_value_t = 1000.0)]
    pub rate: f64,
    /// Instead of one rate: climb, or fall, evenly to RATE per second within TIME, such as 30s:1000. May be repeated; the first begins at 0.
    #[arg(long = "stage", value_name = "TIME:RATE", value_parser = stage, conflicts_with_all = ["rate", "seconds", "depth", "busy"])]
    pub stages: Vec<(f64, f64)>,
    /// Instead of a rate: messages under way at any time on each busy connection.
    #[arg(long, default_value_t = 0)]
    pub depth: usize,
    /// With --depth: how many connections are busy; by default all.
    #[arg(long)]
    pub busy: Option<usize>,
    /// Seconds of measuring.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Fail if the p99 of the round trip is above this many milliseconds.
    #[arg(long, value_name = "MS")]
    pub max_p99: Option<f64>,
}

impl ManyArgs {
    /// Opens them, does `task`, and lets them go.
    pub fn run(&self, name: &str, is_protocol: bool, task: &Task) -> Result<Report, String> {
        let target = self.aim.target()?;
        if target.is_secure {
            return Err("idle and echo have no TLS: name a ws:// address".to_owned());
        }
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
    pub fn back_end(&self, target: &Target) -> Result<swarm::BackEnd, String> {
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
    pub fn threads_of_sockets(&self) -> Result<usize, String> {
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
    pub fn run(&self) -> Result<Report, String> {
        let task = Task {
            rest: Duration::from_secs_f64(self.many.warm_up),
            hold: Duration::from_secs_f64(self.seconds),
            echo: match staged(PING_BYTES, &self.stages)? {
                None => self.echo_rate.map(|rate| Echoes::steady(PING_BYTES, rate, self.echo_seconds)),
                staged => staged,
            },
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
    pub fn run(&self) -> Result<Report, String> {
        let busy = self.busy.unwrap_or(self.many.connections);
        let closed_loop = (self.depth > 0).then_some((busy, self.depth));
        let rate = if self.depth > 0 { 0.0 } else { self.rate };
        let steady = Echoes { closed_loop, ..Echoes::steady(self.payload, rate, self.seconds) };
        let task = Task {
            rest: Duration::from_secs_f64(self.many.warm_up),
            hold: Duration::ZERO,
            echo: Some(staged(self.payload, &self.stages)?.unwrap_or(steady)),
        };
        let mut report = self.many.run("echo", false, &task)?;
        let p99_us = report.held.as_ref().and_then(|held| held.echo.as_ref()).map_or(0.0, |echo| echo.round_trip_us.p99);
        let limit = self.max_p99.filter(|limit| p99_us > limit * 1e3);
        report.broken.extend(limit.map(|limit| format!("p99 of the round trip is {:.1} ms, above {limit} ms", p99_us / 1e3)));
        self.many.aim.keep(&mut report)?;
        Ok(report)
    }
}

/// Echoes by stages, if there are any.
fn staged(payload_bytes: usize, stages: &[(f64, f64)]) -> Result<Option<Echoes>, String> {
    if stages.is_empty() {
        return Ok(None);
    }
    Ok(Some(Echoes { payload_bytes, closed_loop: None, legs: legs(stages)?, warm_up_s: 0.0 }))
}

/// Payload of the pings of `idle --echo-rate`.
const PING_BYTES: usize = 64;
/// Connections that one source address carries, well below the ports there are.
const PORTS_OF_SOURCE: usize = 4_000;
