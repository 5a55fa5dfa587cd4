//! Where things stand in the engine: keyspaces, keys, and the rows of one commit group.
//!
//! ```text
//! msg       C, seq          header + payload       one per message
//! dedup.N   cmid, U         C, seq, mid, hash      one per message; N = quarter of the window, mod 5
//! head      C               id, floor, count ...   creation, membership, every 1,000th seq: `msg` knows the rest
//! member    C, U            user, joined           of groups and channels; the two of `d:` are in its id
//! conv_of   U, C            id, joined, left       one per conversation a user has or had
//! read      U, C            seq                    READ and own SEND
//! cursor    U, D, C         seq                    ACK; the highest wins
//! meta      name            store, position; `ban.` and U, or U and D: who may not connect;
//!                                                   `revoked.` and U, D, hash of `jti`: tokens that are revoked
//! ```
//!
//! Keys are big-endian, so that their order is numeric. `C` is a 128-bit keyed hash of the conversation id, `U` and `D` are 64-bit
//! ones of user and device: ids are chosen by users, and an unkeyed hash can be collided on purpose. The key is made at creation and
//! kept in `meta`.
//!
//! # Change stamps: what SYNC compares with `since`
//!
//! Every change that SYNC reports takes the next value of the shard's one hybrid logical clock, in commit order: a message its `mid`,
//! a membership change and a READ a value of the same clock. The row `meta position` carries the last value given out, in the same
//! atomic batch as the rows. Hence, within one snapshot of the engine:
//!
//! - changed(user, conversation) = the greatest of: `mid` of the last message, `changed` of `head`, of `conv_of` and of `read`;
//!   for a conversation the user has left, `changed` of `conv_of` alone.
//! - SYNC with `since` reports every conversation of the user with changed > `since`; with `since` 0 those left are omitted.
//! - The first page takes `position.changed` of its snapshot as the new `since` and writes it into `cursor`, together with the last
//!   `C` reported; the pages after it repeat that `since`. A change after the first snapshot has a greater stamp, so the next SYNC
//!   reports it, whichever page was being read: never too little. A READ of the same device is reported as well: sometimes too much.
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

use std::net::IpAddr;

use std::hash::Hasher;

use siphasher::sip::SipHasher24;
use siphasher::sip128::{Hasher128, SipHasher24 as SipHasher24Wide};

use super::record::{self, Value};
use super::revocations::Whose;
use crate::ids::{Cmid, Mid};
use crate::limits::SPARE_BATCH_BYTES_MAX;

/// Keyed hash of a conversation id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Conv(pub [u8; 16]);

/// Keyed hash of a user id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct User(pub u64);

/// Keyed hash of a device id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Device(pub u64);

/// A table of the engine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "the table at the head of this file")]
pub enum Keyspace {
    Msg,
    Dedup0,
    Dedup1,
    Dedup2,
    Dedup3,
    Dedup4,
    Head,
    Member,
    ConvOf,
    Read,
    Cursor,
    Meta,
}

impl Keyspace {
    /// All of them, in the order of their numbers.
    pub const ALL: [Keyspace; 12] = [
        Keyspace::Msg,
        Keyspace::Dedup0,
        Keyspace::Dedup1,
        Keyspace::Dedup2,
        Keyspace::Dedup3,
        Keyspace::Dedup4,
        Keyspace::Head,
        Keyspace::Member,
        Keyspace::ConvOf,
        Keyspace::Read,
        Keyspace::Cursor,
        Keyspace::Meta,
    ];

    /// The buckets of `dedup`.
    pub const DEDUP: [Keyspace; 5] = [Keyspace::Dedup0, Keyspace::Dedup1, Keyspace::Dedup2, Keyspace::Dedup3, Keyspace::Dedup4];

