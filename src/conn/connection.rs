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
            Payload::Lent(range) => &self.bytes[range],
            Payload::Assembled => &self.assembled[..],
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
        &self.bytes[self.consumed..]
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
    fn header(&mut self, receive: &mut Receive, reserved: Reserved) -> Result<Option<Header>, Violation> {
        let lent = &self.bytes[self.consumed..];
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
                assert!(taken == lent.len());
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
            stashes.stash(index).part(Part::Control).extend_from_slice(&self.bytes[arrived]);
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
                self.assembled = inflate(&self.bytes[arrived], opcode, stashes, limits)?;
                return Ok(Some((opcode, Payload::Assembled)));
            }
            if opcode == Opcode::Text && !utf8::is_valid(&self.bytes[arrived.clone()]) {
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
                stash.utf8.push(&self.bytes[arrived.clone()]).map_err(|_| Violation::TextNotUtf8)?;
            }
            stash.part(Part::Message).extend_from_slice(&self.bytes[arrived]);
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
mod tests {
    use super::*;
    use crate::conn::deflate::Deflater;
    use crate::limits::{ECHO_MESSAGE_BYTES_MAX, STASH_BYTES_MAX};
    use crate::wire::frame::FrameEnd;
    use proptest::prelude::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    const BOTH: ReceiveLimits =
        ReceiveLimits { message_bytes_max: ECHO_MESSAGE_BYTES_MAX, kinds: Kinds::Both, reserved: Reserved::None };

    #[derive(Clone, PartialEq, Eq, Debug)]
    enum Owned {
        Text(Vec<u8>),
        Binary(Vec<u8>),
        Ping(Vec<u8>),
        Pong(Vec<u8>),
        Close(Option<u16>, String),
        Stop(Stop),
    }

