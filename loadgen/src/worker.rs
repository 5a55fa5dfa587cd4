//! One thread: many clients on one network, sending on schedule.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate_client::Closed;

use crate::churn::{Departures, Who};
use crate::client::{Client, Hub, Want};
use crate::network::{Ending, Network, Ready};
use crate::notes::Notes;
use crate::pace::{Pace, Schedule, nanos};
use crate::random::Random;
use crate::scenario::{Load, Plan, Tempo};
use crate::stats::{Stats, Window};
use crate::verify::{Ledger, SeatReport};

/// What all workers and whoever directs them share. Everything is a number with one writer or a lock taken four times a second.
#[derive(Debug)]
pub struct Shared {
    /// Times count from here.
    pub origin: Instant,
    /// Of the run.
    pub ledger: Ledger,
    /// Who talks to whom.
    pub plan: Plan,
    /// What is sent.
    pub load: Load,
    /// Names the run in payloads.
    pub run: u64,
    /// The upgrade request.
    pub request: Vec<u8>,
    /// Workers.
    pub workers: usize,
    /// Connections opened per second while ramping up.
    pub ramp_per_s: f64,
    /// When messages leave, of all workers together.
    schedule: Mutex<Schedule>,
    schedule_version: AtomicU64,
    /// Who leaves, in all.
    churn: Mutex<Departures>,
    /// Intended times that are measured.
    window: Mutex<Window>,
    /// Counts the storms that were ordered.
    storms: AtomicU64,
    /// Whether the thread of those whom a storm spares runs before all others of its core.
    pub spared_go_first: AtomicBool,
    /// Devices that only read what was sent before them may begin.
    is_audit: AtomicBool,
    /// Devices wait for nobody any more.
    is_over: AtomicBool,
    boards: Vec<Mutex<Board>>,
}

/// What a worker shows, renewed every [`SHOW_EVERY`].
#[derive(Clone, Default, Debug)]
pub struct Board {
    /// Since the run began, or since it was last emptied for a stage.
    pub stats: Stats,
    /// Clients born.
    pub born: usize,
    /// Clients connected and welcomed.
    pub active: usize,
    /// Messages not acknowledged.
    pub unsent: usize,
    /// Clients that lack something.
    pub incomplete: usize,
    /// The version of the stage these figures belong to.
    pub stage: u64,
    /// When it was renewed.
    pub at_ns: u64,
}

impl Shared {
    /// For a run that has not begun.
    #[must_use]
    pub fn new(
        load: Load,
        plan: Plan,
        request: Vec<u8>,
        workers: usize,
        ramp_per_s: f64,
        run: u64,
        notes: Option<Notes>,
    ) -> Self {
        Self {
            origin: Instant::now(),
            ledger: Ledger::new(plan.conversations.len()).with_notes(notes),
            plan,
            load,
            run,
            request,
            workers,
            ramp_per_s,
            schedule: Mutex::default(),
            schedule_version: AtomicU64::new(0),
            churn: Mutex::default(),
            window: Mutex::default(),
            storms: AtomicU64::new(0),
            spared_go_first: AtomicBool::new(false),
            is_audit: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            boards: (0..workers).map(|_| Mutex::default()).collect(),
        }
    }

    /// Nanoseconds since the run began.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        nanos(self.origin.elapsed())
    }

    /// From now on messages leave on this schedule. Begins a measurement: figures start from nothing.
    pub fn begin(&self, schedule: Schedule, window: Window) {
        *lock(&self.window) = window;
        *lock(&self.schedule) = schedule;
        self.schedule_version.fetch_add(1, Ordering::Release);
    }

    /// No more messages; the figures of the stage go on.
    pub fn stop_sending(&self) {
        *lock(&self.schedule) = Schedule::default();
    }

    /// From now on connections leave so.
    pub fn churn(&self, departures: Departures) {
        *lock(&self.churn) = departures;
    }

    /// Cuts all connections at once, but for those that are spared.
    pub fn storm(&self) {
        self.storms.fetch_add(1, Ordering::Release);
    }

    /// Lets one new device per user read everything from the beginning.
    pub fn audit(&self) {
        self.is_audit.store(true, Ordering::Release);
    }

    /// Ends all workers.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// What all workers show, added up. `None`: some still show an earlier stage.
    #[must_use]
    pub fn board(&self) -> Option<Board> {
        let mut sum = Board { stage: self.schedule_version.load(Ordering::Acquire), ..Board::default() };
        for board in &self.boards {
            let board = lock(board);
            if board.stage != sum.stage {
                return None;
            }
            sum.stats.add(&board.stats);
            sum.born += board.born;
            sum.active += board.active;
            sum.unsent += board.unsent;
            sum.incomplete += board.incomplete;
            sum.at_ns += board.at_ns / self.workers as u64;
        }
        Some(sum)
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Worker<'a, N> {
    number: usize,
    shared: &'a Shared,
    network: N,
    clients: Vec<Client>,
    /// Clients that take part in the load; the others are for the audit.
    regular: usize,
    /// Of these the first, who read as they should, send, and are cut.
    brisk: usize,
    /// Of these the first, whom a storm spares.
    spared: usize,
    born: usize,
    timers: BinaryHeap<Reverse<(u64, u32)>>,
    pace: Pace,
    stage: u64,
    schedule: Schedule,
    churn: Pace,
    departures: Departures,
    /// Whose turn it is to leave.
    leaver: usize,
    storms: u64,
    random: Random,
    stats: Stats,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    trickle_at: u64,
    show_at: u64,
}

