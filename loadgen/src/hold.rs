//! Holding very many connections: ramp, rounds of pings, echoes between them, and what all this costs both programs and the kernel.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::hdr::Log;
use crate::machine::Kernel;
use crate::pace::{Leg, Schedule, nanos};
use crate::report::{Report, Sample};
use crate::run::{machine, unix_ms};
use crate::stats::{Latency, Percentiles, Window};
use crate::subject::{Process, http};
use crate::swarm::{BackEnd, Board, Pulse, Swarm};

/// What is done with the connections once they are there.
#[derive(Clone, PartialEq, Debug)]
pub struct Task {
    /// Before anything is measured.
    pub rest: Duration,
    /// Nothing but heartbeats.
    pub hold: Duration,
    /// Echoes, if there are any.
    pub echo: Option<Echoes>,
}

/// Messages that are to come back.
#[derive(Clone, PartialEq, Debug)]
pub struct Echoes {
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// Closed loop: connections, and messages under way on each. Then legs only say for how long.
    pub closed_loop: Option<(usize, usize)>,
    /// How many per second; each leg is measured for itself.
    pub legs: Vec<Leg>,
    /// Seconds at the first rate before anything is measured.
    pub warm_up_s: f64,
}

impl Echoes {
    /// So many per second for so many seconds.
    #[must_use]
    pub fn steady(payload_bytes: usize, per_s: f64, seconds: f64) -> Self {
        let leg = Leg { from_per_s: per_s, to_per_s: per_s, seconds };
        Self { payload_bytes, closed_loop: None, legs: vec![leg], warm_up_s: ECHO_WARM_UP_S }
    }

    /// What was measured in each, where there are several.
    fn stages(&self, latency: &Latency, pacing: &Latency) -> Vec<EchoStage> {
        let stage = |at: usize, leg: &Leg| EchoStage {
            rate_wanted_per_s: leg.mean_per_s(),
            rate_from_per_s: leg.from_per_s,
            rate_to_per_s: leg.to_per_s,
            seconds: leg.seconds,
            rate_per_s: latency.of_stage(at).count as f64 / leg.seconds,
            round_trip_us: latency.of_stage(at),
            pacing_us: pacing.of_stage(at),
        };
        let several = self.legs.iter().enumerate().filter(|(_, leg)| self.legs.len() > 1 && leg.seconds > 0.0);
        several.map(|(at, leg)| stage(at, leg)).collect()
    }

    fn pulse(&self, from_ns: u64) -> Pulse {
        let first = self.legs.first().map_or(0.0, |leg| leg.from_per_s);
        let warm_up = Leg { from_per_s: first, to_per_s: first, seconds: self.warm_up_s };
        let all: Vec<Leg> = std::iter::once(warm_up).chain(self.legs.iter().copied()).collect();
        let (busy, depth) = self.closed_loop.unwrap_or_default();
        Pulse {
            schedule: Schedule::new(&all, from_ns),
            busy,
            depth,
            payload_bytes: self.payload_bytes,
            window: Window::of_legs(from_ns + nanos(Duration::from_secs_f64(self.warm_up_s)), &self.legs),
        }
    }
}

/// What a run with very many connections found out.
#[derive(Clone, Default, Debug, Serialize)]
pub struct Held {
    /// Whose TCP carried them: `sockets` or `phantom`.
    pub back_end: &'static str,
    /// Connections asked for.
    pub wanted: u64,
    /// Of these, with a session of the protocol: all, or none on a gateway that only echoes.
    pub sessions_wanted: u64,
    /// Welcomed.
    pub opened: u64,
    /// Still standing in the end.
    pub held: u64,
    /// Seconds from the first connect to the last WELCOME.
    pub open_s: f64,
    /// CPU microseconds per connection until then.
    pub open_cpu_us: CpuOf,
    /// Seconds of heartbeats that were measured.
    pub hold_s: f64,
    /// CPU meanwhile, percent of one core.
    pub hold_cpu_percent: CpuOf,
    /// Pings of the gateway answered, from the first to the last second.
    pub pings_answered: u64,
    /// Pings per second while holding.
    pub pings_per_s: f64,
    /// User memory of the gateway per connection: growth of its proportional bytes.
    pub gateway_user_bytes: Option<f64>,
    /// User memory of this program per connection.
    pub own_user_bytes: f64,
    /// Kernel memory in slabs per connection, of both ends together; a phantom has no end in the kernel.
    pub slab_bytes_both_ends: f64,
    /// The caches that grew, bytes per connection, both ends together.
    pub caches_both_ends: BTreeMap<String, f64>,
    /// Kernel memory of the gateway's end: half of the slabs without what only the other end has (ports).
    pub kernel_bytes: Option<f64>,
    /// What is missing of the machine's available memory, per connection: both ends, kernel and user.
    pub machine_bytes_both_ends: f64,
    /// Sessions, and connections, as the gateway counts them while holding.
    pub gateway_open: Option<(u64, u64)>,
    /// Seconds from pulling all cables until the gateway had noticed.
    pub empty_s: Option<f64>,
    /// Echoes.
    pub echo: Option<Echo>,
}

