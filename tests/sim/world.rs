//! Everything in one thread: a queue of what happens when, and what follows from it.

mod end;
mod faults;
mod people;
mod process;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use tidegate::config::Secret;
use tidegate::mail::{MemberDone, MemberRefusal};
use tidegate::session::auth::Verifier;
use tidegate::shard::Rules;
use tidegate::store::engine_memory::MemoryEngine;
use tidegate::store::record;

use crate::device::Device;
use crate::disk::SimDisk;
use crate::ledger::{Conv, Finding, Ledger};
use crate::network::{Link, Weather};
use crate::plan::Plan;
use crate::random::Random;
use crate::rude::{Manner, RUDE, Rude};
use crate::store::identity;
use crate::tokens::{LEEWAY_S, SECRET};
use crate::{MS, SECOND, US};

use faults::Fault;
use process::{Process, rules};

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
    /// Revocations that are not answered, by their number in the ledger.
    revoking: Vec<(usize, Receiver<Result<MemberDone, MemberRefusal>>)>,
    hash: u64,
    happenings_count: u64,
    trace: VecDeque<(u64, Happening, u64)>,
    notes: VecDeque<(u64, String)>,
}

const TRACE_MAX: usize = 60;
/// What was written before the trouble was over has arrived by then.
const SETTLE_NS: u64 = SECOND;

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
            verifier: Arc::new(Verifier::new(&secret, u32::try_from(LEEWAY_S).expect("few"))),
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
            revoking: Vec::new(),
            hash: 0xCBF2_9CE4_8422_2325,
            happenings_count: 0,
            trace: VecDeque::new(),
            notes: VecDeque::new(),
            plan,
        };
        world.people(&random);
        world
    }

    /// Users, groups and devices.
    fn people(&mut self, random: &Random) {
        self.ledger.tokens.issued_count = (self.plan.faults.revoke_ns > 0).then_some(0);
        self.ledger.tokens.life_s = self.plan.token_life_s;
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
                let token = self.ledger.tokens.issue(user, self.now);
                let stream = random.stream("device", (number * 16 + device) as u64);
                let name = format!("dev{device}");
                let wants = (self.plan.faults.members_ns > 0, self.plan.watches);
                let mut device = Device::new(place, user.clone(), name, token, convs.clone(), self.plan.window, wants, stream);
                device.cursors.older_ppm = self.plan.older_acks_ppm;
                self.devices.push(device);
            }
        }
        if self.plan.watches {
            for device in &mut self.devices {
                let others = users.iter().filter(|user| **user != device.user).cloned().collect();
                device.watch(others);
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
            let token = self.ledger.tokens.issue_endless(&user);
            self.rudes.push(Rude::new(RUDE + number, user, token.text, convs, stream));
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
        // What the rude ones wrote last is on its way.
        self.until(calm_begins + SETTLE_NS, |_| false)?;
        // Whoever was refused for want of space was told to come back after 30 s, and adds up to a quarter.
        let hinted = if self.plan.faults.disk_full_ns > 0 { 38 * SECOND } else { 0 };
        self.until(calm_begins + self.plan.converge_ns + hinted, World::has_converged)?;
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
        // Behind the presence: whoever has just come back must be told to those who watch.
        self.judge_cursors()?;
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
        let (words, rest) = bytes.as_chunks();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        for word in words.iter().chain((!rest.is_empty()).then_some(&last)) {
            self.hash = (self.hash ^ u64::from_le_bytes(*word)).wrapping_mul(0x0100_0000_01B3).rotate_left(23);
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

fn seconds(ns: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let seconds = ns as f64 / 1e9;
    seconds
}
