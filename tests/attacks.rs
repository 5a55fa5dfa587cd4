//! One test for each way in which WebSocket servers have been attacked, against the real binary. `docs/threat-model.md` lists them beside
//! the tables of `tests/support/malformed.rs` and the fuzz targets.
//!
//! Each test ends with [`Gateway::ends_well`].

#[path = "support/malformed.rs"]
#[allow(dead_code, reason = "the table is for others")]
mod malformed;
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use malformed::frame;
use rustls::ClientConnection;
use support::eventually;
use support::gateway::Gateway;
use support::peer::{Peer, status, upgrade};
use support::raw::{Next, Raw, cmid, encoded, hello, send};
use support::secure::{self, Authority, BOTH, Stream, connect};
use tidegate::conn::deflate::{Deflater, Inflater};
use tidegate::wire::envelope::{ClientFrame, Cursors, Encoding, ServerFrame};

/// Deadlines so long that no answer of these tests is theirs.
const PATIENT: [(&str, &str); 2] = [("protocol.upgrade_ms", "60000"), ("protocol.hello_ms", "60000")];

/// Compression that nobody agreed on: the extension is not accepted however it is offered, and a compressed frame is refused by its
/// header, before HELLO and after it. What it would have become never exists.
#[test]
fn a_decompression_bomb_is_refused_by_its_header() {
    let mut gateway = Gateway::with(&PATIENT);
    // A raw deflate stream of zeros: 64 KiB that would become 64 MiB.
    let bomb = frame(0xc2, &[&[0xec, 0xc1, 0x01, 0x01][..], &[0; 64 * 1024]].concat());
    for offer in [
        "Sec-WebSocket-Extensions: permessage-deflate\r\n",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits; server_no_context_takeover, x-webkit-deflate-frame\r\n",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=99999999999999999999\r\n",
    ] {
        let mut peer = Peer::connect(gateway.listen);
        peer.write(upgrade("tidegate.v1", offer).as_bytes());
        let head = peer.read_head();
        assert_eq!(status(&head), 101);
        assert!(!String::from_utf8_lossy(&head).to_ascii_lowercase().contains("sec-websocket-extensions"));
        // The header alone is enough.
        peer.write(&bomb[..2]);
        assert_eq!(peer.closed(), Some(1002));
    }
    let before = gateway.resident_bytes();
    for _ in 0..100 {
        let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
        peer.write(&bomb);
        assert_eq!(peer.closed(), Some(1002));
    }
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    drop(al.socket.get_mut().write_all(&bomb));
    assert_eq!(al.closed(), Some(1002));
    assert!(gateway.resident_bytes() < before + 32 * 1024 * 1024, "something was inflated");
    gateway.ends_well();
}

