//! Memory as a budget, through the real binary: limits that follow the machine, and what is given up when it is short.

mod support;

use std::process::Command;
use std::time::Duration;

use support::eventually;
use support::gateway::Gateway;
use support::peer::{Peer, upgrade};
use support::raw::{Raw, cmid};
use tidegate::wire::envelope::{ClientFrame, Encoding, Hello, ServerFrame};

/// Limits that are not set follow from the machine: the start says each with what it is from, `GET /v1/config` shows it, and it is no
/// change of the operator's. What is set wins, and a line says where it does not fit.
#[test]
fn limits_are_worked_out_and_told() {
    let gateway = Gateway::with(&[("limits.memory_bytes", "268435456"), ("limits.handshakes_max", "100000")]);
    let log = gateway.log_of_start();
    let (status, text) = gateway.admin("GET", "/v1/config", "");
    assert_eq!(status, 200);
    let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for (key, value, from) in [
        ("limits.connections_max", 16_384, "half of limits.memory_bytes at 8192 bytes each"),
        ("limits.accept_per_s", 400, "twice 1/32 of limits.memory_bytes"),
        ("limits.accept_burst", 80, "1/5 of limits.accept_per_s"),
        ("limits.queue_bytes_max", 64 << 20, "1/4 of limits.memory_bytes"),
    ] {
        assert!(log.contains(&format!("{key} = {value}: {from}")), "{key}: {log}");
        let entry = &config[key];
        assert_eq!((entry["value"].as_u64(), entry["changed"].as_bool()), (Some(value), Some(false)), "{key}");
        assert!(entry["from"].as_str().is_some_and(|text| text.starts_with(from)), "{entry}");
    }
    for (key, value) in [("limits.memory_bytes", 268_435_456), ("limits.handshakes_max", 100_000)] {
        assert!(!log.contains(&format!("{key} = {value}:")), "{key}: {log}");
        assert_eq!(config[key], serde_json::json!({ "value": value, "changed": true }));
    }
    assert!(log.contains("limits.handshakes_max lets handshakes take"), "{log}");

    let gateway = Gateway::start();
    let log = gateway.log_of_start();
    assert!(derived(&gateway, "limits.memory_bytes") > 1 << 26 && log.contains(": half of "), "{log}");
}

/// A service manager that hides all of `/proc` but processes (`ProcSubset=pid`) does not hide how much memory there is: the limits are
/// those of the machine, and not of one that nothing is known of.
#[test]
fn the_machine_is_known_where_proc_is_hidden() {
    let hidden = where_proc_is_hidden("exec");
    let log = hidden.log_of_start();
    let from = log.lines().find(|line| line.contains("limits.memory_bytes = ")).expect("a line");
    assert!(["sysinfo", "memory.max", "memory.limit_in_bytes"].iter().any(|name| from.contains(name)), "{from}");
    let open = Gateway::start();
    for key in ["limits.memory_bytes", "limits.connections_max", "limits.queue_bytes_max"] {
        assert_eq!(derived(&hidden, key), derived(&open, key), "{key}");
    }
}

