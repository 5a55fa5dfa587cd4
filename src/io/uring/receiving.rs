//! What the kernel says of bytes that came: events of polls, receives, stashes while a connection is paused.

use std::io::{self, ErrorKind};

use io_uring::cqueue;

use super::slot::{
    BLOCKED, CLOSING, LISTED, MUTE, OVER, PAUSED, POLL_BACK, POLLING, READ_CLOSED, RECEIVE_BACK, RECEIVING, STASHED, UNREAD,
    list_if_wanted, live_slot, ms_after, open_slot,
};
use super::{POLL_ENDS, POLL_ERROR, Room, STARVATION_RECEIVES, TALK_MS, Uring};
use crate::ids::ConnectionId;
use crate::io::driver::{Driver, Flow, Sink};
use crate::limits;

impl Uring {
    pub(super) fn handle_poll<S: Sink<Self>>(
        &mut self,
        connection: ConnectionId,
        result: i32,
        more: bool,
        room: &mut Room,
        sink: &mut S,
    ) {
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
                // A listed one gets its share from the list.
                if !slot.is(LISTED) {
                    self.discard(connection);
                }
            } else if slot.is(PAUSED) && mask & POLL_ERROR != 0 {
                self.report_error(connection, sink);
            } else if slot.is(LISTED) {
                // It gets its share of this turn, or of the next, from the list.
            } else if mask & POLL_ENDS != 0 {
                slot.set(LISTED);
                self.leaving.push_back(connection);
            } else {
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
    pub(super) fn answer<S: Sink<Self>>(&mut self, connection: ConnectionId, room: &mut Room, sink: &mut S) {
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

    pub(super) fn handle_receive<S: Sink<Self>>(
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

    pub(super) fn handle_receive_error<S: Sink<Self>>(
        &mut self,
        connection: ConnectionId,
        errno: i32,
        room: &mut Room,
        sink: &mut S,
    ) {
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
    pub(super) fn deliver<S: Sink<Self>>(&mut self, connection: ConnectionId, bytes: &mut [u8], sink: &mut S) {
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

    pub(super) fn lend<S: Sink<Self>>(&mut self, connection: ConnectionId, bytes: &mut [u8], sink: &mut S) {
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

    pub(super) fn stash<S: Sink<Self>>(&mut self, connection: ConnectionId, bytes: &[u8], sink: &mut S) {
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
    pub(super) fn unstash<S: Sink<Self>>(&mut self, connection: ConnectionId, sink: &mut S) {
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
    pub(super) fn receive<S: Sink<Self>>(&mut self, connection: ConnectionId, buffer: &mut [u8], sink: &mut S) -> usize {
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

    pub(super) fn serve_ready<S: Sink<Self>>(&mut self, count: usize, room: &mut Room, sink: &mut S) {
        for _ in 0..count {
            let Some(connection) = self.ready.pop_front() else { return };
            self.serve(connection, room, sink);
        }
    }

    pub(super) fn serve_leaving<S: Sink<Self>>(&mut self, room: &mut Room, sink: &mut S) {
        for _ in 0..limits::LEAVERS_PER_TURN_MAX {
            let Some(connection) = self.leaving.pop_front() else { break };
            self.serve(connection, room, sink);
        }
        if self.leaving.is_empty() {
            self.leaving.shrink_to(limits::EVENTS_PER_TURN_MAX);
        }
    }

    fn serve<S: Sink<Self>>(&mut self, connection: ConnectionId, room: &mut Room, sink: &mut S) {
        // Closed while it waited: nothing to do, and no event either.
        let Some(slot) = open_slot(&mut self.slots, connection) else { return };
        slot.clear(LISTED);
        if slot.is(STASHED) {
            self.unstash(connection, sink);
        }
        self.receive(connection, &mut room.scratch, sink);
        self.arm(connection);
    }

    /// A paused connection is not read, so its error must be asked for.
    pub(super) fn report_error<S: Sink<Self>>(&mut self, connection: ConnectionId, sink: &mut S) {
        if let Some(slot) = open_slot(&mut self.slots, connection) {
            let error = slot.with_socket(&mut self.counters, |socket| socket.take_error());
            if let Ok(Some(error)) | Err(error) = error {
                self.fail(connection, error, sink);
            }
        }
    }

    pub(super) fn fail<S: Sink<Self>>(&mut self, connection: ConnectionId, error: io::Error, sink: &mut S) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        if slot.is(CLOSING) {
            return self.end(connection);
        }
        slot.clear(UNREAD | BLOCKED);
        slot.set(OVER | MUTE);
        sink.failed(self, connection, error);
    }
}