    /// The name in the engine; part of the format on disk.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Keyspace::Msg => "msg",
            Keyspace::Dedup0 => "dedup.0",
            Keyspace::Dedup1 => "dedup.1",
            Keyspace::Dedup2 => "dedup.2",
            Keyspace::Dedup3 => "dedup.3",
            Keyspace::Dedup4 => "dedup.4",
            Keyspace::Head => "head",
            Keyspace::Member => "member",
            Keyspace::ConvOf => "conv_of",
            Keyspace::Read => "read",
            Keyspace::Cursor => "cursor",
            Keyspace::Meta => "meta",
        }
    }

    /// Place in [`Keyspace::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Key of [`super::record::Store`] in `meta`.
pub const META_STORE: &[u8] = b"store";

/// Key of [`super::record::Position`] in `meta`.
pub const META_POSITION: &[u8] = b"position";

/// First bytes of the keys of [`super::record::Ban`] in `meta`.
pub const META_BAN: &[u8] = b"ban.";

/// Key of a ban in `meta`; without a device it is the user's.
#[must_use]
pub fn ban_key(user: User, device: Option<Device>) -> Vec<u8> {
    let mut key = META_BAN.to_vec();
    key.extend_from_slice(&user.0.to_be_bytes());
    key.extend(device.into_iter().flat_map(|device| device.0.to_be_bytes()));
    key
}

/// First bytes of the keys of [`super::record::Revoked`] in `meta`.
pub const META_REVOKED: &[u8] = b"revoked.";

/// What a revocation is found by: hashes of user, device and id of the token; 0 for any.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RevokedKey(pub [u64; 3]);

impl RevokedKey {
    /// Key in `meta`.
    #[must_use]
    pub fn row_key(&self) -> Vec<u8> {
        let parts = self.0.iter().flat_map(|part| part.to_be_bytes());
        META_REVOKED.iter().copied().chain(parts).collect()
    }
}

/// The hashes that stand in keys.
#[derive(Clone, Copy)]
pub struct Hashes {
    key: [u8; 16],
}

impl Hashes {
    /// Hashes under the key of `meta store`.
    #[must_use]
    pub fn new(key: [u8; 16]) -> Self {
        Self { key }
    }

    /// `C` of a conversation id.
    #[must_use]
    pub fn conv(&self, id: &str) -> Conv {
        let mut hasher = SipHasher24Wide::new_with_key(&self.key);
        hasher.write(id.as_bytes());
        Conv(hasher.finish128().as_u128().to_be_bytes())
    }

    /// `U` of a user id.
    #[must_use]
    pub fn user(&self, id: &str) -> User {
        User(SipHasher24::new_with_key(&self.key).hash(id.as_bytes()))
    }

    /// A client's address: IPv4 as a whole, IPv6 by its first 64 bits. Stands in no key.
    #[must_use]
    pub fn address(&self, address: IpAddr) -> u64 {
        let hasher = SipHasher24::new_with_key(&self.key);
        match address.to_canonical() {
            IpAddr::V4(v4) => hasher.hash(&v4.octets()),
            IpAddr::V6(v6) => hasher.hash(&((v6.to_bits() >> 64) as u64).to_be_bytes()),
        }
    }

    /// `D` of a device id.
    #[must_use]
    pub fn device(&self, id: &str) -> Device {
        Device(SipHasher24::new_with_key(&self.key).hash(id.as_bytes()))
    }

    /// What a revocation is found by.
    #[must_use]
    pub fn revoked(&self, whose: Whose<'_>) -> RevokedKey {
        let hasher = SipHasher24::new_with_key(&self.key);
        let any_or = |text: &str| if text.is_empty() { 0 } else { hasher.hash(text.as_bytes()) };
        RevokedKey([whose.user, whose.device, whose.id].map(any_or))
    }

    /// Tells two messages under one cmid apart.
    #[must_use]
    pub fn fingerprint(&self, kind: u16, payload: &[u8]) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(&kind.to_le_bytes());
        hasher.write(payload);
        hasher.finish()
    }
}

impl std::fmt::Debug for Hashes {
    /// The key stays secret: with it, collisions could be made.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hashes")
    }
}

