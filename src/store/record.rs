//! What the store keeps, as bytes: one frozen type per version byte.                                          [rkyv]
//!
//! Every value of the engine is a version byte followed by an archived type of that version. A type that has been released is never
//! changed: a new field is a new type under a new version byte, and reading converts upwards. The layout is pinned by the features
//! `little_endian`, `pointer_width_32` and `unaligned` of the package and guarded by the golden bytes at the foot of this file.
//!
//! ```text
//! head, member, conv_of, read, cursor, dedup.N, meta      version u8 │ archive
//! msg                                                     version u8 │ archive bytes u8 │ archive (header) │ payload
//! ```
//!
//! Access is checked once, then names and payload are borrowed from the value.
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

use rkyv::rancor::Failure;
use rkyv::ser::allocator::SubAllocator;
use rkyv::with::InlineAsBox;
use rkyv::{Archive, Serialize};

use super::revocations::{Reach, Whose};
use crate::ids::{Cmid, Mid};
use crate::wire::envelope::Trace;

/// A stored value that cannot be read: damaged, or written by a newer release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadValue;

impl std::fmt::Display for BadValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a stored value is damaged or of an unknown version")
    }
}

impl std::error::Error for BadValue {}

/// Header of a stored message. The payload follows it in the same value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MessageHeader<'a> {
    /// Message id; also the change stamp of the message.
    pub mid: Mid,
    /// How many not QUIET messages the conversation holds up to and with this one.
    pub count: u64,
    /// The application's.
    pub kind: u16,
    /// QUIET and TRACE of [`crate::wire::envelope::deliver_flags`].
    pub flags: u8,
    /// Unix seconds; 0: never.
    pub exp_s: u32,
    /// The sender's id for it.
    pub cmid: Cmid,
    /// Sending user.
    pub from: &'a str,
    /// Trace context.
    pub trace: Option<Trace>,
}

/// Value of `head`: a conversation that exists. Its head may be older than the last message of `msg`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize)]
pub struct Head<'a> {
    /// Conversation id in full.
    #[rkyv(with = InlineAsBox)]
    pub conv: &'a str,
    /// Epoch of the store when the row was written.
    pub epoch: u32,
    /// Lowest seq that is kept, at least 1.
    pub floor: u64,
    /// How many not QUIET messages lie below `floor`.
    pub floor_count: u64,
    /// Highest seq when the row was written.
    pub head: u64,
    /// How many not QUIET messages up to `head`.
    pub count: u64,
    /// Changes of the membership, from 1; 0 for a direct conversation.
    pub version: u64,
    /// Change stamp of membership and floor.
    pub changed: u64,
    /// [`head_flags`].
    pub flags: u8,
}

/// Value of `member`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize)]
pub struct Member<'a> {
    /// User id in full.
    #[rkyv(with = InlineAsBox)]
    pub user: &'a str,
    /// First seq the user may see.
    pub joined: u64,
    /// Number of the role, as [`crate::ids::Role::number`].
    pub role: u8,
    /// 1: silenced by the user.
    pub muted: u8,
}

/// Value of `conv_of`: a conversation of a user, also one the user has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize)]
pub struct ConvOf<'a> {
    /// Conversation id in full.
    #[rkyv(with = InlineAsBox)]
    pub conv: &'a str,
    /// First seq the user may see.
    pub joined: u64,
    /// Whether the user was removed.
    pub left: bool,
    /// Version of the membership when this row was written.
    pub version: u64,
    /// Change stamp of this row.
    pub changed: u64,
}

/// Value of `read`: the read position of a user in a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize)]
pub struct Read {
    /// Everything up to here is read.
    pub seq: u64,
    /// Change stamp of this row.
    pub changed: u64,
}

/// Value of `cursor`: what a device holds of a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize)]
pub struct Cursor {
    /// Everything up to here is held.
    pub seq: u64,
}

/// Bits of [`Head::flags`].
pub mod head_flags {
    /// Newcomers see what was before them.
    pub const HISTORY: u8 = 1;
    /// So many members that they are told by NOTICE.
    pub const LARGE: u8 = 2;
}

/// Value of `meta` under `revoked.` and hashes: tokens that pass no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize)]
pub struct Revoked<'a> {
    /// User id in full.
    #[rkyv(with = InlineAsBox)]
    pub user: &'a str,
    /// Device id in full; empty: all of the user's.
    #[rkyv(with = InlineAsBox)]
    pub device: &'a str,
    /// `jti` of the one token; empty: all.
    #[rkyv(with = InlineAsBox)]
    pub id: &'a str,
    /// Those issued before this Unix second.
    pub before_s: u64,
    /// From this Unix second on it may be forgotten.
    pub until_s: u64,
}