/// CPU of the gateway's process, if it is known, of this program, and of all there is on this machine.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub struct CpuOf {
    /// The process under load.
    pub gateway: Option<f64>,
    /// This one.
    pub generator: f64,
    /// Everything that was not idle, these two included.
    pub machine: f64,
}

/// Messages that come back.
#[derive(Clone, Default, Debug, Serialize)]
pub struct Echo {
    /// How it was echoed: as the pong of a ping, or as a message.
    pub kind: &'static str,
    /// Bytes of payload.
    pub payload_bytes: u64,
    /// Messages per second that were meant to leave, on average, each to a connection drawn from all; 0: closed loop.
    pub rate_wanted_per_s: f64,
    /// Connections in a closed loop, and messages under way on each.
    pub closed_loop: Option<(u64, u64)>,
    /// Messages per second that came back.
    pub rate_per_s: f64,
    /// Sent and not come back.
    pub missing: u64,
    /// Microseconds from the intended time until it was back.
    pub round_trip_us: Percentiles,
    /// Microseconds from the intended time until it left.
    pub pacing_us: Percentiles,
    /// CPU meanwhile, percent of one core.
    pub cpu_percent: CpuOf,
    /// CPU microseconds of the gateway per message, heartbeats included.
    pub gateway_cpu_us: Option<f64>,
    /// Each stage, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<EchoStage>,
}

/// One of several stages of messages that come back.
#[derive(Clone, Default, Debug, Serialize)]
pub struct EchoStage {
    /// Messages per second that were meant to leave, on average.
    pub rate_wanted_per_s: f64,
    /// Messages per second that were meant to leave when it began.
    pub rate_from_per_s: f64,
    /// The same when it ended.
    pub rate_to_per_s: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Messages per second that were meant to leave in it and came back.
    pub rate_per_s: f64,
    /// Microseconds from the intended time until they were back.
    pub round_trip_us: Percentiles,
    /// Microseconds from the intended time until they left.
    pub pacing_us: Percentiles,
}

/// CPU seconds so far.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    gateway: Option<f64>,
    own: f64,
    machine: f64,
    at: Instant,
}

impl Cpu {
    fn now(process: Option<Process>) -> Self {
        let of = |process: Process| process.cpu_s();
        let machine = Kernel::now().busy_s;
        Self { gateway: process.and_then(of), own: of(Process::own()).unwrap_or(0.0), machine, at: Instant::now() }
    }

    /// Since `before`, times `scale`.
    fn since(self, before: Self, scale: f64) -> CpuOf {
        CpuOf {
            gateway: self.gateway.zip(before.gateway).map(|(now, before)| (now - before) * scale),
            generator: (self.own - before.own) * scale,
            machine: (self.machine - before.machine) * scale,
        }
    }

    fn percent_since(self, before: Self) -> CpuOf {
        self.since(before, 100.0 / (self.at - before.at).as_secs_f64())
    }
}

