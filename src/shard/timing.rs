//! Time: deadlines from the wheel, and the striped scan for silent peers.

use super::answer::FAR_MS;
use super::{CURSOR_RATE, Command, Kind, Outlet, STALL_CHECK_MS, Shard, State, Work, flags};
use crate::clock::Moment;
use crate::ids::ConnectionId;
use crate::io::driver::Close;
use crate::limits;
use crate::mutant::{self, Mutant};
use crate::observe::counters::CloseCause;
use crate::session::delivery::Stage;
use crate::wire::envelope::{ErrorCode, ServerFrame, page_flags};
use crate::wire::frame::Opcode;
use crate::wire::upgrade::Refusal;

impl Shard {
    /// Fires what is due, looks at the next liveness stripes, and sends mail that waited.
    pub fn handle_time(&mut self, now: Moment, outlet: &mut impl Outlet) {
        self.now = now;
        self.follow_wall_clock();
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.advance(now.tick(), limits::EXPIRIES_PER_TURN_MAX, |timer| fired.push(timer));
        for timer in fired.drain(..) {
            let id = ConnectionId { index: timer.index, generation: timer.generation };
            let Some(&kind) = Kind::ALL.get(usize::from(timer.kind)) else { continue };
            self.guarded(Work::Time, id, |shard| shard.handle_deadline(id, kind, outlet));
        }
        self.fired = fired;
        self.expire_detached();
        self.judge_pressure();
        let ping_ticks = (self.rules.ping_ms / 100).max(1);
        let tick = now.tick_of(self.id.0);
        if self.liveness.unscanned(tick) > ping_ticks / 2 {
            self.awake_since = now.tick();
        }
        let mut silent = std::mem::take(&mut self.silent);
        self.liveness.scan(tick, ping_ticks, limits::EXPIRIES_PER_TURN_MAX, |slot| silent.push(slot));
        for slot in silent.drain(..) {
            if let Some(id) = self.connections.at(slot).map(|(key, _)| ConnectionId::from(key)) {
                self.guarded(Work::Time, id, |shard| shard.check_silent(id, ping_ticks));
            }
        }
        self.silent = silent;
        self.sweep_signals();
        self.flush_mail(now, outlet);
    }

    /// The end of a token is filed by the monotonic clock. When the wall clock has moved against it, the ends of all tokens are filed once
    /// more, from where it stands now; an entry that then comes too early finds that there is time left. Looks at every session.
    fn follow_wall_clock(&mut self) {
        if !self.clocks.have_moved(self.now) {
            return;
        }
        for slot in 0..self.sessions.slots_count() {
            let Some((_, session)) = self.sessions.at(slot) else { continue };
            let (id, expires_s) = (session.connection, session.expires_s);
            if session.stage == Stage::Active {
                self.watch_expiry(id, expires_s);
            }
        }
    }

    /// Forgets the rates of those who have not signalled or named cursors for long enough: a full bucket says nothing.
    fn sweep_signals(&mut self) {
        let (now_ms, rate) = (self.now.mono_ns / 1_000_000, self.rules.signal_rate);
        if self.signals.is_empty() && self.cursor_rates.is_empty() || now_ms < self.signals_swept_ms + SIGNALS_SWEEP_MS {
            return;
        }
        self.signals_swept_ms = now_ms;
        let now_ms = self.now_ms();
        self.signals.retain(|_, bucket| !bucket.is_full(rate, now_ms));
        self.cursor_rates.retain(|_, bucket| !bucket.is_full(CURSOR_RATE, now_ms));
    }

    /// How long the next wait may last, milliseconds.
    #[must_use]
    pub fn wait_ms_max(&self) -> u64 {
        if !self.leaves.is_empty() || !self.peers.is_empty() {
            return 1;
        }
        // Newcomers may wait in the kernel until the next batch of them is due.
        self.entries.wait_ns(self.now.mono_ns).map_or(100, |wait_ns| wait_ns.div_ceil(1_000_000).min(100))
    }

