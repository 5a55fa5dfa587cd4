//! What implementations that are not ours make of the same bytes. Each function takes the verdict of the gateway as well, and panics when
//! the two differ in more than the rules named there: what is accepted by both must mean the same, and what only one accepts must fall
//! under a rule that is stricter, or laxer, on purpose.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ppp::{v1, v2};
use serde_json::{Map, Value};
use tidegate::conn::connection::{Kinds, ReceiveLimits};
use tidegate::conn::deflate::{BLOCK_BYTES, BLOCKS_FREE, Fault};
use tidegate::limits::{JSON_DEPTH_MAX, PROXY_HEADER_BYTES_MAX};
use tidegate::wire::envelope::{ClientFrame, DecodeError, Encoding, Frames};
use tidegate::wire::frame::CONTROL_PAYLOAD_BYTES_MAX;
use tidegate::wire::proxy::{Malformed, Source};
use tidegate::wire::upgrade::{self, Refusal, Request};
use tidegate::wire::violation::Violation;
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{self, create_response};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};
use zlib_rs::{Inflate, InflateFlush, Status};

use crate::websocket::Seen;

/// Frames without compression, by tungstenite: the same messages and control frames, and a stop at the same one. It refuses nothing that
/// is accepted here, and takes nothing that is refused here, but for the rules named below.
pub fn check_frames(stream: &[u8], limits: ReceiveLimits, ours: &[Seen]) {
    let (broken, before) = match ours.split_last() {
        Some((Seen::Broken(rule), before)) => (Some(*rule), before),
        _ => (None, ours),
    };
    let (theirs, is_refused) = read_frames(stream, limits, broken.is_some());
    let goes_on = theirs.starts_with(before);
    match (broken, before) {
        // 1014 came into the registry after RFC 6455 (7.4.2); to tungstenite it is no code.
        (None, [before @ .., Seen::Close(Some(1014), _)]) => assert_eq!(theirs, [before, &[not_a_code()]].concat()),
        (None, _) => assert_eq!((&theirs[..], is_refused), (ours, false), "another reader sees something else"),
        // To a code that may not travel tungstenite answers, and hands its answer out, unless the reason is none either.
        (Some(Violation::CloseCodeInvalid), _) if !is_refused => assert_eq!(theirs, [before, &[not_a_code()]].concat()),
        // "The minimal number of bytes MUST be used to encode the length" (5.2): tungstenite takes any form. In a control frame every
        // longer form breaks this rule, or the one that it has at most 125 bytes (5.5), which tungstenite keeps.
        (Some(Violation::LengthNotMinimal), _) => assert!(goes_on, "{ours:?} and {theirs:?}"),
        (Some(Violation::OversizedControl), _) if theirs.len() > before.len() => {
            let next = &theirs[before.len()];
            assert!(goes_on && matches!(next, Seen::Ping(_) | Seen::Pong(_) | Seen::Close(..)), "{ours:?} and {theirs:?}");
        }
        // The subprotocol says which messages belong here, and the number of fragments is a limit of ours (10.4).
        (Some(Violation::TextNotAccepted), _) if limits.kinds == Kinds::Binary => assert!(goes_on, "{ours:?} and {theirs:?}"),
        (Some(Violation::BinaryNotAccepted), _) if limits.kinds == Kinds::Text => assert!(goes_on, "{ours:?} and {theirs:?}"),
        (Some(Violation::TooManyFragments), _) => assert!(goes_on, "{ours:?} and {theirs:?}"),
        (Some(rule), _) => assert_eq!((&theirs[..], is_refused), (before, true), "another reader takes {rule:?}"),
    }
}