    impl From<Event<'_>> for Owned {
        fn from(event: Event<'_>) -> Self {
            match event {
                Event::Text(payload) => Self::Text(payload.to_vec()),
                Event::Binary(payload) => Self::Binary(payload.to_vec()),
                Event::Ping(payload) => Self::Ping(payload.to_vec()),
                Event::Pong(payload) => Self::Pong(payload.to_vec()),
                Event::Close { code, reason } => Self::Close(code, reason.to_owned()),
            }
        }
    }

    /// One connection that is fed, and what came out of it.
    struct Fed {
        receive: Receive,
        stashes: Stashes,
        limits: ReceiveLimits,
        events: Vec<Owned>,
    }

    impl Fed {
        fn new(limits: ReceiveLimits) -> Self {
            Self { receive: Receive::default(), stashes: Stashes::new(STASH_BYTES_MAX), limits, events: Vec::new() }
        }

        fn feed(&mut self, bytes: &[u8]) -> &mut Self {
            let mut lent = bytes.to_vec();
            let mut reader = Reader::new(&mut lent, 5);
            loop {
                match reader.next(&mut self.receive, &mut self.stashes, &self.limits) {
                    Ok(Some(event)) => self.events.push(event.into()),
                    Ok(None) => return self,
                    Err(stop) => self.events.push(Owned::Stop(stop)),
                }
            }
        }
    }

    fn frame(opcode: Opcode, end: FrameEnd, payload: &[u8]) -> Vec<u8> {
        let mut header = [0; HEADER_BYTES_MAX];
        let len = frame::encode_client(&mut header, opcode, end, payload.len(), MASK);
        let mut out = header[..len].to_vec();
        out.extend_from_slice(payload);
        let _ = mask::apply(&mut out[len..], MASK);
        out
    }

    fn whole(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        frame(opcode, FrameEnd::Message, payload)
    }

    fn part(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        frame(opcode, FrameEnd::Fragment, payload)
    }

    fn events_of(bytes: &[u8]) -> Vec<Owned> {
        Fed::new(BOTH).feed(bytes).events.clone()
    }

    fn broken(rule: Violation) -> Owned {
        Owned::Stop(Stop::Violation(rule))
    }

    /// The masked examples of RFC 6455 5.7: a text, and a pong.
    #[test]
    fn examples_of_the_rfc_are_received() {
        let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let mut pong = hello;
        pong[0] = 0x8a;
        assert_eq!(events_of(&[hello, pong].concat()), [Owned::Text(b"Hello".to_vec()), Owned::Pong(b"Hello".to_vec())]);
    }

    /// A ping between two fragments is handed out before the message is whole, and neither disturbs the other in any cut.
    #[test]
    fn ping_between_fragments_comes_first() {
        let stream = [
            part(Opcode::Text, b"Hel"),
            whole(Opcode::Ping, b"in between"),
            part(Opcode::Continuation, b""),
            whole(Opcode::Continuation, b"lo"),
            whole(Opcode::Binary, b""),
        ]
        .concat();
        let expected = [Owned::Ping(b"in between".to_vec()), Owned::Text(b"Hello".to_vec()), Owned::Binary(Vec::new())];
        for cut in 0..=stream.len() {
            let mut fed = Fed::new(BOTH);
            fed.feed(&stream[..cut]).feed(&stream[cut..]);
            assert_eq!(fed.events, expected, "cut at {cut}");
            assert!(fed.receive.is_idle());
            assert_eq!((fed.stashes.used_count(), fed.stashes.used_bytes()), (0, 0));
        }
    }

    /// A compressed message is the same in one frame and in many, whatever the cut, with a ping in between; an uncompressed one may follow.
    #[test]
    fn compressed_messages_are_inflated_when_they_are_whole() {
        let limits = ReceiveLimits { reserved: Reserved::Deflate, ..BOTH };
        let text = "what repeats is short, ".repeat(40);
        let mut deflater = Deflater::default();
        let (small, is_small) = deflater.message(|out| out.extend_from_slice(text.as_bytes()));
        assert!(is_small && small.len() < 60);
        let (front, rest) = small.split_at(20);
        let compressed = |mut frame: Vec<u8>| {
            frame[0] |= 0x40;
            frame
        };
        let stream = [
            compressed(whole(Opcode::Text, small)),
            compressed(part(Opcode::Binary, front)),
            whole(Opcode::Ping, b"in between"),
            whole(Opcode::Continuation, rest),
            whole(Opcode::Text, b"plain"),
        ]
        .concat();
        let (text, ping) = (text.into_bytes(), Owned::Ping(b"in between".to_vec()));
        let expected = [Owned::Text(text.clone()), ping, Owned::Binary(text), Owned::Text(b"plain".to_vec())];
        for cut in 0..=stream.len() {
            let mut fed = Fed::new(limits);
            fed.feed(&stream[..cut]).feed(&stream[cut..]);
            assert_eq!(fed.events, expected, "cut at {cut}");
            assert!(fed.receive.is_idle());
            assert_eq!((fed.stashes.used_count(), fed.stashes.used_bytes()), (0, 0));
        }
        let ends = |limits, frame: Vec<u8>| Fed::new(limits).feed(&compressed(frame)).events.clone();
        let bounded = ReceiveLimits { message_bytes_max: 900, ..limits };
        assert_eq!(ends(bounded, whole(Opcode::Text, small)), [broken(Violation::MessageTooLarge)]);
        assert_eq!(ends(limits, whole(Opcode::Binary, &[0xff])), [broken(Violation::DeflateInvalid)]);
        // A stored block with a byte that is no text.
        assert_eq!(ends(limits, whole(Opcode::Text, &[0, 1, 0, 0xfe, 0xff, 0xff, 0])), [broken(Violation::TextNotUtf8)]);
        for opcode in [Opcode::Ping, Opcode::Close, Opcode::Continuation] {
            assert_eq!(ends(limits, whole(opcode, b"")), [broken(Violation::ReservedBit)], "{opcode:?}");
        }
        assert_eq!(ends(BOTH, whole(Opcode::Text, small)), [broken(Violation::ReservedBit)]);
    }

    /// Each rule that depends on what came before, and what is thereafter ignored.
    #[test]
    fn each_broken_rule_ends_receiving() {
        let text = part(Opcode::Text, b"a");
        for (bytes, rule) in [
            (whole(Opcode::Continuation, b"x"), Violation::ContinuationWithoutStart),
            ([text.clone(), whole(Opcode::Text, b"x")].concat(), Violation::StartInsideMessage),
            ([text.clone(), part(Opcode::Binary, b"x")].concat(), Violation::StartInsideMessage),
            (whole(Opcode::Close, b"x"), Violation::CloseBodyTooShort),
            (whole(Opcode::Close, &1005_u16.to_be_bytes()), Violation::CloseCodeInvalid),
            (whole(Opcode::Close, b"\x03\xe8\xff"), Violation::CloseReasonNotUtf8),
            (whole(Opcode::Text, b"\xff"), Violation::TextNotUtf8),
            (whole(Opcode::Text, b"\xe2\x82"), Violation::TextNotUtf8),
            ([text, whole(Opcode::Continuation, b"\xe2\x82")].concat(), Violation::TextNotUtf8),
            (vec![0x81, 0x05], Violation::Unmasked),
        ] {
            let stream = [whole(Opcode::Pong, b""), bytes, whole(Opcode::Ping, b"ignored")].concat();
            let mut fed = Fed::new(BOTH);
            fed.feed(&stream).feed(b"ignored as well");
            assert_eq!(fed.events, [Owned::Pong(Vec::new()), broken(rule)], "{rule:?}");
            assert!(fed.receive.is_stopped());
            assert_eq!((fed.stashes.used_count(), fed.stashes.used_bytes()), (0, 0));
        }
    }

    /// After a Close frame nothing follows, not even a broken rule.
    #[test]
    fn close_is_the_last_event() {
        for (body, expected) in
            [(&b""[..], Owned::Close(None, String::new())), (b"\x0f\xa0bye", Owned::Close(Some(4000), "bye".to_owned()))]
        {
            let stream = [part(Opcode::Text, b"never finished"), whole(Opcode::Close, body), vec![0xff; 40]].concat();
            let mut fed = Fed::new(BOTH);
            fed.feed(&stream);
            assert_eq!(fed.events, [expected]);
            assert_eq!(fed.stashes.used_bytes(), 0);
        }
    }

    /// The wrong kind of message is refused by its header, before its payload has come.
    #[test]
    fn the_wrong_kind_is_refused_by_its_header() {
        for (kinds, opcode, rule) in [
            (Kinds::Binary, Opcode::Text, Violation::TextNotAccepted),
            (Kinds::Text, Opcode::Binary, Violation::BinaryNotAccepted),
        ] {
            let mut fed = Fed::new(ReceiveLimits { kinds, ..BOTH });
            assert_eq!(fed.feed(&whole(opcode, b"x")[..6]).events, [broken(rule)]);
        }
    }

    /// The size is judged by header, for one frame and for the sum of fragments, and nothing is allocated for it. A message of
    /// exactly the limit passes.
    #[test]
    fn messages_above_the_limit_are_refused_before_they_are_stored() {
        let limits = ReceiveLimits { message_bytes_max: 1000, ..BOTH };
        let mut fed = Fed::new(limits);
        fed.feed(&[part(Opcode::Binary, &[1; 600]), whole(Opcode::Continuation, &[1; 400])].concat());
        fed.feed(&whole(Opcode::Binary, &[2; 1000]));
        assert_eq!(fed.events, [Owned::Binary(vec![1; 1000]), Owned::Binary(vec![2; 1000])]);

        let mut fed = Fed::new(limits);
        fed.feed(&whole(Opcode::Binary, &[1; 1001])[..8]);
        assert_eq!(fed.events, [broken(Violation::MessageTooLarge)]);
        assert_eq!(fed.stashes.free_bytes() + fed.stashes.used_bytes(), 0);

        let mut fed = Fed::new(limits);
        fed.feed(&[part(Opcode::Binary, &[1; 600]), whole(Opcode::Continuation, &[1; 401])[..8].to_vec()].concat());
        assert_eq!(fed.events, [broken(Violation::MessageTooLarge)]);

        let huge = [0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(events_of(&huge), [broken(Violation::MessageTooLarge)]);
        assert_eq!(
            events_of(&[part(Opcode::Binary, b"x"), [&[0x80][..], &huge[1..]].concat()].concat()),
            [broken(Violation::MessageTooLarge)]
        );
    }

    /// The suite's message of 4 MiB in 65,536 fragments and an empty last one passes; a flood of empty fragments ends at the limit
    /// without holding a byte.
    #[test]
    fn many_fragments_pass_and_endless_ones_do_not() {
        let mut fed = Fed::new(BOTH);
        let mut stream = part(Opcode::Binary, &[7; 64]);
        (1..65_536).for_each(|_| stream.extend(part(Opcode::Continuation, &[7; 64])));
        stream.extend(whole(Opcode::Continuation, b""));
        stream.chunks(65_536).for_each(|chunk| {
            fed.feed(chunk);
        });
        assert_eq!(fed.events, [Owned::Binary(vec![7; 4 << 20])]);

        let mut fed = Fed::new(BOTH);
        fed.feed(&part(Opcode::Text, b""));
        let empty = part(Opcode::Continuation, b"");
        let some = empty.repeat(1024);
        for _ in 0..FRAGMENTS_PER_MESSAGE_MAX / 1024 - 1 {
            assert!(fed.feed(&some).events.is_empty());
        }
        assert!(fed.feed(&empty.repeat(1023)).events.is_empty());
        assert_eq!(fed.stashes.used_bytes(), 0);
        assert_eq!(fed.feed(&empty).events, [broken(Violation::TooManyFragments)]);
    }

    /// The suite's case 6.4: text is judged inside a frame whose rest has not come.
    #[test]
    fn text_is_judged_as_bytes_arrive() {
        let bytes = whole(Opcode::Text, b"\xce\xba\xe1\xbd\xb9\xf4\x90\x80\x80edited");
        let mut fed = Fed::new(BOTH);
        assert!(fed.feed(&bytes[..6 + 6]).events.is_empty());
        assert_eq!(fed.feed(&bytes[12..13]).events, [broken(Violation::TextNotUtf8)]);
    }

    /// When there is no room nothing is lost: another connection lets go, and the message arrives whole.
    #[test]
    fn full_stashes_stop_and_go_on() {
        let mut stashes = Stashes::new(1024);
        let (mut first, mut second) = (Receive::default(), Receive::default());
        let mut bytes = whole(Opcode::Text, &[b'a'; 1000])[..900].to_vec();
        assert_eq!(Reader::new(&mut bytes, 1).next(&mut first, &mut stashes, &BOTH), Ok(None));
        let stream = whole(Opcode::Text, &[b'b'; 500]);
        let mut lent = stream[..400].to_vec();
        let mut reader = Reader::new(&mut lent, 2);
        assert_eq!(reader.next(&mut second, &mut stashes, &BOTH), Err(Stop::StashesFull));
        assert_eq!(Stop::StashesFull.close_code(), 4503);
        assert_eq!(stashes.largest_owner(), Some(1));
        first.stop(&mut stashes);
        assert_eq!(reader.next(&mut second, &mut stashes, &BOTH), Ok(None));
        let mut rest = stream[400..].to_vec();
        let mut reader = Reader::new(&mut rest, 2);
        assert_eq!(reader.next(&mut second, &mut stashes, &BOTH), Ok(Some(Event::Text(&[b'b'; 500]))));
    }

    /// A message that lies whole in the lent bytes is handed out there: no stash, no copy, no allocation.
    #[test]
    fn a_whole_message_is_not_copied() {
        let mut lent = whole(Opcode::Binary, b"payload");
        let at = lent.as_ptr() as usize + 6;
        let (mut receive, mut stashes) = (Receive::default(), Stashes::new(0));
        let mut reader = Reader::new(&mut lent, 0);
        let Ok(Some(Event::Binary(payload))) = reader.next(&mut receive, &mut stashes, &BOTH) else { panic!("a message") };
        assert_eq!(payload.as_ptr() as usize, at);
    }

    /// Who stops early finds the rest as it arrived.
    #[test]
    fn the_rest_can_be_lent_again() {
        let stream = [whole(Opcode::Binary, b"one"), whole(Opcode::Binary, b"two")].concat();
        let mut lent = stream.clone();
        let (mut receive, mut stashes) = (Receive::default(), Stashes::new(0));
        let mut reader = Reader::new(&mut lent, 0);
        assert_eq!(reader.next(&mut receive, &mut stashes, &BOTH), Ok(Some(Event::Binary(b"one"))));
        assert_eq!(reader.rest(), &stream[9..]);
    }

    /// Frames as another implementation writes them.
    #[test]
    fn another_implementation_is_understood() {
        use tungstenite::{Message, WebSocket, protocol::Role};
        let mut client = WebSocket::from_raw_socket(std::io::Cursor::new(Vec::new()), Role::Client, None);
        let payloads: Vec<Vec<u8>> = [0, 1, 125, 126, 65_535, 65_536, 200_000].map(|len| vec![b'x'; len]).to_vec();
        for payload in &payloads {
            client.write(Message::Binary(payload.clone().into())).expect("memory");
            client.write(Message::Text(String::from_utf8(payload.clone()).expect("ASCII").into())).expect("memory");
            client.flush().expect("memory");
        }
        let stream = client.get_ref().get_ref().clone();
        let mut fed = Fed::new(BOTH);
        stream.chunks(50_000).for_each(|chunk| {
            fed.feed(chunk);
        });
        let expected: Vec<Owned> = payloads.into_iter().flat_map(|p| [Owned::Binary(p.clone()), Owned::Text(p)]).collect();
        assert!(fed.events == expected);
    }

    /// What a peer might send: messages in fragments with control frames in between.
    #[derive(Clone, Debug)]
    struct Sent {
        text: Option<String>,
        binary: Vec<u8>,
        cuts: Vec<usize>,
        pings: Vec<(usize, Vec<u8>)>,
    }

    impl Sent {
        fn encode(&self, stream: &mut Vec<u8>, expected: &mut Vec<Owned>) {
            let (opcode, payload) = match &self.text {
                Some(text) => (Opcode::Text, text.as_bytes()),
                None => (Opcode::Binary, &self.binary[..]),
            };
            let mut rest = payload;
            for (index, cut) in self.cuts.iter().enumerate() {
                let (fragment, later) = rest.split_at(*cut % (rest.len() + 1));
                rest = later;
                stream.extend(part(if index == 0 { opcode } else { Opcode::Continuation }, fragment));
                for (_, ping) in self.pings.iter().filter(|(after, _)| *after == index) {
                    stream.extend(whole(Opcode::Ping, ping));
                    expected.push(Owned::Ping(ping.clone()));
                }
            }
            stream.extend(whole(if self.cuts.is_empty() { opcode } else { Opcode::Continuation }, rest));
            expected.push(if self.text.is_some() { Owned::Text(payload.to_vec()) } else { Owned::Binary(payload.to_vec()) });
        }
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let pings = prop::collection::vec((0_usize..4, prop::collection::vec(any::<u8>(), 0..=125)), 0..3);
        let binary = prop_oneof![prop::collection::vec(any::<u8>(), 0..300), (0_usize..70_000).prop_map(|len| vec![0xa5; len])];
        (prop::option::of("\\PC{0,80}"), binary, prop::collection::vec(any::<usize>(), 0..5), pings)
            .prop_map(|(text, binary, cuts, pings)| Sent { text, binary, cuts, pings })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// What was sent is what arrives, whatever the cut of the bytes, and all memory is given back.
        #[test]
        fn any_chunking_gives_the_same_events(messages in prop::collection::vec(sent(), 1..4), chunks in prop::collection::vec(1_usize..400, 1..40)) {
            let (mut stream, mut expected) = (Vec::new(), Vec::new());
            messages.iter().for_each(|message| message.encode(&mut stream, &mut expected));
            let mut fed = Fed::new(BOTH);
            let mut rest = &stream[..];
            for chunk in chunks.iter().cycle() {
                let (now, later) = rest.split_at((*chunk).min(rest.len()));
                fed.feed(now);
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert!(fed.events == expected);
            prop_assert!(events_of(&stream) == expected);
            prop_assert!(fed.receive.is_idle());
            prop_assert_eq!((fed.stashes.used_count(), fed.stashes.used_bytes()), (0, 0));
        }
    }
}
