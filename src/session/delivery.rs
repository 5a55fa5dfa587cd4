//! One device: its window of unacknowledged deliveries and the conversations that moved while the window was full.
//!
//! `pos` numbers the deliveries of a session from 1. The window is the deliveries after the acknowledged `pos`: they are *held*, frame
//! and all, so that a connection that comes back within `resume_ms` has them replayed. When the window is full, or the connection has
//! too much queued, nothing more is queued: the conversation is *marked*, and once there is room again one NOTICE per marked
//! conversation goes out. A mark stays until the device shows that it has what the NOTICE spoke of, by a cursor or a FETCH, and is
//! told again after a resume. More marks than [`MARKS_MAX`] become one RESYNC, which stays until a SYNC is answered. So a slow device
//! costs a bounded amount and misses nothing.
//!
//! ```text
//!  New ──store asked──► Joining ──WELCOME──► Active ──connection lost──► Detached ──resume_ms, or pressure──► Leaving
//!   └──a defect──► gone    └──connection lost──► Leaving └──closed with 1000──► Leaving
//! ```
//!
//! A resume moves all this to the session of the new connection, wherever it is: [`Session::take_carried`] there,
//! [`Session::adopt`] here. A session at rest, attached or detached, owns nothing beside its line.

use std::collections::VecDeque;

use super::nack::Nacks;
use crate::ids::{ConnectionId, FrameIndex, Mid, RosterId};
use crate::mail::Mark;
use crate::mutant::{self, Mutant};
use crate::wire::envelope::Encoding;
use crate::wire::message::Text;

/// A device in the roster, 64 bytes. Names are the roster's: the store knows who this is by `roster`.
#[derive(Debug)]
pub struct Session {
    /// Hash of the user id, to tell whether a fresh token is for the same user.
    pub user_hash: u64,
    /// Highest `pos` given out.
    pub pos: u64,
    /// The connection that carries it, or carried it last; its slot names this session.
    pub connection: ConnectionId,
    /// Slot in the store's roster, once attached.
    pub roster: Option<RosterId>,
    /// Bytes of the unacknowledged deliveries.
    pub window_bytes: u32,
    /// Hash of the device id, to tell whether a fresh token that names a device names this one.
    pub device_hash: u32,
    /// Unix second at which the token ends.
    pub expires_s: u32,
    /// Number of its WELCOME on this core, from which the secret half of its id on the wire is derived.
    pub turn: u32,
    /// Deliveries given out and not acknowledged: those up to `pos`.
    pub unacknowledged: u16,
    /// Window granted in WELCOME.
    pub window: u16,
    /// Granted capabilities.
    pub caps: u8,
    /// Where it stands.
    pub stage: Stage,
    /// How its frames are encoded.
    pub encoding: Encoding,
    /// Unacknowledged deliveries, marks and NACKs; only while there are any.
    pub backlog: Option<Box<Backlog>>,
}

/// Where a session stands between HELLO and the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// HELLO was good; the store does not know of it yet.
    New,
    /// HELLO was good; the store has not answered, or the former owner of the device has not finished. Deliveries are held, and leave
    /// after WELCOME.
    Joining,
    /// WELCOME is written.
    Active,
    /// The connection is gone and may come back: deliveries are held, or marked.
    Detached,
    /// Over; waits for the store to say that nothing names the slot any more.
    Leaving,
}

/// What a session holds beside its line, only while it is not empty.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Unacknowledged deliveries, oldest first; the last one has `pos`.
    ring: VecDeque<Held>,
    /// Conversations that moved while there was no room, each once.
    marks: Vec<Mark>,
    /// How many of them have not been told.
    untold: u16,
    resync: Resync,
    /// Something passed that is neither held nor marked (CONV): a resume runs SYNC.
    missed: bool,
    /// When the window became full, monotonic milliseconds; `None` while it is not.
    pub full_since_ms: Option<u64>,
    /// Messages the device could not process.
    pub nacks: Nacks,
}

