//! The completion driver.                                                                                          [io-uring]
//!
//! A connection rests, talks, or ends:
//!
//! ```text
//!             attach                 4 events within a second
//!               │                   ┌────────────────────────►  talks: multishot receive into provided buffers,
//!               ▼                   │                                  no system call of its own
//!     rests: multishot poll, ───────┘                           │
//!     each event answered by  ◄─────────────────────────────────┘
//!     one plain receive          silent for `park_after`, paused, or sending more than small buffers are good for
//! ```
//!
//! Resting costs the kernel a third of what an armed receive does, and a heartbeat costs no change of state. Rules that keep bytes in
//! order and memory sound:
//!
//! - *Who reads*: as long as a receive is armed or queued, events of the poll are ignored. A plain receive in between would overtake
//!   bytes that wait in the completion queue.
//! - *What a completion ends*: every one says whether more will follow. Without that flag the operation is over, also after a good
//!   result (an overflow of the queue does that), and [`Uring::arm`] decides what is armed next.
//! - *Pausing* takes the receive back. What it had read before goes into a stash, which is delivered first on resuming.
//! - *Sending*: one at a time, from a block of ours that lives until the completion ([`outgoing`]). Long ones go out by a plain call as
//!   far as the kernel takes them at once.
//! - *Closing*: FIN or RST is prepared, whatever is armed is called back by its name, the descriptor is closed when nothing is in
//!   flight, and only then comes `closed`. So no queued entry ever meets a descriptor number that has changed hands.
//!
//! User data is 8 bits of operation, 24 of generation, 32 of slot. One enter per turn submits what the last turn wanted and waits.

mod buffers;
mod closing;
mod outgoing;
mod probe;
mod ring;
mod slot;

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice};
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use io_uring::{cqueue, opcode, squeue, types};

use crate::ids::ConnectionId;
use crate::io::driver::{Backlog, Close, Door, Driver, DriverCounters, Flow, Sent, Sink};
use crate::io::socket::{Listener, Socket, is_passing};
use crate::io::wake::Waker;
use crate::limits;
use buffers::Buffers;
use outgoing::Outgoing;
use ring::{Ring, Wait};
pub use slot::SLOT_BYTES;
use slot::*;

/// See the module text. One per reactor, made on its thread.
pub struct Uring {
    ring: Ring,
    /// Out of `self` while a turn lends from it. Freed after the ring, or never: see [`Drop`].
    buffers: Option<Buffers>,
    /// As `buffers`.
    outgoing: Outgoing,
    /// The buffer of plain receives; out of `self` while a turn lends from it.
    scratch: Vec<u8>,
    /// Out of `self` during a turn.
    completions: Vec<cqueue::Entry>,
    slots: Vec<Slot>,
    /// Connections with a stash, or with bytes that nothing will announce again; each at most once (flag `LISTED`).
    ready: VecDeque<ConnectionId>,
    /// Connections to be looked at for silence, with the time in ms; each at most once (flag `WATCHED`).
    talkers: VecDeque<(u32, ConnectionId)>,
    /// What was received for paused connections (flag `STASHED`), by slot.
    stashes: HashMap<u32, Vec<u8>>,
    stash_bytes: usize,
    /// Told "blocked" because too much is in flight.
    starved: VecDeque<ConnectionId>,
    /// First step of closing asked for.
    closing: Vec<(ConnectionId, Close)>,
    /// Waiting for the peer's FIN, in order of deadline. May name connections that have ended meanwhile.
    lingering: VecDeque<(Instant, ConnectionId)>,
    /// Second step of closing due. May name a connection twice.
    ended: Vec<ConnectionId>,
    /// Waiting for the kernel to return what is in flight, in order of deadline; with what was tried. As `lingering`.
    quitting: VecDeque<(Instant, ConnectionId, Tried)>,
    /// Nothing is in flight any more: third step due.
    quiet: Vec<ConnectionId>,
    accepting: Accepting,
    /// The poll on the bell is armed.
    listens: bool,
    waker: Waker,
    sizes: Sizes,
    began: Instant,
    now_ms: u32,
    /// Receives armed or queued.
    receives: usize,
    /// Sends queued since the last enter: each completes at once as a rule, and is not what a turn waits for.
    sends_queued: usize,
    /// Events of connections in the last turn.
    busy: usize,
    /// Receives, and those that found no buffer, since the buffers last grew.
    starvation: (u64, u64),
    counters: DriverCounters,
}

