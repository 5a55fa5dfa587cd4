//! Sessions that outlive their connection: detach, and resume on whatever core the client lands.
//!
//! ```text
//!   new core B                      store                        old core A (may be B)
//!   HELLO ── Attach{claim} ──────►  roster points at B
//!   joining: deliveries are held ◄─ Attached
//!                                   Evict{by: B, claim} ───────► session id good, everything after last_pos held?
//!   WELCOME resumed = 1, replay ◄──────────── Moved ───────────── yes
//!   WELCOME resumed = 0         ◄──────────── Gone ────────────── no
//! ```
//!
//! The store is the one place that orders: whatever it sent before `Evict` went to A and is in the window that A gives away, whatever
//! comes after it goes to B and stands behind it. So nothing is lost and nothing comes twice, whichever of the three answers arrives
//! first. What cannot be resumed runs SYNC, which finds the same.
//!
//! What detached sessions hold counts in the byte budget of the core; under pressure the one detached first is dropped first.

use std::hint::black_box;

use super::answer::opcode_of;
use super::mail::slot_of;
use super::{GONE_MS, Kind, Outlet, Shard, State, Work};
use crate::clock::Moment;
use crate::conn::send_queue::Wrap;
use crate::ids::{ConnectionId, FrameIndex, RosterId, SessionRef};
use crate::limits;
use crate::mail::{Claim, Moved, Peer, ShedMail, Submit};
use crate::mutant::{self, Mutant};
use crate::observe::counters::CloseCause;
use crate::session::delivery::{Carried, Held, Stage};
use crate::wire::envelope::{Encoding, ServerFrame, Welcome, deliver_flags, deliver_tail, read_tail};
use crate::wire::message::Text;

/// A detached session and when it ends, in the order of detaching; stale when the session has been resumed or dropped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Detached {
    pub(super) session: ConnectionId,
    due_ms: u64,
}

/// What the store is told of a session that has left its connection. As many wait at once as connections can end at once, so it is much
/// smaller than [`Submit`].
#[derive(Debug)]
pub(super) enum Leaving {
    /// See [`Submit::Away`].
    Away { session: SessionRef, roster: RosterId },
    /// See [`Submit::Leave`].
    Leave { session: SessionRef, roster: RosterId },
    /// See [`Submit::Shed`].
    Shed(Box<ShedMail>),
}

const _: () = assert!(size_of::<Leaving>() <= 24);

impl Leaving {
    pub(super) fn mail(&self) -> Submit {
        match self {
            &Self::Away { session, roster } => Submit::Away { session, roster },
            &Self::Leave { session, roster } => Submit::Leave { session, roster },
            Self::Shed(mail) => Submit::Shed(ShedMail::clone(mail)),
        }
    }
}

impl Shard {
    /// The connection carries its session no longer. The session waits for the client to come back, if it may.
    #[expect(clippy::expect_used, reason = "a session becomes active by WELCOME, which waits for its place in the roster")]
    pub(super) fn detach_session(&mut self, id: ConnectionId) {
        let Some(session_id) = self.unlink_session(id) else { return };
        let Some(line) = self.sessions.get_mut(session_id) else { return };
        if line.stage != Stage::Active || self.rules.resume_ms == 0 || self.drain.is_some() {
            return self.leave(session_id);
        }
        line.stage = Stage::Detached;
        let roster = line.roster.expect("an active session is attached");
        if let Some(backlog) = &mut line.backlog {
            backlog.full_since_ms = None;
        }
        line.drop_empty_backlog();
        let session = self.session_ref(session_id);
        self.leaves.push_back(Leaving::Away { session, roster });
        self.detached_count += 1;
        let due_ms = self.mono_ms() + u64::from(self.rules.resume_ms);
        self.detached.push_back(Detached { session: session_id, due_ms });
        if self.detached_count > self.rules.connections_max {
            self.drop_oldest_detached();
        }
        if self.detached.len() > 2 * self.detached_count + DETACHED_STALE_MAX {
            let sessions = &self.sessions;
            self.detached.retain(|it| sessions.get(it.session).is_some_and(|line| line.stage == Stage::Detached));
        }
    }

    /// The client is done: its session is over.
    pub(super) fn end_session(&mut self, id: ConnectionId) {
        if let Some(session_id) = self.unlink_session(id) {
            self.leave(session_id);
        }
    }