/// Opens the connections of `swarm`, does what `task` says, and lets them go.
///
/// # Errors
/// Why nothing can be said: the ramp does not come to its end, or the threads cannot work.
pub fn run(
    swarm: &Swarm,
    task: &Task,
    process: Option<Process>,
    admin: Option<SocketAddr>,
    log: Option<Log>,
    progress: fn(&str, f64, &Sample),
) -> Result<Report, String> {
    let mut report = Report { scenario: "idle".to_owned(), ..Report::default() };
    report.size.insert("connections".to_owned(), swarm.connections as u64);
    report.size.insert("threads".to_owned(), swarm.threads as u64);
    report.machine = machine();
    report.unix_s = unix_ms() / 1000;
    report.gateway.extend(process.and_then(Process::usage).map(|usage| ("before".to_owned(), usage)));
    std::thread::scope(|scope| {
        let mut director = Director {
            swarm,
            process,
            admin,
            log,
            progress,
            report,
            held: Held::default(),
            last: (Instant::now(), Board::default()),
        };
        director.held.back_end = swarm.back_end.name();
        director.held.wanted = swarm.connections as u64;
        director.held.sessions_wanted = if swarm.minter.is_some() { director.held.wanted } else { 0 };
        let before = director.memory();
        let cpu = Cpu::now(process);
        let threads: Vec<_> = (0..swarm.threads).map(|number| scope.spawn(move || swarm.carry(number))).collect();
        let is_broken = || threads.iter().any(std::thread::ScopedJoinHandle::is_finished);
        let done = director.act(task, &before, cpu, &is_broken);
        let left = Instant::now();
        swarm.end();
        let ended: Result<Vec<()>, String> =
            threads.into_iter().map(|thread| thread.join().expect("a thread of the swarm does not panic")).collect();
        ended?;
        done?;
        director.empty(left);
        let Director { mut report, held, .. } = director;
        report.own_bytes_per_connection = bytes(held.own_user_bytes);
        report.causes = swarm.board().causes;
        report.counts.welcomed = held.opened;
        report.broken.extend(held.broken(&report.causes));
        report.warnings.extend(held.warning());
        report.held = Some(held);
        Ok(report)
    })
}

struct Director<'a> {
    swarm: &'a Swarm,
    process: Option<Process>,
    admin: Option<SocketAddr>,
    log: Option<Log>,
    progress: fn(&str, f64, &Sample),
    report: Report,
    held: Held,
    last: (Instant, Board),
}

/// Memory at a moment.
struct Memory {
    kernel: Kernel,
    gateway: Option<u64>,
    own: u64,
}