    fn handle_deadline(&mut self, id: ConnectionId, kind: Kind, outlet: &mut impl Outlet) {
        let Some(connection) = self.connections.get(id) else { return };
        let state = connection.state;
        match kind {
            Kind::Upgrade if state == State::Upgrade => {
                self.refuse_upgrade(id, Refusal::HeadTimeout, CloseCause::UpgradeTimeout);
            }
            Kind::Upgrade if state == State::Proxy => self.abort(id, CloseCause::UpgradeTimeout),
            Kind::Hello if state == State::WaitHello => self.close(id, 4408, CloseCause::HelloTimeout),
            // It said HELLO in time; that nobody has judged it is not its fault.
            Kind::Hello if state == State::Judging => self.unjudged(id),
            Kind::Attach if state == State::Joining => {
                let answered = self.session_mut(id).is_some_and(|session| session.roster.is_some());
                if !answered {
                    self.turn_away(id);
                }
            }
            Kind::Gone if state == State::Joining => self.welcome(id),
            Kind::Close => self.give_up(id),
            Kind::Acknowledge => self.check_acknowledgements(id),
            Kind::Expiring => self.say_expiring(id),
            Kind::Expired => self.check_expired(id),
            Kind::Far => self.look_at_far_end(id),
            Kind::Stall => self.check_stall(id),
            Kind::Goaway if self.drain.is_some() => self.say_goaway(id),
            Kind::Grace => {
                let code = self.drain.map_or(1001, |drain| drain.close_code);
                self.close(id, code, CloseCause::Drain);
            }
            Kind::Message => self.check_message(id),
            Kind::Failing => self.finish_failing(id),
            Kind::Again => self.ask_again(id, outlet),
            Kind::PresenceLost => self.report_presence_lost(id, outlet),
            _ => {}
        }
    }

    /// The close handshake took too long.
    fn give_up(&mut self, id: ConnectionId) {
        let has_records = self.has_records(id);
        let connection = self.connections.known_mut(id);
        if connection.state != State::Closing {
            return;
        }
        connection.state = State::Finished;
        let how = if connection.queue.is_empty() && !has_records { Close::Graceful } else { Close::Abort };
        self.pool.clear(&mut connection.queue);
        self.clear_records(id);
        self.commands.push_back(Command::Close(id, how));
    }

    /// No progress of acknowledgements for too long while something waits: 4410.
    fn check_acknowledgements(&mut self, id: ConnectionId) {
        // Marks for want of room in this core, not in the window: there may be room now.
        self.catch_up(id);
        let now_ms = self.mono_ms();
        let timeout_ms = u64::from(self.rules.ack_timeout_ms);
        let Some(session) = self.session_mut(id) else { return };
        let Some(since_ms) = session.backlog.as_ref().and_then(|backlog| backlog.full_since_ms) else { return };
        let waited_ms = now_ms.saturating_sub(since_ms);
        if waited_ms < timeout_ms {
            let left_ms = u32::try_from(timeout_ms - waited_ms).unwrap_or(u32::MAX);
            return self.schedule(id, left_ms, Kind::Acknowledge);
        }
        self.close(id, 4410, CloseCause::NotAcknowledging);
    }

    /// Sets the clock of a window that is full.
    pub(super) fn watch_acknowledgements(&mut self, id: ConnectionId) {
        let now_ms = self.mono_ms();
        let Some(backlog) = self.session_mut(id).filter(|it| it.is_behind()).and_then(|it| it.backlog.as_mut()) else { return };
        backlog.full_since_ms = Some(now_ms);
        self.schedule(id, self.rules.ack_timeout_ms, Kind::Acknowledge);
    }

    fn say_expiring(&mut self, id: ConnectionId) {
        let (now_ms, expiring_ms) = (self.now.unix_ms, u64::from(self.rules.expiring_ms));
        let Some(session) = self.session_mut(id) else { return };
        let left_ms = (u64::from(session.expires_s) * 1000).saturating_sub(now_ms);
        let (expires_s, active) = (session.expires_s, session.stage == Stage::Active);
        if left_ms > expiring_ms + 200 {
            // AUTH has extended the token meanwhile, and the entry of the new end says so in its time; or the wall clock has been set back by
            // less than what has everything filed anew.
            if left_ms <= expiring_ms + 200 + CLOCKS_APART_MS {
                self.watch_expiry(id, expires_s);
            }
            return;
        }
        let in_ms = u32::try_from(left_ms).unwrap_or(u32::MAX);
        if active {
            self.push_server(id, &ServerFrame::Expiring { in_ms });
        }
        self.schedule(id, in_ms, Kind::Expired);
    }