/// What one ring may use. Tests make it small.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Connections whose slots are reserved now.
    pub connections: usize,
    /// See [`limits::RING_SUBMISSIONS_MAX`].
    pub submissions: u32,
    /// See [`limits::RING_COMPLETIONS_MAX`].
    pub completions: u32,
    /// See [`limits::RING_BUFFERS_FIRST`].
    pub buffers_first: u16,
    /// See [`limits::RING_BUFFERS_MAX`]. A power of two.
    pub buffers_max: u16,
    /// See [`limits::RING_SENDS_BYTES_MAX`].
    pub sends_bytes: usize,
    /// See [`limits::RING_STASH_BYTES_MAX`].
    pub stash_bytes: usize,
    /// Silence after which a talking connection rests again. `None`: never.
    pub park_after: Option<Duration>,
}

impl Sizes {
    /// The share of one of `reactors` on a machine of so many `cores`: up to one reactor per core each has the full size.
    #[must_use]
    pub fn share(connections: usize, reactors: usize, cores: usize, park_after: Option<Duration>) -> Self {
        let parts = reactors.div_ceil(cores.max(1)).next_power_of_two();
        let part = u32::try_from(parts).unwrap_or(u32::MAX);
        let buffers_max = (u32::from(limits::RING_BUFFERS_MAX) / part).max(64);
        Self {
            connections,
            submissions: (limits::RING_SUBMISSIONS_MAX / part).max(128),
            completions: (limits::RING_COMPLETIONS_MAX / part).max(1024),
            buffers_first: limits::RING_BUFFERS_FIRST.min(u16::try_from(buffers_max).unwrap_or(u16::MAX)),
            buffers_max: u16::try_from(buffers_max).expect("a part of a u16"),
            sends_bytes: limits::RING_SENDS_BYTES_MAX / parts,
            stash_bytes: (limits::RING_STASH_BYTES_MAX / parts).max(1024 * 1024),
            park_after,
        }
    }
}

impl Uring {
    /// A driver fed by `listeners`. To be called on the thread that will turn it.
    ///
    /// # Errors
    /// The kernel's: too old, forbidden, or out of descriptors or memory.
    ///
    /// # Panics
    /// If `waker` is not one for a driver.
    pub fn new(sizes: Sizes, listeners: impl IntoIterator<Item = Listener>, waker: Waker) -> io::Result<Self> {
        assert!(waker.descriptor().is_some(), "a waker for a driver");
        let ring = Ring::new(sizes.submissions, sizes.completions)?;
        let buffers = Buffers::new(&ring, sizes.buffers_first, sizes.buffers_max)?;
        Ok(Self {
            ring,
            buffers: Some(buffers),
            outgoing: Outgoing::new(sizes.sends_bytes),
            scratch: vec![0; limits::RECV_BUFFER_BYTES],
            completions: Vec::with_capacity(limits::EVENTS_PER_TURN_MAX),
            slots: Vec::with_capacity(sizes.connections),
            ready: VecDeque::new(),
            talkers: VecDeque::new(),
            stashes: HashMap::new(),
            stash_bytes: 0,
            starved: VecDeque::new(),
            closing: Vec::new(),
            lingering: VecDeque::new(),
            ended: Vec::new(),
            quitting: VecDeque::new(),
            quiet: Vec::new(),
            accepting: Accepting::new(listeners.into_iter().collect()),
            listens: false,
            waker,
            sizes,
            began: Instant::now(),
            now_ms: 0,
            receives: 0,
            sends_queued: 0,
            busy: 0,
            starvation: (0, 0),
            counters: DriverCounters::default(),
        })
    }

    /// Whether this machine lets us use io_uring as this driver does: one connection over loopback, with everything in it.
    ///
    /// # Errors
    /// The first thing that failed, for the operator.
    pub fn probe() -> Result<(), String> {
        probe::probe()
    }
}

impl Driver for Uring {
    const NAME: &'static str = "uring";

