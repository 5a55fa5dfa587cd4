//! Coming back: resume on any core, what it replays, when it is refused, and NACK. Through the real binary; every order of the mail
//! between threads is tried on the cores alone in `tests/takeover.rs`.

mod support;

use std::collections::BTreeSet;

use support::eventually;
use support::gateway::Gateway;
use support::raw::{ENCODINGS, Next, Raw, cmid};
use tidegate::wire::envelope::{ClientFrame, Cursor, Cursors, Encoding, Hello, ServerFrame, Welcome, deliver_flags};

const DIRECT: &str = "d:al:bo";

/// Connects as device "1" of bo and names a session.
fn come_back(gateway: &Gateway, encoding: Encoding, session: [u8; 16], last_pos: u64) -> (Raw, Welcome<'static>) {
    come_back_with(gateway, encoding, session, last_pos, 0)
}

fn come_back_with(
    gateway: &Gateway,
    encoding: Encoding,
    session: [u8; 16],
    last_pos: u64,
    window: u16,
) -> (Raw, Welcome<'static>) {
    let mut raw = Raw::open(gateway, encoding);
    let (token, device, client) = (gateway.token("bo").into(), "1".into(), "test/1".into());
    raw.put(&ClientFrame::Hello(Hello { minor: 0, platform: 0, window, caps: 0, last_pos, session, device, client, token }));
    let welcome = raw.welcome();
    (raw, welcome)
}

/// The next deliveries as (pos, seq, flags).
fn deliveries(raw: &mut Raw, count: usize) -> Vec<(u64, u64, u8)> {
    (0..count).map(|_| raw.deliver()).map(|it| (it.pos, it.seq, it.flags)).collect()
}

fn notice(raw: &mut Raw) -> (String, u64) {
    raw.wait("NOTICE", |frame| match frame {
        ServerFrame::Notice { conv, head, .. } => Some((conv.to_string(), *head)),
        _ => None,
    })
}

/// The reason of the RESYNC that comes before any NOTICE.
fn resync(raw: &mut Raw) -> u16 {
    raw.wait("RESYNC", |frame| match frame {
        ServerFrame::Resync { reason } => Some(*reason),
        ServerFrame::Notice { conv, .. } => panic!("{conv} is named"),
        _ => None,
    })
}

/// Waits until the gateway has noticed that so many sessions have no connection.
fn detached(gateway: &Gateway, count: f64) {
    eventually("the end of the connection", || (gateway.metric("tidegate_sessions_detached_open") == count).then_some(()));
}

