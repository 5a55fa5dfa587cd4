//! Tokens stay with their owners: whatever is sent where, no log line, metric or answer shows one.

mod support;
#[path = "support/tokens.rs"]
mod tokens;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use support::eventually;
use support::gateway::unix_s;
use support::peer::{Peer, status, upgrade};
use support::raw::{ENCODINGS, Raw};
use support::secure::{self, Authority, BOTH};
use tidegate::wire::envelope::{ClientFrame, Encoding, ServerFrame};
use tokens::{AUDIENCE, Signer, good_claims, key_file};

/// A run at level trace in which tokens, good and bad, of the secret and of a public key, come everywhere they could, with TLS and without:
/// not one of them, nor a part of one, is found in what the gateway wrote or shows.
#[test]
fn no_token_is_written_anywhere() {
    let authority = Authority::new();
    authority.issue("a", &["a.example"]);
    let key = key_file("ed.pem");
    let settings = [("log.level", "trace"), ("log.trace_every", "1"), ("auth.keys", &*key), ("auth.audience", AUDIENCE)];
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
    }
    for (token, expected) in
        [(fresh("al", 3600), "welcome"), (fresh_of_key(3600), "welcome"), (fresh("al", -60), "2002"), (fresh_of_key(-60), "2002")]
    {
        let config = Arc::new(authority.client(&BOTH, None));
        let mut al = secure::upgraded(secure::connect(secure, &config, "a.example").expect("a connection"));
        let hello = serde_json::json!({ "t": "hello", "device": "tls", "token": token }).to_string();
        al.send(tungstenite::Message::text(hello)).expect("it takes a HELLO");
        let answer = al.read().expect("an answer");
        assert!(answer.to_text().expect("text").contains(expected), "{answer:?}");
    }
    // In the header; then HELLO names none.
    let bearer = format!("Bearer {}", fresh("cy", 3600));
    let stream = TcpStream::connect(gateway.listen).expect("the gateway listens");
    let mut cy = Raw::open_on(stream, Encoding::Binary, &[("Authorization", &bearer)]);
    cy.hello("", "1");
    cy.welcome();
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
    for page in ["/metrics", "/v1/connections", "/v1/config", "/v1/users/al", "/readyz"] {
        answers.push_str(&gateway.admin("GET", page, "").1);
    }
    let log = eventually("the last line", || {
        Some(gateway.log()).filter(|log| log.contains("query_not_allowed") && log.contains("too_large"))
    });
    for level in ["DEBUG", "INFO"] {
        assert!(log.contains(level), "a run at level trace: {log}");
    }
    assert!(answers.contains("tidegate_connections_open") && tokens.len() == 19 && foreign.len() == 10);
    for part in tokens.iter().chain(&foreign).flat_map(|token| token.split('.').skip(1).chain([token.as_str()])) {
        assert!(!log.contains(part), "a token in the log: {part}");
        assert!(!answers.contains(part), "a token in an answer: {part}");
    }
}
