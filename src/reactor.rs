//! One thread per core: the phases of a turn and their budgets.
//!
//! ```text
//!  ┌► events (driver.turn: bytes, sends, accepts) ─► mail ─► timers ─► flush ─► commands ─► publish counters ─► wait ┐
//!  └────────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The one `catch_unwind` of the product stands here, around the handling of one connection's bytes: that connection is closed with
//! 1011, a crash record is logged, the others go on. A panic in any other phase ends the process.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Moment};
use crate::conn::carry::Stashes;
use crate::conn::send_queue::Batch;
use crate::ids::{ConnectionId, ReactorId};
use crate::io::driver::{Driver, Flow, Sent, Sink};
use crate::io::socket::Socket;
use crate::io::wake::Waker;
use crate::limits;
use crate::mail::{Control, Peer, Report, Submit};
use crate::mailbox::{Credit, Inbox, LaneSender};
use crate::observe::counters::ReactorBlock;
use crate::observe::histogram::ReactorHistograms;
use crate::shard::{Command, Outlet, Shard};

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
}

/// The lanes out of one reactor.
pub struct Outbox {
    /// To the store thread.
    pub submit: LaneSender<Submit>,
    /// Bytes that bodies on their way to the store may hold.
    pub credit: Credit,
    /// To every reactor, by number.
    pub peers: Vec<LaneSender<Peer>>,
}

impl Outlet for Outbox {
    fn submit(&mut self, mail: Submit) -> Result<(), Submit> {
        let bytes = mail.body_bytes();
        if bytes > 0 && !self.credit.take(bytes) {
            return Err(mail);
        }
        self.submit.try_send(mail).inspect_err(|_| self.credit.give(bytes))
    }

    fn peer(&mut self, to: ReactorId, mail: Peer) -> Result<(), Peer> {
        self.peers[usize::from(to.0)].try_send(mail)
    }
}

/// One reactor: a shard joined to a driver.
pub struct Reactor<D: Driver> {
    driver: D,
    hands: Hands,
    inbox: Inbox,
    waker: Waker,
    reports: std::sync::mpsc::Sender<Report>,
    block: Arc<ReactorBlock>,
    histograms: ReactorHistograms,
}

impl<D: Driver> Reactor<D> {
    /// Joins the parts. The driver has been made on this thread.
    #[must_use]
    pub fn new(driver: D, shard: Shard, stash_bytes_max: usize, parts: Parts) -> Self {
        let hands = Hands {
            now: parts.clock.now(),
            clock: parts.clock,
            shard,
            stashes: Stashes::new(stash_bytes_max),
            outbox: parts.outbox,
            batch: Batch::default(),
            id: parts.id,
            panics: Panics::default(),
            accept_error_logged: None,
        };
        Self {
            driver,
            hands,
            inbox: parts.inbox,
            waker: parts.waker,
            reports: parts.reports,
            block: parts.block,
            histograms: parts.histograms,
        }
    }

    /// Turns until drained. Consumes the thread.
    ///
    /// # Errors
    /// When the driver cannot go on.
    pub fn run(mut self) -> io::Result<()> {
        let _ = self.reports.send(Report::Ready { reactor: self.hands.id });
        let mut busy = false;
        loop {
            let max_wait = self.max_wait(busy);
            let turned = self.driver.turn(max_wait, &mut self.hands);
            self.waker.awake();
            turned?;
            let begun = self.hands.tell_time();
            let more_mail = self.take_mail();
            self.hands.shard.handle_time(self.hands.now, &mut self.hands.outbox);
            self.hands.flush(&mut self.driver);
            busy = more_mail || self.hands.shard.is_busy();
            self.publish(begun);
            if self.hands.shard.is_drained() {
                let _ = self.reports.send(Report::Drained { reactor: self.hands.id });
                return Ok(());
            }
        }
    }

    /// How long to wait: not at all while there is work, and not past the next tick.
    fn max_wait(&self, busy: bool) -> Duration {
        let inbox = &self.inbox;
        if busy || !self.waker.may_sleep(|| inbox.is_empty()) {
            return Duration::ZERO;
        }
        Duration::from_millis(self.hands.shard.wait_ms_max())
    }

