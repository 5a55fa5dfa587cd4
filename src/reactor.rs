//! One thread per core: the phases of a turn and their budgets.
//!
//! ```text
//!  ┌► events (driver.turn: bytes, sends, accepts) ─► mail ─► timers ─► flush ─► commands ─► publish counters ─► wait ┐
//!  └────────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A panic in the code of one connection ends that connection alone: where it is caught, `shard/guard.rs` says. Here it is logged, and so many
//! within a minute end the process. Beside that one the product catches panics around one token, in `auth`. Any other ends the process.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::address::Shown;
use crate::clock::{Clock, Moment};
use crate::conn::carry::Stashes;
use crate::conn::send_queue::Batch;
use crate::ids::{ConnectionId, ReactorId};
use crate::io::driver::{Backlog, Door, Driver, Flow, Piece, Sent, Sink};
use crate::io::socket::Socket;
use crate::io::uring::Uring;
use crate::io::wake::Waker;
use crate::limits;
use crate::mail::{Control, Court, Group, Judge, Peer, Report, Submit};
use crate::mailbox::{Credit, Gathering, Inbox, LaneSender, SpareSender};
use crate::observe::counters::ReactorBlock;
use crate::observe::histogram::{PARSE_SAMPLED_EVERY, ReactorHistograms};
use crate::observe::pressure::Pressure;
use crate::observe::trace;
use crate::shard::{Arrival, Command, Outlet, Panicked, Shard};

use self::steering::Steering;

pub mod steering;

/// What a reactor is made of; built by the gateway, taken to the reactor's own thread.
pub struct Parts {
    /// Which core.
    pub id: ReactorId,
    /// All the mail it gets.
    pub inbox: Inbox,
    /// Ends its wait.
    pub waker: Waker,
    /// Where its mail goes.
    pub outbox: Outbox,
    /// The clock all threads share.
    pub clock: Clock,
    /// Where its counters are published.
    pub block: Arc<ReactorBlock>,
    /// Where its histograms are published.
    pub histograms: ReactorHistograms,
    /// Who hears that it is ready, drained or broken.
    pub reports: std::sync::mpsc::Sender<Report>,
    /// Connections that fit its own descriptor table; `None`: it shares one.
    pub table: Option<usize>,
    /// Which reactors get newcomers; `None`: the kernel spreads them.
    pub steering: Option<Arc<Steering>>,
    /// How short memory is.
    pub pressure: Arc<Pressure>,
}

/// The lanes out of one reactor.
pub struct Outbox {
    /// To the store thread, which is told when the events of a turn are done, and before the reactor waits.
    pub submit: Gathering<Submit>,
    /// Bytes that bodies on their way to the store may hold.
    pub credit: Credit,
    /// To every reactor, by number.
    pub peers: Vec<LaneSender<Peer>>,
    /// Emptied groups, back to the store thread.
    pub spare_groups: SpareSender<Group>,
    /// To the threads that judge tokens by public keys, if there are any.
    pub judges: Option<LaneSender<Judge>>,
    /// Likewise to those that ask the webhook.
    pub hooks: Option<LaneSender<Judge>>,
}

impl Outlet for Outbox {
    fn submit(&mut self, mail: Submit) -> Result<(), Submit> {
        let share = match &mail {
            _ if mail.is_shed_first() => self.submit.bound() / 2,
            Submit::Send(_) => self.submit.bound() - self.submit.bound() / 8,
            _ => self.submit.bound(),
        };
        if share < self.submit.bound() && self.submit.len() > share {
            return Err(mail);
        }
        let bytes = mail.body_bytes();
        if bytes > 0 && !self.credit.take(bytes) {
            return Err(mail);
        }
        self.submit.try_send(mail).inspect_err(|_| self.credit.give(bytes))
    }

    fn peer(&mut self, to: ReactorId, mail: Peer) -> Result<(), Peer> {
        self.peers[usize::from(to.0)].try_send(mail)
    }