/// Key of `msg`. Its first 16 bytes are the prefix of a conversation.
#[must_use]
pub fn msg_key(conv: Conv, seq: u64) -> [u8; 24] {
    join(conv.0, seq.to_be_bytes())
}

/// The seq of a key of `msg`; `None` if it is none.
#[must_use]
pub fn msg_seq(key: &[u8]) -> Option<u64> {
    let (_, seq) = <&[u8; 24]>::try_from(key).ok()?.split_last_chunk()?;
    Some(u64::from_be_bytes(*seq))
}

/// Key of `dedup.N`: opens with the cmid, because UUIDv7 makes inserts nearly sequential.
#[must_use]
pub fn dedup_key(cmid: Cmid, user: User) -> [u8; 24] {
    join(cmid.0, user.0.to_be_bytes())
}

/// Key of `head`.
#[must_use]
pub fn head_key(conv: Conv) -> [u8; 16] {
    conv.0
}

/// Key of `member`. Its first 16 bytes are the prefix of a conversation.
#[must_use]
pub fn member_key(conv: Conv, user: User) -> [u8; 24] {
    join(conv.0, user.0.to_be_bytes())
}

/// Key of `conv_of` and of `read`. Its first 8 bytes are the prefix of a user.
#[must_use]
pub fn user_key(user: User, conv: Conv) -> [u8; 24] {
    join(user.0.to_be_bytes(), conv.0)
}

/// The conversation of a key of `conv_of` or `read`; `None` if it is none.
#[must_use]
pub fn user_key_conv(key: &[u8]) -> Option<Conv> {
    let (_, conv) = <&[u8; 24]>::try_from(key).ok()?.split_last_chunk()?;
    Some(Conv(*conv))
}

/// Key of `cursor`. Its first 16 bytes are the prefix of a device.
#[must_use]
pub fn cursor_key(user: User, device: Device, conv: Conv) -> [u8; 32] {
    join(join::<8, 8, 16>(user.0.to_be_bytes(), device.0.to_be_bytes()), conv.0)
}

/// The device of a key of `cursor`; `None` if it is none.
#[must_use]
pub fn cursor_key_device(key: &[u8]) -> Option<Device> {
    let device = <&[u8; 32]>::try_from(key).ok()?[8..16].try_into().ok()?;
    Some(Device(u64::from_be_bytes(device)))
}

/// Which quarter of a dedup window a message falls in, counted from 1970.
#[must_use]
pub fn dedup_quarter(mid: Mid, window_s: u32) -> u64 {
    mid.unix_ms() / (u64::from(window_s).max(1) * 1000 / DEDUP_QUARTERS)
}

/// The bucket of a quarter. Five buckets for four quarters: a cmid is found for at least a whole window.
#[must_use]
pub fn dedup_bucket(quarter: u64) -> Keyspace {
    match quarter % 5 {
        0 => Keyspace::Dedup0,
        1 => Keyspace::Dedup1,
        2 => Keyspace::Dedup2,
        3 => Keyspace::Dedup3,
        _ => Keyspace::Dedup4,
    }
}

/// Quarters of a dedup window.
pub const DEDUP_QUARTERS: u64 = 4;

/// What happens to one row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The value replaces what stands there.
    Put,
    /// As Put, unless the row holds a cursor with a higher seq: only for `cursor`. The highest wins whatever the order, so a repeat
    /// in replay changes nothing.
    Max,
    /// The row goes.
    Delete,
}

/// A row of a [`Batch`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row<'a> {
    /// Table.
    pub keyspace: Keyspace,
    /// What happens.
    pub change: Change,
    /// Key.
    pub key: &'a [u8],
    /// Value; empty for a deletion.
    pub value: &'a [u8],
}

/// The rows of one commit group, in replay of several that follow each other: written to the engine in one atomic batch.
///
/// One buffer and one index, both recycled: no allocation per row.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    clears: Vec<Keyspace>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    start: u32,
    value: u32,
    end: u32,
    keyspace: Keyspace,
    change: Change,
}