impl<'a> Revoked<'a> {
    /// The row of a revocation.
    #[must_use]
    pub fn new(whose: Whose<'a>, reach: Reach) -> Self {
        let (Whose { user, device, id }, Reach { before_s, until_s }) = (whose, reach);
        Self { user, device, id, before_s, until_s }
    }

    /// What the row says.
    #[must_use]
    pub fn read(&self) -> (Whose<'a>, Reach) {
        let Self { user, device, id, before_s, until_s } = *self;
        (Whose { user, device, id }, Reach { before_s, until_s })
    }
}

/// Value of `meta` under `ban.` and hashes: a user or a device that may not connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize)]
pub struct Ban<'a> {
    /// User id in full.
    #[rkyv(with = InlineAsBox)]
    pub user: &'a str,
    /// Device id in full; empty: all of the user's.
    #[rkyv(with = InlineAsBox)]
    pub device: &'a str,
}

/// Value of `dedup.N`: a message id chosen by a sender, already used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize)]
pub struct Dedup {
    /// Hash of the conversation ([`super::schema::Conv`]).
    pub conv: [u8; 16],
    /// Place in the conversation.
    pub seq: u64,
    /// Message id.
    pub mid: u64,
    /// Keyed hash of kind and payload.
    pub fingerprint: u64,
}

/// Value of `meta` under `store`: made once, at creation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize)]
pub struct Store {
    /// Number of this shard and how many there are.
    pub shard: u16,
    /// See `shard`.
    pub shards: u16,
    /// Seconds a cmid is remembered; fixes the buckets of `dedup.N`.
    pub dedup_s: u32,
    /// Key of all hashes in keys.
    pub hash_key: [u8; 16],
}

/// Value of `meta` under `position`: what the rows of the engine say, written with every group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Archive, Serialize)]
pub struct Position {
    /// Number of the last group of the log that is in the rows.
    pub group: u64,
    /// The last mid or change stamp given out; what SYNC returns as `since`.
    pub changed: u64,
    /// Epoch of every conversation of the store.
    pub epoch: u32,
    /// Change stamp of the epoch: SYNC counts every conversation as changed then. 0 for the first.
    pub epoch_changed: u64,
}

/// A value with a version byte, written with `encode` and read with `decode`.
pub trait Value<'a>: Sized {
    /// Appends the value to `out`. No allocation beyond the growth of `out`.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads a value; names are borrowed from `bytes`.
    ///
    /// # Errors
    /// [`BadValue`] for an unknown version or an archive that fails its check.
    fn decode(bytes: &'a [u8]) -> Result<Self, BadValue>;
}

impl MessageHeader<'_> {
    /// Appends header and payload to `out`.
    #[expect(
        clippy::expect_used,
        clippy::indexing_slicing,
        reason = "into the two bytes just appended; a user id has at most 64 bytes"
    )]
    pub fn encode(&self, payload: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[VERSION_1, 0]);
        let mut trace = [0; TRACE_BYTES];
        let trace = self.trace.map_or(&[][..], |value| {
            trace[..16].copy_from_slice(&value.trace_id);
            trace[16..24].copy_from_slice(&value.parent_id);
            trace[24] = value.flags;
            &trace[..]
        });
        let archive = MessageHeaderV1 {
            mid: self.mid.0,
            count: self.count,
            exp_s: self.exp_s,
            kind: self.kind,
            flags: self.flags,
            cmid: self.cmid.0,
            from: self.from,
            trace,
        };
        append(&archive, out);
        let len = out.len() - start - 2;
        out[start + 1] = u8::try_from(len).expect("a user id has at most 64 bytes");
        out.extend_from_slice(payload);
    }
}

impl<'a> MessageHeader<'a> {
    /// Reads header and payload.
    ///
    /// # Errors
    /// [`BadValue`] for an unknown version or an archive that fails its check.
    pub fn decode(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), BadValue> {
        let [VERSION_1, len, rest @ ..] = bytes else { return Err(BadValue) };
        let (archive, payload) = rest.split_at_checked(usize::from(*len)).ok_or(BadValue)?;
        let archive = rkyv::access::<ArchivedMessageHeaderV1<'_>, Failure>(archive).map_err(|_| BadValue)?;
        let trace = match &archive.trace[..] {
            [] => None,
            bytes => Some(trace(bytes)?),
        };
        let header = Self {
            mid: Mid(archive.mid.to_native()),
            count: archive.count.to_native(),
            kind: archive.kind.to_native(),
            flags: archive.flags,
            exp_s: archive.exp_s.to_native(),
            cmid: Cmid(archive.cmid),
            from: &archive.from,
            trace,
        };
        Ok((header, payload))
    }
}

