//! What a failing, lying dead or full disk does to the real binary, and what each level is worth.
//!
//! The power cut and the failed sync come from a program that stands between the gateway and its files (`support/faulty_disk.c`); the
//! full disk is a small file system in memory, in a mount namespace of its own.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use support::disk::FaultyDisk;
use support::eventually;
use support::gate::{self, End};
use support::gateway::{Gateway, Readiness};
use support::raw::{ENCODINGS, Next, Raw, cmid};
use tidegate::wire::envelope::{ClientFrame, Encoding, ServerFrame, send_flags};

const DIRECT: &str = "d:al:bo";

/// Power cuts of the gate; `TIDEGATE_POWER_CUTS` asks for more. Fifty take about a minute.
const POWER_CUTS: usize = 50;

/// How soon a failed sync makes the node not ready, and of how many times the best is judged.
const NOT_READY_WITHIN: Duration = Duration::from_millis(100);
const FAILED_SYNCS: usize = 6;

/// How soon a disk that has space again makes the store take messages.
const SERVICE_WITHIN: Duration = Duration::from_secs(5);

/// How long the devices may take to have everything in the end.
const SETTLE: Duration = Duration::from_secs(60);

/// The power is cut under load, again and again, and any part of what was not synced is lost, of the log and of the engine: nothing
/// acknowledged is lost, nothing is there twice in effect, nothing is out of order, and no device saw a hole.
#[test]
fn power_cuts_lose_nothing() {
    let cuts = std::env::var("TIDEGATE_POWER_CUTS").map_or(POWER_CUTS, |count| count.parse().expect("a number of power cuts"));
    let (gateway, disk) = FaultyDisk::under(
        "/data/",
        &[
            ("protocol.send_rate", "10000"),
            ("protocol.send_burst", "1000"),
            ("protocol.fetch_rate", "1000"),
            ("store.segment_bytes", "1048576"),
        ],
    );
    let report = gate::run(gateway, &vec![End::PowerCut(&disk); cuts], SETTLE);
    println!("{cuts} power cuts: {} acknowledged, {} delivered; {}", report.acknowledged, report.delivered, report.findings);
    assert!(report.findings.is_empty(), "{}", report.findings);
    assert_eq!(report.holes, [] as [String; 0]);
}

/// A sync of the log fails, several times: see [`fail_a_sync`]. Of how soon the gateway says so the best is judged, since the machine may
/// have let it wait: within 100 ms it is not ready.
#[test]
fn a_failed_sync_acknowledges_nothing() {
    let took = (0..FAILED_SYNCS).map(|number| fail_a_sync(ENCODINGS[number % ENCODINGS.len()]));
    let best = took.min().expect("some");
    println!("not ready {best:?} after the failed sync, at best of {FAILED_SYNCS}");
    assert!(best < NOT_READY_WITHIN, "{best:?}");
}

/// A sync of the log fails: nothing that came after is acknowledged, the node is not ready from then on, the process ends with the code
/// for it, and the next start finds everything that had been acknowledged, whatever the kernel dropped of the rest. Returns the time from
/// the failed sync until `/readyz` said no, or nobody answered any more.
fn fail_a_sync(encoding: Encoding) -> Duration {
    let (mut gateway, disk) = FaultyDisk::under("/data/log/", &[]);
    let mut al = Raw::connect(&gateway, encoding, "al", "1");
    let kept: Vec<u64> = (0..5).map(|number| al.say(DIRECT, &format!("kept {number}")).seq).collect();
    eventually("readiness", || gateway.is_ready().then_some(()));
    disk.fail_syncs();
    for number in 0..5 {
        al.put_send(DIRECT, cmid(), 0, format!("never {number}").as_bytes());
    }
    let told = eventually("that it has failed", || match gateway.readiness() {
        Readiness::NotReady(reasons) if !reasons.contains("failed") => None,
        told => (told != Readiness::Ready).then_some(told),
    });
    let took = SystemTime::now().duration_since(disk.failed_at()).expect("ready until the sync failed");
    println!("{took:?} after the failed sync: {told:?}");
    eventually("the end of the gateway", || {
        assert_ne!(gateway.readiness(), Readiness::Ready, "ready again");
        (!gateway.is_running()).then_some(())
    });
    loop {
        match al.next() {
            Next::Closed(_) => break,
            Next::Frame(ServerFrame::Sent { seq, .. }) => panic!("seq {seq} was acknowledged"),
            Next::Frame(_) => {}
        }
    }
    assert_eq!(gateway.wait().code(), Some(3), "{}", gateway.log());
    assert!(gateway.log().contains("syncing the log"), "{}", gateway.log());
    disk.settle();
    gateway.run();
    let mut al = Raw::connect(&gateway, encoding, "al", "1");
    let page = al.fetch(DIRECT, 1, 0, 0, 0);
    let stored: Vec<_> = page.messages.iter().map(|message| (message.seq, &*message.payload)).collect();
    for (number, seq) in (0..).zip(kept) {
        assert!(stored.contains(&(seq, format!("kept {number}").as_bytes())), "{stored:?}");
    }
    al.say(DIRECT, "and it goes on");
    took
}

