//! All that one core owns, pure: `handle_*` for what happened, `poll_*` for what to do next.
//!
//! The reactor lends received bytes ([`Shard::handle_bytes`]), hands over mail ([`Shard::handle_group`]), tells the time
//! ([`Shard::handle_time`]), and afterwards asks, in this order: [`Shard::poll_dirty`] with [`Shard::gather`] and
//! [`Shard::handle_taken`] until nothing is left to send, then [`Shard::poll_command`] for what the driver has to do. Mail to other
//! threads leaves through [`Outlet`] at once. Nothing here opens, waits, reads a clock or logs.
//!
//! ```text
//!            bytes              frame            request             mail out (Outlet)
//!  receive.rs ─────► connection ─────► request.rs ───────► session ──────────────────► store
//!                                                             ▲
//!  transmit.rs ◄──── send queue ◄──── answer.rs ◄─────────────┘ ◄───── mail.rs: one commit group, pages, peers
//!                        ▲
//!                    timing.rs: deadlines, liveness, drain      resume.rs: sessions without a connection, and on the move
//!                    shed.rs: what is given up for want of memory; tell.rs: what is said at most once
//!                    secure.rs: between the bytes and all of this, for connections with TLS
//! ```
//!
//! Nothing is indexed by what a peer sent, and nothing unwrapped, as in `wire`; a panic all the same ends at one connection: guard.rs.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

mod admission;
mod again;
#[cfg(test)]
mod alone_tests;
mod answer;
mod client;
mod guard;
mod lines;
mod login;
mod mail;
mod quota;
mod receive;
mod request;
mod resume;
mod secure;
mod shed;
mod tell;
mod timing;
mod transmit;

#[cfg(debug_assertions)]
pub use guard::panic_over_defect;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use crate::clock::Moment;
use crate::conn::carry::{HeadCarry, Stashes};
use crate::conn::connection::Receive;
use crate::conn::deflate::Deflater;
use crate::conn::send_queue::{SendPool, SendQueue};
use crate::conn::timers::{Liveness, Timer, Wheel};
use crate::ids::{ConnectionId, ReactorId, SessionRef};
use crate::io::driver::Close;
use crate::limits::{ARRIVALS_PER_TURN_MAX, REFUSALS_MAX};
use crate::mail::{Carriage, Claim, Judge, PageMail, Peer, Submit};
use crate::observe::counters::{CloseCause, ReactorCounters};
use crate::observe::trace::{Sampling, Steps};
use crate::origin::Origin;
use crate::session::auth::Verifier;
use crate::session::delivery::{Session, SpareBacklogs};
use crate::session::hold::Holds;
use crate::session::pace::{Batch, Pace};
use crate::session::rate::{Bucket, Rate};
use crate::store::schema::Hashes;
use crate::table::Table;
use crate::wire::envelope::{Encoding, ErrorCode};
use crate::wire::message::{Arena, Text};
use crate::wire::upgrade::Refusal;

use lines::Lines;

pub use client::{Balancers, CLIENT_BYTES};
#[cfg(test)]
pub use guard::DEFECT_OF_TESTS;
pub use guard::{Panicked, Work};
pub use mail::Latencies;
pub use quota::Quotas;

#[expect(clippy::result_large_err, reason = "a full lane gives the value back, and nothing is allocated for it")]
/// Where a shard's mail leaves. A lane that is full gives the value back; the shard decides what that means.
pub trait Outlet {
    /// To the store thread.
    ///
    /// # Errors
    /// The value, when the lane or its byte credit is full.
    fn submit(&mut self, mail: Submit) -> Result<(), Submit>;

    /// To another core.
    ///
    /// # Errors
    /// The value, when the lane is full.
    fn peer(&mut self, to: ReactorId, mail: Peer) -> Result<(), Peer>;

    /// To a thread that judges tokens. An outlet without any is always full.
    ///
    /// # Errors
    /// The value, when all lanes are full.
    fn judge(&mut self, mail: Judge) -> Result<(), Judge> {
        Err(mail)
    }
}

