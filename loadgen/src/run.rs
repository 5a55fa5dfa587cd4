//! One run: ramp up, stages, perhaps kills or a storm, drain, and the judgement.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use tidegate_client::Settings;

use crate::churn::{Churn, Departures, Moment};
use crate::client::Client;
use crate::half_open;
use crate::hdr::Log;
use crate::network::{Network, Sockets};
use crate::notes::Notes;
use crate::pace::{Leg, Schedule, nanos};
use crate::phantom::{Device, Phantom};
use crate::random::Random;
use crate::report::{Crash, Report, Sample, Stage, Storm, Welcomes};
use crate::scenario::{Load, Plan, Tempo};
use crate::secure::{Secure, Trust};
use crate::stats::{Counts, Percentiles, Stats, Window};
use crate::subject::{Minter, Process, Started, Target, Usage, http};
use crate::verify::SeatReport;
use crate::worker::{Board, Shared, Worker};

/// What is put under load, and by how much of this machine.
#[derive(Debug)]
pub struct Bench {
    /// Where clients connect.
    pub target: Target,
    /// The admin side, if there is one; groups need it.
    pub admin: Option<SocketAddr>,
    /// Signs tokens.
    pub minter: Minter,
    /// Threads.
    pub workers: usize,
    /// A device for each thread, if clients are phantoms; else they have sockets.
    pub devices: Option<Vec<Device>>,
    /// What clients with TLS trust; else they have none.
    pub trust: Option<Trust>,
    /// Addresses that connections come from; empty: the kernel chooses.
    pub sources: Vec<Ipv4Addr>,
    /// Each thread has a descriptor table of its own, and with it a limit of its own.
    pub private_tables: bool,
    /// Connections opened per second.
    pub ramp_per_s: f64,
    /// First and last ceiling of the clients' reconnect delay.
    pub back_off: (Duration, Duration),
    /// Messages of one client that may wait to be acknowledged; the client's own bound holds besides.
    pub outbox: usize,
    /// One new device per user reads everything in the end.
    pub audit: bool,
    /// How long everything may take to arrive in the end.
    pub drain: Duration,
    /// Where to write down what happens to every device.
    pub ledger_out: Option<PathBuf>,
    /// Where to write latencies by interval, as a HdrHistogram log.
    pub hdr: Option<PathBuf>,
    /// The gateway's process, if it is known.
    pub process: Option<Process>,
    /// Hears how it goes, once a second.
    pub progress: fn(&Progress<'_>),
}

/// How it goes.
#[derive(Debug)]
pub struct Progress<'a> {
    /// What is being done.
    pub phase: &'a str,
    /// How much of it, from 0 to 1.
    pub part: f64,
    /// The last second.
    pub sample: Sample,
    /// Findings so far.
    pub findings: u64,
}

/// A run that goes on.
#[derive(Debug)]
pub struct Run<'a> {
    bench: &'a Bench,
    shared: &'a Shared,
    report: Report,
    /// When the last sample was taken, and what the boards showed then and when, nanoseconds.
    last: (Instant, u64, Counts),
    /// Who leaves meanwhile.
    departures: Departures,
    log: Option<Log>,
}

