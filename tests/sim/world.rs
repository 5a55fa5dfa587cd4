//! Everything in one thread: a queue of what happens when, and what follows from it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use tidegate::clock::Moment;
use tidegate::config::{Secret, Settings};
use tidegate::mail::{MemberChange, MemberDone, MemberMail, MemberRefusal, Submit};
use tidegate::session::auth::{Verifier, mint};
use tidegate::session::rate::Rate;
use tidegate::shard::{Outlet, Rules};
use tidegate::store::engine_memory::MemoryEngine;
use tidegate::store::record;
use tidegate::store::schema::Hashes;
use tidegate::wire::message::Body;
use tidegate_client::Stop;

use crate::cores::{Around, Core, Lanes};
use crate::device::{Device, Wishes};
use crate::disk::{Crash, SimDisk};
use crate::ledger::{Conv, Finding, Ledger, Stored, stored};
use crate::network::{Due, End, Link, Weather};
use crate::plan::Plan;
use crate::random::Random;
use crate::rude::{Manner, RUDE, Rude};
use crate::store::{Store, identity};
use crate::{MS, SECOND, US};

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Happening {
    Core {
        life: u32,
        core: usize,
    },
    Store {
        life: u32,
    },
    Readers {
        life: u32,
    },
    Projector {
        life: u32,
    },
    /// Something reaches a core on a link.
    Up {
        link: usize,
    },
    /// Something reaches a device on a link.
    Down {
        link: usize,
    },
    /// A link is opened.
    Opened {
        device: usize,
        core: usize,
    },
    Device {
        device: usize,
    },
    Start,
    Fault {
        fault: Fault,
    },
    /// A disk, a clock or an abandoned link is as it was.
    Mended {
        fault: Fault,
        what: usize,
    },
    Look,
    /// Groups that do not exist yet are made.
    Groups,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    Kill,
    PowerCut,
    Stop,
    DiskError,
    DiskFull,
    DiskSlow,
    ClockJump,
    Stall,
    DeviceRestart,
    Members,
}

/// A process: one life between start and end.
struct Process {
    boot: u64,
    /// Its monotonic clock goes so many millionths too fast.
    drift_ppm: i64,
    cores: Vec<Core>,
    store: Store,
    lanes: Lanes,
    /// A clean end was asked for, and by when it must be over.
    ends_by: Option<u64>,
}

/// What a run has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub hash: u64,
    pub simulated_ns: u64,
    pub happenings_count: u64,
    pub acknowledged_count: u64,
    pub delivered_count: u64,
    pub duplicates_count: u64,
    pub stored_count: u64,
    pub lives_count: u32,
    pub syncs_count: u64,
    pub converged_after_ns: u64,
}

/// A finding, and what had happened before it.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    pub at: u64,
    pub finding: Finding,
    pub trace: Vec<String>,
}

pub struct World {
    plan: Plan,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    random: Random,
    weather: Weather,
    verifier: Arc<Verifier>,
    rules: Arc<Rules>,
    disk: SimDisk,
    /// What is left of the engine while no process runs.
    engine: Option<MemoryEngine>,
    process: Option<Process>,
    life: u32,
    wall_offset_ms: i64,
    links: Vec<Link>,
    devices: Vec<Device>,
    rudes: Vec<Rude>,
    /// The rude have been sent away.
    are_rude_gone: bool,
    ledger: Ledger,
    /// The world is still in trouble: faults happen and people write.
    is_troubled: bool,
    groups: Vec<(Conv, Vec<Arc<str>>)>,
    /// Those of them that are known to exist.
    made: BTreeSet<Conv>,
    making: Vec<(Conv, Receiver<Result<MemberDone, MemberRefusal>>)>,
    hash: u64,
    happenings_count: u64,
    trace: VecDeque<(u64, Happening, u64)>,
    notes: VecDeque<(u64, String)>,
}

const SECRET: &[u8; 32] = b"a secret of the simulation, 32 b";
/// The wall clock at the beginning: a day in 2027.
const UNIX_MS: u64 = 1_800_000_000_000;
const TRACE_MAX: usize = 60;
/// After faults stop everyone has everything within so long.
pub const CONVERGE_NS: u64 = 30 * SECOND;
/// A change of presence is told when it has lasted 5 s.
const PRESENCE_NS: u64 = 15 * SECOND;
/// After everyone has left nothing stays for longer: a machine that is gone without a word is noticed after 10 s in a handshake and 20 s
/// later on, a session waits for up to 8 s, and a close for 5 s.
const LEAVE_NS: u64 = 40 * SECOND;

impl World {
    pub fn new(plan: Plan) -> Self {
        let random = Random::new(plan.seed);
        let secret = Secret::new(SECRET.to_vec()).expect("32 bytes");
        let rules = rules(&plan);
        let engine = MemoryEngine::new(&identity(&plan), &record::Position { group: 0, changed: 0, epoch: 1, epoch_changed: 0 });
        let disk = SimDisk::new(random.stream("disk", 0));
        disk.set_health(|health| health.sync_ns = plan.sync_ns);
        let mut world = Self {
            now: SECOND,
            queue: BinaryHeap::new(),
            random: random.stream("world", 0),
            weather: plan.weather,
            verifier: Arc::new(Verifier::new(&secret, 5)),
            rules: Arc::new(rules),
            disk,
            engine: Some(engine),
            process: None,
            life: 0,
            wall_offset_ms: 0,
            links: Vec::new(),
            devices: Vec::new(),
            rudes: Vec::new(),
            are_rude_gone: false,
            ledger: Ledger::default(),
            is_troubled: true,
            groups: Vec::new(),
            made: BTreeSet::new(),
            making: Vec::new(),
            hash: 0xCBF2_9CE4_8422_2325,
            happenings_count: 0,
            trace: VecDeque::new(),
            notes: VecDeque::new(),
            plan,
        };
        world.people(&secret, &random);
        world
    }