/// What the shard needs of the configuration, already a share of one core where a bound is the node's.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "named and documented as the configuration keys they come from")]
pub struct Rules {
    pub node: String,
    pub path: String,
    pub origins: Vec<Origin>,
    /// Of the gateway's own page, once it is known where it stands; none: it may not connect.
    pub own_origins: OnceLock<Vec<Origin>>,
    pub balancers: Balancers,
    pub quotas: Quotas,
    /// Agree to compressed messages.
    pub deflate: bool,
    /// Answer every message with itself, for conformance suites and measurements; no sessions then.
    pub echo: bool,
    pub level: u8,
    pub connections_max: usize,
    pub max_frame: u32,
    pub max_payload: u32,
    pub window_default: u16,
    pub window_max: u16,
    pub window_bytes_max: u32,
    pub send_window: u16,
    pub send_rate: Rate,
    pub read_rate: Rate,
    pub signal_rate: Rate,
    pub max_signal: u32,
    pub ping_ms: u32,
    pub hello_ms: u32,
    pub upgrade_ms: u32,
    pub message_ms: u32,
    pub ack_timeout_ms: u32,
    pub expiring_ms: u32,
    pub dedup_s: u32,
    pub resume_ms: u32,
    pub queue_soft_bytes: u32,
    pub queue_hard_bytes: u32,
    pub queued_bytes_max: u64,
    pub stall_ms: u32,
    pub drain_grace_ms: u32,
    /// Of the node.
    pub accept_rate: Rate,
    /// The node's, the same for all its cores.
    pub pace: Arc<Pace>,
    pub handshakes_max: u32,
    pub tls_waiting_max: usize,
    pub sampling: Sampling,
    /// See [`crate::limits::SPARE_BACKLOGS`].
    pub spare_backlogs_max: usize,
    /// See [`crate::limits::CURSORS_GATHERED`].
    pub cursors_gathered_max: usize,
    /// See [`crate::limits::PEERS_KEPT`].
    pub peers_kept_max: usize,
    /// See [`crate::limits::MOVED_BYTES`].
    pub moved_bytes_max: u64,
    /// Keyed by 128 bits from the system's generator, new at every start: session ids come from it, names are compared by it.
    pub hashes: Hashes,
}

/// One core. See the module for the order of calls.
pub struct Shard {
    id: ReactorId,
    rules: Arc<Rules>,
    verifier: Arc<Verifier>,
    connections: Table<Connection>,
    cold: Lines<Cold>,
    /// Of each connection, who is at its other end; empty where no balancers are configured.
    clients: Lines<client::Client>,
    /// Tick of the last received byte, by slot: the only thing activity writes.
    liveness: Liveness,
    /// Tick at which this core went on after it had stood still for half of `ping_ms` or longer. Wraps.
    awake_since: u32,
    sessions: Table<Session>,
    backlogs: SpareBacklogs,
    pool: SendPool,
    /// For compressed answers; made for the first one.
    deflater: Option<Box<Deflater>>,
    arena: Arena,
    wheel: Wheel,
    /// Deadlines and silent slots of this turn; reused.
    fired: Vec<Timer>,
    silent: Vec<u32>,
    dirty: VecDeque<ConnectionId>,
    commands: VecDeque<Command>,
    /// Cursors merged by max until the next hand-over to the store.
    cursors: HashMap<(SessionRef, Text), u64>,
    cursors_due_ms: Option<u64>,
    /// The lane to the store was full: they wait for the clock.
    cursors_kept: bool,
    /// Connections that have signalled lately, and those that have named cursors.
    signals: HashMap<ConnectionId, Bucket>,
    cursor_rates: HashMap<ConnectionId, Bucket>,
    /// Pings and pongs that the bytes read now may still have.
    signs_left: usize,
    /// When a connection is looked at for its next redelivery, monotonic milliseconds: the earliest such entry of the wheel.
    nack_clocks: HashMap<ConnectionId, u64>,
    signals_swept_ms: u64,
    /// Mail that found its lane full and must not be lost.
    leaves: VecDeque<resume::Leaving>,
    peers: VecDeque<(ReactorId, Peer)>,
    /// Frames in `peers` and in the lanes, until the other core has taken them.
    carriage: Carriage,
    /// Sessions without a connection, the one detached first in front; some of them are stale.
    detached: VecDeque<resume::Detached>,
    detached_count: usize,
    /// Connections for which much waited, some no longer.
    slow: Vec<ConnectionId>,
    pressure: shed::Pressures,
    drain: Option<Drain>,
    session_turn: u32,
    /// This core's next newcomers of the node's.
    entries: Batch,
    /// Connections with [`flags::HANDSHAKE`].
    handshakes_open: u32,
    /// Connections with [`flags::TLS`].
    tls: secure::Tls,
    /// Connections that were let in and are not leaving: see [`State::is_let_in`].
    let_in_count: usize,
    /// State of the generator that spreads times to wait.
    random: u64,
    now: Moment,
    clocks: timing::Clocks,
    guard: guard::Guard,
    /// Plain counts, published by the reactor once a turn.
    pub counters: ReactorCounters,
    /// Latencies recorded since the reactor last took them.
    pub latencies: Latencies,
    /// Upgrades answered since the reactor last took them, for the log.
    pub arrivals: Vec<Arrival>,
    /// Steps of followed messages since the reactor last took them.
    pub steps: Steps,
}

