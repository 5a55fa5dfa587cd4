//! What the kernel is sending: memory that nobody else can write or free until the completion.                          [libc]
//!
//! ```text
//!  offered    lent ── shared, long ── lent ── lent ── shared, long
//!               │          │            └──┬───┘          │
//!  block      [ a ]        │             [ b ]            │           copies, one after the other
//!               │          │               │              │
//!  vectors      0          1               2              3           what the kernel reads; blocks 1 and 3 are held
//! ```
//!
//! Without a long shared piece everything is copied, and the block alone is sent: for short pieces that is cheaper than to let the kernel
//! walk through many.

use std::ptr;

use crate::io::driver::{Block, Piece};
use crate::limits::{RING_SEND_BYTES_MAX, WRITE_SEGMENTS_MAX};

/// The sends in flight of one ring.
#[derive(Debug, Default)]
pub struct Outgoing {
    sends: Vec<Send>,
    vacant: Vec<u32>,
    /// Blocks without a send, per class; the last one used is the first used again, while it is in the cache.
    spare: [Vec<Box<[u8]>>; CLASSES_BYTES.len()],
    /// As `spare`, of vectors.
    #[expect(clippy::vec_box, reason = "a send in flight takes it as it is, and it must not move")]
    spare_vectors: Vec<Box<Vectors>>,
    /// Bytes of blocks in flight. What is shared is bounded by the queues it comes from.
    bytes: usize,
    bytes_max: usize,
    /// Bytes kept of each class.
    spare_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Send {
    block: Box<[u8]>,
    /// Of a send that is more than its block.
    vectors: Option<Box<Vectors>>,
    /// Bytes sent, and bytes to send.
    offset: u32,
    len: u32,
}

/// What [`Outgoing`] may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// In flight.
    pub bytes_max: usize,
    /// Of each class, for the next send.
    pub spare_bytes_max: usize,
}

/// What is left of a send, as the kernel wants it.
#[derive(Debug)]
pub enum Rest<'a> {
    /// One stretch.
    Bytes(&'a [u8]),
    /// Several. The message and what it names stay where they are, and unchanged, until [`Outgoing::release`].
    Message(&'a libc::msghdr),
}

impl Outgoing {
    /// At most so many bytes of blocks in flight, and so many of each class kept for the next send.
    pub fn new(Bounds { bytes_max, spare_bytes_max }: Bounds) -> Self {
        Self { bytes_max, spare_bytes_max, ..Self::default() }
    }

    /// Takes the front of what is offered: copies of at most [`RING_SEND_BYTES_MAX`] bytes, and counts of long shared pieces. `copied`
    /// is what [`copied_bytes`] says of it. `None` when too much is in flight.
    pub fn take(&mut self, pieces: &[Piece<'_>], copied: usize) -> Option<u32> {
        if !self.has_room(copied) {
            return None;
        }
        let copied = copied.min(RING_SEND_BYTES_MAX);
        let class = class_for(copied);
        let mut block = self.spare[class].pop().unwrap_or_else(|| vec![0; CLASSES_BYTES[class]].into_boxed_slice());
        self.bytes += block.len();
        let mut vectors = None;
        let len = if pieces.iter().any(|piece| held(piece).is_some()) {
            vectors.insert(self.spare_vectors.pop().unwrap_or_default()).fill(pieces, &mut block[..copied])
        } else {
            join(pieces, &mut block[..copied]);
            copied
        };
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.sends.push(Send::default());
            u32::try_from(self.sends.len() - 1).expect("one send for each slot")
        });
        self.sends[id as usize] = Send { block, vectors, offset: 0, len: u32::try_from(len).expect("a send is short") };
        Some(id)
    }

    /// What the kernel has yet to send. The addresses stay good, wherever `self` moves, until [`Outgoing::release`].
    pub fn rest(&mut self, id: u32) -> Rest<'_> {
        let send = &mut self.sends[id as usize];
        match &mut send.vectors {
            Some(vectors) => Rest::Message(vectors.rest()),
            None => Rest::Bytes(&send.block[send.offset as usize..send.len as usize]),
        }
    }

    /// Whether everything is sent.
    pub fn is_sent(&self, id: u32) -> bool {
        let send = &self.sends[id as usize];
        send.offset == send.len
    }

    /// So many more bytes are sent. Returns all that are.
    pub fn advance(&mut self, id: u32, count: u32) -> usize {
        let send = &mut self.sends[id as usize];
        send.offset += count;
        assert!(send.offset <= send.len);
        if let Some(vectors) = &mut send.vectors {
            vectors.skip(count as usize);
        }
        send.offset as usize
    }

    /// The completion was seen.
    pub fn release(&mut self, id: u32) {
        let Send { block, vectors, .. } = std::mem::take(&mut self.sends[id as usize]);
        assert!(!block.is_empty(), "a send completes once");
        self.vacant.push(id);
        self.bytes -= block.len();
        let class = CLASSES_BYTES.iter().position(|&bytes| bytes == block.len()).expect("every block is of a class");
        if (self.spare[class].len() + 1) * block.len() <= self.spare_bytes_max {
            self.spare[class].push(block);
        }
        if let Some(mut vectors) = vectors {
            vectors.clear();
            if (self.spare_vectors.len() + 1) * size_of::<Vectors>() <= self.spare_bytes_max {
                self.spare_vectors.push(vectors);
            }
        }
    }

    /// Bytes of blocks in flight.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no send is in flight.
    pub fn is_empty(&self) -> bool {
        self.vacant.len() == self.sends.len()
    }

    /// Whether a send finds room of which so many bytes are to be copied, or as many of them as one copies.
    pub fn has_room(&self, copied: usize) -> bool {
        self.bytes + CLASSES_BYTES[class_for(copied.min(RING_SEND_BYTES_MAX))] <= self.bytes_max
    }
}