impl Bench {
    /// Opens the connections of `load`, does what `act` says, drains, and judges.
    ///
    /// # Errors
    /// Why nothing can be said.
    pub fn run(
        &self,
        scenario: &str,
        load: Load,
        act: impl FnOnce(&mut Run<'_>) -> Result<(), String>,
    ) -> Result<Report, String> {
        let plan = Plan::new(&load)?;
        let before = self.process.and_then(Process::usage_of_all_threads);
        self.make_groups(&plan)?;
        let own_before = Process::own().usage().unwrap_or_default();
        let run = Random::new(load.seed ^ unix_ms()).bits();
        let notes = self
            .ledger_out
            .as_deref()
            .map(|path| Notes::create(path, run).map_err(|error| format!("cannot write the ledger {}: {error}", path.display())));
        let notes = notes.transpose()?;
        let shared = Shared::new(load, plan, self.target.request(true), self.workers, self.ramp_per_s, run, notes);
        let mut report = Report { scenario: scenario.to_owned(), ..Report::default() };
        report.size = [
            ("connections", shared.load.connections),
            ("users", shared.load.users),
            ("conversations", shared.plan.conversations.len()),
        ]
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count as u64))
        .collect();
        report.machine = machine();
        report.unix_s = unix_ms() / 1000;
        let log = self.hdr.as_deref().map(|path| Log::create(path, report.unix_s)).transpose();
        let log = log.map_err(|error| format!("cannot write the HdrHistogram log: {error}"))?;
        report.gateway.extend(before.map(|usage| ("before".to_owned(), usage)));
        let (mut report, seats) = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.workers)
                .map(|number| {
                    scope.spawn({
                        let shared = &shared;
                        move || self.work(number, shared)
                    })
                })
                .collect();
            let last = (Instant::now(), 0, Counts::default());
            let mut run = Run { bench: self, shared: &shared, report, last, departures: Departures::default(), log };
            let done = run
                .ramp()
                .and_then(|()| {
                    let own = Process::own().usage().unwrap_or_default();
                    let grown = own.rss_bytes.saturating_sub(own_before.rss_bytes);
                    run.report.own_bytes_per_connection = grown / shared.load.connections as u64;
                    act(&mut run)
                })
                .and_then(|()| run.drain())
                .and_then(|()| run.finish_log());
            if let Some(usage) = self.process.and_then(Process::usage) {
                run.report.gateway.push(("with all connections".to_owned(), usage));
            }
            shared.end();
            let mut seats: Vec<SeatReport> = Vec::new();
            let mut failed = done.err();
            for thread in threads {
                match thread.join().expect("a worker does not panic") {
                    Ok(reports) => seats.extend(reports),
                    Err(error) => failed = Some(error),
                }
            }
            failed.map_or(Ok((run.report, seats)), Err)
        })?;
        report.findings = shared.ledger.close(&seats);
        shared.ledger.finish_notes().map_err(|error| format!("cannot write the ledger: {error}"))?;
        if let Some(process) = self.process {
            // The gateway hears of closed connections a moment later, and may have to wait for the cores.
            let sockets = report.gateway.first().map_or(0, |(_, before)| before.sockets);
            let begun = Instant::now();
            let usage = loop {
                std::thread::sleep(Duration::from_secs(2));
                let usage = process.usage_of_all_threads();
                if begun.elapsed() > LEAVE_WAIT || usage.as_ref().is_none_or(|usage| usage.sockets <= sockets) {
                    break usage;
                }
            };
            report.gateway.extend(usage.map(|usage| ("after the last one left".to_owned(), usage)));
            if let (Some(churn), [(_, before), .., (_, after)]) = (&mut report.churn, &*report.gateway) {
                churn.sockets = Some((before.sockets, after.sockets));
            }
        }
        report.warn(self.workers);
        Ok(report)
    }

    fn work(&self, number: usize, shared: &Shared) -> Result<Vec<SeatReport>, String> {
        if self.private_tables {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).map_err(|error| format!("a descriptor table: {error}"))?;
        }
        // What a storm does to the spared is to be the gateway's doing, also where both have the same cores: their clients stand for other
        // machines, and wait for no core.
        if self.workers > 1 && shared.load.spared > 0 {
            if shared.load.turn(number, self.workers).is_some() {
                let fifo = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
                let told = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, fifo);
                shared.spared_go_first.store(told.is_ok(), Ordering::Relaxed);
            } else {
                let _ = rustix::process::setpriority_process(None, STORMY);
            }
        }
        let audits = if self.audit { shared.load.users } else { 0 };
        let indices = shared.load.part(number, self.workers, shared.load.connections + audits);
        let clients: Vec<Client> = indices.map(|index| self.client(index, shared)).collect();
        if let Some(devices) = &self.devices {
            let phantom = Phantom::new(&devices[number], self.target.address, clients.len(), shared.run);
            return self.carry(number, shared, phantom.map_err(|error| format!("phantoms: {error}"))?, clients);
        }
        let narrow_from = clients.iter().take_while(|client| client.tempo() == Tempo::Brisk).count();
        let sockets = Sockets::new(self.target.address, self.sources.clone(), clients.len(), narrow_from);
        let sockets = sockets.map_err(|error| format!("sockets: {error}"))?;
        self.carry(number, shared, sockets, clients)
    }

    fn carry(
        &self,
        number: usize,
        shared: &Shared,
        network: impl Network,
        clients: Vec<Client>,
    ) -> Result<Vec<SeatReport>, String> {
        let Some(trust) = &self.trust else { return Worker::new(number, shared, network, clients).run() };
        let secure = Secure::new(network, trust.clone(), *self.target.address.ip(), clients.len());
        Worker::new(number, shared, secure, clients).run()
    }

    fn client(&self, index: usize, shared: &Shared) -> Client {
        let Load { connections, users, seed, .. } = shared.load;
        let (user, device) = if index < connections {
            (index % users, format!("d{}", index / users))
        } else {
            (index - connections, "audit".to_owned())
        };
        let tempo = shared.load.tempo(index);
        let user = u32::try_from(user).expect("fewer users than 2^32");
        let index = u32::try_from(index).expect("fewer connections than 2^32");
        let mut settings = Settings::new(&device);
        settings.client = "loadgen".to_owned();
        settings.platform = 5;
        (settings.reconnect_base, settings.reconnect_cap) = self.back_off;
        let (direct, group) = shared.plan.places[user as usize];
        let seat = |conv: u32| (conv, shared.plan.conversations[conv as usize].name.clone());
        let seats = std::iter::once(direct).chain(group).map(seat).collect();
        let token = self.minter.token(&shared.plan.user(user));
        Client::new(index, tempo, settings, seed ^ u64::from(index) << 20, token, seats).with_outbox(self.outbox)
    }

    fn make_groups(&self, plan: &Plan) -> Result<(), String> {
        for group in plan.made_by_hand() {
            let admin = self.admin.ok_or("groups are made by the admin side: say where it is")?;
            let members: Vec<String> = group.members.iter().map(|&user| plan.user(user)).collect();
            let body = serde_json::json!({ "conv": &*group.name, "members": members }).to_string();
            let mut tries = 1..=GROUP_TRIES_MAX;
            loop {
                let is_first = tries.next() == Some(1);
                match http(admin, "POST", "/v1/groups", &body) {
                    Ok((201, _)) => break,
                    // It was silent for too long, and made the group nevertheless.
                    Ok((409, _)) if !is_first => break,
                    Ok((503 | 504, _)) if !tries.is_empty() => std::thread::sleep(GROUP_RETRY),
                    Ok((status, text)) => return Err(format!("the gateway did not make {}: {status} {text}", group.name)),
                    Err(error) => return Err(format!("the admin side at {admin}: {error}")),
                }
            }
        }
        Ok(())
    }
}

