//! Tokens of public keys, through the real binary: which pass, which do not and what their client is told, how keys change, and what
//! happens when more come than can be judged.

mod support;
#[path = "support/tokens.rs"]
mod tokens;

use std::fs;
use std::net::TcpListener;

use support::eventually;
use support::gateway::{Gateway, unix_s};
use support::raw::{ENCODINGS, Raw};
use tidegate::config::Secret;
use tidegate::session::auth::{AuthError, Identity, Verifier};
use tidegate::session::keys::Keys;
use tidegate::wire::envelope::{ClientFrame, Encoding, ServerFrame, page_flags};
use tokens::{AUDIENCE, Signer, bad_tokens, good_claims, key_file};

const FILES: [&str; 5] = ["rsa.pem", "ec.pem", "ec2.pem", "ed.pem", "jwks.json"];

fn files() -> String {
    FILES.map(key_file).join(",")
}

fn gateway() -> Gateway {
    Gateway::with(&[("auth.keys", &files()), ("auth.audience", AUDIENCE)])
}

/// The verdict on `token` shown by device `1`, by the library alone.
fn verdict(secret: &Secret, token: &str) -> Result<Identity, AuthError> {
    let mut keys = Keys::default();
    for name in FILES {
        let text = fs::read_to_string(key_file(name)).expect("a file of the tests");
        keys.add(Keys::read(name, &text, None).expect("good keys")).expect("good keys");
    }
    let verifier = Verifier::with_public_keys(Some(secret), vec![AUDIENCE.to_owned()], 5);
    let now_ms = unix_s() * 1000;
    let read = if verifier.defers(token) { verifier.read_public(&keys, token, now_ms) } else { verifier.read(token, now_ms) };
    read?.shown_by(|device| device == "1")
}

