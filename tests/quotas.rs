//! How much several connections may do together, through the real binary: an address and a user have a bound, their neighbours do not feel
//! it, and whoever leaves makes room.

mod support;

use std::ops::RangeInclusive;
use std::sync::Arc;

use support::eventually;
use support::gateway::Gateway;
use support::peer::{Peer, status, upgrade};
use support::raw::{ENCODINGS, Next, Raw, cmid};
use support::secure::{self, Authority, BOTH};
use tidegate::wire::envelope::{ClientFrame, Send, ServerFrame, Users, send_flags};

const XFF: &str = "X-Forwarded-For";
/// This machine is no exception.
const NOBODY: (&str, &str) = ("limits.address_exempt", "");
const HERE: (&str, &str) = ("proxy.networks", "127.0.0.1");

/// The status, and `Retry-After`.
type Answer = (Peer, u16, Option<u32>);

/// What an upgrade request is told.
fn ask(gateway: &Gateway, front: &str, headers: &str) -> Answer {
    let mut peer = Peer::connect(gateway.listen);
    peer.write(front.as_bytes());
    peer.write(upgrade("tidegate.v1", headers).as_bytes());
    let head = String::from_utf8(peer.read_head()).expect("ASCII");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let retry = head.lines().find_map(|line| line.strip_prefix("Retry-After: ")?.parse().ok());
    (peer, code, retry)
}

