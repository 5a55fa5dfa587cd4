//! The least a server can do, to hold ours against: one thread, edges of epoll, one receive and one send, no protocol.      [mio]
//!
//! - `echo`: what comes in goes out.
//! - `upgrade`: a newcomer is accepted, its request read up to the blank line, a canned 101 sent.
//! - `fanout`: whatever one sends goes to all others of its room, in one send each.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use clap::ValueEnum;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

/// What it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Duty {
    Echo,
    Upgrade,
    Fanout,
}

/// Serves until it is killed. Prints its address first. So many `members`, in the order in which they came, are one room.
pub fn run(duty: Duty, members: usize) -> io::Result<()> {
    let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    println!("{}", listener.local_addr()?);
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut floor = Floor { duty, members, poll, lines: Vec::new(), vacant: Vec::new() };
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match floor.poll.poll(&mut events, None) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            match event.token() {
                LISTENER => floor.accept(&listener)?,
                Token(index) => floor.handle(index, event.is_writable(), &mut buffer),
            }
        }
    }
}

struct Floor {
    duty: Duty,
    members: usize,
    poll: Poll,
    lines: Vec<Option<Line>>,
    vacant: Vec<usize>,
}

struct Line {
    stream: TcpStream,
    /// What the kernel did not take.
    rest: Vec<u8>,
}

impl Floor {
    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        loop {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let index = self.vacant.pop().unwrap_or(self.lines.len());
            self.poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
            let line = Some(Line { stream, rest: Vec::new() });
            if index == self.lines.len() { self.lines.push(line) } else { self.lines[index] = line }
        }
    }

    fn handle(&mut self, index: usize, is_writable: bool, buffer: &mut [u8]) {
        loop {
            let Some(line) = &mut self.lines[index] else { return };
            if is_writable && !line.rest.is_empty() {
                line.flush();
            }
            match line.stream.read(buffer) {
                Ok(count) if count > 0 => {
                    self.answer(index, &buffer[..count]);
                    // As the gateway does: a short read has emptied the socket.
                    if count < buffer.len() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => {
                    self.lines[index] = None;
                    self.vacant.push(index);
                    return;
                }
            }
        }
    }

    fn answer(&mut self, index: usize, bytes: &[u8]) {
        match self.duty {
            Duty::Echo => self.send(index, bytes),
            // A request arrives in one piece on loopback; one that does not is answered twice, and the client says so.
            Duty::Upgrade => self.send(index, CANNED),
            Duty::Fanout => {
                let first = index - index % self.members;
                let end = first.saturating_add(self.members).min(self.lines.len());
                (first..end).filter(|&other| other != index).for_each(|other| self.send(other, bytes));
            }
        }
    }

    fn send(&mut self, index: usize, bytes: &[u8]) {
        let Some(line) = &mut self.lines[index] else { return };
        if !line.rest.is_empty() {
            return line.rest.extend_from_slice(bytes);
        }
        match line.stream.write(bytes) {
            Ok(count) if count == bytes.len() => {}
            Ok(count) => line.rest.extend_from_slice(&bytes[count..]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => line.rest.extend_from_slice(bytes),
            // Its end is told by the next read.
            Err(_) => {}
        }
    }
}

impl Line {
    fn flush(&mut self) {
        while !self.rest.is_empty() {
            match self.stream.write(&self.rest) {
                Ok(count) => drop(self.rest.drain(..count)),
                _ => return,
            }
        }
    }
}

/// As long as what the gateway answers to a plain upgrade.
pub const CANNED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const LISTENER: Token = Token(usize::MAX - 1);
