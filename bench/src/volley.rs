//! The generator of the echo: many connections, a fixed number of messages of each in flight.                               [mio]
//!
//! Lean, so that it is not the limit: frames are made once, answers are counted by their bytes, and one in some is compared. The same
//! code drives a server of WebSocket frames and a bare one, which sends back what it got.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use tidegate::wire::frame::{self, FrameEnd, HEADER_BYTES_MAX, Opcode, SERVER_HEADER_BYTES_MAX};
use tidegate::wire::mask;

use crate::paired::{Generator, Sample, Watch};

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub connections: usize,
    pub payload: usize,
    pub depth: usize,
    /// The server knows no frames.
    pub is_bare: bool,
}

/// See the module text.
pub struct Volley {
    poll: Poll,
    lines: Vec<Line>,
    shape: Shape,
    /// As many frames as may be in flight, one after the other.
    frames: Vec<u8>,
    frame_bytes: usize,
    reply: Vec<u8>,
    buffer: Vec<u8>,
    replies_count: u64,
    /// No answer is followed by another message.
    is_stopping: bool,
}

struct Line {
    stream: TcpStream,
    /// Bytes that came of the reply that is not whole.
    got: usize,
    /// Bytes to be written, from `at` in the frames on.
    owed: usize,
    at: usize,
    in_flight: usize,
}

impl Volley {
    /// Opens all connections, one after the other.
    pub fn open(address: SocketAddr, shape: Shape) -> Result<Self, String> {
        let payload = vec![b'e'; shape.payload];
        let mut masked = payload.clone();
        let mut header = [0; HEADER_BYTES_MAX];
        let header_len = frame::encode_client(&mut header, Opcode::Binary, FrameEnd::Message, payload.len(), MASK);
        // The whole payload at once: no rest needs the turned mask.
        let _ = mask::apply(&mut masked, MASK);
        let one = [&header[..header_len], &masked].concat();
        let reply = if shape.is_bare {
            one.clone()
        } else {
            let mut header = [0; SERVER_HEADER_BYTES_MAX];
            let len = frame::encode_server(&mut header, Opcode::Binary, payload.len());
            [&header[..len], &payload].concat()
        };
        let mut volley = Self {
            poll: Poll::new().map_err(|error| error.to_string())?,
            lines: Vec::with_capacity(shape.connections),
            shape,
            frames: one.repeat(shape.depth),
            frame_bytes: one.len(),
            reply,
            buffer: vec![0; 256 * 1024],
            replies_count: 0,
            is_stopping: false,
        };
        for index in 0..shape.connections {
            volley.connect(index, address).map_err(|error| format!("connection {index}: {error}"))?;
        }
        Ok(volley)
    }

    fn connect(&mut self, index: usize, address: SocketAddr) -> std::io::Result<()> {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        if !self.shape.is_bare {
            stream.write_all(&request(address))?;
            let mut head = Vec::new();
            let mut byte = [0; 512];
            while !head.ends_with(b"\r\n\r\n") {
                let count = stream.read(&mut byte)?;
                if count == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                head.extend_from_slice(&byte[..count]);
            }
            if !head.starts_with(b"HTTP/1.1 101") {
                return Err(std::io::Error::other(String::from_utf8_lossy(&head).into_owned()));
            }
        }
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        self.poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        self.lines.push(Line { stream, got: 0, owed: 0, at: 0, in_flight: 0 });
        Ok(())
    }

    /// Handles what comes within `duration`, or until nothing is in flight any more.
    fn turn_for(&mut self, events: &mut Events, duration: Duration) -> Result<(), String> {
        let deadline = Instant::now() + duration;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_stopping && self.lines.iter().all(|line| line.in_flight == 0) {
                return Ok(());
            }
            match self.poll.poll(events, Some(left.min(Duration::from_millis(100)))) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(format!("poll: {error}")),
                _ => {}
            }
            for event in events.iter() {
                let index = event.token().0;
                let handled = self.handle(index, event.is_readable(), event.is_writable());
                handled.map_err(|error| format!("connection {index}: {error}"))?;
            }
        }
    }

    fn handle(&mut self, index: usize, is_readable: bool, is_writable: bool) -> Result<(), String> {
        let line = &mut self.lines[index];
        if is_writable && line.owed > 0 {
            line.flush(&self.frames)?;
        }
        if is_readable { self.read(index) } else { Ok(()) }
    }

    /// Whoever rested for long while others were driven has been pinged. What is sent next counts as an answer.
    fn drop_pings(&mut self, index: usize) -> Result<(), String> {
        loop {
            match self.lines[index].stream.read(&mut self.buffer) {
                Ok(0) => return Err(format!("connection {index}: the server closed it")),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("connection {index}: {error}")),
            }
        }
    }

    fn read(&mut self, index: usize) -> Result<(), String> {
        loop {
            let line = &mut self.lines[index];
            let count = match line.stream.read(&mut self.buffer) {
                Ok(0) => return Err("the server closed it".to_owned()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.to_string()),
            };
            let whole = (line.got + count) / self.reply.len();
            if whole > 0 && self.replies_count.is_multiple_of(COMPARED_EVERY) {
                let first = self.reply.len() - line.got;
                if self.buffer[..first] != self.reply[line.got..] {
                    return Err("the echo differs".to_owned());
                }
            }
            line.got = (line.got + count) % self.reply.len();
            self.replies_count += whole as u64;
            line.in_flight = line.in_flight.checked_sub(whole).ok_or("more answers than messages")?;
            if whole > 0 && !self.is_stopping {
                line.in_flight += whole;
                line.owed += whole * self.frame_bytes;
                line.flush(&self.frames)?;
            }
            if count < self.buffer.len() {
                return Ok(());
            }
        }
    }
}

impl Line {
    fn flush(&mut self, frames: &[u8]) -> Result<(), String> {
        while self.owed > 0 {
            let end = frames.len().min(self.at + self.owed);
            match self.stream.write(&frames[self.at..end]) {
                Ok(count) => {
                    self.owed -= count;
                    self.at = (self.at + count) % frames.len();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }
}

impl Generator for Volley {
    fn drive(&mut self, warm_up: Duration, duration: Duration, watch: &mut Watch) -> Result<Sample, String> {
        let mut events = Events::with_capacity(1024);
        self.is_stopping = false;
        for index in 0..self.lines.len() {
            self.drop_pings(index)?;
            let line = &mut self.lines[index];
            line.in_flight = self.shape.depth;
            line.owed = self.frames.len();
            line.flush(&self.frames)?;
        }
        self.turn_for(&mut events, warm_up)?;
        watch.begin()?;
        let before = self.replies_count;
        self.turn_for(&mut events, duration)?;
        let messages = (self.replies_count - before) as f64;
        let sample = watch.end(messages)?;
        self.is_stopping = true;
        self.turn_for(&mut events, DRAIN_MAX)?;
        if self.lines.iter().any(|line| line.in_flight > 0) {
            return Err("not every message came back".to_owned());
        }
        Ok(sample)
    }
}

/// A request for an upgrade to plain WebSocket.
pub fn request(address: SocketAddr) -> Vec<u8> {
    format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes()
}

/// Any mask will do for a server that must unmask; a constant one keeps the generator cheap.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const COMPARED_EVERY: u64 = 61;
const DRAIN_MAX: Duration = Duration::from_secs(10);
