//! Frame headers and control frames (RFC 6455 5.2, 5.5, 7.4).
//!
//! ```text
//!  byte 0            byte 1                  2, 4 or 10
//!  FIN RSV RSV RSV   MASK  length            mask, clients only
//!   1   0   0   0     1    0..=125           4 bytes           ─► payload
//!  opcode, 4 bits          126: 16 bits follow
//!                          127: 64 bits follow, top bit 0
//! ```
//!
//! The rules are judged in the order of the bytes, and each as soon as its byte is there: a header in two reads breaks the same
//! rule as in one.

use crate::wire::violation::Violation;

/// Bytes of the longest header: two, a length of 64 bits, a mask.
pub const HEADER_BYTES_MAX: usize = 14;

/// Bytes of the shortest header without a mask.
pub const SERVER_HEADER_BYTES_MIN: usize = 2;

/// Bytes of the longest header without a mask.
pub const SERVER_HEADER_BYTES_MAX: usize = 10;

/// Payload bytes a control frame may have (RFC 6455 5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

/// Bytes of the longest control frame of a server.
pub const CONTROL_FRAME_BYTES_MAX: usize = 2 + CONTROL_PAYLOAD_BYTES_MAX;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Opcode {
    /// Goes on with the open message.
    Continuation = 0x0,
    /// Begins a text message.
    Text = 0x1,
    /// Begins a binary message.
    Binary = 0x2,
    /// Ends the connection.
    Close = 0x8,
    /// Asks for a pong with the same payload.
    Ping = 0x9,
    /// Answers a ping, or nobody.
    Pong = 0xa,
}

impl Opcode {
    /// The opcode of a first byte; `None` for the ten that are undefined.
    #[must_use]
    pub fn of(first_byte: u8) -> Option<Self> {
        Some(match first_byte & OPCODE {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    /// Close, ping or pong: at most 125 bytes, never fragmented, allowed between the fragments of a message.
    #[must_use]
    pub fn is_control(self) -> bool {
        self as u8 & CONTROL != 0
    }
}

/// Whose frames are read: clients mask theirs, servers must not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// Masked.
    Client,
    /// Not masked.
    Server,
}

/// What the three reserved bits may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reserved {
    /// All clear.
    None,
    /// RSV1 may be set in the first frame of a message: permessage-deflate (RFC 7692 6).
    Deflate,
}

/// A frame header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Whether the message ends with this frame.
    pub fin: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// Whether it begins a compressed message.
    pub compressed: bool,
    /// The client's mask; zeros, which change nothing, in a frame of a server.
    pub mask: [u8; 4],
    /// Bytes of payload that follow the header, below 2^63.
    pub payload_bytes: u64,
    /// Bytes of the header itself, 2 to 14.
    pub header_bytes: usize,
}

/// As [`decode`] with [`Reserved::None`]: nothing was negotiated.
///
/// # Errors
/// As [`decode_with`].
pub fn decode(bytes: &[u8], sender: Sender) -> Result<Option<Header>, Violation> {
    decode_with(bytes, sender, Reserved::None)
}

/// Decodes one frame header from the front of `bytes`.
///
/// `Ok(None)` if `bytes` ends inside it. Never reads past the header; the payload may not have arrived yet.
///
/// # Errors
/// [`Violation`] for a reserved bit, an unknown opcode, a control frame that is fragmented or longer than 125 bytes, a mask that
/// is missing or should be, a length in a longer form than it needs or with the top bit set. What `bytes` shows already is judged
/// even when the header is not complete.
pub fn decode_with(bytes: &[u8], sender: Sender, reserved: Reserved) -> Result<Option<Header>, Violation> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    let compressed = first & COMPRESSED != 0 && reserved == Reserved::Deflate;
    if first & RESERVED != if compressed { COMPRESSED } else { 0 } {
        return Err(Violation::ReservedBit);
    }
    let opcode = Opcode::of(first).ok_or(Violation::UnknownOpcode)?;
    if compressed && !matches!(opcode, Opcode::Text | Opcode::Binary) {
        return Err(Violation::ReservedBit);
    }
    let fin = first & FIN != 0;
    if opcode.is_control() && !fin {
        return Err(Violation::FragmentedControl);
    }
    let Some((&second, rest)) = rest.split_first() else { return Ok(None) };
    match (second & MASK != 0, sender) {
        (false, Sender::Client) => return Err(Violation::Unmasked),
        (true, Sender::Server) => return Err(Violation::Masked),
        _ => {}
    }
    let short = second & LENGTH;
    if opcode.is_control() && short >= LENGTH_16 {
        return Err(Violation::OversizedControl);
    }
    let Some((payload_bytes, rest)) = decode_length(short, rest)? else { return Ok(None) };
    let (mask, rest) = match sender {
        Sender::Server => ([0; 4], rest),
        Sender::Client => match rest.split_first_chunk() {
            Some((mask, rest)) => (*mask, rest),
            None => return Ok(None),
        },
    };
    Ok(Some(Header { fin, opcode, compressed, mask, payload_bytes, header_bytes: bytes.len().saturating_sub(rest.len()) }))
}

