//! From kill -9 at full load until ready again, page cache warm.
//!
//! Three cases. *Kept*: everything as the kill left it; the log is checked, and the groups since the engine's last checkpoint are
//! replayed. *Lost*: the engine has lost everything it held, as after a power cut that came before its first
//! checkpoint, and all of the log is replayed. The log is as large as asked for, which no checkpoint cuts short meanwhile. *Older*: in
//! front of what the kill left stand the segments that checkpoints had taken away.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use crate::Common;
use crate::SendOptions;
use crate::client::Swarm;
use crate::gateway::{Gateway, metric_sum};
use crate::idle::Greeter;
use crate::results::{Run, spread};
use crate::send::{Load, Loop};

/// What to reopen.
#[derive(Clone, Debug, Args)]
pub struct ReopenOptions {
    #[command(flatten)]
    pub common: Common,
    /// Messages of each connection in flight.
    #[arg(long, default_value_t = 16)]
    in_flight: u32,
    /// MiB of log to write before the kill.
    #[arg(long, default_value_t = 128)]
    log_mib: u32,
    /// MiB of older segments to keep in front of it. 0: without this case.
    #[arg(long, default_value_t = 1024)]
    older_mib: u32,
}

/// One measurement of each case.
pub fn run(options: &ReopenOptions) -> Result<Run, String> {
    let mut run = Run::default();
    run.add("connections_count", options.common.connections as f64);
    kept(options, &mut run)?;
    lost(options, &mut run)?;
    if options.older_mib > 0 {
        older(options, &mut run)?;
    }
    Ok(run)
}

fn kept(options: &ReopenOptions, run: &mut Run) -> Result<(), String> {
    let mut loaded = Loaded::start(options, &[])?;
    loaded.write_until(options.log_mib, || Ok(()))?;
    loaded.reopen("kept", run)
}

fn lost(options: &ReopenOptions, run: &mut Run) -> Result<(), String> {
    // Tables are flushed, and the log forgets, after a segment's worth of rows: four times as many bytes as there will be log.
    let segment = (u64::from(options.log_mib) << 22).to_string();
    let mut loaded = Loaded::start(options, &["--store-segment-bytes", &segment])?;
    loaded.write_until(options.log_mib, || Ok(()))?;
    fs::remove_dir_all(loaded.gateway.data().join("engine")).map_err(|error| format!("the engine: {error}"))?;
    loaded.reopen("lost", run)
}

/// The log is put back as it was before checkpoints took its older segments away. What they add is the difference to the same reopening
/// without them, in turn, when the engine has settled: nothing is replayed then, and only reading and checking differ.
fn older(options: &ReopenOptions, run: &mut Run) -> Result<(), String> {
    let mut loaded = Loaded::start(options, &[])?;
    let mut segments = Segments::of(&loaded.gateway)?;
    loaded.write_until(options.older_mib + options.log_mib, || segments.keep())?;
    segments.remember()?;
    segments.put_back()?;
    run.add("older_log_mib", segments.older_bytes()? as f64 / MIB);
    loaded.reopen("older", run)?;
    let gateway = &mut loaded.gateway;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        std::thread::sleep(SETTLING);
        gateway.kill()?;
        segments.take_away()?;
        without.push(gateway.reopen()?.as_secs_f64());
        std::thread::sleep(SETTLING);
        gateway.kill()?;
        segments.put_back()?;
        with.push(gateway.reopen()?.as_secs_f64());
    }
    let (with, without) = (spread(with).median, spread(without).median);
    run.add("older_ready_s_with", with);
    run.add("older_ready_s_without", without);
    run.add("older_adds_s", with - without);
    Ok(())
}

/// A gateway at full load.
struct Loaded {
    gateway: Gateway,
    swarm: Option<Swarm>,
    load: Load,
    driver: Loop,
    metrics: String,
}

impl Loaded {
    fn start(options: &ReopenOptions, arguments: &[&str]) -> Result<Self, String> {
        let common = &options.common;
        let gateway = Gateway::start(common, arguments)?;
        let send = SendOptions { common: common.clone(), rate: 0, in_flight: options.in_flight, nack: false, beside: 0 };
        let mut load = Load::new(&send, Greeter::new(common.connections, gateway.minter()?))?;
        // Large files of zeros are made meanwhile, and a disk that is busy with them keeps the engine waiting.
        load.may_be_refused = true;
        let mut swarm = Swarm::new(gateway.address, Some("tidegate.v1")).map_err(|error| error.to_string())?;
        swarm.grow(common.connections, &mut load)?;
        let mut driver = Loop::new(&send, &load, &mut swarm)?;
        driver.start(&mut swarm, &mut load)?;
        Ok(Self { gateway, swarm: Some(swarm), load, driver, metrics: String::new() })
    }

