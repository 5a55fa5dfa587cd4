//! One attached device: its window of unacknowledged deliveries and the conversations that moved while the window was full.
//!
//! `pos` numbers the deliveries of a session from 1. The window is the deliveries after the acknowledged `pos`; when it is full, or
//! the connection has too much queued, nothing more is queued: the conversation is *marked*, and once there is room again one NOTICE
//! per marked conversation goes out. More marks than [`MARKS_MAX`] become one RESYNC. So a slow device costs a bounded amount and
//! misses nothing.

use std::collections::VecDeque;

use crate::ids::{ConnectionId, Mid, RosterId};
use crate::wire::envelope::Encoding;
use crate::wire::message::Text;

/// A device in the roster, 64 bytes. Names are the roster's: the store knows who this is by `roster`.
#[derive(Debug)]
pub struct Session {
    /// Hash of the user id, to tell whether a fresh token is for the same user.
    pub user_hash: u64,
    /// Highest `pos` given out.
    pub pos: u64,
    /// The connection that carries it; its slot names this session.
    pub connection: ConnectionId,
    /// Slot in the store's roster, once attached.
    pub roster: Option<RosterId>,
    /// Bytes of the unacknowledged deliveries.
    pub window_bytes: u32,
    /// Deliveries given out and not acknowledged: those up to `pos`.
    pub unacknowledged: u16,
    /// Hash of the device id, to tell whether a fresh token that names a device names this one.
    pub device_hash: u32,
    /// Unix second at which the token ends.
    pub expires_s: u32,
    /// Window granted in WELCOME.
    pub window: u16,
    /// Granted capabilities.
    pub caps: u8,
    /// Where it stands.
    pub stage: Stage,
    /// How its frames are encoded.
    pub encoding: Encoding,
    /// Unacknowledged lengths and marks; only while there are any.
    pub backlog: Option<Box<Backlog>>,
}

/// Where a session stands between HELLO and the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// HELLO was good; the store has not answered, or the former owner of the device has not finished.
    Joining,
    /// WELCOME is written.
    Active,
    /// The connection is gone; waits for the store to say that nothing names the slot any more.
    Leaving,
}

/// What a session holds beside its line, only while it is not empty.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Lengths of unacknowledged deliveries, oldest first; the last one has `pos`.
    lengths: VecDeque<u32>,
    /// Conversations that moved while there was no room, with head and mid.
    marks: Vec<Mark>,
    /// More marks than fit: RESYNC instead.
    resync: bool,
    /// When the window became full, monotonic milliseconds; `None` while it is not.
    pub full_since_ms: Option<u64>,
}

/// A conversation that moved while there was no room.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Conversation.
    pub conv: Text,
    /// Its highest seq known here.
    pub head: u64,
    /// Message id of that seq.
    pub mid: Mid,
}

/// What goes out once there is room again.
#[derive(Debug)]
pub enum Catchup {
    /// One NOTICE each.
    Notices(Vec<Mark>),
    /// RESYNC, reason 1.
    Resync,
}

impl Session {
    /// Whether one more delivery of `bytes` fits window and byte bound. The first one always fits.
    #[must_use]
    pub fn has_room(&self, bytes: u32, window_bytes_max: u32) -> bool {
        self.unacknowledged == 0
            || (self.unacknowledged < self.window && self.window_bytes.saturating_add(bytes) <= window_bytes_max)
    }

    /// Gives out the next `pos` for a delivery of `bytes`. The caller has asked [`Session::has_room`], and found no marks.
    pub fn deliver(&mut self, bytes: u32) -> u64 {
        self.backlog.get_or_insert_default().lengths.push_back(bytes);
        self.window_bytes += bytes;
        self.unacknowledged += 1;
        self.pos += 1;
        self.pos
    }

