//! What the log keeps: the accepted changes, in order, each with the time it was taken in.
//!
//! ```text
//! entry:   length u32 │ type u8 │ stamp_ms u64 │ fields          little-endian; s8/s16 = length, UTF-8
//! type 1   message   mid u64, seq u64, fingerprint u64, cmid 16, flags u8, kind u16, exp_s u32, trace (flag TRACE) 25, conv s8, user s8, payload
//! type 2   members   mid u64, version u64, operation u8, conv s8, n u32, n x user s8
//! type 3   read      mid u64, seq u64, conv s8, user s8
//! type 4   cursor    seq u64, conv s8, user s8, device s8
//! type 5   epoch     mid u64, epoch u32
//! type 6   set       mid u64, version u64, role u8 (255: as it is), muted u8 (255: as it is), conv s8, n u32, n x user s8
//! type 7   shape     mid u64, version u64, flags u8, conv s8
//! type 8   ban       banned u8, user s8, device s8 (empty: all of the user's)
//! type 9   floor     mid u64, floor u64, count u64, conv s8
//! type 10  revoked   before_s u64, until_s u64, user s8, device s8 (empty: all of the user's), id s8 (empty: all tokens)
//! ```
//!
//! A type, once released, is never changed; a new shape is a new type. Encoding appends to the buffer of the open group, decoding
//! borrows from the group read back.
//!
//! As in `wire`, lints refuse whatever could panic on what is read here.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

use super::revocations::{Reach, Whose};
use crate::ids::{Cmid, Mid};
use crate::wire::envelope::{Trace, send_flags};
use crate::wire::message::Text;

/// An accepted change, as logged.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry<'a> {
    /// When the store took it in, milliseconds since the Unix epoch: all of time that `apply` knows.
    pub stamp_ms: u64,
    /// What changes.
    pub change: Change<'a>,
}

/// See [`Entry`].
#[derive(Clone, PartialEq, Debug)]
pub enum Change<'a> {
    /// A message got its place.
    Message(Message<'a>),
    /// A group was created or its members changed.
    Members {
        /// Change stamp.
        mid: Mid,
        /// Version of the membership after it, from 1.
        version: u64,
        /// What happens to `users`.
        operation: Operation,
        /// Conversation.
        conv: &'a str,
        /// Only those for whom something changes.
        users: Names<'a>,
    },
    /// A user's read position moved forward.
    Read {
        /// Change stamp.
        mid: Mid,
        /// The new position.
        seq: u64,
        /// Conversation.
        conv: &'a str,
        /// Reader.
        user: &'a str,
    },
    /// A device holds a conversation up to `seq`. May repeat or go back: the row keeps the highest.
    Cursor {
        /// Position.
        seq: u64,
        /// Conversation.
        conv: &'a str,
        /// Owner of the device.
        user: &'a str,
        /// Device.
        device: &'a str,
    },
    /// Members got another role, or silenced the conversation.
    Set {
        /// Change stamp.
        mid: Mid,
        /// Version of the membership after it.
        version: u64,
        /// Number of the new role; `None`: as it is.
        role: Option<u8>,
        /// Whether it is silenced; `None`: as it is.
        muted: Option<u8>,
        /// Conversation.
        conv: &'a str,
        /// Members only.
        users: Names<'a>,
    },
    /// The flags of a conversation, or something only the application knows of, changed.
    Shape {
        /// Change stamp.
        mid: Mid,
        /// Version of the membership after it.
        version: u64,
        /// The flags from now on: [`super::record::head_flags`].
        flags: u8,
        /// Conversation.
        conv: &'a str,
    },
    /// Nothing below `floor` is kept any more.
    Floor {
        /// Change stamp.
        mid: Mid,
        /// Lowest seq that is kept; one above the head: nothing is.
        floor: u64,
        /// How many not QUIET messages lie below `floor`.
        count: u64,
        /// Conversation.
        conv: &'a str,
    },
    /// A user or a device may not connect, or may again.
    Ban {
        /// Which of the two.
        banned: bool,
        /// User.
        user: &'a str,
        /// Device; empty: all of the user's.
        device: &'a str,
    },
    /// Tokens pass no more.
    Revoked {
        /// Which.
        whose: Whose<'a>,
        /// How far.
        reach: Reach,
    },
    /// The store continues under a new epoch, after accepted loss or a restored backup.
    Epoch {
        /// Change stamp.
        mid: Mid,
        /// The new epoch.
        epoch: u32,
    },
}

