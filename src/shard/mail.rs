//! What other threads have sent: one commit group of the store, pages of the readers, words of other cores.

use std::time::Duration;

use super::answer::opcode_of;
use super::{Kind, Outlet, Shard, State, Work};
use crate::clock::Moment;
use crate::conn::send_queue::Wrap;
use crate::ids::{ConnectionId, FrameIndex, Mid, SessionRef};
use crate::limits::CURSORS_SUBMITTED_MAX;
use crate::mail::{CursorMail, Delivery, Event, Group, Kicked, PageReply, Reached, SessionSeen, Submit, Target};
use crate::observe::counters::{CloseCause, Shed};
use crate::observe::trace::Place;
use crate::session::delivery::{Held, Stage};
use crate::session::hold::By;
use crate::wire::envelope::{
    Deliver, Encoding, ErrorCode, ServerFrame, caps, deliver_flags, deliver_tail, encode_server, page_flags,
};
use crate::wire::message::Text;

/// Latencies a core has seen, taken and recorded by the reactor after each turn.
#[derive(Debug, Default)]
pub struct Latencies {
    /// From reading a SEND to queueing its SENT.
    pub acknowledged: Vec<Duration>,
    /// From accepting a connection to queueing its 101.
    pub upgraded: Vec<Duration>,
}

impl Shard {
    /// All that one commit group means to this core, in order.
    pub fn handle_group(&mut self, now: Moment, group: &Group, outlet: &mut impl Outlet) {
        self.now = now;
        self.counters.groups_received_count += 1;
        for event in &group.events {
            match event {
                Event::Sent { session, .. }
                | Event::Ok { session, .. }
                | Event::Renewed { session, .. }
                | Event::Failed { session, .. }
                | Event::PageRefused { session, .. }
                | Event::Kick { session, .. } => {
                    self.guarded_session(Work::Answer, slot_of(*session), |shard| {
                        shard.handle_event_of_group(event, &group.targets, outlet);
                    });
                }
                _ => self.handle_event_of_group(event, &group.targets, outlet),
            }
        }
    }

