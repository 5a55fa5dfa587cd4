//! Many WebSocket connections on one thread.                                                                          [mio]
//!
//! Codecs are the gateway's own (`tidegate::wire`). What to say is a [`Script`]; this file opens, upgrades, frames, answers pings
//! and counts. Any surprise (a refusal, a close, a violation) ends the run: a benchmark of errors is none.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::net::sockopt::set_socket_linger;
use tidegate::wire::envelope::{ClientFrame, Cursors, Encoding, ServerFrame, ServerFrames, encode_client};
use tidegate::wire::frame::{self, FrameEnd, HEADER_BYTES_MAX, Opcode, Sender};
use tidegate::wire::mask;

use crate::idle::hello;

/// What the connections say.
pub trait Script {
    /// The connection is upgraded. Whether it is ready; else [`Script::message`] will say so.
    fn opened(&mut self, index: usize, out: &mut Outbox<'_>) -> Ready;
    /// A whole message arrived.
    ///
    /// # Errors
    /// Why the run is worth nothing.
    fn message(&mut self, index: usize, payload: &[u8], out: &mut Outbox<'_>) -> Result<Ready, String>;
    /// What was sent in a ping came back.
    fn pong(&mut self, _payload: &[u8]) {}
}

/// Hands out the frames of one message of the gateway; the connection is ready if any of them says so.
///
/// # Errors
/// What cannot be read, or what `take` refuses.
pub fn each_frame(
    index: usize,
    payload: &[u8],
    mut take: impl FnMut(ServerFrame<'_>) -> Result<Ready, String>,
) -> Result<Ready, String> {
    let mut ready = Ready::NotYet;
    let mut frames = ServerFrames::new(Encoding::Binary, payload);
    while let Some(frame) = frames.next_frame().map_err(|error| format!("connection {index}: {error:?}"))? {
        if take(frame)? == Ready::Yes {
            ready = Ready::Yes;
        }
    }
    Ok(ready)
}

/// Tells the gateway that everything up to `pos` came.
pub fn acknowledge(pos: u64, out: &mut Outbox<'_>) {
    let ack = ClientFrame::Ack { pos, cursors: Cursors::List(Vec::new()) };
    out.message(|bytes| encode_client(Encoding::Binary, &ack, bytes));
}

/// The request that every client begins with.
pub fn upgrade_request(host: &str, path: &str, subprotocol: Option<&str>) -> String {
    let offer = subprotocol.map_or_else(String::new, |name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offer}\r\n"
    )
}

/// One binary message with what `write` appends, framed.
pub fn message(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    Outbox { bytes: &mut bytes, scratch: &mut Vec::new() }.message(write);
    bytes
}

/// Upgrades a stream, says HELLO, and reads what is answered. Whether that is WELCOME.
pub fn greet(stream: &mut (impl Read + Write + ?Sized), host: &str, token: &str) -> io::Result<bool> {
    stream.write_all(upgrade_request(host, "/ws", Some("tidegate.v1")).as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    while !answer.ends_with(b"\r\n\r\n") {
        match stream.read(&mut chunk)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => answer.extend_from_slice(&chunk[..count]),
        }
    }
    stream.write_all(&message(|bytes| encode_client(Encoding::Binary, &ClientFrame::Hello(hello(token)), bytes)))?;
    let count = stream.read(&mut chunk)?;
    Ok(is_welcome(&chunk[..count]))
}

/// Whether a message from the gateway, as it comes on the wire, begins with WELCOME.
fn is_welcome(bytes: &[u8]) -> bool {
    let [_, length, rest @ ..] = bytes else { return false };
    // A length of 126 says that it follows, in two bytes (RFC 6455 5.2).
    let payload = if *length == 126 { rest.get(2..).unwrap_or_default() } else { rest };
    matches!(ServerFrames::new(Encoding::Binary, payload).next_frame(), Ok(Some(ServerFrame::Welcome(_))))
}

/// Lets a socket end by reset when it is closed, so that it does not linger in the kernel.
pub fn resets(stream: impl AsFd) -> io::Result<()> {
    set_socket_linger(stream, Some(Duration::ZERO)).map_err(io::Error::from)
}

/// Whether a connection has come as far as it should before measuring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ready {
    Yes,
    NotYet,
}

/// The connections and their poll.
pub struct Swarm {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    ready_count: usize,
    opening_max: usize,
    address: SocketAddr,
    request: Vec<u8>,
}

impl Swarm {
    /// None yet, all to go to `address` with this subprotocol.
    pub fn new(address: SocketAddr, subprotocol: Option<&str>) -> io::Result<Self> {
        Self::at(address, "/ws", subprotocol)
    }