/// What tungstenite hands out, and whether it refuses what comes then.
///
/// It judges a frame when it is whole; ours may have been refused before. `completed` lets more come until it is: bytes of 0x80, which
/// are payload first, and then empty masked frames that end a message if one is open.
fn read_frames(stream: &[u8], limits: ReceiveLimits, completed: bool) -> (Vec<Seen>, bool) {
    let bytes_max = limits.message_bytes_max as usize;
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_message_size(Some(bytes_max))
        .max_frame_size(Some(bytes_max.max(CONTROL_PAYLOAD_BYTES_MAX)));
    let more = if completed { bytes_max + 256 } else { 0 };
    let mut socket = WebSocket::from_raw_socket(Peer { stream, more }, Role::Server, Some(config));
    let mut seen = Vec::new();
    loop {
        match socket.read() {
            Ok(message) => seen.push(keep(message)),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return (seen, false),
            Err(_) => return (seen, true),
        }
        if let Some(Seen::Close(..)) = seen.last() {
            return (seen, false);
        }
    }
}

/// What tungstenite makes of a close code that may not travel.
fn not_a_code() -> Seen {
    Seen::Close(Some(1002), "Protocol violation".to_owned())
}

fn keep(message: Message) -> Seen {
    match message {
        Message::Text(text) => Seen::Text(text.as_bytes().to_vec()),
        Message::Binary(payload) => Seen::Binary(payload.to_vec()),
        Message::Ping(payload) => Seen::Ping(payload.to_vec()),
        Message::Pong(payload) => Seen::Pong(payload.to_vec()),
        Message::Close(None) => Seen::Close(None, String::new()),
        Message::Close(Some(close)) => Seen::Close(Some(close.code.into()), close.reason.as_str().to_owned()),
        Message::Frame(_) => unreachable!("it is never read"),
    }
}

/// Bytes that came, some that may follow, and nobody who hears an answer.
struct Peer<'a> {
    stream: &'a [u8],
    more: usize,
}

impl Read for Peer<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.stream.is_empty() {
            return self.stream.read(buf);
        }
        let count = buf.len().min(self.more);
        self.more -= count;
        buf[..count].fill(0x80);
        if count == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }
}

impl Write for Peer<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A whole request head, by the server's side of tungstenite. What opens a WebSocket here opens it there, with the same answer to its
/// key, unless `Connection` and `Upgrade` are lists, or the target is no URI to it. What opens it there and not here breaks a rule that
/// RFC 6455 leaves to the server, or is a head that two readers could understand differently.
pub fn check_head(head: &[u8], ours: &Result<Request<'_>, Refusal>) {
    let theirs =
        server::Request::try_parse(head).ok().flatten().filter(|(len, _)| *len == head.len()).map(|(_, request)| request);
    let opened = theirs.as_ref().and_then(|request| create_response(request).ok());
    // To it blanks separate the names in `Connection` as well as commas do.
    let splits_at_blanks = header(theirs.as_ref(), "Connection").is_some_and(|value| value.contains(&b' '));
    match (ours, opened) {
        (Ok(request), Some(response)) => {
            let accept = response.headers().get("Sec-WebSocket-Accept").expect("an answer to the key");
            assert_eq!(accept.as_bytes(), upgrade::accept_value(request_key(theirs.as_ref())), "two answers to one key");
            assert!(request.origin.map(str::as_bytes) == header(theirs.as_ref(), "Origin"));
        }
        (Ok(_), None) => {
            let is_one =
                |name: &str, word: &[u8]| header(theirs.as_ref(), name).is_some_and(|value| value.eq_ignore_ascii_case(word));
            let is_plain = is_one("Connection", b"Upgrade") && is_one("Upgrade", b"websocket");
            assert!(!is_plain, "another server refuses what is accepted: {}", String::from_utf8_lossy(head));
        }
        (Err(refusal), Some(_)) => assert!(
            matches!(
                refusal,
                Refusal::HeadTooLarge
                    | Refusal::TooManyHeaders
                    | Refusal::PathUnknown
                    | Refusal::QueryNotAllowed
                    | Refusal::DuplicateHeader
                    | Refusal::HostMissing
                    | Refusal::BodyNotAllowed
                    | Refusal::SubprotocolUnknown
                    | Refusal::ValueNotUtf8
                    | Refusal::OriginNotAllowed
            ) || *refusal == Refusal::ConnectionNotUpgrade && splits_at_blanks,
            "another server accepts what is refused as {}: {}",
            refusal.name(),
            String::from_utf8_lossy(head)
        ),
        (Err(_), None) => {}
    }
}