    /// Takes the session from its connection, with everything the connection did on its behalf.
    fn unlink_session(&mut self, id: ConnectionId) -> Option<ConnectionId> {
        let session_id = self.session_id(id)?;
        self.connections.known_mut(id).session = 0;
        let cold = &mut self.cold[id];
        cold.sends_unanswered = 0;
        cold.oks_unanswered = 0;
        cold.reads_waiting = 0;
        if let Some(extra) = &mut cold.extra {
            extra.pages.clear();
            extra.joining = None;
        }
        self.drop_empty_extra(id);
        Some(session_id)
    }

    /// The session is over; the store is told, and the slot waits for its answer.
    pub(super) fn leave(&mut self, session_id: ConnectionId) {
        let session = self.session_ref(session_id);
        let Some(line) = self.sessions.get_mut(session_id) else { return };
        if line.stage == Stage::New {
            // No answer will ever free the slot: nobody was asked.
            self.sessions.remove(session_id);
            return;
        }
        self.detached_count -= usize::from(line.stage == Stage::Detached);
        line.stage = Stage::Leaving;
        // While the attach is on its way the roster slot is not known: the answer to it brings the leave.
        if let Some(roster) = line.roster {
            self.leaves.push_back(Leaving::Leave { session, roster });
        }
        line.take_backlog().into_held().for_each(|held| self.pool.let_go(held.frame));
    }

    /// Frees the slot of a session that the store names no more, with all it holds.
    pub(super) fn drop_session(&mut self, session: SessionRef) {
        let Some(mut line) = self.sessions.remove(slot_of(session)) else { return self.stale() };
        self.counters.sessions_closed_count += 1;
        self.detached_count -= usize::from(line.stage == Stage::Detached);
        line.take_backlog().into_held().for_each(|held| self.pool.let_go(held.frame));
    }

    /// Ends the sessions whose clients did not come back in time.
    pub(super) fn expire_detached(&mut self) {
        let now_ms = self.mono_ms();
        for _ in 0..limits::EXPIRIES_PER_TURN_MAX {
            let Some(&Detached { session, due_ms }) = self.detached.front() else { return };
            let waits = self.sessions.get(session).is_some_and(|line| line.stage == Stage::Detached);
            if waits && due_ms > now_ms {
                return;
            }
            self.detached.pop_front();
            if waits {
                self.leave(session);
            }
        }
    }

    /// The node leaves: nobody can come back to it.
    pub(super) fn leave_detached(&mut self) {
        while self.drop_oldest_detached() {}
        self.detached = std::collections::VecDeque::new();
    }

    /// Makes room for what is queued and held, at the cost of those who are away the longest. `false`: there is none but for
    /// [`Shard::is_kept_for`].
    pub(super) fn relieve(&mut self) -> bool {
        while self.pool.queued_bytes + self.pool.held_bytes
            > self.rules.queued_bytes_max - self.rules.queued_bytes_max / KEPT_PART
        {
            if !self.drop_oldest_detached() {
                return false;
            }
            self.counters.sessions_detached_dropped_count += 1;
        }
        true
    }

    /// The last of the room is kept for sessions that read: that have acknowledged all they were given. So those who do not read can fill
    /// what is common to all, and others still get what they are sent at once.
    pub(super) fn is_kept_for(&self, session_id: ConnectionId) -> bool {
        self.sessions.get(session_id).is_some_and(|session| session.stage == Stage::Active && session.unacknowledged == 0)
            && self.pool.queued_bytes + self.pool.held_bytes <= self.rules.queued_bytes_max
    }

    fn drop_oldest_detached(&mut self) -> bool {
        while let Some(Detached { session, .. }) = self.detached.pop_front() {
            if self.sessions.get(session).is_some_and(|line| line.stage == Stage::Detached) {
                self.leave(session);
                return true;
            }
        }
        false
    }

    pub(super) fn handle_attached(&mut self, session: SessionRef, roster: RosterId, evicted: Option<SessionRef>) {
        let Some(line) = self.sessions.get_mut(slot_of(session)) else {
            // A defect struck behind the question: the store must not name what is not there.
            self.stale();
            return self.leaves.push_back(Leaving::Leave { session, roster });
        };
        line.roster = Some(roster);
        if line.stage == Stage::Leaving {
            // The connection went away while the store was asked.
            return self.leaves.push_back(Leaving::Leave { session, roster });
        }
        let id = line.connection;
        self.guarded(Work::Welcome, id, |shard| shard.take_place(id, evicted.is_some()));
    }