    fn handle_event_of_group(&mut self, event: &Event, targets: &[Target], outlet: &mut impl Outlet) {
        match event {
            Event::Attached { session, roster, evicted } => self.handle_attached(*session, *roster, *evicted),
            Event::AttachRefused { session, code } => {
                let Some(id) = self.connection_of(*session) else { return self.drop_session(*session) };
                self.drop_session(*session);
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.session = 0;
                }
                self.guarded(Work::Welcome, id, |shard| shard.refuse_attach(id, *code));
            }
            Event::Evict { session, by, claim } => self.handle_evict(*session, *by, claim.as_ref(), outlet),
            Event::Left { session } => self.drop_session(*session),
            Event::Sent { session, cmid, rid, level, flags, seq, mid, costs_nothing, received } => {
                self.latencies.acknowledged.push(self.now.since(*received));
                let Some(id) = self.connection_of(*session) else { return self.stale() };
                self.answered(id);
                if *costs_nothing {
                    self.cold[id].sends.give_back(self.rules.send_rate);
                    self.give_back_to_user(id);
                }
                self.settle(id, *cmid);
                self.counters.sents_count += 1;
                self.push_server(id, &ServerFrame::Sent { rid: *rid, level: *level, flags: *flags, seq: *seq, mid: *mid });
                self.check_failing(id);
            }
            Event::Ok { session, rid, value } => {
                let Some(id) = self.connection_of(*session) else { return self.stale() };
                self.push_server(id, &ServerFrame::Ok { rid: *rid, value: *value });
                self.ok_answered(id);
            }
            Event::Renewed { session, rid, expires_s } => {
                let Some(id) = self.connection_of(*session) else { return self.stale() };
                self.renewed(id, *rid, *expires_s);
                self.ok_answered(id);
            }
            Event::Failed { session, rid, code, retry_ms, send } => {
                let Some(id) = self.connection_of(*session) else { return self.stale() };
                // A frame without rid names its conversation in the detail; a SEND is told by its rid.
                match send {
                    Some((conv, _)) if *rid == 0 => self.refuse(id, 0, *code, 0, &format!("{} refused", conv.as_str())),
                    Some((conv, cmid)) => {
                        self.answered(id);
                        let holds = cmid.is_zero() || self.hold_or_settle(id, conv, *cmid, *code, By::Store);
                        self.refuse(id, *rid, *code, *retry_ms, "");
                        if !holds {
                            // The store holds the conversation for this session; only another session is free of it.
                            self.close(id, 4429, CloseCause::RateLimited);
                        }
                        self.check_failing(id);
                    }
                    None => {
                        self.refuse(id, *rid, *code, *retry_ms, "");
                        self.ok_answered(id);
                    }
                }
            }
            Event::PageRefused { session, rid: 0, .. } => {
                let Some(id) = self.connection_of(*session) else { return };
                self.postpone_nack(id);
            }
            Event::PageRefused { session, rid, code, retry_ms } => {
                let Some(id) = self.connection_of(*session) else { return self.stale() };
                self.refuse(id, *rid, *code, *retry_ms, "");
                if self.session_id(id).is_some() {
                    self.next_page(id, outlet);
                }
            }
            Event::Deliver { message, first, count } => {
                let targets = receivers(targets, *first, *count);
                if message.flags & deliver_flags::TRANSIENT != 0 {
                    return self.tell(Shed::Transient, targets, |own| ServerFrame::Deliver(deliver_of(message, own, false)));
                }
                self.deliver(message, targets);
            }
            Event::Notice { conv, head, mid, first, count } => {
                self.notice((conv, *head, *mid), receivers(targets, *first, *count));
            }
            Event::Kick { session, why } => self.kicked(*session, *why),
            Event::Receipt { conv, user, recv, read, first, count } => {
                let (conv, user): (&str, &str) = (conv, user);
                let frame = |_| ServerFrame::Receipt { conv: conv.into(), user: user.into(), recv: *recv, read: *read };
                self.tell(Shed::Transient, receivers(targets, *first, *count), frame);
            }
            Event::Presence { user, state, seen_ms, first, count } => {
                let user: &str = user;
                let frame = |_| ServerFrame::Presence { user: user.into(), state: *state, seen_ms: *seen_ms };
                self.tell(Shed::Presence, receivers(targets, *first, *count), frame);
            }
            Event::Signalled { conv, from, kind, payload, first, count } => {
                let (conv, from, payload): (&str, &str, &[u8]) = (conv, from, payload);
                let frame =
                    |_| ServerFrame::Signalled { conv: conv.into(), from: from.into(), kind: *kind, payload: payload.into() };
                self.tell(Shed::Signal, receivers(targets, *first, *count), frame);
            }
            Event::Conv { conv, event, version, data, first, count } => {
                let (conv, data): (&str, &[u8]) = (conv, data);
                let frame = ServerFrame::Conv { conv: conv.into(), event: *event, version: *version, data: data.into() };
                let targets = receivers(targets, *first, *count);
                self.for_each(targets, |shard, session, _| shard.tell_conversation(session, &frame));
            }
            Event::Resync => self.resync_all(),
        }
    }

    /// The store has no place for the session, which is dropped: its connection is told why.
    fn refuse_attach(&mut self, id: ConnectionId, code: ErrorCode) {
        match code {
            ErrorCode::StoreOverloaded => self.turn_away(id),
            ErrorCode::RateLimited => self.refuse_hello(id, RETRY_HELLO_MS, "this device tries too often"),
            ErrorCode::TokenInvalid => self.fail(id, 0, code, "token missing or invalid"),
            _ => self.fail(id, 0, code, "this user or device may not connect"),
        }
    }

    /// Does something for the session of each target; a panic ends that one alone.
    pub(super) fn for_each(&mut self, targets: &[Target], mut handle: impl FnMut(&mut Self, ConnectionId, bool)) {
        for target in targets {
            let session = ConnectionId { index: target.index, generation: target.generation };
            self.guarded_session(Work::Delivery, session, |shard| handle(shard, session, target.own));
        }
    }

    /// CONV, or a note that one was missed.
    fn tell_conversation(&mut self, session: ConnectionId, frame: &ServerFrame<'_>) {
        let Some(line) = self.sessions.get_mut(session) else { return };
        if line.stage != Stage::Active {
            return line.miss();
        }
        let id = line.connection;
        self.push_server(id, frame);
    }

    /// A SEND was answered for good or not: its place in the send window is free.
    fn answered(&mut self, id: ConnectionId) {
        let cold = &mut self.cold[id];
        cold.sends_unanswered = cold.sends_unanswered.saturating_sub(1);
    }

    /// A READ was answered.
    pub(super) fn ok_answered(&mut self, id: ConnectionId) {
        let cold = &mut self.cold[id];
        cold.oks_unanswered = cold.oks_unanswered.saturating_sub(1);
        self.check_failing(id);
    }

    /// One stored message to many sessions: the tail of each variant is built once.
    fn deliver(&mut self, message: &Delivery, targets: &[Target]) {
        let mut variants = [None; VARIANTS];
        let context = message.trace.map(|it| (it.trace_id, it.flags));
        if let Some(followed) = self.rules.sampling.follow(message.cmid, context) {
            let devices = u32::try_from(targets.len()).unwrap_or(u32::MAX);
            let place = Place::Delivered { mid: message.mid, seq: message.seq, devices };
            if !self.steps.note(followed, &message.conv, place) {
                self.counters.trace_steps_dropped_count += 1;
            }
        }
        self.for_each(targets, |shard, session, own| shard.deliver_one(message, (session, own), &mut variants));
        for frame in variants.into_iter().flatten() {
            self.pool.release(frame);
        }
    }

    #[expect(clippy::indexing_slicing, reason = "`variant_of` is below `VARIANTS`")]
    fn deliver_one(
        &mut self,
        message: &Delivery,
        (session_id, own): (ConnectionId, bool),
        variants: &mut [Option<FrameIndex>; VARIANTS],
    ) {
        // Before the session is looked up: it may be the one detached the longest, from which nothing is to be had any more then.
        let within = self.relieve() || self.is_kept_for(session_id);
        let Some(session) = self.sessions.get_mut(session_id) else { return self.stale() };
        if session.stage == Stage::Leaving {
            return;
        }
        let (id, encoding) = (session.connection, session.encoding);
        let traced = message.trace.is_some() && u32::from(session.caps) & caps::TRACE != 0;
        let frame = *variants[variant_of(encoding, own, traced)].get_or_insert_with(|| {
            let max_frame = self.rules.max_frame as usize;
            let deliver = deliver_of(message, own, traced);
            self.pool.build(Wrap::Frame(opcode_of(encoding)), |out| deliver_tail(encoding, &deliver, max_frame, out))
        });
        let bytes = self.pool.frame_len(frame);
        let active = session.stage == Stage::Active;
        let over_hard = active && self.connections.get(id).is_none_or(|it| it.queue.bytes() > self.rules.queue_hard_bytes);
        if !within || over_hard || session.is_behind() || !session.has_room(bytes, self.rules.window_bytes_max) {
            self.counters.deliveries_marked_count += 1;
            let fresh = session.mark(&message.conv, message.seq, message.mid, self.now.mono_ns / 1_000_000);
            if fresh && active {
                self.schedule(id, self.rules.ack_timeout_ms, Kind::Acknowledge);
            }
            return;
        }
        if session.backlog.is_none() {
            session.backlog = self.backlogs.take();
        }
        // First counted, then named: a panic between the two loses a count, which nobody else can miss.
        self.pool.hold(frame);
        let pos = session.deliver(Held { frame, bytes });
        let is_slow = session.window_bytes > self.rules.queue_soft_bytes;
        self.counters.deliveries_count += 1;
        if active {
            if is_slow {
                self.note_slow(id);
            }
            self.push_frame(id, frame, pos);
        }
    }

    /// A large conversation moved. Who has too much waiting is told once there is room, who is away after a resume.
    fn notice(&mut self, (conv, head, mid): (&Text, u64, Mid), targets: &[Target]) {
        let mut variants: [Option<FrameIndex>; 2] = [None; 2];
        self.for_each(targets, |shard, session, _| shard.notice_one((conv, head, mid), session, &mut variants));
        for frame in variants.into_iter().flatten() {
            self.pool.release(frame);
        }
    }

    #[expect(clippy::indexing_slicing, reason = "a variant for each encoding")]
    fn notice_one(
        &mut self,
        (conv, head, mid): (&Text, u64, Mid),
        session_id: ConnectionId,
        variants: &mut [Option<FrameIndex>; 2],
    ) {
        let now_ms = self.mono_ms();
        let within = self.relieve() || self.is_kept_for(session_id);
        let Some(session) = self.sessions.get_mut(session_id) else { return };
        if session.stage == Stage::Leaving {
            return;
        }
        let (id, encoding, is_active) = (session.connection, session.encoding, session.stage == Stage::Active);
        let has_room = within && self.connections.get(id).is_some_and(|it| it.queue.bytes() <= self.rules.queue_soft_bytes);
        if !is_active || !has_room || session.is_behind() {
            if session.mark(conv, head, mid, now_ms) && is_active {
                self.schedule(id, self.rules.ack_timeout_ms, Kind::Acknowledge);
            }
            return;
        }
        session.mark_told(conv, head, mid);
        let index = *variants[usize::from(encoding == Encoding::Json)].get_or_insert_with(|| {
            let frame = ServerFrame::Notice { conv: conv.as_str().into(), head, mid };
            self.pool.build(Wrap::Frame(opcode_of(encoding)), |out| encode_server(encoding, &frame, out))
        });
        self.counters.notices_sent_count += 1;
        self.push_frame(id, index, 0);
    }

    fn resync_all(&mut self) {
        for slot in 0..self.sessions.slots_count() {
            let Some(session_id) = self.sessions.at(slot).map(|(key, _)| ConnectionId::from(key)) else { continue };
            self.guarded_session(Work::Delivery, session_id, |shard| shard.resync_one(session_id));
        }
    }

    fn resync_one(&mut self, session_id: ConnectionId) {
        let Some(session) = self.sessions.get_mut(session_id) else { return };
        if session.stage == Stage::Leaving {
            return;
        }
        session.mark_all();
        let (id, active) = (session.connection, session.stage == Stage::Active);
        if active {
            self.catch_up(id);
        }
    }

    /// A reader has finished a page.
    pub fn handle_page(&mut self, now: Moment, reply: PageReply, outlet: &mut impl Outlet) {
        self.now = now;
        self.guarded_session(Work::Page, slot_of(reply.session), |shard| shard.take_page(reply, outlet));
    }

    fn take_page(&mut self, reply: PageReply, outlet: &mut impl Outlet) {
        let Some(id) = self.connection_of(reply.session) else { return self.stale() };
        let Some(encoding) = self.connections.get(id).and_then(|connection| connection.encoding) else { return };
        if reply.rid == 0 {
            return self.deliver_again(id, encoding, reply);
        }
        match reply.result {
            Ok(page) => {
                self.page_reaches(id, &reply.reached);
                self.counters.pages_sent_count += 1;
                self.push_message(id, opcode_of(encoding), |out| *out = page);
            }
            Err(code) if code.close_code().is_some() => self.fail(id, reply.rid, code, "cursor is not one of ours"),
            Err(code) => self.refuse(id, reply.rid, code, if code.is_retryable() { RETRY_PAGE_MS } else { 0 }, ""),
        }
        if self.session_id(id).is_some() {
            self.next_page(id, outlet);
        }
    }

    /// Asks everybody to leave, a few at a time, spread over `window_ms`.
    pub fn handle_drain(&mut self, now: Moment, close_code: u16, window_ms: u32) {
        self.now = now;
        // Few connections need no long window: a thousand a second leave at least.
        let count = u32::try_from(self.connections.len()).unwrap_or(u32::MAX);
        let window_ms = window_ms.min(count).max(1);
        self.drain = Some(super::Drain { close_code, ends_ns: now.mono_ns + u64::from(window_ms) * 1_000_000 });
        self.leave_detached();
        for slot in 0..self.connections.slots_count() {
            let Some(id) = self.connections.at(slot).map(|(key, _)| ConnectionId::from(key)) else { continue };
            // Slots are handed out in the order of arrival; multiplying spreads neighbours over the window.
            let place = slot.wrapping_mul(2_654_435_761) % window_ms;
            self.schedule(id, place, Kind::Goaway);
        }
    }

    /// Says GOAWAY to one connection, and gives it time to finish what it waits for.
    pub(super) fn say_goaway(&mut self, id: ConnectionId) {
        let Some(drain) = self.drain else { return };
        let Some(connection) = self.connections.get_mut(id) else { return };
        match connection.state {
            State::Active => {
                connection.state = State::Draining;
                let code = if drain.close_code == 1012 { 3 } else { 1 };
                let grace_ms = self.rules.drain_grace_ms;
                let (delay_ms, spread_ms) = (LEAVER_DELAY_MS + self.book_return(), LEAVER_SPREAD_MS);
                self.push_server(id, &ServerFrame::Goaway { code, delay_ms, spread_ms, grace_ms, target: "".into() });
                self.schedule(id, grace_ms, Kind::Grace);
            }
            State::Judging | State::Joining => self.turn_away(id),
            State::Proxy | State::Upgrade => self.abort(id, CloseCause::Drain),
            _ => self.close(id, drain.close_code, CloseCause::Drain),
        }
    }

    /// Sends what could not be sent before; lanes may have room again.
    pub fn flush_mail(&mut self, now: Moment, outlet: &mut impl Outlet) {
        self.now = now;
        let is_due = self.cursors_due_ms.is_some_and(|due| due <= self.mono_ms());
        // What a device acknowledged before it left counts: same lane, so it comes first.
        if is_due || !self.leaves.is_empty() && !self.cursors_kept {
            self.submit_cursors(outlet);
        }
        while !self.cursors_kept
            && let Some(leaving) = self.leaves.front()
            && outlet.submit(leaving.mail()).is_ok()
        {
            self.leaves.pop_front();
        }
        self.flush_peers(outlet);
    }

    pub(super) fn flush_peers(&mut self, outlet: &mut impl Outlet) {
        while let Some((to, mail)) = self.peers.pop_front() {
            if let Err(mail) = outlet.peer(to, mail) {
                self.peers.push_front((to, mail));
                self.counters.peer_full_count += 1;
                return;
            }
        }
    }

    pub(super) fn submit_cursors(&mut self, outlet: &mut impl Outlet) {
        self.cursors_due_ms = None;
        self.cursors_kept = false;
        let sessions = &self.sessions;
        let mut cursors: Vec<CursorMail> = Vec::with_capacity(self.cursors.len());
        cursors.extend(self.cursors.drain().filter_map(|((session, conv), seq)| {
            let roster = sessions.get(slot_of(session))?.roster?;
            Some(CursorMail { session, roster, conv, seq })
        }));
        // The table's own order is random; the same past gives the same mail.
        cursors.sort_unstable_by(|a, b| (a.session, &a.conv).cmp(&(b.session, &b.conv)));
        while !cursors.is_empty() {
            let rest = cursors.split_off(cursors.len().min(CURSORS_SUBMITTED_MAX));
            let batch = std::mem::replace(&mut cursors, rest);
            if let Err(Submit::Cursors(batch)) = outlet.submit(Submit::Cursors(batch)) {
                // Positions only move forward: they wait for the next time.
                for cursor in batch.into_iter().chain(cursors) {
                    self.cursors.insert((cursor.session, cursor.conv), cursor.seq);
                }
                self.cursors_kept = true;
                return self.watch_cursors();
            }
        }
    }

    /// What a page brings need not be noticed any more.
    fn page_reaches(&mut self, id: ConnectionId, reached: &Reached) {
        let Some(session) = self.session_mut(id) else { return };
        match reached {
            Reached::All => session.sync_answered(),
            Reached::Seq(conv, seq) => session.reach(conv, *seq),
            Reached::Nothing | Reached::Again(..) => {}
        }
    }

    /// The live connection of a session that still has one.
    pub(super) fn connection_of(&self, session: SessionRef) -> Option<ConnectionId> {
        let line = self.sessions.get(slot_of(session))?;
        matches!(line.stage, Stage::Joining | Stage::Active).then_some(line.connection)
    }

    /// What the operator's side may know of a session that is connected.
    #[must_use]
    pub fn inspect(&self, session: SessionRef) -> Option<SessionSeen> {
        let connection = self.connection_of(session)?;
        let line = self.sessions.get(slot_of(session))?;
        let queued_bytes = self.connections.get(connection)?.queue.bytes();
        Some(SessionSeen {
            connection,
            address: self.client(connection),
            encoding: line.encoding,
            pos: line.pos,
            unacknowledged: line.unacknowledged,
            is_behind: line.is_behind(),
            queued_bytes,
            expires_s: line.expires_s,
        })
    }

    /// Closes a session for the operator; whether it was there. One that a panic ended is gone as well.
    pub fn kick(&mut self, now: Moment, session: SessionRef) -> bool {
        self.now = now;
        let is_kicked = self.guarded_session(Work::Kick, slot_of(session), |shard| {
            shard.end_for_good(session, |shard, id| shard.close(id, 4403, CloseCause::Kicked))
        });
        is_kicked.unwrap_or(true)
    }

    /// The store ends a session.
    fn kicked(&mut self, session: SessionRef, why: Kicked) {
        self.end_for_good(session, |shard, id| match why {
            Kicked::Replaced => shard.close(id, 4409, CloseCause::Replaced),
            Kicked::Banned => shard.fail(id, 0, ErrorCode::Banned, "this user or device may not connect"),
            Kicked::Revoked => {
                shard.push_error(id, 0, ErrorCode::TokenInvalid, 0, page_flags::ERROR_CLOSING, "token revoked");
                shard.close(id, 4401, CloseCause::TokenRevoked);
            }
        });
    }

    /// Ends a session so that there is nothing to come back to, and says why to its connection, if it has one. Returns whether the
    /// session was there.
    fn end_for_good(&mut self, session: SessionRef, close: impl FnOnce(&mut Self, ConnectionId)) -> bool {
        if let Some(id) = self.connection_of(session) {
            self.end_session(id);
            close(self, id);
            return true;
        }
        let waits = self.sessions.get(slot_of(session)).is_some_and(|line| line.stage == Stage::Detached);
        if waits {
            self.leave(slot_of(session));
        }
        waits
    }

    pub(super) fn joining_mut(&mut self, id: ConnectionId) -> Option<&mut super::Joining> {
        self.connections.get(id)?;
        self.cold[id].extra.as_mut()?.joining.as_mut()
    }
}