    fn attach(&mut self, connection: ConnectionId, socket: Socket) -> io::Result<()> {
        let index = connection.index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, Slot::default);
        }
        assert!(self.slots[index].socket.is_none(), "a slot is reused only after `closed`");
        assert!(connection.generation <= ConnectionId::GENERATION_MAX);
        self.slots[index] = Slot { socket: Some(socket), generation: connection.generation, ..Slot::default() };
        self.arm(connection);
        Ok(())
    }

    fn turn<S: Sink<Self>>(&mut self, max_wait: Duration, sink: &mut S) -> io::Result<()> {
        let mut room = Room {
            buffers: ManuallyDrop::new(self.buffers.take().expect("a turn is not begun inside a turn")),
            scratch: std::mem::take(&mut self.scratch),
        };
        let mut completions = std::mem::take(&mut self.completions);
        let result = self.enter(max_wait);
        if result.is_ok() {
            self.ring.take(&mut completions, limits::EVENTS_PER_TURN_MAX);
            // Who was ready before the wait has waited longest; who becomes ready now is served next turn.
            let ready_count = self.ready.len();
            self.busy = 0;
            completions.iter().for_each(|completion| self.handle(completion, &mut room, sink));
            self.serve_ready(ready_count, &mut room, sink);
        }
        completions.clear();
        self.feed_starved(sink);
        self.park_silent();
        self.begin_closes(&mut room.scratch);
        self.expire();
        self.quit_ended();
        self.end_quiet(sink);
        room.buffers.publish();
        self.buffers = Some(ManuallyDrop::into_inner(room.buffers));
        self.scratch = room.scratch;
        self.completions = completions;
        result
    }

    fn send(&mut self, connection: ConnectionId, vectors: &[IoSlice<'_>]) -> Sent {
        let Some(slot) = open_slot(&mut self.slots, connection) else {
            return Sent::Failed(ErrorKind::NotConnected.into());
        };
        assert!(!slot.is(SENDING | BLOCKED), "one send at a time");
        if vectors.iter().map(|vector| vector.len()).sum::<usize>() > SEND_COPIED_MAX {
            match slot.with_socket(&mut self.counters, |socket| socket.writev(vectors)) {
                Ok(count) => return Sent::Done(count),
                // The ring waits for the peer.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    slot.set(MUTE);
                    return Sent::Failed(error);
                }
            }
        }
        let Some(id) = self.outgoing.copy(vectors) else {
            slot.set(BLOCKED);
            self.starved.push_back(connection);
            return Sent::Blocked;
        };
        slot.outgoing = id;
        self.push_send(connection);
        Sent::Pending
    }

    fn pause_recv(&mut self, connection: ConnectionId) {
        if let Some(slot) = open_slot(&mut self.slots, connection) {
            slot.set(PAUSED);
            self.rest(connection);
        }
    }

    fn resume_recv(&mut self, connection: ConnectionId) {
        if let Some(slot) = open_slot(&mut self.slots, connection) {
            slot.clear(PAUSED);
            list_if_wanted(&mut self.ready, slot, connection);
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

    fn peer_address(&self, connection: ConnectionId) -> Option<SocketAddr> {
        let slot = self.slots.get(connection.index as usize).filter(|slot| slot.generation == connection.generation)?;
        slot.socket.as_ref()?.peer_address().ok()
    }

    fn listen(&mut self, on: bool) -> io::Result<()> {
        // Leaving ends the polls that are armed.
        self.accepting.absent = !on;
        for door in &self.accepting.doors {
            if on { door.listener.come_back(limits::LISTEN_BACKLOG)? } else { door.listener.leave()? }
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn counters(&self) -> DriverCounters {
        self.counters
    }
}

impl Drop for Uring {
    /// Closing a ring cancels what is in flight, but not before we return: memory that the kernel may still write or read is given up.
    fn drop(&mut self) {
        if self.receives > 0 {
            std::mem::forget(self.buffers.take());
        }
        if !self.outgoing.is_empty() {
            std::mem::forget(std::mem::take(&mut self.outgoing));
        }
    }
}

/// What a turn lends from. The buffers are freed with the driver alone: a turn that panics leaves receives armed on them, so they are
/// never freed then.
struct Room {
    buffers: ManuallyDrop<Buffers>,
    scratch: Vec<u8>,
}

/// Leaves of a turn.
impl Uring {
    /// The one call of a turn.
    fn enter(&mut self, max_wait: Duration) -> io::Result<()> {
        self.arm_own();
        let most = self.wait(max_wait);
        // A busy turn is likely to be followed by another: a few more events make it cheaper. A quiet one is not kept waiting.
        let wanted = if self.busy >= BUSY_EVENTS { self.busy.min(GATHER_EVENTS_MAX) } else { 1 };
        let count = if most.is_zero() { 0 } else { (self.sends_queued + wanted).min(self.ring.completions_max() / 2) };
        self.sends_queued = 0;
        self.counters.turns_count += 1;
        self.counters.system_calls_count += 1;
        self.ring.enter(Wait { count, gather: limits::RING_GATHER_MAX.min(most), most })?;
        self.counters.overflows_count += u64::from(self.ring.has_overflown());
        self.now_ms = u32::try_from(self.began.elapsed().as_millis() & u128::from(u32::MAX)).expect("masked");
        Ok(())
    }

    /// How long the kernel may hold us: not at all with work left over, and not past a deadline of our own.
    fn wait(&self, max_wait: Duration) -> Duration {
        let lists = [self.ready.len(), self.closing.len(), self.ended.len(), self.quiet.len(), self.ring.ready()];
        if lists.iter().any(|&count| count > 0) {
            return Duration::ZERO;
        }
        let until = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        let linger = self.lingering.front().map_or(max_wait, |&(deadline, _)| until(deadline));
        let quit = self.quitting.front().map_or(max_wait, |&(deadline, ..)| until(deadline));
        let accept = self.accepting.retry_at.filter(|_| self.accepting.wanted()).map_or(max_wait, until);
        let talker = self.talkers.front().map_or(max_wait, |&(at_ms, _)| {
            Duration::from_millis(u64::try_from(i64::from(ms_after(at_ms, self.now_ms)).max(0)).expect("not negative"))
        });
        max_wait.min(linger).min(quit).min(accept).min(talker)
    }

    /// Bell and listener.
    fn arm_own(&mut self) {
        let nobody = ConnectionId { index: 0, generation: 0 };
        if !self.listens {
            self.listens = true;
            let bell = self.waker.descriptor().expect("a waker for a driver").as_raw_fd();
            let poll = opcode::PollAdd::new(types::Fd(bell), POLL_IN).multi(true).build();
            // SAFETY: the entry names no memory, and the waker keeps the descriptor open.
            unsafe { self.ring.push(poll.user_data(user_data(Operation::Bell, nobody))) };
        }
        if !self.accepting.wanted() || self.accepting.retry_at.is_some_and(|deadline| Instant::now() < deadline) {
            return;
        }
        self.accepting.retry_at = None;
        for (index, door) in (0..).zip(&mut self.accepting.doors).filter(|(_, door)| !door.armed) {
            door.armed = true;
            let poll = opcode::PollAdd::new(types::Fd(door.listener.as_fd().as_raw_fd()), POLL_IN).build();
            let name = ConnectionId { index, generation: 0 };
            // SAFETY: the entry names no memory, and the listener stays open as long as the ring.
            unsafe { self.ring.push(poll.user_data(user_data(Operation::Accept, name))) };
        }
    }

    fn handle<S: Sink<Self>>(&mut self, completion: &cqueue::Entry, room: &mut Room, sink: &mut S) {
        let connection = connection_of(completion.user_data());
        let (result, more) = (completion.result(), cqueue::more(completion.flags()));
        match Operation::of(completion.user_data()) {
            Operation::Bell => self.listens = more,
            Operation::Accept => self.handle_newcomers(Door(connection.index as usize), result, sink),
            Operation::Poll => self.handle_poll(connection, result, more, room, sink),
            Operation::Receive => self.handle_receive(connection, completion, room, sink),
            Operation::Send => self.handle_send(connection, result, sink),
            // It says nothing when it finds its target.
            Operation::Cancel => self.handle_missed(connection),
        }
    }

    fn handle_poll<S: Sink<Self>>(&mut self, connection: ConnectionId, result: i32, more: bool, room: &mut Room, sink: &mut S) {
        let Some(slot) = live_slot(&mut self.slots, connection) else {
            self.counters.stale_events_count += 1;
            return;
        };
        if !more {
            slot.clear(POLLING | POLL_BACK);
        }
        let polled = u32::try_from(result).ok();
        if let Some(mask) = polled.filter(|_| !slot.is(RECEIVING)) {
            self.busy += 1;
            slot.set(UNREAD);
            if mask & POLL_ENDS != 0 {
                slot.set(READ_CLOSED);
            }
            if slot.is(CLOSING) {
                self.discard(connection, &mut room.scratch);
            } else if slot.is(PAUSED) && mask & POLL_ERROR != 0 {
                self.report_error(connection, sink);
            } else if !slot.is(LISTED) {
                // A listed one gets its share of this turn, or of the next, from the list.
                self.answer(connection, room, sink);
            }
        } else if polled.is_none() && result != -libc::ECANCELED {
            self.fail(connection, io::Error::from_raw_os_error(-result), sink);
        }
        if !more {
            self.arm(connection);
        }
    }

    /// One event of a resting connection.
    fn answer<S: Sink<Self>>(&mut self, connection: ConnectionId, room: &mut Room, sink: &mut S) {
        let bytes = self.receive(connection, &mut room.scratch, sink);
        let now_ms = self.now_ms;
        let Some(slot) = open_slot(&mut self.slots, connection) else { return };
        if bytes >= limits::RING_BUFFER_BYTES || slot.is(PAUSED | MUTE | UNREAD) {
            // Plain receives into a large buffer serve it better.
            slot.count = 0;
        } else if slot.count == 0 || ms_after(now_ms, slot.stamp_ms) > TALK_MS {
            (slot.count, slot.stamp_ms) = (1, now_ms);
        } else {
            slot.count += 1;
            if slot.count >= limits::RING_TALK_EVENTS {
                self.promote(connection);
            }
        }
    }

    fn handle_receive<S: Sink<Self>>(
        &mut self,
        connection: ConnectionId,
        completion: &cqueue::Entry,
        room: &mut Room,
        sink: &mut S,
    ) {
        let more = cqueue::more(completion.flags());
        let Some(slot) = live_slot(&mut self.slots, connection) else { unreachable!("a slot outlives what is in flight") };
        self.busy += 1;
        if !more {
            self.receives -= 1;
            slot.clear(RECEIVING | RECEIVE_BACK);
        }
        let filled = cqueue::buffer_select(completion.flags());
        match usize::try_from(completion.result()) {
            Ok(0) if slot.is(CLOSING) => self.end(connection),
            Ok(0) if slot.is(PAUSED | STASHED) => {
                // Told on resuming: a plain receive will find the end again.
                slot.set(UNREAD | READ_CLOSED);
            }
            Ok(0) => {
                let was_open = !slot.is(MUTE);
                slot.set(MUTE | OVER);
                if was_open {
                    sink.eof(self, connection);
                }
            }
            Ok(count) => {
                self.starvation.0 += 1;
                let buffer = filled.expect("bytes come in a buffer of ours");
                self.deliver(connection, room.buffers.filled(buffer, count), sink);
            }
            Err(_) => self.handle_receive_error(connection, -completion.result(), room, sink),
        }
        if let Some(buffer) = filled {
            room.buffers.give_back(buffer);
        }
        if !more {
            self.arm(connection);
        }
    }

    fn handle_receive_error<S: Sink<Self>>(&mut self, connection: ConnectionId, errno: i32, room: &mut Room, sink: &mut S) {
        match errno {
            libc::ECANCELED => {}
            libc::ENOBUFS | libc::EINTR | libc::EAGAIN => {
                self.counters.buffers_empty_count += u64::from(errno == libc::ENOBUFS);
                self.starvation.1 += u64::from(errno == libc::ENOBUFS);
                let (receives, empty) = self.starvation;
                if receives >= STARVATION_RECEIVES && empty * 100 > receives {
                    self.starvation = (0, 0);
                    room.buffers.grow();
                }
                // What waits is fetched by a plain receive, which needs no buffer of the ring.
                if let Some(slot) = live_slot(&mut self.slots, connection) {
                    slot.set(UNREAD);
                    list_if_wanted(&mut self.ready, slot, connection);
                }
            }
            _ => self.fail(connection, io::Error::from_raw_os_error(errno), sink),
        }
    }

    /// Lends bytes of a provided buffer, or keeps them for one that was paused.
    fn deliver<S: Sink<Self>>(&mut self, connection: ConnectionId, bytes: &mut [u8], sink: &mut S) {
        let now_ms = self.now_ms;
        let Some(slot) = open_slot(&mut self.slots, connection).filter(|slot| !slot.is(MUTE)) else { return };
        if slot.is(PAUSED | STASHED) {
            return self.stash(connection, bytes, sink);
        }
        slot.stamp_ms = now_ms;
        slot.count = if bytes.len() < limits::RING_BUFFER_BYTES { 0 } else { slot.count.saturating_add(1) };
        if slot.count >= limits::RING_BULK_BUFFERS {
            slot.count = 0;
            self.rest(connection);
        }
        self.lend(connection, bytes, sink);
    }

    fn lend<S: Sink<Self>>(&mut self, connection: ConnectionId, bytes: &mut [u8], sink: &mut S) {
        match sink.bytes(self, connection, bytes) {
            Flow::Continue => {}
            Flow::Pause => self.pause_recv(connection),
            Flow::Close => {
                if let Some(slot) = open_slot(&mut self.slots, connection) {
                    slot.set(MUTE);
                }
            }
        }
    }

    fn stash<S: Sink<Self>>(&mut self, connection: ConnectionId, bytes: &[u8], sink: &mut S) {
        if self.stash_bytes + bytes.len() > self.sizes.stash_bytes {
            return self.fail(connection, ErrorKind::OutOfMemory.into(), sink);
        }
        if let Some(slot) = open_slot(&mut self.slots, connection) {
            slot.set(STASHED);
            self.stash_bytes += bytes.len();
            self.stashes.entry(connection.index).or_default().extend_from_slice(bytes);
            list_if_wanted(&mut self.ready, slot, connection);
        }
    }

    /// Lends the stash in parts; what is left when the core pauses stays.
    fn unstash<S: Sink<Self>>(&mut self, connection: ConnectionId, sink: &mut S) {
        let Some(mut stash) = self.stashes.remove(&connection.index) else { return };
        let mut lent = 0;
        while lent < stash.len() && open_slot(&mut self.slots, connection).is_some_and(|slot| !slot.is(PAUSED | MUTE)) {
            let end = stash.len().min(lent + limits::RECV_BUFFER_BYTES);
            self.lend(connection, &mut stash[lent..end], sink);
            lent = end;
        }
        self.stash_bytes -= lent;
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        if lent < stash.len() {
            stash.drain(..lent);
            self.stashes.insert(connection.index, stash);
        } else {
            slot.clear(STASHED);
        }
    }

    /// Plain receives, up to the budget of a turn. Returns the bytes lent.
    fn receive<S: Sink<Self>>(&mut self, connection: ConnectionId, buffer: &mut [u8], sink: &mut S) -> usize {
        let mut budget = limits::RECV_BYTES_PER_TURN_MAX;
        // Each round asks the slot anew: the core may have paused or closed the connection while it was lent bytes.
        while let Some(slot) = open_slot(&mut self.slots, connection)
            && slot.is(UNREAD)
            && !slot.is(MUTE | PAUSED | STASHED | RECEIVING)
        {
            if budget == 0 {
                self.counters.budget_exhausted_count += 1;
                list_if_wanted(&mut self.ready, slot, connection);
                break;
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
                    // A short read emptied the socket, and new bytes make a new event; unless FIN is among what was announced.
                    if count < room && !slot.is(READ_CLOSED) {
                        slot.clear(UNREAD);
                    }
                    self.lend(connection, &mut buffer[..count], sink);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => slot.clear(UNREAD),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.fail(connection, error, sink),
            }
        }
        limits::RECV_BYTES_PER_TURN_MAX - budget
    }

    fn serve_ready<S: Sink<Self>>(&mut self, count: usize, room: &mut Room, sink: &mut S) {
        for _ in 0..count {
            let Some(connection) = self.ready.pop_front() else { return };
            // Closed while it waited: nothing to do, and no event either.
            let Some(slot) = open_slot(&mut self.slots, connection) else { continue };
            slot.clear(LISTED);
            if slot.is(STASHED) {
                self.unstash(connection, sink);
            }
            self.receive(connection, &mut room.scratch, sink);
            self.arm(connection);
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
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        if slot.is(CLOSING) {
            return self.end(connection);
        }
        slot.clear(UNREAD | BLOCKED);
        slot.set(OVER | MUTE);
        sink.failed(self, connection, error);
    }
}

/// What is armed.
impl Uring {
    /// Sees to it that the kernel will tell about a connection, by what it deserves now.
    fn arm(&mut self, connection: ConnectionId) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        if slot.is(QUITTING) {
            if !slot.is(IN_FLIGHT) {
                self.quiet.push(connection);
            }
            return;
        }
        if slot.is(OVER | RECEIVING) || slot.is(MUTE) && !slot.is(CLOSING) {
            return;
        }
        let fd = types::Fd(slot.raw());
        if slot.is(TALKS) && !slot.is(PAUSED | STASHED | LISTED | CLOSING) {
            slot.set(RECEIVING);
            self.receives += 1;
            let receive = opcode::RecvMulti::new(fd, buffers::GROUP).build();
            // SAFETY: the buffers live as long as the ring, or longer if a receive is in flight or a turn panics; the descriptor is closed only when
            // nothing is in flight.
            unsafe { self.ring.push(receive.user_data(user_data(Operation::Receive, connection))) };
        } else if !slot.is(POLLING) {
            slot.set(POLLING);
            let poll = opcode::PollAdd::new(fd, POLL_IN | POLL_HALF_CLOSED).multi(true).build();
            // SAFETY: the entry names no memory, and the descriptor is closed only when nothing is in flight.
            unsafe { self.ring.push(poll.user_data(user_data(Operation::Poll, connection))) };
        }
    }

    /// It talks: a receive takes the place of the poll.
    fn promote(&mut self, connection: ConnectionId) {
        let (now_ms, park_after) = (self.now_ms, self.sizes.park_after);
        let Some(slot) = open_slot(&mut self.slots, connection) else { return };
        slot.set(TALKS);
        (slot.count, slot.stamp_ms) = (0, now_ms);
        if let Some(park_after) = park_after
            && !slot.is(WATCHED)
        {
            slot.set(WATCHED);
            self.talkers.push_back((now_ms.wrapping_add(millis(park_after)), connection));
        }
        self.counters.promotions_count += 1;
        self.call_back(connection, POLLING, POLL_BACK, Operation::Poll);
        self.arm(connection);
    }

    /// It no longer talks: the poll takes the place of the receive, once the kernel has returned that.
    fn rest(&mut self, connection: ConnectionId) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        if slot.is(TALKS) {
            slot.clear(TALKS);
            self.counters.parks_count += 1;
            self.call_back(connection, RECEIVING, RECEIVE_BACK, Operation::Receive);
        }
    }

    /// Looks at those whose time has come.
    fn park_silent(&mut self) {
        let Some(park_after) = self.sizes.park_after.map(millis) else { return };
        for _ in 0..limits::RING_PARKS_PER_TURN_MAX {
            let due = |&mut (at_ms, _): &mut (u32, ConnectionId)| ms_after(at_ms, self.now_ms) <= 0;
            let Some((_, connection)) = self.talkers.pop_front_if(due) else { return };
            let Some(slot) = open_slot(&mut self.slots, connection) else { continue };
            slot.clear(WATCHED);
            let rests_at_ms = slot.stamp_ms.wrapping_add(park_after);
            if !slot.is(TALKS) {
                continue;
            }
            if ms_after(rests_at_ms, self.now_ms) <= 0 {
                self.rest(connection);
            } else {
                slot.set(WATCHED);
                self.talkers.push_back((rests_at_ms, connection));
            }
        }
    }

    /// Cancels an operation that is in flight and not being cancelled.
    fn call_back(&mut self, connection: ConnectionId, in_flight: u32, being_cancelled: u32, operation: Operation) {
        if let Some(slot) = live_slot(&mut self.slots, connection)
            && slot.is(in_flight)
            && !slot.is(being_cancelled)
        {
            slot.set(being_cancelled);
            self.cancel(user_data(operation, connection));
        }
    }

    /// Success is silent; a miss is told by name of the connection, see [`Uring::handle_missed`].
    fn cancel(&mut self, target: u64) {
        let cancel = opcode::AsyncCancel::new(target).build().flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: the entry names neither memory nor a descriptor.
        unsafe { self.ring.push(cancel.user_data(user_data(Operation::Cancel, connection_of(target)))) };
    }

    /// The kernel did not find what it should cancel: over already, or between two places. What is still in flight is tried again.
    fn handle_missed(&mut self, connection: ConnectionId) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        for (flight, back, operation) in CANCELLABLE {
            if slot.is(back) && slot.is(flight) {
                let target = user_data(operation, connection);
                let cancel = opcode::AsyncCancel::new(target).build().flags(squeue::Flags::SKIP_SUCCESS);
                // SAFETY: the entry names neither memory nor a descriptor.
                unsafe { self.ring.push(cancel.user_data(user_data(Operation::Cancel, connection))) };
            }
        }
    }
}

/// Sending.
impl Uring {
    /// Queues the rest of a connection's block.
    fn push_send(&mut self, connection: ConnectionId) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        slot.set(SENDING);
        let fd = types::Fd(slot.raw());
        let rest = self.outgoing.rest(slot.outgoing);
        let len = u32::try_from(rest.len()).expect("a send is short");
        let send = opcode::Send::new(fd, rest.as_ptr(), len).flags(libc::MSG_NOSIGNAL).build();
        // SAFETY: the block stays where it is, and unchanged, until the completion releases it; if the driver goes before, it is never
        // freed. The descriptor is closed only when nothing is in flight.
        unsafe { self.ring.push(send.user_data(user_data(Operation::Send, connection))) };
        self.sends_queued += 1;
        // Holding back many sends until the end of a turn would put server and clients in lock-step.
        if self.sends_queued.is_multiple_of(SENDS_QUEUED_MAX) {
            self.counters.system_calls_count += 1;
            self.ring.submit();
        }
    }

    fn handle_send<S: Sink<Self>>(&mut self, connection: ConnectionId, result: i32, sink: &mut S) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { unreachable!("a slot outlives what is in flight") };
        slot.clear(SENDING | SEND_BACK);
        let (id, is_ending, is_quitting) = (slot.outgoing, slot.is(CLOSING), slot.is(QUITTING));
        let lingers = slot.is(LINGERS);
        let result = match u32::try_from(result) {
            Ok(count) => {
                let sent = self.outgoing.advance(id, count);
                if count > 0 && is_ending && !is_quitting && !self.outgoing.rest(id).is_empty() {
                    // The core will not offer the rest of its last words again.
                    return self.push_send(connection);
                }
                Ok(sent)
            }
            Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) && !is_quitting => return self.push_send(connection),
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        };
        self.outgoing.release(id);
        let failed = result.is_err();
        sink.sent(self, connection, result);
        if is_quitting {
            self.arm(connection);
        } else if lingers {
            self.begin_graceful(connection, failed);
        }
    }

    /// Those told "blocked", while there is room.
    fn feed_starved<S: Sink<Self>>(&mut self, sink: &mut S) {
        for _ in 0..self.starved.len() {
            if !self.outgoing.has_room() {
                return;
            }
            let Some(connection) = self.starved.pop_front() else { return };
            if let Some(slot) = open_slot(&mut self.slots, connection)
                && slot.is(BLOCKED)
            {
                slot.clear(BLOCKED);
                sink.writable(self, connection);
            }
        }
    }
}