/// Compression that was agreed on: nothing is inflated before the token has been judged, and then no further than a message may be long.
/// Who does not show a token in the request is not agreed with. A long answer comes compressed.
#[test]
fn an_agreed_compression_is_bounded() {
    let mut gateway = Gateway::with(&[&PATIENT[..], &[("protocol.deflate", "true")]].concat());
    let mut stranger = Peer::connect(gateway.listen);
    stranger.write(upgrade("tidegate.v1", OFFER).as_bytes());
    assert!(!String::from_utf8_lossy(&stranger.read_head()).contains("permessage-deflate"));
    let mut deflater = Deflater::default();
    let mut compressed = |bytes: &[u8]| {
        let (small, is_small) = deflater.message(|out| out.extend_from_slice(bytes));
        assert!(is_small, "{} bytes stay as they are", bytes.len());
        frame(0xc2, small)
    };
    let early = compressed(&encoded(&vec![hello("", "1"); 20]));
    let mut peer = agreed(&gateway, "al");
    peer.write(&early[..2]);
    assert_eq!(peer.closed(), Some(1002), "before HELLO");

    let welcomed = |gateway: &Gateway| {
        let mut peer = agreed(gateway, "al");
        peer.write(&frame(0x82, &encoded(&[hello("", "1")])));
        assert_eq!(peer.read_frame().1[0], 0x41, "WELCOME");
        peer
    };
    let bomb = compressed(&vec![0; 64 << 20]);
    let before = gateway.resident_bytes();
    for (bytes, code) in [(&bomb, 1009), (&frame(0xc2, b"\xff"), 1007), (&frame(0xc9, b""), 1002)] {
        let mut peer = welcomed(&gateway);
        peer.write(bytes);
        assert_eq!(peer.closed(), Some(code));
    }
    assert!(gateway.resident_bytes() < before + 32 * 1024 * 1024, "something was inflated");

    let mut peer = welcomed(&gateway);
    let text = b"what repeats is short ".repeat(100);
    peer.write(&compressed(&encoded(&[send(1, "d:al:al", cmid(), 0, &text)])));
    assert_eq!(peer.read_frame().1[0], 0x50, "SENT");
    let fetch = ClientFrame::Fetch { rid: 2, conv: "d:al:al".into(), from: 1, to: 0, limit: 1, flags: 0 };
    peer.write(&frame(0x82, &encoded(&[fetch])));
    let (first, page) = peer.read_frame();
    assert_eq!((first, page.len() < 200), (0xc2, true), "a compressed PAGE");
    let mut inflated = Vec::new();
    Inflater::default().inflate(&page, 128 * 1024, &mut inflated).expect("a message");
    assert_eq!(inflated[0], 0x71, "PAGE");
    assert!(inflated.windows(text.len()).any(|window| window == text));
    gateway.ends_well();
}

/// A connection of `user` that compresses both ways, upgraded and before its HELLO.
fn agreed(gateway: &Gateway, user: &str) -> Peer {
    let mut peer = Peer::connect(gateway.listen);
    let token = format!("{OFFER}Authorization: Bearer {}\r\n", gateway.token(user));
    peer.write(upgrade("tidegate.v1", &token).as_bytes());
    let head = String::from_utf8(peer.read_head()).expect("ASCII");
    let answer = "\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n";
    assert!(head.contains(answer), "{head}");
    peer
}

/// One compressor and one inflater per core, however many agreed: what 200 connections cost that send and get compressed messages is far
/// less than one of each for everybody.
#[test]
fn all_connections_share_a_compressor() {
    const PEERS: usize = 200;
    let mut gateway = Gateway::with(&[&PATIENT[..], &[("protocol.deflate", "true")]].concat());
    let mut deflater = Deflater::default();
    let text = b"what repeats is short ".repeat(100);
    let mut talk = |user: &str| {
        let mut peer = agreed(&gateway, user);
        peer.write(&frame(0x82, &encoded(&[hello("", "1")])));
        assert_eq!(peer.read_frame().1[0], 0x41, "WELCOME");
        let conv = format!("d:{user}:{user}");
        let (small, is_small) = deflater.message(|out| out.extend(encoded(&[send(1, &conv, cmid(), 0, &text)])));
        assert!(is_small);
        peer.write(&frame(0xc2, small));
        assert_eq!(peer.read_frame().1[0], 0x50, "SENT");
        let fetch = ClientFrame::Fetch { rid: 2, conv: conv.as_str().into(), from: 1, to: 0, limit: 1, flags: 0 };
        peer.write(&frame(0x82, &encoded(&[fetch])));
        assert_eq!(peer.read_frame().0, 0xc2, "a compressed PAGE");
        peer
    };
    // Enough for each core to have what it shares.
    let mut peers: Vec<Peer> = (0..32).map(|index| talk(&format!("early-{index}"))).collect();
    let before = gateway.proportional_bytes();
    peers.extend((0..PEERS).map(|index| talk(&format!("late-{index}"))));
    let grown = gateway.proportional_bytes().saturating_sub(before);
    println!("{PEERS} connections with compression: {grown} bytes more");
    assert!(grown < PEERS as u64 * INFLATER_BYTES / 2, "{grown} bytes");
    drop(peers);
    gateway.ends_well();
}

