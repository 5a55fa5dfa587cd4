//! What is kept, for how long, and in copies, through the real binary.

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};

use support::eventually;
use support::gateway::Gateway;
use support::raw::{ENCODINGS, Raw};
use tidegate::wire::envelope::{Encoding, page_flags};
use tidegate_client::{Event, Events};

const DIRECT: &str = "d:al:bo";

/// Of direct conversations the newest five stay, of groups all. The floor is told by SYNC and FETCH, unread is that of what is left, a
/// kill brings nothing back, and a client that was away learns what is missing and goes on.
#[test]
fn what_is_beyond_the_count_goes_and_is_said_to_be_gone() {
    let mut gateway =
        Gateway::with(&[("retention.count_direct", "5"), ("retention.every_s", "1"), ("protocol.fetch_rate", "1000")]);
    gateway.group("g:team", &["al", "bo"]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    for number in 1..=20 {
        al.say(DIRECT, &format!("message {number}"));
        al.say("g:team", &format!("message {number}"));
    }
    let mut bo = Raw::connect(&gateway, Encoding::Json, "bo", "1");
    let page = eventually("the floor rises", || Some(bo.fetch(DIRECT, 0, 0, 100, 0)).filter(|page| page.floor == 16));
    assert_eq!((page.flags & page_flags::BELOW_FLOOR != 0, page.head), (true, 20));
    assert_eq!(page.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [16, 17, 18, 19, 20]);
    for encoding in ENCODINGS {
        gateway.kill();
        gateway.run();
        let mut bo = Raw::connect(&gateway, encoding, "bo", "2");
        let page = bo.fetch(DIRECT, 18, 0, 100, 0);
        assert_eq!((page.flags & page_flags::BELOW_FLOOR, page.floor, page.messages.len()), (0, 16, 3));
        assert_eq!(bo.fetch(DIRECT, 3, 10, 100, 0).messages.len(), 0);
        assert_eq!(bo.fetch("g:team", 0, 0, 100, 0).messages.len(), 20);
        let (mut entries, _) = bo.sync(0, 0);
        entries.sort_by(|a, b| a.conv.cmp(&b.conv));
        let told: Vec<_> = entries.iter().map(|entry| (&*entry.conv, entry.floor, entry.head, entry.unread)).collect();
        assert_eq!(told, [(DIRECT, 16, 20, 5), ("g:team", 1, 20, 20)]);
    }
    let (_client, events) = gateway.client(gateway.options("bo", "3"));
    let mut seqs = Vec::new();
    while seqs.last() != Some(&20) {
        if let Event::Message(message) = events.recv_timeout(support::PATIENCE).expect("all that is left")
            && *message.conv == *DIRECT
        {
            seqs.push(message.seq);
        }
    }
    assert_eq!(seqs, [16, 17, 18, 19, 20]);
    assert!(gateway.metric("tidegate_store_messages_retired_total") >= 0.0);
}

/// Runs the program on the data of a gateway: exit code, standard output, standard error.
fn tidegate(gateway: &Gateway, args: &[&str]) -> (Option<i32>, String, String) {
    let output = command(gateway, args).output().expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn command(gateway: &Gateway, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(args).arg("--data-dir").arg(gateway.dir().join("data")).current_dir(gateway.dir());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The store of a dead gateway goes aside, as `name`.
fn move_data(gateway: &Gateway, name: &str) {
    fs::rename(gateway.dir().join("data"), gateway.dir().join(name)).expect("a directory of the test");
}

/// Takes texts of the direct conversation until `last` comes, from its last beginning anew on.
fn until(events: &Events, last: &str) -> Vec<(u64, String)> {
    let mut texts = Vec::new();
    loop {
        match events.recv_timeout(support::PATIENCE).unwrap_or_else(|_| panic!("no {last:?} after {texts:?}")) {
            Event::Message(message) if *message.conv == *DIRECT => {
                texts.push((message.seq, String::from_utf8_lossy(&message.payload).into_owned()));
                if texts.last().expect("just pushed").1 == last {
                    return texts;
                }
            }
            Event::Reset { conv } if *conv == *DIRECT => texts.clear(),
            _ => {}
        }
    }
}

/// A backup of a gateway that runs, restored: what was acknowledged before it is there, what came after is gone, and clients that knew
/// more hear of the new epoch: one that stays, one that only asks by SYNC.
#[test]
fn a_restored_backup_is_told_by_its_epoch() {
    let mut gateway = Gateway::start();
    gateway.group("g:team", &["al", "bo"]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let (_client, events) = gateway.client(gateway.options("bo", "1"));
    al.say("g:team", "to all");
    al.say(DIRECT, "one");
    al.say(DIRECT, "two");
    until(&events, "two");
    let (code, told, error) = tidegate(&gateway, &["backup", "copy-1"]);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{told}");
    assert!(told.contains("rows") && gateway.dir().join("copy-1/rows").exists(), "{told}");
    assert_eq!(al.say(DIRECT, "three").seq, 3);
    assert_eq!(until(&events, "three"), [(3, "three".to_owned())]);
    let (_, since) = Raw::connect(&gateway, Encoding::Json, "bo", "2").sync(0, 0);
    gateway.kill();
    move_data(&gateway, "lost");
    let (code, told, error) = tidegate(&gateway, &["restore", "copy-1"]);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{told}");
    gateway.run();
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    assert_eq!(al.say(DIRECT, "new").seq, 3);
    let wanted = [(1, "one"), (2, "two"), (3, "new")].map(|(seq, text)| (seq, text.to_owned()));
    assert_eq!(until(&events, "new"), wanted);
    let mut epochs = Vec::new();
    for (encoding, life) in ENCODINGS.into_iter().zip(1..) {
        let (mut entries, _) = Raw::connect(&gateway, encoding, "bo", "2").sync(since, 0);
        entries.sort_by(|a, b| a.conv.cmp(&b.conv));
        let told: Vec<_> = entries.iter().map(|entry| (&*entry.conv, entry.head, entry.unread)).collect();
        let unread = u32::try_from(life).expect("small");
        assert_eq!(told, [(DIRECT, 3, 3), ("g:team", life, unread)], "whatever was known, everything has changed");
        epochs.push(entries[0].epoch);
        // What was restored is a store like any other.
        gateway.kill();
        gateway.run();
        assert_eq!(Raw::connect(&gateway, encoding, "al", "1").say("g:team", "again").seq, 1 + life);
    }
    assert!(epochs[0] > 1_000_000_000 && epochs[0] == epochs[1], "{epochs:?}");
    // Removing the engine of a restored store is found out: its log does not begin with group 1.
    gateway.kill();
    fs::remove_dir_all(gateway.dir().join("data/engine")).expect("a directory of the gateway");
    let driver = std::env::var("TIDEGATE_TEST_DRIVER").unwrap_or_else(|_| "auto".to_owned());
    let doors = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let (code, _, error) = tidegate(&gateway, &[&["serve", "--driver", &driver], &doors[..]].concat());
    assert_eq!(code, Some(4), "{error}");
}

/// A gateway at rest is copied as well as one that runs, and every refusal names its remedy.
#[test]
fn copies_are_taken_at_rest_and_refusals_name_the_remedy() {
    let mut gateway = Gateway::start();
    gateway.group("g:team", &["al", "bo"]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    for number in 1..=5 {
        al.say(DIRECT, &format!("message {number}"));
        al.say("g:team", &format!("message {number}"));
    }
    let (code, running, error) = tidegate(&gateway, &["export"]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert!(running.ends_with("{\"end\":{\"conversations\":2,\"messages\":10}}\n"), "{running}");
    assert_eq!(running.lines().filter(|line| line.starts_with("{\"member\"")).count(), 2);
    let (_, part, _) = tidegate(&gateway, &["export", "--conv", DIRECT, "--from", "2", "--to", "3"]);
    assert!(part.contains("\"text\":\"message 3\"") && part.ends_with("\"messages\":2}}\n"), "{part}");
    // Somebody else has the data and answers nobody.
    fs::remove_file(gateway.dir().join("data/copies")).expect("the socket");
    let (code, _, error) = tidegate(&gateway, &["backup", "copy"]);
    assert_eq!(code, Some(6), "{error}");
    assert!(!gateway.dir().join("copy/rows").exists() && !gateway.dir().join("copy/rows.new").exists());
    gateway.kill();
    let (code, _, error) = tidegate(&gateway, &["backup", "copy"]);
    assert_eq!(code, Some(0), "{error}");
    let (_, resting, _) = tidegate(&gateway, &["export"]);
    assert_eq!(resting, running);
    let refused = |args: &[&str], word: &str| {
        let (code, _, error) = tidegate(&gateway, args);
        assert_eq!(code, Some(1), "{args:?} {error}");
        assert!(error.contains(word), "{args:?}: {error}");
    };
    refused(&["backup", "copy"], "is not empty: it has rows");
    refused(&["restore", "copy"], "move it away");
    let aside = gateway.dir().join("aside");
    fs::rename(gateway.dir().join("data"), &aside).expect("a directory of the test");
    refused(&["backup", "other"], "holds no store");
    refused(&["export"], "holds no store");
    refused(&["restore", "nowhere"], "No such file");
    let rows = gateway.dir().join("copy/rows");
    let whole = fs::read(&rows).expect("a backup");
    let edited = |change: &dyn Fn(&mut Vec<u8>), word: &str| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(&rows, bytes).expect("a file of the test");
        refused(&["restore", "copy"], word);
        assert!(!gateway.dir().join("data/engine").exists() && !gateway.dir().join("data/restoring.new").exists());
    };
    edited(&|bytes| bytes.truncate(bytes.len() - 1), "not complete");
    edited(&|bytes| bytes[200] ^= 1, "is damaged in block 1");
    edited(&|bytes| bytes[8] = 2, "format 2");
    edited(&|bytes| bytes[0] = 2, "no backup");
    fs::write(&rows, &whole).expect("a file of the test");
    fs::create_dir(gateway.dir().join("small")).expect("a directory");
    std::os::unix::fs::symlink("/dev/full", gateway.dir().join("small/rows.new")).expect("a link");
    fs::rename(&aside, gateway.dir().join("data")).expect("a directory of the test");
    refused(&["backup", "small"], "Make room");
}

/// The program is killed in the middle of a backup, and then the gateway is: what is left is no backup and says so, nothing else is
/// harmed, and the next one is whole.
#[test]
fn a_backup_cut_short_is_none() {
    let mut gateway = Gateway::with(&[("protocol.send_rate", "10000"), ("protocol.send_burst", "1000")]);
    let mut al = Raw::connect(&gateway, Encoding::Binary, "al", "1");
    let long = "x".repeat(48_000);
    for _ in 0..150 {
        al.say(DIRECT, &long);
    }
    for killed in ["program", "gateway"] {
        let dir = gateway.dir().join(killed);
        fs::create_dir(&dir).expect("a directory");
        // A pipe in the place of the file: what writes to it waits for its reader, in the middle.
        let pipe = dir.join("rows.new");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
        let mut child = command(&gateway, &["backup", killed]).spawn().expect("the program runs");
        let mut file = File::open(&pipe).expect("the pipe");
        let mut begun = vec![0; 300_000];
        file.read_exact(&mut begun).expect("it writes");
        if killed == "program" {
            child.kill().expect("it runs");
            assert_eq!(child.wait().expect("it ends").code(), None);
            fs::remove_file(&pipe).expect("the pipe");
            fs::write(&pipe, &begun).expect("a file of the test");
        } else {
            gateway.kill();
            let mut rest = Vec::new();
            file.read_to_end(&mut rest).expect("it ends");
            let output = child.wait_with_output().expect("it ends");
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{error}");
            assert!(error.contains("before the backup was complete"), "{error}");
            assert!(!pipe.exists(), "half a backup is removed");
            gateway.run();
        }
        assert!(!dir.join("rows").exists());
        let (code, _, error) = tidegate(&gateway, &["backup", killed]);
        assert_eq!(code, Some(0), "{error}");
    }
    // What a kill leaves of it is not taken for one.
    let half = gateway.dir().join("half");
    fs::create_dir(&half).expect("a directory");
    fs::copy(gateway.dir().join("program/rows"), half.join("rows.new")).expect("a file of the test");
    gateway.kill();
    move_data(&gateway, "aside");
    let (code, _, error) = tidegate(&gateway, &["restore", "half"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("not complete"), "{error}");
    let (code, _, error) = tidegate(&gateway, &["restore", "gateway"]);
    assert_eq!(code, Some(0), "{error}");
    gateway.run();
    assert_eq!(Raw::connect(&gateway, Encoding::Binary, "al", "1").say(DIRECT, "goes on").seq, 151);
}