    /// Whether conversations wait for room. While they do, every delivery becomes a mark, or order would break.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.resync || !backlog.marks.is_empty())
    }

    /// Notes that a conversation moved while there was no room. Returns whether the session was not behind before.
    pub fn mark(&mut self, conv: &Text, head: u64, mid: Mid, now_ms: u64) -> bool {
        let fresh = !self.is_behind();
        let backlog = self.backlog.get_or_insert_default();
        backlog.full_since_ms.get_or_insert(now_ms);
        if backlog.resync {
            return fresh;
        }
        if let Some(mark) = backlog.marks.iter_mut().find(|mark| mark.conv == *conv) {
            mark.head = mark.head.max(head);
            mark.mid = mark.mid.max(mid);
        } else if backlog.marks.len() == MARKS_MAX {
            backlog.marks = Vec::new();
            backlog.resync = true;
        } else {
            backlog.marks.push(Mark { conv: conv.clone(), head, mid });
        }
        fresh
    }

    /// The store dropped deliveries of this core: whatever is marked, SYNC finds it.
    pub fn mark_all(&mut self) {
        let backlog = self.backlog.get_or_insert_default();
        backlog.marks = Vec::new();
        backlog.resync = true;
    }

    /// Takes a cumulative acknowledgement; returns whether it moved. A `pos` above the highest given out is refused by `None`.
    pub fn acknowledge(&mut self, pos: u64) -> Option<bool> {
        if pos > self.pos {
            return None;
        }
        let left = self.pos - pos;
        if left >= u64::from(self.unacknowledged) {
            return Some(false);
        }
        let backlog = self.backlog.as_mut().expect("unacknowledged deliveries have lengths");
        while u64::from(self.unacknowledged) > left {
            let bytes = backlog.lengths.pop_front().expect("one length per unacknowledged delivery");
            self.window_bytes -= bytes;
            self.unacknowledged -= 1;
        }
        backlog.full_since_ms = None;
        if backlog.lengths.is_empty() && backlog.marks.is_empty() && !backlog.resync {
            self.backlog = None;
        }
        Some(true)
    }

    /// What to tell the device now that there is room: its marks, which it keeps no longer.
    pub fn take_marks(&mut self) -> Option<Catchup> {
        let backlog = self.backlog.as_mut()?;
        backlog.full_since_ms = None;
        if std::mem::take(&mut backlog.resync) {
            return Some(Catchup::Resync);
        }
        if backlog.marks.is_empty() {
            return None;
        }
        Some(Catchup::Notices(std::mem::take(&mut backlog.marks)))
    }
}

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
            window,
            caps: 0,
            stage: Stage::Active,
            encoding: Encoding::Binary,
            backlog: None,
        }
    }

    /// One line of the session table is one cache line.
    #[test]
    fn a_session_is_64_bytes() {
        assert!(size_of::<Session>() <= 64, "{}", size_of::<Session>());
    }

    /// The window counts what is not acknowledged, in messages and in bytes, and an idle session owns nothing beside its line.
    #[test]
    fn the_window_opens_with_acknowledgements() {
        let mut session = session(2);
        assert!(session.has_room(1 << 30, 100), "the first delivery always fits");
        assert_eq!(session.deliver(60), 1);
        assert!(session.has_room(40, 100));
        assert!(!session.has_room(41, 100));
        assert_eq!(session.deliver(40), 2);
        assert!(!session.has_room(0, 100));
        assert_eq!(session.acknowledge(3), None);
        assert_eq!(session.acknowledge(2), Some(true));
        assert_eq!(session.acknowledge(1), Some(false));
        assert_eq!(session.window_bytes, 0);
        assert!(session.backlog.is_none());
    }

    /// Marks of one conversation merge by max, and too many become one RESYNC.
    #[test]
    fn marks_merge_and_overflow_into_resync() {
        let mut session = session(1);
        let conv = Text::from("g:a");
        assert!(session.mark(&conv, 7, Mid(70), 1));
        assert!(!session.mark(&conv, 5, Mid(50), 2));
        assert!(session.is_behind());
        let Some(Catchup::Notices(marks)) = session.take_marks() else { panic!("expected marks") };
        assert_eq!((marks.len(), marks[0].head, marks[0].mid), (1, 7, Mid(70)));
        assert!(!session.is_behind());
        for number in 0..=MARKS_MAX {
            session.mark(&Text::from(format!("g:{number}").as_str()), 1, Mid(1), 3);
        }
        assert!(matches!(session.take_marks(), Some(Catchup::Resync)));
        assert!(session.take_marks().is_none());
    }
}