/// A Close frame with a body of every length there is: none and 2 to 125 bytes are echoed with their code, 1 and more than 125 are broken
/// rules, also when the length is written in more bytes than it needs.
#[test]
fn close_frames_of_every_length_are_answered() {
    let mut gateway = Gateway::with(&PATIENT);
    for length in 0..=130_usize {
        let mut body = 1001_u16.to_be_bytes().to_vec();
        body.resize(length.max(2), b'r');
        body.truncate(length);
        let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
        peer.write(&frame(0x88, &body));
        let expected: &[Option<u16>] = match length {
            0 => &[None, Some(1000)],
            1 | 126.. => &[Some(1002)],
            _ => &[Some(1001)],
        };
        let answer = peer.closed();
        assert!(expected.contains(&answer), "{length} bytes: {answer:?}");
    }
    for lengths in [&[0xfe, 0, 2][..], &[0xff, 0, 0, 0, 0, 0, 0, 0, 2], &[0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]] {
        let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
        peer.write(&[&[0x88][..], lengths, &[0; 6]].concat());
        assert_eq!(peer.closed(), Some(1002), "{lengths:x?}");
    }
    gateway.ends_well();
}

/// What stands behind the upgrade in the same packet is frames: a HELLO is welcomed, another request is no frame. Without an upgrade nothing
/// behind the refusal is looked at.
#[test]
fn bytes_behind_the_upgrade_are_frames() {
    let mut gateway = Gateway::with(&PATIENT);
    let hello = encoded(&[hello(&gateway.token("al"), "phone")]);
    let request = upgrade("tidegate.v1", "").into_bytes();
    let mut peer = Peer::connect(gateway.listen);
    peer.write(&[&request[..], &frame(0x82, &hello)].concat());
    assert_eq!(status(&peer.read_head()), 101);
    assert_eq!(peer.read_frame().1[0], 0x41, "WELCOME");
    let mut peer = Peer::connect(gateway.listen);
    peer.write(&[&request[..], &request[..]].concat());
    assert_eq!(status(&peer.read_head()), 101);
    assert_eq!(peer.closed(), Some(1002));
    let refused = b"GET /other HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut peer = Peer::connect(gateway.listen);
    peer.write(&[&refused[..], &request[..]].concat());
    assert_eq!(one_answer(&peer.read_all()), 404);
    gateway.ends_well();
}

/// Requests that two readers could cut at different places get one answer and the end; what is hidden in them is never answered.
#[test]
fn a_smuggled_request_is_never_answered() {
    let mut gateway = Gateway::with(&PATIENT);
    let hidden = upgrade("tidegate.v1", "");
    let chunked = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    let length = format!("Content-Length: {}\r\n", hidden.len());
    let shapes = [
        (length.clone(), hidden.clone()),
        (length.to_lowercase(), hidden.clone()),
        (format!("Content-Length: 0\r\n{length}"), hidden.clone()),
        (format!("{length}Content-Length: 0\r\n"), hidden.clone()),
        ("Content-Length: +0\r\n".to_owned(), hidden.clone()),
        ("Content-Length: 0, 5\r\n".to_owned(), hidden.clone()),
        ("Content-Length: 18446744073709551616\r\n".to_owned(), hidden.clone()),
        ("Content-Length: -1\r\n".to_owned(), hidden.clone()),
        ("Transfer-Encoding: chunked\r\n".to_owned(), chunked.clone()),
        (format!("{length}Transfer-Encoding: chunked\r\n"), chunked.clone()),
        (format!("Transfer-Encoding: chunked\r\n{length}"), chunked.clone()),
        ("Transfer-Encoding: xchunked\r\n".to_owned(), chunked.clone()),
        ("Transfer-Encoding: chunked, identity\r\n".to_owned(), chunked.clone()),
        ("Transfer-Encoding:\tchunked\r\n".to_owned(), chunked.clone()),
        ("Transfer-Encoding : chunked\r\n".to_owned(), chunked.clone()),
        ("X: y\r\n Transfer-Encoding: chunked\r\n".to_owned(), chunked.clone()),
        ("X: y\nTransfer-Encoding: chunked\r\n".to_owned(), chunked.clone()),
        ("X: y\rTransfer-Encoding: chunked\r\n".to_owned(), chunked.clone()),
        ("Transfer-Encoding\0: chunked\r\n".to_owned(), chunked),
    ];
    for (lines, body) in shapes {
        let mut peer = Peer::connect(gateway.listen);
        peer.write(format!("{}{body}", upgrade("tidegate.v1", &lines)).as_bytes());
        let answer = peer.read_all();
        assert_eq!(one_answer(&answer), 400, "{lines:?}: {}", String::from_utf8_lossy(&answer));
    }
    gateway.ends_well();
}