/// See [`Change::Message`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Message<'a> {
    /// Message id it got.
    pub mid: Mid,
    /// Place it got.
    pub seq: u64,
    /// Keyed hash of kind and payload, for repeats.
    pub fingerprint: u64,
    /// The sender's id for it.
    pub cmid: Cmid,
    /// QUIET and TRACE of [`send_flags`].
    pub flags: u8,
    /// The application's.
    pub kind: u16,
    /// Unix seconds; 0: never.
    pub exp_s: u32,
    /// Present exactly when `flags` has TRACE.
    pub trace: Option<Trace>,
    /// Conversation.
    pub conv: &'a str,
    /// Sender.
    pub user: &'a str,
    /// The payload.
    pub payload: &'a [u8],
}

/// A change of a membership.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// The conversation begins with these members.
    Create,
    /// These join.
    Add,
    /// These are removed.
    Remove,
}

/// User names of a change.
#[derive(Clone, Copy, Debug)]
pub enum Names<'a> {
    /// As given.
    List(&'a [Text]),
    /// As logged: count and bytes, already checked.
    Logged(u32, &'a [u8]),
}

/// Bytes that are no entry: a broken invariant of the writer, because the log's checksum has held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadEntry;

impl std::fmt::Display for BadEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an entry of the log is malformed or of an unknown type")
    }
}

impl std::error::Error for BadEntry {}

impl Entry<'_> {
    /// Appends the entry to the open group.
    ///
    /// # Panics
    /// If a name is longer than 255 bytes; ids are checked long before.
    #[expect(
        clippy::expect_used,
        clippy::indexing_slicing,
        reason = "into the four bytes just appended, of an entry that was bounded before"
    )]
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.push(match self.change {
            Change::Message(_) => MESSAGE,
            Change::Members { .. } => MEMBERS,
            Change::Read { .. } => READ,
            Change::Cursor { .. } => CURSOR,
            Change::Epoch { .. } => EPOCH,
            Change::Set { .. } => SET,
            Change::Shape { .. } => SHAPE,
            Change::Ban { .. } => BAN,
            Change::Revoked { .. } => REVOKED,
            Change::Floor { .. } => FLOOR,
        });
        put_u64(out, self.stamp_ms);
        match &self.change {
            Change::Message(message) => message.encode(out),
            Change::Members { mid, version, operation, conv, users } => {
                put_u64(out, mid.0);
                put_u64(out, *version);
                out.push(match operation {
                    Operation::Create => 1,
                    Operation::Add => 2,
                    Operation::Remove => 3,
                });
                put_s8(out, conv);
                put_u32(out, users.count());
                users.iter().for_each(|user| put_s8(out, user));
            }
            Change::Read { mid, seq, conv, user } => {
                put_u64(out, mid.0);
                put_u64(out, *seq);
                put_s8(out, conv);
                put_s8(out, user);
            }
            Change::Cursor { seq, conv, user, device } => {
                put_u64(out, *seq);
                put_s8(out, conv);
                put_s8(out, user);
                put_s8(out, device);
            }
            Change::Epoch { mid, epoch } => {
                put_u64(out, mid.0);
                put_u32(out, *epoch);
            }
            Change::Set { mid, version, role, muted, conv, users } => {
                put_u64(out, mid.0);
                put_u64(out, *version);
                out.extend_from_slice(&[role.unwrap_or(AS_IT_IS), muted.unwrap_or(AS_IT_IS)]);
                put_s8(out, conv);
                put_u32(out, users.count());
                users.iter().for_each(|user| put_s8(out, user));
            }
            Change::Shape { mid, version, flags, conv } => {
                put_u64(out, mid.0);
                put_u64(out, *version);
                out.push(*flags);
                put_s8(out, conv);
            }
            Change::Ban { banned, user, device } => {
                out.push(u8::from(*banned));
                put_s8(out, user);
                put_s8(out, device);
            }
            Change::Revoked { whose, reach } => {
                put_u64(out, reach.before_s);
                put_u64(out, reach.until_s);
                put_s8(out, whose.user);
                put_s8(out, whose.device);
                put_s8(out, whose.id);
            }
            Change::Floor { mid, floor, count, conv } => {
                put_u64(out, mid.0);
                put_u64(out, *floor);
                put_u64(out, *count);
                put_s8(out, conv);
            }
        }
        let len = u32::try_from(out.len() - start - 4).expect("an entry is far below 4 GiB");
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    }
}

impl Message<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        assert_eq!(self.trace.is_some(), self.flags & send_flags::TRACE != 0);
        put_u64(out, self.mid.0);
        put_u64(out, self.seq);
        put_u64(out, self.fingerprint);
        out.extend_from_slice(&self.cmid.0);
        out.push(self.flags);
        out.extend_from_slice(&self.kind.to_le_bytes());
        put_u32(out, self.exp_s);
        if let Some(trace) = &self.trace {
            out.extend_from_slice(&trace.trace_id);
            out.extend_from_slice(&trace.parent_id);
            out.push(trace.flags);
        }
        put_s8(out, self.conv);
        put_s8(out, self.user);
        out.extend_from_slice(self.payload);
    }
}