/// Accepting.
impl Uring {
    /// Newcomers wait, or did: the poll on a listener ends with one event, and the next begins with a look at the queue. They are
    /// taken one by one, because the core may say "no more" after each; what a multishot accept had taken by then could not be put back.
    fn handle_newcomers<S: Sink<Self>>(&mut self, door: Door, result: i32, sink: &mut S) {
        self.accepting.doors[door.0].armed = false;
        if result < 0 {
            return self.accept_failed(io::Error::from_raw_os_error(-result), sink);
        }
        for _ in 0..limits::ACCEPTS_PER_TURN_MAX {
            if !self.accepting.wanted() {
                return;
            }
            self.counters.system_calls_count += 1;
            match self.accepting.doors[door.0].listener.accept() {
                Ok(socket) => {
                    self.accepting.retry = limits::ACCEPT_RETRY_MIN;
                    sink.accepted(self, socket, door);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_passing(&error) => {}
                Err(error) => return self.accept_failed(error, sink),
            }
        }
    }

    fn accept_failed<S: Sink<Self>>(&mut self, error: io::Error, sink: &mut S) {
        self.counters.accept_errors_count += 1;
        let retry = self.accepting.back_off();
        sink.accept_failed(self, error, retry);
    }
}

/// A listener.
#[derive(Debug)]
struct Entrance {
    listener: Listener,
    /// The kernel has the entry.
    armed: bool,
}

#[derive(Debug)]
struct Accepting {
    doors: Vec<Entrance>,
    on: bool,
    /// Out of the group of listeners.
    absent: bool,
    /// Not before this, for want of descriptors or memory.
    retry_at: Option<Instant>,
    /// The next wait.
    retry: Duration,
}

impl Accepting {
    fn new(listeners: Vec<Listener>) -> Self {
        let doors = listeners.into_iter().map(|listener| Entrance { listener, armed: false }).collect();
        Self { doors, on: true, absent: false, retry_at: None, retry: limits::ACCEPT_RETRY_MIN }
    }

