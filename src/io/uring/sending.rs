//! Sends: one at a time, of memory that lives until their completion; and who waits until its socket takes more.

use std::io;

use io_uring::{opcode, types};

use super::outgoing::Rest;
use super::slot::{
    AWAIT_BACK, AWAITING, BLOCKED, CLOSING, LINGERS, Operation, QUITTING, SEND_BACK, SENDING, live_slot, user_data,
};
use super::{POLL_OUT, SENDS_QUEUED_MAX, Uring};
use crate::ids::ConnectionId;
use crate::io::driver::Sink;

/// Sending.
impl Uring {
    /// Queues the rest of a connection's block.
    pub(super) fn push_send(&mut self, connection: ConnectionId) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        slot.set(SENDING);
        let fd = types::Fd(slot.raw());
        let send = match self.outgoing.rest(slot.outgoing) {
            Rest::Bytes(bytes) => {
                let len = u32::try_from(bytes.len()).expect("a send is short");
                opcode::Send::new(fd, bytes.as_ptr(), len).flags(libc::MSG_NOSIGNAL).build()
            }
            Rest::Message(message) => opcode::SendMsg::new(fd, message).flags(libc::MSG_NOSIGNAL.cast_unsigned()).build(),
        };
        // SAFETY: block, message, list and shared pieces stay where they are, and unchanged, until the completion releases them; if the
        // driver goes before, they are never freed. The descriptor is closed only when nothing is in flight.
        unsafe { self.ring.push(send.user_data(user_data(Operation::Send, connection))) };
        self.sends_queued += 1;
        // Holding back many sends until the end of a turn would put server and clients in lock-step.
        if self.sends_queued.is_multiple_of(SENDS_QUEUED_MAX) {
            self.counters.system_calls_count += 1;
            self.ring.submit();
        }
    }

    pub(super) fn handle_send<S: Sink<Self>>(&mut self, connection: ConnectionId, result: i32, sink: &mut S) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { unreachable!("a slot outlives what is in flight") };
        slot.clear(SENDING | SEND_BACK);
        let (id, is_ending, is_quitting) = (slot.outgoing, slot.is(CLOSING), slot.is(QUITTING));
        let lingers = slot.is(LINGERS);
        let result = match u32::try_from(result) {
            Ok(count) => {
                let sent = self.outgoing.advance(id, count);
                if count > 0 && is_ending && !is_quitting && !self.outgoing.is_sent(id) {
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

    /// Sees to it that the kernel will tell when the socket of one told "blocked" takes bytes. That needs no memory for sends, so whoever
    /// waits does not depend on those who hold it.
    pub(super) fn await_writable(&mut self, connection: ConnectionId) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { return };
        if slot.is(AWAITING) {
            return;
        }
        slot.set(AWAITING);
        let poll = opcode::PollAdd::new(types::Fd(slot.raw()), POLL_OUT).build();
        // SAFETY: the entry names no memory, and the descriptor is closed only when nothing is in flight.
        unsafe { self.ring.push(poll.user_data(user_data(Operation::Writable, connection))) };
    }

    /// The socket takes bytes, or has failed, which the next send finds out. Answers one `Blocked`.
    pub(super) fn handle_writable<S: Sink<Self>>(&mut self, connection: ConnectionId, result: i32, sink: &mut S) {
        let Some(slot) = live_slot(&mut self.slots, connection) else { unreachable!("a slot outlives what is in flight") };
        slot.clear(AWAITING | AWAIT_BACK);
        if slot.is(QUITTING) {
            self.arm(connection);
        } else if slot.is(CLOSING) || !slot.is(BLOCKED) {
            // Nobody waits any more.
        } else if result < 0 {
            self.fail(connection, io::Error::from_raw_os_error(-result), sink);
        } else {
            slot.clear(BLOCKED);
            sink.writable(self, connection);
        }
    }
}