/// A delivery that may have to be sent again: one count of its frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its tail, everything after `pos`.
    pub frame: FrameIndex,
    /// Length of the tail.
    pub bytes: u32,
}

/// How far a RESYNC is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Resync {
    /// None is needed.
    #[default]
    No,
    /// To be sent.
    Due,
    /// Sent.
    Told,
    /// The device has begun a SYNC after it.
    Asked,
}

/// What goes out once there is room again.
#[derive(Debug)]
pub enum Catchup {
    /// One NOTICE each.
    Notices(Vec<Mark>),
    /// RESYNC, reason 1.
    Resync,
}

/// What a resume takes along to the session of the new connection.
#[derive(Debug, Default)]
pub struct Carried {
    /// Highest `pos` given out.
    pub pos: u64,
    /// Unacknowledged deliveries, the last one with `pos`.
    pub ring: VecDeque<Held>,
    /// Marked conversations.
    pub marks: Vec<Mark>,
    /// Whether a RESYNC must be told.
    pub resync: bool,
    /// Messages the device could not process.
    pub nacks: Nacks,
}

impl Session {
    /// Whether one more delivery of `bytes` fits window and byte bound. The first one always fits.
    #[must_use]
    pub fn has_room(&self, bytes: u32, window_bytes_max: u32) -> bool {
        mutant::on(Mutant::WindowNotEnforced)
            || self.unacknowledged == 0
            || (self.unacknowledged < self.window && self.window_bytes.saturating_add(bytes) <= window_bytes_max)
    }

