//! Where a panic ends: at the connection whose code it struck. Everybody else on the core goes on.
//!
//! Each place at which a core runs the code of one connection, or of one session, runs it through here. After a panic nothing is known
//! of that connection but its slot: it ends with 1011, or without a word when it was on its way out already, and its session ends with it,
//! so that nobody comes back to half a state. Its client runs SYNC and finds everything. What the two held in the pools of the core is
//! freed as far as they still name it, unfinished messages also if not; a frame that was just being built stays taken.
//!
//! Not caught is what belongs to nobody alone: accepting and freeing a slot, the books of sessions that the store and other cores keep as
//! well (`Attached`, `AttachRefused`, `Evict`, `Left`; what a connection is told because of them is caught), what is gathered for the store,
//! the driver. Nor is a panic while a connection is ended because of one. Those end the process.

#[cfg(debug_assertions)]
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
#[cfg(debug_assertions)]
use std::sync::LazyLock;

use super::{Shard, State};
use crate::conn::carry::Stashes;
use crate::ids::ConnectionId;
use crate::observe::counters::CloseCause;
use crate::session::delivery::Stage;

/// What a core was doing for one connection, for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Bytes of it came.
    Bytes,
    /// A step of its TLS handshake.
    Handshake,
    /// It will send nothing more, or failed.
    End,
    /// What waits for it was laid out, or the kernel took some.
    Output,
    /// One of its deadlines, or its silence.
    Time,
    /// Its token was judged elsewhere.
    Verdict,
    /// A page of it was read.
    Page,
    /// The store has answered its HELLO.
    Welcome,
    /// The former owner of the device has answered.
    Takeover,
    /// The store has answered a request of it.
    Answer,
    /// The store has something for it.
    Delivery,
    /// It was looked at because memory is short.
    Shed,
    /// The operator closes it.
    Kick,
}

/// A panic that was caught.
#[derive(Clone, Copy, Debug)]
pub struct Panicked {
    /// What was being done.
    pub work: Work,
    /// For whom: a slot of connections, or of sessions where there is no connection.
    pub slot: u32,
}

/// The panics of one core.
#[derive(Debug, Default)]
pub(super) struct Guard {
    is_on: bool,
    caught: Vec<Panicked>,
    /// Where the next panic is planted, and in which slot.
    #[cfg(test)]
    pub(super) planted: Option<(Work, u32)>,
}

impl Shard {
    /// From here on a panic ends one connection. A reactor asks for it; a test does not, because it wants to see every panic.
    pub fn catch_panics(&mut self) {
        self.guard.is_on = true;
    }

    /// Takes the panics caught since the last call.
    #[must_use]
    pub fn take_panics(&mut self) -> Vec<Panicked> {
        std::mem::take(&mut self.guard.caught)
    }

    /// Runs what concerns the connection `id`; a panic ends it alone, and is `None`.
    pub(super) fn guarded<T>(&mut self, work: Work, id: ConnectionId, handle: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let handled = self.caught(work, id.index, handle);
        if handled.is_none() {
            self.handle_panic(id);
        }
        handled
    }

    /// As [`Shard::guarded`], for what may have taken the unfinished message of the connection from its place: no stash is lost.
    pub(super) fn guarded_bytes<T>(
        &mut self,
        work: Work,
        id: ConnectionId,
        stashes: &mut Stashes,
        handle: impl FnOnce(&mut Self, &mut Stashes) -> T,
    ) -> Option<T> {
        let handled = self.guarded(work, id, |shard| handle(shard, stashes));
        if handled.is_none() {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.receive.stop(stashes);
            }
            stashes.close_all_of(id.index);
        }
        handled
    }

    /// Runs what concerns the session `session`; a panic ends it, and its connection if it has one, and is `None`.
    pub(super) fn guarded_session<T>(
        &mut self,
        work: Work,
        session: ConnectionId,
        handle: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let handled = self.caught(work, session.index, handle);
        if handled.is_none()
            && let Some(id) = self.sessions.get(session).map(|line| line.connection)
        {
            self.handle_panic(id);
        }
        handled
    }

    fn caught<T>(&mut self, work: Work, slot: u32, handle: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if !self.guard.is_on {
            return Some(handle(self));
        }
        let handled = catch_unwind(AssertUnwindSafe(|| {
            #[cfg(test)]
            assert!(self.guard.planted.take_if(|planted| *planted == (work, slot)).is_none(), "a defect was planted");
            handle(self)
        }));
        match handled {
            Ok(value) => Some(value),
            // The turn would not end while each of thousands panics.
            Err(payload) if self.guard.caught.len() >= PANICS_PER_TURN_MAX => resume_unwind(payload),
            Err(_) => {
                self.counters.panics_count += 1;
                self.guard.caught.push(Panicked { work, slot });
                None
            }
        }
    }

    /// Whatever state a panic left, the connection `id` ends, with 1011, and so does every session that names it: the connection may have
    /// lost its own name for it, or may be gone. Looks at every session.
    pub fn handle_panic(&mut self, id: ConnectionId) {
        self.forget_said();
        self.end_session(id);
        for slot in 0..self.sessions.slots_count() {
            let Some((session, line)) = self.sessions.at(slot) else { continue };
            if line.connection == id && line.stage != Stage::Leaving {
                self.leave(session.into());
            }
        }
        let Some(connection) = self.connections.get_mut(id) else { return };
        if !matches!(connection.state, State::Closing | State::Finished) {
            return self.close(id, 1011, CloseCause::InternalError);
        }
        // One that was just being aborted may not have been told to the driver yet, which does not mind to be told twice.
        connection.state = State::Closing;
        self.abort(id, CloseCause::InternalError);
    }
}