    /// As [`Swarm::new`], to a server that has its WebSocket at another path.
    pub fn at(address: SocketAddr, path: &str, subprotocol: Option<&str>) -> io::Result<Self> {
        let request = upgrade_request(&address.to_string(), path, subprotocol);
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            connections: Vec::new(),
            buffer: vec![0; 256 * 1024],
            scratch: Vec::new(),
            ready_count: 0,
            opening_max: OPENING_MAX,
            address,
            request: request.into_bytes(),
        })
    }

    /// How many connections may be between connect and ready; 256 unless told.
    pub fn open_at_once(&mut self, max: usize) {
        self.opening_max = max;
    }

    /// Opens connections until there are `count`, all ready.
    pub fn grow(&mut self, count: usize, script: &mut (impl Script + ?Sized)) -> Result<(), String> {
        let started = Instant::now();
        while self.ready_count < count {
            while self.connections.len() < count && self.connections.len() - self.ready_count < self.opening_max {
                self.connect().map_err(|error| format!("connect: {error}"))?;
            }
            self.turn(Duration::from_millis(100), script)?;
            if started.elapsed() > OPENING_WAIT {
                return Err(format!("only {} of {count} connections became ready in time", self.ready_count));
            }
        }
        Ok(())
    }

    /// Also wakes for this descriptor; its events are the caller's to look for.
    pub fn watch(&mut self, fd: &impl AsFd) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&fd.as_fd().as_raw_fd()), WATCHED, Interest::READABLE)
    }

    /// Waits at most `max_wait` and handles what came.
    pub fn turn(&mut self, max_wait: Duration, script: &mut (impl Script + ?Sized)) -> Result<(), String> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(1));
        match self.poll.poll(&mut events, Some(max_wait)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(format!("poll: {error}")),
            _ => {}
        }
        for event in events.iter().filter(|event| event.token() != WATCHED) {
            let index = event.token().0;
            if event.is_writable() {
                self.writable(index)?;
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.readable(index, script)?;
            }
        }
        self.events = events;
        Ok(())
    }

    /// Handles what comes for so long.
    pub fn turn_for(&mut self, duration: Duration, script: &mut (impl Script + ?Sized)) -> Result<(), String> {
        let started = Instant::now();
        while started.elapsed() < duration {
            self.turn(Duration::from_millis(50), script)?;
        }
        Ok(())
    }

    /// Sends one message on a connection.
    pub fn send(&mut self, index: usize, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), String> {
        self.say(index, |out| out.message(write))
    }

    /// Sends what `write` says, in one go.
    pub fn say(&mut self, index: usize, write: impl FnOnce(&mut Outbox<'_>)) -> Result<(), String> {
        let connection = &mut self.connections[index];
        write(&mut Outbox { bytes: &mut connection.out, scratch: &mut self.scratch });
        connection.flush(index)
    }

    /// Ends all connections by reset, so that none of them lingers in the kernel.
    pub fn reset(self) -> Result<(), String> {
        self.connections.iter().try_for_each(|connection| resets(&connection.stream)).map_err(|error| format!("linger: {error}"))
    }

    fn connect(&mut self) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        let token = Token(self.connections.len());
        self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        self.connections.push(Connection { stream, state: State::Connecting, carry: Vec::new(), out: Vec::new(), out_at: 0 });
        Ok(())
    }

    fn writable(&mut self, index: usize) -> Result<(), String> {
        let connection = &mut self.connections[index];
        if connection.state == State::Connecting {
            if let Ok(Some(error)) | Err(error) = connection.stream.take_error() {
                return Err(format!("connection {index}: {error}"));
            }
            connection.state = State::Upgrading;
            connection.out.extend_from_slice(&self.request);
        }
        connection.flush(index)
    }

    fn readable(&mut self, index: usize, script: &mut (impl Script + ?Sized)) -> Result<(), String> {
        loop {
            let connection = &mut self.connections[index];
            let kept = connection.carry.len();
            let room = self.buffer.len();
            self.buffer[..kept].copy_from_slice(&connection.carry);
            let count = match connection.stream.read(&mut self.buffer[kept..]) {
                Ok(0) => return Err(format!("connection {index}: the gateway closed it")),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("connection {index}: {error}")),
            };
            connection.carry.clear();
            let filled = kept + count;
            let used = connection.take(index, &self.buffer[..filled], script, &mut self.scratch, &mut self.ready_count)?;
            connection.carry.extend_from_slice(&self.buffer[used..filled]);
            connection.flush(index)?;
            if filled < room {
                return Ok(());
            }
        }
    }
}

