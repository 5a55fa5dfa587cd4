//! Overload: the gateway has a share of one core, so that the generator can offer twice what it carries. More and more is offered until no
//! more is acknowledged: that is the peak. The most that was offered and acknowledged, most of it promptly, is what it *carries*: less than
//! the peak, for what waits is read and written together, and costs less. Then a new gateway is offered the peak, then twice as much,
//! then half of what it carries. What is acknowledged meanwhile, and how long afterwards nothing waits any more.
//!
//! `--seconds` should hold a few checkpoints of the store: between them more is acknowledged than can be in the long run.
//!
//! A client has some messages under way, fewer than the gateway allows one connection; what is due beyond them is given up and counted, as
//! an application would.

use clap::Args;
use serde_json::Value;

use crate::Common;
use crate::gateway::Gateway;
use crate::load::{self, Report};
use crate::results::Run;
use crate::share::Share;

#[derive(Clone, Debug, Args)]
pub struct OverloadOptions {
    #[command(flatten)]
    pub common: Common,
    /// Percent of one core that the gateway may use: so few that the generator, which has a core, can offer twice what it carries. Needs
    /// root and the controller `cpu` of cgroup v1.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(10..=100))]
    share: u32,
    /// Messages of one client that may be under way. What waits when the load drops is so many of all clients.
    #[arg(long, default_value_t = 16)]
    outbox: usize,
}

/// One measurement.
pub fn run(options: &OverloadOptions) -> Result<Run, String> {
    let common = &options.common;
    // Outlives the gateway, which is in it.
    let share = Share::new(options.share)?;
    let start = || {
        let gateway = Gateway::start_apart(common)?;
        share.hold(gateway.pid()).map(|()| gateway)
    };
    let clients = format!("-n {} --outbox {}", common.connections, options.outbox);
    let seconds = common.seconds;
    let Limits { carried, peak } = limits(&start()?, &clients, seconds)?;
    let (twice, half) = (2.0 * peak, (carried / 2.0).round());
    let gateway = start()?;
    let steps = format!(
        "--stage 2s:{peak} --stage {seconds}s:{peak} --stage 0s:{twice} --stage {seconds}s:{twice} --stage 0s:{half} --stage {seconds}s:{half}"
    );
    let report = load::run(&gateway, &format!("chat {clients} {steps}"))?;
    // Stages of no seconds are not reported.
    let [at_peak, at_twice, at_half] = [1, 2, 3].map(|stage| Stage { report: &report, stage });
    let late_us = at_twice.number("pacing_us/p99")?;
    if late_us > LATE_US_MAX {
        return Err(format!("the generator is the limit: p99 of its own lateness {late_us:.0} µs; take a smaller --share"));
    }
    let mut run = Run::default();
    run.add("connections_count", common.connections as f64);
    run.add("under_way_max", options.outbox as f64);
    run.add("gateway_share_percent", f64::from(options.share));
    run.add("carried_per_s", carried);
    run.add("peak_per_s", peak);
    run.add("goodput_at_peak_per_s", at_peak.number("acknowledged_per_s")?);
    run.add("offered_at_twice_per_s", at_twice.number("rate_wanted_per_s")?);
    run.add("goodput_at_twice_per_s", at_twice.number("acknowledged_per_s")?);
    run.add("goodput_ratio", at_twice.number("acknowledged_per_s")? / peak);
    run.add("goodput_at_half_per_s", at_half.number("acknowledged_per_s")?);
    run.add("sent_at_peak_us_p99", at_peak.number("sent_us/p99")?);
    run.add("sent_at_twice_us_p99", at_twice.number("sent_us/p99")?);
    run.add("sent_at_half_us_p99", at_half.number("sent_us/p99")?);
    run.add("recovery_s", recovery_s(&report, report.number("/measured_s/0")? + 2.0 + 2.0 * seconds, half));
    for code in ["4001", "4002", "5002"] {
        run.add(format!("refused_{code}_count"), report.number(&format!("/errors/{code}")).unwrap_or(0.0));
    }
    run.add("given_up_by_clients_count", report.number("/counts/given_up")?);
    run.add("generator_late_us_p99_at_twice", late_us);
    run.add("generator_cpu_percent_at_twice", at_twice.number("generator_cpu_percent")?);
    run.add("gateway_cpu_percent_at_twice", at_twice.number("gateway_cpu_percent")?);
    Ok(run)
}

/// What a gateway can do.
struct Limits {
    /// The most that was offered per second of which nearly all was acknowledged, nine tenths of it within [`CALM_S`].
    carried: f64,
    /// The most that was acknowledged per second, whatever was offered.
    peak: f64,
}

/// Offers more, step by step, each for so many seconds, until two steps have not helped. In less time a gateway may do more than it can go on
/// doing.
fn limits(gateway: &Gateway, clients: &str, seconds: f64) -> Result<Limits, String> {
    let (mut most, mut rate, mut steps_lost) = (0.0, FIRST_PER_S, 0);
    let (mut carried, mut is_carrying) = (0.0, true);
    for _ in 0..STEPS_MAX {
        let report = load::run(gateway, &format!("chat {clients} --stage 1s:{rate} --stage {seconds}s:{rate}"))?;
        let goodput = Stage { report: &report, stage: 1 }.number("acknowledged_per_s")?;
        let is_prompt = Stage { report: &report, stage: 1 }.number("sent_us/p90")? < CALM_S * 1e6;
        is_carrying &= is_prompt && goodput > rate * NEARLY_ALL;
        if is_carrying {
            carried = rate;
        } else if carried == 0.0 {
            return Err(format!("it does not even carry {rate} per second: take a larger --share"));
        }
        steps_lost = if goodput > most * WORTH { 0 } else { steps_lost + 1 };
        most = goodput.max(most);
        if steps_lost == 2 {
            return Ok(Limits { carried, peak: most.round() });
        }
        rate = (rate * STEP).round();
    }
    Err(format!("no peak up to {rate} per second: the generator cannot offer enough; take a smaller --share"))
}

/// Seconds from the drop of the load at `dropped_s` until no more messages wait than come within [`CALM_S`], `per_s` each second.
fn recovery_s(report: &Report, dropped_s: f64, per_s: f64) -> f64 {
    let of = |sample: &Value, name: &str| sample[name].as_f64().unwrap_or_default();
    let after = report.samples().iter().filter(|sample| of(sample, "at_s") > dropped_s);
    let waits = after.filter(|sample| of(sample, "unsent") > per_s * CALM_S);
    waits.map(|sample| of(sample, "at_s")).fold(dropped_s, f64::max) - dropped_s
}

/// One stage of a run.
struct Stage<'a> {
    report: &'a Report,
    stage: usize,
}

impl Stage<'_> {
    fn number(&self, name: &str) -> Result<f64, String> {
        self.report.number(&format!("/stages/{}/{name}", self.stage))
    }
}

/// What is offered first when the peak is looked for, and how much more with each step.
const FIRST_PER_S: f64 = 3_000.0;
const STEP: f64 = 1.3;
const STEPS_MAX: usize = 14;
/// Of what was offered, and acknowledged in the same seconds.
const NEARLY_ALL: f64 = 0.97;
/// A step that brings less than this is lost.
const WORTH: f64 = 1.03;
/// Calm again: no more messages wait than come in so many seconds. On a share of a core half of this waits also without an overload, while
/// tables are written.
const CALM_S: f64 = 0.25;
/// A generator that is later than this offers less than it says.
const LATE_US_MAX: f64 = 20_000.0;
