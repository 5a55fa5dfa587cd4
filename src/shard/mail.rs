//! What other threads have sent: one commit group of the store, pages of the readers, words of other cores.

use std::time::Duration;

use super::answer::opcode_of;
use super::{GONE_MS, Kind, Outlet, Shard, State};
use crate::clock::Moment;
use crate::conn::send_queue::{FrameIndex, Wrap};
use crate::ids::{ConnectionId, RosterId, SessionRef};
use crate::mail::{CursorMail, Delivery, Event, Group, PageReply, Peer, SessionSeen, Submit, Target};
use crate::observe::counters::CloseCause;
use crate::observe::trace::Place;
use crate::session::delivery::Stage;
use crate::session::hold::By;
use crate::wire::envelope::{
    Deliver, Encoding, ErrorCode, ServerFrame, Welcome, caps, deliver_flags, deliver_tail, encode_server, page_flags,
};

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
            self.handle_event_of_group(event, &group.targets, outlet);
        }
    }

    fn handle_event_of_group(&mut self, event: &Event, targets: &[Target], outlet: &mut impl Outlet) {
        match event {
            Event::Attached { session, roster, evicted } => self.handle_attached(*session, *roster, *evicted),
            Event::AttachRefused { session, code } => {
                let Some(id) = self.connection_of(*session) else { return self.drop_session(*session) };
                self.drop_session(*session);
                self.connections.get_mut(id).expect("named by the session").session = 0;
                match code {
                    ErrorCode::StoreOverloaded => self.turn_away(id),
                    ErrorCode::RateLimited => {
                        self.counters.hellos_limited_count += 1;
                        self.push_error(id, 0, *code, RETRY_HELLO_MS, page_flags::ERROR_CLOSING, "this device tries too often");
                        self.close(id, 4429, CloseCause::RateLimited);
                    }
                    _ => self.fail(id, 0, *code, "this user or device may not connect"),
                }
            }
            Event::Evict { session, by } => self.handle_evict(*session, *by, outlet),
            Event::Left { session } => self.drop_session(*session),
            Event::Sent { session, cmid, rid, level, flags, seq, mid, received } => {
                self.latencies.acknowledged.push(self.now.since(*received));
                let Some(id) = self.connection_of(*session) else { return self.stale() };
                self.answered(id);
                self.settle(id, *cmid);
                self.counters.sents_count += 1;
                self.push_server(id, &ServerFrame::Sent { rid: *rid, level: *level, flags: *flags, seq: *seq, mid: *mid });
            }
            Event::Ok { session, rid, value } => {
                let Some(id) = self.connection_of(*session) else { return self.stale() };
                self.push_server(id, &ServerFrame::Ok { rid: *rid, value: *value });
            }
            Event::Failed { session, rid, code, retry_ms, send } => {
                let Some(id) = self.connection_of(*session) else { return self.stale() };
                // A frame without rid names its conversation in the detail; a SEND is told by its rid.
                match send {
                    Some((conv, _)) if *rid == 0 => self.refuse(id, 0, *code, 0, &format!("{} refused", conv.as_str())),
                    Some((conv, cmid)) => {
                        self.answered(id);
                        if !cmid.is_zero() {
                            self.hold_or_settle(id, conv, *cmid, *code, By::Store);
                        }
                        self.refuse(id, *rid, *code, *retry_ms, "");
                    }
                    None => self.refuse(id, *rid, *code, *retry_ms, ""),
                }
            }
            Event::PageRefused { session, rid, code, retry_ms } => {
                let Some(id) = self.connection_of(*session) else { return self.stale() };
                self.refuse(id, *rid, *code, *retry_ms, "");
                if self.session_id(id).is_some() {
                    self.next_page(id, outlet);
                }
            }
            Event::Deliver { message, first, count } => {
                let targets = &targets[*first as usize..][..*count as usize];
                if message.flags & deliver_flags::TRANSIENT != 0 {
                    return self.tell(targets, |own| ServerFrame::Deliver(deliver_of(message, own, false)));
                }
                self.deliver(message, targets);
            }
            Event::Receipt { conv, user, recv, read, first, count } => {
                let (conv, user): (&str, &str) = (conv, user);
                let frame = |_| ServerFrame::Receipt { conv: conv.into(), user: user.into(), recv: *recv, read: *read };
                self.tell(&targets[*first as usize..][..*count as usize], frame);
            }
            Event::Presence { user, state, seen_ms, first, count } => {
                let user: &str = user;
                let frame = |_| ServerFrame::Presence { user: user.into(), state: *state, seen_ms: *seen_ms };
                self.tell(&targets[*first as usize..][..*count as usize], frame);
            }
            Event::Signalled { conv, from, kind, payload, first, count } => {
                let (conv, from, payload): (&str, &str, &[u8]) = (conv, from, payload);
                let frame =
                    |_| ServerFrame::Signalled { conv: conv.into(), from: from.into(), kind: *kind, payload: payload.into() };
                self.tell(&targets[*first as usize..][..*count as usize], frame);
            }
            Event::Conv { conv, event, version, first, count } => {
                for target in &targets[*first as usize..][..*count as usize] {
                    // One that is joining runs SYNC after its WELCOME.
                    let session = self.session_of(*target);
                    let active = self.sessions.get(slot_of(session)).is_some_and(|line| line.stage == Stage::Active);
                    let Some(id) = self.connection_of(session).filter(|_| active) else { continue };
                    let (conv, data) = (conv.as_str().into(), (&[] as &[u8]).into());
                    self.push_server(id, &ServerFrame::Conv { conv, event: *event, version: *version, data });
                }
            }
            Event::Resync => self.resync_all(),
        }
    }

    /// A SEND was answered for good or not: its place in the send window is free.
    fn answered(&mut self, id: ConnectionId) {
        let cold = &mut self.cold[id.index as usize];
        cold.sends_unanswered = cold.sends_unanswered.saturating_sub(1);
    }

    fn handle_attached(&mut self, session: SessionRef, roster: RosterId, evicted: Option<SessionRef>) {
        let Some(line) = self.sessions.get_mut(slot_of(session)) else { return self.stale() };
        line.roster = Some(roster);
        if line.stage == Stage::Leaving {
            // The connection went away while the store was asked.
            return self.leaves.push_back(Submit::Leave { session, roster });
        }
        let id = line.connection;
        let Some(joining) = self.joining_mut(id) else { return self.stale() };
        joining.attached = true;
        let waits = evicted.is_some() && !joining.gone;
        joining.awaits = evicted;
        if waits {
            self.schedule(id, GONE_MS, Kind::Gone);
        } else {
            self.welcome(id);
        }
    }

    /// The device is somebody else's now. What was ordered for this session has been queued by the events before this one.
    fn handle_evict(&mut self, session: SessionRef, by: SessionRef, outlet: &mut impl Outlet) {
        if let Some(id) = self.connection_of(session) {
            self.close(id, 4409, CloseCause::Replaced);
        }
        // The slot is free: the store names it no more, and a leave on its way is ignored there.
        self.drop_session(session);
        if by.reactor == self.id {
            return self.handle_gone(by);
        }
        self.peers.push_back((by.reactor, Peer::Gone { to: by }));
        self.flush_peers(outlet);
    }

    /// Another core has something to say.
    pub fn handle_peer(&mut self, now: Moment, mail: &Peer) {
        self.now = now;
        match mail {
            Peer::Gone { to } => self.handle_gone(*to),
        }
    }

    fn handle_gone(&mut self, to: SessionRef) {
        let Some(id) = self.connection_of(to) else { return self.stale() };
        let Some(joining) = self.joining_mut(id) else { return };
        joining.gone = true;
        if joining.attached {
            self.welcome(id);
        }
    }

    /// HELLO is answered: the session is active, and told of what moved while it was joining.
    pub(super) fn welcome(&mut self, id: ConnectionId) {
        let Some(session_id) = self.session_id(id) else { return };
        let Some(joining) = self.cold[id.index as usize].extra.as_mut().and_then(|extra| extra.joining.take()) else { return };
        self.drop_empty_extra(id);
        self.session_turn += 1;
        let session_key = self.session_key(session_id);
        let rules = self.rules.clone();
        let session = self.sessions.get_mut(session_id).expect("named by its connection");
        session.stage = Stage::Active;
        let (window, granted, pos, expires_s) = (session.window, u32::from(session.caps), session.pos, session.expires_s);
        self.connections.get_mut(id).expect("looked up by session_id").state = State::Active;
        self.counters.sessions_opened_count += 1;
        let welcome = Welcome {
            minor: joining.minor,
            resumed: 0,
            level: rules.level,
            window,
            send_window: rules.send_window,
            caps: granted,
            ping_ms: rules.ping_ms,
            resume_ms: 0,
            dedup_s: rules.dedup_s,
            max_frame: rules.max_frame,
            max_payload: rules.max_payload,
            server_ms: self.now.unix_ms,
            pos,
            session: session_key,
            user: joining.user.as_str().into(),
            node: rules.node.as_str().into(),
            rate: u16::try_from(rules.send_rate.per_second).unwrap_or(u16::MAX),
            burst: u16::try_from(rules.send_rate.burst).unwrap_or(u16::MAX),
        };
        self.push_server(id, &ServerFrame::Welcome(welcome));
        self.watch_expiry(id, expires_s);
        self.catch_up(id);
    }

    /// Session id on the wire: reactor, slot, turn and 64 secret bits.
    fn session_key(&self, session_id: ConnectionId) -> [u8; 16] {
        let secret = self.rules.hashes.fingerprint(self.id.0, &self.session_turn.to_le_bytes());
        let mut key = [0; 16];
        key[..2].copy_from_slice(&self.id.0.to_le_bytes());
        key[2..6].copy_from_slice(&session_id.index.to_le_bytes());
        key[6..8].copy_from_slice(&session_id.generation.to_le_bytes()[..2]);
        key[8..].copy_from_slice(&secret.to_le_bytes());
        key
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
        for target in targets {
            self.deliver_one(message, *target, &mut variants);
        }
        for frame in variants.into_iter().flatten() {
            self.pool.release(frame);
        }
    }

    fn deliver_one(&mut self, message: &Delivery, target: Target, variants: &mut [Option<FrameIndex>; VARIANTS]) {
        let session_id = slot_of(self.session_of(target));
        let Some(session) = self.sessions.get_mut(session_id) else { return self.stale() };
        if session.stage == Stage::Leaving {
            return;
        }
        let (id, encoding) = (session.connection, session.encoding);
        let traced = message.trace.is_some() && u32::from(session.caps) & caps::TRACE != 0;
        let variant = variant_of(encoding, target.own, traced);
        let frame = match variants[variant] {
            Some(frame) => frame,
            None => {
                let max_frame = self.rules.max_frame as usize;
                let deliver = deliver_of(message, target.own, traced);
                let frame =
                    self.pool.build(Wrap::Frame(opcode_of(encoding)), |out| deliver_tail(encoding, &deliver, max_frame, out));
                variants[variant] = Some(frame);
                frame
            }
        };
        let bytes = self.pool.frame_len(frame);
        let over_hard = self.connections.get(id).is_none_or(|it| it.queue.bytes() > self.rules.queue_hard_bytes)
            || self.pool.queued_bytes > self.rules.queued_bytes_max;
        let session = self.sessions.get_mut(session_id).expect("looked up above");
        let joining = session.stage == Stage::Joining;
        if joining || over_hard || session.is_behind() || !session.has_room(bytes, self.rules.window_bytes_max) {
            self.counters.deliveries_marked_count += 1;
            let fresh = session.mark(&message.conv, message.seq, message.mid, self.now.mono_ns / 1_000_000);
            if fresh && !joining {
                self.schedule(id, self.rules.ack_timeout_ms, Kind::Acknowledge);
            }
            return;
        }
        let pos = session.deliver(bytes);
        self.counters.deliveries_count += 1;
        self.push_frame(id, frame, pos);
    }

    /// A frame that is sent at most once: built once per variant, and dropped for who has too much waiting.
    fn tell<'f>(&mut self, targets: &[Target], frame: impl Fn(bool) -> ServerFrame<'f>) {
        let mut variants: [Option<FrameIndex>; 4] = [None; 4];
        for target in targets {
            let session = self.sessions.get(slot_of(self.session_of(*target)));
            // One that is joining has its WELCOME before it, one that is leaving nothing any more.
            let Some(session) = session.filter(|session| session.stage == Stage::Active) else { continue };
            let (id, encoding) = (session.connection, session.encoding);
            let Some(connection) = self.connections.get(id) else { continue };
            if connection.queue.bytes() > self.rules.queue_soft_bytes || self.pool.queued_bytes > self.rules.queued_bytes_max {
                self.counters.transients_dropped_count += 1;
                continue;
            }
            let variant = variant_of(encoding, target.own, false);
            let index = *variants[variant].get_or_insert_with(|| {
                self.pool.build(Wrap::Frame(opcode_of(encoding)), |out| encode_server(encoding, &frame(target.own), out))
            });
            self.push_frame(id, index, 0);
        }
        for frame in variants.into_iter().flatten() {
            self.pool.release(frame);
        }
    }

    fn resync_all(&mut self) {
        for slot in 0..self.sessions.slots_count() {
            let Some(session_id) = self.sessions.at(slot).map(|(key, _)| ConnectionId::from(key)) else { continue };
            let Some(session) = self.sessions.get_mut(session_id) else { continue };
            if session.stage == Stage::Leaving {
                continue;
            }
            session.mark_all();
            let id = session.connection;
            self.catch_up(id);
        }
    }

    /// A reader has finished a page.
    pub fn handle_page(&mut self, now: Moment, reply: PageReply, outlet: &mut impl Outlet) {
        self.now = now;
        let Some(id) = self.connection_of(reply.session) else { return self.stale() };
        let Some(encoding) = self.connections.get(id).and_then(|connection| connection.encoding) else { return };
        match reply.result {
            Ok(page) => {
                self.counters.pages_sent_count += 1;
                let frame = self.pool.build(Wrap::Frame(opcode_of(encoding)), |out| *out = page);
                self.push_frame(id, frame, 0);
                self.pool.release(frame);
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
        self.drain = Some(super::Drain { close_code });
        // Few connections need no long window: a thousand a second leave at least.
        let count = u32::try_from(self.connections.len()).unwrap_or(u32::MAX);
        let window_ms = window_ms.min(count).max(1);
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
                let goaway = ServerFrame::Goaway { code, delay_ms: 500, spread_ms: 1_000, grace_ms, target: "".into() };
                self.push_server(id, &goaway);
                self.schedule(id, grace_ms, Kind::Grace);
            }
            State::Joining => self.turn_away(id),
            State::Upgrade => self.abort(id, CloseCause::Drain),
            _ => self.close(id, drain.close_code, CloseCause::Drain),
        }
    }

    /// Sends what could not be sent before; lanes may have room again.
    pub fn flush_mail(&mut self, now: Moment, outlet: &mut impl Outlet) {
        self.now = now;
        if !self.leaves.is_empty() {
            // What a device acknowledged before it left counts: same lane, so it comes first.
            self.submit_cursors(outlet);
        }
        while let Some(leave) = self.leaves.pop_front() {
            if let Err(leave) = outlet.submit(leave) {
                self.leaves.push_front(leave);
                break;
            }
        }
        self.flush_peers(outlet);
        if self.cursors_due_ms.is_some_and(|due| due <= now.mono_ns / 1_000_000) {
            self.submit_cursors(outlet);
        }
    }

    fn flush_peers(&mut self, outlet: &mut impl Outlet) {
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
        let sessions = &self.sessions;
        let cursors: Vec<CursorMail> = self
            .cursors
            .drain()
            .filter_map(|((session, conv), seq)| {
                let roster = sessions.get(slot_of(session))?.roster?;
                Some(CursorMail { session, roster, conv, seq })
            })
            .collect();
        if cursors.is_empty() {
            return;
        }
        if let Err(Submit::Cursors(cursors)) = outlet.submit(Submit::Cursors(cursors)) {
            // Positions only move forward: they wait for the next time.
            for cursor in cursors {
                self.cursors.insert((cursor.session, cursor.conv), cursor.seq);
            }
            self.cursors_due_ms = Some(self.now.mono_ns / 1_000_000 + super::CURSORS_MS);
        }
    }

    fn drop_session(&mut self, session: SessionRef) {
        match self.sessions.remove(slot_of(session)) {
            Some(_) => self.counters.sessions_closed_count += 1,
            None => self.stale(),
        }
    }

    fn session_of(&self, target: Target) -> SessionRef {
        SessionRef { reactor: self.id, index: target.index, generation: target.generation }
    }

    /// The live connection of a session that still has one.
    fn connection_of(&self, session: SessionRef) -> Option<ConnectionId> {
        let line = self.sessions.get(slot_of(session))?;
        (line.stage != Stage::Leaving).then_some(line.connection)
    }

    /// What the operator's side may know of a session that is connected.
    #[must_use]
    pub fn inspect(&self, session: SessionRef) -> Option<SessionSeen> {
        let connection = self.connection_of(session)?;
        let line = self.sessions.get(slot_of(session))?;
        let queued_bytes = self.connections.get(connection)?.queue.bytes();
        Some(SessionSeen {
            connection,
            address: None,
            encoding: line.encoding,
            pos: line.pos,
            unacknowledged: line.unacknowledged,
            is_behind: line.is_behind(),
            queued_bytes,
            expires_s: line.expires_s,
        })
    }

    /// Closes a session for the operator; whether it was there.
    pub fn kick(&mut self, now: Moment, session: SessionRef) -> bool {
        self.now = now;
        let Some(id) = self.connection_of(session) else { return false };
        self.close(id, 4403, CloseCause::Kicked);
        true
    }

    fn joining_mut(&mut self, id: ConnectionId) -> Option<&mut super::Joining> {
        self.connections.get(id)?;
        self.cold[id.index as usize].extra.as_mut()?.joining.as_mut()
    }
}

fn slot_of(session: SessionRef) -> ConnectionId {
    ConnectionId { index: session.index, generation: session.generation }
}

fn variant_of(encoding: Encoding, own: bool, traced: bool) -> usize {
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

/// Hint with a HELLO that came too soon after too many.
const RETRY_HELLO_MS: u32 = 10_000;
/// Hint with a page that a reader could not make.
const RETRY_PAGE_MS: u32 = 1_000;
