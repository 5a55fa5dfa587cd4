//! The order of messages, through the real binary: pipelined, refused, repeated, taken over.

mod support;

use std::collections::BTreeMap;

use support::gateway::Gateway;
use support::ledger::{Ledger, Origin};
use support::raw::{ENCODINGS, Next, Raw, cmid, send};
use support::{PATIENCE, eventually};
use tidegate::ids::Cmid;
use tidegate::wire::envelope::{ClientFrame, Encoding, ServerFrame, page_flags, send_flags};
use tidegate_client::{Event, Outgoing};

const DIRECT: &str = "d:al:bo";

/// SENDs written without waiting are stored in the order written, and SENT and DELIVER of one connection come in the order of seq.
#[test]
fn pipelined_sends_keep_their_order() {
    let gateway = Gateway::with(&[("protocol.send_rate", "10000")]);
    for encoding in ENCODINGS {
        let mut al = Raw::connect(&gateway, encoding, "al", "1");
        let mut bo = Raw::connect(&gateway, encoding, "bo", "1");
        let head = al.fetch(DIRECT, 0, 0, 1, 0).head;
        let (mut al_rids, mut bo_rids) = (Vec::new(), Vec::new());
        for number in 0..40 {
            al_rids.push(al.put_send(DIRECT, cmid(), 0, format!("al {number}").as_bytes()));
            bo_rids.push(bo.put_send(DIRECT, cmid(), 0, format!("bo {number}").as_bytes()));
        }
        for (raw, rids) in [(&mut al, al_rids), (&mut bo, bo_rids)] {
            let mut seqs = Vec::new();
            let mut answered = Vec::new();
            while seqs.len() < 80 {
                seqs.push(raw.wait("all messages", |frame| match frame {
                    ServerFrame::Sent { rid, seq, .. } => {
                        answered.push(*rid);
                        Some(*seq)
                    }
                    ServerFrame::Deliver(deliver) => Some(deliver.seq),
                    ServerFrame::Error { code, .. } => panic!("ERROR {code}"),
                    _ => None,
                }));
            }
            assert!(seqs.iter().copied().eq(head + 1..=head + 80), "{seqs:?}");
            assert_eq!(answered, rids, "answered in the order of asking");
        }
    }
}

/// Two senders at once: every device sees the same order.
#[test]
fn everybody_sees_one_order() {
    let gateway = Gateway::with(&[("protocol.send_rate", "10000")]);
    gateway.group("g:all", &["al", "bo", "cy", "di"]);
    let mut raws: Vec<Raw> = ["al", "bo", "cy", "di"].map(|user| Raw::connect(&gateway, Encoding::Binary, user, "1")).into();
    for number in 0..20 {
        for raw in &mut raws[..3] {
            raw.put_send("g:all", cmid(), 0, format!("{number}").as_bytes());
        }
    }
    let orders: Vec<Vec<(u64, String)>> = raws[3..]
        .iter_mut()
        .map(|raw| (0..60).map(|_| raw.deliver()).map(|one| (one.seq, one.from.into_owned())).collect())
        .collect();
    let mut counts = BTreeMap::new();
    for (at, (seq, from)) in (1..).zip(&orders[0]) {
        assert_eq!(*seq, at);
        *counts.entry(from.clone()).or_insert(0) += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [20, 20, 20]);
    let page = raws[3].fetch("g:all", 0, 0, 100, 0);
    let stored: Vec<(u64, String)> = page.messages.iter().map(|one| (one.seq, one.from.to_string())).collect();
    assert_eq!(stored, orders[0]);
}