    /// Gives out the next `pos` for a delivery, and holds it. The caller has asked [`Session::has_room`], and counted the frame.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "has_room() bounds what is unacknowledged and its bytes, and 2^64 deliveries are never given out"
    )]
    pub fn deliver(&mut self, held: Held) -> u64 {
        self.backlog.get_or_insert_default().ring.push_back(held);
        self.window_bytes += held.bytes;
        self.unacknowledged += 1;
        self.pos += 1;
        self.pos
    }

    /// The deliveries held, oldest first, each with its `pos`.
    pub fn held(&self) -> impl Iterator<Item = (u64, Held)> + '_ {
        let first = self.pos.saturating_sub(u64::from(self.unacknowledged)).saturating_add(1);
        (first..).zip(self.backlog.iter().flat_map(|backlog| backlog.ring.iter().copied()))
    }

    /// Whether conversations wait for room. While they do, every delivery becomes a mark, or order would break.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.resync == Resync::Due || backlog.untold > 0)
    }

    /// Notes that a conversation moved while there was no room. Returns whether the session was not behind before.
    pub fn mark(&mut self, conv: &str, head: u64, mid: Mid, now_ms: u64) -> bool {
        if mutant::on(Mutant::MarksForgotten) {
            return false;
        }
        let fresh = !self.is_behind();
        let backlog = self.backlog.get_or_insert_default();
        backlog.full_since_ms.get_or_insert(now_ms);
        backlog.mark(conv, head, mid);
        fresh
    }

    /// Notes that a conversation moved of which the device is told at once. It is not behind, and a resume tells it again.
    pub fn mark_told(&mut self, conv: &str, head: u64, mid: Mid) {
        assert!(!self.is_behind(), "what waits is told first");
        let backlog = self.backlog.get_or_insert_default();
        if let Some(mark) = backlog.marks.iter_mut().find(|mark| &*mark.conv == conv) {
            mark.head = mark.head.max(head);
            mark.mid = mark.mid.max(mid);
        } else if backlog.marks.len() == MARKS_MAX {
            backlog.missed = true;
        } else {
            backlog.marks.push(Mark { conv: Text::copy_from(conv), head, mid, told: true });
        }
    }

    /// Deliveries were dropped: whatever they were, SYNC finds it.
    pub fn mark_all(&mut self) {
        self.backlog.get_or_insert_default().mark_all();
    }

    /// Something passed that has no `pos`: if the session is resumed, SYNC finds it.
    pub fn miss(&mut self) {
        self.backlog.get_or_insert_default().missed = true;
    }

    /// Takes a cumulative acknowledgement and gives the frames it frees to `release`; returns whether it moved. A `pos` above the
    /// highest given out is refused by `None`.
    #[expect(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        reason = "deliver() has put one entry on the ring for each unacknowledged delivery, and added its bytes"
    )]
    pub fn acknowledge(&mut self, pos: u64, mut release: impl FnMut(Held)) -> Option<bool> {
        let left = self.pos.checked_sub(pos)?;
        if left >= u64::from(self.unacknowledged) {
            return Some(false);
        }
        let backlog = self.backlog.as_mut().expect("unacknowledged deliveries are held");
        while u64::from(self.unacknowledged) > left {
            let held = backlog.ring.pop_front().expect("one entry per unacknowledged delivery");
            self.window_bytes -= held.bytes;
            self.unacknowledged -= 1;
            release(held);
        }
        backlog.full_since_ms = None;
        Some(true)
    }

    /// Takes out a backlog that holds nothing any more, after [`Session::acknowledge`]: a session at rest owns nothing beside its line.
    pub fn take_empty_backlog(&mut self) -> Option<Box<Backlog>> {
        self.backlog.take_if(|backlog| backlog.is_empty())
    }

    /// What to tell the device now that there is room. It is told once, and again after a resume until it has it.
    pub fn tell_marks(&mut self) -> Option<Catchup> {
        let backlog = self.backlog.as_mut()?;
        backlog.full_since_ms = None;
        if backlog.resync == Resync::Due {
            backlog.resync = Resync::Told;
            return Some(Catchup::Resync);
        }
        if backlog.untold == 0 {
            return None;
        }
        backlog.untold = 0;
        let untold = backlog.marks.iter_mut().filter(|mark| !mark.told);
        let told = untold.map(|mark| {
            mark.told = true;
            mark.clone()
        });
        Some(Catchup::Notices(told.collect()))
    }

    /// The device holds a conversation up to `seq`, or has asked for it and was answered: a mark up to there is done.
    pub fn reach(&mut self, conv: &str, seq: u64) {
        let Some(backlog) = &mut self.backlog else { return };
        if let Some(place) = backlog.marks.iter().position(|mark| mark.head <= seq && &*mark.conv == conv) {
            let mark = backlog.marks.swap_remove(place);
            backlog.untold = backlog.untold.saturating_sub(u16::from(!mark.told));
            self.drop_empty_backlog();
        }
    }

    /// The device says by a cursor that it holds a conversation up to `seq`: nothing up to there is noticed or delivered again.
    pub fn hold_up_to(&mut self, conv: &str, seq: u64) {
        let Some(backlog) = &mut self.backlog else { return };
        backlog.nacks.reach(conv, seq);
        self.reach(conv, seq);
        self.drop_empty_backlog();
    }

    /// The device begins a SYNC: what RESYNC spoke of is in its answer.
    pub fn sync_asked(&mut self) {
        if let Some(backlog) = &mut self.backlog
            && backlog.resync == Resync::Told
        {
            backlog.resync = Resync::Asked;
        }
    }

    /// The last page of a SYNC was written.
    pub fn sync_answered(&mut self) {
        if let Some(backlog) = &mut self.backlog
            && backlog.resync == Resync::Asked
        {
            backlog.resync = Resync::No;
            self.drop_empty_backlog();
        }
    }

    /// Takes out all that a resume takes along, for one who has processed everything up to `last_pos`. `None`: a delivery after it
    /// is not held any more, or never was given out.
    pub fn take_carried(&mut self, last_pos: u64, release: impl FnMut(Held)) -> Option<Carried> {
        // The position is a client's word: it may be any number.
        if self.pos.checked_sub(last_pos)? > u64::from(self.unacknowledged) {
            return None;
        }
        let processed = last_pos.saturating_add(u64::from(mutant::on(Mutant::ResumeOffByOne) && last_pos < self.pos));
        self.acknowledge(processed, release)?;
        let pos = self.pos;
        let backlog = self.take_backlog();
        Some(Carried {
            pos,
            resync: backlog.missed || backlog.resync != Resync::No,
            ring: backlog.ring,
            marks: backlog.marks,
            nacks: backlog.nacks.into_mail().into(),
        })
    }

    /// Takes over what an earlier session of the device held. What was delivered here meanwhile stays behind it, and is returned to be
    /// numbered anew by [`Session::deliver`] or [`Session::mark`].
    #[expect(clippy::expect_used, reason = "a ring holds at most a window, which is a number of 16 bits")]
    pub fn adopt(&mut self, carried: Carried) -> VecDeque<Held> {
        let own = self.take_backlog();
        self.pos = carried.pos;
        self.unacknowledged = u16::try_from(carried.ring.len()).expect("a window");
        self.window_bytes = carried.ring.iter().map(|held| held.bytes).sum();
        let mut backlog = Backlog { ring: carried.ring, nacks: carried.nacks, full_since_ms: None, ..Backlog::default() };
        for mark in carried.marks.into_iter().chain(own.marks) {
            backlog.mark(&mark.conv, mark.head, mark.mid);
        }
        if carried.resync || own.missed || own.resync != Resync::No {
            backlog.mark_all();
        }
        self.backlog = Some(Box::new(backlog));
        self.drop_empty_backlog();
        own.ring
    }

    /// Takes everything out, and leaves an empty window.
    pub fn take_backlog(&mut self) -> Backlog {
        self.unacknowledged = 0;
        self.window_bytes = 0;
        self.backlog.take().map(|backlog| *backlog).unwrap_or_default()
    }

    /// A session at rest owns nothing beside its line.
    pub fn drop_empty_backlog(&mut self) {
        if self.backlog.as_ref().is_some_and(|backlog| backlog.is_empty()) {
            self.backlog = None;
        }
    }
}

