//! Who may come in: the rate of accepting, the handshakes under way, and what a newcomer is told when there is no room.
//!
//! The rate is the node's (see [`crate::session::pace`]): a reactor accepts by batches that it has booked of it. Whoever is told to go, or
//! is not let in, is told when to come back by the same rate, one after the other, so that they do not all come back together.
//!
//! No newcomer due, or places spent: the driver stops accepting and the kernel's queue pushes back. Only when that queue is half full, or
//! memory is short, are newcomers taken from it and answered at once with a canned 503, at a rate of its own. Whoever comes while the node
//! drains or is full is upgraded and told by GOAWAY and 4503, because a browser sees nothing of a 503; when memory is short it is 503 after
//! all.

use std::sync::Arc;

use super::{Rules, Shard, State, flags};
use crate::clock::Moment;
use crate::conn::send_queue::Wrap;
use crate::ids::ConnectionId;
use crate::limits::{LEAVERS_AHEAD_MS_MAX, REFUSED_AHEAD_MS_MAX};
use crate::mail::Bounds;
use crate::observe::counters::{CloseCause, Shed};
use crate::observe::pressure::Level;
use crate::session::pace::early_ns;
use crate::session::rate::Rate;
use crate::wire::envelope::ServerFrame;
use crate::wire::upgrade::{Refusal, Request};

impl Shard {
    /// Limits that hold from now on. What is beyond a lower one goes as it would at that limit.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        let mut rules = (*self.rules).clone();
        rules.keep_to(bounds);
        self.rules = Arc::new(rules);
        self.entries.forget();
    }

    /// Whether the driver may accept another connection.
    #[must_use]
    pub fn admits(&mut self, now: Moment) -> bool {
        let has_room = self.drain.is_none() && self.handshakes_open < self.rules.handshakes_max && !self.is_short();
        has_room && self.entries.is_due(&self.rules.pace, self.rules.accept_rate, now.mono_ns)
    }

    /// Whether memory is too short for newcomers.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.pressure() >= Level::Newcomers
    }

    /// Whether a connection that may not be admitted may be accepted all the same, for [`Shard::turn_away_newcomer`].
    #[must_use]
    pub fn may_turn_away(&self, now: Moment) -> bool {
        self.drain.is_none() && self.may_refuse(now)
    }

    /// Whether a refusal is within the rate of refusals.
    pub(super) fn may_refuse(&self, now: Moment) -> bool {
        let rate = self.rules.accept_rate;
        rate.per_second == 0 || self.rules.pace.refusals.is_free(now.mono_ns + early_ns(rate, 1))
    }

    /// Counts one refusal towards their rate. Refusing costs less than admitting.
    pub(super) fn note_refusal(&self) {
        let per_second = self.rules.accept_rate.per_second.saturating_mul(REFUSALS_PER_ENTRY);
        self.rules.pace.refusals.book(self.now.mono_ns, 1, per_second, u64::MAX);
    }

    /// Milliseconds until the next place among those who are to come back; nobody else of this node gets the same. A node that drains lets
    /// nobody in, so places begin when that is over.
    #[expect(clippy::expect_used, reason = "a place is at most a drain and as far ahead as was asked, hours below 49 days")]
    pub(super) fn book_return(&self) -> u32 {
        let now_ns = self.now.mono_ns;
        let (from_ns, ahead_ms) = match self.drain {
            Some(drain) => (drain.ends_ns.max(now_ns), LEAVERS_AHEAD_MS_MAX),
            None => (now_ns, REFUSED_AHEAD_MS_MAX),
        };
        let per_second = self.rules.accept_rate.per_second;
        let place_ns = self.rules.pace.returns.book(from_ns, 1, per_second, u64::from(ahead_ms) * 1_000_000);
        u32::try_from((place_ns - now_ns) / 1_000_000).expect("a drain and as far ahead as given")
    }

    /// Answers a connection just accepted with 503 before it has asked for anything.
    pub fn turn_away_newcomer(&mut self, id: ConnectionId) {
        // Whether it may be was asked by `may_turn_away`; a few may come in the same turn.
        self.note_refusal();
        self.counters.accepts_turned_away_count += 1;
        self.counters.count_shed(Shed::Newcomer, usize::from(self.is_short()));
        self.refuse_upgrade(id, Refusal::Overloaded, CloseCause::Overloaded);
    }

    /// What a good request is told instead of being let in: nothing (`false`), GOAWAY and 4503, or 503.
    pub(super) fn turn_away_request(&mut self, id: ConnectionId, request: &Request<'_>) -> bool {
        let is_short = self.is_short();
        let (cause, goaway) = match &self.drain {
            Some(drain) => (CloseCause::Drain, if drain.close_code == 1012 { GOAWAY_RESTART } else { GOAWAY_DRAIN }),
            None if is_short || self.let_in_count >= self.rules.connections_max => (CloseCause::Overloaded, GOAWAY_OVERLOAD),
            None => return false,
        };
        self.counters.count_shed(Shed::Newcomer, usize::from(is_short));
        if is_short || request.encoding.is_none() {
            self.refuse_upgrade(id, Refusal::Overloaded, cause);
            return true;
        }
        self.counters.upgrades_turned_away_count += 1;
        let frame = self.pool.build(Wrap::Raw, |out| request.write_accept(out));
        let connection = self.connections.known_mut(id);
        self.pool.push(&mut connection.queue, frame, 0);
        self.pool.release(frame);
        connection.encoding = request.encoding;
        self.let_in(id, State::WaitHello);
        let (delay_ms, spread_ms) = (GOAWAY_DELAY_MS + self.book_return(), GOAWAY_SPREAD_MS);
        self.push_server(id, &ServerFrame::Goaway { code: goaway, delay_ms, spread_ms, grace_ms: 0, target: "".into() });
        self.close(id, 4503, cause);
        true
    }

    /// The upgrade is answered: frames follow.
    pub(super) fn let_in(&mut self, id: ConnectionId, state: State) {
        self.connections.known_mut(id).state = state;
        self.let_in_count += 1;
    }

    /// A connection begins to end; called before its state says so. Asked for again, it says nothing.
    pub(super) fn step_out(&mut self, id: ConnectionId) {
        self.end_handshake(id);
        if self.connections.get(id).is_some_and(|connection| connection.state.is_let_in()) {
            self.let_in_count -= 1;
        }
    }

    /// A connection is through with its handshake, or ends. Asked for twice, the second time says nothing.
    pub(super) fn end_handshake(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id)
            && connection.flags & flags::HANDSHAKE != 0
        {
            connection.flags &= !flags::HANDSHAKE;
            self.handshakes_open -= 1;
        }
    }
}

