//! Publishers to a NATS JetStream that syncs every message, over the plain text protocol.                                    [mio]
//!
//! ```text
//!  S: INFO {...}     C: CONNECT {...} SUB a.7 1 PING     S: PONG
//!  C: PUB s.7 a.7 200 <payload>                          S: MSG a.7 1 31 {"stream":"BENCH","seq":8}     stored and synced
//! ```

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::durable::Closed;
use crate::pace::nanos;
use crate::send::latency_histogram;

/// Writes the configuration of a server that keeps its promise: each message is synced before it is acknowledged.
pub fn write_configuration(folder: &Path, port: u16) -> Result<(), String> {
    let text = format!(
        "host: 127.0.0.1\nport: {port}\nmax_connections: 100000\njetstream {{\n  store_dir: \"{}\"\n  sync_interval: always\n  \
         max_buffered_msgs: {BUFFERED_MESSAGES_MAX}\n}}\n",
        folder.join("store").display()
    );
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(folder.join("nats.conf"), text))
        .map_err(|error| format!("nats.conf: {error}"))
}

/// See the module text.
pub struct Publishers {
    poll: Poll,
    lines: Vec<Line>,
    in_flight: usize,
    buffer: Vec<u8>,
    origin: Instant,
    latency: Histogram<u64>,
    is_stopping: bool,
}

struct Line {
    stream: TcpStream,
    /// One publication, as it goes out each time.
    publication: Vec<u8>,
    carry: Vec<u8>,
    out: Vec<u8>,
    /// When what is not acknowledged was sent. Acknowledgements come in order.
    sent_at: VecDeque<u64>,
    acknowledged_count: u64,
}

impl Publishers {
    /// Makes the stream and connects so many.
    pub fn open(address: SocketAddr, connections: usize, in_flight: usize, payload_bytes: usize) -> Result<Self, String> {
        let mut publishers = Self {
            poll: Poll::new().map_err(|error| error.to_string())?,
            lines: Vec::with_capacity(connections),
            in_flight,
            buffer: vec![0; 256 * 1024],
            origin: Instant::now(),
            latency: latency_histogram()?,
            is_stopping: false,
        };
        make_stream(address)?;
        for index in 0..connections {
            publishers.connect(index, address, payload_bytes).map_err(|error| format!("connection {index}: {error}"))?;
        }
        Ok(publishers)
    }

    fn connect(&mut self, index: usize, address: SocketAddr, payload_bytes: usize) -> std::io::Result<()> {
        let stream = greet(address, &format!("SUB a.{index} 1\r\n"))?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        self.poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        let publication =
            [format!("PUB s.{index} a.{index} {payload_bytes}\r\n").into_bytes(), vec![b'n'; payload_bytes], b"\r\n".to_vec()];
        let publication = publication.concat();
        self.lines.push(Line {
            stream,
            publication,
            carry: Vec::new(),
            out: Vec::new(),
            sent_at: VecDeque::new(),
            acknowledged_count: 0,
        });
        Ok(())
    }

    fn publish(&mut self, index: usize, count: usize) -> Result<(), String> {
        let now = nanos(self.origin.elapsed());
        let line = &mut self.lines[index];
        for _ in 0..count {
            line.out.extend_from_slice(&line.publication);
            line.sent_at.push_back(now);
        }
        line.flush().map_err(|error| format!("connection {index}: {error}"))
    }

