//! A connection driven by hand, frame by frame or byte by byte, in either encoding.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tidegate::ids::{Cmid, Mid};
use tidegate::wire::envelope::{
    ClientFrame, Cursor, Cursors, Deliver, Encoding, Entry, Hello, Message as PageMessage, Send, ServerFrame, ServerFrames,
    Welcome, encode_client,
};
use tungstenite::client::{ClientRequestBuilder, client_with_config};
use tungstenite::{HandshakeError, Message, WebSocket};

use super::gateway::Gateway;
use super::{PATIENCE, eventually};

pub const ENCODINGS: [Encoding; 2] = [Encoding::Binary, Encoding::Json];

/// A WebSocket that speaks the subprotocol.
pub struct Raw {
    pub socket: WebSocket<TcpStream>,
    pub encoding: Encoding,
    frames: VecDeque<ServerFrame<'static>>,
    rid: u32,
    ended: Option<Option<u16>>,
}

/// What comes next on a connection.
#[derive(Debug, PartialEq)]
pub enum Next {
    Frame(ServerFrame<'static>),
    /// The end, with the code of the Close frame if there was one.
    Closed(Option<u16>),
}

/// A SENT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SentFrame {
    pub rid: u32,
    pub level: u8,
    pub flags: u8,
    pub seq: u64,
    pub mid: Mid,
}

/// An ERROR.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErrorFrame {
    pub rid: u32,
    pub code: u16,
    pub flags: u8,
    pub retry_ms: u32,
}

/// A PAGE.
#[derive(Clone, PartialEq, Debug)]
pub struct PageFrame {
    pub flags: u8,
    pub floor: u64,
    pub head: u64,
    pub messages: Vec<PageMessage<'static>>,
}

impl Raw {
    /// An upgraded connection without HELLO.
    pub fn open(gateway: &Gateway, encoding: Encoding) -> Self {
        let stream = TcpStream::connect(gateway.listen).expect("the gateway listens");
        Self::open_on(stream, encoding, &[])
    }

    /// The same on a connection that exists, with more header lines.
    pub fn open_on(stream: TcpStream, encoding: Encoding, headers: &[(&str, &str)]) -> Self {
        Self::try_open_on(stream, encoding, headers).unwrap_or_else(|status| panic!("no upgrade, but {status}"))
    }

    /// As [`Raw::open_on`], or the status of the refusal.
    fn try_open_on(stream: TcpStream, encoding: Encoding, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let protocol = if encoding == Encoding::Binary { "tidegate.v1" } else { "tidegate.v1.json" };
        let peer = stream.peer_addr().expect("a socket");
        let url = format!("ws://{peer}/ws").parse().expect("a good URL");
        let mut request = ClientRequestBuilder::new(url).with_sub_protocol(protocol);
        for (name, value) in headers {
            request = request.with_header(*name, *value);
        }
        stream.set_nodelay(true).expect("a socket");
        let (socket, response) = match client_with_config(request, stream, None) {
            Ok(upgraded) => upgraded,
            Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => return Err(response.status().as_u16()),
            Err(error) => panic!("the gateway upgrades: {error}"),
        };
        assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
        socket.get_ref().set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
        Ok(Self { socket, encoding, frames: VecDeque::new(), rid: 0, ended: None })
    }

    /// A connection that was welcomed, and its WELCOME.
    pub fn welcomed(gateway: &Gateway, encoding: Encoding, user: &str, device: &str) -> (Self, Welcome<'static>) {
        let mut raw = Self::open(gateway, encoding);
        raw.hello(&gateway.token(user), device);
        let welcome = raw.welcome();
        (raw, welcome)
    }

    /// A connection that was welcomed with these capabilities.
    pub fn capable(gateway: &Gateway, encoding: Encoding, user: &str, device: &str, caps: u32) -> Self {
        let mut raw = Self::open(gateway, encoding);
        let token = gateway.token(user);
        let ClientFrame::Hello(hello) = hello(&token, device) else { unreachable!() };
        raw.put(&ClientFrame::Hello(Hello { caps, ..hello }));
        assert_eq!(raw.welcome().caps, caps);
        raw
    }

    /// As [`Raw::welcomed`], for who does not care what it says.
    pub fn connect(gateway: &Gateway, encoding: Encoding, user: &str, device: &str) -> Self {
        Self::welcomed(gateway, encoding, user, device).0
    }

    /// As [`Raw::connect`], of a gateway whose deadlines may be shorter than this machine takes: `None` if it gave up.
    pub fn connect_in_time(gateway: &Gateway, user: &str, device: &str) -> Option<Self> {
        let token = gateway.token(user);
        let stream = TcpStream::connect(gateway.listen).expect("the gateway listens");
        let mut raw = match Self::try_open_on(stream, Encoding::Binary, &[]) {
            Ok(raw) => raw,
            Err(408) => return None,
            Err(status) => panic!("no upgrade, but {status}"),
        };
        raw.hello(&token, device);
        match raw.next() {
            Next::Frame(ServerFrame::Welcome(_)) => Some(raw),
            Next::Closed(Some(4408)) => None,
            other => panic!("not WELCOME: {other:?}"),
        }
    }

