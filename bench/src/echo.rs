//! Bare WebSocket echo, closed loop with one message in flight per connection: the floor under everything else.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Common;
use crate::client::{Outbox, Ready, Script, Swarm};
use crate::gateway::{Gateway, metric_sum};
use crate::machine;
use crate::pace::nanos;
use crate::results::Run;
use crate::send::{latency_histogram, own_cpu};

/// One measurement.
pub fn run(common: &Common) -> Result<Run, String> {
    let gateway = Gateway::start(common, &["--echo"])?;
    let mut script = Echo {
        payload: vec![b'e'; common.payload.unwrap_or(64)],
        sent_at: vec![None; common.connections],
        origin: Instant::now(),
        latency: latency_histogram()?,
        count: 0,
    };
    machine::raise_descriptors(common.connections)?;
    let mut swarm = Swarm::new(gateway.address, None).map_err(|error| error.to_string())?;
    swarm.grow(common.connections, &mut script)?;
    for index in 0..common.connections {
        script.sent_at[index] = Some(script.origin.elapsed());
        swarm.send(index, |bytes| bytes.extend_from_slice(&script.payload))?;
    }
    turn_for(&mut swarm, &mut script, common.warm_up())?;

    script.latency.reset();
    let calls = metric_sum(&gateway.metrics()?, SYSTEM_CALLS);
    let (count, cpu, own) = (script.count, gateway.cpu_total()?, own_cpu()?);
    let started = Instant::now();
    turn_for(&mut swarm, &mut script, common.duration())?;
    let seconds = started.elapsed().as_secs_f64();
    let messages = (script.count - count) as f64;
    let (cpu, own) = (gateway.cpu_total()? - cpu, own_cpu()? - own);
    let calls = metric_sum(&gateway.metrics()?, SYSTEM_CALLS) - calls;

    let mut run = Run::default();
    run.add("connections_count", common.connections as f64);
    run.add("payload_bytes", script.payload.len() as f64);
    run.add("messages_per_s", messages / seconds);
    run.add("cpu_us_per_message", cpu * 1e6 / messages);
    run.add("system_calls_per_message", calls / messages);
    run.add("gateway_cpu_percent", cpu * 100.0 / seconds);
    run.add("generator_cpu_percent", own * 100.0 / seconds);
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
        run.add(format!("round_trip_us_{name}"), script.latency.value_at_quantile(quantile) as f64 / 1e3);
    }
    Ok(run)
}

fn turn_for(swarm: &mut Swarm, script: &mut Echo, duration: Duration) -> Result<(), String> {
    let started = Instant::now();
    while started.elapsed() < duration {
        swarm.turn(Duration::from_millis(100), script)?;
    }
    Ok(())
}

/// What the drivers count; wake-ups of sleeping threads are not among them.
const SYSTEM_CALLS: &str = "tidegate_driver_system_calls_total";

struct Echo {
    payload: Vec<u8>,
    sent_at: Vec<Option<Duration>>,
    origin: Instant,
    latency: Histogram<u64>,
    count: u64,
}

impl Script for Echo {
    fn opened(&mut self, _: usize, _: &mut Outbox<'_>) -> Ready {
        Ready::Yes
    }

    fn message(&mut self, index: usize, payload: &[u8], out: &mut Outbox<'_>) -> Result<Ready, String> {
        let now = self.origin.elapsed();
        let sent_at = self.sent_at[index].replace(now).ok_or_else(|| format!("connection {index}: an echo of nothing"))?;
        if payload != self.payload {
            return Err(format!("connection {index}: the echo differs"));
        }
        self.latency.saturating_record(nanos(now - sent_at));
        self.count += 1;
        out.message(|bytes| bytes.extend_from_slice(&self.payload));
        Ok(Ready::Yes)
    }
}