impl Backlog {
    /// The deliveries held, oldest first, when the session is over.
    pub fn into_held(self) -> impl Iterator<Item = Held> {
        self.ring.into_iter()
    }

    /// A new session has missed nothing that its SYNC will not find.
    pub fn forget_missed(&mut self) {
        self.missed = false;
    }

    fn mark(&mut self, conv: &str, head: u64, mid: Mid) {
        if self.resync == Resync::Due {
            return;
        }
        if let Some(mark) = self.marks.iter_mut().find(|mark| &*mark.conv == conv) {
            self.untold = self.untold.saturating_add(u16::from(mark.told));
            mark.told = false;
            mark.head = mark.head.max(head);
            mark.mid = mark.mid.max(mid);
        } else if self.marks.len() == MARKS_MAX {
            self.mark_all();
        } else {
            self.untold = self.untold.saturating_add(1);
            // Its own allocation: a slice would keep the whole arena chunk of the sender.
            self.marks.push(Mark { conv: Text::copy_from(conv), head, mid, told: false });
        }
    }

    fn mark_all(&mut self) {
        self.marks = Vec::new();
        self.untold = 0;
        self.resync = Resync::Due;
    }

    fn is_empty(&self) -> bool {
        self.ring.is_empty()
            && self.marks.is_empty()
            && self.resync == Resync::No
            && !self.missed
            && self.full_since_ms.is_none()
            && self.nacks.is_empty()
    }
}

/// Empty backlogs of one core, for the next sessions that need one: a lone message would otherwise allocate twice and free twice.
#[derive(Debug)]
pub struct SpareBacklogs {
    #[expect(clippy::vec_box, reason = "the box itself is what is kept")]
    free: Vec<Box<Backlog>>,
    /// How many of them, from the bottom, nobody has needed since the last [`SpareBacklogs::trim`].
    unused: usize,
    most: usize,
}