    fn judge(&mut self, mail: Judge) -> Result<(), Judge> {
        let lane = match mail.court {
            Court::Keys => &self.judges,
            Court::Webhook => &self.hooks,
        };
        match lane {
            Some(lane) => lane.try_send(mail),
            None => Err(mail),
        }
    }
}

/// One reactor: a shard joined to a driver.
pub struct Reactor<D: Driver> {
    driver: D,
    hands: Hands,
    inbox: Inbox,
    waker: Waker,
    reports: std::sync::mpsc::Sender<Report>,
    table: Option<Table>,
    steering: Option<Arc<Steering>>,
    block: Arc<ReactorBlock>,
}

impl<D: Driver> Reactor<D> {
    /// Joins the parts. The driver has been made on this thread.
    #[must_use]
    pub fn new(driver: D, mut shard: Shard, stashes: Stashes, parts: Parts) -> Self {
        shard.catch_panics();
        let hands = Hands {
            now: parts.clock.now(),
            trimmed: parts.clock.now(),
            clock: parts.clock,
            shard,
            pressure: parts.pressure,
            stashes,
            outbox: parts.outbox,
            batch: Batch::default(),
            id: parts.id,
            panics: Panics::default(),
            accept_error_logged: None,
            has_slept: false,
            is_turning_away: false,
            histograms: parts.histograms,
            lends_count: 0,
            committed: Vec::new(),
        };
        Self {
            driver,
            hands,
            inbox: parts.inbox,
            waker: parts.waker,
            reports: parts.reports,
            table: parts.table.map(Table::new),
            steering: parts.steering,
            block: parts.block,
        }
    }

    /// Turns until drained. Consumes the thread.
    ///
    /// # Errors
    /// When the driver cannot go on.
    pub fn run(mut self) -> io::Result<()> {
        if let Some(steering) = &self.steering {
            steering.listens(usize::from(self.hands.id.0), |to| self.driver.steer(to));
        }
        let _ = self.reports.send(Report::Ready { reactor: self.hands.id });
        let mut busy = false;
        loop {
            let max_wait = self.max_wait(busy);
            self.hands.has_slept = !max_wait.is_zero();
            self.hands.feel_pressure();
            self.admit();
            let turned = self.driver.turn(max_wait, &mut self.hands);
            self.waker.awake();
            turned?;
            self.hands.outbox.submit.tell();
            let begun = self.hands.tell_time();
            let more_mail = self.take_mail();
            self.hands.shake_hands();
            self.hands.shard.handle_time(self.hands.now, &mut self.hands.outbox);
            let owed = self.shed();
            self.hands.outbox.submit.tell();
            self.hands.flush(&mut self.driver);
            self.hands.trim();
            busy = more_mail || self.hands.shard.is_busy();
            self.hands.tell_panics();
            self.keep_room();
            self.publish(begun);
            if owed > 0 {
                self.hands.pressure.paid(usize::from(self.hands.id.0));
            }
            if self.hands.shard.is_drained() {
                let _ = self.reports.send(Report::Drained { reactor: self.hands.id });
                return Ok(());
            }
        }
    }

    /// Has newcomers steered elsewhere while its own table is filled well, and again to it when there is room. Where nothing steers them it
    /// leaves the group of listeners when the table is nearly full, and comes back.
    fn keep_room(&mut self) {
        let Some(table) = &mut self.table else { return };
        if let Some(steering) = self.steering.as_ref().filter(|steering| steering.is_on()) {
            let mut connections = self.hands.shard.connections_count();
            if table.is_filling(connections) {
                // Who waits in the queue is on the way into this table already.
                connections += self.driver.backlog().map_or(0, |backlog| backlog.waiting as usize);
            }
            if let Some(has_room) = table.judge_steering(connections) {
                steering.report(usize::from(self.hands.id.0), has_room, |to| self.driver.steer(to));
            }
            return;
        }
        if let Some(listen) = table.judge(self.hands.shard.connections_count())
            && let Err(error) = self.driver.listen(listen)
        {
            tracing::warn!(reactor = self.hands.id.0, listen, %error, "cannot change whether newcomers come here");
        }
    }

