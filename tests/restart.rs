//! What outlives the process, through the real binary: killed, drained and started again on the same data.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use support::gate::{self, End};
use support::gateway::Gateway;
use support::raw::{ENCODINGS, Next, Raw, cmid};
use support::{PATIENCE, eventually};
use tidegate::wire::envelope::{Encoding, SENT_DUPLICATE, ServerFrame, send_flags};
use tidegate_client::{Event, Events};

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

/// Half a segment of messages.
fn fill_half(gateway: &Gateway) {
    let mut al = Raw::connect(gateway, Encoding::Binary, "al", "1");
    let text = "x".repeat(8 * 1024);
    for _ in 0..64 {
        al.say(DIRECT, &text);
    }
}

/// Lives too short to fill a segment still come to a checkpoint together: rows do not pile up, or each start would take longer than the
/// one before. Nor do files of the log.
#[test]
fn short_lives_do_not_pile_up() {
    let mut gateway = Gateway::with(&[("store.segment_bytes", "1048576"), ("protocol.send_burst", "1000")]);
    for life in 0..16 {
        fill_half(&gateway);
        gateway.kill();
        gateway.run();
        let held = gateway.metric("tidegate_store_engine_tables_bytes");
        assert!(held < 3.0 * SEGMENT, "life {life}: {held} bytes of rows wait for a checkpoint");
    }
    eventually("few segments of the log, of which each life filled a half", || {
        let files = log_files(&gateway);
        let segments = files.keys().filter(|path| path.extension().is_some_and(|it| it == "log"));
        (segments.count() <= SEGMENTS_MAX).then_some(())
    });
}

/// More than two checkpoints' worth of rows is written before anybody is served.
#[test]
fn what_piled_up_is_written_first() {
    let mut gateway = Gateway::with(&[("protocol.send_burst", "1000")]);
    (0..6).for_each(|_| fill_half(&gateway));
    gateway.kill();
    gateway.run_with(&["--store-segment-bytes", "1048576"]);
    let held = gateway.metric("tidegate_store_engine_tables_bytes");
    assert!(held < SEGMENT, "{held} bytes of rows wait for a checkpoint");
    let (entries, _) = Raw::connect(&gateway, Encoding::Binary, "bo", "1").sync(0, 0);
    assert_eq!(entries[0].head, 6 * 64);
}

/// Files of the log with what is in use of them.
fn log_files(gateway: &Gateway) -> BTreeMap<PathBuf, usize> {
    let files = fs::read_dir(gateway.dir().join("data/log")).expect("the log").map(|entry| entry.expect("a file").path());
    let used = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    // A gateway that runs removes some and gives others their names.
    files.filter_map(|path| Some((path.clone(), used(&fs::read(&path).ok()?)))).collect()
}

/// Takes events until the message `last` comes: texts with their seq, and conversations that began anew.
fn until(events: &Events, last: &str) -> (Vec<(u64, String)>, Vec<String>) {
    let (mut texts, mut resets) = (Vec::new(), Vec::new());
    loop {
        match events.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {last:?} after {texts:?}")) {
            Event::Message(message) => {
                texts.push((message.seq, String::from_utf8_lossy(&message.payload).into_owned()));
                if texts.last().expect("just pushed").1 == last {
                    return (texts, resets);
                }
            }
            Event::Reset { conv } => {
                resets.push(conv.to_string());
                texts.clear();
            }
            _ => {}
        }
    }
}

/// The end of the log is lost and the operator accepts it. Who knew more than is left hears of the new epoch, however late its `since`,
/// and shows the new message that takes a seq it had seen: a client that stayed, and one that went on from its notes.
#[test]
fn an_accepted_loss_reaches_who_knew_more() {
    let mut gateway = Gateway::start();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let (_stays, staying) = gateway.client(gateway.options("bo", "1"));
    al.say(DIRECT, "one");
    al.say(DIRECT, "two");
    until(&staying, "two");
    gateway.terminate();
    assert_eq!(gateway.wait().code(), Some(0));
    let kept = log_files(&gateway);
    gateway.run();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let lost: Vec<u64> = ["three", "four"].iter().map(|text| al.say(DIRECT, text).seq).collect();
    assert_eq!(lost, [3, 4]);
    until(&staying, "four");
    let (client, events) = gateway.client(gateway.options("bo", "2"));
    until(&events, "four");
    let notes = client.snapshot();
    assert_eq!(notes.positions.iter().map(|it| (&*it.conv, it.epoch, it.have)).collect::<Vec<_>>(), [(DIRECT, Some(1), 4)]);
    client.close();
    drop(events);
    let (entries, since) = Raw::connect(&gateway, Encoding::Json, "bo", "3").sync(notes.since, 0);
    assert!(entries.is_empty() && since == notes.since, "nothing has changed since");
    gateway.terminate();
    assert_eq!(gateway.wait().code(), Some(0));
    for (path, _) in log_files(&gateway).into_iter().filter(|(path, _)| path.extension().is_some_and(|it| it == "log")) {
        let mut bytes = fs::read(&path).expect("a file");
        let from = kept.get(&path).copied().unwrap_or(0);
        bytes[from..].fill(0);
        fs::write(&path, bytes).expect("a file");
    }
    fs::remove_dir_all(gateway.dir().join("data/engine")).expect("a directory of the gateway");
    gateway.run_with(&["--accept-loss"]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    assert_eq!(al.say(DIRECT, "new").seq, 3);
    let mut options = gateway.options("bo", "2");
    options.settings.positions = notes.positions;
    options.settings.since = notes.since;
    let (_comes, coming) = gateway.client(options);
    for events in [&staying, &coming] {
        let wanted = [(1, "one"), (2, "two"), (3, "new")].map(|(seq, text)| (seq, text.to_owned()));
        assert_eq!(until(events, "new"), (wanted.to_vec(), vec![DIRECT.to_owned()]));
    }
    for encoding in ENCODINGS {
        let (entries, since) = Raw::connect(&gateway, encoding, "bo", "3").sync(notes.since, 0);
        assert_eq!(entries.iter().map(|entry| (&*entry.conv, entry.epoch, entry.head)).collect::<Vec<_>>(), [(DIRECT, 2, 3)]);
        assert!(since > notes.since);
        assert!(Raw::connect(&gateway, encoding, "bo", "3").sync(since, 0).0.is_empty(), "told once");
    }
}

/// SIGTERM: GOAWAY first; who leaves and who stays are both closed with a code that asks to come back; exit code 0, and nothing is lost.
#[test]
fn sigterm_says_goodbye() {
    // A window as long as this has the longest grace there is.
    let mut gateway = Gateway::with(&[("drain.window_ms", "3000")]);
    let mut leaves = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut stays = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    leaves.say(DIRECT, "before");
    gateway.terminate();
    let told = |raw: &mut Raw| raw.wait("GOAWAY", |frame| matches!(frame, ServerFrame::Goaway { .. }).then_some(()));
    told(&mut leaves);
    // While draining a message is still taken.
    leaves.say(DIRECT, "while draining");
    drop(leaves.socket.close(Some(tungstenite::protocol::CloseFrame { code: 1001.into(), reason: "".into() })));
    assert_eq!(leaves.closed(), Some(1001));
    told(&mut stays);
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

/// Bytes of a segment, where it is set.
const SEGMENT: f64 = 1_048_576.0;
/// Segments of the log that may lie there at once.
const SEGMENTS_MAX: usize = 6;
