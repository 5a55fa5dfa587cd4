//! Scenarios of messages.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use loadgen::churn::{Bounds, Departures, Who};
use loadgen::network::source;
use loadgen::pace::{Leg, legs};
use loadgen::phantom::Device;
use loadgen::report::Stage;
use loadgen::run::{Bench, Run};
use loadgen::scenario::Load;
use loadgen::secure::Trust;
use loadgen::subject::Started;
use loadgen::verify::PAYLOAD_BYTES_MIN;
use tidegate::io::descriptors::Descriptors;

use super::aim::{Aim, tag};
use super::show::show;

/// What scenarios of messages are told.
#[derive(Clone, Debug, Args)]
pub struct Common {
    #[command(flatten)]
    pub aim: Aim,
    /// Connections.
    #[arg(long, short = 'n', default_value_t = 100)]
    pub connections: usize,
    /// Users, who own the connections as devices in turn; by default one each.
    #[arg(long)]
    pub users: Option<usize>,
    /// Payload bytes, or the least and the most: 200 or 32-1024.
    #[arg(long, default_value = "200", value_parser = range)]
    pub payload: (usize, usize),
    /// Part of the messages that go to a group.
    #[arg(long)]
    pub group_share: Option<f64>,
    /// Members of a group.
    #[arg(long, default_value_t = 10)]
    pub group_size: usize,
    /// Connections opened per second.
    #[arg(long, default_value_t = 2000.0)]
    pub ramp: f64,
    /// Threads that carry connections.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Loopback addresses to come from in turn, so that ports suffice: 127.1.0.1 and so on.
    #[arg(long, default_value_t = 0)]
    pub sources: u16,
    /// Give each thread a descriptor table, and so a limit of open files, of its own.
    #[arg(long)]
    pub private_tables: bool,
    /// First ceiling of the clients' reconnect delay, in milliseconds.
    #[arg(long, default_value_t = 500)]
    pub back_off_ms: u64,
    /// Last ceiling of the clients' reconnect delay, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    pub back_off_max_ms: u64,
    /// Messages of one client that may wait to be acknowledged; what finds no room is given up and counted. By default as the client has it.
    #[arg(long, value_name = "N")]
    pub outbox: Option<usize>,
    /// In the end, let one new device per user read everything again.
    #[arg(long)]
    pub audit: bool,
    /// Seconds that everything may take to arrive in the end.
    #[arg(long, default_value_t = 30.0)]
    pub drain: f64,
    /// Write down what happens to every device, for `verify`.
    #[arg(long, value_name = "FILE")]
    pub ledger_out: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub common: Common,
    /// Messages per second in all.
    #[arg(long, default_value_t = 100.0)]
    pub rate: f64,
    /// Instead of one rate: climb, or fall, evenly to RATE messages per second within TIME, such as 30s:1000 or 2m:1000. May be repeated:
    /// the first begins at 0, each other where the one before it ended. Each is measured for itself, thresholds are of all together.
    #[arg(long = "stage", value_name = "TIME:RATE", value_parser = stage, conflicts_with_all = ["rate", "warm_up", "seconds"])]
    pub stages: Vec<(f64, f64)>,
    /// Seconds before measuring.
    #[arg(long, default_value_t = 2.0)]
    pub warm_up: f64,
    /// Seconds of measuring.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Connections that leave per second, and then come back by themselves: cut off, unless the scenario says otherwise. By default none, in
    /// `churn` a tenth of all.
    #[arg(long, value_name = "PER_S")]
    pub churn: Option<f64>,
    /// Fail if the p99 of DELIVER is above this many milliseconds.
    #[arg(long, value_name = "MS")]
    pub max_p99: Option<f64>,
    /// Fail if the p99.9 of DELIVER is above this many milliseconds.
    #[arg(long, value_name = "MS")]
    pub max_p999: Option<f64>,
    /// Fail if less than this part of the rate is acknowledged, such as 0.99.
    #[arg(long, value_name = "PART")]
    pub min_rate: Option<f64>,
    /// Fail if the gateway's memory in the second half of the measured time exceeds the most of the first half by so many percent.
    #[arg(long, value_name = "PERCENT")]
    pub max_growth: Option<f64>,
    /// Fail if the gateway has more sockets after the last connection than before the first.
    #[arg(long)]
    pub no_sockets_left: bool,
    /// Fail if the gateway ever has more than so many MiB resident.
    #[arg(long, value_name = "MIB")]
    pub max_rss: Option<f64>,
}