/// Bytes of an idle connection and its session on their core, line by line; the driver has its own.
pub const IDLE_LINES: [(&str, usize); 4] = [
    ("connection, hot", Table::<Connection>::SLOT_BYTES),
    ("connection, cold", size_of::<Cold>()),
    ("last received tick", Liveness::SLOT_BYTES),
    ("session", Table::<Session>::SLOT_BYTES),
];

/// What an upgrade request was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Whose request.
    pub connection: ConnectionId,
    /// `None`: it was let in.
    pub refusal: Option<Refusal>,
}

/// What the driver has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// End the connection.
    Close(ConnectionId, Close),
    /// No more bytes.
    Pause(ConnectionId),
    /// Bytes again.
    Resume(ConnectionId),
}

impl Shard {
    /// An empty core. Tables reserve address space for `connections_max` once; untouched pages cost nothing.
    #[must_use]
    pub fn new(id: ReactorId, rules: Arc<Rules>, verifier: Arc<Verifier>, now: Moment) -> Self {
        // Beyond the configured number there is room for those who are told that there is none.
        let connections_max = rules.connections_max + REFUSALS_MAX;
        Self {
            id,
            verifier,
            connections: Table::with_capacity(connections_max),
            cold: Lines::with_capacity(connections_max),
            clients: Lines::with_capacity(if rules.balancers.networks.is_empty() { 0 } else { connections_max }),
            liveness: Liveness::new(connections_max, now.tick()),
            awake_since: now.tick(),
            // As many attached as detached, and those on their way out.
            sessions: Table::with_capacity(2 * connections_max + SESSIONS_LEAVING_MAX),
            backlogs: SpareBacklogs::new(rules.spare_backlogs_max),
            pool: SendPool::new(),
            deflater: None,
            arena: Arena::new(crate::limits::ARENA_CHUNK_BYTES),
            wheel: Wheel::new(now.tick()),
            fired: Vec::new(),
            silent: Vec::new(),
            dirty: VecDeque::new(),
            commands: VecDeque::new(),
            cursors: HashMap::new(),
            cursors_due_ms: None,
            cursors_kept: false,
            signals: HashMap::new(),
            cursor_rates: HashMap::new(),
            signs_left: 0,
            nack_clocks: HashMap::new(),
            signals_swept_ms: 0,
            leaves: VecDeque::new(),
            peers: VecDeque::new(),
            carriage: Carriage::default(),
            detached: VecDeque::new(),
            detached_count: 0,
            slow: Vec::new(),
            pressure: shed::Pressures::default(),
            drain: None,
            session_turn: 0,
            entries: Batch::default(),
            handshakes_open: 0,
            tls: secure::Tls::default(),
            let_in_count: 0,
            random: u64::from(id.0),
            now,
            clocks: timing::Clocks::new(now),
            guard: guard::Guard::default(),
            counters: ReactorCounters::default(),
            latencies: Latencies::default(),
            arrivals: Vec::new(),
            steps: Steps::default(),
            rules,
        }
    }