/// A token of each algorithm passes, by PEM and by JWKS, with a kid or without where there is no choice; the shared secret goes on
/// counting beside them. Headers that name addresses are not read.
#[test]
fn each_algorithm_passes() {
    let gateway = gateway();
    let later = unix_s() + 3600;
    let good = good_claims(later);
    let of_a = good.replace('}', r#","iss":"https://a.example"}"#);
    let many = good.replace(r#""tidegate""#, r#"["other","tidegate"]"#).replace('}', r#","iat":1,"nbf":1,"dev":"1"}"#);
    let tokens = [
        ("RS256", Signer::Rsa.token(Signer::Rsa.header(), &good)),
        ("ES256", Signer::Ec.token(Signer::Ec.header(), &good)),
        ("EdDSA", Signer::Ed.token(Signer::Ed.header(), &good)),
        ("no kid", Signer::Ed.token(r#"{"alg":"EdDSA"}"#, &good)),
        ("an issuer of its own", Signer::Ec.token(r#"{"alg":"ES256","kid":"shared"}"#, &of_a)),
        ("an issuer nobody asks for", Signer::Ed.token(Signer::Ed.header(), &of_a)),
        ("many claims", Signer::Rsa.token(Signer::Rsa.header(), &many)),
        ("an address", Signer::Ec.token(r#"{"alg":"ES256","kid":"ec","jku":"http://127.0.0.1:1/","typ":"at+jwt"}"#, &good)),
        ("the secret", gateway.token("al")),
    ];
    for encoding in ENCODINGS {
        for (name, token) in &tokens {
            let mut raw = Raw::open(&gateway, encoding);
            raw.hello(token, "1");
            assert_eq!(raw.welcome().user, "al", "{name}");
        }
    }
    // All but those of the secret were judged elsewhere.
    assert_eq!(gateway.metric("tidegate_tokens_asked_total"), 2.0 * (tokens.len() - 1) as f64);
}

/// The table of bad tokens: the verdict of each, and what its client sees. None of them makes the gateway ask anybody.
#[test]
fn bad_tokens_are_refused() {
    let gateway = gateway();
    let trap = TcpListener::bind("127.0.0.1:0").expect("a port");
    trap.set_nonblocking(true).expect("a socket");
    let url = format!("http://{}/jwks.json", trap.local_addr().expect("a port"));
    let secret = Secret::new(b"0123456789abcdef0123456789abcdef".to_vec()).expect("long enough");
    let table = bad_tokens(unix_s(), &url, secret.as_bytes());
    eprintln!("{} bad tokens", table.len());
    assert!(table.len() >= 60);
    for bad in &table {
        let expected = if bad.code == 2002 { AuthError::Expired } else { AuthError::Invalid };
        assert_eq!(verdict(&secret, &bad.token), Err(expected), "{}", bad.name);
        for encoding in ENCODINGS {
            let mut raw = Raw::open(&gateway, encoding);
            raw.hello(&bad.token, "1");
            let error = raw.error();
            assert_eq!((error.rid, error.code, error.flags), (0, bad.code, page_flags::ERROR_CLOSING), "{}", bad.name);
            assert_eq!(raw.closed(), Some(4401), "{}", bad.name);
        }
    }
    assert!(trap.accept().is_err(), "somebody asked the address of a token");
    assert_eq!(gateway.metric("tidegate_tokens_unjudged_total"), 0.0);
}

/// AUTH with a token of a public key: good ones prolong, others are refused with their rid, and what was asked behind is answered too.
#[test]
fn a_session_is_renewed_by_a_public_key() {
    let gateway = gateway();
    for encoding in ENCODINGS {
        let mut al = Raw::open(&gateway, encoding);
        al.hello(&Signer::Ec.token(Signer::Ec.header(), &good_claims(unix_s() + 600)), "1");
        al.welcome();
        let later = unix_s() + 7200;
        let bo = good_claims(later).replace("\"al\"", "\"bo\"");
        let cases = [
            (Signer::Stranger.token(Signer::Ec.header(), &good_claims(later)), 2001),
            (Signer::Ed.token(Signer::Ed.header(), &bo), 2001),
            (Signer::Ed.token(Signer::Ed.header(), &good_claims(later).replace('}', r#","dev":"2"}"#)), 2001),
            (Signer::Ed.token(Signer::Ed.header(), &good_claims(unix_s() - 60)), 2002),
        ];
        for (rid, (token, code)) in (10..).zip(cases) {
            al.put(&ClientFrame::Auth { rid, token: token.into() });
            let error = al.error();
            assert_eq!((error.rid, error.code, error.flags), (rid, code, 0));
        }
        let token = Signer::Rsa.token(Signer::Rsa.header(), &good_claims(later));
        // A frame that breaks a rule comes after the answer to what was asked before it.
        al.put_all(&[
            ClientFrame::Auth { rid: 20, token: token.into() },
            ClientFrame::Read { rid: 0, conv: "d:al:bo".into(), seq: 1 },
        ]);
        let until = al.wait("OK", |frame| match frame {
            ServerFrame::Ok { rid: 20, value } => Some(*value),
            _ => None,
        });
        assert_eq!(until, later * 1000);
        assert_eq!((al.error().code, al.closed()), (1002, Some(4400)));
    }
}

/// While a token is judged nothing else may come: the rule of HELLO holds, whoever judges.
#[test]
fn who_does_not_wait_for_welcome_is_refused() {
    let gateway = gateway();
    let token = Signer::Rsa.token(Signer::Rsa.header(), &good_claims(unix_s() + 600));
    for encoding in ENCODINGS {
        let mut raw = Raw::open(&gateway, encoding);
        raw.put_all(&[support::raw::hello(&token, "1"), ClientFrame::Ping { pos: 0 }]);
        assert_eq!((raw.error().code, raw.closed()), (1004, Some(4400)));
    }
    Raw::connect(&gateway, Encoding::Binary, "al", "1");
}

/// Keys are taken from files as they are now: a new key counts and an old one ends, a file with a mistake changes nothing and is told,
/// SIGHUP looks at once.
#[test]
fn keys_change_with_their_files() {
    let dir = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("keys-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory for the test");
    let file = dir.join("kid.pem");
    fs::copy(key_file("ec.pem"), &file).expect("a file of the test");
    let gateway = Gateway::with(&[("auth.keys", file.to_str().expect("text")), ("auth.audience", AUDIENCE)]);
    let greeted = |signer: Signer, header: &str| {
        let mut raw = Raw::open(&gateway, Encoding::Binary);
        raw.hello(&signer.token(header, &good_claims(unix_s() + 600)), "1");
        match raw.next() {
            support::raw::Next::Frame(ServerFrame::Welcome(_)) => true,
            support::raw::Next::Frame(ServerFrame::Error { code: 2001, .. }) => false,
            other => panic!("{other:?}"),
        }
    };
    let ec = |signer| greeted(signer, r#"{"alg":"ES256","kid":"kid"}"#);
    assert!(ec(Signer::Ec) && !ec(Signer::Ec2));
    // In the manner of an editor: another file is put in its place.
    let put = |name: &str| {
        fs::copy(key_file(name), dir.join("draft")).expect("a file of the test");
        fs::rename(dir.join("draft"), &file).expect("a file of the test");
    };
    put("ec2.pem");
    eventually("the new key", || ec(Signer::Ec2).then_some(()));
    assert!(!ec(Signer::Ec));
    for (name, told) in [("rsa1024.pem", "1024 bits"), ("ed.private.pem", "private key")] {
        put(name);
        eventually("the complaint", || {
            (gateway.log().contains(told) && gateway.log().contains("old ones stay in force")).then_some(())
        });
        assert!(ec(Signer::Ec2), "the old key stays in force");
    }
    put("ed.pem");
    let hangup = std::process::Command::new("kill").args(["-HUP", &gateway.pid().to_string()]).status();
    assert!(hangup.expect("kill runs").success());
    eventually("the new algorithm", || greeted(Signer::Ed, r#"{"alg":"EdDSA","kid":"kid"}"#).then_some(()));
    assert!(!ec(Signer::Ec2) && !gateway.log().contains("PRIVATE"));
    drop(fs::remove_dir_all(&dir));
}