/// Bytes that [`encode_server`] will write for a payload of this length.
#[must_use]
pub fn server_header_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        ..126 => SERVER_HEADER_BYTES_MIN,
        126..65_536 => 4,
        _ => SERVER_HEADER_BYTES_MAX,
    }
}

/// Marks a header as the beginning of a compressed message (RFC 7692 6).
pub fn mark_compressed(header: &mut [u8; SERVER_HEADER_BYTES_MAX]) {
    header[0] |= COMPRESSED;
}

/// Writes the header of an unfragmented server frame and returns its length, 2 to 10 bytes.
pub fn encode_server(out: &mut [u8; SERVER_HEADER_BYTES_MAX], opcode: Opcode, payload_bytes: usize) -> usize {
    assert!(!opcode.is_control() || payload_bytes <= CONTROL_PAYLOAD_BYTES_MAX);
    out[0] = FIN | opcode as u8;
    if let Some(short) = u8::try_from(payload_bytes).ok().filter(|&short| short < LENGTH_16) {
        out[1] = short;
        2
    } else if let Ok(middle) = u16::try_from(payload_bytes) {
        out[1] = LENGTH_16;
        out[2..4].copy_from_slice(&middle.to_be_bytes());
        4
    } else {
        out[1] = LENGTH_64;
        out[2..10].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        10
    }
}

/// Writes the header of a client frame and returns its length, 6 to 14 bytes. The payload is masked by
/// [`crate::wire::mask::apply`].
#[expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "into an array that holds the longest header")]
pub fn encode_client(
    out: &mut [u8; HEADER_BYTES_MAX],
    opcode: Opcode,
    end: FrameEnd,
    payload_bytes: usize,
    mask: [u8; 4],
) -> usize {
    assert!(!opcode.is_control() || end == FrameEnd::Message);
    let mut unmasked = [0; SERVER_HEADER_BYTES_MAX];
    let len = encode_server(&mut unmasked, opcode, payload_bytes);
    if end == FrameEnd::Fragment {
        unmasked[0] &= !FIN;
    }
    unmasked[1] |= MASK;
    out[..len].copy_from_slice(&unmasked[..len]);
    out[len..len + 4].copy_from_slice(&mask);
    len + 4
}

/// What ends with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameEnd {
    /// The message: FIN is set.
    Message,
    /// Only this fragment; a continuation follows.
    Fragment,
}

/// Writes a ping or pong of a server, header and payload, and returns its length.
///
/// # Panics
/// If `payload` is longer than 125 bytes: it is ours, or came out of a control frame.
#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "into an array that holds the longest control frame"
)]
pub fn encode_control(out: &mut [u8; CONTROL_FRAME_BYTES_MAX], opcode: Opcode, payload: &[u8]) -> usize {
    assert!(opcode.is_control());
    let mut header = [0; SERVER_HEADER_BYTES_MAX];
    let len = encode_server(&mut header, opcode, payload.len());
    out[..len].copy_from_slice(&header[..len]);
    out[len..len + payload.len()].copy_from_slice(payload);
    len + payload.len()
}

/// Writes a Close frame of a server and returns its length. Without a code the body is empty and `reason` does not travel; a
/// reason of more than 123 bytes is cut between two characters.
#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "the reason is cut to what a control frame holds, at a boundary that was asked for"
)]
pub fn encode_close(out: &mut [u8; CONTROL_FRAME_BYTES_MAX], code: Option<u16>, reason: &str) -> usize {
    let Some(code) = code else { return encode_control(out, Opcode::Close, &[]) };
    assert!(is_close_code_valid(code));
    let reason = &reason[..reason.floor_char_boundary(CONTROL_PAYLOAD_BYTES_MAX - 2)];
    let mut payload = [0; CONTROL_PAYLOAD_BYTES_MAX];
    payload[..2].copy_from_slice(&code.to_be_bytes());
    payload[2..2 + reason.len()].copy_from_slice(reason.as_bytes());
    encode_control(out, Opcode::Close, &payload[..2 + reason.len()])
}

