//! The receiving half of a WebSocket (RFC 6455 5 and 6.2): lent bytes in, events out.
//!
//! A message is one frame, or a first frame and continuations; the last one has FIN set. Control frames may stand between the
//! fragments, and are themselves never fragmented. After a Close frame nothing follows.
//!
//! ```text
//!  lent:  [ header | payload | header | payload | hea    next call:  der | payl
//!                    └ event           └ event    └ Receive::header       └ stash
//! ```
//!
//! Between two calls a connection keeps 28 bytes: the unfinished header, what the open frame still lacks, its mask, and the index of a
//! stash. A message that lies whole in the lent buffer is unmasked there and handed out there; only what is cut by the end of the
//! buffer, or into fragments, is copied. Whatever the cut, the events are the same.
//!
//! A compressed message is inflated when it is whole, never beyond the limit of a message.
//!
//! Use: make a [`Reader`] of the lent bytes, and call [`Reader::next`] until it returns `Ok(None)`. The reader borrows nothing but
//! the bytes, so the caller may touch all its state between two events.

use std::ops::Range;

use crate::conn::carry::{Part, StashIndex, Stashes, StashesFull};
use crate::conn::deflate::Fault;
use crate::limits::FRAGMENTS_PER_MESSAGE_MAX;
use crate::wire::frame::{self, HEADER_BYTES_MAX, Header, Opcode, Reserved, Sender};
use crate::wire::violation::Violation;
use crate::wire::{mask, utf8};

/// What arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// A whole text message, already judged to be UTF-8.
    Text(&'a [u8]),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// To be answered by a pong with the same payload.
    Ping(&'a [u8]),
    /// The answer to a ping, or a heartbeat nobody asked for.
    Pong(&'a [u8]),
    /// The peer closes, to be answered by a Close with the same code unless we sent ours first. The last event.
    Close {
        /// The code, if the peer gave one; it may be sent back.
        code: Option<u16>,
        /// For logs only.
        reason: &'a str,
    },
}

/// Why receiving cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The peer broke a rule. No event follows, and the stash is released.
    Violation(Violation),
    /// There is no room for the rest of this message. Nothing is lost: after another stash was released, [`Reader::next`] goes on
    /// where it stopped. Else close with 4503.
    StashesFull,
}

/// What a connection may send us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReceiveLimits {
    /// Bytes of one message, its fragments together.
    pub message_bytes_max: u32,
    /// Which messages belong here.
    pub kinds: Kinds,
    /// Whether messages may be compressed.
    pub reserved: Reserved,
}

/// Which messages belong here: the subprotocol decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kinds {
    /// Text only.
    Text,
    /// Binary only.
    Binary,
    /// Both: the echo endpoint.
    Both,
}

/// What a connection keeps between two calls: 28 bytes of its cache line.
#[derive(Default, Debug)]
#[repr(C)]
pub struct Receive {
    /// Bytes of a header cut by the end of a call; in a frame, its first byte.
    header: [u8; HEADER_BYTES_MAX],
    header_len: u8,
    /// Bits, see below.
    state: u8,
    /// Payload bytes the open frame still lacks.
    left: u32,
    /// Fits the next payload byte of the open frame.
    mask: [u8; 4],
    stash: StashIndex,
}

/// Bits of [`Receive::state`]: the header of a frame is complete, its payload is not.
const IN_FRAME: u8 = 1;
/// A message is open, in this frame or between its fragments.
const IN_MESSAGE: u8 = 2;
/// The open message is text.
const IS_TEXT: u8 = 4;
/// The open message is in the stash, as far as it is here.
const MESSAGE_STASHED: u8 = 8;
/// The payload of the open control frame is in the stash, as far as it is here.
const CONTROL_STASHED: u8 = 16;
/// A Close frame came, or a rule was broken: all further bytes are ignored.
const STOPPED: u8 = 32;
/// The open message is compressed.
const IS_COMPRESSED: u8 = 64;