/// What was not acknowledged comes again in order, what came meanwhile with it, and then life goes on; whichever core the client lands
/// on, and for any number of times. An id works once.
#[test]
fn what_was_not_acknowledged_is_replayed() {
    let gateway = Gateway::with(&[("protocol.send_rate", "10000"), ("protocol.send_burst", "10000")]);
    for encoding in ENCODINGS {
        let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
        let (mut bo, welcome) = come_back(&gateway, encoding, [0; 16], 0);
        assert_eq!((welcome.resumed, welcome.resume_ms), (0, 120_000));
        let (mut session, mut first, mut pos) = (welcome.session, 0, 0);
        let (mut moved, mut stayed) = (0, 0);
        for round in 1..=200 {
            // Three are seen, of which one is acknowledged; two more come while nobody is there, one after.
            let seen: Vec<u64> = (0..3).map(|_| al.say(DIRECT, "seen").seq).collect();
            first = if first == 0 { seen[0] } else { first };
            assert_eq!(deliveries(&mut bo, 3), [(pos + 1, seen[0], 0), (pos + 2, seen[1], 0), (pos + 3, seen[2], 0)]);
            bo.ack(pos + 1, DIRECT, seen[0]);
            assert!(bo.ping().is_empty());
            drop(bo);
            if round % 2 == 0 {
                detached(&gateway, 1.0);
            }
            let away = [al.say(DIRECT, "away").seq, al.say(DIRECT, "away").seq];
            let (back, welcome) = come_back(&gateway, encoding, session, pos + 2);
            bo = back;
            assert_eq!((welcome.resumed, welcome.pos), (1, pos + 5));
            assert_ne!(welcome.session, session);
            let replay = deliver_flags::REPLAY;
            let wanted = [(pos + 3, seen[2], replay), (pos + 4, away[0], replay), (pos + 5, away[1], replay)];
            assert_eq!(deliveries(&mut bo, 3), wanted);
            let live = al.say(DIRECT, "live").seq;
            assert_eq!(deliveries(&mut bo, 1), [(pos + 6, live, 0)]);
            pos += 6;
            bo.ack(pos, DIRECT, live);
            match welcome.session[..2] == session[..2] {
                true => stayed += 1,
                false => moved += 1,
            }
            session = welcome.session;
            if moved > 2 && stayed > 2 && round > 10 {
                break;
            }
        }
        assert!(moved > 0 && stayed > 0, "moved {moved} times, stayed {stayed} times");
        bo.put(&ClientFrame::Ping { pos });
        drop(bo);
        detached(&gateway, 1.0);
        let (mut bo, welcome) = come_back(&gateway, encoding, session, pos);
        assert_eq!((welcome.resumed, bo.ping().len()), (1, 0));
        drop(bo);
        assert_eq!(come_back(&gateway, encoding, session, pos).1.resumed, 0, "an id works once");
        detached(&gateway, 1.0);
        let (mut last, _) = come_back(&gateway, encoding, [0; 16], 0);
        drop(last.socket.close(None));
        drop(
            Raw::connect(&gateway, encoding, "bo", "1")
                .socket
                .close(Some(tungstenite::protocol::CloseFrame { code: 1000.into(), reason: "".into() })),
        );
        detached(&gateway, 0.0);
        drop(al.socket.close(Some(tungstenite::protocol::CloseFrame { code: 1000.into(), reason: "".into() })));
        eventually("the end of all", || (gateway.metric("tidegate_sessions_open") == 0.0).then_some(()));
        assert_eq!(gateway.counted("tidegate_held_bytes"), 0.0, "nobody holds anything any more");
    }
}

/// A connection that only seems to live is replaced: the new one goes on where the client was, the old one is closed with 4409.
#[test]
fn a_half_open_connection_is_resumed() {
    let gateway = Gateway::start();
    for encoding in ENCODINGS {
        let mut al = Raw::connect(&gateway, Encoding::Json, "al", "1");
        let (mut old, welcome) = come_back(&gateway, encoding, [0; 16], 0);
        let first = al.say(DIRECT, "seen").seq;
        assert_eq!(deliveries(&mut old, 1), [(1, first, 0)]);
        al.say(DIRECT, "lost on the way");
        let (mut new, again) = come_back(&gateway, encoding, welcome.session, 1);
        assert_eq!((again.resumed, again.pos), (1, 2));
        assert_eq!(deliveries(&mut new, 1), [(2, first + 1, deliver_flags::REPLAY)]);
        assert_eq!(old.closed(), Some(4409));
        al.say(DIRECT, "live");
        assert_eq!(deliveries(&mut new, 1), [(3, first + 2, 0)]);
    }
}