/// No room: SEND is refused with 5003, and what stores nothing goes on, as does reading; with room again it is taken again, within 5 s: the
/// store looks every second. Of two rounds the better is judged.
#[test]
fn a_full_disk_refuses_and_comes_back() {
    let gateway = on_a_small_disk(&[
        ("protocol.send_rate", "10000"),
        ("protocol.send_burst", "10000"),
        ("store.free_bytes_min", "4194304"),
        ("store.free_percent_min", "0"),
        ("store.segment_bytes", "1048576"),
    ]);
    let ballast = PathBuf::from(format!("/proc/{}/root{}/data/ballast", gateway.pid(), gateway.dir().display()));
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let mut bo = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    let mut best = Duration::MAX;
    for round in 0..2 {
        let head = al.say(DIRECT, "kept").seq;
        assert_eq!(bo.deliver().seq, head);
        fs::write(&ballast, vec![1; free_bytes(ballast.parent().expect("a directory")) - LEFT_BYTES]).expect("it fits");
        eventually("that the disk is full", || match gateway.readiness() {
            Readiness::Ready => None,
            Readiness::NotReady(reasons) => reasons.contains("disk is full").then_some(()),
            Readiness::Gone => panic!("it ended: {}", gateway.log()),
        });
        let logged = |what| eventually(what, || (gateway.log().matches(what).count() > round).then_some(()));
        logged("messages are refused with 5003");
        let rid = al.put_send(DIRECT, cmid(), 0, b"no room");
        let error = al.error();
        assert_eq!((error.rid, error.code), (rid, 5003));
        assert!((30_000..=37_500).contains(&error.retry_ms), "{} ms, jittered", error.retry_ms);
        // Online traffic; of al only what lets go of the message that failed.
        let pass = |from: &mut Raw, to: &mut Raw, flags: u8| {
            let rid = from.put_send(DIRECT, cmid(), send_flags::TRANSIENT | flags, b"passing");
            assert_eq!(from.sent(rid).seq, 0);
            assert_eq!(&*to.deliver().payload, b"passing");
        };
        pass(&mut al, &mut bo, send_flags::RELEASE);
        pass(&mut bo, &mut al, 0);
        al.put(&ClientFrame::Signal { conv: DIRECT.into(), kind: 7, payload: b"typing"[..].into() });
        bo.wait("SIGNALLED", |frame| matches!(frame, ServerFrame::Signalled { .. }).then_some(()));
        // Reads, of a newcomer too.
        assert_eq!(bo.read(DIRECT, head), head);
        let mut newcomer = Raw::connect(&gateway, Encoding::Binary, "bo", &format!("new-{round}"));
        assert_eq!(newcomer.fetch(DIRECT, 0, 0, 0, 0).head, head);
        assert!(newcomer.sync(0, 0).0.iter().any(|entry| entry.conv == DIRECT));
        fs::remove_file(&ballast).expect("a file of the test");
        let freed = Instant::now();
        // A client repeats what was refused, and the store takes it once there is room.
        let next = eventually("service", || {
            let rid = al.put_send(DIRECT, cmid(), send_flags::RELEASE, b"again");
            al.wait("an answer", |frame| match frame {
                ServerFrame::Sent { rid: of, seq, .. } if *of == rid => Some(Some(*seq)),
                ServerFrame::Error { rid: of, code: 5003, .. } if *of == rid => Some(None),
                _ => None,
            })
        });
        best = best.min(freed.elapsed());
        assert_eq!(next, head + 1);
        assert_eq!(bo.deliver().seq, next);
        logged("messages are taken");
        eventually("readiness", || gateway.is_ready().then_some(()));
    }
    for what in ["messages are refused with 5003", "messages are taken"] {
        assert_eq!(gateway.log().matches(what).count(), 2, "once in each round: {}", gateway.log());
    }
    println!("service returned {best:?} after space had, at best of 2");
    assert!(best < SERVICE_WITHIN, "{best:?}");
}

