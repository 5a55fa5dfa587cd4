//! Everybody gone and back at once: how long until the last is back, what each costs, and what those notice who stayed.        [mio]
//!
//! All connections but a few end by reset in one moment and come back as fast as they are let in, 256 on their way at a time. Those who
//! stayed are pinged at an even rate all the while, from a thread of their own. Accept limits are lifted: this is about work, not pacing.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::client::{Outbox, Ready, Script, Swarm};
use crate::crowd::{ALL, nobody_yet};
use crate::pace::{Pace, nanos};
use crate::paired::Options;
use crate::results;
use crate::send::latency_histogram;
use crate::server::{Bare, Contender, Core, Server, on_core};

/// The one case.
pub fn run(options: &Options) -> Result<(), String> {
    let name = format!("{GUESTS} gone and back, {STAYERS} stay");
    if !options.wants_case(&name) {
        return Ok(());
    }
    let contenders = options.choose(ALL);
    let mut found: BTreeMap<&str, BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    for repetition in 0..options.repetitions {
        for turn in 0..contenders.len() {
            let contender = contenders[(repetition + turn) % contenders.len()];
            let figures = measure(contender, options).map_err(|error| format!("{contender}: {error}"))?;
            let kept = found.entry(contender.name()).or_default();
            figures.into_iter().for_each(|(figure, value)| kept.entry(figure).or_default().push(value));
        }
    }
    println!("rush: {name}");
    let mut all = Map::new();
    for contender in &contenders {
        let Some(figures) = found.remove(contender.name()) else { continue };
        println!("{contender}");
        let mut kept = Map::new();
        for (figure, values) in figures {
            let spread = results::spread(values);
            println!("    {figure:<32} {:>12.2} {:>12.2} {:>12.2}", spread.median, spread.least, spread.most);
            kept.insert(figure.to_owned(), spread.json());
        }
        all.insert(contender.name().to_owned(), Value::Object(kept));
    }
    if options.dry {
        return Ok(());
    }
    let record = json!({
        "case": name,
        "facts": { "connections_count": GUESTS, "staying_count": STAYERS, "pings_per_s": PINGS_PER_S },
        "repetitions": options.repetitions,
        "seconds": CALM.as_secs_f64(),
        "contenders": Value::Object(all),
    });
    results::keep("rush", &options.common(""), record)
}

/// One storm of one server that nobody has used before.
fn measure(contender: Contender, options: &Options) -> Result<Vec<(&'static str, f64)>, String> {
    let server = Server::start(contender, Bare::Echo, options, &[])?;
    let probe = server.probe();
    let (swarm, script) = nobody_yet(contender, &server, 0..STAYERS)?;
    let stayers = Stayers::start(swarm, script)?;
    let (mut swarm, mut script) = nobody_yet(contender, &server, STAYERS..STAYERS + GUESTS)?;
    swarm.grow(GUESTS, &mut *script)?;
    swarm.turn_for(REST, &mut *script)?;
    stayers.take()?;
    swarm.turn_for(CALM, &mut *script)?;
    let calm = stayers.take()?;
    probe.forget_peak()?;
    let (resident, cpu) = (probe.resident_peak()?, probe.cpu()?);
    // Made before: what clients keep of themselves is theirs.
    let (mut back, mut script) = nobody_yet(contender, &server, STAYERS..STAYERS + GUESTS)?;
    let started = Instant::now();
    swarm.reset()?;
    back.grow(GUESTS, &mut *script)?;
    let back_s = started.elapsed().as_secs_f64();
    let storm = stayers.take()?;
    let cpu_s = probe.cpu()? - cpu;
    let mut figures = vec![
        ("back_s", back_s),
        ("cpu_us_per_connection", cpu_s * 1e6 / GUESTS as f64),
        ("memory_ratio", probe.resident_peak()? / resident),
        ("generator_late_us_p99", storm.late.value_at_quantile(0.99) as f64 / 1e3),
    ];
    // A server that answers no ping has no latency.
    if !calm.latency.is_empty() && !storm.latency.is_empty() {
        let [before, meanwhile] = [&calm, &storm].map(|times| times.latency.value_at_quantile(0.99) as f64 / 1e3);
        figures.extend([("ping_us_p99_before", before), ("ping_us_p99", meanwhile), ("ping_p99_ratio", meanwhile / before)]);
    }
    stayers.end()?;
    back.reset()?;
    Ok(figures)
}