impl Run<'_> {
    /// Sends `rate_per_s` for `warm_up`, then measures for `seconds`, then waits until all is answered or `settle` is over.
    ///
    /// # Errors
    /// Nothing was shown in time.
    pub fn stage(&mut self, rate_per_s: f64, warm_up: Duration, seconds: Duration, settle: Duration) -> Result<Stage, String> {
        let steady = Leg { from_per_s: rate_per_s, to_per_s: rate_per_s, seconds: seconds.as_secs_f64() };
        let stage = self.measure(&[steady], warm_up, settle)?.0;
        self.report.stages.push(stage.clone());
        Ok(stage)
    }

    /// Measures one leg after the other without a pause between them, and each for itself, then waits as [`Run::stage`] does. Returns the
    /// figures of all together.
    ///
    /// # Errors
    /// As [`Run::stage`].
    pub fn stages(&mut self, legs: &[Leg], settle: Duration) -> Result<Stage, String> {
        let (whole, stages) = self.measure(legs, Duration::ZERO, settle)?;
        self.report.stages.extend(stages);
        self.report.whole = Some(whole.clone());
        Ok(whole)
    }

    /// All legs together, and each.
    fn measure(&mut self, legs: &[Leg], warm_up: Duration, settle: Duration) -> Result<(Stage, Vec<Stage>), String> {
        let begun = self.shared.now_ns() + nanos(Duration::from_millis(100));
        let window = Window::of_legs(begun + nanos(warm_up), legs);
        let steady = |per_s, seconds| Leg { from_per_s: per_s, to_per_s: per_s, seconds };
        let (first, last) = legs.first().zip(legs.last()).ok_or("there is no stage")?;
        let before = steady(first.from_per_s, warm_up.as_secs_f64());
        // The rate goes on until the end is seen.
        let after = (last.to_per_s > 0.0).then(|| steady(last.to_per_s, f64::INFINITY));
        let all: Vec<Leg> = std::iter::once(before).chain(legs.iter().copied()).chain(after).collect();
        self.shared.begin(Schedule::new(&all, begun), window.clone());
        self.watch("warm-up", window.from_ns())?;
        let mut marks = vec![self.mark()?];
        for (leg, &end_ns) in legs.iter().zip(window.ends_ns()) {
            self.watch(&leg.to_string(), end_ns)?;
            marks.push(self.mark()?);
        }
        // A rate that falls to nothing ends by itself, when the last message has left.
        if after.is_some() {
            self.shared.stop_sending();
        }
        let settled = self.settle(settle)?;
        self.log(&settled)?;
        let Stats { sent, deliver, pacing, .. } = &settled.stats;
        let stage = |at: usize, leg: &Leg| {
            let latencies = [sent.of_stage(at), deliver.of_stage(at), pacing.of_stage(at)];
            marks[at + 1].since(&marks[at]).stage(*leg, latencies)
        };
        let stages = legs.iter().enumerate().filter(|(_, leg)| leg.seconds > 0.0).map(|(at, leg)| stage(at, leg)).collect();
        let messages: f64 = legs.iter().map(Leg::messages).sum();
        let seconds: f64 = legs.iter().map(|leg| leg.seconds).sum();
        let latencies = [sent, deliver, pacing].map(|latency| Percentiles::of(&latency.all));
        let whole = marks[legs.len()].since(&marks[0]).stage(steady(messages / seconds, seconds), latencies);
        if self.departures.per_s > 0.0 {
            let connect_us = Percentiles::of(&settled.stats.connect.all);
            let [from, until] = [&marks[0], &marks[legs.len()]].map(Mark::moment);
            self.report.churn = Some(Churn::between(&from, &until, self.departures.per_s, connect_us));
        }
        self.absorb(&settled);
        self.report.measured_s = Some((window.from_ns() as f64 / 1e9, window.until_ns() as f64 / 1e9));
        Ok((whole, stages))
    }

    fn mark(&self) -> Result<Mark, String> {
        let board = self.board()?;
        let (gateway, own) = self.usages();
        Ok(Mark { board, gateway, own, at: Instant::now() })
    }

    /// Raises the rate until the gateway does not follow, narrows the peak down, and measures parts of it.
    ///
    /// # Errors
    /// As [`Run::stage`].
    pub fn peak(&mut self, from_per_s: f64, seconds: Duration, p99_max: Duration, parts: &[f64]) -> Result<f64, String> {
        let warm_up = Duration::from_secs(1);
        let settle = Duration::from_secs(20);
        let mut keeps = |rate: f64| -> Result<bool, String> {
            let stage = self.stage(rate, warm_up, seconds, settle)?;
            let p99_us = p99_max.as_secs_f64() * 1e6;
            Ok(stage.acknowledged_per_s >= 0.97 * rate && stage.sent_us.p99 <= p99_us)
        };
        let (mut good, mut rate) = (0.0, from_per_s);
        while rate < 1e7 && keeps(rate)? {
            good = rate;
            rate *= 1.4;
        }
        let mut bad = rate;
        for _ in 0..3 {
            let middle = (good + bad) / 2.0;
            if keeps(middle)? { good = middle } else { bad = middle }
        }
        for part in parts {
            self.stage(good * part, warm_up, seconds * 2, settle)?;
        }
        Ok(good)
    }

    /// Kills and restarts the gateway under a steady rate, `kills` times or until `stop` is set.
    ///
    /// # Errors
    /// It does not come back, or nothing is acknowledged any more.
    pub fn crash(&mut self, gateway: &mut Started, rate_per_s: f64, kills: u64, stop: &AtomicBool) -> Result<(), String> {
        let is_stopped = || stop.load(Ordering::Relaxed);
        let mut random = Random::new(self.shared.load.seed ^ 0x6b69_6c6c);
        self.shared.begin(Schedule::steady(rate_per_s, self.shared.now_ns()), Window::default());
        let (mut ready_ms, mut back_ms) = (Vec::new(), Vec::new());
        let mut killed_at: Option<Instant> = None;
        let mut done = 0;
        while done < kills {
            let before = self.board()?.stats.counts.acknowledged;
            self.until(RECOVERY_WAIT, &format!("kill {} of {kills}", done + 1), |board| {
                is_stopped() || board.stats.counts.acknowledged >= before + PROGRESS_MIN
            })?;
            if is_stopped() {
                break;
            }
            back_ms.extend(killed_at.map(|at| at.elapsed().as_secs_f64() * 1e3));
            std::thread::sleep(Duration::from_micros(random.bits() % nanos(KILL_SPREAD).div_euclid(1000)));
            match gateway.kill() {
                Err(_) if is_stopped() => break,
                killed => killed?,
            }
            done += 1;
            let at = Instant::now();
            match gateway.run_again() {
                Err(_) if is_stopped() => break,
                ready => ready?,
            }
            ready_ms.push(at.elapsed().as_secs_f64() * 1e3);
            killed_at = Some(at);
        }
        if is_stopped() {
            // A terminal sends its signal to the gateway too: what was acknowledged is asked of one that has not heard it.
            drop(gateway.kill());
            gateway.run_again()?;
            self.report.warnings.push(format!("ended by a signal after {done} of {kills} kills"));
        }
        self.shared.stop_sending();
        let board = self.settle(self.bench.drain)?;
        let median = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        self.report.crash = Some(Crash {
            kills: done,
            ready_ms_median: median(&mut ready_ms),
            ready_ms_max: ready_ms.last().copied().unwrap_or_default(),
            acknowledged_ms_median: median(&mut back_ms),
            repeats_recognised: board.stats.counts.repeats_recognised,
        });
        self.absorb(&board);
        Ok(())
    }

    /// Cuts all connections but the spared at once, while `rate_per_s` goes on, and waits until 99.9 % of them are back. Where some are
    /// spared, their latency until then is held against that of the stage before. A `gateway` to restart sends everybody away itself.
    ///
    /// # Errors
    /// As [`Run::stage`]; or the gateway does not end or does not come back.
    pub fn storm(&mut self, rate_per_s: f64, wait: Duration, gateway: Option<&mut Started>) -> Result<(), String> {
        let spared = self.shared.load.spared;
        let before_us_p99 = self.report.stages.last().map(|stage| stage.deliver_us.p99);
        let now_ns = self.shared.now_ns();
        self.shared.begin(Schedule::steady(rate_per_s, now_ns), Window::new(now_ns, u64::MAX));
        let board = self.board()?;
        let steady = self.usages().0.map(|usage| usage.rss_bytes);
        let (samples, handshakes) = (self.report.samples.len(), self.handshakes());
        let cut = board.active.saturating_sub(spared);
        let wanted = spared + cut - cut / 1000;
        let begun = Instant::now();
        if let Some(gateway) = gateway {
            gateway.terminate()?;
            self.until(DRAIN_WAIT, "drain", |_| gateway.has_ended())?;
            gateway.run_again()?;
        } else {
            self.shared.storm();
        }
        // What is shown may be a moment old: first the loss must show.
        drop(self.until(Duration::from_secs(5), "storm", |board| board.active < wanted));
        let back = self.until(wait, "storm", |board| board.active >= wanted);
        let back_s = back.is_ok().then(|| begun.elapsed().as_secs_f64());
        let welcomes = Welcomes::of(&self.report.samples[samples..], self.accept_per_s());
        self.shared.stop_sending();
        let board = self.settle(self.bench.drain)?;
        let during_us_p99 = Percentiles::of(&board.stats.deliver.all).p99;
        let pacing_us_p99 = Percentiles::of(&board.stats.pacing.all).p99;
        let spared_us_p99 = before_us_p99.filter(|_| spared > 0).map(|before| (before, during_us_p99));
        let resumed = board.stats.counts.resumed;
        let during = self.report.samples[samples..].iter().filter_map(|sample| Some(sample.gateway?.rss_bytes));
        let memory_bytes = steady.zip(during.max());
        let handshakes = handshakes.zip(self.handshakes()).map(|(before, after)| (after.0 - before.0, after.1 - before.1));
        self.report.storm = Some(Storm {
            cut: cut as u64,
            back_s,
            resumed,
            spared: spared as u64,
            spared_us_p99,
            spared_go_first: self.shared.spared_go_first.load(Ordering::Relaxed),
            memory_bytes,
            handshakes,
            welcomes,
            pacing_us_p99,
        });
        self.absorb(&board);
        Ok(())
    }

    /// Newcomers per second that the gateway takes, if it says so; 0: no limit.
    fn accept_per_s(&self) -> Option<u64> {
        let (_, text) = http(self.bench.admin?, "GET", "/v1/config", "").ok()?;
        serde_json::from_str::<serde_json::Value>(&text).ok()?["limits.accept_per_s"]["value"].as_u64()
    }

    fn handshakes(&self) -> Option<(u64, u64)> {
        self.bench.trust.as_ref().map(Trust::handshakes)
    }

    /// [`Run::stage`], while `each` connections of every kind stand half open; the gateway must close them within `patience`.
    ///
    /// # Errors
    /// As [`Run::stage`].
    pub fn half_open(
        &mut self,
        each: usize,
        patience: Duration,
        stage: impl FnOnce(&mut Self) -> Result<Stage, String>,
    ) -> Result<Stage, String> {
        let (address, request) = (self.bench.target.address, self.shared.request.clone());
        let (stage, found) = std::thread::scope(|scope| {
            let standing = scope.spawn(move || half_open::stand(address, &request, each, patience));
            let stage = stage(self);
            (stage, standing.join().expect("it does not panic"))
        });
        self.report.half_open = found.map_err(|error| format!("half-open connections: {error}"))?;
        stage
    }

    /// From now on connections leave so; what is measured meanwhile says what it came to.
    pub fn churn(&mut self, departures: Departures) {
        self.departures = departures;
        self.shared.churn(departures);
    }

    fn ramp(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        let all = self.shared.load.connections;
        let wait = RAMP_WAIT + Duration::from_secs_f64(all as f64 / self.bench.ramp_per_s);
        self.until(wait, "ramp", |board| board.active >= all)?;
        self.report.ramp_s = begun.elapsed().as_secs_f64();
        Ok(())
    }

    fn drain(&mut self) -> Result<(), String> {
        self.shared.churn(Departures::default());
        self.shared.stop_sending();
        let board = self.settle(self.bench.drain)?;
        self.absorb(&board);
        if self.bench.audit {
            self.shared.audit();
            let all = self.shared.load.connections + self.shared.load.users;
            let wait = self.bench.drain + Duration::from_secs_f64(all as f64 / self.bench.ramp_per_s);
            // Whoever does not come to the end is a finding, not an error.
            drop(self.until(wait, "audit", |board| board.born == all && board.incomplete == 0));
        }
        Ok(())
    }

    /// Waits until nothing is under way, or `wait` is over.
    fn settle(&mut self, wait: Duration) -> Result<Board, String> {
        // One round of boards passes first: what was sent last must show.
        std::thread::sleep(Duration::from_millis(600));
        drop(self.until(wait, "drain", |board| board.unsent == 0 && board.incomplete == 0));
        self.board()
    }

    fn watch(&mut self, phase: &str, until_ns: u64) -> Result<(), String> {
        let from_ns = self.shared.now_ns();
        loop {
            let now_ns = self.shared.now_ns();
            let Some(left) = until_ns.checked_sub(now_ns).filter(|&left| left > 0) else { return Ok(()) };
            let part = (now_ns - from_ns) as f64 / (until_ns - from_ns).max(1) as f64;
            self.sample(phase, part)?;
            std::thread::sleep(Duration::from_nanos(left).min(TICK));
        }
    }

    fn until(&mut self, wait: Duration, phase: &str, mut is_reached: impl FnMut(&Board) -> bool) -> Result<(), String> {
        let begun = Instant::now();
        while begun.elapsed() < wait {
            if self.shared.board().is_some_and(|board| is_reached(&board)) {
                return Ok(());
            }
            self.sample(phase, begun.elapsed().as_secs_f64() / wait.as_secs_f64())?;
            std::thread::sleep(TICK);
        }
        let board = self.board()?;
        let Board { born, active, unsent, incomplete, stats, .. } = board;
        let causes = stats.causes;
        Err(format!(
            "{phase}: not reached within {:.0} s; {born} connections begun, {active} welcomed, {unsent} messages unanswered, {incomplete} \
             devices incomplete; {causes:?}",
            wait.as_secs_f64()
        ))
    }

    /// A line of the report, and of whoever watches, once a second.
    fn sample(&mut self, phase: &str, part: f64) -> Result<(), String> {
        let (at, shown_ns, before) = self.last;
        if at.elapsed() < SAMPLE_EVERY {
            return Ok(());
        }
        let board = self.board()?;
        let counts = board.stats.counts;
        // Boards are a moment old, now more and now less: a rate is by the time at which they were written.
        let elapsed_s = board.at_ns.saturating_sub(shown_ns) as f64 / 1e9;
        if elapsed_s <= 0.0 {
            return Ok(());
        }
        let per_s = |now: u64, before: u64| now.saturating_sub(before) as f64 / elapsed_s;
        let sample = Sample {
            at_s: self.shared.now_ns() as f64 / 1e9,
            acknowledged_per_s: per_s(counts.acknowledged, before.acknowledged),
            delivered_per_s: per_s(counts.delivered, before.delivered),
            welcomed_per_s: per_s(counts.welcomed, before.welcomed),
            active: board.active as u64,
            unsent: board.unsent as u64,
            deliver_us_p99: Percentiles::of(&board.stats.deliver.all).p99,
            gateway: self.bench.process.and_then(Process::usage),
        };
        self.last = (Instant::now(), board.at_ns, counts);
        self.report.samples.push(sample);
        self.log(&board)?;
        (self.bench.progress)(&Progress { phase, part, sample, findings: self.shared.ledger.findings_count() });
        Ok(())
    }

    fn log(&mut self, board: &Board) -> Result<(), String> {
        let at_s = self.shared.now_ns() as f64 / 1e9;
        let logged = self.log.as_mut().map_or(Ok(()), |log| log.follow(at_s, board.stage, &board.stats));
        logged.map_err(|error| format!("cannot write the HdrHistogram log: {error}"))
    }

    fn finish_log(&mut self) -> Result<(), String> {
        let board = self.board()?;
        self.log(&board)?;
        let finished = self.log.take().map_or(Ok(()), Log::finish);
        finished.map_err(|error| format!("cannot write the HdrHistogram log: {error}"))
    }

    /// The boards of this stage, as soon as all workers show it.
    fn board(&self) -> Result<Board, String> {
        let begun = Instant::now();
        while begun.elapsed() < BOARD_WAIT {
            if let Some(board) = self.shared.board() {
                return Ok(board);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("a worker does not answer: this machine is too slow for the load".to_owned())
    }

    fn usages(&self) -> (Option<Usage>, Usage) {
        (self.bench.process.and_then(Process::usage), Process::own().usage().unwrap_or_default())
    }

    /// What was counted so far.
    fn absorb(&mut self, board: &Board) {
        self.report.counts = board.stats.counts;
        self.report.errors.clone_from(&board.stats.errors);
        self.report.causes.clone_from(&board.stats.causes);
    }
}

/// What was counted and used at a moment.
struct Mark {
    board: Board,
    gateway: Option<Usage>,
    own: Usage,
    at: Instant,
}

/// Between two marks.
struct Span {
    acknowledged_per_s: f64,
    delivered_per_s: f64,
    /// In the end.
    backlog: u64,
    gateway_cpu_percent: Option<f64>,
    generator_cpu_percent: f64,
}

impl Mark {
    fn moment(&self) -> Moment {
        Moment { at_ns: self.board.at_ns, counts: self.board.stats.counts, gateway: self.gateway }
    }

    fn since(&self, before: &Self) -> Span {
        let span_s = (self.board.at_ns.saturating_sub(before.board.at_ns)) as f64 / 1e9;
        let (now, then) = (self.board.stats.counts, before.board.stats.counts);
        let per_s = |now: u64, then: u64| if span_s > 0.0 { (now - then) as f64 / span_s } else { 0.0 };
        let elapsed_s = (self.at - before.at).as_secs_f64();
        let percent = |now: Usage, then: Usage| (now.cpu_s - then.cpu_s) * 100.0 / elapsed_s;
        Span {
            acknowledged_per_s: per_s(now.acknowledged, then.acknowledged),
            delivered_per_s: per_s(now.delivered, then.delivered),
            backlog: self.board.unsent as u64,
            gateway_cpu_percent: self.gateway.zip(before.gateway).map(|(now, then)| percent(now, then)),
            generator_cpu_percent: percent(self.own, before.own),
        }
    }
}

impl Span {
    fn stage(self, leg: Leg, latencies: [Percentiles; 3]) -> Stage {
        let [sent_us, deliver_us, pacing_us] = latencies;
        Stage {
            rate_wanted_per_s: leg.mean_per_s(),
            rate_from_per_s: leg.from_per_s,
            rate_to_per_s: leg.to_per_s,
            seconds: leg.seconds,
            acknowledged_per_s: self.acknowledged_per_s,
            delivered_per_s: self.delivered_per_s,
            backlog: self.backlog,
            sent_us,
            deliver_us,
            pacing_us,
            gateway_cpu_percent: self.gateway_cpu_percent,
            generator_cpu_percent: self.generator_cpu_percent,
        }
    }
}

impl Report {
    fn warn(&mut self, workers: usize) {
        if let Some(storm) = self.storm.as_ref().filter(|storm| storm.pacing_us_p99 > PACING_US_MAX) {
            let late_ms = storm.pacing_us_p99 / 1e3;
            self.warnings.push(format!(
                "in the storm the generator itself was late by {late_ms:.1} ms (p99): the latency of the spared is its own, or this machine's"
            ));
        }
        for stage in &self.stages {
            let rate = stage.rate_wanted_per_s;
            if stage.pacing_us.p99 > PACING_US_MAX {
                let late_ms = stage.pacing_us.p99 / 1e3;
                self.warnings.push(format!(
                    "at {rate:.0}/s the generator itself was late by {late_ms:.1} ms (p99): it, or this machine, is the limit"
                ));
            }
            if stage.generator_cpu_percent > 90.0 * workers as f64 {
                let cpu = stage.generator_cpu_percent;
                self.warnings.push(format!(
                    "at {rate:.0}/s the generator used {cpu:.0} % of {workers} cores: it is the limit, not the gateway"
                ));
            }
        }
    }
}

/// What figures depend on besides the code.
pub(crate) fn machine() -> BTreeMap<String, String> {
    let after = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.lines().find(|line| line.starts_with(key))?.split_once(':')?.1.trim().to_owned())
    };
    let read = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let cores = std::thread::available_parallelism().map(|cores| cores.to_string()).ok();
    let facts = [
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("processor", after("/proc/cpuinfo", "model name")),
        ("cores", cores),
        ("memory", after("/proc/meminfo", "MemTotal")),
        ("load_average", read("/proc/loadavg")),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(unix.as_millis()).unwrap_or_default()
}

/// How often a group is asked for, and how long after a gateway that is too busy.
const GROUP_TRIES_MAX: u32 = 10;
const GROUP_RETRY: Duration = Duration::from_millis(500);
/// How often whoever directs looks.
/// How nice threads are that carry nobody but those whom a storm cuts.
const STORMY: i32 = 19;
const TICK: Duration = Duration::from_millis(20);
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const BOARD_WAIT: Duration = Duration::from_secs(20);
const RAMP_WAIT: Duration = Duration::from_secs(60);
/// Longest time until messages are acknowledged again after a restart.
const RECOVERY_WAIT: Duration = Duration::from_secs(60);
/// How long a gateway may take to send everybody away; its own patience is shorter.
const DRAIN_WAIT: Duration = Duration::from_secs(120);
/// Messages acknowledged between two kills, at least.
const PROGRESS_MIN: u64 = 100;
/// A kill comes at a random moment within this time after that.
const KILL_SPREAD: Duration = Duration::from_millis(200);
/// Pacing error that is worth a warning.
const PACING_US_MAX: f64 = 5_000.0;
/// Until the gateway has heard of all closed connections.
const LEAVE_WAIT: Duration = Duration::from_secs(10);