    /// A connection was accepted: a slot for it, or `None` when the core is full or draining and the socket is to be dropped.
    pub fn handle_accept(&mut self, now: Moment, peer: Option<SocketAddr>) -> Option<ConnectionId> {
        self.now = now;
        if self.connections.len() >= self.rules.connections_max + REFUSALS_MAX {
            self.counters.accepts_refused_count += 1;
            return None;
        }
        self.counters.connections_accepted_count += 1;
        let id = ConnectionId::from(
            self.connections
                .insert(Connection { message_tick: self.now_us(), flags: flags::HANDSHAKE, ..Connection::default() })
                .ok()?,
        );
        self.handshakes_open += 1;
        let now_ms = self.now_ms();
        let (sends, reads) = (Bucket::full(self.rules.send_rate, now_ms), Bucket::full(self.rules.read_rate, now_ms));
        self.cold.begin(id, Cold { extra: None, sends, reads, ..Cold::default() });
        self.liveness.touch(id.index, self.now.tick());
        self.meet(id, peer);
        self.schedule(id, self.rules.upgrade_ms, Kind::Upgrade);
        Some(id)
    }

    /// The peer will send nothing more.
    pub fn handle_eof(&mut self, id: ConnectionId) {
        self.guarded(Work::End, id, |shard| shard.begin_end(id));
    }

    fn begin_end(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else { return self.stale() };
        if connection.state != State::Closing {
            self.cold[id].cause.get_or_insert(CloseCause::ClientGone);
        }
        // What is queued (an answer, a close frame) still leaves; then FIN.
        self.step_out(id);
        self.detach_session(id);
        let connection = self.connections.known_mut(id);
        connection.state = State::Closing;
        self.schedule(id, CLOSE_MS, Kind::Close);
        self.touch(id);
    }

    /// The connection failed below us.
    pub fn handle_failed(&mut self, id: ConnectionId) {
        self.guarded(Work::End, id, |shard| shard.abort(id, CloseCause::ClientGone));
    }

    /// Gives back what the pools have not needed since the last call.
    pub fn trim(&mut self) {
        self.pool.trim();
        self.backlogs.trim();
        self.arena.trim();
        if let Some(deflater) = &mut self.deflater {
            deflater.trim();
        }
        // What everybody at once has filled.
        shrink(&mut self.dirty);
        shrink(&mut self.commands);
        shrink(&mut self.leaves);
        shrink(&mut self.peers);
        shrink(&mut self.detached);
        self.nack_clocks.shrink_to(QUEUE_KEPT);
    }

    /// Chunks the arena has asked of the allocator.
    #[must_use]
    pub fn arena_chunks_count(&self) -> u64 {
        self.arena.chunks_count
    }

    /// Last word of the driver: the slot is free. Returns why the connection ended.
    pub fn handle_closed(&mut self, id: ConnectionId, stashes: &mut Stashes) -> Option<CloseCause> {
        self.step_out(id);
        let Some(connection) = self.connections.get_mut(id) else {
            self.stale();
            return None;
        };
        self.pool.clear(&mut connection.queue);
        connection.receive.stop(stashes);
        self.forget_tls(id);
        self.detach_session(id);
        let cold = std::mem::take(&mut self.cold[id]);
        self.leave_address(cold.address);
        let cause = cold.cause.unwrap_or(CloseCause::ClientGone);
        self.counters.count_close(cause);
        self.liveness.clear(id.index);
        self.nack_clocks.remove(&id);
        self.connections.remove(id);
        Some(cause)
    }