/// A wrong secret, a position that was never given out or is acknowledged, another encoding, a client that said goodbye, and one that
/// stayed away too long: a new session, and SYNC finds what the old one held.
#[test]
fn a_resume_is_refused() {
    let gateway = Gateway::with(&[("protocol.fetch_rate", "1000")]);
    let short = Gateway::with(&[("protocol.resume_ms", "300"), ("protocol.fetch_rate", "1000")]);
    for case in ["secret", "beyond", "far beyond", "acknowledged", "encoding", "goodbye", "late"] {
        let gateway = if case == "late" { &short } else { &gateway };
        let mut al = Raw::connect(gateway, Encoding::Binary, "al", "1");
        let (mut bo, welcome) = come_back(gateway, Encoding::Binary, [0; 16], 0);
        let seqs = [al.say(DIRECT, "x").seq, al.say(DIRECT, "x").seq];
        assert_eq!(deliveries(&mut bo, 2), [(1, seqs[0], 0), (2, seqs[1], 0)]);
        bo.ack(1, DIRECT, seqs[0]);
        assert!(bo.ping().is_empty());
        let mut session = welcome.session;
        let (mut last_pos, mut encoding, mut code) = (1, Encoding::Binary, 1001);
        match case {
            "secret" => session[15] ^= 1,
            "beyond" => last_pos = 3,
            "far beyond" => last_pos = u64::MAX,
            "acknowledged" => last_pos = 0,
            "encoding" => encoding = Encoding::Json,
            "goodbye" => code = 1000,
            _ => {}
        }
        drop(bo.socket.close(Some(tungstenite::protocol::CloseFrame { code: code.into(), reason: "".into() })));
        assert_eq!(bo.closed(), Some(code));
        // The session of al, and of bo while it waits.
        let left = if matches!(case, "goodbye" | "late") { 1.0 } else { 2.0 };
        eventually("the end", || (gateway.metric("tidegate_sessions_open") == left).then_some(()));
        if left > 1.0 {
            detached(gateway, 1.0);
        }
        let (mut new, again) = come_back(gateway, encoding, session, last_pos);
        assert_eq!((again.resumed, again.pos), (0, 0), "{case}");
        // Cursors ride on the next group, or are written within a second.
        let mine = eventually("the cursor", || {
            let (entries, _) = new.sync(0, 0);
            let entry = entries.iter().find(|entry| entry.conv == DIRECT).expect("it has messages");
            assert_eq!(entry.head, seqs[1], "{case}");
            (entry.mine == seqs[0]).then_some(entry.mine)
        });
        assert_eq!(new.fetch(DIRECT, mine + 1, 0, 0, 0).messages.len(), 1, "{case}");
        al.say(DIRECT, "live");
        assert_eq!(deliveries(&mut new, 1), [(1, seqs[1] + 1, 0)], "{case}");
        for mut raw in [new, al] {
            drop(raw.socket.close(Some(tungstenite::protocol::CloseFrame { code: 1000.into(), reason: "".into() })));
        }
        eventually("the end of all", || (gateway.metric("tidegate_sessions_open") == 0.0).then_some(()));
    }
}

/// What does not fit the window of a session without connection is marked: it is told after the resume, and with every other resume until
/// a FETCH, or a cursor, has reached it.
#[test]
fn a_full_window_is_marked_while_away() {
    let gateway = Gateway::with(&[("protocol.window_default", "4"), ("protocol.send_rate", "1000")]);
    for encoding in ENCODINGS {
        let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
        let (bo, welcome) = come_back(&gateway, encoding, [0; 16], 0);
        drop(bo);
        detached(&gateway, 1.0);
        let seqs: Vec<u64> = (0..10).map(|_| al.say(DIRECT, "x").seq).collect();
        let (mut bo, welcome) = come_back(&gateway, encoding, welcome.session, 0);
        assert_eq!((welcome.resumed, welcome.pos), (1, 4));
        let replay = deliver_flags::REPLAY;
        let held: Vec<_> = (1..=4).map(|at| (at, seqs[usize::try_from(at).unwrap() - 1], replay)).collect();
        assert_eq!(deliveries(&mut bo, 4), held);
        assert!(bo.ping().is_empty(), "no notice while the window is full");
        // A smaller window than what is held: that stays, and nothing more comes before it is acknowledged.
        drop(bo);
        detached(&gateway, 1.0);
        let (mut bo, welcome) = come_back_with(&gateway, encoding, welcome.session, 0, 2);
        assert_eq!((welcome.resumed, welcome.window, welcome.pos), (1, 2, 4));
        assert_eq!(deliveries(&mut bo, 4), held);
        bo.put(&ClientFrame::Ping { pos: 4 });
        assert_eq!(notice(&mut bo), (DIRECT.to_owned(), seqs[9]));
        // Not fetched, so it is told again; fetched in part, again; reached, never more.
        let mut session = welcome.session;
        for (to, told) in [(seqs[8], true), (seqs[9], true), (0, false)] {
            drop(bo);
            detached(&gateway, 1.0);
            let (back, welcome) = come_back(&gateway, encoding, session, 4);
            (bo, session) = (back, welcome.session);
            assert_eq!(welcome.resumed, 1);
            match told {
                true => assert_eq!(notice(&mut bo), (DIRECT.to_owned(), seqs[9])),
                false => assert!(bo.ping().is_empty()),
            }
            bo.fetch(DIRECT, seqs[4], to, 0, 0);
        }
        assert_eq!(al.say(DIRECT, "live").seq, seqs[9] + 1);
        assert_eq!(deliveries(&mut bo, 1), [(5, seqs[9] + 1, 0)]);
        bo.ack(5, DIRECT, seqs[9] + 1);
        drop(bo.socket.close(Some(tungstenite::protocol::CloseFrame { code: 1000.into(), reason: "".into() })));
        detached(&gateway, 0.0);
    }
}

