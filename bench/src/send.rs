//! Durable messages between pairs of users: each sends to its partner, each receives its partner's, everything is acknowledged.
//!
//! Closed loop finds how much goes through; open loop (`--rate`) finds how long it takes, counted from the time at which a message
//! was meant to leave, so that a stall counts for everyone who had to wait behind it.
//!
//! The run checks what it measures: on each connection the seqs of SENT and DELIVER grow by exactly one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tidegate::ids::Cmid;
use tidegate::wire::envelope::{ClientFrame, Encoding, ErrorCode, Send, ServerFrame, encode_client};

use crate::client::{Outbox, Ready, Script, Swarm, acknowledge, each_frame};
use crate::gateway::{Crowd, Gateway, metric_sum, stage_buckets, stage_quantile};
use crate::idle::{Greeter, user};
use crate::machine::disk_written_bytes;
use crate::pace::{Pace, nanos};
use crate::results::Run;
use crate::stretch::{QUANTILES, Stretches};
use crate::threads::{self, Kinds, Times};
use crate::{Common, SendOptions};

/// One measurement.
pub fn run(options: &SendOptions) -> Result<Run, String> {
    let common = &options.common;
    let room = Gateway::room(common.connections + options.beside)?;
    let gateway = Gateway::start(common, &room.iter().map(String::as_str).collect::<Vec<_>>())?;
    let crowd = if options.beside > 0 { Some(gateway.crowd(options.beside)?) } else { None };
    let mut load = Load::new(options, Greeter::new(common.connections, gateway.minter()?))?;
    let mut swarm = Swarm::new(gateway.address, Some("tidegate.v1")).map_err(|error| error.to_string())?;
    swarm.grow(common.connections, &mut load)?;

    let mut driver = Loop::new(options, &load, &mut swarm)?;
    driver.start(&mut swarm, &mut load)?;
    driver.turn_for(&mut swarm, &mut load, common.warm_up())?;
    load.sent_latency.reset();
    load.deliver_latency.reset();
    let before = Snapshot::take(&gateway, crowd.as_ref(), &load)?;
    let mut stretches = Stretches::begin(common.duration())?;
    while let Some(second) = stretches.next() {
        driver.turn_for(&mut swarm, &mut load, second)?;
        stretches.take(&mut load.sent_latency)?;
    }
    let after = Snapshot::take(&gateway, crowd.as_ref(), &load)?;
    let mut run = figures(options, &load, &before, &after);
    stretches.report(&mut run);
    load.is_stopping = true;
    drain(&mut swarm, &mut load)?;
    Ok(run)
}

fn figures(options: &SendOptions, load: &Load, before: &Snapshot, after: &Snapshot) -> Run {
    let seconds = (after.at - before.at).as_secs_f64();
    let messages = (after.sent_count - before.sent_count) as f64;
    let mut run = Run::default();
    run.add("connections_count", options.common.connections as f64);
    run.add("idle_sessions_beside_count", options.beside as f64);
    run.add("payload_bytes", load.payload.len() as f64);
    run.add("rate_wanted_per_s", options.rate as f64);
    run.add("in_flight_count", if options.rate == 0 { f64::from(options.in_flight) } else { 0.0 });
    run.add("messages_count", messages);
    run.add("messages_per_s", messages / seconds);
    run.add("deliveries_per_s", (after.delivered_count - before.delivered_count) as f64 / seconds);
    run.add("redeliveries_per_s", (after.again_count - before.again_count) as f64 / seconds);
    let metric = |name| metric_sum(&after.metrics, name) - metric_sum(&before.metrics, name);
    run.add("log_bytes_per_message", metric("tidegate_store_log_written_bytes_total") / messages);
    // All that the disk wrote: log, zeros ahead of it, engine with its journal, tables and compaction, journal of the file system, and
    // what else this machine wrote. `/proc/PID/io` says more than that: where the page cache has large folios (ext4 from Linux 6.16 on)
    // the kernel counts all of a folio of which a few bytes were written.
    if let (Some(before), Some(after)) = (before.disk_bytes, after.disk_bytes) {
        run.add("disk_bytes_per_message", (after - before) as f64 / messages);
    }
    run.add("messages_per_sync", messages / metric("tidegate_store_log_syncs_total").max(1.0));
    run.add("cpu_us_per_message", (after.cpu - before.cpu) * 1e6 / messages);
    for (kind, times) in after.threads.since(&before.threads).0 {
        run.add(format!("cpu_us_per_message_{kind}"), times.cpu_s * 1e6 / messages);
        run.add(format!("run_queue_wait_percent_{kind}"), times.wait_s * 100.0 / seconds);
        run.add(format!("run_queue_wait_us_mean_{kind}"), times.wait_us_mean());
    }
    run.add("gateway_cpu_percent", (after.cpu - before.cpu) * 100.0 / seconds);
    let generator = after.own.since(before.own);
    run.add("generator_cpu_percent", generator.cpu_s * 100.0 / seconds);
    run.add("generator_run_queue_wait_percent", generator.wait_s * 100.0 / seconds);
    run.add("generator_run_queue_wait_us_mean", generator.wait_us_mean());
    run.add("beside_cpu_percent", after.beside.since(before.beside).cpu_s * 100.0 / seconds);
    for (name, quantile) in QUANTILES {
        run.add(format!("deliver_us_{name}"), load.deliver_latency.value_at_quantile(quantile) as f64 / 1e3);
    }
    for stage in ["parse", "commit", "sync", "delivery", "write", "acknowledge"] {
        let (earlier, later) = (stage_buckets(&before.metrics, stage), stage_buckets(&after.metrics, stage));
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
            if let Some(latency_s) = stage_quantile(&earlier, &later, quantile) {
                run.add(format!("gateway_{stage}_us_{name}"), latency_s * 1e6);
            }
        }
    }
    run
}

