//! The life of a connection, through the real binary: HELLO, tokens, liveness, and every way to be closed.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::gateway::{Gateway, unix_s};
use support::raw::{ENCODINGS, Next, Raw, cmid, hello, send};
use support::{PATIENCE, eventually};
use tidegate::wire::envelope::{ClientFrame, Encoding, ServerFrame, page_flags};
use tungstenite::Message;

const DIRECT: &str = "d:al:bo";

/// WELCOME names the user and the terms, in both encodings, and every session has its own id.
#[test]
fn hello_is_welcomed() {
    let gateway = Gateway::start();
    let mut sessions = Vec::new();
    for encoding in ENCODINGS {
        let (_raw, welcome) = Raw::welcomed(&gateway, encoding, "al", "1");
        assert_eq!((&*welcome.user, welcome.minor, welcome.resumed, welcome.level, welcome.pos), ("al", 0, 0, 2, 0));
        assert_eq!((welcome.window, welcome.send_window, welcome.ping_ms, welcome.dedup_s), (256, 64, 30_000, 86_400));
        assert_eq!((welcome.max_frame, welcome.max_payload, welcome.rate, welcome.burst), (131_072, 65_536, 20, 128));
        assert!(welcome.server_ms / 1000 >= unix_s() - 60);
        assert_ne!(welcome.session, [0; 16]);
        sessions.push(welcome.session);
    }
    assert_ne!(sessions[0], sessions[1]);
}

/// Who says nothing after the upgrade is closed with 4408.
#[test]
fn hello_has_a_deadline() {
    let gateway = Gateway::with(&[("protocol.hello_ms", "200")]);
    for encoding in ENCODINGS {
        assert_eq!(Raw::open(&gateway, encoding).next(), Next::Closed(Some(4408)));
    }
}

/// A token that is none, of another key, of another device or too old is told which of the two, and closed with 4401.
#[test]
fn a_bad_token_is_refused() {
    let gateway = Gateway::start();
    let other = Gateway::start();
    let cases = [
        (String::new(), 2001),
        ("garbage".to_owned(), 2001),
        ("x".repeat(9000), 2001),
        (other.token("al"), 2001),
        (gateway.token_for("al", Some("2"), 3600), 2001),
        (gateway.token_for("al", None, -60), 2002),
    ];
    for encoding in ENCODINGS {
        for (token, code) in &cases {
            let mut raw = Raw::open(&gateway, encoding);
            raw.hello(token, "1");
            let error = raw.error();
            assert_eq!((error.rid, error.code, error.flags), (0, *code, page_flags::ERROR_CLOSING), "{token:.20}");
            assert_eq!(raw.closed(), Some(4401));
        }
    }
    let mut raw = Raw::open(&gateway, Encoding::Binary);
    raw.hello(&gateway.token_for("al", Some("1"), 3600), "1");
    assert_eq!(raw.welcome().user, "al");
}

