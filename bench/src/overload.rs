//! Overload: the peak is found first, then held, then twice as much is offered, then half. What is acknowledged meanwhile, and how long
//! afterwards nothing waits any more.
//!
//! A client of `loadgen` has a bounded outbox; what finds no room in it is given up and counted, as an application would.

use crate::Common;
use crate::gateway::Gateway;
use crate::load;
use crate::results::Run;

/// One measurement.
pub fn run(common: &Common) -> Result<Run, String> {
    let gateway = Gateway::start_apart(common)?;
    let clients = format!("-n {} --outbox {OUTBOX}", common.connections);
    let found = load::run(&gateway, &format!("peak {clients} --from 4000 --seconds 3 --p99 100 --parts 1"))?;
    let peak = found.last_stage()["rate_wanted_per_s"].as_f64().ok_or("loadgen found no peak")?.round();
    let (twice, half) = (2.0 * peak, peak / 2.0);
    let seconds = common.seconds;
    let steps = format!(
        "--stage 2s:{peak} --stage {seconds}s:{peak} --stage 0s:{twice} --stage {seconds}s:{twice} --stage 0s:{half} --stage {seconds}s:{half}"
    );
    let report = load::run(&gateway, &format!("chat {clients} {steps}"))?;
    // Stages of no seconds are not reported.
    let acknowledged = |stage: usize| report.number(&format!("/stages/{stage}/acknowledged_per_s"));
    let (at_peak, at_twice, at_half) = (acknowledged(1)?, acknowledged(2)?, acknowledged(3)?);
    let mut run = Run::default();
    run.add("connections_count", common.connections as f64);
    run.add("peak_per_s", peak);
    run.add("goodput_at_peak_per_s", at_peak);
    run.add("goodput_at_twice_per_s", at_twice);
    run.add("goodput_ratio", at_twice / at_peak);
    run.add("goodput_at_half_per_s", at_half);
    run.add("sent_at_twice_us_p99", report.number("/stages/2/sent_us/p99")?);
    run.add("sent_at_half_us_p99", report.number("/stages/3/sent_us/p99")?);
    let dropped_s = report.number("/measured_s/0")? + 2.0 + 2.0 * seconds;
    let calm = half * CALM_S;
    let waits = |sample: &&serde_json::Value| sample["unsent"].as_f64().is_some_and(|unsent| unsent > calm);
    let after = report.samples().iter().filter(|sample| sample["at_s"].as_f64().is_some_and(|at_s| at_s > dropped_s));
    let last_s = after.filter(waits).filter_map(|sample| sample["at_s"].as_f64()).fold(dropped_s, f64::max);
    run.add("recovery_s", last_s - dropped_s);
    run.add("refused_5002_count", report.number("/errors/5002").unwrap_or(0.0));
    run.add("given_up_by_clients_count", report.number("/counts/given_up")?);
    run.add("generator_late_us_p99_at_twice", report.number("/stages/2/pacing_us/p99")?);
    run.add("generator_cpu_percent_at_twice", report.number("/stages/2/generator_cpu_percent")?);
    run.add("gateway_cpu_percent_at_twice", report.number("/stages/2/gateway_cpu_percent")?);
    Ok(run)
}

/// Messages of one client that may wait.
const OUTBOX: usize = 16;
/// Calm again: no more messages wait than come in so many seconds.
const CALM_S: f64 = 0.1;
