//! From kill -9 at full load until ready again, page cache warm.
//!
//! Two cases. *Kept*: everything as the kill left it; the engine recovers from its own journal, the log is checked, and the groups the
//! engine has not heard of are replayed. *Lost*: the engine has lost everything it held, as after a power cut that came before its first
//! checkpoint, and all of the log is replayed. The log is as large as asked for, which no checkpoint cuts short meanwhile.

use std::fs;
use std::time::Duration;

use clap::Args;

use crate::Common;
use crate::SendOptions;
use crate::client::Swarm;
use crate::gateway::{Gateway, metric_sum};
use crate::idle::Greeter;
use crate::results::Run;
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
}

/// One measurement of each case.
pub fn run(options: &ReopenOptions) -> Result<Run, String> {
    let mut run = Run::default();
    run.add("connections_count", options.common.connections as f64);
    case(options, "kept", &[], &mut run)?;
    // Tables are flushed, and the log forgets, after a segment's worth of rows: four times as many bytes as there will be log.
    let segment = (u64::from(options.log_mib) << 22).to_string();
    case(options, "lost", &["--store-segment-bytes", &segment], &mut run)?;
    Ok(run)
}

fn case(options: &ReopenOptions, case: &str, arguments: &[&str], run: &mut Run) -> Result<(), String> {
    let common = &options.common;
    let mut gateway = Gateway::start(common, arguments)?;
    let send = SendOptions { common: common.clone(), rate: 0, in_flight: options.in_flight, nack: false, beside: 0 };
    let mut load = Load::new(&send, Greeter::new(common.connections, gateway.minter()?))?;
    let mut swarm = Swarm::new(gateway.address, Some("tidegate.v1")).map_err(|error| error.to_string())?;
    swarm.grow(common.connections, &mut load)?;
    let mut driver = Loop::new(&send, &load, &mut swarm)?;
    driver.start(&mut swarm, &mut load)?;
    let wanted = f64::from(options.log_mib) * MIB;
    let metrics = loop {
        driver.turn_for(&mut swarm, &mut load, LOOK_EVERY)?;
        let metrics = gateway.metrics()?;
        if metric_sum(&metrics, WRITTEN) >= wanted {
            break metrics;
        }
    };
    gateway.kill()?;
    drop(swarm);
    if case == "lost" {
        fs::remove_dir_all(gateway.data().join("engine")).map_err(|error| format!("the engine: {error}"))?;
    }
    let took = gateway.reopen()?;
    run.add(format!("{case}_log_written_mib"), metric_sum(&metrics, WRITTEN) / MIB);
    run.add(format!("{case}_groups_count"), metric_sum(&metrics, "tidegate_store_groups_committed_total"));
    run.add(format!("{case}_messages_count"), load.sent_count as f64);
    run.add(format!("{case}_ready_s"), took.as_secs_f64());
    run.add(format!("{case}_cpu_s"), gateway.cpu_total()?);
    Ok(())
}

const WRITTEN: &str = "tidegate_store_log_written_bytes_total";
const MIB: f64 = 1024.0 * 1024.0;
const LOOK_EVERY: Duration = Duration::from_millis(100);
