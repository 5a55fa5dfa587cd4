//! Every way to end a connection, provoked through the real binary: exactly its cause moves, and the client sees the code that
//! `docs/metrics.md` names. `internal_error` needs a defect, which is planted.

mod support;

use std::any::Any;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use support::gateway::Gateway;
use support::raw::{Raw, hello};
use support::{PATIENCE, eventually};
use tidegate::wire::envelope::Encoding;

const DIRECT: &str = "d:al:bo";

/// What a provocation leaves: the sockets that must stay open until the cause was seen, and the code of the Close frame.
type Left = (Box<dyn Any>, Option<u16>);

/// One cause and how to bring it about.
struct Way {
    cause: &'static str,
    settings: &'static [(&'static str, &'static str)],
    provoke: fn(&Gateway) -> Left,
}

const WAYS: &[Way] = &[
    Way { cause: "client_closed", settings: &[], provoke: client_closed },
    Way { cause: "client_gone", settings: &[], provoke: client_gone },
    Way { cause: "upgrade_refused", settings: &[], provoke: upgrade_refused },
    Way { cause: "upgrade_timeout", settings: &[("protocol.upgrade_ms", "200")], provoke: upgrade_timeout },
    Way {
        cause: "proxy_header",
        settings: &[("proxy.protocol", "true"), ("proxy.networks", "127.0.0.1")],
        provoke: proxy_header,
    },
    Way { cause: "hello_timeout", settings: &[("protocol.hello_ms", "200")], provoke: hello_timeout },
    Way { cause: "protocol_violation", settings: &[], provoke: protocol_violation },
    Way { cause: "protocol_error", settings: &[], provoke: protocol_error },
    Way { cause: "frame_too_large", settings: &[], provoke: frame_too_large },
    Way { cause: "message_timeout", settings: &[("protocol.message_ms", "1000")], provoke: message_timeout },
    Way { cause: "token_invalid", settings: &[], provoke: token_invalid },
    Way { cause: "token_expired", settings: &[], provoke: token_expired },
    Way { cause: "token_revoked", settings: &[], provoke: token_revoked },
    Way { cause: "forbidden", settings: &[], provoke: forbidden },
    Way { cause: "replaced", settings: &[], provoke: replaced },
    Way { cause: "kicked", settings: &[], provoke: kicked },
    Way { cause: "liveness_timeout", settings: &[("protocol.ping_ms", "1000")], provoke: liveness_timeout },
    Way {
        cause: "slow_reader",
        settings: &[("limits.write_stall_ms", "1000"), ("limits.queue_bytes_soft", "16384"), ("protocol.ping_ms", "600000")],
        provoke: slow_reader,
    },
    Way {
        cause: "not_acknowledging",
        settings: &[("protocol.ack_stall_ms", "1000"), ("protocol.window_default", "1")],
        provoke: not_acknowledging,
    },
    Way { cause: "rate_limited", settings: &[("protocol.hello_per_minute", "1")], provoke: rate_limited },
    Way { cause: "overloaded", settings: &[("reactors", "1"), ("limits.connections_max", "1")], provoke: overloaded },
    Way { cause: "drain", settings: &[], provoke: drain },
];

/// One way after the other, each on a gateway of its own.
#[test]
fn every_close_has_its_cause() {
    let documented = documented();
    for way in WAYS {
        let (moved, code) = told(way);
        // A drain ends everybody: by the time of the question the second connection may be gone as well.
        let most = if way.cause == "drain" { 2 } else { 1 };
        assert!(moved.keys().eq([way.cause]) && moved[way.cause] <= most, "{}: {moved:?}", way.cause);
        eprintln!("{}: {code:?}", way.cause);
        let named = documented[way.cause];
        match way.cause {
            // The peer's own code comes back to it.
            "client_closed" => assert_eq!((code, named), (Some(1000), None)),
            // A restart is what SIGTERM announces.
            "drain" => assert_eq!((code, named), (Some(1012), Some(1001))),
            // Nobody reads it: the client has left, or it stands behind all that the client did not read.
            "client_gone" | "slow_reader" => {}
            _ => assert_eq!(code, named, "{}", way.cause),
        }
    }
    // A defect is provoked below, TLS where there are certificates, in `tls.rs`, and want of memory in `budget.rs`.
    let elsewhere = ["internal_error", "tls_failed", "shed"];
    let mut provoked: Vec<&str> = WAYS.iter().map(|way| way.cause).chain(elsewhere).collect();
    provoked.sort_unstable();
    assert!(provoked.iter().eq(documented.keys()), "a documented cause is not provoked, or the other way round");
}

