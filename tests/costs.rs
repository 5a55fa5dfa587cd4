//! What bytes of a stranger cost: as many again cost as much again, however they come cut. Each place that reads them is given a long input,
//! and a short one as often as it takes to come to as many bytes, and what the two use of a CPU is compared. Work that grows with the square of
//! the input would make the long one [`PARTS`] times as dear.

use std::fs;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tidegate::address::{Network, Networks};
use tidegate::clock::Moment;
use tidegate::config::Secret;
use tidegate::config::settings::Settings;
use tidegate::conn::carry::Stashes;
use tidegate::conn::connection::{Kinds, Reader, Receive, ReceiveLimits};
use tidegate::conn::deflate::Deflater;
use tidegate::ids::{ConnectionId, ReactorId};
use tidegate::limits::{MESSAGE_BYTES_MAX, PROXY_HEADER_BYTES_MAX, TLS_HANDSHAKE_BYTES_MAX, UPGRADE_HEAD_BYTES_MAX};
use tidegate::mail::{Judge, Peer, Submit};
use tidegate::session::auth::Verifier;
use tidegate::shard::{Outlet, Rules, Shard};
use tidegate::wire::envelope::{Encoding, Frames};
use tidegate::wire::frame::Reserved;
use tidegate::wire::tls::{Keys, Pair, Policy, Session};

/// A request head byte by byte, and whole: few long lines, the most lines, and one long list in each header that is read as a list.
#[test]
fn a_head_costs_what_its_bytes_cost() {
    let lists = [
        ("X", "a,"),
        ("Connection", ","),
        ("Upgrade", "a, "),
        ("Sec-WebSocket-Protocol", "a,"),
        ("Sec-WebSocket-Protocol", ","),
        ("Sec-WebSocket-Extensions", "a,"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; a; "),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits=8, "),
        ("X-Forwarded-For", "192.0.2.1, "),
        ("X-Forwarded-For", ","),
    ];
    for (name, item) in lists {
        let head = |size: usize| request(size, |room| format!("{name}: {}\r\n", &item.repeat(room)[..room - name.len() - 4]));
        compare(&format!("{name}: {item}"), UPGRADE_HEAD_BYTES_MAX, &mut Core::new(), head, |core, head| {
            core.connect(head, head.len())
        });
    }
    let lines = |size: usize| request(size, |room| format!("{}\r\n", "X: ".to_owned() + &"y".repeat(room / 56 - 5)).repeat(56));
    let head = |size: usize| request(size, |room| format!("X: {}\r\n", "y".repeat(room - 5)));
    for piece in [1, 7] {
        compare("a head of one line, in pieces", UPGRADE_HEAD_BYTES_MAX, &mut Core::new(), head, |core, head| {
            core.connect(head, piece)
        });
    }
    compare("a head of many lines, in pieces", UPGRADE_HEAD_BYTES_MAX, &mut Core::new(), lines, |core, head| {
        core.connect(head, 1)
    });
}

/// A PROXY header with the most extensions, byte by byte.
#[test]
fn a_proxy_header_costs_what_its_bytes_cost() {
    let header = |size: usize| {
        let length = u16::try_from(size - 16).expect("short");
        let mut header = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11".as_slice(), &length.to_be_bytes(), &[9; 12]].concat();
        header.resize(size, 0);
        header
    };
    compare("a PROXY header", PROXY_HEADER_BYTES_MAX, &mut Core::proxied(), header, |core, header| core.connect(header, 1));
}

/// The first message of a handshake in one record, and in records of one byte each; byte by byte, and whole. It is never complete, so what
/// a handshake costs beside is not in it.
#[test]
fn a_handshake_costs_what_its_bytes_cost() {
    let (keys, _) = keys();
    let message = |size: usize| [&[1, 0, 0xff, 0xff, 3, 3][..], &vec![7; size - 6]].concat();
    let record = |size: usize| [&[22, 3, 1, 0x3f, 0xff][..], &message(size - 5)].concat();
    let records = |size: usize| message(size / 6).into_iter().flat_map(|byte| [22, 3, 1, 0, 1, byte]).collect::<Vec<u8>>();
    let mut core = Core::new();
    core.shard.set_keys(keys);
    core.is_secure = true;
    compare("a record, byte by byte", 16_000, &mut core, record, |core, bytes| core.connect(bytes, 1));
    for piece in [1, 6, usize::MAX] {
        let what = format!("records of one byte, in pieces of {piece}");
        compare(&what, TLS_HANDSHAKE_BYTES_MAX, &mut core, records, |core, bytes| core.connect(bytes, piece));
    }
}

