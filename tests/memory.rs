//! Memory as a contract: what an idle session costs the whole process, and what a reactor costs before anybody connects.
//!
//! Measured on the real binary from `/proc`: proportional bytes for sessions, resident bytes for reactors. Both figures are printed.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use support::gateway::Gateway;
use support::secure::{self, Authority};
use support::{PATIENCE, eventually, raw};
use tidegate::io::descriptors::Descriptors;
use tidegate::wire::envelope::{Encoding, ServerFrame, ServerFrames};

/// Ten thousand authenticated sessions that do nothing, each of a user of its own: the growth of the process, divided by them, with
/// names, roster, timers and what the allocator keeps of ten thousand handshakes.
#[test]
fn an_idle_session_costs_at_most_the_contract() {
    let descriptors = Descriptors::for_connections(SESSIONS as u64).expect("Linux says the limit");
    assert!(descriptors.suffice(), "{descriptors}");
    let gateway = Gateway::start();
    let empty = gateway.proportional_bytes();
    let mut sessions = Vec::with_capacity(SESSIONS);
    while sessions.len() < SESSIONS {
        // Many at once, so that handshakes overlap as they do after an outage.
        let mut batch: Vec<_> = (0..BATCH).map(|offset| begin(&gateway, sessions.len() + offset)).collect();
        batch.iter_mut().for_each(wait_for_welcome);
        sessions.append(&mut batch);
    }
    assert_eq!(gateway.counted("tidegate_sessions_open"), SESSIONS as f64);
    // At rest: what ten thousand handshakes used in passing is given back within seconds, as pools are trimmed.
    let mut grown = u64::MAX;
    for _ in 0..RESTS {
        grown = grown.min(gateway.proportional_bytes() - empty);
        if grown as f64 / SESSIONS as f64 <= SESSION_BYTES_MAX {
            break;
        }
        std::thread::sleep(REST);
    }
    let each = grown as f64 / SESSIONS as f64;
    println!("{SESSIONS} idle sessions: {grown} bytes, {each:.0} each; the contract is {SESSION_BYTES_MAX}");
    assert!(each <= SESSION_BYTES_MAX, "an idle session costs {each:.0} bytes, all included");
}

/// Sessions with TLS that do nothing: the growth of the process, divided by them, as above but with handshakes that are not resumed.
#[test]
fn an_idle_session_with_tls_costs_at_most_its_contract() {
    let authority = Authority::new();
    authority.issue("a", &["localhost"]);
    let (gateway, address) = secure::start(&authority, &["a"], &[("protocol.ping_ms", "600000")]);
    let config = Arc::new(authority.client(&secure::BOTH, None));
    // What the first handshake makes for all is not one session's.
    let first = secure::connect(address, &config, "localhost").expect("a handshake");
    let mut sessions = vec![secure::welcomed(&gateway, first, "user-first")];
    let empty = gateway.proportional_bytes();
    for number in 0..TLS_SESSIONS {
        let config = Arc::new(authority.client(&secure::BOTH, None));
        let stream = secure::connect(address, &config, "localhost").expect("a handshake");
        sessions.push(secure::welcomed(&gateway, stream, &format!("user-{number:07}")));
    }
    assert_eq!(gateway.counted("tidegate_tls_open"), (TLS_SESSIONS + 1) as f64);
    let grown = gateway.proportional_bytes() - empty;
    let each = grown as f64 / TLS_SESSIONS as f64;
    println!("{TLS_SESSIONS} idle sessions with TLS: {grown} bytes, {each:.0} each; the contract is {TLS_SESSION_BYTES_MAX}");
    assert!(each <= TLS_SESSION_BYTES_MAX, "an idle session with TLS costs {each:.0} bytes, all included");
}