    pub fn hello(&mut self, token: &str, device: &str) {
        self.put(&hello(token, device));
    }

    /// The WELCOME that must come next.
    pub fn welcome(&mut self) -> Welcome<'static> {
        match self.next() {
            Next::Frame(ServerFrame::Welcome(welcome)) => welcome,
            other => panic!("not WELCOME: {other:?}"),
        }
    }

    pub fn next_rid(&mut self) -> u32 {
        self.rid += 1;
        self.rid
    }

    /// Writes one frame as one WebSocket message.
    pub fn put(&mut self, frame: &ClientFrame<'_>) {
        self.put_all(std::slice::from_ref(frame));
    }

    /// Writes frames as one WebSocket message.
    pub fn put_all(&mut self, frames: &[ClientFrame<'_>]) {
        let mut bytes = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            if index > 0 && self.encoding == Encoding::Json {
                bytes.push(b'\n');
            }
            encode_client(self.encoding, frame, &mut bytes);
        }
        self.put_bytes(bytes);
    }

    /// Writes a WebSocket message of the kind the encoding asks for.
    pub fn put_bytes(&mut self, bytes: Vec<u8>) {
        let message = match self.encoding {
            Encoding::Binary => Message::binary(bytes),
            Encoding::Json => Message::text(String::from_utf8(bytes).expect("UTF-8")),
        };
        self.put_message(message);
    }

    pub fn put_message(&mut self, message: Message) {
        // A gateway that has closed meanwhile is seen by who reads.
        drop(self.socket.send(message));
    }

    /// What comes next. Server pings are answered on the way.
    pub fn next(&mut self) -> Next {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(next) = self.poll() {
                return next;
            }
            assert!(Instant::now() < deadline, "nothing comes");
        }
    }

    /// What comes next, if it is there within a few milliseconds.
    pub fn poll(&mut self) -> Option<Next> {
        if let Some(frame) = self.frames.pop_front() {
            return Some(Next::Frame(frame));
        }
        if let Some(code) = self.ended {
            return Some(Next::Closed(code));
        }
        let bytes: Vec<u8> = match self.socket.read() {
            Ok(Message::Binary(bytes)) if self.encoding == Encoding::Binary => bytes.into(),
            Ok(Message::Text(text)) if self.encoding == Encoding::Json => text.as_bytes().to_vec(),
            Ok(Message::Close(frame)) => {
                drop(self.socket.flush());
                self.ended = Some(frame.map(|frame| frame.code.into()));
                return self.poll();
            }
            Ok(Message::Ping(_) | Message::Pong(_)) => return None,
            Ok(other) => panic!("not of this subprotocol: {other:?}"),
            Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(_) => {
                self.ended = Some(None);
                return self.poll();
            }
        };
        // Frames borrow from the message; a test is short, so its bytes may stay.
        let mut frames = ServerFrames::new(self.encoding, Box::leak(bytes.into_boxed_slice()));
        while let Some(frame) = frames.next_frame().expect("the gateway writes what the codec reads") {
            self.frames.push_back(frame);
        }
        self.poll()
    }

    /// The first frame that `pick` wants. What it does not want is dropped.
    pub fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&ServerFrame<'static>) -> Option<T>) -> T {
        loop {
            match self.next() {
                Next::Frame(frame) => {
                    if let Some(wanted) = pick(&frame) {
                        return wanted;
                    }
                }
                Next::Closed(code) => panic!("closed with {code:?} before {what}"),
            }
        }
    }

    /// The code this connection closes with. Frames before it are dropped.
    pub fn closed(&mut self) -> Option<u16> {
        loop {
            if let Next::Closed(code) = self.next() {
                return code;
            }
        }
    }

    /// Writes a SEND and returns its rid.
    pub fn put_send(&mut self, conv: &str, cmid: Cmid, flags: u8, payload: &[u8]) -> u32 {
        let rid = self.next_rid();
        self.put(&send(rid, conv, cmid, flags, payload));
        rid
    }

    /// Sends a new message and waits for its SENT.
    pub fn say(&mut self, conv: &str, text: &str) -> SentFrame {
        let rid = self.put_send(conv, cmid(), 0, text.as_bytes());
        self.sent(rid)
    }

    /// The SENT of `rid`; an ERROR instead fails the test.
    pub fn sent(&mut self, rid: u32) -> SentFrame {
        self.wait("SENT", |frame| match frame {
            ServerFrame::Sent { rid: of, level, flags, seq, mid } if *of == rid => {
                Some(SentFrame { rid, level: *level, flags: *flags, seq: *seq, mid: *mid })
            }
            ServerFrame::Error { rid: of, code, detail, .. } if *of == rid => panic!("ERROR {code} {detail}"),
            _ => None,
        })
    }

    /// The next ERROR.
    pub fn error(&mut self) -> ErrorFrame {
        self.wait("ERROR", |frame| match frame {
            ServerFrame::Error { rid, code, flags, retry_ms, .. } => {
                Some(ErrorFrame { rid: *rid, code: *code, flags: *flags, retry_ms: *retry_ms })
            }
            ServerFrame::Sent { .. } | ServerFrame::Ok { .. } => panic!("not refused: {frame:?}"),
            _ => None,
        })
    }

    /// The next DELIVER.
    pub fn deliver(&mut self) -> Deliver<'static> {
        self.wait("DELIVER", |frame| match frame {
            ServerFrame::Deliver(deliver) => Some(deliver.clone()),
            _ => None,
        })
    }

    /// FETCH and its PAGE.
    pub fn fetch(&mut self, conv: &str, from: u64, to: u64, limit: u16, flags: u8) -> PageFrame {
        let rid = self.next_rid();
        self.put(&ClientFrame::Fetch { rid, conv: conv.into(), from, to, limit, flags });
        self.wait("PAGE", |frame| match frame {
            ServerFrame::Page { rid: of, flags, floor, head, messages, .. } if *of == rid => {
                Some(PageFrame { flags: *flags, floor: *floor, head: *head, messages: messages.clone() })
            }
            ServerFrame::Error { rid: of, code, detail, .. } if *of == rid => panic!("ERROR {code} {detail}"),
            _ => None,
        })
    }

    /// SYNC from `since` to its end: the entries, and the `since` to keep.
    pub fn sync(&mut self, since: u64, limit: u16) -> (Vec<Entry<'static>>, u64) {
        let mut all = Vec::new();
        let mut cursor = Cow::Borrowed("");
        loop {
            let rid = self.next_rid();
            self.put(&ClientFrame::Sync { rid, since, limit, cursor: cursor.clone() });
            let (more, next, until, entries) = self.wait("SYNC_PAGE", |frame| match frame {
                ServerFrame::SyncPage { rid: of, flags, since, cursor, entries } if *of == rid => {
                    Some((flags & 1 != 0, cursor.clone(), *since, entries.clone()))
                }
                ServerFrame::Error { rid: of, code, detail, .. } if *of == rid => panic!("ERROR {code} {detail}"),
                _ => None,
            });
            assert!(limit == 0 || entries.len() <= usize::from(limit));
            all.extend(entries);
            if !more {
                return (all, until);
            }
            cursor = next;
        }
    }

    /// READ and the position in force.
    pub fn read(&mut self, conv: &str, seq: u64) -> u64 {
        let rid = self.next_rid();
        self.put(&ClientFrame::Read { rid, conv: conv.into(), seq });
        self.wait("OK", |frame| match frame {
            ServerFrame::Ok { rid: of, value } if *of == rid => Some(*value),
            ServerFrame::Error { rid: of, code, detail, .. } if *of == rid => panic!("ERROR {code} {detail}"),
            _ => None,
        })
    }

    /// Acknowledges a position and one cursor.
    pub fn ack(&mut self, pos: u64, conv: &str, seq: u64) {
        let cursors = Cursors::List(vec![Cursor { conv: conv.into(), seq }]);
        self.put(&ClientFrame::Ack { pos, cursors });
    }

    /// PING and PONG: everything the reactor wrote before is read afterwards. Returns the frames that came before PONG.
    pub fn ping(&mut self) -> Vec<ServerFrame<'static>> {
        self.put(&ClientFrame::Ping { pos: 0 });
        let mut before = Vec::new();
        loop {
            match self.next() {
                Next::Frame(ServerFrame::Pong { .. }) => return before,
                Next::Frame(frame) => before.push(frame),
                Next::Closed(code) => panic!("closed with {code:?} before PONG"),
            }
        }
    }
}

