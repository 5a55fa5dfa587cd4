//! Durable acknowledged messages per second: every one is on the disk, by a sync, before its sender hears of it. Against NATS JetStream
//! with `sync_interval: always`, one stream in a file.
//!
//! Both run on one core with all their threads, both get 1,000 senders with as many messages in flight each. The gateway also delivers
//! each message to another connection, which acknowledges it; JetStream only stores. Syncs are counted by the kernel in the same windows:
//! a server that syncs once for many messages is another than one that syncs each.
//!
//! JetStream takes all messages that wait, stores and syncs one after the other, and only then sends the acknowledgements: whoever has
//! 16,000 in flight hears nothing for seconds, and then everything at once. So a window lasts whole *rounds*, in each of which everybody is
//! acknowledged as many messages as it has in flight: it begins when the first round is over, and ends with the first round that is over
//! after its time. Where acknowledgements come evenly a round is over in no time.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::kernel::{Counted, may_count};
use crate::nats::Publishers;
use crate::paired::{Case, Generator, Options, Per, Sample, Team, Watch, measure};
use crate::server::{Bare, Contender, Server};
use crate::work;

/// The one case.
pub fn run(options: &Options) -> Result<(), String> {
    let name = format!("{SENDERS} senders, {IN_FLIGHT} in flight");
    if !options.wants_case(&name) {
        return Ok(());
    }
    let contenders = options.choose(&[Contender::Nats, Contender::Epoll, Contender::Uring]);
    if !contenders.contains(&Contender::Nats) {
        return Ok(());
    }
    if !may_count() {
        return Err("without a count of syncs a ratio says nothing: durable needs perf".to_owned());
    }
    let team = |contender: Contender| {
        let server = Server::start(contender, Bare::Echo, options, &[])?;
        if server.gateway().is_some() {
            let open = work::pairs(contender, &server, options, IN_FLIGHT)?;
            return Team::new(contender, server, move || Ok(Senders(Box::new(open()?))));
        }
        let address = server.address;
        Team::new(contender, server, move || {
            Ok(Senders(Box::new(Publishers::open(address, SENDERS, IN_FLIGHT as usize, work::PAYLOAD_BYTES)?)))
        })
    };
    let teams = contenders.into_iter().map(team).collect::<Result<_, _>>()?;
    let facts = vec![
        ("senders_count", SENDERS as f64),
        ("in_flight_count", f64::from(IN_FLIGHT)),
        ("payload_bytes", work::PAYLOAD_BYTES as f64),
    ];
    let (reference, per, counted) = (Contender::Nats, Per::Second, Counted::Syncs);
    measure("durable", &Case { name, unit: "message", facts, reference, per, seconds: SECONDS, counted }, teams, options)
}

/// Senders in a closed loop: each has so many messages in flight, and every acknowledgement brings the next message.
pub trait Closed {
    /// Sends the first ones.
    fn start(&mut self) -> Result<(), String>;
    /// Handles what comes for so long.
    fn turn_for(&mut self, duration: Duration) -> Result<(), String>;
    /// Of each sender, so far.
    fn acknowledged(&self) -> Vec<u64>;
    /// From sending to acknowledgement, nanoseconds.
    fn latency(&mut self) -> &mut Histogram<u64>;
    /// Sends no more, and waits for what is in flight.
    fn stop(&mut self) -> Result<(), String>;

    /// Figures of [`Closed::latency`].
    fn quantiles(&mut self) -> Vec<(&'static str, f64)> {
        let us = |latency: &Histogram<u64>, quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
        let latency = self.latency();
        vec![("sent_us_p50", us(latency, 0.5)), ("sent_us_p99", us(latency, 0.99))]
    }
}

struct Senders(Box<dyn Closed>);

impl Generator for Senders {
    /// The warm-up is a round, the duration the least that a window lasts.
    fn drive(&mut self, _: Duration, duration: Duration, watch: &mut Watch) -> Result<Sample, String> {
        let senders = &mut *self.0;
        let first = senders.acknowledged();
        senders.start()?;
        turn_until(senders, |now| rounds(&first, now) > 0)?;
        senders.latency().reset();
        watch.begin()?;
        let before = senders.acknowledged();
        senders.turn_for(duration)?;
        let so_far = rounds(&first, &senders.acknowledged());
        turn_until(senders, |now| rounds(&first, now) > so_far)?;
        let units = senders.acknowledged().iter().sum::<u64>() - before.iter().sum::<u64>();
        let mut sample = watch.end(units as f64)?;
        sample.more = senders.quantiles();
        senders.stop()?;
        Ok(sample)
    }
}

fn turn_until(senders: &mut dyn Closed, is_over: impl Fn(&[u64]) -> bool) -> Result<(), String> {
    let started = Instant::now();
    while !is_over(&senders.acknowledged()) {
        if started.elapsed() > ROUND_MAX {
            return Err(format!("a round was not over within {ROUND_MAX:?}"));
        }
        senders.turn_for(SLICE)?;
    }
    Ok(())
}

/// How often everybody was acknowledged as much as it has in flight.
fn rounds(before: &[u64], now: &[u64]) -> u64 {
    let least = before.iter().zip(now).map(|(before, now)| now - before).min().unwrap_or(0);
    least / u64::from(IN_FLIGHT)
}

const SENDERS: usize = work::CONNECTIONS;
const IN_FLIGHT: u32 = 16;
/// The least that a window lasts.
const SECONDS: f64 = 10.0;
/// How closely the end of a round is seen.
const SLICE: Duration = Duration::from_millis(5);
/// Sixteen thousand syncs, on a disk that needs some milliseconds for each.
const ROUND_MAX: Duration = Duration::from_secs(180);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Probe;

    /// Ten senders whose acknowledgements come all at once, every 100 ms of a time that passes only when it is let pass.
    struct Bursts {
        passed: Duration,
        latency: Histogram<u64>,
    }

    impl Closed for Bursts {
        fn start(&mut self) -> Result<(), String> {
            Ok(())
        }

        fn turn_for(&mut self, duration: Duration) -> Result<(), String> {
            self.passed += duration;
            Ok(())
        }

        fn acknowledged(&self) -> Vec<u64> {
            vec![u64::try_from(self.passed.as_millis() / 100).unwrap() * u64::from(IN_FLIGHT); 10]
        }

        fn latency(&mut self) -> &mut Histogram<u64> {
            &mut self.latency
        }

        fn stop(&mut self) -> Result<(), String> {
            assert_eq!(self.passed, Duration::from_millis(400), "it ends with a round");
            Ok(())
        }
    }

    /// A window of 250 ms begins after the first burst, at 100 ms, and ends with the fourth, at 400 ms: three bursts in three times their
    /// interval.
    #[test]
    fn window_lasts_whole_rounds() {
        let bursts = Bursts { passed: Duration::ZERO, latency: Histogram::new(3).unwrap() };
        let mut watch = Watch::of(Probe::of(std::process::id()));
        let sample = Senders(Box::new(bursts)).drive(Duration::ZERO, Duration::from_millis(250), &mut watch).unwrap();
        assert!((sample.units - 480.0).abs() < 0.5, "{}", sample.units);
    }

    /// Who got least decides.
    #[test]
    fn round_is_over_when_everybody_has_had_it() {
        assert_eq!(rounds(&[0, 5], &[160, 20]), 0);
        assert_eq!(rounds(&[0, 5], &[160, 21]), 1);
        assert_eq!(rounds(&[0, 5], &[160, 38]), 2);
    }
}