/// What fifty-one more reactors cost, on the driver of this run: their pools, rings, lanes, histograms and buffers are shares of the
/// node's budget. Once before anybody connects, and once when clients have come to all of them and gone, so that nothing is merely
/// promised; the start says the sum, and keeps to the same bound.
#[test]
fn fifty_two_reactors_fit_the_budget() {
    let [one, many] = ["1", "52"].map(|reactors| {
        let gateway = Gateway::with(&[("reactors", reactors), ("limits.accept_per_s", "0")]);
        let empty = gateway.resident_bytes();
        for _ in 0..VISITS {
            let mut visitors: Vec<_> = (0..BATCH).map(|number| begin(&gateway, number)).collect();
            visitors.iter_mut().for_each(wait_for_welcome);
        }
        eventually("an empty gateway", || (gateway.metric("tidegate_connections_open") == 0.0).then_some(()));
        (empty, gateway.resident_bytes(), fixed_bytes(&gateway, reactors))
    });
    let more = [many.0.saturating_sub(one.0), many.1.saturating_sub(one.1)];
    println!("51 more reactors: {} bytes resident, after visits {}; shares say {}", more[0], more[1], many.2);
    assert!(more.into_iter().all(|bytes| bytes <= REACTORS_BYTES_MAX), "51 more reactors cost {more:?} bytes");
    assert!(one.2 < many.2 && many.2 <= REACTORS_BYTES_MAX, "the shares come to {} bytes", many.2);
}

/// What the start says that all reactors cost before anybody connects.
fn fixed_bytes(gateway: &Gateway, reactors: &str) -> u64 {
    let log = gateway.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let sums = lines.filter(|line| line.get("most_bytes").is_some());
    let told: Vec<_> = sums.filter_map(|line| Some((line["reactors"].to_string(), line["fixed_bytes"].as_u64()?))).collect();
    let [(count, bytes)] = told.as_slice() else { panic!("one line with the sums: {log}") };
    assert_eq!(count, reactors);
    *bytes
}

/// Upgrade and HELLO in one write; the answers are read later.
fn begin(gateway: &Gateway, number: usize) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.listen).expect("the gateway accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut bytes = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: tidegate.v1\r\n\r\n"
        .to_vec();
    let token = gateway.token(&format!("user-{number:07}"));
    let hello = raw::encoded(&[raw::hello(&token, "phone")]);
    let length = u16::try_from(hello.len()).expect("a short frame");
    assert!(length >= 126);
    // Final, binary, masked with zeros.
    bytes.extend_from_slice(&[0x82, 0x80 | 126]);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&hello);
    stream.write_all(&bytes).expect("the gateway reads");
    stream
}

fn wait_for_welcome(stream: &mut TcpStream) {
    let mut bytes = Vec::new();
    let mut room = [0; 1024];
    loop {
        let count = stream.read(&mut room).expect("the gateway answers");
        assert!(count > 0, "closed before WELCOME: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&room[..count]);
        let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let mut frame = &bytes[head + 4..];
        // The first ping comes after a random part of the interval, which may be none of it.
        while let Some(behind) = frame.strip_prefix(&[0x89, 0]) {
            frame = behind;
        }
        let (header, length) = match frame {
            [0x82, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
            [0x82, 126, ..] | [] | [0x82 | 0x89] => continue,
            [0x82, length, ..] => (2, usize::from(*length)),
            other => panic!("not a binary frame: {other:?}"),
        };
        let Some(payload) = frame.get(header..header + length) else { continue };
        let answer = ServerFrames::new(Encoding::Binary, payload).next_frame();
        assert!(matches!(answer, Ok(Some(ServerFrame::Welcome(_)))), "{answer:?}");
        return;
    }
}

/// Sessions held: with their two ends they fit two tables of 20,000 descriptors.
const SESSIONS: usize = 10_000;
/// Handshakes under way at once.
const BATCH: usize = 250;
/// So many such waves leave hardly a reactor of 52 unvisited.
const VISITS: usize = 4;
/// How often memory is looked at until it is at rest, and how long apart.
const RESTS: u32 = 120;
const REST: Duration = Duration::from_millis(500);
/// All included.
const SESSION_BYTES_MAX: f64 = 512.0;
/// Sessions with TLS held.
const TLS_SESSIONS: usize = 2_000;
/// All included.
const TLS_SESSION_BYTES_MAX: f64 = 8_192.0;
/// All reactors of a node together.
const REACTORS_BYTES_MAX: u64 = tidegate::limits::REACTORS_FIXED_BYTES_MAX;