/// Who stays, on a thread of its own.
struct Stayers {
    orders: Sender<()>,
    answers: Receiver<Times>,
    thread: JoinHandle<Result<(), String>>,
}

/// Times since they were last asked for, in nanoseconds.
struct Times {
    /// From when a ping was to be sent until its answer.
    latency: Histogram<u64>,
    /// How late pings were sent.
    late: Histogram<u64>,
}

impl Times {
    fn new() -> Result<Self, String> {
        Ok(Self { latency: latency_histogram()?, late: latency_histogram()? })
    }
}

impl Stayers {
    fn start(swarm: Swarm, script: Box<dyn Script + Send>) -> Result<Self, String> {
        let (orders, asked) = channel();
        let (answer, answers) = channel();
        let work = move || {
            on_core(Core::Generator)?;
            ping(swarm, Timed { script, origin: Instant::now(), times: Times::new()? }, &asked, &answer)
        };
        let thread = std::thread::Builder::new().name("stayers".to_owned()).spawn(work).map_err(|error| error.to_string())?;
        Ok(Self { orders, answers, thread })
    }

    /// What was measured since this was last called. The first call waits until all are there.
    fn take(&self) -> Result<Times, String> {
        let gone = "those who stay are gone";
        self.orders.send(()).map_err(|_| gone)?;
        self.answers.recv().map_err(|_| gone.to_owned())
    }

    fn end(self) -> Result<(), String> {
        drop(self.orders);
        self.thread.join().map_err(|_| "those who stay panicked".to_owned())?
    }
}

/// Pings the connections in turn until nobody asks any more.
fn ping(mut swarm: Swarm, mut timed: Timed, asked: &Receiver<()>, answer: &Sender<Times>) -> Result<(), String> {
    swarm.grow(STAYERS, &mut timed)?;
    let mut pace = Pace::new(PINGS_PER_S, timed.origin).map_err(|error| format!("timer: {error}"))?;
    swarm.watch(&pace).map_err(|error| format!("timer: {error}"))?;
    let mut next = 0;
    loop {
        match asked.try_recv() {
            Ok(()) => drop(answer.send(std::mem::replace(&mut timed.times, Times::new()?))),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return swarm.reset(),
        }
        while let Some(due_ns) = pace.due() {
            timed.times.late.saturating_record(nanos(timed.origin.elapsed()).saturating_sub(due_ns));
            swarm.say(next, |out| out.ping(&due_ns.to_le_bytes()))?;
            next = (next + 1) % STAYERS;
        }
        pace.arm().map_err(|error| format!("timer: {error}"))?;
        swarm.turn(Duration::from_millis(50), &mut timed)?;
    }
}

/// A script whose pings carry the time at which they were to be sent.
struct Timed {
    script: Box<dyn Script + Send>,
    origin: Instant,
    times: Times,
}

impl Script for Timed {
    fn opened(&mut self, index: usize, out: &mut Outbox<'_>) -> Ready {
        self.script.opened(index, out)
    }

    fn message(&mut self, index: usize, payload: &[u8], out: &mut Outbox<'_>) -> Result<Ready, String> {
        self.script.message(index, payload, out)
    }

    fn pong(&mut self, payload: &[u8]) {
        let Ok(due_ns) = payload.try_into().map(u64::from_le_bytes) else { return };
        self.times.latency.saturating_record(nanos(self.origin.elapsed()).saturating_sub(due_ns));
    }
}

const GUESTS: usize = 5_000;
const STAYERS: usize = 50;
const PINGS_PER_S: u64 = 500;
/// Before anything counts: what was needed only to let them in may be given back.
const REST: Duration = Duration::from_secs(2);
/// How long those who stay are measured before.
const CALM: Duration = Duration::from_secs(3);