/// A defect that the bytes of one client set off, on either driver: that connection ends with 1011, the log has a crash record that says
/// where and on which way, and whoever shares the core goes on.
#[test]
fn a_defect_ends_one_connection_and_leaves_a_crash_record() {
    let gateway = Gateway::within(&["env", &format!("FAULT_PANIC_OVER={DEFECT}")], &[("reactors", "1")]);
    let [mut victim, mut neighbour] = ["al", "bo"].map(|user| connect(&gateway, user, "1"));
    victim.socket.get_mut().write_all(DEFECT.as_bytes()).expect("a socket");
    assert_eq!(victim.closed(), documented()["internal_error"]);
    let moved = eventually("the count", || Some(closes(&gateway)).filter(|moved| !moved.is_empty()));
    assert_eq!(moved, BTreeMap::from([("internal_error".to_owned(), 1)]));
    assert_eq!(gateway.counted("tidegate_panics_total"), 1.0);
    neighbour.say(DIRECT, "still here");
    let record = eventually("the crash record", || {
        gateway.log().lines().find(|line| line.contains("panicked: a defect was planted")).map(str::to_owned)
    });
    for part in [r#""level":"ERROR""#, r#""thread":"reactor-0""#, r#""place":"src/shard/guard.rs:"#, "panic_over_defect"] {
        assert!(record.contains(part), "{part}: {record}");
    }
}

/// Bytes that no parser would stumble over.
const DEFECT: &str = "the bytes of a defect";

/// The causes that moved on a gateway of its own, and the code that the client saw. A drain ends the process that would tell, on a busy
/// machine before it is asked: one that ended as it should plays the way again, and nobody else is asked twice.
fn told(way: &Way) -> (BTreeMap<String, u32>, Option<u16>) {
    for round in 1..=ROUNDS_MAX {
        let mut gateway = Gateway::with(way.settings);
        let (left, code) = (way.provoke)(&gateway);
        let moved = eventually(way.cause, || match ask_closes(&gateway) {
            Ok(moved) => (!moved.is_empty()).then_some(Some(moved)),
            Err(error) => {
                assert!(way.cause == "drain", "{}: the admin listener does not answer: {error}", way.cause);
                Some(None)
            }
        });
        drop(left);
        if let Some(moved) = moved {
            return (moved, code);
        }
        let status = gateway.wait();
        assert!(status.success(), "{}: the gateway was gone, {status}", way.cause);
        eprintln!("{}: the gateway had ended before it was asked, round {round} of {ROUNDS_MAX}", way.cause);
    }
    panic!("{}: {ROUNDS_MAX} gateways in a row had ended before they were asked", way.cause);
}

/// How often a way is played whose gateway ends by itself.
const ROUNDS_MAX: u32 = 5;

/// Causes and codes of the table in the documentation.
fn documented() -> BTreeMap<&'static str, Option<u16>> {
    let page = include_str!("../docs/metrics.md");
    let table = page.split_once("| label `cause` |").expect("the table of causes").1;
    let rows = table.lines().skip(2).map_while(|row| row.strip_prefix("| `")?.split_once("` | "));
    rows.map(|(cause, rest)| (cause, rest.split(' ').next().and_then(|code| code.parse().ok()))).collect()
}

/// Causes that have been counted, with how often.
fn closes(gateway: &Gateway) -> BTreeMap<String, u32> {
    ask_closes(gateway).expect("the admin listener answers")
}

/// As [`closes`], of a gateway that may be gone.
fn ask_closes(gateway: &Gateway) -> std::io::Result<BTreeMap<String, u32>> {
    let (_, text) = gateway.ask_admin("GET", "/metrics", "")?;
    let rows = text.lines().filter_map(|line| line.strip_prefix("tidegate_closes_total{cause=\"")?.split_once("\"} "));
    let counts = rows.map(|(cause, count)| (cause.to_owned(), count.parse().expect("a count")));
    Ok(counts.filter(|&(_, count)| count > 0).collect())
}

fn connect(gateway: &Gateway, user: &str, device: &str) -> Raw {
    Raw::connect(gateway, Encoding::Binary, user, device)
}

fn ended(mut raw: Raw) -> Left {
    let code = raw.closed();
    (Box::new(raw), code)
}

fn client_closed(gateway: &Gateway) -> Left {
    let mut al = connect(gateway, "al", "1");
    drop(al.socket.close(Some(tungstenite::protocol::CloseFrame { code: 1000.into(), reason: "".into() })));
    ended(al)
}

fn client_gone(gateway: &Gateway) -> Left {
    drop(connect(gateway, "al", "1"));
    (Box::new(()), None)
}

fn upgrade_refused(gateway: &Gateway) -> Left {
    let mut stream = TcpStream::connect(gateway.listen).expect("the gateway listens");
    stream.write_all(b"GET /elsewhere HTTP/1.1\r\nHost: h\r\n\r\n").expect("a socket");
    answered(stream)
}

fn upgrade_timeout(gateway: &Gateway) -> Left {
    answered(TcpStream::connect(gateway.listen).expect("the gateway listens"))
}

/// An answer in HTTP, and the end.
fn answered(mut stream: TcpStream) -> Left {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    (Box::new(()), None)
}

fn proxy_header(gateway: &Gateway) -> Left {
    let mut stream = TcpStream::connect(gateway.listen).expect("the gateway listens");
    stream.write_all(b"GET /ws HTTP/1.1\r\n").expect("a socket");
    let mut answer = Vec::new();
    assert!(stream.read_to_end(&mut answer).is_err() || answer.is_empty(), "cut off without a word");
    (Box::new(()), None)
}