const _: () = assert!(size_of::<Receive>() == 28);

/// A cursor through bytes lent for one call.
#[derive(Debug)]
pub struct Reader<'b> {
    bytes: &'b mut [u8],
    consumed: usize,
    /// The connection, as [`Stashes::largest_owner`] shall name it.
    owner: u32,
    /// A message that was put together in a stash, or inflated; held until the next call.
    assembled: Vec<u8>,
}

/// Where the payload of an event lies.
enum Payload {
    Lent(Range<usize>),
    Assembled,
}

impl<'b> Reader<'b> {
    /// Reads `bytes`, which are overwritten as they are unmasked, for the connection in slot `owner`.
    #[must_use]
    pub fn new(bytes: &'b mut [u8], owner: u32) -> Self {
        Self { bytes, consumed: 0, owner, assembled: Vec::new() }
    }

    /// The next event; `Ok(None)` when the lent bytes are used up.
    ///
    /// # Errors
    /// [`Stop`], see there.
    pub fn next(
        &mut self,
        receive: &mut Receive,
        stashes: &mut Stashes,
        limits: &ReceiveLimits,
    ) -> Result<Option<Event<'_>>, Stop> {
        if self.assembled.capacity() > 0 {
            stashes.recycle(std::mem::take(&mut self.assembled));
        }
        let found = match self.advance(receive, stashes, limits) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(stop) => return Err(receive.stopped_by(stop, stashes)),
        };
        let (opcode, payload) = found;
        let payload = match payload {
            Payload::Lent(range) => self.lent(range),
            Payload::Assembled => self.assembled.as_slice(),
        };
        match opcode {
            Opcode::Text => Ok(Some(Event::Text(payload))),
            Opcode::Continuation | Opcode::Binary => Ok(Some(Event::Binary(payload))),
            Opcode::Ping => Ok(Some(Event::Ping(payload))),
            Opcode::Pong => Ok(Some(Event::Pong(payload))),
            Opcode::Close => match frame::decode_close(payload) {
                Ok((code, reason)) => {
                    receive.stop(stashes);
                    Ok(Some(Event::Close { code, reason }))
                }
                Err(rule) => Err(receive.stopped_by(Stop::Violation(rule), stashes)),
            },
        }
    }

    /// The bytes no event has used yet, as they arrived. Whoever stops early may lend them again later.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        self.lent(self.consumed..self.bytes.len())
    }

    /// A part of the lent bytes.
    #[expect(clippy::indexing_slicing, reason = "`arrived` and `rest` cut no range that ends beyond the lent bytes")]
    fn lent(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// Goes on until a message or control frame is whole, and says what it is and where it lies.
    fn advance(
        &mut self,
        receive: &mut Receive,
        stashes: &mut Stashes,
        limits: &ReceiveLimits,
    ) -> Result<Option<(Opcode, Payload)>, Stop> {
        loop {
            if receive.is(STOPPED) {
                self.consumed = self.bytes.len();
                return Ok(None);
            }
            if !receive.is(IN_FRAME) {
                let Some(header) = self.header(receive, limits.reserved)? else { return Ok(None) };
                receive.begin_frame(&header, stashes, limits, self.owner)?;
            }
            let opcode = receive.opcode();
            let found = if opcode.is_control() {
                self.control_payload(receive, stashes)?.map(|payload| (opcode, payload))
            } else {
                self.message_payload(receive, stashes, limits)?
            };
            if found.is_some() || receive.is(IN_FRAME) {
                return Ok(found);
            }
        }
    }

    /// The next header, from the lent bytes alone or together with what was kept of it.
    #[expect(clippy::indexing_slicing, reason = "fewer bytes are kept than a header has, and no more are taken than it lacks")]
    #[expect(clippy::expect_used, reason = "an unfinished header is shorter than the longest")]
    fn header(&mut self, receive: &mut Receive, reserved: Reserved) -> Result<Option<Header>, Violation> {
        let lent = self.rest();
        let kept = usize::from(receive.header_len);
        if kept == 0
            && let Some(header) = frame::decode_with(lent, Sender::Client, reserved)?
        {
            receive.header[0] = lent[0];
            self.consumed += header.header_bytes;
            return Ok(Some(header));
        }
        let taken = lent.len().min(HEADER_BYTES_MAX - kept);
        receive.header[kept..kept + taken].copy_from_slice(&lent[..taken]);
        match frame::decode_with(&receive.header[..kept + taken], Sender::Client, reserved)? {
            Some(header) => {
                assert!(header.header_bytes > kept);
                self.consumed += header.header_bytes - kept;
                receive.header_len = 0;
                Ok(Some(header))
            }
            None => {
                assert!(taken == self.rest().len());
                self.consumed += taken;
                receive.header_len = u8::try_from(kept + taken).expect("at most 13");
                Ok(None)
            }
        }
    }

    fn control_payload(&mut self, receive: &mut Receive, stashes: &mut Stashes) -> Result<Option<Payload>, Stop> {
        let (arrived, whole) = self.arrived(receive);
        if whole && !receive.is(CONTROL_STASHED) {
            self.unmask(receive, arrived.clone());
            receive.clear(IN_FRAME);
            return Ok(Some(Payload::Lent(arrived)));
        }
        if !arrived.is_empty() {
            let index = receive.stash(stashes, self.owner);
            stashes.reserve(index, Part::Control, arrived.len(), frame::CONTROL_PAYLOAD_BYTES_MAX)?;
            receive.set(CONTROL_STASHED);
            self.unmask(receive, arrived.clone());
            stashes.stash(index).part(Part::Control).extend_from_slice(self.lent(arrived));
        }
        if !whole {
            return Ok(None);
        }
        self.assembled = stashes.take(receive.stash, Part::Control);
        receive.clear(IN_FRAME | CONTROL_STASHED);
        receive.release_idle_stash(stashes);
        Ok(Some(Payload::Assembled))
    }

    fn message_payload(
        &mut self,
        receive: &mut Receive,
        stashes: &mut Stashes,
        limits: &ReceiveLimits,
    ) -> Result<Option<(Opcode, Payload)>, Stop> {
        let (arrived, whole) = self.arrived(receive);
        let fin = receive.is_fin();
        let opcode = if receive.is(IS_TEXT) { Opcode::Text } else { Opcode::Binary };
        if whole && fin && !receive.is(MESSAGE_STASHED) {
            self.unmask(receive, arrived.clone());
            if receive.is(IS_COMPRESSED) {
                receive.clear(IN_FRAME | IN_MESSAGE | IS_TEXT | IS_COMPRESSED);
                self.assembled = inflate(self.lent(arrived), opcode, stashes, limits)?;
                return Ok(Some((opcode, Payload::Assembled)));
            }
            if opcode == Opcode::Text && !utf8::is_valid(self.lent(arrived.clone())) {
                return Err(Violation::TextNotUtf8.into());
            }
            receive.clear(IN_FRAME | IN_MESSAGE | IS_TEXT);
            return Ok(Some((opcode, Payload::Lent(arrived))));
        }
        if !arrived.is_empty() {
            let index = receive.stash(stashes, self.owner);
            // The last frame says how long the message is; before it, any length up to the limit is possible.
            let end_bytes = if fin {
                stashes.stash(index).part(Part::Message).len() + receive.left as usize
            } else {
                limits.message_bytes_max as usize
            };
            stashes.reserve(index, Part::Message, arrived.len(), end_bytes)?;
            receive.set(MESSAGE_STASHED);
            self.unmask(receive, arrived.clone());
            let stash = stashes.stash(index);
            if opcode == Opcode::Text && !receive.is(IS_COMPRESSED) {
                stash.utf8.push(self.lent(arrived.clone())).map_err(|_| Violation::TextNotUtf8)?;
            }
            stash.part(Part::Message).extend_from_slice(self.lent(arrived));
        }
        if !whole {
            return Ok(None);
        }
        receive.clear(IN_FRAME);
        if !fin {
            return Ok(None);
        }
        if opcode == Opcode::Text {
            stashes.stash(receive.stash).utf8.finish().map_err(|_| Violation::TextNotUtf8)?;
        }
        let whole = stashes.take(receive.stash, Part::Message);
        let is_compressed = receive.is(IS_COMPRESSED);
        receive.clear(IN_MESSAGE | IS_TEXT | IS_COMPRESSED | MESSAGE_STASHED);
        receive.release_idle_stash(stashes);
        self.assembled = whole;
        if is_compressed {
            let inflated = inflate(&self.assembled, opcode, stashes, limits);
            stashes.recycle(std::mem::take(&mut self.assembled));
            self.assembled = inflated?;
        }
        Ok(Some((opcode, Payload::Assembled)))
    }

    /// The part of the open frame's payload that is in the lent bytes, and whether that is all it lacks.
    fn arrived(&self, receive: &Receive) -> (Range<usize>, bool) {
        let left = receive.left as usize;
        let here = left.min(self.bytes.len() - self.consumed);
        (self.consumed..self.consumed + here, here == left)
    }

    /// Consumes a range of payload.
    #[expect(clippy::indexing_slicing, reason = "as in `lent`")]
    #[expect(clippy::expect_used, reason = "what arrived of a frame is at most what it lacks")]
    fn unmask(&mut self, receive: &mut Receive, range: Range<usize>) {
        assert!(range.start == self.consumed);
        self.consumed = range.end;
        receive.left -= u32::try_from(range.len()).expect("within the frame");
        receive.mask = mask::apply(&mut self.bytes[range], receive.mask);
    }
}