fn header<'a>(request: Option<&'a server::Request>, name: &str) -> Option<&'a [u8]> {
    request?.headers().get(name).map(|value| value.as_bytes())
}

fn request_key(request: Option<&server::Request>) -> &[u8] {
    header(request, "Sec-WebSocket-Key").expect("a key")
}

/// A PROXY header, by ppp: of what both take, the same client or none, and the same length. What one of them takes alone falls under a
/// rule of [`is_taken_here_alone`] or [`is_refused_here_alone`].
pub fn check_proxy(bytes: &[u8], ours: Result<Option<(Source, usize)>, Malformed>) {
    let theirs = if bytes.first() == Some(&b'P') { proxy_line(bytes) } else { proxy_block(bytes) };
    match (ours, theirs) {
        (Ok(Some(ours)), Some(theirs)) => assert_eq!(ours, theirs, "two readers of one header"),
        (Ok(None) | Err(Malformed), None) => {}
        (Ok(None), Some(theirs)) => panic!("more is waited for than another reader needs for {theirs:?}"),
        (Ok(Some((source, length))), None) => {
            assert_eq!(source, Source::Balancer, "another reader refuses a client");
            assert!(is_taken_here_alone(&bytes[..length]), "another reader refuses a header");
        }
        (Err(Malformed), Some((source, length))) => {
            assert!(is_refused_here_alone(&bytes[..length], source), "another reader takes a header for {source:?}");
        }
    }
}

/// Version 1: "the receiver must ignore anything presented before the CRLF" of an `UNKNOWN` (2.1), of which ppp takes four words.
///
/// Version 2 (2.2): of `LOCAL` "the protocol block including the family" is discarded, and of what is neither TCP over IPv4 nor over IPv6
/// the block is passed over by its length. ppp wants a family and protocol that it knows, and the addresses of the family to be there.
fn is_taken_here_alone(header: &[u8]) -> bool {
    let words = header.split(|&byte| byte == b' ').count();
    let [.., command, family, high, low] = header[..header.len().min(16)] else { return false };
    let addresses_bytes = [0, 12, 36, 216].get(usize::from(family >> 4)).copied();
    let is_known = addresses_bytes.is_some() && family & 0x0f <= 2;
    let is_short = addresses_bytes.is_some_and(|bytes| u16::from_be_bytes([high, low]) < bytes);
    let is_passed_over = command == 0x20 || ![0x11, 0x21].contains(&family);
    if header.starts_with(b"P") {
        header.starts_with(b"PROXY UNKNOWN ") && words > 6
    } else {
        command == 0x20 && !is_known || is_passed_over && is_short
    }
}

/// Version 1: "the receiver must not tolerate a single CR or LF character to end the line", as ppp does with a LF behind a blank, and
/// passes over one behind `UNKNOWN`; "a decimal integer" has no sign (2.1). Version 2: a header may not be of any length here.
fn is_refused_here_alone(header: &[u8], source: Source) -> bool {
    if !header.starts_with(b"P") {
        return header.len() > PROXY_HEADER_BYTES_MAX;
    }
    let is_lone_lf = header.windows(2).any(|two| two[0] != b'\r' && two[1] == b'\n');
    let has_sign = header.split(|&byte| byte == b' ').skip(4).any(|port| port.starts_with(b"+"));
    is_lone_lf || has_sign && source != Source::Balancer
}