    /// The store has a place for the session: it is welcomed, unless the former owner of the device is to finish first.
    fn take_place(&mut self, id: ConnectionId, has_former: bool) {
        let Some(joining) = self.joining_mut(id) else { return self.stale() };
        joining.attached = true;
        if has_former && !joining.done {
            self.schedule(id, GONE_MS, Kind::Gone);
        } else {
            self.welcome(id);
        }
    }

    /// The device is somebody else's now. What was ordered for this session has been taken by the events before this one.
    pub(super) fn handle_evict(&mut self, session: SessionRef, by: SessionRef, claim: Option<&Claim>, outlet: &mut impl Outlet) {
        let carried = claim.and_then(|claim| self.take_carried(session, claim));
        let encoding = self.sessions.get(slot_of(session)).map(|line| line.encoding);
        let cursors = self.take_cursors_of(session);
        if let Some(id) = self.connection_of(session) {
            // First the slot, then the close: the session is not there to be detached.
            self.unlink_session(id);
            self.close(id, 4409, CloseCause::Replaced);
        }
        // The slot is free: the store names it no more, and a leave on its way is ignored there.
        self.drop_session(session);
        if by.reactor == self.id {
            self.guarded_session(Work::Takeover, slot_of(by), |shard| shard.take_over(by, carried.zip(encoding), cursors));
            return;
        }
        let bytes = carried.as_ref().map_or(0, |it| it.ring.iter().map(|held| u64::from(held.bytes) + MOVED_FRAME_BYTES).sum());
        let toll = self.carriage.toll(bytes + MOVED_FRAME_BYTES, self.rules.moved_bytes_max);
        let mail = match (carried.zip(encoding), toll) {
            (None, _) => Peer::Gone { to: by, cursors },
            (Some((carried, _)), None) => {
                // The other core does not take what it has: the client runs SYNC instead.
                self.counters.sessions_unmoved_count += 1;
                self.let_go(Some(carried));
                Peer::Gone { to: by, cursors }
            }
            (Some((carried, encoding)), Some(toll)) => {
                let frames = carried.ring.iter().map(|held| self.pool.bytes(held.frame).to_vec()).collect();
                carried.ring.iter().for_each(|held| self.pool.let_go(held.frame));
                let Carried { pos, marks, resync, nacks, .. } = carried;
                let nacks = nacks.into_mail();
                Peer::Moved(Box::new(Moved { to: by, cursors, pos, encoding, frames, marks, resync, nacks, toll }))
            }
        };
        if self.peers.len() >= self.rules.peers_kept_max {
            // It starts afresh after five seconds, as if this core did not answer.
            self.counters.sessions_unmoved_count += 1;
            return;
        }
        self.peers.push_back((by.reactor, mail));
        self.flush_peers(outlet);
    }

    /// Everything a session holds, if the claim is good and nothing after its `last_pos` is missing.
    fn take_carried(&mut self, session: SessionRef, claim: &Claim) -> Option<Carried> {
        let session_id = slot_of(session);
        let line = self.sessions.get(session_id)?;
        if !matches!(line.stage, Stage::Active | Stage::Detached) {
            return None;
        }
        let key = self.session_key(session_id, line.turn);
        // Every byte is looked at, whatever the first ones say.
        let difference = key.iter().zip(&claim.key).fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
        if difference != 0 {
            return None;
        }
        let pool = &mut self.pool;
        self.sessions.get_mut(session_id)?.take_carried(claim.last_pos, |held| pool.let_go(held.frame))
    }

    /// Positions of a session that have not gone to the store yet.
    fn take_cursors_of(&mut self, session: SessionRef) -> Vec<(Text, u64)> {
        self.cursors.extract_if(|(owner, _), _| *owner == session).map(|((_, conv), seq)| (conv, seq)).collect()
    }

    /// Another core has something to say.
    pub fn handle_peer(&mut self, now: Moment, mail: Peer) {
        self.now = now;
        let to = match &mail {
            Peer::Gone { to, .. } => *to,
            Peer::Moved(moved) => moved.to,
        };
        self.guarded_session(Work::Takeover, slot_of(to), |shard| shard.take_peer(mail));
    }