    /// What the driver has to do next.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Whether the drain has been asked for and nobody is left.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.drain.is_some() && self.connections.is_empty() && self.sessions.is_empty() && self.leaves.is_empty()
    }

    /// Whether there is work that needs no event: the next wait must not sleep.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.dirty.is_empty() || !self.commands.is_empty() || self.handshakes_waiting() > 0
    }

    /// Open connections.
    #[must_use]
    pub fn connections_count(&self) -> usize {
        self.connections.len()
    }

    /// Sessions in every stage.
    #[must_use]
    pub fn sessions_count(&self) -> usize {
        self.sessions.len()
    }

    /// Connections that are not past their HELLO.
    #[must_use]
    pub fn handshakes_open(&self) -> u32 {
        self.handshakes_open
    }

    /// Sessions that wait for their client to come back.
    #[must_use]
    pub fn detached_count(&self) -> usize {
        self.detached_count
    }

    /// Bytes held for deliveries that are not acknowledged.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.pool.held_bytes
    }

    /// Bytes waiting to be sent.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.pool.queued_bytes
    }

    /// Milliseconds of this core's clock, wrapping after 49 days: for buckets.
    #[expect(clippy::cast_possible_truncation, reason = "wraps, and differences still hold")]
    fn now_ms(&self) -> u32 {
        (self.now.mono_ns / 1_000_000) as u32
    }

    /// Microseconds of this core's clock, wrapping after 71 minutes: for handshakes, which are shorter.
    #[expect(clippy::cast_possible_truncation, reason = "wraps, and differences still hold")]
    fn now_us(&self) -> u32 {
        (self.now.mono_ns / 1_000) as u32
    }

    /// Milliseconds of the clock all cores share.
    fn mono_ms(&self) -> u64 {
        self.now.mono_ns / 1_000_000
    }

    /// Sets the clock by which cursors go to the store.
    fn watch_cursors(&mut self) {
        if !self.cursors.is_empty() {
            let due_ms = self.mono_ms() + CURSORS_MS;
            self.cursors_due_ms.get_or_insert(due_ms);
        }
    }

    fn schedule(&mut self, id: ConnectionId, after_ms: u32, kind: Kind) {
        let ticks = after_ms.div_ceil(100).max(1);
        let timer = Timer { index: id.index, generation: id.generation, kind: kind as u8 };
        self.wheel.insert(timer, self.now.tick().wrapping_add(ticks));
    }

    /// Puts a connection on the dirty list, once.
    fn touch(&mut self, id: ConnectionId) {
        let connection = self.connections.known_mut(id);
        if connection.flags & flags::DIRTY == 0 {
            connection.flags |= flags::DIRTY;
            self.dirty.push_back(id);
        }
    }

    fn stale(&mut self) {
        self.counters.stale_events_count += 1;
    }

    /// Ends a connection without a word on the wire.
    fn abort(&mut self, id: ConnectionId, cause: CloseCause) {
        let Some(connection) = self.connections.get(id) else { return self.stale() };
        if connection.state == State::Finished {
            return;
        }
        self.step_out(id);
        let connection = self.connections.known_mut(id);
        connection.state = State::Finished;
        self.pool.clear(&mut connection.queue);
        self.clear_records(id);
        self.cold[id].cause.get_or_insert(cause);
        self.detach_session(id);
        self.commands.push_back(Command::Close(id, Close::Abort));
    }

    /// Notes for the log how a request was answered; beyond the bound of a turn not.
    fn note_arrival(&mut self, connection: ConnectionId, refusal: Option<Refusal>) {
        if self.arrivals.len() < ARRIVALS_PER_TURN_MAX {
            self.arrivals.push(Arrival { connection, refusal });
        }
    }

    fn session_ref(&self, id: ConnectionId) -> SessionRef {
        SessionRef { reactor: self.id, index: id.index, generation: id.generation }
    }
}

/// Leaves a queue twice the room it needs now.
fn shrink<T>(queue: &mut VecDeque<T>) {
    queue.shrink_to(2 * queue.len() + QUEUE_KEPT);
}

/// The hot line of a connection: 64 bytes with the generation that the table keeps.
#[derive(Debug, Default)]
struct Connection {
    receive: Receive,
    queue: SendQueue,
    /// Slot of its session, counted from 1; 0: none.
    session: u32,
    /// Tick at which the unfinished message began; until the upgrade the microsecond of the accept, which wraps after an hour.
    message_tick: u32,
    state: State,
    encoding: Option<Encoding>,
    flags: u16,
}