impl SpareBacklogs {
    /// None, and never more than `most`: see [`crate::limits::SPARE_BACKLOGS`].
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { free: Vec::new(), unused: 0, most }
    }

    /// One for a session that has none.
    pub fn take(&mut self) -> Option<Box<Backlog>> {
        let backlog = self.free.pop();
        self.unused = self.unused.min(self.free.len());
        backlog
    }

    /// Keeps what a session has left, but for what is seldom needed, if it is small and there is room.
    pub fn give(&mut self, mut backlog: Box<Backlog>) {
        assert!(backlog.is_empty());
        if self.free.len() < self.most && backlog.ring.capacity() <= SPARE_DELIVERIES_MAX {
            *backlog = Backlog { ring: std::mem::take(&mut backlog.ring), ..Backlog::default() };
            self.free.push(backlog);
        }
    }

    /// Frees what has not been needed since the last call.
    pub fn trim(&mut self) {
        self.free.drain(..self.unused);
        self.unused = self.free.len();
    }
}

/// Deliveries that an empty backlog worth keeping has room for.
const SPARE_DELIVERIES_MAX: usize = 32;

/// Marked conversations of one session. Full: one RESYNC instead of a NOTICE each. Counter: `resyncs_sent_count`.
pub const MARKS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn session(window: u16) -> Session {
        Session {
            user_hash: 1,
            pos: 0,
            unacknowledged: 0,
            device_hash: 0,
            connection: ConnectionId { index: 0, generation: 0 },
            roster: None,
            window_bytes: 0,
            expires_s: 0,
            turn: 0,
            window,
            caps: 0,
            stage: Stage::Active,
            encoding: Encoding::Binary,
            backlog: None,
        }
    }

    fn held(bytes: u32) -> Held {
        Held { frame: FrameIndex(bytes), bytes }
    }

    fn notices(session: &mut Session) -> Vec<(String, u64)> {
        match session.tell_marks() {
            Some(Catchup::Notices(marks)) => marks.iter().map(|mark| (mark.conv.as_str().to_owned(), mark.head)).collect(),
            Some(Catchup::Resync) => vec![("RESYNC".to_owned(), 0)],
            None => Vec::new(),
        }
    }

    /// One line of the session table is one cache line.
    #[test]
    fn a_session_is_64_bytes() {
        assert!(size_of::<Session>() <= 64, "{}", size_of::<Session>());
    }

    /// The window counts what is not acknowledged, in messages and in bytes, gives back every frame in order, and an idle session owns
    /// nothing beside its line.
    #[test]
    fn the_window_opens_with_acknowledgements() {
        let mut session = session(2);
        let mut freed = Vec::new();
        assert!(session.has_room(1 << 30, 100), "the first delivery always fits");
        assert_eq!(session.deliver(held(60)), 1);
        assert!(session.has_room(40, 100));
        assert!(!session.has_room(41, 100));
        assert_eq!(session.deliver(held(40)), 2);
        assert!(!session.has_room(0, 100));
        assert_eq!(session.held().collect::<Vec<_>>(), [(1, held(60)), (2, held(40))]);
        assert_eq!(session.acknowledge(3, |it| freed.push(it)), None);
        assert_eq!(session.acknowledge(1, |it| freed.push(it)), Some(true));
        assert!(session.take_empty_backlog().is_none());
        assert_eq!(session.held().collect::<Vec<_>>(), [(2, held(40))]);
        assert_eq!(session.acknowledge(2, |it| freed.push(it)), Some(true));
        assert_eq!(session.acknowledge(1, |it| freed.push(it)), Some(false));
        assert_eq!((freed, session.window_bytes), (vec![held(60), held(40)], 0));
        assert!(session.take_empty_backlog().is_some());
        assert!(session.backlog.is_none());
    }

    /// A spare is found again, a long one is not kept, and what lay idle between two trims is freed.
    #[test]
    fn spares_are_kept_while_they_are_needed() {
        let mut spares = SpareBacklogs::new(1);
        let mut session = session(100);
        let mut round = |spares: &mut SpareBacklogs, count: u64| {
            session.backlog = spares.take();
            let found = session.backlog.is_some();
            for _ in 0..count {
                session.deliver(held(1));
            }
            assert_eq!(session.acknowledge(session.pos, |_| {}), Some(true));
            spares.give(session.take_empty_backlog().expect("all is acknowledged"));
            found
        };
        assert!(!round(&mut spares, 1) && round(&mut spares, 2));
        spares.trim();
        assert!(round(&mut spares, 1), "needed since the last time");
        spares.trim();
        spares.trim();
        assert!(!round(&mut spares, 100), "idle between two trims");
        assert!(!round(&mut spares, 1), "too long to be kept");
    }

    /// Marks of one conversation merge by max, and too many become one RESYNC.
    #[test]
    fn marks_merge_and_overflow_into_resync() {
        let mut session = session(1);
        assert!(session.mark("g:a", 7, Mid(70), 1));
        assert!(!session.mark("g:a", 5, Mid(50), 2));
        assert!(session.is_behind());
        assert_eq!(notices(&mut session), [("g:a".to_owned(), 7)]);
        assert!(!session.is_behind());
        for number in 0..=MARKS_MAX {
            session.mark(&format!("g:{number}"), 1, Mid(1), 3);
        }
        assert_eq!(notices(&mut session), [("RESYNC".to_owned(), 0)]);
        assert!(notices(&mut session).is_empty());
    }

    /// A told mark stays until a position reaches its head, is told again when the conversation moves on, and again after a resume.
    #[test]
    fn a_mark_stays_until_it_is_reached() {
        let mut line = session(1);
        line.mark("g:a", 7, Mid(70), 1);
        line.mark("g:b", 3, Mid(30), 1);
        assert_eq!(notices(&mut line).len(), 2);
        assert!(notices(&mut line).is_empty());
        line.reach("g:a", 6);
        line.reach("g:b", 3);
        line.mark("g:a", 8, Mid(80), 2);
        assert_eq!(notices(&mut line), [("g:a".to_owned(), 8)]);
        let carried = line.take_carried(0, |_| unreachable!("nothing is held")).expect("all is held or marked");
        let mut resumed = session(1);
        assert!(resumed.adopt(carried).is_empty());
        assert_eq!(notices(&mut resumed), [("g:a".to_owned(), 8)]);
        resumed.reach("g:a", 8);
        assert!(resumed.backlog.is_none());
    }

    /// RESYNC is done when a SYNC that began after it is answered, not by one that was already under way.
    #[test]
    fn a_resync_stays_until_a_later_sync_is_answered() {
        let mut session = session(1);
        session.sync_asked();
        session.mark_all();
        assert_eq!(notices(&mut session), [("RESYNC".to_owned(), 0)]);
        session.sync_answered();
        assert!(session.backlog.is_some());
        session.sync_asked();
        session.mark_all();
        session.sync_answered();
        assert_eq!(notices(&mut session), [("RESYNC".to_owned(), 0)], "more was dropped after the SYNC began");
        session.sync_asked();
        session.sync_answered();
        assert!(session.backlog.is_none());
    }

    /// A resume needs everything after `last_pos`: what was acknowledged, or never given out, cannot be replayed.
    #[test]
    fn only_what_is_held_is_carried() {
        for (last_pos, fits) in [(0, false), (1, true), (2, true), (3, true), (4, false), (u64::MAX, false)] {
            let mut old = session(4);
            for bytes in [10, 20, 30] {
                old.deliver(held(bytes));
            }
            old.acknowledge(1, |_| {});
            let mut freed = 0;
            let carried = old.take_carried(last_pos, |_| freed += 1);
            assert_eq!(carried.is_some(), fits, "{last_pos}");
            let Some(carried) = carried else { continue };
            assert_eq!((carried.pos, carried.ring.len() as u64, freed), (3, 3 - last_pos, last_pos - 1));
            let mut new = session(4);
            new.deliver(held(5));
            let joined = new.adopt(carried);
            assert_eq!((new.pos, joined.len()), (3, 1));
            assert_eq!(new.deliver(joined[0]), 4);
            assert_eq!(new.held().map(|(pos, _)| pos).collect::<Vec<_>>(), (last_pos + 1..=4).collect::<Vec<_>>());
        }
    }
}
