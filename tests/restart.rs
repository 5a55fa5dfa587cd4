//! What outlives the process, through the real binary: killed, drained and started again on the same data.

mod support;

use std::time::Duration;

use support::gate::{self, End};
use support::gateway::Gateway;
use support::raw::{ENCODINGS, Next, Raw, cmid};
use tidegate::wire::envelope::{Encoding, SENT_DUPLICATE, ServerFrame, send_flags};

const DIRECT: &str = "d:al:bo";

/// Kills of the gate. 50 fit into two or three minutes in the development profile.
const KILLS: usize = 50;

/// How long the devices may take to have everything in the end.
const SETTLE: Duration = Duration::from_secs(60);

/// kill -9, fifty times, under load from several devices that reconnect and synchronise by themselves: nothing acknowledged is lost,
/// nothing is there twice in effect, nothing is out of order, and no device saw a hole.
#[test]
fn fifty_kills_lose_nothing() {
    let gateway = Gateway::with(&[
        ("protocol.send_rate", "10000"),
        ("protocol.send_burst", "1000"),
        ("protocol.fetch_rate", "1000"),
        ("store.segment_bytes", "1048576"),
    ]);
    let report = gate::run(gateway, &[End::Kill; KILLS], SETTLE);
    println!("{KILLS} kills: {} acknowledged, {} delivered; {}", report.acknowledged, report.delivered, report.findings);
    assert!(report.findings.is_empty(), "{}", report.findings);
    assert_eq!(report.holes, [] as [String; 0]);
    assert!(report.acknowledged >= KILLS * 60);
}

/// The same load and the same checker over drains: a planned restart loses nothing either, and ends with exit code 0.
#[test]
fn drains_lose_nothing() {
    let gateway =
        Gateway::with(&[("protocol.send_rate", "10000"), ("protocol.send_burst", "1000"), ("protocol.fetch_rate", "1000")]);
    let report = gate::run(gateway, &[End::Drain; 4], SETTLE);
    assert!(report.findings.is_empty(), "{}", report.findings);
    assert_eq!(report.holes, [] as [String; 0]);
}

/// The gate can fail: a disk that loses what was acknowledged is found out by the same checker.
#[test]
fn a_disk_that_forgets_is_found_out() {
    let gateway =
        Gateway::with(&[("protocol.send_rate", "10000"), ("protocol.send_burst", "1000"), ("protocol.fetch_rate", "1000")]);
    let report = gate::run(gateway, &[End::KillAndCopy, End::Kill, End::KillAndForget], Duration::from_secs(3));
    assert!(!report.findings.lost.is_empty(), "{}", report.findings);
}

/// Messages, read positions, groups and the memory of repeats are there after a kill.
#[test]
fn a_kill_forgets_nothing() {
    let mut gateway = Gateway::start();
    gateway.group("g:team", &["al", "bo"]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    let repeated = cmid();
    let rid = al.put_send(DIRECT, repeated, 0, b"one");
    let first = al.sent(rid);
    al.say("g:team", "to all");
    assert_eq!(bo.read(DIRECT, 1), 1);
    // A read position rides along with the next commit.
    let last = al.say(DIRECT, "two");
    for life in 0..3 {
        gateway.kill();
        gateway.run();
        let mut al = Raw::connect(&gateway, ENCODINGS[life % 2], "al", "1");
        let mut bo = Raw::connect(&gateway, Encoding::Binary, "bo", "1");
        let (entries, _) = bo.sync(0, 0);
        let state: Vec<_> = entries.iter().map(|entry| (&*entry.conv, entry.head, entry.read, entry.unread)).collect();
        assert!(state.contains(&(DIRECT, 2 + life as u64, 1, 1 + u32::try_from(life).expect("small"))), "{state:?}");
        assert!(state.contains(&("g:team", 1, 0, 1)), "{state:?}");
        let rid = al.put_send(DIRECT, repeated, send_flags::RETRY, b"one");
        let again = al.sent(rid);
        assert_eq!((again.flags, again.seq, again.mid), (SENT_DUPLICATE, first.seq, first.mid));
        let next = al.say(DIRECT, "after the kill");
        assert_eq!(next.seq, 3 + life as u64);
        assert!(next.mid > last.mid, "mid never goes back");
        assert_eq!(bo.deliver().seq, next.seq);
    }
}

/// SIGTERM: GOAWAY first; who leaves and who stays are both closed with a code that asks to come back; exit code 0, and nothing is lost.
#[test]
fn sigterm_says_goodbye() {
    let mut gateway = Gateway::start();
    let mut leaves = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut stays = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    leaves.say(DIRECT, "before");
    gateway.terminate();
    for raw in [&mut leaves, &mut stays] {
        raw.wait("GOAWAY", |frame| matches!(frame, ServerFrame::Goaway { .. }).then_some(()));
    }
    // While draining a message is still taken.
    leaves.say(DIRECT, "while draining");
    drop(leaves.socket.close(Some(tungstenite::protocol::CloseFrame { code: 1001.into(), reason: "".into() })));
    assert_eq!(leaves.closed(), Some(1001));
    let code = stays.closed();
    assert!(matches!(code, Some(1001 | 1012)), "{code:?}");
    assert_eq!(gateway.wait().code(), Some(0));
    gateway.run();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    assert_eq!(al.fetch(DIRECT, 0, 0, 0, 0).messages.len(), 2);
}

/// A gateway without connections ends at once on SIGTERM, and starts again with its data.
#[test]
fn an_idle_gateway_stops_and_starts() {
    let mut gateway = Gateway::start();
    for life in 1..=3 {
        let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
        assert_eq!(al.say(DIRECT, "hi").seq, life);
        drop(al);
        gateway.terminate();
        assert_eq!(gateway.wait().code(), Some(0));
        gateway.run();
    }
    assert!(gateway.is_running());
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    assert!(matches!(al.poll(), None | Some(Next::Frame(_))));
    assert_eq!(al.fetch(DIRECT, 0, 0, 0, 0).head, 3);
}
