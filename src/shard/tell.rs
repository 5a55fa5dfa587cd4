//! What is said at most once: receipts, presence, signals, TRANSIENT messages. It is dropped while memory is short, and for a connection
//! over which too much waits.
//!
//! A PRESENCE that is dropped would leave the client believing what is no longer true, and nobody else corrects that. Its connection is
//! noted, and once there is room again the store is asked to say anew how those it watches are: at most once in [`LOST_MS`], so that
//! a client that reads too slowly costs little.

use super::answer::opcode_of;
use super::mail::variant_of;
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
        self.for_each(targets, |shard, session, own| shard.tell_one(kind, is_shed, (session, own), &frame, &mut variants));
        for frame in variants.into_iter().flatten() {
            self.pool.release(frame);
        }
    }

    #[expect(clippy::indexing_slicing, reason = "`variant_of` is below 4 for what has no trace")]
    fn tell_one<'f>(
        &mut self,
        kind: Shed,
        is_shed: bool,
        (session, own): (ConnectionId, bool),
        frame: impl Fn(bool) -> ServerFrame<'f>,
        variants: &mut [Option<FrameIndex>; 4],
    ) {
        // One that is joining has its WELCOME before it, one that is leaving nothing any more.
        let Some(session) = self.sessions.get(session).filter(|session| session.stage == Stage::Active) else { return };
        let (id, encoding) = (session.connection, session.encoding);
        let Some(connection) = self.connections.get(id) else { return };
        let is_full =
            connection.queue.bytes() > self.rules.queue_soft_bytes || self.pool.queued_bytes > self.rules.queued_bytes_max;
        if is_shed || is_full {
            self.counters.transients_dropped_count += u64::from(!is_shed);
            if kind == Shed::Presence {
                self.note_presence_lost(id);
            }
            return;
        }
        let index = *variants[variant_of(encoding, own, false)].get_or_insert_with(|| {
            self.pool.build(Wrap::Frame(opcode_of(encoding)), |out| encode_server(encoding, &frame(own), out))
        });
        self.push_frame(id, index, 0);
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
        self.connections.known_mut(id).flags &= !flags::PRESENCE_LOST;
    }
}

/// Milliseconds from a loss, or from the last look, until a connection is looked at.
const LOST_MS: u32 = 2_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionRef;
    use crate::mail::{Delivery, Event};
    use crate::shard::alone_tests::{Core, delivery};
    use crate::wire::envelope::{caps, deliver_flags};

    fn presence(core: &mut Core, session: SessionRef) {
        core.tell(session, |first, count| Event::Presence { user: "bo".into(), state: 1, seen_ms: 7, first, count });
    }

    /// More than the soft bound waits for the client.
    fn fill(core: &mut Core, session: SessionRef) {
        for _ in 0..=core.shard.rules.queue_soft_bytes / 1024 {
            core.tell(session, |first, count| Event::Signalled {
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

    fn message(flags: u8) -> Delivery {
        let seq = u64::from(flags & deliver_flags::TRANSIENT == 0);
        Delivery { seq, flags, ..delivery(b"x") }
    }

    /// At the first level of memory RECEIPT and TRANSIENT are dropped and counted, and WATCH is refused with 5002 before the store hears
    /// of it, each time with another delay; what is stored goes out all the same. With memory back everything passes.
    #[test]
    fn what_is_said_at_most_once_is_dropped_at_the_first_level() {
        let mut core = Core::new();
        let (id, session) = core.active(1_764_100_000);
        core.shard.session_mut(id).unwrap().caps = u8::try_from(caps::PRESENCE).unwrap();
        let all = |core: &mut Core| {
            core.tell(session, |first, count| Event::Receipt {
                conv: "d:al:bo".into(),
                user: "bo".into(),
                recv: 1,
                read: 1,
                first,
                count,
            });
            for flags in [deliver_flags::TRANSIENT, 0] {
                core.tell(session, |first, count| Event::Deliver { message: message(flags), first, count });
            }
            (0..8).for_each(|rid| core.text(id, &format!(r#"{{"t":"watch","rid":{},"users":["bo"]}}"#, rid + 1)));
            let watches = std::mem::take(&mut core.port.submitted);
            let said = core.said(id);
            let count = |part: &str| said.matches(part).count();
            let counts = (count(r#""t":"receipt""#), count(r#""t":"deliver""#), count(r#""code":5002"#));
            (counts, watches.iter().filter(|it| matches!(it, Submit::Watch(_))).count(), said)
        };
        core.shard.set_pressure(Level::Signals);
        let (counts, watches, said) = all(&mut core);
        assert_eq!((counts, watches), ((0, 1, 8), 0), "{said}");
        assert_eq!(core.shard.counters.shed_count[Shed::Transient as usize], 2);
        assert_eq!(core.shard.counters.shed_count[Shed::Presence as usize], 8);
        let delays =
            said.split(r#""retry_ms":"#).skip(1).map(|rest| rest.split([',', '}']).next().unwrap().parse::<u32>().unwrap());
        let delays: Vec<_> = delays.collect();
        assert!(delays.iter().all(|delay| (250..=313).contains(delay)), "{delays:?}");
        assert!(delays.iter().collect::<std::collections::BTreeSet<_>>().len() > 4, "they would come back together: {delays:?}");
        core.shard.set_pressure(Level::Calm);
        let (counts, watches, said) = all(&mut core);
        assert_eq!((counts, watches), ((1, 2, 0), 8), "{said}");
    }
}
