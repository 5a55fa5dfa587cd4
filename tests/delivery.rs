//! Messages from one device to all others, through the real binary: stored first, then delivered, then found in the history.

mod support;

use std::collections::BTreeSet;

use support::eventually;
use support::gateway::Gateway;
use support::raw::{ENCODINGS, Next, Raw, cmid, send};
use tidegate::ids::Mid;
use tidegate::wire::envelope::{
    ClientFrame, Encoding, SENT_DUPLICATE, ServerFrame, Users, deliver_flags, page_flags, send_flags,
};

const DIRECT: &str = "d:al:bo";
const NEWEST: u8 = page_flags::FETCH_NEWEST;

/// SENT says level 2 and a seq that grows by one; the receiver gets the same seq and mid, the sender and the payload. In both encodings,
/// each way.
#[test]
fn a_message_is_acknowledged_and_delivered() {
    let gateway = Gateway::start();
    let mut seq = 0;
    for (from, to) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut al = Raw::connect(&gateway, ENCODINGS[from], "al", "al-1");
        let mut bo = Raw::connect(&gateway, ENCODINGS[to], "bo", "bo-1");
        for text in ["hi", "", "snowman \u{2603} and \"quotes\"\n"] {
            seq += 1;
            let sent = al.say(DIRECT, text);
            assert_eq!((sent.level, sent.flags, sent.seq), (2, 0, seq));
            let delivered = bo.deliver();
            assert_eq!((delivered.seq, delivered.mid, delivered.kind, delivered.flags), (seq, sent.mid, 1, 0));
            assert_eq!((&*delivered.conv, &*delivered.from, &*delivered.payload), (DIRECT, "al", text.as_bytes()));
            assert_eq!((delivered.cmid, delivered.trace), (None, None));
        }
    }
}

/// A payload that is not text travels between the encodings unchanged.
#[test]
fn any_bytes_travel_between_the_encodings() {
    let gateway = Gateway::start();
    let mut binary = Raw::connect(&gateway, Encoding::Binary, "al", "al-1");
    let mut json = Raw::connect(&gateway, Encoding::Json, "bo", "bo-1");
    let payload: Vec<u8> = (0..=255).collect();
    let rid = binary.put_send(DIRECT, cmid(), 0, &payload);
    binary.sent(rid);
    assert_eq!(*json.deliver().payload, *payload);
    let rid = json.put_send(DIRECT, cmid(), 0, &payload);
    json.sent(rid);
    assert_eq!(*binary.deliver().payload, *payload);
    let page = json.fetch(DIRECT, 1, 0, 10, 0);
    assert!(page.messages.iter().all(|message| *message.payload == *payload));
}

/// `pos` counts the deliveries of a session from 1; mid grows, and its time is now.
#[test]
fn positions_and_ids_grow() {
    let gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "al-1");
    let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "bo-1");
    let mut last = Mid(0);
    for pos in 1..=5 {
        al.say(DIRECT, "hi");
        let delivered = bo.deliver();
        assert_eq!(delivered.pos, pos);
        assert!(delivered.mid > last);
        last = delivered.mid;
    }
    let off = support::gateway::unix_s().abs_diff(last.unix_ms() / 1000);
    assert!(off < 60, "mid says {off} s from now");
}

/// All devices of both users get a message but the one that sent it; those of the sender with OWN and cmid.
#[test]
fn every_device_but_the_sending_one_gets_it() {
    let gateway = Gateway::start();
    let mut sending = Raw::connect(&gateway, Encoding::Binary, "al", "al-1");
    let mut own = Raw::connect(&gateway, Encoding::Json, "al", "al-2");
    let mut others =
        [Raw::connect(&gateway, Encoding::Binary, "bo", "bo-1"), Raw::connect(&gateway, Encoding::Json, "bo", "bo-2")];
    let cmid = cmid();
    let rid = sending.put_send(DIRECT, cmid, 0, b"hi");
    let sent = sending.sent(rid);
    let delivered = own.deliver();
    assert_eq!((delivered.flags, delivered.cmid, delivered.seq), (deliver_flags::OWN, Some(cmid), sent.seq));
    for other in &mut others {
        let delivered = other.deliver();
        assert_eq!((delivered.flags, delivered.cmid, delivered.seq), (0, None, sent.seq));
    }
    // The answer is the first thing that the sending device is delivered.
    let answer = others[0].say(DIRECT, "yes");
    let delivered = sending.deliver();
    assert_eq!((delivered.pos, delivered.seq, &*delivered.from), (1, answer.seq, "bo"));
}