/// The targets of one event of a group.
#[expect(clippy::indexing_slicing, reason = "the store appends them as it writes the event")]
fn receivers(targets: &[Target], first: u32, count: u32) -> &[Target] {
    &targets[first as usize..][..count as usize]
}

pub(super) fn slot_of(session: SessionRef) -> ConnectionId {
    ConnectionId { index: session.index, generation: session.generation }
}

pub(super) fn variant_of(encoding: Encoding, own: bool, traced: bool) -> usize {
    usize::from(traced) * 4 + usize::from(encoding == Encoding::Json) * 2 + usize::from(own)
}

/// Encodings, own or not, with trace context or without.
const VARIANTS: usize = 8;

fn deliver_of(message: &Delivery, own: bool, traced: bool) -> Deliver<'_> {
    let flags = if traced { message.flags } else { message.flags & !deliver_flags::TRACE };
    Deliver {
        pos: 0,
        seq: message.seq,
        mid: message.mid,
        flags: flags | if own { deliver_flags::OWN } else { 0 },
        kind: message.kind,
        exp_s: message.exp_s,
        cmid: own.then_some(message.cmid),
        trace: message.trace.filter(|_| traced),
        conv: message.conv.as_str().into(),
        from: message.from.as_str().into(),
        payload: (&*message.payload).into(),
    }
}

