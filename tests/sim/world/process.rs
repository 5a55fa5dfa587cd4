//! The process of the moment: its start and its end, the turns of its threads, and who wakes whom.

use std::cmp::Reverse;
use std::collections::VecDeque;

use tidegate::clock::Moment;
use tidegate::config::Settings;
use tidegate::session::rate::Rate;
use tidegate::shard::Rules;
use tidegate::store::schema::Hashes;

use super::{Happening, World};
use crate::cores::{Around, Core, Lanes};
use crate::disk::Crash;
use crate::ledger::{Finding, stored};
use crate::network::Due;
use crate::plan::Plan;
use crate::random::Random;
use crate::store::Store;
use crate::{BEGINS_S, MS, SECOND, US};

/// A process: one life between start and end.
pub(super) struct Process {
    pub(super) boot: u64,
    /// Its monotonic clock goes so many millionths too fast.
    pub(super) drift_ppm: i64,
    pub(super) cores: Vec<Core>,
    pub(super) store: Store,
    pub(super) lanes: Lanes,
    /// A clean end was asked for, and by when it must be over.
    pub(super) ends_by: Option<u64>,
}

impl World {
    pub(super) fn moment(&self, now: u64) -> Moment {
        clock(self.process.as_ref().map_or((0, 0), |process| (process.boot, process.drift_ppm)), self.wall_offset_ms, now)
    }

    pub(super) fn start(&mut self) -> Result<(), Finding> {
        self.life += 1;
        // Whoever starts it again has looked at the disk.
        self.disk.set_health(|health| (health.sync_fails_ppm, health.write_fails_ppm) = (0, 0));
        let life = u64::from(self.life);
        let random = Random::new(self.plan.seed);
        let engine = self.engine.take().expect("no process runs");
        self.disk.begin_turn(self.now);
        let store = Store::open(self.disk.clone(), engine, &self.plan, random.stream("store", life));
        let store = store.map_err(|error| format!("the store does not start: {error}"))?;
        let found = stored(&store.engine, store.hashes())?;
        self.ledger.judge(&found)?;
        let drift_ppm = if self.plan.faults.clock_jump_ns > 0 {
            i64::try_from(self.random.below(20_000)).expect("small") - 10_000
        } else {
            0
        };
        let moment = clock((self.now, drift_ppm), self.wall_offset_ms, self.now);
        let cores = (0..self.plan.cores)
            .map(|core| {
                Core::new(core, self.rules.clone(), self.verifier.clone(), moment, random.stream("core", life * 64 + core as u64))
            })
            .collect();
        let lanes = Lanes {
            submit: VecDeque::new(),
            submit_max: self.plan.submit_max,
            credit: self.plan.credit_bytes,
            group: (0..self.plan.cores).map(|_| VecDeque::new()).collect(),
            group_max: self.plan.group_max,
            peer: (0..self.plan.cores).map(|_| VecDeque::new()).collect(),
            peer_max: self.plan.peer_max,
            page: (0..self.plan.cores).map(|_| VecDeque::new()).collect(),
            woken_cores: Vec::new(),
            woken_store: false,
        };
        self.process = Some(Process { boot: self.now, drift_ppm, cores, store, lanes, ends_by: None });
        let opened = self.disk.thread_ns().max(self.now);
        for core in 0..self.plan.cores {
            self.set_core(core, opened + 1);
        }
        self.set_store(opened + 1);
        self.note(&format!(
            "life {} begins with {} messages",
            self.life,
            found.values().map(|stored| stored.messages.len()).sum::<usize>()
        ));
        Ok(())
    }

    pub(super) fn crash(&mut self, crash: Crash) {
        let Some(process) = self.process.take() else { return };
        self.note(&format!("{crash:?}"));
        self.disk = self.disk.crash(self.now, crash);
        let unsynced = process.store.engine.unsynced_count();
        let kept = self.random.index(unsynced + 1);
        self.engine = Some(process.store.engine.crash(kept));
        self.ledger.crashed(self.now);
        // An answer nobody has read died with the process: it may be of a turn that never ended.
        self.making.clear();
        self.revoking.clear();
        self.end_links();
        let after = self.random.between(50 * MS, 2 * SECOND);
        self.push(self.now + after, Happening::Start);
    }