/// The entries of one group, in order. Ends after the first error.
pub fn entries(mut group: &[u8]) -> impl Iterator<Item = Result<Entry<'_>, BadEntry>> {
    std::iter::from_fn(move || {
        if group.is_empty() {
            return None;
        }
        let entry = take_entry(&mut group);
        if entry.is_err() {
            group = &[];
        }
        Some(entry)
    })
}

impl<'a> Names<'a> {
    /// How many.
    ///
    /// # Panics
    /// If there are 2^32 or more.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a list has at most GROUP_MEMBERS_MAX names")]
    pub fn count(&self) -> u32 {
        match self {
            Names::List(list) => u32::try_from(list.len()).expect("bounded by GROUP_MEMBERS_MAX"),
            Names::Logged(count, _) => *count,
        }
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> {
        let (list, mut logged) = match *self {
            Names::List(list) => (list, Reader(&[])),
            Names::Logged(_, bytes) => (&[][..], Reader(bytes)),
        };
        let logged = std::iter::from_fn(move || if logged.0.is_empty() { None } else { logged.s8().ok() });
        list.iter().map(Text::as_str).chain(logged)
    }
}

impl PartialEq for Names<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

fn take_entry<'a>(group: &mut &'a [u8]) -> Result<Entry<'a>, BadEntry> {
    let mut frame = Reader(group);
    let len = usize::try_from(frame.u32()?).map_err(|_| BadEntry)?;
    let mut body = Reader(frame.take(len)?);
    *group = frame.0;
    let kind = body.u8()?;
    let stamp_ms = body.u64()?;
    let change = match kind {
        MESSAGE => Change::Message(body.message()?),
        MEMBERS => body.members()?,
        READ => Change::Read { mid: Mid(body.u64()?), seq: body.u64()?, conv: body.s8()?, user: body.s8()? },
        CURSOR => Change::Cursor { seq: body.u64()?, conv: body.s8()?, user: body.s8()?, device: body.s8()? },
        EPOCH => Change::Epoch { mid: Mid(body.u64()?), epoch: body.u32()? },
        SET => body.set()?,
        SHAPE => Change::Shape { mid: Mid(body.u64()?), version: body.u64()?, flags: body.u8()?, conv: body.s8()? },
        REVOKED => {
            let reach = Reach { before_s: body.u64()?, until_s: body.u64()? };
            Change::Revoked { whose: Whose { user: body.s8()?, device: body.s8()?, id: body.s8()? }, reach }
        }
        BAN => Change::Ban { banned: body.u8()? != 0, user: body.s8()?, device: body.s8()? },
        FLOOR => Change::Floor { mid: Mid(body.u64()?), floor: body.u64()?, count: body.u64()?, conv: body.s8()? },
        _ => return Err(BadEntry),
    };
    if body.0.is_empty() { Ok(Entry { stamp_ms, change }) } else { Err(BadEntry) }
}

/// What is left of an entry.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn message(&mut self) -> Result<Message<'a>, BadEntry> {
        let (mid, seq, fingerprint, cmid) = (Mid(self.u64()?), self.u64()?, self.u64()?, Cmid(self.array()?));
        let (flags, kind, exp_s) = (self.u8()?, u16::from_le_bytes(self.array()?), self.u32()?);
        let trace = match flags & send_flags::TRACE {
            0 => None,
            _ => Some(Trace { trace_id: self.array()?, parent_id: self.array()?, flags: self.u8()? }),
        };
        let (conv, user) = (self.s8()?, self.s8()?);
        let payload = self.take(self.0.len())?;
        Ok(Message { mid, seq, fingerprint, cmid, flags, kind, exp_s, trace, conv, user, payload })
    }

    fn members(&mut self) -> Result<Change<'a>, BadEntry> {
        let (mid, version) = (Mid(self.u64()?), self.u64()?);
        let operation = match self.u8()? {
            1 => Operation::Create,
            2 => Operation::Add,
            3 => Operation::Remove,
            _ => return Err(BadEntry),
        };
        let (conv, users) = (self.s8()?, self.names()?);
        Ok(Change::Members { mid, version, operation, conv, users })
    }

    fn set(&mut self) -> Result<Change<'a>, BadEntry> {
        let (mid, version) = (Mid(self.u64()?), self.u64()?);
        let [role, muted] = [self.u8()?, self.u8()?].map(|value| (value != AS_IT_IS).then_some(value));
        let (conv, users) = (self.s8()?, self.names()?);
        Ok(Change::Set { mid, version, role, muted, conv, users })
    }

    fn names(&mut self) -> Result<Names<'a>, BadEntry> {
        let count = self.u32()?;
        let names = self.0;
        for _ in 0..count {
            self.s8()?;
        }
        Ok(Names::Logged(count, names.get(..names.len().saturating_sub(self.0.len())).ok_or(BadEntry)?))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], BadEntry> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(BadEntry)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadEntry> {
        let (head, tail) = self.0.split_first_chunk().ok_or(BadEntry)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, BadEntry> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, BadEntry> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, BadEntry> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn s8(&mut self) -> Result<&'a str, BadEntry> {
        let len = self.u8()?;
        std::str::from_utf8(self.take(usize::from(len))?).map_err(|_| BadEntry)
    }
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