    /// Gives up memory that is asked for, and returns how much that was.
    fn shed(&mut self) -> u64 {
        let Self { driver, hands, .. } = self;
        let owed = hands.pressure.owed(usize::from(hands.id.0));
        hands.shard.shed(hands.now, owed, |id| driver.peer_address(id));
        owed
    }

    /// How long to wait: not at all while there is work, and not past the next tick.
    fn max_wait(&self, busy: bool) -> Duration {
        let inbox = &self.inbox;
        if busy || !self.waker.may_sleep(|| inbox.is_empty()) {
            return Duration::ZERO;
        }
        Duration::from_millis(self.hands.shard.wait_ms_max())
    }

    /// Decides whether this turn accepts: newcomers, or only to turn them away.
    fn admit(&mut self) {
        let Self { driver, hands, .. } = self;
        hands.is_turning_away = false;
        let mut accepts = hands.shard.admits(hands.now);
        if !accepts {
            hands.shard.counters.accepts_paused_count += 1;
            let must = hands.shard.is_short() || driver.backlog().is_some_and(Backlog::is_half_full);
            hands.is_turning_away = must && hands.shard.may_turn_away(hands.now);
            accepts = hands.is_turning_away;
        }
        driver.accept(accepts);
    }

    /// Takes at most [`limits::MAIL_PER_TURN_MAX`] mails; `true` if there are more.
    fn take_mail(&mut self) -> bool {
        let Self { hands, inbox, driver, .. } = self;
        let now = hands.now;
        let counters = &mut hands.shard.counters;
        counters.group_lane_open = inbox.group.len() as u64;
        counters.peer_lane_open = inbox.peer.len() as u64;
        counters.page_lane_open = inbox.page.len() as u64;
        let mut budget = limits::MAIL_PER_TURN_MAX;
        while budget > 0
            && let Some(control) = inbox.control.try_recv()
        {
            budget -= 1;
            match control {
                Control::Drain { close_code, window_ms } => {
                    driver.accept(false);
                    hands.shard.handle_drain(now, close_code, window_ms);
                }
                Control::Inspect { sessions, reply } => {
                    let mut seen: Vec<_> = sessions.iter().map(|session| hands.shard.inspect(*session)).collect();
                    for session in seen.iter_mut().flatten() {
                        session.address = session.address.or_else(|| driver.peer_address(session.connection));
                    }
                    // Whoever asked may have given up.
                    let _ = reply.try_send(seen);
                }
                Control::Kick { sessions, reply } => {
                    let closed = sessions.iter().filter(|session| hands.shard.kick(now, **session)).count();
                    let _ = reply.try_send(u32::try_from(closed).unwrap_or(u32::MAX));
                }
                Control::Keys(keys) => hands.shard.set_keys(keys),
                Control::Bounds(bounds) => hands.shard.set_bounds(bounds),
                Control::Snapshot => {}
            }
        }
        while budget > 0
            && let Some(group) = inbox.group.try_recv()
        {
            budget -= 1;
            let queued = hands.shard.counters.frames_sent_count;
            hands.shard.handle_group(now, &group, &mut hands.outbox);
            let frames = hands.shard.counters.frames_sent_count - queued;
            budget = budget.saturating_sub(usize::try_from(frames / FRAMES_PER_MAIL).unwrap_or(usize::MAX));
            if let Some(committed) = group.committed {
                hands.committed.push(committed);
                hands.histograms.delivered(hands.clock.now().since(committed));
            }
            if let Some(spare) = group.emptied() {
                hands.outbox.spare_groups.give(spare);
            }
            hands.flush_if_long(driver);
        }
        while budget > 0
            && let Some(mail) = inbox.peer.try_recv()
        {
            budget -= 1;
            hands.shard.handle_peer(now, mail);
        }
        while budget > 0
            && let Some(page) = inbox.page.try_recv()
        {
            budget -= 1;
            hands.shard.handle_page(now, page, &mut hands.outbox);
        }
        while budget > 0
            && let Some(judged) = inbox.judged.try_recv()
        {
            budget -= 1;
            hands.shard.handle_judged(now, judged, &mut hands.outbox);
        }
        budget == 0
    }

