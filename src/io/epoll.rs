//! The readiness driver, and the reference every other driver is tested against.                                      [mio]
//!
//! Each socket is registered once, edge-triggered, for reading and writing. An edge says that something *became* possible; it
//! does not come again for what was left undone. So whatever the driver leaves undone it must remember itself:
//!
//! - Unread bytes: flag `UNREAD`. Set by an edge, cleared by `WouldBlock` or by a short read. The short read is a fact about
//!   Linux (new bytes make a new edge even without `WouldBlock` in between), and it does not hold once the peer has sent FIN: data
//!   and FIN may come as one edge, so after that one reads until 0. See [`is_drained`].
//! - A peer that has closed or reset: the connection goes on the list of leavers, which is served behind everybody else and so many a turn.
//!   When all leave at once, those who stay are not kept waiting for it.
//! - A spent budget: the connection goes on the ready list and the next turn does not sleep.
//! - A paused connection: its bytes stay in the kernel, and `UNREAD` says whether resuming has anything to do.
//! - A closing connection with more to forget than it may in a turn: it goes on a list of its own.
//! - Newcomers: `has_newcomers` stays set while the accept queue of a listener may hold more.
//!
//! Closing takes two steps, so that nothing the core still holds on its stack is pulled away, and so that `closed` is the last word:
//!
//! ```text
//!  close(Abort) ────────────────────────────► end of turn: RST, closed
//!  close(Graceful) ► end of turn: FIN ─► peer's FIN, an error, or LINGER_MAX ► end of turn: close, closed
//! ```
//!
//! The wait for the peer's FIN matters: closing a socket that holds unread bytes, or that gets more, sends RST, and an RST makes
//! the peer forget what it had not yet read, such as our close frame.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::ids::ConnectionId;
use crate::io::driver::{Backlog, Close, Door, Driver, DriverCounters, Flow, Piece, Sent, Sink};
use crate::io::socket::{Listener, Socket, is_passing};
use crate::io::wake::Waker;
use crate::limits;

/// See the module text. One per reactor, made on its thread.
#[derive(Debug)]
pub struct Epoll {
    poll: Poll,
    /// Out of `self` while a turn lends from it.
    events: Option<Events>,
    /// The one receive buffer; out of `self` while a turn lends from it.
    buffer: Vec<u8>,
    slots: Vec<Slot>,
    /// Connections with `UNREAD` that no edge will announce again; each at most once (flag `LISTED`).
    ready: VecDeque<ConnectionId>,
    /// Connections whose peer has closed or reset; each at most once, and never in both lists.
    leaving: VecDeque<ConnectionId>,
    /// Closing connections with `UNREAD`; each at most once (flag `LISTED`, which means the other lists no more).
    discarding: VecDeque<ConnectionId>,
    /// First step of closing asked for.
    closing: Vec<(ConnectionId, Close)>,
    /// Waiting for the peer's FIN, in order of deadline. May name connections that have ended meanwhile.
    lingering: VecDeque<(Instant, ConnectionId)>,
    /// Second step of closing due. May name a connection twice.
    ended: Vec<ConnectionId>,
    accepting: Accepting,
    waker: Waker,
    counters: DriverCounters,
}

impl Epoll {
    /// Bytes that a driver has from the start: the array of events and the receive buffer.
    pub const FIXED_BYTES: usize = limits::EVENTS_PER_TURN_MAX * size_of::<Event>() + limits::RECV_BUFFER_BYTES;