impl<'a, N: Network> Worker<'a, N> {
    /// The `number`-th of the workers, with its clients: those of [`Load::part`].
    pub fn new(number: usize, shared: &'a Shared, network: N, clients: Vec<Client>) -> Self {
        Self {
            number,
            shared,
            network,
            regular: clients.iter().filter(|client| (client.index() as usize) < shared.load.connections).count(),
            brisk: clients.iter().take_while(|client| client.tempo() == Tempo::Brisk).count(),
            spared: clients.iter().take_while(|client| (client.index() as usize) < shared.load.spared).count(),
            clients,
            born: 0,
            timers: BinaryHeap::new(),
            pace: Pace::default(),
            stage: 0,
            schedule: Schedule::default(),
            churn: Pace::default(),
            departures: Departures::default(),
            leaver: 0,
            storms: 0,
            random: Random::new(shared.load.seed ^ (number as u64) << 48),
            stats: Stats::default(),
            buffer: vec![0; 64 * 1024],
            scratch: Vec::new(),
            trickle_at: 0,
            show_at: 0,
        }
    }

    /// Works until the run is over; returns what each client sent and holds.
    ///
    /// # Errors
    /// The network is broken.
    pub fn run(mut self) -> Result<Vec<SeatReport>, String> {
        while !self.shared.is_over.load(Ordering::Acquire) {
            self.obey();
            self.bear();
            let busy = self.send_due() | self.cut_due();
            let longest = if busy { Duration::ZERO } else { self.sleep() };
            self.network.wait(longest).map_err(|error| format!("waiting for the network: {error}"))?;
            while let Some(ready) = self.network.next() {
                self.ready(ready);
            }
            self.trickle();
            self.wake_due();
            self.show();
        }
        // Whoever is connected had the time to receive everything.
        Ok(self.clients[..self.born].iter().flat_map(Client::reports).collect())
    }

    fn obey(&mut self) {
        let stage = self.shared.schedule_version.load(Ordering::Acquire);
        let schedule = lock(&self.shared.schedule).clone();
        if self.schedule != schedule || self.stage != stage {
            let turn = self.shared.load.turn(self.number, self.shared.workers);
            self.pace = turn.map_or_else(Pace::default, |(turn, turns)| Pace::new(schedule.clone(), turn, turns));
            self.schedule = schedule;
        }
        if self.stage != stage {
            self.stage = stage;
            self.stats.begin(lock(&self.shared.window).clone());
            self.show_at = 0;
        }
        let churn = *lock(&self.shared.churn);
        if churn != self.departures {
            self.churn = Pace::new(Schedule::steady(churn.per_s, self.shared.now_ns()), self.number, self.shared.workers);
            self.departures = churn;
        }
        let storms = self.shared.storms.load(Ordering::Acquire);
        if storms != self.storms {
            self.storms = storms;
            (self.spared.min(self.born)..self.born).for_each(|at| self.cut(at));
        }
    }

    /// Lets clients begin, as fast as the ramp says.
    fn bear(&mut self) {
        // Workers may have unequal parts, which are full at the same time.
        let share = self.shared.ramp_per_s * self.regular.max(1) as f64 / self.shared.load.connections as f64;
        #[expect(clippy::cast_possible_truncation, reason = "saturates, which is what is wanted")]
        let due = (self.shared.now_ns() as f64 / 1e9 * share) as usize;
        let is_audit = self.shared.is_audit.load(Ordering::Acquire);
        let all = if is_audit { self.clients.len() } else { self.regular };
        let until = due.min(all).min(self.born + BIRTHS_PER_TURN_MAX);
        while self.born < until {
            self.born += 1;
            self.turn(self.born - 1);
        }
    }

