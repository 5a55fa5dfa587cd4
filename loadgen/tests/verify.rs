//! `verify`: ledgers of a run against what the gateway holds, and the negative controls that must fail.

mod support;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::{Place, said};

fn loadgen(place: &Place, args: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen")).args(args).arg("--data-dir").arg(&place.data).output();
    output.expect("the load generator runs")
}

/// The ledger of a run fits what the gateway holds. With one line of it taken away, doubled or moved it does not, and the exit code and
/// the name say so; so it is for `tidegate verify`, whose exit code is another.
#[test]
fn a_ledger_fits_and_a_planted_fault_does_not() {
    let place = Place::new();
    let ledger = place.data.with_extension("ledger");
    let path = ledger.to_str().expect("a path");
    let more = ["-n", "8", "--users", "4", "--rate", "100", "--warm-up", "0", "--seconds", "3", "--ledger-out", path];
    let (output, _) = place.loadgen("chat", &place.command(), place.port, &more);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let verify = || loadgen(&place, &["verify", "--ledger", path]);
    let clean = verify();
    assert_eq!(clean.status.code(), Some(0), "{}", said(&clean));
    assert!(said(&clean).contains("0 lost, 0 duplicate, 0 reordered, 0 late"), "{}", said(&clean));
    let whole = fs::read_to_string(&ledger).expect("the ledger");
    let lines: Vec<&str> = whole.lines().collect();
    // Messages that one device received of one conversation, in the middle of those.
    let first = lines.iter().find(|line| line.starts_with("{\"got\"")).expect("something was received");
    let value: serde_json::Value = serde_json::from_str(first).expect("a line");
    let (device, conv) = (&value["got"]["device"], &value["got"]["conv"]);
    let is_one = |line: &&str| {
        let value: serde_json::Value = serde_json::from_str(line).expect("a line");
        &value["got"]["device"] == device && &value["got"]["conv"] == conv
    };
    let places: Vec<usize> = (0..lines.len()).filter(|at| is_one(&lines[*at])).collect();
    let (a, b) = (places[places.len() / 2], places[places.len() / 2 + 1]);
    let sent = lines.iter().position(|line| line.starts_with("{\"sent\"")).expect("something was acknowledged");
    // Its own messages it knows by SENT.
    let number = |at: usize, name: &str| serde_json::from_str::<serde_json::Value>(lines[at]).expect("a line")[name].clone();
    let own = |seq: &serde_json::Value| {
        (0..lines.len())
            .map(|at| number(at, "sent"))
            .any(|sent| &sent["device"] == device && &sent["conv"] == conv && &sent["seq"] == seq)
    };
    let inner = &places[1..places.len() - 1];
    let foreign = inner.iter().find(|at| !own(&number(**at, "got")["seq"])).expect("somebody else wrote too");
    let mut lost = lines.clone();
    lost.remove(*foreign);
    let mut doubled = lines.clone();
    doubled.insert(b, lines[a]);
    let mut moved = lines.clone();
    moved.swap(a, b);
    let mut forged: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    forged[sent] = forged[sent].replace("\"seq\":", "\"seq\":9");
    let owned = |lines: Vec<&str>| lines.into_iter().map(str::to_owned).collect::<Vec<_>>();
    for (lines, word) in [
        (owned(lost), "1 lost, 0 duplicate, 0 reordered"),
        (owned(doubled), "0 lost, 1 duplicate, 0 reordered"),
        (owned(moved), "0 lost, 0 duplicate, 1 reordered"),
        (forged, "1 reordered"),
    ] {
        fs::write(&ledger, lines.join("\n")).expect("the ledger");
        let output = verify();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(word), "{word}: {}", said(&output));
    }
    let gateway = std::path::PathBuf::from(env!("CARGO_BIN_EXE_loadgen")).with_file_name("tidegate");
    let output = Command::new(gateway).args(["verify", "--ledger", path, "--data-dir"]).arg(&place.data).output();
    let output = output.expect("the gateway's program runs");
    assert_eq!(output.status.code(), Some(10), "{}", said(&output));
    drop(fs::remove_file(&ledger));
}

/// A canary against a gateway that runs: a small load, and its ledger against what the gateway holds meanwhile.
#[test]
fn a_canary_sings_beside_a_running_gateway() {
    let place = Place::new();
    let command = place.command();
    let mut words = command.split_whitespace();
    let mut gateway = Command::new(words.next().expect("a program")).args(words).stdin(Stdio::null()).spawn().expect("it starts");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !place.data.join("copies").exists() || std::net::TcpStream::connect(("127.0.0.1", place.admin)).is_err() {
        assert!(Instant::now() < deadline, "the gateway is never ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    let ledger = place.data.with_extension("canary");
    let (url, admin) = (format!("ws://127.0.0.1:{}/ws", place.port), format!("127.0.0.1:{}", place.admin));
    let path = ledger.to_str().expect("a path");
    let args = ["verify", "--canary", "2", "-n", "8", "--rate", "50", "--url", &url, "--admin", &admin, "--ledger-out", path];
    let output = loadgen(&place, &args);
    drop(gateway.kill());
    drop(gateway.wait());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("0 lost, 0 duplicate, 0 reordered, 0 late"), "{}", said(&output));
    assert!(!said(&output).contains(" 0 acknowledged"), "{}", said(&output));
    drop(fs::remove_file(&ledger));
}
