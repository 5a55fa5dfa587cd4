//! Very many light clients, as whoever directs them sees them: what is wanted, and what all threads show.                  [nix]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::client::Causes;
use crate::light::Thread;
use crate::network::{Sockets, source};
use crate::pace::{Schedule, nanos};
use crate::phantom::{Device, Phantom};
use crate::stats::{Latency, Window};
use crate::subject::{Minter, Target};

/// What all threads and whoever directs them share.
#[derive(Debug)]
pub struct Swarm {
    /// Times count from here.
    pub origin: Instant,
    /// Where connections go.
    pub target: Target,
    /// The upgrade request.
    pub request: Vec<u8>,
    /// Makes the tokens of HELLO; `None`: the gateway only echoes.
    pub minter: Option<Minter>,
    /// Begins every name, so that runs on one gateway do not meet.
    pub tag: String,
    /// All of them.
    pub connections: usize,
    /// Threads that carry them, each its own part.
    pub threads: usize,
    /// Whose TCP carries them.
    pub back_end: BackEnd,
    /// Connections opened per second; 0: as fast as it goes.
    pub ramp_per_s: f64,
    /// Connections between connect and welcome, at most, over all threads.
    pub opening_max: usize,
    /// Decides who is echoed to.
    pub seed: u64,
    begun: AtomicUsize,
    /// Threads that have opened all of theirs.
    pub(crate) filled: AtomicUsize,
    pulse: Mutex<Pulse>,
    pub(crate) pulses: AtomicU64,
    pub(crate) is_over: AtomicBool,
    boards: Vec<Mutex<Board>>,
}

/// Whose TCP carries the clients.
#[derive(Debug)]
pub enum BackEnd {
    /// The kernel's.
    Sockets {
        /// Each thread has a descriptor table of its own.
        private_tables: bool,
        /// Loopback addresses to come from in turn; 0: whichever the kernel chooses.
        sources: usize,
    },
    /// Our own, with a device for each thread.
    Phantom(Vec<Device>),
}

impl BackEnd {
    /// Its name on the command line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sockets { .. } => "sockets",
            Self::Phantom(_) => "phantom",
        }
    }
}

/// What is sent to be echoed.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Pulse {
    /// Open loop over all threads, each message to a connection drawn from all.
    pub schedule: Schedule,
    /// Closed loop instead: connections that always have `depth` messages under way.
    pub busy: usize,
    /// See `busy`.
    pub depth: usize,
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// Intended times that are measured; it ends with them.
    pub window: Window,
}

/// What a thread shows.
#[derive(Clone, Default, Debug)]
pub struct Board {
    /// Connections begun.
    pub begun: usize,
    /// Welcomed and standing.
    pub active: usize,
    /// Pings of the gateway answered.
    pub pings: u64,
    /// Sent to be echoed, and come back.
    pub echoes: (u64, u64),
    /// Why connections could not be opened, or ended.
    pub causes: Causes,
    /// Latencies of the last pulse, and lateness of its sending; here once the pulse is over.
    pub pulse: Option<(Latency, Latency)>,
    /// Pulses that are over.
    pub pulses: u64,
    /// Connections it let go in the end.
    pub left: usize,
}

impl Swarm {
    /// A swarm of which nobody has come yet.
    #[must_use]
    pub fn new(target: Target, minter: Option<Minter>, tag: String, connections: usize, threads: usize) -> Self {
        let request = target.request(minter.is_some());
        Self {
            origin: Instant::now(),
            target,
            request,
            minter,
            tag,
            connections,
            threads,
            back_end: BackEnd::Sockets { private_tables: false, sources: 0 },
            ramp_per_s: 0.0,
            opening_max: OPENING_MAX,
            seed: 1,
            begun: AtomicUsize::new(0),
            filled: AtomicUsize::new(0),
            pulse: Mutex::default(),
            pulses: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            boards: (0..threads).map(|_| Mutex::default()).collect(),
        }
    }

    /// Nanoseconds since it began.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        nanos(self.origin.elapsed())
    }

    /// Begins a pulse.
    pub fn pulse(&self, pulse: Pulse) {
        *lock(&self.pulse) = pulse;
        self.pulses.fetch_add(1, Ordering::Release);
    }

    /// Lets all connections go.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// What all threads show, added up.
    #[must_use]
    pub fn board(&self) -> Board {
        let mut sum = Board { pulses: u64::MAX, ..Board::default() };
        for board in &self.boards {
            let board = lock(board);
            sum.begun += board.begun;
            sum.active += board.active;
            sum.pings += board.pings;
            sum.echoes = (sum.echoes.0 + board.echoes.0, sum.echoes.1 + board.echoes.1);
            sum.left += board.left;
            sum.pulses = sum.pulses.min(board.pulses);
            board.causes.iter().for_each(|(cause, count)| *sum.causes.entry(cause.clone()).or_default() += count);
            if let Some((latency, pacing)) = &board.pulse {
                match &mut sum.pulse {
                    None => sum.pulse = board.pulse.clone(),
                    Some((all_latency, all_pacing)) => {
                        all_latency.add(latency);
                        all_pacing.add(pacing);
                    }
                }
            }
        }
        sum
    }

    /// Carries the connections of thread `number` until the swarm ends.
    ///
    /// # Errors
    /// The kernel's, when the thread cannot work at all; what befalls one connection is counted instead.
    pub fn carry(&self, number: usize) -> Result<(), String> {
        let count = (number..self.connections).step_by(self.threads).len();
        let why = |error: std::io::Error| format!("thread {number}: {error}");
        match &self.back_end {
            BackEnd::Sockets { private_tables, sources } => {
                if *private_tables {
                    let table = nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES);
                    table.map_err(|error| format!("a descriptor table: {error}"))?;
                }
                let sources: Vec<Ipv4Addr> = (0..*sources).map(source).collect();
                let network = Sockets::new(self.target.address, sources, count, count).map_err(why)?;
                Thread::new(self, number, network).run().map_err(why)
            }
            BackEnd::Phantom(devices) => {
                let seed = self.seed ^ self.now_ns();
                let network = Phantom::new(&devices[number], self.target.address, count, seed).map_err(why)?;
                Thread::new(self, number, network).run().map_err(why)
            }
        }
    }

    /// The pulse that was ordered last.
    pub(crate) fn order(&self) -> Pulse {
        lock(&self.pulse).clone()
    }

    /// Shows what thread `number` has done.
    pub(crate) fn show(&self, number: usize, board: &Board) {
        lock(&self.boards[number]).clone_from(board);
    }

    /// How many of the connections the ramp lets begin now, at most `most`.
    pub(crate) fn take_births(&self, most: usize) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "saturates, which is what is wanted")]
        let due = if self.ramp_per_s > 0.0 { (self.now_ns() as f64 / 1e9 * self.ramp_per_s) as usize } else { usize::MAX };
        let taken = |begun: usize| Some(begun + due.saturating_sub(begun).min(most));
        let before = self.begun.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken);
        let before = before.expect("an update that never declines");
        due.saturating_sub(before).min(most)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connections under way if nothing else is said.
pub const OPENING_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// The ramp lets begin what is due, once, whoever asks.
    #[test]
    fn the_ramp_is_shared() {
        let target = Target::parse("ws://127.0.0.1:1/ws").unwrap();
        let mut swarm = Swarm::new(target, None, String::new(), 100, 4);
        assert_eq!((swarm.take_births(7), swarm.take_births(9)), (7, 9));
        swarm.ramp_per_s = 1e-9;
        assert_eq!(swarm.take_births(5), 0);
    }
}