    fn wanted(&self) -> bool {
        self.on && !self.absent && self.doors.iter().any(|door| !door.armed)
    }

    fn back_off(&mut self) -> Duration {
        let retry = self.retry;
        self.retry_at = Some(Instant::now() + retry);
        self.retry = (retry * 2).min(limits::ACCEPT_RETRY_MAX);
        retry
    }
}

/// Longer sends go out by a plain call first: copying them costs more than the call.
const SEND_COPIED_MAX: usize = 8 * 1024;
/// Sends queued after which they are submitted at once.
const SENDS_QUEUED_MAX: usize = 64;
/// Events of a turn from which on the next one waits for several.
const BUSY_EVENTS: usize = 20;
const GATHER_EVENTS_MAX: usize = 64;
/// The span in which [`limits::RING_TALK_EVENTS`] make a talker.
const TALK_MS: i32 = 1000;
/// Receives after which the share of those without a buffer says something.
const STARVATION_RECEIVES: u64 = 1000;
const POLL_IN: u32 = libc::POLLIN as u32;
const POLL_HALF_CLOSED: u32 = libc::POLLRDHUP as u32;
const POLL_ERROR: u32 = libc::POLLERR as u32;
const POLL_ENDS: u32 = POLL_HALF_CLOSED | POLL_ERROR | libc::POLLHUP as u32;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    struct Panics;

