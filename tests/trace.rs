//! One message followed through the log of the real binary, and its trace context from SEND to DELIVER.

mod support;

use support::eventually;
use support::gateway::Gateway;
use support::raw::{ENCODINGS, Raw, cmid, hello, send};
use tidegate::wire::envelope::{ClientFrame, Encoding, Trace, caps, deliver_flags, send_flags};

const DIRECT: &str = "d:al:bo";
const SECRET_TEXT: &str = "nobody but bo may read this";

fn traced(gateway: &Gateway, encoding: Encoding, user: &str, device: &str) -> Raw {
    let mut raw = Raw::open(gateway, encoding);
    let token = gateway.token(user);
    let ClientFrame::Hello(mut hello) = hello(&token, device) else { unreachable!("it is HELLO") };
    hello.caps = caps::TRACE | 1 << 9;
    raw.put(&ClientFrame::Hello(hello));
    assert_eq!(raw.welcome().caps & caps::TRACE, caps::TRACE);
    raw
}

fn context(flags: u8) -> Trace {
    Trace { trace_id: *b"0123456789abcdef", parent_id: *b"parentid", flags }
}

fn put(raw: &mut Raw, rid: u32, trace: Option<Trace>) {
    let ClientFrame::Send(mut send) = send(rid, DIRECT, cmid(), 0, SECRET_TEXT.as_bytes()) else { unreachable!("it is SEND") };
    send.trace = trace;
    send.flags |= if trace.is_some() { send_flags::TRACE } else { 0 };
    raw.put(&ClientFrame::Send(send));
}

/// Lines of followed messages, as JSON.
fn lines(gateway: &Gateway) -> Vec<serde_json::Value> {
    let lines = gateway.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<serde_json::Value>>();
    lines.into_iter().filter(|line| said(line).starts_with("message ")).collect()
}

fn field<'l>(line: &'l serde_json::Value, name: &str) -> &'l serde_json::Value {
    if line["fields"][name].is_null() { &line[name] } else { &line["fields"][name] }
}

fn said(line: &serde_json::Value) -> &str {
    field(line, "message").as_str().unwrap_or("")
}

/// A context travels to who has the cap, in both encodings, and to nobody else; who has no cap sends none.
#[test]
fn a_context_travels_to_who_asked_for_it() {
    let gateway = Gateway::start();
    for encoding in ENCODINGS {
        let mut al = traced(&gateway, encoding, "al", "1");
        let mut with: Vec<Raw> =
            ENCODINGS.into_iter().zip(["1", "2"]).map(|(it, name)| traced(&gateway, it, "bo", name)).collect();
        let mut without = Raw::connect(&gateway, Encoding::Binary, "bo", "3");
        put(&mut al, 1, Some(context(0)));
        al.sent(1);
        for bo in &mut with {
            let deliver = bo.deliver();
            assert_eq!((deliver.trace, deliver.flags), (Some(context(0)), deliver_flags::TRACE));
        }
        let deliver = without.deliver();
        assert_eq!((deliver.trace, deliver.flags), (None, 0));
        put(&mut without, 2, Some(context(1)));
        without.sent(2);
        // The other devices of the sender get it as well, as their own.
        let deliver = with[0].deliver();
        assert_eq!((deliver.trace, deliver.flags), (None, deliver_flags::OWN));
    }
}

/// The sampled bit brings three lines with one trace id and one conversation, in the order of the way, from the commit on with one mid; no
/// line holds the payload or a token. Without it nothing is written, unless one in so many is drawn.
#[test]
fn a_sampled_message_is_followed() {
    let gateway = Gateway::with(&[("log.trace_every", "0")]);
    let mut al = traced(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    al.say(DIRECT, SECRET_TEXT);
    put(&mut al, 100, Some(context(0)));
    al.sent(100);
    put(&mut al, 101, Some(context(1)));
    let sent = al.sent(101);
    (0..3).for_each(|_| assert!(bo.deliver().trace.is_none()));
    let lines = eventually("three lines", || Some(lines(&gateway)).filter(|lines| lines.len() >= 3));
    assert_eq!(lines.len(), 3, "{lines:?}");
    let trace: String = context(1).trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
    for line in &lines {
        assert_eq!((field(line, "trace").as_str(), field(line, "conv").as_str()), (Some(trace.as_str()), Some(DIRECT)));
    }
    let mut told: Vec<&str> = lines.iter().map(said).collect();
    told.sort_unstable();
    assert_eq!(told, ["message committed", "message delivered", "message received"]);
    for line in lines.iter().filter(|line| said(line) != "message received") {
        assert_eq!((field(line, "mid").as_u64(), field(line, "seq").as_u64()), (Some(sent.mid.0), Some(sent.seq)), "{line}");
    }
    let log = gateway.log();
    assert!(!log.contains(SECRET_TEXT) && !log.contains(&gateway.token("al")));
}

/// Drawn ones are followed under their cmid by all threads alike.
#[test]
fn one_in_so_many_is_followed() {
    let gateway = Gateway::with(&[("log.trace_every", "1")]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
    let one = cmid();
    let rid = al.put_send(DIRECT, one, 0, SECRET_TEXT.as_bytes());
    al.sent(rid);
    bo.deliver();
    let trace: String = one.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let lines = eventually("three lines", || Some(lines(&gateway)).filter(|lines| lines.len() >= 3));
    assert!(lines.iter().all(|line| field(line, "trace") == trace.as_str()), "{lines:?}");
    assert!(!gateway.log().contains(SECRET_TEXT));
}
