//! Memory is short: what is given up, in this order. What is acknowledged is in the store, and never among it.
//!
//! 1. Signals, presence, receipts: what is said at most once.
//! 2. Newcomers: see `admission.rs`.
//! 3. What is kept for the slowest: windows of absent sessions, then connections, those for whom most waits or is unacknowledged. Their
//!    sessions end, since a session that waited would keep its window; the client comes back and finds everything by SYNC.
//!
//! The process has a level, and this core one of its own, by its share of `limits.queue_bytes_max`; the higher one counts.

use std::net::SocketAddr;

use super::resume::Leaving;
use super::{Shard, State, Work, flags};
use crate::clock::Moment;
use crate::ids::ConnectionId;
use crate::limits::{IDLE_SESSION_BYTES, IDLE_TLS_BYTES, SHED_PER_TURN_MAX};
use crate::mail::ShedMail;
use crate::observe::counters::{CloseCause, Shed};
use crate::observe::pressure::{Level, relieved_bytes};
use crate::session::delivery::Stage;

impl Shard {
    /// The level of the process.
    pub fn set_pressure(&mut self, level: Level) {
        self.pressure.process = level;
    }

    /// What this core gives up now.
    #[must_use]
    pub fn pressure(&self) -> Level {
        self.pressure.process.max(self.pressure.own)
    }

    /// Looks how much of this core's share waits to be sent. What windows hold is bounded by itself (`relieve`), and what absent sessions
    /// hold must not keep their own clients out.
    pub(super) fn judge_pressure(&mut self) {
        self.pressure.own = self.pressure.own.next(self.pool.queued_bytes, self.rules.queued_bytes_max);
    }

    /// Bytes of memory that everything of this core takes, but what the reactor has.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let idle = self.connections.len().max(self.sessions.len()) as u64 * IDLE_SESSION_BYTES;
        self.pool.memory_bytes() + idle + self.counters.tls_open * IDLE_TLS_BYTES + self.tls_held_bytes()
    }

    /// Gives up `owed` bytes of memory, and what is over this core's own share, at the cost of those who read the least. `address` says
    /// where a client is.
    pub fn shed(&mut self, now: Moment, owed: u64, address: impl Fn(ConnectionId) -> Option<SocketAddr>) {
        self.now = now;
        let share = if self.pressure.own == Level::Readers { relieved_bytes(self.rules.queued_bytes_max) } else { u64::MAX };
        if owed == 0 && share == u64::MAX {
            return;
        }
        let memory = self.pool.used_bytes().saturating_sub(owed);
        let is_enough = |shard: &Self| shard.pool.used_bytes() <= memory && shard.pool.queued_bytes <= share;
        let absent: Vec<_> = self.absent_with_window().take(SHED_PER_TURN_MAX).collect();
        for session in absent {
            if is_enough(self) {
                return;
            }
            self.leave(session);
            self.counters.sessions_detached_dropped_count += 1;
        }
        for (_, id) in self.slowest().into_iter().take(SHED_PER_TURN_MAX) {
            if is_enough(self) {
                return;
            }
            let address = self.client(id).or_else(|| address(id));
            self.guarded(Work::Shed, id, |shard| shard.close_reader(id, address));
        }
    }

    /// Whether frames that are said at most once are dropped now; then so many of them are counted.
    pub(super) fn drops(&mut self, kind: Shed, count: usize) -> bool {
        let drops = self.pressure() >= Level::Signals;
        if drops {
            self.counters.count_shed(kind, count);
        }
        drops
    }

    /// Notes that much waits for a connection. Whoever reads it meanwhile is passed over when the slowest are looked for.
    pub(super) fn note_slow(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.flags & flags::SLOW != 0 {
            return;
        }
        connection.flags |= flags::SLOW;
        self.slow.push(id);
        if self.slow.len() > 2 * self.pressure.slow_count + SLOW_STALE_MAX {
            self.slowest();
        }
    }

    /// Sessions without a connection that hold something, those that left first in front.
    fn absent_with_window(&self) -> impl Iterator<Item = ConnectionId> {
        self.detached.iter().map(|detached| detached.session).filter(|session| {
            self.sessions.get(*session).is_some_and(|line| line.stage == Stage::Detached && line.unacknowledged > 0)
        })
    }

    /// Connections for which more than the soft bound waits or is unacknowledged, the most first. Forgets the others.
    fn slowest(&mut self) -> Vec<(u32, ConnectionId)> {
        let mut slowest = Vec::new();
        for id in std::mem::take(&mut self.slow) {
            let bytes = self.waiting_bytes(id);
            let Some(connection) = self.connections.get_mut(id) else { continue };
            if bytes > self.rules.queue_soft_bytes && !matches!(connection.state, State::Closing | State::Finished) {
                slowest.push((bytes, id));
                self.slow.push(id);
            } else {
                connection.flags &= !flags::SLOW;
            }
        }
        self.pressure.slow_count = self.slow.len();
        slowest.sort_unstable_by_key(|&(bytes, id)| (std::cmp::Reverse(bytes), id.index));
        slowest
    }

    /// Bytes queued for a connection, and of its window what it has not acknowledged.
    fn waiting_bytes(&mut self, id: ConnectionId) -> u32 {
        let queued = self.connections.get(id).map_or(0, |connection| connection.queue.bytes());
        queued.saturating_add(self.session_mut(id).map_or(0, |session| session.window_bytes))
    }

    /// Closes a connection without a word, which would wait behind what is not read, and its session with it.
    fn close_reader(&mut self, id: ConnectionId, address: Option<SocketAddr>) {
        let queued_bytes = self.connections.get(id).map_or(0, |connection| connection.queue.bytes());
        if let Some(from) = self.sender(id, 0) {
            let held_bytes = self.session_mut(id).map_or(0, |session| session.window_bytes);
            let (session, roster, unix_ms) = (from.session, from.roster, self.now.unix_ms);
            // Before it leaves: the store knows its name until then.
            let mail = ShedMail { session, roster, address, queued_bytes, held_bytes, unix_ms };
            self.leaves.push_back(Leaving::Shed(Box::new(mail)));
        }
        self.end_session(id);
        self.abort(id, CloseCause::Shed);
        self.counters.count_shed(Shed::Reader, 1);
    }
}

/// Levels of one core.
#[derive(Debug, Default)]
pub(super) struct Pressures {
    /// Of the process.
    process: Level,
    /// By its own share.
    own: Level,
    /// Slow connections when they were last looked for.
    slow_count: usize,
}

/// Names of connections that are slow no longer, beyond as many as there are true ones; then the list is swept.
const SLOW_STALE_MAX: usize = 1_024;
