//! What is fuzzed: plain functions of bytes that panic when a promise is broken. Each returns what kind of thing happened, so that
//! inputs that make something new happen are kept and changed further.
//!
//! An input is one byte that chooses settings, one for the number of chunk sizes, the sizes, and then what the peer sends.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use tidegate::conn::carry::HeadCarry;
use tidegate::conn::connection::{Kinds, ReceiveLimits};
use tidegate::conn::deflate::{Deflater, Inflater};
use tidegate::limits::{PROXY_HEADER_BYTES_MAX, UPGRADE_HEAD_BYTES_MAX};
use tidegate::origin::Origin;
use tidegate::wire::forwarded::{self, Header};
use tidegate::wire::frame::Reserved;
use tidegate::wire::proxy::{self, Source};
use tidegate::wire::upgrade::{self, Endpoint, Origins, Policy, Refusal};

use crate::others;
use crate::websocket::{Seen, receive, receive_slowly};

/// Words of HTTP.
pub const UPGRADE_WORDS: [&[u8]; 26] = [
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n",
    b"; server_max_window_bits=10",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b": ",
    b", ",
    b"GET ",
    b"/ws",
    b"?",
    b"http://",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b"Host: h\r\n",
    b"Upgrade: websocket\r\n",
    b"Connection: Upgrade\r\n",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    b"Sec-WebSocket-Version: 13\r\n",
    b"Sec-WebSocket-Protocol: tidegate.v1\r\n",
    b"tidegate.v1.json",
    b"Origin: https://chat.example\r\n",
    b"Authorization: Bearer a.b.c\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"X-Forwarded-For: 1.2.3.4\r\n",
    b"\xc3\xa9",
];

/// Words of the PROXY protocol and of the headers that name a client.
pub const PROXY_WORDS: [&[u8]; 20] = [
    b"PROXY ",
    b"TCP4 ",
    b"TCP6 ",
    b"UNKNOWN",
    b"192.0.2.7 ",
    b"2001:db8::7 ",
    b" 65535",
    b"\r\n",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\x20\0\0\0",
    b"\x21\x11\0\x0c",
    b"\x21\x21\0\x24",
    b"\x04\0\x02ab",
    b"X-Forwarded-For: ",
    b"Forwarded: for=",
    b"10.0.0.2",
    b"\"[2001:db8::7]:1\"",
    b", ",
    b";proto=https",
    b"\\\"",
];

/// Words of RFC 1951: the heads of blocks of each kind, an empty one, a final one, a stored text, four that hold nothing.
pub const DEFLATE_WORDS: [&[u8]; 9] = [
    b"\xf2\x48\xcd\xc9\xc9\x07\0",
    b"\xf3\x48\xcd\xc9\xc9\x07\0\0",
    b"\0\0\0\xff\xff",
    b"\0\x05\0\xfa\xffHello",
    b"\x01\0\0\xff\xff",
    b"\x05\xc0",
    b"\x04\xc0",
    b"\x02\x08\x20\x80\0",
    b"\xff\xff",
];

/// Words of RFC 6455: heads with a mask of zeros, sequences of UTF-8, close codes.
pub const FRAME_WORDS: [&[u8]; 26] = [
    b"\xc1\x87\0\0\0\0\xf2\x48\xcd\xc9\xc9\x07\0",
    b"\x42\x81\0\0\0\0",
    b"\x81\x80\0\0\0\0",
    b"\x82\x81\0\0\0\0",
    b"\x01\x83\0\0\0\0",
    b"\x02\x84\0\0\0\0",
    b"\x00\x81\0\0\0\0",
    b"\x80\x80\0\0\0\0",
    b"\x89\x80\0\0\0\0",
    b"\x8a\x82\0\0\0\0",
    b"\x88\x80\0\0\0\0",
    b"\x88\x82\0\0\0\0\x03\xe8",
    b"\x88\x86\0\0\0\0\x0f\xa0gone",
    b"\x89\xfd\0\0\0\0",
    b"\x82\xfe\0\x7e\0\0\0\0",
    b"\x82\xfe\x04\0\0\0\0\0",
    b"\x81\xfe\xff\xff\0\0\0\0",
    b"\x82\xff\0\0\0\0\0\x01\0\0\0\0\0\0",
    b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
    b"\xce\xba",
    b"\xe2\x82\xac",
    b"\xf0\x9f\x8c\x8a",
    b"\xed\xa0\x80",
    b"\xf4\x90",
    b"\xe2\x82",
    b"\x40",
];

