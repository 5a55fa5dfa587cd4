//! Peers that break every rule, against the real binary: each gets the answer the documents promise, nobody else notices, memory
//! stays within its bounds, and the process is as good afterwards as before.
//!
//! Each test ends with [`Gateway::ends_well`]: no panic was caught, a stranger is still served, and SIGTERM ends the process with 0.

#[path = "support/malformed.rs"]
mod malformed;
mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use malformed::{Case, Expected, On, frame, request};
use support::eventually;
use support::gateway::{Gateway, unix_s};
use support::peer::{Peer, status};
use support::raw::{Next, Raw, cmid, encoded, hello, send};
use tidegate::limits::{FRAGMENTS_PER_MESSAGE_MAX, MESSAGE_BYTES_MAX, STASH_BYTES, STASH_FREE_BYTES};
use tidegate::wire::envelope::{Encoding, ServerFrame, page_flags};
use tungstenite::Message;

const DIRECT: &str = "d:al:bo";
/// Deadlines so long that no answer of these tests is theirs.
const PATIENT: [(&str, &str); 2] = [("protocol.upgrade_ms", "60000"), ("protocol.hello_ms", "60000")];

/// Every case of the table that has an answer gets it: a status with its reason and the end, or a Close frame with its code.
#[test]
fn every_malformed_input_is_answered() {
    let mut gateway = Gateway::with(&PATIENT);
    let mut count = 0;
    for case in malformed::cases().into_iter().filter(|case| case.expected != Expected::Silence) {
        assert_eq!(answer(&gateway, &case), case.expected, "{}", case.name);
        count += 1;
    }
    eprintln!("{count} cases answered");
    assert!(count > 100);
    gateway.ends_well();
}

/// What could still become good is waited for, but not for ever: 408 before the upgrade, 4408 after it.
#[test]
fn what_never_comes_is_given_up() {
    let mut gateway = Gateway::with(&[("protocol.upgrade_ms", "3000"), ("protocol.hello_ms", "200")]);
    for case in malformed::cases().into_iter().filter(|case| case.expected == Expected::Silence) {
        let expected = if case.on == On::Connect { Expected::Status(408) } else { Expected::Close(4408) };
        assert_eq!(answer(&gateway, &case), expected, "{}", case.name);
    }
    gateway.ends_well();
}

/// A request head that comes byte by byte ends with 408, however lively the trickle.
#[test]
fn a_dribbled_head_is_given_up() {
    let mut gateway = Gateway::with(&[("protocol.upgrade_ms", "500")]);
    let mut peer = Peer::connect(gateway.listen);
    peer.write(&request("none", "")[..60]);
    peer.dribble(|| b"x".to_vec());
    assert_eq!(status(&peer.read_all()), 408);
    gateway.ends_well();
}

/// A message that comes byte by byte, or in empty fragments, or with pings in between, ends with 1008; HELLO so with 4408.
#[test]
fn a_dribbled_message_is_given_up() {
    let mut gateway = Gateway::with(&[("protocol.message_ms", "1000"), ("protocol.hello_ms", "60000")]);
    let begun = [&[0x82, 0xfe][..], &1000_u16.to_be_bytes(), &[0; 4]].concat();
    let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
    peer.write(&begun);
    peer.dribble(|| vec![0]);
    assert_eq!(peer.closed(), Some(1008));

    let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
    peer.write(&frame(0x02, b"x"));
    peer.dribble(|| frame(0x00, b""));
    assert_eq!(peer.closed(), Some(1008));

    let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1.json");
    peer.write(&frame(0x01, b"{"));
    peer.dribble(|| [frame(0x89, b"still here"), frame(0x00, b" ")].concat());
    assert_eq!(peer.closed(), Some(1008));
    gateway.ends_well();

    let mut gateway = Gateway::with(&[("protocol.hello_ms", "1000")]);
    let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
    peer.write(&begun);
    peer.dribble(|| vec![0]);
    assert_eq!(peer.closed(), Some(4408));
    let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
    peer.dribble(|| frame(0x89, b"no HELLO"));
    assert_eq!(peer.closed(), Some(4408));
    gateway.ends_well();
}