/// Counters of both sides at one moment.
struct Snapshot {
    at: Instant,
    sent_count: u64,
    delivered_count: u64,
    again_count: u64,
    disk_bytes: Option<u64>,
    cpu: f64,
    threads: Kinds,
    /// Of the generator: near 100 % of a core, it and not the gateway was measured.
    own: Times,
    /// Of the process that holds idle sessions.
    beside: Times,
    metrics: String,
}

impl Snapshot {
    fn take(gateway: &Gateway, crowd: Option<&Crowd>, load: &Load) -> Result<Self, String> {
        Ok(Self {
            at: Instant::now(),
            sent_count: load.sent_count,
            delivered_count: load.delivered_count,
            again_count: load.again_count,
            disk_bytes: disk_written_bytes(gateway.data()),
            cpu: gateway.cpu_total()?,
            threads: gateway.threads()?,
            own: threads::own()?,
            beside: crowd.map(Crowd::times).transpose()?.unwrap_or_default(),
            metrics: gateway.metrics()?,
        })
    }
}

/// Decides when messages leave.
pub struct Loop {
    pace: Option<Pace>,
    in_flight: u32,
    next: usize,
    connections: usize,
}

impl Loop {
    pub fn new(options: &SendOptions, load: &Load, swarm: &mut Swarm) -> Result<Self, String> {
        let connections = options.common.connections;
        let in_flight = options.in_flight;
        if options.rate == 0 {
            return Ok(Self { pace: None, in_flight, next: 0, connections });
        }
        let pace = Pace::new(options.rate, load.origin).and_then(|pace| swarm.watch(&pace).map(|()| pace));
        Ok(Self { pace: Some(pace.map_err(|error| format!("timer: {error}"))?), in_flight, next: 0, connections })
    }

    /// Closed loop: the first messages; the answers bring the next ones.
    pub fn start(&mut self, swarm: &mut Swarm, load: &mut Load) -> Result<(), String> {
        if self.pace.is_some() {
            return Ok(());
        }
        for index in 0..self.connections {
            for _ in 0..self.in_flight {
                let now = nanos(load.origin.elapsed());
                swarm.send(index, |bytes| load.write_send(index, now, bytes))?;
            }
        }
        Ok(())
    }

    /// Lets time pass.
    pub fn turn_for(&mut self, swarm: &mut Swarm, load: &mut Load, duration: Duration) -> Result<(), String> {
        let deadline = Instant::now() + duration;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let mut budget = SENDS_PER_TURN_MAX;
            while let Some(intended) = self.pace.as_mut().filter(|_| budget > 0).and_then(Pace::due) {
                let index = self.next;
                self.next = (self.next + 1) % self.connections;
                load.offer(index, intended);
                if load.may_send(index) {
                    swarm.send(index, |bytes| load.write_waiting(index, bytes))?;
                }
                budget -= 1;
            }
            let max_wait = if budget == 0 { Duration::ZERO } else { left.min(Duration::from_millis(100)) };
            if let Some(pace) = &self.pace {
                pace.arm().map_err(|error| format!("timer: {error}"))?;
            }
            swarm.turn(max_wait, load)?;
        }
    }
}

