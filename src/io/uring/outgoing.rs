//! What the kernel is sending: copies that nobody else can touch or free until their completion.

use std::io::IoSlice;

use crate::limits::RING_SEND_BYTES_MAX;

/// The sends in flight of one ring.
#[derive(Debug, Default)]
pub struct Outgoing {
    sends: Vec<Send>,
    vacant: Vec<u32>,
    /// Blocks without a send, per class; the last one used is the first used again, while it is in the cache.
    spare: [Vec<Box<[u8]>>; CLASSES_BYTES.len()],
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Send {
    block: Box<[u8]>,
    /// Bytes sent, and bytes to send.
    offset: u32,
    len: u32,
}

impl Outgoing {
    /// At most so many bytes of blocks in flight.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    /// Copies the front of what is offered, at most [`RING_SEND_BYTES_MAX`] bytes; `None` when too much is in flight.
    pub fn copy(&mut self, vectors: &[IoSlice<'_>]) -> Option<u32> {
        let len = vectors.iter().map(|vector| vector.len()).sum::<usize>().min(RING_SEND_BYTES_MAX);
        let class = CLASSES_BYTES.iter().position(|&bytes| bytes >= len).expect("the last class holds any send");
        if self.bytes + CLASSES_BYTES[class] > self.bytes_max {
            return None;
        }
        let mut block = self.spare[class].pop().unwrap_or_else(|| vec![0; CLASSES_BYTES[class]].into_boxed_slice());
        self.bytes += block.len();
        let mut filled = 0;
        for vector in vectors {
            let count = vector.len().min(len - filled);
            block[filled..filled + count].copy_from_slice(&vector[..count]);
            filled += count;
        }
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.sends.push(Send::default());
            u32::try_from(self.sends.len() - 1).expect("one send for each slot")
        });
        self.sends[id as usize] = Send { block, offset: 0, len: u32::try_from(len).expect("a send is short") };
        Some(id)
    }

    /// What the kernel has yet to send. The address stays good, wherever `self` moves, until [`Outgoing::release`].
    pub fn rest(&self, id: u32) -> &[u8] {
        let send = &self.sends[id as usize];
        &send.block[send.offset as usize..send.len as usize]
    }

    /// So many more bytes are sent. Returns all that are.
    pub fn advance(&mut self, id: u32, count: u32) -> usize {
        let send = &mut self.sends[id as usize];
        send.offset += count;
        assert!(send.offset <= send.len);
        send.offset as usize
    }

    /// The completion was seen.
    pub fn release(&mut self, id: u32) {
        let Send { block, .. } = std::mem::take(&mut self.sends[id as usize]);
        assert!(!block.is_empty(), "a send completes once");
        self.vacant.push(id);
        self.bytes -= block.len();
        let class = CLASSES_BYTES.iter().position(|&bytes| bytes == block.len()).expect("every block is of a class");
        if (self.spare[class].len() + 1) * block.len() <= SPARE_BYTES_MAX {
            self.spare[class].push(block);
        }
    }

    /// Whether no send is in flight.
    pub fn is_empty(&self) -> bool {
        self.vacant.len() == self.sends.len()
    }

    /// Whether a send of any length finds room.
    pub fn has_room(&self) -> bool {
        self.bytes + RING_SEND_BYTES_MAX <= self.bytes_max
    }
}

/// Sizes of blocks, ascending.
const CLASSES_BYTES: [usize; 5] = [256, 1024, 4096, 16_384, RING_SEND_BYTES_MAX];
/// Bytes kept in each class for the next send.
const SPARE_BYTES_MAX: usize = 256 * 1024;

const _: () = assert!(SPARE_BYTES_MAX >= RING_SEND_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors are joined in order, cut at the limit, sent in parts; blocks are used again, and their sum is bounded.
    #[test]
    fn a_send_is_one_block_until_it_is_released() {
        let mut outgoing = Outgoing::new(2 * RING_SEND_BYTES_MAX);
        let id = outgoing.copy(&[IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")]).unwrap();
        assert_eq!(outgoing.rest(id), b"abcde");
        assert_eq!(outgoing.advance(id, 2), 2);
        assert_eq!(outgoing.rest(id), b"cde");
        let long = vec![7; RING_SEND_BYTES_MAX + 1];
        let other = outgoing.copy(&[IoSlice::new(b"x"), IoSlice::new(&long)]).unwrap();
        assert_eq!(outgoing.rest(other).len(), RING_SEND_BYTES_MAX);
        assert!(!outgoing.has_room());
        assert!(outgoing.copy(&[IoSlice::new(&long)]).is_none());
        outgoing.release(other);
        outgoing.release(id);
        assert!(outgoing.is_empty() && outgoing.has_room());
        assert_eq!(outgoing.copy(&[IoSlice::new(b"y")]), Some(id));
        assert_eq!(outgoing.rest(id), b"y");
    }
}