    fn take_peer(&mut self, mail: Peer) {
        match mail {
            Peer::Gone { to, cursors } => self.take_over(to, None, cursors),
            Peer::Moved(moved) => {
                let Moved { to, cursors, pos, encoding, frames, marks, resync, nacks, toll } = *moved;
                let ring = frames.into_iter().map(|bytes| self.hold_bytes(encoding, bytes)).collect();
                // Counted here from now on.
                drop(toll);
                let carried = Carried { pos, ring, marks, resync, nacks: nacks.into() };
                self.take_over(to, Some((carried, encoding)), cursors);
                self.relieve();
            }
        }
    }

    fn hold_bytes(&mut self, encoding: Encoding, bytes: Vec<u8>) -> Held {
        let frame = self.pool.build(Wrap::Frame(opcode_of(encoding)), |out| *out = bytes);
        self.pool.hold(frame);
        self.pool.release(frame);
        Held { frame, bytes: self.pool.frame_len(frame) }
    }

    /// The former owner of the device is done with it, and may have left something to go on with.
    #[expect(clippy::expect_used, reason = "the same call has found it joining")]
    fn take_over(&mut self, to: SessionRef, carried: Option<(Carried, Encoding)>, cursors: Vec<(Text, u64)>) {
        let id = self.connection_of(to);
        let waits = id.is_some_and(|id| self.joining_mut(id).is_some());
        let (Some(id), true) = (id, waits) else {
            // Given up in the meantime, or five seconds were too long: it runs SYNC.
            self.stale();
            return self.let_go(carried.map(|(carried, _)| carried));
        };
        let same = self.connections.get(id).and_then(|connection| connection.encoding);
        let fits = carried.as_ref().is_some_and(|(_, encoding)| same == Some(*encoding));
        let pos = match carried {
            Some((carried, _)) if fits => Some(self.adopt(slot_of(to), carried)),
            // Frames of the other encoding cannot be replayed.
            other => {
                self.let_go(other.map(|(carried, _)| carried));
                None
            }
        };
        let joining = self.joining_mut(id).expect("looked up above");
        joining.done = true;
        joining.resumed = pos;
        joining.cursors = cursors;
        if joining.attached {
            self.welcome(id);
        }
    }

    fn let_go(&mut self, carried: Option<Carried>) {
        carried.into_iter().flat_map(|carried| carried.ring).for_each(|held| self.pool.let_go(held.frame));
    }

    /// Puts what is carried before what came while joining. Returns the highest `pos` carried.
    fn adopt(&mut self, session_id: ConnectionId, carried: Carried) -> u64 {
        let now_ms = self.mono_ms();
        let window_bytes_max = self.rules.window_bytes_max;
        let line = self.sessions.known_mut(session_id);
        let encoding = line.encoding;
        let joined = line.adopt(carried);
        let pos = line.pos;
        let mut scratch = Vec::new();
        for held in joined {
            if mutant::on(Mutant::JoinedForgotten) {
                self.pool.let_go(held.frame);
                continue;
            }
            if !line.is_behind() && line.has_room(held.bytes, window_bytes_max) {
                line.deliver(held);
                continue;
            }
            let message = read_tail(encoding, 1, self.pool.bytes(held.frame), &mut scratch);
            line.mark(&message.conv, message.seq, message.mid, now_ms);
            self.pool.let_go(held.frame);
            self.counters.deliveries_marked_count += 1;
        }
        pos
    }