    /// Writes so much log, looking at it now and then, and kills the gateway.
    fn write_until(&mut self, mib: u32, mut look: impl FnMut() -> Result<(), String>) -> Result<(), String> {
        let mut swarm = self.swarm.take().ok_or("it was killed before")?;
        let begun = Instant::now();
        while metric_sum(&self.metrics, WRITTEN) < f64::from(mib) * MIB {
            self.driver.turn_for(&mut swarm, &mut self.load, LOOK_EVERY)?;
            self.metrics = self.gateway.metrics()?;
            look()?;
            if begun.elapsed() > WRITING_MAX {
                return Err(format!("{mib} MiB of log were not written in time; {} messages are stored", self.load.sent_count));
            }
        }
        self.gateway.kill()
    }

    fn reopen(&mut self, case: &str, run: &mut Run) -> Result<(), String> {
        let took = self.gateway.reopen()?;
        run.add(format!("{case}_log_written_mib"), metric_sum(&self.metrics, WRITTEN) / MIB);
        run.add(format!("{case}_groups_count"), metric_sum(&self.metrics, "tidegate_store_groups_committed_total"));
        run.add(format!("{case}_messages_count"), self.load.sent_count as f64);
        run.add(format!("{case}_ready_s"), took.as_secs_f64());
        run.add(format!("{case}_cpu_s"), self.gateway.cpu_total()?);
        Ok(())
    }
}

/// The segments of a log, with a second name outside of it for each, so that none is gone when the log has forgotten it.
struct Segments {
    log: PathBuf,
    aside: PathBuf,
    /// Names of those that the log held by itself when it was killed.
    own: Vec<String>,
}

impl Segments {
    fn of(gateway: &Gateway) -> Result<Self, String> {
        let aside = gateway.data().join("aside");
        fs::create_dir(&aside).map_err(|error| format!("{}: {error}", aside.display()))?;
        Ok(Self { log: gateway.data().join("log"), aside, own: Vec::new() })
    }

    /// Gives those that are new a second name.
    fn keep(&self) -> Result<(), String> {
        names(&self.log)?.iter().try_for_each(|name| link(&self.log, &self.aside, name))
    }

    /// What the log holds now is its own.
    fn remember(&mut self) -> Result<(), String> {
        self.keep()?;
        self.own = names(&self.log)?;
        Ok(())
    }

    /// Gives those that the log has forgotten their first name again.
    fn put_back(&self) -> Result<(), String> {
        names(&self.aside)?.iter().try_for_each(|name| link(&self.aside, &self.log, name))
    }

    /// Makes the log forget those again that are not its own.
    fn take_away(&self) -> Result<(), String> {
        let older = self.older()?.into_iter().map(|name| self.log.join(name));
        let mut gone = older.map(fs::remove_file).filter(|done| !is_missing(done));
        gone.try_for_each(|done| done.map_err(|error| format!("removing a segment: {error}")))
    }

    fn older(&self) -> Result<Vec<String>, String> {
        Ok(names(&self.aside)?.into_iter().filter(|name| !self.own.contains(name)).collect())
    }

    fn older_bytes(&self) -> Result<u64, String> {
        let bytes = |name: String| fs::metadata(self.aside.join(&name)).map(|file| file.len());
        self.older()?.into_iter().map(bytes).sum::<std::io::Result<u64>>().map_err(|error| format!("a segment: {error}"))
    }
}

/// Names of the segments in a directory.
fn names(dir: &Path) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name.ends_with(".log")).collect())
}

/// One that is gone meanwhile, or has both names already, is no error.
fn link(from: &Path, to: &Path, name: &str) -> Result<(), String> {
    match fs::hard_link(from.join(name), to.join(name)) {
        Err(error) if ![ErrorKind::NotFound, ErrorKind::AlreadyExists].contains(&error.kind()) => Err(format!("{name}: {error}")),
        _ => Ok(()),
    }
}

fn is_missing(done: &std::io::Result<()>) -> bool {
    done.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

const WRITTEN: &str = "tidegate_store_log_written_bytes_total";
const MIB: f64 = 1024.0 * 1024.0;
const WRITING_MAX: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Reopenings with the older segments and without them.
const PAIRS: usize = 3;
/// For the engine to finish what a start has begun.
const SETTLING: Duration = Duration::from_secs(5);