pub fn hello<'h>(token: &'h str, device: &'h str) -> ClientFrame<'h> {
    ClientFrame::Hello(Hello::new(device, "test/1", token))
}

pub fn send<'s>(rid: u32, conv: &'s str, cmid: Cmid, flags: u8, payload: &'s [u8]) -> ClientFrame<'s> {
    ClientFrame::Send(Send { rid, cmid, flags, kind: 1, ttl_s: 0, trace: None, conv: conv.into(), payload: payload.into() })
}

/// Frames in binary, one after the other: the payload of one message.
pub fn encoded(frames: &[ClientFrame<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| encode_client(Encoding::Binary, frame, &mut bytes));
    bytes
}

/// A cmid that no other message of this process has.
pub fn cmid() -> Cmid {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&std::process::id().to_be_bytes());
    bytes[4..8].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    Cmid(bytes)
}

impl Gateway {
    /// The process lives, serves, has caught no panic, and ends with 0 when asked.
    pub fn ends_well(&mut self) {
        assert!(self.is_running());
        let mut stranger = if self.is_hasty() {
            eventually("a stranger to be served", || Raw::connect_in_time(self, "zoe", "1"))
        } else {
            Raw::connect(self, Encoding::Binary, "zoe", "1")
        };
        stranger.say("d:zoe:zoe", "is anybody there?");
        assert_eq!(self.metric("tidegate_panics_total"), 0.0);
        drop(stranger);
        self.terminate();
        assert_eq!(self.wait().code(), Some(0), "{}", self.log());
        assert!(!self.log().contains("panic"), "{}", self.log());
    }
}
