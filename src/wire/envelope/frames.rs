//! One WebSocket message, frame by frame: the doors of both encodings.

use std::fmt;

use super::{ClientFrame, Deliver, Encoding, ErrorCode, ServerFrame, binary, json, json_write, send_flags};
use crate::limits::{FRAME_BYTES_DEFAULT, FRAMES_PER_MESSAGE_MAX};

/// The protocol frames a client put into one WebSocket message, in order, each borrowing from the lent `message`.
///
/// Unknown frames that may be skipped are skipped. The first bad frame ends the message: what came before it has been given out
/// already, what comes after it is not looked at.
#[derive(Debug)]
pub struct Frames<'a>(Split<'a>);

impl<'a> Frames<'a> {
    /// The frames of `message`, a whole WebSocket message of the kind the encoding asks for.
    #[must_use]
    pub fn new(encoding: Encoding, message: &'a [u8]) -> Self {
        Self(Split { encoding, rest: message, left: FRAMES_PER_MESSAGE_MAX })
    }

    /// The next frame; `Ok(None)` at the end of the message and after an error.
    ///
    /// The form of names is not looked at: a user, device, conversation or cursor may be any UTF-8 here, of any length in JSON.
    /// Who echoes one checks it first, since the encoders take no name above 255 bytes.
    ///
    /// # Errors
    /// The rule that the frame breaks. The connection then closes with 4400.
    pub fn next_frame(&mut self) -> Result<Option<ClientFrame<'a>>, DecodeError> {
        self.0.step(|kind, body, seen| check(binary::client(kind, body, seen)?), |line, seen| check(json::client(line, seen)?))
    }

    /// What has not been read yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.0.rest
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<ClientFrame<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_frame().transpose()
    }
}

/// The protocol frames the gateway put into one WebSocket message: the client's half of [`Frames`].
#[derive(Debug)]
pub struct ServerFrames<'a>(Split<'a>);

impl<'a> ServerFrames<'a> {
    /// The frames of `message`, a whole WebSocket message of the kind the encoding asks for.
    #[must_use]
    pub fn new(encoding: Encoding, message: &'a [u8]) -> Self {
        Self(Split { encoding, rest: message, left: u32::MAX })
    }

    /// The next frame; `Ok(None)` at the end of the message and after an error.
    ///
    /// # Errors
    /// The rule that the frame breaks.
    pub fn next_frame(&mut self) -> Result<Option<ServerFrame<'a>>, DecodeError> {
        self.0.step(binary::server, json::server)
    }
}

impl<'a> Iterator for ServerFrames<'a> {
    type Item = Result<ServerFrame<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_frame().transpose()
    }
}

/// A frame that breaks a rule of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecodeError {
    /// 1001, 1002 or 1003.
    pub code: ErrorCode,
    /// Which rule, for `detail` of ERROR.
    pub detail: &'static str,
    /// `rid` of the request, as far as it could be read; else 0.
    pub rid: u32,
    /// [`super::frame_type`] of the frame, as far as it is known; else 0. A state that does not allow it answers 1004 instead.
    pub frame: u8,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code.value(), self.detail)
    }
}

impl std::error::Error for DecodeError {}

/// Appends one frame as the gateway writes it.
///
/// # Panics
/// If a text is longer than its length field can say: 255 bytes, 65,535 for `target` (`detail` of ERROR is cut), or the frame is
/// longer than 16 MiB. What comes from a decoded frame never is.
pub fn encode_server(encoding: Encoding, frame: &ServerFrame<'_>, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Binary => binary::encode_server(frame, out),
        Encoding::Json => json_write::encode_server(frame, out),
    }
}

/// Appends one frame as a client writes it. In JSON no line feed follows; between two frames of one message the caller puts one.
///
/// # Panics
/// If a text is longer than its length field can say: 255 bytes, 65,535 for `token`; or the frame is longer than 16 MiB.
pub fn encode_client(encoding: Encoding, frame: &ClientFrame<'_>, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Binary => binary::encode_client(frame, out),
        Encoding::Json => json_write::encode_client(frame, out),
    }
}

/// Most bytes of [`deliver_head`].
pub const DELIVER_HEAD_BYTES_MAX: usize = 40;

/// Writes what stands before the tail of a DELIVER: 12 bytes in binary, `{"t":"deliver","pos":N,` in JSON. Returns how many bytes.
///
/// The frame is `head ++ tail`, and nothing in between; a position above 2^53 - 1 is written as that in JSON.
///
/// # Panics
/// If a tail of `tail_len` bytes is too long for a binary frame.
pub fn deliver_head(encoding: Encoding, pos: u64, tail_len: usize, out: &mut [u8; DELIVER_HEAD_BYTES_MAX]) -> usize {
    match encoding {
        Encoding::Binary => binary::deliver_head(pos, tail_len, out),
        Encoding::Json => json_write::deliver_head(pos, out),
    }
}

/// Bytes that [`deliver_head`] will write.
#[must_use]
pub fn deliver_head_bytes(encoding: Encoding, pos: u64) -> usize {
    match encoding {
        Encoding::Binary => binary::DELIVER_HEAD_BYTES,
        Encoding::Json => json_write::deliver_head_bytes(pos),
    }
}

