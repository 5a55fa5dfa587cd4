//! Tokens of public keys, through the real binary: which pass, which do not and what their client is told, how keys change, and what
//! happens when more come than can be judged.

#[path = "support/service.rs"]
mod service;
mod support;
#[path = "support/tokens.rs"]
mod tokens;

use std::fs;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};

use service::Service;
use support::eventually;
use support::gateway::{Gateway, unix_s};
use support::raw::{ENCODINGS, Next, Raw};
use support::secure::Authority;
use tidegate::config::Secret;
use tidegate::limits::JUDGE_LANE_MAX;
use tidegate::session::auth::{AuthError, Identity, Verifier};
use tidegate::session::keys::Keys;
use tidegate::wire::envelope::{ClientFrame, Encoding, ServerFrame, page_flags};
use tokens::{AUDIENCE, Bad, Signer, bad_tokens, good_claims, key_file};

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
    let read =
        if verifier.defers(token).is_some() { verifier.read_public(&keys, token, now_ms) } else { verifier.read(token, now_ms) };
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
    assert_eq!(gateway.counted("tidegate_tokens_asked_total"), 2.0 * (tokens.len() - 1) as f64);
}

/// The table of bad tokens: the verdict of each, and what its client sees.
#[test]
fn bad_tokens_are_refused() {
    let gateway = gateway();
    let secret = Secret::new(b"0123456789abcdef0123456789abcdef".to_vec()).expect("long enough");
    let table = bad_tokens(unix_s(), "http://127.0.0.1:1/jwks.json", secret.as_bytes());
    eprintln!("{} bad tokens", table.len());
    assert!(table.len() >= 60);
    for bad in &table {
        let expected = if bad.code == 2002 { AuthError::Expired } else { AuthError::Invalid };
        assert_eq!(verdict(&secret, &bad.token), Err(expected), "{}", bad.name);
        for encoding in ENCODINGS {
            is_refused(&gateway, encoding, bad);
        }
    }
    assert_eq!(gateway.counted("tidegate_tokens_unjudged_total"), 0.0);
}

/// What the client of a bad token sees.
fn is_refused(gateway: &Gateway, encoding: Encoding, bad: &Bad) {
    let mut raw = Raw::open(gateway, encoding);
    raw.hello(&bad.token, "1");
    let error = raw.error();
    assert_eq!((error.rid, error.code, error.flags), (0, bad.code, page_flags::ERROR_CLOSING), "{}", bad.name);
    assert_eq!(raw.closed(), Some(4401), "{}", bad.name);
}