/// An address has so many connections, wherever it is learned: at accept, from a PROXY header, from a request head. Of IPv6 the first half
/// counts. The next one is told 429 and when to come back, another address is served, and whoever leaves makes room.
#[test]
fn an_address_has_so_many_connections() {
    let gateway = Gateway::with(&[NOBODY, ("limits.address_connections", "2"), ("protocol.hello_ms", "60000")]);
    let mut here: Vec<Peer> =
        (0..2).map(|_| ask(&gateway, "", "")).map(|(peer, code, _)| (code == 101).then_some(peer).expect("room")).collect();
    let mut third = Peer::connect(gateway.listen);
    assert_eq!(status(&third.read_all()), 429, "at accept, before it asked for anything");
    here.pop();
    eventually("room", || (ask(&gateway, "", "").1 == 101).then_some(()));
    let count = |name: &str| gateway.metric(name);
    eventually("the cause", || (count(r#"tidegate_closes_total{cause="rate_limited"}"#) >= 1.0).then_some(()));
    assert!(count("tidegate_addresses_limited_total") >= 1.0);

    let forwarded = Gateway::with(&[HERE, ("limits.address_connections", "2"), ("protocol.hello_ms", "60000")]);
    let proxied =
        Gateway::with(&[HERE, ("proxy.protocol", "true"), ("limits.address_connections", "2"), ("protocol.hello_ms", "60000")]);
    for (full, same, other) in
        [("203.0.113.7", "203.0.113.7", "203.0.113.8"), ("2001:db8:0:1::7", "2001:db8:0:1:ffff::8", "2001:db8:0:2::7")]
    {
        let by_head = |address: &str| ask(&forwarded, "", &format!("{XFF}: {address}\r\n"));
        let family = if full.contains(':') { "TCP6" } else { "TCP4" };
        let by_proxy = |address: &str| ask(&proxied, &format!("PROXY {family} {address} {address} 1 2\r\n"), "");
        let ways: [&dyn Fn(&str) -> Answer; 2] = [&by_head, &by_proxy];
        for way in ways {
            let kept = [way(full), way(same)];
            assert!(kept.iter().all(|(_, code, _)| *code == 101));
            let (_, code, retry) = way(same);
            assert_eq!(code, 429, "{same}");
            assert!((5..=10).contains(&retry.expect("a time to wait")));
            assert_eq!(way(other).1, 101, "{other}");
            drop(kept);
            eventually("room", || (way(full).1 == 101).then_some(()));
        }
    }
    eprintln!(
        "limited: {} {}",
        forwarded.metric("tidegate_addresses_limited_total"),
        proxied.metric("tidegate_addresses_limited_total")
    );
}

/// On the port of TLS an address over its bound is cut off before a handshake, at accept or behind a PROXY header, whether it has said
/// something or not: of its handshake nothing is done. Another address is served, and whoever leaves makes room.
#[test]
fn an_address_has_so_many_connections_with_tls() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let config = Arc::new(authority.client(&BOTH, None));
    let number = ("limits.address_connections", "2");
    let here = [NOBODY, number];
    let proxied = [HERE, ("proxy.protocol", "true"), number];
    let front = |address: &str| format!("PROXY TCP4 {address} 127.0.0.1 1 2\r\n");
    for (settings, front, other) in
        [(&here[..], String::new(), None), (&proxied, front("203.0.113.7"), Some(front("203.0.113.8")))]
    {
        let (gateway, address) = secure::start(&authority, &["a"], settings);
        let served = |front: &str| secure::connect_behind(address, front.as_bytes(), &config, "localhost");
        let kept: Vec<_> = (0..2).map(|_| served(&front).expect("room")).collect();
        // Nothing, part of a first record, a whole one that is no good, and HTTP.
        for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", b"GET / HTTP/1.1\r\n\r\n"] {
            let mut peer = Peer::connect(address);
            peer.write(front.as_bytes());
            peer.write(said);
            assert_eq!(peer.read_all(), b"", "neither an alert nor an answer");
        }
        assert!(served(&front).is_err());
        // One that leaves at once takes with it what its gateway has not read.
        let _other = other.map(|other| served(&other).expect("another address"));
        let count = |name: &str| gateway.metric(name);
        let handshakes = |result: &str| count(&format!("tidegate_tls_handshakes_total{{result=\"{result}\"}}"));
        eventually("the refusals", || (handshakes("refused") == 5.0).then_some(()));
        assert_eq!(count("tidegate_addresses_limited_total"), 5.0);
        let begun = if front.is_empty() { 2.0 } else { 3.0 };
        // A client is done before the gateway is.
        eventually("the handshakes", || (handshakes("full") + handshakes("resumed") >= begun).then_some(()));
        assert_eq!(handshakes("full") + handshakes("resumed"), begun);
        assert_eq!(handshakes("failed") + handshakes("timeout"), 0.0);
        eventually("the cause", || (count(r#"tidegate_closes_total{cause="rate_limited"}"#) == 5.0).then_some(()));
        drop(kept);
        eventually("room", || served(&front).ok());
    }
}

/// An address connects so often; the times to wait are spread, and another address is served meanwhile. Loopback is exempt by default.
#[test]
fn an_address_connects_so_often() {
    let gateway = Gateway::with(&[HERE, ("limits.address_per_s", "1"), ("limits.address_burst", "3")]);
    let from = |address: &str| ask(&gateway, "", &format!("{XFF}: {address}\r\n"));
    assert!((0..3).all(|_| from("203.0.113.7").1 == 101));
    // The clock runs meanwhile: a few more may pass.
    let refused = (0..1000).filter_map(|_| Some(from("203.0.113.7")).filter(|(_, code, _)| *code == 429));
    let refused: Vec<u32> = refused.take(20).map(|(_, _, retry)| retry.expect("a time to wait")).collect();
    assert_eq!(refused.len(), 20);
    assert!(refused.iter().max() > refused.iter().min(), "spread: {refused:?}");
    assert_eq!(from("203.0.113.8").1, 101);
    let gateway = Gateway::with(&[("limits.address_per_s", "1"), ("limits.address_burst", "1")]);
    for _ in 0..20 {
        assert_eq!(ask(&gateway, "", "").1, 101);
    }
}

/// All devices of a user together may do as much as so many connections, on whatever core they are, in each class of commands; another
/// user does not feel it. A connection alone has its own bound.
#[test]
fn devices_of_a_user_share_a_bound() {
    let settings = [
        ("limits.user_connections", "1"),
        ("protocol.fetch_rate", "1"),
        ("state.signal_rate", "1"),
        ("protocol.send_rate", "1"),
        ("protocol.send_window", "1"),
        ("protocol.send_burst", "2"),
    ];
    let classes: [(&str, Ask); 3] = [("reads", fetch), ("signals", signal), ("sends", put)];
    for (encoding, (class, ask)) in ENCODINGS.into_iter().flat_map(|encoding| classes.map(|class| (encoding, class))) {
        let gateway = Gateway::with(&settings);
        let mut devices = Vec::new();
        let mut bo = Raw::connect(&gateway, encoding, "bo", "1");
        bo.say("d:al:bo", "there is such a conversation");
        // Two at once are within the bound of each connection, and of the user for the first of them; the clock runs meanwhile.
        let limited = (0..16).find_map(|number| {
            let mut raw = Raw::connect(&gateway, encoding, "al", &number.to_string());
            let asked: Vec<_> = (0..2).map(|_| ask(&mut raw, "d:al:bo")).collect();
            devices.push(raw);
            asked.into_iter().flatten().next()
        });
        let (code, retry_ms) = limited.unwrap_or_else(|| panic!("{class} of devices together are too fast"));
        assert!(code == 4001 && retry_ms > 0 && devices.len() > 1, "{class}: {code}, {} devices", devices.len());
        eventually("it is counted", || (gateway.metric("tidegate_users_limited_total") > 0.0).then_some(()));
        assert_eq!(ask(&mut bo, "d:al:bo"), None, "{class}: another user is not concerned");
        if class != "sends" {
            devices[0].say("d:al:bo", "sending has a bound of its own");
        }
    }
}

/// Asks for something about a conversation: `None` if it passes, else code and time to wait of the ERROR.
type Ask = fn(&mut Raw, &str) -> Option<(u16, u32)>;
/// A frame with this rid.
type Make = fn(u32) -> ClientFrame<'static>;

/// Reads something: `None` is a PAGE, else code and time to wait of the ERROR.
fn fetch(raw: &mut Raw, conv: &str) -> Option<(u16, u32)> {
    let rid = raw.next_rid();
    raw.put(&ClientFrame::Fetch { rid, conv: conv.into(), from: 1, to: 2, limit: 1, flags: 0 });
    refused(raw, |frame| matches!(frame, ServerFrame::Page { .. }))
}

/// Says something: `None` is a SENT.
fn put(raw: &mut Raw, conv: &str) -> Option<(u16, u32)> {
    raw.put_send(conv, cmid(), 0, b"x");
    refused(raw, |frame| matches!(frame, ServerFrame::Sent { .. }))
}

/// Signals something, which is not answered if it passes.
fn signal(raw: &mut Raw, conv: &str) -> Option<(u16, u32)> {
    raw.put(&ClientFrame::Signal { conv: conv.into(), kind: 1, payload: b"x"[..].into() });
    raw.put(&ClientFrame::Ping { pos: 0 });
    refused(raw, |frame| matches!(frame, ServerFrame::Pong { .. }))
}

/// What refuses, before what passes.
fn refused(raw: &mut Raw, passes: impl Fn(&ServerFrame<'_>) -> bool) -> Option<(u16, u32)> {
    loop {
        match raw.next() {
            Next::Frame(ServerFrame::Error { code, retry_ms, .. }) => return Some((code, retry_ms)),
            Next::Frame(frame) if passes(&frame) => return None,
            Next::Frame(_) => {}
            Next::Closed(code) => panic!("closed with {code:?}"),
        }
    }
}

/// Whatever is asked for too often, in whatever class of commands, ends the connection after 1,024 refusals in a row; but for READ, of which any
/// number may be under way.
#[test]
fn every_class_has_its_end() {
    let gateway = Gateway::with(&[("protocol.fetch_rate", "1"), ("state.signal_rate", "1")]);
    let classes: [(&str, Make); 6] = [
        ("reads", |rid| ClientFrame::Fetch { rid, conv: "g:none".into(), from: 1, to: 2, limit: 1, flags: 0 }),
        ("reads of nothing", |rid| ClientFrame::Fetch { rid, conv: "x".into(), from: 1, to: 2, limit: 1, flags: 0 }),
        ("pages", |rid| ClientFrame::Sync { rid, since: 0, limit: 1, cursor: "".into() }),
        ("signals", |_| ClientFrame::Signal { conv: "g:none".into(), kind: 1, payload: b"x"[..].into() }),
        ("presence not granted", |rid| ClientFrame::Watch { rid, ttl_s: 0, users: Users::List(Vec::new()) }),
        ("tokens", |rid| ClientFrame::Auth { rid, token: "x".into() }),
    ];
    for (number, (class, frame)) in classes.into_iter().enumerate() {
        let mut raw = Raw::connect(&gateway, ENCODINGS[0], &format!("al-{number}"), "1");
        let frames: Vec<_> = (1..=400).map(frame).collect();
        // A message has at most 512. A burst passes, and one each second, which begins a new row.
        let closed = (0..6).find_map(|_| {
            raw.put_all(&frames);
            std::iter::from_fn(|| raw.poll()).find_map(|next| if let Next::Closed(code) = next { Some(code) } else { None })
        });
        assert_eq!(closed, Some(Some(4429)), "{class}");
        drop(Raw::connect(&gateway, ENCODINGS[0], "neighbour", "1"));
    }
    let mut raw = Raw::connect(&gateway, ENCODINGS[0], "marks", "1");
    let marks: Vec<_> = (1_001..=1_400).map(|rid| ClientFrame::Read { rid, conv: "g:none".into(), seq: 1 }).collect();
    for _ in 0..4 {
        raw.put_all(&marks);
    }
    raw.say("d:bo:marks", "still here");
}

/// Whoever goes on sending behind a message that failed, or to where it is no member, is closed with 4429 after 1,024 refusals in a row.
/// A message that passes in between begins a new row. Who was closed stays away for a while; nobody else does.
#[test]
fn who_goes_on_regardless_is_cut_off() {
    const ROW: usize = 1_024;
    let gateway = Gateway::start();
    for (user, conv, code) in [("al", "d:al:bo", 4003), ("di", "d:bo:cy", 3001)] {
        let mut al = Raw::connect(&gateway, ENCODINGS[0], user, "1");
        let mut beside = Raw::connect(&gateway, ENCODINGS[0], user, "2");
        for _ in 0..ROW / 2 {
            al.put_send("d:bo:cy", cmid(), 0, b"x");
        }
        al.say(&format!("d:{}:{}", user.min("cy"), user.max("cy")), "begins a new row");
        // A window and a burst may pass before the first refusal.
        for _ in 0..ROW + 200 {
            al.put_send(conv, cmid(), 0, b"x");
        }
        let mut refused = 0;
        let close = loop {
            match al.next() {
                Next::Frame(ServerFrame::Error { code: found, .. }) => refused += usize::from(found == code),
                Next::Frame(_) => {}
                Next::Closed(code) => break code,
            }
        };
        assert_eq!(close, Some(4429), "{conv}");
        assert!((ROW - 200..ROW).contains(&refused), "{conv}: {refused}");
        // Its user does not come in again at once, on whatever core; a device that is connected stays, and others come in.
        for device in ["1", "2", "3", "4"] {
            let mut again = Raw::open(&gateway, ENCODINGS[0]);
            again.hello(&gateway.token(user), device);
            let error = again.error();
            assert!(error.code == 4001 && (1..=12_500).contains(&error.retry_ms), "{device}: {}, {}", error.code, error.retry_ms);
            assert_eq!(again.closed(), Some(4429));
        }
        drop(beside.ping());
        drop(Raw::connect(&gateway, ENCODINGS[0], "neighbour", "1"));
    }
}

/// Those who are refused in one instant are told different times to wait, at least as long as the refusal asks for and up to a quarter
/// more: by rate, for what is unanswered, and behind a message that failed. All requests of one class are one message, so they are read at
/// one time of the gateway.
#[test]
fn the_refused_are_told_times_that_differ() {
    for encoding in ENCODINGS {
        let gateway = Gateway::with(&[("protocol.fetch_rate", "15")]);
        let mut devices = (1..).map(|number| Raw::connect(&gateway, encoding, "al", &number.to_string()));
        let mut told = |frames: Vec<ClientFrame<'_>>| told(&mut devices.next().expect("one more"), &frames);

        // A burst of 30: one is read, eight wait, and the rest of it is too much at once.
        let fetch = |rid| ClientFrame::Fetch { rid, conv: "d:al:bo".into(), from: 1, to: 2, limit: 1, flags: 0 };
        let waits = told((1..=50).map(fetch).collect());
        differ(&waits, 4001, 20, 1..=67);
        differ(&waits, 4002, 21, 50..=50);

        // A window of 64, then as many beyond it as the burst has left. What is transient waits for nothing that failed.
        let send = |rid, conv: &str, flags| {
            ClientFrame::Send(Send {
                rid,
                cmid: cmid(),
                flags,
                kind: 1,
                ttl_s: 0,
                trace: None,
                conv: conv.to_owned().into(),
                payload: b"x"[..].into(),
            })
        };
        let waits = told((1..=148).map(|rid| send(rid, "d:al:bo", send_flags::TRANSIENT)).collect());
        differ(&waits, 4002, 64, 50..=50);
        differ(&waits, 4001, 20, 1..=50);

        // Twenty conversations beyond the window, and a second message to each.
        let beyond =
            (1..=104).map(|rid| send(rid, &if rid <= 64 { "d:al:bo".to_owned() } else { format!("d:al:u{}", rid % 20) }, 0));
        let waits = told(beyond.collect());
        differ(&waits, 4002, 20, 50..=50);
        differ(&waits, 4003, 20, 50..=50);

        let signal = |_| ClientFrame::Signal { conv: "d:al:bo".into(), kind: 1, payload: b"x"[..].into() };
        differ(&told((1..=40).map(signal).collect()), 4001, 20, 1..=100);
    }
}

/// Code and time to wait of each ERROR that answers these frames, sent as one message.
fn told(raw: &mut Raw, frames: &[ClientFrame<'_>]) -> Vec<(u16, u32)> {
    raw.put_all(frames);
    let told = raw.ping().into_iter().filter_map(|frame| match frame {
        ServerFrame::Error { code, retry_ms, .. } => Some((code, retry_ms)),
        _ => None,
    });
    told.collect()
}

/// So many were refused with `code`; their times are not one, and none is outside of what `asked` (milliseconds) and a quarter more allow.
fn differ(told: &[(u16, u32)], code: u16, count: usize, asked: RangeInclusive<u32>) {
    let waits: Vec<u32> = told.iter().filter(|(of, _)| *of == code).map(|(_, wait)| *wait).collect();
    eprintln!("{code}: {waits:?}");
    assert_eq!(waits.len(), count, "{code}: {told:?}");
    let most = asked.end() + asked.end() / 4;
    assert!(waits.iter().all(|wait| (*asked.start()..=most).contains(wait)), "{code}: {waits:?}");
    assert!(waits.iter().max() > waits.iter().min(), "{code}: {waits:?}");
}
