//! Groups and who may be connected, through the real binary: roles, silence, history, CONV, large channels, one device per class, bans.

mod support;

use support::eventually;
use support::gateway::{Gateway, unix_s};
use support::raw::{ENCODINGS, Raw, cmid, hello};
use tidegate::wire::envelope::{ClientFrame, Encoding, Entry, Hello, ServerFrame, Welcome, page_flags, send_flags};

fn post(gateway: &Gateway, path: &str, body: &str) -> String {
    let (status, answer) = gateway.admin("POST", path, body);
    assert!(status == 200 || status == 201, "{path} {body}: {answer}");
    answer
}

/// CONV of a conversation: event, version, data.
fn conv(raw: &mut Raw, conv: &str) -> (u8, u64, String) {
    raw.wait("CONV", |frame| match frame {
        ServerFrame::Conv { conv: of, event, version, data } if of == conv => {
            Some((*event, *version, String::from_utf8_lossy(data).into_owned()))
        }
        _ => None,
    })
}

fn entry(raw: &mut Raw, conv: &str) -> Entry<'static> {
    let (entries, _) = raw.sync(0, 0);
    entries.into_iter().find(|entry| entry.conv == conv).expect("a conversation of the user")
}

fn refused(raw: &mut Raw, conv: &str) -> u16 {
    let rid = raw.put_send(conv, cmid(), 0, b"may I");
    let error = raw.error();
    assert_eq!(error.rid, rid);
    error.code
}

