//! Bodies and names that outlive the lent receive buffer.                                              [bytes]
//!
//! This is the one door of the `bytes` crate. A body is copied out of the receive buffer once, into an arena chunk, and shared by
//! count until each core has built its frame.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;

use bytes::{Bytes, BytesMut};

/// Immutable shared bytes. Cloning costs one atomic increment; the whole arena chunk lives as long as one slice of it.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Body(Bytes);

impl Body {
    /// An empty body; does not allocate.
    #[must_use]
    pub const fn new() -> Self {
        Self(Bytes::new())
    }

    /// A body of its own allocation. For paths that are not hot; a reactor uses [`Arena`].
    #[must_use]
    pub fn copy_from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }

    /// The part `range` of this body, sharing its memory.
    ///
    /// # Panics
    /// If the range is not inside the body.
    #[must_use]
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        Self(self.0.slice(range))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Bytes::from(bytes))
    }
}

impl Deref for Body {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.0.len())
    }
}

/// Immutable shared UTF-8: the name of a user, a device or a conversation.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Text(Bytes);

impl Text {
    /// A name of its own allocation.
    #[must_use]
    pub fn copy_from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// The text itself.
    ///
    /// # Panics
    /// Never: every constructor takes a `str`.
    #[must_use]
    #[expect(clippy::expect_used, reason = "every constructor takes a str, and nothing changes it")]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("built from a str")
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::copy_from(text)
    }
}

impl Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// Where a core copies what must outlive the lent buffer: one chunk at a time, split off slice by slice.
///
/// A chunk is taken back without allocating when every slice of it is gone. When one is full its last slices are still on their way,
/// so a few full ones are remembered, and the next is the first of them that nobody holds any more.
#[derive(Debug)]
pub struct Arena {
    chunk: BytesMut,
    /// Full chunks, oldest first, at most [`FULL_CHUNKS_MAX`].
    full: VecDeque<BytesMut>,
    chunk_bytes: usize,
    /// Chunks asked of the allocator since the arena was made.
    pub chunks_count: u64,
}

impl Arena {
    /// An arena of `chunk_bytes` per chunk; nothing is allocated before the first copy.
    #[must_use]
    pub fn new(chunk_bytes: usize) -> Self {
        Self { chunk: BytesMut::new(), full: VecDeque::new(), chunk_bytes, chunks_count: 0 }
    }

    /// Copies `bytes` once. Larger than a chunk: an allocation of its own.
    pub fn body(&mut self, bytes: &[u8]) -> Body {
        Body(self.copy(bytes))
    }

    /// Copies `text` once.
    pub fn text(&mut self, text: &str) -> Text {
        Text(self.copy(text.as_bytes()))
    }

    fn copy(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.len() > self.chunk_bytes {
            self.chunks_count = self.chunks_count.saturating_add(1);
            return Bytes::copy_from_slice(bytes);
        }
        if self.chunk.capacity().saturating_sub(self.chunk.len()) < bytes.len() && !self.chunk.try_reclaim(self.chunk_bytes) {
            self.change_chunk();
        }
        self.chunk.extend_from_slice(bytes);
        self.chunk.split().freeze()
    }

    /// Gives full chunks that nobody holds back to the allocator.
    pub fn trim(&mut self) {
        let Self { full, chunk_bytes, .. } = self;
        full.retain_mut(|chunk| !chunk.try_reclaim(*chunk_bytes));
    }

    fn change_chunk(&mut self) {
        let full = std::mem::take(&mut self.chunk);
        if self.chunks_count > 0 {
            self.full.push_back(full);
        }
        for _ in 0..self.full.len() {
            let Some(mut oldest) = self.full.pop_front() else { break };
            if oldest.try_reclaim(self.chunk_bytes) {
                self.chunk = oldest;
                return;
            }
            self.full.push_back(oldest);
        }
        // The oldest is held for long: its last slice frees it.
        if self.full.len() > FULL_CHUNKS_MAX {
            self.full.pop_front();
        }
        self.chunk = BytesMut::with_capacity(self.chunk_bytes);
        self.chunks_count = self.chunks_count.saturating_add(1);
    }
}

/// Full chunks that one arena remembers. More: those that are held longest are left to their last holder.
const FULL_CHUNKS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies until several chunks have been used, drops everything, and sees the last chunk taken back.
    #[test]
    fn arena_takes_back_a_chunk_that_nobody_holds() {
        let mut arena = Arena::new(1024);
        for round in 0..100 {
            let body = arena.body(&[round; 100]);
            assert_eq!(&*body, &[round; 100]);
        }
        assert_eq!(arena.chunks_count, 1);
        // Whatever is copied is held until four more have been: two chunks serve for ever.
        let mut late = VecDeque::new();
        for round in 0..1000 {
            late.push_back(arena.body(&[u8::try_from(round % 256).unwrap(); 100]));
            assert!(late.len() < 5 || late.pop_front().is_some());
        }
        assert_eq!((arena.chunks_count, arena.full.len()), (2, 1));
        drop(late);
        arena.trim();
        assert!(arena.full.is_empty());
        let held: Vec<Body> = (0..100).map(|round| arena.body(&[round; 100])).collect();
        assert!(arena.chunks_count >= 10);
        assert!(held.iter().enumerate().all(|(round, body)| body.iter().all(|&byte| usize::from(byte) == round)));
    }

    /// A copy larger than a chunk stands alone.
    #[test]
    fn arena_copies_what_is_larger_than_a_chunk() {
        let mut arena = Arena::new(16);
        assert_eq!(&*arena.body(&[7; 40]), &[7; 40]);
        assert_eq!(&*arena.text("d:al:bo"), "d:al:bo");
    }
}
