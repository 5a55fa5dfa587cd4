//! One WebSocket over one TCP connection: a reading thread feeds bytes to whoever owns the link.          [tungstenite]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate::wire::envelope::Encoding;
use tungstenite::client::{ClientRequestBuilder, client_with_config};
use tungstenite::http::Uri;
use tungstenite::protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode};
use tungstenite::{HandshakeError, Message, WebSocket};

use crate::machine::Closed;

/// Longest that opening a socket, and each read and write of the upgrade, may take.
const OPEN_WAIT: Duration = Duration::from_secs(10);
/// How often the reading thread looks whether it is still wanted.
const READ_WAIT: Duration = Duration::from_secs(2);
/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Largest WebSocket message taken from the gateway: a frame of `max_frame` bytes cannot be larger than its length field can say.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024 + 4;

/// Where a gateway is.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint(Uri);

/// Why a URL is of no use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadUrl(String);

impl std::fmt::Display for BadUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is not of the form ws://host:port/path", self.0)
    }
}

impl std::error::Error for BadUrl {}

impl Endpoint {
    /// Reads a URL. TLS is left to a proxy beside the client.
    pub(crate) fn parse(url: &str) -> Result<Self, BadUrl> {
        let bad = || BadUrl(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        (uri.scheme_str() == Some("ws") && uri.host().is_some()).then_some(Self(uri)).ok_or_else(bad)
    }

    /// The same path at another host and port. What is not one leaves the endpoint as it is.
    pub(crate) fn at(&self, target: Option<&str>) -> Self {
        let moved = target.and_then(|target| {
            let mut parts = self.0.clone().into_parts();
            parts.authority = Some(target.parse().ok()?);
            Uri::from_parts(parts).ok()
        });
        Self(moved.unwrap_or_else(|| self.0.clone()))
    }
}

/// What the reading thread hands over.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// Bytes, in order.
    Bytes(Vec<u8>),
    /// The end, by the peer or by a fault.
    End,
}

/// What arrived on a link.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A WebSocket message.
    Message(Vec<u8>),
    /// The connection ended.
    Ended(Closed),
}

/// An upgraded connection.
pub(crate) struct Link {
    socket: WebSocket<Pipe>,
    encoding: Encoding,
    is_wanted: Arc<AtomicBool>,
    close: Option<u16>,
}

impl Link {
    /// Opens a connection and upgrades it. Blocks; on success a thread reads the socket and calls `feed`, until that says `false`.
    pub(crate) fn open(
        endpoint: &Endpoint,
        encoding: Encoding,
        feed: impl FnMut(Inbound) -> bool + Send + 'static,
    ) -> Result<Self, Closed> {
        let stream = dial(&endpoint.0).map_err(|_| Closed::default())?;
        let reading = stream.try_clone().map_err(|_| Closed::default())?;
        let protocol = match encoding {
            Encoding::Binary => "tidegate.v1",
            Encoding::Json => "tidegate.v1.json",
        };
        let request = ClientRequestBuilder::new(endpoint.0.clone()).with_sub_protocol(protocol);
        let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
        let pipe = Pipe { stream, incoming: Some(Incoming::default()), is_direct: true };
        let (mut socket, _) = client_with_config(request, pipe, Some(config)).map_err(refused)?;
        socket.get_mut().is_direct = false;
        reading.set_read_timeout(Some(READ_WAIT)).map_err(|_| Closed::default())?;
        let is_wanted = Arc::new(AtomicBool::new(true));
        let wanted = Arc::clone(&is_wanted);
        let spawned = std::thread::Builder::new().name("tidegate-read".to_owned()).spawn(move || read(reading, &wanted, feed));
        spawned.map_err(|_| Closed::default())?;
        Ok(Self { socket, encoding, is_wanted, close: None })
    }

    /// Takes what the reading thread handed over.
    pub(crate) fn feed(&mut self, inbound: Inbound) {
        let pipe = self.socket.get_mut();
        match (inbound, &mut pipe.incoming) {
            (Inbound::Bytes(bytes), Some(incoming)) => incoming.append(bytes),
            _ => pipe.incoming = None,
        }
    }

