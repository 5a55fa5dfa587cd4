//! What the frames of a client ask for.

use std::collections::hash_map::Entry;

use super::quota::Class;
use super::{ABUSE_MAX, CURSOR_RATE, Outlet, READS_WAITING_MAX, Shard, State};
use crate::ids::{self, Cmid, ConnectionId, ConversationKind};
use crate::limits::{CURSORS_SUBMITTED_MAX, WATCH_TTL_S_MAX};
use crate::mail::{PageMail, PageRequest, SendMail, Sender, SignalMail, Submit, WatchMail};
use crate::mutant::{self, Mutant};
use crate::observe::counters::{CloseCause, Shed};
use crate::observe::trace::Place;
use crate::session::hold::{By, Verdict};
use crate::session::rate::Bucket;
use crate::wire::envelope::{
    ClientFrame, Cursors, Encoding, ErrorCode, Frames, Send, ServerFrame, Users, caps, frame_type, page_flags, send_flags,
};
use crate::wire::message::{Body, Text};

impl Shard {
    /// One WebSocket message: its frames one by one, good ones before a bad one carried out first.
    pub(super) fn handle_message(&mut self, id: ConnectionId, payload: &[u8], outlet: &mut impl Outlet) {
        let Some(encoding) = self.connections.get(id).and_then(|connection| connection.encoding) else { return };
        let mut frames = Frames::new(encoding, payload);
        loop {
            match frames.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => self.handle_frame(id, &frame, outlet),
                Err(error) => {
                    self.counters.protocol_errors_count += 1;
                    let state = self.connections.known(id).state;
                    let hello = error.frame == frame_type::HELLO;
                    let fits = match state {
                        State::WaitHello => hello,
                        State::Active | State::Draining => !hello,
                        _ => false,
                    };
                    // Whether a frame may come at all is asked before what is in it, as far as it is known what it is.
                    return match fits || error.frame == 0 {
                        true => self.fail_in_turn(id, error.rid, error.code, error.detail),
                        false => self.fail_in_turn(id, error.rid, ErrorCode::WrongState, "out of turn"),
                    };
                }
            }
            match self.connections.get(id) {
                Some(connection) if !matches!(connection.state, State::Failing | State::Closing | State::Finished) => {}
                _ => return,
            }
        }
    }

    fn handle_frame(&mut self, id: ConnectionId, frame: &ClientFrame<'_>, outlet: &mut impl Outlet) {
        if let Some(count) = self.counters.requests_count.get_mut(request_index(frame)) {
            *count += 1;
        }
        let state = self.connections.known(id).state;
        match (state, frame) {
            (State::WaitHello, ClientFrame::Hello(hello)) => self.handle_hello(id, hello, outlet),
            (State::Active, ClientFrame::Hello(_)) => self.fail_in_turn(id, 0, ErrorCode::WrongState, "HELLO comes once"),
            (State::Active | State::Draining, _) => self.handle_request(id, state, frame, outlet),
            _ => self.fail(id, rid_of(frame), ErrorCode::WrongState, "send HELLO and wait for WELCOME first"),
        }
    }

    fn handle_request(&mut self, id: ConnectionId, state: State, frame: &ClientFrame<'_>, outlet: &mut impl Outlet) {
        let draining = state == State::Draining;
        match frame {
            ClientFrame::Hello(_) => self.fail_in_turn(id, 0, ErrorCode::WrongState, "HELLO comes once"),
            ClientFrame::Ping { pos } => {
                self.take_pos(id, *pos);
                let server_ms = self.now.unix_ms;
                self.push_server(id, &ServerFrame::Pong { server_ms });
                self.count_sign(id);
            }
            ClientFrame::Send(send) => self.handle_send(id, send, outlet),
            ClientFrame::Ack { pos, cursors } => {
                self.take_pos(id, *pos);
                self.take_cursors(id, cursors, outlet);
            }
            ClientFrame::Fetch { rid, conv, from, to, limit, flags } => {
                if ids::conversation_kind(conv).is_none() {
                    return self.refuse_in_row(id, *rid, ErrorCode::NotMember, 0, "");
                }
                let conv = self.arena.text(conv);
                let newest = flags & page_flags::FETCH_NEWEST != 0;
                let request = PageRequest::Fetch { conv, from: *from, to: *to, limit: clamp_limit(*limit), newest };
                self.handle_read(id, *rid, request, outlet);
            }
            ClientFrame::Signal { conv, kind, payload } => {
                if !draining {
                    self.handle_signal(id, conv, *kind, payload, outlet);
                }
            }
            ClientFrame::Nack { conv, seq, delay_ms, .. } => {
                if !draining {
                    self.handle_nack(id, conv, *seq, *delay_ms);
                }
            }
            _ if draining => self.refuse(id, rid_of(frame), ErrorCode::ShuttingDown, 0, "reconnect"),
            ClientFrame::Sync { rid, since, limit, cursor } => {
                if cursor.is_empty()
                    && let Some(session) = self.session_mut(id)
                {
                    session.sync_asked();
                }
                let cursor = self.arena.text(cursor);
                self.handle_read(id, *rid, PageRequest::Sync { since: *since, limit: clamp_limit(*limit), cursor }, outlet);
            }
            ClientFrame::Auth { rid, token } => self.handle_auth(id, *rid, token, outlet),
            ClientFrame::Read { rid, conv, seq } => {
                // Not counted in a row: it has no window, so a client may have any number under way before it hears of the first.
                if ids::conversation_kind(conv).is_none() {
                    return self.refuse(id, *rid, ErrorCode::NotMember, 0, "");
                }
                if let Err(retry_ms) = self.take_read(id) {
                    return self.refuse(id, *rid, ErrorCode::RateLimited, retry_ms, "");
                }
                let Some(from) = self.sender(id, *rid) else { return };
                let conv = self.arena.text(conv);
                match outlet.submit(Submit::Read { from, conv, seq: *seq }) {
                    Ok(()) => self.ok_awaited(id),
                    Err(_) => self.overloaded(id, *rid),
                }
            }
            ClientFrame::Watch { rid, ttl_s, users } => self.handle_watch(id, *rid, *ttl_s, users, outlet),
        }
    }

    /// SEND. Order of checks: state, 1002, hold, 3001, 3002, 3003, 4001, 4002; the store does membership and dedup.
    fn handle_send(&mut self, id: ConnectionId, send: &Send<'_>, outlet: &mut impl Outlet) {
        let Some(from) = self.sender(id, send.rid) else { return };
        let transient = send.flags & send_flags::TRANSIENT != 0;
        if transient && send.flags & send_flags::RETRY != 0 {
            return self.fail(id, send.rid, ErrorCode::BadField, "TRANSIENT is never retried");
        }
        let mut owed = None;
        if let Some(extra) = &mut self.cold[id].extra {
            let release = send.flags & send_flags::RELEASE != 0;
            match extra.holds.check(&send.conv, send.cmid, release) {
                Verdict::Held => {
                    if !self.goes_on_regardless(id) {
                        self.refuse(id, send.rid, ErrorCode::Held, RETRY_HELD_MS, "repeat the failed one first");
                    }
                    return;
                }
                Verdict::Release => owed = Some(Send { flags: send.flags | send_flags::RELEASE, ..send.clone() }),
                Verdict::Pass => {}
            }
            self.drop_empty_extra(id);
        }
        let send = owed.as_ref().unwrap_or(send);
        let Some(named) = self.may_name(id, &send.conv) else {
            return self.refuse_early(id, send, ErrorCode::NotMember, 0);
        };
        let too_large = send.payload.len() > self.rules.max_payload as usize;
        match named {
            Named::Member if too_large => return self.refuse_early(id, send, ErrorCode::PayloadTooLarge, 0),
            // The store is asked whether the sender may know the conversation; it costs no more than its bytes have.
            Named::Unknown if too_large => {}
            Named::Member | Named::Unknown => {
                let now_ms = self.now_ms();
                // A repeat of what is stored costs nothing, which only the store can tell: at most a window of them is trusted.
                let credit = if send.flags & send_flags::RETRY != 0 { self.rules.send_window } else { 0 };
                let rate = self.rules.send_rate;
                let mut taken = self.cold[id].sends.take_on_credit(rate, now_ms, credit);
                if taken.is_ok() {
                    taken = self.take_of_user(id, Class::Send, credit);
                    if taken.is_err() {
                        self.cold[id].sends.give_back(rate);
                    }
                }
                if let Err(retry_ms) = taken {
                    return self.refuse_early(id, send, ErrorCode::RateLimited, retry_ms);
                }
                let cold = &mut self.cold[id];
                cold.abuse_count = 0;
                if cold.sends_unanswered >= self.rules.send_window {
                    return self.refuse_send(id, send, ErrorCode::WindowExceeded, RETRY_HELD_MS);
                }
            }
        }
        // Without the cap a trace context is dropped silently.
        let is_granted = self.session_mut(id).is_some_and(|session| u32::from(session.caps) & caps::TRACE != 0);
        let trace = send.trace.filter(|_| is_granted);
        let trace_flag = if trace.is_some() { send_flags::TRACE } else { 0 };
        if let Some(followed) = self.rules.sampling.follow(send.cmid, trace.map(|it| (it.trace_id, it.flags)))
            && !self.steps.note(followed, &send.conv, Place::Received)
        {
            self.counters.trace_steps_dropped_count += 1;
        }
        let (flags, payload) = match too_large {
            true => (trace_flag, Body::new()),
            false => (
                send.flags & (send_flags::RETRY | send_flags::TRANSIENT | send_flags::QUIET | send_flags::RELEASE) | trace_flag,
                self.arena.body(&send.payload),
            ),
        };
        let mail = SendMail {
            from,
            cmid: send.cmid,
            flags,
            kind: send.kind,
            ttl_s: send.ttl_s,
            trace,
            conv: self.arena.text(&send.conv),
            payload,
            refusal: too_large.then_some(ErrorCode::PayloadTooLarge),
            received: self.now,
        };
        match outlet.submit(Submit::Send(mail)) {
            Ok(()) => self.cold[id].sends_unanswered = self.cold[id].sends_unanswered.saturating_add(1),
            Err(_) => {
                self.counters.submit_full_count += 1;
                self.refuse_send(id, send, ErrorCode::StoreOverloaded, RETRY_LOAD_MS);
            }
        }
    }

    /// A request went to the store that OK answers.
    pub(super) fn ok_awaited(&mut self, id: ConnectionId) {
        let cold = &mut self.cold[id];
        cold.oks_unanswered = cold.oks_unanswered.saturating_add(1);
    }

    /// What can be said of the sender's place in a conversation without the store; `None`: it has none.
    fn may_name(&mut self, id: ConnectionId, conv: &str) -> Option<Named> {
        match ids::conversation_kind(conv)? {
            ConversationKind::Direct(a, b) => {
                let user_hash = self.session_mut(id)?.user_hash;
                let is_one = [a, b].iter().any(|name| self.rules.hashes.user(name).0 == user_hash);
                is_one.then_some(Named::Member)
            }
            ConversationKind::Group | ConversationKind::Channel | ConversationKind::System => Some(Named::Unknown),
        }
    }

    /// Answers a SEND that goes no further, and starts the hold where the contract says so.
    fn refuse_send(&mut self, id: ConnectionId, send: &Send<'_>, code: ErrorCode, retry_ms: u32) {
        // A TRANSIENT message is never retried: what waited for its repeat would wait for ever.
        let transient = send.flags & send_flags::TRANSIENT != 0;
        if transient || self.hold_or_settle(id, &send.conv, send.cmid, code, By::Core) {
            self.refuse(id, send.rid, code, retry_ms, "");
        } else {
            // Without a hold its repeat could come too late, so there must be none.
            self.refuse(id, send.rid, ErrorCode::TooManySubscriptions, 0, "too many conversations are held");
        }
        if send.flags & send_flags::RELEASE != 0 {
            self.cold[id].extra.get_or_insert_default().holds.owe_release(&send.conv);
        }
    }

    /// As [`Shard::refuse_send`], for what is counted as going on regardless.
    fn refuse_early(&mut self, id: ConnectionId, send: &Send<'_>, code: ErrorCode, retry_ms: u32) {
        if !self.goes_on_regardless(id) {
            self.refuse_send(id, send, code, retry_ms);
        }
    }

    /// As [`Shard::refuse`], for what is counted as going on regardless.
    pub(super) fn refuse_in_row(&mut self, id: ConnectionId, rid: u32, code: ErrorCode, retry_ms: u32, detail: &str) {
        if !self.goes_on_regardless(id) {
            self.refuse(id, rid, code, retry_ms, detail);
        }
    }

    /// Counts what is refused by rate, or before the rate is asked. `true`: there was too much of it in a row, and the connection ends.
    pub(super) fn goes_on_regardless(&mut self, id: ConnectionId) -> bool {
        let cold = &mut self.cold[id];
        cold.abuse_count = cold.abuse_count.saturating_add(1);
        let is_too_much = cold.abuse_count >= ABUSE_MAX;
        if is_too_much {
            self.note_cut_off(id);
            self.close(id, 4429, CloseCause::RateLimited);
        }
        is_too_much
    }

    /// WATCH: the store replaces the set, and says who is online.
    fn handle_watch(&mut self, id: ConnectionId, rid: u32, ttl_s: u32, users: &Users<'_>, outlet: &mut impl Outlet) {
        let Some(session) = self.session_mut(id) else { return };
        if u32::from(session.caps) & caps::PRESENCE == 0 {
            return self.refuse_in_row(id, rid, ErrorCode::NotGranted, 0, "ask for presence in HELLO");
        }
        if ttl_s > WATCH_TTL_S_MAX {
            return self.fail(id, rid, ErrorCode::BadField, "ttl_s: at most 300");
        }
        if let Some(wrong) = users.iter().find(|user| !ids::is_user(user)) {
            let detail = format!("users: {:.40} is no user id", wrong.escape_debug().to_string());
            return self.fail(id, rid, ErrorCode::BadField, &detail);
        }
        if let Err(retry_ms) = self.take_read(id) {
            return self.refuse_in_row(id, rid, ErrorCode::RateLimited, retry_ms, "");
        }
        if self.drops(Shed::Presence, 1) {
            return self.refuse(id, rid, ErrorCode::StoreOverloaded, RETRY_LOAD_MS, "");
        }
        let Some(from) = self.sender(id, rid) else { return };
        let mut users: Vec<Text> = users.iter().map(|user| self.arena.text(user)).collect();
        users.sort();
        users.dedup();
        match outlet.submit(Submit::Watch(WatchMail { from, users, ttl_s })) {
            Ok(()) => self.ok_awaited(id),
            Err(_) => self.overloaded(id, rid),
        }
    }

    /// SIGNAL: to the store, or dropped.
    fn handle_signal(&mut self, id: ConnectionId, conv: &str, kind: u16, payload: &[u8], outlet: &mut impl Outlet) {
        if ids::conversation_kind(conv).is_none() {
            return self.refuse_in_row(id, 0, ErrorCode::NotMember, 0, &format!("{conv:.50} refused"));
        }
        if payload.len() > self.rules.max_signal as usize {
            return self.refuse_in_row(id, 0, ErrorCode::PayloadTooLarge, 0, &format!("{conv} refused"));
        }
        let (now_ms, rate) = (self.now_ms(), self.rules.signal_rate);
        let bucket = self.signals.entry(id).or_insert_with(|| Bucket::full(rate, now_ms));
        if let Err(retry_ms) = bucket.take(rate, now_ms).and_then(|()| self.take_of_user(id, Class::Signal, 0)) {
            return self.refuse_in_row(id, 0, ErrorCode::RateLimited, retry_ms, &format!("{conv} refused"));
        }
        self.cold[id].abuse_count = 0;
        if self.drops(Shed::Signal, 1) {
            return;
        }
        let Some(from) = self.sender(id, 0) else { return };
        let mail = SignalMail { from, conv: self.arena.text(conv), kind, payload: self.arena.body(payload) };
        if outlet.submit(Submit::Signal(mail)).is_err() {
            self.counters.signals_shed_count += 1;
        }
    }

    /// Starts or ends a hold, as the answer to a SEND asks for. `false`: too many are held.
    pub(super) fn hold_or_settle(&mut self, id: ConnectionId, conv: &str, cmid: Cmid, code: ErrorCode, by: By) -> bool {
        if code == ErrorCode::Held {
            // The one it waits for is still to come.
            return true;
        }
        if code.is_retryable() && code != ErrorCode::ShuttingDown {
            return self.cold[id].extra.get_or_insert_default().holds.hold(conv, cmid, by);
        }
        if !code.is_retryable() {
            self.settle(id, cmid);
        }
        true
    }

    /// A SEND was answered for good: what it held is free.
    pub(super) fn settle(&mut self, id: ConnectionId, cmid: Cmid) {
        if let Some(extra) = &mut self.cold[id].extra {
            extra.holds.settle(cmid);
            self.drop_empty_extra(id);
        }
    }

    /// FETCH and SYNC: one in progress, a few waiting.
    fn handle_read(&mut self, id: ConnectionId, rid: u32, request: PageRequest, outlet: &mut impl Outlet) {
        let Some(from) = self.sender(id, rid) else { return };
        if let Err(retry_ms) = self.take_read(id) {
            return self.refuse_in_row(id, rid, ErrorCode::RateLimited, retry_ms, "");
        }
        let encoding = self.connections.get(id).and_then(|connection| connection.encoding).unwrap_or(Encoding::Binary);
        let page = PageMail { from, encoding, max_frame: self.rules.max_frame, request };
        let cold = &mut self.cold[id];
        match cold.reads_waiting {
            0 => {
                cold.reads_waiting = 1;
                self.submit_page(id, page, outlet);
            }
            waiting if waiting <= READS_WAITING_MAX => {
                cold.reads_waiting += 1;
                cold.extra.get_or_insert_default().pages.push_back(page);
            }
            _ => self.refuse(id, rid, ErrorCode::WindowExceeded, RETRY_HELD_MS, "more than 8 FETCH and SYNC wait"),
        }
    }

    fn submit_page(&mut self, id: ConnectionId, page: PageMail, outlet: &mut impl Outlet) {
        let rid = page.from.rid;
        if outlet.submit(Submit::Page(page)).is_err() {
            self.overloaded(id, rid);
            if self.session_id(id).is_some() {
                self.next_page(id, outlet);
            }
        }
    }

    /// One read is answered: the next one of this connection starts.
    pub(super) fn next_page(&mut self, id: ConnectionId, outlet: &mut impl Outlet) {
        let cold = &mut self.cold[id];
        assert!(cold.reads_waiting > 0);
        cold.reads_waiting -= 1;
        if mutant::on(Mutant::NextPageForgotten) {
            return;
        }
        let Some(page) = cold.extra.as_mut().and_then(|extra| extra.pages.pop_front()) else {
            return self.check_failing(id);
        };
        self.drop_empty_extra(id);
        self.submit_page(id, page, outlet);
    }

    pub(super) fn overloaded(&mut self, id: ConnectionId, rid: u32) {
        self.counters.submit_full_count += 1;
        self.refuse(id, rid, ErrorCode::StoreOverloaded, RETRY_LOAD_MS, "");
    }

    /// The session of an active connection as the store knows it.
    pub(super) fn sender(&mut self, id: ConnectionId, rid: u32) -> Option<Sender> {
        let session_id = self.session_id(id)?;
        let roster = self.sessions.get(session_id)?.roster?;
        Some(Sender { session: self.session_ref(session_id), roster, rid })
    }

    /// A cumulative acknowledgement by `pos`: the window opens.
    fn take_pos(&mut self, id: ConnectionId, pos: u64) {
        let Some(session_id) = self.session_id(id) else { return };
        let pool = &mut self.pool;
        let session = self.sessions.known_mut(session_id);
        let acknowledged = session.acknowledge(pos, |held| pool.let_go(held.frame));
        if let Some(backlog) = session.take_empty_backlog() {
            self.backlogs.give(backlog);
        }
        match acknowledged {
            None => {
                self.refuse(id, 0, ErrorCode::BeyondHead, 0, "pos was never given out");
                self.count_sign(id);
            }
            Some(true) => self.catch_up(id),
            Some(false) => {}
        }
    }

    fn take_cursors(&mut self, id: ConnectionId, cursors: &Cursors<'_>, outlet: &mut impl Outlet) {
        let Some(session_id) = self.session_id(id) else { return };
        let session = self.session_ref(session_id);
        let now_ms = self.now_ms();
        let mut refused = None;
        for cursor in cursors.iter() {
            if ids::conversation_kind(&cursor.conv).is_none() {
                continue;
            }
            if let Some(line) = self.sessions.get_mut(session_id) {
                line.hold_up_to(&cursor.conv, cursor.seq);
            }
            let gathered = self.cursors.len();
            match self.cursors.entry((session, self.arena.text(&cursor.conv))) {
                Entry::Occupied(mut known) => {
                    let seq = cursor.seq.max(*known.get());
                    known.insert(seq);
                }
                Entry::Vacant(_) if refused.is_some() => self.counters.cursors_refused_count += 1,
                Entry::Vacant(place) => {
                    let bucket = self.cursor_rates.entry(id).or_insert_with(|| Bucket::full(CURSOR_RATE, now_ms));
                    let verdict = match bucket.take(CURSOR_RATE, now_ms) {
                        Err(retry_ms) => Some((ErrorCode::RateLimited, retry_ms)),
                        Ok(()) if gathered >= self.rules.cursors_gathered_max => {
                            Some((ErrorCode::StoreOverloaded, RETRY_LOAD_MS))
                        }
                        Ok(()) => None,
                    };
                    match verdict {
                        None => drop(place.insert_entry(cursor.seq)),
                        Some(_) => {
                            refused = verdict;
                            self.counters.cursors_refused_count += 1;
                        }
                    }
                }
            }
        }
        self.watch_cursors();
        if self.cursors.len() >= CURSORS_SUBMITTED_MAX && !self.cursors_kept {
            self.submit_cursors(outlet);
        }
        if let Some((code, retry_ms)) = refused {
            self.refuse(id, 0, code, retry_ms, "cursors were not taken");
        }
    }
}

