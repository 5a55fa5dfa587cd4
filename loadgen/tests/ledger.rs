//! The ledger against the real gateway: silent when all is well, loud when anything is not.

mod support;

use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::proxy::{self, Harm};
use support::{Place, said};

/// Runs chat through a proxy; returns the exit code, what was said, and lost, duplicate, out of order.
fn chat(harm: Harm) -> (Option<i32>, String, [u64; 3]) {
    let place = Place::new();
    let port = proxy::start(place.port, harm);
    let more =
        ["-n", "8", "--users", "4", "--rate", "200", "--warm-up", "0", "--seconds", "4", "--drain", "5", "--group-share", "0.5"];
    let (output, report) = place.loadgen("chat", &place.command(), port, &more);
    let count = |kind: &str| report["findings"][kind].as_u64().unwrap_or(u64::MAX);
    (output.status.code(), said(&output), [count("lost"), count("duplicate"), count("out_of_order")])
}

/// A proxy that only passes on changes nothing: the ledger is clean, and messages went in both kinds of conversation.
#[test]
fn a_good_run_passes() {
    let (code, said, found) = chat(Harm::Nothing);
    assert_eq!((code, found), (Some(0), [0, 0, 0]), "{said}");
}

/// A lost delivery is reported as lost and fails the run, although the client fetches what it missed.
#[test]
fn loss_is_reported() {
    let (code, said, [lost, ..]) = chat(Harm::Lose);
    assert!(code == Some(1) && lost > 0 && lost < u64::MAX, "{said}");
}

/// A delivery that comes twice is reported, although the client drops it.
#[test]
fn duplication_is_reported() {
    let (code, said, [_, duplicate, _]) = chat(Harm::Duplicate);
    assert!(code == Some(1) && duplicate > 0 && duplicate < u64::MAX, "{said}");
}

/// A delivery that is overtaken is reported, although the client puts it in its place.
#[test]
fn reordering_is_reported() {
    let (code, said, [_, _, out_of_order]) = chat(Harm::Reorder);
    assert!(code == Some(1) && out_of_order > 0 && out_of_order < u64::MAX, "{said}");
}

/// A threshold that cannot be kept sets its own exit code, with a clean ledger.
#[test]
fn a_broken_threshold_fails_the_run() {
    let place = Place::new();
    let more = ["-n", "4", "--rate", "50", "--warm-up", "0", "--seconds", "2", "--max-p99", "0.001"];
    let (output, report) = place.loadgen("chat", &place.command(), place.port, &more);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(report["broken"][0].as_str().is_some_and(|text| text.contains("p99 of DELIVER")), "{}", said(&output));
}

const CRASH: [&str; 16] = [
    "-n",
    "16",
    "--users",
    "8",
    "--rate",
    "400",
    "--group-share",
    "0.3",
    "--back-off-ms",
    "20",
    "--back-off-max-ms",
    "300",
    "--kills",
    "5",
    "--drain",
    "20",
];

/// Kills under load lose nothing.
#[test]
fn kills_lose_nothing() {
    let place = Place::new();
    let (output, report) = place.loadgen("crash", &place.command(), place.port, &CRASH);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(report["crash"]["kills"], 5);
}

/// A signal ends the campaign, and what was acknowledged until then is judged as ever: also when a terminal sends it to all.
#[test]
fn a_signal_ends_the_campaign_with_a_report() {
    for (signal, to_all) in [(Signal::SIGTERM, false), (Signal::SIGINT, true)] {
        let place = Place::new();
        let begun = place.data.with_extension("begun");
        let start = format!("sh -c 'echo once more >> {}; exec {}'", begun.display(), place.command());
        let more: Vec<&str> = CRASH.into_iter().map(|word| if word == "5" { "100000" } else { word }).collect();
        let mut line = place.line("crash", &start, place.port, &more);
        let run = line.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the load generator runs");
        while std::fs::read_to_string(&begun).is_ok_and(|text| text.lines().count() < 4) || !begun.exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let pid = i32::try_from(run.id()).expect("a pid");
        kill(Pid::from_raw(if to_all { -pid } else { pid }), signal).expect("it runs");
        let output = run.wait_with_output().expect("it ends");
        let report = place.report();
        drop(std::fs::remove_file(begun));
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(report["crash"]["kills"].as_u64().is_some_and(|kills| (2..100_000).contains(&kills)), "{report}");
        assert!(report["warnings"][0].as_str().is_some_and(|text| text.contains("ended by a signal")), "{report}");
        assert!(report["counts"]["acknowledged"].as_u64().is_some_and(|count| count >= 200), "{report}");
        // A ring is taken down by the kernel a moment after its process, and its listener with it.
        let is_gone = || std::net::TcpStream::connect(("127.0.0.1", place.port)).is_err();
        let mut looks = (0..500).map(|_| std::thread::sleep(Duration::from_millis(20)));
        assert!(looks.any(|()| is_gone()), "the gateway has ended too");
    }
}

/// The campaign can fail: a gateway that acknowledges before it writes is found out by the same checker.
#[test]
fn an_early_acknowledgement_is_found_out() {
    let place = Place::new();
    let start = format!("env FAULT_ACKNOWLEDGE_BEFORE_WRITE=1 {}", place.command());
    let more = CRASH.map(|word| if word == "5" { "12" } else { word });
    let (output, report) = place.loadgen("crash", &start, place.port, &more);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(report["findings"]["lost"].as_u64().is_some_and(|lost| lost > 0), "{}", said(&output));
}

/// Only this machine is put under load, unless told otherwise.
#[test]
fn other_machines_are_left_alone() {
    let place = Place::new();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["chat", "--url", "ws://192.0.2.1:80/ws", "--data-dir"])
        .arg(&place.data)
        .output()
        .expect("the load generator runs");
    assert_eq!(output.status.code(), Some(4));
    assert!(said(&output).contains("--allow-remote"), "{}", said(&output));
}