/// A request head in any chunks: found at the same place, judged the same, never held beyond its bound; the answer is one response.
pub fn upgrade(input: &[u8]) -> u64 {
    let (settings, chunks, stream) = split(input);
    let found = find_head(stream, &[usize::MAX]);
    assert_eq!(found, find_head(stream, &chunks), "chunks {chunks:?} find another head");
    let listed = [Origin::read("https://chat.example").expect("an origin")];
    let policy = Policy {
        path: "/ws",
        endpoint: if settings & 1 == 0 { Endpoint::Gateway } else { Endpoint::Echo },
        origins: if settings & 2 == 0 { Origins::Any } else { Origins::Listed { configured: &listed, own: &[] } },
        deflate: settings & 8 != 0,
    };
    let refusal = match found {
        Ok(None) => return 0,
        Ok(Some(end)) => match judge(&stream[..end], &policy) {
            Ok(request) => {
                check_lawful(&stream[..end]);
                assert_eq!(request.encoding.is_some(), policy.endpoint == Endpoint::Gateway);
                let mut out = Vec::new();
                request.write_accept(&mut out);
                let lines = out.split(|&byte| byte == b'\n').count();
                let more = usize::from(request.subprotocol.is_some()) + usize::from(request.deflate.is_some());
                assert_eq!(lines, 6 + more, "the answer has other lines than ours");
                assert!(request.deflate.is_none() || policy.deflate);
                return hash(&(request.encoding.map(|one| one as u8), request.bearer.is_some(), request.origin.is_some()));
            }
            Err(refusal) => refusal,
        },
        Err(refusal) => refusal,
    };
    let mut out = Vec::new();
    refusal.write((settings & 4 != 0).then_some(30), &mut out);
    assert!(out.starts_with(format!("HTTP/1.1 {} ", refusal.status()).as_bytes()));
    hash(&refusal)
}

/// The verdict on a whole head, held against that of another server.
fn judge<'a>(head: &'a [u8], policy: &Policy<'_>) -> Result<upgrade::Request<'a>, Refusal> {
    let judged = upgrade::parse(head, policy);
    others::check_head(head, &judged);
    judged
}

/// A PROXY header: an answer is final whatever comes behind it, lies within its bound and is that of another implementation; whom it names may then speak in HTTP, where the
/// last word of a balancer decides and nobody else's does.
pub fn proxy(input: &[u8]) -> u64 {
    let (_, chunks, stream) = split(input);
    let decoded = proxy::decode(stream);
    let mut end = 0;
    for size in chunks.iter().cycle().take(stream.len()) {
        end = stream.len().min(end + size);
        let known = proxy::decode(&stream[..end]);
        assert!(known == Ok(None) || known == decoded, "more bytes change the answer");
    }
    others::check_proxy(stream, decoded);
    let balancer = SocketAddr::from(([10, 0, 0, 3], 1));
    let stranger = SocketAddr::from(([203, 0, 113, 7], 0));
    let is_trusted = |address: IpAddr| address == balancer.ip();
    let text: Vec<u8> = stream.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    for (header, said) in [(Header::XForwardedFor, "X-Forwarded-For: "), (Header::Forwarded, "Forwarded: for=")] {
        let lines = [stream, b"\r\n", said.split(' ').next().expect("a name").as_bytes(), &text, b"\r\n"].concat();
        assert_eq!(forwarded::client(&lines, header, stranger, is_trusted), stranger, "a stranger is believed");
        let head = [&lines[..], said.as_bytes(), stranger.ip().to_string().as_bytes(), b"\r\n\r\n"].concat();
        assert_eq!(forwarded::client(&head, header, balancer, is_trusted), stranger, "a balancer is not believed");
    }
    match decoded {
        Ok(Some((source, length))) => {
            assert!(length <= stream.len().min(PROXY_HEADER_BYTES_MAX));
            hash(&(length, source == Source::Balancer))
        }
        Ok(None) => {
            assert!(stream.len() < PROXY_HEADER_BYTES_MAX);
            1
        }
        Err(proxy::Malformed) => 2,
    }
}

/// Frames in any chunks: the same events and the same broken rule as at once, as a slow decoder sees them, and, without compression, as
/// another implementation does.
pub fn frame_message(input: &[u8]) -> u64 {
    let (settings, chunks, stream) = split(input);
    let limits = ReceiveLimits {
        message_bytes_max: [100, 1000, 128 * 1024, 16 * 1024 * 1024][usize::from(settings >> 2 & 3)],
        kinds: [Kinds::Both, Kinds::Text, Kinds::Binary, Kinds::Both][usize::from(settings & 3)],
        reserved: if settings & 16 == 0 { Reserved::None } else { Reserved::Deflate },
    };
    let at_once = receive(stream, &[usize::MAX], limits, usize::MAX >> 1);
    assert_eq!(at_once, receive_slowly(stream, limits), "the slow decoder sees something else");
    assert_eq!(at_once, receive(stream, &chunks, limits, usize::MAX >> 1), "chunks {chunks:?} give other events");
    let scarce = receive(stream, &chunks, limits, 2048);
    match scarce.split_last() {
        Some((Seen::Full, before)) => assert_eq!(before, &at_once[..before.len()], "scarce memory changes events"),
        _ => assert_eq!(scarce, at_once, "scarce memory changes events"),
    }
    if limits.reserved == Reserved::None {
        others::check_frames(stream, limits, &at_once);
    }
    for event in &at_once {
        if let Seen::Text(text) = event {
            assert!(std::str::from_utf8(text).is_ok(), "a text that is not UTF-8 was handed out");
        }
    }
    hash(&at_once.iter().map(sort_of).collect::<Vec<_>>())
}

