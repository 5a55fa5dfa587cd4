//! The contract between a reactor and the kernel, written against *delivered bytes* and *one outstanding send*: that fits
//! readiness (epoll) and completion (io_uring) alike, and a simulated network as well.
//!
//! Rules of the contract:
//!
//! - Every event whose generation differs from the slot's is dropped by the driver and counted.
//! - [`Sink::bytes`] lends a mutable slice valid only during the call: unmask and parse in place.
//! - At most one send is outstanding per connection. While [`Sent::Pending`], the driver keeps what it sends, even if the connection
//!   is closing: a copy of what was lent, a count of what is shared. [`Sink::sent`] ends it.
//! - The driver never re-enters the core. The core may call the driver from inside a `Sink` method: the driver queues.
//! - After [`Driver::close`] come no more bytes; [`Sink::closed`] is the last word, after which the slot may be reused.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::ids::ConnectionId;
use crate::io::socket::Socket;
use crate::io::wake::Waker;

/// One kernel interface. `Reactor<D: Driver>` is compiled once per driver: no virtual call per event.
pub trait Driver: Sized {
    /// What the setting `driver` calls it.
    const NAME: &'static str;

    /// Takes the socket and arms receiving.
    ///
    /// # Errors
    /// The kernel's, when the socket cannot be watched; the socket is closed then and no event follows.
    fn attach(&mut self, connection: ConnectionId, socket: Socket) -> io::Result<()>;

    /// Submits, waits at most `max_wait` (zero: does not sleep), delivers. Bounded work: at most
    /// [`crate::limits::EVENTS_PER_TURN_MAX`] events and a per-connection byte budget.
    ///
    /// # Errors
    /// Only those after which the ring or poll is unusable; `EINTR` and its like are an empty turn.
    fn turn<S: Sink<Self>>(&mut self, max_wait: Duration, sink: &mut S) -> io::Result<()>;

    /// Sends the pieces, in order. At most one send outstanding per connection.
    fn send(&mut self, connection: ConnectionId, pieces: &[Piece<'_>]) -> Sent;

    /// Inbound backpressure: no more bytes until [`Driver::resume_recv`], but for what the kernel had already delivered.
    fn pause_recv(&mut self, connection: ConnectionId);

    /// Ends [`Driver::pause_recv`].
    fn resume_recv(&mut self, connection: ConnectionId);

    /// Ends a connection; [`Sink::closed`] follows, in this turn or a later one.
    fn close(&mut self, connection: ConnectionId, how: Close);

    /// Whether new connections are taken from the listeners.
    fn accept(&mut self, on: bool);

    /// How full the fullest queue of the listeners is; `None`: there is none, or it cannot be asked.
    fn backlog(&self) -> Option<Backlog> {
        None
    }

    /// Whether the listeners belong to their groups: out of them, newcomers go to the other listeners of the port and are not taken here.
    ///
    /// # Errors
    /// The kernel's.
    fn listen(&mut self, on: bool) -> io::Result<()>;

    /// Whose listeners newcomers come to: a list of places in their groups, in the order in which they began to listen; an empty one leaves
    /// it to the kernel. For a driver without listeners there is nothing to say.
    ///
    /// # Errors
    /// The kernel's.
    fn steer(&mut self, to: &[u16]) -> io::Result<()> {
        let _ = to;
        Ok(())
    }

    /// A handle by which other threads end the wait of [`Driver::turn`].
    fn waker(&self) -> Waker;

    /// Address of the client, as the kernel knows it now. For a driver without sockets there is none.
    fn peer_address(&self, connection: ConnectionId) -> Option<std::net::SocketAddr> {
        let _ = connection;
        None
    }

    /// What the driver counted since it was made.
    fn counters(&self) -> DriverCounters;
}

/// Which listener a connection came through: its place among those the driver was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Door(pub usize);

/// The queue of connections that the kernel has set up and nobody has accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backlog {
    /// Connections in it.
    pub waiting: u32,
    /// The most it holds.
    pub length: u32,
}

impl Backlog {
    /// Whether waiting for better times will soon cost connections.
    #[must_use]
    pub fn is_half_full(self) -> bool {
        self.waiting > self.length / 2
    }