    /// HELLO is answered: the session is active, gets again what it had not acknowledged, then what came while it was joining.
    pub(super) fn welcome(&mut self, id: ConnectionId) {
        let Some(session_id) = self.session_id(id) else { return };
        let Some(joining) = self.cold[id].extra.as_mut().and_then(|extra| extra.joining.take()) else { return };
        self.drop_empty_extra(id);
        self.session_turn = self.session_turn.wrapping_add(1);
        let turn = self.session_turn;
        let key = self.session_key(session_id, turn);
        let rules = self.rules.clone();
        let session = self.session_ref(session_id);
        let line = self.sessions.known_mut(session_id);
        line.stage = Stage::Active;
        line.turn = turn;
        if joining.resumed.is_none()
            && let Some(backlog) = &mut line.backlog
        {
            // A new session runs SYNC, which finds all that it knows nothing of.
            backlog.forget_missed();
            line.drop_empty_backlog();
        }
        let (window, caps, expires_s) = (line.window, u32::from(line.caps), line.expires_s);
        let held: Vec<(u64, Held)> = line.held().collect();
        for (conv, seq) in joining.cursors {
            if self.cursors.len() >= rules.cursors_gathered_max {
                self.counters.cursors_refused_count += 1;
                continue;
            }
            let known = self.cursors.entry((session, conv)).or_default();
            *known = seq.max(*known);
        }
        self.watch_cursors();
        self.connections.known_mut(id).state = State::Active;
        self.counters.sessions_opened_count += 1;
        self.counters.sessions_resumed_count += u64::from(joining.resumed.is_some());
        let carried_pos = joining.resumed.unwrap_or(0);
        let welcome = Welcome {
            minor: joining.minor,
            resumed: u8::from(joining.resumed.is_some()),
            level: rules.level,
            window,
            send_window: rules.send_window,
            caps,
            ping_ms: rules.ping_ms,
            resume_ms: rules.resume_ms,
            dedup_s: rules.dedup_s,
            max_frame: rules.max_frame,
            max_payload: rules.max_payload,
            server_ms: self.now.unix_ms,
            pos: carried_pos,
            session: key,
            user: joining.user.as_str().into(),
            node: rules.node.as_str().into(),
            rate: u16::try_from(rules.send_rate.per_second).unwrap_or(u16::MAX),
            burst: u16::try_from(rules.send_rate.burst).unwrap_or(u16::MAX),
        };
        self.push_server(id, &ServerFrame::Welcome(welcome));
        self.watch_expiry(id, expires_s);
        for (pos, held) in held {
            if pos > carried_pos {
                self.push_frame(id, held.frame, pos);
                continue;
            }
            if mutant::on(Mutant::ReplayForgotten) {
                continue;
            }
            let replay = self.replay_of(id, held.frame);
            self.push_frame(id, replay, pos);
            self.pool.release(replay);
            self.counters.deliveries_replayed_count += 1;
        }
        self.catch_up(id);
        self.watch_acknowledgements(id);
        self.watch_nacks(id);
    }

    /// The same delivery with REPLAY; a message that has expired meanwhile is a tombstone.
    #[expect(clippy::expect_used, reason = "what is replayed goes to a session, which no connection has without an upgrade")]
    fn replay_of(&mut self, id: ConnectionId, frame: FrameIndex) -> FrameIndex {
        let encoding = self.connections.get(id).and_then(|it| it.encoding).expect("set by the upgrade");
        let mut scratch = Vec::new();
        let mut message = read_tail(encoding, 1, self.pool.bytes(frame), &mut scratch);
        message.flags |= deliver_flags::REPLAY;
        if message.exp_s != 0 && u64::from(message.exp_s) * 1000 <= self.now.unix_ms {
            message.flags |= deliver_flags::TOMBSTONE;
            message.payload = (&[] as &[u8]).into();
        }
        let max_frame = self.rules.max_frame as usize;
        self.pool.build(Wrap::Frame(opcode_of(encoding)), |out| deliver_tail(encoding, &message, max_frame, out))
    }

    /// Session id on the wire: reactor, slot, turn of the slot and 64 secret bits, new with every WELCOME.
    fn session_key(&self, session_id: ConnectionId, turn: u32) -> [u8; 16] {
        let mut named = [0; 12];
        named[..4].copy_from_slice(&turn.to_le_bytes());
        named[4..8].copy_from_slice(&session_id.index.to_le_bytes());
        named[8..].copy_from_slice(&session_id.generation.to_le_bytes());
        let secret = self.rules.hashes.fingerprint(self.id.0, &named);
        let mut key = [0; 16];
        key[..2].copy_from_slice(&self.id.0.to_le_bytes());
        key[2..6].copy_from_slice(&session_id.index.to_le_bytes());
        key[6..8].copy_from_slice(&session_id.generation.to_le_bytes()[..2]);
        key[8..].copy_from_slice(&secret.to_le_bytes());
        key
    }
}

/// One part in so many of what may be queued and held is kept for sessions that read.
const KEPT_PART: u64 = 4;
/// What a frame on its way costs beyond its bytes.
const MOVED_FRAME_BYTES: u64 = 32;
/// Stale names in the list of detached sessions beyond as many as there are true ones; then the list is swept.
const DETACHED_STALE_MAX: usize = 1_024;