/// However an upgrade fails (refused, cut off, reset, half closed, in one piece or many), nothing of it is left: no connection, no
/// handshake, no memory to speak of.
#[test]
fn failed_upgrades_leave_nothing_behind() {
    const ROUNDS: usize = 200;
    let mut gateway = Gateway::with(&[PATIENT[0], PATIENT[1], ("limits.accept_per_s", "0"), ("limits.handshakes_max", "100000")]);
    let good = upgrade("tidegate.v1", "").into_bytes();
    let endings: [fn(&mut Peer, &[u8]); 6] = [
        // Refused.
        |peer, _| {
            peer.write(b"GET /other HTTP/1.1\r\nHost: h\r\n\r\n");
            drop(peer.read_all());
        },
        // Left without a word, in the middle, and after the head.
        |_, _| {},
        |peer, good| peer.write(&good[..good.len() / 2]),
        |peer, good| peer.write(good),
        // Half closed in the middle.
        |peer, good| {
            peer.write(&good[..good.len() - 1]);
            drop(peer.stream.shutdown(std::net::Shutdown::Write));
            drop(peer.read_all());
        },
        // Garbage after the upgrade.
        |peer, good| {
            peer.write(good);
            drop(peer.read_head());
            peer.write(&[0xff; 64]);
            drop(peer.read_all());
        },
    ];
    let round = |gateway: &Gateway| {
        for ending in endings {
            let mut peer = Peer::connect(gateway.listen);
            ending(&mut peer, &good);
        }
    };
    (0..20).for_each(|_| round(&gateway));
    let before = gateway.resident_bytes();
    (0..ROUNDS).for_each(|_| round(&gateway));
    for what in ["tidegate_connections_open", "tidegate_handshakes_open", "tidegate_stash_bytes"] {
        eventually(what, || (gateway.metric(what) == 0.0).then_some(()));
    }
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 8 * 1024 * 1024, "{grown} bytes for {} failed upgrades", ROUNDS * endings.len());
    gateway.ends_well();
}

