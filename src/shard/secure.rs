//! Connections with TLS: their records become the bytes that all others send, and what they are sent becomes records.
//!
//! ```text
//!  lent ─► session ─► plain (one block per core) ─► receive.rs
//!            ▲ step, when it is its turn
//!          waiting: handshakes, first come first served
//!
//!  queue ─► gather ─► session ─► sending: records, until the kernel has taken them
//! ```
//!
//! A handshake costs as much as thousands of messages. So its bytes are only kept when they come, and the reactor asks for a few steps a
//! turn ([`Shard::poll_handshake`]); when too many wait, the next one is refused, before anything was computed for it.
//!
//! What has become a record has its place in the order of all records. It waits in a queue of its own, which nothing overtakes.

use std::collections::VecDeque;

use super::lines::Lines;
use super::{Outlet, Shard, State, Work, flags};
use crate::clock::Moment;
use crate::conn::carry::Stashes;
use crate::conn::send_queue::{Batch, SendQueue, Wrap};
use crate::ids::ConnectionId;
use crate::limits::TLS_SEALED_BYTES_MAX;
use crate::observe::counters::{CloseCause, Handshake};
use crate::wire::envelope::Encoding;
use crate::wire::tls::{Fault, Keys, Opened, Progress, Session};
use crate::wire::upgrade::Refusal;

/// TLS of one core.
pub(super) struct Tls {
    keys: Option<Keys>,
    /// By slot; as long as the last slot that has one needs.
    sessions: Lines<Option<Box<Secure>>>,
    /// Handshakes with something to do. Some may have ended meanwhile.
    waiting: VecDeque<ConnectionId>,
    /// What lent records hold; reused.
    plain: Vec<u8>,
    /// What a session says of itself; reused.
    said: Vec<u8>,
    /// What is about to be sealed; reused.
    batch: Batch,
    /// Bytes of memory that sessions keep of what is not whole.
    held_bytes: u64,
}

/// What a connection with TLS has beside.
#[derive(Default)]
struct Secure {
    session: Session,
    /// Records, in order.
    sending: SendQueue,
    is_waiting: bool,
    /// Its part of [`Tls::held_bytes`].
    held_bytes: u32,
    /// Its handshake is counted.
    is_judged: bool,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            keys: None,
            sessions: Lines::with_capacity(0),
            waiting: VecDeque::new(),
            plain: Vec::new(),
            said: Vec::new(),
            batch: Batch::of(TLS_SEALED_BYTES_MAX),
            held_bytes: 0,
        }
    }
}

impl Tls {
    fn get(&mut self, id: ConnectionId) -> Option<&mut Secure> {
        self.sessions.find_mut(id)?.as_deref_mut()
    }

    /// Counts anew what a session keeps of bytes that are not whole.
    fn count_held(&mut self, id: ConnectionId) {
        let Some(secure) = self.sessions.find_mut(id).and_then(Option::as_deref_mut) else { return };
        let now = u32::try_from(secure.session.memory_bytes()).unwrap_or(u32::MAX);
        let before = std::mem::replace(&mut secure.held_bytes, now);
        self.held_bytes = self.held_bytes + u64::from(now) - u64::from(before);
    }
}

impl Shard {
    /// Certificates for the handshakes that begin from now on.
    pub fn set_keys(&mut self, keys: Keys) {
        self.tls.keys = Some(keys);
    }