/// More conversations than 256 moved behind a full window: they are not named one by one. One RESYNC says it, and again after a resume,
/// until a SYNC has been answered.
#[test]
fn marks_beyond_their_bound_become_one_resync() {
    let gateway =
        Gateway::with(&[("protocol.window_default", "1"), ("protocol.send_rate", "1000"), ("protocol.send_burst", "1000")]);
    let convs: Vec<String> = (0..258).map(|number| format!("g:{number}")).collect();
    convs.iter().for_each(|conv| gateway.group(conv, &["al", "bo"]));
    for encoding in ENCODINGS {
        let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
        let (mut bo, welcome) = come_back(&gateway, encoding, [0; 16], 0);
        let heads: Vec<u64> = convs.iter().map(|conv| al.say(conv, "x").seq).collect();
        assert_eq!(deliveries(&mut bo, 1), [(1, heads[0], 0)]);
        // Its SENT comes after the store has mailed the others to every core, and PONG after the core has taken them.
        al.say(&convs[0], "behind them");
        assert!(bo.ping().is_empty());
        bo.ack(1, &convs[0], heads[0]);
        assert_eq!(resync(&mut bo), 1);
        drop(bo);
        detached(&gateway, 1.0);
        let (mut bo, welcome) = come_back(&gateway, encoding, welcome.session, 1);
        assert_eq!((welcome.resumed, resync(&mut bo)), (1, 1));
        let (entries, _) = bo.sync(0, 0);
        assert_eq!(entries.len(), convs.len());
        drop(bo);
        detached(&gateway, 1.0);
        let (mut bo, welcome) = come_back(&gateway, encoding, welcome.session, 1);
        assert_eq!((welcome.resumed, bo.ping().len()), (1, 0));
        let seq = al.say(&convs[1], "live again").seq;
        assert_eq!(deliveries(&mut bo, 1), [(2, seq, 0)]);
        bo.ack(2, &convs[1], seq);
        drop(bo.socket.close(Some(tungstenite::protocol::CloseFrame { code: 1000.into(), reason: "".into() })));
        detached(&gateway, 0.0);
    }
}

