//! Unfinished bytes: what must wait because its rest has not arrived.
//!
//! The receive buffer is lent for one call, and an idle connection owns none. When a call ends inside a message, the part that came
//! is copied here; the connection keeps a 32-bit index. A stash grows through the size classes with the bytes that have *arrived*,
//! never with a length that was merely announced, and is released with the message. Above the last class it doubles, so that a
//! message costs linear time, but not beyond what the message can still become.
//!
//! [`HeadCarry`] does the same for the request head before the upgrade.

use crate::conn::deflate::{Fault, Inflater};
use crate::limits::{STASH_BYTES, STASH_CLASSES_BYTES, STASH_FREE_BYTES, UPGRADE_HEAD_BYTES_MAX};
use crate::wire::frame::CONTROL_PAYLOAD_BYTES_MAX;
use crate::wire::upgrade::{HeadScan, Refusal};
use crate::wire::utf8;

/// The receive stashes of one reactor.
#[derive(Debug)]
pub struct Stashes {
    slots: Vec<Stash>,
    /// Slots nobody uses.
    vacant: Vec<u32>,
    /// Empty memory by size class, ready for the next message.
    free: [Vec<Vec<u8>>; STASH_CLASSES_BYTES.len()],
    free_bytes: usize,
    used_bytes: usize,
    bytes_max: usize,
    free_bytes_max: usize,
    /// For compressed messages; made for the first one.
    inflater: Option<Box<Inflater>>,
}

/// Names a stash; 0 names none.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StashIndex(u32);

/// There is no room for more unfinished bytes. Nothing has changed: release another stash and try again, or close with 4503.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StashesFull;

/// What one connection has received of a message, and of a control frame that came in between.
#[derive(Default, Debug)]
pub(super) struct Stash {
    /// The message as far as it is here, unmasked.
    message: Vec<u8>,
    /// The payload of a control frame as far as it is here, unmasked.
    control: Vec<u8>,
    /// Judges `message` if it is text.
    pub(super) utf8: utf8::Validator,
    /// Frames of the message so far.
    pub(super) fragments_count: u32,
    owner: u32,
}

/// Which of the two parts of a stash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    Message,
    Control,
}