    /// The connection just accepted will begin with a TLS handshake.
    pub fn expect_tls(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return self.stale() };
        connection.flags |= flags::TLS;
        self.tls.sessions.begin(id, Some(Box::default()));
        self.counters.tls_open += 1;
    }

    /// Bytes of memory that sessions keep of handshakes and records that are not whole.
    pub(super) fn tls_held_bytes(&self) -> u64 {
        self.tls.held_bytes
    }

    /// Whether a part of a record is here.
    pub(super) fn is_in_record(&self, id: ConnectionId) -> bool {
        self.tls.sessions.find(id).and_then(Option::as_deref).is_some_and(|secure| secure.session.held_bytes() > 0)
    }

    /// Handshakes that wait for their turn.
    #[must_use]
    pub fn handshakes_waiting(&self) -> usize {
        self.tls.waiting.len()
    }

    /// The connection whose handshake is next, for [`Shard::handle_handshake`].
    pub fn poll_handshake(&mut self) -> Option<ConnectionId> {
        self.tls.waiting.pop_front()
    }

    /// One step of a handshake: the expensive part of a connection.
    pub fn handle_handshake(&mut self, now: Moment, id: ConnectionId, stashes: &mut Stashes, outlet: &mut impl Outlet) {
        self.now = now;
        self.guarded_bytes(Work::Handshake, id, stashes, |shard, stashes| shard.step_handshake(id, stashes, outlet));
    }

    fn step_handshake(&mut self, id: ConnectionId, stashes: &mut Stashes, outlet: &mut impl Outlet) {
        // It may have ended while it waited.
        if self.connections.get(id).is_none_or(|connection| connection.state != State::Upgrade) {
            return;
        }
        let Tls { keys: Some(keys), sessions, plain, said, .. } = &mut self.tls else { return };
        let Some(secure) = sessions.find_mut(id).and_then(Option::as_deref_mut) else { return };
        secure.is_waiting = false;
        plain.clear();
        let result = secure.session.step(keys, plain, said);
        self.tls.count_held(id);
        self.act_on_records(id, result, stashes, outlet);
    }

    /// Bytes of a connection with TLS.
    pub(super) fn receive_records(
        &mut self,
        id: ConnectionId,
        bytes: &mut [u8],
        stashes: &mut Stashes,
        outlet: &mut impl Outlet,
    ) {
        if self.connections.get(id).is_none_or(|connection| matches!(connection.state, State::Closing | State::Finished)) {
            return;
        }
        let Tls { sessions, plain, said, .. } = &mut self.tls;
        let Some(secure) = sessions.find_mut(id).and_then(Option::as_deref_mut) else { return };
        if secure.session.is_handshaking() {
            return self.hold_handshake(id, bytes);
        }
        plain.clear();
        let (before, came) = (secure.session.held_bytes(), bytes.len());
        let result = secure.session.receive(bytes, plain, said);
        // All of a part that was here before has only become longer.
        let has_begun = before == 0 || secure.session.held_bytes() < before + came;
        self.tls.count_held(id);
        self.act_on_records(id, result, stashes, outlet);
        self.watch_record(id, has_begun);
    }

    /// A record must be whole as soon as a message must, which is also the end of one that is longer than it.
    fn watch_record(&mut self, id: ConnectionId, has_begun: bool) {
        let Some(connection) = self.connections.get(id) else { return };
        let is_alone = Self::reads_frames(connection.state) && !connection.receive.is_in_message();
        if has_begun && is_alone && self.is_in_record(id) {
            self.watch_message(id);
        }
    }

    /// Keeps bytes of a handshake until its turn, or refuses it.
    fn hold_handshake(&mut self, id: ConnectionId, bytes: &[u8]) {
        let is_full = self.tls.waiting.len() >= self.rules.tls_waiting_max;
        let Some(secure) = self.tls.get(id) else { return };
        let result = secure.session.hold(bytes);
        let is_waiting = secure.is_waiting;
        self.tls.count_held(id);
        match result {
            Ok(true) if is_waiting => {}
            Ok(true) if is_full => self.refuse_handshake(id, CloseCause::Overloaded),
            Ok(true) => {
                if let Some(secure) = self.tls.get(id) {
                    secure.is_waiting = true;
                }
                self.tls.waiting.push_back(id);
            }
            Ok(false) => {}
            Err(fault) => self.fail_tls(id, fault),
        }
    }

    /// Sends what the session said, and takes what it found as if it had come in the clear.
    fn act_on_records(
        &mut self,
        id: ConnectionId,
        result: Result<Progress, Fault>,
        stashes: &mut Stashes,
        outlet: &mut impl Outlet,
    ) {
        self.push_said(id);
        if let Ok(Progress { opened: Some(opened), .. }) = result {
            let resumed = opened == Opened::Resumed;
            self.judge(id, if resumed { Handshake::Resumed } else { Handshake::Full });
        }
        if !self.tls.plain.is_empty() {
            // Out of the shard for the length of the call, because what is found in it borrows from it.
            let mut plain = std::mem::take(&mut self.tls.plain);
            self.receive_plain(id, &mut plain, stashes, outlet);
            self.tls.plain = plain;
        }
        match result {
            Ok(Progress { has_ended: true, .. }) => self.begin_end(id),
            Ok(_) => {}
            Err(fault) => self.fail_tls(id, fault),
        }
    }

    /// Queues what a session has to say before anything else.
    fn push_said(&mut self, id: ConnectionId) {
        if self.tls.said.is_empty() {
            return;
        }
        let said = &self.tls.said;
        let frame = self.pool.build(Wrap::Raw, |out| out.extend_from_slice(said));
        self.tls.said.clear();
        if let Some(secure) = self.tls.get(id) {
            self.pool.push(&mut secure.sending, frame, 0);
        }
        self.pool.release(frame);
        self.touch(id);
    }

    /// Drops what the session of one connection had to say, lest the next one says it.
    pub(super) fn forget_said(&mut self) {
        self.tls.said.clear();
    }

    /// Ends a connection whose records are no good. An alert that was queued still leaves; who spoke HTTP in the clear is told so in the
    /// clear.
    fn fail_tls(&mut self, id: ConnectionId, fault: Fault) {
        self.judge(id, Handshake::Failed);
        if fault == Fault::NotTls {
            Refusal::NotTls.write(None, &mut self.tls.said);
            self.push_said(id);
        }
        let Some(connection) = self.connections.get_mut(id) else { return };
        if matches!(connection.state, State::Closing | State::Finished) {
            return;
        }
        self.pool.clear(&mut connection.queue);
        self.begin_closing(id, CloseCause::TlsFailed);
    }

    /// Ends a connection in its handshake, without a word: nothing is computed for it.
    pub(super) fn refuse_handshake(&mut self, id: ConnectionId, cause: CloseCause) {
        self.judge(id, if cause == CloseCause::UpgradeTimeout { Handshake::Timeout } else { Handshake::Refused });
        self.abort(id, cause);
    }

    /// Counts the end of a handshake, once.
    fn judge(&mut self, id: ConnectionId, result: Handshake) {
        if let Some(secure) = self.tls.get(id)
            && !std::mem::replace(&mut secure.is_judged, true)
        {
            self.counters.count_handshake(result);
        }
    }

    /// Whether keys are agreed on, or none are needed: only then can anything be said.
    pub(super) fn can_speak(&self, id: ConnectionId) -> bool {
        let session = self.tls.sessions.find(id).and_then(Option::as_deref);
        session.is_none_or(|secure| !secure.session.is_handshaking())
    }

    /// Lays out the next write of a connection with TLS, sealing what waits; `false` when there is none now.
    pub(super) fn gather_records(&mut self, id: ConnectionId, batch: &mut Batch) -> bool {
        self.seal(id);
        let Some(secure) = self.tls.get(id) else { return false };
        if secure.sending.is_empty() {
            return false;
        }
        self.pool.gather(&secure.sending, Encoding::Binary, batch);
        true
    }

    /// Seals the front of the queue if no record waits. Behind the last byte of a closing connection comes close_notify.
    fn seal(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Tls { sessions, plain, batch, .. } = &mut self.tls;
        let Some(secure) = sessions.find_mut(id).and_then(Option::as_deref_mut) else { return };
        if !secure.sending.is_empty() {
            return;
        }
        let mut result = Ok(());
        let encoding = connection.encoding.unwrap_or(Encoding::Binary);
        let pool = &mut self.pool;
        if !connection.queue.is_empty() {
            pool.gather(&connection.queue, encoding, batch);
            plain.clear();
            batch.segments.iter().for_each(|segment| plain.extend_from_slice(pool.piece(batch, segment).bytes()));
        }
        let has_plain = !connection.queue.is_empty();
        let is_last = !has_plain && connection.state == State::Closing;
        if !has_plain && !is_last {
            return;
        }
        let frame = pool.build(Wrap::Raw, |out| {
            if is_last {
                secure.session.say_goodbye(out);
            } else {
                result = secure.session.seal(plain, out);
            }
        });
        if pool.frame_len(frame) > 0 {
            pool.push(&mut secure.sending, frame, 0);
        }
        pool.release(frame);
        if has_plain {
            pool.advance(&mut connection.queue, encoding, plain.len());
        }
        if result.is_err() {
            self.abort(id, CloseCause::TlsFailed);
        }
    }

    /// Whether records wait for the kernel.
    pub(super) fn has_records(&mut self, id: ConnectionId) -> bool {
        self.tls.get(id).is_some_and(|secure| !secure.sending.is_empty())
    }

    /// Records that the kernel took.
    pub(super) fn advance_records(&mut self, id: ConnectionId, taken: usize) {
        if let Some(secure) = self.tls.get(id) {
            self.pool.advance(&mut secure.sending, Encoding::Binary, taken);
        }
    }

    /// The connection is told nothing more: its records are dropped.
    pub(super) fn clear_records(&mut self, id: ConnectionId) {
        if let Some(secure) = self.tls.get(id) {
            self.pool.clear(&mut secure.sending);
        }
    }

    /// The slot is free.
    pub(super) fn forget_tls(&mut self, id: ConnectionId) {
        self.judge(id, Handshake::Left);
        self.clear_records(id);
        let Some(secure) = self.tls.sessions.find_mut(id).and_then(Option::take) else { return };
        self.counters.tls_open -= 1;
        self.tls.held_bytes -= u64::from(secure.held_bytes);
        drop(secure);
    }
}