/// The same with TLS: wherever a handshake is broken off, and whatever fails behind it.
#[test]
fn failed_handshakes_leave_nothing_behind() {
    const ROUNDS: usize = 50;
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let settings = [PATIENT[0], PATIENT[1], ("limits.accept_per_s", "0"), ("limits.handshakes_max", "100000")];
    let (mut gateway, address) = secure::start(&authority, &["a"], &settings);
    let configs = BOTH.map(|version| Arc::new(authority.client(&[version], None)));
    let good = upgrade("tidegate.v1", "").into_bytes();
    // What is sent and done in the clear, and behind a handshake.
    let broken_off: [fn(&mut Peer, &[u8]); 6] = [
        // Left without a word, in the middle of a header, of a record, and before the answer.
        |_, _| {},
        |peer, hello| peer.write(&hello[..3]),
        |peer, hello| peer.write(&hello[..hello.len() / 2]),
        |peer, hello| peer.write(hello),
        // Part of the answer is read, and ours is kept back.
        |peer, hello| {
            peer.write(hello);
            peer.stream.read_exact(&mut [0; 64]).expect("an answer");
        },
        // A record that is none.
        |peer, hello| {
            peer.write(hello);
            peer.stream.read_exact(&mut [0; 64]).expect("an answer");
            peer.write(&[0xff; 5]);
            drop(peer.read_all());
        },
    ];
    let behind: [fn(&mut Stream, &[u8]); 5] = [
        // Left without a word, without goodbye, in the middle of a head, and after it.
        |_, _| {},
        |stream, good| drop(stream.write_all(&good[..good.len() / 2])),
        |stream, good| drop(stream.write_all(good)),
        // Refused.
        |stream, _| {
            drop(stream.write_all(b"GET /other HTTP/1.1\r\nHost: h\r\n\r\n"));
            drop(stream.read_to_end(&mut Vec::new()));
        },
        // Goodbye in the middle of a head.
        |stream, good| {
            drop(stream.write_all(&good[..good.len() - 1]));
            stream.conn.send_close_notify();
            drop(stream.read_to_end(&mut Vec::new()));
        },
    ];
    let round = || {
        for config in &configs {
            for ending in broken_off {
                let mut client =
                    ClientConnection::new(Arc::clone(config), "localhost".try_into().expect("a name")).expect("a client");
                let mut hello = Vec::new();
                client.write_tls(&mut hello).expect("a vector takes all");
                ending(&mut Peer::connect(address), &hello);
            }
            for ending in behind {
                let mut stream = connect(address, config, "localhost").expect("a handshake");
                ending(&mut stream, &good);
            }
        }
    };
    (0..10).for_each(|_| round());
    let before = gateway.resident_bytes();
    (0..ROUNDS).for_each(|_| round());
    let gauges = ["tidegate_connections_open", "tidegate_handshakes_open", "tidegate_tls_open", "tidegate_tls_waiting_open"];
    for what in gauges.into_iter().chain(["tidegate_stash_bytes", "tidegate_queued_bytes"]) {
        eventually(what, || (gateway.metric(what) == 0.0).then_some(()));
    }
    let grown = gateway.resident_bytes().saturating_sub(before);
    let [full, resumed, failed, left] = ["full", "resumed", "failed", "left"].map(|result| {
        let name = format!("tidegate_tls_handshakes_total{{result=\"{result}\"}}");
        gateway.metric(&name)
    });
    println!("{grown} bytes; {full} full, {resumed} resumed, {failed} failed, {left} left");
    let rounds = f64::from(u32::try_from(2 * (ROUNDS + 10)).expect("few"));
    // The last part of a handshake may be lost with a client that is gone at once.
    assert_eq!((full + resumed + failed + left, failed), (11.0 * rounds, rounds));
    assert!(left >= 5.0 * rounds && full + resumed >= 2.0 * rounds);
    assert!(grown < 8 * 1024 * 1024, "{grown} bytes");
    gateway.ends_well();
}