impl Batch {
    /// Adds a row whose value `write` appends.
    ///
    /// # Panics
    /// If the batch reaches 4 GiB; it is bounded far below.
    pub fn push(&mut self, keyspace: Keyspace, change: Change, key: &[u8], write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.offset();
        self.bytes.extend_from_slice(key);
        let value = self.offset();
        write(&mut self.bytes);
        self.slots.push(Slot { start, value, end: self.offset(), keyspace, change });
    }

    /// Empties a keyspace before the rows of this batch are written; of those added so far its own go as well. Emptying it again in
    /// replay does no harm.
    pub fn clear_keyspace(&mut self, keyspace: Keyspace) {
        self.slots.retain(|slot| slot.keyspace != keyspace);
        if !self.clears.contains(&keyspace) {
            self.clears.push(keyspace);
        }
    }

    /// Sorts by key and keeps the last change of each, of [`Change::Max`] the highest: half the CPU of inserting unsorted.
    #[expect(clippy::indexing_slicing, reason = "a slot says where push() has put its row")]
    pub fn sort(&mut self) {
        let Self { bytes, slots, .. } = self;
        let key = |slot: &Slot| (slot.keyspace, &bytes[slot.start as usize..slot.value as usize]);
        slots.sort_unstable_by(|a, b| key(a).cmp(&key(b)).then(a.start.cmp(&b.start)));
        let seq = |slot: &Slot| record::Cursor::decode(&bytes[slot.value as usize..slot.end as usize]).map_or(0, |row| row.seq);
        slots.dedup_by(|next, last| {
            let is_same = key(next) == key(last);
            let is_lower = || next.change == Change::Max && last.change == Change::Max && seq(next) < seq(last);
            if is_same && !is_lower() {
                *last = *next;
            }
            is_same
        });
    }

    /// The memory of a batch that has been written, for the next one. `None` if it is more than is worth keeping.
    #[must_use]
    pub fn emptied(mut self) -> Option<Self> {
        self.bytes.clear();
        self.slots.clear();
        self.clears.clear();
        let held_bytes = self.bytes.capacity() + self.slots.capacity() * size_of::<Slot>();
        (held_bytes <= SPARE_BATCH_BYTES_MAX).then_some(self)
    }

    /// The keyspaces to empty first.
    #[must_use]
    pub fn clears(&self) -> &[Keyspace] {
        &self.clears
    }

    /// The rows: in order of addition, or of keys once sorted.
    #[expect(clippy::indexing_slicing, reason = "a slot says where push() has put its row")]
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        self.slots.iter().map(|slot| Row {
            keyspace: slot.keyspace,
            change: slot.change,
            key: &self.bytes[slot.start as usize..slot.value as usize],
            value: &self.bytes[slot.value as usize..slot.end as usize],
        })
    }

    /// Bytes held, for the bound of the backlog.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bytes.len() + self.slots.len() * size_of::<Slot>()
    }

    /// Whether it holds neither rows nor clears.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.clears.is_empty()
    }

    #[expect(clippy::expect_used, reason = "a group is bounded far below 4 GiB before its rows are made")]
    fn offset(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("a group is far below 4 GiB")
    }
}

