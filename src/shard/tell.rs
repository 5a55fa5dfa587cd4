//! What is said at most once: receipts, presence, signals, TRANSIENT messages. It is dropped while memory is short, and for a connection
//! over which too much waits.
//!
//! A PRESENCE that is dropped would leave the client believing what is no longer true, and nobody else corrects that. Its connection is
//! noted, and once there is room again the store is asked to say anew how those it watches are: at most once in [`LOST_MS`], so that
//! a client that reads too slowly costs little.

use super::answer::opcode_of;
use super::mail::{slot_of, variant_of};
use super::{Kind, Outlet, Shard, flags};
use crate::conn::send_queue::Wrap;
use crate::ids::{ConnectionId, FrameIndex};
use crate::mail::{Submit, Target};
use crate::mutant::{self, Mutant};
use crate::observe::counters::Shed;
use crate::observe::pressure::Level;
use crate::session::delivery::Stage;
use crate::wire::envelope::{ServerFrame, encode_server};

impl Shard {
    /// A frame that is sent at most once: built once per variant, and dropped when memory is short or for who has too much waiting.
    pub(super) fn tell<'f>(&mut self, kind: Shed, targets: &[Target], frame: impl Fn(bool) -> ServerFrame<'f>) {
        let is_shed = self.drops(kind, targets.len());
        if is_shed && kind != Shed::Presence {
            return;
        }
        let mut variants: [Option<FrameIndex>; 4] = [None; 4];
        for target in targets {
            let session = self.sessions.get(slot_of(self.session_of(*target)));
            // One that is joining has its WELCOME before it, one that is leaving nothing any more.
            let Some(session) = session.filter(|session| session.stage == Stage::Active) else { continue };
            let (id, encoding) = (session.connection, session.encoding);
            let Some(connection) = self.connections.get(id) else { continue };
            let is_full =
                connection.queue.bytes() > self.rules.queue_soft_bytes || self.pool.queued_bytes > self.rules.queued_bytes_max;
            if is_shed || is_full {
                self.counters.transients_dropped_count += u64::from(!is_shed);
                if kind == Shed::Presence {
                    self.note_presence_lost(id);
                }
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

    fn note_presence_lost(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let is_known = connection.flags & flags::PRESENCE_LOST != 0;
        if !is_known && !mutant::on(Mutant::PresenceLossIgnored) {
            connection.flags |= flags::PRESENCE_LOST;
            self.schedule(id, LOST_MS, Kind::PresenceLost);
        }
    }

    /// A PRESENCE was dropped a while ago: if there is room now, the store hears of it, else later.
    pub(super) fn report_presence_lost(&mut self, id: ConnectionId, outlet: &mut impl Outlet) {
        // Its set has ended with its session.
        let Some(from) = self.sender(id, 0) else { return };
        let has_room = self.connections.get(id).is_some_and(|it| it.queue.bytes() <= self.rules.queue_soft_bytes / 2);
        let is_short = self.pressure() >= Level::Signals || self.pool.queued_bytes > self.rules.queued_bytes_max;
        let lost = Submit::PresenceLost { session: from.session, roster: from.roster };
        if !has_room || is_short || outlet.submit(lost).is_err() {
            return self.schedule(id, LOST_MS, Kind::PresenceLost);
        }
        self.connections.get_mut(id).expect("its session was just looked up").flags &= !flags::PRESENCE_LOST;
    }
}

/// Milliseconds from a loss, or from the last look, until a connection is looked at.
const LOST_MS: u32 = 2_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionRef;
    use crate::mail::{Event, Group};
    use crate::shard::alone_tests::Core;

    fn tell(core: &mut Core, session: SessionRef, event: impl Fn(u32, u32) -> Event) {
        let target = Target { index: session.index, generation: session.generation, own: false };
        let group = Group { events: vec![event(0, 1)], targets: vec![target], ..Group::default() };
        core.shard.handle_group(core.now, &group, &mut core.port);
    }

    fn presence(core: &mut Core, session: SessionRef) {
        tell(core, session, |first, count| Event::Presence { user: "bo".into(), state: 1, seen_ms: 7, first, count });
    }

    /// More than the soft bound waits for the client.
    fn fill(core: &mut Core, session: SessionRef) {
        for _ in 0..=core.shard.rules.queue_soft_bytes / 1024 {
            tell(core, session, |first, count| Event::Signalled {
                conv: "d:al:bo".into(),
                from: "bo".into(),
                kind: 1,
                payload: crate::wire::message::Body::from(vec![7; 1024]),
                first,
                count,
            });
        }
    }

    /// Takes the losses that the store has heard of.
    fn reported(core: &mut Core) -> Vec<SessionRef> {
        let submitted = std::mem::take(&mut core.port.submitted).into_iter();
        submitted.filter_map(|it| if let Submit::PresenceLost { session, .. } = it { Some(session) } else { None }).collect()
    }

    /// A PRESENCE for which there was no room is reported once, when there is room again; without a loss nothing is.
    #[test]
    fn a_lost_presence_is_reported_once_there_is_room() {
        let mut core = Core::new();
        let (id, session) = core.active(1_764_100_000);
        presence(&mut core, session);
        assert!(core.said(id).contains(r#""user":"bo""#));
        core.pass(10);
        assert!(reported(&mut core).is_empty(), "nothing was lost");
        fill(&mut core, session);
        (0..5).for_each(|_| presence(&mut core, session));
        core.pass(4);
        assert!(reported(&mut core).is_empty(), "there is no room yet");
        assert!(!core.said(id).contains(r#""user":"bo""#));
        core.port.takes_nothing = true;
        core.pass(4);
        core.port.takes_nothing = false;
        assert!(reported(&mut core).is_empty(), "the lane is full");
        core.pass(4);
        assert_eq!(reported(&mut core), [session]);
        core.pass(10);
        assert!(reported(&mut core).is_empty(), "said once");
    }

    /// What was dropped while memory was short is reported when it is short no longer; who has left meanwhile is nobody's concern.
    #[test]
    fn a_presence_that_was_shed_is_reported_when_memory_is_back() {
        let mut core = Core::new();
        let [(_, session), (gone, other)] = [core.active(1_764_100_000), core.active(1_764_100_000)];
        core.shard.set_pressure(Level::Signals);
        presence(&mut core, session);
        presence(&mut core, other);
        core.shard.handle_failed(gone);
        core.pass(6);
        assert!(reported(&mut core).is_empty(), "memory is short");
        core.shard.set_pressure(Level::Calm);
        core.pass(6);
        assert_eq!(reported(&mut core), [session]);
    }
}
