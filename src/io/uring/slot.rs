//! What the driver knows of one connection, and what the user data of a ring entry says of it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use crate::ids::ConnectionId;
use crate::io::driver::DriverCounters;
use crate::io::socket::Socket;

/// What the driver knows of one connection.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) socket: Option<Socket>,
    pub(super) generation: u32,
    pub(super) flags: u32,
    /// The send in flight, while `SENDING`.
    pub(super) outgoing: u32,
    /// Resting: when the events in `count` began. Talking: when the last bytes came.
    pub(super) stamp_ms: u32,
    /// Resting: events. Talking: full buffers in a row.
    pub(super) count: u8,
}

/// Bytes of a connection in this driver.
pub const SLOT_BYTES: usize = size_of::<Slot>();

impl Slot {
    pub(super) fn is(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }

    pub(super) fn set(&mut self, flags: u32) {
        self.flags |= flags;
    }

    pub(super) fn clear(&mut self, flags: u32) {
        self.flags &= !flags;
    }

    pub(super) fn raw(&self) -> i32 {
        self.socket.as_ref().expect("a live slot has a socket").as_fd().as_raw_fd()
    }

    /// One counted system call on the socket of a slot that is in use.
    pub(super) fn with_socket<T>(
        &self,
        counters: &mut DriverCounters,
        call: impl FnOnce(&Socket) -> io::Result<T>,
    ) -> io::Result<T> {
        counters.system_calls_count += 1;
        call(self.socket.as_ref().expect("a live slot has a socket"))
    }
}

/// The core paused it.
pub(super) const PAUSED: u32 = 1;
/// The socket may hold bytes, FIN or an error that no event will announce again.
pub(super) const UNREAD: u32 = 1 << 1;
/// An event said FIN or error: a short read proves nothing any more.
pub(super) const READ_CLOSED: u32 = 1 << 2;
/// The core waits for `writable`.
pub(super) const BLOCKED: u32 = 1 << 3;
/// The core asked for the close; it hears only `sent` and `closed` now.
pub(super) const CLOSING: u32 = 1 << 4;
/// No more bytes for the core: it closes, or the end was reported.
pub(super) const MUTE: u32 = 1 << 5;
/// In the ready list.
pub(super) const LISTED: u32 = 1 << 6;
/// Nothing more comes from the peer: FIN or an error was read.
pub(super) const OVER: u32 = 1 << 7;
/// It has a stash.
pub(super) const STASHED: u32 = 1 << 8;
/// It deserves a receive of its own.
pub(super) const TALKS: u32 = 1 << 9;
/// In the list of talkers.
pub(super) const WATCHED: u32 = 1 << 10;
/// Everything in flight has been called back.
pub(super) const QUITTING: u32 = 1 << 11;
/// Queued or armed.
pub(super) const POLLING: u32 = 1 << 12;
/// See [`POLLING`].
pub(super) const RECEIVING: u32 = 1 << 13;
/// See [`POLLING`].
pub(super) const SENDING: u32 = 1 << 14;
/// Called back, and not yet returned.
pub(super) const POLL_BACK: u32 = 1 << 15;
/// See [`POLL_BACK`].
pub(super) const RECEIVE_BACK: u32 = 1 << 16;
/// See [`POLL_BACK`].
pub(super) const SEND_BACK: u32 = 1 << 17;

/// Closing gracefully: FIN follows the last words.
pub(super) const LINGERS: u32 = 1 << 18;
/// The poll for room to send. See [`POLLING`].
pub(super) const AWAITING: u32 = 1 << 19;
/// See [`POLL_BACK`].
pub(super) const AWAIT_BACK: u32 = 1 << 20;

pub(super) const IN_FLIGHT: u32 = POLLING | RECEIVING | SENDING | AWAITING;
pub(super) const CANCELLABLE: [(u32, u32, Operation); 4] = [
    (POLLING, POLL_BACK, Operation::Poll),
    (RECEIVING, RECEIVE_BACK, Operation::Receive),
    (SENDING, SEND_BACK, Operation::Send),
    (AWAITING, AWAIT_BACK, Operation::Writable),
];

/// How often the kernel was asked to return what it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tried {
    Once,
    Twice,
}

/// The slot of a connection whose life is not over.
pub(super) fn live_slot(slots: &mut [Slot], connection: ConnectionId) -> Option<&mut Slot> {
    let slot = slots.get_mut(connection.index as usize)?;
    (slot.socket.is_some() && slot.generation == connection.generation).then_some(slot)
}

/// The slot of a connection which the core has not closed.
pub(super) fn open_slot(slots: &mut [Slot], connection: ConnectionId) -> Option<&mut Slot> {
    live_slot(slots, connection).filter(|slot| !slot.is(CLOSING))
}

/// Lists a connection that has something to lend and may.
pub(super) fn list_if_wanted(ready: &mut VecDeque<ConnectionId>, slot: &mut Slot, connection: ConnectionId) {
    if slot.is(UNREAD | STASHED) && !slot.is(MUTE | LISTED | PAUSED) {
        slot.set(LISTED);
        ready.push_back(connection);
    }
}

/// What an entry of the ring is about: the top 8 bits of its user data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Operation {
    Bell = 1,
    Accept,
    Poll,
    Receive,
    Send,
    Cancel,
    Writable,
}

impl Operation {
    pub(super) fn of(user_data: u64) -> Self {
        match user_data >> 56 {
            1 => Self::Bell,
            2 => Self::Accept,
            3 => Self::Poll,
            4 => Self::Receive,
            5 => Self::Send,
            6 => Self::Cancel,
            7 => Self::Writable,
            other => unreachable!("the kernel returns what it was given, not {other}"),
        }
    }
}

pub(super) fn user_data(operation: Operation, connection: ConnectionId) -> u64 {
    u64::from(operation as u8) << 56 | u64::from(connection.generation) << 32 | u64::from(connection.index)
}

#[expect(clippy::cast_possible_truncation, reason = "the lower two parts of what `user_data` joined")]
pub(super) fn connection_of(user_data: u64) -> ConnectionId {
    ConnectionId { index: user_data as u32, generation: (user_data >> 32) as u32 & ConnectionId::GENERATION_MAX }
}

/// Milliseconds from `then` to `now`, both of a clock that wraps after 49 days.
pub(super) fn ms_after(now: u32, then: u32) -> i32 {
    now.wrapping_sub(then).cast_signed()
}

pub(super) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).min(u32::MAX / 4)
}