    impl Sink<Uring> for Panics {
        fn accepted(&mut self, driver: &mut Uring, socket: Socket, _: Door) {
            driver.attach(ConnectionId { index: 0, generation: 0 }, socket).unwrap();
        }

        fn bytes(&mut self, _: &mut Uring, _: ConnectionId, _: &mut [u8]) -> Flow {
            panic!("planted");
        }

        fn eof(&mut self, _: &mut Uring, _: ConnectionId) {}
        fn sent(&mut self, _: &mut Uring, _: ConnectionId, _: io::Result<usize>) {}
        fn writable(&mut self, _: &mut Uring, _: ConnectionId) {}
        fn failed(&mut self, _: &mut Uring, _: ConnectionId, _: io::Error) {}
        fn closed(&mut self, _: &mut Uring, _: ConnectionId) {}
        fn accept_failed(&mut self, _: &mut Uring, _: io::Error, _: Duration) {}
    }

    /// A turn that panics may leave receives armed: the memory they write to is never freed. A driver that ends in order frees its own.
    #[test]
    fn buffers_outlive_a_turn_that_panics() {
        let freed = || buffers::FREED.with(std::cell::Cell::get);
        for (panics, expected) in [(false, 1), (true, 1)] {
            let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 1).unwrap();
            let address = listener.local_address().unwrap();
            let mut driver = Uring::new(Sizes::share(1, 1, 1, None), Some(listener), Waker::for_driver().unwrap()).unwrap();
            if panics {
                let client = Socket::try_from(TcpStream::connect(address).unwrap()).unwrap();
                client.writev(&[IoSlice::new(b"?")]).unwrap();
                let mut sink = Panics;
                let mut turns = || (0..1000).for_each(|_| driver.turn(Duration::from_millis(10), &mut sink).unwrap());
                assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut turns)).is_err());
            }
            drop(driver);
            assert_eq!(freed(), expected);
        }
    }
}