    fn send_due(&mut self) -> bool {
        for _ in 0..SENDS_PER_TURN_MAX {
            let Some(intended_ns) = self.pace.due(self.shared.now_ns()) else { return false };
            let all = if self.shared.load.spared > 0 { self.spared } else { self.brisk };
            let senders = self.born.min(self.regular).min(all);
            if senders == 0 {
                continue;
            }
            let at = self.random.below(senders);
            let user = self.user(at);
            let Load { group_share, payload_bytes: (least, most), .. } = self.shared.load;
            let conv = self.shared.plan.choose(user, group_share, &mut self.random);
            let bytes = least + self.random.below(most - least + 1);
            self.with(at, |client, hub| client.submit(hub, conv, intended_ns, bytes));
            self.turn(at);
        }
        true
    }

    fn cut_due(&mut self) -> bool {
        for _ in 0..SENDS_PER_TURN_MAX {
            if self.churn.due(self.shared.now_ns()).is_none() {
                return false;
            }
            let brisk = self.born.min(self.brisk);
            if brisk == 0 {
                continue;
            }
            let at = match self.departures.who {
                Who::Anyone => self.random.below(brisk),
                Who::NextInTurn => (self.leaver + 1) % brisk,
            };
            self.leaver = at;
            if self.random.unit() < self.departures.polite {
                self.leave(at);
            } else {
                self.cut(at);
            }
        }
        true
    }

    /// Pulls the cable of a client.
    fn cut(&mut self, at: usize) {
        if self.clients[at].is_active() {
            self.stats.counts.cut_on_purpose += 1;
            self.drop_link(at, Closed::default(), Ending::Reset);
        }
    }

    /// Closes a client's connection as the protocol has it.
    fn leave(&mut self, at: usize) {
        if self.clients[at].is_active() {
            self.stats.counts.left += 1;
            self.with(at, Client::leave);
            self.write(at);
            // What could not be written ended it already.
            if self.clients[at].is_active() {
                self.drop_link(at, Closed::default(), Ending::Orderly);
            }
        }
    }

    fn ready(&mut self, ready: Ready) {
        let at = ready.index as usize;
        if ready.writable && self.clients[at].is_opening() {
            match self.network.stands(ready.index) {
                Ok(()) => self.with(at, Client::opened),
                // Some systems call a socket writable before it stands.
                Err(error) if error.kind() == ErrorKind::NotConnected => return,
                Err(_) => return self.cut_off(at),
            }
        }
        // A slow one that is welcomed reads when it is its time.
        let is_left = self.clients[at].tempo() != Tempo::Brisk && self.clients[at].is_active();
        if ready.readable && !self.clients[at].is_opening() && !is_left {
            self.read(at, READS_PER_TURN_MAX, self.buffer.len());
        }
        if ready.readable || ready.writable {
            self.turn(at);
        }
    }

    /// Lets those who read slowly take a little.
    fn trickle(&mut self) {
        let now_ns = self.shared.now_ns();
        if now_ns < self.trickle_at {
            return;
        }
        self.trickle_at = now_ns + nanos(TRICKLE_EVERY);
        for at in self.brisk..self.regular.min(self.born) {
            if self.clients[at].tempo() == Tempo::Slow && self.clients[at].is_active() {
                self.read(at, 1, TRICKLE_BYTES);
                self.turn(at);
            }
        }
    }

