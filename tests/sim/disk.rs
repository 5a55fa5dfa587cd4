//! The disk of the store thread. What a turn does to it takes time: a sync that is asked for in a turn is done some milliseconds
//! later, and a crash in between finds it not done. So there are two disks: the one the process sees, on which everything has
//! happened, and the real one, which follows.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use tidegate::store::disk::{Disk, Space};
use tidegate::store::disk_memory::{Faults, MemoryDisk};

use crate::random::Random;
use crate::{MS, US};

/// Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    seen: MemoryDisk,
    shared: Rc<RefCell<Shared>>,
}

struct Shared {
    real: MemoryDisk,
    /// What has been done, by the time at which it is.
    done: VecDeque<(u64, Done)>,
    random: Random,
    health: Health,
    /// Where the store thread stands within its turn, nanoseconds of the world.
    thread_ns: u64,
    syncs_count: u64,
}

enum Done {
    Create(String, u64),
    Write(String, u64, Vec<u8>),
    Sync(String),
    Remove(String),
    Replace(String, Vec<u8>),
}

/// What the disk is like at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    /// A sync takes about this long.
    pub sync_ns: u64,
    /// Of a million syncs so many fail.
    pub sync_fails_ppm: u64,
    /// Of a million writes so many fail, half of them after part of it stands.
    pub write_fails_ppm: u64,
    /// Nothing is free.
    pub is_full: bool,
}

/// How the process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// The kernel lives on and has everything that was written.
    Kill,
    /// Of what was not synced any part may be missing, in any order.
    PowerCut,
}

impl SimDisk {
    pub fn new(random: Random) -> Self {
        let health = Health { sync_ns: MS, sync_fails_ppm: 0, write_fails_ppm: 0, is_full: false };
        let real = MemoryDisk::default();
        let shared = Shared { real, done: VecDeque::new(), random, health, thread_ns: 0, syncs_count: 0 };
        Self { seen: MemoryDisk::default(), shared: Rc::new(RefCell::new(shared)) }
    }

    pub fn set_health(&self, change: impl FnOnce(&mut Health)) {
        let mut shared = self.shared.borrow_mut();
        change(&mut shared.health);
        let free_bytes = shared.health.is_full.then_some(0);
        let room_bytes = shared.health.is_full.then_some(0);
        self.seen.set_faults(Faults { free_bytes, room_bytes, ..Faults::default() });
    }

    /// The store thread begins a turn: what was done before it is done.
    pub fn begin_turn(&self, now: u64) {
        let mut shared = self.shared.borrow_mut();
        shared.settle(now);
        shared.thread_ns = now;
    }

    /// Where the store thread stands.
    pub fn thread_ns(&self) -> u64 {
        self.shared.borrow().thread_ns
    }

    pub fn syncs_count(&self) -> u64 {
        self.shared.borrow().syncs_count
    }

    /// The disk that the next process finds.
    pub fn crash(&self, now: u64, crash: Crash) -> Self {
        let mut shared = self.shared.borrow_mut();
        shared.settle(now);
        shared.done.clear();
        let Shared { real, random, health, syncs_count, .. } = &mut *shared;
        let kept_percent = *random.pick(&[0, 20, 50, 80, 100]);
        if crash == Crash::PowerCut {
            let unit = *random.pick(&[512, 64, 4096]);
            *real = MemoryDisk::with_files(real.power_cut_by(unit, |_| random.below(100) < kept_percent));
        }
        let (seen, real) = (MemoryDisk::with_files(real.files()), real.clone());
        let random = random.stream("disk", now);
        let shared = Shared { real, done: VecDeque::new(), random, health: *health, thread_ns: now, syncs_count: *syncs_count };
        let disk = Self { seen, shared: Rc::new(RefCell::new(shared)) };
        disk.set_health(|_| {});
        disk
    }

    fn did(&self, takes_ns: u64, done: Done) {
        let mut shared = self.shared.borrow_mut();
        shared.thread_ns += takes_ns;
        let at = shared.thread_ns;
        assert!(shared.done.back().is_none_or(|(before, _)| *before <= at), "a thread does one thing after the other");
        shared.done.push_back((at, done));
    }
}

impl Shared {
    fn settle(&mut self, now: u64) {
        while self.done.front().is_some_and(|(at, _)| *at <= now) {
            let (_, done) = self.done.pop_front().expect("just looked at");
            let real = &mut self.real;
            let result = match done {
                Done::Create(name, bytes) => real.create(&name, bytes).map(drop),
                Done::Write(name, offset, bytes) => real.write_at(&name, offset, &bytes),
                Done::Sync(name) => real.sync(&name),
                Done::Remove(name) => real.remove(&name),
                Done::Replace(name, bytes) => real.replace_small(&name, &bytes),
            };
            result.expect("the real disk does what the other one did");
        }
    }
}

impl Disk for SimDisk {
    type File = String;

    fn list(&mut self) -> io::Result<Vec<String>> {
        self.seen.list()
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<String> {
        let file = self.seen.create(name, bytes)?;
        self.did(MS, Done::Create(name.to_owned(), bytes));
        Ok(file)
    }

    fn prepare(&mut self, _bytes: u64) {}

    fn open(&mut self, name: &str) -> io::Result<String> {
        self.seen.open(name)
    }

    fn len(&mut self, file: &String) -> io::Result<u64> {
        self.seen.len(file)
    }

    fn read_at(&mut self, file: &String, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.seen.read_at(file, offset, buffer)
    }

    fn write_at(&mut self, file: &String, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let failed_at = {
            let mut shared = self.shared.borrow_mut();
            let ppm = shared.health.write_fails_ppm;
            shared.random.chance(ppm).then(|| shared.random.index(bytes.len() + 1))
        };
        let written = &bytes[..failed_at.unwrap_or(bytes.len())];
        self.seen.write_at(file, offset, written)?;
        self.did(20 * US, Done::Write(file.clone(), offset, written.to_vec()));
        if failed_at.is_some() { Err(io::Error::other("EIO of the simulation")) } else { Ok(()) }
    }

    fn sync(&mut self, file: &String) -> io::Result<()> {
        let (takes_ns, fails) = {
            let mut shared = self.shared.borrow_mut();
            shared.syncs_count += 1;
            let Health { sync_ns, sync_fails_ppm, .. } = shared.health;
            (shared.random.spread(sync_ns), shared.random.chance(sync_fails_ppm))
        };
        if fails {
            self.shared.borrow_mut().thread_ns += takes_ns;
            return Err(io::Error::other("EIO of the simulation"));
        }
        self.seen.sync(file)?;
        self.did(takes_ns, Done::Sync(file.clone()));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.seen.remove(name)?;
        self.did(100 * US, Done::Remove(name.to_owned()));
        Ok(())
    }

    fn read_small(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.seen.read_small(name)
    }

    fn replace_small(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.seen.replace_small(name, bytes)?;
        self.did(200 * US, Done::Replace(name.to_owned(), bytes.to_vec()));
        Ok(())
    }

    fn salt(&mut self) -> u32 {
        let word = self.shared.borrow_mut().random.next();
        u32::try_from(word >> 32).expect("32 bits")
    }

    fn space(&mut self) -> io::Result<Space> {
        self.seen.space()
    }
}