impl Stashes {
    /// Stashes of at most `bytes_max` together; nothing is allocated before the first.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            slots: Vec::new(),
            vacant: Vec::new(),
            free: Default::default(),
            free_bytes: 0,
            used_bytes: 0,
            bytes_max,
            free_bytes_max: STASH_FREE_BYTES.most,
            inflater: None,
        }
    }

    /// Those of one of so many reactors, with room for two messages of the length that is allowed.
    #[must_use]
    pub fn share(reactors: usize, message_bytes_max: usize) -> Self {
        let bytes_max = STASH_BYTES.part(reactors).max(2 * message_bytes_max);
        Self { free_bytes_max: STASH_FREE_BYTES.part(reactors), ..Self::new(bytes_max) }
    }

    /// What [`Stashes::used_bytes`] and [`Stashes::free_bytes`] are at most, together.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Bytes of memory held for unfinished messages, whole capacities.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Bytes of empty memory kept for reuse, at most [`STASH_FREE_BYTES`].
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.free_bytes
    }

    /// Connections with a stash.
    #[must_use]
    pub fn used_count(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    /// The connection whose stash is largest: the one to close when all are full. Looks at every slot.
    #[must_use]
    pub fn largest_owner(&self) -> Option<u32> {
        let largest = self.slots.iter().max_by_key(|stash| stash.bytes())?;
        (largest.bytes() > 0).then_some(largest.owner)
    }

    /// Gives half of the empty memory of each class back to the allocator. Call it now and then, from a timer: what a burst needed
    /// is gone after a few calls.
    pub fn trim(&mut self) {
        for class in &mut self.free {
            let freed = class.split_off(class.len() / 2);
            self.free_bytes -= freed.iter().map(Vec::capacity).sum::<usize>();
            class.shrink_to_fit();
        }
        if self.used_count() == 0 {
            self.slots = Vec::new();
            self.vacant = Vec::new();
        }
    }

    /// Inflates a whole compressed message of at most `bytes_max`. Give it to [`Stashes::recycle`] after use.
    pub(super) fn inflate(&mut self, payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, Fault> {
        let mut out = self.take_free(INFLATED_CLASS);
        let inflated = self.inflater.get_or_insert_default().inflate(payload, bytes_max, &mut out);
        match inflated {
            Ok(()) => Ok(out),
            Err(fault) => {
                self.recycle(out);
                Err(fault)
            }
        }
    }

    /// Takes a slot for connection `owner`. Costs no memory until bytes come, and cannot fail: there is at most one per connection.
    #[expect(clippy::expect_used, reason = "one stash for each connection, and 32 bits count those")]
    pub(super) fn open(&mut self, owner: u32) -> StashIndex {
        if let Some(index) = self.vacant.pop().map(StashIndex) {
            self.stash(index).owner = owner;
            return index;
        }
        self.slots.push(Stash { owner, ..Stash::default() });
        StashIndex(u32::try_from(self.slots.len()).expect("fewer stashes than connections"))
    }

    #[expect(clippy::indexing_slicing, reason = "`open` names slots, and slots go only when none is named")]
    pub(super) fn stash(&mut self, index: StashIndex) -> &mut Stash {
        &mut self.slots[index.0 as usize - 1]
    }

    /// Makes room for `more` bytes in a part that may in the end have `end_bytes`.
    pub(super) fn reserve(&mut self, index: StashIndex, part: Part, more: usize, end_bytes: usize) -> Result<(), StashesFull> {
        let bytes = self.stash(index).part(part);
        let held = bytes.capacity();
        let needed = bytes.len() + more;
        assert!(needed <= end_bytes);
        if needed <= held {
            return Ok(());
        }
        let class = (0..).zip(STASH_CLASSES_BYTES).find(|&(_, class_bytes)| needed <= class_bytes);
        let target = class.map_or_else(|| needed.max(end_bytes.min(2 * held)), |(_, class_bytes)| class_bytes);
        if self.used_bytes - held + target > self.bytes_max {
            return Err(StashesFull);
        }
        let bytes = std::mem::take(self.stash(index).part(part));
        self.used_bytes -= held;
        let grown = match class {
            Some((class, _)) => {
                let mut grown = self.take_free(class);
                grown.extend_from_slice(&bytes);
                self.recycle(bytes);
                grown
            }
            None => {
                // The allocator may move pages instead of copying them.
                let mut grown = bytes;
                grown.reserve_exact(target - grown.len());
                grown
            }
        };
        self.used_bytes += grown.capacity();
        *self.stash(index).part(part) = grown;
        // Memory in use and memory kept share one limit: what is kept gives way.
        while self.used_bytes + self.free_bytes > self.bytes_max && self.drop_largest_free() {}
        Ok(())
    }

    /// Takes a finished part out; it no longer counts. Give it to [`Stashes::recycle`] after use, or drop it.
    pub(super) fn take(&mut self, index: StashIndex, part: Part) -> Vec<u8> {
        let bytes = std::mem::take(self.stash(index).part(part));
        self.used_bytes -= bytes.capacity();
        bytes
    }

    /// Gives a slot back, with whatever is still in it.
    pub(super) fn close(&mut self, index: StashIndex) {
        for part in [Part::Message, Part::Control] {
            let bytes = self.take(index, part);
            self.recycle(bytes);
        }
        *self.stash(index) = Stash { owner: NOBODY, ..Stash::default() };
        self.vacant.push(index.0);
    }

    /// Gives back every slot of connection `owner`, also one whose name was lost. Looks at every slot.
    pub fn close_all_of(&mut self, owner: u32) {
        let owned = (1..).zip(&self.slots).filter(|(_, stash)| stash.owner == owner);
        let owned: Vec<_> = owned.map(|(index, _)| StashIndex(index)).collect();
        owned.into_iter().for_each(|index| self.close(index));
    }

    /// Keeps memory for the next message if it is of a size class and there is room, else drops it.
    #[expect(clippy::indexing_slicing, reason = "a list per class, and a class that was just found")]
    pub(super) fn recycle(&mut self, mut bytes: Vec<u8>) {
        let held = bytes.capacity();
        let Some(class) = STASH_CLASSES_BYTES.iter().position(|&class_bytes| class_bytes == held) else { return };
        let kept_max = self.free_bytes_max.min(self.bytes_max.saturating_sub(self.used_bytes));
        if self.free_bytes + held <= kept_max {
            bytes.clear();
            self.free_bytes += held;
            self.free[class].push(bytes);
        }
    }

    #[expect(clippy::indexing_slicing, reason = "a list per class, and classes that the callers have found or that are constant")]
    fn take_free(&mut self, class: usize) -> Vec<u8> {
        match self.free[class].pop() {
            Some(bytes) => {
                self.free_bytes -= bytes.capacity();
                bytes
            }
            None => Vec::with_capacity(STASH_CLASSES_BYTES[class]),
        }
    }

    fn drop_largest_free(&mut self) -> bool {
        let Some(bytes) = self.free.iter_mut().rev().find_map(Vec::pop) else { return false };
        self.free_bytes -= bytes.capacity();
        true
    }
}

impl StashIndex {
    /// No stash.
    pub const NONE: Self = Self(0);
}

impl Stash {
    pub(super) fn part(&mut self, part: Part) -> &mut Vec<u8> {
        match part {
            Part::Message => &mut self.message,
            Part::Control => &mut self.control,
        }
    }

    fn bytes(&self) -> usize {
        self.message.capacity() + self.control.capacity()
    }
}

/// Collects a request head that comes in pieces. Box it with the rest of the handshake's state: it is dropped at the upgrade.
///
/// A head that comes whole is never copied.
#[derive(Default, Debug)]
pub struct HeadCarry {
    bytes: Vec<u8>,
    scan: HeadScan,
}

/// A whole request head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head<'a> {
    /// The head up to and with its blank line: what [`crate::wire::upgrade::parse`] takes.
    pub bytes: &'a [u8],
    /// Bytes of the last piece that belong to it; what follows is the WebSocket stream already.
    pub consumed_bytes: usize,
}