/// Slowloris: thousands of connections that send one byte per second of a request head cost at most 2 KiB each before they are
/// authenticated, and whoever is honest is served meanwhile. Nothing moves the deadline, at which all of them get 408.
#[test]
fn a_slow_flood_costs_little_and_stops_nobody() {
    let settings = [
        ("protocol.upgrade_ms", "20000"),
        ("limits.accept_per_s", "0"),
        ("limits.accept_burst", "1000000"),
        ("limits.handshakes_max", "100000"),
    ];
    let mut gateway = Gateway::with(&settings);
    drop(Raw::connect(&gateway, Encoding::Binary, "al", "1"));
    let empty = gateway.proportional_bytes();
    let head = upgrade("tidegate.v1", &"X-Pad: yyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(20)).into_bytes();
    let mut slow: Vec<TcpStream> = (0..SLOW).map(|_| TcpStream::connect(gateway.listen).expect("the gateway accepts")).collect();
    let mut at = 0;
    for second in 0..SECONDS {
        // The first byte, half a head, and then byte by byte.
        let end = if second == 0 { 1 } else { (at + 1).max(head.len() / 2) };
        for stream in &mut slow {
            stream.write_all(&head[at..end]).expect("the gateway waits for the rest");
        }
        at = end;
        Raw::connect(&gateway, Encoding::Binary, "al", &format!("{second}")).say("d:al:bo", "honest");
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(gateway.counted("tidegate_handshakes_open"), SLOW as f64);
    let grown = gateway.proportional_bytes().saturating_sub(empty);
    let each = grown as f64 / SLOW as f64;
    println!("{SLOW} slow connections: {grown} bytes, {each:.0} each; the bound is {PREAUTH_BYTES_MAX}");
    assert!(each <= PREAUTH_BYTES_MAX, "{each:.0} bytes each");
    eventually("the end of the slow", || (gateway.metric("tidegate_handshakes_open") == 0.0).then_some(()));
    let mut answer = Vec::new();
    drop(slow[0].read_to_end(&mut answer));
    assert_eq!(one_answer(&answer), 408);
    gateway.ends_well();
}

/// Floods of the smallest frames there are (empty pings, empty fragments, one-byte fragments, pongs) are work, not memory: they are taken in
/// turn with everybody else's frames, and whoever sends them holds nothing.
#[test]
fn floods_of_tiny_frames_hold_nothing() {
    let mut gateway = Gateway::with(&PATIENT);
    let before = gateway.resident_bytes();
    let flood = |first: &[u8], again: &[u8]| [first, &again.repeat(20_000)].concat();
    let floods = [
        flood(&[], &frame(0x89, b"")),
        flood(&[], &frame(0x8a, b"")),
        flood(&[], &frame(0x8a, b"x")),
        flood(&frame(0x02, b""), &frame(0x00, b"")),
        flood(&frame(0x02, b"x"), &frame(0x00, b"x")),
    ];
    let mut peers: Vec<Peer> = Vec::new();
    for bytes in floods.iter().cycle().take(40) {
        let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
        peer.write(bytes);
        peers.push(peer);
    }
    Raw::connect(&gateway, Encoding::Binary, "al", "1").say("d:al:bo", "in the flood");
    assert!(gateway.counted("tidegate_stash_bytes") <= 40.0 * 32.0 * 1024.0);
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 32 * 1024 * 1024, "{grown} bytes");
    drop(peers);
    gateway.ends_well();
}

/// Thousands of pings or pongs in one read end the connection, before HELLO and after it, as do acknowledgements that are refused; hundreds
/// are answered.
#[test]
fn a_flood_of_signs_is_cut_off() {
    let mut gateway = Gateway::with(&PATIENT);
    for sign in [frame(0x89, b""), frame(0x8a, b"")] {
        let mut peer = Peer::upgraded(gateway.listen, "tidegate.v1");
        peer.write(&sign.repeat(20_000));
        assert_eq!(peer.closed(), Some(4429));
    }
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    al.put_all(&vec![ClientFrame::Ping { pos: 0 }; 400]);
    for _ in 0..400 {
        assert!(matches!(al.next(), Next::Frame(ServerFrame::Pong { .. })));
    }
    drop(al);
    let signs: [(&str, Sign); 3] = [
        ("pings", |_| ClientFrame::Ping { pos: 0 }),
        ("what was never given out", |_| ClientFrame::Ack { pos: 9, cursors: Cursors::List(Vec::new()) }),
        ("redeliveries", |seq| ClientFrame::Nack { conv: "d:al:bo".into(), seq, delay_ms: 60_000, reason: 0 }),
    ];
    for (number, (what, sign)) in signs.into_iter().enumerate() {
        let mut al = Raw::connect(&gateway, Encoding::Binary, &format!("al-{number}"), "1");
        let many: Vec<u8> = (1..=20_000).flat_map(|seq| frame(0x82, &encoded(&[sign(seq)]))).collect();
        // It may be closed before all is written.
        drop(al.socket.get_mut().write_all(&many));
        assert_eq!(al.closed(), Some(4429), "{what}");
    }
    drop(Raw::connect(&gateway, Encoding::Binary, "bo", "1"));
    gateway.ends_well();
}

/// The status of the one response that `bytes` are.
fn one_answer(bytes: &[u8]) -> u16 {
    // Which also holds its length against what came: a second response would be too much.
    status(bytes)
}

/// A frame by its number.
type Sign = fn(u64) -> ClientFrame<'static>;

/// Connections of the slow flood; with their two ends they fit two tables of 20,000 descriptors.
const SLOW: usize = 8_000;
const SECONDS: usize = 5;
/// Before authentication, all included.
const PREAUTH_BYTES_MAX: f64 = 2048.0;
const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
/// What an inflater holds, and the least that one for each connection would cost; a compressor holds seven times as much.
const INFLATER_BYTES: u64 = 40 * 1024;
