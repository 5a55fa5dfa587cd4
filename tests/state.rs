//! What is said at most once and kept nowhere, through the real binary: receipts, presence, signals, transient messages.

mod support;

use std::thread::sleep;
use std::time::Duration;

use support::eventually;
use support::gateway::Gateway;
use support::raw::{ENCODINGS, Next, Raw, cmid};
use tidegate::ids::Mid;
use tidegate::wire::envelope::{ClientFrame, Encoding, ServerFrame, Users, caps, deliver_flags, send_flags};

const DIRECT: &str = "d:al:bo";

/// A RECEIPT: conversation, user, recv, read.
type Receipt = (String, String, u64, u64);

fn receipt_of(frame: &ServerFrame<'_>) -> Option<Receipt> {
    match frame {
        ServerFrame::Receipt { conv, user, recv, read } => Some((conv.to_string(), user.to_string(), *recv, *read)),
        _ => None,
    }
}

/// The next RECEIPT that says this much of a position.
fn receipt(raw: &mut Raw, conv: &str, user: &str, recv: u64, read: u64) {
    raw.wait("RECEIPT", |frame| {
        let told = receipt_of(frame).filter(|told| told.0 == conv && told.1 == user)?;
        assert!(told.2 <= recv && told.3 <= read, "{told:?}");
        (told.2 == recv && told.3 == read).then_some(())
    });
}

fn presence(raw: &mut Raw, user: &str) -> (u8, u64) {
    raw.wait("PRESENCE", |frame| match frame {
        ServerFrame::Presence { user: of, state, seen_ms } if of == user => Some((*state, *seen_ms)),
        _ => None,
    })
}

fn watch(raw: &mut Raw, users: &[&str]) -> u64 {
    let rid = raw.next_rid();
    let users = Users::List(users.iter().map(|user| (*user).into()).collect());
    raw.put(&ClientFrame::Watch { rid, ttl_s: 0, users });
    raw.wait("OK", |frame| match frame {
        ServerFrame::Ok { rid: of, value } if *of == rid => Some(*value),
        ServerFrame::Error { rid: of, code, .. } if *of == rid => panic!("ERROR {code}"),
        _ => None,
    })
}

fn signal(raw: &mut Raw, conv: &str, payload: &[u8]) {
    raw.put(&ClientFrame::Signal { conv: conv.into(), kind: 7, payload: payload.into() });
}

/// Delivered and read come to the other party and to the user's own other devices that asked for receipts, and to nobody else; what
/// a restart has forgotten of positions is read again.
#[test]
fn receipts_tell_how_far_the_other_is() {
    let mut gateway = Gateway::start();
    for encoding in ENCODINGS {
        let conv = format!("d:al:bo-{encoding:?}");
        let bo_name = format!("bo-{encoding:?}");
        let mut al = Raw::capable(&gateway, encoding, "al", "1", caps::RECEIPTS);
        let mut plain = Raw::connect(&gateway, encoding, "al", "2");
        let mut bo = Raw::capable(&gateway, encoding, &bo_name, "1", caps::RECEIPTS);
        let mut other = Raw::capable(&gateway, encoding, &bo_name, "2", caps::RECEIPTS);
        for text in ["one", "two", "three"] {
            al.say(&conv, text);
        }
        bo.ack(3, &conv, 2);
        receipt(&mut al, &conv, &bo_name, 2, 0);
        receipt(&mut other, &conv, &bo_name, 2, 0);
        // A slower device takes nothing back; the highest counts.
        other.ack(3, &conv, 1);
        bo.read(&conv, 1);
        receipt(&mut al, &conv, &bo_name, 2, 1);
        bo.ack(3, &conv, 3);
        bo.read(&conv, 3);
        receipt(&mut al, &conv, &bo_name, 3, 3);
        receipt(&mut other, &conv, &bo_name, 3, 3);
        let quiet = |frame: &ServerFrame<'_>| receipt_of(frame).is_none();
        assert!(plain.ping().iter().all(quiet), "it did not ask");
        assert!(bo.ping().iter().all(quiet), "nobody is told of what it said itself");
    }
    // Positions are rows: after a restart a receipt tells both, also the one that did not move.
    gateway.terminate();
    gateway.wait();
    gateway.run();
    let conv = "d:al:bo-Json";
    let mut al = Raw::capable(&gateway, Encoding::Json, "al", "1", caps::RECEIPTS);
    al.say(conv, "four");
    let mut slow = Raw::connect(&gateway, Encoding::Binary, "bo-Json", "2");
    slow.ack(0, conv, 2);
    receipt(&mut al, conv, "bo-Json", 3, 3);
}