impl Director<'_> {
    fn memory(&self) -> Memory {
        let own = Process::own().proportional_bytes().unwrap_or(0);
        Memory { kernel: Kernel::now(), gateway: self.process.and_then(Process::proportional_bytes), own }
    }

    fn act(&mut self, task: &Task, before: &Memory, cpu: Cpu, is_broken: &dyn Fn() -> bool) -> Result<(), String> {
        self.ramp(is_broken)?;
        self.held.open_cpu_us = Cpu::now(self.process).since(cpu, 1e6 / self.swarm.connections as f64);
        self.watch("rest", task.rest)?;
        let (cpu, pings) = (Cpu::now(self.process), self.swarm.board().pings);
        self.watch("hold", task.hold)?;
        let after = Cpu::now(self.process);
        self.held.hold_s = (after.at - cpu.at).as_secs_f64();
        self.held.hold_cpu_percent = after.percent_since(cpu);
        self.held.pings_per_s = (self.swarm.board().pings - pings) as f64 / self.held.hold_s;
        let memory = self.memory();
        self.measure(before, &memory);
        if let Some(echoes) = &task.echo {
            self.echo(echoes)?;
        }
        let board = self.swarm.board();
        (self.held.held, self.held.pings_answered) = (board.active as u64, board.pings);
        self.report.gateway.extend(self.process.and_then(Process::usage).map(|it| ("with all connections".to_owned(), it)));
        Ok(())
    }

    fn ramp(&mut self, is_broken: &dyn Fn() -> bool) -> Result<(), String> {
        let all = self.swarm.connections;
        let paced = if self.swarm.ramp_per_s > 0.0 { all as f64 / self.swarm.ramp_per_s } else { 0.0 };
        let wait = RAMP_WAIT + Duration::from_secs_f64(paced + all as f64 / RAMP_PER_S_MIN);
        loop {
            let board = self.swarm.board();
            let elapsed = self.swarm.origin.elapsed();
            let lost: u64 = board.causes.values().sum();
            if board.active as u64 + lost >= all as u64 {
                self.held.opened = board.active as u64;
                self.held.open_s = elapsed.as_secs_f64();
                self.report.ramp_s = self.held.open_s;
                return Ok(());
            }
            if elapsed > wait || is_broken() {
                let Board { begun, active, causes, .. } = board;
                let seconds = elapsed.as_secs_f64();
                return Err(format!("after {seconds:.0} s {begun} connections were begun and {active} welcomed; {causes:?}"));
            }
            self.sample("open", board.active as f64 / all as f64);
            std::thread::sleep(TICK);
        }
    }

    fn watch(&mut self, phase: &str, duration: Duration) -> Result<(), String> {
        let begun = Instant::now();
        while begun.elapsed() < duration {
            std::thread::sleep(TICK.min(duration.saturating_sub(begun.elapsed())));
            self.sample(phase, begun.elapsed().as_secs_f64() / duration.as_secs_f64());
        }
        let gone = self.process.is_some_and(|process| process.cpu_s().is_none());
        if gone { Err(format!("{phase}: the gateway is gone")) } else { Ok(()) }
    }

    fn measure(&mut self, before: &Memory, after: &Memory) {
        let count = self.swarm.connections;
        let per = |after: u64, before: u64| (after as f64 - before as f64) / count as f64;
        // A phantom has its TCP in this program.
        let kernel_ends = if matches!(self.swarm.back_end, BackEnd::Phantom(_)) { 1.0 } else { 2.0 };
        let held = &mut self.held;
        held.gateway_user_bytes = after.gateway.zip(before.gateway).map(|(after, before)| per(after, before));
        held.own_user_bytes = per(after.own, before.own);
        held.slab_bytes_both_ends = per(after.kernel.slab_bytes, before.kernel.slab_bytes);
        held.caches_both_ends = after.kernel.grown(&before.kernel, count);
        let ports: f64 = held.caches_both_ends.iter().filter(|(name, _)| name.contains("bind")).map(|(_, bytes)| bytes).sum();
        let is_known = !after.kernel.caches.is_empty();
        held.kernel_bytes = is_known.then(|| (held.slab_bytes_both_ends - ports) / kernel_ends);
        held.machine_bytes_both_ends = per(before.kernel.available_bytes, after.kernel.available_bytes);
        let metrics = self.metrics();
        let sum = |name: &str| metrics.as_deref().map(|text| metric_sum(text, name));
        self.held.gateway_open = sum("tidegate_sessions_open").zip(sum("tidegate_connections_open"));
    }

    fn echo(&mut self, echoes: &Echoes) -> Result<(), String> {
        let before = self.swarm.board();
        let pulse = echoes.pulse(self.swarm.now_ns() + nanos(ECHO_LEAD));
        let seconds = Duration::from_nanos(pulse.window.until_ns() - pulse.window.from_ns());
        self.swarm.pulse(pulse.clone());
        self.watch("echo", ECHO_LEAD + Duration::from_secs_f64(echoes.warm_up_s))?;
        let (cpu, begun) = (Cpu::now(self.process), self.swarm.board().echoes.1);
        self.watch("echo", seconds.saturating_sub(BOARD_AGE))?;
        let (after, ended) = (Cpu::now(self.process), self.swarm.board().echoes.1);
        let span = (after.at - cpu.at).as_secs_f64();
        let waited = Instant::now();
        while self.swarm.board().pulses <= before.pulses && waited.elapsed() < ECHO_PATIENCE {
            std::thread::sleep(TICK);
        }
        let board = self.swarm.board();
        let (latency, pacing) =
            board.pulse.ok_or("the threads did not end their echoes: this machine is too slow for the load")?;
        self.log(&pulse, &latency.all, &pacing.all).map_err(|error| format!("cannot write the HdrHistogram log: {error}"))?;
        let back = (ended - begun) as f64;
        let is_ping = self.swarm.minter.is_some();
        self.held.echo = Some(Echo {
            kind: if is_ping { "ping and pong" } else { "message" },
            payload_bytes: pulse.payload_bytes as u64,
            rate_wanted_per_s: echoes.legs.iter().map(Leg::messages).sum::<f64>() / seconds.as_secs_f64(),
            closed_loop: echoes.closed_loop.map(|(busy, depth)| (busy as u64, depth as u64)),
            rate_per_s: back / span,
            missing: (board.echoes.0 - before.echoes.0).saturating_sub(board.echoes.1 - before.echoes.1),
            round_trip_us: Percentiles::of(&latency.all),
            pacing_us: Percentiles::of(&pacing.all),
            cpu_percent: after.percent_since(cpu),
            gateway_cpu_us: after.gateway.zip(cpu.gateway).map(|(after, before)| (after - before) * 1e6 / back),
            stages: echoes.stages(&latency, &pacing),
        });
        Ok(())
    }

    fn log(&mut self, pulse: &Pulse, latency: &Histogram<u64>, pacing: &Histogram<u64>) -> std::io::Result<()> {
        let Some(mut log) = self.log.take() else { return Ok(()) };
        let (from_s, until_s) = (pulse.window.from_ns() as f64 / 1e9, pulse.window.until_ns() as f64 / 1e9);
        log.interval("echo", from_s, until_s, latency)?;
        log.interval("pacing", from_s, until_s, pacing)?;
        log.finish()
    }

    /// Waits until the gateway has noticed that nobody is there any more.
    fn empty(&mut self, left: Instant) {
        while self.metrics().is_some_and(|text| metric_sum(&text, "tidegate_connections_open") > 0) && left.elapsed() < EMPTY_WAIT
        {
            std::thread::sleep(TICK * 2);
        }
        let open = self.metrics().map(|text| metric_sum(&text, "tidegate_connections_open"));
        self.held.empty_s = (open == Some(0)).then(|| left.elapsed().as_secs_f64());
        self.report.gateway.extend(self.process.and_then(Process::usage).map(|it| ("after the last one left".to_owned(), it)));
    }

    fn metrics(&self) -> Option<String> {
        let (status, text) = http(self.admin?, "GET", "/metrics", "").ok()?;
        (status == 200).then_some(text)
    }

    /// A line of the report, and of whoever watches, once a second.
    fn sample(&mut self, phase: &str, part: f64) {
        let elapsed_s = self.last.0.elapsed().as_secs_f64();
        if elapsed_s < 1.0 {
            return;
        }
        let board = self.swarm.board();
        let sample = Sample {
            at_s: self.swarm.now_ns() as f64 / 1e9,
            delivered_per_s: (board.echoes.1 - self.last.1.echoes.1) as f64 / elapsed_s,
            active: board.active as u64,
            gateway: self.process.and_then(Process::usage),
            ..Sample::default()
        };
        self.last = (Instant::now(), board);
        (self.progress)(phase, part, &sample);
        self.report.samples.push(sample);
    }
}