/// Reads the body of a Close frame: code and reason. An empty body has neither.
///
/// # Errors
/// [`Violation`] for a body of one byte, a code that may not travel, a reason that is not UTF-8.
pub fn decode_close(payload: &[u8]) -> Result<(Option<u16>, &str), Violation> {
    if payload.is_empty() {
        return Ok((None, ""));
    }
    let (code, reason) = payload.split_first_chunk().ok_or(Violation::CloseBodyTooShort)?;
    let code = u16::from_be_bytes(*code);
    if !is_close_code_valid(code) {
        return Err(Violation::CloseCodeInvalid);
    }
    let reason = std::str::from_utf8(reason).map_err(|_| Violation::CloseReasonNotUtf8)?;
    Ok((Some(code), reason))
}

/// Whether a close code may stand in a Close frame: those of RFC 6455 7.4.1 and of the IANA registry, and 3000 to 4999. 1004 has no
/// meaning; 1005, 1006 and 1015 are words for what happened without a frame.
#[must_use]
pub fn is_close_code_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// The payload length announced by the seven bits `short` and, where they say so, by the front of `rest`.
fn decode_length(short: u8, rest: &[u8]) -> Result<Option<(u64, &[u8])>, Violation> {
    match short {
        LENGTH_16 => {
            let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
            let length = u16::from_be_bytes(*length);
            if length < u16::from(LENGTH_16) {
                return Err(Violation::LengthNotMinimal);
            }
            Ok(Some((u64::from(length), rest)))
        }
        LENGTH_64 => {
            if rest.first().is_some_and(|&top| top & 0x80 != 0) {
                return Err(Violation::LengthTopBit);
            }
            let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
            let length = u64::from_be_bytes(*length);
            if length <= u64::from(u16::MAX) {
                return Err(Violation::LengthNotMinimal);
            }
            Ok(Some((length, rest)))
        }
        _ => Ok(Some((u64::from(short), rest))),
    }
}

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
/// RSV1 (RFC 7692 6).
const COMPRESSED: u8 = 0x40;
const OPCODE: u8 = 0x0f;
const CONTROL: u8 = 0x08;
const MASK: u8 = 0x80;
const LENGTH: u8 = 0x7f;
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(fin: bool, opcode: Opcode, mask: [u8; 4], payload_bytes: u64, header_bytes: usize) -> Header {
        Header { fin, opcode, compressed: false, mask, payload_bytes, header_bytes }
    }

    /// The six examples of RFC 6455 5.7.
    #[test]
    fn examples_of_the_rfc_are_decoded() {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let long = [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0];
        let cases: [(&[u8], Sender, Header); 8] = [
            (&[0x81, 0x05], Sender::Server, header(true, Opcode::Text, [0; 4], 5, 2)),
            (&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d], Sender::Client, header(true, Opcode::Text, mask, 5, 6)),
            (&[0x01, 0x03], Sender::Server, header(false, Opcode::Text, [0; 4], 3, 2)),
            (&[0x80, 0x02], Sender::Server, header(true, Opcode::Continuation, [0; 4], 2, 2)),
            (&[0x89, 0x05], Sender::Server, header(true, Opcode::Ping, [0; 4], 5, 2)),
            (&[0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d], Sender::Client, header(true, Opcode::Pong, mask, 5, 6)),
            (&[0x82, 0x7e, 0x01, 0x00], Sender::Server, header(true, Opcode::Binary, [0; 4], 256, 4)),
            (&long, Sender::Server, header(true, Opcode::Binary, [0; 4], 65_536, 10)),
        ];
        for (bytes, sender, expected) in cases {
            assert_eq!(decode(bytes, sender), Ok(Some(expected)), "{bytes:02x?}");
        }
    }

    /// Each rule by the shortest header that breaks it: fewer bytes break none, more bytes still break the same.
    #[test]
    fn each_rule_is_judged_at_its_byte() {
        let mut cases: Vec<(Vec<u8>, Violation)> = vec![
            (vec![0xc1], Violation::ReservedBit),
            (vec![0xa1], Violation::ReservedBit),
            (vec![0x91], Violation::ReservedBit),
            (vec![0x08], Violation::FragmentedControl),
            (vec![0x09], Violation::FragmentedControl),
            (vec![0x0a], Violation::FragmentedControl),
            (vec![0x81, 0x05], Violation::Unmasked),
            (vec![0x89, 0xfe], Violation::OversizedControl),
            (vec![0x88, 0xff], Violation::OversizedControl),
            (vec![0x82, 0xfe, 0, 125], Violation::LengthNotMinimal),
            (vec![0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], Violation::LengthNotMinimal),
            (vec![0x82, 0xff, 0x80], Violation::LengthTopBit),
        ];
        cases.extend([3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf].map(|opcode| (vec![0x80 | opcode], Violation::UnknownOpcode)));
        for (bytes, rule) in cases {
            for len in 0..bytes.len() {
                assert_eq!(decode(&bytes[..len], Sender::Client), Ok(None), "{len} bytes of {bytes:02x?}");
            }
            let mut more = bytes.clone();
            more.extend([0xff; 20]);
            assert_eq!(decode(&bytes, Sender::Client), Err(rule), "{bytes:02x?}");
            assert_eq!(decode(&more, Sender::Client), Err(rule), "{more:02x?}");
        }
        assert_eq!(decode(&[0x81, 0x85], Sender::Server), Err(Violation::Masked));
    }

    /// The codes of the conformance suite, and the borders between the ranges.
    #[test]
    fn close_codes_follow_the_registry() {
        for code in [1000_u16, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999] {
            assert!(is_close_code_valid(code), "{code}");
            let body = code.to_be_bytes();
            assert_eq!(decode_close(&body), Ok((Some(code), "")));
        }
        for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
            assert_eq!(decode_close(&code.to_be_bytes()), Err(Violation::CloseCodeInvalid), "{code}");
        }
        assert_eq!(decode_close(&[]), Ok((None, "")));
        assert_eq!(decode_close(&[3]), Err(Violation::CloseBodyTooShort));
        assert_eq!(decode_close(&[3, 0xe8, 0xff]), Err(Violation::CloseReasonNotUtf8));
    }

    /// What we write as a close frame we read back; a long reason is cut where a character ends.
    #[test]
    fn close_frames_are_written_whole() {
        let mut out = [0; CONTROL_FRAME_BYTES_MAX];
        assert_eq!(encode_close(&mut out, None, "lost"), 2);
        assert_eq!(out[..2], [0x88, 0]);
        let len = encode_close(&mut out, Some(4409), "replaced");
        assert_eq!(&out[..len], b"\x88\x0a\x11\x39replaced");
        let len = encode_close(&mut out, Some(1011), &"\u{e9}".repeat(100));
        assert_eq!(len, 2 + 2 + 122);
        assert_eq!(decode_close(&out[2..len]), Ok((Some(1011), "\u{e9}".repeat(61).as_str())));
    }

    proptest! {
        /// Every header we write is read back, as soon as and not before its last byte is there.
        #[test]
        fn headers_survive_a_round_trip(
            payload_bytes in prop_oneof![0_usize..200, 65_500_usize..65_600, any::<usize>().prop_map(|any| any >> 1)],
            opcode in prop_oneof![Just(Opcode::Text), Just(Opcode::Binary), Just(Opcode::Continuation), Just(Opcode::Ping)],
            fin in any::<bool>(),
            mask in any::<[u8; 4]>(),
        ) {
            let payload_bytes = if opcode.is_control() { payload_bytes % 126 } else { payload_bytes };
            let fin = fin || opcode.is_control();
            let end = if fin { FrameEnd::Message } else { FrameEnd::Fragment };
            let mut out = [0; HEADER_BYTES_MAX];
            let len = encode_client(&mut out, opcode, end, payload_bytes, mask);
            let expected = header(fin, opcode, mask, payload_bytes as u64, len);
            prop_assert_eq!(decode(&out, Sender::Client), Ok(Some(expected)));
            for short in 0..len {
                prop_assert_eq!(decode(&out[..short], Sender::Client), Ok(None));
            }
        }

        /// Our server headers are those of an independent implementation.
        #[test]
        fn server_frames_agree_with_another_implementation(payload_bytes in prop_oneof![0_usize..300, 65_400_usize..66_000]) {
            let payload = vec![7; payload_bytes];
            let mut theirs = Vec::new();
            tungstenite::protocol::frame::Frame::message(
                payload.clone(),
                tungstenite::protocol::frame::coding::OpCode::Data(tungstenite::protocol::frame::coding::Data::Binary),
                true,
            ).format(&mut theirs).expect("writing to memory");
            let mut header = [0; SERVER_HEADER_BYTES_MAX];
            let len = encode_server(&mut header, Opcode::Binary, payload_bytes);
            prop_assert_eq!(&theirs[..len], &header[..len]);
            prop_assert_eq!(&theirs[len..], &payload[..]);
        }
    }
}