/// Where a script puts what it says on a connection.
pub struct Outbox<'a> {
    bytes: &'a mut Vec<u8>,
    scratch: &'a mut Vec<u8>,
}

impl Outbox<'_> {
    /// One binary message with what `write` appends.
    pub fn message(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.scratch.clear();
        write(self.scratch);
        self.frame(Opcode::Binary);
    }

    /// A ping that carries `payload`.
    pub fn ping(&mut self, payload: &[u8]) {
        self.control(Opcode::Ping, payload);
    }

    fn control(&mut self, opcode: Opcode, payload: &[u8]) {
        self.scratch.clear();
        self.scratch.extend_from_slice(payload);
        self.frame(opcode);
    }

    fn frame(&mut self, opcode: Opcode) {
        let mut header = [0; HEADER_BYTES_MAX];
        let len = frame::encode_client(&mut header, opcode, FrameEnd::Message, self.scratch.len(), MASK);
        // The whole payload at once: no rest needs the turned mask.
        let _ = mask::apply(self.scratch, MASK);
        self.bytes.extend_from_slice(&header[..len]);
        self.bytes.extend_from_slice(self.scratch);
    }
}

struct Connection {
    stream: TcpStream,
    state: State,
    /// An unfinished head or frame.
    carry: Vec<u8>,
    out: Vec<u8>,
    out_at: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Connecting,
    Upgrading,
    Opening,
    Ready,
}

impl Connection {
    /// Handles the whole frames at the front of `bytes`; returns the bytes used.
    fn take(
        &mut self,
        index: usize,
        bytes: &[u8],
        script: &mut (impl Script + ?Sized),
        scratch: &mut Vec<u8>,
        ready_count: &mut usize,
    ) -> Result<usize, String> {
        let mut used = 0;
        if self.state == State::Upgrading {
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(0) };
            if !bytes.starts_with(b"HTTP/1.1 101") {
                return Err(format!("connection {index} was refused: {}", String::from_utf8_lossy(&bytes[..end])));
            }
            used = end + 4;
            self.state = State::Opening;
            let ready = script.opened(index, &mut Outbox { bytes: &mut self.out, scratch });
            self.advance(ready, ready_count);
        }
        loop {
            let rest = &bytes[used..];
            let header = frame::decode(rest, Sender::Server).map_err(|violation| format!("connection {index}: {violation:?}"))?;
            let Some(header) = header else { return Ok(used) };
            let payload_bytes = usize::try_from(header.payload_bytes).map_err(|_| "a frame larger than memory".to_owned())?;
            let Some(payload) = rest.get(header.header_bytes..header.header_bytes + payload_bytes) else { return Ok(used) };
            used += header.header_bytes + payload_bytes;
            let mut out = Outbox { bytes: &mut self.out, scratch };
            match header.opcode {
                Opcode::Binary | Opcode::Text if header.fin => {
                    let ready = script.message(index, payload, &mut out)?;
                    self.advance(ready, ready_count);
                }
                Opcode::Ping => out.control(Opcode::Pong, payload),
                Opcode::Pong => script.pong(payload),
                other => return Err(format!("connection {index}: unexpected {other:?} {:?}", frame::decode_close(payload))),
            }
        }
    }

    fn advance(&mut self, ready: Ready, ready_count: &mut usize) {
        if self.state == State::Opening && ready == Ready::Yes {
            self.state = State::Ready;
            *ready_count += 1;
        }
    }

    fn flush(&mut self, index: usize) -> Result<(), String> {
        while self.out_at < self.out.len() {
            match self.stream.write(&self.out[self.out_at..]) {
                Ok(count) => self.out_at += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("connection {index}: {error}")),
            }
        }
        self.out.clear();
        self.out_at = 0;
        Ok(())
    }
}

/// Any mask will do for a server that must unmask; a constant one keeps the generator cheap.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const OPENING_MAX: usize = 256;
/// How long opening may take.
pub const OPENING_WAIT: Duration = Duration::from_secs(120);
const WATCHED: Token = Token(usize::MAX - 1);