/// The list of one send, and who keeps its pieces alive. Always in a box: the kernel is told addresses of both fields.
#[derive(Debug)]
struct Vectors {
    message: libc::msghdr,
    list: [libc::iovec; WRITE_SEGMENTS_MAX],
    /// Those sent, and all.
    sent_count: usize,
    count: usize,
    held: Vec<Block>,
}

impl Vectors {
    /// Lays out what fits of the pieces, copies in `block`. Returns the bytes laid out; a longer offer is made again.
    fn fill(&mut self, pieces: &[Piece<'_>], block: &mut [u8]) -> usize {
        let (mut filled, mut len, mut follows) = (0, 0, false);
        for piece in pieces {
            let bytes = piece.bytes();
            if bytes.is_empty() {
                continue;
            }
            if let Some(block) = held(piece) {
                if self.count == self.list.len() {
                    break;
                }
                self.push(bytes);
                self.held.push(Block::clone(block));
                (len, follows) = (len + bytes.len(), false);
                continue;
            }
            let count = bytes.len().min(block.len() - filled);
            if count == 0 || self.count == self.list.len() && !follows {
                break;
            }
            let copy = &mut block[filled..filled + count];
            copy.copy_from_slice(&bytes[..count]);
            if follows {
                self.list[self.count - 1].iov_len += count;
            } else {
                self.push(copy);
            }
            (filled, len, follows) = (filled + count, len + count, true);
            if count < bytes.len() {
                break;
            }
        }
        len
    }

    fn push(&mut self, bytes: &[u8]) {
        self.list[self.count] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        self.count += 1;
    }

    fn rest(&mut self) -> &libc::msghdr {
        let rest = &mut self.list[self.sent_count..self.count];
        self.message.msg_iovlen = rest.len();
        self.message.msg_iov = rest.as_mut_ptr();
        &self.message
    }

    /// The next send begins `count` bytes further, perhaps in the middle of a piece.
    fn skip(&mut self, mut count: usize) {
        while count > 0 {
            let first = &mut self.list[self.sent_count];
            let step = count.min(first.iov_len);
            first.iov_base = first.iov_base.wrapping_byte_add(step);
            first.iov_len -= step;
            self.sent_count += usize::from(first.iov_len == 0);
            count -= step;
        }
    }

    fn clear(&mut self) {
        (self.sent_count, self.count) = (0, 0);
        self.held.clear();
    }
}

impl Default for Vectors {
    fn default() -> Self {
        // SAFETY: all-zero is a valid `msghdr`: no name, no control data, no vectors.
        let message = unsafe { std::mem::zeroed() };
        let nothing = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        Self { message, list: [nothing; WRITE_SEGMENTS_MAX], sent_count: 0, count: 0, held: Vec::new() }
    }
}

/// Bytes of the pieces that [`Outgoing::take`] copies.
pub fn copied_bytes(pieces: &[Piece<'_>]) -> usize {
    pieces.iter().filter(|piece| held(piece).is_none()).map(|piece| piece.bytes().len()).sum()
}

/// The block of a piece that is sent from where it stands; others are copied.
fn held<'a>(piece: &Piece<'a>) -> Option<&'a Block> {
    match *piece {
        Piece::Shared { block, start, end } if end - start > COPIED_PIECE_BYTES_MAX => Some(block),
        _ => None,
    }
}

/// The smallest class of blocks for so many copied bytes.
fn class_for(copied: usize) -> usize {
    CLASSES_BYTES.iter().position(|&bytes| bytes >= copied).expect("the last class holds any send")
}