/// Appends all of a DELIVER that stands after `pos`: the same bytes for every receiver of one variant (plain, OWN).
///
/// `deliver.pos` is not looked at. In JSON a text that would make the frame longer than `max_frame`, whatever its `pos`, travels as
/// `b64`; then nothing more can be done to make it fit.
///
/// # Panics
/// As [`encode_server`].
pub fn deliver_tail(encoding: Encoding, deliver: &Deliver<'_>, max_frame: usize, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Binary => binary::deliver_tail(deliver, out),
        Encoding::Json => json_write::deliver_tail(deliver, max_frame, out),
    }
}

/// Reads back what [`deliver_tail`] wrote, through `scratch`; `pos` is the one given.
///
/// # Panics
/// If the tail is not one.
#[expect(clippy::indexing_slicing, clippy::panic, reason = "what is read is what this program wrote and kept")]
pub fn read_tail<'a>(encoding: Encoding, pos: u64, tail: &[u8], scratch: &'a mut Vec<u8>) -> Deliver<'a> {
    let mut head = [0; DELIVER_HEAD_BYTES_MAX];
    let head_len = deliver_head(encoding, pos, tail.len(), &mut head);
    scratch.clear();
    scratch.extend_from_slice(&head[..head_len]);
    scratch.extend_from_slice(tail);
    match ServerFrames::new(encoding, scratch).next_frame() {
        Ok(Some(ServerFrame::Deliver(deliver))) => deliver,
        other => panic!("a tail of our own is read as {other:?}"),
    }
}

/// What is left of one WebSocket message.
#[derive(Debug)]
struct Split<'a> {
    encoding: Encoding,
    rest: &'a [u8],
    /// Frames that may still come.
    left: u32,
}

impl<'a> Split<'a> {
    /// Reads frames until one is not skipped.
    fn step<T>(
        &mut self,
        binary_body: impl Fn(u8, &'a [u8], &mut Seen) -> Result<Option<T>, Fault>,
        json_line: impl Fn(&'a [u8], &mut Seen) -> Result<Option<T>, Fault>,
    ) -> Result<Option<T>, DecodeError> {
        loop {
            let mut seen = Seen::default();
            let left = self.left.checked_sub(1);
            let read = match self.encoding {
                Encoding::Binary => match binary::split(&mut self.rest) {
                    Ok(None) => return Ok(None),
                    Ok(Some(_)) if left.is_none() => Err(TOO_MANY_FRAMES),
                    Ok(Some((kind, body))) => binary_body(kind, body, &mut seen),
                    Err(fault) => Err(fault),
                },
                Encoding::Json => match json::split(&mut self.rest) {
                    None => return Ok(None),
                    Some(_) if left.is_none() => Err(TOO_MANY_FRAMES),
                    Some(line) => json_line(line, &mut seen),
                },
            };
            self.left = left.unwrap_or_default();
            match read {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(Fault { code, detail }) => {
                    self.rest = &[];
                    return Err(DecodeError { code, detail, rid: seen.rid, frame: seen.frame });
                }
            }
        }
    }
}

/// What a decoder has learnt of a frame when it fails.
#[derive(Default)]
pub(super) struct Seen {
    pub rid: u32,
    pub frame: u8,
}

/// A broken rule, before it is known whose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub code: ErrorCode,
    pub detail: &'static str,
}

impl Fault {
    pub const fn malformed(detail: &'static str) -> Self {
        Self { code: ErrorCode::Malformed, detail }
    }

    pub const fn field(detail: &'static str) -> Self {
        Self { code: ErrorCode::BadField, detail }
    }

    pub const fn unknown(detail: &'static str) -> Self {
        Self { code: ErrorCode::UnknownType, detail }
    }
}

const TOO_MANY_FRAMES: Fault = Fault::malformed("more than 512 frames in one message");
const _: () = assert!(FRAMES_PER_MESSAGE_MAX == 512);
const _: () = assert!(FRAME_BYTES_DEFAULT < 1 << 24);

/// The rules on values that are the same in both encodings.
fn check(frame: Option<ClientFrame<'_>>) -> Result<Option<ClientFrame<'_>>, Fault> {
    match &frame {
        Some(
            ClientFrame::Auth { rid: 0, .. }
            | ClientFrame::Send(super::Send { rid: 0, .. })
            | ClientFrame::Sync { rid: 0, .. }
            | ClientFrame::Fetch { rid: 0, .. }
            | ClientFrame::Read { rid: 0, .. }
            | ClientFrame::Watch { rid: 0, .. },
        ) => Err(Fault::field("rid is 0")),
        Some(ClientFrame::Send(send)) if send.cmid.is_zero() => Err(Fault::field("cmid is all zeros")),
        Some(ClientFrame::Send(send)) if send.flags & RETRY_TRANSIENT == RETRY_TRANSIENT => {
            Err(Fault::field("TRANSIENT with RETRY"))
        }
        _ => Ok(frame),
    }
}

const RETRY_TRANSIENT: u8 = send_flags::RETRY | send_flags::TRANSIENT;