    /// The end of a token was further away than the wheel is filed for.
    fn look_at_far_end(&mut self, id: ConnectionId) {
        self.connections.known_mut(id).flags &= !flags::FAR;
        if let Some(expires_s) = self.session_mut(id).map(|session| session.expires_s) {
            self.watch_expiry(id, expires_s);
        }
    }

    fn check_expired(&mut self, id: ConnectionId) {
        let now_ms = self.now.unix_ms;
        let Some(session) = self.session_mut(id) else { return };
        let expires_s = session.expires_s;
        let left_ms = (u64::from(expires_s) * 1000).saturating_sub(now_ms);
        if left_ms > FAR_MS {
            return self.watch_expiry(id, expires_s);
        }
        if left_ms > 0 {
            return self.schedule(id, u32::try_from(left_ms).unwrap_or(u32::MAX), Kind::Expired);
        }
        if mutant::on(Mutant::ExpiredStays) {
            return;
        }
        self.push_error(id, 0, ErrorCode::TokenExpired, 0, page_flags::ERROR_CLOSING, "token expired");
        self.close(id, 4401, CloseCause::TokenExpired);
    }

    /// Too much waits and the peer takes nothing: a slow reader.
    fn check_stall(&mut self, id: ConnectionId) {
        let (soft, stall_ms) = (self.rules.queue_soft_bytes, self.rules.stall_ms);
        let connection = self.connections.known_mut(id);
        let progressed = connection.flags & flags::PROGRESS != 0;
        connection.flags &= !flags::PROGRESS;
        if connection.flags & flags::PAUSED == 0 && connection.queue.bytes() <= soft
            || matches!(connection.state, State::Closing | State::Finished)
        {
            connection.flags &= !flags::STALLING;
            return;
        }
        if progressed {
            return self.schedule(id, stall_ms.min(STALL_CHECK_MS), Kind::Stall);
        }
        self.close(id, 4410, CloseCause::SlowReader);
    }

    fn check_message(&mut self, id: ConnectionId) {
        let now_tick = self.now.tick();
        let is_in_record = self.is_in_record(id) && Self::reads_frames(self.connections.known(id).state);
        let connection = self.connections.known_mut(id);
        if !connection.receive.is_in_message() && !is_in_record {
            connection.flags &= !flags::MESSAGE_CLOCK;
            return;
        }
        let begun = connection.message_tick;
        let left = u64::from(self.rules.message_ms / 100).saturating_sub(u64::from(now_tick.wrapping_sub(begun)));
        if left > 0 {
            return self.schedule(id, u32::try_from(left * 100).unwrap_or(u32::MAX), Kind::Message);
        }
        self.close(id, 1008, CloseCause::MessageTimeout);
    }

    /// Whoever has been silent for `ping_ms` is pinged, for 2.5 times as long is gone; but not before this core has listened for as long as there
    /// is between the two: it may have stood still itself.
    fn check_silent(&mut self, id: ConnectionId, ping_ticks: u32) {
        let now = self.now.tick();
        let Some(silent) = self.liveness.silent(id.index, now) else { return };
        let connection = self.connections.known_mut(id);
        if !matches!(
            connection.state,
            State::Echo | State::WaitHello | State::Judging | State::Joining | State::Active | State::Draining
        ) {
            return;
        }
        if silent >= ping_ticks * 5 / 2 && now.wrapping_sub(self.awake_since) >= ping_ticks * 3 / 2 {
            return self.abort(id, CloseCause::LivenessTimeout);
        }
        // The scan lets the first ping come at a fraction of the interval that differs by slot, so that a wave of connects does not stay a
        // wave.
        if connection.flags & flags::PINGED == 0 {
            connection.flags |= flags::PINGED;
            self.counters.pings_sent_count += 1;
            self.liveness.settle(id.index);
            self.push_control(id, Opcode::Ping, &[]);
        }
    }
}