    fn read(&mut self, at: usize, reads: usize, most_bytes: usize) {
        let index = u32::try_from(at).expect("few clients");
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..reads {
            match self.network.read(index, &mut buffer[..most_bytes]) {
                Ok(0) => {
                    self.cut_off(at);
                    break;
                }
                Ok(count) => {
                    if let Err(closed) = self.with(at, |client, hub| client.received(hub, &buffer[..count])) {
                        self.drop_link(at, closed, Ending::Orderly);
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    // What TLS says, such as that nobody trusts the certificate.
                    if error.kind() == ErrorKind::Other {
                        *self.stats.causes.entry(error.to_string()).or_default() += 1;
                    }
                    self.cut_off(at);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    /// Does what a client wants, writes what it says, and notes when it wants to be looked after.
    fn turn(&mut self, at: usize) {
        if self.clients[at].is_deaf() {
            return self.write(at);
        }
        let index = u32::try_from(at).expect("few clients");
        let want = self.with(at, Client::turn);
        self.write(at);
        match want {
            Want::Nothing => {}
            Want::Connect => {
                if self.network.connect(index).is_err() {
                    self.cut_off(at);
                }
            }
            Want::Close => self.drop_link(at, Closed::default(), Ending::Orderly),
        }
        // What is overdue now is blocked by something that will turn the client anyway.
        let soonest = self.shared.now_ns() + nanos(WAKE_GRAIN);
        let client = &mut self.clients[at];
        if let Some(wake_ns) = client.next_wake().map(|at| at.max(soonest))
            && client.wake_ns.is_none_or(|known| wake_ns < known)
        {
            client.wake_ns = Some(wake_ns);
            self.timers.push(Reverse((wake_ns, index)));
        }
    }

    fn write(&mut self, at: usize) {
        let index = u32::try_from(at).expect("few clients");
        let client = &mut self.clients[at];
        if client.is_opening() {
            return;
        }
        let mut written = 0;
        while written < client.out.len() {
            match self.network.write(index, &client.out[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.cut_off(at),
            }
        }
        if written == client.out.len() {
            client.out = Vec::new();
        } else {
            client.out.drain(..written);
        }
    }

    fn cut_off(&mut self, at: usize) {
        self.stats.counts.cut_off += 1;
        self.drop_link(at, Closed::default(), Ending::Orderly);
    }

    fn drop_link(&mut self, at: usize, closed: Closed, ending: Ending) {
        self.network.close(u32::try_from(at).expect("few clients"), ending);
        self.with(at, |client, hub| client.ended(hub, closed));
        let client = &mut self.clients[at];
        client.wake_ns = client.next_wake();
        if let Some(wake_ns) = client.wake_ns {
            self.timers.push(Reverse((wake_ns, u32::try_from(at).expect("few clients"))));
        }
    }

    fn wake_due(&mut self) {
        let now_ns = self.shared.now_ns();
        for _ in 0..WAKES_PER_TURN_MAX {
            let Some(&Reverse((wake_ns, index))) = self.timers.peek() else { return };
            if wake_ns > now_ns {
                return;
            }
            self.timers.pop();
            let client = &mut self.clients[index as usize];
            if client.wake_ns == Some(wake_ns) {
                client.wake_ns = None;
                self.turn(index as usize);
            }
        }
    }

    fn show(&mut self) {
        let now_ns = self.shared.now_ns();
        if now_ns < self.show_at {
            return;
        }
        self.show_at = now_ns + nanos(SHOW_EVERY);
        let clients = &self.clients[..self.born];
        let board = Board {
            stats: self.stats.clone(),
            born: self.born,
            active: clients.iter().filter(|client| client.is_active()).count(),
            unsent: clients.iter().map(Client::unsent_count).sum(),
            incomplete: clients.iter().filter(|client| !client.is_complete(&self.shared.ledger)).count(),
            stage: self.stage,
            at_ns: now_ns,
        };
        *lock(&self.shared.boards[self.number]) = board;
    }

    fn sleep(&self) -> Duration {
        let now_ns = self.shared.now_ns();
        let timer = self.timers.peek().map(|Reverse((wake_ns, _))| *wake_ns);
        let times = [timer, self.pace.next(), self.churn.next()];
        let next = times.into_iter().flatten().min().unwrap_or(u64::MAX);
        Duration::from_nanos(next.saturating_sub(now_ns)).min(SLEEP_MAX)
    }

    /// The user of a client of this worker.
    fn user(&self, at: usize) -> u32 {
        self.clients[at].index() % u32::try_from(self.shared.load.users).expect("fewer users than 2^32")
    }

    fn with<R>(&mut self, at: usize, act: impl FnOnce(&mut Client, &mut Hub<'_>) -> R) -> R {
        let mut hub = Hub {
            now_ns: self.shared.now_ns(),
            ledger: &self.shared.ledger,
            stats: &mut self.stats,
            request: &self.shared.request,
            scratch: &mut self.scratch,
            run: self.shared.run,
        };
        act(&mut self.clients[at], &mut hub)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const SENDS_PER_TURN_MAX: usize = 64;
const BIRTHS_PER_TURN_MAX: usize = 32;
const READS_PER_TURN_MAX: usize = 16;
const WAKES_PER_TURN_MAX: usize = 256;
/// What a slow one reads, and how often: 10 KiB/s.
const TRICKLE_BYTES: usize = 1024;
const TRICKLE_EVERY: Duration = Duration::from_millis(100);
const WAKE_GRAIN: Duration = Duration::from_millis(1);
/// How soon an order is obeyed at the latest.
const SLEEP_MAX: Duration = Duration::from_millis(50);
const SHOW_EVERY: Duration = Duration::from_millis(250);
