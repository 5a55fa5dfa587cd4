//! What the process gives up at its start, and the filters it runs under.

#[path = "support/service.rs"]
mod service;
mod support;
#[path = "support/tokens.rs"]
mod tokens;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use service::Service;
use support::eventually;
use support::gateway::{Gateway, READY, unix_s};
use support::raw::{ENCODINGS, Raw};
use support::secure::{self, Authority, BOTH};
use tidegate::wire::envelope::{ClientFrame, Encoding, Hello};
use tidegate_client::Event;
use tokens::{AUDIENCE, Signer, good_claims, key_file};
use tungstenite::Message;

/// Every thread has given up new privileges, huge pages and all capabilities but two; files and ports are confined, unless the kernel says
/// that it cannot. That it is done is said once, and root is told that it need not be.
#[test]
fn a_gateway_gives_up_what_it_does_not_need() {
    let gateway = Gateway::start();
    let tasks = format!("/proc/{}/task", gateway.pid());
    let mut threads = 0;
    for task in fs::read_dir(tasks).expect("it runs") {
        let status = fs::read_to_string(task.expect("a thread").path().join("status")).expect("a thread");
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("no {key} in {status}")).trim().to_owned()
        };
        assert_eq!(value("NoNewPrivs:"), "1");
        assert_eq!(value("THP_enabled:"), "0");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            let set = u64::from_str_radix(&value(set), 16).expect("a set in hex");
            assert_eq!(set & !CAPABILITIES_KEPT, 0, "{status}");
        }
        threads += 1;
    }
    assert!(threads >= 6, "reactors, store, projector, readers, admin: {threads}");
    let log = gateway.log_of_start();
    match landlock() {
        Some(version) => {
            let told: Vec<_> = log.lines().filter(|line| line.contains("confined to its own files and ports")).collect();
            assert!(told.len() == 1 && told[0].contains(&format!("\"landlock\":{version}")), "{log}");
        }
        None => assert_eq!(log.matches("has no Landlock").count(), 1, "{log}"),
    }
    let uid = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    let is_root = uid.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    assert_eq!(log.contains("running as root, which a gateway does not need"), is_root);
}

/// An operator whose file system does not go with it can say so; the log says what that means.
#[test]
fn confinement_can_be_switched_off() {
    let gateway = Gateway::with(&[("confine", "false")]);
    let log = gateway.log_of_start();
    assert!(log.contains("confine = false: files, ports and programs stay within reach"), "{log}");
}

/// `deploy/seccomp.json` lets a gateway do all it does, on the driver of this run. Killed, it is started again under the same filter.
#[test]
fn the_seccomp_profile_is_enough() {
    let gateway = does_all(&[WITHIN, PROFILE], |gateway| {
        let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
        assert!(status.contains("Seccomp:\t2"), "{status}");
        gateway.kill();
        gateway.run();
    });
    assert_eq!(warnings(&gateway), Vec::<String>::new());
}

/// `deploy/tidegate.service`, under a systemd of its own, lets a gateway do all it does, on the driver of this run: `systemctl reload` and
/// `stop` are what reload and drain it, and systemd starts it again when it is killed.
#[test]
fn the_unit_is_enough() {
    let gateway = does_all(&[UNIT_WITHIN, UNIT, env!("CARGO_TARGET_TMPDIR")], |gateway| {
        let starts = || gateway.log().matches(READY).count();
        assert_eq!(starts(), 1);
        signal(gateway, "USR1");
        eventually("the next start", || (starts() == 2).then_some(()));
    });
    assert_eq!(warnings(&gateway), Vec::<String>::new());
    // The unit is in force, and hides the file that says how much memory there is, which is known all the same.
    let log = gateway.log();
    assert!(log.contains("/var/lib/tidegate/data") && !log.contains("running as root") && !log.contains("MemTotal"), "{log}");
    assert_eq!(
        (log.contains("assumed"), log.contains("confined to its own files and ports")),
        (false, landlock().is_some()),
        "{log}"
    );
}

/// A crash record is written under either.
#[test]
fn a_crash_record_is_written_within() {
    let fault = format!("FAULT_PANIC_OVER={DEFECT}");
    let shared = env!("CARGO_TARGET_TMPDIR");
    for within in [&["env", &fault, WITHIN, PROFILE][..], &["env", &fault, UNIT_WITHIN, UNIT, shared]] {
        let gateway = Gateway::within(within, &[]);
        let mut victim = Raw::connect(&gateway, Encoding::Binary, "al", "1");
        victim.socket.get_mut().write_all(DEFECT.as_bytes()).expect("a socket");
        let record = eventually("the crash record", || {
            gateway.log().lines().find(|line| line.contains("panicked: a defect was planted")).map(str::to_owned)
        });
        assert!(record.contains("panic_over_defect"), "a trace of the stack: {record}");
        assert_eq!(victim.closed(), Some(1011));
    }
}