/// How the two clocks of a core stand to one another.
#[derive(Debug)]
pub(super) struct Clocks {
    /// Wall clock less monotonic clock, when ends of tokens were last filed by it. Wraps.
    apart_ms: u64,
    /// When that was, monotonic milliseconds.
    followed_ms: u64,
    /// How long it is not followed again.
    pause_ms: u64,
}

impl Clocks {
    pub(super) fn new(now: Moment) -> Self {
        let mono_ms = now.mono_ns / 1_000_000;
        Self { apart_ms: now.unix_ms.wrapping_sub(mono_ms), followed_ms: mono_ms, pause_ms: FOLLOW_PAUSE_MS_MIN }
    }

    /// Whether the wall clock has moved since it was last followed, and is to be followed now. Each time leaves an entry per session in the
    /// wheel, so a clock that will not rest is followed less and less often.
    fn have_moved(&mut self, now: Moment) -> bool {
        let mono_ms = now.mono_ns / 1_000_000;
        let apart_ms = now.unix_ms.wrapping_sub(mono_ms);
        let moved_ms = apart_ms.wrapping_sub(self.apart_ms);
        let followed_for_ms = mono_ms.saturating_sub(self.followed_ms);
        if moved_ms.min(moved_ms.wrapping_neg()) < CLOCKS_APART_MS || followed_for_ms < self.pause_ms {
            return false;
        }
        let has_rested = followed_for_ms >= 2 * FOLLOW_PAUSE_MS_MAX;
        let pause_ms = if has_rested { FOLLOW_PAUSE_MS_MIN } else { FOLLOW_PAUSE_MS_MAX.min(2 * self.pause_ms) };
        *self = Self { apart_ms, followed_ms: mono_ms, pause_ms };
        true
    }
}

