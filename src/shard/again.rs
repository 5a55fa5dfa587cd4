//! NACK: messages a device wants again later, read back from the store when their time has come.

use super::answer::opcode_of;
use super::{Kind, Outlet, Shard, State};
use crate::conn::send_queue::Wrap;
use crate::ids::{self, ConnectionId};
use crate::mail::{PageMail, PageReply, PageRequest, Reached, Submit};
use crate::mutant::{self, Mutant};
use crate::session::delivery::Held;
use crate::session::nack::Asked;
use crate::wire::envelope::{Encoding, ErrorCode};

impl Shard {
    pub(super) fn handle_nack(&mut self, id: ConnectionId, conv: &str, seq: u64, delay_ms: u32) {
        if ids::conversation_kind(conv).is_none() || seq == 0 {
            return;
        }
        let now_ms = self.mono_ms();
        let dice = self.rules.hashes.fingerprint(self.id.0, &self.now.mono_ns.to_le_bytes()) ^ seq;
        let Some(session) = self.session_mut(id) else { return };
        match session.backlog.get_or_insert_default().nacks.ask(conv, seq, delay_ms, now_ms, dice) {
            Asked::At(_) => {
                if mutant::on(Mutant::NackMovesCursor) {
                    session.hold_up_to(conv, seq);
                }
                self.watch_nacks(id);
            }
            Asked::Ignored => {}
            Asked::Full => {
                let detail = format!("{conv} too many wait for redelivery");
                self.refuse(id, 0, ErrorCode::TooManySubscriptions, 0, &detail);
                self.count_sign(id);
            }
        }
    }

    /// Has the store read back the next message that is due, one at a time.
    pub(super) fn ask_again(&mut self, id: ConnectionId, outlet: &mut impl Outlet) {
        let now_ms = self.mono_ms();
        if self.nack_clocks.get(&id).is_some_and(|&at_ms| at_ms <= now_ms) {
            self.nack_clocks.remove(&id);
        }
        if self.connections.get(id).is_none_or(|connection| connection.state != State::Active) {
            return;
        }
        let Some(session) = self.session_mut(id) else { return };
        let Some(backlog) = session.backlog.as_mut() else { return };
        let Some((conv, seq)) = backlog.nacks.next_due(now_ms) else {
            // What the timer was set for has been taken back. Behind one that is being read it is set when that has come.
            if !backlog.nacks.is_any_read() {
                self.watch_nacks(id);
            }
            return;
        };
        let encoding = session.encoding;
        let Some(from) = self.sender(id, 0) else { return };
        let request = PageRequest::Again { conv, seq };
        let page = PageMail { from, encoding, max_frame: self.rules.max_frame, request };
        if outlet.submit(Submit::Page(page)).is_err() {
            self.postpone_nack(id);
        }
    }

    /// A reader has looked for the message. It takes a new `pos` and a place in the window; while there is none it waits.
    #[expect(clippy::expect_used, reason = "a tail is at most a frame, whose bound has 32 bits")]
    pub(super) fn deliver_again(&mut self, id: ConnectionId, encoding: Encoding, reply: PageReply) {
        let window_bytes_max = self.rules.window_bytes_max;
        let Some(session_id) = self.session_id(id) else { return };
        let session = self.sessions.known_mut(session_id);
        let Some(backlog) = &mut session.backlog else { return };
        let tail = match (reply.result, reply.reached) {
            (Ok(tail), Reached::Again(conv, seq)) if backlog.nacks.is_reading(&conv, seq) => tail,
            // A cursor has passed it, or the session was elsewhere in the meantime.
            (Ok(_), _) => return self.watch_nacks(id),
            (Err(code), _) if code.is_retryable() => return self.postpone_nack(id),
            (Err(_), _) => {
                backlog.nacks.forget();
                session.drop_empty_backlog();
                return self.watch_nacks(id);
            }
        };
        let bytes = u32::try_from(tail.len()).expect("at most a frame");
        if session.is_behind() || !session.has_room(bytes, window_bytes_max) {
            return self.postpone_nack(id);
        }
        if let Some(backlog) = &mut session.backlog {
            backlog.nacks.delivered();
        }
        let frame = self.pool.build(Wrap::Frame(opcode_of(encoding)), |out| *out = tail);
        let pos = session.deliver(Held { frame, bytes });
        self.pool.hold(frame);
        self.counters.deliveries_again_count += 1;
        self.push_frame(id, frame, pos);
        self.pool.release(frame);
        self.watch_nacks(id);
    }

