//! What a connection is told: frames into its queue, refusals, and the ways to end it.

use super::{CLOSE_MS, Kind, STALL_CHECK_MS, Shard, State, flags};
use crate::conn::send_queue::Wrap;
use crate::ids::{ConnectionId, FrameIndex};
use crate::observe::counters::CloseCause;
use crate::session::delivery::{Catchup, Session, Stage};
use crate::wire::envelope::{Encoding, ErrorCode, ServerFrame, encode_server, page_flags};
use crate::wire::frame::Opcode;

impl Shard {
    /// Queues a frame, and applies the bounds of the queue: over soft, reading pauses; over the core's share, the connection ends.
    pub(super) fn push_frame(&mut self, id: ConnectionId, frame: FrameIndex, pos: u64) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if matches!(connection.state, State::Closing | State::Finished) {
            return;
        }
        self.pool.push(&mut connection.queue, frame, pos);
        self.queued(id);
    }

    /// A frame was queued: it is sent at the next flush, and the bounds of the queue apply.
    fn queued(&mut self, id: ConnectionId) {
        self.counters.frames_sent_count += 1;
        let connection = self.connections.known_mut(id);
        if connection.flags & flags::DIRTY == 0 {
            connection.flags |= flags::DIRTY;
            self.dirty.push_back(id);
        }
        if connection.queue.bytes() > self.rules.queue_soft_bytes {
            self.queued_much(id);
        }
    }

    fn queued_much(&mut self, id: ConnectionId) {
        let connection = self.connections.known_mut(id);
        if connection.flags & flags::PAUSED == 0 {
            connection.flags |= flags::PAUSED;
            self.note_slow(id);
            let connection = self.connections.known_mut(id);
            self.commands.push_back(super::Command::Pause(id));
            if connection.flags & flags::STALLING == 0 {
                connection.flags |= flags::STALLING;
                connection.flags &= !flags::PROGRESS;
                self.schedule(id, self.rules.stall_ms.min(STALL_CHECK_MS), Kind::Stall);
            }
        }
        if self.pool.queued_bytes > self.rules.queued_bytes_max {
            self.counters.queued_bytes_full_count += 1;
            self.close(id, 4503, CloseCause::Overloaded);
        }
    }

    /// Queues a control frame in its place behind what it answers, under the bounds of the queue.
    pub(super) fn push_own(&mut self, id: ConnectionId, opcode: Opcode, payload: &[u8]) {
        let frame = self.pool.build(Wrap::Frame(opcode), |out| out.extend_from_slice(payload));
        self.push_frame(id, frame, 0);
        self.pool.release(frame);
    }

    /// Queues a ping of ours before all data that waits; behind it while a write is under way, which may already hold that data.
    pub(super) fn push_control(&mut self, id: ConnectionId, opcode: Opcode, payload: &[u8]) {
        let frame = self.pool.build(Wrap::Frame(opcode), |out| out.extend_from_slice(payload));
        let connection = self.connections.known_mut(id);
        if connection.flags & flags::SENDING == 0 {
            self.pool.push_control(&mut connection.queue, frame);
        } else {
            self.pool.push(&mut connection.queue, frame, 0);
        }
        self.pool.release(frame);
        self.counters.frames_sent_count += 1;
        self.touch(id);
    }

    /// Queues one protocol frame of this connection's own.
    pub(super) fn push_server(&mut self, id: ConnectionId, frame: &ServerFrame<'_>) {
        let Some(encoding) = self.connections.get(id).and_then(|connection| connection.encoding) else { return };
        self.push_short(id, opcode_of(encoding), |out| encode_server(encoding, frame, out));
    }

    /// Queues a short message of this connection's own, which `write` appends: see `SendPool::push_short`.
    pub(super) fn push_short(&mut self, id: ConnectionId, opcode: Opcode, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.flags & flags::DEFLATE != 0 {
            return self.push_message(id, opcode, write);
        }
        if !matches!(connection.state, State::Closing | State::Finished) {
            self.pool.push_short(&mut connection.queue, opcode, write);
            self.queued(id);
        }
    }

    /// Queues a message of this connection's own, compressed where that was agreed to and is worth it.
    pub(super) fn push_message(&mut self, id: ConnectionId, opcode: Opcode, write: impl FnOnce(&mut Vec<u8>)) {
        let frame = if self.connections.get(id).is_some_and(|connection| connection.flags & flags::DEFLATE != 0) {
            let (bytes, is_compressed) = self.deflater.get_or_insert_default().message(write);
            let wrap = if is_compressed { Wrap::Compressed(opcode) } else { Wrap::Frame(opcode) };
            self.pool.build(wrap, |out| out.extend_from_slice(bytes))
        } else {
            self.pool.build(Wrap::Frame(opcode), write)
        };
        self.push_frame(id, frame, 0);
        self.pool.release(frame);
    }

    pub(super) fn push_error(&mut self, id: ConnectionId, rid: u32, code: ErrorCode, retry_ms: u32, flags: u8, detail: &str) {
        self.counters.count_error(code.value());
        let retry_ms = if retry_ms > 0 { self.jittered(retry_ms) } else { 0 };
        let retryable = if code.is_retryable() { page_flags::ERROR_RETRYABLE } else { 0 };
        let flags = flags | retryable;
        self.push_server(id, &ServerFrame::Error { rid, code: code.value(), flags, retry_ms, detail: detail.into() });
    }

    /// ERROR to one request; the connection lives.
    pub(super) fn refuse(&mut self, id: ConnectionId, rid: u32, code: ErrorCode, retry_ms: u32, detail: &str) {
        self.push_error(id, rid, code, retry_ms, 0, detail);
    }

    /// ERROR with CLOSING, then the close code that belongs to it.
    pub(super) fn fail(&mut self, id: ConnectionId, rid: u32, code: ErrorCode, detail: &str) {
        self.push_error(id, rid, code, 0, page_flags::ERROR_CLOSING, detail);
        let cause = match code {
            ErrorCode::TokenInvalid => CloseCause::TokenInvalid,
            ErrorCode::TokenExpired => CloseCause::TokenExpired,
            ErrorCode::Banned | ErrorCode::TooManyDevices => CloseCause::Forbidden,
            ErrorCode::FrameTooLarge => CloseCause::FrameTooLarge,
            _ => CloseCause::ProtocolError,
        };
        self.close(id, code.close_code().unwrap_or(4400), cause);
    }

    /// As [`Shard::fail`], after everything asked before has been answered.
    pub(super) fn fail_in_turn(&mut self, id: ConnectionId, rid: u32, code: ErrorCode, detail: &'static str) {
        if self.is_answered(id) {
            return self.fail(id, rid, code, detail);
        }
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.state = State::Failing;
        let failure = super::Failure { rid, code, detail };
        self.cold[id].extra.get_or_insert_default().failure = Some(failure);
        self.schedule(id, super::FAILING_MS, Kind::Failing);
    }

    /// Something was answered: if it was the last before a broken rule, the connection ends now.
    pub(super) fn check_failing(&mut self, id: ConnectionId) {
        if self.is_answered(id) {
            self.finish_failing(id);
        }
    }

    #[expect(clippy::expect_used, reason = "State::Failing is set together with what failed")]
    pub(super) fn finish_failing(&mut self, id: ConnectionId) {
        if self.connections.get(id).is_none_or(|connection| connection.state != State::Failing) {
            return;
        }
        let failure = self.cold[id].extra.as_mut().and_then(|extra| extra.failure.take());
        self.drop_empty_extra(id);
        let super::Failure { rid, code, detail } = failure.expect("comes with the state");
        self.fail(id, rid, code, detail);
    }

    fn is_answered(&self, id: ConnectionId) -> bool {
        let cold = &self.cold[id];
        cold.sends_unanswered == 0 && cold.oks_unanswered == 0 && cold.reads_waiting == 0
    }

    /// Begins the close handshake: what is queued still leaves, then a close frame, then FIN.
    pub(super) fn close(&mut self, id: ConnectionId, code: u16, cause: CloseCause) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if matches!(connection.state, State::Closing | State::Finished) {
            return;
        }
        if matches!(connection.state, State::Proxy | State::Upgrade) {
            return self.abort(id, cause);
        }
        let frame = self.pool.build(Wrap::Frame(Opcode::Close), |out| out.extend_from_slice(&code.to_be_bytes()));
        let connection = self.connections.known_mut(id);
        self.pool.push(&mut connection.queue, frame, 0);
        self.pool.release(frame);
        self.begin_closing(id, cause);
    }

    /// From here on what comes is dropped, what is queued still leaves, and nothing more is queued.
    pub(super) fn begin_closing(&mut self, id: ConnectionId, cause: CloseCause) {
        self.step_out(id);
        let connection = self.connections.known_mut(id);
        connection.state = State::Closing;
        connection.flags &= !flags::PAUSED;
        self.cold[id].cause.get_or_insert(cause);
        self.detach_session(id);
        self.schedule(id, CLOSE_MS, Kind::Close);
        self.touch(id);
    }

    /// Tells a session what it missed, as far as there is room now.
    pub(super) fn catch_up(&mut self, id: ConnectionId) {
        let window_bytes_max = self.rules.window_bytes_max;
        let Some(connection) = self.connections.get(id) else { return };
        if connection.queue.bytes() > self.rules.queue_soft_bytes {
            return;
        }
        let Some(session) = self.session_mut(id) else { return };
        if session.stage != Stage::Active || !session.has_room(0, window_bytes_max) {
            return;
        }
        match session.tell_marks() {
            None => {}
            Some(Catchup::Resync) => {
                self.counters.resyncs_sent_count += 1;
                self.push_server(id, &ServerFrame::Resync { reason: 1 });
            }
            Some(Catchup::Notices(marks)) => {
                for mark in &marks {
                    self.counters.notices_sent_count += 1;
                    let conv = mark.conv.as_str().into();
                    self.push_server(id, &ServerFrame::Notice { conv, head: mark.head, mid: mark.mid });
                }
            }
        }
    }

    pub(super) fn session_id(&self, id: ConnectionId) -> Option<ConnectionId> {
        let slot = self.connections.get(id)?.session.checked_sub(1)?;
        self.sessions.at(slot).map(|(key, _)| ConnectionId::from(key))
    }

    pub(super) fn session_mut(&mut self, id: ConnectionId) -> Option<&mut Session> {
        let session_id = self.session_id(id)?;
        self.sessions.get_mut(session_id)
    }

    /// Sets the two timers of a token's life.
    pub(super) fn watch_expiry(&mut self, id: ConnectionId, expires_s: u32) {
        let left_ms = (u64::from(expires_s) * 1000).saturating_sub(self.now.unix_ms);
        if left_ms > FAR_MS {
            // Once, whatever ends the tokens shown meanwhile have: it is looked again at what is left then.
            let connection = self.connections.known_mut(id);
            if connection.flags & flags::FAR == 0 {
                connection.flags |= flags::FAR;
                self.schedule(id, FAR_AGAIN_MS, Kind::Far);
            }
            return;
        }
        let left_ms = u32::try_from(left_ms).unwrap_or(u32::MAX);
        // One entry for the hours that a token lasts: the end is filed when EXPIRING is due.
        self.schedule(id, left_ms.saturating_sub(self.rules.expiring_ms), Kind::Expiring);
    }
}

pub(super) fn opcode_of(encoding: Encoding) -> Opcode {
    match encoding {
        Encoding::Binary => Opcode::Binary,
        Encoding::Json => Opcode::Text,
    }
}

/// An end of a token that is further away, milliseconds, is not filed yet: 12 days.
pub(super) const FAR_MS: u64 = 1 << 30;
/// How long until it is looked at again, milliseconds: 6 days.
const FAR_AGAIN_MS: u32 = 1 << 29;