    /// Users, groups and devices.
    fn people(&mut self, secret: &Secret, random: &Random) {
        let users: Vec<Arc<str>> = (0..self.plan.users).map(|number| format!("user{number}").into()).collect();
        for number in 0..self.plan.groups {
            let mut members = users.clone();
            self.random.shuffle(&mut members);
            members.truncate(1 + self.random.index(users.len()));
            self.groups.push((format!("g:{number}").into(), members));
        }
        for (number, user) in users.iter().enumerate() {
            let mut convs: Vec<Conv> = Vec::new();
            for other in &users {
                let (a, b) = if user <= other { (user, other) } else { (other, user) };
                convs.push(format!("d:{a}:{b}").into());
            }
            convs.extend(self.groups.iter().filter(|(_, members)| members.contains(user)).map(|(conv, _)| conv.clone()));
            for device in 0..self.plan.devices_per_user {
                let place = self.devices.len();
                let token = mint(secret, user, None, 4_000_000_000).expect("a user");
                let stream = random.stream("device", (number * 16 + device) as u64);
                let name = format!("dev{device}");
                let wants = (self.plan.faults.members_ns > 0, self.plan.watches);
                let device = Device::new(place, user.clone(), name, token, convs.clone(), self.plan.window, wants, stream);
                self.devices.push(device);
            }
        }
        if self.plan.watches {
            for device in &mut self.devices {
                device.watches = users.iter().filter(|user| **user != device.user).cloned().collect();
            }
        }
        for number in 0..self.plan.rudes {
            let user: Arc<str> = format!("rude{number}").into();
            let mut stream = random.stream("rude", number as u64);
            let mut convs: Vec<Conv> = vec![format!("d:{user}:user0").into(), format!("d:{user}:user1").into()];
            for (conv, members) in &mut self.groups {
                if stream.chance(500_000) {
                    members.push(user.clone());
                    convs.push(conv.clone());
                }
            }
            let token = mint(secret, &user, None, 4_000_000_000).expect("a user");
            self.rudes.push(Rude::new(RUDE + number, user, token, convs, stream));
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first finding.
    pub fn run(mut self) -> Result<Report, Box<Failure>> {
        match self.story() {
            Ok(report) => Ok(report),
            Err(finding) => Err(Box::new(self.failure(finding))),
        }
    }

    pub fn failure(&self, finding: Finding) -> Failure {
        let mut lines: Vec<(u64, String)> =
            self.trace.iter().map(|(at, happening, hash)| (*at, format!("{happening:?} {hash:016x}"))).collect();
        lines.extend(self.notes.iter().cloned());
        lines.sort_by_key(|(at, _)| *at);
        let trace = lines.into_iter().map(|(at, line)| format!("{:12.6} {line}", seconds(at))).collect();
        Failure { seed: self.plan.seed, at: self.now, finding, trace }
    }

    fn story(&mut self) -> Result<Report, Finding> {
        self.start()?;
        self.make_groups();
        for device in 0..self.devices.len() {
            let at = self.now + self.random.below(SECOND);
            self.devices[device].next_say = at + SECOND;
            self.wake_device(device, at);
        }
        for rude in 0..self.rudes.len() {
            let at = self.now + 2 * SECOND;
            self.wake_rude(rude, at);
        }
        self.schedule_faults();
        let trouble_ends = self.now + self.plan.trouble_ns;
        self.until(trouble_ends, |_| false)?;

        self.note("the trouble is over");
        self.clear();
        self.send_away(|manner| manner != Manner::Asking);
        let calm_begins = self.now;
        // Whoever was refused for want of space was told to come back after 30 s, and adds up to a quarter.
        let hinted = if self.plan.faults.disk_full_ns > 0 { 38 * SECOND } else { 0 };
        self.until(calm_begins + CONVERGE_NS + hinted, World::has_converged)?;
        if !self.has_converged() {
            return Err(self.what_is_missing());
        }
        let converged_after_ns = self.now - calm_begins;
        self.note("everyone has everything");
        self.audit()?;
        self.are_rude_gone = true;
        self.send_away(|_| true);
        if self.plan.watches {
            self.judge_presence()?;
        }
        self.leave()?;
        let stored_count = self.stored()?.values().map(|stored| stored.messages.len() as u64).sum();
        Ok(Report {
            hash: self.hash,
            simulated_ns: self.now,
            happenings_count: self.happenings_count,
            acknowledged_count: self.ledger.acknowledged_count,
            delivered_count: self.ledger.delivered_count,
            duplicates_count: self.ledger.duplicates_count,
            stored_count,
            lives_count: self.life,
            syncs_count: self.disk.syncs_count(),
            converged_after_ns,
        })
    }

    /// Lets things happen until a time, or until `is_done`, which is asked a few times a second.
    fn until(&mut self, end: u64, is_done: impl Fn(&Self) -> bool) -> Result<(), Finding> {
        let mut look_at = self.now;
        while let Some(&Reverse((at, _, _))) = self.queue.peek() {
            if at > end {
                break;
            }
            if at >= look_at {
                if is_done(self) {
                    return Ok(());
                }
                look_at = at + 250 * MS;
            }
            let Reverse((at, _, happening)) = self.queue.pop().expect("just looked at");
            assert!(at >= self.now);
            self.now = at;
            self.happens(happening)?;
        }
        self.now = self.now.max(end);
        Ok(())
    }

    fn happens(&mut self, happening: Happening) -> Result<(), Finding> {
        match happening {
            Happening::Core { life, core } => {
                if life != self.life || self.process.as_ref().is_none_or(|process| process.cores[core].due != self.now) {
                    return Ok(());
                }
                self.trace(happening);
                self.turn_core(core)?;
            }
            Happening::Store { life } => {
                if life != self.life || self.process.as_ref().is_none_or(|process| process.store.due != self.now) {
                    return Ok(());
                }
                self.trace(happening);
                self.turn_store()?;
            }
            Happening::Readers { life } => {
                let now_s = self.moment(self.now).unix_ms / 1000;
                let Some(process) =
                    self.process.as_mut().filter(|process| life == self.life && process.store.readers_due == self.now)
                else {
                    return Ok(());
                };
                process.store.read(self.now, now_s, &mut process.lanes);
                self.trace(happening);
                self.wake_threads();
            }
            Happening::Projector { life } => {
                let Some(process) =
                    self.process.as_mut().filter(|process| life == self.life && process.store.projector_due == self.now)
                else {
                    return Ok(());
                };
                process.store.project(self.now);
                self.trace(happening);
                self.wake_threads();
            }
            Happening::Up { link } => {
                let Link { core, life, is_over, id, .. } = self.links[link];
                if life == self.life && !is_over && id.is_some() {
                    self.process.as_mut().expect("lives").cores[core].ready.push(link);
                    self.wake_core(core, 20 * US);
                }
            }
            Happening::Down { link } => self.down(link)?,
            Happening::Opened { device, core } => {
                self.trace(happening);
                self.open(device, core)?;
            }
            Happening::Device { device } if device >= RUDE => {
                if self.rudes[device - RUDE].due == self.now {
                    self.trace(happening);
                    self.turn_rude(device - RUDE)?;
                }
            }
            Happening::Device { device } => {
                if self.devices[device].due == self.now {
                    self.trace(happening);
                    self.turn_device(device)?;
                }
            }
            Happening::Start => {
                if self.process.is_none() {
                    self.trace(happening);
                    self.start()?;
                }
            }
            Happening::Fault { fault } => {
                if self.is_troubled {
                    self.trace(happening);
                    self.fault(fault)?;
                }
            }
            Happening::Mended { fault, what } => {
                self.trace(happening);
                self.mend(fault, what);
            }
            Happening::Look => self.look()?,
            Happening::Groups => self.make_groups(),
        }
        Ok(())
    }

    // The process.

    fn moment(&self, now: u64) -> Moment {
        clock(self.process.as_ref().map_or((0, 0), |process| (process.boot, process.drift_ppm)), self.wall_offset_ms, now)
    }

    fn start(&mut self) -> Result<(), Finding> {
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

    fn crash(&mut self, crash: Crash) {
        let Some(process) = self.process.take() else { return };
        self.note(&format!("{crash:?}"));
        self.disk = self.disk.crash(self.now, crash);
        let unsynced = process.store.engine.unsynced_count();
        let kept = self.random.index(unsynced + 1);
        self.engine = Some(process.store.engine.crash(kept));
        self.ledger.crashed(self.now);
        // An answer nobody has read died with the process: it may be of a turn that never ended.
        self.making.clear();
        self.end_links();
        let after = self.random.between(50 * MS, 2 * SECOND);
        self.push(self.now + after, Happening::Start);
    }

    /// The process is gone: its clients hear it sooner or later.
    fn end_links(&mut self) {
        for link in 0..self.links.len() {
            if !self.links[link].is_over {
                let mut due = Due::default();
                let after = self.random.spread(20 * MS);
                self.links[link].process_died(self.now, after, &mut due);
                self.note_due(link, due);
            }
        }
    }

    fn turn_core(&mut self, core: usize) -> Result<(), Finding> {
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
    fn check_core(&self, core: usize) -> Result<(), Finding> {
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

    fn turn_store(&mut self) -> Result<(), Finding> {
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

    fn wake_threads(&mut self) {
        self.wake_threads_from(self.now);
    }

    /// Wakes whoever got mail, no earlier than `from`.
    fn wake_threads_from(&mut self, from: u64) {
        let Some(process) = self.process.as_mut() else { return };
        let mut cores = std::mem::take(&mut process.lanes.woken_cores);
        let store = std::mem::take(&mut process.lanes.woken_store);
        let (readers, projector) = (process.store.readers_due, process.store.projector_due);
        cores.sort_unstable();
        cores.dedup();
        let life = self.life;
        if readers != u64::MAX {
            let at = readers.max(self.now + 1);
            self.process.as_mut().expect("lives").store.readers_due = at;
            self.push(at, Happening::Readers { life });
        }
        if projector != u64::MAX {
            let at = projector.max(self.now + 1);
            self.process.as_mut().expect("lives").store.projector_due = at;
            self.push(at, Happening::Projector { life });
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

    fn is_store_in_turn(&self) -> bool {
        self.disk.thread_ns() > self.now
    }

    fn random_latency(&mut self) -> u64 {
        self.random.spread(20 * US)
    }

    fn wake_core(&mut self, core: usize, latency_ns: u64) {
        let at = self.now + self.random.spread(latency_ns);
        self.wake_core_at(core, at);
    }

    fn wake_core_at(&mut self, core: usize, at: u64) {
        let due = self.process.as_ref().expect("lives").cores[core].due;
        if at < due {
            self.set_core(core, at.max(self.now + 1));
        }
    }

    /// Makes sure of a turn at `at`, beside the one that is due.
    fn push_core(&mut self, core: usize, at: u64) {
        let due = self.process.as_ref().expect("lives").cores[core].due;
        if due > at {
            self.set_core(core, at);
        }
    }

    fn set_core(&mut self, core: usize, at: u64) {
        let at = at.max(self.now + 1);
        self.process.as_mut().expect("lives").cores[core].due = at;
        self.push(at, Happening::Core { life: self.life, core });
    }

    fn set_store(&mut self, at: u64) {
        let at = at.max(self.now + 1);
        self.process.as_mut().expect("lives").store.due = at;
        self.push(at, Happening::Store { life: self.life });
    }

    // Devices and links.

    fn turn_device(&mut self, device: usize) -> Result<(), Finding> {
        let now = self.now;
        let Self { devices, ledger, plan, made, .. } = self;
        let who = &mut devices[device];
        if self.is_troubled && !who.is_auditor && who.next_say <= now {
            let backlog = (usize::from(plan.send_window) * 4).clamp(8, 64);
            let times = if who.random.chance(plan.burst_ppm) { who.random.between(5, 40) } else { 1 };
            for _ in 0..times {
                // A person who sees that nothing leaves stops writing.
                if who.machine.unsent_count() < backlog {
                    who.say(ledger, plan.payload_max, made);
                }
            }
            if who.random.chance(200_000) {
                who.read(ledger);
            }
            who.next_say = now + who.random.spread(plan.send_every_ns);
        }
        self.pump_device(device, Wishes::default())
    }

    fn pump_device(&mut self, device: usize, mut wishes: Wishes) -> Result<(), Finding> {
        let now = self.now;
        let link = self.devices[device].link;
        self.devices[device].pump(now, &mut self.ledger, &mut wishes)?;
        if let Some(link) = link {
            let mut due = Due::default();
            if !wishes.bytes.is_empty() {
                self.hash(&wishes.bytes);
                self.links[link].client_writes(now, &wishes.bytes, &self.weather, &mut due);
            }
            if wishes.close {
                self.links[link].client_ends(now, End::Fin, &self.weather, &mut due);
                self.links[link].client_gone = true;
            }
            self.note_due(link, due);
        }
        if wishes.connect {
            let core = self.random.index(self.plan.cores);
            let at = now + self.random.spread(self.weather.latency_ns);
            self.push(at, Happening::Opened { device, core });
        }
        let who = &self.devices[device];
        if let Some(stop) = who.machine.stopped()
            && !(who.is_auditor && stop == Stop::Closed)
            && self.is_troubled | (stop != Stop::Closed)
        {
            if stop != Stop::Replaced {
                return Err(format!("device {device} stopped: {stop:?}"));
            }
            // An earlier connection of this device came through late and took its place; the person starts the program again.
            self.restart_device(device);
            return Ok(());
        }
        let mut at = who.machine.poll_timeout().map_or(u64::MAX, |at| u64::try_from(at.as_nanos()).expect("seconds"));
        if self.is_troubled && !who.is_auditor {
            at = at.min(who.next_say);
        }
        if at != u64::MAX {
            // What has passed and changed nothing waits for an answer.
            self.wake_device(device, if at <= now { now + 20 * MS } else { at });
        }
        Ok(())
    }

    fn wake_device(&mut self, device: usize, at: u64) {
        self.devices[device].due = at;
        self.push(at, Happening::Device { device });
    }

    fn wake_rude(&mut self, rude: usize, at: u64) {
        self.rudes[rude].due = at;
        self.push(at, Happening::Device { device: RUDE + rude });
    }

    fn turn_rude(&mut self, number: usize) -> Result<(), Finding> {
        if self.are_rude_gone {
            return Ok(());
        }
        let Self { rudes, ledger, plan, .. } = self;
        let rude = &mut rudes[number];
        if let Some(finding) = rude.waits_in_vain(self.now) {
            // In trouble a reader may be behind for longer.
            if !self.is_troubled {
                return Err(finding);
            }
        }
        let mut wishes = Wishes::default();
        if self.is_troubled {
            rude.act(ledger, &mut wishes, plan.payload_max);
        }
        let (link, pause) = (rude.link, rude.pause());
        match link {
            Some(link) => self.rude_writes(link, wishes),
            None => {
                let core = self.random.index(self.plan.cores);
                let at = self.now + self.random.spread(self.weather.latency_ns);
                self.push(at, Happening::Opened { device: RUDE + number, core });
            }
        }
        self.wake_rude(number, self.now + pause + 50 * MS);
        Ok(())
    }

    fn rude_writes(&mut self, link: usize, wishes: Wishes) {
        let mut due = Due::default();
        if !wishes.bytes.is_empty() {
            self.hash(&wishes.bytes);
            self.links[link].client_writes(self.now, &wishes.bytes, &self.weather, &mut due);
        }
        if wishes.close {
            self.links[link].client_ends(self.now, End::Fin, &self.weather, &mut due);
            self.links[link].client_gone = true;
        }
        self.note_due(link, due);
    }

    /// Something, or the end, has come to a rude client.
    fn down_rude(&mut self, link: usize, bytes: &[u8], end: Option<End>) -> Result<(), Finding> {
        let number = self.links[link].device - RUDE;
        if self.links[link].client_gone || self.rudes[number].link != Some(link) || (bytes.is_empty() && end.is_none()) {
            return Ok(());
        }
        self.trace(Happening::Down { link });
        self.hash(bytes);
        let mut wishes = Wishes::default();
        let now = self.now;
        self.rudes[number].handle_bytes(now, bytes, &mut self.ledger, &mut wishes)?;
        if end.is_some() && self.rudes[number].link == Some(link) {
            wishes.close = true;
            self.rudes[number].disconnected();
        }
        self.rude_writes(link, wishes);
        Ok(())
    }

    /// Those whose manners nobody can wait for end without a word.
    fn send_away(&mut self, who: impl Fn(Manner) -> bool) {
        for number in 0..self.rudes.len() {
            if who(self.rudes[number].manner) {
                self.rudes[number].due = 0;
                if let Some(link) = self.rudes[number].link.take() {
                    self.rudes[number].disconnected();
                    let mut due = Due::default();
                    self.links[link].client_ends(self.now, End::Reset, &self.weather, &mut due);
                    self.note_due(link, due);
                }
            }
        }
    }

    fn open_rude(&mut self, number: usize, core: usize) {
        let is_open = self.process.as_ref().is_some_and(|process| process.ends_by.is_none());
        if self.rudes[number].link.is_some() || self.are_rude_gone || !is_open {
            return;
        }
        let link = self.links.len();
        self.links.push(Link::new(RUDE + number, core, self.life, self.random.stream("link", link as u64)));
        let bytes = self.rudes[number].connected(link);
        self.process.as_mut().expect("lives").cores[core].arrivals.push_back(link);
        self.wake_core(core, 50 * US);
        self.rude_writes(link, Wishes { bytes, ..Wishes::default() });
    }

    fn open(&mut self, device: usize, core: usize) -> Result<(), Finding> {
        if device >= RUDE {
            self.open_rude(device - RUDE, core);
            return Ok(());
        }
        if self.devices[device].link.is_some() {
            return Ok(());
        }
        if self.process.as_ref().is_none_or(|process| process.ends_by.is_some()) {
            self.devices[device].disconnected(self.now);
            return self.pump_device(device, Wishes::default());
        }
        let link = self.links.len();
        self.links.push(Link::new(device, core, self.life, self.random.stream("link", link as u64)));
        if !self.is_troubled {
            self.links[link].widen();
        }
        let bytes = self.devices[device].connected(link);
        self.process.as_mut().expect("lives").cores[core].arrivals.push_back(link);
        self.wake_core(core, 50 * US);
        self.pump_device(device, Wishes { bytes, ..Wishes::default() })
    }

    fn down(&mut self, link: usize) -> Result<(), Finding> {
        // What a process said before it died may arrive when the next one lives, which promises nothing of it.
        self.ledger.is_of_dead = self.links[link].life != self.life || self.process.is_none();
        let result = self.arrive(link);
        self.ledger.is_of_dead = false;
        result
    }

    fn arrive(&mut self, link: usize) -> Result<(), Finding> {
        let mut due = Due::default();
        let now = self.now;
        let bytes = self.links[link].client_reads(now, &self.weather, &mut due);
        let end = self.links[link].client_sees_end(now);
        self.note_due(link, due);
        let device = self.links[link].device;
        if device >= RUDE {
            return self.down_rude(link, &bytes, end);
        }
        if self.links[link].client_gone || self.devices[device].link != Some(link) {
            return Ok(());
        }
        if bytes.is_empty() && end.is_none() {
            return Ok(());
        }
        self.trace(Happening::Down { link });
        self.hash(&bytes);
        let mut wishes = Wishes::default();
        self.devices[device].handle_bytes(now, &bytes, &mut self.ledger, &mut wishes)?;
        if end.is_some() && self.devices[device].link == Some(link) {
            self.links[link].client_gone = true;
            let mut due = Due::default();
            if end == Some(End::Fin) {
                self.links[link].client_ends(now, End::Fin, &self.weather, &mut due);
            }
            self.note_due(link, due);
            self.devices[device].disconnected(now);
            return self.pump_device(device, Wishes::default());
        }
        if self.devices[device].link.is_none() {
            // The device has let go of it while it read.
            let mut due = Due::default();
            if !wishes.bytes.is_empty() {
                self.links[link].client_writes(now, &wishes.bytes, &self.weather, &mut due);
            }
            self.links[link].client_ends(now, End::Fin, &self.weather, &mut due);
            self.links[link].client_gone = true;
            self.note_due(link, due);
            return self.pump_device(device, Wishes::default());
        }
        self.pump_device(device, wishes)
    }

    fn note_due(&mut self, link: usize, due: Due) {
        for at in due.core {
            self.push(at.max(self.now), Happening::Up { link });
        }
        for at in due.device {
            self.push(at.max(self.now), Happening::Down { link });
        }
    }

    /// The program of a device ends without a word, and is started again.
    fn restart_device(&mut self, device: usize) {
        if let Some(link) = self.devices[device].link {
            self.links[link].client_gone = true;
            let mut due = Due::default();
            if self.random.chance(500_000) {
                self.links[link].client_ends(self.now, End::Reset, &self.weather, &mut due);
            } else {
                // The machine it ran on is gone: nobody answers, until the gateway notices.
                let at = self.now + self.random.spread(5 * SECOND);
                self.push(at, Happening::Mended { fault: Fault::DeviceRestart, what: link });
            }
            self.note_due(link, due);
        }
        self.devices[device].restart(self.plan.window);
        let at = self.now + self.random.spread(200 * MS);
        self.wake_device(device, at);
    }

    // Faults.

    fn schedule_faults(&mut self) {
        for (fault, _) in self.fault_means() {
            self.schedule_fault(fault);
        }
    }

    fn fault_means(&self) -> Vec<(Fault, u64)> {
        let faults = self.plan.faults;
        let means = [
            (Fault::Kill, faults.kill_ns),
            (Fault::PowerCut, faults.power_cut_ns),
            (Fault::Stop, faults.stop_ns),
            (Fault::DiskError, faults.disk_error_ns),
            (Fault::DiskFull, faults.disk_full_ns),
            (Fault::DiskSlow, faults.disk_slow_ns),
            (Fault::ClockJump, faults.clock_jump_ns),
            (Fault::Stall, faults.stall_ns),
            (Fault::DeviceRestart, faults.device_restart_ns),
            (Fault::Members, faults.members_ns),
        ];
        means.into_iter().filter(|(_, mean)| *mean > 0).collect()
    }

    fn schedule_fault(&mut self, fault: Fault) {
        let Some((_, mean)) = self.fault_means().into_iter().find(|(other, _)| *other == fault) else { return };
        let at = self.now + self.random.spread(mean);
        self.push(at, Happening::Fault { fault });
    }

    fn fault(&mut self, fault: Fault) -> Result<(), Finding> {
        self.schedule_fault(fault);
        let now = self.now;
        match fault {
            Fault::Kill => self.crash(Crash::Kill),
            Fault::PowerCut => self.crash(Crash::PowerCut),
            Fault::Stop => self.stop(),
            Fault::DiskError if self.process.is_none() => {}
            Fault::DiskError => {
                let writes = self.random.chance(500_000);
                self.note("the disk fails");
                self.disk.set_health(
                    |health| if writes { health.write_fails_ppm = 1_000_000 } else { health.sync_fails_ppm = 1_000_000 },
                );
            }
            Fault::DiskFull => {
                self.note("the disk is full");
                self.disk.set_health(|health| health.is_full = true);
                let at = now + self.random.spread(2 * SECOND);
                self.push(at, Happening::Mended { fault, what: 0 });
            }
            Fault::DiskSlow => {
                let sync_ns = self.random.between(20 * MS, 500 * MS);
                self.disk.set_health(|health| health.sync_ns = sync_ns);
                let at = now + self.random.spread(SECOND);
                self.push(at, Happening::Mended { fault, what: 0 });
            }
            Fault::ClockJump => {
                let jump = i64::try_from(self.random.spread(60_000)).expect("small");
                self.wall_offset_ms += if self.random.chance(500_000) { jump } else { -jump };
            }
            Fault::Stall => {
                let at = now + self.random.spread(100 * MS);
                let thread = self.random.index(self.plan.cores + 1);
                if let Some(process) = &self.process {
                    let due = process.cores.get(thread).map_or(process.store.due, |core| core.due);
                    let at = at.max(due);
                    if thread == self.plan.cores { self.set_store(at) } else { self.set_core(thread, at) }
                }
            }
            Fault::DeviceRestart => {
                let device = self.random.index(self.devices.len());
                self.note(&format!("device {device} is started again"));
                self.restart_device(device);
            }
            Fault::Members => {
                if !self.groups.is_empty() {
                    let place = self.random.index(self.groups.len());
                    let user: Arc<str> = format!("user{}", self.random.index(self.plan.users)).into();
                    let conv = self.groups[place].0.clone();
                    let names = vec![(&*user).into()];
                    self.ledger.removed.insert((conv.clone(), user));
                    let change = if self.random.chance(500_000) { MemberChange::Add(names) } else { MemberChange::Remove(names) };
                    self.change_members(&conv, change);
                }
            }
        }
        Ok(())
    }

    fn mend(&mut self, fault: Fault, what: usize) {
        match fault {
            Fault::DiskFull => self.disk.set_health(|health| health.is_full = false),
            Fault::DiskSlow => self.disk.set_health(|health| health.sync_ns = self.plan.sync_ns),
            Fault::DeviceRestart => {
                let mut due = Due::default();
                self.links[what].client_ends(self.now, End::Reset, &self.weather, &mut due);
                self.note_due(what, due);
            }
            _ => {}
        }
    }

    fn change_members(&mut self, conv: &Conv, change: MemberChange) {
        let Some(process) = self.process.as_mut() else { return };
        let (reply, answer) = sync_channel(1);
        let mail = MemberMail { conv: (&**conv).into(), change, data: Body::new(), reply };
        // A change that is not answered, or refused by load, is made again.
        if process.lanes.submit(Submit::Member(mail)).is_ok() {
            self.making.push((conv.clone(), answer));
        }
        self.wake_threads();
    }

    fn make_groups(&mut self) {
        // An answer that is there before the turn of the store is over is none yet.
        let answers = if self.is_store_in_turn() { Vec::new() } else { std::mem::take(&mut self.making) };
        for (conv, answer) in answers {
            if matches!(answer.try_recv(), Ok(Ok(_) | Err(MemberRefusal::Exists))) {
                self.made.insert(conv);
            }
        }
        for (conv, members) in self.groups.clone() {
            if !self.made.contains(&conv) {
                let members = members.iter().map(|member| (&**member).into()).collect();
                self.change_members(&conv, MemberChange::Create(members));
            }
        }
        if self.made.len() < self.groups.len() {
            self.push(self.now + 500 * MS, Happening::Groups);
        }
    }

    /// A clean end: everyone is asked to leave, what rides is written.
    fn stop(&mut self) {
        let (window_ms, now) = (u32::try_from(self.random.below(2_000)).expect("small"), self.now);
        let moment = self.moment(now);
        let Some(process) = self.process.as_mut() else { return };
        if process.ends_by.is_some() {
            return;
        }
        process.ends_by = Some(now + 12 * SECOND);
        for core in &mut process.cores {
            core.shard.handle_drain(moment, 1012, window_ms);
        }
        self.note("a clean end begins");
        self.push(now + 50 * MS, Happening::Look);
    }

    /// Looks whether a clean end is near.
    fn look(&mut self) -> Result<(), Finding> {
        let now = self.now;
        let Some(process) = self.process.as_mut() else { return Ok(()) };
        let Some(by) = process.ends_by else { return Ok(()) };
        let is_over = process.cores.iter().all(|core| core.shard.is_drained())
            && process.store.is_quiet()
            && process.lanes.submit.is_empty();
        if !is_over && now < by {
            self.push(now + 50 * MS, Happening::Look);
            return Ok(());
        }
        if !is_over {
            self.note("the clean end took too long");
            self.crash(Crash::Kill);
            return Ok(());
        }
        let (times, offset) = ((process.boot, process.drift_ppm), self.wall_offset_ms);
        if process.store.finish(now, |now| clock(times, offset, now), &mut process.lanes).is_err() {
            self.crash(Crash::Kill);
            return Ok(());
        }
        while process.store.projector_due != u64::MAX {
            process.store.project(u64::MAX - SECOND);
        }
        let mut process = self.process.take().expect("lives");
        process.store.engine.checkpoint();
        let at = self.disk.thread_ns().max(now);
        self.disk = self.disk.crash(at, Crash::Kill);
        self.engine = Some(process.store.engine);
        // Nothing was lost by this end: what was confirmed stays confirmed.
        self.end_links();
        self.note("a clean end");
        let after = self.random.between(50 * MS, SECOND);
        self.push(at + after, Happening::Start);
        Ok(())
    }

    /// No fault from here on, and those that last are over.
    fn clear(&mut self) {
        self.is_troubled = false;
        self.weather =
            Weather { latency_ns: self.plan.weather.latency_ns, reset_ppm: 0, silence_ppm: 0, silence_ns: 0, pause_ppm: 0 };
        // Overload is over too: what it made small is as large as it is.
        self.plan.parked_max = self.plan.parked_max.max(4_096);
        self.plan.jobs_max = self.plan.jobs_max.max(16);
        if let Some(process) = &mut self.process {
            process.store.widen(&self.plan);
        }
        let sync_ns = self.plan.sync_ns;
        self.disk.set_health(|health| {
            health.sync_ns = sync_ns;
            health.is_full = false;
            (health.sync_fails_ppm, health.write_fails_ppm) = (0, 0);
        });
        for link in 0..self.links.len() {
            let mut due = Due::default();
            if !self.links[link].is_over || !self.links[link].client_gone {
                self.links[link].clear(self.now, &mut due);
            }
            self.note_due(link, due);
        }
    }

    // The end.

    fn stored(&self) -> Result<BTreeMap<String, Stored>, Finding> {
        let process = self.process.as_ref().ok_or("no process runs")?;
        stored(&process.store.engine, process.store.hashes())
    }

    fn has_converged(&self) -> bool {
        let Some(process) = &self.process else { return false };
        process.ends_by.is_none()
            && process.store.is_quiet()
            && self.devices.iter().all(|device| device.is_settled())
            && self.stored().is_ok_and(|stored| self.behind(&stored).is_none())
    }

    /// A device that does not have everything.
    fn behind(&self, stored: &BTreeMap<String, Stored>) -> Option<Finding> {
        for device in &self.devices {
            for (conv, stored) in stored {
                let have = device.have.get(&**conv).copied().unwrap_or(0);
                let head = stored.messages.len() as u64;
                let Some(joined) = stored.members.get(&*device.user) else { continue };
                if have < head && *joined <= head {
                    return Some(format!("device {} of {} has {conv} up to {have}, not to {head}", device.number, device.user));
                }
            }
        }
        None
    }

    fn what_is_missing(&self) -> Finding {
        let Ok(stored) = self.stored() else { return "no process runs 30 s after the trouble".to_owned() };
        if let Some(finding) = self.behind(&stored) {
            return format!("30 s after the trouble {finding}");
        }
        for device in &self.devices {
            if !device.is_settled() {
                return format!(
                    "30 s after the trouble device {} is active: {}, with {} messages unsent and {} reads unconfirmed",
                    device.number,
                    device.machine.is_active(),
                    device.machine.unsent_count(),
                    device.machine.unconfirmed_reads_count()
                );
            }
        }
        "30 s after the trouble the store is not quiet".to_owned()
    }

    /// A fresh device of every user reads everything there is; what it is told must be what the rows say.
    fn audit(&mut self) -> Result<(), Finding> {
        let secret = Secret::new(SECRET.to_vec()).expect("32 bytes");
        let first = self.devices.len();
        let users: Vec<Arc<str>> = (0..self.plan.users).map(|number| format!("user{number}").into()).collect();
        for (place, user) in users.iter().enumerate() {
            let token = mint(&secret, user, None, 4_000_000_000).expect("a user");
            let stream = Random::new(self.plan.seed).stream("auditor", place as u64);
            let number = self.devices.len();
            let wants = (self.plan.faults.members_ns > 0, self.plan.watches);
            let mut device = Device::new(number, user.clone(), "auditor".to_owned(), token, Vec::new(), 0, wants, stream);
            device.is_auditor = true;
            self.devices.push(device);
            self.wake_device(number, self.now + MS);
        }
        let end = self.now + 30 * SECOND;
        self.until(end, |world| world.has_converged() && world.devices[first..].iter().all(|device| device.synced_count > 0))?;
        if !self.has_converged() {
            return Err(format!("the auditors: {}", self.what_is_missing()));
        }
        let stored = self.stored()?;
        self.ledger.judge(&stored)?;
        for said in self.ledger.said.values().filter(|said| said.acknowledged.is_some()) {
            if !stored.contains_key(&*said.conv) {
                return Err(format!("{} does not exist, and was written to", said.conv));
            }
        }
        for device in &self.devices[first..] {
            for (conv, stored) in &stored {
                let conv: Conv = conv.as_str().into();
                let entry = device.entries.get(&conv);
                match (stored.members.contains_key(&*device.user), entry) {
                    (false, None) => {}
                    (true, None) => return Err(format!("SYNC does not tell {} of {conv}", device.user)),
                    (false, Some(_)) => return Err(format!("SYNC tells {} of {conv}", device.user)),
                    (true, Some(&(read, unread))) => self.ledger.judge_unread(&device.user, &conv, stored, read, unread)?,
                }
            }
        }
        Ok(())
    }

    /// Everyone asks who is there, and is told; then one user goes, and everyone who may know hears of it.
    fn judge_presence(&mut self) -> Result<(), Finding> {
        let stored = self.stored()?;
        let shares = |a: &str, b: &str| stored.values().any(|it| it.members.contains_key(a) && it.members.contains_key(b));
        for number in 0..self.devices.len() {
            self.devices[number].watch_again();
            self.wake_device(number, self.now + MS);
        }
        self.until(self.now + PRESENCE_NS, |_| false)?;
        for device in self.devices.iter().filter(|device| !device.is_auditor) {
            for user in &device.watches {
                let (is_told, expected) = (device.believes.get(user), u8::from(shares(&device.user, user)));
                if is_told != Some(&expected) {
                    return Err(format!("{} hears {is_told:?} of {user}, should be {expected}: everybody is there", device.user));
                }
            }
        }
        let gone = self.devices[0].user.clone();
        for number in 0..self.devices.len() {
            if self.devices[number].user == gone {
                self.devices[number].is_auditor = true;
                self.devices[number].machine.close();
                self.turn_device(number)?;
            }
        }
        self.until(self.now + PRESENCE_NS, |_| false)?;
        let watchers = self.devices.iter().filter(|device| !device.is_auditor && device.user != gone);
        for device in watchers.filter(|device| device.watches.contains(&gone)) {
            if device.believes.get(&gone) != Some(&0) {
                return Err(format!("{} still believes that {gone} is there", device.user));
            }
        }
        Ok(())
    }

    /// Everyone leaves: nothing may stay behind.
    fn leave(&mut self) -> Result<(), Finding> {
        for device in 0..self.devices.len() {
            self.devices[device].is_auditor = true;
            self.devices[device].machine.close();
            self.turn_device(device)?;
        }
        for link in 0..self.links.len() {
            if !self.links[link].client_gone {
                self.links[link].client_gone = true;
                let mut due = Due::default();
                self.links[link].client_ends(self.now, End::Fin, &self.weather, &mut due);
                self.note_due(link, due);
            }
        }
        self.until(self.now + LEAVE_NS, |world| world.what_stays().is_none())?;
        self.what_stays().map_or(Ok(()), Err)
    }

    fn what_stays(&self) -> Option<Finding> {
        let process = self.process.as_ref()?;
        for (number, core) in process.cores.iter().enumerate() {
            let Core { shard, stashes, .. } = core;
            let left = (shard.connections_count(), shard.sessions_count(), shard.queued_bytes(), stashes.used_bytes());
            if left != (0, 0, 0, 0) {
                let links: Vec<&Link> =
                    self.links.iter().filter(|link| link.core == number && link.life == self.life && !link.is_over).collect();
                return Some(format!("core {number} keeps connections, sessions, queued and stashed bytes: {left:?}; {links:?}"));
            }
        }
        if process.lanes.credit != self.plan.credit_bytes {
            return Some(format!("of a credit of {} bytes {} came back", self.plan.credit_bytes, process.lanes.credit));
        }
        if !process.store.is_quiet() {
            return Some("the store is not quiet".to_owned());
        }
        None
    }

    // What is written down.

    fn push(&mut self, at: u64, happening: Happening) {
        let tie = self.random.next();
        self.queue.push(Reverse((at, tie, happening)));
    }

    fn trace(&mut self, happening: Happening) {
        self.happenings_count += 1;
        let words = [self.now, code(happening)];
        for word in words {
            self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01B3).rotate_left(23);
        }
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back((self.now, happening, self.hash));
    }

    fn hash(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.hash = (self.hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01B3).rotate_left(23);
        }
    }

    fn note(&mut self, text: &str) {
        if self.notes.len() == TRACE_MAX {
            self.notes.pop_front();
        }
        self.notes.push_back((self.now, text.to_owned()));
    }
}

fn code(happening: Happening) -> u64 {
    let (kind, a, b) = match happening {
        Happening::Core { life, core } => (1, u64::from(life), core),
        Happening::Store { life } => (2, u64::from(life), 0),
        Happening::Readers { life } => (3, u64::from(life), 0),
        Happening::Projector { life } => (4, u64::from(life), 0),
        Happening::Up { link } => (5, 0, link),
        Happening::Down { link } => (6, 0, link),
        Happening::Opened { device, core } => (7, device as u64, core),
        Happening::Device { device } => (8, 0, device),
        Happening::Start => (9, 0, 0),
        Happening::Fault { fault } => (10, fault as u64, 0),
        Happening::Mended { fault, what } => (11, fault as u64, what),
        Happening::Look => (12, 0, 0),
        Happening::Groups => (13, 0, 0),
    };
    kind << 56 | a << 40 | b as u64
}

/// The clocks of a process: one that never goes back, and one that jumps.
fn clock((boot, drift_ppm): (u64, i64), wall_offset_ms: i64, now: u64) -> Moment {
    let elapsed = i64::try_from(now.saturating_sub(boot)).expect("centuries");
    let mono = elapsed + elapsed / 1_000_000 * drift_ppm;
    let unix = i64::try_from(UNIX_MS + now / MS).expect("centuries") + wall_offset_ms;
    Moment { mono_ns: SECOND + u64::try_from(mono).expect("forward"), unix_ms: u64::try_from(unix).expect("after 1970") }
}

fn seconds(ns: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let seconds = ns as f64 / 1e9;
    seconds
}

/// The rules of the product, but for bounds that a small world shall meet.
fn rules(plan: &Plan) -> Rules {
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
    rules.resume_ms = plan.resume_ms;
    rules
}