    /// A driver for up to `connections`, whose slots are reserved now, fed by `listeners`.
    ///
    /// # Errors
    /// The kernel's, for want of descriptors or memory.
    ///
    /// # Panics
    /// If `waker` is not one for a driver.
    pub fn new(connections: usize, listeners: impl IntoIterator<Item = Listener>, waker: Waker) -> io::Result<Self> {
        let poll = Poll::new()?;
        let bell = waker.descriptor().expect("a waker for a driver").as_raw_fd();
        poll.registry().register(&mut SourceFd(&bell), WAKER, Interest::READABLE)?;
        let doors: Vec<_> = listeners.into_iter().map(|listener| Entrance { listener, has_newcomers: true }).collect();
        for (number, door) in doors.iter().enumerate() {
            let fd = door.listener.as_fd().as_raw_fd();
            poll.registry().register(&mut SourceFd(&fd), Token(LISTENERS + number), Interest::READABLE)?;
        }
        Ok(Self {
            poll,
            events: Some(Events::with_capacity(limits::EVENTS_PER_TURN_MAX)),
            buffer: vec![0; limits::RECV_BUFFER_BYTES],
            slots: Vec::with_capacity(connections),
            ready: VecDeque::new(),
            leaving: VecDeque::new(),
            discarding: VecDeque::new(),
            closing: Vec::new(),
            lingering: VecDeque::new(),
            ended: Vec::new(),
            accepting: Accepting::new(doors),
            waker,
            counters: DriverCounters::default(),
        })
    }
}

impl Driver for Epoll {
    const NAME: &'static str = "epoll";

