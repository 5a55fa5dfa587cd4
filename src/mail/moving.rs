//! A session on its way from one core to another.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Mark, Nack};
use crate::ids::SessionRef;
use crate::wire::envelope::Encoding;
use crate::wire::message::Text;

/// Reactor to reactor.
#[derive(Debug)]
pub enum Peer {
    /// Everything the evicted session had to say is written; the new one may send its WELCOME (resumed = 0).
    Gone {
        /// The new session.
        to: SessionRef,
        /// Positions the old one had not handed to the store yet.
        cursors: Vec<(Text, u64)>,
    },
    /// The same, and the new session goes on where the old one was (resumed = 1).
    Moved(Box<Moved>),
}

/// A session on its way to another core. At most a window of frames, copied.
#[derive(Debug)]
pub struct Moved {
    /// The new session.
    pub to: SessionRef,
    /// As in [`Peer::Gone`].
    pub cursors: Vec<(Text, u64)>,
    /// Highest `pos` given out.
    pub pos: u64,
    /// How the frames are encoded.
    pub encoding: Encoding,
    /// Tails of the unacknowledged deliveries, the last one of `pos`.
    pub frames: Vec<Vec<u8>>,
    /// Marked conversations.
    pub marks: Vec<Mark>,
    /// Whether a RESYNC must be told.
    pub resync: bool,
    /// Messages to be delivered again.
    pub nacks: Vec<Nack>,
    /// Held as long as the frames are on their way: the sender counts them until it is dropped.
    pub toll: Toll,
}

/// What a core has given away and the receiver has not taken yet, in bytes.
#[derive(Debug, Default)]
pub struct Carriage {
    bytes: u64,
    under_way: VecDeque<(Arc<()>, u64)>,
}

/// See [`Moved::toll`].
#[derive(Debug)]
pub struct Toll(#[expect(dead_code, reason = "what counts is that it is there")] Arc<()>);

impl Carriage {
    /// A toll for so many bytes, if no more than `bytes_max` are under way with them.
    pub fn toll(&mut self, bytes: u64, bytes_max: u64) -> Option<Toll> {
        // What was taken in the order in which it left is forgotten at once, the rest only for want of room.
        while let Some((_, bytes)) = self.under_way.pop_front_if(|(toll, _)| Arc::strong_count(toll) == 1) {
            self.bytes -= bytes;
        }
        if self.bytes + bytes > bytes_max {
            let left = &mut self.bytes;
            self.under_way.retain(|(toll, bytes)| {
                let is_taken = Arc::strong_count(toll) == 1;
                *left -= if is_taken { *bytes } else { 0 };
                !is_taken
            });
            if self.bytes + bytes > bytes_max {
                return None;
            }
        }
        let toll = Arc::new(());
        self.under_way.push_back((toll.clone(), bytes));
        self.bytes += bytes;
        Some(Toll(toll))
    }
}