/// After a refusal that may be repeated, the rest of the conversation is refused with 4003 until the failed message has passed;
/// other conversations go on.
#[test]
fn a_refused_message_holds_its_conversation() {
    let gateway = Gateway::with(&[("protocol.send_window", "3")]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let cmids: Vec<Cmid> = (0..6).map(|_| cmid()).collect();
    // Written together, so that the window is still full when the fourth is read.
    let frames: Vec<ClientFrame<'_>> = (0..6).map(|at| send(at + 1, DIRECT, cmids[at as usize], 0, b"x")).collect();
    al.put_all(&frames);
    let mut refused = Vec::new();
    let mut sent = Vec::new();
    while refused.len() + sent.len() < 6 {
        match al.next() {
            Next::Frame(ServerFrame::Sent { rid, .. }) => sent.push(rid),
            Next::Frame(ServerFrame::Error { rid, code, flags, .. }) => {
                assert_eq!(flags, page_flags::ERROR_RETRYABLE);
                refused.push((rid, code));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sent, [1, 2, 3]);
    assert_eq!(refused, [(4, 4002), (5, 4003), (6, 4003)]);
    // Still held: a later one, and one that was never seen.
    al.put(&send(11, DIRECT, cmids[4], send_flags::RETRY, b"x"));
    assert_eq!(al.error().code, 4003);
    al.put(&send(12, DIRECT, cmid(), 0, b"new"));
    assert_eq!(al.error().code, 4003);
    al.say("d:al:cy", "another conversation");
    // The answer to the failed one ends the hold, and all goes on in order.
    al.put(&send(21, DIRECT, cmids[3], send_flags::RETRY, b"x"));
    assert_eq!(al.sent(21).seq, 4);
    for (rid, at) in [(22, 4), (23, 5)] {
        al.put(&send(rid, DIRECT, cmids[at], send_flags::RETRY, b"x"));
    }
    assert_eq!([al.sent(22).seq, al.sent(23).seq], [5, 6]);
}

/// RELEASE frees a conversation whose failed message was abandoned.
#[test]
fn release_frees_a_held_conversation() {
    let gateway = Gateway::with(&[("protocol.send_window", "1")]);
    let mut al = Raw::connect(&gateway, Encoding::Json, "al", "1");
    let frames: Vec<ClientFrame<'_>> = (1..=3).map(|rid| send(rid, DIRECT, cmid(), 0, b"x")).collect();
    al.put_all(&frames);
    let codes: Vec<u16> = [al.error().code, al.error().code].into();
    assert_eq!(codes, [4002, 4003]);
    al.sent(1);
    al.put(&send(5, DIRECT, cmid(), send_flags::RELEASE, b"after all"));
    assert_eq!(al.sent(5).seq, 2);
    al.say(DIRECT, "free");
}

/// Beyond the rate a SEND is 4001, says when to come back, and passes then.
#[test]
fn a_rate_limited_message_passes_later() {
    let gateway = Gateway::with(&[("protocol.send_window", "2"), ("protocol.send_burst", "4"), ("protocol.send_rate", "5")]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut seq = 0;
    let error = loop {
        let rid = al.put_send(DIRECT, cmid(), 0, b"x");
        match al.next() {
            Next::Frame(ServerFrame::Sent { .. }) => seq += 1,
            Next::Frame(ServerFrame::Error { rid: of, code, flags, retry_ms, .. }) => {
                assert_eq!((of, code, flags), (rid, 4001, page_flags::ERROR_RETRYABLE));
                break retry_ms;
            }
            other => panic!("{other:?}"),
        }
        assert!(seq < 1000, "never limited");
    };
    assert!(seq >= 4, "a burst of 4 passes");
    assert!((1..=10_000).contains(&error), "retry after {error} ms");
    // Held until the failed one comes again, so a fresh connection is what a new message takes.
    let mut again = Raw::connect(&gateway, Encoding::Binary, "al", "2");
    assert_eq!(again.say(DIRECT, "x").seq, seq + 1);
}

/// The client library under a tight window and rate: all is stored once and in the order of asking, and reaches the other side so.
#[test]
fn a_client_keeps_the_order_under_refusals() {
    let gateway = Gateway::with(&[("protocol.send_window", "4"), ("protocol.send_burst", "8"), ("protocol.send_rate", "50")]);
    let mut options = gateway.options("al", "1");
    // As if it knew nothing of the window: the refusals must be what keeps the order.
    options.settings.encoding = Encoding::Json;
    let (al, _al_events) = gateway.client(options);
    let (_bo, bo_events) = gateway.client(gateway.options("bo", "1"));
    let mut ledger = Ledger::default();
    let mut pending = Vec::new();
    for number in 0..60 {
        for conv in [DIRECT, "d:al:cy"] {
            let origin = Origin::new(conv, number);
            pending.push((conv, origin.clone(), al.submit(Outgoing::new(conv, &origin.payload()))));
        }
    }
    for (conv, origin, one) in pending {
        ledger.acknowledged(conv, one.wait().expect("acknowledged in the end").seq, origin);
    }
    let mut left = 60;
    while left > 0 {
        if let Event::Message(message) = bo_events.recv_timeout(PATIENCE).expect("more messages") {
            ledger.delivered("bo", &message.conv, message.seq, Origin::read(&message.payload).expect("an origin"));
            left -= 1;
        }
    }
    ledger.complete("bo", DIRECT);
    let mut reader = Raw::connect(&gateway, Encoding::Binary, "al", "reader");
    for conv in [DIRECT, "d:al:cy"] {
        for message in reader.fetch(conv, 1, 0, 256, 0).messages {
            ledger.stored(conv, message.seq, Origin::read(&message.payload).expect("an origin"));
        }
    }
    let findings = ledger.check();
    assert!(findings.is_empty(), "{findings}");
    assert_eq!(ledger.counts(), (120, 60));
}

/// A second connection of a device takes over: the first closes with 4409, and what it sent is before WELCOME or not at all, so
/// repeating what was not answered keeps the order.
#[test]
fn a_replacement_keeps_the_order() {
    let gateway = Gateway::with(&[("protocol.send_rate", "10000"), ("protocol.send_burst", "1000")]);
    let mut old = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    for round in 0..12_u64 {
        let cmids: Vec<(u64, Cmid)> = (round * 16..round * 16 + 16).map(|number| (number, cmid())).collect();
        for (number, cmid) in &cmids {
            old.put_send(DIRECT, *cmid, 0, &Origin::new("al", *number).payload());
        }
        let mut new = Raw::connect(&gateway, ENCODINGS[usize::from(round % 2 == 0)], "al", "1");
        let at_welcome = new.fetch(DIRECT, 1, 0, 1, 0).head;
        assert_eq!(old.closed(), Some(4409));
        // Everything that was ordered for the old one was ordered before the new one was welcomed.
        let rids: Vec<u32> = cmids
            .iter()
            .map(|(number, cmid)| new.put_send(DIRECT, *cmid, send_flags::RETRY, &Origin::new("al", *number).payload()))
            .collect();
        let seqs: Vec<u64> = rids.iter().map(|rid| new.sent(*rid).seq).collect();
        let first = round * 16 + 1;
        assert!(seqs.iter().copied().eq(first..first + 16), "{seqs:?}, {at_welcome} at WELCOME");
        assert!(at_welcome < first + 16);
        old = new;
    }
}

/// Two clients that fight for one device: only the later one stays, the other stops by itself.
#[test]
fn a_replaced_client_stops() {
    let gateway = Gateway::start();
    let (first, first_events) = gateway.client(gateway.options("al", "1"));
    first.send(DIRECT, b"first").expect("acknowledged");
    let (second, _events) = gateway.client(gateway.options("al", "1"));
    second.send(DIRECT, b"second").expect("acknowledged");
    eventually("the end of the first", || {
        let event = first_events.try_recv().ok()?;
        (event == Event::State(tidegate_client::State::Stopped(tidegate_client::Stop::Replaced))).then_some(())
    });
    assert!(first.send(DIRECT, b"late").is_err());
    second.send(DIRECT, b"still here").expect("acknowledged");
}

/// A SEND that is wrong in two ways is refused for the one that is looked at first: state, 1002, hold, 3001, 3003, 4001, 4002, cmid.
/// (For a group the store is asked who may know it, after rate and window.)
#[test]
fn checks_are_made_in_their_order() {
    let gateway = Gateway::with(&[("protocol.send_window", "1"), ("protocol.send_burst", "2"), ("protocol.send_rate", "1")]);
    gateway.group("g:others", &["bo", "cy"]);
    gateway.group("g:ours", &["al", "bo"]);
    let large = vec![b'x'; 65_537];
    let zero = Cmid([0; 16]);
    for encoding in ENCODINGS {
        let mut early = Raw::open(&gateway, encoding);
        early.put(&send(1, DIRECT, zero, 0, b"x"));
        assert_eq!((early.error().code, early.closed()), (1004, Some(4400)), "state before 1002");

        let known = cmid();
        let mut other = Raw::connect(&gateway, encoding, "al", "2");
        let rid = other.put_send("d:al:al", known, 0, b"original");
        other.sent(rid);
        let mut al = Raw::connect(&gateway, encoding, "al", "1");
        let cases: [(&str, Cmid, &[u8], u16); 9] = [
            // In one message, so that no time passes and nothing is answered in between: two tokens, one place.
            ("d:al:x1", cmid(), b"fills the window", 0),
            ("d:al:x3", known, b"4002 before 3009", 4002),
            ("d:al:x4", cmid(), b"4001 before 4002", 4001),
            ("d:al:x4", cmid(), &large, 4003),
            ("d:bo:cy", cmid(), b"3001 before 4001", 3001),
            // One each.
            ("d:al:x2", cmid(), &large, 3003),
            ("d:al:x5", cmid(), &large, 3003),
            ("d:bo:cy", cmid(), &large, 3001),
            ("g:ours", cmid(), &large, 3003),
        ];
        let frames: Vec<ClientFrame<'_>> =
            (1..).zip(&cases).map(|(rid, (conv, cmid, payload, _))| send(rid, conv, *cmid, 0, payload)).collect();
        al.put_all(&frames[..5]);
        for frame in &frames[5..] {
            al.put(frame);
        }
        let mut codes = BTreeMap::new();
        while codes.len() < frames.len() {
            match al.next() {
                Next::Frame(ServerFrame::Sent { rid, .. }) => drop(codes.insert(rid, 0)),
                Next::Frame(ServerFrame::Error { rid, code, .. }) => drop(codes.insert(rid, code)),
                Next::Frame(ServerFrame::Deliver(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        let wanted = (1..).zip(&cases).map(|(rid, case)| (rid, case.3));
        assert_eq!(codes, wanted.collect::<BTreeMap<u32, u16>>());
        al.put(&send(11, "g:others", cmid(), 0, &large));
        assert_eq!(al.error().code, 3001, "3001 before 3003, for a group too");
        al.put(&send(12, "d:al:x4", zero, 0, &large));
        assert_eq!((al.error().code, al.closed()), (1002, Some(4400)), "1002 before the hold");
    }
}

/// A repeat of what is stored costs no rate, however often; one that stores something costs as any other.
#[test]
fn a_repeat_of_a_stored_message_is_free() {
    let gateway = Gateway::with(&[("protocol.send_window", "2"), ("protocol.send_burst", "4"), ("protocol.send_rate", "1")]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let first = cmid();
    let rid = al.put_send(DIRECT, first, 0, b"x");
    let seq = al.sent(rid).seq;
    for _ in 0..40 {
        let rid = al.put_send(DIRECT, first, send_flags::RETRY, b"x");
        assert_eq!(al.sent(rid).seq, seq);
    }
    // Three of the burst are left, and two on credit; time may have brought a few more.
    let limited = (0..1000).any(|_| {
        let rid = al.put_send(DIRECT, cmid(), send_flags::RETRY, b"new");
        match al.next() {
            Next::Frame(ServerFrame::Error { rid: of, code, .. }) => {
                assert_eq!((of, code), (rid, 4001));
                true
            }
            Next::Frame(ServerFrame::Sent { .. }) => false,
            other => panic!("{other:?}"),
        }
    });
    assert!(limited, "a RETRY that stores costs rate");
}

/// A connection can hold 32 conversations: the failure of a 33rd is final, and those held are still held.
#[test]
fn holds_are_bounded() {
    let gateway = Gateway::with(&[("protocol.send_window", "1"), ("protocol.send_burst", "2"), ("protocol.send_rate", "1")]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let names: Vec<String> = (0..36).map(|at| format!("d:al:x{at}")).collect();
    let frames: Vec<ClientFrame<'_>> = (1..).zip(&names).map(|(rid, conv)| send(rid, conv, cmid(), 0, b"x")).collect();
    al.put_all(&frames);
    let (mut codes, mut sent) = (Vec::new(), Vec::new());
    while codes.len() + sent.len() < frames.len() {
        match al.next() {
            Next::Frame(ServerFrame::Sent { rid, .. }) => sent.push(rid),
            Next::Frame(ServerFrame::Error { code, flags, .. }) => codes.push((code, flags)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sent, [1]);
    let retryable = page_flags::ERROR_RETRYABLE;
    assert_eq!(codes[..2], [(4002, retryable), (4001, retryable)]);
    assert!(codes[2..32].iter().all(|it| *it == (4001, retryable)), "{codes:?}");
    assert_eq!(codes[32..], [(4004, 0); 3]);
    al.put(&send(100, &names[1], cmid(), 0, b"x"));
    assert_eq!(al.error().code, 4003);
}