/// Sessions without connection share the bytes of their core: under pressure the one that left first is dropped first, its resume
/// becomes a SYNC, and nothing is lost.
#[test]
fn what_absent_sessions_hold_is_bounded() {
    let gateway = Gateway::with(&[
        ("reactors", "1"),
        // Of which a quarter is kept for those who read.
        ("limits.queue_bytes_max", "1398102"),
        ("protocol.send_rate", "1000"),
        ("protocol.window_bytes", "524288"),
    ]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut sessions = Vec::new();
    for user in ["bo", "cy", "di"] {
        let (raw, welcome) = Raw::welcomed(&gateway, Encoding::Binary, user, "1");
        drop(raw);
        sessions.push((user, welcome.session));
        detached(&gateway, sessions.len() as f64);
    }
    // 450 KiB for each of three: more than 1 MiB.
    let payload = vec![b'x'; 64_000];
    for (user, _) in &sessions {
        for _ in 0..7 {
            let rid = al.put_send(&format!("d:al:{user}"), cmid(), 0, &payload);
            al.sent(rid);
        }
    }
    assert_eq!(gateway.counted("tidegate_sessions_detached_dropped_total"), 1.0);
    assert!(gateway.counted("tidegate_held_bytes") <= 1_048_576.0);
    for (user, session) in sessions {
        let mut raw = Raw::open(&gateway, Encoding::Binary);
        let (token, device, client) = (gateway.token(user).into(), "1".into(), "test/1".into());
        let (minor, platform, window, caps, last_pos) = (0, 0, 0, 0, 0);
        raw.put(&ClientFrame::Hello(Hello { minor, platform, window, caps, last_pos, session, device, client, token }));
        let welcome = raw.welcome();
        assert_eq!(welcome.resumed, u8::from(user != "bo"), "{user}");
        if welcome.resumed == 1 {
            assert_eq!(deliveries(&mut raw, 7).iter().map(|it| it.1).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
            raw.put(&ClientFrame::Ping { pos: 7 });
        } else {
            assert_eq!(raw.sync(0, 0).0[0].head, 7);
        }
        assert!(raw.poll().is_none_or(|next| matches!(next, Next::Frame(ServerFrame::Pong { .. }))));
    }
}

/// A message the device could not process comes again with a new `pos`, later each time, until a cursor reaches it; it holds up
/// nothing, moves no cursor, and one that does not exist is ignored.
#[test]
fn a_refused_message_comes_again() {
    let gateway = Gateway::start();
    for encoding in ENCODINGS {
        let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
        let (mut bo, _) = come_back(&gateway, encoding, [0; 16], 0);
        let seqs = [al.say(DIRECT, "try again").seq, al.say(DIRECT, "fine").seq];
        assert_eq!(deliveries(&mut bo, 2), [(1, seqs[0], 0), (2, seqs[1], 0)]);
        let nack = |seq| ClientFrame::Nack { conv: DIRECT.into(), seq, delay_ms: 0, reason: 7 };
        bo.put(&nack(seqs[0]));
        bo.put(&nack(seqs[1] + 1000));
        bo.put(&ClientFrame::Nack { conv: "g:nowhere".into(), seq: 1, delay_ms: 0, reason: 7 });
        bo.put(&ClientFrame::Ping { pos: 2 });
        for pos in [3, 4] {
            let again = bo.deliver();
            assert_eq!((again.pos, again.seq, again.flags), (pos, seqs[0], deliver_flags::REPLAY));
            assert_eq!((&*again.payload, &*again.from, &*again.conv), (&b"try again"[..], "al", DIRECT));
            if pos == 3 {
                bo.put(&nack(seqs[0]));
            }
        }
        // A cursor ends it, though the third wait has begun: what comes next is the next message.
        let cursors = Cursors::List(vec![Cursor { conv: DIRECT.into(), seq: seqs[1] }]);
        bo.put_all(&[nack(seqs[0]), ClientFrame::Ack { pos: 4, cursors }]);
        let live = al.say(DIRECT, "live").seq;
        assert_eq!(deliveries(&mut bo, 1), [(5, live, 0)]);
        assert_eq!(gateway.counted("tidegate_errors_total"), 0.0);
        let (entries, _) = bo.sync(0, 0);
        assert_eq!(entries.iter().find(|entry| entry.conv == DIRECT).expect("it has messages").head, live);
    }
}

/// Sixty-four messages may wait for their redelivery; for one more NACK is answered with 4004, and names its conversation.
#[test]
fn redeliveries_are_bounded() {
    let gateway = Gateway::start();
    let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
    let nack = |seq| ClientFrame::Nack { conv: DIRECT.into(), seq, delay_ms: 60_000, reason: 0 };
    bo.put_all(&(1..=66).map(nack).collect::<Vec<_>>());
    let mut refused = BTreeSet::new();
    for _ in 0..2 {
        refused.insert(bo.wait("ERROR", |frame| match frame {
            ServerFrame::Error { rid: 0, code, flags: 0, detail, .. } => {
                Some((*code, detail.split(' ').next().expect("a conversation").to_owned()))
            }
            _ => None,
        }));
    }
    assert_eq!(refused, BTreeSet::from([(4004, DIRECT.to_owned())]));
    assert!(bo.ping().is_empty());
}