impl Rules {
    /// Takes over limits that may change while a reactor runs.
    pub fn keep_to(&mut self, bounds: Bounds) {
        self.accept_rate = Rate { per_second: bounds.accept_per_s, burst: bounds.accept_burst };
        self.handshakes_max = bounds.handshakes_max;
        self.queued_bytes_max = bounds.queued_bytes_max;
    }
}

const GOAWAY_DRAIN: u16 = 1;
const GOAWAY_RESTART: u16 = 3;
const GOAWAY_OVERLOAD: u16 = 4;
/// Refusals that may be made for each newcomer that may come in.
const REFUSALS_PER_ENTRY: u32 = 4;
/// When whoever was turned away may come again, at the least.
const GOAWAY_DELAY_MS: u32 = 5_000;
const GOAWAY_SPREAD_MS: u32 = 5_000;

#[cfg(test)]
mod tests {
    use crate::shard::Drain;
    use crate::shard::alone_tests::Core;

    /// A node that drains is closed to those whom it has sent away already.
    #[test]
    fn nobody_is_told_to_come_back_into_a_drain() {
        let mut core = Core::new();
        core.shard.drain = Some(Drain { close_code: 1012, ends_ns: core.now.mono_ns + 3_000_000_000 });
        for _ in 0..10 {
            assert!((3_000..4_000).contains(&core.shard.book_return()));
        }
        core.pass(2);
        assert!((1_000..2_000).contains(&core.shard.book_return()));
        core.pass(2);
        assert!(core.shard.book_return() < 1_000);
    }
}