/// One value: how its archive of version 1 becomes the type of today.
macro_rules! value {
    ($type:ty, $archived:ty, |$archive:ident| $read:expr) => {
        impl<'a> Value<'a> for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                out.push(VERSION_1);
                append(self, out);
            }

            fn decode(bytes: &'a [u8]) -> Result<Self, BadValue> {
                let [VERSION_1, archive @ ..] = bytes else { return Err(BadValue) };
                let $archive = rkyv::access::<$archived, Failure>(archive).map_err(|_| BadValue)?;
                Ok($read)
            }
        }
    };
}

value!(Head<'a>, ArchivedHead<'_>, |row| Head {
    conv: &row.conv,
    epoch: row.epoch.to_native(),
    floor: row.floor.to_native(),
    floor_count: row.floor_count.to_native(),
    head: row.head.to_native(),
    count: row.count.to_native(),
    version: row.version.to_native(),
    changed: row.changed.to_native(),
    flags: row.flags,
});
value!(Member<'a>, ArchivedMember<'_>, |row| Member {
    user: &row.user,
    joined: row.joined.to_native(),
    role: row.role,
    muted: row.muted,
});
value!(ConvOf<'a>, ArchivedConvOf<'_>, |row| ConvOf {
    conv: &row.conv,
    joined: row.joined.to_native(),
    left: row.left,
    version: row.version.to_native(),
    changed: row.changed.to_native(),
});
value!(Ban<'a>, ArchivedBan<'_>, |row| Ban { user: &row.user, device: &row.device });
value!(Revoked<'a>, ArchivedRevoked<'_>, |row| Revoked {
    user: &row.user,
    device: &row.device,
    id: &row.id,
    before_s: row.before_s.to_native(),
    until_s: row.until_s.to_native(),
});
value!(Read, ArchivedRead, |row| Read { seq: row.seq.to_native(), changed: row.changed.to_native() });
value!(Cursor, ArchivedCursor, |row| Cursor { seq: row.seq.to_native() });
value!(Dedup, ArchivedDedup, |row| Dedup {
    conv: row.conv,
    seq: row.seq.to_native(),
    mid: row.mid.to_native(),
    fingerprint: row.fingerprint.to_native(),
});
value!(Store, ArchivedStore, |row| Store {
    shard: row.shard.to_native(),
    shards: row.shards.to_native(),
    dedup_s: row.dedup_s.to_native(),
    hash_key: row.hash_key,
});
value!(Position, ArchivedPosition, |row| Position {
    group: row.group.to_native(),
    changed: row.changed.to_native(),
    epoch: row.epoch.to_native(),
    epoch_changed: row.epoch_changed.to_native(),
});

/// The archive of [`MessageHeader`]: an absent trace costs 8 bytes, not 26.
#[derive(Archive, Serialize)]
struct MessageHeaderV1<'a> {
    mid: u64,
    count: u64,
    exp_s: u32,
    kind: u16,
    flags: u8,
    cmid: [u8; 16],
    #[rkyv(with = InlineAsBox)]
    from: &'a str,
    #[rkyv(with = InlineAsBox)]
    trace: &'a [u8],
}

fn trace(bytes: &[u8]) -> Result<Trace, BadValue> {
    let bytes: &[u8; TRACE_BYTES] = bytes.try_into().map_err(|_| BadValue)?;
    let (trace_id, rest) = bytes.split_first_chunk().ok_or(BadValue)?;
    let (parent_id, rest) = rest.split_first_chunk().ok_or(BadValue)?;
    let &[flags] = rest else { return Err(BadValue) };
    Ok(Trace { trace_id: *trace_id, parent_id: *parent_id, flags })
}

/// Appends the archive of `value`; names go before the root, so the root ends the archive.
#[expect(clippy::expect_used, reason = "a vector takes every byte, and nothing written needs more")]
fn append(value: &impl for<'v> Serialize<Serializer<'v>>, out: &mut Vec<u8>) {
    let no_scratch = SubAllocator::new(&mut []);
    rkyv::api::low::to_bytes_in_with_alloc::<_, _, Failure>(value, out, no_scratch).expect("a vector takes every byte");
}

/// Neither scratch memory nor shared pointers: the types above need none.
type Serializer<'v> = rkyv::api::low::LowSerializer<&'v mut Vec<u8>, SubAllocator<'v>, Failure>;