/// In a group everybody hears, above the bound only one's own devices, in a channel nobody.
#[test]
fn receipts_have_a_largest_group() {
    let gateway = Gateway::with(&[("state.receipt_members_max", "2")]);
    gateway.group("g:two", &["al", "bo"]);
    gateway.group("g:three", &["al", "bo", "cy"]);
    gateway.group("c:two", &["al", "bo"]);
    let mut al = Raw::capable(&gateway, Encoding::Binary, "al", "1", caps::RECEIPTS);
    let mut bo = Raw::capable(&gateway, Encoding::Binary, "bo", "1", caps::RECEIPTS);
    let mut other = Raw::capable(&gateway, Encoding::Json, "bo", "2", caps::RECEIPTS);
    for conv in ["c:two", "g:three", "g:two"] {
        al.say(conv, "hi");
        bo.read(conv, 1);
    }
    // Events of one core come in order, and both conversations before were told first.
    let first = al.wait("RECEIPT", receipt_of);
    assert_eq!((first.0.as_str(), first.3), ("g:two", 1));
    let first = other.wait("RECEIPT", receipt_of);
    assert_eq!((first.0.as_str(), first.3), ("g:three", 1));
    receipt(&mut other, "g:two", "bo", 0, 1);
}

/// WATCH says who is online, strangers are offline, a change comes once it has lasted, a reconnect is no blink.
#[test]
fn presence_tells_who_is_there() {
    let gateway = Gateway::start();
    gateway.group("g:team", &["al", "cy"]);
    for encoding in ENCODINGS {
        let mut al = Raw::capable(&gateway, encoding, "al", "1", caps::PRESENCE);
        let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
        let mut di = Raw::connect(&gateway, Encoding::Binary, "di", "1");
        al.say(DIRECT, "hi");
        assert!(di.ping().is_empty());
        drop(bo.deliver());
        assert_eq!(watch(&mut al, &["bo", "cy", "di", "al", "bo"]), 4);
        let mut told: Vec<_> = ["al", "bo", "cy", "di"].map(|user| (user, presence(&mut al, user).0)).to_vec();
        told.sort_unstable();
        assert_eq!(told, [("al", 1), ("bo", 1), ("cy", 0), ("di", 0)], "di is online, and a stranger");
        // Bo comes back at once, cy comes: only cy is told of.
        drop(bo);
        bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
        let mut cy = Raw::connect(&gateway, encoding, "cy", "1");
        let news = al.wait("PRESENCE", |frame| match frame {
            ServerFrame::Presence { user, state, .. } => Some((user.to_string(), *state)),
            _ => None,
        });
        assert_eq!(news, ("cy".to_owned(), 1));
        // Both go; the time at which they went is told.
        assert!(bo.ping().iter().all(|frame| !matches!(frame, ServerFrame::Presence { .. })));
        cy.ping();
        drop((bo, cy));
        let mut gone = [(); 2].map(|()| {
            al.wait("PRESENCE", |frame| match frame {
                ServerFrame::Presence { user, state: 0, seen_ms } => Some((user.to_string(), *seen_ms > 1_600_000_000_000)),
                _ => None,
            })
        });
        gone.sort();
        assert_eq!(gone, [("bo".to_owned(), true), ("cy".to_owned(), true)]);
        // Nobody is watched any more.
        assert_eq!(watch(&mut al, &[]), 0);
        eventually("the end of the subscriptions", || (gateway.metric("tidegate_store_subscriptions_open") == 0.0).then_some(()));
        drop(al);
    }
}

/// Everybody may watch everybody if the operator says so; who did not ask for presence in HELLO is told.
#[test]
fn presence_may_be_for_all() {
    let gateway = Gateway::with(&[("state.presence", "all")]);
    let mut al = Raw::capable(&gateway, Encoding::Json, "al", "1", caps::PRESENCE | caps::RECEIPTS);
    let mut di = Raw::connect(&gateway, Encoding::Binary, "di", "1");
    assert_eq!(watch(&mut al, &["di"]), 1);
    assert_eq!(presence(&mut al, "di").0, 1);
    di.put(&ClientFrame::Watch { rid: 5, ttl_s: 0, users: Users::List(vec!["al".into()]) });
    let error = di.error();
    assert_eq!((error.rid, error.code), (5, 3005));
    for (ttl_s, user) in [(301, "bo"), (0, "b:o")] {
        let mut bad = Raw::capable(&gateway, Encoding::Binary, "al", "2", caps::PRESENCE);
        bad.put(&ClientFrame::Watch { rid: 6, ttl_s, users: Users::List(vec![user.into()]) });
        assert_eq!((bad.error().code, bad.closed()), (1002, Some(4400)));
    }
}

