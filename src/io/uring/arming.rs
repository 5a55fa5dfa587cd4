//! What is armed on a connection, by what it deserves now.

use io_uring::{opcode, squeue, types};

use super::buffers::GROUP;
use super::slot::{
    CANCELLABLE, CLOSING, IN_FLIGHT, LISTED, MUTE, OVER, Operation, PAUSED, POLL_BACK, POLLING, QUITTING, RECEIVE_BACK,
    RECEIVING, STASHED, TALKS, WATCHED, connection_of, live_slot, millis, ms_after, open_slot, user_data,
};
use super::{POLL_HALF_CLOSED, POLL_IN, Uring};
use crate::ids::ConnectionId;
use crate::limits;

/// What is armed.
impl Uring {
    /// Sees to it that the kernel will tell about a connection, by what it deserves now.
    pub(super) fn arm(&mut self, connection: ConnectionId) {
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
            let receive = opcode::RecvMulti::new(fd, GROUP).build();
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
    pub(super) fn promote(&mut self, connection: ConnectionId) {
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
    pub(super) fn rest(&mut self, connection: ConnectionId) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        if slot.is(TALKS) {
            slot.clear(TALKS);
            self.counters.parks_count += 1;
            self.call_back(connection, RECEIVING, RECEIVE_BACK, Operation::Receive);
        }
    }

    /// Looks at those whose time has come.
    pub(super) fn park_silent(&mut self) {
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
    pub(super) fn call_back(&mut self, connection: ConnectionId, in_flight: u32, being_cancelled: u32, operation: Operation) {
        if let Some(slot) = live_slot(&mut self.slots, connection)
            && slot.is(in_flight)
            && !slot.is(being_cancelled)
        {
            slot.set(being_cancelled);
            self.cancel(user_data(operation, connection));
        }
    }

    /// Success is silent; a miss is told by name of the connection, see [`Uring::handle_missed`].
    pub(super) fn cancel(&mut self, target: u64) {
        let cancel = opcode::AsyncCancel::new(target).build().flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: the entry names neither memory nor a descriptor.
        unsafe { self.ring.push(cancel.user_data(user_data(Operation::Cancel, connection_of(target)))) };
    }

    /// The kernel did not find what it should cancel: over already, or between two places. What is still in flight is tried again.
    pub(super) fn handle_missed(&mut self, connection: ConnectionId) {
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
