//! What the process gives up at its start, and the filters it runs under.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use support::gateway::Gateway;
use support::raw::Raw;
use tidegate::wire::envelope::Encoding;
use tidegate_client::Event;

/// Every thread has given up new privileges, huge pages and all capabilities but two; files and ports are confined where the kernel can
/// do that. That it is done is said once, and root is told that it need not be.
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
    let log = gateway.log();
    let said = ["confined to its own files and ports", "has no Landlock"].iter().filter(|line| log.contains(**line)).count();
    assert_eq!(said, 1, "{log}");
    let uid = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    let is_root = uid.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    assert_eq!(log.contains("running as root, which a gateway does not need"), is_root);
}

/// An operator whose file system does not go with it can say so; the log says what that means.
#[test]
fn confinement_can_be_switched_off() {
    let gateway = Gateway::with(&[("confine", "false")]);
    assert!(gateway.log().contains("confine = false: files, ports and programs stay within reach"), "{}", gateway.log());
}

/// `deploy/seccomp.json` lets a gateway do all it does, on the driver of this run: people chat, one is cut off and comes back, a message is
/// read from history, metrics are read, it drains and starts again.
#[test]
fn the_seccomp_profile_is_enough() {
    let mut gateway = Gateway::within(&[WITHIN, PROFILE], &[]);
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    assert!(status.contains("Seccomp:\t2"), "{status}");
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
    gateway.terminate();
    assert_eq!(gateway.wait().code(), Some(0), "{}", gateway.log());
    gateway.run();
    al.send("d:al:bo", b"again").expect("acknowledged");
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

/// To pass the permissions of files, and to listen below port 1024.
const CAPABILITIES_KEPT: u64 = 1 << 1 | 1 << 10;
const WITHIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seccomp/within");
const PROFILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/seccomp.json");