/// In a container that forbids io_uring, "auto" serves with epoll, and "uring" ends at once with the remedy.
#[test]
fn without_io_uring_auto_serves_and_uring_says_why_not() {
    let without = [WITHIN, PROFILE, "--without", "io_uring_setup,io_uring_enter,io_uring_register"];
    let gateway = Gateway::within(&without, &[("driver", "auto")]);
    drop(Raw::welcomed(&gateway, Encoding::Json, "al", "phone"));
    assert_eq!(gateway.metric("tidegate_driver_uring"), 0.0);
    let ran = Command::new(WITHIN)
        .args(&without[1..])
        .args([
            env!("CARGO_BIN_EXE_tidegate"),
            "serve",
            "--driver",
            "uring",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
        ])
        .arg("--data-dir")
        .arg(gateway.dir().join("other"))
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(said.contains("driver \"uring\": making a ring: Function not implemented"), "{said}");
    assert!(said.contains("Or set driver = \"epoll\""), "{said}");
}

/// The profile forbids by default, and what would let a gateway out of its confinement is not in it.
#[test]
fn the_profile_has_nothing_it_should_not() {
    let text = fs::read_to_string(Path::new(PROFILE)).expect("in the repository");
    let profile: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let names: Vec<_> =
        profile["syscalls"].as_array().into_iter().flatten().flat_map(|group| group["names"].as_array()).flatten().collect();
    assert!(names.len() > 80);
    for forbidden in
        ["ptrace", "mount", "setuid", "bpf", "unshare", "setns", "init_module", "keyctl", "process_vm_writev", "chroot", "reboot"]
    {
        assert!(!names.iter().any(|name| *name == forbidden), "{forbidden}");
    }
}