/// Roles decide who sends, silence is a flag of one's own, the data of a change travels with CONV, and all of it outlives the process.
#[test]
fn roles_and_silence_are_kept() {
    let mut gateway = Gateway::with(&[("groups.channel_senders", "admin")]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    let made = post(&gateway, "/v1/groups", r#"{"conv":"g:team","members":["al","bo"],"roles":{"al":"owner"},"data":"hello"}"#);
    assert!(made.ends_with(r#""members":["al","bo"],"roles":{"al":"owner"}}"#), "{made}");
    for raw in [&mut al, &mut bo] {
        assert_eq!(conv(raw, "g:team"), (1, 1, "hello".to_owned()));
        assert_eq!(conv(raw, "g:team"), (3, 2, "hello".to_owned()));
    }
    post(&gateway, "/v1/groups/g:team/changed", r#"{"data":"a new name"}"#);
    assert_eq!(conv(&mut al, "g:team"), (3, 3, "a new name".to_owned()));
    post(&gateway, "/v1/groups/g:team/members", r#"{"roles":{"bo":"observer"},"mute":["al"]}"#);
    assert_eq!(conv(&mut bo, "g:team").0, 3);
    post(&gateway, "/v1/groups", r#"{"conv":"c:news","members":["al","bo"],"roles":{"al":"admin"}}"#);
    post(&gateway, "/v1/groups", r#"{"conv":"s:news","members":["al"]}"#);
    for _ in 0..2 {
        assert_eq!(refused(&mut bo, "g:team"), 3002);
        assert_eq!(refused(&mut bo, "c:news"), 3002);
        assert_eq!(refused(&mut al, "s:news"), 3002);
        assert_eq!(refused(&mut al, "s:other"), 3001);
        al.say("g:team", "may");
        al.say("c:news", "may");
        assert_eq!(entry(&mut al, "g:team").flags, page_flags::ENTRY_MUTED);
        assert_eq!(entry(&mut bo, "g:team").flags, 0);
        assert_eq!(entry(&mut bo, "c:news").flags, page_flags::ENTRY_NOTICE_ONLY);
        gateway.terminate();
        gateway.wait();
        gateway.run();
        al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
        bo = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    }
    post(&gateway, "/v1/groups/g:team/members", r#"{"roles":{"bo":"member"},"unmute":["al"]}"#);
    bo.say("g:team", "again");
    assert_eq!(entry(&mut al, "g:team").flags, 0);
    let (status, answer) = gateway.admin("POST", "/v1/groups/g:team/members", r#"{"roles":{"bo":"king"}}"#);
    assert!(status == 400 && answer.contains("no role"), "{answer}");
}

/// Newcomers see what came since they joined, or all of it where the group shows it; either way only the new counts as unread.
#[test]
fn history_may_be_shown_to_newcomers() {
    let gateway = Gateway::start();
    gateway.group("g:shut", &["al"]);
    post(&gateway, "/v1/groups", r#"{"conv":"g:open","members":["al"],"history":true}"#);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    for conv in ["g:shut", "g:open"] {
        al.say(conv, "before");
        gateway.change_group(conv, &["bo"], &[]);
        al.say(conv, "after");
        let seen = bo.fetch(conv, 0, 0, 0, 0).messages.len();
        assert_eq!((seen, entry(&mut bo, conv).unread), (if conv == "g:open" { 2 } else { 1 }, 1), "{conv}");
    }
    post(&gateway, "/v1/groups/g:open/changed", r#"{"history":false}"#);
    assert_eq!(bo.fetch("g:open", 0, 0, 0, 0).messages.len(), 1);
}

/// A large conversation stores one copy and says NOTICE; content comes on FETCH. A group becomes one by growing and stops being one by
/// shrinking.
#[test]
fn large_conversations_say_notice() {
    let gateway = Gateway::with(&[("groups.notice_only_above", "2"), ("protocol.send_rate", "1000")]);
    gateway.group("c:news", &["al", "bo"]);
    gateway.group("g:team", &["al", "bo", "cy"]);
    for encoding in ENCODINGS {
        let mut al = Raw::connect(&gateway, encoding, "al", "1");
        let mut bo = Raw::connect(&gateway, encoding, "bo", "1");
        for conv in ["c:news", "g:team"] {
            let head = (0..20).map(|number| al.say(conv, &number.to_string()).seq).last().expect("some");
            let mut notices = 0;
            let last = bo.wait("the last NOTICE", |frame| match frame {
                ServerFrame::Notice { conv: of, head: told, mid } if of == conv => {
                    notices += 1;
                    (*told == head).then_some(*mid)
                }
                ServerFrame::Deliver(_) => panic!("content in {conv}"),
                _ => None,
            });
            assert!(notices < 20, "not one per message");
            let page = bo.fetch(conv, head, 0, 0, 0);
            assert_eq!((page.messages.len(), page.messages[0].mid), (1, last));
            assert_eq!(entry(&mut bo, conv).flags, page_flags::ENTRY_NOTICE_ONLY);
            let rid = al.put_send(conv, cmid(), send_flags::TRANSIENT, b"to all");
            let error = al.error();
            assert_eq!((error.rid, error.code), (rid, 3002));
        }
    }
    gateway.change_group("g:team", &[], &["cy"]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
    let seq = al.say("g:team", "small again").seq;
    assert_eq!(bo.deliver().seq, seq);
    assert_eq!(entry(&mut bo, "g:team").flags, 0);
}

/// Connects again as device "1" of al, and names a session.
fn come_back(gateway: &Gateway, encoding: Encoding, session: [u8; 16]) -> (Raw, Welcome<'static>) {
    let mut raw = Raw::open(gateway, encoding);
    let token = gateway.token("al");
    let ClientFrame::Hello(hello) = hello(&token, "1") else { unreachable!() };
    raw.put(&ClientFrame::Hello(Hello { session, ..hello }));
    let welcome = raw.welcome();
    (raw, welcome)
}

/// Waits until the gateway has noticed that so many sessions have no connection.
fn detached(gateway: &Gateway, count: f64) {
    eventually("the end of the connection", || (gateway.metric("tidegate_sessions_detached_open") == count).then_some(()));
}

fn notice(raw: &mut Raw) -> u64 {
    raw.wait("NOTICE", |frame| match frame {
        ServerFrame::Notice { head, .. } => Some(*head),
        _ => None,
    })
}

/// A NOTICE that was told, and one for who is away, comes again with every resume until the device has fetched what it named.
#[test]
fn notices_outlive_a_connection() {
    let gateway = Gateway::start();
    gateway.group("c:news", &["al", "bo"]);
    for encoding in ENCODINGS {
        let mut bo = Raw::connect(&gateway, encoding, "bo", "1");
        let (mut al, welcome) = come_back(&gateway, encoding, [0; 16]);
        let first = bo.say("c:news", "first").seq;
        assert_eq!(notice(&mut al), first);
        drop(al);
        detached(&gateway, 1.0);
        let (mut al, welcome) = come_back(&gateway, encoding, welcome.session);
        assert_eq!((welcome.resumed, notice(&mut al)), (1, first));
        drop(al);
        detached(&gateway, 1.0);
        let marked = gateway.metric("tidegate_store_notices_total");
        let second = bo.say("c:news", "second").seq;
        // To al and to the sender: both sessions are members.
        eventually("the sweep", || (gateway.metric("tidegate_store_notices_total") >= marked + 2.0).then_some(()));
        let (mut al, welcome) = come_back(&gateway, encoding, welcome.session);
        assert_eq!((welcome.resumed, notice(&mut al)), (1, second));
        al.fetch("c:news", second, 0, 0, 0);
        drop(al);
        detached(&gateway, 1.0);
        let (mut al, welcome) = come_back(&gateway, encoding, welcome.session);
        assert_eq!((welcome.resumed, al.ping().len()), (1, 0));
        drop(al.socket.close(Some(tungstenite::protocol::CloseFrame { code: 1000.into(), reason: "".into() })));
        detached(&gateway, 0.0);
    }
}

/// Who is away has nothing to come back to once kicked, banned, or replaced by a device of the same class.
#[test]
fn sessions_without_connection_end_too() {
    let gateway = Gateway::with(&[("login.one_per_class", "phone")]);
    let (al, welcome) = come_back(&gateway, Encoding::Json, [0; 16]);
    drop(al);
    detached(&gateway, 1.0);
    assert_eq!(post(&gateway, "/v1/kick", r#"{"user":"al"}"#), r#"{"closed":1}"#);
    detached(&gateway, 0.0);
    let (al, welcome) = come_back(&gateway, Encoding::Json, welcome.session);
    assert_eq!(welcome.resumed, 0);
    drop(al);
    detached(&gateway, 1.0);
    assert_eq!(post(&gateway, "/v1/users/al/ban", "{}"), r#"{"user":"al","ended":["1"]}"#);
    detached(&gateway, 0.0);
    post(&gateway, "/v1/users/al/unban", "{}");
    assert_eq!(come_back(&gateway, Encoding::Json, welcome.session).1.resumed, 0);
    let mut old = login(&gateway, "bo", "p1", 3);
    old.welcome();
    detached(&gateway, 1.0);
    drop(old);
    detached(&gateway, 2.0);
    login(&gateway, "bo", "p2", 3).welcome();
    detached(&gateway, 2.0);
    eventually("the end of the replaced", || (gateway.metric("tidegate_sessions_open") == 2.0).then_some(()));
}

fn login(gateway: &Gateway, user: &str, device: &str, platform: u8) -> Raw {
    let mut raw = Raw::open(gateway, Encoding::Binary);
    let token = gateway.token(user);
    let ClientFrame::Hello(hello) = hello(&token, device) else { unreachable!() };
    raw.put(&ClientFrame::Hello(Hello { platform, ..hello }));
    raw
}

/// A user may have so many devices, and one of a class where the operator says so: the newer one replaces the older.
#[test]
fn devices_are_limited() {
    let gateway = Gateway::with(&[("login.devices_max", "2"), ("login.one_per_class", "phone")]);
    let (mut web, mut desktop) = (login(&gateway, "al", "w", 1), login(&gateway, "al", "d", 2));
    web.welcome();
    desktop.welcome();
    let mut third = login(&gateway, "al", "x", 1);
    assert_eq!((third.error().code, third.closed()), (2004, Some(4403)));
    let mut phone = login(&gateway, "bo", "p1", 3);
    phone.welcome();
    let mut tablet = login(&gateway, "bo", "t", 4);
    tablet.welcome();
    // Takes no place of its own: the old telephone goes.
    let mut newer = login(&gateway, "bo", "p2", 3);
    newer.welcome();
    assert_eq!(phone.closed(), Some(4409));
    assert!(tablet.ping().is_empty() && newer.ping().is_empty());
}

/// Of each class of platform that is named a user has one device, `other` included, and of the rest as many as come.
#[test]
fn a_user_has_one_device_of_each_named_class() {
    for (named, replaced) in [("other,tablet", [0, 4].as_slice()), ("web,desktop,phone,bot", &[1, 2, 3, 5])] {
        let gateway = Gateway::with(&[("login.one_per_class", named)]);
        for platform in 0..6 {
            let user = format!("u{platform}");
            let [mut old, mut new] = ["1", "2"].map(|device| {
                let mut raw = login(&gateway, &user, device, platform);
                raw.welcome();
                raw
            });
            match replaced.contains(&platform) {
                true => assert_eq!(old.closed(), Some(4409), "{named}: {platform}"),
                false => assert!(old.ping().is_empty(), "{named}: {platform}"),
            }
            assert!(new.ping().is_empty());
        }
    }
}

/// Kicked is closed and may come back; banned is told, and stays out over a restart until the ban ends.
#[test]
fn bans_outlive_the_process() {
    let mut gateway = Gateway::start();
    let mut one = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut two = Raw::connect(&gateway, Encoding::Json, "al", "2");
    assert_eq!(post(&gateway, "/v1/kick", r#"{"user":"al","device":"1"}"#), r#"{"closed":1}"#);
    assert_eq!(one.closed(), Some(4403));
    assert!(two.ping().is_empty());
    one = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    post(&gateway, "/v1/users/al/ban", r#"{"device":"2"}"#);
    assert_eq!((two.error().code, two.closed()), (2003, Some(4403)));
    assert!(one.ping().is_empty());
    post(&gateway, "/v1/users/al/ban", "{}");
    assert_eq!((one.error().code, one.closed()), (2003, Some(4403)));
    eventually("the count of kicks", || (gateway.metric("tidegate_store_kicks_total") == 2.0).then_some(()));
    gateway.kill();
    gateway.run();
    for device in ["1", "2"] {
        let mut raw = login(&gateway, "al", device, 1);
        assert_eq!((raw.error().code, raw.closed()), (2003, Some(4403)));
    }
    post(&gateway, "/v1/users/al/unban", "{}");
    login(&gateway, "al", "1", 1).welcome();
    let mut two = login(&gateway, "al", "2", 1);
    assert_eq!((two.error().code, two.closed()), (2003, Some(4403)), "its own ban stands");
    assert_eq!(gateway.admin("POST", "/v1/users/a:l/ban", "{}").0, 400);
}

/// Revoked tokens end the sessions of their user at once and pass no more, neither in HELLO nor in AUTH nor after a restart; what was
/// not meant goes on or comes back.
#[test]
fn revoked_tokens_pass_no_more() {
    let mut gateway = Gateway::start();
    let now = unix_s();
    let token = |user: &str, more: &str| format!(r#"{{"sub":"{user}","exp":{}{more}}}"#, now + 3600);
    let token = |gateway: &Gateway, user: &str, more: &str| gateway.token_of(r#"{"alg":"HS256"}"#, &token(user, more));
    let hello = |gateway: &Gateway, token: &str, device: &str| {
        let mut raw = Raw::open(gateway, Encoding::Json);
        raw.hello(token, device);
        raw
    };
    let old = token(&gateway, "al", &format!(r#","iat":{},"jti":"old""#, now - 100));
    let silent = token(&gateway, "al", "");
    let [one, two] = ["one", "two"].map(|id| token(&gateway, "al", &format!(r#","iat":{},"jti":"{id}""#, now + 60)));
    let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
    let mut al = hello(&gateway, &old, "1");
    al.welcome();

    // One token alone.
    assert_eq!(post(&gateway, "/v1/users/al/revoke", r#"{"jti":"one"}"#), r#"{"user":"al","ended":["1"]}"#);
    assert_eq!((al.error().code, al.closed()), (2001, Some(4401)));
    assert_eq!(hello(&gateway, &one, "1").error().code, 2001);
    al = hello(&gateway, &old, "1");
    al.welcome();
    al.put(&ClientFrame::Auth { rid: 1, token: one.as_str().into() });
    let error = al.error();
    assert_eq!((error.rid, error.code, error.flags), (1, 2001, 0));
    al.put(&ClientFrame::Auth { rid: 2, token: two.as_str().into() });
    al.wait("OK", |frame| matches!(frame, ServerFrame::Ok { rid: 2, .. }).then_some(()));
    // One device alone.
    let mut other = hello(&gateway, &old, "2");
    other.welcome();
    post(&gateway, "/v1/users/al/revoke", &format!(r#"{{"device":"2","before_s":{}}}"#, now - 50));
    assert_eq!((other.error().code, other.closed()), (2001, Some(4401)));
    assert!(al.ping().is_empty());
    assert_eq!(hello(&gateway, &old, "2").error().code, 2001);
    hello(&gateway, &two, "2").welcome();
    // All up to now, which includes those that do not say when they were issued.
    post(&gateway, "/v1/users/al/revoke", "{}");
    assert_eq!((al.error().code, al.closed()), (2001, Some(4401)));
    for is_orderly in [false, true] {
        // Killed, it finds the revocations in the log; after an orderly end in the engine alone.
        if is_orderly {
            gateway.terminate();
            assert!(gateway.wait().success());
        } else {
            gateway.kill();
        }
        gateway.run();
        for (token, device) in [(&old, "1"), (&silent, "1"), (&one, "1"), (&old, "2")] {
            let mut raw = hello(&gateway, token, device);
            assert_eq!((raw.error().code, raw.closed()), (2001, Some(4401)));
        }
        hello(&gateway, &two, "1").welcome();
    }
    assert_eq!(bo.closed(), None, "the process ended");
    bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
    assert!(bo.ping().is_empty());
    // Milliseconds for seconds would lock the user out for good.
    let wrong = [
        r#"{"jti":"x","before_s":1}"#.to_owned(),
        r#"{"jti":""}"#.to_owned(),
        format!(r#"{{"before_s":{}}}"#, unix_s() * 1000),
        format!(r#"{{"until_s":{now}}}"#),
    ];
    for body in wrong {
        assert_eq!(gateway.admin("POST", "/v1/users/al/revoke", &body).0, 400, "{body}");
    }
    assert_eq!(gateway.admin("POST", "/v1/users/a:l/revoke", "{}").0, 400);
}