/// Each class of conversations has its level, and each is exactly what it says: level 2 survives whatever happens; level 1 survives a
/// kill, and a power cut may take it; level 0 a kill may take.
#[test]
fn each_level_is_what_it_says() {
    let levels = [("store.level_direct", "0"), ("store.level_group", "1"), ("store.level_channel", "2")];
    for power in [false, true] {
        let (mut gateway, disk) = FaultyDisk::under("/data/", &levels);
        let convs = [("d:al:bo", 0), ("g:al", 1), ("c:al", 2)];
        convs[1..].iter().for_each(|(conv, _)| gateway.group(conv, &["al", "bo"]));
        let mut lost = [0; 3];
        let mut heads = [0; 3];
        for life in 0..LIVES_MAX {
            let mut al = Raw::connect(&gateway, ENCODINGS[life % 2], "al", "1");
            // Nobody asks the disk about them any more, which would bring a sync.
            for (conv, _) in convs {
                al.say(conv, "to begin with");
            }
            // The lower ones last: one of a higher level takes along what came before.
            for (conv, level) in convs.into_iter().rev() {
                let sent = al.say(conv, "one more");
                assert_eq!(sent.level, u8::try_from(level).expect("small"));
                heads[level] = sent.seq;
            }
            if power {
                disk.cut_power(life as u64);
            }
            gateway.kill();
            gateway.run();
            let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
            for (conv, level) in convs {
                let head = al.fetch(conv, 0, 0, 1, 0).head;
                assert!(head == heads[level] || head + 1 == heads[level], "{conv}: {head} of {}", heads[level]);
                lost[level] += heads[level] - head;
            }
            let wanted = usize::from(power);
            if lost[..=wanted].iter().all(|&count| count > 0) {
                break;
            }
        }
        println!("power cut {power}: lost of level 0, 1, 2: {lost:?}");
        assert!(lost[0] > 0, "level 0 is more than it says");
        assert_eq!(lost[1] > 0, power, "level 1");
        assert_eq!(lost[2], 0, "level 2");
    }
}

/// A gateway whose data directory is a file system of [`DISK_MIB`].
fn on_a_small_disk(settings: &[(&str, &str)]) -> Gateway {
    let script = format!(
        "for word; do [ \"$last\" = --data-dir ] && dir=$word; last=$word; done
         mkdir -p \"$dir\" && mount -t tmpfs -o size={DISK_MIB}m tmpfs \"$dir\" && exec \"$0\" \"$@\""
    );
    // Who is not root is root of a user namespace; where the kernel forbids that, the start fails and says so.
    let is_root = fs::metadata("/proc/self").expect("Linux").uid() == 0;
    Gateway::within(&["unshare", if is_root { "-m" } else { "-rm" }, "sh", "-c", &script], settings)
}

/// What is free on the file system of `path`.
fn free_bytes(path: &Path) -> usize {
    let told = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(path).output().expect("stat runs");
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    told.split_whitespace().map(|word| word.parse::<usize>().expect("stat prints numbers")).product()
}

const DISK_MIB: usize = 32;
/// What the ballast leaves: less than `store.free_bytes_min`.
const LEFT_BYTES: usize = 2 << 20;

/// Ends until a loss must have shown: each falls into the second in which the loss may be with great probability.
const LIVES_MAX: usize = 20;