/// Without a token in HELLO the one of the Authorization header counts.
#[test]
fn the_header_may_carry_the_token() {
    let gateway = Gateway::start();
    let url = format!("ws://{}/ws", gateway.listen).parse().expect("a good URL");
    let request = tungstenite::client::ClientRequestBuilder::new(url)
        .with_sub_protocol("tidegate.v1.json")
        .with_header("Authorization", format!("Bearer {}", gateway.token("al")));
    let (mut socket, _) = tungstenite::connect(request).expect("the gateway upgrades");
    socket.send(Message::text(r#"{"t":"hello","device":"web-1"}"#)).expect("a socket");
    let answer = socket.read().expect("an answer");
    let text = answer.to_text().expect("JSON");
    assert!(text.starts_with(r#"{"t":"welcome""#) && text.contains(r#""user":"al""#), "{text}");
}

/// A token that ends soon is announced; a fresh one by AUTH keeps the connection beyond the end of the first, without it comes 4401.
#[test]
fn a_token_can_be_renewed() {
    let gateway = Gateway::with(&[("auth.leeway_s", "0")]);
    let mut kept = Raw::open(&gateway, Encoding::Binary);
    let mut lost = Raw::open(&gateway, Encoding::Json);
    for (raw, device) in [(&mut kept, "1"), (&mut lost, "2")] {
        raw.hello(&gateway.token_for("al", None, 12), device);
        raw.welcome();
        raw.wait("EXPIRING", |frame| matches!(frame, ServerFrame::Expiring { in_ms } if *in_ms <= 12_000).then_some(()));
    }
    // Not of this user, too old, or no token: refused, and the connection lives on with what it has.
    for (rid, token, code) in
        [(1, gateway.token("bo"), 2001), (2, "garbage".to_owned(), 2001), (3, gateway.token_for("al", None, -60), 2002)]
    {
        kept.put(&ClientFrame::Auth { rid, token: token.into() });
        let error = kept.error();
        assert_eq!((error.rid, error.code, error.flags), (rid, code, 0));
    }
    let end = unix_s() + 3600;
    kept.put(&ClientFrame::Auth { rid: 4, token: gateway.token("al").into() });
    let until = kept.wait("OK", |frame| match frame {
        ServerFrame::Ok { rid: 4, value } => Some(*value),
        _ => None,
    });
    assert!(until.abs_diff(end * 1000) <= 60_000, "{until}");
    let error = lost.error();
    assert_eq!((error.rid, error.code, error.flags), (0, 2002, page_flags::ERROR_CLOSING));
    assert_eq!(lost.closed(), Some(4401));
    kept.say(DIRECT, "still here");
}

/// A second connection of a device closes the first with 4409; another device of the user stays.
#[test]
fn a_device_has_one_connection() {
    let gateway = Gateway::start();
    for encoding in ENCODINGS {
        let mut first = Raw::connect(&gateway, encoding, "al", "1");
        let mut other = Raw::connect(&gateway, encoding, "al", "2");
        let mut second = Raw::connect(&gateway, encoding, "al", "1");
        assert_eq!(first.next(), Next::Closed(Some(4409)));
        assert!(other.ping().is_empty());
        assert!(second.ping().is_empty());
    }
}

/// Frames that break a rule: ERROR with its code and CLOSING, then 4400.
#[test]
fn a_malformed_frame_is_named() {
    let gateway = Gateway::start();
    let binary: [(&[u8], u16); 7] = [
        (&[0x10], 1001),
        (&[0x02, 0xff, 0, 0, 1], 1001),
        (&[0x02, 4, 0, 0, 1, 2, 3, 4], 1001),
        (&[0x7f, 0, 0, 0], 1003),
        (&[0x50, 0, 0, 0], 1003),
        (&[0x32, 15, 0, 0, 1, 0, 0, 0, 2, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0], 1002),
        (&[0x32, 14, 0, 0, 0, 0, 0, 0, 1, b'x', 1, 0, 0, 0, 0, 0, 0, 0], 1002),
    ];
    let json: [(&[u8], u16); 7] = [
        (b"nonsense", 1001),
        (b"[]", 1001),
        (b"{}", 1001),
        (br#"{"t":"odd"}"#, 1003),
        (br#"{"t":"sent"}"#, 1003),
        (br#"{"t":"read","rid":0,"conv":"x","seq":1}"#, 1002),
        (br#"{"t":"read","rid":1,"conv":"x","seq":1.0}"#, 1002),
    ];
    for (encoding, cases) in ENCODINGS.into_iter().zip([binary, json]) {
        for (bytes, code) in cases {
            let mut raw = Raw::connect(&gateway, encoding, "al", "1");
            raw.put_bytes(bytes.to_vec());
            let error = raw.error();
            assert_eq!((error.code, error.flags), (code, page_flags::ERROR_CLOSING), "{bytes:?}");
            assert_eq!(raw.closed(), Some(4400));
        }
    }
}

/// An unknown frame that may be skipped is skipped.
#[test]
fn a_skippable_frame_is_skipped() {
    let gateway = Gateway::start();
    for (encoding, bytes) in ENCODINGS.into_iter().zip([&[0xff, 2, 0, 0, 7, 7][..], br#"{"t":"_odd","x":[1]}"#]) {
        let mut raw = Raw::connect(&gateway, encoding, "al", "1");
        raw.put_bytes(bytes.to_vec());
        assert!(raw.ping().is_empty());
    }
}

/// HELLO comes first and once: 1004 otherwise.
#[test]
fn a_frame_out_of_turn_is_refused() {
    let gateway = Gateway::start();
    for encoding in ENCODINGS {
        let mut early = Raw::open(&gateway, encoding);
        early.put(&send(5, DIRECT, cmid(), 0, b"hi"));
        let error = early.error();
        assert_eq!((error.code, error.flags), (1004, page_flags::ERROR_CLOSING));
        assert_eq!(early.closed(), Some(4400));
        let mut twice = Raw::connect(&gateway, encoding, "al", "1");
        twice.put(&hello(&gateway.token("al"), "1"));
        assert_eq!((twice.error().code, twice.closed()), (1004, Some(4400)));
    }
}

/// The other kind of WebSocket message closes with 1003, a message above `max_frame` with 1009.
#[test]
fn the_wrong_kind_and_the_wrong_size_are_closed() {
    let gateway = Gateway::start();
    for encoding in ENCODINGS {
        let mut wrong = Raw::connect(&gateway, encoding, "al", "1");
        wrong.put_message(if encoding == Encoding::Binary { Message::text("{}") } else { Message::binary(vec![2, 0, 0, 0]) });
        assert_eq!(wrong.closed(), Some(1003));
        let mut large = Raw::connect(&gateway, encoding, "al", "1");
        large.put_bytes(vec![b' '; 131_073]);
        assert_eq!(large.closed(), Some(1009));
    }
}

/// A subprotocol that is not known is refused in HTTP, and so is another path.
#[test]
fn an_upgrade_that_fits_nothing_is_refused() {
    let gateway = Gateway::start();
    for (path, protocol, status) in [("/ws", "chat", "400"), ("/ws", "", "400"), ("/other", "tidegate.v1", "404")] {
        let mut stream = TcpStream::connect(gateway.listen).expect("the gateway listens");
        let protocol = if protocol.is_empty() { String::new() } else { format!("Sec-WebSocket-Protocol: {protocol}\r\n") };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
        );
        stream.write_all(request.as_bytes()).expect("a socket");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    }
}

/// Silence is pinged; who answers stays, who does not is dropped without a Close frame.
#[test]
fn a_silent_peer_is_pinged_and_then_dropped() {
    let gateway = Gateway::with(&[("protocol.ping_ms", "4000")]);
    let mut alive = Raw::connect(&gateway, Encoding::Binary, "al", "alive");
    let mut dead = Raw::connect(&gateway, Encoding::Binary, "al", "dead");
    // From here on nobody reads or writes on the second one: tungstenite would answer pings.
    let mut stream = dead.socket.get_ref().try_clone().expect("a socket");
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = Vec::new();
    let mut chunk = [0; 64];
    loop {
        assert!(alive.poll().is_none());
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        assert!(Instant::now() < deadline, "it is never dropped");
    }
    assert_eq!(bytes, [0x89, 0], "one ping, and no Close frame");
    drop(dead.poll());
    assert!(alive.ping().is_empty());
}

/// A gateway that stood still for longer than anybody may be silent asks before it drops anybody.
#[test]
fn nobody_is_dropped_unasked() {
    let gateway = Gateway::with(&[("protocol.ping_ms", "1000")]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let pings = || gateway.metric("tidegate_pings_sent_total");
    let before = pings();
    gateway.signal("STOP");
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        assert!(al.poll().is_none());
    }
    gateway.signal("CONT");
    eventually("two pings more, answered on the way", || {
        assert!(al.poll().is_none());
        (pings() >= before + 2.0).then_some(())
    });
    assert!(al.ping().is_empty());
}

/// Any byte is a sign of life: who is in the middle of a long frame answers no ping and stays, while two that say nothing are dropped one
/// after the other. So does a page whose timers sleep: its browser answers pings (above).
#[test]
fn any_byte_is_a_sign_of_life() {
    let gateway = Gateway::with(&[("protocol.ping_ms", "3000")]);
    let slow = Raw::connect(&gateway, Encoding::Binary, "al", "slow");
    let mut stream = slow.socket.get_ref().try_clone().expect("a socket");
    // The head of a masked binary frame of 65,535 bytes.
    stream.write_all(&[0x82, 0xFE, 0xFF, 0xFF, 0, 0, 0, 0]).expect("it is connected");
    let deadline = Instant::now() + PATIENCE;
    for device in ["first", "second"] {
        let dead = Raw::connect(&gateway, Encoding::Binary, "al", device);
        let mut silent = dead.socket.get_ref().try_clone().expect("a socket");
        silent.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
        loop {
            stream.write_all(&[0]).expect("it is connected");
            match silent.read(&mut [0; 64]) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
            assert!(Instant::now() < deadline, "it is never dropped");
        }
    }
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
    let end = loop {
        match stream.read(&mut [0; 64]) {
            Ok(0) => break None,
            Ok(_) => {}
            Err(error) => break Some(error.kind()),
        }
    };
    assert_eq!(end, Some(std::io::ErrorKind::WouldBlock), "it was dropped");
}

/// More than 8 reads wait for nobody: the rest is 4002 and may be asked again.
#[test]
fn reads_have_a_queue_of_eight() {
    let gateway = Gateway::with(&[("protocol.fetch_rate", "1000")]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let fetch = |rid| ClientFrame::Fetch { rid, conv: DIRECT.into(), from: 0, to: 0, limit: 0, flags: 0 };
    al.put_all(&(1..=20).map(fetch).collect::<Vec<_>>());
    let (mut pages, mut refused) = (Vec::new(), Vec::new());
    while pages.len() + refused.len() < 20 {
        match al.next() {
            Next::Frame(ServerFrame::Page { rid, .. }) => pages.push(rid),
            Next::Frame(ServerFrame::Error { rid, code, flags, .. }) => {
                assert_eq!((code, flags), (4002, page_flags::ERROR_RETRYABLE));
                refused.push(rid);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(pages.len() >= 8, "{pages:?}");
    assert!(!refused.is_empty());
    assert!(pages.is_sorted() && pages.iter().copied().take(8).eq(1..=8), "answered in the order of asking: {pages:?}");
    al.say(DIRECT, "a refused read holds nothing");
}

/// The client's own Close is answered with the same code.
#[test]
fn a_close_is_echoed() {
    let gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    drop(al.socket.close(Some(tungstenite::protocol::CloseFrame { code: 1000.into(), reason: "".into() })));
    assert_eq!(al.closed(), Some(1000));
}