/// Whom a header of version 1 names to ppp, and how long it is.
fn proxy_line(bytes: &[u8]) -> Option<(Source, usize)> {
    let header = v1::Header::try_from(bytes).ok()?;
    let source = match header.addresses {
        v1::Addresses::Tcp4(tcp) => client(tcp.source_address.into(), tcp.source_port),
        v1::Addresses::Tcp6(tcp) => client(tcp.source_address.into(), tcp.source_port),
        v1::Addresses::Unknown => Source::Balancer,
    };
    Some((source, header.header.len()))
}

/// As [`proxy_line`], of version 2. It names a client if somebody else's TCP is forwarded.
fn proxy_block(bytes: &[u8]) -> Option<(Source, usize)> {
    let header = v2::Header::try_from(bytes).ok()?;
    let is_tcp = header.command == v2::Command::Proxy && header.protocol == v2::Protocol::Stream;
    let source = match header.addresses {
        v2::Addresses::IPv4(ip) if is_tcp => client(ip.source_address.into(), ip.source_port),
        v2::Addresses::IPv6(ip) if is_tcp => client(ip.source_address.into(), ip.source_port),
        _ => Source::Balancer,
    };
    Some((source, header.header.len()))
}

/// An IPv4 address mapped into IPv6 is an IPv4 address here.
fn client(address: IpAddr, port: u16) -> Source {
    Source::Client(SocketAddr::new(address.to_canonical(), port))
}

/// A compressed message, by zlib-rs: what both take says the same, what is too large here is too large there, and one alone takes
/// nothing, but for the three rules named below. Returns why it is refused there.
pub fn check_message(payload: &[u8], bytes_max: usize, ours: Result<&[u8], Fault>) -> Option<&'static str> {
    let mut theirs = Zlib { stream: Inflate::new(false, 15), message: Vec::new() };
    let whole = [payload, &[0x00, 0x00, 0xff, 0xff]].concat();
    let refused = theirs.read(&whole).err();
    match (ours, refused) {
        (Ok(message), None) => assert_eq!(message, theirs.message, "two readers see two messages"),
        // Blocks cost more than what they hold, so a limit of ours is how many there are (RFC 1951 3.2.3 has none).
        (Err(Fault::Invalid), None | Some(TOO_LONG)) if is_chopped(&whole) => {}
        (Err(Fault::Invalid), Some(why)) => assert_ne!(why, TOO_LONG, "another reader sees a message"),
        // A block without a code for its end (RFC 1951 3.2.7) is refused there by its head, and here is one that was cut off.
        (Ok(message), Some(NO_END)) => assert!(message.starts_with(&theirs.message), "two readers see two messages"),
        (Err(Fault::TooLarge), Some(NO_END)) => {}
        (Err(Fault::TooLarge), _) => assert!(theirs.message.len() > bytes_max, "{} bytes are not too many", theirs.message.len()),
        // Code lengths without a code for any (RFC 1951 3.2.7) are refused here at once. There all lengths are zeros, as many as were
        // announced and however few bits are left, so it may be the end of the message that comes first. So it may where the first length
        // is to be a repeat of the one before it, because how often is read before that.
        (Err(Fault::Invalid), None) => {
            assert!(matches!(theirs.read(&[0; 40]), Err(NO_END | NO_LENGTH)), "another reader sees a message");
        }
        (Ok(_), Some(why)) => panic!("another reader refuses a message: {why}"),
    }
    refused
}

/// Whether a stream is cut into more blocks, up to the end of one of them, than are read here for what they hold.
fn is_chopped(mut rest: &[u8]) -> bool {
    let (mut stream, mut room) = (Inflate::new(false, 15), vec![0; INFLATED_BYTES_MAX]);
    let (mut blocks, mut len) = (0_usize, 0_usize);
    while !rest.is_empty() && len < room.len() {
        let (taken_before, given_before) = (stream.total_in(), stream.total_out());
        let status = stream.decompress(rest, &mut room[len..], InflateFlush::Block);
        rest = &rest[usize::try_from(stream.total_in() - taken_before).expect("within the message")..];
        len += usize::try_from(stream.total_out() - given_before).expect("within the room");
        match status {
            // The end of its last block was told before.
            Ok(Status::StreamEnd) => stream = Inflate::new(false, 15),
            Ok(_) => blocks += 1,
            Err(_) => return false,
        }
        if blocks > BLOCKS_FREE + len / BLOCK_BYTES {
            return true;
        }
    }
    false
}