impl Held {
    /// What must not be: connections that did not come to stand, or did not stand to the end, and echoes that did not come back.
    fn broken(&self, causes: &BTreeMap<String, u64>) -> Vec<String> {
        let mut broken = Vec::new();
        if self.held < self.wanted {
            broken.push(format!("{} of {} connections do not stand: {causes:?}", self.wanted - self.held, self.wanted));
        }
        if let Some((sessions, connections)) = self.gateway_open
            && (connections < self.wanted || sessions < self.sessions_wanted)
        {
            broken
                .push(format!("the gateway knows of {connections} connections and {sessions} sessions, not of {}", self.wanted));
        }
        if let Some(echo) = self.echo.as_ref().filter(|echo| echo.missing > 0) {
            broken.push(format!("{} messages were not echoed", echo.missing));
        }
        broken
    }

    fn warning(&self) -> Option<String> {
        let cpu = self.echo.as_ref()?.cpu_percent;
        let late_ms = self.echo.as_ref()?.pacing_us.p99 / 1e3;
        let is_limit = late_ms > PACING_MS_MAX || cpu.gateway.is_some_and(|gateway| cpu.generator > 2.0 * gateway.max(50.0));
        is_limit.then(|| {
            format!(
                "echoes: the generator used {:.0} % of a core and was late by {late_ms:.1} ms (p99): it, or this machine, is the limit",
                cpu.generator
            )
        })
    }