    /// The process is gone: its clients hear it sooner or later.
    pub(super) fn end_links(&mut self) {
        for link in 0..self.links.len() {
            if !self.links[link].is_over {
                let mut due = Due::default();
                let after = self.random.spread(20 * MS);
                self.links[link].process_died(self.now, after, &mut due);
                self.note_due(link, due);
            }
        }
    }

    pub(super) fn turn_core(&mut self, core: usize) -> Result<(), Finding> {
        let moment = self.moment(self.now);
        let (mut device_due, mut core_due) = (Vec::new(), Vec::new());
        let process = self.process.as_mut().expect("lives");
        let mut around = Around {
            now: self.now,
            moment,
            links: &mut self.links,
            lanes: &mut process.lanes,
            weather: &self.weather,
            device_due: &mut device_due,
            core_due: &mut core_due,
        };
        let waits = process.cores[core].turn(&mut around);
        let cost = process.cores[core].random.between(5 * US, 60 * US);
        let busy = waits == 0 || !process.cores[core].ready.is_empty();
        let at = self.now + cost + if busy { 0 } else { waits };
        self.set_core(core, at);
        for (link, at) in device_due {
            self.push(at.max(self.now), Happening::Down { link });
        }
        for (link, at) in core_due {
            self.push(at.max(self.now), Happening::Up { link });
        }
        self.check_core(core)?;
        self.wake_threads();
        Ok(())
    }

    /// Memory is within its limits at every moment.
    pub(super) fn check_core(&self, core: usize) -> Result<(), Finding> {
        let process = self.process.as_ref().expect("lives");
        let Core { shard, stashes, .. } = &process.cores[core];
        let connections = shard.connections_count() as u64;
        // What is over the share of a core closes whoever has more than the soft bound; a frame each may be over it by then.
        let frame = u64::from(self.rules.max_frame);
        let queued_max = self.rules.queued_bytes_max + (u64::from(self.rules.queue_soft_bytes) + frame) * connections;
        if shard.queued_bytes() > queued_max {
            return Err(format!("core {core} queues {} bytes, {queued_max} at most", shard.queued_bytes()));
        }
        if shard.connections_count() > self.rules.connections_max || shard.sessions_count() > self.rules.connections_max {
            return Err(format!("core {core} has {connections} connections and {} sessions", shard.sessions_count()));
        }
        if stashes.used_bytes() > crate::cores::STASH_BYTES_MAX {
            return Err(format!("core {core} keeps {} bytes of unfinished messages", stashes.used_bytes()));
        }
        Ok(())
    }

    pub(super) fn turn_store(&mut self) -> Result<(), Finding> {
        self.hear_of_revocations();
        let process = self.process.as_mut().expect("lives");
        let (times, offset) = ((process.boot, process.drift_ppm), self.wall_offset_ms);
        let turned = process.store.turn(self.now, |now| clock(times, offset, now), &mut process.lanes);
        let Ok((took, is_busy, wake_in)) = turned else {
            // The process ends with the exit code for it; of what the failed sync was about anything may be on the disk.
            self.note("the log failed");
            let crash = if self.random.chance(500_000) { Crash::PowerCut } else { Crash::Kill };
            self.crash(crash);
            return Ok(());
        };
        let cost = process.cores[0].random.between(5 * US, 50 * US);
        let at = self.now + took + cost + if is_busy { 0 } else { wake_in };
        self.set_store(at);
        let latest = self.now + took;
        self.wake_threads_from(latest);
        Ok(())
    }

    pub(super) fn wake_threads(&mut self) {
        self.wake_threads_from(self.now);
    }