/// Waits for every answer and every delivery, of what was refused for the second one.
pub fn drain(swarm: &mut Swarm, load: &mut Load) -> Result<(), String> {
    let started = Instant::now();
    while load.is_owed() {
        if started.elapsed() > Duration::from_secs(20) {
            let unanswered: usize = load.pairs.iter().map(|side| side.in_flight.len()).sum();
            let undelivered = load.sent_count - load.delivered_count;
            return Err(format!(
                "{unanswered} messages were never answered, {undelivered} never delivered, {} refused ones did not come again",
                load.refused_count
            ));
        }
        swarm.turn(Duration::from_millis(100), load)?;
    }
    Ok(())
}

/// The script: who sends what to whom.
pub struct Load {
    greeter: Greeter,
    pairs: Vec<Side>,
    payload: Vec<u8>,
    origin: Instant,
    is_closed_loop: bool,
    pub is_stopping: bool,
    cmid: u128,
    pub sent_count: u64,
    delivered_count: u64,
    /// A store that is too busy is no reason to stop: who is refused falls silent.
    pub may_be_refused: bool,
    /// Each delivery is refused the first time.
    pub is_nacked: bool,
    /// What was refused and has not come again yet.
    refused_count: u64,
    /// Deliveries of what was refused.
    pub again_count: u64,
    pub sent_latency: Histogram<u64>,
    deliver_latency: Histogram<u64>,
}

/// One of two users of a conversation.
struct Side {
    conv: String,
    rid: u32,
    /// `rid` and intended time of what is unanswered.
    in_flight: VecDeque<(u32, u64)>,
    /// Intended times of what waits for room in the send window.
    waiting: VecDeque<u64>,
    send_window: usize,
    /// The highest seq below which nothing is missing.
    have: u64,
    unacked: u32,
    /// Messages of its own that were acknowledged.
    sent_count: u64,
}

impl Load {
    pub fn new(options: &SendOptions, greeter: Greeter) -> Result<Self, String> {
        let Common { connections, payload, .. } = options.common;
        if connections % 2 != 0 {
            return Err("users come in pairs: an even number of connections, please".to_owned());
        }
        let side = |index: usize| Side {
            conv: format!("d:{}:{}", user(index & !1), user(index | 1)),
            rid: 0,
            in_flight: VecDeque::new(),
            waiting: VecDeque::new(),
            send_window: 1,
            have: 0,
            unacked: 0,
            sent_count: 0,
        };
        Ok(Self {
            greeter,
            pairs: (0..connections).map(side).collect(),
            payload: filler(payload.unwrap_or(200).max(8)),
            origin: Instant::now(),
            is_closed_loop: options.rate == 0,
            is_stopping: false,
            cmid: 0,
            sent_count: 0,
            delivered_count: 0,
            may_be_refused: false,
            is_nacked: options.nack,
            refused_count: 0,
            again_count: 0,
            sent_latency: latency_histogram()?,
            deliver_latency: latency_histogram()?,
        })
    }

    /// Messages of each connection that were acknowledged.
    pub fn sent_counts(&self) -> Vec<u64> {
        self.pairs.iter().map(|side| side.sent_count).collect()
    }

    /// Whether something was sent and not answered, not delivered, or refused and not delivered again.
    fn is_owed(&self) -> bool {
        let is_unanswered = self.pairs.iter().any(|side| !side.in_flight.is_empty());
        is_unanswered || self.delivered_count < self.sent_count || self.refused_count > 0
    }

    fn offer(&mut self, index: usize, intended: u64) {
        self.pairs[index].waiting.push_back(intended);
    }

    fn may_send(&self, index: usize) -> bool {
        let side = &self.pairs[index];
        !side.waiting.is_empty() && side.in_flight.len() < side.send_window
    }

    fn write_waiting(&mut self, index: usize, out: &mut Vec<u8>) {
        if let Some(intended) = self.pairs[index].waiting.pop_front() {
            self.write_send(index, intended, out);
        }
    }

    fn write_send(&mut self, index: usize, intended: u64, out: &mut Vec<u8>) {
        self.cmid += 1;
        self.payload[..8].copy_from_slice(&intended.to_le_bytes());
        let side = &mut self.pairs[index];
        side.rid = side.rid.wrapping_add(1).max(1);
        side.in_flight.push_back((side.rid, intended));
        let send = Send {
            rid: side.rid,
            cmid: Cmid(self.cmid.to_be_bytes()),
            flags: 0,
            kind: 1,
            ttl_s: 0,
            trace: None,
            conv: side.conv.as_str().into(),
            payload: self.payload.as_slice().into(),
        };
        encode_client(Encoding::Binary, &ClientFrame::Send(send), out);
    }