/// A wall clock that is off by less than this is not followed.
const CLOCKS_APART_MS: u64 = 1_000;
/// Between two times that the wall clock is followed; doubled each time, until it has rested.
const FOLLOW_PAUSE_MS_MIN: u64 = 1_000;
const FOLLOW_PAUSE_MS_MAX: u64 = 600_000;
/// How often rates that say nothing any more are looked for.
const SIGNALS_SWEEP_MS: u64 = 5_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::alone_tests::Core;

    /// A token of ten minutes ends when the wall clock says so, wherever that clock has jumped meanwhile and however often; the one of a
    /// neighbour, which ends later, does not.
    #[test]
    fn tokens_end_by_the_wall_clock_when_it_jumps() {
        for jumps_s in [&[][..], &[-3_600], &[590], &[700], &[-60, 120, -60], &[-1, 1]] {
            let mut core = Core::new();
            let end_ms = core.now.unix_ms + 600_000;
            let (id, _) = core.active(end_ms / 1_000);
            let (other, _) = core.active(end_ms / 1_000 + 86_400);
            for jump_s in jumps_s {
                core.pass(2);
                core.text(id, r#"{"t":"ping"}"#);
                core.now.unix_ms = core.now.unix_ms.checked_add_signed(jump_s * 1_000).expect("after 1970");
            }
            let jumped_ms = core.now.unix_ms;
            while core.cause(id).is_none() && core.now.unix_ms < end_ms + 3_600_000 {
                core.pass_ms(500);
                for id in [id, other] {
                    core.text(id, r#"{"t":"ping"}"#);
                    core.said(id);
                }
            }
            assert_eq!(core.cause(id), Some(CloseCause::TokenExpired), "{jumps_s:?}");
            let late_ms = core.now.unix_ms - end_ms.max(jumped_ms);
            assert!(core.now.unix_ms >= end_ms && late_ms <= 1_500, "{late_ms} ms late after {jumps_s:?}");
            assert_eq!(core.cause(other), None);
        }
    }

    /// A wall clock that jumps to and fro for hours leaves the wheel as small as it was, give or take a few entries per session.
    #[test]
    fn a_clock_that_will_not_rest_does_not_fill_the_wheel() {
        let mut core = Core::new();
        let (id, _) = core.active(core.now.unix_ms / 1_000 + 86_400);
        let before = core.shard.wheel.len();
        for second in 0..3 * 3_600 {
            core.pass(1);
            core.text(id, r#"{"t":"ping"}"#);
            core.said(id);
            core.now.unix_ms = core.now.unix_ms.checked_add_signed(if second % 2 == 0 { 5_000 } else { -5_000 }).unwrap();
        }
        let filed = core.shard.wheel.len().saturating_sub(before);
        assert!((10..=10 + 3 * 6 + 2).contains(&filed), "{filed} entries");
        assert_eq!(core.cause(id), None);
    }

    /// A peer that says nothing is asked for a sign of life within `ping_ms`, is still there after 2.4 times as long, and is gone after
    /// 2.5 times; any bytes begin it anew.
    #[test]
    fn a_silent_peer_is_gone_after_two_and_a_half_intervals() {
        let mut core = Core::new();
        let ping_ms = u64::from(core.shard.rules.ping_ms);
        let (id, _) = core.active(1_764_100_000);
        for spoke in [false, true] {
            if spoke {
                core.text(id, r#"{"t":"ping"}"#);
            }
            for tick in 1..=ping_ms * 24 / 1_000 {
                core.pass_ms(100);
                assert_eq!(core.cause(id), None, "silent for {tick} ticks");
            }
        }
        assert!(core.said(id).contains("\u{0}"), "a ping");
        assert_eq!(core.shard.counters.pings_sent_count, 2);
        for tick in 1..=ping_ms / 1_000 {
            assert_eq!(core.cause(id), None, "tick {tick} beyond 2.4 intervals");
            core.pass_ms(100);
        }
        assert_eq!(core.cause(id), Some(CloseCause::LivenessTimeout));
    }

    /// Of a setting, the default.
    const PING_MS: u64 = 30_000;
    /// Longer than anybody may be silent.
    const STOOD_STILL_MS: u64 = 300_000;

    /// Whoever says nothing is gone after 2.5 intervals, and has been pinged.
    #[test]
    fn the_silent_are_pinged_and_dropped() {
        let mut core = Core::new();
        let id = silent(&mut core);
        assert!(listens(&mut core, id, PING_MS * 24 / 10).contains(PING));
        assert_eq!(core.cause(id), None);
        listens(&mut core, id, PING_MS * 2 / 10);
        assert_eq!(core.cause(id), Some(CloseCause::LivenessTimeout));
    }

    /// A core that stood still listens for 1.5 intervals before it drops anybody, pinged before or not; then it does.
    #[test]
    fn who_stood_still_listens_first() {
        for was_pinged in [false, true] {
            let mut core = Core::new();
            let id = silent(&mut core);
            if was_pinged {
                assert!(listens(&mut core, id, PING_MS * 11 / 10).contains(PING));
            }
            core.pass_ms(STOOD_STILL_MS);
            assert_eq!(listens(&mut core, id, PING_MS * 14 / 10).contains(PING), !was_pinged);
            assert_eq!(core.cause(id), None, "pinged before: {was_pinged}");
            listens(&mut core, id, PING_MS * 2 / 10);
            assert_eq!(core.cause(id), Some(CloseCause::LivenessTimeout), "pinged before: {was_pinged}");
        }
    }

    /// A session of which nothing will be heard.
    fn silent(core: &mut Core) -> ConnectionId {
        core.active(core.now.unix_ms / 1_000 + 86_400).0
    }

    /// Turns as a reactor does; what was said meanwhile.
    fn listens(core: &mut Core, id: ConnectionId, ms: u64) -> String {
        let mut said = String::new();
        for _ in 0..ms / 100 {
            core.pass_ms(100);
            said += &core.said(id);
        }
        said
    }

    /// A ping without a payload, as lossy UTF-8.
    const PING: &str = "\u{fffd}\0";
}
