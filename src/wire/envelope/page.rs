//! PAGE and SYNC_PAGE, grown item by item while they fit a frame.

use super::{Encoding, Entry, Message, binary, json_write};

/// What a PAGE says before its messages.
#[derive(Clone, Copy, Debug)]
pub struct PageHead<'a> {
    /// `rid` of the FETCH.
    pub rid: u32,
    /// Life of the conversation's numbering.
    pub epoch: u32,
    /// Lowest seq that is kept.
    pub floor: u64,
    /// Highest seq.
    pub head: u64,
    /// Conversation.
    pub conv: &'a str,
}

/// The order in which messages are pushed. On the wire they always ascend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageOrder {
    /// Lowest seq first.
    Ascending,
    /// Highest seq first, for a FETCH with NEWEST: the page then keeps the newest that fit.
    Descending,
}

/// A PAGE in the making. It takes the first message whatever its size: an empty page would never end.
#[derive(Debug)]
pub struct PageWriter {
    encoding: Encoding,
    max_frame: usize,
    out: Vec<u8>,
    /// Where the first message begins.
    first: usize,
    count: u16,
    /// Where each message ends, kept only when they must be turned round.
    ends: Option<Vec<usize>>,
}

impl PageWriter {
    /// An empty page that will have at most `max_frame` bytes, unless its one message is longer.
    #[must_use]
    pub fn new(encoding: Encoding, max_frame: usize, order: PageOrder, head: &PageHead<'_>) -> Self {
        let mut out = Vec::new();
        match encoding {
            Encoding::Binary => binary::begin_page(head, &mut out),
            Encoding::Json => json_write::begin_page(head, &mut out),
        }
        let ends = (order == PageOrder::Descending).then(Vec::new);
        Self { encoding, max_frame, first: out.len(), out, count: 0, ends }
    }

    /// Adds a message. `false`: it does not fit, the page is as before, and MORE belongs into its flags.
    pub fn push(&mut self, message: &Message<'_>) -> bool {
        let Some(count) = self.count.checked_add(1) else { return false };
        let before = self.out.len();
        let spare = match self.encoding {
            Encoding::Binary => {
                binary::message(message, &mut self.out);
                0
            }
            Encoding::Json => {
                if self.count > 0 {
                    self.out.push(b',');
                }
                let alone = self.max_frame.saturating_sub(self.first).saturating_sub(json_write::PAGE_END_BYTES_MAX);
                json_write::message(message, alone, &mut self.out);
                json_write::PAGE_END_BYTES_MAX
            }
        };
        if self.count > 0 && self.out.len().saturating_add(spare) > self.max_frame {
            self.out.truncate(before);
            return false;
        }
        self.count = count;
        if let Some(ends) = &mut self.ends {
            ends.push(self.out.len());
        }
        true
    }

    /// Messages so far.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// The finished frame. `flags`: [`super::page_flags::MORE`], [`super::page_flags::BELOW_FLOOR`].
    #[must_use]
    pub fn finish(mut self, flags: u8) -> Vec<u8> {
        if let Some(ends) = self.ends.take() {
            self.out = reverse(&self.out, self.first, &ends, self.encoding);
        }
        match self.encoding {
            Encoding::Binary => binary::end_page(&mut self.out, self.first, self.count, flags),
            Encoding::Json => json_write::end_page(&mut self.out, flags),
        }
        self.out
    }
}

/// A SYNC_PAGE in the making. It takes the first entry whatever its size.
#[derive(Debug)]
pub struct SyncPageWriter {
    encoding: Encoding,
    max_frame: usize,
    out: Vec<u8>,
    count: u16,
}

impl SyncPageWriter {
    /// An empty page that will have at most `max_frame` bytes. Room is kept for the longest cursor.
    #[must_use]
    pub fn new(encoding: Encoding, max_frame: usize, rid: u32) -> Self {
        let mut out = Vec::new();
        match encoding {
            Encoding::Binary => binary::begin_sync_page(rid, &mut out),
            Encoding::Json => json_write::begin_sync_page(rid, &mut out),
        }
        Self { encoding, max_frame, out, count: 0 }
    }

    /// Adds an entry. `false`: it does not fit, the page is as before, and MORE belongs into its flags.
    pub fn push(&mut self, entry: &Entry<'_>) -> bool {
        let Some(count) = self.count.checked_add(1) else { return false };
        let before = self.out.len();
        let spare = match self.encoding {
            Encoding::Binary => {
                binary::entry(entry, &mut self.out);
                usize::from(u8::MAX)
            }
            Encoding::Json => {
                if self.count > 0 {
                    self.out.push(b',');
                }
                json_write::entry(entry, &mut self.out);
                json_write::SYNC_PAGE_END_BYTES_MAX
            }
        };
        if self.count > 0 && self.out.len().saturating_add(spare) > self.max_frame {
            self.out.truncate(before);
            return false;
        }
        self.count = count;
        true
    }

    /// Entries so far.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// The finished frame. `flags`: [`super::page_flags::MORE`]; `cursor`: where the next page goes on, at most 255 bytes.
    #[must_use]
    pub fn finish(mut self, flags: u8, since: u64, cursor: &str) -> Vec<u8> {
        match self.encoding {
            Encoding::Binary => binary::end_sync_page(&mut self.out, self.count, flags, since, cursor),
            Encoding::Json => json_write::end_sync_page(&mut self.out, flags, since, cursor),
        }
        self.out
    }
}

/// The page with its messages in the opposite order. In JSON a comma stands before every message but the first.
#[expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "the ends of messages this program wrote")]
fn reverse(page: &[u8], first: usize, ends: &[usize], encoding: Encoding) -> Vec<u8> {
    let mut out = Vec::with_capacity(page.len());
    out.extend_from_slice(&page[..first]);
    for index in (0..ends.len()).rev() {
        let start = if index == 0 { first } else { ends[index - 1] };
        let mut message = &page[start..ends[index]];
        if encoding == Encoding::Json {
            if index > 0 {
                message = &message[1..];
            }
            if index + 1 < ends.len() {
                out.push(b',');
            }
        }
        out.extend_from_slice(message);
    }
    assert!(out.len() == page.len());
    out
}
