//! Tokens stay with their owners: whatever is sent where, no log line, metric or answer shows one.

#[path = "support/service.rs"]
mod service;
mod support;
#[path = "support/tokens.rs"]
mod tokens;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use service::Service;
use support::eventually;
use support::gateway::{Gateway, unix_s};
use support::peer::{Peer, status, upgrade};
use support::raw::{ENCODINGS, Raw};
use support::secure::{self, Authority, BOTH};
use tidegate::wire::envelope::{ClientFrame, Encoding, ServerFrame};
use tokens::{AUDIENCE, Signer, good_claims, key_file};

/// A service that has the keys, and that judges a token by how it begins: well, badly, by saying it once more, at too great length, too
/// late, or not at all.
fn service() -> Service {
    let set = fs::read_to_string(key_file("jwks.json")).expect("a file of the tests");
    Service::start(move |body| {
        let Ok(asked) = serde_json::from_str::<serde_json::Value>(body) else { return Some((200, set.clone())) };
        let token = asked["token"].as_str().expect("a token");
        match token.split('-').next() {
            Some("good") => Some((200, format!(r#"{{"user":"al","exp":{}}}"#, unix_s() + 3600))),
            Some("old") => Some((200, r#"{"user":"al","exp":1}"#.to_owned())),
            Some("echo") => Some((200, format!("{token:?}"))),
            Some("long") => Some((200, token.repeat(1_000))),
            Some("fail") => Some((503, token.to_owned())),
            Some("late") => None,
            _ => Some((401, token.to_owned())),
        }
    })
}

/// A run at level trace in which tokens, good and bad, of the secret, of a public key and of a webhook, come everywhere they could, with TLS
/// and without: not one of them, nor a part of one, is found in what the gateway wrote or shows. The webhook is asked until it is left
/// alone, and the keys until one is missed.
#[test]
fn no_token_is_written_anywhere() {
    let authority = Authority::new();
    authority.issue("a", &["a.example"]);
    let key = key_file("ed.pem");
    let service = service();
    let (keys_url, webhook_url) = (service.url("/keys"), service.url("/judge"));
    let settings = [
        ("log.level", "trace"),
        ("log.trace_every", "1"),
        ("auth.keys", &*key),
        ("auth.audience", AUDIENCE),
        ("auth.jwks_url", &keys_url),
        ("auth.jwks_again_s", "1"),
        ("auth.webhook_url", &webhook_url),
        ("auth.webhook_timeout_ms", "3000"),
        ("protocol.hello_ms", "60000"),
    ];
    let (gateway, secure) = secure::start(&authority, &["a"], &settings);
    let mut foreign = Vec::new();
    let mut fresh_of_key = |seconds: i64| {
        let token = Signer::Ed.token(Signer::Ed.header(), &good_claims(unix_s().saturating_add_signed(seconds)));
        foreign.push(token.clone());
        token
    };
    let mut tokens = Vec::new();
    let mut fresh = |user: &str, seconds: i64| {
        let token = gateway.token_for(user, None, seconds);
        tokens.push(token.clone());
        token
    };
    let mut opaque = Vec::new();
    let mut fresh_opaque = |kind: &str| {
        let token = format!("{kind}-5eed{:028x}", opaque.len());
        opaque.push(token.clone());
        token
    };
    eventually("the keys", || gateway.is_ready().then_some(()));
    for encoding in ENCODINGS {
        let mut al = Raw::open(&gateway, encoding);
        al.hello(&fresh("al", 3600), "1");
        al.welcome();
        al.say("d:al:bo", "hello");
        al.put(&ClientFrame::Auth { rid: 7, token: fresh("al", 7200).into() });
        al.wait("OK", |frame| matches!(frame, ServerFrame::Ok { rid: 7, .. }).then_some(()));
        al.put(&ClientFrame::Auth { rid: 8, token: fresh("bo", 3600).into() });
        assert_eq!(al.error().code, 2001);
        let mut late = Raw::open(&gateway, encoding);
        late.hello(&fresh("al", -60), "1");
        assert_eq!(late.closed(), Some(4401));
        let mut bent = Raw::open(&gateway, encoding);
        bent.hello(&fresh("al", 3600).replace('.', "\u{1}"), "1");
        assert_eq!(bent.closed(), Some(4401));
        // Tokens of a key are judged elsewhere.
        let mut al = Raw::open(&gateway, encoding);
        al.hello(&fresh_of_key(3600), "1");
        al.welcome();
        al.put(&ClientFrame::Auth { rid: 7, token: fresh_of_key(7200).into() });
        al.wait("OK", |frame| matches!(frame, ServerFrame::Ok { rid: 7, .. }).then_some(()));
        let cut = fresh_of_key(3600);
        for token in [&*fresh_of_key(-60), &cut[..cut.len() - 4]] {
            let mut bad = Raw::open(&gateway, encoding);
            bad.hello(token, "1");
            assert_eq!(bad.closed(), Some(4401));
        }
        // Tokens of the webhook leave the process.
        let mut al = Raw::open(&gateway, encoding);
        al.hello(&fresh_opaque("good"), "1");
        al.welcome();
        al.put(&ClientFrame::Auth { rid: 7, token: fresh_opaque("good").into() });
        al.wait("OK", |frame| matches!(frame, ServerFrame::Ok { rid: 7, .. }).then_some(()));
        for (kind, code) in [("bad", 2001), ("old", 2002), ("echo", 5002), ("late", 5002)] {
            al.put(&ClientFrame::Auth { rid: 8, token: fresh_opaque(kind).into() });
            assert_eq!(al.error().code, code, "{kind}");
        }
        for (kind, code) in [("bad", 4401), ("old", 4401), ("echo", 4503), ("long", 4503), ("late", 4503)] {
            let mut bad = Raw::open(&gateway, encoding);
            bad.hello(&fresh_opaque(kind), "1");
            assert_eq!(bad.closed(), Some(code), "{kind}");
        }
    }
    for (token, expected) in [
        (fresh("al", 3600), "welcome"),
        (fresh_of_key(3600), "welcome"),
        (fresh("al", -60), "2002"),
        (fresh_of_key(-60), "2002"),
        (fresh_opaque("good"), "welcome"),
        (fresh_opaque("bad"), "2001"),
    ] {
        let config = Arc::new(authority.client(&BOTH, None));
        let mut al = secure::upgraded(secure::connect(secure, &config, "a.example").expect("a connection"));
        let hello = serde_json::json!({ "t": "hello", "device": "tls", "token": token }).to_string();
        al.send(tungstenite::Message::text(hello)).expect("it takes a HELLO");
        let answer = secure::read(&mut al);
        assert!(answer.to_text().expect("text").contains(expected), "{answer:?}");
    }
    // In the header; then HELLO names none.
    let bearer = format!("Bearer {}", fresh("cy", 3600));
    for header in [&bearer, &format!("Bearer {}", fresh_opaque("good"))] {
        let mut cy = bearing(&gateway, Encoding::Binary, header);
        cy.hello("", "1");
        cy.welcome();
    }
    // Where they do not belong: refused, and not repeated.
    let answer = |request: &str| {
        let mut peer = Peer::connect(gateway.listen);
        peer.write(request.as_bytes());
        let answer = peer.read_all();
        (status(&answer), String::from_utf8(answer).expect("ASCII"))
    };
    let mut answers = String::new();
    let query = upgrade("tidegate.v1", "").replace("/ws ", &format!("/ws?token={} ", fresh("al", 3600)));
    let subprotocol = upgrade(&fresh("al", 3600), "");
    let path = upgrade("tidegate.v1", "").replace("/ws ", &format!("/{} ", fresh("al", 3600)));
    let long = upgrade("tidegate.v1", &format!("Cookie: token={}{}\r\n", fresh("al", 3600), "x".repeat(9000)));
    let twice = upgrade("tidegate.v1", &format!("Authorization: {bearer}\r\nAuthorization: Bearer {}\r\n", fresh("al", 3600)));
    for (request, expected) in [(query, 400), (subprotocol, 400), (path, 404), (long, 431), (twice, 400)] {
        let (code, text) = answer(&request);
        assert_eq!(code, expected, "{text}");
        answers.push_str(&text);
    }
    let mut admin = TcpStream::connect(gateway.admin_address()).expect("the admin listener");
    write!(
        admin,
        "GET /v1/none?token={0} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {0}\r\nConnection: close\r\n\r\n",
        fresh("al", 3600)
    )
    .expect("it reads");
    admin.read_to_string(&mut answers).expect("it answers");
    // A key that is not here: it is asked for.
    let asked = service.asked();
    eventually("a question for a key that is missed", || {
        let missing = Signer::Stranger.token(r#"{"alg":"ES256","kid":"missing"}"#, &good_claims(unix_s() + 3600));
        let mut raw = Raw::open(&gateway, Encoding::Binary);
        raw.hello(&missing, "1");
        assert!([Some(4401), Some(4503)].contains(&raw.closed()));
        foreign.push(missing);
        (service.asked() > asked).then_some(())
    });
    // Until the webhook is left alone, which says why.
    eventually("the end of the patience", || {
        let mut raw = Raw::open(&gateway, Encoding::Json);
        raw.hello(&fresh_opaque("fail"), "1");
        assert_eq!(raw.closed(), Some(4503));
        gateway.log().contains("does not answer").then_some(())
    });
    answers.push_str(&shown(&gateway));
    let log = eventually("the last line", || {
        Some(gateway.log()).filter(|log| log.contains("query_not_allowed") && log.contains("too_large"))
    });
    for said in ["DEBUG", "INFO", "says nothing about a token", "status 503"] {
        assert!(log.contains(said), "a run at level trace: {said}: {log}");
    }
    assert!(tokens.len() == 19 && foreign.len() > 10 && opaque.len() > 25);
    not_told(&log, &answers, tokens.iter().chain(&foreign).chain(&opaque));
}

/// A panic while a token is in hand, on a reactor or on a thread that judges: the crash record, the log around it and what operators are
/// shown do not tell the token. The panic is planted, and strikes whoever judges this token.
#[test]
fn a_panic_with_a_token_in_hand_does_not_tell_it() {
    let (service, key) = (service(), key_file("ed.pem"));
    let webhook_url = service.url("/judge");
    let of_key = Signer::Ed.token(Signer::Ed.header(), &good_claims(unix_s() + 3600));
    let opaque = "good-6d0e1f4c5b7a8d9e0f1a2b3c4d5e6f70";
    let of_webhook = [("auth.webhook_url", &*webhook_url)];
    let of_keys = [("auth.keys", &*key), ("auth.audience", AUDIENCE)];
    type Settings<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&str, Settings<'_>, &str, u16); 3] =
        [(opaque, &[], "reactor-0", 1011), (opaque, &of_webhook, "hook-0", 4503), (&of_key, &of_keys, "auth-0", 4503)];
    for (token, settings, thread, code) in cases {
        let one = [
            ("reactors", "1"),
            ("log.level", "trace"),
            ("log.trace_every", "1"),
            ("auth.webhook_threads", "1"),
            ("auth.threads", "1"),
        ];
        let gateway = Gateway::within(&["env", &format!("FAULT_PANIC_OVER={token}")], &[&one, settings].concat());
        for encoding in ENCODINGS {
            let mut said = Raw::open(&gateway, encoding);
            said.hello(token, "1");
            assert_eq!(said.closed(), Some(code), "{thread}");
            let mut borne = bearing(&gateway, encoding, &format!("Bearer {token}"));
            borne.hello("", "1");
            assert_eq!(borne.closed(), Some(code), "{thread}");
            let mut al = Raw::connect(&gateway, encoding, "al", "1");
            al.put(&ClientFrame::Auth { rid: 7, token: token.into() });
            match code {
                1011 => assert_eq!(al.closed(), Some(code)),
                _ => assert_eq!(al.error().code, 5002),
            }
        }
        let log = eventually("six crash records", || {
            Some(gateway.log()).filter(|log| log.matches("panicked: a defect was planted").count() == 6)
        });
        for record in log.lines().filter(|line| line.contains("panicked: ")) {
            assert!(record.contains(&format!(r#""thread":"{thread}""#)), "{record}");
        }
        not_told(&log, &shown(&gateway), [&token.to_owned()]);
    }
}

/// An upgraded connection that bears a token.
fn bearing(gateway: &Gateway, encoding: Encoding, header: &str) -> Raw {
    let stream = TcpStream::connect(gateway.listen).expect("the gateway listens");
    Raw::open_on(stream, encoding, &[("Authorization", header)])
}

/// What operators are shown.
fn shown(gateway: &Gateway) -> String {
    let pages = ["/metrics", "/v1/connections", "/v1/config", "/v1/users/al", "/v1/memory", "/v1/version", "/readyz"];
    let shown = pages.map(|page| gateway.admin("GET", page, "").1).concat();
    assert!(shown.contains("tidegate_connections_open"), "{shown}");
    shown
}

/// Neither a token nor a part of one that is worth something stands in the log, or in an answer.
fn not_told<'t>(log: &str, answers: &str, tokens: impl IntoIterator<Item = &'t String>) {
    let parts = tokens.into_iter().flat_map(|token| token.split('.').skip(1).chain(token.split('-').skip(1)).chain([&**token]));
    for part in parts.filter(|part| part.len() >= 16) {
        assert!(!log.contains(part), "a token in the log: {part}");
        assert!(!answers.contains(part), "a token in an answer: {part}");
    }
}
