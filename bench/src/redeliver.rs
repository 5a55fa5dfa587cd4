//! What a redelivery costs: every message is refused once by its receiver (NACK) and comes again a second later, against the same
//! messages at the same rate, of the same connections to the same gateway, that are not refused.
//!
//! The CPU of all threads of the gateway is counted, NACK included. What is not refused is measured before and after, so that a machine
//! that became slower or faster meanwhile does not pass for a cost.

use clap::Args;

use crate::client::Swarm;
use crate::gateway::Gateway;
use crate::idle::Greeter;
use crate::results::Run;
use crate::send::{Load, Loop, drain};
use crate::{Common, SendOptions};

/// What is refused, and how fast.
#[derive(Clone, Debug, Args)]
pub struct RedeliverOptions {
    #[command(flatten)]
    pub common: Common,
    /// Messages per second over all connections, open loop.
    #[arg(long, default_value_t = 5_000)]
    rate: u64,
}

/// One measurement: plain, refused, plain again, each as long as `--seconds` says.
pub fn run(options: &RedeliverOptions) -> Result<Run, String> {
    let common = &options.common;
    let gateway = Gateway::start(common, &[])?;
    let send = SendOptions { common: common.clone(), rate: options.rate, in_flight: 1, nack: false, beside: 0 };
    let mut load = Load::new(&send, Greeter::new(common.connections, gateway.minter()?))?;
    let mut swarm = Swarm::new(gateway.address, Some("tidegate.v1")).map_err(|error| error.to_string())?;
    swarm.grow(common.connections, &mut load)?;
    let mut driver = Loop::new(&send, &load, &mut swarm)?;
    let mut part = |load: &mut Load, is_nacked: bool| -> Result<Part, String> {
        load.is_nacked = is_nacked;
        driver.turn_for(&mut swarm, load, common.warm_up())?;
        let before = Part::so_far(&gateway, load)?;
        driver.turn_for(&mut swarm, load, common.duration())?;
        Ok(Part::so_far(&gateway, load)?.since(before))
    };
    let (before, refused, after) = (part(&mut load, false)?, part(&mut load, true)?, part(&mut load, false)?);
    load.is_stopping = true;
    drain(&mut swarm, &mut load)?;

    let plain = (before.cpu_us_per_message() + after.cpu_us_per_message()) / 2.0;
    let more = refused.cpu_us_per_message() - plain;
    let mut run = Run::default();
    run.add("connections_count", common.connections as f64);
    run.add("rate_wanted_per_s", options.rate as f64);
    run.add("messages_per_s", refused.sent_count / common.seconds);
    run.add("redeliveries_per_s", refused.again_count / common.seconds);
    run.add("cpu_us_per_message_before", before.cpu_us_per_message());
    run.add("cpu_us_per_message_refused", refused.cpu_us_per_message());
    run.add("cpu_us_per_message_after", after.cpu_us_per_message());
    run.add("cpu_us_per_redelivery", more * refused.sent_count / refused.again_count.max(1.0));
    Ok(run)
}

/// What was done, and what it cost.
#[derive(Clone, Copy)]
struct Part {
    cpu_s: f64,
    sent_count: f64,
    again_count: f64,
}

impl Part {
    fn so_far(gateway: &Gateway, load: &Load) -> Result<Self, String> {
        let cpu_s = gateway.threads()?.total().cpu_s;
        Ok(Self { cpu_s, sent_count: load.sent_count as f64, again_count: load.again_count as f64 })
    }

    fn since(self, before: Self) -> Self {
        Self {
            cpu_s: self.cpu_s - before.cpu_s,
            sent_count: self.sent_count - before.sent_count,
            again_count: self.again_count - before.again_count,
        }
    }

    fn cpu_us_per_message(self) -> f64 {
        self.cpu_s * 1e6 / self.sent_count.max(1.0)
    }
}