/// When those who are told to go may come again, at the least: the first of them at once, as other nodes may have room.
const LEAVER_DELAY_MS: u32 = 500;
const LEAVER_SPREAD_MS: u32 = 1_000;
/// Hint with a HELLO that came too soon after too many.
const RETRY_HELLO_MS: u32 = 10_000;
/// Hint with a page that a reader could not make.
const RETRY_PAGE_MS: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Bounds;
    use crate::shard::alone_tests::{Core, delivery};

    const BOUND_BYTES: u64 = 1 << 20;

    fn deliver(core: &mut Core, session: SessionRef, seq: u64) {
        let message = Delivery { seq, ..delivery(&[b'x'; 10_000]) };
        core.tell(session, |first, count| Event::Deliver { message, first, count });
    }

    /// Those who acknowledge nothing share three quarters of the room; from the rest whoever reads gets what it is sent, at once. With
    /// nothing left at all everybody is told to come for it.
    #[test]
    fn whoever_reads_is_served_beside_those_who_do_not() {
        let mut core = Core::new();
        let (reader, reads) = core.active(1_764_100_000);
        let deaf: Vec<_> = (0..4).map(|_| core.active(1_764_100_000).1).collect();
        let bound = |core: &mut Core, queued_bytes_max| {
            core.shard.set_bounds(Bounds { accept_per_s: 0, accept_burst: 1, handshakes_max: 64, queued_bytes_max });
        };
        let used = |core: &Core| core.shard.pool.queued_bytes + core.shard.held_bytes();
        let marked = |core: &Core| core.shard.counters.deliveries_marked_count;
        bound(&mut core, BOUND_BYTES);
        for seq in 1..=20 {
            deaf.iter().for_each(|session| deliver(&mut core, *session, seq));
        }
        assert!(marked(&core) > 0 && used(&core) < BOUND_BYTES * 4 / 5, "{} of {BOUND_BYTES}", used(&core));
        let before = marked(&core);
        for seq in 1..=50 {
            deliver(&mut core, reads, seq);
            assert!(core.said(reader).contains(&format!(r#""seq":{seq},"#)));
            core.text(reader, &format!(r#"{{"t":"ack","pos":{seq}}}"#));
        }
        assert_eq!(marked(&core), before);
        let all = used(&core) - 1;
        bound(&mut core, all);
        deliver(&mut core, reads, 51);
        assert!(!core.said(reader).contains(r#""t":"deliver""#));
        assert_eq!((marked(&core), used(&core)), (before + 1, all + 1));
    }
}
