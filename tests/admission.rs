//! Who may come in, through the real binary: rates and numbers that are spent make newcomers wait or tell them to come later, and once
//! there is room they are served.

mod support;

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::Instant;

use support::gateway::Gateway;
use support::peer::{Peer, status, upgrade};
use support::raw::{ENCODINGS, Next, Raw};
use support::{PATIENCE, eventually};
use tidegate::wire::envelope::{Encoding, ServerFrame, page_flags};
use tidegate_client::{Client, Event, Events, State};

/// A full node upgrades whoever offers the subprotocol and says GOAWAY and 4503, which a browser can see; one that leaves lets the next
/// one in.
#[test]
fn a_full_node_says_when_to_come_back() {
    let gateway = Gateway::with(&[("reactors", "1"), ("limits.connections_max", "2")]);
    let first = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let _second = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
    for encoding in ENCODINGS {
        let mut third = Raw::open(&gateway, encoding);
        match third.next() {
            Next::Frame(ServerFrame::Goaway { code: 4, delay_ms, spread_ms, target, .. }) => {
                assert!(delay_ms > 0 && spread_ms > 0 && target.is_empty());
            }
            other => panic!("not GOAWAY: {other:?}"),
        }
        assert_eq!(third.closed(), Some(4503));
    }
    eventually("both turned away", || (gateway.metric("tidegate_upgrades_turned_away_total") == 2.0).then_some(()));
    eventually("the ends", || (gateway.metric(r#"tidegate_closes_total{cause="overloaded"}"#) == 2.0).then_some(()));
    drop(first);
    eventually("room", || (gateway.metric("tidegate_connections_open") == 1.0).then_some(()));
    Raw::connect(&gateway, Encoding::Json, "cy", "1");
}

/// More come at once than there is room for: as many as fit are let in, and only the rest is turned away.
#[test]
fn a_crowd_is_let_in_as_far_as_there_is_room() {
    let gateway = Gateway::with(&[("reactors", "1"), ("limits.connections_max", "2"), ("protocol.hello_ms", "60000")]);
    let mut crowd: Vec<Peer> = (0..5).map(|_| Peer::connect(gateway.listen)).collect();
    eventually("all of them", || (gateway.metric("tidegate_connections_open") == 5.0).then_some(()));
    for peer in &mut crowd {
        peer.write(upgrade("tidegate.v1", "").as_bytes());
        assert_eq!(status(&peer.read_head()), 101);
    }
    for peer in &mut crowd[2..] {
        // A GOAWAY before the close.
        let end = peer.read_all();
        assert_eq!((end[0], end.windows(2).any(|two| two == 4503_u16.to_be_bytes())), (0x82, true), "{end:x?}");
    }
    eventually("the rest", || (gateway.metric("tidegate_upgrades_turned_away_total") == 3.0).then_some(()));
    eventually("two are left", || (gateway.metric("tidegate_connections_open") == 2.0).then_some(()));
    drop(crowd);
    eventually("room", || (gateway.metric("tidegate_connections_open") == 0.0).then_some(()));
    let _both = [("al", "1"), ("bo", "2")].map(|(user, device)| Raw::connect(&gateway, Encoding::Binary, user, device));
}

/// Once its tokens are spent a reactor accepts as fast as they come back; nobody is lost.
#[test]
fn accepting_has_a_rate() {
    let gateway = Gateway::with(&[("reactors", "1"), ("limits.accept_per_s", "5"), ("limits.accept_burst", "2")]);
    let all: Vec<Raw> = (0..8).map(|number| Raw::connect(&gateway, Encoding::Binary, "al", &number.to_string())).collect();
    assert!(gateway.counted("tidegate_accepts_paused_total") > 0.0);
    assert_eq!(gateway.counted("tidegate_connections_accepted_total"), 8.0);
    eventually("all sessions", || (gateway.metric("tidegate_sessions_open") == all.len() as f64).then_some(()));
}

/// The rate is that of the node: however many reactors there are, newcomers come in no faster. How slow this machine is does not matter.
#[test]
fn reactors_share_one_rate() {
    let (rate, burst, reactors) = (5.0, 2.0, 4.0);
    let gateway = Gateway::with(&[("reactors", "4"), ("limits.accept_per_s", "5"), ("limits.accept_burst", "2")]);
    // One place of each reactor is ahead of the rate, and one more is booked before the first connection.
    let begun = Instant::now();
    let all: Vec<Raw> = (0..24).map(|number| Raw::connect(&gateway, Encoding::Binary, &format!("u{number}"), "1")).collect();
    let most = begun.elapsed().as_secs_f64() * rate + burst + reactors + 1.0;
    assert!(all.len() as f64 <= most, "{} came in, at most {most:.1} may", all.len());
}

/// A node that drains tells everybody another moment to come back, as far apart as its rate of newcomers says, and another rate gives other
/// moments.
#[test]
fn a_drain_spreads_those_who_come_back() {
    for (rate, seconds) in [("10", 6), ("30", 2)] {
        let gateway = Gateway::with(&[("reactors", "2"), ("limits.accept_per_s", rate), ("limits.accept_burst", "100")]);
        let mut all: Vec<Raw> =
            (0..60).map(|number| Raw::connect(&gateway, Encoding::Binary, &format!("u{number}"), "1")).collect();
        gateway.terminate();
        let mut delays_ms: Vec<u32> = all
            .iter_mut()
            .map(|raw| match raw.next() {
                Next::Frame(ServerFrame::Goaway { code: 3, delay_ms, spread_ms: 1_000, .. }) => delay_ms,
                other => panic!("not GOAWAY: {other:?}"),
            })
            .collect();
        delays_ms.sort_unstable();
        let (first, last) = (delays_ms[0], delays_ms[59]);
        // Whoever is told later waits as much less: half of the time is left on the slowest machine. Places begin when all have been told.
        assert!(first >= 500 && last <= 600 + seconds * 1_000, "{delays_ms:?}");
        assert!(last >= seconds * 500, "{delays_ms:?}");
    }
}

/// A node that is restarted gets everybody back, no faster than its rate, and refuses nobody.
#[test]
fn everybody_comes_back_at_the_rate() {
    const CLIENTS: usize = 200;
    let (rate, burst) = (60.0, 20.0);
    let mut gateway = Gateway::with(&[("limits.accept_per_s", "60"), ("limits.accept_burst", "20")]);
    let clients: Vec<(Client, Events)> = (0..CLIENTS)
        .map(|number| {
            let (client, events) = gateway.client(gateway.options(&format!("u{number}"), "1"));
            assert!(synced(&events).is_empty());
            (client, events)
        })
        .collect();
    gateway.terminate();
    assert!(gateway.wait().success());
    let begun = Instant::now();
    gateway.run();
    for (_, events) in &clients {
        let ends = synced(events);
        assert!(!ends.is_empty(), "it was told to go");
        assert!(!ends.contains(&Some(4503)) && !ends.contains(&Some(4429)), "refused: {ends:?}");
    }
    let most = begun.elapsed().as_secs_f64() * rate + burst + 3.0;
    assert!(CLIENTS as f64 <= most, "they came back faster than the rate: {most:.0} may");
    eventually("all sessions", || (gateway.metric("tidegate_sessions_open") == CLIENTS as f64).then_some(()));
    for name in ["tidegate_accepts_turned_away_total", "tidegate_upgrades_turned_away_total", "tidegate_upgrades_refused_total"] {
        assert_eq!(gateway.counted(name), 0.0, "{name}");
    }
}

/// Waits until a client has a session and knows what it missed; the codes of the connections that ended before.
fn synced(events: &Events) -> Vec<Option<u16>> {
    let mut ends = Vec::new();
    loop {
        match events.recv_timeout(PATIENCE).expect("the client goes on") {
            Event::Synced => return ends,
            Event::State(State::Waiting { close, .. }) => ends.push(close),
            _ => {}
        }
    }
}

/// Those who find no room are told to come back one after the other, at the rate of newcomers.
#[test]
fn the_refused_come_back_one_after_the_other() {
    let gateway = Gateway::with(&[
        ("reactors", "1"),
        ("limits.connections_max", "1"),
        ("limits.accept_per_s", "2"),
        ("limits.accept_burst", "100"),
    ]);
    let _first = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let delays_ms: Vec<u32> = (0..20)
        .map(|_| match Raw::open(&gateway, Encoding::Binary).next() {
            Next::Frame(ServerFrame::Goaway { code: 4, delay_ms, .. }) => delay_ms,
            other => panic!("not GOAWAY: {other:?}"),
        })
        .collect();
    // Twenty at two a second: the last comes 10 s after the first, less what passed while they asked, and later than the one before.
    assert!(delays_ms[0] >= 5_000 && delays_ms.iter().all(|&delay| delay < 65_000), "{delays_ms:?}");
    let places = delays_ms.windows(2).filter(|two| two[1] > two[0]).count();
    assert!(places >= 15, "{delays_ms:?}");
}

/// Connections that never say who they are fill the places for handshakes: newcomers wait, and come in when one has gone or was let in.
#[test]
fn handshakes_have_a_number() {
    let gateway = Gateway::with(&[
        ("reactors", "1"),
        ("limits.handshakes_max", "2"),
        ("protocol.upgrade_ms", "60000"),
        ("protocol.hello_ms", "60000"),
    ]);
    let silent = TcpStream::connect(gateway.listen).expect("the gateway listens");
    let mut upgraded = Raw::open(&gateway, Encoding::Binary);
    eventually("two handshakes", || (gateway.metric("tidegate_handshakes_open") == 2.0).then_some(()));
    let waiting = TcpStream::connect(gateway.listen).expect("the kernel takes it");
    eventually("a pause", || (gateway.metric("tidegate_accepts_paused_total") > 3.0).then_some(()));
    assert_eq!(gateway.counted("tidegate_connections_accepted_total"), 2.0);
    upgraded.hello(&gateway.token("al"), "1");
    upgraded.welcome();
    eventually("the one that waited", || (gateway.metric("tidegate_connections_accepted_total") == 3.0).then_some(()));
    drop((silent, waiting));
    eventually("no handshake", || (gateway.metric("tidegate_handshakes_open") == 0.0).then_some(()));
    Raw::connect(&gateway, Encoding::Binary, "bo", "1");
    eventually("no handshake", || (gateway.metric("tidegate_handshakes_open") == 0.0).then_some(()));
}

/// When those who wait fill half of the kernel's queue, they are taken from it and answered with 503, which says when to come back.
#[test]
fn a_long_queue_is_turned_away() {
    let gateway = Gateway::with(&[("reactors", "1"), ("limits.handshakes_max", "1"), ("protocol.upgrade_ms", "60000")]);
    let mut waiting = Vec::new();
    let answer = eventually("an answer without a request", || {
        if waiting.len() < 4_500 {
            waiting.extend((0..100).map(|_| {
                let stream = TcpStream::connect(gateway.listen).expect("the kernel takes it");
                stream.set_nonblocking(true).expect("a socket");
                stream
            }));
        }
        waiting.iter_mut().find_map(|stream| {
            let mut answer = [0; 1024];
            match stream.read(&mut answer) {
                Ok(count) if count > 0 => Some(String::from_utf8_lossy(&answer[..count]).into_owned()),
                Ok(_) => panic!("ended without a word"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    None
                }
            }
        })
    });
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: "), "{answer}");
    for counter in ["tidegate_accepts_turned_away_total", r#"tidegate_upgrades_refused_total{status="503"}"#] {
        eventually(counter, || (gateway.metric(counter) > 0.0).then_some(()));
    }
    drop(waiting);
    let mut raw = Raw::open(&gateway, Encoding::Binary);
    raw.hello(&gateway.token("al"), "1");
    raw.welcome();
}

/// A browser connects from a page that is listed, by scheme, host and port, and from the gateway's own page; from others it is told 403, and
/// who is no browser is not asked.
#[test]
fn pages_connect_from_listed_origins_alone() {
    let gateway = Gateway::with(&[("origins", "https://chat.example,http://localhost:3000")]);
    let admin = gateway.admin_address();
    let answer = |origin: &str| {
        let mut peer = Peer::connect(gateway.listen);
        let line = if origin.is_empty() { String::new() } else { format!("Origin: {origin}\r\n") };
        peer.write(upgrade("tidegate.v1", &line).as_bytes());
        let head = peer.read_head();
        let line = String::from_utf8(head).expect("ASCII");
        line.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok()).expect("a status")
    };
    let own = [format!("http://{admin}"), format!("http://localhost:{}", admin.port())];
    for origin in ["", "https://chat.example", "https://chat.example:443", "http://localhost:3000", &own[0], &own[1]] {
        assert_eq!(answer(origin), 101, "{origin}");
    }
    let near = [format!("https://{admin}"), format!("http://127.0.0.1:{}", gateway.listen.port())];
    for origin in [
        "http://chat.example",
        "https://chat.example:8443",
        "http://localhost",
        "http://localhost:3001",
        "null",
        &near[0],
        &near[1],
    ] {
        assert_eq!(answer(origin), 403, "{origin}");
    }
    let refused = || gateway.metric(r#"tidegate_upgrades_refused_total{status="403"}"#);
    eventually("the refusals", || (refused() == 7.0).then_some(()));
    // Nothing is listed: the own page, and no other of this machine.
    let gateway = Gateway::start();
    for (origin, expected) in [(format!("http://{}", gateway.admin_address()), 101), ("http://127.0.0.1:3000".to_owned(), 403)] {
        let mut peer = Peer::connect(gateway.listen);
        peer.write(upgrade("tidegate.v1", &format!("Origin: {origin}\r\n")).as_bytes());
        assert!(peer.read_head().starts_with(format!("HTTP/1.1 {expected} ").as_bytes()), "{origin}");
    }
}

/// A device that says HELLO again and again is told to wait, whatever core it comes to; its user's other devices are not concerned, nor
/// is somebody else's device of the same name.
#[test]
fn a_device_may_not_say_hello_without_end() {
    let gateway = Gateway::with(&[("protocol.hello_per_minute", "3")]);
    for _ in 0..3 {
        Raw::connect(&gateway, Encoding::Binary, "al", "1");
    }
    for encoding in ENCODINGS {
        let mut raw = Raw::open(&gateway, encoding);
        raw.hello(&gateway.token("al"), "1");
        let error = raw.error();
        assert_eq!((error.rid, error.code), (0, 4001));
        assert_eq!(error.flags & page_flags::ERROR_CLOSING, page_flags::ERROR_CLOSING);
        assert!(error.retry_ms > 0);
        assert_eq!(raw.closed(), Some(4429));
    }
    eventually("both told", || (gateway.metric("tidegate_hellos_limited_total") == 2.0).then_some(()));
    Raw::connect(&gateway, Encoding::Binary, "al", "2");
    Raw::connect(&gateway, Encoding::Binary, "bo", "1");
}