    /// For people.
    pub(crate) fn write(&self, out: &mut String) -> std::fmt::Result {
        use std::fmt::Write;
        let known = |value: Option<f64>, digits: usize| value.map_or_else(|| "?".to_owned(), |value| format!("{value:.digits$}"));
        let Self { wanted, opened, held, open_s, open_cpu_us: cpu, .. } = self;
        writeln!(
            out,
            "opened {opened} of {wanted} in {open_s:.1} s, {:.0}/s; CPU per connection: gateway {} us, generator {:.1} us, machine {:.1} us",
            *opened as f64 / open_s,
            known(cpu.gateway, 1),
            cpu.generator,
            cpu.machine
        )?;
        let Self { hold_s, pings_answered, pings_per_s, hold_cpu_percent: cpu, .. } = self;
        writeln!(
            out,
            "held {held} in the end; {pings_answered} pings answered; for {hold_s:.0} s {pings_per_s:.0} pings/s: gateway {} % of a core, \
             generator {:.1} %, machine {:.1} %",
            known(cpu.gateway, 1),
            cpu.generator,
            cpu.machine
        )?;
        writeln!(
            out,
            "memory per connection: gateway user {} bytes, kernel {} bytes; generator user {:.0} bytes; both ends: slabs {:.0} bytes, \
             machine {:.0} bytes",
            known(self.gateway_user_bytes, 0),
            known(self.kernel_bytes, 0),
            self.own_user_bytes,
            self.slab_bytes_both_ends,
            self.machine_bytes_both_ends
        )?;
        if let Some((sessions, connections)) = self.gateway_open {
            writeln!(out, "the gateway counted {connections} connections, {sessions} sessions")?;
        }
        if let Some(echo) = &self.echo {
            let Echo { kind, payload_bytes, rate_wanted_per_s, rate_per_s, round_trip_us: trip, pacing_us: pacing, .. } = echo;
            let how = match echo.closed_loop {
                Some((busy, depth)) => format!("{busy} connections with {depth} under way"),
                None => format!("{rate_wanted_per_s:.0}/s to any connection"),
            };
            writeln!(
                out,
                "echo ({kind}) of {payload_bytes} B, {how}: {rate_per_s:.0}/s back, {} missing; p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us; \
                 pacing p99 {:.0} us; gateway {} % of a core, generator {:.0} %, machine {:.0} %",
                echo.missing,
                trip.p50,
                trip.p99,
                trip.p999,
                pacing.p99,
                known(echo.cpu_percent.gateway, 0),
                echo.cpu_percent.generator,
                echo.cpu_percent.machine
            )?;
            for EchoStage {
                rate_from_per_s, rate_to_per_s, seconds, rate_per_s, round_trip_us: trip, pacing_us: pacing, ..
            } in &echo.stages
            {
                let leg = Leg { from_per_s: *rate_from_per_s, to_per_s: *rate_to_per_s, seconds: *seconds };
                writeln!(
                    out,
                    "  {leg} for {seconds:.0} s: {rate_per_s:.0}/s back; p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us; pacing p99 {:.0} us",
                    trip.p50, trip.p99, trip.p999, pacing.p99
                )?;
            }
        }
        match self.empty_s {
            Some(seconds) => writeln!(out, "all cables pulled: the gateway was empty after {seconds:.1} s"),
            None => Ok(()),
        }
    }
}

/// The sum of a metric over its labels.
fn metric_sum(text: &str, name: &str) -> u64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let is_whole = rest.starts_with('{') || rest.starts_with(' ');
        let value: f64 = rest.rsplit(' ').next()?.parse().ok()?;
        is_whole.then_some(bytes(value))
    };
    text.lines().filter_map(value).sum()
}

/// A count that was a float.
#[expect(clippy::cast_possible_truncation, reason = "saturates, and what is counted is not negative")]
fn bytes(value: f64) -> u64 {
    value.max(0.0) as u64
}

const TICK: Duration = Duration::from_millis(100);
/// A ramp that is slower than so many per second has come to a stop.
const RAMP_PER_S_MIN: f64 = 5_000.0;
const RAMP_WAIT: Duration = Duration::from_secs(30);
/// Until all threads have heard of it.
const ECHO_LEAD: Duration = Duration::from_millis(500);
const ECHO_WARM_UP_S: f64 = 1.0;
const ECHO_PATIENCE: Duration = Duration::from_secs(20);
/// What the boards show may be so old.
const BOARD_AGE: Duration = Duration::from_millis(300);
const EMPTY_WAIT: Duration = Duration::from_secs(90);
/// Pacing error that is worth a warning.
const PACING_MS_MAX: f64 = 5.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// A metric is summed over its labels, and others that begin alike are others.
    #[test]
    fn metrics_are_summed() {
        let text = "# HELP a_open x\na_open{reactor=\"0\"} 3\na_open{reactor=\"1\"} 4\na_open_more 9\n";
        assert_eq!((metric_sum(text, "a_open"), metric_sum("b 5.0\n", "b"), metric_sum(text, "c")), (7, 5, 0));
    }

    /// Whoever is missing is a finding, on whichever side.
    #[test]
    fn who_is_missing_breaks_a_threshold() {
        let good = Held { wanted: 5, sessions_wanted: 5, held: 5, gateway_open: Some((5, 5)), ..Held::default() };
        assert_eq!(good.broken(&BTreeMap::new()), Vec::<String>::new());
        let lost = Held { held: 4, ..good.clone() };
        assert!(
            lost.broken(&BTreeMap::from([("active: close 4503".to_owned(), 1)]))[0].contains("1 of 5 connections do not stand")
        );
        assert_eq!(Held { gateway_open: Some((4, 5)), ..good.clone() }.broken(&BTreeMap::new()).len(), 1);
        assert_eq!(Held { echo: Some(Echo { missing: 2, ..Echo::default() }), ..good }.broken(&BTreeMap::new()).len(), 1);
    }
}