/// Nothing in a token is taken for an address. A gateway that fetches keys, and that nothing else keeps from asking anybody, is shown the
/// table, before it has the keys and afterwards, with addresses of a trap and of other pages of the service that has the keys; and good
/// tokens that name them. The trap hears nothing, and the service only what the settings say.
#[test]
fn no_address_is_taken_from_a_token() {
    let set = fs::read_to_string(key_file("jwks.json")).expect("a file of the tests");
    let said = Arc::new(Mutex::new((500, String::new())));
    let service = Service::start({
        let said = said.clone();
        move |_| Some(said.lock().unwrap().clone())
    });
    let trap = Service::start(|_| None);
    let (far, near) = (trap.url("/jwks.json"), service.url("/elsewhere/jwks.json"));
    let gateway = Gateway::with(&[
        ("auth.keys", &["rsa.pem", "ec.pem", "ec2.pem", "ed.pem"].map(key_file).join(",")),
        ("auth.jwks_url", &service.url("/jwks.json")),
        ("auth.jwks_every_s", "86400"),
        ("auth.jwks_again_s", "3600"),
        ("auth.audience", AUDIENCE),
        ("confine", "false"),
    ]);
    let secret = Secret::new(b"0123456789abcdef0123456789abcdef".to_vec()).expect("long enough");
    let tables = [&far, &near].map(|url| bad_tokens(unix_s(), url, secret.as_bytes()));
    let hosts = [trap.address, service.address].map(|address| address.to_string());
    let hang_up = || {
        let before = service.asked();
        gateway.signal("HUP");
        eventually("the next question", || (service.asked() > before).then_some(()));
    };
    // While a key may exist its token is not called bad, and the keys are asked for.
    let mut unjudged = 0;
    for (table, host) in tables.iter().zip(&hosts) {
        let naming: Vec<&Bad> = table.iter().filter(|bad| bad.says(host)).collect();
        assert!(naming.len() >= 30, "{} tokens name {host}", naming.len());
        for (bad, encoding) in naming.iter().zip(ENCODINGS.into_iter().cycle()) {
            match greeted(&gateway, encoding, &bad.token) {
                Err((5002, Some(4503))) => unjudged += 1,
                told => assert_eq!(told, Err((2001, Some(4401))), "{}", bad.name),
            }
        }
        hang_up();
    }
    assert!(unjudged >= 20, "{unjudged} tokens name keys that are not here");
    *said.lock().unwrap() = (200, set);
    gateway.signal("HUP");
    eventually("the keys", || gateway.is_ready().then_some(()));
    for (table, host) in tables.iter().zip(&hosts) {
        // The others name no address, and are the same in both.
        let far = *host == hosts[0];
        for (bad, encoding) in table.iter().filter(|bad| far || bad.says(host)).zip(ENCODINGS.into_iter().cycle()) {
            is_refused(&gateway, encoding, bad);
        }
    }
    let good = good_claims(unix_s() + 3600);
    for url in [&far, &near] {
        for name in ["jku", "x5u", "iss", "url", "jwks_uri"] {
            let header = Signer::Ec.header().replace('}', &format!(r#","{name}":{url:?}}}"#));
            let claims = good.replace('}', &format!(r#","{name}":{url:?},"jti":{url:?}}}"#));
            let token = Signer::Ec.token(&header, &claims);
            assert_eq!(greeted(&gateway, Encoding::Binary, &token), Ok("al".to_owned()), "{name}");
        }
    }
    // The second question comes after all that the first brought about.
    hang_up();
    hang_up();
    assert_eq!((trap.connections(), trap.asked()), (0, 0), "somebody asked the address of a token");
    assert!(service.lines().iter().eq(["GET /jwks.json HTTP/1.1"]), "{:?}", service.lines());
}

/// More tokens of a public key at once than may wait for those who judge: whoever finds no place is told to come back, each at another
/// time, and nobody that its token is bad who was not judged. Whoever comes afterwards is judged. All of them stand there when the gateway
/// looks, and the one thread that judges gets the one processor when nobody else wants it.
#[test]
fn more_tokens_than_may_wait_are_not_called_bad() {
    const ALL: usize = 2 * JUDGE_LANE_MAX + 88;
    let allowed = fs::read_to_string("/proc/self/status").expect("Linux says it");
    let allowed = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("Linux says it");
    let processor = allowed.trim().split([',', '-']).next().expect("one at least");
    let settings = [
        ("reactors", "1"),
        ("auth.keys", &*key_file("rsa.pem")),
        ("auth.audience", AUDIENCE),
        ("auth.threads", "1"),
        ("limits.accept_per_s", "0"),
        ("limits.handshakes_max", "1000"),
        ("protocol.hello_ms", "60000"),
    ];
    let gateway = Gateway::within(&["taskset", "-c", processor], &settings);
    let threads =
        fs::read_dir(format!("/proc/{}/task", gateway.pid())).expect("it runs").map(|task| task.expect("a thread").path());
    let judge = threads.into_iter().find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "auth-0\n"));
    let judge = judge.expect("a thread that judges").file_name().and_then(|id| id.to_str()).expect("a number").to_owned();
    assert!(Command::new("chrt").args(["--idle", "--pid", "0", &judge]).status().expect("chrt runs").success());

    let later = unix_s() + 3600;
    let token = |number: usize| {
        let claims = good_claims(later).replace("\"al\"", &format!("\"u{number}\""));
        let token = Signer::Rsa.token(Signer::Rsa.header(), &claims);
        // Every other one is forged.
        let (message, signature) = token.rsplit_once('.').expect("three parts");
        let first = if signature.starts_with('A') { 'B' } else { 'A' };
        if number.is_multiple_of(2) { token } else { format!("{message}.{first}{}", &signature[1..]) }
    };
    let tokens: Vec<String> = (0..ALL).map(token).collect();
    let mut waiting: Vec<Raw> = (0..ALL).map(|number| Raw::open(&gateway, ENCODINGS[number / 2 % 2])).collect();
    gateway.signal("STOP");
    waiting.iter_mut().zip(&tokens).for_each(|(raw, token)| raw.hello(token, "1"));
    gateway.signal("CONT");
    let (mut waits_ms, mut unjudged) = (Vec::new(), Vec::new());
    for (number, raw) in waiting.iter_mut().enumerate() {
        match raw.next() {
            Next::Frame(ServerFrame::Welcome(welcome)) => assert_eq!((number % 2, &*welcome.user), (0, &*format!("u{number}"))),
            Next::Frame(ServerFrame::Error { code: 5002, retry_ms, .. }) => {
                assert_eq!(raw.closed(), Some(4503));
                waits_ms.push(retry_ms);
                unjudged.push(number);
            }
            Next::Frame(ServerFrame::Error { code: 2001, .. }) => assert_eq!((number % 2, raw.closed()), (1, Some(4401))),
            other => panic!("{number}: {other:?}"),
        }
    }
    let asked = gateway.counted("tidegate_tokens_asked_total");
    eprintln!("{} of {ALL} were not judged, {asked} found a place", unjudged.len());
    assert!(asked >= JUDGE_LANE_MAX as f64 && asked < ALL as f64, "{asked} found a place");
    assert_eq!(gateway.counted("tidegate_tokens_unjudged_total"), unjudged.len() as f64);
    waits_ms.sort_unstable();
    let (least, most) = (waits_ms[0], waits_ms[waits_ms.len() - 1]);
    assert!(least < most && (250..=312).contains(&least) && (250..=312).contains(&most), "{waits_ms:?}");
    // It has its share of the processor again.
    assert!(Command::new("chrt").args(["--other", "--pid", "0", &judge]).status().expect("chrt runs").success());
    for number in unjudged {
        let expected = if number % 2 == 0 { Ok(format!("u{number}")) } else { Err((2001, Some(4401))) };
        assert_eq!(greeted(&gateway, Encoding::Binary, &tokens[number]), expected);
    }
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
    let passes = |signer: Signer, header: &str| match greeted(
        &gateway,
        Encoding::Binary,
        &signer.token(header, &good_claims(unix_s() + 600)),
    ) {
        Ok(_) => true,
        Err(told) => {
            assert_eq!(told, (2001, Some(4401)));
            false
        }
    };
    let ec = |signer| passes(signer, r#"{"alg":"ES256","kid":"kid"}"#);
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
    gateway.signal("HUP");
    eventually("the new algorithm", || passes(Signer::Ed, r#"{"alg":"EdDSA","kid":"kid"}"#).then_some(()));
    assert!(!ec(Signer::Ec2) && !gateway.log().contains("PRIVATE"));
    drop(fs::remove_dir_all(&dir));
}

/// What a HELLO with `token` comes to: the user of WELCOME, or the code of ERROR and of the close.
fn greeted(gateway: &Gateway, encoding: Encoding, token: &str) -> Result<String, (u16, Option<u16>)> {
    let mut raw = Raw::open(gateway, encoding);
    raw.hello(token, "1");
    match raw.next() {
        Next::Frame(ServerFrame::Welcome(welcome)) => Ok(welcome.user.into_owned()),
        Next::Frame(ServerFrame::Error { code, .. }) => Err((code, raw.closed())),
        other => panic!("{other:?}"),
    }
}

/// Keys are fetched from the address of the settings and no other. Until it has answered once nobody's token is called bad; afterwards
/// what it answers wrongly changes nothing, and new keys count.
#[test]
fn keys_are_fetched_from_one_address() {
    let said = Arc::new(Mutex::new((500, String::new())));
    let service = Service::start({
        let said = said.clone();
        move |_| Some(said.lock().unwrap().clone())
    });
    let say = |status: u16, text: &str| *said.lock().unwrap() = (status, text.to_owned());
    let gateway = Gateway::with(&[
        ("auth.jwks_url", &service.url("/jwks.json")),
        ("auth.jwks_again_s", "3600"),
        ("auth.audience", AUDIENCE),
    ]);
    let good = good_claims(unix_s() + 600).replace('}', r#","iss":"https://a.example"}"#);
    let token = Signer::Ec.token(r#"{"alg":"ES256","kid":"shared"}"#, &good);
    let unknown = Signer::Ec.token(r#"{"alg":"ES256","kid":"unknown"}"#, &good);
    let failures = || gateway.metric("tidegate_jwks_failures_total");
    // Counted when an answer has been judged, so what is told next is for the next question.
    let judged = |before: f64| eventually("a failure", || (failures() > before).then_some(()));
    judged(0.0);
    for encoding in ENCODINGS {
        assert_eq!(greeted(&gateway, encoding, &token), Err((5002, Some(4503))));
    }
    assert!(!gateway.is_ready() && gateway.metric("tidegate_jwks_fetched_timestamp_seconds") == 0.0);
    let set = fs::read_to_string(key_file("jwks.json")).expect("a file of the tests");
    let refusals = [(404, set.clone()), (302, set.clone()), (200, "<html>".to_owned()), (200, "x".repeat(300_000))];
    for (status, text) in &refusals {
        say(*status, text);
        let before = failures();
        gateway.signal("HUP");
        judged(before);
        assert_eq!(greeted(&gateway, Encoding::Binary, &token), Err((5002, Some(4503))), "{status}");
    }
    say(200, &set);
    gateway.signal("HUP");
    eventually("the keys", || greeted(&gateway, Encoding::Binary, &token).ok());
    eventually("readiness", || gateway.is_ready().then_some(()));
    assert!(gateway.metric("tidegate_jwks_fetched_timestamp_seconds") > 0.0);
    let failed = failures();
    assert!(failed >= 5.0);
    assert_eq!(greeted(&gateway, Encoding::Json, &unknown), Err((2001, Some(4401))));
    for (status, text) in &refusals {
        say(*status, text);
        let before = failures();
        gateway.signal("HUP");
        judged(before);
        assert_eq!(greeted(&gateway, Encoding::Binary, &token), Ok("al".to_owned()), "{status}");
    }
    assert!(failures() >= failed + 4.0);
    eventually("readiness", || gateway.is_ready().then_some(()));
    // The two issuers change places: the same token is one of a key that is gone.
    say(200, &set.replace("https://a.", "https://c.").replace("https://b.", "https://a.").replace("https://c.", "https://b."));
    gateway.signal("HUP");
    eventually("the change", || (greeted(&gateway, Encoding::Binary, &token) == Err((2001, Some(4401)))).then_some(()));
}

/// The webhook judges tokens for which there is no kind of key, on connections that are kept; what it does not say is no bad token.
/// When it stops answering it is left alone for a while, and who is known goes on coming in.
#[test]
fn a_webhook_judges_what_no_key_is_for() {
    let later = unix_s() + 3600;
    let service = Service::start(move |body| {
        let asked: serde_json::Value = serde_json::from_str(body).expect("JSON");
        match asked["token"].as_str().expect("a token") {
            "al" => Some((200, format!(r#"{{"user":"al","exp":{later}}}"#))),
            "old" => Some((200, r#"{"user":"al","exp":1}"#.to_owned())),
            "tied" => Some((200, format!(r#"{{"user":"al","exp":{later},"device":"2"}}"#))),
            "bad" => Some((401, String::new())),
            "banned" => Some((403, String::new())),
            "nonsense" => Some((200, "{}".to_owned())),
            token if token.starts_with("fail") => Some((503, String::new())),
            _ => None,
        }
    });
    let gateway = Gateway::with(&[
        ("auth.webhook_url", &service.url("/auth?x=1")),
        ("auth.webhook_timeout_ms", "3000"),
        ("protocol.hello_ms", "60000"),
        ("auth.webhook_threads", "1"),
        ("auth.webhook_cache_s", "600"),
        ("auth.keys", &key_file("ec.pem")),
    ]);
    eventually("readiness", || gateway.is_ready().then_some(()));
    let of = |encoding, token: &str| greeted(&gateway, encoding, token);
    for encoding in ENCODINGS {
        assert_eq!(of(encoding, "al"), Ok("al".to_owned()));
        assert_eq!(of(encoding, "old"), Err((2002, Some(4401))));
        for token in ["tied", "bad", "banned"] {
            assert_eq!(of(encoding, token), Err((2001, Some(4401))), "{token}");
        }
    }
    // "old" has ended and is asked for again; the others are remembered.
    assert_eq!((service.asked(), service.connections()), (6, 1));
    // Tokens that a key here is for, or that are none, are not shown to it.
    let mine = Signer::Ec.token(Signer::Ec.header(), &good_claims(later).replace(r#","aud":"tidegate""#, ""));
    let forged = Signer::Stranger.token(Signer::Ec.header(), &good_claims(later));
    let bent = format!("{}x", gateway.token("al"));
    assert_eq!((of(Encoding::Json, &gateway.token("al")), of(Encoding::Json, &mine)), (Ok("al".to_owned()), Ok("al".to_owned())));
    for token in [&forged, &bent, "", &"x".repeat(9000)] {
        assert_eq!(of(Encoding::Binary, token), Err((2001, Some(4401))), "{token:.20}");
    }
    assert_eq!(service.asked(), 6);
    // AUTH by the webhook.
    let mut al = Raw::open(&gateway, Encoding::Json);
    al.hello("al", "1");
    al.welcome();
    for (rid, token, code) in [(1, "bad", 2001), (2, "nonsense", 5002), (3, "silence", 5002)] {
        al.put(&ClientFrame::Auth { rid, token: token.into() });
        let error = al.error();
        assert_eq!((error.rid, error.code, error.flags & page_flags::ERROR_CLOSING), (rid, code, 0), "{token}");
    }
    // One failure so far, for nonsense is none; four more, and it is left alone.
    for token in ["silence too", "fail", "fail too", "fail again"] {
        assert_eq!(of(Encoding::Binary, token), Err((5002, Some(4503))), "{token}");
    }
    let before = service.asked();
    assert_eq!((before, gateway.metric("tidegate_webhook_failures_total")), (12, 5.0));
    for number in 0..20 {
        assert_eq!(of(Encoding::Binary, &format!("fail {number}")), Err((5002, Some(4503))));
    }
    assert!(service.asked() < before + 20, "most of them were not asked about");
    let before = service.asked();
    assert_eq!(of(Encoding::Json, "al"), Ok("al".to_owned()), "who is known comes in");
    assert_eq!(service.asked(), before);
    eventually("a line of the log", || gateway.log().contains("does not answer").then_some(()));
    assert_eq!(gateway.log().matches("does not answer").count(), 1);
    eventually("the end of the pause", || {
        (of(Encoding::Binary, &format!("fail {}", unix_s())).is_err() && service.asked() > before).then_some(())
    });
    assert!(!gateway.log().contains("silence"), "a token stands in the log");
}

/// A token of a key that is not here makes the keys be fetched, and its client come back meanwhile; a key that is still not there is
/// asked for again only after a while.
#[test]
fn a_new_key_is_fetched_when_it_is_shown() {
    let set = fs::read_to_string(key_file("jwks.json")).expect("a file of the tests");
    let said = Arc::new(Mutex::new(set.replace("rsa-a", "rsa-old")));
    let service = Service::start({
        let said = said.clone();
        move |_| Some((200, said.lock().unwrap().clone()))
    });
    let url = service.url("/jwks.json");
    let start = |again_s| {
        let rates = [("auth.jwks_every_s", "86400"), ("auth.jwks_again_s", again_s)];
        let gateway = Gateway::with(&[&rates[..], &[("auth.jwks_url", &url), ("auth.audience", AUDIENCE)]].concat());
        eventually("the keys", || gateway.is_ready().then_some(()));
        gateway
    };
    let claims = good_claims(unix_s() + 600).replace('}', r#","iss":"https://a.example"}"#);
    let token = Signer::Rsa.token(r#"{"alg":"RS256","kid":"rsa-a"}"#, &claims);
    let patient = start("3600");
    assert_eq!(greeted(&patient, Encoding::Binary, &token), Err((2001, Some(4401))), "the keys are as new as can be");
    let eager = start("1");
    let asked = service.asked();
    *said.lock().unwrap() = set;
    for encoding in ENCODINGS {
        let came = eventually("the new key", || match greeted(&eager, encoding, &token) {
            Ok(user) => Some(user),
            // Within the second after a fetch the set is taken for new.
            Err(told) => {
                assert!([(5002, Some(4503)), (2001, Some(4401))].contains(&told), "{told:?}");
                None
            }
        });
        assert_eq!(came, "al");
    }
    assert!(service.asked() > asked);
    drop(eager);
    let before = service.asked();
    for number in 0..20 {
        let made_up = Signer::Stranger.token(&format!(r#"{{"alg":"ES256","kid":"{number}"}}"#), &claims);
        assert_eq!(greeted(&patient, Encoding::Binary, &made_up), Err((2001, Some(4401))));
    }
    assert_eq!(service.asked(), before, "nobody was asked for them");
}

/// Keys and verdicts come over https from who shows a certificate for the name, signed by an authority that was named; from nobody else.
#[test]
fn https_asks_only_whom_it_trusts() {
    let (authority, other) = (Authority::new(), Authority::new());
    authority.issue("service", &["localhost"]);
    authority.issue("elsewhere", &["elsewhere.example"]);
    let later = unix_s() + 3600;
    let set = fs::read_to_string(key_file("jwks.json")).expect("a file of the tests");
    let answer =
        move |body: &str| Some((200, if body.is_empty() { set.clone() } else { format!(r#"{{"user":"bo","exp":{later}}}"#) }));
    let service = Service::secure(&authority, "service", answer.clone());
    let misnamed = Service::secure(&authority, "elsewhere", answer);
    let start = |service: &Service, ca_file: &str| {
        let port = service.address.port();
        let (keys, hook) = (format!("https://localhost:{port}/jwks"), format!("https://localhost:{port}/judge"));
        let named = [("auth.jwks_url", keys.as_str()), ("auth.webhook_url", &hook), ("auth.ca_file", ca_file)];
        let patient = [("auth.webhook_timeout_ms", "30000"), ("protocol.hello_ms", "60000")];
        Gateway::with(&[&named[..], &patient, &[("auth.audience", AUDIENCE), ("auth.webhook_threads", "1")]].concat())
    };
    let claims = good_claims(later).replace('}', r#","iss":"https://a.example"}"#);
    let token = Signer::Ec.token(r#"{"alg":"ES256","kid":"shared"}"#, &claims);
    let gateway = start(&service, &authority.path("ca.pem"));
    eventually("the keys", || gateway.is_ready().then_some(()));
    for encoding in ENCODINGS {
        assert_eq!(greeted(&gateway, encoding, &token), Ok("al".to_owned()));
        assert_eq!(greeted(&gateway, encoding, "opaque"), Ok("bo".to_owned()));
    }
    assert_eq!(service.asked(), 2);
    for (service, ca_file) in [(&service, other.path("ca.pem")), (&misnamed, authority.path("ca.pem"))] {
        let before = service.asked();
        let gateway = start(service, &ca_file);
        eventually("the complaint", || gateway.log().contains("certificate").then_some(()));
        for token in [&*token, "opaque"] {
            assert_eq!(greeted(&gateway, Encoding::Binary, token), Err((5002, Some(4503))));
        }
        assert!(!gateway.is_ready());
        assert_eq!(service.asked(), before, "nothing is shown to a stranger");
    }
}

/// Whatever the webhook says about tokens that strangers make up, it goes on being asked about others.
#[test]
fn bad_tokens_leave_the_webhook_in_use() {
    let later = unix_s() + 3600;
    let service = Service::start(move |body| {
        let asked: serde_json::Value = serde_json::from_str(body).expect("JSON");
        let token = asked["token"].as_str().expect("a token");
        match token.split_once(' ').and_then(|(status, _)| status.parse().ok()) {
            Some(status) => Some((status, String::new())),
            None => Some((200, format!(r#"{{"user":"{token}","exp":{later}}}"#))),
        }
    });
    let gateway = Gateway::with(&[
        ("auth.webhook_url", &service.url("/")),
        ("auth.webhook_threads", "1"),
        ("auth.webhook_timeout_ms", "30000"),
        ("protocol.hello_ms", "60000"),
    ]);
    for number in 0..6 {
        for status in [400, 404, 422] {
            assert_eq!(greeted(&gateway, Encoding::Json, &format!("{status} {number}")), Err((2001, Some(4401))));
        }
        for status in [200, 302, 405, 429] {
            assert_eq!(greeted(&gateway, Encoding::Json, &format!("{status} {number}")), Err((5002, Some(4503))));
        }
    }
    assert_eq!(service.asked(), 42, "each was asked about");
    assert_eq!(greeted(&gateway, Encoding::Binary, "al"), Ok("al".to_owned()));
    assert_eq!((gateway.metric("tidegate_webhook_failures_total"), gateway.metric("tidegate_webhook_open")), (0.0, 0.0));
}

/// Lets questions wait until the test says otherwise.
#[derive(Clone, Default)]
struct Held(Arc<(Mutex<u32>, Condvar)>);

impl Held {
    /// Waits until one more may pass.
    fn pass(&self) {
        let free = self.0.0.lock().expect("no panic elsewhere");
        *self.0.1.wait_while(free, |free| *free == 0).expect("no panic elsewhere") -= 1;
    }

    /// So many more pass, whether they wait already or come later.
    fn let_pass(&self, count: u32) {
        *self.0.0.lock().expect("no panic elsewhere") += count;
        self.0.1.notify_all();
    }
}

/// A service that calls each token a user and good: `held…` when the test lets it, `fail…` never, `silent…` without a word.
fn holding() -> (Service, Held) {
    let (later, held) = (unix_s() + 3600, Held::default());
    let service = Service::start({
        let held = held.clone();
        move |body| {
            let asked: serde_json::Value = serde_json::from_str(body).expect("JSON");
            let token = asked["token"].as_str().expect("a token");
            match token {
                _ if token.starts_with("fail") => return Some((503, String::new())),
                _ if token.starts_with("silent") => return None,
                _ if token.starts_with("held") => held.pass(),
                _ => {}
            }
            Some((200, format!(r#"{{"user":"{token}","exp":{later}}}"#)))
        }
    });
    (service, held)
}

/// A gateway that asks `service` by three threads and remembers nothing.
fn asking_by_three(service: &Service, timeout_ms: &str) -> Gateway {
    Gateway::with(&[
        ("auth.webhook_url", &service.url("/")),
        ("auth.webhook_threads", "3"),
        ("auth.webhook_timeout_ms", timeout_ms),
        ("auth.webhook_cache_s", "0"),
        ("protocol.hello_ms", "60000"),
    ])
}

/// HELLOs with these tokens, none of them answered yet.
fn shown(gateway: &Gateway, tokens: &[&str]) -> Vec<Raw> {
    let shown = tokens.iter().zip(ENCODINGS.into_iter().cycle()).map(|(token, encoding)| {
        let mut raw = Raw::open(gateway, encoding);
        raw.hello(token, "1");
        raw
    });
    shown.collect()
}

/// As many questions are under way as there are threads, each on a connection of its own that is kept; the next one waits for whoever is
/// free first, and one that takes long keeps nobody else waiting.
#[test]
fn the_webhook_is_asked_by_several_at_once() {
    let (service, held) = holding();
    let gateway = asking_by_three(&service, "30000");
    let mut waiting = shown(&gateway, &["held-1", "held-2", "held-3"]);
    eventually("three questions", || (service.asked() == 3).then_some(()));
    waiting.extend(shown(&gateway, &["held-4"]));
    eventually("the fourth token", || (gateway.metric("tidegate_tokens_asked_total") == 4.0).then_some(()));
    assert_eq!((service.asked(), service.connections()), (3, 3), "one more waits");
    held.let_pass(1);
    eventually("the fourth question", || (service.asked() == 4).then_some(()));
    held.let_pass(3);
    for (raw, user) in waiting.iter_mut().zip(["held-1", "held-2", "held-3", "held-4"]) {
        assert_eq!(raw.welcome().user, user);
    }
    let slow = &mut shown(&gateway, &["held-5"])[0];
    eventually("the slow question", || (service.asked() == 5).then_some(()));
    for number in 0..30 {
        let user = format!("user-{number}");
        assert_eq!(greeted(&gateway, ENCODINGS[number % 2], &user), Ok(user));
    }
    assert_eq!(slow.poll(), None, "it is still being asked about");
    held.let_pass(1);
    assert_eq!(slow.welcome().user, "held-5");
    assert_eq!((service.asked(), service.connections()), (35, 3), "connections are kept");
}

/// Made-up tokens that fill the lane to a slow webhook keep nobody out whose token it called good lately: neither HELLO nor AUTH waits behind
/// them, and nobody is asked again.
#[test]
fn made_up_tokens_keep_out_nobody_who_is_known() {
    let (service, held) = holding();
    let gateway = Gateway::with(&[
        ("auth.webhook_url", &service.url("/")),
        ("auth.webhook_threads", "1"),
        ("auth.webhook_timeout_ms", "50000"),
        ("auth.webhook_cache_s", "600"),
        ("protocol.hello_ms", "60000"),
        ("limits.accept_per_s", "0"),
        ("limits.handshakes_max", "1000"),
    ]);
    assert_eq!(greeted(&gateway, Encoding::Binary, "al"), Ok("al".to_owned()));
    let mut strangers = shown(&gateway, &["held-first"]);
    eventually("the slow question", || (service.asked() == 2).then_some(()));
    let made_up: Vec<String> = (0..JUDGE_LANE_MAX + 8).map(|number| format!("held-{number}")).collect();
    strangers.extend(shown(&gateway, &made_up.iter().map(String::as_str).collect::<Vec<_>>()));
    eventually("a full lane", || (gateway.metric("tidegate_tokens_unjudged_total") == 8.0).then_some(()));
    for encoding in ENCODINGS {
        let mut al = Raw::open(&gateway, encoding);
        al.hello("al", "1");
        assert_eq!(al.welcome().user, "al");
        al.put(&ClientFrame::Auth { rid: 7, token: "al".into() });
        al.wait("OK", |frame| matches!(frame, ServerFrame::Ok { rid: 7, .. }).then_some(()));
    }
    assert_eq!(greeted(&gateway, Encoding::Binary, "bo"), Err((5002, Some(4503))), "nobody has said yet who that is");
    assert_eq!((service.asked(), service.connections()), (2, 1));
    assert_eq!(gateway.metric("tidegate_webhook_known_total"), 4.0);
    drop(strangers);
    held.let_pass(1000);
}

/// Threads that ask give up each for itself, and leave the service alone all together: failures in a row are counted whoever meets them,
/// and when the pause is over one of them tries.
#[test]
fn several_who_ask_have_one_breaker() {
    let (service, held) = holding();
    let hasty = asking_by_three(&service, "3000");
    for raw in &mut shown(&hasty, &["silent-1", "silent-2", "silent-3"]) {
        assert_eq!((raw.error().code, raw.closed()), (5002, Some(4503)));
    }
    eventually("three questions", || (service.asked() == 3).then_some(()));
    assert_eq!(hasty.metric("tidegate_webhook_failures_total"), 3.0);
    for raw in &mut shown(&hasty, &["al", "bo", "cy"]) {
        raw.welcome();
    }
    drop(hasty);

    let gateway = asking_by_three(&service, "30000");
    for number in 0..5 {
        assert_eq!(greeted(&gateway, Encoding::Json, &format!("fail-{number}")), Err((5002, Some(4503))));
    }
    eventually("a line of the log", || gateway.log().contains("does not answer").then_some(()));
    assert_eq!((gateway.metric("tidegate_webhook_open"), gateway.log().matches("does not answer").count()), (1.0, 1));
    let before = service.asked();
    let refused = (0..9).filter(|number| greeted(&gateway, Encoding::Binary, &format!("user-{number}")).is_err()).count();
    assert!(refused > 0 && service.asked() < before + 9, "most of them were not asked about");
    let mut trying = eventually("the end of the pause", || {
        let before = service.asked();
        let mut raw = shown(&gateway, &["held-1"]).pop().expect("one");
        loop {
            match raw.poll() {
                _ if service.asked() > before => return Some(raw),
                None => {}
                Some(Next::Frame(ServerFrame::Error { code, .. })) => assert_eq!(code, 5002),
                Some(Next::Closed(code)) => {
                    assert_eq!(code, Some(4503));
                    return None;
                }
                Some(other) => panic!("{other:?}"),
            }
        }
    });
    let refused = (0..9).filter(|number| greeted(&gateway, Encoding::Binary, &format!("user-{number}")).is_err()).count();
    assert!(refused > 0, "one alone tries");
    held.let_pass(1);
    assert_eq!(trying.welcome().user, "held-1");
    for raw in &mut shown(&gateway, &["al", "bo", "cy"]) {
        raw.welcome();
    }
    assert_eq!(gateway.metric("tidegate_webhook_open"), 0.0);
}