impl HeadCarry {
    /// Takes the next piece; `Ok(None)` means that more must come. Do not call it again after a head.
    ///
    /// # Errors
    /// [`Refusal`] for a head longer than [`UPGRADE_HEAD_BYTES_MAX`] and for bytes that no head may have: whoever speaks another
    /// protocol learns it from the first piece.
    pub fn push<'a>(&'a mut self, piece: &'a [u8]) -> Result<Option<Head<'a>>, Refusal> {
        let end = self.scan.push(piece)?;
        let piece = end.and_then(|end| piece.get(..end)).unwrap_or(piece);
        let consumed_bytes = piece.len();
        if end.is_some() && self.bytes.is_empty() {
            return Ok(Some(Head { bytes: piece, consumed_bytes }));
        }
        let len = self.bytes.len() + consumed_bytes;
        assert!(len <= UPGRADE_HEAD_BYTES_MAX);
        if len > self.bytes.capacity() {
            let capacity = len.next_power_of_two().clamp(HEAD_BYTES_MIN, UPGRADE_HEAD_BYTES_MAX);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(piece);
        Ok(end.map(|_| Head { bytes: &self.bytes, consumed_bytes }))
    }

    /// Bytes held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Owner of a vacant slot.
const NOBODY: u32 = u32::MAX;
/// Size class an inflated message begins in.
const INFLATED_CLASS: usize = 2;
/// First allocation of a [`HeadCarry`]: most heads of browsers fit.
const HEAD_BYTES_MIN: usize = 1024;

const _: () = assert!(CONTROL_PAYLOAD_BYTES_MAX <= STASH_CLASSES_BYTES[0]);
const _: () = assert!(UPGRADE_HEAD_BYTES_MAX.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(stashes: &mut Stashes, index: StashIndex, bytes: usize, end_bytes: usize) -> Result<(), StashesFull> {
        stashes.reserve(index, Part::Message, bytes, end_bytes)?;
        let part = stashes.stash(index).part(Part::Message);
        part.resize(part.len() + bytes, 7);
        Ok(())
    }

    /// A message of 16 MiB that comes in reads of 1,000 bytes grows through the classes and then by doubling, and ends in memory of
    /// exactly its size.
    #[test]
    fn a_stash_grows_through_the_classes_and_then_by_doubling() {
        let end_bytes = 16 * 1024 * 1024;
        let mut stashes = Stashes::new(usize::MAX >> 1);
        let index = stashes.open(9);
        let mut sizes = vec![0];
        let mut left = end_bytes;
        while left > 0 {
            let more = left.min(1000);
            fill(&mut stashes, index, more, end_bytes).expect("room");
            left -= more;
            if *sizes.last().expect("not empty") != stashes.used_bytes() {
                sizes.push(stashes.used_bytes());
            }
        }
        assert_eq!(sizes[1..5], [1024, 4096, 16_384, 65_536]);
        assert_eq!(*sizes.last().expect("not empty"), end_bytes);
        assert!(sizes.len() <= 14, "{sizes:?}");
    }

    /// Announcing a large message takes no memory; only what arrives does.
    #[test]
    fn memory_follows_what_arrived_not_what_was_announced() {
        let mut stashes = Stashes::new(1 << 20);
        let index = stashes.open(1);
        assert_eq!(stashes.used_bytes(), 0);
        fill(&mut stashes, index, 100, 1 << 19).expect("room");
        assert_eq!(stashes.used_bytes(), 256);
    }

    /// At the limit a stash is refused and unchanged, the largest owner is named, and room comes back with its release.
    #[test]
    fn full_stashes_refuse_and_name_the_largest() {
        let mut stashes = Stashes::new(6000);
        let (small, large) = (stashes.open(11), stashes.open(22));
        assert_eq!(stashes.largest_owner(), None);
        fill(&mut stashes, large, 3000, 50_000).expect("room");
        fill(&mut stashes, small, 900, 50_000).expect("room");
        assert_eq!(fill(&mut stashes, small, 900, 50_000), Err(StashesFull));
        assert_eq!(stashes.stash(small).part(Part::Message).len(), 900);
        assert_eq!(stashes.largest_owner(), Some(22));
        stashes.close(large);
        fill(&mut stashes, small, 900, 50_000).expect("room again");
        assert_eq!(stashes.used_count(), 1);
        assert!(stashes.used_bytes() + stashes.free_bytes() <= 6000);
    }

    /// A thousand messages one after the other live in the same memory, and trimming gives it back step by step.
    #[test]
    fn memory_is_used_again_and_trimmed() {
        let mut stashes = Stashes::new(1 << 20);
        for round in 0..1000 {
            let index = stashes.open(round);
            assert_eq!(index, StashIndex(1));
            fill(&mut stashes, index, 200, 200).expect("room");
            stashes.close(index);
            assert_eq!((stashes.used_bytes(), stashes.free_bytes()), (0, 256));
        }
        stashes.trim();
        assert_eq!(stashes.free_bytes(), 0);
    }

    /// Ten thousand unfinished messages leave at most the kept memory behind.
    #[test]
    fn kept_memory_is_bounded() {
        let mut stashes = Stashes::new(64 << 20);
        let indices: Vec<StashIndex> = (0..10_000).map(|owner| stashes.open(owner)).collect();
        for &index in &indices {
            fill(&mut stashes, index, 1000, 2000).expect("room");
        }
        assert_eq!(stashes.used_bytes(), 10_240_000);
        for index in indices {
            stashes.close(index);
        }
        assert_eq!(stashes.used_bytes(), 0);
        assert_eq!(stashes.free_bytes(), STASH_FREE_BYTES.most);
        let mut stashes = Stashes::share(128, 1000);
        for owner in 0..10_000 {
            let index = stashes.open(owner);
            let _ = fill(&mut stashes, index, 1000, 2000);
        }
        assert_eq!(stashes.used_bytes(), STASH_BYTES.node / 128);
        let most = 16 * 1024 * 1024;
        assert_eq!(Stashes::share(128, most).bytes_max(), 2 * most, "two of the longest fit");
    }

    /// Any cut of a head gives the same head, and says where the WebSocket stream begins.
    #[test]
    fn a_head_in_pieces_is_the_head() {
        let head = b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n";
        let mut stream = head.to_vec();
        stream.extend(b"\x81\x80mask");
        for cut in 0..head.len() {
            let mut carry = HeadCarry::default();
            assert_eq!(carry.push(&stream[..cut]), Ok(None));
            let found = carry.push(&stream[cut..]).expect("good").expect("whole");
            assert_eq!(found.bytes, head);
            assert_eq!(found.consumed_bytes, head.len() - cut);
        }
        let mut carry = HeadCarry::default();
        assert!(stream[..head.len() - 1].iter().all(|byte| carry.push(&[*byte]) == Ok(None)));
        assert_eq!(carry.push(b"\n").expect("good").expect("whole").bytes, head);
        assert!(carry.held_bytes() <= 1024);
    }

    /// One byte more than a head may have is refused whatever the cut, and nothing above the limit is ever held.
    #[test]
    fn an_oversized_head_is_refused_at_the_limit() {
        let mut line = b"GET /ws HTTP/1.1\r\nX: ".to_vec();
        line.resize(UPGRADE_HEAD_BYTES_MAX, b'x');
        let mut carry = HeadCarry::default();
        for piece in line.chunks(1000) {
            assert_eq!(carry.push(piece), Ok(None));
        }
        assert_eq!(carry.held_bytes(), UPGRADE_HEAD_BYTES_MAX);
        assert_eq!(carry.push(b"x"), Err(Refusal::HeadTooLarge));
        line.push(b'x');
        assert_eq!(HeadCarry::default().push(&line), Err(Refusal::HeadTooLarge));
    }
}
