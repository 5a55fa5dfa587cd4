//! A client's end of a WebSocket: the upgrade, masked frames out, frames in. Slow and obvious.

use tidegate::wire::envelope::Encoding;
use tidegate::wire::mask;

/// What arrived.
#[derive(Debug, PartialEq)]
pub enum Arrival {
    /// The gateway upgraded the connection.
    Upgraded,
    /// It did not: status and `Retry-After`.
    Refused(u16, Option<u64>),
    Message(Vec<u8>),
    Ping(Vec<u8>),
    Close(Option<u16>),
}

/// What came and is not whole yet.
#[derive(Debug, Default)]
pub struct Incoming {
    bytes: Vec<u8>,
    /// So many of them were taken.
    taken: usize,
    is_upgraded: bool,
}

impl Incoming {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.taken));
        self.bytes.extend_from_slice(bytes);
    }

    /// The next arrival that is whole.
    ///
    /// # Errors
    /// What the gateway did wrong.
    pub fn next(&mut self) -> Result<Option<Arrival>, String> {
        if !self.is_upgraded {
            return self.next_head();
        }
        let bytes = &self.bytes[self.taken..];
        if bytes.len() < 2 {
            return Ok(None);
        }
        let (first, second) = (bytes[0], bytes[1]);
        if first & 0x80 == 0 || first & 0x70 != 0 || second & 0x80 != 0 {
            return Err(format!("a frame begins with {first:#x} {second:#x}"));
        }
        let (header, length) = match second & 0x7F {
            126 if bytes.len() < 4 => return Ok(None),
            126 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
            127 if bytes.len() < 10 => return Ok(None),
            127 => {
                let length = u64::from_be_bytes(bytes[2..10].try_into().expect("eight bytes"));
                (10, usize::try_from(length).map_err(|_| "a frame without end")?)
            }
            length => (2, usize::from(length)),
        };
        if bytes.len() < header + length {
            return Ok(None);
        }
        let payload = bytes[header..header + length].to_vec();
        self.taken += header + length;
        match first & 0x0F {
            1 | 2 => Ok(Some(Arrival::Message(payload))),
            8 => Ok(Some(Arrival::Close((payload.len() >= 2).then(|| u16::from_be_bytes([payload[0], payload[1]]))))),
            9 => Ok(Some(Arrival::Ping(payload))),
            10 => self.next(),
            opcode => Err(format!("a frame has opcode {opcode}")),
        }
    }

    fn next_head(&mut self) -> Result<Option<Arrival>, String> {
        assert_eq!(self.taken, 0, "the head comes first");
        let Some(end) = self.bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let head = String::from_utf8(self.bytes.drain(..end + 4).collect()).map_err(|_| "a head that is not text")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("a head without status")?;
        if status == 101 {
            self.is_upgraded = true;
            return Ok(Some(Arrival::Upgraded));
        }
        let retry = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("retry-after: ")?.parse().ok());
        Ok(Some(Arrival::Refused(status, retry)))
    }
}

/// The request for an upgrade.
pub fn upgrade(encoding: Encoding) -> Vec<u8> {
    let protocol = match encoding {
        Encoding::Binary => "tidegate.v1",
        Encoding::Json => "tidegate.v1.json",
    };
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: sim\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    head.into_bytes()
}

/// Appends one masked frame.
pub fn frame(opcode: u8, payload: &[u8], key: [u8; 4], out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | u8::try_from(length).expect("below 126")),
        length @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend_from_slice(&u16::try_from(length).expect("16 bits").to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    let start = out.len();
    out.extend_from_slice(payload);
    let _ = mask::apply(&mut out[start..], key);
}

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PONG: u8 = 10;