/// Records of a session that is open, byte by byte and whole.
#[test]
fn a_record_costs_what_its_bytes_cost() {
    let (keys, config) = keys();
    for version in [&TLS13, &TLS12] {
        for piece in [1, 100, usize::MAX] {
            let (mut client, session) = shaken(&keys, &config(version));
            let record = |size: usize| {
                std::io::Write::write_all(&mut client.writer(), &vec![7; size - 64]).expect("a buffer");
                sent(&mut client)
            };
            let (mut plain, mut out) = (Vec::new(), Vec::new());
            compare(&format!("a record in pieces of {piece}"), 16_000, &mut { session }, record, |session, record| {
                plain.clear();
                for piece in record.clone().chunks_mut(piece) {
                    session.receive(piece, &mut plain, &mut out).expect("good records");
                }
                assert!(plain.len() + 128 > record.len());
            });
        }
    }
}

/// A WebSocket message byte by byte: in one frame, in frames of one byte, of none, text of long characters, and compressed.
#[test]
fn a_message_costs_what_its_bytes_cost() {
    let whole = |first: u8, payload: &[u8]| {
        let mut frame = vec![first, 0xff];
        frame.extend((payload.len() as u64).to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(payload);
        if payload.len() < 65_536 {
            let short = u16::try_from(payload.len()).expect("below 65,536");
            frame.splice(1..10, [0xfe].into_iter().chain(short.to_be_bytes()));
        }
        frame
    };
    let text = |size: usize| whole(0x81, "\u{1f36a}".repeat((size - 14) / 4).as_bytes());
    let binary = |size: usize| whole(0x82, &vec![7; size - 14]);
    let fragments = |size: usize| [&[0x02, 0x80, 0, 0, 0, 0][..], &[0x00, 0x81, 0, 0, 0, 0, b'x'].repeat(size / 7 - 1)].concat();
    let empty = |size: usize| [&[0x02, 0x80, 0, 0, 0, 0][..], &[0x00, 0x80, 0, 0, 0, 0].repeat(size / 6 - 1)].concat();
    let pings =
        |size: usize| [&[0x02, 0x81, 0, 0, 0, 0, b'x'][..], &[0x89, 0x81, 0, 0, 0, 0, b'x'].repeat(size / 7 - 1)].concat();
    let mut random = 1_u32;
    let compressed = |size: usize| {
        let mut noise = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u8::try_from(random >> 26).expect("6 bits")
        };
        let plain: Vec<u8> = (0..size).map(|_| noise()).collect();
        whole(0xc2, Deflater::default().message(|out| out.extend_from_slice(&plain)).0)
    };
    type Shape<'a> = (&'a str, &'a mut dyn FnMut(usize) -> Vec<u8>);
    let shapes: [Shape<'_>; 6] = [
        ("text", &mut { text }),
        ("binary", &mut { binary }),
        ("fragments of one byte", &mut { fragments }),
        ("empty fragments", &mut { empty }),
        ("pings in a message", &mut { pings }),
        ("a compressed message", &mut { compressed }),
    ];
    let limits = ReceiveLimits { message_bytes_max: MESSAGE_BYTES_MAX, kinds: Kinds::Both, reserved: Reserved::Deflate };
    for (what, make) in shapes {
        compare(what, MESSAGE_BYTES_MAX as usize, &mut Stashes::new(1 << 20), make, |stashes, bytes| {
            let mut receive = Receive::default();
            for byte in bytes.clone().chunks_mut(1) {
                let mut reader = Reader::new(byte, 0);
                while reader.next(&mut receive, stashes, &limits).expect("good frames").is_some() {}
            }
            receive.stop(stashes);
        });
    }
}