    /// Takes at most [`limits::MAIL_PER_TURN_MAX`] mails; `true` if there are more.
    fn take_mail(&mut self) -> bool {
        let Self { hands, inbox, driver, .. } = self;
        let now = hands.now;
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
                Control::Snapshot => {}
            }
        }
        while budget > 0
            && let Some(group) = inbox.group.try_recv()
        {
            budget -= 1;
            hands.shard.handle_group(now, &group, &mut hands.outbox);
            hands.flush_if_long(driver);
        }
        while budget > 0
            && let Some(mail) = inbox.peer.try_recv()
        {
            budget -= 1;
            hands.shard.handle_peer(now, &mail);
        }
        while budget > 0
            && let Some(page) = inbox.page.try_recv()
        {
            budget -= 1;
            hands.shard.handle_page(now, page, &mut hands.outbox);
        }
        budget == 0
    }

    fn publish(&mut self, begun: Moment) {
        let hands = &mut self.hands;
        let worked = hands.clock.now().since(begun);
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
        let (connections, sessions) = (hands.shard.connections_count() as u64, hands.shard.sessions_count() as u64);
        let (queued, stashed) = (hands.shard.queued_bytes(), hands.stashes.used_bytes() as u64);
        let arena_chunks = hands.shard.arena_chunks_count();
        let counters = &mut hands.shard.counters;
        counters.connections_open = connections;
        counters.sessions_open = sessions;
        counters.queued_bytes = queued;
        counters.stash_bytes = stashed;
        counters.arena_chunks_count = arena_chunks;
        self.block.publish(counters);
        for latency in hands.shard.latencies.acknowledged.drain(..) {
            self.histograms.acknowledged(latency);
        }
        for latency in hands.shard.latencies.delivered.drain(..) {
            self.histograms.delivered(latency);
        }
        self.histograms.publish(hands.now);
    }
}

/// What the driver talks to: everything of a reactor but the driver itself.
struct Hands {
    id: ReactorId,
    clock: Clock,
    now: Moment,
    shard: Shard,
    stashes: Stashes,
    outbox: Outbox,
    batch: Batch,
    panics: Panics,
    accept_error_logged: Option<Moment>,
}

impl Hands {
    fn tell_time(&mut self) -> Moment {
        self.now = self.clock.now();
        self.now
    }

    /// Sends what waits, then does what the shard asked of the driver.
    fn flush<D: Driver>(&mut self, driver: &mut D) {
        // Whoever becomes dirty meanwhile (its budget is spent, or it caught up) is served next turn.
        for _ in 0..self.shard.dirty_count() {
            let Some(id) = self.shard.poll_dirty() else { break };
            self.transmit(driver, id);
        }
        while let Some(command) = self.shard.poll_command() {
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

    fn log_panic(&mut self, id: ConnectionId) {
        tracing::error!(
            reactor = self.id.0,
            slot = id.index,
            "a panic while handling one connection's bytes; it is closed with 1011"
        );
        self.shard.counters.panics_count += 1;
        if self.panics.too_many(self.now) {
            tracing::error!(reactor = self.id.0, "ten panics within a minute: ending the process");
            std::process::abort();
        }
    }
}

impl<D: Driver> Sink<D> for Hands {
    fn accepted(&mut self, driver: &mut D, socket: Socket) {
        let peer: Option<IpAddr> = socket.peer_address().ok().map(|address| address.ip());
        let Some(id) = self.shard.handle_accept(peer) else { return };
        if driver.attach(id, socket).is_err() {
            self.shard.handle_closed(id, &mut self.stashes);
        }
    }

    fn bytes(&mut self, driver: &mut D, id: ConnectionId, bytes: &mut [u8]) -> Flow {
        // Before, not after: what is said to the driver here must not be undone by the flow returned below.
        self.flush_if_long(driver);
        let Self { shard, stashes, outbox, now, .. } = self;
        let handled = catch_unwind(AssertUnwindSafe(|| shard.handle_bytes(*now, id, bytes, stashes, outbox)));
        handled.unwrap_or_else(|_| {
            self.log_panic(id);
            self.shard.handle_panic(id);
            Flow::Close
        })
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
        self.shard.handle_closed(id, &mut self.stashes);
    }

    fn accept_failed(&mut self, _driver: &mut D, error: io::Error, retry: Duration) {
        if self.accept_error_logged.is_none_or(|logged| self.now.since(logged) > ACCEPT_LOG_EVERY) {
            self.accept_error_logged = Some(self.now);
            tracing::error!(reactor = self.id.0, %error, retry_ms = retry.as_millis(), "accept failed; raise LimitNOFILE or lower limits.connections");
        }
    }
}

/// Lends the vectors of a batch to the driver.
fn send<D: Driver>(driver: &mut D, id: ConnectionId, shard: &Shard, batch: &Batch) -> Sent {
    let count = batch.segments.len();
    if count == 1 {
        return driver.send(id, &[IoSlice::new(shard.segment(batch, 0))]);
    }
    let mut vectors = [IoSlice::new(&[]); limits::WRITE_SEGMENTS_MAX];
    for (index, vector) in vectors[..count].iter_mut().enumerate() {
        *vector = IoSlice::new(shard.segment(batch, index));
    }
    driver.send(id, &vectors[..count])
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

/// Connections with output after which a flush comes before the next event.
const DIRTY_MAX: usize = 64;
/// Bytes sent to one connection in one turn; the rest waits for the next turn.
const SEND_BYTES_PER_TURN_MAX: usize = 256 * 1024;
const TURN_LONG: Duration = Duration::from_millis(5);
const TURN_STALLED: Duration = Duration::from_millis(50);
const ACCEPT_LOG_EVERY: Duration = Duration::from_secs(60);
/// As many panics within a minute end the process.
const PANICS_PER_MINUTE_MAX: u32 = 10;