    fn publish(&mut self, begun: Moment) {
        let hands = &mut self.hands;
        let ended = hands.clock.now();
        let worked = ended.since(begun);
        let counters = &mut hands.shard.counters;
        counters.turns_count += 1;
        counters.turns_over_5ms_count += u64::from(worked > TURN_LONG);
        if worked > TURN_STALLED {
            counters.turns_over_50ms_count += 1;
            tracing::warn!(reactor = hands.id.0, worked_ms = worked.as_millis(), "a turn took too long");
        }
        let driver = self.driver.counters();
        counters.driver_turns_count = driver.turns_count;
        counters.driver_system_calls_count = driver.system_calls_count;
        counters.driver_stale_events_count = driver.stale_events_count;
        counters.driver_budget_exhausted_count = driver.budget_exhausted_count;
        counters.driver_accept_errors_count = driver.accept_errors_count;
        counters.driver_uring = u64::from(D::NAME == Uring::NAME);
        counters.driver_buffers_empty_count = driver.buffers_empty_count;
        counters.driver_overflows_count = driver.overflows_count;
        counters.driver_promotions_count = driver.promotions_count;
        counters.driver_parks_count = driver.parks_count;
        counters.driver_leaked_slots_count = driver.leaked_slots_count;
        let (connections, sessions) = (hands.shard.connections_count() as u64, hands.shard.sessions_count() as u64);
        let handshakes = u64::from(hands.shard.handshakes_open());
        let waiting = hands.shard.handshakes_waiting() as u64;
        let (queued, stashed) = (hands.shard.queued_bytes(), hands.stashes.used_bytes() as u64);
        let (detached, held) = (hands.shard.detached_count() as u64, hands.shard.held_bytes());
        let arena_chunks = hands.shard.arena_chunks_count();
        let memory = hands.shard.memory_bytes() + stashed + hands.stashes.free_bytes() as u64 + driver.sending_bytes;
        let level = hands.shard.pressure() as u64;
        let counters = &mut hands.shard.counters;
        counters.connections_open = connections;
        counters.sessions_open = sessions;
        counters.handshakes_open = handshakes;
        counters.tls_waiting_open = waiting;
        counters.queued_bytes = queued;
        counters.sessions_detached_open = detached;
        counters.held_bytes = held;
        counters.memory_bytes = memory;
        counters.pressure_level = level;
        counters.stash_bytes = stashed;
        counters.arena_chunks_count = arena_chunks;
        self.block.publish(counters);
        for step in hands.shard.steps.drain() {
            trace::log(&format!("reactor-{}", hands.id.0), &step);
        }
        let histograms = &mut hands.histograms;
        hands.shard.latencies.upgraded.drain(..).for_each(|latency| histograms.upgraded(latency));
        hands.shard.latencies.acknowledged.drain(..).for_each(|latency| histograms.acknowledged(latency));
        hands.committed.drain(..).for_each(|committed| histograms.written(ended.since(committed)));
        histograms.publish(ended);
    }
}

/// A descriptor table of one reactor's own.
#[derive(Debug)]
struct Table {
    full: usize,
    room: usize,
    is_full: bool,
    /// When newcomers are steered elsewhere, and here again.
    passes_on: usize,
    takes: usize,
    is_passed_by: bool,
}

impl Table {
    fn new(connections: usize) -> Self {
        let part = |percent: u64| connections * usize::try_from(percent).expect("at most 100") / 100;
        Self {
            full: part(limits::TABLE_FULL_PERCENT).max(1),
            room: part(limits::TABLE_ROOM_PERCENT),
            is_full: false,
            passes_on: part(limits::TABLE_PASSES_ON_PERCENT).max(1),
            takes: part(limits::TABLE_TAKES_PERCENT),
            is_passed_by: false,
        }
    }

