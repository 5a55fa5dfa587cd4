//! What every client does with the bytes of a WebSocket: the answer to its upgrade, whole frames, and frames of its own. Pure.

use tidegate::wire::frame::{self, FrameEnd, HEADER_BYTES_MAX, Header, Opcode, Sender};
use tidegate::wire::mask;
use tidegate::wire::violation::Violation;

/// The head of the answer to an upgrade and what follows it; `None`: it is not whole yet.
#[must_use]
pub fn answer(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some((&bytes[..end], end + 4))
}

/// Whether the head of an answer says 101.
///
/// # Errors
/// The status it gives instead, `?` if it is no HTTP.
pub fn upgraded(head: &[u8]) -> Result<(), String> {
    if head.starts_with(b"HTTP/1.1 101") {
        return Ok(());
    }
    let text = String::from_utf8_lossy(head);
    Err(text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or("?").to_owned())
}

/// A whole frame: its header, its payload, and the bytes of both.
type Whole<'a> = (Header, &'a [u8], usize);

/// The first frame of `bytes`; `None`: it is not whole yet.
///
/// # Errors
/// The server broke a rule.
pub fn first(bytes: &[u8]) -> Result<Option<Whole<'_>>, Violation> {
    let Some(header) = frame::decode(bytes, Sender::Server)? else { return Ok(None) };
    let end = header.header_bytes.saturating_add(usize::try_from(header.payload_bytes).unwrap_or(usize::MAX));
    Ok(bytes.get(header.header_bytes..end).map(|payload| (header, payload, end)))
}

/// Masks `payload` where it lies and appends it as a frame. Any mask will do for a server that must unmask.
pub fn write(out: &mut Vec<u8>, opcode: Opcode, payload: &mut [u8]) {
    let mut header = [0; HEADER_BYTES_MAX];
    let len = frame::encode_client(&mut header, opcode, FrameEnd::Message, payload.len(), MASK);
    // The whole payload at once: no rest needs the turned mask.
    let _ = mask::apply(payload, MASK);
    out.extend_from_slice(&header[..len]);
    out.extend_from_slice(payload);
}

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer ends with its empty line, and only 101 is good.
    #[test]
    fn answers_are_judged() {
        assert_eq!(answer(b"HTTP/1.1 101 S\r\nA: b\r\n\r"), None);
        let (head, end) = answer(b"HTTP/1.1 101 S\r\nA: b\r\n\r\n\x89\0").unwrap();
        assert_eq!((upgraded(head), end), (Ok(()), 24));
        assert_eq!(upgraded(b"HTTP/1.1 503 Busy"), Err("503".to_owned()));
        assert_eq!(upgraded(b"SSH-2.0"), Err("?".to_owned()));
    }

    /// A frame is seen once it is whole, and one that is masked is none of a server's.
    #[test]
    fn frames_are_seen_when_they_are_whole() {
        let bytes = [0x82, 3, b'a', b'b', b'c', 0x89, 0];
        for length in 0..5 {
            assert_eq!(first(&bytes[..length]), Ok(None));
        }
        let (header, payload, end) = first(&bytes).unwrap().unwrap();
        assert_eq!((header.opcode, payload, end), (Opcode::Binary, &b"abc"[..], 5));
        let mut own = Vec::new();
        write(&mut own, Opcode::Pong, &mut [1, 2]);
        assert!(first(&own).is_err());
    }
}