/// A note to oneself reaches the other devices, once.
#[test]
fn a_note_to_oneself_reaches_the_other_device() {
    let gateway = Gateway::start();
    let mut first = Raw::connect(&gateway, Encoding::Binary, "al", "al-1");
    let mut second = Raw::connect(&gateway, Encoding::Binary, "al", "al-2");
    assert_eq!(first.say("d:al:al", "milk").seq, 1);
    assert_eq!(first.say("d:al:al", "bread").seq, 2);
    assert_eq!([second.deliver().seq, second.deliver().seq], [1, 2]);
}

/// A group delivers to all its members and to nobody else; who is none may neither send nor read, and is not told whether it exists.
#[test]
fn a_group_is_for_its_members() {
    let gateway = Gateway::start();
    gateway.group("g:team", &["al", "bo", "cy"]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut members = [Raw::connect(&gateway, Encoding::Json, "bo", "1"), Raw::connect(&gateway, Encoding::Binary, "cy", "1")];
    let mut stranger = Raw::connect(&gateway, Encoding::Binary, "di", "1");
    let sent = al.say("g:team", "hello");
    for member in &mut members {
        let delivered = member.deliver();
        assert_eq!((&*delivered.conv, delivered.seq, delivered.mid), ("g:team", 1, sent.mid));
    }
    for conv in ["g:team", "g:none", "d:al:bo", "x:odd", "d:bo:al", "s:system", "no form at all"] {
        let rid = stranger.put_send(conv, cmid(), 0, b"let me in");
        let error = stranger.error();
        assert_eq!((error.rid, error.code, error.flags), (rid, 3001, 0), "SEND to {conv}");
        let rid = stranger.next_rid();
        stranger.put(&ClientFrame::Fetch { rid, conv: conv.into(), from: 0, to: 0, limit: 0, flags: 0 });
        let error = stranger.error();
        assert_eq!((error.rid, error.code), (rid, 3001), "FETCH of {conv}");
        let rid = stranger.next_rid();
        stranger.put(&ClientFrame::Read { rid, conv: conv.into(), seq: 1 });
        let error = stranger.error();
        assert_eq!((error.rid, error.code), (rid, 3001), "READ of {conv}");
    }
    assert!(stranger.sync(0, 0).0.is_empty());
    assert_eq!(al.fetch("g:team", 0, 0, 0, 0).head, 1);
}

/// A new member gets what is sent from then on and sees nothing older; a removed one gets nothing more and may not read.
#[test]
fn membership_decides_from_the_change_on() {
    let gateway = Gateway::start();
    gateway.group("g:team", &["al", "bo"]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
    let mut cy = Raw::connect(&gateway, Encoding::Binary, "cy", "1");
    al.say("g:team", "before");
    gateway.change_group("g:team", &["cy"], &["bo"]);
    al.say("g:team", "after");
    assert_eq!(cy.deliver().seq, 2);
    let page = cy.fetch("g:team", 1, 0, 0, 0);
    assert_eq!(page.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [2]);
    bo.put_send("g:team", cmid(), 0, b"still here?");
    assert_eq!(bo.error().code, 3001);
    let rid = bo.next_rid();
    bo.put(&ClientFrame::Fetch { rid, conv: "g:team".into(), from: 0, to: 0, limit: 0, flags: 0 });
    assert_eq!(bo.error().code, 3001);
    // What bo is delivered next is from another conversation: nothing of the group came between.
    al.say("d:al:bo", "sorry");
    assert!(
        bo.ping()
            .iter()
            .all(|frame| !matches!(frame, ServerFrame::Deliver(deliver) if deliver.conv == "g:team" && deliver.seq > 1))
    );
}

/// What was sent while a user was away is found by SYNC and read by FETCH, page by page, forwards and backwards.
#[test]
fn who_was_away_finds_everything() {
    let gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    for number in 1..=8 {
        assert_eq!(al.say(DIRECT, &format!("message {number}")).seq, number);
    }
    for encoding in ENCODINGS {
        let mut bo = Raw::connect(&gateway, encoding, "bo", "late");
        let (entries, _) = bo.sync(0, 0);
        assert_eq!(entries.len(), 1);
        let entry = &entries[0];
        assert_eq!((&*entry.conv, entry.head, entry.floor, entry.mine, entry.read, entry.unread), (DIRECT, 8, 1, 0, 0, 8));

        let first = bo.fetch(DIRECT, 1, 0, 3, 0);
        assert_eq!((first.flags, first.head, first.floor), (page_flags::MORE, 8, 1));
        let second = bo.fetch(DIRECT, 4, 0, 3, 0);
        let third = bo.fetch(DIRECT, 7, 0, 3, 0);
        assert_eq!((second.flags, third.flags), (page_flags::MORE, 0));
        let all: Vec<_> = [first, second, third].into_iter().flat_map(|page| page.messages).collect();
        for (number, message) in (1..).zip(&all) {
            assert_eq!((message.seq, &*message.from, message.flags, message.cmid), (number, "al", 0, None));
            assert_eq!(*message.payload, *format!("message {number}").as_bytes());
        }
        assert_eq!(all.len(), 8);

        let seqs = |page: support::raw::PageFrame| page.messages.iter().map(|message| message.seq).collect::<Vec<_>>();
        let newest = bo.fetch(DIRECT, 1, 0, 3, NEWEST);
        assert_eq!(newest.flags, page_flags::MORE);
        assert_eq!(seqs(newest), [6, 7, 8]);
        assert_eq!(seqs(bo.fetch(DIRECT, 1, 5, 3, NEWEST)), [3, 4, 5]);
        let oldest = bo.fetch(DIRECT, 1, 2, 3, NEWEST);
        assert_eq!(oldest.flags, 0);
        assert_eq!(seqs(oldest), [1, 2]);
        assert!(seqs(bo.fetch(DIRECT, 5, 4, 0, 0)).is_empty());
        assert!(seqs(bo.fetch(DIRECT, 9, 0, 0, 0)).is_empty());
        assert_eq!(seqs(bo.fetch(DIRECT, 3, 3, 0, 0)), [3]);
    }
}

/// One's own messages carry OWN and cmid in a page, on any device.
#[test]
fn own_messages_are_marked_in_a_page() {
    let gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let cmid = cmid();
    let rid = al.put_send(DIRECT, cmid, 0, b"mine");
    al.sent(rid);
    for (device, encoding) in [("1", Encoding::Binary), ("2", Encoding::Json)] {
        let mut again = Raw::connect(&gateway, encoding, "al", device);
        let page = again.fetch(DIRECT, 1, 0, 0, 0);
        assert_eq!((page.messages[0].flags, page.messages[0].cmid), (deliver_flags::OWN, Some(cmid)));
    }
}

/// A direct conversation exists from its first message on; before, a page of it is empty.
#[test]
fn a_direct_conversation_begins_empty() {
    let gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let page = al.fetch(DIRECT, 0, 0, 0, 0);
    assert_eq!((page.flags, page.head, page.messages.len()), (0, 0, 0));
    assert!(al.sync(0, 0).0.is_empty());
    al.say(DIRECT, "hi");
    assert_eq!(al.sync(0, 0).0.len(), 1);
}

/// A page of long messages ends at `max_frame`, says MORE, and goes on where it ended.
#[test]
fn a_page_fits_a_frame() {
    let gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let payload = vec![b'x'; 60_000];
    for _ in 0..5 {
        let rid = al.put_send(DIRECT, cmid(), 0, &payload);
        al.sent(rid);
    }
    for encoding in ENCODINGS {
        let mut bo = Raw::connect(&gateway, encoding, "bo", "1");
        let mut from = 1;
        let mut pages = 0;
        while from <= 5 {
            let page = bo.fetch(DIRECT, from, 0, 0, 0);
            let bytes: usize = page.messages.iter().map(|message| message.payload.len()).sum();
            assert!(bytes <= 128 * 1024);
            assert_eq!(page.messages[0].seq, from);
            from = page.messages.last().expect("never empty").seq + 1;
            assert_eq!(page.flags & page_flags::MORE != 0, from <= 5);
            pages += 1;
        }
        assert!(pages >= 3);
    }
}

/// SYNC pages through many conversations, each once; afterwards only what changed since comes again.
#[test]
fn sync_tells_what_changed() {
    let gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    let groups: Vec<String> = (0..7).map(|number| format!("g:{number}")).collect();
    for group in &groups {
        gateway.group(group, &["al", "bo"]);
        al.say(group, "hi");
    }
    let (entries, since) = bo.sync(0, 2);
    let names: BTreeSet<&str> = entries.iter().map(|entry| &*entry.conv).collect();
    assert_eq!((entries.len(), names.len()), (7, 7));
    assert!(entries.iter().all(|entry| (entry.head, entry.unread) == (1, 1)));
    let (unchanged, since) = bo.sync(since, 2);
    assert!(unchanged.is_empty(), "{unchanged:?}");
    al.say("g:3", "again");
    let (changed, _) = bo.sync(since, 2);
    assert_eq!(changed.iter().map(|entry| (&*entry.conv, entry.head)).collect::<Vec<_>>(), [("g:3", 2)]);
}

/// READ moves the position of all devices and never back; unread follows; QUIET is not counted; sending reads what was before.
#[test]
fn reading_moves_unread() {
    let gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
    let mut phone = Raw::connect(&gateway, Encoding::Json, "bo", "2");
    for _ in 0..5 {
        al.say(DIRECT, "hi");
    }
    let rid = al.put_send(DIRECT, cmid(), send_flags::QUIET, b"psst");
    al.sent(rid);
    let state = |raw: &mut Raw| {
        let (entries, _) = raw.sync(0, 0);
        (entries[0].read, entries[0].unread)
    };
    assert_eq!(state(&mut phone), (0, 5));
    assert_eq!(bo.read(DIRECT, 3), 3);
    assert_eq!(state(&mut phone), (3, 2));
    assert_eq!(bo.read(DIRECT, 2), 3);
    assert_eq!(state(&mut phone), (3, 2));
    assert_eq!(state(&mut al), (6, 0));
    bo.say(DIRECT, "all read");
    assert_eq!(state(&mut phone), (7, 0));
    assert_eq!(state(&mut al), (6, 1));
}

/// A cursor is the device's own, shows as `mine`, only moves forward, and cannot pass the head.
#[test]
fn a_cursor_is_kept_for_its_device() {
    let gateway = Gateway::with(&[("protocol.fetch_rate", "1000")]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    for _ in 0..4 {
        al.say(DIRECT, "hi");
    }
    let pos = (0..4).map(|_| bo.deliver().pos).last().expect("four");
    bo.ack(pos, DIRECT, 3);
    let mine = |raw: &mut Raw| raw.sync(0, 0).0[0].mine;
    eventually("the cursor", || (mine(&mut bo) == 3).then_some(()));
    bo.ack(pos, DIRECT, 2);
    bo.ack(pos, DIRECT, 9);
    let error = bo.error();
    assert_eq!((error.rid, error.code, error.flags), (0, 3004, 0));
    assert_eq!(mine(&mut bo), 3);
    bo.ack(pos, "g:unknown", 1);
    bo.ack(pos, DIRECT, 4);
    eventually("the cursor", || (mine(&mut bo) == 4).then_some(()));
    let mut other = Raw::connect(&gateway, Encoding::Binary, "bo", "2");
    assert_eq!(mine(&mut other), 0);
}

/// The same cmid again is DUPLICATE with the first seq and mid, from this and from another connection; nothing is stored or delivered
/// twice.
#[test]
fn a_repeat_is_answered_as_the_first() {
    let gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
    let cmid = cmid();
    let rid = al.put_send(DIRECT, cmid, 0, b"once");
    let first = al.sent(rid);
    assert_eq!(bo.deliver().seq, 1);
    let rid = al.put_send(DIRECT, cmid, send_flags::RETRY, b"once");
    let again = al.sent(rid);
    assert_eq!((again.flags, again.seq, again.mid, again.level), (SENT_DUPLICATE, first.seq, first.mid, 2));
    let mut al = Raw::connect(&gateway, Encoding::Json, "al", "2");
    let rid = al.put_send(DIRECT, cmid, send_flags::RETRY, b"once");
    let again = al.sent(rid);
    assert_eq!((again.flags, again.seq, again.mid), (SENT_DUPLICATE, first.seq, first.mid));
    al.say(DIRECT, "next");
    let delivered = bo.deliver();
    assert_eq!((delivered.pos, delivered.seq, &*delivered.payload), (2, 2, &b"next"[..]));
    assert_eq!(bo.fetch(DIRECT, 0, 0, 0, 0).messages.len(), 2);
}

/// The same cmid for another message is refused, and nothing is stored; for another user it is another message.
#[test]
fn a_cmid_names_one_message_of_one_user() {
    let gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
    let cmid = cmid();
    let rid = al.put_send(DIRECT, cmid, 0, b"one");
    al.sent(rid);
    for (conv, payload) in [(DIRECT, b"two"), ("d:al:cy", b"one")] {
        let rid = al.put_send(conv, cmid, send_flags::RETRY, payload);
        let error = al.error();
        assert_eq!((error.rid, error.code, error.flags), (rid, 3009, 0));
    }
    let rid = bo.put_send(DIRECT, cmid, 0, b"two");
    assert_eq!((bo.sent(rid).seq, bo.fetch(DIRECT, 0, 0, 0, 0).head), (2, 2));
}

/// A payload of exactly the limit passes, one byte more is 3003 and the connection lives.
#[test]
fn a_payload_has_a_limit() {
    let gateway = Gateway::start();
    for encoding in ENCODINGS {
        let (mut al, welcome) = Raw::welcomed(&gateway, encoding, "al", "1");
        let most = usize::try_from(welcome.max_payload).expect("a size");
        let rid = al.put_send(DIRECT, cmid(), 0, &vec![b'x'; most]);
        al.sent(rid);
        let rid = al.put_send(DIRECT, cmid(), 0, &vec![b'x'; most + 1]);
        let error = al.error();
        assert_eq!((error.rid, error.code), (rid, 3003));
        al.say(DIRECT, "alive");
    }
}

/// Several frames in one WebSocket message are carried out in order, the good ones before a bad one too.
#[test]
fn one_message_carries_many_frames() {
    let gateway = Gateway::start();
    for encoding in ENCODINGS {
        let mut al = Raw::connect(&gateway, encoding, "al", "1");
        let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
        let head = al.fetch(DIRECT, 0, 0, 1, 0).head;
        let frames: Vec<ClientFrame<'_>> = (11..=15).map(|rid| send(rid, DIRECT, cmid(), 0, b"hi")).collect();
        al.put_all(&frames);
        for rid in 11..=15 {
            assert_eq!(al.sent(rid).seq, head + u64::from(rid) - 10);
            assert_eq!(bo.deliver().seq, head + u64::from(rid) - 10);
        }
        let last = send(21, DIRECT, cmid(), 0, b"before the bad one");
        let bad = send(0, DIRECT, cmid(), 0, b"rid 0");
        al.put_all(&[last, bad]);
        assert_eq!(&*bo.deliver().payload, b"before the bad one");
        assert_eq!(al.closed(), Some(4400));
    }
}

/// What this release does not have is answered with 3005, never with silence, and the connection lives.
#[test]
fn what_is_missing_is_said() {
    let gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    al.say(DIRECT, "hi");
    al.put(&ClientFrame::Watch { rid: 77, ttl_s: 0, users: Users::List(vec!["bo".into()]) });
    let error = al.error();
    assert_eq!((error.rid, error.code), (77, 3005));
    assert_eq!(al.say(DIRECT, "alive").seq, 2);
}

/// More than a window of unacknowledged deliveries is not queued: the device is told by NOTICE once it acknowledges, and reads the rest.
#[test]
fn a_full_window_becomes_a_notice() {
    let gateway = Gateway::with(&[("protocol.window_default", "4"), ("protocol.send_rate", "1000")]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let (mut bo, welcome) = Raw::welcomed(&gateway, Encoding::Binary, "bo", "1");
    assert_eq!(welcome.window, 4);
    for _ in 0..10 {
        al.say(DIRECT, "hi");
    }
    let delivered: Vec<_> = (0..4).map(|_| bo.deliver()).collect();
    assert_eq!(delivered.iter().map(|one| one.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
    // What the store answers comes behind all that it said before.
    let rid = bo.next_rid();
    bo.put(&ClientFrame::Read { rid, conv: DIRECT.into(), seq: 1 });
    bo.wait("OK", |frame| matches!(frame, ServerFrame::Ok { rid: of, .. } if *of == rid).then_some(()));
    assert!(bo.ping().is_empty());
    bo.ack(4, DIRECT, 4);
    let head = bo.wait("NOTICE", |frame| match frame {
        ServerFrame::Notice { conv, head, .. } => Some((conv.to_string(), *head)),
        _ => None,
    });
    assert_eq!(head, (DIRECT.to_owned(), 10));
    assert_eq!(bo.fetch(DIRECT, 5, 0, 0, 0).messages.len(), 6);
    al.say(DIRECT, "live again");
    assert_eq!(bo.deliver().seq, 11);
}

/// With two cores, senders and receivers on each: all get everything, in the same order.
#[test]
fn both_cores_deliver_to_both() {
    let gateway = Gateway::with(&[("reactors", "2")]);
    let users: Vec<String> = (0..24).map(|number| format!("user-{number}")).collect();
    gateway.group("g:all", &users.iter().map(String::as_str).collect::<Vec<_>>());
    let mut raws: Vec<Raw> =
        users.iter().enumerate().map(|(index, user)| Raw::connect(&gateway, ENCODINGS[index % 2], user, "1")).collect();
    let (_, metrics) = gateway.admin("GET", "/metrics", "");
    let open: Vec<&str> = metrics.lines().filter(|line| line.starts_with("tidegate_connections_open{")).collect();
    assert_eq!(open.len(), 2, "{open:?}");
    assert!(open.iter().all(|line| !line.ends_with(" 0")), "connections on both: {open:?}");
    let rids: Vec<u32> = raws.iter_mut().map(|raw| raw.put_send("g:all", cmid(), 0, b"hi")).collect();
    for (index, raw) in raws.iter_mut().enumerate() {
        // The own message comes as SENT, in its place among the others.
        let mut seqs = Vec::new();
        while seqs.len() < users.len() {
            seqs.push(raw.wait("all messages", |frame| match frame {
                ServerFrame::Deliver(deliver) => Some(deliver.seq),
                ServerFrame::Sent { rid, seq, .. } if *rid == rids[index] => Some(*seq),
                _ => None,
            }));
        }
        assert!(seqs.iter().copied().eq(1..=24), "{seqs:?}");
    }
}

/// A frame that breaks a rule ends the connection, but what stood before it in the same message is carried out and answered first.
#[test]
fn what_stands_before_a_bad_frame_is_answered_first() {
    let gateway = Gateway::start();
    for encoding in ENCODINGS {
        let mut al = Raw::connect(&gateway, encoding, "al", "1");
        let before = al.say(DIRECT, "before").seq;
        let frames = [
            send(11, DIRECT, cmid(), 0, b"first"),
            ClientFrame::Read { rid: 12, conv: DIRECT.into(), seq: before },
            ClientFrame::Fetch { rid: 13, conv: DIRECT.into(), from: 0, to: 0, limit: 0, flags: 0 },
            send(14, DIRECT, cmid(), 0, b"second"),
            ClientFrame::Read { rid: 0, conv: DIRECT.into(), seq: before },
            send(15, DIRECT, cmid(), 0, b"not read"),
        ];
        al.put_all(&frames);
        let mut answered = BTreeSet::new();
        loop {
            match al.next() {
                Next::Frame(ServerFrame::Sent { rid, .. } | ServerFrame::Ok { rid, .. } | ServerFrame::Page { rid, .. }) => {
                    assert!(answered.insert(rid));
                }
                Next::Frame(ServerFrame::Error { rid, code, flags, .. }) => {
                    assert_eq!((rid, code, flags), (0, 1002, page_flags::ERROR_CLOSING));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(answered, BTreeSet::from([11, 12, 13, 14]));
        assert_eq!(al.closed(), Some(4400));
        let mut again = Raw::connect(&gateway, encoding, "al", "1");
        assert_eq!(again.fetch(DIRECT, before + 1, 0, 0, 0).messages.len(), 2);
    }
}