fn hello_timeout(gateway: &Gateway) -> Left {
    ended(Raw::open(gateway, Encoding::Binary))
}

fn protocol_violation(gateway: &Gateway) -> Left {
    let mut al = connect(gateway, "al", "1");
    // Not masked.
    al.socket.get_mut().write_all(&[0x82, 1, 0]).expect("a socket");
    ended(al)
}

fn protocol_error(gateway: &Gateway) -> Left {
    let mut al = connect(gateway, "al", "1");
    al.put_bytes(vec![0x7f, 0, 0, 0]);
    ended(al)
}

fn frame_too_large(gateway: &Gateway) -> Left {
    let mut al = connect(gateway, "al", "1");
    al.put_bytes(vec![0; 131_073]);
    ended(al)
}

fn message_timeout(gateway: &Gateway) -> Left {
    let mut al = connect(gateway, "al", "1");
    // Five bytes are announced, one comes.
    al.socket.get_mut().write_all(&[0x82, 0x85, 0, 0, 0, 0, 2]).expect("a socket");
    ended(al)
}

fn token_invalid(gateway: &Gateway) -> Left {
    let mut al = Raw::open(gateway, Encoding::Binary);
    al.hello("garbage", "1");
    ended(al)
}

fn token_expired(gateway: &Gateway) -> Left {
    let mut al = Raw::open(gateway, Encoding::Binary);
    al.hello(&gateway.token_for("al", None, -60), "1");
    ended(al)
}

fn token_revoked(gateway: &Gateway) -> Left {
    let al = connect(gateway, "al", "1");
    let (status, answer) = gateway.admin("POST", "/v1/users/al/revoke", "{}");
    assert_eq!(status, 200, "{answer}");
    ended(al)
}

fn forbidden(gateway: &Gateway) -> Left {
    let others: Vec<Raw> = (0..16).map(|number| connect(gateway, "al", &number.to_string())).collect();
    let mut one_more = Raw::open(gateway, Encoding::Binary);
    one_more.hello(&gateway.token("al"), "one-more");
    let code = one_more.closed();
    (Box::new((others, one_more)), code)
}

fn replaced(gateway: &Gateway) -> Left {
    let mut first = connect(gateway, "al", "1");
    let second = connect(gateway, "al", "1");
    let code = first.closed();
    (Box::new((first, second)), code)
}

fn kicked(gateway: &Gateway) -> Left {
    let mut al = connect(gateway, "al", "1");
    let (status, answer) = gateway.admin("POST", "/v1/kick", r#"{"user":"al"}"#);
    assert_eq!(status, 200, "{answer}");
    let code = al.closed();
    (Box::new(al), code)
}

fn liveness_timeout(gateway: &Gateway) -> Left {
    let mut al = connect(gateway, "al", "1");
    // Read below the WebSocket, so that no ping is answered; then the bytes end without a Close frame.
    let stream = al.socket.get_mut();
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut bytes = Vec::new();
    drop(stream.read_to_end(&mut bytes));
    let mut code = None;
    let mut rest = &bytes[..];
    while let [first, length, behind @ ..] = rest {
        let payload = &behind[..usize::from(*length)];
        if first & 0x0f == 8 {
            code = payload.first_chunk().map(|&code| u16::from_be_bytes(code)).or(Some(1005));
        }
        rest = &behind[payload.len()..];
    }
    // The ping may have come with the WELCOME.
    eventually("a ping before it", || (gateway.metric("tidegate_pings_sent_total") >= 1.0).then_some(()));
    (Box::new(al), code)
}

fn slow_reader(gateway: &Gateway) -> Left {
    let mut al = connect(gateway, "al", "1");
    // Each ping costs the gateway a pong, which nobody reads: kernel buffers fill, then its queue.
    let pings = [&[0x89, 0xfd, 0, 0, 0, 0][..], &[7; 125]].concat().repeat(500);
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
        (!closes(gateway).is_empty()).then_some(())
    });
    (Box::new(al), None)
}

fn not_acknowledging(gateway: &Gateway) -> Left {
    let (mut al, mut bo) = (connect(gateway, "al", "1"), connect(gateway, "bo", "1"));
    al.say(DIRECT, "fills the window");
    al.say(DIRECT, "waits");
    let code = bo.closed();
    (Box::new((al, bo)), code)
}

fn rate_limited(gateway: &Gateway) -> Left {
    let first = connect(gateway, "al", "1");
    let mut second = Raw::open(gateway, Encoding::Binary);
    let token = gateway.token("al");
    second.put(&hello(&token, "1"));
    let code = second.closed();
    (Box::new((first, second)), code)
}

fn overloaded(gateway: &Gateway) -> Left {
    let first = connect(gateway, "al", "1");
    let mut second = Raw::open(gateway, Encoding::Binary);
    let code = second.closed();
    (Box::new((first, second)), code)
}

fn drain(gateway: &Gateway) -> Left {
    let mut al = connect(gateway, "al", "1");
    // Never answers the Close frame: the process lives until it is given up, and can be asked.
    let stubborn = connect(gateway, "bo", "1");
    gateway.terminate();
    let code = al.closed();
    (Box::new((al, stubborn)), code)
}