    fn attach(&mut self, connection: ConnectionId, socket: Socket) -> io::Result<()> {
        let index = connection.index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, Slot::default);
        }
        assert!(self.slots[index].socket.is_none(), "a slot is reused only after `closed`");
        assert!(connection.generation <= ConnectionId::GENERATION_MAX);
        let fd = socket.as_fd().as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&fd), token(connection), Interest::READABLE | Interest::WRITABLE)?;
        self.counters.system_calls_count += 1;
        self.slots[index] = Slot { socket: Some(socket), life: connection.generation };
        Ok(())
    }

    fn peer_address(&self, connection: ConnectionId) -> Option<std::net::SocketAddr> {
        let slot = self.slots.get(connection.index as usize).filter(|slot| slot.is_of(connection))?;
        slot.socket.as_ref()?.peer_address().ok()
    }

    fn turn<S: Sink<Self>>(&mut self, max_wait: Duration, sink: &mut S) -> io::Result<()> {
        let mut events = self.events.take().expect("a turn is not begun inside a turn");
        let mut buffer = std::mem::take(&mut self.buffer);
        self.counters.turns_count += 1;
        self.counters.system_calls_count += 1;
        let polled = self.poll.poll(&mut events, Some(self.wait(max_wait)));
        let result = match polled {
            Ok(()) => {
                // Who was ready before the wait has waited longest; who becomes ready now is served next turn.
                let ready_count = self.ready.len();
                events.iter().for_each(|event| self.handle(event, &mut buffer, sink));
                self.serve_ready(ready_count, &mut buffer, sink);
                self.serve_leaving(&mut buffer, sink);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        };
        self.accept_newcomers(sink);
        self.serve_discarding();
        self.begin_closes();
        self.expire_lingering();
        self.end_closes(sink);
        self.events = Some(events);
        self.buffer = buffer;
        result
    }

    fn send(&mut self, connection: ConnectionId, pieces: &[Piece<'_>]) -> Sent {
        let Some(slot) = open_slot(&mut self.slots, connection) else {
            return Sent::Failed(ErrorKind::NotConnected.into());
        };
        let result = slot.with_socket(&mut self.counters, |socket| socket.send(pieces));
        match result {
            Ok(count) => Sent::Done(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                slot.set(BLOCKED);
                Sent::Blocked
            }
            Err(error) => {
                slot.set(MUTE | OVER);
                Sent::Failed(error)
            }
        }
    }

    fn pause_recv(&mut self, connection: ConnectionId) {
        if let Some(slot) = open_slot(&mut self.slots, connection) {
            slot.set(PAUSED);
        }
    }

    fn resume_recv(&mut self, connection: ConnectionId) {
        if let Some(slot) = open_slot(&mut self.slots, connection) {
            slot.clear(PAUSED);
            list_if_unread(&mut self.ready, slot, connection);
        }
    }

    fn close(&mut self, connection: ConnectionId, how: Close) {
        if let Some(slot) = open_slot(&mut self.slots, connection) {
            slot.set(CLOSING | MUTE);
            self.closing.push((connection, how));
        }
    }

    fn accept(&mut self, on: bool) {
        self.accepting.on = on;
    }

    fn backlog(&self) -> Option<Backlog> {
        self.accepting.doors.iter().filter_map(|door| door.listener.backlog().ok()).reduce(Backlog::max)
    }

    fn listen(&mut self, on: bool) -> io::Result<()> {
        self.accepting.absent = !on;
        for door in &mut self.accepting.doors {
            door.has_newcomers = on;
            if on { door.listener.come_back(limits::LISTEN_BACKLOG)? } else { door.listener.leave()? }
        }
        Ok(())
    }

    fn steer(&mut self, to: &[u16]) -> io::Result<()> {
        self.accepting.doors.iter().try_for_each(|door| door.listener.steer(to))
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn counters(&self) -> DriverCounters {
        self.counters
    }
}

/// Leaves of a turn.
impl Epoll {
    /// How long the kernel may hold us: not at all with work left over, and not past a deadline of our own.
    fn wait(&self, max_wait: Duration) -> Duration {
        let lists = [self.ready.len(), self.leaving.len(), self.discarding.len(), self.closing.len(), self.ended.len()];
        if lists.iter().any(|&count| count > 0) {
            return Duration::ZERO;
        }
        let until = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        let linger = self.lingering.front().map_or(max_wait, |&(deadline, _)| until(deadline));
        let accept = match self.accepting.retry_at {
            _ if !self.accepting.wanted() => max_wait,
            Some(deadline) => until(deadline),
            None => Duration::ZERO,
        };
        max_wait.min(linger).min(accept)
    }

    fn handle<S: Sink<Self>>(&mut self, event: &Event, buffer: &mut [u8], sink: &mut S) {
        match event.token() {
            // Being awake was all it asked for.
            WAKER => {}
            Token(token) if token >= LISTENERS => self.accepting.doors[token - LISTENERS].has_newcomers = true,
            token => self.handle_connection(connection_of(token), event, buffer, sink),
        }
    }

    fn handle_connection<S: Sink<Self>>(&mut self, connection: ConnectionId, event: &Event, buffer: &mut [u8], sink: &mut S) {
        let Some(slot) = live_slot(&mut self.slots, connection) else {
            self.counters.stale_events_count += 1;
            return;
        };
        if event.is_read_closed() || event.is_error() {
            slot.set(READ_CLOSED);
        }
        if event.is_readable() || slot.is(READ_CLOSED) {
            slot.set(UNREAD);
        }
        if slot.is(CLOSING) {
            // A listed one gets its share from the list.
            if !slot.is(LISTED) {
                self.discard(connection);
            }
            return;
        }
        if slot.is(PAUSED) && event.is_error() {
            self.report_error(connection, sink);
        } else if slot.is(LISTED) {
            // It gets its share of this turn, or of the next, from the list.
        } else if slot.is(READ_CLOSED) {
            slot.set(LISTED);
            return self.leaving.push_back(connection);
        } else {
            self.receive(connection, buffer, sink);
        }
        if event.is_writable() {
            self.report_writable(connection, sink);
        }
    }

    /// Lends what the kernel holds for a connection, up to the budget of a turn.
    fn receive<S: Sink<Self>>(&mut self, connection: ConnectionId, buffer: &mut [u8], sink: &mut S) {
        let mut budget = limits::RECV_BYTES_PER_TURN_MAX;
        // Each round asks the slot anew: the core may have paused or closed the connection while it was lent bytes.
        while let Some(slot) = open_slot(&mut self.slots, connection)
            && slot.is(UNREAD)
            && !slot.is(MUTE | PAUSED)
        {
            if budget == 0 {
                self.counters.budget_exhausted_count += 1;
                list_if_unread(&mut self.ready, slot, connection);
                return;
            }
            let room = buffer.len().min(budget);
            match slot.with_socket(&mut self.counters, |socket| socket.recv(&mut buffer[..room])) {
                Ok(0) => {
                    slot.clear(UNREAD);
                    slot.set(MUTE | OVER);
                    sink.eof(self, connection);
                }
                Ok(count) => {
                    budget -= count;
                    if is_drained(count, room, slot.is(READ_CLOSED)) {
                        slot.clear(UNREAD);
                    }
                    match sink.bytes(self, connection, &mut buffer[..count]) {
                        Flow::Continue => {}
                        Flow::Pause => self.pause_recv(connection),
                        Flow::Close => self.mute(connection),
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => slot.clear(UNREAD),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.fail(connection, error, sink),
            }
        }
    }

    fn serve_ready<S: Sink<Self>>(&mut self, count: usize, buffer: &mut [u8], sink: &mut S) {
        for _ in 0..count {
            let Some(connection) = self.ready.pop_front() else { return };
            // Closed while it waited: nothing to do, and no event either.
            if let Some(slot) = open_slot(&mut self.slots, connection) {
                slot.clear(LISTED);
                self.receive(connection, buffer, sink);
            }
        }
    }

    /// Those whose peer has left: when all leave at once, those who stay are not kept waiting for it.
    fn serve_leaving<S: Sink<Self>>(&mut self, buffer: &mut [u8], sink: &mut S) {
        for _ in 0..limits::LEAVERS_PER_TURN_MAX {
            let Some(connection) = self.leaving.pop_front() else { break };
            let Some(slot) = open_slot(&mut self.slots, connection) else { continue };
            slot.clear(LISTED);
            if slot.is(PAUSED) {
                self.report_error(connection, sink);
            } else {
                self.receive(connection, buffer, sink);
            }
            self.report_writable(connection, sink);
        }
        if self.leaving.is_empty() {
            self.leaving.shrink_to(limits::EVENTS_PER_TURN_MAX);
        }
    }

    /// Answers one `Blocked`. Edges nobody asked for, the one after registering among them, are ignored.
    fn report_writable<S: Sink<Self>>(&mut self, connection: ConnectionId, sink: &mut S) {
        if let Some(slot) = open_slot(&mut self.slots, connection)
            && slot.is(BLOCKED)
        {
            slot.clear(BLOCKED);
            sink.writable(self, connection);
        }
    }

    /// A paused connection is not read, so its error must be asked for.
    fn report_error<S: Sink<Self>>(&mut self, connection: ConnectionId, sink: &mut S) {
        if let Some(slot) = open_slot(&mut self.slots, connection) {
            let error = slot.with_socket(&mut self.counters, |socket| socket.take_error());
            if let Ok(Some(error)) | Err(error) = error {
                self.fail(connection, error, sink);
            }
        }
    }

    fn fail<S: Sink<Self>>(&mut self, connection: ConnectionId, error: io::Error, sink: &mut S) {
        if let Some(slot) = open_slot(&mut self.slots, connection) {
            // Nor will it be writable: the core is told once.
            slot.clear(UNREAD | BLOCKED);
            slot.set(MUTE | OVER);
            sink.failed(self, connection, error);
        }
    }

    fn mute(&mut self, connection: ConnectionId) {
        if let Some(slot) = open_slot(&mut self.slots, connection) {
            slot.set(MUTE);
        }
    }
}

/// Accepting.
impl Epoll {
    fn accept_newcomers<S: Sink<Self>>(&mut self, sink: &mut S) {
        if self.accepting.retry_at.is_some_and(|deadline| Instant::now() < deadline) {
            return;
        }
        self.accepting.retry_at = None;
        for _ in 0..limits::ACCEPTS_PER_TURN_MAX {
            let Some((door, entrance)) = self.accepting.next() else { return };
            self.counters.system_calls_count += 1;
            match entrance.listener.accept() {
                Ok(socket) => {
                    self.accepting.retry = limits::ACCEPT_RETRY_MIN;
                    sink.accepted(self, socket, door);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => entrance.has_newcomers = false,
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    self.counters.accept_errors_count += 1;
                    let retry = self.accepting.back_off();
                    sink.accept_failed(self, error, retry);
                    return;
                }
            }
        }
    }
}

/// Closing.
impl Epoll {
    /// First step: everything asked for so far, also from outside a turn.
    fn begin_closes(&mut self) {
        for at in 0..self.closing.len() {
            let (connection, how) = self.closing[at];
            let Some(slot) = live_slot(&mut self.slots, connection) else { continue };
            let over = slot.is(OVER);
            let first_step = slot.with_socket(&mut self.counters, |socket| match how {
                Close::Abort => socket.set_abort(),
                // With the peer's FIN in hand nothing is left to wait for: closing sends ours.
                Close::Graceful if over => Ok(()),
                Close::Graceful => socket.shutdown_write(),
            });
            if over || how == Close::Abort || first_step.is_err() {
                self.ended.push(connection);
            } else {
                slot.clear(LISTED);
                self.lingering.push_back((Instant::now() + limits::LINGER_MAX, connection));
                self.discard(connection);
            }
        }
        self.closing.clear();
    }

    /// Forgets what a closing connection still gets, so that the peer's FIN is seen and our end does not become a reset: our last words,
    /// which may be long, are read by a peer that sent too much, too.
    fn discard(&mut self, connection: ConnectionId) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        if slot.is(UNREAD) && !slot.is(OVER) {
            let room = limits::DISCARD_BYTES_PER_TURN_MAX;
            match slot.with_socket(&mut self.counters, |socket| socket.discard(room)) {
                Ok(0) => slot.set(OVER),
                Ok(count) if !is_drained(count, room, slot.is(READ_CLOSED)) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() != ErrorKind::WouldBlock => slot.set(OVER),
                Ok(_) | Err(_) => slot.clear(UNREAD),
            }
        }
        if slot.is(OVER) {
            self.ended.push(connection);
        } else if slot.is(UNREAD) {
            slot.set(LISTED);
            self.discarding.push_back(connection);
        }
    }

    fn serve_discarding(&mut self) {
        for _ in 0..self.discarding.len().min(limits::LEAVERS_PER_TURN_MAX) {
            let Some(connection) = self.discarding.pop_front() else { return };
            if let Some(slot) = live_slot(&mut self.slots, connection) {
                slot.clear(LISTED);
                self.discard(connection);
            }
        }
    }

    fn expire_lingering(&mut self) {
        if self.lingering.is_empty() {
            return;
        }
        let now = Instant::now();
        for _ in 0..limits::EVENTS_PER_TURN_MAX {
            let Some((_, connection)) = self.lingering.pop_front_if(|(deadline, _)| *deadline <= now) else { return };
            if live_slot(&mut self.slots, connection).is_some() {
                self.ended.push(connection);
            }
        }
    }

    /// Second step. `closed` may close and attach others; those closes begin in the next turn, which does not sleep.
    fn end_closes<S: Sink<Self>>(&mut self, sink: &mut S) {
        let mut ended = std::mem::take(&mut self.ended);
        for connection in ended.drain(..) {
            let Some(slot) = live_slot(&mut self.slots, connection) else { continue };
            assert!(slot.is(CLOSING), "only the core ends a connection");
            // Dropping the socket takes it out of the poll as well.
            *slot = Slot::default();
            self.counters.system_calls_count += 1;
            sink.closed(self, connection);
        }
        assert!(self.ended.is_empty(), "nothing ends outside a turn");
        self.ended = ended;
    }
}

/// What the driver knows of one connection, 8 bytes.
#[derive(Debug, Default)]
struct Slot {
    socket: Option<Socket>,
    /// Generation in the low 24 bits, flags in the high 8.
    life: u32,
}

/// Bytes of a connection in this driver.
pub const SLOT_BYTES: usize = size_of::<Slot>();

impl Slot {
    fn is_of(&self, connection: ConnectionId) -> bool {
        self.life & ConnectionId::GENERATION_MAX == connection.generation
    }

    fn is(&self, flags: u32) -> bool {
        self.life & flags != 0
    }

    fn set(&mut self, flags: u32) {
        self.life |= flags;
    }

    fn clear(&mut self, flags: u32) {
        self.life &= !flags;
    }

    /// One counted system call on the socket of a slot that is in use.
    fn with_socket<T>(&self, counters: &mut DriverCounters, call: impl FnOnce(&Socket) -> io::Result<T>) -> io::Result<T> {
        counters.system_calls_count += 1;
        call(self.socket.as_ref().expect("a live slot has a socket"))
    }
}

/// The core paused it.
const PAUSED: u32 = 1 << 24;
/// The kernel may hold bytes, FIN or an error that no edge will announce again.
const UNREAD: u32 = 1 << 25;
/// An edge said FIN or error: a short read proves nothing any more.
const READ_CLOSED: u32 = 1 << 26;
/// The core waits for `writable`.
const BLOCKED: u32 = 1 << 27;
/// The core asked for the close; it hears only `closed` now.
const CLOSING: u32 = 1 << 28;
/// No more bytes for the core: it closes, or the end was reported.
const MUTE: u32 = 1 << 29;
/// In the ready list, or in that of leavers.
const LISTED: u32 = 1 << 30;
/// Nothing more comes from the peer: FIN or an error was read.
const OVER: u32 = 1 << 31;

/// The slot of a connection whose life is not over.
fn live_slot(slots: &mut [Slot], connection: ConnectionId) -> Option<&mut Slot> {
    let slot = slots.get_mut(connection.index as usize)?;
    (slot.socket.is_some() && slot.is_of(connection)).then_some(slot)
}

/// The slot of a connection which the core has not closed.
fn open_slot(slots: &mut [Slot], connection: ConnectionId) -> Option<&mut Slot> {
    live_slot(slots, connection).filter(|slot| !slot.is(CLOSING))
}

fn list_if_unread(ready: &mut VecDeque<ConnectionId>, slot: &mut Slot, connection: ConnectionId) {
    if slot.is(UNREAD) && !slot.is(MUTE | LISTED) {
        slot.set(LISTED);
        ready.push_back(connection);
    }
}

/// Whether a read of `count` bytes into `room` emptied the socket, so that the next bytes will make an edge.
///
/// A fact of epoll on Linux, beyond what mio promises. It fails once FIN was announced: data and FIN can be one edge.
fn is_drained(count: usize, room: usize, read_closed: bool) -> bool {
    count < room && !read_closed
}

/// A listener.
#[derive(Debug)]
struct Entrance {
    listener: Listener,
    /// The accept queue may hold connections that no edge will announce again.
    has_newcomers: bool,
}

#[derive(Debug)]
struct Accepting {
    doors: Vec<Entrance>,
    /// Whose turn it is.
    turn: usize,
    on: bool,
    /// Out of the group of listeners.
    absent: bool,
    /// Not before this, for want of descriptors or memory.
    retry_at: Option<Instant>,
    /// The next wait.
    retry: Duration,
}

impl Accepting {
    fn new(doors: Vec<Entrance>) -> Self {
        Self { doors, turn: 0, on: true, absent: false, retry_at: None, retry: limits::ACCEPT_RETRY_MIN }
    }

    fn wanted(&self) -> bool {
        self.on && !self.absent && self.doors.iter().any(|door| door.has_newcomers)
    }

    /// The next door at which somebody may stand; each has its turn.
    fn next(&mut self) -> Option<(Door, &mut Entrance)> {
        if !self.wanted() {
            return None;
        }
        let count = self.doors.len();
        let at = (1..=count).map(|step| (self.turn + step) % count).find(|&at| self.doors[at].has_newcomers)?;
        self.turn = at;
        Some((Door(at), &mut self.doors[at]))
    }

    fn back_off(&mut self) -> Duration {
        let retry = self.retry;
        self.retry_at = Some(Instant::now() + retry);
        self.retry = (retry * 2).min(limits::ACCEPT_RETRY_MAX);
        retry
    }
}

fn token(connection: ConnectionId) -> Token {
    assert!(connection.index < u32::MAX, "the last index is the driver's own");
    Token((connection.generation as usize) << 32 | connection.index as usize)
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of what `token` joined")]
fn connection_of(token: Token) -> ConnectionId {
    ConnectionId { index: token.0 as u32, generation: (token.0 >> 32) as u32 }
}

const _: () = assert!(usize::BITS == 64, "a token holds slot and generation");
const WAKER: Token = Token(u32::MAX as usize);
/// The first listener; above all connections, whose generation has fewer bits.
const LISTENERS: usize = (u32::MAX as usize) << 32;