    /// Whether it matters how many wait: asking costs a system call.
    fn is_filling(&self, connections: usize) -> bool {
        connections >= self.passes_on / 2
    }

    /// Whether the reactor has room for newcomers while they are steered, when that changes. `connections` with those on their way.
    fn judge_steering(&mut self, connections: usize) -> Option<bool> {
        let was_passed_by = self.is_passed_by;
        self.is_passed_by = connections >= if was_passed_by { self.takes + 1 } else { self.passes_on };
        (self.is_passed_by != was_passed_by).then_some(was_passed_by)
    }

    /// Whether the reactor is to listen, when that changes.
    fn judge(&mut self, connections: usize) -> Option<bool> {
        let was_full = self.is_full;
        self.is_full = connections >= if was_full { self.room + 1 } else { self.full };
        (self.is_full != was_full).then_some(was_full)
    }
}

/// The part of a turn that TLS handshakes may have: so many steps, and so much time until the last of them begins.
struct Slice {
    begun: Moment,
    steps: usize,
}

impl Slice {
    /// Whether one more step may begin; it is counted.
    fn has_room(&mut self, now: Moment) -> bool {
        let has_room = self.steps < limits::TLS_STEPS_PER_TURN_MAX && now.since(self.begun) < limits::TLS_STEPS_TIME_MAX;
        self.steps += 1;
        has_room
    }
}

/// What the driver talks to: everything of a reactor but the driver itself.
struct Hands {
    id: ReactorId,
    clock: Clock,
    now: Moment,
    /// When the pools were last trimmed.
    trimmed: Moment,
    shard: Shard,
    pressure: Arc<Pressure>,
    stashes: Stashes,
    outbox: Outbox,
    batch: Batch,
    panics: Panics,
    accept_error_logged: Option<Moment>,
    /// The driver may sleep in this turn, so the first event must read the clock: the time of the last turn would be counted as
    /// latency of this one.
    has_slept: bool,
    /// This turn accepts only to answer 503.
    is_turning_away: bool,
    histograms: ReactorHistograms,
    /// Lends of bytes; one in [`PARSE_SAMPLED_EVERY`] is measured.
    lends_count: u32,
    /// When the groups of this turn were committed.
    committed: Vec<Moment>,
}

impl Hands {
    fn tell_time(&mut self) -> Moment {
        self.now = self.clock.now();
        self.has_slept = false;
        self.now
    }

    /// An event: the first one after a wait reads the clock and how short memory is, the others of the turn count as simultaneous.
    fn wake(&mut self) {
        if self.has_slept {
            self.tell_time();
            self.feel_pressure();
        }
    }

    fn feel_pressure(&mut self) {
        self.shard.set_pressure(self.pressure.level());
    }

    /// Gives back what the pools have not needed for a while.
    fn trim(&mut self) {
        if self.now.since(self.trimmed) >= limits::TRIM_EVERY {
            self.trimmed = self.now;
            self.shard.trim();
            self.stashes.trim();
        }
    }

    /// Goes on with the TLS handshakes that have waited longest, for a slice of the turn.
    fn shake_hands(&mut self) {
        if self.shard.handshakes_waiting() == 0 {
            return;
        }
        let mut slice = Slice { begun: self.clock.now(), steps: 0 };
        while slice.has_room(self.clock.now())
            && let Some(id) = self.shard.poll_handshake()
        {
            self.shard.handle_handshake(self.now, id, &mut self.stashes, &mut self.outbox);
        }
    }