    fn read(&mut self, index: usize) -> Result<(), String> {
        loop {
            let line = &mut self.lines[index];
            match line.stream.read(&mut self.buffer) {
                Ok(0) => return Err("the server closed it".to_owned()),
                Ok(count) => line.carry.extend_from_slice(&self.buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
            let (used, acknowledged) = take(&line.carry, &mut line.out)?;
            line.carry.drain(..used);
            let now = nanos(self.origin.elapsed());
            for _ in 0..acknowledged {
                let sent_at = line.sent_at.pop_front().ok_or("an acknowledgement of nothing")?;
                self.latency.saturating_record(now - sent_at);
            }
            line.acknowledged_count += acknowledged as u64;
            if acknowledged > 0 && !self.is_stopping {
                self.publish(index, acknowledged)?;
            }
        }
    }
}

impl Line {
    fn flush(&mut self) -> std::io::Result<()> {
        let mut at = 0;
        while at < self.out.len() {
            match self.stream.write(&self.out[at..]) {
                Ok(count) => at += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.out.drain(..at);
        Ok(())
    }
}

impl Closed for Publishers {
    fn start(&mut self) -> Result<(), String> {
        self.is_stopping = false;
        (0..self.lines.len()).try_for_each(|index| self.publish(index, self.in_flight))
    }

    fn turn_for(&mut self, duration: Duration) -> Result<(), String> {
        let (deadline, mut events) = (Instant::now() + duration, Events::with_capacity(1024));
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_stopping && self.lines.iter().all(|line| line.sent_at.is_empty()) {
                return Ok(());
            }
            match self.poll.poll(&mut events, Some(left.min(Duration::from_millis(100)))) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(format!("poll: {error}")),
                _ => {}
            }
            for event in &events {
                let index = event.token().0;
                if event.is_writable() {
                    self.lines[index].flush().map_err(|error| format!("connection {index}: {error}"))?;
                }
                if event.is_readable() {
                    self.read(index).map_err(|error| format!("connection {index}: {error}"))?;
                }
            }
        }
    }

    fn acknowledged(&self) -> Vec<u64> {
        self.lines.iter().map(|line| line.acknowledged_count).collect()
    }

    fn latency(&mut self) -> &mut Histogram<u64> {
        &mut self.latency
    }

    fn stop(&mut self) -> Result<(), String> {
        self.is_stopping = true;
        self.turn_for(DRAIN_MAX)?;
        let is_done = self.lines.iter().all(|line| line.sent_at.is_empty());
        if is_done { Ok(()) } else { Err("not every message was acknowledged".to_owned()) }
    }
}

/// Bytes used of `bytes`, and the acknowledgements among them; a PING is answered.
fn take(bytes: &[u8], out: &mut Vec<u8>) -> Result<(usize, usize), String> {
    let (mut used, mut acknowledged) = (0, 0);
    while let Some(end) = bytes[used..].windows(2).position(|two| two == b"\r\n") {
        let line = std::str::from_utf8(&bytes[used..used + end]).map_err(|error| error.to_string())?;
        let after = used + end + 2;
        if let Some(message) = line.strip_prefix("MSG ") {
            let len: usize = message.rsplit(' ').next().and_then(|word| word.parse().ok()).ok_or("a strange MSG")?;
            let Some(body) = bytes.get(after..after + len + 2) else { break };
            if body.starts_with(br#"{"error""#) {
                return Err(String::from_utf8_lossy(body).into_owned());
            }
            acknowledged += 1;
            used = after + len + 2;
            continue;
        }
        match line {
            "PING" => out.extend_from_slice(b"PONG\r\n"),
            "PONG" => {}
            // Sent again when something about the server changes.
            other if other.starts_with("INFO ") => {}
            other => return Err(other.to_owned()),
        }
        used = after;
    }
    Ok((used, acknowledged))
}

fn greet(address: SocketAddr, first: &str) -> std::io::Result<std::net::TcpStream> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("CONNECT {{\"verbose\":false,\"headers\":false}}\r\n{first}PING\r\n").as_bytes())?;
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    while !text.ends_with(b"PONG\r\n") {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        text.extend_from_slice(&buffer[..count]);
    }
    Ok(stream)
}

fn make_stream(address: SocketAddr) -> Result<(), String> {
    let ask = || {
        let mut stream = greet(address, "SUB made 1\r\n")?;
        let body =
            r#"{"name":"BENCH","subjects":["s.*"],"storage":"file","retention":"limits","num_replicas":1,"duplicate_window":0}"#;
        stream.write_all(format!("PUB $JS.API.STREAM.CREATE.BENCH made {}\r\n{body}\r\n", body.len()).as_bytes())?;
        let (mut text, mut buffer) = (String::new(), [0; 16 * 1024]);
        while !text.contains("}\r\n") {
            let count = stream.read(&mut buffer)?;
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        Ok(text)
    };
    let answer: std::io::Result<String> = ask();
    let answer = answer.map_err(|error| format!("stream: {error}"))?;
    if answer.contains("\"error\"") { Err(format!("stream: {answer}")) } else { Ok(()) }
}

/// With as many in flight as here, the ten thousand of its default would make it refuse some.
const BUFFERED_MESSAGES_MAX: usize = 100_000;
/// Sixteen thousand syncs, on a disk that needs some milliseconds for each.
const DRAIN_MAX: Duration = Duration::from_secs(180);
