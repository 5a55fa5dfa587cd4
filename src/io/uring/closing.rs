//! How a connection ends: FIN or RST is prepared, what is in flight is called back, and only then is the descriptor closed.

use std::io::ErrorKind;
use std::time::Instant;

use super::Uring;
use super::slot::{
    CANCELLABLE, CLOSING, IN_FLIGHT, LINGERS, LISTED, OVER, QUITTING, READ_CLOSED, RECEIVING, SENDING, Slot, Tried, UNREAD,
    live_slot,
};
use crate::ids::ConnectionId;
use crate::io::driver::{Close, Sink};
use crate::limits;

impl Uring {
    /// First step: everything asked for so far, also from outside a turn.
    pub(super) fn begin_closes(&mut self) {
        for at in 0..self.closing.len() {
            let (connection, how) = self.closing[at];
            let Some(slot) = live_slot(&mut self.slots, connection) else { continue };
            match how {
                Close::Abort => {
                    let _ = slot.with_socket(&mut self.counters, |socket| socket.set_abort());
                    self.ended.push(connection);
                }
                Close::Graceful => {
                    slot.set(LINGERS);
                    slot.clear(LISTED);
                    self.lingering.push_back((Instant::now() + limits::LINGER_MAX, connection));
                    if !slot.is(SENDING) {
                        self.begin_graceful(connection, false);
                    }
                    // What comes now is forgotten where it is, instead of being copied into buffers of the ring.
                    self.rest(connection);
                    self.discard(connection);
                    self.arm(connection);
                }
            }
        }
        self.closing.clear();
    }

    /// The last words are with the kernel: FIN. With the peer's FIN in hand nothing is left to wait for, and closing sends ours.
    pub(super) fn begin_graceful(&mut self, connection: ConnectionId, failed: bool) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        let over = failed || slot.is(OVER);
        if over || slot.with_socket(&mut self.counters, |socket| socket.shutdown_write()).is_err() {
            self.ended.push(connection);
        }
    }

    /// Forgets what a closing connection still gets, so that the peer's FIN is seen and our end does not become a reset: our last words,
    /// which may be long, are read by a peer that sent too much, too.
    pub(super) fn discard(&mut self, connection: ConnectionId) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        if !slot.is(UNREAD) || slot.is(OVER | RECEIVING | QUITTING) {
            return;
        }
        let room = limits::DISCARD_BYTES_PER_TURN_MAX;
        match slot.with_socket(&mut self.counters, |socket| socket.discard(room)) {
            Ok(0) => return self.end(connection),
            Ok(count) if count == room || slot.is(READ_CLOSED) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() != ErrorKind::WouldBlock => return self.end(connection),
            Ok(_) | Err(_) => return slot.clear(UNREAD),
        }
        slot.set(LISTED);
        self.discarding.push_back(connection);
    }

    pub(super) fn serve_discarding(&mut self) {
        for _ in 0..self.discarding.len().min(limits::LEAVERS_PER_TURN_MAX) {
            let Some(connection) = self.discarding.pop_front() else { return };
            if let Some(slot) = live_slot(&mut self.slots, connection) {
                slot.clear(LISTED);
                self.discard(connection);
            }
        }
    }

    /// Nothing more is to come from the peer of a closing connection.
    pub(super) fn end(&mut self, connection: ConnectionId) {
        if let Some(slot) = live_slot(&mut self.slots, connection) {
            slot.set(OVER);
            if !slot.is(SENDING) {
                self.ended.push(connection);
            }
        }
    }

    pub(super) fn expire(&mut self) {
        if self.lingering.is_empty() && self.quitting.is_empty() {
            return;
        }
        let now = Instant::now();
        for _ in 0..limits::EVENTS_PER_TURN_MAX {
            let Some((_, connection)) = self.lingering.pop_front_if(|(deadline, _)| *deadline <= now) else { break };
            if live_slot(&mut self.slots, connection).is_some() {
                self.ended.push(connection);
            }
        }
        for _ in 0..limits::EVENTS_PER_TURN_MAX {
            let Some((_, connection, tried)) = self.quitting.pop_front_if(|(deadline, ..)| *deadline <= now) else { return };
            match (live_slot(&mut self.slots, connection), tried) {
                (None, _) => {}
                (Some(_), Tried::Once) => {
                    self.handle_missed(connection);
                    self.quitting.push_back((now + limits::RING_QUIESCE_MAX, connection, Tried::Twice));
                }
                // The kernel may yet touch what it holds: neither slot nor descriptor is used again.
                (Some(_), Tried::Twice) => self.counters.leaked_slots_count += 1,
            }
        }
    }

    /// Second step: everything in flight is called back.
    pub(super) fn quit_ended(&mut self) {
        for at in 0..self.ended.len() {
            let connection = self.ended[at];
            let Some(slot) = live_slot(&mut self.slots, connection) else { continue };
            assert!(slot.is(CLOSING), "only the core ends a connection");
            if slot.is(QUITTING) {
                continue;
            }
            slot.set(QUITTING);
            if !slot.is(IN_FLIGHT) {
                self.quiet.push(connection);
                continue;
            }
            for (flight, back, operation) in CANCELLABLE {
                self.call_back(connection, flight, back, operation);
            }
            self.quitting.push_back((Instant::now() + limits::RING_QUIESCE_MAX, connection, Tried::Once));
        }
        self.ended.clear();
    }

    /// Third step. `closed` may close and attach others; those closes begin in the next turn, which does not sleep.
    pub(super) fn end_quiet<S: Sink<Self>>(&mut self, sink: &mut S) {
        let mut quiet = std::mem::take(&mut self.quiet);
        for connection in quiet.drain(..) {
            let Some(slot) = live_slot(&mut self.slots, connection) else { continue };
            assert!(!slot.is(IN_FLIGHT), "a descriptor is closed when nothing names it");
            *slot = Slot::default();
            self.stash_bytes -= self.stashes.remove(&connection.index).map_or(0, |stash| stash.len());
            self.counters.system_calls_count += 1;
            sink.closed(self, connection);
        }
        assert!(self.quiet.is_empty(), "nothing ends outside a turn");
        self.quiet = quiet;
    }
}