    /// Sends what waits, then does what the shard asked of the driver.
    fn flush<D: Driver>(&mut self, driver: &mut D) {
        self.tell_arrivals(driver);
        // Whoever becomes dirty meanwhile (its budget is spent, or it caught up) is served next turn.
        for _ in 0..self.shard.dirty_count() {
            let Some(id) = self.shard.poll_dirty() else { break };
            self.transmit(driver, id);
        }
        for _ in 0..limits::COMMANDS_PER_FLUSH_MAX {
            let Some(command) = self.shard.poll_command() else { break };
            match command {
                Command::Close(id, how) => driver.close(id, how),
                Command::Pause(id) => driver.pause_recv(id),
                Command::Resume(id) => driver.resume_recv(id),
            }
        }
    }

    /// Holding all sends until the end of a large turn would put server and clients in lock-step.
    fn flush_if_long<D: Driver>(&mut self, driver: &mut D) {
        if self.shard.dirty_count() >= DIRTY_MAX {
            self.flush(driver);
        }
    }

    fn transmit<D: Driver>(&mut self, driver: &mut D, id: ConnectionId) {
        let mut budget = SEND_BYTES_PER_TURN_MAX;
        while self.shard.gather(id, &mut self.batch) {
            let offered = self.batch.bytes();
            let sent = send(driver, id, &self.shard, &self.batch);
            match sent {
                Sent::Done(taken) => {
                    self.shard.handle_taken(id, taken);
                    budget = budget.saturating_sub(taken);
                    if taken < offered {
                        // The kernel is full; offering the rest makes it say "blocked" and promise an edge.
                        continue;
                    }
                    if budget == 0 {
                        return self.shard.handle_writable(id);
                    }
                }
                Sent::Pending | Sent::Blocked => return self.shard.handle_waiting(id),
                Sent::Failed(_) => return self.shard.handle_failed(id),
            }
        }
    }

    /// A line per answered upgrade request, while its connection still has an address.
    fn tell_arrivals<D: Driver>(&mut self, driver: &D) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return self.shard.arrivals.clear();
        }
        let arrivals = std::mem::take(&mut self.shard.arrivals);
        for Arrival { connection, refusal } in &arrivals {
            let address = self.shard.client(*connection).or_else(|| driver.peer_address(*connection)).map(shown);
            let (reactor, slot) = (self.id.0, connection.index);
            match refusal {
                None => tracing::debug!(reactor, slot, address, "upgraded"),
                Some(refusal) => tracing::debug!(reactor, slot, address, refusal = refusal.name(), "upgrade refused"),
            }
        }
    }

    /// A line per panic since the last turn, beside the crash record that each has left. Too many end the process.
    fn tell_panics(&mut self) {
        for Panicked { work, slot } in self.shard.take_panics() {
            tracing::error!(reactor = self.id.0, slot, ?work, "a panic in the code of one connection, which ends");
            if self.panics.too_many(self.now) {
                tracing::error!(reactor = self.id.0, "ten panics within a minute: ending the process");
                std::process::abort();
            }
        }
    }
}

impl<D: Driver> Sink<D> for Hands {
    fn accepted(&mut self, driver: &mut D, socket: Socket, door: Door) {
        self.wake();
        let accepted = self.clock.now();
        let peer = socket.peer_address().ok();
        let Some(id) = self.shard.handle_accept(accepted, peer) else { return };
        if driver.attach(id, socket).is_err() {
            self.shard.handle_closed(id, &mut self.stashes);
            return;
        }
        self.histograms.accepted(self.clock.now().since(accepted));
        if door == DOOR_TLS {
            self.shard.expect_tls(id);
        }
        if self.is_turning_away {
            return self.shard.turn_away_newcomer(id);
        }
        self.shard.judge_newcomer(id, peer);
        if !self.shard.admits(accepted) {
            driver.accept(false);
        }
    }