/// What a message says, in both encodings: many keys that nobody knows, deep values, long strings with escapes, lists, and many frames.
#[test]
fn an_envelope_costs_what_its_bytes_cost() {
    let most = MESSAGE_BYTES_MAX as usize;
    let json = |size: usize, begin: &str, again: &dyn Fn(usize) -> String, end: &str| {
        let mut text = begin.to_owned();
        for more in (0..).map(again) {
            if text.len() + more.len() + end.len() > size {
                break;
            }
            text.push_str(&more);
        }
        (text + end).into_bytes()
    };
    type Shape<'s> = (&'s str, &'s str, &'s dyn Fn(usize) -> String, &'s str);
    let shapes: [Shape<'_>; 8] = [
        ("keys", r#"{"t":"ping""#, &|index| format!(r#","k{index}":1"#), "}"),
        ("the same key", r#"{"t":"ping""#, &|_| r#","k":1"#.to_owned(), "}"),
        ("keys with escapes", r#"{"t":"ping""#, &|index| format!(r#","\u0074{index}":"\ud83c\udf0a""#), "}"),
        ("spaces", r#"{"t":"ping""#, &|_| " ".to_owned(), "}"),
        ("brackets", r#"{"t":"ping","k":"#, &|_| "[".to_owned(), ""),
        ("a list", r#"{"t":"ack","pos":1,"k":["#, &|index| format!("{}1", if index == 0 { "" } else { "," }), "]}"),
        ("a string with escapes", r#"{"t":"hello","device":"1","token":""#, &|_| r"\u00e4\n\\".to_owned(), "\"}"),
        ("a long number", r#"{"t":"ping","k":1"#, &|_| "0".to_owned(), "}"),
    ];
    let read = |encoding: Encoding| {
        move |(): &mut (), bytes: &Vec<u8>| {
            let mut frames = Frames::new(encoding, bytes);
            while let Ok(Some(frame)) = frames.next_frame() {
                black_box(frame);
            }
        }
    };
    for (what, begin, again, end) in shapes {
        let both = [most, most / PARTS].map(|size| json(size, begin, again, end));
        compare(what, most, &mut (), |size| both[usize::from(size < most)].clone(), read(Encoding::Json));
    }
    let frames = |size: usize| (r#"{"t":"ping"}"#.to_owned() + "\n").repeat(size / 13).into_bytes();
    compare("frames", 6_000, &mut (), frames, read(Encoding::Json));
    let frames = |size: usize| [0x02, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].repeat(size / 12);
    compare("binary frames", 6_000, &mut (), frames, read(Encoding::Binary));
}

/// Compares what `feed` costs with a long input and with [`PARTS`] short ones of as many bytes together. The least of several rounds counts,
/// because others use the machine; making the inputs does not.
fn compare<C>(
    what: &str,
    long_bytes: usize,
    context: &mut C,
    mut make: impl FnMut(usize) -> Vec<u8>,
    mut feed: impl FnMut(&mut C, &Vec<u8>),
) {
    let mut least = [u64::MAX; 2];
    let mut rounds = 1;
    let mut measured = 0;
    while measured < ROUNDS_MEASURED {
        for (least, (bytes, times)) in least.iter_mut().zip([(long_bytes, rounds), (long_bytes / PARTS, rounds * PARTS)]) {
            let inputs: Vec<_> = (0..times).map(|_| make(bytes)).collect();
            let before = thread_cpu_ns();
            inputs.iter().for_each(|input| feed(context, input));
            *least = (*least).min(thread_cpu_ns() - before);
        }
        if least.iter().all(|spent| *spent < ROUND_NS_MIN) {
            (least, rounds) = ([u64::MAX; 2], rounds * 2);
        } else {
            measured += 1;
        }
    }
    let times = least[0] as f64 / least[1].max(1) as f64;
    println!("{what}: {long_bytes} bytes cost {times:.2} times what {PARTS} parts of them cost");
    assert!(times < TIMES_MAX, "{what}: {times:.1} times");
}

/// What this thread has used of a CPU, nanoseconds.
fn thread_cpu_ns() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat of a thread");
    stat.split(' ').next().and_then(|spent| spent.parse().ok()).expect("nanoseconds on the CPU")
}

/// A good request of so many bytes, with a token, of which `more` fills what is left.
fn request(size: usize, more: impl Fn(usize) -> String) -> Vec<u8> {
    let usual = "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidegate.v1\r\nAuthorization: Bearer a\r\n";
    (usual.to_owned() + &more(size - usual.len() - 2) + "\r\n").into_bytes()
}

/// A shard that stands alone. Whatever it wants to send is dropped.
struct Core {
    shard: Shard,
    stashes: Stashes,
    now: Moment,
    is_secure: bool,
}

impl Core {
    /// As a gateway behind balancers, with compression.
    fn new() -> Self {
        Self::with(false)
    }

    /// The same with PROXY headers.
    fn proxied() -> Self {
        Self::with(true)
    }

    fn with(protocol: bool) -> Self {
        let mut settings = Settings::default();
        settings.proxy.networks = Networks(vec![Network::read("192.0.2.1").expect("a network")]);
        settings.proxy.protocol = protocol;
        settings.protocol.deflate = true;
        let rules: Rules = tidegate::gateway::rules(&settings, false, 1, 8, [1; 16]).expect("random bytes");
        let secret = Secret::new(vec![7; 32]).expect("long enough");
        let now = Moment { mono_ns: 1_000_000_000, unix_ms: 1_764_000_000_000 };
        let shard = Shard::new(ReactorId(0), Arc::new(rules), Arc::new(Verifier::new(&secret, 0)), now);
        Self { shard, stashes: Stashes::new(1 << 20), now, is_secure: false }
    }

    /// A connection of a balancer that sends `bytes` in pieces and is gone.
    fn connect(&mut self, bytes: &[u8], piece: usize) {
        self.now.mono_ns += 1_000_000_000;
        let from: SocketAddr = "192.0.2.1:4711".parse().expect("an address");
        let id = self.shard.handle_accept(self.now, Some(from)).expect("room");
        if self.is_secure {
            self.shard.expect_tls(id);
        }
        for piece in bytes.to_vec().chunks_mut(piece) {
            self.shard.handle_bytes(self.now, id, piece, &mut self.stashes, &mut Nowhere);
            while let Some(id) = self.shard.poll_handshake() {
                self.shard.handle_handshake(self.now, id, &mut self.stashes, &mut Nowhere);
            }
        }
        self.end(id);
    }

    fn end(&mut self, id: ConnectionId) {
        self.shard.handle_failed(id);
        self.shard.handle_closed(id, &mut self.stashes);
        while self.shard.poll_command().is_some() {}
        while self.shard.poll_dirty().is_some() {}
    }
}

struct Nowhere;

impl Outlet for Nowhere {
    fn submit(&mut self, mail: Submit) -> Result<(), Submit> {
        Err(mail)
    }

    fn peer(&mut self, _: ReactorId, mail: Peer) -> Result<(), Peer> {
        Err(mail)
    }

    fn judge(&mut self, mail: Judge) -> Result<(), Judge> {
        Err(mail)
    }
}

/// Keys for `localhost`, and clients that trust them and speak one version.
fn keys() -> (Keys, impl Fn(&'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let pair = Pair { name: "test".to_owned(), chain: cert.pem().into(), key: signing_key.serialize_pem().into() };
    let keys = Keys::new(&[pair], Policy::default(), 3_600).expect("good keys");
    let config = move |version: &'static rustls::SupportedProtocolVersion| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).expect("a certificate");
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).expect("a version");
        Arc::new(config.with_root_certificates(roots).with_no_client_auth())
    };
    (keys, config)
}

/// A client and a session whose handshake is over.
fn shaken(keys: &Keys, config: &Arc<ClientConfig>) -> (ClientConnection, Session) {
    let mut client = ClientConnection::new(Arc::clone(config), "localhost".try_into().expect("a name")).expect("a client");
    let mut session = Session::default();
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    while client.is_handshaking() || session.is_handshaking() {
        let mut bytes = sent(&mut client);
        if !session.is_handshaking() {
            session.receive(&mut bytes, &mut plain, &mut out).expect("good records");
        } else if session.hold(&bytes).expect("a handshake") {
            session.step(keys, &mut plain, &mut out).expect("a handshake");
        }
        let mut rest = out.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("a slice");
            client.process_new_packets().expect("good records");
        }
        out.clear();
    }
    (client, session)
}

/// What a client wants to send.
fn sent(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).expect("a vector takes all");
    }
    bytes
}

/// How many short inputs make a long one.
const PARTS: usize = 16;
/// What is far below the square, and far above what a busy machine adds.
const TIMES_MAX: f64 = 3.0;
/// A round must take this long, so that the clock of the thread says something.
const ROUND_NS_MIN: u64 = 20_000_000;
const ROUNDS_MEASURED: usize = 3;