fn join<const A: usize, const B: usize, const C: usize>(a: [u8; A], b: [u8; B]) -> [u8; C] {
    const { assert!(A + B == C) };
    let mut key = [0; C];
    key[..A].copy_from_slice(&a);
    key[A..].copy_from_slice(&b);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes and keys of a known id under a known key: they are on disk, so they may never move.
    #[test]
    fn keys_are_frozen() {
        let hashes = Hashes::new(*b"0123456789abcdef");
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (conv, user, device) = (hashes.conv("d:al:bo"), hashes.user("al"), hashes.device("web-1"));
        assert_eq!(hex(&conv.0), "5353a05cfc1c8f42f5a9a05dd4d0db2d");
        assert_eq!(hex(&cursor_key(user, device, conv))[..32], *"838822a76c357474f0935361ea16e160");
        assert_eq!(hashes.fingerprint(1, b"hi"), 0x951fabaf307ab83f);
        assert_eq!(msg_seq(&msg_key(conv, 258)), Some(258));
        assert_eq!(hex(&msg_key(conv, 258)[16..]), "0000000000000102");
        assert_eq!(user_key_conv(&user_key(user, conv)), Some(conv));
        assert_eq!(dedup_key(Cmid([7; 16]), user)[..16], [7; 16]);
        assert_eq!(Keyspace::ALL.map(Keyspace::index), std::array::from_fn(|index| index));
    }

    /// Sorting orders by keyspace and key, keeps the last of equal keys, and changes nothing else.
    #[test]
    fn batch_sorts_and_keeps_the_last() {
        let mut batch = Batch::default();
        for (keyspace, key, value) in
            [(Keyspace::Read, "b", "1"), (Keyspace::Msg, "z", "2"), (Keyspace::Read, "a", "3"), (Keyspace::Read, "b", "4")]
        {
            batch.push(keyspace, Change::Put, key.as_bytes(), |out| out.extend_from_slice(value.as_bytes()));
        }
        batch.sort();
        let rows: Vec<_> = batch.rows().map(|row| (row.keyspace, row.key, row.value)).collect();
        let expected: [(Keyspace, &[u8], &[u8]); 3] =
            [(Keyspace::Msg, b"z", b"2"), (Keyspace::Read, b"a", b"3"), (Keyspace::Read, b"b", b"4")];
        assert_eq!(rows, expected);
    }

    /// A batch of several groups means what they mean one after the other: the highest cursor stands, and emptying a keyspace takes the
    /// rows before it alone.
    #[test]
    fn a_batch_keeps_the_order_of_its_groups() {
        let mut batch = Batch::default();
        for (key, seq) in [(b"x", 5), (b"x", 3), (b"y", 1), (b"y", 2)] {
            batch.push(Keyspace::Cursor, Change::Max, key, |out| record::Cursor { seq }.encode(out));
        }
        for key in ["before", "after"] {
            batch.push(Keyspace::Dedup1, Change::Put, key.as_bytes(), |_| {});
            batch.push(Keyspace::Dedup2, Change::Put, key.as_bytes(), |_| {});
            if key == "before" {
                batch.clear_keyspace(Keyspace::Dedup1);
                batch.clear_keyspace(Keyspace::Dedup1);
            }
        }
        batch.sort();
        assert_eq!(batch.clears(), [Keyspace::Dedup1]);
        let of = |keyspace| batch.rows().filter(move |row| row.keyspace == keyspace);
        let seqs: Vec<_> = of(Keyspace::Cursor).map(|row| record::Cursor::decode(row.value).unwrap().seq).collect();
        assert_eq!(seqs, [5, 2]);
        assert_eq!(of(Keyspace::Dedup1).map(|row| row.key).collect::<Vec<_>>(), [b"after"]);
        assert_eq!(of(Keyspace::Dedup2).map(|row| row.key).collect::<Vec<_>>(), [&b"after"[..], b"before"]);
    }

    /// A cmid written at any time is still in a bucket that has not been emptied one whole window later.
    #[test]
    fn a_bucket_outlives_the_window() {
        let window_s = 86_400;
        let window_ms = u64::from(window_s) * 1000;
        for hour in 0..240 {
            let written = Mid::new(1_764_000_000_000 + hour * 3_600_000, 0, 0);
            let later = Mid::new(written.unix_ms() + window_ms, 0, 0);
            let (first, last) = (dedup_quarter(written, window_s), dedup_quarter(later, window_s));
            assert!((first + 1..=last).all(|quarter| dedup_bucket(quarter) != dedup_bucket(first)));
        }
    }
}