#[expect(clippy::expect_used, reason = "ids were held against their bound, 160 bytes at most, before they were accepted")]
fn put_s8(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("ids have at most 160 bytes"));
    out.extend_from_slice(text.as_bytes());
}

const MESSAGE: u8 = 1;
const MEMBERS: u8 = 2;
const READ: u8 = 3;
const CURSOR: u8 = 4;
const EPOCH: u8 = 5;
const SET: u8 = 6;
const SHAPE: u8 = 7;
const BAN: u8 = 8;
const FLOOR: u8 = 9;
const REVOKED: u8 = 10;
/// A role or a silence that does not change.
const AS_IT_IS: u8 = 255;

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<u8> {
        let mut group = Vec::new();
        let users = [Text::from("al"), Text::from("bo")];
        let trace = Some(Trace { trace_id: [1; 16], parent_id: [2; 8], flags: 3 });
        let message = Message {
            mid: Mid(5),
            seq: 6,
            fingerprint: 7,
            cmid: Cmid([8; 16]),
            flags: send_flags::TRACE,
            kind: 9,
            exp_s: 10,
            trace,
            conv: "d:al:bo",
            user: "al",
            payload: b"hi",
        };
        let changes = [
            Change::Message(message),
            Change::Message(Message { flags: 0, trace: None, payload: b"", ..message }),
            Change::Revoked { whose: Whose { user: "al", device: "web", id: "" }, reach: Reach { before_s: 7, until_s: 8 } },
            Change::Members { mid: Mid(1), version: 2, operation: Operation::Add, conv: "g:x", users: Names::List(&users) },
            Change::Read { mid: Mid(1), seq: 2, conv: "g:x", user: "al" },
            Change::Cursor { seq: 2, conv: "g:x", user: "al", device: "web" },
            Change::Epoch { mid: Mid(1), epoch: 3 },
            Change::Set { mid: Mid(1), version: 3, role: Some(2), muted: None, conv: "g:x", users: Names::List(&users) },
            Change::Shape { mid: Mid(1), version: 4, flags: 1, conv: "g:x" },
            Change::Ban { banned: true, user: "al", device: "" },
            Change::Floor { mid: Mid(1), floor: 3, count: 1, conv: "g:x" },
        ];
        for change in changes {
            let entry = Entry { stamp_ms: 1_764_000_000_000, change };
            let start = group.len();
            entry.encode(&mut group);
            let read: Vec<_> = entries(&group[start..]).collect();
            assert_eq!(read, [Ok(entry)]);
        }
        group
    }

    /// Every kind of entry comes back as it was, alone and as one group.
    #[test]
    fn entries_come_back_as_they_were() {
        let group = samples();
        assert_eq!(entries(&group).filter(Result::is_ok).count(), 11);
        let first: String = group[..60].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            first,
            "5e0000000100e897b69a010000050000000000000006000000000000000700000000000000080808080808080808080808080808081009000a000000"
        );
        let last: String = group[group.len() - 129..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            last,
            "9a0100000100000000000000030000000000000002ff03673a780200000002616c02626f1e0000000700e897b69a01000001\
             0000000000000004000000000000000103673a780e0000000800e897b69a0100000102616c00\
             250000000900e897b69a01000001000000000000000300000000000000010000000000000003673a78"
        );
    }

    /// A group cut anywhere gives whole entries, then at most one error, and never a panic; a flipped bit never panics either.
    #[test]
    fn damaged_groups_are_refused_without_panic() {
        let group = samples();
        for cut in 0..group.len() {
            let read: Vec<_> = entries(&group[..cut]).collect();
            assert!(read.iter().rev().skip(1).all(Result::is_ok));
        }
        for bit in 0..group.len() * 8 {
            let mut damaged = group.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            for entry in entries(&damaged).flatten() {
                if let Change::Members { users, .. } | Change::Set { users, .. } = entry.change {
                    assert!(users.iter().count() <= damaged.len());
                }
            }
        }
    }
}