    /// The message being read back cannot be had or delivered now.
    pub(super) fn postpone_nack(&mut self, id: ConnectionId) {
        let due_ms = self.mono_ms() + POSTPONE_MS;
        if let Some(backlog) = self.session_mut(id).and_then(|session| session.backlog.as_mut()) {
            backlog.nacks.postpone(due_ms);
        }
        self.watch_nacks(id);
    }

    /// Sets the timer of the earliest redelivery, unless an earlier one is set: the entries of a connection lie a tick apart at least, whatever
    /// it asks for and takes back.
    pub(super) fn watch_nacks(&mut self, id: ConnectionId) {
        let now_ms = self.mono_ms();
        let earliest = self.session_mut(id).and_then(|session| session.backlog.as_ref()?.nacks.earliest_ms());
        if let Some(due_ms) = earliest {
            // Whatever is overdue is looked at in the next tick.
            let due_ms = due_ms.max(now_ms);
            if self.nack_clocks.get(&id).is_some_and(|&at_ms| at_ms < due_ms + u64::from(TICK_MS)) {
                return;
            }
            self.nack_clocks.insert(id, due_ms);
            let left_ms = u32::try_from(due_ms.saturating_sub(now_ms)).unwrap_or(u32::MAX);
            // A tick more: the present one has begun already, and a timer that finds nothing due yet would not be set again.
            self.schedule(id, left_ms.saturating_add(TICK_MS), Kind::Again);
        }
    }
}

/// One tick of the wheel.
const TICK_MS: u32 = 100;
/// A redelivery that finds no room, or no answer, tries again after this long.
const POSTPONE_MS: u64 = 1_000;

#[cfg(test)]
mod tests {
    use crate::mail::{PageRequest, Submit};
    use crate::shard::alone_tests::Core;

    const NACK: &str = r#"{"t":"nack","conv":"d:al:bo","seq":1,"delay_ms":1000}"#;
    const NACK_LATER: &str = r#"{"t":"nack","conv":"d:al:cy","seq":7,"delay_ms":30000}"#;
    const TAKEN_BACK: &str = r#"{"t":"ack","cursors":[{"conv":"d:al:bo","seq":1}]}"#;

    /// Whatever is asked for and taken back, again and again, fills no wheel.
    #[test]
    fn what_is_taken_back_files_nothing_more() {
        let mut core = Core::new();
        let (id, _) = core.active(core.now.unix_ms / 1_000 + 600);
        let before = core.shard.wheel.len();
        for _ in 0..2_000 {
            core.text(id, NACK);
            core.text(id, TAKEN_BACK);
        }
        assert!(core.shard.wheel.len() <= before + 16, "{} entries", core.shard.wheel.len());
    }

    /// The timer was set for a message that has been taken back: the later one comes nevertheless.
    #[test]
    fn a_later_redelivery_outlives_an_earlier_one() {
        let mut core = Core::new();
        let (id, _) = core.active(core.now.unix_ms / 1_000 + 600);
        core.text(id, NACK);
        core.text(id, NACK_LATER);
        core.text(id, TAKEN_BACK);
        core.run_until(id, core.now.unix_ms + 40_000, 100);
        let asked = core
            .port
            .submitted
            .iter()
            .filter(|mail| matches!(mail, Submit::Page(page) if matches!(&page.request, PageRequest::Again { seq: 7, .. })));
        assert_eq!(asked.count(), 1);
    }
}