    /// The fuller one of two.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        let is_fuller = u64::from(self.waiting) * u64::from(other.length) >= u64::from(other.waiting) * u64::from(self.length);
        if is_fuller { self } else { other }
    }
}

/// What a driver tells the core. Every method may call the driver back; the driver queues and never recurses.
pub trait Sink<D: Driver> {
    /// A connection was accepted; the sink attaches it or drops it. It is close-on-exec.
    fn accepted(&mut self, driver: &mut D, socket: Socket, door: Door);
    /// Bytes arrived, in order. The slice is lent for the call.
    fn bytes(&mut self, driver: &mut D, connection: ConnectionId, bytes: &mut [u8]) -> Flow;
    /// The peer will send nothing more.
    fn eof(&mut self, driver: &mut D, connection: ConnectionId);
    /// Answers exactly one [`Sent::Pending`].
    fn sent(&mut self, driver: &mut D, connection: ConnectionId, result: io::Result<usize>);
    /// Answers exactly one [`Sent::Blocked`].
    fn writable(&mut self, driver: &mut D, connection: ConnectionId);
    /// The connection failed (reset, timed out). The sink answers with [`Driver::close`].
    fn failed(&mut self, driver: &mut D, connection: ConnectionId, error: io::Error);
    /// Last word about a connection; its slot may now be reused.
    fn closed(&mut self, driver: &mut D, connection: ConnectionId);
    /// Accepting failed for want of descriptors or memory; the driver tries again by itself after `retry`.
    fn accept_failed(&mut self, driver: &mut D, error: io::Error, retry: Duration);
}

/// What the core wants after having been lent bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// More, please.
    Continue,
    /// Stop reading; the same as [`Driver::pause_recv`].
    Pause,
    /// The core called, or is about to call, [`Driver::close`]; deliver no more bytes.
    Close,
}

/// Bytes that many may send at once. Whoever holds a count sees them unchanged.
pub type Block = Rc<Vec<u8>>;

/// One stretch of a send.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// For the length of the call: a driver that needs it longer copies it.
    Lent(&'a [u8]),
    /// Part of a block: a driver that needs it longer keeps a count.
    Shared {
        /// The block.
        block: &'a Block,
        /// First byte.
        start: usize,
        /// After the last byte.
        end: usize,
    },
}

impl<'a> Piece<'a> {
    /// What is to be sent.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        match *self {
            Self::Lent(bytes) => bytes,
            Self::Shared { block, start, end } => &block[start..end],
        }
    }
}

/// What became of [`Driver::send`].
#[derive(Debug)]
pub enum Sent {
    /// This many bytes were taken; fewer than offered means: offer the rest again.
    Done(usize),
    /// The kernel holds the bytes; [`Sink::sent`] tells.
    Pending,
    /// Nothing was taken; [`Sink::writable`] tells when to offer again.
    Blocked,
    /// The connection is beyond saving; the sink closes it.
    Failed(io::Error),
}

/// How [`Driver::close`] ends a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Close {
    /// FIN after what the kernel already holds.
    Graceful,
    /// RST; unsent bytes are dropped.
    Abort,
}

/// Monotonic counts kept by a driver.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct DriverCounters {
    /// Turns that entered the kernel.
    pub turns_count: u64,
    /// System calls for receiving, sending, accepting and waiting.
    pub system_calls_count: u64,
    /// Events whose generation was not the slot's.
    pub stale_events_count: u64,
    /// Connections left unfinished in a turn because their byte budget was spent.
    pub budget_exhausted_count: u64,
    /// Failed accepts (descriptors, memory).
    pub accept_errors_count: u64,
    /// Receives that found no provided buffer; io_uring alone.
    pub buffers_empty_count: u64,
    /// Turns that found the completion queue overflown; io_uring alone.
    pub overflows_count: u64,
    /// Connections that began to talk and got a receive of their own; io_uring alone.
    pub promotions_count: u64,
    /// Connections that fell silent, or send too much for small buffers, and rest on a poll again; io_uring alone.
    pub parks_count: u64,
    /// Slots given up because the kernel did not return their operations; io_uring alone.
    pub leaked_slots_count: u64,
    /// Bytes of sends that the kernel works on, now; io_uring alone.
    pub sending_bytes: u64,
}