    fn sent(&mut self, index: usize, rid: u32, seq: u64, out: &mut Outbox<'_>) -> Result<(), String> {
        let now = nanos(self.origin.elapsed());
        let side = &mut self.pairs[index];
        side.follow(index, seq)?;
        let at = side.in_flight.iter().position(|&(waiting, _)| waiting == rid);
        let at = at.ok_or_else(|| format!("connection {index}: SENT for rid {rid}, which is not waited for"))?;
        let (_, intended) = side.in_flight.remove(at).expect("its position was just found");
        side.sent_count += 1;
        self.sent_latency.saturating_record(now.saturating_sub(intended));
        self.sent_count += 1;
        if self.is_stopping {
            return Ok(());
        }
        if self.is_closed_loop {
            out.message(|bytes| self.write_send(index, now, bytes));
        } else if self.may_send(index) {
            out.message(|bytes| self.write_waiting(index, bytes));
        }
        Ok(())
    }

    fn delivered(&mut self, index: usize, pos: u64, seq: u64, payload: &[u8], out: &mut Outbox<'_>) -> Result<(), String> {
        let side = &mut self.pairs[index];
        side.unacked += 1;
        if seq <= side.have && self.refused_count > 0 {
            self.refused_count -= 1;
            self.again_count += 1;
            side.acknowledge(pos, out);
            return Ok(());
        }
        side.follow(index, seq)?;
        if self.is_nacked {
            self.refused_count += 1;
            let nack = ClientFrame::Nack { conv: side.conv.as_str().into(), seq, delay_ms: 0, reason: 0 };
            out.message(|bytes| encode_client(Encoding::Binary, &nack, bytes));
        }
        let head = payload.first_chunk().ok_or_else(|| format!("connection {index}: a strange payload"))?;
        let latency = nanos(self.origin.elapsed()).saturating_sub(u64::from_le_bytes(*head));
        self.deliver_latency.saturating_record(latency);
        self.delivered_count += 1;
        self.pairs[index].acknowledge(pos, out);
        Ok(())
    }
}

impl Side {
    fn acknowledge(&mut self, pos: u64, out: &mut Outbox<'_>) {
        if self.unacked >= ACK_EVERY {
            self.unacked = 0;
            acknowledge(pos, out);
        }
    }

    fn follow(&mut self, index: usize, seq: u64) -> Result<(), String> {
        if seq != self.have + 1 {
            return Err(format!("connection {index}: seq {seq} after {}", self.have));
        }
        self.have = seq;
        Ok(())
    }
}

impl Script for Load {
    fn opened(&mut self, index: usize, out: &mut Outbox<'_>) -> Ready {
        self.greeter.hello(index, 4096, out);
        Ready::NotYet
    }

    fn message(&mut self, index: usize, payload: &[u8], out: &mut Outbox<'_>) -> Result<Ready, String> {
        each_frame(index, payload, |frame| {
            match frame {
                ServerFrame::Sent { rid, seq, .. } => self.sent(index, rid, seq, out)?,
                ServerFrame::Deliver(deliver) => self.delivered(index, deliver.pos, deliver.seq, &deliver.payload, out)?,
                ServerFrame::Welcome(welcome) => {
                    self.pairs[index].send_window = usize::from(welcome.send_window);
                    return Ok(Ready::Yes);
                }
                ServerFrame::Error { rid, code, .. } if self.may_be_refused && BUSY.map(ErrorCode::value).contains(&code) => {
                    self.pairs[index].in_flight.retain(|&(waiting, _)| waiting != rid);
                }
                other => return Err(format!("connection {index}: unexpected {other:?}")),
            }
            Ok(Ready::NotYet)
        })
    }
}

/// Bytes that look like text and do not repeat within a message.
fn filler(count: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_u32;
    let letter = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b'a' + u8::try_from((state >> 24) % 26).expect("below 26")
    };
    (0..count).map(letter).collect()
}

/// From a microsecond to a minute, three digits, in nanoseconds.
pub fn latency_histogram() -> Result<Histogram<u64>, String> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).map_err(|error| format!("histogram: {error:?}"))
}

const ACK_EVERY: u32 = 64;
/// The store is overloaded; and what was sent behind one that was refused for it.
const BUSY: [ErrorCode; 2] = [ErrorCode::StoreOverloaded, ErrorCode::Held];
const SENDS_PER_TURN_MAX: u32 = 256;