/// Where nobody says how much memory there is, the start says so, what is assumed, and what to do.
#[test]
fn unknown_memory_is_told() {
    let seccomp = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seccomp/within");
    let profile = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/seccomp.json");
    let gateway =
        where_proc_is_hidden(&format!("mount -t tmpfs tmpfs /sys/fs/cgroup && exec {seccomp} {profile} --without sysinfo"));
    assert_eq!(derived(&gateway, "limits.memory_bytes"), 512 << 20);
    let log = gateway.log_of_start();
    let told = log.lines().find(|line| line.contains(r#""level":"WARN""#) && line.contains("1073741824 bytes are assumed"));
    assert!(told.is_some_and(|line| line.contains("set limits.memory_bytes")), "{log}");
}

/// A gateway that sees processes alone in `/proc`, started by these words of a shell. Needs root.
fn where_proc_is_hidden(words: &str) -> Gateway {
    let script = format!(r#"mount -t proc -o subset=pid proc /proc && test ! -e /proc/meminfo && {words} "$0" "$@""#);
    Gateway::within(&["unshare", "--mount", "sh", "-c", &script], &[])
}

/// Where few files may be open, there are so few connections: each file more is a connection more.
#[test]
fn connections_follow_the_limit_of_open_files() {
    let [few, more] = [500, 700].map(|files| {
        let gateway = Gateway::with_few_descriptors(files, &[("reactors", "1")]);
        let log = gateway.log_of_start();
        assert!(log.contains(": the limit of open files; limits.memory_bytes would do for "), "{log}");
        derived(&gateway, "limits.connections_max")
    });
    assert!(0 < few && few < 500, "{few}");
    assert_eq!(more - few, 200);
}

/// Readers that stop reading fill the budget: signals are shed first, then newcomers refused, then the one for whom most waits is closed,
/// and named in the log and to the operator. Whoever reads is left alone, resident memory keeps to the budget, and what was acknowledged is
/// there when they come back.
#[test]
fn memory_is_shed_in_order_and_nothing_is_lost() {
    // What the gateway takes without clients differs by build, driver and machine.
    let at_rest = Gateway::with(&[PLENTY[0], PLENTY[1]]).resident_bytes();
    let budget = at_rest + ROOM;
    let budget_text = budget.to_string();
    let settings: Vec<_> = PLENTY.iter().copied().chain([("limits.memory_bytes", budget_text.as_str())]).collect();
    let gateway = Gateway::with(&settings);
    let connect = |user: &str| Raw::connect(&gateway, Encoding::Binary, user, "1");
    let (mut al, mut fast) = (connect("al"), connect("fast"));
    let (deaf, welcomes): (Vec<Raw>, Vec<_>) =
        DEAF.iter().map(|user| Raw::welcomed(&gateway, Encoding::Binary, user, "1")).unzip();
    let mut sent = [0_u64; DEAF.len()];
    let shed = |kind: &str| gateway.metric(&format!("tidegate_shed_total{{kind=\"{kind}\"}}"));
    let first = al.say("d:al:fast", "hi").seq;
    let heard = fast.deliver();
    fast.ack(heard.pos, "d:al:fast", first);
    al.put(&signal("d:al:fast"));
    fast.wait("SIGNALLED", |frame| matches!(frame, ServerFrame::Signalled { .. }).then_some(()));

    let (mut seen, mut most, mut refused) = (Vec::new(), 0, false);
    let payload = [b'x'; 60_000];
    let used = || gateway.metric("tidegate_memory_used_bytes");
    for round in 0..400 {
        let used_before = used();
        // The first gets the most: four, three, two and one of ten.
        for (place, count) in sent.iter_mut().enumerate() {
            let conv = format!("d:al:{}", DEAF[place]);
            for _ in place..DEAF.len() {
                let rid = al.put_send(&conv, cmid(), 0, &payload);
                *count = al.sent(rid).seq;
            }
        }
        let spoken = al.say("d:al:fast", "still there?").seq;
        let heard = fast.deliver();
        assert_eq!(heard.seq, spoken);
        fast.ack(heard.pos, "d:al:fast", heard.seq);
        // The account is made every few milliseconds, by a thread that may have to wait for a core.
        std::thread::sleep(Duration::from_millis(60));
        eventually("an account of this round", || (used() != used_before).then_some(()));
        most = most.max(gateway.resident_bytes());
        let level = level_of(&gateway);
        // After the level, which falls only when readers have been closed, or when the engine has written its rows out.
        let closed = shed("reader");
        if seen.last() != Some(&level) {
            seen.push(level);
            let (used, resident) = (used(), gateway.resident_bytes());
            println!("round {round}: level {level}, used {used}, resident {resident}, budget {budget}");
        }
        if closed > 0.0 {
            break;
        }
        match level {
            // It may have been higher before, or rise meanwhile.
            0 => assert!(seen.len() > 1 || shed("signal") + shed("newcomer") == 0.0 || level_of(&gateway) > 0),
            1 => {
                let before = shed("signal");
                eventually("a signal shed", || {
                    al.put(&signal("d:al:fast"));
                    (shed("signal") > before || level_of(&gateway) == 0).then_some(())
                });
                let knock = Knock::at(&gateway);
                assert!(knock.told == 101 || knock.levels.iter().any(|&level| level > 1), "newcomers go after signals");
            }
            _ => {
                assert!(shed("signal") > 0.0, "signals go first");
                let knock = Knock::at(&gateway);
                assert!(knock.told == 503 || knock.levels.iter().any(|&level| level < 2), "newcomers go before readers");
                if knock.told == 503 {
                    eventually("a newcomer shed", || (shed("newcomer") > 0.0).then_some(()));
                    refused = true;
                }
            }
        }
    }
    let mut first_seen = seen.clone();
    first_seen.sort_unstable();
    first_seen.dedup();
    assert!(first_seen.starts_with(&[0, 1, 2]) && seen.starts_with(&[0, 1]) && refused, "one after the other: {seen:?}");
    most = most.max(gateway.resident_bytes());
    let percent = most * 100 / budget;
    println!("resident at most {most} bytes, {percent} % of the budget");
    // Pages that the allocator has not returned yet count near the first level; what is taken between two looks does not.
    assert!(percent <= 105, "{most} of {budget} bytes");

    // The one for whom most waited is named first; those who read are not among them.
    let closed = eventually("a name", || {
        let (status, text) = gateway.admin("GET", "/v1/memory", "");
        assert_eq!(status, 200, "{text}");
        let told: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        told["closed"].as_array().filter(|closed| !closed.is_empty()).cloned()
    });
    let first = closed.last().expect("one");
    assert_eq!((first["user"].as_str(), first["device"].as_str()), (Some(DEAF[0]), Some("1")), "{closed:?}");
    assert!(first["address"].as_str().is_some_and(|address| address.starts_with("127.0.0.1:")), "{closed:?}");
    assert!(first["held_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{first}");
    assert!(closed.iter().all(|reader| DEAF.iter().any(|user| reader["user"] == *user)), "{closed:?}");
    let line =
        eventually("a line", || gateway.log().lines().find(|line| line.contains("slowest reader is closed")).map(str::to_owned));
    assert!(line.contains(r#""user":"slow-0""#) && line.contains(r#""address":"127.0.0.1:"#), "{line}");
    assert!(al.ping().is_empty() && fast.ping().is_empty());
    eventually("the cause", || (gateway.metric(r#"tidegate_closes_total{cause="shed"}"#) >= 1.0).then_some(()));

    // There is room for those who come back, and nothing is missing.
    eventually("room", || (gateway.metric("tidegate_memory_level") < 2.0).then_some(()));
    drop(deaf);
    for ((user, count), former) in DEAF.iter().zip(sent).zip(welcomes) {
        let (mut back, token) = (Raw::open(&gateway, Encoding::Binary), gateway.token(user));
        back.put(&ClientFrame::Hello(Hello { session: former.session, ..Hello::new("1", "test/1", &token) }));
        let resumed = back.welcome().resumed;
        assert!(resumed == 0 || *user != DEAF[0], "its session ended with it, and what it held");
        let conv = format!("d:al:{user}");
        let (mut next, mut head) = (1, 0);
        while next == 1 || next <= head {
            let page = back.fetch(&conv, next, 0, 0, 0);
            head = page.head;
            for message in &page.messages {
                assert_eq!((message.seq, message.payload.len()), (next, payload.len()), "{user}");
                next += 1;
            }
            assert!(!page.messages.is_empty(), "{user}: nothing from {next} on, head {head}");
        }
        assert_eq!(head, count, "{user}");
    }
}

/// The budget is changed in the file and taken over at SIGHUP, with the limits that follow from it; what was made to a size at the start
/// stays. A file with mistakes changes nothing, and whatever else has changed is named.
#[test]
fn the_budget_changes_while_the_gateway_runs() {
    let mut gateway = Gateway::start();
    gateway.kill();
    let file = gateway.dir().join("settings.toml");
    let put = |text: &str| std::fs::write(&file, text).expect("a file");
    let set = |bytes: u64| put(&format!("[limits]\nmemory_bytes = {bytes}\n"));
    set(256 << 20);
    gateway.run_with(&["--config", file.to_str().expect("UTF-8")]);
    let hang_up = || {
        let status = Command::new("kill").args(["-HUP", &gateway.pid().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()));
    };
    let config = |key: &str| -> u64 {
        let (_, text) = gateway.admin("GET", "/v1/config", "");
        let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        config[key]["value"].as_u64().unwrap_or_else(|| panic!("{key}: {config}"))
    };
    let in_force = |bytes: u64| {
        hang_up();
        eventually("the new budget", || (gateway.metric("tidegate_memory_budget_bytes") == bytes as f64).then_some(()));
    };
    let connections_max = config("limits.connections_max");
    assert_eq!(config("limits.queue_bytes_max"), 64 << 20);
    for mib in [1_024, 512] {
        set(mib << 20);
        in_force(mib << 20);
        assert_eq!(config("limits.memory_bytes"), mib << 20);
        assert_eq!((config("limits.queue_bytes_max"), config("limits.connections_max")), (mib << 18, connections_max));
        let line = format!("limits.queue_bytes_max = {}: ", mib << 18);
        eventually("a line", || gateway.log().contains(&line).then_some(()));
    }
    put("[limits]\nmemory_bytes = 1\n");
    hang_up();
    eventually("a line", || gateway.log().contains("settings stay as they were").then_some(()));
    assert_eq!(config("limits.memory_bytes"), 512 << 20);
    put("[limits]\nmemory_bytes = 268435456\n[store]\nreaders = 3\n");
    in_force(256 << 20);
    eventually("a line", || gateway.log().contains("not in force before the next start: store.readers").then_some(()));
}

/// What the start says a limit is that was worked out.
fn derived(gateway: &Gateway, key: &str) -> u64 {
    let log = gateway.log_of_start();
    let value = log.split(&format!("{key} = ")).nth(1).and_then(|rest| rest.split(':').next()?.parse().ok());
    value.unwrap_or_else(|| panic!("{key}: {log}"))
}

/// Who reads nothing, the one who is sent most in front.
const DEAF: [&str; 4] = ["slow-0", "slow-1", "slow-2", "slow-3"];

/// What there is for clients, and for rows that the engine has not written out.
const ROOM: u64 = 80 << 20;

/// One core, a small cache, and no other bound that would cut off who reads nothing.
const PLENTY: [(&str, &str); 14] = [
    ("reactors", "1"),
    ("store.cache_bytes", "1048576"),
    ("limits.queue_bytes_max", "1073741824"),
    ("limits.queue_bytes_hard", "16777216"),
    ("limits.write_stall_ms", "3600000"),
    ("limits.user_connections", "0"),
    ("protocol.window_bytes", "16777216"),
    ("protocol.window_default", "4096"),
    ("protocol.ack_stall_ms", "3600000"),
    ("protocol.ping_ms", "3600000"),
    ("protocol.send_rate", "60000"),
    ("protocol.send_burst", "60000"),
    ("protocol.fetch_rate", "60000"),
    ("state.signal_rate", "1000"),
];

fn signal(conv: &str) -> ClientFrame<'_> {
    ClientFrame::Signal { conv: conv.into(), kind: 1, payload: [1].as_slice().into() }
}

/// What is given up now.
fn level_of(gateway: &Gateway) -> usize {
    let shown = gateway.metric("tidegate_memory_level");
    [0.0, 1.0, 2.0, 3.0].iter().position(|&level| level == shown).expect("a level")
}

/// A newcomer.
struct Knock {
    /// The status. Who is refused is told when to come back.
    told: u16,
    /// What was given up before it came, and after it was told.
    levels: [usize; 2],
}

impl Knock {
    fn at(gateway: &Gateway) -> Self {
        let before = level_of(gateway);
        let mut peer = Peer::connect(gateway.listen);
        peer.write(upgrade("tidegate.v1", "").as_bytes());
        let head = String::from_utf8(peer.read_head()).expect("ASCII");
        let told: u16 = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        assert!(told != 503 || head.contains("\r\nRetry-After: "), "{head}");
        Self { told, levels: [before, level_of(gateway)] }
    }
}