const VERSION_1: u8 = 1;
const TRACE_BYTES: usize = 25;

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn golden<'a, V: Value<'a> + PartialEq + std::fmt::Debug>(value: V, bytes: &'a mut Vec<u8>, expected: &str) {
        value.encode(bytes);
        assert_eq!(hex(bytes), expected);
        assert_eq!(V::decode(bytes), Ok(value));
    }

    const HEADER: MessageHeader<'_> = MessageHeader {
        mid: Mid(0x0102_0304_0506_0708),
        count: 9,
        kind: 0x0a0b,
        flags: 4,
        exp_s: 0x0c0d_0e0f,
        cmid: Cmid([0x77; 16]),
        from: "al",
        trace: Some(Trace { trace_id: [0x11; 16], parent_id: [0x22; 8], flags: 1 }),
    };

    /// The bytes of every value of version 1, written down once. A change of the package or of a type that moves a byte fails here.
    #[test]
    fn layout_of_version_1_is_frozen() {
        let head =
            Head { conv: "d:al:bo", epoch: 1, floor: 2, floor_count: 3, head: 4, count: 5, version: 6, changed: 7, flags: 8 };
        golden(
            head,
            &mut Vec::new(),
            "01643a616c3a626ff9ffffff070000000100000002000000000000000300000000000000040000000000000005000000000000000600000000000000070000000000000008",
        );
        golden(
            Member { user: "al", joined: 1, role: 2, muted: 3 },
            &mut Vec::new(),
            "01616cfeffffff0200000001000000000000000203",
        );
        let conv_of = ConvOf { conv: "d:al:bo", joined: 1, left: true, version: 2, changed: 3 };
        golden(conv_of, &mut Vec::new(), "01643a616c3a626ff9ffffff0700000001000000000000000102000000000000000300000000000000");
        golden(Ban { user: "al", device: "web" }, &mut Vec::new(), "01616c776562fbffffff02000000f5ffffff03000000");
        let revoked = Revoked { user: "al", device: "web", id: "j1", before_s: 5, until_s: 6 };
        golden(
            revoked,
            &mut Vec::new(),
            "01616c7765626a31f9ffffff02000000f3ffffff03000000eeffffff0200000005000000000000000600000000000000",
        );
        golden(Read { seq: 3, changed: 4 }, &mut Vec::new(), "0103000000000000000400000000000000");
        golden(Cursor { seq: 3 }, &mut Vec::new(), "010300000000000000");
        let dedup = Dedup { conv: [0xcc; 16], seq: 1, mid: 2, fingerprint: 3 };
        golden(dedup, &mut Vec::new(), "01cccccccccccccccccccccccccccccccc010000000000000002000000000000000300000000000000");
        let store = Store { shard: 1, shards: 2, dedup_s: 86_400, hash_key: [0xdd; 16] };
        golden(store, &mut Vec::new(), "010100020080510100dddddddddddddddddddddddddddddddd");
        golden(
            Position { group: 1, changed: 2, epoch: 3, epoch_changed: 4 },
            &mut Vec::new(),
            "0101000000000000000200000000000000030000000400000000000000",
        );
    }

    /// A message with and without trace keeps its payload; both layouts are frozen, also behind other bytes of a batch.
    #[test]
    fn message_layout_is_frozen() {
        for (header, expected) in [
            (
                HEADER,
                "0152616c11111111111111111111111111111111222222222222222201080706050403020109000000000000000f0e0d0c0b0a0477777777777777777777777777777777beffffff02000000b8ffffff190000006869",
            ),
            (
                MessageHeader { trace: None, ..HEADER },
                "0139616c080706050403020109000000000000000f0e0d0c0b0a0477777777777777777777777777777777d7ffffff02000000d1ffffff000000006869",
            ),
        ] {
            let mut bytes = vec![0xee; 3];
            header.encode(b"hi", &mut bytes);
            assert_eq!(hex(&bytes[3..]), expected);
            assert_eq!(MessageHeader::decode(&bytes[3..]), Ok((header, &b"hi"[..])));
        }
    }

    /// No cut and no flipped bit makes a reader panic; an unknown version is refused.
    #[test]
    fn damaged_values_are_refused_without_panic() {
        let mut head = Vec::new();
        Head { conv: "g:x", epoch: 1, floor: 1, floor_count: 0, head: 9, count: 9, version: 1, changed: 1, flags: 0 }
            .encode(&mut head);
        let mut message = Vec::new();
        HEADER.encode(b"hi", &mut message);
        for cut in 0..head.len() {
            assert_eq!(Head::decode(&head[..cut]), Err(BadValue));
        }
        for bit in 0..message.len().min(head.len()) * 8 {
            let flip = |bytes: &[u8]| {
                let mut damaged = bytes.to_vec();
                damaged[bit / 8] ^= 1 << (bit % 8);
                damaged
            };
            let _ = MessageHeader::decode(&flip(&message));
            let _ = Head::decode(&flip(&head));
        }
        head[0] = 2;
        assert_eq!(Head::decode(&head), Err(BadValue));
    }
}