const NO_END: &str = "invalid code -- missing end-of-block";
const NO_LENGTH: &str = "invalid bit length repeat";
/// Beyond [`INFLATED_BYTES_MAX`].
const TOO_LONG: &str = "too long";
/// Above every limit that is given.
const INFLATED_BYTES_MAX: usize = 256 * 1024;

/// A message as far as zlib-rs has read it.
struct Zlib {
    stream: Inflate,
    message: Vec<u8>,
}

impl Zlib {
    /// Reads on, at once and with no limit but [`INFLATED_BYTES_MAX`]. What follows a final block is a stream of its own.
    fn read(&mut self, mut rest: &[u8]) -> Result<(), &'static str> {
        let mut room = vec![0; INFLATED_BYTES_MAX - self.message.len()];
        while !rest.is_empty() {
            let (taken_before, given_before) = (self.stream.total_in(), self.stream.total_out());
            let status = self.stream.decompress(rest, &mut room, InflateFlush::SyncFlush);
            let taken = usize::try_from(self.stream.total_in() - taken_before).expect("within the message");
            let given = usize::try_from(self.stream.total_out() - given_before).expect("within the room");
            rest = &rest[taken..];
            self.message.extend_from_slice(&room[..given]);
            room.truncate(room.len() - given);
            match status {
                Ok(Status::StreamEnd) => self.stream = Inflate::new(false, 15),
                Ok(_) if rest.is_empty() => {}
                Ok(_) => return Err(TOO_LONG),
                Err(_) => return Err(self.stream.error_message().expect("it says why")),
            }
        }
        Ok(())
    }
}

/// One line of a client, by serde_json: it is an object for both or for neither, but for one that is too deep here; a frame that is read
/// says what the values of the line say. Values are compared where serde_json has all of them: it has none of half a surrogate pair and of
/// a number beyond every float, which are ignored here in a field that the frame does not have.
pub fn check_line(line: &[u8]) {
    let Ok(text) = std::str::from_utf8(line) else { return };
    if text.trim_matches([' ', '\t', '\r']).is_empty() {
        return;
    }
    let ours = Frames::new(Encoding::Json, line).next_frame();
    let is_ours = !matches!(&ours, Err(DecodeError { detail: "not a JSON object", .. }));
    let is_theirs = text.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    let is_deep = depth(text) > JSON_DEPTH_MAX as usize + 1;
    assert_eq!(is_ours, is_theirs && !is_deep, "two verdicts on {text}");
    let values: Result<Map<String, Value>, _> = serde_json::from_str(text);
    if let (Ok(Some(frame)), Ok(values)) = (&ours, &values) {
        assert!(says(frame, &Line(values)), "{frame:?} was read from {text}");
    }
}

/// How many lists and objects are open at once in what is JSON.
fn depth(text: &str) -> usize {
    let (mut open, mut most, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => open += 1,
            b']' | b'}' if !in_string => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// The values of a line, by key; of several equal keys the last.
struct Line<'a>(&'a Map<String, Value>);

impl Line<'_> {
    fn number(&self, key: &str) -> u64 {
        self.0.get(key).map_or(0, |value| value.as_u64().expect("a number"))
    }

    fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", |value| value.as_str().expect("a string"))
    }

    fn decimal(&self, key: &str) -> u64 {
        self.0.get(key).map_or(0, |value| value.as_str().and_then(|digits| digits.parse().ok()).expect("digits"))
    }

    fn hex(&self, key: &str) -> u128 {
        self.0.get(key).map_or(0, |value| u128::from_str_radix(value.as_str().expect("a string"), 16).expect("digits"))
    }

    fn payload(&self) -> Vec<u8> {
        match self.0.get("b64") {
            Some(value) => STANDARD.decode(value.as_str().expect("a string")).expect("base64"),
            None => self.text("text").as_bytes().to_vec(),
        }
    }

    fn list(&self, key: &str) -> &[Value] {
        self.0.get(key).map_or(&[], |value| value.as_array().expect("a list"))
    }
}