/// SIGNAL reaches the other devices of all members, brings nothing into being, and is refused by name when it is too much.
#[test]
fn signals_reach_who_is_there() {
    let gateway = Gateway::start();
    gateway.group("g:team", &["al", "bo"]);
    for (encoding, stranger) in ENCODINGS.into_iter().zip(["zoe", "zac"]) {
        let mut al = Raw::connect(&gateway, encoding, "al", "1");
        let mut other = Raw::connect(&gateway, Encoding::Json, "al", "2");
        let mut bo = Raw::connect(&gateway, encoding, "bo", "1");
        signal(&mut al, "g:team", b"typing");
        for raw in [&mut other, &mut bo] {
            let told = raw.wait("SIGNALLED", |frame| match frame {
                ServerFrame::Signalled { conv, from, kind, payload } => {
                    Some((conv.to_string(), from.to_string(), *kind, payload.to_vec()))
                }
                _ => None,
            });
            assert_eq!(told, ("g:team".to_owned(), "al".to_owned(), 7, b"typing".to_vec()));
        }
        assert!(al.ping().is_empty());
        let fresh = format!("d:al:{stranger}");
        for (conv, payload, code) in
            [(fresh.as_str(), 0, 3001), ("d:bo:cy", 0, 3001), ("g:none", 0, 3001), ("x", 0, 3001), ("g:team", 1_025, 3003)]
        {
            signal(&mut al, conv, &vec![b'x'; payload]);
            let detail = al.wait("ERROR", |frame| match frame {
                ServerFrame::Error { rid: 0, code: of, detail, .. } => Some((*of, detail.to_string())),
                _ => None,
            });
            assert_eq!(detail.0, code, "{conv}");
            assert!(detail.1.starts_with(&format!("{conv} ")), "{detail:?}");
        }
        let (entries, _) = al.sync(0, 0);
        assert!(entries.iter().all(|entry| entry.conv != fresh), "a signal starts no conversation");
        // Far more than 10 a second.
        (0..100).for_each(|_| signal(&mut al, "g:team", b""));
        assert_eq!(al.error().code, 4001);
        al.say("g:team", "and the connection lives");
    }
}

/// A TRANSIENT message reaches who is connected, the sender's other devices too, and is stored nowhere.
#[test]
fn transient_messages_are_not_kept() {
    let gateway = Gateway::start();
    for encoding in ENCODINGS {
        let mut al = Raw::connect(&gateway, encoding, "al", "1");
        let mut other = Raw::connect(&gateway, encoding, "al", "2");
        let mut bo = Raw::connect(&gateway, encoding, "bo", "1");
        let head = al.say(DIRECT, "kept").seq;
        assert_eq!((bo.deliver().seq, other.deliver().seq), (head, head));
        let rid = al.put_send(DIRECT, cmid(), send_flags::TRANSIENT | send_flags::QUIET, b"gone");
        let sent = al.sent(rid);
        assert_eq!((sent.seq, sent.mid, sent.level, sent.flags), (0, Mid(0), 0, 0));
        let flags = deliver_flags::TRANSIENT | deliver_flags::QUIET;
        for (raw, flags) in [(&mut bo, flags), (&mut other, flags | deliver_flags::OWN)] {
            let deliver = raw.deliver();
            assert_eq!((deliver.pos, deliver.seq, deliver.mid, deliver.flags), (0, 0, Mid(0), flags));
            assert_eq!((&*deliver.payload, deliver.cmid.is_some()), (&b"gone"[..], flags & deliver_flags::OWN != 0));
        }
        let page = bo.fetch(DIRECT, 0, 0, 0, 0);
        assert!(page.head == head && page.messages.iter().all(|message| &*message.payload != b"gone"));
        let rid = al.put_send("d:bo:cy", cmid(), send_flags::TRANSIENT, b"not mine");
        let error = al.error();
        assert_eq!((error.rid, error.code), (rid, 3001));
        al.put_send(DIRECT, cmid(), send_flags::TRANSIENT | send_flags::RETRY, b"never repeated");
        assert_eq!((al.error().code, al.closed()), (1002, Some(4400)));
    }
}

/// A message with a time to live is there until then, and a TOMBSTONE in its place after; it goes on counting as unread. QUIET ones do not.
#[test]
fn a_message_may_have_an_end() {
    let gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    let ClientFrame::Send(plain) = support::raw::send(1, DIRECT, cmid(), 0, b"for a moment") else { unreachable!() };
    al.put(&ClientFrame::Send(tidegate::wire::envelope::Send { ttl_s: 2, ..plain }));
    let seq = al.sent(1).seq;
    let deliver = bo.deliver();
    assert!(deliver.seq == seq && deliver.exp_s > 0 && &*deliver.payload == b"for a moment");
    let rid = al.put_send(DIRECT, cmid(), send_flags::QUIET, b"hush");
    al.sent(rid);
    let unread = |bo: &mut Raw| bo.sync(0, 0).0.iter().find(|entry| entry.conv == DIRECT).map(|entry| entry.unread);
    assert_eq!(unread(&mut bo), Some(1));
    let gone = eventually("the end of the message", || {
        let page = bo.fetch(DIRECT, seq, seq, 0, 0);
        let [message] = &page.messages[..] else { panic!("its place stays") };
        sleep(Duration::from_millis(100));
        (message.flags & deliver_flags::TOMBSTONE != 0).then(|| message.clone())
    });
    assert_eq!((gone.seq, gone.payload.len()), (seq, 0));
    assert_eq!(unread(&mut bo), Some(1), "it goes on counting");
    assert!(matches!(bo.poll(), None | Some(Next::Frame(_))));
}