/// Who asks and asks and never reads is cut off as a slow reader; what waits for it stays within its own share, and the sender of
/// what it does not read notices nothing.
#[test]
fn a_receiver_that_never_reads_is_cut_off() {
    let settings = [("limits.write_stall_ms", "1000"), ("protocol.ping_ms", "600000"), ("limits.queue_bytes_soft", "16384")];
    let mut gateway = Gateway::with(&settings);
    let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    bo.say(DIRECT, "before");
    // Each ping costs the gateway a pong; kernel buffers fill first, then our queue, then reading stops.
    let pings = frame(0x89, &[7; 125]).repeat(500);
    let stream = al.socket.get_mut();
    stream.set_nonblocking(true).expect("a socket");
    let mut at = 0;
    eventually("the end of the slow reader", || {
        for _ in 0..100 {
            match stream.write(&pings[at..]) {
                Ok(count) => at = (at + count) % pings.len(),
                Err(_) => break,
            }
        }
        assert!(gateway.counted("tidegate_queued_bytes") < 1024.0 * 1024.0);
        (gateway.metric(r#"tidegate_closes_total{cause="slow_reader"}"#) >= 1.0).then_some(())
    });
    bo.say(DIRECT, "after");
    gateway.ends_well();
}

/// Too large in every way: the answer comes as soon as the size is known, and the largest that is allowed passes.
#[test]
fn what_is_too_large_is_refused() {
    let mut gateway = Gateway::with(&PATIENT);
    // A head above its limit, and one header above it, in one piece and in many.
    let many = request("", "X-Long: yyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(260));
    let single = request("", format!("Cookie: {}\r\n", "c".repeat(9 * 1024)));
    for head in [many, single] {
        for piece in [head.len(), 1000, 100] {
            let mut peer = Peer::connect(gateway.listen);
            head.chunks(piece).for_each(|piece| peer.write(piece));
            assert_eq!(status(&peer.read_all()), 431, "in pieces of {piece}");
        }
    }
    // A length that is announced and nothing else, before and after WELCOME.
    let announced = [&[0x81, 0xff][..], &(u64::from(MESSAGE_BYTES_MAX) + 1).to_be_bytes(), &[0; 4]].concat();
    let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1.json");
    peer.write(&announced);
    assert_eq!(peer.closed(), Some(1009));
    let mut al = Raw::connect(&gateway, Encoding::Json, "al", "1");
    put(&mut al, &announced);
    assert_eq!(al.closed(), Some(1009));
    // The longest message passes, whole and in as many fragments as it has bytes; one byte more does not.
    let mut text = br#"{"t":"ping"}"#.to_vec();
    text.resize(MESSAGE_BYTES_MAX as usize, b' ');
    let mut al = Raw::connect(&gateway, Encoding::Json, "al", "1");
    put(&mut al, &frame(0x81, &text));
    pong(&mut al);
    put(&mut al, &fragments(&text, 1));
    pong(&mut al);
    text.push(b' ');
    put(&mut al, &fragments(&text, 4096));
    assert_eq!(al.closed(), Some(1009));
    // 65,536 fragments are allowed, were they empty; as many as a message may not have are not.
    let mut al = Raw::connect(&gateway, Encoding::Json, "al", "1");
    put(&mut al, &fragments(&[br#"{"t":"ping"}"#, &vec![b' '; 65_536 - 12][..]].concat(), 1));
    pong(&mut al);
    put(&mut al, &frame(0x01, br#"{"t":"ping"}"#));
    put(&mut al, &frame(0x00, b"").repeat(65_534));
    put(&mut al, &frame(0x80, b""));
    pong(&mut al);
    put(&mut al, &frame(0x01, b"{"));
    put(&mut al, &frame(0x00, b"").repeat(FRAGMENTS_PER_MESSAGE_MAX as usize));
    assert_eq!(al.closed(), Some(1009));
    gateway.ends_well();
}

/// 2,000 sessions that each send most of a large message and stop: memory stays under the bound of all stashes. Those who hold the most are
/// closed with 4503, and nobody who needs little; what they held is free once they are gone.
#[test]
fn unfinished_messages_stay_within_their_bound() {
    const PEERS: usize = 2_000;
    const SENT: usize = 100 * 1024;
    // The peers answer no pings.
    let settings = [PATIENT[0], PATIENT[1], ("protocol.message_ms", "600000"), ("protocol.ping_ms", "600000"), ("reactors", "2")];
    let mut gateway = Gateway::with(&settings);
    let before = gateway.resident_bytes();
    let bound = (STASH_BYTES.node + 2 * STASH_FREE_BYTES.part(2)) as u64;
    // Tables, sockets' bookkeeping, the receive buffers, and what the allocator holds while a stash moves to a larger place.
    let allowance = 48 * 1024 * 1024;
    assert!((PEERS * SENT) as u64 > bound + allowance, "the flood must exceed what is allowed");
    let most = [&[0x82, 0xff][..], &u64::from(MESSAGE_BYTES_MAX).to_be_bytes(), &[0; 4], &[7; SENT][..]].concat();
    let mut honest: Vec<Raw> =
        (0..8).map(|number| Raw::connect(&gateway, Encoding::Binary, &format!("al-{number}"), "1")).collect();
    let mut peers: Vec<Peer> = Vec::new();
    let mut highest = 0;
    for number in 0..PEERS {
        let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
        peer.write(&frame(0x82, &encoded(&[hello(&gateway.token(&format!("peer-{number}")), "1")])));
        assert_eq!(peer.read_frame().1[0], 0x41, "WELCOME");
        peer.write(&most);
        peers.push(peer);
        if number % 100 == 99 {
            highest = highest.max(gateway.resident_bytes());
        }
    }
    settle(&gateway, || highest = highest.max(gateway.resident_bytes()));
    let held = gateway.counted("tidegate_stash_bytes");
    eprintln!(
        "{PEERS} peers: resident {} MiB before, {} MiB at most, {} MiB in stashes, bound {} MiB",
        before >> 20,
        highest >> 20,
        held / 1024.0 / 1024.0,
        bound >> 20
    );
    assert!(held <= bound as f64, "{held} bytes in stashes");
    assert!(held >= STASH_BYTES.most as f64 / 2.0, "the flood filled no stash: {held}");
    assert!(highest <= before + bound + allowance, "{highest} bytes resident, {before} before");
    // Meanwhile others are served, also those whose messages come in two pieces.
    let mut rests = Vec::new();
    for (number, al) in honest.iter_mut().enumerate() {
        let conv = format!("d:al-{number}:bo");
        let bytes = frame(0x82, &encoded(&[send(7, &conv, cmid(), 0, &[b'x'; 60_000])]));
        let (first, rest) = bytes.split_at(59_000);
        put(al, first);
        rests.push(rest.to_vec());
    }
    settle(&gateway, || {});
    for (al, rest) in honest.iter_mut().zip(rests) {
        put(al, &rest);
        al.sent(7);
    }
    // Whom nobody knows makes no room: it ends itself.
    let mut strangers: Vec<Peer> = (0..100).map(|_| Peer::upgraded(gateway.listen, "tidegate.v1")).collect();
    for stranger in &mut strangers {
        stranger.write(&[&[0x82, 0xfe][..], &16_384_u16.to_be_bytes(), &[0; 4], &[7; 16_000]].concat());
    }
    settle(&gateway, || {});
    assert!(strangers.iter_mut().any(|stranger| stranger.has_ended() && stranger.closed() == Some(4503)), "all found room");
    let mut told = 0_u32;
    for peer in &mut peers {
        told += u32::from(peer.has_ended() && peer.closed() == Some(4503));
    }
    assert!(told > 0, "some were closed");
    drop((peers, honest, strangers));
    eventually("the end of all of them", || (gateway.metric("tidegate_connections_open") == 0.0).then_some(()));
    assert_eq!(gateway.counted("tidegate_stash_bytes"), 0.0);
    assert!(gateway.counted(r#"tidegate_closes_total{cause="overloaded"}"#) >= f64::from(told));
    eprintln!("{told} told 4503; resident {} MiB afterwards", gateway.resident_bytes() >> 20);
    gateway.ends_well();
}

/// Before WELCOME nobody may have more under way than the longest HELLO needs: 1009 by the length alone, in one frame and in many.
#[test]
fn strangers_keep_little() {
    let mut gateway = Gateway::with(&PATIENT);
    let announced = |bytes: u16| [&[0x82, 0xfe][..], &bytes.to_be_bytes(), &[0; 4]].concat();
    let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
    peer.write(&announced(16_385));
    assert_eq!(peer.closed(), Some(1009));
    let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
    peer.write(&[frame(0x02, &[7; 10_000]), frame(0x00, &[7; 6_385])].concat());
    assert_eq!(peer.closed(), Some(1009));
    let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
    peer.write(&announced(16_384));
    peer.write(&[7; 16_000]);
    settle(&gateway, || {});
    assert!(!peer.has_ended(), "as long as HELLO may be");
    gateway.ends_well();
}

/// Waits until the gateway has read all that was written: for one turn of every reactor after the last byte.
fn settle(gateway: &Gateway, mut look: impl FnMut()) {
    let mut settled = (0.0, Instant::now());
    eventually("all that was written to be read", || {
        look();
        let received = gateway.counted("tidegate_bytes_received_total");
        if received > settled.0 {
            settled = (received, Instant::now());
        }
        (settled.1.elapsed() > Duration::from_millis(500)).then_some(())
    });
}

/// Tokens that are forged, bent or too early are 2001 and 4401, whatever else they say; HELLO with a bad name is 1002.
#[test]
fn a_bad_hello_is_named() {
    let mut gateway = Gateway::with(&PATIENT);
    let later = unix_s() + 3600;
    let hs256 = r#"{"alg":"HS256","typ":"JWT"}"#;
    let good = format!(r#"{{"sub":"al","exp":{later}}}"#);
    let token = gateway.token_of(hs256, &good);
    let (head, signature) = token.rsplit_once('.').expect("three parts");
    let claims = |claims: &str| gateway.token_of(hs256, &claims.replace("LATER", &later.to_string()));
    let tokens = [
        ("no signature", format!("{head}.")),
        ("two parts", head.to_owned()),
        ("four parts", format!("{token}.x")),
        ("a cut signature", format!("{head}.{}", &signature[..signature.len() - 4])),
        ("another signature", format!("{head}.{}", signature.chars().rev().collect::<String>())),
        ("padding", format!("{token}=")),
        ("dots", "..".to_owned()),
        ("a NUL", "\0".to_owned()),
        ("algorithm none", gateway.token_of(r#"{"alg":"none"}"#, &good)),
        (
            "algorithm none without a signature",
            gateway.token_of(r#"{"alg":"none"}"#, &good).rsplit_once('.').unwrap().0.to_owned() + ".",
        ),
        ("another algorithm", gateway.token_of(r#"{"alg":"HS512"}"#, &good)),
        ("an algorithm of another kind", gateway.token_of(r#"{"alg":"RS256"}"#, &good)),
        ("a critical extension", gateway.token_of(r#"{"alg":"HS256","crit":["x"]}"#, &good)),
        ("a header that is no JSON", gateway.token_of("alg", &good)),
        ("claims that are no JSON", claims("sub=al")),
        ("deep claims", claims(&format!("{}{}", "[".repeat(3000), "]".repeat(3000)))),
        ("no sub", claims(r#"{"exp":LATER}"#)),
        ("an empty sub", claims(r#"{"sub":"","exp":LATER}"#)),
        ("a sub that is no name", claims(r#"{"sub":"a:b","exp":LATER}"#)),
        ("a sub of 65 bytes", claims(&format!(r#"{{"sub":"{}","exp":LATER}}"#, "a".repeat(65)))),
        ("a sub that is a number", claims(r#"{"sub":1,"exp":LATER}"#)),
        ("no exp", claims(r#"{"sub":"al"}"#)),
        ("a negative exp", claims(r#"{"sub":"al","exp":-1}"#)),
        ("an exp in text", claims(r#"{"sub":"al","exp":"LATER"}"#)),
        ("an exp beyond all numbers", claims(r#"{"sub":"al","exp":99999999999999999999}"#)),
        ("an exp in milliseconds", claims(r#"{"sub":"al","exp":LATER000}"#)),
        ("another device", claims(r#"{"sub":"al","exp":LATER,"dev":"2"}"#)),
        ("a device that is null", claims(r#"{"sub":"al","exp":LATER,"dev":null}"#)),
        ("not yet", claims(r#"{"sub":"al","exp":LATER,"nbf":LATER}"#)),
    ];
    for (name, token) in &tokens {
        for encoding in [Encoding::Binary, Encoding::Json] {
            let mut raw = Raw::open(&gateway, encoding);
            raw.hello(token, "1");
            assert_eq!(fatal(&mut raw), (2001, Some(4401)), "{name}");
        }
    }
    let expired = claims(r#"{"sub":"al","exp":1}"#);
    let mut raw = Raw::open(&gateway, Encoding::Binary);
    raw.hello(&expired, "1");
    assert_eq!(fatal(&mut raw), (2002, Some(4401)));
    for device in ["", "a b", "ä", "\0", &"x".repeat(65), "x\n", "../x"] {
        for encoding in [Encoding::Binary, Encoding::Json] {
            let mut raw = Raw::open(&gateway, encoding);
            raw.hello(&token, device);
            assert_eq!(fatal(&mut raw), (1002, Some(4400)), "{device:?}");
        }
    }
    let mut al = Raw::open(&gateway, Encoding::Binary);
    al.hello(&token, "1");
    assert_eq!(al.welcome().user, "al");
    gateway.ends_well();
}

/// Binary frames with wrong fields, lengths that lie, lists that are too long and names that are not UTF-8.
#[test]
fn a_bad_binary_envelope_is_named() {
    let mut gateway = Gateway::start();
    let named = |of: u8, parts: &[&[u8]]| envelope(of, &parts.concat());
    let (rid, zero_rid, mark) = ([1, 0, 0, 0], [0; 4], cmid().0);
    let rest = [&[0, 1, 0, 0, 0, 0, 0, 7][..], b"d:al:bo", &[2, 0, 0, 0], b"hi"].concat();
    let cursors = |count: u16, sent: u16| {
        let one = [&[1, b'x'][..], &1_u64.to_le_bytes()].concat();
        named(0x11, &[&[0; 8], &count.to_le_bytes(), &one.repeat(usize::from(sent))])
    };
    let users = |count: u16| named(0x33, &[&rid, &[0; 4], &count.to_le_bytes(), &[1, b'x'].repeat(usize::from(count))]);
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("a cmid of zeros", named(0x10, &[&rid, &[0; 16], &rest]), 1002),
        ("rid 0 in SEND", named(0x10, &[&zero_rid, &mark, &rest]), 1002),
        ("TRANSIENT with RETRY", named(0x10, &[&rid, &mark, &[3], &rest[1..]]), 1002),
        ("rid 0 in SYNC", named(0x30, &[&zero_rid, &[0; 8], &[0; 2], &[0]]), 1002),
        ("rid 0 in AUTH", named(0x03, &[&zero_rid, &[0; 2]]), 1002),
        ("rid 0 in WATCH", named(0x33, &[&zero_rid, &[0; 6]]), 1002),
        ("257 cursors", cursors(257, 257), 1002),
        ("201 users", users(201), 1002),
        ("a list that ends early", cursors(256, 255), 1001),
        ("a conv that is not UTF-8", named(0x32, &[&rid, &[3, b'd', 0xff, b'x'], &[0; 8]]), 1002),
        ("an overlong conv", named(0x31, &[&rid, &[3, 0xe0, 0x80, 0x80], &[0; 19]]), 1002),
        ("a user that is not UTF-8", named(0x33, &[&rid, &[0; 4], &[1, 0], &[1, 0x80]]), 1002),
        ("a cursor that is not UTF-8", named(0x30, &[&rid, &[0; 8], &[0; 2], &[2, 0xc3, 0x28]]), 1002),
        ("a token that is not UTF-8", named(0x03, &[&rid, &[1, 0], &[0xff]]), 1002),
        ("a conv longer than its frame", named(0x32, &[&rid, &[255, b'x']]), 1001),
        ("a payload longer than its frame", named(0x10, &[&rid, &mark, &rest[..rest.len() - 6], &[0xff; 4], b"hi"]), 1001),
        ("a body of nothing", envelope(0x10, b""), 1001),
        ("half a header", vec![0x02, 8], 1001),
        ("a length beyond the message", vec![0x02, 0xff, 0xff, 0xff], 1001),
        ("an unknown type", envelope(0x05, b""), 1003),
        ("type 0", envelope(0x00, b""), 1003),
        ("a frame of the gateway", envelope(0x60, &[0; 64]), 1003),
        ("513 frames", envelope(0x02, &[0; 8]).repeat(513), 1001),
        ("513 frames to be skipped", envelope(0xff, b"").repeat(513), 1001),
        ("noise", (0..4096_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 & 0x7f | 0x04).collect(), 1001),
    ];
    for (name, bytes, code) in cases {
        let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
        al.put_bytes(bytes);
        assert_eq!(fatal(&mut al), (code, Some(4400)), "{name}");
    }
    // Wrong but lawful: the connection lives.
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    for (name, bytes, code) in [
        ("200 users", users(200), 3005),
        ("a SIGNAL to a conv of no form", named(0x34, &[&[1, b'x'], &[0; 4]]), 3001),
        ("a conv of no form", named(0x31, &[&rid, &[3], b"x:y", &[0; 19]]), 3001),
        ("an empty conv", named(0x31, &[&rid, &[0], &[0; 19]]), 3001),
        ("a conv of 255 bytes", named(0x31, &[&rid, &[255], &[b'x'; 255], &[0; 19]]), 3001),
        ("somebody else's conv", named(0x31, &[&rid, &[7], b"d:bo:cy", &[0; 19]]), 3001),
        ("a token that is none", named(0x03, &[&rid, &[1, 0], b"x"]), 2001),
        ("a position never given out", named(0x02, &[&[0xff; 8]]), 3004),
    ] {
        al.put_bytes(bytes);
        let error = al.error();
        assert_eq!((error.code, error.flags & page_flags::ERROR_CLOSING), (code, 0), "{name}");
    }
    al.put(&send(90, DIRECT, cmid(), 0, &vec![b'x'; 65_537]));
    assert_eq!((al.error().code, al.ping()), (3003, vec![]));
    // As many frames as a message may have.
    al.put_bytes(envelope(0x02, &[0; 8]).repeat(512));
    (0..512).for_each(|_| pong(&mut al));
    al.put_bytes(cursors(256, 256));
    al.say(DIRECT, "still here");
    gateway.ends_well();
}

/// JSON that is none, too deep, of the wrong types, or says a thing in two ways.
#[test]
fn a_bad_json_envelope_is_named() {
    let mut gateway = Gateway::start();
    let deep = |depth: usize| format!(r#"{{"t":"ping","x":{}{}}}"#, "[".repeat(depth - 1), "]".repeat(depth - 1));
    let objects = |depth: usize| format!(r#"{{"t":"ping","x":{}1{}}}"#, r#"{"x":"#.repeat(depth - 1), "}".repeat(depth - 1));
    let sent = |fields: &str| {
        format!(r#"{{"t":"send","rid":1,"cmid":"019a0b1c2d3e7f40a1b2c3d4e5f60718","kind":1,"conv":"d:al:bo",{fields}}}"#)
    };
    let cursors = |count: usize| format!(r#"{{"t":"ack","cursors":[{}]}}"#, vec![r#"{"conv":"x","seq":1}"#; count].join(","));
    let users = |count: usize| format!(r#"{{"t":"watch","rid":1,"users":[{}]}}"#, vec![r#""x""#; count].join(","));
    let cases = [
        ("nested 66 deep", deep(66), 1001),
        ("objects nested 66 deep", objects(66), 1001),
        ("nested 60,000 deep", "[".repeat(60_000), 1001),
        ("nested 20,000 deep in a field", objects(20_000), 1001),
        ("no JSON", "hello".to_owned(), 1001),
        ("a list", "[]".to_owned(), 1001),
        ("a number", "1".to_owned(), 1001),
        ("no t", r#"{"rid":1}"#.to_owned(), 1001),
        ("an unclosed object", r#"{"t":"ping""#.to_owned(), 1001),
        ("an unclosed text", r#"{"t":"pin"#.to_owned(), 1001),
        ("something behind the object", r#"{"t":"ping"} x"#.to_owned(), 1001),
        ("two objects on a line", r#"{"t":"ping"}{"t":"ping"}"#.to_owned(), 1001),
        ("a comma too many", r#"{"t":"ping",}"#.to_owned(), 1001),
        ("a control character in a text", "{\"t\":\"read\",\"rid\":1,\"conv\":\"a\u{1}\"}".to_owned(), 1001),
        ("an unknown escape", r#"{"t":"read","rid":1,"conv":"\x"}"#.to_owned(), 1001),
        ("NaN", r#"{"t":"ping","pos":NaN}"#.to_owned(), 1001),
        ("an unknown t", r#"{"t":"drop table"}"#.to_owned(), 1003),
        ("a t of the gateway", r#"{"t":"deliver","pos":1}"#.to_owned(), 1003),
        ("a t in capitals", r#"{"t":"PING"}"#.to_owned(), 1003),
        ("1.0", r#"{"t":"ping","pos":1.0}"#.to_owned(), 1002),
        ("1e3", r#"{"t":"ping","pos":1e3}"#.to_owned(), 1002),
        ("a negative number", r#"{"t":"ping","pos":-1}"#.to_owned(), 1002),
        ("null", r#"{"t":"ping","pos":null}"#.to_owned(), 1002),
        ("a number in text", r#"{"t":"ping","pos":"1"}"#.to_owned(), 1002),
        ("a text that is a number", r#"{"t":"read","rid":1,"conv":5}"#.to_owned(), 1002),
        ("a number beyond its field", r#"{"t":"read","rid":4294967296,"conv":"x"}"#.to_owned(), 1002),
        ("a number beyond all", format!(r#"{{"t":"ping","pos":{}}}"#, "9".repeat(1000)), 1002),
        ("a list that is an object", r#"{"t":"ack","cursors":{}}"#.to_owned(), 1002),
        ("a cursor that is a text", r#"{"t":"ack","cursors":["x"]}"#.to_owned(), 1002),
        ("a user that is a number", r#"{"t":"watch","rid":1,"users":[1]}"#.to_owned(), 1002),
        ("rid 0", r#"{"t":"read","conv":"x"}"#.to_owned(), 1002),
        ("257 cursors", cursors(257), 1002),
        ("201 users", users(201), 1002),
        ("text and b64", sent(r#""text":"a","b64":"YQ==""#), 1002),
        ("base64 without padding", sent(r#""b64":"YQ""#), 1002),
        ("base64 that is none", sent(r#""b64":"****""#), 1002),
        ("half a surrogate pair", sent(r#""text":"\ud800""#), 1002),
        ("the halves in the wrong order", sent(r#""text":"\udc00\ud800""#), 1002),
        ("a cmid in capitals", sent(r#""text":"a","cmid":"019A0B1C2D3E7F40A1B2C3D4E5F60718""#), 1002),
        ("a short cmid", sent(r#""text":"a","cmid":"019a""#), 1002),
        ("a cmid of zeros", sent(&format!(r#""text":"a","cmid":"{}""#, "0".repeat(32))), 1002),
        ("513 frames", [r#"{"t":"ping"}"#; 513].join("\n"), 1001),
    ];
    for (name, text, code) in cases {
        let mut al = Raw::connect(&gateway, Encoding::Json, "al", "1");
        al.put_bytes(text.into_bytes());
        assert_eq!(fatal(&mut al), (code, Some(4400)), "{name}");
    }
    let mut al = Raw::connect(&gateway, Encoding::Json, "al", "1");
    for text in
        [deep(64), objects(63), format!(r#"{{"t":"ping","{}":0}}"#, "k".repeat(100_000)), "\n\n{\"t\":\"ping\"}\n\n".to_owned()]
    {
        al.put_bytes(text.into_bytes());
        pong(&mut al);
    }
    for (text, code) in [(users(200), 3005), (r#"{"t":"read","rid":1,"conv":"\u0000"}"#.to_owned(), 3001)] {
        al.put_bytes(text.into_bytes());
        assert_eq!(al.error().code, code);
    }
    // Text that is not UTF-8 ends below JSON.
    let mut other = Raw::connect(&gateway, Encoding::Json, "al", "2");
    put(&mut other, &frame(0x81, b"{\"t\":\"read\",\"rid\":1,\"conv\":\"d\xff\"}"));
    assert_eq!(other.closed(), Some(1007));
    al.put_message(Message::text(cursors(256)));
    al.say(DIRECT, "still here");
    gateway.ends_well();
}

/// Sends one case, and reads to the end what comes back.
fn answer(gateway: &Gateway, case: &Case) -> Expected {
    match case.on {
        On::Connect => {
            let mut peer = Peer::connect(gateway.listen);
            peer.write(&case.bytes);
            if case.expected == Expected::Status(101) {
                return Expected::Status(status(&peer.read_head()));
            }
            Expected::Status(status(&peer.read_all()))
        }
        On::Binary | On::Json => {
            let mut peer = Peer::upgraded(gateway.listen, if case.on == On::Binary { "tidegate.v1" } else { "tidegate.v1.json" });
            peer.write(&case.bytes);
            Expected::Close(peer.closed().expect("a Close frame with a code"))
        }
    }
}

/// ERROR with CLOSING and the code that follows it; nothing else may come before.
fn fatal(raw: &mut Raw) -> (u16, Option<u16>) {
    let error = raw.error();
    assert_ne!(error.flags & page_flags::ERROR_CLOSING, 0);
    let next = raw.next();
    let Next::Closed(code) = next else { panic!("not the end: {next:?}") };
    (error.code, code)
}

fn pong(raw: &mut Raw) {
    assert!(matches!(raw.next(), Next::Frame(ServerFrame::Pong { .. })));
}

/// Bytes of our own making on a connection that was upgraded by the library.
fn put(raw: &mut Raw, bytes: &[u8]) {
    drop(raw.socket.get_mut().write_all(bytes));
}

/// A protocol frame.
fn envelope(of: u8, body: &[u8]) -> Vec<u8> {
    let word = u32::from(of) | u32::try_from(body.len()).expect("24 bits") << 8;
    [&word.to_le_bytes()[..], body].concat()
}

/// A text message in fragments of so many bytes.
fn fragments(text: &[u8], bytes: usize) -> Vec<u8> {
    let count = text.len().div_ceil(bytes);
    let first_byte = |at: usize| u8::from(at == 0) | if at + 1 == count { 0x80 } else { 0 };
    text.chunks(bytes).enumerate().flat_map(|(at, piece)| frame(first_byte(at), piece)).collect()
}