/// Whether `frame` is what the line says, field by field.
fn says(frame: &ClientFrame<'_>, line: &Line<'_>) -> bool {
    let is = |name: &str| line.text("t") == name;
    let number = |key: &str, value: u64| line.number(key) == value;
    match frame {
        ClientFrame::Hello(hello) => {
            let numbers = number("minor", hello.minor.into())
                && number("platform", hello.platform.into())
                && number("window", hello.window.into())
                && number("caps", hello.caps.into())
                && number("last_pos", hello.last_pos);
            let names =
                [line.text("device"), line.text("client"), line.text("token")] == [&hello.device, &hello.client, &hello.token];
            is("hello") && numbers && names && line.hex("session") == u128::from_be_bytes(hello.session)
        }
        ClientFrame::Ping { pos } => is("ping") && number("pos", *pos),
        ClientFrame::Auth { rid, token } => is("auth") && number("rid", (*rid).into()) && line.text("token") == token,
        ClientFrame::Send(send) => {
            let trace = send.trace.map(|trace| u128::from_be_bytes(trace.trace_id));
            let traced = line.text("trace").split('-').nth(1).map(|id| u128::from_str_radix(id, 16).expect("digits"));
            is("send")
                && number("rid", send.rid.into())
                && number("kind", send.kind.into())
                && number("ttl_s", send.ttl_s.into())
                && line.hex("cmid") == u128::from_be_bytes(send.cmid.0)
                && line.text("conv") == send.conv
                && line.payload() == *send.payload
                && traced == trace
        }
        ClientFrame::Ack { pos, cursors } => {
            let listed = line.list("cursors").iter().map(|cursor| {
                let cursor = Line(cursor.as_object().expect("an object"));
                (cursor.text("conv").to_owned(), cursor.number("seq"))
            });
            is("ack") && number("pos", *pos) && listed.eq(cursors.iter().map(|cursor| (cursor.conv.to_string(), cursor.seq)))
        }
        ClientFrame::Nack { conv, seq, delay_ms, reason } => {
            let numbers = number("seq", *seq) && number("delay_ms", (*delay_ms).into()) && number("reason", (*reason).into());
            is("nack") && numbers && line.text("conv") == conv
        }
        ClientFrame::Sync { rid, since, limit, cursor } => {
            let numbers = number("rid", (*rid).into()) && line.decimal("since") == *since && number("limit", (*limit).into());
            is("sync") && numbers && line.text("cursor") == cursor
        }
        ClientFrame::Fetch { rid, conv, from, to, limit, flags } => {
            let bounds = number("from", *from) && number("to", *to) && number("limit", (*limit).into());
            is("fetch") && bounds && number("rid", (*rid).into()) && number("flags", (*flags).into()) && line.text("conv") == conv
        }
        ClientFrame::Read { rid, conv, seq } => {
            is("read") && number("rid", (*rid).into()) && number("seq", *seq) && line.text("conv") == conv
        }
        ClientFrame::Watch { rid, ttl_s, users } => {
            let listed = line.list("users").iter().map(|user| user.as_str().expect("a string"));
            let same = users.iter().map(|user| user.to_string()).eq(listed);
            is("watch") && number("rid", (*rid).into()) && number("ttl_s", (*ttl_s).into()) && same
        }
        ClientFrame::Signal { conv, kind, payload } => {
            is("signal") && number("kind", (*kind).into()) && line.text("conv") == conv && line.payload() == **payload
        }
    }
}