    fn bytes(&mut self, driver: &mut D, id: ConnectionId, bytes: &mut [u8]) -> Flow {
        // Before, not after: what is said to the driver here must not be undone by the flow returned below.
        self.flush_if_long(driver);
        self.wake();
        self.lends_count = self.lends_count.wrapping_add(1);
        let lent = self.lends_count.is_multiple_of(PARSE_SAMPLED_EVERY).then(|| self.clock.now());
        let messages_count = self.shard.counters.messages_received_count;
        let flow = self.shard.handle_bytes(self.now, id, bytes, &mut self.stashes, &mut self.outbox);
        if let Some(lent) = lent.filter(|_| self.shard.counters.messages_received_count > messages_count) {
            self.histograms.parsed(self.clock.now().since(lent));
        }
        flow
    }

    fn eof(&mut self, _driver: &mut D, id: ConnectionId) {
        self.shard.handle_eof(id);
    }

    fn sent(&mut self, driver: &mut D, id: ConnectionId, result: io::Result<usize>) {
        match result {
            Ok(taken) => {
                self.shard.handle_taken(id, taken);
                self.transmit(driver, id);
            }
            Err(_) => self.shard.handle_failed(id),
        }
    }

    fn writable(&mut self, _driver: &mut D, id: ConnectionId) {
        self.shard.handle_writable(id);
    }

    fn failed(&mut self, _driver: &mut D, id: ConnectionId, _error: io::Error) {
        self.shard.handle_failed(id);
    }

    fn closed(&mut self, _driver: &mut D, id: ConnectionId) {
        let address = self.shard.client(id).map(shown);
        if let Some(cause) = self.shard.handle_closed(id, &mut self.stashes) {
            tracing::debug!(reactor = self.id.0, slot = id.index, address, cause = cause.name(), "ended");
        }
    }

    fn accept_failed(&mut self, _driver: &mut D, error: io::Error, retry: Duration) {
        if self.accept_error_logged.is_none_or(|logged| self.now.since(logged) > ACCEPT_LOG_EVERY) {
            self.accept_error_logged = Some(self.now);
            tracing::error!(reactor = self.id.0, %error, retry_ms = retry.as_millis(), "accept failed; raise LimitNOFILE or lower limits.connections");
        }
    }
}

/// The listener for TLS, behind the one without.
const DOOR_TLS: Door = Door(1);

fn shown(address: SocketAddr) -> tracing::field::DisplayValue<Shown> {
    tracing::field::display(Shown(address))
}

/// Offers a batch to the driver.
fn send<D: Driver>(driver: &mut D, id: ConnectionId, shard: &Shard, batch: &Batch) -> Sent {
    let count = batch.segments.len();
    if count == 1 {
        return driver.send(id, &[shard.piece(batch, 0)]);
    }
    let mut pieces = [Piece::Lent(&[]); limits::WRITE_SEGMENTS_MAX];
    for (index, piece) in pieces[..count].iter_mut().enumerate() {
        *piece = shard.piece(batch, index);
    }
    driver.send(id, &pieces[..count])
}

/// Panics of one core within the last minute.
#[derive(Debug, Default)]
struct Panics {
    since: Moment,
    count: u32,
}

impl Panics {
    fn too_many(&mut self, now: Moment) -> bool {
        if now.since(self.since) > Duration::from_secs(60) {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
        self.count >= PANICS_PER_MINUTE_MAX
    }
}

/// Frames that a group may mean without counting as more than one mail.
const FRAMES_PER_MAIL: u64 = limits::GROUP_FRAMES_PER_TURN_MAX / limits::MAIL_PER_TURN_MAX as u64;
/// Connections with output after which a flush comes before the next event.
const DIRTY_MAX: usize = 64;
/// Bytes sent to one connection in one turn; the rest waits for the next turn.
const SEND_BYTES_PER_TURN_MAX: usize = 256 * 1024;
const TURN_LONG: Duration = Duration::from_millis(5);
const TURN_STALLED: Duration = Duration::from_millis(50);
const ACCEPT_LOG_EVERY: Duration = Duration::from_secs(60);
/// As many panics within a minute end the process.
const PANICS_PER_MINUTE_MAX: u32 = 10;

#[cfg(test)]
mod tests;