/// What a reactor knows of a sender and a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Named {
    /// One of a direct pair.
    Member,
    /// It has members, whom the store knows.
    Unknown,
}

fn clamp_limit(limit: u16) -> u16 {
    if limit == 0 { 100 } else { limit.min(256) }
}

/// `rid` of a request; 0 for frames without one.
fn rid_of(frame: &ClientFrame<'_>) -> u32 {
    match frame {
        ClientFrame::Auth { rid, .. }
        | ClientFrame::Sync { rid, .. }
        | ClientFrame::Fetch { rid, .. }
        | ClientFrame::Read { rid, .. }
        | ClientFrame::Watch { rid, .. } => *rid,
        ClientFrame::Send(send) => send.rid,
        ClientFrame::Hello(_)
        | ClientFrame::Ping { .. }
        | ClientFrame::Ack { .. }
        | ClientFrame::Nack { .. }
        | ClientFrame::Signal { .. } => 0,
    }
}

/// Place of a frame type in `ReactorCounters::requests_count`.
fn request_index(frame: &ClientFrame<'_>) -> usize {
    match frame {
        ClientFrame::Hello(_) => 0,
        ClientFrame::Ping { .. } => 1,
        ClientFrame::Auth { .. } => 2,
        ClientFrame::Send(_) => 3,
        ClientFrame::Ack { .. } => 4,
        ClientFrame::Nack { .. } => 5,
        ClientFrame::Sync { .. } => 6,
        ClientFrame::Fetch { .. } => 7,
        ClientFrame::Read { .. } => 8,
        ClientFrame::Watch { .. } => 9,
        ClientFrame::Signal { .. } => 10,
    }
}

/// Hint with refusals by load, milliseconds; as every hint it is told with up to a quarter more.
pub(super) const RETRY_LOAD_MS: u32 = 250;
/// Hint where the client has to wait for answers of its own.
pub(super) const RETRY_HELD_MS: u32 = 50;