/// Inflates a whole message, and judges it as if it had come so.
fn inflate(payload: &[u8], opcode: Opcode, stashes: &mut Stashes, limits: &ReceiveLimits) -> Result<Vec<u8>, Violation> {
    let inflated = stashes.inflate(payload, limits.message_bytes_max as usize).map_err(|fault| match fault {
        Fault::TooLarge => Violation::MessageTooLarge,
        Fault::Invalid => Violation::DeflateInvalid,
    })?;
    if opcode == Opcode::Text && !utf8::is_valid(&inflated) {
        return Err(Violation::TextNotUtf8);
    }
    Ok(inflated)
}

impl Receive {
    /// Whether nothing is unfinished: no part of a header, frame or message has come.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.header_len == 0 && !self.is(IN_FRAME | IN_MESSAGE)
    }

    /// Whether a message is open: its deadline runs.
    #[must_use]
    pub fn is_in_message(&self) -> bool {
        self.is(IN_MESSAGE)
    }

    /// Whether receiving is over: after a Close frame, a broken rule, or [`Receive::stop`].
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.is(STOPPED)
    }

    /// Ends receiving and releases the stash. A connection must call it before it is forgotten; calling it again does nothing.
    pub fn stop(&mut self, stashes: &mut Stashes) {
        self.state = STOPPED;
        self.header_len = 0;
        self.left = 0;
        self.release_idle_stash(stashes);
    }

    /// Judges a header by what the connection is in the middle of, and makes it the open frame.
    #[expect(clippy::expect_used, reason = "a frame longer than its limit, a number of 32 bits, was refused")]
    fn begin_frame(
        &mut self,
        header: &Header,
        stashes: &mut Stashes,
        limits: &ReceiveLimits,
        owner: u32,
    ) -> Result<(), Violation> {
        let left = match header.opcode {
            Opcode::Close | Opcode::Ping | Opcode::Pong => header.payload_bytes,
            Opcode::Continuation if !self.is(IN_MESSAGE) => return Err(Violation::ContinuationWithoutStart),
            Opcode::Continuation => {
                let stash = stashes.stash(self.stash);
                let so_far = stash.part(Part::Message).len() as u64;
                limits.check_bytes(so_far, header.payload_bytes)?;
                stash.fragments_count += 1;
                if stash.fragments_count > FRAGMENTS_PER_MESSAGE_MAX {
                    return Err(Violation::TooManyFragments);
                }
                header.payload_bytes
            }
            Opcode::Text | Opcode::Binary if self.is(IN_MESSAGE) => return Err(Violation::StartInsideMessage),
            Opcode::Text | Opcode::Binary => {
                limits.check_kind(header.opcode)?;
                limits.check_bytes(0, header.payload_bytes)?;
                self.set(IN_MESSAGE);
                if header.opcode == Opcode::Text {
                    self.set(IS_TEXT);
                }
                if header.compressed {
                    self.set(IS_COMPRESSED);
                }
                if !header.fin {
                    // Fragments are counted, also empty ones, and the count lives in the stash.
                    let index = self.stash(stashes, owner);
                    stashes.stash(index).fragments_count = 1;
                    self.set(MESSAGE_STASHED);
                }
                header.payload_bytes
            }
        };
        self.left = u32::try_from(left).expect("checked against a limit of 32 bits");
        self.mask = header.mask;
        self.set(IN_FRAME);
        Ok(())
    }

    /// The opcode of the open frame.
    #[expect(clippy::expect_used, reason = "a frame is open only once its header was decoded")]
    fn opcode(&self) -> Opcode {
        assert!(self.is(IN_FRAME));
        Opcode::of(self.header[0]).expect("judged when the header was decoded")
    }

    fn is_fin(&self) -> bool {
        self.header[0] & 0x80 != 0
    }

    /// The stash of this connection, taken now if it has none.
    fn stash(&mut self, stashes: &mut Stashes, owner: u32) -> StashIndex {
        if self.stash == StashIndex::NONE {
            self.stash = stashes.open(owner);
        }
        self.stash
    }

    /// Gives the stash back unless a part of a message or control frame is in it.
    fn release_idle_stash(&mut self, stashes: &mut Stashes) {
        if self.stash != StashIndex::NONE && !self.is(MESSAGE_STASHED | CONTROL_STASHED) {
            stashes.close(self.stash);
            self.stash = StashIndex::NONE;
        }
    }

    fn stopped_by(&mut self, stop: Stop, stashes: &mut Stashes) -> Stop {
        if matches!(stop, Stop::Violation(_)) {
            self.stop(stashes);
        }
        stop
    }

    fn is(&self, bits: u8) -> bool {
        self.state & bits != 0
    }

    fn set(&mut self, bits: u8) {
        self.state |= bits;
    }

    fn clear(&mut self, bits: u8) {
        self.state &= !bits;
    }
}

impl ReceiveLimits {
    fn check_kind(&self, opcode: Opcode) -> Result<(), Violation> {
        match (opcode, self.kinds) {
            (Opcode::Text, Kinds::Binary) => Err(Violation::TextNotAccepted),
            (Opcode::Binary, Kinds::Text) => Err(Violation::BinaryNotAccepted),
            _ => Ok(()),
        }
    }

    fn check_bytes(&self, so_far: u64, more: u64) -> Result<(), Violation> {
        // Neither is above 2^63, so the sum fits.
        if so_far + more > u64::from(self.message_bytes_max) { Err(Violation::MessageTooLarge) } else { Ok(()) }
    }
}

impl Stop {
    /// What the Close frame says.
    #[must_use]
    pub fn close_code(self) -> u16 {
        match self {
            Self::Violation(rule) => rule.close_code(),
            Self::StashesFull => 4503,
        }
    }
}

impl From<Violation> for Stop {
    fn from(rule: Violation) -> Self {
        Self::Violation(rule)
    }
}

impl From<StashesFull> for Stop {
    fn from(_: StashesFull) -> Self {
        Self::StashesFull
    }
}

#[cfg(test)]
mod tests;