const _: () = assert!(size_of::<Connection>() <= 60);

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    /// Collecting the PROXY header of a balancer.
    Proxy,
    /// Collecting the request head.
    #[default]
    Upgrade,
    /// Every message comes back.
    Echo,
    /// Only HELLO may come.
    WaitHello,
    /// HELLO came, its token is judged elsewhere.
    Judging,
    /// HELLO was good, the store is asked.
    Joining,
    /// Every frame but HELLO.
    Active,
    /// A frame broke a rule while earlier ones were not answered: they are, then comes the ERROR. Nothing more is read.
    Failing,
    /// GOAWAY is written.
    Draining,
    /// A close frame or a refusal is queued or written; what still comes is dropped.
    Closing,
    /// The driver was told to close.
    Finished,
}

impl State {
    /// Past the upgrade, and not on the way out.
    fn is_let_in(self) -> bool {
        !matches!(self, Self::Proxy | Self::Upgrade | Self::Closing | Self::Finished)
    }
}

mod flags {
    /// On the dirty list.
    pub const DIRTY: u16 = 1;
    /// A send is with the kernel, or it said "not now".
    pub const SENDING: u16 = 2;
    /// Reading is paused because too much waits to be sent.
    pub const PAUSED: u16 = 4;
    /// A ping was sent since the last byte came.
    pub const PINGED: u16 = 8;
    /// The kernel took bytes since the stall clock was last looked at.
    pub const PROGRESS: u16 = 16;
    /// The stall clock runs.
    pub const STALLING: u16 = 32;
    /// The clock of an unfinished message runs.
    pub const MESSAGE_CLOCK: u16 = 64;
    /// Not yet past its HELLO.
    pub const HANDSHAKE: u16 = 128;
    /// Speaks TLS; see `secure.rs`.
    pub const TLS: u16 = 256;
    /// Among those for whom much waits; see `shed.rs`.
    pub const SLOW: u16 = 512;
    /// A PRESENCE for it was dropped, and the store does not know it yet; see `tell.rs`.
    pub const PRESENCE_LOST: u16 = 1024;
    /// A look at the end of its token, which is far away, is filed.
    pub const FAR: u16 = 2048;
    /// Its messages may be compressed.
    pub const INFLATE: u16 = 1 << 14;
    /// Messages to it may be compressed.
    pub const DEFLATE: u16 = 1 << 15;
}

/// The cold line of a connection, a parallel array: 40 bytes.
#[derive(Debug, Default)]
struct Cold {
    extra: Option<Box<Extra>>,
    sends: Bucket,
    reads: Bucket,
    sends_unanswered: u16,
    /// READs that have not been answered by OK.
    oks_unanswered: u16,
    /// Requests in a row refused by rate, or before the rate is asked.
    abuse_count: u16,
    reads_waiting: u8,
    cause: Option<CloseCause>,
    /// What its address is counted under.
    address: Option<u32>,
}

const _: () = assert!(size_of::<Cold>() <= 40);

/// What a connection has only at times: during the handshake, while something is held, while reads wait.
#[derive(Debug, Default)]
struct Extra {
    /// PROXY header so far.
    proxy: Vec<u8>,
    /// Request head so far.
    head: HeadCarry,
    /// `Authorization: Bearer` of the upgrade, until HELLO.
    bearer: Option<String>,
    /// HELLO while its token is judged.
    greeting: Option<Greeting>,
    /// `rid` of the AUTH whose token is judged.
    renewing: Option<u32>,
    /// Between HELLO and WELCOME.
    joining: Option<Joining>,
    /// The ERROR that ends the connection once everything before it is answered.
    failure: Option<Failure>,
    holds: Holds,
    pages: VecDeque<PageMail>,
}

impl Extra {
    fn is_empty(&self) -> bool {
        self.proxy.is_empty()
            && receive::is_empty(&self.head)
            && self.bearer.is_none()
            && self.greeting.is_none()
            && self.renewing.is_none()
            && self.joining.is_none()
            && self.failure.is_none()
            && self.holds.is_empty()
            && self.pages.is_empty()
    }
}