/// Starts a gateway within something, with all that it can be asked to do beyond chat, and has it do it: people chat, in the clear and with
/// TLS, by tokens of the secret, of fetched keys and of a webhook; files are read again; a session goes over to another connection; a copy is
/// taken; metrics are read; it is cut off by `cut` and comes back with what was acknowledged; it drains.
fn does_all(within: &[&str], cut: impl FnOnce(&mut Gateway)) -> Gateway {
    let (authority, later) = (Authority::new(), unix_s() + 3600);
    authority.issue("a", &["localhost"]);
    let set = fs::read_to_string(key_file("jwks.json")).expect("a file of the tests");
    let keys = Service::start(move |_| Some((200, set.clone())));
    let webhook = Service::start(move |body| {
        let is_known = body.contains("opaque");
        Some(if is_known { (200, format!(r#"{{"user":"cy","exp":{later}}}"#)) } else { (401, body.to_owned()) })
    });
    // By name, so that names are resolved too.
    let by_name = format!("http://localhost:{}/auth", webhook.address.port());
    let settings = [
        ("reactor.private_fds", "on".to_owned()),
        ("auth.jwks_url", keys.url("/jwks.json")),
        ("auth.webhook_url", by_name),
        ("auth.audience", AUDIENCE.to_owned()),
        ("auth.jwks_again_s", "3600".to_owned()),
        ("auth.webhook_timeout_ms", "30000".to_owned()),
        ("protocol.hello_ms", "60000".to_owned()),
    ];
    let settings = settings.each_ref().map(|(key, value)| (*key, value.as_str()));
    let (mut gateway, secured) = secure::start_within(within, &authority, &["a"], &settings);
    let (al, _al_events) = gateway.client(gateway.options("al", "1"));
    let (_bo, bo_events) = gateway.client(gateway.options("bo", "1"));
    for number in 0..20 {
        al.send("d:al:bo", format!("{number}").as_bytes()).expect("acknowledged");
    }
    let mut heard = 0;
    while heard < 20 {
        let event = bo_events.recv_timeout(support::PATIENCE).expect("messages come");
        heard += u32::from(matches!(event, Event::Message(_)));
    }
    gateway.group("g:team", &["al", "bo"]);
    assert!(gateway.metric("process_resident_memory_bytes") > 0.0);

    let issued = good_claims(later).replace('}', r#","iss":"https://a.example"}"#);
    let of_a_key = Signer::Ec.token(r#"{"alg":"ES256","kid":"shared"}"#, &issued);
    for (encoding, (token, user)) in ENCODINGS.into_iter().zip([(of_a_key.as_str(), "al"), ("opaque", "cy")]) {
        // Keys that have not come yet are no reason to call a token bad.
        eventually("keys", || (gateway.metric("tidegate_jwks_fetched_timestamp_seconds") > 0.0).then_some(()));
        let mut raw = Raw::open(&gateway, encoding);
        raw.hello(token, "2");
        assert_eq!(raw.welcome().user, user);
    }
    assert_eq!(webhook.asked(), 1);

    let client = Arc::new(authority.client(&BOTH, None));
    let stream = secure::connect(secured, &client, "localhost").expect("a handshake");
    let mut over_tls = secure::welcomed(&gateway, stream, "di");
    let asked = keys.asked();
    authority.issue("a", &["localhost"]);
    signal(&gateway, "HUP");
    eventually("new certificates", || gateway.log().contains("certificates were read again").then_some(()));
    eventually("the keys again", || (keys.asked() > asked).then_some(()));
    let client = Arc::new(authority.client(&BOTH, None));
    let stream = secure::connect(secured, &client, "localhost").expect("a handshake");
    let shown = stream.conn.peer_certificates().expect("it shows one")[0].clone().into_owned();
    assert_eq!(shown, authority.read("a.pem"));
    over_tls.send(Message::Ping("still here".into())).expect("the connection lives");
    assert_eq!(secure::read(&mut over_tls), Message::Pong("still here".into()));

    // The newcomer may be on another core.
    for _ in 0..8 {
        let (mut former, welcome) = Raw::welcomed(&gateway, Encoding::Binary, "ed", "1");
        let mut newcomer = Raw::open(&gateway, Encoding::Binary);
        let token = gateway.token("ed");
        newcomer.put(&ClientFrame::Hello(Hello { session: welcome.session, ..Hello::new("1", "test/1", &token) }));
        assert_eq!((newcomer.welcome().resumed, former.closed()), (1, Some(4409)));
    }

    let mut backup = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    backup.args(["backup", "copy", "--data-dir"]).arg(gateway.dir().join("data")).current_dir(gateway.dir());
    let ran = backup.output().expect("it runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    eventually("a word of it", || gateway.log().contains("gave out a copy of the store").then_some(()));
    let (status, text) = gateway.admin("POST", "/v1/tls/reload", "");
    assert_eq!(status, 200, "{text}");

    cut(&mut gateway);
    let sent = al.send("d:al:bo", b"again").expect("acknowledged");
    assert_eq!(sent.seq, 21, "nothing acknowledged is lost");
    gateway.terminate();
    assert_eq!(gateway.wait().code(), Some(0), "{}", gateway.log());
    gateway
}

fn signal(gateway: &Gateway, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &gateway.pid().to_string()]).status().expect("kill runs");
    assert!(status.success());
}

/// What the log warns of, but for what root is told, variables of the tests, what the kernel does not have, and a core that was taken away
/// in the middle of a turn.
fn warnings(gateway: &Gateway) -> Vec<String> {
    let log = gateway.log();
    let lines = log.lines().filter(|line| line.contains(r#""level":"WARN""#) || line.contains(r#""level":"ERROR""#));
    let mut known = vec!["running as root", "no setting has this variable", "a turn took too long"];
    if landlock().is_none() {
        known.push("has no Landlock");
    }
    lines.filter(|line| !known.iter().any(|part| line.contains(part))).map(str::to_owned).collect()
}

/// The version of Landlock's interface, asked of the kernel and not of the gateway; `None`: it has none.
fn landlock() -> Option<u32> {
    // landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION), which has this number on all architectures.
    let program = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))";
    let output = Command::new("python3").args(["-c", program]).output().expect("this test needs python3");
    let text = String::from_utf8(output.stdout).expect("a number");
    text.trim().parse::<i32>().expect("a number").try_into().ok()
}

/// To pass the permissions of files, and to listen below port 1024.
const CAPABILITIES_KEPT: u64 = 1 << 1 | 1 << 10;
const WITHIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seccomp/within");
const PROFILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/seccomp.json");
const UNIT_WITHIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd/within");
const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/tidegate.service");
/// Bytes that no parser would stumble over.
const DEFECT: &str = "the bytes of a defect";