/// The defect that a build with debug assertions has if its environment names the bytes, so that tests see what follows a panic: it strikes
/// whoever takes them from the network, or judges them as a token.
///
/// # Panics
/// If it is these.
#[cfg(debug_assertions)]
pub fn panic_over_defect(bytes: &[u8]) {
    static DEFECT: LazyLock<Vec<u8>> =
        LazyLock::new(|| std::env::var_os("FAULT_PANIC_OVER").map_or(DEFECT_OF_TESTS.to_vec(), OsString::into_encoded_bytes));
    assert!(bytes.is_empty() || bytes != *DEFECT, "a defect was planted");
}

/// Those of the unit tests; no bytes: there is no defect.
#[cfg(debug_assertions)]
pub const DEFECT_OF_TESTS: &[u8] = if cfg!(test) { b"the bytes of a defect" } else { b"" };

/// Panics that are caught between two looks of the reactor; the next one ends the process.
const PANICS_PER_TURN_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{RosterId, SessionRef};
    use crate::mail::{Event, Group, PageReply, Peer, Reached, Submit, Target};
    use crate::shard::Command;
    use crate::shard::alone_tests::{Core, al, delivery};
    use crate::shard::mail::slot_of;
    use crate::wire::envelope::ErrorCode;

    fn core() -> Core {
        let mut core = Core::new();
        core.shard.catch_panics();
        core
    }

    fn struck(core: &mut Core) -> Vec<Work> {
        core.shard.take_panics().into_iter().map(|panicked| panicked.work).collect()
    }

    /// Delivers one message to all of `sessions`, in this order.
    fn deliver(core: &mut Core, sessions: &[SessionRef]) {
        let message = delivery(b"for everybody");
        let targets = sessions.iter().map(|it| Target { index: it.index, generation: it.generation, own: false });
        let event = Event::Deliver { message, first: 0, count: u32::try_from(sessions.len()).unwrap() };
        let group = Group { events: vec![event], targets: targets.collect(), ..Group::default() };
        core.shard.handle_group(core.now, &group, &mut core.port);
    }

    /// `act` strikes a defect in the code of one of two sessions: that one ends with 1011, once and as itself, the store is told to forget its
    /// session, nothing of it is left on the core, and the other one goes on.
    fn ends_alone(work: Work, act: impl FnOnce(&mut Core, ConnectionId, [SessionRef; 2])) {
        let mut core = core();
        let [(id, session), (other, neighbour)] = [core.active(1_764_100_000), core.active(1_764_100_000)];
        assert_eq!(id.index, session.index, "one slot, whichever is struck");
        core.shard.guard.planted = Some((work, id.index));
        act(&mut core, id, [session, neighbour]);
        assert_eq!(struck(&mut core), [work]);
        let end = core.said_bytes(id);
        assert!(end.ends_with(&[0x88, 2, 0x03, 0xf3]), "{work:?}: {end:x?}");
        core.text(other, r#"{"t":"ping"}"#);
        assert!(core.said(other).contains("pong"), "{work:?}");
        assert_eq!(core.shard.handle_closed(id, &mut core.stashes), Some(CloseCause::InternalError), "{work:?}");
        core.pass(1);
        assert_eq!(left(&core, session), 1, "{work:?}");
        core.group(Event::Left { session });
        let counts = (core.shard.connections_count(), core.shard.sessions_count(), core.shard.detached_count());
        assert_eq!((counts, core.shard.handshakes_open()), ((1, 1, 0), 0), "{work:?}");
        assert_eq!(core.shard.counters.closes_count.iter().sum::<u64>(), 1, "{work:?}");
        assert_eq!(core.shard.counters.panics_count, 1);
        assert_eq!(core.cause(other), None, "{work:?}");
    }

    /// Each place at which the code of one connection runs.
    #[test]
    fn a_panic_ends_the_one_it_struck() {
        ends_alone(Work::Bytes, |core, id, _| core.text(id, r#"{"t":"ping"}"#));
        ends_alone(Work::Handshake, |core, id, _| {
            core.shard.handle_handshake(core.now, id, &mut core.stashes, &mut core.port);
        });
        ends_alone(Work::End, |core, id, _| core.shard.handle_eof(id));
        ends_alone(Work::End, |core, id, _| core.shard.handle_failed(id));
        ends_alone(Work::Output, |core, id, _| {
            core.text(id, r#"{"t":"ping"}"#);
            assert_eq!(core.laid_out(id), None);
        });
        ends_alone(Work::Output, |core, id, _| core.shard.handle_taken(id, 0));
        ends_alone(Work::Time, |core, _, _| core.pass_ms(u64::from(core.shard.rules.ping_ms)));
        ends_alone(Work::Page, |core, _, [session, _]| {
            let reply = PageReply { session, rid: 1, result: Ok(Vec::new()), reached: Reached::Nothing };
            core.shard.handle_page(core.now, reply, &mut core.port);
        });
        ends_alone(Work::Takeover, |core, _, [session, _]| {
            core.shard.handle_peer(core.now, Peer::Gone { to: session, cursors: Vec::new() });
        });
        ends_alone(Work::Answer, |core, _, [session, _]| core.group(Event::Ok { session, rid: 1, value: 0 }));
        ends_alone(Work::Delivery, |core, _, _| core.group(Event::Resync));
        ends_alone(Work::Kick, |core, _, [session, _]| assert!(core.shard.kick(core.now, session)));
    }

    /// The store answers HELLO, with a place or without one: whatever strikes while it is passed on, a place is given back.
    #[test]
    fn a_panic_ends_the_one_that_joins() {
        let attached = |session: SessionRef| Event::Attached { session, roster: RosterId(7), evicted: None };
        let refused = |session| Event::AttachRefused { session, code: ErrorCode::StoreOverloaded };
        for (is_attached, answer) in [(true, &attached as &dyn Fn(SessionRef) -> Event), (false, &refused)] {
            let mut core = core();
            let (other, _) = core.active(1_764_100_000);
            let (id, session) = core.joining();
            core.shard.guard.planted = Some((Work::Welcome, id.index));
            core.group(answer(session));
            ends_without_a_trace(&mut core, id, Work::Welcome);
            assert_eq!(left(&core, session), usize::from(is_attached));
            if is_attached {
                core.group(Event::Left { session });
            }
            assert_eq!((core.shard.sessions_count(), core.shard.connections_count(), core.cause(other)), (1, 1, None));
        }
    }

    /// A newcomer takes over the device of a session of the same core.
    #[test]
    fn a_panic_ends_the_one_that_takes_over() {
        let mut core = core();
        let (former, old) = core.active(1_764_100_000);
        let (id, session) = core.joining();
        core.group(Event::Attached { session, roster: RosterId(7), evicted: Some(old) });
        core.shard.guard.planted = Some((Work::Takeover, session.index));
        core.group(Event::Evict { session: old, by: session, claim: None });
        ends_without_a_trace(&mut core, id, Work::Takeover);
        assert_eq!((left(&core, session), core.cause(former)), (1, Some(CloseCause::Replaced)));
        core.group(Event::Left { session });
        assert_eq!(core.shard.sessions_count(), 0);
    }

    /// The lane to the store has a defect just when it is to hear of a session. Whether it has heard of it is not known then: the slot is
    /// free at once, and an answer that comes all the same is answered.
    #[test]
    fn a_panic_before_the_store_is_asked_keeps_no_slot() {
        let mut core = core();
        let id = core.hello();
        core.port.panics = true;
        core.judged(id, 0, Ok(al()));
        core.port.panics = false;
        ends_without_a_trace(&mut core, id, Work::Verdict);
        assert_eq!((core.shard.sessions_count(), core.shard.connections_count()), (0, 0));
        let session = SessionRef { reactor: core.shard.id, index: 0, generation: 0 };
        assert_eq!(left(&core, session), 0);
        core.group(Event::Attached { session, roster: RosterId(7), evicted: None });
        core.pass(1);
        assert_eq!(left(&core, session), 1);
    }

    /// The connection `id` was struck in `work`, and is gone with 1011.
    fn ends_without_a_trace(core: &mut Core, id: ConnectionId, work: Work) {
        assert_eq!(struck(core), [work]);
        let end = core.said_bytes(id);
        assert!(end.ends_with(&[0x88, 2, 0x03, 0xf3]), "{work:?}: {end:x?}");
        assert_eq!(core.shard.handle_closed(id, &mut core.stashes), Some(CloseCause::InternalError), "{work:?}");
        core.pass(1);
    }

    /// How often the store was told that a session is over.
    fn left(core: &Core, session: SessionRef) -> usize {
        core.port.submitted.iter().filter(|mail| matches!(mail, Submit::Leave { session: it, .. } if *it == session)).count()
    }

    /// A message for several: who stands behind the one that is struck gets it.
    #[test]
    fn a_delivery_goes_on_behind_a_panic() {
        ends_alone(Work::Delivery, |core, _, both| {
            deliver(core, &both);
            let neighbour = core.shard.connection_of(both[1]).expect("it goes on");
            assert!(core.said(neighbour).contains("for everybody"));
        });
    }

    /// A deadline by the wheel, as opposed to silence: the one to which nobody answered HELLO.
    #[test]
    fn a_token_or_a_deadline_ends_the_one_it_struck() {
        for work in [Work::Verdict, Work::Time] {
            let mut core = core();
            let [id, other] = [core.hello(), core.hello()];
            core.shard.guard.planted = Some((work, id.index));
            match work {
                Work::Verdict => [id, other].map(|id| core.judged(id, 0, Ok(al()))),
                _ => [core.pass_ms(u64::from(core.shard.rules.hello_ms) + 200); 2],
            };
            assert_eq!(struck(&mut core), [work]);
            assert!(core.said_bytes(id).ends_with(&[0x88, 2, 0x03, 0xf3]));
            assert_ne!(core.cause(other), Some(CloseCause::InternalError));
            assert_eq!(core.shard.handle_closed(id, &mut core.stashes), Some(CloseCause::InternalError));
            assert_eq!((core.shard.connections_count(), core.shard.handshakes_open()), (1, 0));
        }
    }

    /// A session without a connection ends too: nobody comes back to half of it.
    #[test]
    fn a_panic_ends_a_session_that_waits() {
        let mut core = core();
        let [(id, session), (other, neighbour)] = [core.active(1_764_100_000), core.active(1_764_100_000)];
        core.shard.handle_failed(id);
        core.shard.handle_closed(id, &mut core.stashes);
        assert_eq!(core.shard.detached_count(), 1);
        core.shard.guard.planted = Some((Work::Delivery, session.index));
        deliver(&mut core, &[session, neighbour]);
        assert_eq!((struck(&mut core).as_slice(), core.shard.detached_count()), (&[Work::Delivery][..], 0));
        assert!(core.said(other).contains("for everybody"));
        core.pass(1);
        assert_eq!(left(&core, session), 1);
    }

    /// On the way out there is nothing more to say: the second panic drops what is queued, and the first cause counts.
    #[test]
    fn a_panic_on_the_way_out_says_nothing() {
        let mut core = core();
        let (id, _) = core.active(1_764_100_000);
        for _ in 0..2 {
            core.shard.guard.planted = Some((Work::Output, id.index));
            core.text(id, r#"{"t":"ping"}"#);
            assert_eq!(core.laid_out(id), None);
        }
        assert_eq!(struck(&mut core), [Work::Output; 2]);
        assert_eq!(core.laid_out(id), None, "nothing is left to say");
        assert!(matches!(core.shard.poll_command(), Some(Command::Close(it, _)) if it == id));
        assert_eq!(core.shard.handle_closed(id, &mut core.stashes), Some(CloseCause::InternalError));
    }

    /// However far a way to the end had come when the panic struck: the connection ends, once, the store is told, and nobody comes back.
    #[test]
    fn half_an_end_is_a_whole_one_after_a_panic() {
        let halves: [fn(&mut Shard, ConnectionId); 5] = [
            |_, _| {},
            |shard, id| shard.end_session(id),
            |shard, id| shard.detach_session(id),
            |shard, id| shard.connections.get_mut(id).unwrap().session = 0,
            |shard, id| {
                shard.step_out(id);
                shard.connections.get_mut(id).unwrap().state = State::Finished;
            },
        ];
        for (index, half) in halves.into_iter().enumerate() {
            for by_session in [false, true] {
                let mut core = core();
                let (id, session) = core.active(1_764_100_000);
                let strike = |shard: &mut Shard| {
                    half(shard, id);
                    panic!("a defect was planted");
                };
                let _: Option<()> = if by_session {
                    core.shard.guarded_session(Work::Answer, slot_of(session), strike)
                } else {
                    core.shard.guarded(Work::End, id, strike)
                };
                core.pass(1);
                assert_eq!(left(&core, session), 1, "{index}");
                core.group(Event::Left { session });
                core.said_bytes(id);
                assert!(matches!(core.shard.poll_command(), Some(Command::Close(it, _)) if it == id), "{index}");
                assert_eq!(core.shard.handle_closed(id, &mut core.stashes), Some(CloseCause::InternalError), "{index}");
                let left = [core.shard.sessions_count(), core.shard.detached_count(), core.shard.connections_count()];
                assert_eq!((left, core.shard.let_in_count), ([0; 3], 0), "{index}");
            }
        }
    }

    /// A panic behind the decoder, which has the connection's unfinished message in hand: its stash comes back.
    #[test]
    fn a_panic_loses_no_stash() {
        let mut core = core();
        let [(id, session), (other, _)] = [core.active(1_764_100_000), core.active(1_764_100_000)];
        for (at, begun) in [(other, [0x01, 0x81, 0, 0, 0, 0, b'{']), (id, [0x01, 0x81, 0, 0, 0, 0, b'{'])] {
            core.shard.handle_bytes(core.now, at, &mut begun.to_vec(), &mut core.stashes, &mut core.port);
        }
        assert_eq!(core.stashes.used_count(), 2);
        let rest = r#""t":"send","rid":1,"cmid":"00112233445566778899aabbccddeeff","kind":1,"conv":"d:al:bo","text":"x"}"#;
        let mut rest = [&[0x80, 0x80 | u8::try_from(rest.len()).unwrap(), 0, 0, 0, 0], rest.as_bytes()].concat();
        core.port.panics = true;
        core.shard.handle_bytes(core.now, id, &mut rest, &mut core.stashes, &mut core.port);
        core.port.panics = false;
        assert_eq!(struck(&mut core), [Work::Bytes]);
        assert_eq!(core.stashes.used_count(), 1, "the one of the neighbour");
        assert_eq!(core.shard.handle_closed(id, &mut core.stashes), Some(CloseCause::InternalError));
        core.pass(1);
        assert_eq!(left(&core, session), 1);
        core.shard.handle_closed(other, &mut core.stashes);
        assert_eq!((core.stashes.used_count(), core.stashes.used_bytes()), (0, 0));
    }

    /// When each of many panics, the turn ends with the process. Where nobody asked for it nothing is caught.
    #[test]
    fn so_many_panics_are_not_caught() {
        let strike = |core: &mut Core| {
            let (id, _) = core.active(1_764_100_000);
            core.shard.guard.planted = Some((Work::Bytes, id.index));
            catch_unwind(AssertUnwindSafe(|| core.text(id, r#"{"t":"ping"}"#))).is_ok()
        };
        let mut core = core();
        assert!((0..PANICS_PER_TURN_MAX).all(|_| strike(&mut core)));
        assert!(!strike(&mut core));
        let mut test = Core::new();
        let (id, _) = test.active(1_764_100_000);
        let mut bytes = DEFECT_OF_TESTS.to_vec();
        let handled = catch_unwind(AssertUnwindSafe(|| {
            test.shard.handle_bytes(test.now, id, &mut bytes, &mut test.stashes, &mut test.port)
        }));
        assert!(handled.is_err());
    }

    /// Memory is short, and looking at the slowest of two strikes a defect.
    #[test]
    fn a_panic_while_memory_is_short_ends_the_slowest() {
        let mut core = core();
        let (id, session) = core.active(1_764_100_000);
        let (other, _) = core.active(1_764_100_000);
        for _ in 0..=core.shard.rules.queue_soft_bytes / 1024 {
            let payload = crate::wire::message::Body::from(vec![7; 1024]);
            let event = Event::Signalled { conv: "d:al:bo".into(), from: "bo".into(), kind: 1, payload, first: 0, count: 1 };
            let targets = vec![Target { index: session.index, generation: session.generation, own: false }];
            core.shard.handle_group(core.now, &Group { events: vec![event], targets, ..Group::default() }, &mut core.port);
        }
        core.shard.note_slow(id);
        core.shard.guard.planted = Some((Work::Shed, id.index));
        core.shard.shed(core.now, u64::MAX, |_| None);
        assert_eq!(struck(&mut core), [Work::Shed]);
        assert_eq!((core.cause(id), core.cause(other)), (Some(CloseCause::InternalError), None));
    }
}