/// One compressed message: what is inflated stays within its limit, and is what another implementation makes of it, at once and without
/// a limit.
pub fn deflate(input: &[u8]) -> u64 {
    let (settings, _, payload) = split(input);
    let bytes_max = [0, 100, 5_000, 128 * 1024][usize::from(settings & 3)];
    let mut out = Vec::new();
    let ours = Inflater::default().inflate(payload, bytes_max, &mut out);
    assert!(out.capacity() <= bytes_max + 8 * 1024, "{} bytes held for a message of {bytes_max}", out.capacity());
    let refused = others::check_message(payload, bytes_max, ours.map(|()| &out[..]));
    hash(&(ours.err().map(|fault| fault as u8), refused, out.len().min(127) / 8))
}

/// A message of every kind of block, as the fuzzer wants its inputs.
pub fn deflate_seed() -> Vec<u8> {
    let text = "what repeats, what repeats, and some that does not: ".repeat(20);
    let mut deflater = Deflater::default();
    let (payload, is_small) = deflater.message(|out| out.extend_from_slice(text.as_bytes()));
    assert!(is_small);
    [&[3, 0][..], payload].concat()
}

fn sort_of(event: &Seen) -> (u8, usize) {
    let steps = |len: usize| len.min(127) / 25 + usize::from(len > 65_535);
    match event {
        Seen::Text(payload) => (0, steps(payload.len())),
        Seen::Binary(payload) => (1, steps(payload.len())),
        Seen::Ping(payload) => (2, usize::from(payload.is_empty())),
        Seen::Pong(payload) => (3, usize::from(payload.is_empty())),
        Seen::Close(code, _) => (4, usize::from(code.is_some())),
        Seen::Broken(rule) => (5, rule.index()),
        Seen::Full => (6, 0),
    }
}

/// Where the head ends in `stream`.
fn find_head(stream: &[u8], chunks: &[usize]) -> Result<Option<usize>, Refusal> {
    let mut carry = HeadCarry::default();
    let mut sizes = chunks.iter().cycle();
    let mut at = 0;
    while at < stream.len() {
        let size = (*sizes.next().expect("a size")).clamp(1, stream.len() - at);
        if let Some(head) = carry.push(&stream[at..at + size])? {
            let end = at + head.consumed_bytes;
            assert_eq!(head.bytes, &stream[..end]);
            return Ok(Some(end));
        }
        at += size;
        assert!(carry.held_bytes() <= UPGRADE_HEAD_BYTES_MAX, "{} bytes of a head are held", carry.held_bytes());
    }
    Ok(None)
}

/// What an accepted head must look like to another reader.
fn check_lawful(head: &[u8]) {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    assert!(head.len() <= UPGRADE_HEAD_BYTES_MAX);
    assert!(!text.replace("\r\n", "").contains(['\r', '\n', '\0']));
    let count = |name: &str| text.split("\r\n").skip(1).filter(|line| line.split(':').next() == Some(name)).count();
    assert_eq!((count("host"), count("sec-websocket-key"), count("sec-websocket-version")), (1, 1, 1));
    assert_eq!(count("transfer-encoding"), 0);
    assert!(count("content-length") <= 1 && count("origin") <= 1 && count("authorization") <= 1);
    assert!(text.trim_start().starts_with("get ") && text.contains("/ws"));
    assert!(!text.trim_start().split("\r\n").next().expect("a line").contains('?'), "a query passed");
}

/// Settings, chunk sizes, and what the peer sends.
fn split(input: &[u8]) -> (u8, Vec<usize>, &[u8]) {
    let (&settings, rest) = input.split_first().unwrap_or((&0, &[]));
    let (&count, rest) = rest.split_first().unwrap_or((&0, &[]));
    let (sizes, stream) = rest.split_at(usize::from(count % 8).min(rest.len()));
    let sizes: Vec<usize> = sizes.iter().map(|&size| usize::from(size) + 1).collect();
    (settings, if sizes.is_empty() { vec![1] } else { sizes }, stream)
}

/// A number for whatever happened.
pub fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}