/// Copies the pieces one after the other, as far as they fit.
fn join(pieces: &[Piece<'_>], mut block: &mut [u8]) {
    for piece in pieces {
        let bytes = piece.bytes();
        let (head, rest) = block.split_at_mut(bytes.len().min(block.len()));
        head.copy_from_slice(&bytes[..head.len()]);
        block = rest;
    }
}

/// Shared pieces up to this length are copied.
const COPIED_PIECE_BYTES_MAX: usize = 1024;
/// Sizes of blocks, ascending.
const CLASSES_BYTES: [usize; 3] = [256, 1024, RING_SEND_BYTES_MAX];

#[cfg(test)]
mod tests {
    use super::*;

    fn take(outgoing: &mut Outgoing, pieces: &[Piece<'_>]) -> Option<u32> {
        outgoing.take(pieces, copied_bytes(pieces))
    }

    fn bounds(bytes_max: usize) -> Bounds {
        Bounds { bytes_max, spare_bytes_max: RING_SEND_BYTES_MAX }
    }

    /// What the kernel would read now.
    fn rest(outgoing: &mut Outgoing, id: u32) -> Vec<u8> {
        let message = match outgoing.rest(id) {
            Rest::Bytes(bytes) => return bytes.to_vec(),
            Rest::Message(message) => *message,
        };
        // SAFETY: the list and what it names live until the release, which is the caller's.
        let list = unsafe { std::slice::from_raw_parts(message.msg_iov, message.msg_iovlen) };
        // SAFETY: as above.
        let read = |one: &libc::iovec| unsafe { std::slice::from_raw_parts(one.iov_base.cast::<u8>(), one.iov_len) }.to_vec();
        list.iter().flat_map(read).collect()
    }

    /// Short pieces are joined in order, cut at the limit, sent in parts; blocks are used again, and their sum is bounded.
    #[test]
    fn a_send_of_short_pieces_is_one_block() {
        let mut outgoing = Outgoing::new(bounds(2 * RING_SEND_BYTES_MAX));
        let id = take(&mut outgoing, &[Piece::Lent(b"ab"), Piece::Lent(b""), Piece::Lent(b"cde")]).unwrap();
        assert_eq!(rest(&mut outgoing, id), b"abcde");
        assert_eq!(outgoing.advance(id, 2), 2);
        assert_eq!(rest(&mut outgoing, id), b"cde");
        let long = vec![7; RING_SEND_BYTES_MAX + 1];
        let other = take(&mut outgoing, &[Piece::Lent(b"x"), Piece::Lent(&long)]).unwrap();
        assert_eq!(rest(&mut outgoing, other).len(), RING_SEND_BYTES_MAX);
        // The last piece of room is for a short one.
        assert!(outgoing.has_room(1) && !outgoing.has_room(long.len()));
        assert!(take(&mut outgoing, &[Piece::Lent(&long)]).is_none());
        outgoing.release(other);
        outgoing.release(id);
        assert!(outgoing.is_empty() && outgoing.has_room(long.len()));
        assert_eq!(take(&mut outgoing, &[Piece::Lent(b"y")]), Some(id));
        assert_eq!(rest(&mut outgoing, id), b"y");
    }

    /// A long shared piece is not copied but held until the release; wherever the kernel stops, the next send begins there.
    #[test]
    fn a_long_shared_piece_is_held_where_it_stands() {
        let (long, short) = (Block::new((0..3000_u32).map(|at| at.to_le_bytes()[0]).collect()), Block::new(vec![9; 10]));
        let mut outgoing = Outgoing::new(bounds(RING_SEND_BYTES_MAX));
        let shared = |block, end| Piece::Shared { block, start: 1, end };
        let offered = [Piece::Lent(b"head"), shared(&short, 10), Piece::Lent(b""), shared(&long, 3000), Piece::Lent(b"tail")];
        let all: Vec<u8> = offered.iter().flat_map(|piece| piece.bytes().to_vec()).collect();
        for step in [1, 3, 700, 3001] {
            let id = take(&mut outgoing, &offered).unwrap();
            assert_eq!((Block::strong_count(&long), Block::strong_count(&short)), (2, 1));
            let mut at = 0;
            while !outgoing.is_sent(id) {
                assert_eq!(rest(&mut outgoing, id), all[at..]);
                let count = step.min(all.len() - at);
                at += count;
                assert_eq!(outgoing.advance(id, u32::try_from(count).unwrap()), at);
            }
            assert_eq!(Block::strong_count(&long), 2);
            outgoing.release(id);
            assert_eq!(Block::strong_count(&long), 1);
        }
        // More than a list holds: the rest is offered again.
        let id = take(&mut outgoing, &[shared(&long, 3000); WRITE_SEGMENTS_MAX + 1]).unwrap();
        assert_eq!(rest(&mut outgoing, id).len(), 2999 * WRITE_SEGMENTS_MAX);
    }
}