    /// The next thing that arrived, out of what was fed.
    pub(crate) fn arrival(&mut self) -> Option<Arrival> {
        loop {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => return Some(Arrival::Message(bytes.into())),
                Ok(Message::Text(text)) => return Some(Arrival::Message(tungstenite::Bytes::from(text).into())),
                Ok(Message::Close(frame)) => {
                    self.close = frame.map(|frame| frame.code.into());
                    // The answer is written as far as it goes; the gateway has said all it wanted.
                    drop(self.socket.flush());
                    return Some(self.ended());
                }
                Ok(_) => {}
                Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(_) => return Some(self.ended()),
            }
        }
    }

    /// Writes one protocol message; nothing is sure to leave before [`Link::flush`].
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Closed> {
        let message = match self.encoding {
            Encoding::Binary => Message::binary(bytes.to_vec()),
            Encoding::Json => Message::text(String::from_utf8_lossy(bytes).into_owned()),
        };
        self.socket.write(message).map_err(|_| Closed { code: self.close, retry_after: None })
    }

    /// Sends what was written.
    pub(crate) fn flush(&mut self) -> Result<(), Closed> {
        self.socket.flush().map_err(|_| Closed { code: self.close, retry_after: None })
    }

    /// Says goodbye. The reading thread drains the socket a while, so that the last bytes are not lost to a reset.
    pub(crate) fn close(mut self, code: u16) {
        drop(self.socket.close(Some(CloseFrame { code: CloseCode::from(code), reason: "".into() })));
        drop(self.socket.flush());
        drop(self.socket.get_ref().stream.shutdown(Shutdown::Write));
        self.is_wanted.store(false, Ordering::Relaxed);
    }

    fn ended(&mut self) -> Arrival {
        self.is_wanted.store(false, Ordering::Relaxed);
        drop(self.socket.get_ref().stream.shutdown(Shutdown::Both));
        Arrival::Ended(Closed { code: self.close, retry_after: None })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.is_wanted.store(false, Ordering::Relaxed);
    }
}

fn dial(uri: &Uri) -> io::Result<TcpStream> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let mut last = io::Error::from(ErrorKind::NotFound);
    for addr in (host, uri.port_u16().unwrap_or(80)).to_socket_addrs()? {
        match TcpStream::connect_timeout(&addr, OPEN_WAIT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(OPEN_WAIT))?;
                stream.set_write_timeout(Some(OPEN_WAIT))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn refused<R: tungstenite::handshake::HandshakeRole>(error: HandshakeError<R>) -> Closed {
    let HandshakeError::Failure(tungstenite::Error::Http(response)) = error else { return Closed::default() };
    let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    Closed { code: None, retry_after: retry_after.map(Duration::from_secs) }
}

fn read(mut stream: TcpStream, is_wanted: &AtomicBool, mut feed: impl FnMut(Inbound) -> bool) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                if !feed(Inbound::Bytes(chunk[..count].to_vec())) {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                if !is_wanted.load(Ordering::Relaxed) {
                    return;
                }
            }
            Err(_) => break,
        }
    }
    feed(Inbound::End);
}

/// What tungstenite reads from and writes to: during the upgrade the socket itself, afterwards what the reading thread handed over.
struct Pipe {
    stream: TcpStream,
    /// `None`: the stream has ended.
    incoming: Option<Incoming>,
    is_direct: bool,
}

#[derive(Default)]
struct Incoming {
    bytes: Vec<u8>,
    start: usize,
}

impl Incoming {
    fn append(&mut self, bytes: Vec<u8>) {
        if self.start == self.bytes.len() {
            self.bytes = bytes;
            self.start = 0;
        } else {
            self.bytes.extend_from_slice(&bytes);
        }
    }
}

impl Read for Pipe {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.is_direct {
            return self.stream.read(out);
        }
        let Some(incoming) = &mut self.incoming else { return Ok(0) };
        let rest = &incoming.bytes[incoming.start..];
        if rest.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        incoming.start += count;
        Ok(count)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