    /// Wakes whoever got mail, no earlier than `from`.
    pub(super) fn wake_threads_from(&mut self, from: u64) {
        let Some(process) = self.process.as_mut() else { return };
        let mut cores = std::mem::take(&mut process.lanes.woken_cores);
        let store = std::mem::take(&mut process.lanes.woken_store);
        cores.sort_unstable();
        cores.dedup();
        let Store { readers_due, projector_due, readers_pushed, projector_pushed, .. } = &mut process.store;
        let life = self.life;
        let works = [
            (readers_due, readers_pushed, Happening::Readers { life }),
            (projector_due, projector_pushed, Happening::Projector { life }),
        ];
        for (due, pushed, happening) in works {
            if *due != u64::MAX {
                *due = (*due).max(self.now + 1);
                let tie = self.random.next();
                if *pushed != *due {
                    *pushed = *due;
                    self.queue.push(Reverse((*due, tie, happening)));
                }
            }
        }
        for core in cores {
            // Mail within a turn of the store may be seen before the turn is over.
            let first = self.process.as_ref().and_then(|process| process.lanes.group[core].front().map(|(at, _)| *at));
            let at = first.unwrap_or(self.now).min(from).max(self.now);
            let latency = self.random_latency();
            self.wake_core_at(core, at + latency);
            if from > at {
                self.push_core(core, from + 10 * US);
            }
        }
        if store {
            let at = self.now + self.random_latency();
            let due = self.process.as_ref().expect("lives").store.due;
            // A thread that is in its turn looks again when it is through with it.
            if at < due && !self.is_store_in_turn() {
                self.set_store(at);
            }
        }
    }

    pub(super) fn is_store_in_turn(&self) -> bool {
        self.disk.thread_ns() > self.now
    }

    pub(super) fn random_latency(&mut self) -> u64 {
        self.random.spread(20 * US)
    }

    pub(super) fn wake_core(&mut self, core: usize, latency_ns: u64) {
        let at = self.now + self.random.spread(latency_ns);
        self.wake_core_at(core, at);
    }

    pub(super) fn wake_core_at(&mut self, core: usize, at: u64) {
        let due = self.process.as_ref().expect("lives").cores[core].due;
        if at < due {
            self.set_core(core, at.max(self.now + 1));
        }
    }

    /// Makes sure of a turn at `at`, beside the one that is due.
    pub(super) fn push_core(&mut self, core: usize, at: u64) {
        let due = self.process.as_ref().expect("lives").cores[core].due;
        if due > at {
            self.set_core(core, at);
        }
    }

    pub(super) fn set_core(&mut self, core: usize, at: u64) {
        let at = at.max(self.now + 1);
        self.process.as_mut().expect("lives").cores[core].due = at;
        self.push(at, Happening::Core { life: self.life, core });
    }

    pub(super) fn set_store(&mut self, at: u64) {
        let at = at.max(self.now + 1);
        self.process.as_mut().expect("lives").store.due = at;
        self.push(at, Happening::Store { life: self.life });
    }
}

/// The clocks of a process: one that never goes back, and one that jumps.
pub(super) fn clock((boot, drift_ppm): (u64, i64), wall_offset_ms: i64, now: u64) -> Moment {
    let elapsed = i64::try_from(now.saturating_sub(boot)).expect("centuries");
    let mono = elapsed + elapsed / 1_000_000 * drift_ppm;
    let unix = i64::try_from(BEGINS_S * 1000 + now / MS).expect("centuries") + wall_offset_ms;
    Moment { mono_ns: SECOND + u64::try_from(mono).expect("forward"), unix_ms: u64::try_from(unix).expect("after 1970") }
}

/// The rules of the product, but for bounds that a small world shall meet.
pub(super) fn rules(plan: &Plan) -> Rules {
    let settings = Settings::default();
    let mut rules = tidegate::gateway::rules(&settings, false, plan.cores, 256, [1; 16]).expect("a generator of random bytes");
    rules.hashes = Hashes::new([9; 16]);
    rules.send_window = plan.send_window;
    rules.queue_soft_bytes = plan.queue_soft_bytes;
    rules.queue_hard_bytes = plan.queue_soft_bytes * 4;
    rules.queued_bytes_max = 1 << 20;
    rules.send_rate = Rate { per_second: 50, burst: 100 };
    rules.read_rate = Rate { per_second: 100, burst: 200 };
    rules.ping_ms = 8_000;
    rules.dedup_s = plan.dedup_s;
    rules.expiring_ms = 5_000;
    rules.resume_ms = plan.resume_ms;
    rules
}