#[derive(Clone, Debug, Args)]
pub struct SlowArgs {
    #[command(flatten)]
    pub chat: ChatArgs,
    /// How many of the connections read 10 KiB per second; by default a tenth of them.
    #[arg(long, value_name = "N")]
    pub slow: Option<usize>,
    /// How many read nothing once they are welcomed; by default a tenth.
    #[arg(long, value_name = "N")]
    pub deaf: Option<usize>,
}

#[derive(Clone, Debug, Args)]
pub struct ChurnArgs {
    #[command(flatten)]
    pub chat: ChatArgs,
    /// Part of those that leave who say goodbye first; the others are cut off.
    #[arg(long, default_value_t = 0.5, value_name = "PART")]
    pub polite: f64,
    /// Fail if the p99 from the first step of a connection to its WELCOME is above this many milliseconds.
    #[arg(long, value_name = "MS")]
    pub max_connect_p99: Option<f64>,
    /// Fail if less than this part of the departures takes place, or less than that many come back.
    #[arg(long, default_value_t = 0.9, value_name = "PART")]
    pub min_turnover: f64,
    /// Fail if more connections than this are refused, cut off or sent away by the gateway.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub max_failed: u64,
}

#[derive(Clone, Debug, Args)]
pub struct HalfOpenArgs {
    #[command(flatten)]
    pub chat: ChatArgs,
    /// Connections of each kind: silent, with half a request, without HELLO.
    #[arg(long, default_value_t = 50)]
    pub each: usize,
    /// Seconds within which the gateway must close them.
    #[arg(long, default_value_t = 15.0)]
    pub within: f64,
}

#[derive(Clone, Debug, Args)]
pub struct PeakArgs {
    #[command(flatten)]
    pub common: Common,
    /// The first rate to try.
    #[arg(long, default_value_t = 1000.0)]
    pub from: f64,
    /// Seconds per stage.
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// A rate counts while the p99 of SENT stays below this many milliseconds.
    #[arg(long, default_value_t = 1000.0)]
    pub p99: f64,
    /// Parts of the peak to measure afterwards.
    #[arg(long, value_delimiter = ',', default_values_t = [0.25, 0.5, 0.75, 0.9])]
    pub parts: Vec<f64>,
}

#[derive(Clone, Debug, Args)]
pub struct CrashArgs {
    #[command(flatten)]
    pub common: Common,
    /// Messages per second in all.
    #[arg(long, default_value_t = 1000.0)]
    pub rate: f64,
    /// How often to kill.
    #[arg(long, default_value_t = 20)]
    pub kills: u64,
}

#[derive(Clone, Debug, Args)]
pub struct StormArgs {
    #[command(flatten)]
    pub common: Common,
    /// Messages per second in all, before and during the storm.
    #[arg(long, default_value_t = 100.0)]
    pub rate: f64,
    /// Seconds of measuring before the storm, with which it is compared.
    #[arg(long, default_value_t = 5.0)]
    pub calm: f64,
    /// Seconds that 99.9 % may take to be back; more is a broken threshold.
    #[arg(long, default_value_t = 60.0)]
    pub wait: f64,
    /// The gateway is told to drain and is started again, rather than that connections are cut: it says who is to come back when. Needs
    /// --start.
    #[arg(long, conflicts_with_all = ["spared", "max_ratio", "max_memory", "no_sockets_left"])]
    pub restart: bool,
    /// Connections that are not cut, and are then the only ones that send: an even number.
    #[arg(long, default_value_t = 0)]
    pub spared: usize,
    /// Fail if the p99 of DELIVER of the spared rises to more than so many times what it was before.
    #[arg(long, value_name = "TIMES")]
    pub max_ratio: Option<f64>,
    /// Fail if the gateway's memory rises to more than so many times what it was before.
    #[arg(long, value_name = "TIMES")]
    pub max_memory: Option<f64>,
    /// Fail if the gateway has more sockets after the last connection than before the first.
    #[arg(long)]
    pub no_sockets_left: bool,
}

