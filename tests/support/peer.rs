//! A peer that knows no rules: a TCP connection, bytes written as they are, answers read as they come.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// A TCP connection that knows no rules.
pub struct Peer {
    pub stream: TcpStream,
    received: Vec<u8>,
}

impl Peer {
    pub fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).expect("the gateway listens");
        stream.set_nodelay(true).expect("a socket");
        Self { stream, received: Vec::new() }
    }

    pub fn upgraded(to: SocketAddr, protocol: &str) -> Self {
        let mut peer = Self::connect(to);
        peer.write(upgrade(protocol, "").as_bytes());
        assert_eq!(status(&peer.read_head()), 101);
        peer
    }

    /// Writes; a gateway that closed meanwhile is seen by who reads.
    pub fn write(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes));
    }

    /// Writes a little, again and again, until an answer comes that is no pong.
    pub fn dribble(&mut self, mut some: impl FnMut() -> Vec<u8>) {
        let deadline = Instant::now() + PATIENCE;
        while !self.has_ended() {
            self.write(&some());
            std::thread::sleep(Duration::from_millis(20));
            assert!(Instant::now() < deadline, "nobody minds");
        }
    }

    /// Whether the gateway has ended the connection. Keeps what it reads.
    pub fn has_ended(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket");
        let mut chunk = [0; 4096];
        let ended = loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => break true,
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
        };
        self.stream.set_nonblocking(false).expect("a socket");
        ended
    }

    /// The head of the response, and nothing behind it.
    pub fn read_head(&mut self) -> Vec<u8> {
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            assert_eq!(self.stream.read(&mut byte).expect("an answer"), 1, "the end instead of an answer");
            head.push(byte[0]);
        }
        head
    }

    /// All that comes until the gateway ends the connection.
    pub fn read_all(&mut self) -> Vec<u8> {
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("no end: {error}"),
            }
        }
        drop(self.stream.shutdown(Shutdown::Both));
        std::mem::take(&mut self.received)
    }

    /// The next frame that is no ping of the gateway: its first byte, and its payload.
    pub fn read_frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            let (first, payload) = self.read_any_frame();
            if first != 0x89 {
                return (first, payload);
            }
        }
    }

    fn read_any_frame(&mut self) -> (u8, Vec<u8>) {
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).expect("a frame");
        let mut len = usize::from(head[1]);
        assert!(len != 127, "no frame of these tests is so long");
        if len == 126 {
            let mut long = [0; 2];
            self.stream.read_exact(&mut long).expect("a length");
            len = usize::from(u16::from_be_bytes(long));
        }
        let mut payload = vec![0; len];
        self.stream.read_exact(&mut payload).expect("a payload");
        (head[0], payload)
    }

    /// The code of the Close frame at the end; before it only pings, pongs and protocol frames may stand.
    pub fn closed(&mut self) -> Option<u16> {
        let bytes = self.read_all();
        let mut rest = &bytes[..];
        while let [first, short, after @ ..] = rest {
            let (len, after) = match short {
                126 => (usize::from(u16::from_be_bytes([after[0], after[1]])), &after[2..]),
                len => (usize::from(*len), after),
            };
            assert_eq!((first & 0xf0, len <= after.len()), (0x80, true), "whole frames: {bytes:?}");
            if *first == 0x88 {
                assert_eq!(after.len(), len, "nothing follows a Close frame: {bytes:?}");
                return after.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]]));
            }
            rest = &after[len..];
        }
        None
    }
}

/// A good request for an upgrade to `protocol`, with more header lines.
pub fn upgrade(protocol: &str, more: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: chat.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n{more}\r\n"
    )
}

/// The status of a response that is well formed: a phrase, and unless it is 101 the promise to end, a length that holds and a reason
/// for people.
pub fn status(response: &[u8]) -> u16 {
    let text = std::str::from_utf8(response).expect("HTTP is ASCII here");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole head: {text:?}"));
    let line = head.lines().next().expect("a status line").strip_prefix("HTTP/1.1 ").expect("HTTP/1.1");
    let (code, phrase) = line.split_once(' ').expect("a phrase");
    assert!(!phrase.is_empty());
    let code: u16 = code.parse().expect("a status");
    if code != 101 {
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text}");
        assert!(head.contains("Connection: ") && head.contains("close"), "{text}");
        assert!(body.trim().len() > 3, "{text}");
    }
    code
}
