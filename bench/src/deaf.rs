//! Clients that stop reading, among honest ones: whether the memory bound holds, how much later honest clients get their messages, and
//! whether anything is lost.
//!
//! Everybody is in groups of four, half of whose members read nothing once they are welcomed. In the end a new device of every user, of the
//! deaf ones too, reads the whole history.

use crate::Common;
use crate::gateway::{Gateway, metric_sum};
use crate::load;
use crate::results::Run;

/// One measurement: the same load with everybody reading, and with half of the `--connections` deaf.
pub fn run(common: &Common) -> Result<Run, String> {
    // Rows that wait for a checkpoint count as well; small segments leave the room to the deaf.
    let bound = [format!("limits.memory_bytes={MEMORY_BYTES}"), "store.segment_bytes=16777216".to_owned()];
    let settings = bound.into_iter().chain(common.settings.iter().cloned()).collect();
    let common = Common { settings, ..common.clone() };
    let measure = |deaf: usize| {
        let gateway = Gateway::start_apart(&common)?;
        let load = format!(
            "slow -n {} --slow 0 --deaf {deaf} --group-share 1 --group-size 4 --payload {} --rate {RATE} --warm-up {} --seconds {} --audit \
             --drain 90",
            common.connections,
            common.payload.unwrap_or(16_000),
            common.warm_up,
            common.seconds,
        );
        let report = load::run(&gateway, &load)?;
        Ok::<_, String>((report, gateway.metrics()?))
    };
    let (all, _) = measure(0)?;
    let (beside, metrics) = measure(common.connections / 2)?;
    let p99 = "/stages/0/deliver_us/p99";
    let mut run = Run::default();
    run.add("connections_count", common.connections as f64);
    run.add("deaf_count", (common.connections / 2) as f64);
    run.add("resident_bytes_max_everybody_reads", all.resident_bytes_max());
    run.add("resident_bytes_max", beside.resident_bytes_max());
    run.add("resident_of_bound", beside.resident_bytes_max() / MEMORY_BYTES as f64);
    run.add("deliver_us_p99_everybody_reads", all.number(p99)?);
    run.add("deliver_us_p99", beside.number(p99)?);
    let count = "/stages/0/deliver_us/count";
    run.add("delivered_at_once_count_everybody_reads", all.number(count)?);
    run.add("delivered_at_once_count", beside.number(count)?);
    run.add("deliver_p99_ratio", beside.number(p99)? / all.number(p99)?);
    run.add("readers_shed_count", metric_sum(&metrics, "tidegate_shed_total{kind=\"reader\"}"));
    run.add("received_in_the_end_count", beside.number("/counts/received")?);
    Ok(run)
}

/// `limits.memory_bytes`: less than what the windows of a thousand deaf would hold.
const MEMORY_BYTES: u64 = 128 * 1024 * 1024;
/// Messages per second, each to four members.
const RATE: u32 = 300;