impl ChatArgs {
    pub fn stage(&self, run: &mut Run<'_>) -> Result<Stage, String> {
        let per_s = self.churn.unwrap_or(0.0);
        self.stage_with(Departures { per_s, ..Departures::default() }, run)
    }

    fn stage_with(&self, departures: Departures, run: &mut Run<'_>) -> Result<Stage, String> {
        let seconds = Duration::from_secs_f64;
        run.churn(departures);
        if let Some(legs) = self.legs()? {
            return run.stages(&legs, seconds(self.common.drain));
        }
        run.stage(self.rate, seconds(self.warm_up), seconds(self.seconds), seconds(self.common.drain))
    }

    /// What the stages come to, if there are any.
    pub fn legs(&self) -> Result<Option<Vec<Leg>>, String> {
        if self.stages.is_empty() { Ok(None) } else { legs(&self.stages).map(Some) }
    }

    /// The thresholds that a stage did not keep.
    pub fn broken(&self, stage: &Stage) -> Vec<String> {
        let mut broken = Vec::new();
        let limits = [("p99", self.max_p99, stage.deliver_us.p99), ("p99.9", self.max_p999, stage.deliver_us.p999)];
        for (name, limit, found) in limits {
            let limit = limit.filter(|limit| found > limit * 1e3);
            broken.extend(limit.map(|limit| format!("{name} of DELIVER is {:.1} ms, above {limit} ms", found / 1e3)));
        }
        let part = stage.acknowledged_per_s / stage.rate_wanted_per_s;
        let least = self.min_rate.filter(|&least| part < least);
        broken.extend(
            least.map(|least| format!("{:.1} % of the rate was acknowledged, below {:.1} %", part * 100.0, least * 100.0)),
        );
        broken
    }
}

impl ChurnArgs {
    pub fn stage(&self, run: &mut Run<'_>) -> Result<Stage, String> {
        // So each lives ten seconds: more often a gateway with its own defaults does not let one device in.
        let per_s = self.chat.churn.unwrap_or(self.chat.common.connections as f64 / 10.0);
        self.chat.stage_with(Departures { per_s, polite: self.polite, who: Who::NextInTurn }, run)
    }

    pub fn bounds(&self) -> Bounds {
        Bounds { connect_ms_p99: self.max_connect_p99, part_min: Some(self.min_turnover), failed_max: Some(self.max_failed) }
    }
}

impl Common {
    pub fn bench(
        &self,
        started: Option<&Started>,
        devices: Option<Vec<Device>>,
        trust: Option<Trust>,
        is_audit: bool,
        is_restarted: bool,
    ) -> Result<Bench, String> {
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
            trust,
            sources: (0..usize::from(self.sources)).map(source).collect(),
            private_tables: self.private_tables,
            ramp_per_s: self.ramp,
            back_off: (Duration::from_millis(self.back_off_ms), Duration::from_millis(self.back_off_max_ms)),
            outbox: self.outbox.unwrap_or(usize::MAX),
            audit: self.audit || is_audit,
            drain: Duration::from_secs_f64(self.drain),
            ledger_out: self.ledger_out.clone(),
            hdr: self.aim.hdr.clone(),
            // The process changes with every start.
            process: if is_restarted { None } else { self.aim.process(started) },
            progress: show,
        })
    }

    pub fn load(&self, group_share: f64) -> Load {
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

/// `30s:1000`, or `2m:1000`: seconds, and a rate.
pub fn stage(text: &str) -> Result<(f64, f64), String> {
    let wrong = || "TIME:RATE such as 30s:1000 or 2m:1000, neither below 0".to_owned();
    let (time, rate) = text.split_once(':').ok_or_else(wrong)?;
    let (count, unit_s) = match (time.strip_suffix('s'), time.strip_suffix('m')) {
        (Some(seconds), _) => (seconds, 1.0),
        (None, Some(minutes)) => (minutes, 60.0),
        (None, None) => return Err(wrong()),
    };
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0).ok_or_else(wrong);
    Ok((number(count)? * unit_s, number(rate)?))
}

/// `200`, or `32-1024`.
pub fn range(text: &str) -> Result<(usize, usize), String> {
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<usize>().map_err(|_| "a number of bytes, or two with a dash".to_owned());
    let (least, most) = (number(least)?, number(most)?);
    if least <= most { Ok((least, most)) } else { Err("the least first".to_owned()) }
}