/// See [`State::Failing`].
#[derive(Clone, Copy, Debug)]
struct Failure {
    rid: u32,
    code: ErrorCode,
    detail: &'static str,
}

/// What HELLO asks for, beside its token.
#[derive(Debug)]
struct Greeting {
    device: Text,
    platform: u8,
    /// Window asked for; 0: the default.
    window: u16,
    /// Of those asked for, the ones this release has.
    caps: u8,
    claim: Option<Claim>,
}

/// What WELCOME needs and nothing later.
#[derive(Debug)]
struct Joining {
    user: Text,
    minor: u8,
    /// The store has answered.
    attached: bool,
    /// The former owner of the device has said that it is done with it.
    done: bool,
    /// It left a session to go on with: the highest `pos` of it.
    resumed: Option<u64>,
    /// Positions it had not handed to the store.
    cursors: Vec<(Text, u64)>,
}

/// What a timer is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Kind {
    /// Request head complete?
    Upgrade,
    /// HELLO seen?
    Hello,
    /// Store answered the attach?
    Attach,
    /// Former owner of the device done?
    Gone,
    /// Close handshake done?
    Close,
    /// Acknowledgements moved while the window is full?
    Acknowledge,
    /// Token about to end: EXPIRING.
    Expiring,
    /// Token ended.
    Expired,
    /// Bytes moved while too many wait?
    Stall,
    /// This connection's turn to leave in a drain.
    Goaway,
    /// Its time after GOAWAY is over.
    Grace,
    /// A message begun long ago must be complete.
    Message,
    /// Something is to be delivered again after NACK.
    Again,
    /// The answers before an ERROR take too long.
    Failing,
    /// There may be room again for the PRESENCE that was dropped.
    PresenceLost,
    /// The end of its token was very far away.
    Far,
}

impl Kind {
    /// By number, as the wheel keeps it.
    const ALL: [Kind; 16] = [
        Kind::Upgrade,
        Kind::Hello,
        Kind::Attach,
        Kind::Gone,
        Kind::Close,
        Kind::Acknowledge,
        Kind::Expiring,
        Kind::Expired,
        Kind::Stall,
        Kind::Goaway,
        Kind::Grace,
        Kind::Message,
        Kind::Again,
        Kind::Failing,
        Kind::PresenceLost,
        Kind::Far,
    ];
}
const _: () = assert!(Kind::Far as usize + 1 == Kind::ALL.len());

#[derive(Clone, Copy, Debug)]
struct Drain {
    close_code: u16,
    /// When everybody has been asked to leave, nanoseconds of the monotonic clock. Until then nobody is let in.
    ends_ns: u64,
}

/// The close handshake must be over after this long.
const CLOSE_MS: u32 = 5_000;
/// An ERROR that ends a connection waits this long for the answers before it.
const FAILING_MS: u32 = 5_000;
/// Places that a queue of a core keeps, whatever it needs.
const QUEUE_KEPT: usize = 1_024;
/// As many requests in a row refused by rate, or before the rate is asked, end the connection with 4429. A client that keeps to the
/// protocol has at most a window of them before one that passes; READ and ACK, which have none, are not counted.
const ABUSE_MAX: u16 = 1_024;
/// An attach that the store has not answered after this long ends with 4503, never with 4408.
const ATTACH_MS: u32 = 10_000;
/// How long the new owner of a device waits for the former one.
const GONE_MS: u32 = 5_000;
/// Sessions on their way out of a core beside those that are attached or detached. Full: HELLO is told 5002.
const SESSIONS_LEAVING_MAX: usize = 1_024;
/// FETCH and SYNC that may wait on one connection beside the one in progress.
const READS_WAITING_MAX: u8 = 8;
/// Cursors go to the store after this long, or when there are [`crate::limits::CURSORS_SUBMITTED_MAX`].
const CURSORS_MS: u64 = 100;
/// What a connection may spend on cursors.
const CURSOR_RATE: Rate = Rate { per_second: crate::limits::CURSORS_PER_SECOND, burst: crate::limits::CURSORS_BURST };
/// The stall clock looks this often at the longest.
const STALL_CHECK_MS: u32 = 10_000;
